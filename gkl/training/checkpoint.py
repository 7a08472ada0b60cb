"""A training's whole state in one safetensors file, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gkl.class_prior import ClassPrior
from gkl.errors import InvalidInput
from gkl.spec import TrainSpec
from gkl.tensor_files import load_tensors, save_tensors

_FORMAT = "gkl-training-checkpoint-1"
_PREFIX = "checkpoint-"


@dataclass
class TrainingState:
    """Everything that changes while training runs."""

    model: nn.Module
    optimizer: torch.optim.SGD
    prior: ClassPrior
    generator: torch.Generator
    epoch: int = 0
    """Epochs finished."""
    seconds: float = 0.0
    """Time spent in them."""


def save_checkpoint(directory: Path, state: TrainingState, spec: TrainSpec, *, keep: int = 2) -> Path:
    """Write the state after an epoch, then remove all but the newest `keep` checkpoints."""
    tensors: dict[str, Tensor] = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        momentum = state.optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    tensors["prior"] = state.prior.rows
    tensors["generator"] = state.generator.get_state()
    path = directory / f"{_PREFIX}{state.epoch:05d}.safetensors"
    metadata = {
        "format": _FORMAT,
        "spec": spec.model_dump(mode="json"),
        "epoch": state.epoch,
        "seconds": state.seconds,
    }
    save_tensors(path, tensors, metadata)
    for old in _newest_first(directory)[keep:]:
        old.unlink()
    return path


def restore_newest(directory: Path, state: TrainingState, spec: TrainSpec) -> list[str]:
    """Bring `state` to the newest readable checkpoint in `directory`, if there is one.

    Returns:
        A sentence for each damaged checkpoint that was passed over.

    Raises:
        InvalidInput: if the checkpoint belongs to another spec; names the fields that differ.
    """
    passed_over = []
    for path in _newest_first(directory):
        try:
            tensors, metadata = load_tensors(path)
        except InvalidInput as error:
            passed_over.append(f"{error}; the checkpoint before it is used.")
            continue
        if metadata.get("format") != _FORMAT:
            raise InvalidInput(f"{path.name} is not a training checkpoint of this version; remove it to start over.")
        _check_same_spec(path, metadata["spec"], spec)
        _restore(state, tensors)
        state.epoch = metadata["epoch"]
        state.seconds = metadata["seconds"]
        break
    return passed_over


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_PREFIX}*.safetensors"), reverse=True)


def _check_same_spec(path: Path, saved: dict[str, object], spec: TrainSpec) -> None:
    current = spec.model_dump(mode="json")
    differing = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if differing:
        raise InvalidInput(
            f"{path} was made by a spec that differs in {', '.join(differing)}; "
            "resume with the same spec, or choose another output directory"
        )


def _restore(state: TrainingState, tensors: dict[str, Tensor]) -> None:
    state.model.load_state_dict(
        {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    )
    for name, parameter in state.model.named_parameters():
        momentum = tensors.get(f"momentum.{name}")
        if momentum is not None:
            state.optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    state.prior.rows.copy_(tensors["prior"])
    state.generator.set_state(tensors["generator"])
