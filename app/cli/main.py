"""The `gklbench` command. The one place that may reach across rooms, inside the command that needs it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import gkl
from app.cli.extras import needs
from app.cli.look_cli import look_cli
from app.cli.process_cli import process_cli
from app.cli.terminal import (
    ClientToken,
    DataDir,
    JobNumber,
    Url,
    console,
    environment_settings,
    errors,
    own_database,
    settings_of,
)
from app.cli.token_cli import token_cli
from app.core import formatting
from gkl.errors import InvalidInput, Stopped
from gkl.files import sha256_of

if TYPE_CHECKING:
    from gkl.answers import JobView
    from gkl.spec import EvaluateSpec, TrainSpec

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="GKL Bench: adversarial training, AutoAttack evaluation and a leaderboard, as jobs over REST.",
)

cli.add_typer(process_cli)
cli.add_typer(look_cli)
cli.add_typer(token_cli, name="token")

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the API and the pages. Default: 8000.")]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="JSON file with the spec; - reads standard input.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="File of weights: safetensors or a state dict. Without it: RobustBench's published ones."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(help="Which network of the file, where it holds several, such as 'state_dict_ema'."),
]


Shell = Literal["bash", "zsh", "fish"]
# What the scripts of `gklbench completion` set when they ask for what may stand next.
_COMPLETE = "_GKLBENCH_COMPLETE"


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"gklbench {gkl.__version__}\n")
        raise typer.Exit


@cli.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options that stand before a command."""


def main() -> None:
    """Entry point: every foreseen error is one sentence on standard error and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if _COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415

        completion_init()
    try:
        cli(prog_name="gklbench")
    except Exception as error:
        from app.cli.command_errors import sentence_of  # noqa: PLC0415

        sentence = sentence_of(error)
        if sentence is None:
            raise
        _fail(sentence)


def _fail(sentence: str) -> NoReturn:
    errors.print(f"gklbench: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


# --- the service -------------------------------------------------------------------------------------------------


@cli.command()
@needs("server", "worker", "embedded")
def up(data_dir: DataDir = None, port: Port = None) -> None:
    """Run the whole service on this machine until Ctrl-C: API, pages, broker, worker; SQLite inside.

    Example: `gklbench up --data-dir ~/bench --port 8080`
    """
    from app.cli.embedded import EmbeddedService  # noqa: PLC0415

    _interrupt_on_signals()
    try:
        with EmbeddedService(settings_of(data_dir, port)) as service:
            console.print(f"GKL Bench is running at [bold]{service.url}[/bold]")
            console.print(f"Data in {service.settings.data_dir.resolve()}, Ctrl-C stops it.", highlight=False)
            service.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")


@cli.command()
@needs("server", "worker", "embedded")
def demo(
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path("demo-data"),
    port: Port = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the result instead of serving on.")] = False,
) -> None:
    """Start the service, train and attack a small network over REST, and show its row.

    Example: `gklbench demo --exit`
    """
    from app.cli.embedded import EmbeddedService  # noqa: PLC0415
    from app.cli.follow import run_and_show  # noqa: PLC0415
    from gkl.recipes import recipe as find_recipe  # noqa: PLC0415

    _interrupt_on_signals()
    ok: bool | None = None
    try:
        with EmbeddedService(settings_of(data_dir, port)) as service:
            console.print(f"GKL Bench is running at [bold]{service.url}[/bold]")
            ok = run_and_show(service.url, find_recipe("digits"), console)
            if not leave:
                console.print(f"Serving on at [bold]{service.url}[/bold], Ctrl-C stops it.")
                service.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
    # 130 is what a shell reports of a command that Ctrl-C ended before it was done.
    raise typer.Exit(130 if ok is None else 0 if ok else 1)


@cli.command("import-robustbench")
@needs("server")
def import_robustbench(
    path: Annotated[Path, typer.Argument(help="RobustBench's checkout, its model_info, a folder or a file of that.")],
    data_dir: DataDir = None,
) -> None:
    """Put RobustBench's published entries on the boards. The same files again change nothing.

    What is not as it should be in a file is kept, and listed.

    Example: `gklbench import-robustbench robustbench/model_info`
    """
    from app.boards.robustbench import find_files, import_files, name_of  # noqa: PLC0415

    files = find_files(path)
    report = import_files(own_database(data_dir), ((name_of(file), file.read_bytes()) for file in files))
    for anomaly in report.anomalies:
        field = f" {anomaly.field}" if anomaly.field else ""
        line = formatting.visible(f"{anomaly.file}:{field} {anomaly.what}")
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged, {report.refused} refused; "
        f"{len(report.anomalies)} things are not as they should be.",
        soft_wrap=True,
        highlight=False,
    )
    raise typer.Exit(1 if report.refused else 0)


@cli.command("export-robustbench")
@needs("server")
def export_robustbench(
    out: Annotated[Path, typer.Argument(help="Folder for <data set>/<threat model>/<model id>.json.")],
    data_dir: DataDir = None,
) -> None:
    """Write every entry with a final verdict as RobustBench has it; imported ones to the letter as they came.

    Example: `gklbench export-robustbench model_info`
    """
    from app.boards.robustbench import export_to  # noqa: PLC0415

    with own_database(data_dir).reading() as session:
        written = export_to(session, out)
    console.print(f"{written} entries are in {out}.", highlight=False)


# --- a client of a service ---------------------------------------------------------------------------------------


@cli.command()
def submit(
    *,
    spec_file: SpecFile,
    weights: Annotated[
        Path | None, typer.Option(help="Send this file of weights first: safetensors or a state dict of torch.save.")
    ] = None,
    weights_key: WeightsKey = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show progress until the job and what follows it end.")
    ] = False,
    submitter: Annotated[
        str | None, typer.Option(help="For whom it is: workers are shared fairly between submitters.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Jobs of higher priority are taken first. Default: 0.")] = None,
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
        raise InvalidInput("--follow shows progress to people; take --wait alone, or --wait with --json")
    spec = _read_spec(spec_file, weights, weights_key)
    if weights is not None:
        if spec.kind != "evaluate":
            raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; --weights are for an evaluation")
        if sha256_of(_existing(weights, "the weights to attack")) != spec.weights:
            raise InvalidInput(f"{spec_file} names other weights than {weights}; leave 'weights' out of it")
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


@cli.command()
def attack(
    *,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", min=1, help="The entry's number.")],
    examples: Annotated[Path, typer.Argument(help="safetensors with 'adversarial' and 'index'.")],
    name: Annotated[str, typer.Option(help="What the attack is called.")],
    submitter: Annotated[str | None, typer.Option(help="Who found them.")] = None,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Send adversarial examples against an entry; what breaks points that stand lowers its robust accuracy.

    Example: `gklbench attack 7 examples.safetensors --name "PGD with 1000 steps" --submitter Ada`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.attack(entry, examples, name=name, submitter=submitter))


@cli.command()
def transfer(
    *,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", min=1, help="The entry on whose network they are tried.")],
    source: Annotated[int, typer.Option(metavar="ENTRY", min=1, help="The entry whose examples they are.")],
    submitter: Annotated[str | None, typer.Option(help="For whom it is.")] = None,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Measure how many adversarial examples of one entry break another. `/compare` shows what was found.

    Example: `gklbench transfer 7 --source 3`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.transfer(entry, source=source, submitter=submitter))


@cli.command()
def cancel(job_id: JobNumber, url: Url = "http://127.0.0.1:8000", token: ClientToken = None) -> None:
    """Cancel a job, and what it is to be followed by.

    Example: `gklbench cancel 7`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        _show_state(url, client.cancel(job_id))


