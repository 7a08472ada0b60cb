"""Commands that train, evaluate and verify on this machine, without a service."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.extras import needs
from app.cli.terminal import (
    console,
    environment_settings,
)
from app.core import formatting
from gkl.errors import InvalidInput, Stopped

if TYPE_CHECKING:
    pass
from app.cli.specs import SpecFile, TeacherFile, Weights, WeightsKey, existing, read_spec

run_cli = typer.Typer()


@run_cli.command()
@needs("worker")
def train(
    spec_file: SpecFile,
    output: Annotated[Path, typer.Option(help="Directory of checkpoints and weights; used again, it resumes.")] = Path(
        "runs/train"
    ),
    teacher: TeacherFile = None,
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints to keep.")] = 2,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: CUDA if there is one.")] = None,
) -> None:
    """Train or distill without a service, then evaluate if the spec says so. Ctrl-C stops; the same command resumes.

    Example: `gklbench recipe digits > digits.json; gklbench train digits.json --output runs/digits`

    Example: `gklbench train student.json --teacher runs/digits/weights.safetensors --output runs/student`
    """
    # Report errors in the spec before importing torch, which takes seconds.
    spec = read_spec(spec_file, teacher=teacher)
    if spec.kind == "evaluate":
        raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; use 'gklbench evaluate' for it")

    from app.cli.follow import LocalDisplay  # noqa: PLC0415
    from app.cli.process import stop_flag  # noqa: PLC0415
    from gkl.evaluation import evaluate as run_evaluation  # noqa: PLC0415
    from gkl.run_context import RunContext  # noqa: PLC0415
    from gkl.training import train as run_training  # noqa: PLC0415

    settings = environment_settings()
    stop = stop_flag()
    try:
        with LocalDisplay(console) as display:
            context = RunContext(
                directory=output,
                datasets_dir=settings.effective_datasets_dir,
                models_dir=settings.effective_models_dir,
                report=display.report,
                should_stop=stop.is_set,
                device=device,
            )
            outcome = run_training(spec, context, teacher=teacher, keep_checkpoints=keep_checkpoints)
            display.trained(output / outcome.weights, outcome)
            follow_up = spec.follow_up(outcome.manifest.weights_sha256)
            if follow_up is not None:
                directory = output / "evaluation"
                measured = run_evaluation(
                    follow_up,
                    output / outcome.weights,
                    replace(context, directory=directory),
                )
                display.evaluated(measured, directory / str(measured.certificate))
    except Stopped:
        console.print(f"Stopped. The same command resumes from {output}.")
        raise typer.Exit(130) from None


@run_cli.command()
@needs("worker")
def evaluate(
    *,
    spec_file: SpecFile,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    output: Annotated[
        Path, typer.Option(help="Directory of finished parts and the certificate; used again, it resumes.")
    ] = Path("runs/evaluate"),
    shard: Annotated[
        str | None,
        typer.Option(help="Run only this share, such as 1/3; without it, all shares in the directory are merged."),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option(help="A certificate of another network, whose adversarial examples are tried too; repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: CUDA if there is one.")] = None,
) -> None:
    """Attack weights without a service and write a certificate. Ctrl-C stops; the same command resumes.

    Example: `gklbench evaluate evaluate.json --weights runs/digits/weights.safetensors --output runs/attacked`
    """
    if shard is not None and others:
        raise InvalidInput("a shard tries no certificates: give --others to the command that merges the shards")
    known = [existing(path, "a certificate of another network") for path in others or ()]
    spec = read_spec(spec_file, weights, weights_key)
    if spec.kind != "evaluate":
        raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; use 'gklbench train' for it")
    if weights is not None:
        existing(weights, "the weights to attack")

    from app.cli.follow import LocalDisplay  # noqa: PLC0415
    from app.cli.process import stop_flag  # noqa: PLC0415
    from gkl import evaluation as engine  # noqa: PLC0415
    from gkl.run_context import RunContext  # noqa: PLC0415

    settings = environment_settings()
    stop = stop_flag()
    try:
        with LocalDisplay(console) as display:
            context = RunContext(
                directory=output,
                datasets_dir=settings.effective_datasets_dir,
                models_dir=settings.effective_models_dir,
                report=display.report,
                should_stop=stop.is_set,
                device=device,
            )
            if shard is not None:
                engine.evaluate_shard(spec, weights, context, _parse_shard(shard))
                console.print(f"Shard {shard} is done. When all are, the same command without --shard merges them.")
                return
            measured = engine.evaluate(spec, weights, context, others=known)
            display.evaluated(measured, output / str(measured.certificate))
    except Stopped:
        console.print(f"Stopped. The same command resumes from {output}.")
        raise typer.Exit(130) from None


@run_cli.command()
@needs("worker")
def verify(
    certificate: Annotated[Path, typer.Argument(help="The safetensors file that an evaluation wrote.")],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: CUDA if there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; fewer need less memory.")] = 200,
) -> None:
    """Re-check an evaluation's certificate: every adversarial example's norm, box and prediction.

    Needs the weights and the data, and takes seconds. Exit status 1 and the first wrong point if a check fails.

    Example: `gklbench verify runs/attacked/certificate.safetensors --weights runs/digits/weights.safetensors`
    """
    existing(certificate, "a certificate")
    if weights is not None:
        existing(weights, "weights")

    from gkl.evaluation import verify as run_verification  # noqa: PLC0415

    settings = environment_settings()
    found = run_verification(
        certificate,
        weights,
        datasets_dir=settings.effective_datasets_dir,
        models_dir=settings.effective_models_dir,
        device=device,
        batch_size=batch_size,
        weights_key=weights_key,
    )
    if not found.holds:
        more = f" And {len(found.problems) - 1} more." if len(found.problems) > 1 else ""
        raise InvalidInput(f"{certificate.name} does not hold: {found.problems[0]}.{more}")
    if found.network_asked:
        what = f"{found.examples} adversarial examples and {found.num_points} clean images re-checked"
        console.print(f"It holds: {what}.")
    else:
        checked = "norms, box, labels and counts" if found.data_known else "norms, box and counts"
        console.print(
            f"It agrees with itself: {checked} of {found.examples} adversarial examples and {found.num_points} points. "
            "Only its owner has the network, so the network's answers were not checked."
        )
    if found.answers_vary and found.network_asked:
        console.print("The model is randomized; these figures are from one pass only.")
    for what, correct in (("clean accuracy", found.clean_correct), ("robust accuracy at most", found.robust_correct)):
        if correct is not None:
            accuracy = formatting.percent(correct / found.num_points)
            console.print(f"  {what} {accuracy} ({correct} of {found.num_points})", highlight=False)
    if found.borderline:
        console.print(f"  {found.borderline} answers lie within rounding of another class.", highlight=False)


def _parse_shard(text: str) -> Any:
    from gkl.evaluation import Shard  # noqa: PLC0415

    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None:
        raise InvalidInput(f"--shard is a number of a total, such as 1/3, not {text!r}")
    return Shard(int(match[1]) - 1, int(match[2]))
