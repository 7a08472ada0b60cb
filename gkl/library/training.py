"""Trains a network from Python or a notebook: a recipe's name or a spec in, a network out."""

from __future__ import annotations

import html
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, overload

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from gkl.device import select_device
from gkl.errors import InvalidInput, NoSpaceLeft, Stopped
from gkl.field_errors import field_errors
from gkl.files import is_disk_full
from gkl.formats.teacher_file import with_teacher_file
from gkl.library.evaluation import evaluate
from gkl.library.folders import datasets_folder, models_folder
from gkl.library.networks import load_weights
from gkl.library.undisturbed import own_streams
from gkl.library.verdict import Verdict
from gkl.outcome import EpochFinished, Event, TrainOutcome
from gkl.outcome.metrics import columns
from gkl.progress_bar import progress_bar
from gkl.recipes import recipe
from gkl.run_context import RunContext
from gkl.spec import BaseTrainSpec, DistillSpec, Evaluation, TrainSpec
from gkl.training.trainer import train as run_training

if TYPE_CHECKING:
    from pandas import DataFrame

HISTORY_FILE = "history.jsonl"
# For a network that trains in seconds, a checkpoint takes longer than an epoch.
_CHECKPOINT_SECONDS = 10.0


class History(Sequence[EpochFinished]):
    """The measurements of each epoch, in order. Accuracies are in [0, 1], on the training images."""

    def __init__(self, epochs: Sequence[EpochFinished]) -> None:
        self._epochs = tuple(epochs)

    @overload
    def __getitem__(self, index: int) -> EpochFinished: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EpochFinished]: ...
    def __getitem__(self, index: int | slice) -> EpochFinished | Sequence[EpochFinished]:
        return self._epochs[index]

    def __len__(self) -> int:
        return len(self._epochs)

    def __repr__(self) -> str:
        if not self._epochs:
            return "History: no epoch"
        first, last = self._epochs[0], self._epochs[-1]
        return f"History: {len(self)} epochs, loss {first.loss:.4g} to {last.loss:.4g}"

    def to_frame(self) -> DataFrame:
        """Return a DataFrame with a row for each epoch; its index is named 'epoch'.

        Its columns are the metrics of `gkl.outcome.metrics` by name, and 'seconds'.

        Raises:
            InvalidInput: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - an optional dependency  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidInput("a frame needs pandas: pip install pandas") from error
        names = columns(self._epochs)
        rows = [
            {"epoch": each.epoch, **{name: each.metrics.get(name) for name in names}, "seconds": each.seconds}
            for each in self._epochs
        ]
        frame = pandas.DataFrame(rows, columns=None if rows else ["epoch", "loss"])
        return frame.set_index("epoch")


class Training:
    """What `gkl.train` returns."""

    def __init__(
        self,
        spec: TrainSpec | DistillSpec,
        outcome: TrainOutcome,
        *,
        model: nn.Module,
        weights: Path,
        history: History,
        evaluation: Verdict | None,
    ) -> None:
        self.spec = spec
        """The full spec of the training, with `changes` applied."""
        self.outcome = outcome
        """The training's results and its manifest: versions, device, seed and hashes."""
        self.model = model
        """The trained network, in evaluation mode: images (B, channels, height, width) in [0, 1] -> logits."""
        self.weights = weights
        """The file with its weights, for `gkl.load_weights` or for a service."""
        self.history = history
        """The measurements of each epoch."""
        self.evaluation = evaluation
        """The verdict; None if the spec asks for no evaluation."""

    def __repr__(self) -> str:
        outcome, spec = self.outcome, self.spec
        kept = "" if outcome.selected_epoch is None else f", kept epoch {outcome.selected_epoch}"
        accuracies = ""
        if self.history:
            last = self.history[-1]
            accuracies = f", at the end clean {100 * last.clean_accuracy:.2f} %"
            if last.adversarial_accuracy is not None:
                accuracies += f" and adversarial {100 * last.adversarial_accuracy:.2f} %"
            accuracies += " of its training images"
        verdict = "" if self.evaluation is None else f"\n{self.evaluation!r}"
        epochs = f"{spec.epochs} epoch{'s' if spec.epochs > 1 else ''}"
        return (
            f"Training: {spec.name}, {epochs} of {spec.dataset}{kept}{accuracies}; weights in {self.weights}{verdict}"
        )

    def _repr_html_(self) -> str:
        text, _, _ = repr(self).partition("\n")
        verdict = "" if self.evaluation is None else self.evaluation._repr_html_()
        return f"<div><p>{html.escape(text)}</p>{verdict}</div>"