@cli.command()
def retry(job_id: JobNumber, url: Url = "http://127.0.0.1:8000", token: ClientToken = None) -> None:
    """Queue a failed or cancelled job again; it goes on from what it saved.

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


@cli.command()
def recipe(name: Annotated[str, typer.Argument(help="Its name: 'gklbench list recipes' shows them all.")]) -> None:
    """Print a recipe's full spec, to be changed and sent.

    Example: `gklbench recipe digits > digits.json`
    """
    from gkl.recipes import recipe as find_recipe  # noqa: PLC0415

    console.print_json(find_recipe(name).model_dump_json())


@cli.command()
def completion(shell: Annotated[Shell, typer.Argument(help="Whose script.")]) -> None:
    """Print the script with which a shell completes commands and options.

    Example: `gklbench completion bash >> ~/.bashrc`
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # noqa: PLC0415

    script = get_completion_script(prog_name="gklbench", complete_var=_COMPLETE, shell=shell)
    sys.stdout.write(script + "\n")


# --- the engine without a service --------------------------------------------------------------------------------


@cli.command()
@needs("worker")
def train(
    spec_file: SpecFile,
    output: Annotated[Path, typer.Option(help="Directory of checkpoints and weights; used again, it resumes.")] = Path(
        "runs/train"
    ),
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints to keep.")] = 2,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: CUDA if there is one.")] = None,
) -> None:
    """Train without any service, then evaluate if the spec says so. Ctrl-C stops; the same command goes on.

    Example: `gklbench recipe digits > digits.json; gklbench train digits.json --output runs/digits`
    """
    # What is wrong with it is said before torch is loaded, which takes seconds.
    spec = _read_spec(spec_file)
    if spec.kind != "train":
        raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; use 'gklbench evaluate' for it")

    from app.cli.follow import LocalDisplay  # noqa: PLC0415
    from app.cli.process import stop_flag  # noqa: PLC0415
    from gkl.evaluation import evaluate as run_evaluation  # noqa: PLC0415
    from gkl.run_context import RunContext  # noqa: PLC0415
    from gkl.training import train as run_training  # noqa: PLC0415

    datasets_dir = environment_settings().effective_datasets_dir
    stop = stop_flag()
    try:
        with LocalDisplay(console) as display:
            outcome = run_training(
                spec,
                output,
                datasets_dir=datasets_dir,
                report=display.report,
                should_stop=stop.is_set,
                device=device,
                keep_checkpoints=keep_checkpoints,
            )
            display.trained(output / outcome.weights, outcome)
            follow_up = spec.follow_up(outcome.manifest.weights_sha256)
            if follow_up is not None:
                directory = output / "evaluation"
                measured = run_evaluation(
                    follow_up,
                    output / outcome.weights,
                    RunContext(
                        directory=directory,
                        datasets_dir=datasets_dir,
                        report=display.report,
                        should_stop=stop.is_set,
                        device=device,
                    ),
                )
                display.evaluated(measured, directory / str(measured.certificate))
    except Stopped:
        console.print(f"Stopped. The same command goes on from what is in {output}.")
        raise typer.Exit(130) from None


