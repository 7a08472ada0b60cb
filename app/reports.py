"""Verdicts on networks that their owners alone have: from a certificate to a row that says so, and has no rank."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import entries, job_files, jobs, quotas
from app.artifacts import StoredFile
from app.database import database_now
from app.errors import Unprocessable
from app.tables import Entry, FileKind, Job, Report
from gkl.answers import Provenance
from gkl.catalog import DATASETS, image_shape, recorded_preprocessing
from gkl.errors import InvalidInput
from gkl.flags import unrankable
from gkl.outcome import ReportOutcome
from gkl.safetensors_header import MAX_HEADER_BYTES, TensorHeader, read_header
from gkl.spec import RANKED_PROTOCOLS, Evaluation, Publication, ReportSpec, board_name

_OF_POINTS = {"label": "I64", "prediction": "I64", "broken_by": "I64", "perturbation_norm": "F64"}
_OF_BROKEN = {"index": "I64", "adversarial_prediction": "I64"}
_IMAGES = {"adversarial": ("F32",), "clean": ("F32", "U8")}
_HOW = "evaluate again with gkl.evaluate, and send what save_certificate() writes"


class Claims(BaseModel):
    """What a certificate says of itself, as far as that can be told before a worker reads its images."""

    dataset: str
    architecture: str
    evaluation: Evaluation
    manifest: dict[str, Any]

    @property
    def board(self) -> str:
        return board_name(self.dataset, self.evaluation)


def most_bytes() -> int:
    """Of a certificate of the data set with the most pixels: all points broken, both images of each in float32."""
    pixels = max(dataset.num_test * math.prod(dataset.image_shape) for dataset in DATASETS.values())
    # With other sizes of ImageNet's images than the usual one.
    return 2 * 8 * pixels + MAX_HEADER_BYTES


def check_file(path: Path) -> Claims:
    """
    Raises:
        Unprocessable: it is no certificate, or no row on a board can be made of it.
    """
    try:
        tensors = read_header(path, "the file")
        claims = _claims(path)
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    if claims.dataset not in DATASETS:
        raise Unprocessable(
            "body: the certificate is about images of its owner's own, and a board is about those of "
            f"{', '.join(DATASETS)}"
        )
    protocol, dataset = claims.evaluation.protocol, DATASETS[claims.dataset]
    if claims.evaluation.threat_model is None or protocol not in RANKED_PROTOCOLS:
        raise Unprocessable(
            f"body: the certificate is of protocol {protocol!r}, and a board takes 'standard' and 'plus'; {_HOW}"
        )
    points = tensors["label"].shape[:1] if "label" in tensors else ()
    if points != (dataset.num_test,):
        found = points[0] if points else 0
        raise Unprocessable(
            f"body: the certificate is about {found} points, and a board of {dataset.title} is about all "
            f"{dataset.num_test}; evaluate without num_points"
        )
    _check_tensors(tensors, claims)
    return claims


def _claims(path: Path) -> Claims:
    """
    Raises:
        InvalidInput: it is no certificate.
    """
    try:
        with safe_open(path, framework="np") as file:
            said = json.loads((file.metadata() or {}).get("gklbench", "null"))
        claims = Claims.model_validate(said)
        if claims.dataset in DATASETS:
            recorded_preprocessing(claims.dataset, claims.manifest)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise InvalidInput(f"the file is no certificate of an evaluation; {_HOW}") from error
    return claims


def _check_tensors(tensors: Mapping[str, TensorHeader], claims: Claims) -> None:
    """As a certificate is written: what reads it later trusts in that."""
    num_points = DATASETS[claims.dataset].num_test
    num_broken = tensors["index"].shape[0] if "index" in tensors and tensors["index"].shape else 0
    pixels = image_shape(claims.dataset, recorded_preprocessing(claims.dataset, claims.manifest))
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        **{name: ((dtype,), (num_points,)) for name, dtype in _OF_POINTS.items()},
        **{name: ((dtype,), (num_broken,)) for name, dtype in _OF_BROKEN.items()},
        **{name: (dtypes, (num_broken, *pixels)) for name, dtypes in _IMAGES.items()},
    }
    for name in sorted({*expected, *tensors}):
        if name not in tensors:
            raise Unprocessable(f"body: the certificate lacks the tensor {name!r}; {_HOW}")
        if name not in expected:
            raise Unprocessable(f"body: the certificate holds a tensor {name!r} that belongs to none; {_HOW}")
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
    """Queue the check of a certificate that `check_file` has looked at."""
    spec = ReportSpec(
        name=name,
        dataset=claims.dataset,
        architecture=architecture,
        certificate=certificate.sha256,
        publication=publication,
    )
    quotas.check_room_for_job(session, submitter)
    job = jobs.create(session, spec, submitter=submitter)
    job_files.add(session, job.id, FileKind.CERTIFICATE, number=0, file="certificate.safetensors", stored=certificate)
    return job


def record(session: Session, job: Job, outcome: ReportOutcome) -> Entry:
    """The row of a certificate that held. The same network of the same submitter has one: the newest."""
    spec = ReportSpec.model_validate(job.spec)
    evaluation = Evaluation.model_validate(outcome.evaluation)
    board, now = board_name(spec.dataset, evaluation), database_now(session)
    known = session.scalars(
        select(Report)
        .join(Report.entry)
        .where(
            Report.submitter == job.submitter,
            Report.weights_sha256 == outcome.weights_sha256,
            Entry.dataset == spec.dataset,
            Entry.board == board,
        )
        .with_for_update(of=Report)
    ).first()
    if known is None:
        slug = entries.free_slug(session, spec.dataset, board, spec.name, outcome.weights_sha256)
        entry = Entry(dataset=spec.dataset, board=board, slug=slug, created_at=now, anomalies=[])
        known = Report(entry=entry, submitter=job.submitter, weights_sha256=outcome.weights_sha256)
    entry = known.entry
    known.job_id, known.certificate_sha256 = job.id, spec.certificate
    known.outcome, known.created_at = outcome.model_dump(mode="json"), now
    entry.provenance = Provenance.REPORTED
    entries.publish(entry, spec.publication or Publication(), name=spec.name, year=now.year)
    entry.architecture = spec.architecture
    entry.family = entries.architecture_family(spec.architecture)
    assert evaluation.threat_model is not None, "so it was checked"
    entry.epsilon, entry.num_points = evaluation.threat_model.epsilon, outcome.num_points
    entry.clean_accuracy = outcome.clean_correct / outcome.num_points
    # Not as the robust accuracy, by which entries rank: nobody here has asked the network.
    entry.reported_accuracy = outcome.robust_correct / outcome.num_points
    entry.unreliable, entry.unrankable_reason = bool(outcome.flags), unrankable(outcome.flags)
    entry.changed_at = now
    session.add(known)
    session.flush()
    return entry


def entries_of_jobs(session: Session, job_ids: Sequence[int]) -> dict[int, int]:
    """The entry that stands with the certificate that each of these jobs has checked; without those that have none."""
    rows = session.execute(select(Report.job_id, Report.entry_id).where(Report.job_id.in_(job_ids)))
    return {job_id: entry_id for job_id, entry_id in rows}  # noqa: C416 - rows are no pairs to a type checker
