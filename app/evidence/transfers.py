"""Transfers: trying the adversarial examples of one entry on the network of another, from the request to the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from app import jobs
from app.accounts import audit, quotas
from app.accounts.audit import Actor
from app.boards import ranking, strongest_certificates
from app.boards.names import threat_model_of_board
from app.core.errors import Conflict, NotFound, ServiceError, Unprocessable
from app.core.formatting import as_sentence, interval, percent, plain
from app.db.database import Database, database_now
from app.db.tables import UNFINISHED, Entry, Evaluation, ExternalAttack, FileKind, Job, JobFile, Model, Transfer
from app.evidence import external
from app.jobs import job_files
from app.store import StoredFile
from gkl.answers import PairTransferView, Provenance, TransferView
from gkl.catalog import recorded_preprocessing
from gkl.outcome import TransferCounts, TransferOutcome
from gkl.spec import ThreatModel, TransferSpec, why_not_within

_NAME = 80
_SOURCE_FILE = "source.safetensors"

_log = logging.getLogger(__name__)


def request(database: Database, source_id: int, target_id: int, *, submitter: str, by: Actor) -> int:
    """Queue a transfer on behalf of a user, and write the audit record. Returns the job's number.

    Raises:
        NotFound, Conflict, Unprocessable, TooMany: see `create`.
    """
    with database.writing() as session:
        job = create(session, source_id, target_id, submitter=submitter)
        audit.record(session, by, "entry.transfer", f"entry {target_id}", {"source": source_id, "job": job.id})
        job_id = job.id
    _log.info("job %d was sent", job_id, extra={"job_id": job_id})
    return job_id


def create(session: Session, source_id: int, target_id: int, *, submitter: str) -> Job:
    """Queue the measurement of how many examples of one entry break another.

    Raises:
        NotFound: there is no such target.
        Conflict, Unprocessable: see `_checked`; Conflict also if it has been measured, or is being measured.
    """
    # Of two requests for the same transfer, the second waits here and then finds the first one's job.
    session.execute(select(Entry.id).where(Entry.id == target_id).with_for_update())
    source, target, certificate = _checked(session, source_id, target_id)
    measured, underway = _known(session, [source_id, target_id]).get((source_id, target_id), (None, None))
    if underway is not None:
        raise Conflict(f"job {underway.job_id} is already measuring this; wait for it, or cancel it first")
    if measured is not None and measured.source_certificate_sha256 == certificate:
        raise Conflict(
            f"job {measured.job_id} has already measured this, and entry {source_id} has no new examples since"
        )
    _, model, evaluation = target
    names = _name(source), _name(target[0])
    spec = TransferSpec(
        name=f"{names[0][:45].strip()} against {names[1][:45].strip()}",
        source_name=names[0],
        source=certificate,
        dataset=source.dataset,
        architecture=model.architecture,
        weights=evaluation.manifest["spec"]["weights"],
        weights_key=evaluation.manifest["spec"].get("weights_key"),
    )
    quotas.check_room_for_job(session, submitter)
    job = jobs.create(session, spec, submitter=submitter)
    # A row of the job's own keeps the certificate until the job has read it, even if it is replaced meanwhile.
    job_files.add_file(
        session,
        job.id,
        FileKind.EXAMPLES,
        number=0,
        file=_SOURCE_FILE,
        stored=StoredFile(certificate, _size_of(session, certificate)),
    )
    session.add(
        Transfer(
            source_id=source_id,
            target_id=target_id,
            job_id=job.id,
            submitter=submitter,
            source_certificate_sha256=certificate,
            created_at=database_now(session),
        )
    )
    session.flush()
    return job


def _checked(session: Session, source_id: int, target_id: int) -> tuple[Entry, tuple[Entry, Model, Evaluation], str]:
    """The source entry; the target entry with its model and evaluation; the source's certificate.

    Raises:
        NotFound: there is no such target.
        Conflict: one of them is withdrawn, provisional, or has no certificate or weights here.
        Unprocessable: the source's examples do not fit the target.
    """
    if source_id == target_id:
        raise Unprocessable(f"source: entry {source_id} is the target itself; name the entry whose examples to replay")
    target = external.check_entry(session, target_id)
    try:
        source = ranking.get(session, source_id).entry
    except NotFound as error:
        raise Unprocessable(f"source: {error}") from error
    for entry in (source, target[0]):
        if entry.is_withdrawn:
            raise Conflict(f"entry {entry.id} is withdrawn ({entry.withdrawn_reason}); compare others")
    certificate = strongest_certificates.of_entry(session, source)
    if source.is_provisional:
        raise Conflict(f"the verdict of entry {source_id} is still provisional; wait until its evaluation has ended")
    if _threat_model(source) is None:
        raise Conflict(f"entry {source_id} is on a board without attacks; it has no adversarial examples")
    if certificate is None:
        raise Conflict(f"entry {source_id} has no certificate here, and so no adversarial examples")
    reason = _misfit(source, target[0])
    if reason is not None:
        raise Unprocessable(f"source: {reason}")
    return source, target, certificate


def _misfit(source: Entry, target: Entry) -> str | None:
    """Why the examples of one entry cannot be judged by the evaluation of another; None if they can."""
    if source.dataset != target.dataset:
        return (
            f"entry {source.id} uses {source.dataset} and entry {target.id} {target.dataset}; name an entry of the "
            "same data set"
        )
    if source.evaluation is not None and _images(source) != _images(target):
        return (
            f"entry {source.id} was attacked on images of another size or crop than entry {target.id}; name one with "
            "the same preprocessing"
        )
    theirs, ours = _threat_model(source), _threat_model(target)
    assert theirs is not None, "so it was checked"
    assert ours is not None, "so it was checked"
    reason = why_not_within(theirs, ours)
    return None if reason is None else f"the examples of entry {source.id} {reason}; name one within that budget"


def _images(entry: Entry) -> object:
    """How the entry's images were preprocessed; None for a report: only its certificate says, and the run compares."""
    manifest = {} if entry.evaluation is None else entry.evaluation.manifest
    return recorded_preprocessing(entry.dataset, manifest)


