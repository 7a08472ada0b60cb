"""Publishes a verdict as an entry on a service's board."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from gkl.answers import EntryView, JobView
from gkl.client import Client
from gkl.errors import InvalidInput
from gkl.field_errors import field_problems
from gkl.files import sha256_of
from gkl.spec import EvaluateSpec, Publication, why_on_no_board

if TYPE_CHECKING:
    from gkl.library.verdict import Verdict

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class EntryText:
    """What the board shows about a network, as its owner describes it."""

    name: str
    architecture: str
    publication: dict[str, Any]


def publish(
    verdict: Verdict,
    url: str,
    token: str | None,
    text: EntryText,
    *,
    weights: Path | str | None,
    submitter: str | None,
    progress: bool,
) -> EntryView:
    """See `Verdict.publish`."""
    dataset = _dataset_of_a_board(verdict)
    with Client(url, token) as client:
        if weights is None:
            job = _report(verdict, client, text, submitter)
        else:
            spec = _spec(verdict, dataset, text, Path(weights))
            client.upload(weights)
            job = client.submit(spec, submitter=submitter)
        return _entry_of(client, client.wait(job.id, progress)[0])


def _entry_of(client: Client, ended: JobView) -> EntryView:
    address = f"{client.url}/jobs/{ended.id}"
    if ended.failure is not None:
        raise InvalidInput(f"{address} failed: {ended.failure.message}")
    entry_id = ended.entry_id
    if ended.model_id is not None:
        model = client.model(ended.model_id)
        board = next((each.threat_model for each in model.evaluations if each.job_id == ended.id), None)
        entry_id = next((entry.id for entry in model.entries if entry.threat_model == board), None)
    if entry_id is None:
        raise InvalidInput(f"{address} is {ended.state}, and no board has an entry for it")
    return client.entry(entry_id)


def _report(verdict: Verdict, client: Client, text: EntryText, submitter: str | None) -> JobView:
    publication = _checked(Publication, text.publication)
    with tempfile.TemporaryDirectory() as directory:
        certificate = verdict.save_certificate(Path(directory) / "certificate.safetensors")
        # Cut to the service's limit: a class's name may be longer.
        architecture = text.architecture or verdict.model[:100]
        return client.report(
            certificate, name=text.name, architecture=architecture, publication=publication, submitter=submitter
        )


def _spec(verdict: Verdict, dataset: str, text: EntryText, weights: Path) -> EvaluateSpec:
    if not weights.is_file():
        raise InvalidInput(f"there is no file {weights}; name the weights of the network")
    content = {
        "name": text.name,
        "dataset": dataset,
        "architecture": text.architecture,
        "weights": sha256_of(weights),
        "evaluation": verdict.evaluation.model_dump(),
        "publication": text.publication,
    }
    return _checked(EvaluateSpec, content)


def _dataset_of_a_board(verdict: Verdict) -> str:
    """
    Raises:
        InvalidInput: no board takes this verdict.
    """
    if verdict.dataset is None:
        raise InvalidInput(
            "the verdict is about images of your own, and boards are about data sets; evaluate on a data set by its "
            "name, such as data='cifar10'"
        )
    reason = why_on_no_board(verdict.dataset, verdict.evaluation.protocol, verdict.num_points)
    if reason is not None:
        raise InvalidInput(f"the verdict {reason}")
    return verdict.dataset


def _checked(kind: type[_Model], content: dict[str, Any]) -> _Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = field_problems(error.errors(), kind)[0]
        raise InvalidInput(f"{first.location}: {first.message}" if first.location else first.message) from error
