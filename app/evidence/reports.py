"""Reports: entries without a rank, made from certificates of networks that only their owners have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import jobs
from app.accounts import quotas
from app.boards import naming, placing
from app.boards.names import board_name
from app.core.errors import Unprocessable
from app.db.database import database_now
from app.db.tables import Entry, FileKind, Job, Report
from app.jobs import job_files
from app.store import StoredFile
from gkl.answers import Provenance
from gkl.catalog import ATTACK_TITLES, BEYOND_AUTOATTACK, DATASETS, attack_name, image_shape, recorded_preprocessing
from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import MAX_HEADER_BYTES, TensorHeader, read_header
from gkl.outcome import Flag, Manifest, ReportOutcome
from gkl.outcome.flags import FLAGS, unrankable
from gkl.spec import SHA256_PATTERN, Evaluation, Publication, ReportSpec, why_on_no_board

_OF_POINTS = {"label": "I64", "prediction": "I64", "broken_by": "I64", "perturbation_norm": "F64"}
_OF_BROKEN = {"index": "I64", "adversarial_prediction": "I64"}
_IMAGES = {"adversarial": ("F32",), "clean": ("F32", "U8")}
# A real certificate has a few kilobytes of metadata.
_MOST_METADATA = 64 * 1024
_HOW = "evaluate again with gkl.evaluate, and send what save_certificate() writes"


_Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]


class _Flag(Flag):
    sentence: _Text


class _Manifest(Manifest):
    flags: Annotated[tuple[_Flag, ...], Field(max_length=len(FLAGS))] = ()
    """The flags of its owner's run."""


class Claims(BaseModel):
    """The metadata of a certificate, before a worker reads its images. Sizes are bounded, since pages and files show it
    later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: _Text
    dataset: _Text
    architecture: _Text
    weights_sha256: _Sha256
    dataset_sha256: _Sha256
    evaluation: Annotated[Evaluation, Field(strict=False)]
    attacks: list[_Text]
    clean_correct: int
    robust_correct: int
    answers_vary: bool
    corruptions: Annotated[list[Any], Field(max_length=0)]
    manifest: Annotated[_Manifest, Field(strict=False)]
    contents_sha256: _Sha256

    @property
    def board(self) -> str:
        return board_name(self.dataset, self.evaluation)


def most_bytes() -> int:
    """The largest size of a certificate: the data set with most pixels, all points broken, both images in float32."""
    pixels = max(dataset.num_test * math.prod(dataset.image_shape) for dataset in DATASETS.values())
    # Twice that, for ImageNet's images in a larger size than the usual one.
    return 2 * 8 * pixels + MAX_HEADER_BYTES


def check_file(path: Path) -> Claims:
    """Check a certificate's header and return its metadata.

    Raises:
        Unprocessable: it is not a certificate, or fits no board.
    """
    try:
        tensors = read_header(path, "the file")
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    claims = _claims(path)
    points = tensors["label"].shape[:1] if "label" in tensors else ()
    reason = why_on_no_board(claims.dataset, claims.evaluation.protocol, points[0] if points else 0)
    if reason is not None:
        raise Unprocessable(f"body: the certificate {reason}")
    expected = [ATTACK_TITLES[name] for name in claims.evaluation.attack_names]
    beyond = claims.attacks[len(expected) :]
    if claims.attacks[: len(expected)] != expected or not set(map(attack_name, beyond)) <= set(BEYOND_AUTOATTACK):
        raise Unprocessable(
            f"body: the certificate names the attacks {', '.join(claims.attacks)[:200]}, and those of protocol "
            f"{claims.evaluation.protocol!r} are {', '.join(expected)}; {_HOW}"
        )
    _check_tensors(tensors, claims)
    return claims


def _claims(path: Path) -> Claims:
    """The metadata of a certificate.

    Raises:
        Unprocessable: the file is not a certificate.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("gklbench", "")
        claims = Claims.model_validate_json(text if len(text) <= _MOST_METADATA else "")
        recorded_preprocessing(claims.dataset, claims.manifest.model_dump())
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise Unprocessable(f"body: the file is not a certificate of an evaluation; {_HOW}") from error
    return claims


