"""Saves a training's whole state in one safetensors file, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gkl.errors import InvalidInput, NonFiniteLoss
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.spec import BaseTrainSpec
from gkl.training.averaging import WeightAverage
from gkl.training.optimizers import optimizer_state, restore_optimizer
from gkl.training.tasks import StepOutcome, Task

_FORMAT, _FORMAT_BEFORE = "gkl-training-checkpoint-4", "gkl-training-checkpoint-3"
_PREFIX = "checkpoint-"


@dataclass
class EpochSums:
    """Sums over the images of the running epoch."""

    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """The metric's name -> its sum over the images."""
    seconds: float = 0.0

    def add(self, outcome: StepOutcome) -> None:
        self.images += outcome.images
        for name, total in outcome.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total

    @property
    def metrics(self) -> dict[str, float]:
        """The metric's name -> its mean over the images."""
        return {name: total / self.images for name, total in self.sums.items()}


@dataclass(frozen=True)
class Best:
    """The best epoch so far on the held-out images."""

    epoch: int
    metrics: dict[str, float]
    """The metrics on the held-out images, by name."""
    weights: dict[str, Tensor]
    """The epoch's state dict, on the CPU."""


@dataclass
class TrainingState:
    """Everything that changes during a training, and thus must be saved."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    task: Task
    generator: torch.Generator
    average: WeightAverage | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    """What a resumed run must have in common with the checkpoint, besides the spec: hashes of the data, kind of
    device."""
    epoch: int = 0
    """Number of finished epochs."""
    step: int = 0
    """Number of steps done in the current epoch, the one after those."""
    epoch_start: Tensor | None = None
    """The generator's state before the current epoch's order was drawn; None between epochs."""
    sums: EpochSums = field(default_factory=EpochSums)
    best: Best | None = None
    seconds: float = 0.0
    """Time spent in finished epochs."""

    @property
    def result(self) -> nn.Module:
        """The network whose weights would be the result if the run ended now: the average, if there is one."""
        return self.model if self.average is None else self.average.model


def save_checkpoint(directory: Path, state: TrainingState, spec: BaseTrainSpec, *, keep: int) -> Path:
    """Write the state, then remove all but the newest `keep` checkpoints.

    Raises:
        NonFiniteLoss: a weight is NaN or infinite although the loss was finite; earlier checkpoints are kept.
        NoSpaceLeft: the disk is full; earlier checkpoints are kept.
    """
    check_finite(state)
    tensors: dict[str, Tensor] = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    tensors |= {f"optimizer.{name}": t for name, t in optimizer_state(state.optimizer, state.model).items()}
    if state.average is not None:
        tensors |= {f"average.{name}": t for name, t in state.average.model.state_dict().items()}
    tensors |= {f"task.{name}": t for name, t in state.task.state().items()}
    best = state.best
    if best is not None:
        tensors |= {f"best.{name}": t for name, t in best.weights.items()}
    tensors["generator"] = state.generator.get_state()
    if state.epoch_start is not None:
        tensors["epoch_start"] = state.epoch_start
    metadata = {
        "format": _FORMAT,
        "spec": spec.model_dump(mode="json"),
        "origin": state.origin,
        "epoch": state.epoch,
        "step": state.step,
        "sums": asdict(state.sums),
        "best": None if best is None else {"epoch": best.epoch, "metrics": best.metrics},
        "seconds": state.seconds,
    }
    path = directory / f"{_PREFIX}{state.epoch:05d}-{state.step:07d}.safetensors"
    save_tensors(path, tensors, metadata)
    for old in _newest_first(directory)[keep:]:
        old.unlink()
    return path


def restore_newest(directory: Path, state: TrainingState, spec: BaseTrainSpec) -> list[str]:
    """Bring `state` to the newest readable checkpoint in `directory`, if there is one.

    Returns:
        A sentence for each damaged checkpoint; these files are renamed to `*.damaged`.

    Raises:
        InvalidInput: the checkpoint was made with another spec (the message names the fields that differ), with other
            data, on another kind of device, or by a version whose format this one cannot read.
    """
    passed_over = []
    for unfinished in directory.glob(f".{_PREFIX}*.part"):
        # A process that was killed while it wrote a checkpoint left this file. Only one run at a time uses a
        # directory, so nobody is still writing it.
        unfinished.unlink()
    for path in _newest_first(directory):
        try:
            tensors, metadata = load_tensors(path)
        except InvalidInput as error:
            passed_over.append(f"{error}; it is passed over and kept as {path.stem}.damaged.")
            # Under its old name it would count as one of the newest checkpoints, and displace a readable one.
            path.rename(path.with_suffix(".damaged"))
            continue
        if metadata.get("format") == _FORMAT_BEFORE:
            tensors, metadata = _in_todays_layout(tensors, metadata)
        if metadata.get("format") != _FORMAT:
            raise InvalidInput(f"{path.name} is not a training checkpoint of this version; remove it to start over.")
        _check_same_spec(path, metadata["spec"], spec)
        for what, here in state.origin.items():
            if metadata["origin"].get(what) != here:
                raise InvalidInput(
                    f"{path} was made with another {what} than this run has here ({metadata['origin'].get(what)}, now "
                    f"{here}); resume with the same, or choose another output directory"
                )
        _restore(state, tensors, metadata)
        break
    return passed_over


def check_finite(state: TrainingState) -> None:
    """
    Raises:
        NonFiniteLoss: a weight or a running statistic of the network, or of its average, is NaN or infinite.
    """
    networks = [state.model] if state.average is None else [state.model, state.average.model]
    for network in networks:
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteLoss(
                    f"{name} became NaN or infinite after epoch {state.epoch} and {state.step} steps, although the "
                    "loss had not; usually the learning rate or a loss weight is too high, so lower one of them and "
                    "train again"
                )


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_PREFIX}*.safetensors"), reverse=True)


def _check_same_spec(path: Path, saved: dict[str, Any], spec: BaseTrainSpec) -> None:
    differing = _differences(_in_todays_form(saved, type(spec)), spec.model_dump(mode="json"))
    if differing:
        raise InvalidInput(
            f"{path} was made by a spec that differs in {', '.join(differing)}; "
            "resume with the same spec, or choose another output directory"
        )


def _in_todays_form(saved: dict[str, Any], kind: type[BaseTrainSpec]) -> dict[str, Any]:
    """With the fields that are newer than the checkpoint, whose defaults are what earlier versions did."""
    try:
        return kind.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        # A version with fields or values unknown to this one wrote it; the comparison then shows these as differing.
        return saved


def _in_todays_layout(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert a checkpoint of the previous format, which had only SGD and adversarial training."""
    prefixes = {"momentum.": "optimizer.momentum_buffer.", "prior.": "task.prior."}

    def renamed(name: str) -> str:
        for old, new in prefixes.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    before, best = metadata["sums"], metadata["best"]
    sums = {"loss": before["loss"]} | {f"loss_{name}": total for name, total in before["parts"].items()}
    sums |= {"clean_accuracy": before["clean_correct"], "adversarial_accuracy": before["adversarial_correct"]}
    if best is not None:
        epoch, clean, robust = best
        best = {"epoch": epoch, "metrics": {"held_out_clean_accuracy": clean, "held_out_robust_accuracy": robust}}
    return {renamed(name): tensor for name, tensor in tensors.items()}, metadata | {
        "format": _FORMAT,
        "sums": {"images": before["images"], "sums": sums if before["images"] else {}, "seconds": before["seconds"]},
        "best": best,
    }


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """List the fields in which two specs differ: `epochs (2, now 3)`, `optimizer.momentum (0.9, now 0.8)`."""
    found = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += [f"{key}.{difference}" for difference in _differences(before, now)]
        elif isinstance(before, dict) or isinstance(now, dict):
            found.append(key)
        elif before != now:
            found.append(f"{key} ({before}, now {now})")
    return found


def _restore(state: TrainingState, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    state.model.load_state_dict(under("model."))
    restore_optimizer(state.optimizer, state.model, under("optimizer."))
    if state.average is not None:
        state.average.model.load_state_dict(under("average."))
    state.task.restore(under("task."))
    state.generator.set_state(tensors["generator"])
    state.epoch_start = tensors.get("epoch_start")
    state.epoch, state.step, state.seconds = metadata["epoch"], metadata["step"], metadata["seconds"]
    state.sums = EpochSums(**metadata["sums"])
    state.best = None
    if metadata["best"] is not None:
        state.best = Best(metadata["best"]["epoch"], metadata["best"]["metrics"], under("best."))