def _threat_model(entry: Entry) -> ThreatModel | None:
    return threat_model_of_board(entry.dataset, entry.board)


def _name(entry: Entry) -> str:
    """An entry's name as one printable line, for a spec."""
    printable = "".join(letter if letter.isprintable() else " " for letter in plain(entry.name))
    return " ".join(printable.split())[:_NAME].strip() or entry.slug[:_NAME]


def _size_of(session: Session, sha256: str) -> int:
    return session.scalar(select(JobFile.size_bytes).where(JobFile.sha256 == sha256).limit(1)) or 0


def of_job(session: Session, job_id: int) -> Transfer | None:
    return session.scalars(select(Transfer).where(Transfer.job_id == job_id)).first()


def certificate_of_target(session: Session, job_id: int) -> str:
    """The sha256 of the target's certificate, which a measurement extends.

    Raises:
        NotFound: one of the entries was removed, or the target has no certificate any more.
    """
    found = strongest_certificates.of_entry(session, _of(session, job_id).target)
    if found is None:
        raise NotFound("the target entry no longer has a certificate")
    return found


def _of(session: Session, job_id: int) -> Transfer:
    transfer = of_job(session, job_id)
    if transfer is None:
        raise NotFound("one of the two entries was removed")
    return transfer


def record(session: Session, job: Job, outcome: TransferOutcome, stored: StoredFile | None) -> bool:
    """Store a measured transfer, and lower the target's accuracy by newly broken points; False if the target got
    another certificate meanwhile.

    The caller ends the job in the same transaction, or queues it again.

    Raises:
        NotFound: one of the entries was removed.
    """
    transfer = _of(session, job.id)
    if outcome.merged.broken:
        attack = ExternalAttack(
            entry_id=transfer.target_id,
            job_id=job.id,
            name=outcome.merged.attack,
            submitter=transfer.submitter,
            created_at=database_now(session),
        )
        if not external.merge(session, attack, outcome.merged, stored):
            return False
    elif external.lock_with_certificate(session, transfer.target_id, outcome.merged.base_sha256) is None:
        return False
    transfer.outcome = outcome.model_dump(mode="json")
    session.flush()
    return True


# --- what is shown -----------------------------------------------------------------------------------------------


