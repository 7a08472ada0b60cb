"""Adversarial examples that somebody sends against an entry: from the request to the entry's lower accuracy."""

from __future__ import annotations

import math
from pathlib import Path

from sqlalchemy import ColumnElement, and_, select, true
from sqlalchemy.orm import Session, joinedload

from app import jobs, quotas
from app.artifacts import StoredFile
from app.database import database_now
from app.entries import get, judge
from app.errors import Conflict, Unprocessable
from app.tables import Entry, Evaluation, ExternalAttack, FileKind, Job, JobFile, Model
from gkl.catalog import DATASETS, image_shape, recorded_preprocessing
from gkl.errors import InvalidInput
from gkl.outcome import ExternalOutcome
from gkl.safetensors_header import read_header
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec, ExternalSpec, board_name

MAX_NAME = 80
_HEADER_BYTES = 1024 * 1024
# Certificates of other models whose examples are tried on a new one: forward passes only, but each is a file to read.
_OTHERS = 5


def check_entry(session: Session, entry_id: int) -> tuple[Entry, Model, Evaluation]:
    """An entry that can be attacked here, its weights, and the evaluation it stands with.

    Raises:
        NotFound: there is no such entry.
        Conflict: it cannot be attacked, with the reason.
    """
    entry = get(session, entry_id).entry
    if entry.model is None or entry.evaluation is None:
        whence = "was imported" if entry.report is None else "stands with its owner's own certificate"
        raise Conflict(
            f"entry {entry_id} {whence}; its weights are not here, so nothing can be checked against it. Send them "
            "and an evaluation first"
        )
    if entry.is_provisional or certificate(session, entry) is None:
        state = "its verdict is still provisional" if entry.is_provisional else "it has no certificate to merge with"
        raise Conflict(f"entry {entry_id} cannot be attacked yet: {state}")
    if entry.evaluation.epsilon is None:
        raise Conflict(f"entry {entry_id} stands on a board without attacks; there is nothing to break")
    return entry, entry.model, entry.evaluation


def shape_of_examples(entry: Entry) -> tuple[int, int, int]:
    """(channels, height, width) of the images that its evaluation attacked."""
    manifest = {} if entry.evaluation is None else entry.evaluation.manifest
    return image_shape(entry.dataset, recorded_preprocessing(entry.dataset, manifest))


def most_bytes(entry: Entry) -> int:
    """Of a file with an example for each of its points."""
    image_bytes = 4 * math.prod(shape_of_examples(entry))
    return entry.num_points * (image_bytes + 8) + _HEADER_BYTES


def create(session: Session, entry_id: int, examples: StoredFile, *, name: str, submitter: str) -> Job:
    """Queue the check of examples against an entry.

    Raises:
        NotFound, Conflict: see `check_entry`.
    """
    entry, model, evaluation = check_entry(session, entry_id)
    spec = ExternalSpec(
        # With room for whom it is from in what a spec may call itself.
        name=f"{name} ({submitter})"[:100].strip(),
        dataset=entry.dataset,
        architecture=model.architecture,
        weights=evaluation.manifest["spec"]["weights"],
        weights_key=evaluation.manifest["spec"].get("weights_key"),
        examples=examples.sha256,
    )
    quotas.check_room_for_job(session, submitter)
    job = jobs.create(session, spec, submitter=submitter)
    session.add(
        JobFile(
            job_id=job.id,
            kind=FileKind.EXAMPLES,
            number=0,
            file="examples.safetensors",
            sha256=examples.sha256,
            size_bytes=examples.size_bytes,
            created_at=job.created_at,
        )
    )
    session.add(
        ExternalAttack(
            entry_id=entry_id, job_id=job.id, name=name, submitter=submitter, created_at=database_now(session)
        )
    )
    session.flush()
    return job


def certificate(session: Session, entry: Entry) -> str | None:
    """sha256 of the one that breaks the most: the evaluation's own, one with examples merged, or what was sent."""
    own = entry.evaluation
    if own is None:
        return None if entry.report is None else entry.report.certificate_sha256
    merged = _merged(session, ExternalAttack.entry_id == entry.id)
    return _strongest(own.certificate_sha256, own.robust_correct, merged.get(entry.id))


def certificates_of_board(session: Session, dataset: str, board: str) -> dict[int, str]:
    """Entry -> sha256 as `certificate` has it, of each entry of a board that was measured here and has one."""
    merged = _merged(session, ExternalAttack.entry.has(and_(Entry.dataset == dataset, Entry.board == board)))
    measured = (
        select(Entry.id, Evaluation.certificate_sha256, Evaluation.robust_correct)
        .join(Entry.evaluation)
        .where(Entry.dataset == dataset, Entry.board == board)
    )
    found = {entry_id: _strongest(own, left, merged.get(entry_id)) for entry_id, own, left in session.execute(measured)}
    return {entry_id: sha256 for entry_id, sha256 in found.items() if sha256 is not None}


def _merged(session: Session, which: ColumnElement[bool]) -> dict[int, tuple[str, int]]:
    """Entry -> the certificate with examples merged that leaves the fewest points, and how many it leaves."""
    columns = (ExternalAttack.entry_id, ExternalAttack.certificate_sha256, ExternalAttack.robust_correct)
    has_one = and_(ExternalAttack.certificate_sha256.is_not(None), ExternalAttack.robust_correct.is_not(None))
    rows = session.execute(
        # The first of those that leave as few is written last.
        select(*columns).where(which, has_one).order_by(ExternalAttack.robust_correct.desc(), ExternalAttack.id.desc())
    )
    return {entry_id: (sha256, left) for entry_id, sha256, left in rows if sha256 is not None and left is not None}


