"""Commands that send, cancel and retry jobs at a service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.terminal import (
    ClientToken,
    JobNumber,
    Url,
    console,
)
from app.core import formatting
from gkl.errors import InvalidInput
from gkl.files import sha256_of

if TYPE_CHECKING:
    from gkl.answers import JobView
from app.cli.specs import SpecFile, WeightsKey, existing, read_spec

send_cli = typer.Typer()


@send_cli.command()
def submit(
    *,
    spec_file: SpecFile,
    weights: Annotated[
        Path | None, typer.Option(help="Send this file of weights first: safetensors or a state dict of torch.save.")
    ] = None,
    weights_key: WeightsKey = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Send this file with the weights of a distillation's teacher first."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show progress until the job and what follows it end.")
    ] = False,
    submitter: Annotated[
        str | None, typer.Option(help="Whose job it is: workers are shared fairly between submitters.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Jobs with higher priority run first. Default: 0.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the job and what follows it end. Status 1: not all succeeded.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job as JSON; with --wait as it ended, with its followers.")
    ] = False,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Send a job to a service.

    Example: `gklbench recipe digits > digits.json; gklbench submit digits.json --follow`

    Example: `gklbench submit digits.json --json --wait | jq .followers[0].model_id`
    """
    from app.cli.follow import run_and_show  # noqa: PLC0415
    from gkl.client import Client  # noqa: PLC0415

    if follow and (as_json or wait):
        raise InvalidInput("--follow shows progress to people; use --wait alone, or --wait with --json")
    spec = read_spec(spec_file, weights, weights_key, teacher=teacher)
    if teacher is not None:
        with Client(url, token) as client:
            client.upload(teacher)
    if weights is not None:
        if spec.kind != "evaluate":
            raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; --weights are for an evaluation")
        if sha256_of(existing(weights, "the weights to attack")) != spec.weights:
            raise InvalidInput(f"{spec_file} names other weights than {weights}; remove 'weights' from the spec")
        with Client(url, token) as client:
            client.upload(weights)
    if follow:
        raise typer.Exit(
            0 if run_and_show(url, spec, console, token=token, submitter=submitter, priority=priority) else 1
        )
    with Client(url, token) as client:
        sent = client.submit(spec, submitter=submitter, priority=priority)
        ended = client.wait(sent.id, progress=False) if wait else [sent]
    if as_json:
        job, *followers = [each.model_dump(mode="json") for each in ended]
        sys.stdout.write(json.dumps(job | ({"followers": followers} if wait else {}), indent=2) + "\n")
    else:
        for each in ended:
            _show_state(url, each)
    if wait and any(each.state != "succeeded" for each in ended):
        raise typer.Exit(1)


@send_cli.command()
def attack(
    *,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", min=1, help="The entry's number.")],
    examples: Annotated[Path, typer.Argument(help="safetensors with 'adversarial' and 'index'.")],
    name: Annotated[str, typer.Option(help="Name of the attack.")],
    submitter: Annotated[str | None, typer.Option(help="Who found them.")] = None,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Send adversarial examples against an entry; those that break more of its points lower its robust accuracy.

    Example: `gklbench attack 7 examples.safetensors --name "PGD with 1000 steps" --submitter Ada`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.attack(entry, examples, name=name, submitter=submitter))


@send_cli.command()
def transfer(
    *,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", min=1, help="The entry on whose network they are tried.")],
    source: Annotated[int, typer.Option(metavar="ENTRY", min=1, help="The entry whose examples they are.")],
    submitter: Annotated[str | None, typer.Option(help="Whose job it is.")] = None,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Measure how many adversarial examples of one entry break another. `/compare` shows the result.

    Example: `gklbench transfer 7 --source 3`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.transfer(entry, source=source, submitter=submitter))


@send_cli.command()
def cancel(job_id: JobNumber, url: Url = "http://127.0.0.1:8000", token: ClientToken = None) -> None:
    """Cancel a job and the jobs that follow it.

    Example: `gklbench cancel 7`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.cancel(job_id))


@send_cli.command()
def retry(job_id: JobNumber, url: Url = "http://127.0.0.1:8000", token: ClientToken = None) -> None:
    """Queue a failed or cancelled job again; it resumes from what it saved.

    Example: `gklbench retry 7`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.retry(job_id))


def _show_state(url: str, job: JobView) -> None:
    console.print(f"Job {job.id} is {job.state}: {url.rstrip('/')}/jobs/{job.id}", highlight=False)
    if job.warning is not None:
        console.print(formatting.as_sentence(job.warning), highlight=False, soft_wrap=True)
    if job.missing is not None:
        console.print(formatting.as_sentence(job.missing), highlight=False, soft_wrap=True)


@send_cli.command()
def recipe(name: Annotated[str, typer.Argument(help="The recipe's name; 'gklbench list recipes' shows all.")]) -> None:
    """Print a recipe's full spec, to edit and send.

    Example: `gklbench recipe digits > digits.json`
    """
    from gkl.recipes import recipe as find_recipe  # noqa: PLC0415

    console.print_json(find_recipe(name).model_dump_json())