def page(session: Session, entry_id: int, *, before_id: int | None, limit: int) -> list[Transfer]:
    """Transfers from and to an entry with ids below `before_id`, newest first."""
    query = select(Transfer).where(or_(Transfer.source_id == entry_id, Transfer.target_id == entry_id))
    if before_id is not None:
        query = query.where(Transfer.id < before_id)
    return list(session.scalars(query.options(joinedload(Transfer.job)).order_by(Transfer.id.desc()).limit(limit)))


def view(session: Session, transfer: Transfer) -> TransferView:
    said: dict[str, Any] = {
        name: getattr(transfer, name) for name in ("id", "source_id", "target_id", "job_id", "submitter", "created_at")
    }
    said["state"] = transfer.job.state
    said["is_current"] = transfer.source_certificate_sha256 == strongest_certificates.of_entry(session, transfer.source)
    if transfer.outcome is None:
        return TransferView.model_validate(said | {"counts": None, "attacks": []})
    outcome = TransferOutcome.model_validate(transfer.outcome)
    said["counts"] = _counts(outcome)
    said["attacks"] = [_counts(each) | {"attack": each.attack} for each in outcome.attacks]
    return TransferView.model_validate(
        said | {"newly_broken": outcome.merged.broken, "answers_vary": outcome.answers_vary}
    )


def _counts(counts: TransferCounts) -> dict[str, Any]:
    return {
        "examples": counts.examples,
        "clean_correct": counts.clean_correct,
        "broken": counts.broken,
        "share": counts.share,
        "interval": counts.interval,
    }


def between(session: Session, compared: Sequence[Entry]) -> list[PairTransferView]:
    """For each ordered pair of entries: the measured transfer, or whether it can be measured."""
    known = _known(session, [entry.id for entry in compared])
    found = []
    for source, target in permutations(compared, 2):
        measured, underway = known.get((source.id, target.id), (None, None))
        shown = None if measured is None else view(session, measured)
        why_not = None
        try:
            _checked(session, source.id, target.id)
        except ServiceError as error:
            why_not = as_sentence(str(error))
        found.append(
            PairTransferView(
                source_id=source.id,
                target_id=target.id,
                sentence=None if shown is None else _sentence(shown, source, target),
                measured=shown,
                job_id=None if underway is None else underway.job_id,
                can_be_measured=why_not is None and underway is None and (shown is None or not shown.is_current),
                why_not=why_not,
            )
        )
    return found


def _known(
    session: Session, entry_ids: Sequence[int]
) -> dict[tuple[int, int], tuple[Transfer | None, Transfer | None]]:
    """For each source and target: the newest measured transfer, and one that is being measured."""
    rows = session.scalars(
        select(Transfer)
        .join(Transfer.job)
        .where(
            Transfer.source_id.in_(entry_ids),
            Transfer.target_id.in_(entry_ids),
            or_(Transfer.outcome.is_not(None), Job.state.in_(UNFINISHED)),
        )
        .options(joinedload(Transfer.job))
        .order_by(Transfer.id)
    )
    found: dict[tuple[int, int], tuple[Transfer | None, Transfer | None]] = {}
    for row in rows:
        pair = row.source_id, row.target_id
        measured, underway = found.get(pair, (None, None))
        found[pair] = (measured, row) if row.outcome is None else (row, underway)
    return found


def _sentence(shown: TransferView, source: Entry, target: Entry) -> str:
    counts, names = shown.counts, (plain(source.name), plain(target.name))
    assert counts is not None, "it is measured"
    if counts.share is None:
        said = f"{names[0]} has no adversarial example of an image that {names[1]} gets right."
    else:
        said = (
            f"Of {names[0]}'s {counts.clean_correct} adversarial examples whose clean images {names[1]} gets right, "
            f"{counts.broken} ({percent(counts.share, 1)}, 95 % interval {interval(counts.interval)}) break {names[1]} "
            "too."
        )
    if shown.newly_broken:
        said += f" {shown.newly_broken} of them broke points that {names[1]} had withstood, and lowered its accuracy."
    if shown.answers_vary:
        said += f" {names[1]} is randomized: another run may give other counts."
    if source.provenance is Provenance.REPORTED:
        said += f" Only its owner has measured {names[0]}."
    if not shown.is_current:
        said += f" {names[0]} has got new examples since."
    return said