def train(
    spec: str | TrainSpec | DistillSpec | Mapping[str, Any],
    output: Path | str,
    *,
    teacher: Path | str | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    datasets_dir: Path | str | None = None,
    **changes: Any,
) -> Training:
    """Train a network, adversarially with the GKL loss or another one, with plain cross-entropy, or from a teacher, and
    evaluate it if the spec asks for that.

    Repeat the call after an interruption: it continues from the checkpoint in `output` and ends with the same network
    as an uninterrupted run. Ctrl-C saves a checkpoint at the next step; a second Ctrl-C stops at once. The random
    streams of Python, NumPy and torch are unchanged afterwards, also after Ctrl-C.

    Args:
        spec: a recipe's name, such as 'digits' (`gkl.recipes.RECIPES`), a `gkl.spec.TrainSpec` or
            `gkl.spec.DistillSpec`, or one as a dictionary.
        output: a folder for checkpoints, the weights, the history, and the finished parts of the evaluation.
        teacher: the file with the weights of a distillation's teacher. If the spec leaves open which file that is, it
            is this one; a file from `gkl.train` or from the service also names the teacher's architecture.
        progress: whether to show a progress bar; needs tqdm.
        device: such as 'cpu' or 'cuda:1'; by default CUDA if available.
        datasets_dir: the folder with the data sets, each in a subfolder of its name; by default
            GKLBENCH_DATASETS_DIR, else the service's folder.
        changes: fields of the spec to replace, such as `epochs=5`, `evaluation=None` or
            `objective={"loss": "trades"}`.

    Returns:
        The trained network, the file with its weights, the measurements of each epoch, and the verdict.

    Raises:
        InvalidInput: there is no such recipe; a field is unknown or its value cannot be used (the message names the
            field); data is missing; nothing can be written to `output`, or it holds a training with another spec.
        NonFiniteLoss: the loss became NaN or infinite.
        NoSpaceLeft: the disk is full; everything saved before remains.
        OutOfMemory: the batch is too large for the device.
        KeyboardInterrupt: Ctrl-C was pressed; the checkpoint is in `output`.
    """
    folder, teacher = Path(output).expanduser(), None if teacher is None else Path(teacher).expanduser()
    asked = _spec(spec, changes, teacher)
    _check_evaluation(asked.evaluation)
    where, datasets = None if device is None else str(device), datasets_folder(datasets_dir)
    with own_streams(), progress_bar(shown=progress) as shown:
        history = _HistoryFile(folder / HISTORY_FILE)

        def report(event: Event) -> None:
            if isinstance(event, EpochFinished):
                history.add(event)
            shown(event)

        with _asked_to_stop() as should_stop:
            try:
                outcome = run_training(
                    asked,
                    RunContext(
                        directory=folder,
                        datasets_dir=datasets,
                        models_dir=models_folder(None),
                        report=report,
                        should_stop=should_stop,
                        device=where,
                    ),
                    teacher=teacher,
                    least_checkpoint_seconds=_CHECKPOINT_SECONDS,
                )
            except Stopped as stopped:
                raise KeyboardInterrupt(f"stopped; repeat the call to continue from {folder}") from stopped
        weights = folder / outcome.weights
        model = load_weights(weights).to(select_device(where))
    verdict = None
    if asked.evaluation is not None:
        verdict = _verdict(
            asked, asked.evaluation, model, output=folder / "evaluation", datasets_dir=datasets, progress=progress
        )
        verdict.model, verdict.architecture = asked.name, asked.architecture
        # The file's hash, not the state's: `gklbench verify` compares a certificate with the file.
        verdict.model_sha256 = outcome.manifest.weights_sha256
    return Training(
        asked, outcome, model=model, weights=weights, history=history.first(asked.epochs), evaluation=verdict
    )


def _verdict(
    spec: BaseTrainSpec, evaluation: Evaluation, model: nn.Module, *, output: Path, datasets_dir: Path, progress: bool
) -> Verdict:
    budget = evaluation.threat_model
    return evaluate(
        model,
        spec.dataset,
        norm="Linf" if budget is None else budget.norm,
        epsilon=None if budget is None else budget.epsilon,
        protocol=evaluation.protocol,
        attacks=evaluation.attacks,
        num_points=evaluation.num_points,
        batch_size=evaluation.batch_size,
        seed=evaluation.seed,
        output=output,
        progress=progress,
        datasets_dir=datasets_dir,
    )


def _check_evaluation(evaluation: Evaluation | None) -> None:
    """Refuse what `evaluate` would refuse, before hours of training."""
    if evaluation is not None and evaluation.protocol == "corruptions":
        raise InvalidInput(
            "evaluation: corrupted images are files of a data set; leave it out with evaluation=None, and send the "
            "weights to a service or to 'gklbench evaluate'"
        )


def _spec(
    given: str | TrainSpec | DistillSpec | Mapping[str, Any], changes: Mapping[str, Any], teacher: Path | None
) -> TrainSpec | DistillSpec:
    asked: Any = recipe(given) if isinstance(given, str) else given
    if isinstance(asked, TrainSpec | DistillSpec):
        if not changes and teacher is None:
            return asked
        asked = asked.model_dump()
    if not isinstance(asked, Mapping):
        raise InvalidInput(
            f"the spec is a {type(asked).__name__}; give a recipe's name, a TrainSpec or DistillSpec, or one as a "
            "dictionary"
        )
    content = {name: _plain(value) for name, value in {**asked, **changes}.items()}
    kind = DistillSpec if content.get("kind") == "distill" else TrainSpec
    if teacher is not None:
        content = with_teacher_file(content, teacher)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first, *rest = field_errors(error.errors(), kind)
        where = ".".join(map(str, first.path))
        more = f" And {len(rest)} more." if rest else ""
        raise InvalidInput(f"{where}: {first.message}{more}" if where else f"{first.message}{more}") from error


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


class _HistoryFile:
    """Finished epochs, one a line, with those of earlier calls; of an epoch that ran twice the later line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[int, EpochFinished] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    epoch = EpochFinished.model_validate_json(line)
                except ValidationError:
                    # The process was killed while it wrote this line.
                    continue
                self._found[epoch.epoch] = epoch

    def first(self, epochs: int) -> History:
        return History([self._found[number] for number in sorted(self._found) if number <= epochs])

    def add(self, epoch: EpochFinished) -> None:
        """
        Raises:
            NoSpaceLeft: the disk is full.
        """
        self._found[epoch.epoch] = epoch
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # Begins a new line, so that a line that was cut off before does not spoil this one.
                file.write("\n" * bool(file.tell()) + epoch.model_dump_json() + "\n")
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise NoSpaceLeft(f"no space is left in {self.path.parent} for {self.path.name}; free some") from error


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts as usual.

    In other threads than the main one, and if the caller has its own SIGINT handler, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