def _check_tensors(tensors: Mapping[str, TensorHeader], claims: Claims) -> None:
    """Check that the tensors have the names, formats and shapes that later readers rely on."""
    num_points = DATASETS[claims.dataset].num_test
    num_broken = tensors["index"].shape[0] if "index" in tensors and tensors["index"].shape else 0
    pixels = image_shape(claims.dataset, recorded_preprocessing(claims.dataset, claims.manifest.model_dump()))
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        **{name: ((dtype,), (num_points,)) for name, dtype in _OF_POINTS.items()},
        **{name: ((dtype,), (num_broken,)) for name, dtype in _OF_BROKEN.items()},
        **{name: (dtypes, (num_broken, *pixels)) for name, dtypes in _IMAGES.items()},
    }
    for name in sorted({*expected, *tensors}):
        if name not in tensors:
            raise Unprocessable(f"body: the certificate lacks the tensor {name!r}; {_HOW}")
        if name not in expected:
            raise Unprocessable(f"body: the certificate holds an unknown tensor {name!r}; {_HOW}")
        dtypes, shape = expected[name]
        if tensors[name].dtype not in dtypes or tensors[name].shape != shape:
            raise Unprocessable(
                f"body: {name!r} is {tensors[name].dtype} {list(tensors[name].shape)}, and a certificate of "
                f"{claims.dataset} has {' or '.join(dtypes)} {list(shape)}; {_HOW}"
            )


def create(
    session: Session,
    claims: Claims,
    certificate: StoredFile,
    *,
    name: str,
    architecture: str,
    publication: Publication,
    submitter: str,
) -> Job:
    """Queue the check of a certificate that has passed `check_file`."""
    spec = ReportSpec(
        name=name,
        dataset=claims.dataset,
        architecture=architecture,
        certificate=certificate.sha256,
        publication=publication,
    )
    known = select(Entry.id).where(Entry.dataset == claims.dataset, Entry.board == claims.board).limit(1)
    if claims.board not in DATASETS[claims.dataset].epsilon and session.scalar(known) is None:
        # A measured entry costs GPU hours; reports could create new boards at no cost.
        raise Unprocessable(
            f"body: there is no board {claims.dataset}/{claims.board}; evaluate with the usual budget of a norm, or "
            "with that of an existing board"
        )
    quotas.check_room_for_job(session, submitter)
    job = jobs.create(session, spec, submitter=submitter)
    job_files.add_file(
        session, job.id, FileKind.CERTIFICATE, number=0, file="certificate.safetensors", stored=certificate
    )
    return job


def record(session: Session, job: Job, outcome: ReportOutcome) -> None:
    """Store a confirmed report. For one network, a submitter has one entry per board: that of the newest job."""
    spec = ReportSpec.model_validate(job.spec)
    evaluation = Evaluation.model_validate(outcome.evaluation)
    board, now = board_name(spec.dataset, evaluation), database_now(session)
    # Reports of one submitter that end at the same moment run one after another.
    quotas.lock_submitter(session, job.submitter)
    known = session.scalars(
        select(Report)
        .where(
            Report.submitter == job.submitter,
            Report.weights_sha256 == outcome.weights_sha256,
            Report.dataset == spec.dataset,
            Report.board == board,
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()
    if known is not None and known.job_id > job.id:
        return
    if known is None:
        slug = naming.free_slug(session, spec.dataset, board, spec.name, outcome.weights_sha256)
        entry = Entry(dataset=spec.dataset, board=board, slug=slug, created_at=now, anomalies=[])
        same = {"dataset": spec.dataset, "board": board, "weights_sha256": outcome.weights_sha256}
        known = Report(entry=entry, submitter=job.submitter, **same)
    entry = known.entry
    known.job_id, known.certificate_sha256 = job.id, spec.certificate
    known.outcome, known.created_at = outcome.model_dump(mode="json"), now
    entry.provenance = Provenance.REPORTED
    placing.publish(entry, spec.publication or Publication(), name=spec.name, year=now.year)
    entry.architecture = spec.architecture
    entry.family = naming.architecture_family(spec.architecture)
    assert evaluation.threat_model is not None, "so it was checked"
    entry.epsilon, entry.num_points = evaluation.threat_model.epsilon, outcome.num_points
    entry.clean_accuracy = outcome.clean_correct / outcome.num_points
    # Not as `robust_accuracy`, by which entries rank: the network was not evaluated here.
    entry.reported_accuracy = outcome.robust_correct / outcome.num_points
    entry.unreliable, entry.unrankable_reason = bool(outcome.flags), unrankable(outcome.flags)
    # The admin's note referred to another certificate.
    entry.rank_note, entry.changed_at = None, now
    session.add(known)
    session.flush()


def entry_ids_by_job(session: Session, job_ids: Sequence[int]) -> dict[int, int]:
    """The entry that rests on the report that each of these jobs has checked; jobs without one are left out."""
    rows = session.execute(select(Report.job_id, Report.entry_id).where(Report.job_id.in_(job_ids)))
    return {job_id: entry_id for job_id, entry_id in rows}  # noqa: C416 - rows are no pairs to a type checker
