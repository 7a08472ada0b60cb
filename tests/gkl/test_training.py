from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gkl.data import load_train
from gkl.errors import InvalidInput, NonFiniteLoss, Stopped
from gkl.outcome import CheckpointSaved, EpochFinished, Event, Progress
from gkl.recipes import digits, digits_trades
from gkl.spec import Sgd, TrainSpec
from gkl.tensor_files import load_tensors
from gkl.training import train


def short(base: TrainSpec | None = None, **changes: object) -> TrainSpec:
    return (base or digits()).model_copy(update={"epochs": 3, "batch_size": 256, **changes})


def run(spec: TrainSpec, directory: Path, **options: object) -> tuple[str, list[Event]]:
    """Train; returns the sha256 of the weights and what was reported."""
    events: list[Event] = []
    outcome = train(spec, directory, report=events.append, device="cpu", **options)  # type: ignore[arg-type]
    return outcome.manifest.weights_sha256, events


class StopAfter:
    """Says stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("base", [digits(), digits_trades()], ids=["gkl", "trades"])
def test_the_same_spec_gives_the_same_bytes(base: TrainSpec, tmp_path: Path) -> None:
    first, events = run(short(base), tmp_path / "a")
    again, _ = run(short(base), tmp_path / "b")
    other, _ = run(short(base, seed=1), tmp_path / "c")
    assert first == again != other
    epochs = [e for e in events if isinstance(e, EpochFinished)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert [e.epsilon for e in epochs] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])
    assert [e.learning_rate for e in epochs] == pytest.approx([0.1, 0.075, 0.025])
    assert [e.epoch for e in events if isinstance(e, CheckpointSaved)] == [1, 2, 3]
    last = [e for e in events if isinstance(e, Progress)][-1]
    assert last.fraction == 1.0
    assert last.seconds_left == 0


@pytest.mark.parametrize("steps", [0, 3, 8, 13])
def test_a_resumed_run_equals_an_uninterrupted_one(steps: int, tmp_path: Path) -> None:
    whole, _ = run(short(), tmp_path / "whole")
    directory = tmp_path / "interrupted"
    with pytest.raises(Stopped):
        run(short(), directory, should_stop=StopAfter(steps))
    assert not (directory / "weights.safetensors").exists()
    resumed, events = run(short(), directory)
    assert resumed == whole
    assert next(e.epoch for e in events if isinstance(e, EpochFinished)) == steps // 6 + 1


def test_only_the_newest_checkpoints_are_kept_and_none_is_half_written(tmp_path: Path) -> None:
    run(short(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00002.safetensors",
        "checkpoint-00003.safetensors",
        "weights.safetensors",
    ]


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(short(), tmp_path, should_stop=StopAfter(8))
    with pytest.raises(InvalidInput, match="differs in optimizer, seed"):
        run(short(seed=7, optimizer=Sgd(learning_rate=0.2)), tmp_path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = run(short(), tmp_path / "whole")
    directory = tmp_path / "damaged"
    with pytest.raises(Stopped):
        run(short(), directory, should_stop=StopAfter(14))
    newest = directory / "checkpoint-00002.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed, _ = run(short(), directory)
    assert resumed == whole
    assert "checkpoint-00002.safetensors cannot be read" in caplog.text


def test_divergence_ends_the_run_with_the_step_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"at step \d+ .* lower one of them"):
        run(short(optimizer=Sgd(learning_rate=100.0), epochs=10), tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_gkl_keeps_its_class_prior_in_the_checkpoint(tmp_path: Path) -> None:
    run(short(), tmp_path)
    tensors, metadata = load_tensors(tmp_path / "checkpoint-00003.safetensors")
    assert metadata["epoch"] == 3
    assert tensors["prior"].shape == (10, 10)
    torch.testing.assert_close(tensors["prior"].sum(1), torch.ones(10))
    assert not torch.allclose(tensors["prior"], torch.full((10, 10), 0.1))
    weights = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(weights[name], tensors[f"model.{name}"]) for name in weights)


def test_the_manifest_names_data_and_weights(tmp_path: Path) -> None:
    outcome = train(short(), tmp_path, report=lambda _: None, device="cpu")
    assert outcome.manifest.dataset_sha256 == load_train("digits").sha256()
    assert outcome.manifest.spec == short().model_dump(mode="json")
    assert outcome.manifest.packages["torch"] == torch.__version__.split("+")[0]