def _strongest(own: str | None, own_left: int | None, merged: tuple[str, int] | None) -> str | None:
    return merged[0] if merged is not None and own_left is not None and merged[1] < own_left else own


def certificates_of_others(session: Session, spec: EvaluateSpec) -> list[str]:
    """sha256 of those of the most robust other models on the board that an evaluation is for, a few of them."""
    entries = session.scalars(
        select(Entry)
        .join(Entry.model)
        .where(
            Entry.dataset == spec.dataset,
            Entry.board == board_name(spec.dataset, spec.evaluation),
            Entry.is_provisional.is_(False),
            Entry.withdrawn_at.is_(None),
            Model.weights_sha256 != spec.weights,
            # Published weights are named by their architecture.
            Model.architecture != spec.architecture if spec.weights == PUBLISHED_WEIGHTS else true(),
        )
        .order_by(Entry.unrankable_reason.is_not(None), Entry.robust_accuracy.desc(), Entry.id)
        .limit(_OTHERS)
    )
    return [found for entry in entries if (found := certificate(session, entry)) is not None]


def attacks_that_held(
    session: Session, entry_id: int, *, after_id: int | None = None, limit: int
) -> list[ExternalAttack]:
    """Against an entry, in the order in which they were sent, behind `after_id`."""
    query = select(ExternalAttack).where(
        ExternalAttack.entry_id == entry_id, ExternalAttack.examples.is_not(None), ExternalAttack.id > (after_id or 0)
    )
    return list(session.scalars(query.order_by(ExternalAttack.id).limit(limit)))


def newest_attacks(session: Session, entry_id: int, *, limit: int) -> list[ExternalAttack]:
    """Against an entry, also those that are not checked yet or did not hold; the newest last."""
    query = select(ExternalAttack).where(ExternalAttack.entry_id == entry_id).options(joinedload(ExternalAttack.job))
    return list(session.scalars(query.order_by(ExternalAttack.id.desc()).limit(limit)))[::-1]


def attack_of_job(session: Session, job_id: int) -> ExternalAttack | None:
    return session.scalars(select(ExternalAttack).where(ExternalAttack.job_id == job_id)).first()


def certificate_for(session: Session, job_id: int) -> str:
    """The one that a check has to extend.

    Raises:
        Conflict: the entry has gone, or has none any more.
    """
    attack = attack_of_job(session, job_id)
    found = None if attack is None else certificate(session, attack.entry)
    if found is None:
        raise Conflict("the entry that these examples are for is no longer there")
    return found


def record(session: Session, job_id: int, outcome: ExternalOutcome, stored: StoredFile | None) -> bool:
    """Lower the entry's accuracy by what was broken; False if another certificate than this took its place meanwhile.

    The caller ends the job in the same transaction, or queues it again.
    """
    attack = session.scalars(select(ExternalAttack).where(ExternalAttack.job_id == job_id)).one()
    return merge(session, attack, outcome, stored)


def merge(session: Session, attack: ExternalAttack, outcome: ExternalOutcome, stored: StoredFile | None) -> bool:
    """As `record`, for an attack that need not have a row yet, and gets none if nothing is recorded."""
    entry = standing_with(session, attack.entry_id, outcome.base_sha256)
    if entry is None:
        return False
    attack.examples, attack.broken = outcome.examples, outcome.broken
    attack.robust_correct = outcome.robust_correct
    attack.certificate_sha256 = None if stored is None else stored.sha256
    session.add(attack)
    if outcome.broken:
        entry.external_accuracy = entry.robust_accuracy = outcome.robust_correct / entry.num_points
        assert entry.evaluation is not None
        judge(entry, entry.evaluation)
        entry.changed_at = database_now(session)
    session.flush()
    return True


def standing_with(session: Session, entry_id: int, certificate_sha256: str) -> Entry | None:
    """An entry, locked until this transaction ends; None if it stands with another certificate by now."""
    # Two checks of one entry that end in the same moment: the second waits here, and then finds the first's.
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).with_for_update()).one()
    session.refresh(entry)
    return entry if certificate(session, entry) == certificate_sha256 else None


def check_file(path: Path, entry: Entry) -> None:
    """What can be told from the file's head, without reading its images.

    Raises:
        Unprocessable: it holds no examples for the entry's images.
    """
    shape = list(shape_of_examples(entry))
    try:
        tensors = read_header(path, "the file")
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    missing = {"adversarial", "index"} - tensors.keys()
    if missing:
        raise Unprocessable(f"body: the file lacks the tensor {min(missing)!r}; send 'adversarial' and 'index'")
    images, index = tensors["adversarial"], tensors["index"]
    found, count = list(images.shape), list(index.shape)
    whole = index.dtype in ("I64", "I32", "I16", "I8", "U8")
    if images.dtype != "F32" or found[1:] != shape:
        raise Unprocessable(
            f"body: 'adversarial' is {images.dtype} {found}; {DATASETS[entry.dataset].title} needs F32 [examples, "
            f"{', '.join(map(str, shape))}] in [0, 1]"
        )
    if not whole or count != found[:1] or not 1 <= found[0] <= entry.num_points:
        raise Unprocessable(
            f"body: 'index' is {index.dtype} {count} for {found[0]} images; send one whole number for each, the "
            f"place of its clean image among the {entry.num_points} test images"
        )