@cli.command()
@needs("worker")
def evaluate(
    *,
    spec_file: SpecFile,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    output: Annotated[
        Path, typer.Option(help="Directory of finished parts and the certificate; used again, it goes on.")
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
    """Attack weights without any service, leaving a certificate. Ctrl-C stops; the same command goes on.

    Example: `gklbench evaluate evaluate.json --weights runs/digits/weights.safetensors --output runs/attacked`
    """
    if shard is not None and others:
        _fail("a shard tries no certificates: give --others to the command that merges the shards")
    known = [_existing(path, "a certificate of another network") for path in others or ()]
    spec = _read_spec(spec_file, weights, weights_key)
    if spec.kind != "evaluate":
        raise InvalidInput(f"{spec_file} is a spec of kind {spec.kind!r}; use 'gklbench train' for it")
    if weights is not None:
        _existing(weights, "the weights to attack")

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
        console.print(f"Stopped. The same command goes on from what is in {output}.")
        raise typer.Exit(130) from None


@cli.command()
@needs("worker")
def verify(
    certificate: Annotated[Path, typer.Argument(help="The safetensors file that an evaluation left.")],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: CUDA if there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; fewer need less memory.")] = 200,
) -> None:
    """Re-check an evaluation's certificate: every adversarial example's norm, box and prediction.

    Needs the weights and the data, and seconds. Exit status 1 and the first offending point if it does not hold.

    Example: `gklbench verify runs/attacked/certificate.safetensors --weights runs/digits/weights.safetensors`
    """
    _existing(certificate, "a certificate")
    if weights is not None:
        _existing(weights, "weights")

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
            "The network is its owner's alone, and was not asked again."
        )
    if found.answers_vary and found.network_asked:
        console.print("The model's answers vary from pass to pass; the figures are this pass's alone.")
    for what, correct in (("clean accuracy", found.clean_correct), ("robust accuracy at most", found.robust_correct)):
        if correct is not None:
            accuracy = formatting.percent(correct / found.num_points)
            console.print(f"  {what} {accuracy} ({correct} of {found.num_points})", highlight=False)
    if found.borderline:
        console.print(f"  {found.borderline} answers lie within rounding of another class.", highlight=False)


# --- shared ------------------------------------------------------------------------------------------------------


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}; name {what}")
    return path


def _parse_shard(text: str) -> Any:
    from gkl.evaluation import Shard  # noqa: PLC0415

    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None:
        raise InvalidInput(f"--shard is a number of a total, such as 1/3, not {text!r}")
    return Shard(int(match[1]) - 1, int(match[2]))


def _read_spec(path: Path, weights: Path | None = None, weights_key: str | None = None) -> TrainSpec | EvaluateSpec:
    """A spec from a file; an evaluation that names no weights, or no network of them, takes the given ones."""
    from pydantic import ValidationError  # noqa: PLC0415

    from gkl.spec import JOB_SPEC  # noqa: PLC0415

    try:
        # JSON is UTF-8, whatever the terminal is.
        text = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8")
        content = json.loads(text)
        is_evaluation = isinstance(content, dict) and content.get("kind") == "evaluate"
        if weights is not None and is_evaluation and "weights" not in content:
            content["weights"] = sha256_of(_existing(weights, "the weights to attack"))
        if weights_key is not None:
            if not is_evaluation:
                raise InvalidInput(f"{path} is no evaluation; --weights-key is for one")
            if content.get("weights_key") not in (None, weights_key):
                raise InvalidInput(
                    f"{path} has weights_key {content['weights_key']!r}, and --weights-key is {weights_key!r}; leave "
                    "one of them out"
                )
            content["weights_key"] = weights_key
        return JOB_SPEC.validate_python(content)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise InvalidInput(f"{path} has brackets within brackets too many levels deep for a spec") from error
    except ValidationError as error:
        from gkl.field_errors import field_problems  # noqa: PLC0415

        named = {} if weights_key is None else {"weights_key": "--weights-key"}
        lines = [f"{named.get(p.location, p.location)}: {p.message}" for p in field_problems(error.errors(), JOB_SPEC)]
        raise InvalidInput(f"{path} is no valid spec:\n  " + "\n  ".join(lines)) from error


def _interrupt_on_signals() -> None:
    """SIGTERM stops like Ctrl-C, and Ctrl-C does so even where a shell made this process ignore it."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
