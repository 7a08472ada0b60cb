"""External attacks: adversarial examples sent against an entry, from the request to the entry's lower accuracy."""

from __future__ import annotations

import math
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from app import jobs
from app.accounts import quotas
from app.boards import strongest_certificates
from app.boards.placing import update_flags
from app.boards.ranking import get
from app.core.errors import Conflict, Unprocessable
from app.db.database import database_now
from app.db.tables import Entry, Evaluation, ExternalAttack, FileKind, Job, JobFile, Model
from app.store import StoredFile
from gkl.catalog import DATASETS, image_shape, recorded_preprocessing
from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import read_header
from gkl.outcome import ExternalOutcome
from gkl.spec import ExternalSpec

MAX_NAME = 80
_HEADER_BYTES = 1024 * 1024


def check_entry(session: Session, entry_id: int) -> tuple[Entry, Model, Evaluation]:
    """An entry that can be attacked here, its model, and its evaluation.

    Raises:
        NotFound: there is no such entry.
        Conflict: it cannot be attacked; the message says why.
    """
    entry = get(session, entry_id).entry
    if entry.model is None or entry.evaluation is None:
        whence = "was imported" if entry.report is None else "rests on its owner's certificate"
        raise Conflict(
            f"entry {entry_id} {whence}; its weights are not stored here, so examples cannot be checked against it. "
            "Send the weights and an evaluation first"
        )
    if entry.is_provisional or strongest_certificates.of_entry(session, entry) is None:
        state = "its verdict is still provisional" if entry.is_provisional else "it has no certificate to merge with"
        raise Conflict(f"entry {entry_id} cannot be attacked yet: {state}")
    if entry.evaluation.epsilon is None:
        raise Conflict(f"entry {entry_id} is on a board without attacks; it cannot be attacked")
    return entry, entry.model, entry.evaluation


def shape_of_examples(entry: Entry) -> tuple[int, int, int]:
    """(channels, height, width) of the images in the entry's evaluation."""
    manifest = {} if entry.evaluation is None else entry.evaluation.manifest
    return image_shape(entry.dataset, recorded_preprocessing(entry.dataset, manifest))


def most_bytes(entry: Entry) -> int:
    """The largest size of a file with an example for each of the entry's points."""
    image_bytes = 4 * math.prod(shape_of_examples(entry))
    return entry.num_points * (image_bytes + 8) + _HEADER_BYTES


def create(session: Session, entry_id: int, examples: StoredFile, *, name: str, submitter: str) -> Job:
    """Queue the check of examples against an entry.

    Raises:
        NotFound, Conflict: see `check_entry`.
    """
    entry, model, evaluation = check_entry(session, entry_id)
    spec = ExternalSpec(
        # A spec's name has at most 100 characters.
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


def attacks_that_held(
    session: Session, entry_id: int, *, after_id: int | None = None, limit: int
) -> list[ExternalAttack]:
    """Confirmed attacks against an entry with ids above `after_id`, in the order in which they were sent."""
    query = select(ExternalAttack).where(
        ExternalAttack.entry_id == entry_id, ExternalAttack.examples.is_not(None), ExternalAttack.id > (after_id or 0)
    )
    return list(session.scalars(query.order_by(ExternalAttack.id).limit(limit)))


def newest_attacks(session: Session, entry_id: int, *, limit: int) -> list[ExternalAttack]:
    """The newest attacks against an entry, also unchecked and refuted ones, the newest last."""
    query = select(ExternalAttack).where(ExternalAttack.entry_id == entry_id).options(joinedload(ExternalAttack.job))
    return list(session.scalars(query.order_by(ExternalAttack.id.desc()).limit(limit)))[::-1]


def attack_of_job(session: Session, job_id: int) -> ExternalAttack | None:
    return session.scalars(select(ExternalAttack).where(ExternalAttack.job_id == job_id)).first()


def certificate_for(session: Session, job_id: int) -> str:
    """The sha256 of the certificate that a check extends.

    Raises:
        Conflict: the entry was removed, or has no certificate any more.
    """
    attack = attack_of_job(session, job_id)
    found = None if attack is None else strongest_certificates.of_entry(session, attack.entry)
    if found is None:
        raise Conflict("the entry that these examples are for was removed")
    return found


def record(session: Session, job_id: int, outcome: ExternalOutcome, stored: StoredFile | None) -> bool:
    """Lower the entry's accuracy by the broken points; False if the entry got another certificate meanwhile.

    The caller ends the job in the same transaction, or queues it again.
    """
    attack = session.scalars(select(ExternalAttack).where(ExternalAttack.job_id == job_id)).one()
    return merge(session, attack, outcome, stored)


def merge(session: Session, attack: ExternalAttack, outcome: ExternalOutcome, stored: StoredFile | None) -> bool:
    """Like `record`, for an attack that may not have a row yet; it gets one only if something is recorded."""
    entry = lock_with_certificate(session, attack.entry_id, outcome.base_sha256)
    if entry is None:
        return False
    attack.examples, attack.broken = outcome.examples, outcome.broken
    attack.robust_correct = outcome.robust_correct
    attack.certificate_sha256 = None if stored is None else stored.sha256
    session.add(attack)
    if outcome.broken:
        entry.external_accuracy = entry.robust_accuracy = outcome.robust_correct / entry.num_points
        assert entry.evaluation is not None
        update_flags(entry, entry.evaluation)
        entry.changed_at = database_now(session)
    session.flush()
    return True


def lock_with_certificate(session: Session, entry_id: int, certificate_sha256: str) -> Entry | None:
    """Lock an entry and return it; None if its certificate is another one by now."""
    # If two checks of one entry end at the same moment, the second waits here and then finds the first's certificate.
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).with_for_update()).one()
    session.refresh(entry)
    return entry if strongest_certificates.of_entry(session, entry) == certificate_sha256 else None


def check_file(path: Path, entry: Entry) -> None:
    """Check a file of examples by its header, without reading its images.

    Raises:
        Unprocessable: it has no examples that fit the entry's images.
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
