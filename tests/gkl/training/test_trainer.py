from __future__ import annotations

import hashlib
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.data import ImageSet, load_train
from gkl.errors import InvalidInput, NonFiniteLoss, Stopped
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.models import build_model
from gkl.outcome import CheckpointSaved, EpochFinished, Event, Progress
from gkl.recipes.adversarial import digits, digits_ce, digits_trades
from gkl.run_context import RunContext
from gkl.spec import Sgd, ThreatModel, TrainSpec
from gkl.training import train
from gkl.training.tasks import AdversarialTask, NaturalTask, StepOutcome
from gkl.training.tasks.base import Batch, Objective
from tests.data_files import write_cifar10, write_npz
from tests.specs import NO_FILES

pytestmark = pytest.mark.system

# Everything that a training can have, on digits: what one of them forgets to save, a resumed run shows.
EVERYTHING: dict[str, Any] = {
    "architecture": "tiny_cnn",
    "objective": {"loss": "gkl", "gamma": 0.4, "prior_temperature": 1.0},
    "inner_maximization": {"num_steps": 2, "relative_step_size": 0.5, "start_noise": "uniform", "wmse_weight": 1.0},
    "optimizer": {"learning_rate": 0.05, "nesterov": True, "decay_batch_norm": False},
    "schedule": {"kind": "one_cycle", "warmup_fraction": 0.3},
    "label_smoothing": 0.1,
    "augmentation": {"kind": "cutout", "padding": 1, "flip": False, "size": 2},
    "averaging": {"kind": "step", "tau": 0.9, "warmup_fraction": 0.2},
    "weight_perturbation": {"gamma": 0.005, "first_epoch": 2},
    "selection": {"num_images": 100, "num_steps": 3},
}

# What the released code does otherwise, all of it that can be together.
AS_RELEASED: dict[str, Any] = EVERYTHING | {
    "inner_maximization": {"num_steps": 2, "relative_step_size": 0.5, "project_start": False, "network_mode": "train"},
    "schedule": {
        "kind": "one_cycle",
        "warmup_fraction": 0.3,
        "moves": "per_epoch",
        "low_momentum": 0.8,
        "high_momentum": 0.95,
    },
    "augmentation": {"kind": "cutout", "padding": 1, "flip": False, "size": 2, "rotation": 15.0},
    "averaging": {"kind": "step", "tau": 0.9, "warmup_fraction": 0.2, "buffers": "copied"},
    "batch_norm": {"momentum": 0.01, "first_momentum": 1.0},
    "selection": {"num_images": 100, "num_steps": 3, "maximizes": "margin", "ties": "last"},
    "drop_last_batch": True,
}


NATURAL: dict[str, Any] = {
    "architecture": "tiny_cnn",
    "threat_model": None,
    "objective": {"loss": "ce"},
    "inner_maximization": {},
    "optimizer": {"kind": "adamw", "learning_rate": 0.01, "decay_batch_norm": False},
    "schedule": {"kind": "one_cycle", "warmup_fraction": 0.3, "low_momentum": 0.8, "high_momentum": 0.95},
    "label_smoothing": 0.1,
    "augmentation": {"kind": "cutout", "padding": 1, "flip": False, "size": 2},
    "averaging": {"kind": "epoch", "tau": 0.5},
    "selection": {"num_images": 100},
}


def short(base: TrainSpec | None = None, **changes: object) -> TrainSpec:
    return (base or digits()).model_copy(update={"architecture": "tiny_cnn", "epochs": 3, "batch_size": 256, **changes})


def everything(**changes: object) -> TrainSpec:
    return TrainSpec.model_validate(short().model_dump(mode="json") | EVERYTHING | changes)


def run(spec: TrainSpec, directory: Path, **options: object) -> tuple[str, list[Event]]:
    """Train; returns the sha256 of the weights and what was reported."""
    events: list[Event] = []
    surroundings = {"datasets_dir": NO_FILES, "report": events.append, "device": "cpu"}
    surroundings |= {
        name: options.pop(name) for name in ("datasets_dir", "report", "should_stop", "device") if name in options
    }
    context = RunContext(directory=directory, **surroundings)  # type: ignore[arg-type]
    outcome = train(spec, context, **options)  # type: ignore[arg-type]
    return outcome.manifest.weights_sha256, events


def fingerprint(directory: Path) -> dict[str, str]:
    """sha256 of weights, momentum, average, prior and best weights in the newest checkpoint."""
    tensors, _ = load_tensors(sorted(directory.glob("checkpoint-*"))[-1])
    parts: dict[str, Any] = {}
    for name in sorted(tensors):
        digest = parts.setdefault(name.split(".")[0], hashlib.sha256())
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return {part: digest.hexdigest() for part, digest in parts.items()}


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed, from which tests only read: it is the same for all that compare with it."""

    directory: Path
    weights_sha256: str
    events: list[Event]


Undisturbed = Callable[[TrainSpec], Whole]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    @cache
    def made(spec_json: str) -> Whole:
        directory = tmp_path_factory.mktemp("whole")
        return Whole(directory, *run(TrainSpec.model_validate_json(spec_json), directory))

    return lambda spec: made(spec.model_dump_json())


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
    assert [(e.epoch, e.step) for e in events if isinstance(e, CheckpointSaved)] == [(1, 0), (2, 0), (3, 0)]


def test_progress_tells_of_the_step_and_the_time_left(tmp_path: Path) -> None:
    _, events = run(short(epochs=12), tmp_path)
    progress = [e for e in events if isinstance(e, Progress)]
    assert len(progress) >= 2
    last = progress[-1]
    assert last.metrics is not None
    assert (last.fraction, last.seconds_left) == (1.0, 0)
    assert (last.metrics.step, last.metrics.steps) == (72, 72)
    assert list(last.metrics.parts) == ["natural", "ce", "wmse"]
    parts = last.metrics.parts
    assert last.metrics.loss == pytest.approx(parts["natural"] + 4 * parts["ce"] + 20 * parts["wmse"], rel=1e-4)
    assert 0.3 < last.metrics.clean_accuracy <= 1
    assert 0 <= last.metrics.adversarial_accuracy < last.metrics.clean_accuracy
    assert last.metrics.images_per_second is not None
    assert last.metrics.images_per_second > 0
    epochs = [e for e in events if isinstance(e, EpochFinished)]
    assert epochs[-1].parts.keys() == parts.keys()


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (short(), 0),
        (short(), 3),
        (short(), 12),
        (everything(), 8),
        (everything(), 13),
        # Before and after the first step, whose BatchNorm momentum is another, and in the second epoch.
        (everything(**AS_RELEASED), 0),
        (everything(**AS_RELEASED), 1),
        (everything(**AS_RELEASED), 9),
        (everything(weight_perturbation=None, **NATURAL), 0),
        (everything(weight_perturbation=None, **NATURAL), 9),
        (everything(optimizer={"kind": "adamw"}), 9),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    spec: TrainSpec, steps: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    whole = undisturbed(spec)
    directory = tmp_path / "interrupted"
    with pytest.raises(Stopped):
        run(spec, directory, should_stop=StopAfter(steps))
    assert not (directory / "weights.safetensors").exists()
    resumed, events = run(spec, directory)
    assert resumed == whole.weights_sha256
    assert fingerprint(directory) == fingerprint(whole.directory)
    # The epochs' figures too: sums go on where they were.
    epochs = {e.epoch: e.model_dump(exclude={"seconds"}) for e in whole.events if isinstance(e, EpochFinished)}
    again = {e.epoch: e.model_dump(exclude={"seconds"}) for e in events if isinstance(e, EpochFinished)}
    assert again == {number: epochs[number] for number in again}
    assert max(again) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from gkl.run_context import RunContext
from gkl.spec import TrainSpec
from gkl.training import train
calls = 0
def kill_at_call_30():
    global calls
    calls += 1
    if calls == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
nowhere = Path("/nonexistent")
context = RunContext(directory=Path(sys.argv[2]), datasets_dir=nowhere, should_stop=kill_at_call_30, device="cpu")
train(TrainSpec.model_validate_json(sys.argv[1]), context, checkpoint_seconds=float(sys.argv[3]))
"""


@pytest.mark.parametrize("checkpoint_seconds", [0, 1000])
@pytest.mark.long
def test_a_run_killed_within_an_epoch_ends_as_an_uninterrupted_one(
    checkpoint_seconds: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """SIGKILL in the second epoch, with a checkpoint of the step before or only that of the first epoch."""
    spec = everything(batch_size=64)
    whole = undisturbed(spec)
    directory = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, spec.model_dump_json(), str(directory), str(checkpoint_seconds)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    newest = sorted(path.name for path in directory.glob("checkpoint-*"))[-1]
    # 21 steps and 2 batches of held-out images are the first epoch's.
    within = "0000006" if checkpoint_seconds == 0 else "0000000"
    assert newest == f"checkpoint-00001-{within}.safetensors"
    resumed, _ = run(spec, directory)
    assert resumed == whole.weights_sha256
    assert fingerprint(directory) == fingerprint(whole.directory)


def test_epochs_that_are_quick_leave_no_checkpoint_but_the_last(tmp_path: Path, undisturbed: Undisturbed) -> None:
    weights, events = run(short(), tmp_path / "seldom", least_checkpoint_seconds=3600)
    assert weights == undisturbed(short()).weights_sha256
    assert [(e.epoch, e.step) for e in events if isinstance(e, CheckpointSaved)] == [(3, 0)]
    with pytest.raises(Stopped):
        run(short(), tmp_path / "stopped", least_checkpoint_seconds=3600, should_stop=StopAfter(10))
    (left,) = (tmp_path / "stopped").glob("checkpoint-*")
    assert left.name == "checkpoint-00001-0000004.safetensors"
    resumed, _ = run(short(), tmp_path / "stopped", least_checkpoint_seconds=3600)
    assert resumed == weights


def test_checkpoints_within_an_epoch_change_nothing_but_are_made(tmp_path: Path, undisturbed: Undisturbed) -> None:
    often, events = run(short(), tmp_path / "often", checkpoint_seconds=0, keep_checkpoints=3)
    assert often == undisturbed(short()).weights_sha256
    saved = [(e.epoch, e.step) for e in events if isinstance(e, CheckpointSaved)]
    assert len(saved) == 3 * 6 + 3
    assert sorted(path.name for path in (tmp_path / "often").iterdir()) == [
        "checkpoint-00002-0000005.safetensors",
        "checkpoint-00002-0000006.safetensors",
        "checkpoint-00003-0000000.safetensors",
        "weights.safetensors",
    ]


def test_a_checkpoint_of_another_spec_is_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(short(), tmp_path, should_stop=StopAfter(8))
    changed = short(seed=7, optimizer=Sgd(learning_rate=0.2))
    with pytest.raises(
        InvalidInput, match=r"differs in optimizer\.learning_rate \(0\.1, now 0\.2\), seed \(0, now 7\)"
    ):
        run(changed, tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Its spec lacks the fields that came later; what they do by default is what was done then."""
    spec = everything(batch_size=256)
    with pytest.raises(Stopped):
        run(spec, tmp_path, should_stop=StopAfter(8))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    tensors, metadata = load_tensors(newest)
    saved = metadata["spec"]
    for part, names in {
        "inner_maximization": ("project_start", "network_mode"),
        "schedule": ("moves", "low_momentum", "high_momentum"),
        "augmentation": ("rotation",),
        "averaging": ("buffers",),
        "selection": ("maximizes", "ties"),
    }.items():
        for name in names:
            del saved[part][name]
    del saved["drop_last_batch"], saved["batch_norm"]
    save_tensors(newest, tensors, metadata)
    released = everything(batch_norm={"momentum": 0.01}, averaging=EVERYTHING["averaging"] | {"buffers": "copied"})
    with pytest.raises(InvalidInput, match=r"differs in averaging\.buffers \(averaged, now copied\), batch_norm;"):
        run(released, tmp_path)
    assert run(spec, tmp_path)[0] == undisturbed(spec).weights_sha256


@pytest.mark.parametrize("steps", [1, 8])
def test_a_checkpoint_of_the_format_before_is_resumed(steps: int, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """It names momentum and class prior otherwise, and has sums as fields."""
    spec = everything(batch_size=256)
    whole = undisturbed(spec)
    with pytest.raises(Stopped):
        run(spec, tmp_path, should_stop=StopAfter(steps))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    tensors, metadata = load_tensors(newest)
    before = {
        name.replace("optimizer.momentum_buffer.", "momentum.").replace("task.prior.", "prior."): tensor
        for name, tensor in tensors.items()
    }
    assert {"momentum", "prior", "average", "model"} <= {name.partition(".")[0] for name in before}
    assert not any(name.startswith(("optimizer.", "task.")) for name in before)
    sums, best = metadata["sums"], metadata["best"]
    of_losses = {name: total for name, total in sums["sums"].items() if name.startswith("loss_")}
    metadata |= {
        "format": "gkl-training-checkpoint-3",
        "sums": {
            "images": sums["images"],
            "loss": sums["sums"].get("loss", 0.0),
            "clean_correct": int(sums["sums"].get("clean_accuracy", 0)),
            "adversarial_correct": int(sums["sums"].get("adversarial_accuracy", 0)),
            "seconds": sums["seconds"],
            "parts": {name.removeprefix("loss_"): total for name, total in of_losses.items()},
        },
        "best": best and [best["epoch"], *best["metrics"].values()],
    }
    save_tensors(newest, before, metadata)
    resumed, events = run(spec, tmp_path)
    assert resumed == whole.weights_sha256
    assert fingerprint(tmp_path) == fingerprint(whole.directory)
    figures = [{e.epoch: e.metrics for e in told if isinstance(e, EpochFinished)} for told in (whole.events, events)]
    assert figures[1] == {number: figures[0][number] for number in figures[1]}


def test_without_an_adversary_nothing_is_said_of_one_and_clean_images_select(tmp_path: Path) -> None:
    spec = everything(weight_perturbation=None, epochs=4, **NATURAL | {"averaging": None})
    outcome = train(
        spec, RunContext(directory=tmp_path, datasets_dir=NO_FILES, report=(events := []).append, device="cpu")
    )
    epochs = [e for e in events if isinstance(e, EpochFinished)]
    assert all(set(e.metrics) == {"loss", "clean_accuracy", "held_out_clean_accuracy", "learning_rate"} for e in epochs)
    held_out = [e.metrics["held_out_clean_accuracy"] for e in epochs]
    assert outcome.selected_epoch == 1 + held_out.index(max(held_out))
    assert (outcome.held_out_clean_accuracy, outcome.held_out_robust_accuracy) == (max(held_out), None)
    assert epochs[-1].clean_accuracy > epochs[0].clean_accuracy


class TowardsClassMeans(NaturalTask):
    """Draws each image's logits to the mean of its class in the epoch before; the means are state of its own."""

    def __init__(self, *args: Any) -> None:
        *common, teacher = args
        assert teacher is None
        super().__init__(*common)
        self.means, self.sums, self.counts = torch.zeros(10, 10), torch.zeros(10, 10), torch.zeros(10)

    def _step(self, batch: Batch, *, epoch: int, where: str) -> StepOutcome:
        x, labels = batch.x, batch.labels

        def evaluated() -> Objective:
            logits = self.network(x)
            distance = (logits - self.means[labels]).square().mean()
            self.sums.index_add_(0, labels, logits.detach())
            self.counts.index_add_(0, labels, torch.ones(len(labels)))
            parts = {"natural": F.cross_entropy(logits, labels), "distance": distance}
            correct = {"clean_accuracy": (logits.detach().argmax(1) == labels).sum()}
            return Objective(parts["natural"] + 0.1 * distance, parts, correct)

        self.model.train()
        return self._update(evaluated, len(labels), where=where)

    def finish_epoch(self) -> None:
        self.means = self.sums / self.counts[:, None]
        self.sums, self.counts = torch.zeros(10, 10), torch.zeros(10)

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        return {"farthest": float(self.means.abs().max())}

    def state(self) -> dict[str, Tensor]:
        return {"means": self.means, "sums": self.sums, "counts": self.counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.means, self.sums, self.counts = (state[name].clone() for name in ("means", "sums", "counts"))


@pytest.mark.parametrize("steps", [3, 9])
def test_another_task_needs_no_change_of_trainer_or_checkpoint(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkl.training.trainer.make_task", TowardsClassMeans)
    spec = digits_ce().model_copy(update={"architecture": "tiny_cnn", "epochs": 3, "batch_size": 256})
    whole, events = run(spec, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(spec, tmp_path / "stopped", should_stop=StopAfter(steps))
    assert run(spec, tmp_path / "stopped")[0] == whole
    assert fingerprint(tmp_path / "stopped") == fingerprint(tmp_path / "whole")
    last = [e for e in events if isinstance(e, EpochFinished)][-1]
    assert last.metrics["farthest"] > 0
    assert last.parts.keys() == {"natural", "distance"}


def test_a_checkpoint_of_a_later_version_is_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(short(), tmp_path, should_stop=StopAfter(2))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    tensors, metadata = load_tensors(newest)
    metadata["spec"]["warp"] = 9
    save_tensors(newest, tensors, metadata)
    with pytest.raises(InvalidInput, match=r"differs in warp \(9, now None\);"):
        run(short(), tmp_path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, undisturbed: Undisturbed
) -> None:
    directory = tmp_path / "damaged"
    with pytest.raises(Stopped):
        run(short(), directory, should_stop=StopAfter(14))
    newest = directory / "checkpoint-00002-0000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    # The damaged one is not among the one that is kept.
    resumed, events = run(short(), directory, keep_checkpoints=1)
    assert resumed == undisturbed(short()).weights_sha256
    assert "checkpoint-00002-0000002.safetensors cannot be read" in caplog.text
    assert next(e.epoch for e in events if isinstance(e, EpochFinished)) == 3
    kept = [path.name for path in directory.glob("checkpoint-*.safetensors")]
    assert kept == ["checkpoint-00003-0000000.safetensors"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint-00001-0000000.safetensors.4711.part"
    left.write_bytes(b"half")
    run(short(epochs=1), tmp_path)
    assert not left.exists()


def test_divergence_ends_the_run_with_the_step_and_writes_no_weights(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"became (nan|inf) \(natural .*\) at step \d+ of 60 .* lower one of them"):
        run(short(optimizer=Sgd(learning_rate=100.0), epochs=10), tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_weights_that_are_not_finite_are_never_in_a_checkpoint(tmp_path: Path) -> None:
    """The loss is finite until the step after: a checkpoint of every step must not hold the damage."""
    objective = {"loss": "gkl", "wmse_weight": 1000.0}
    changes = {"optimizer": {"learning_rate": 100.0}, "objective": objective, "batch_size": 719}
    spec = everything(epochs=10, schedule={"kind": "cosine"}, selection=None, **changes)
    with pytest.raises(NonFiniteLoss, match="lower one of them"):
        run(spec, tmp_path, checkpoint_seconds=0)
    for path in tmp_path.glob("checkpoint-*"):
        tensors, _ = load_tensors(path)
        assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith(("model.", "average.")))
    assert not (tmp_path / "weights.safetensors").exists()


def test_networks_that_draw_at_random_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws from torch's global stream, which no checkpoint holds."""

    def with_dropout(architecture: str, dataset: str) -> nn.Module:
        return nn.Sequential(build_model(architecture, dataset), nn.Dropout(0.3))

    monkeypatch.setattr("gkl.training.trainer.build_model", with_dropout)
    whole, _ = run(short(), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(short(), tmp_path / "stopped", should_stop=StopAfter(8))
    torch.manual_seed(4711)
    assert run(short(), tmp_path / "stopped")[0] == whole


def test_other_data_and_another_kind_of_device_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        run(short(), tmp_path, should_stop=StopAfter(8))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    tensors, metadata = load_tensors(newest)
    save_tensors(newest, tensors, metadata | {"origin": metadata["origin"] | {"kind of device": "cuda"}})
    with pytest.raises(InvalidInput, match=r"another kind of device than this run has here \(cuda, now cpu\)"):
        run(short(), tmp_path)
    save_tensors(newest, tensors, metadata)
    data = load_train("digits", NO_FILES)
    assert isinstance(data, ImageSet)
    reversed_data = ImageSet(data.images.flip(0), data.labels.flip(0))
    monkeypatch.setattr("gkl.training.trainer.load_train", lambda *_: reversed_data)
    with pytest.raises(InvalidInput, match="another data set than this run has here"):
        run(short(), tmp_path)


def test_a_stop_while_held_out_images_are_attacked_loses_nothing(tmp_path: Path) -> None:
    spec = everything(batch_size=64, selection={"num_images": 200, "num_steps": 3})
    whole, _ = run(spec, tmp_path / "whole")
    directory = tmp_path / "stopped"
    told: list[Event] = []
    with pytest.raises(Stopped):
        # 20 steps an epoch; the stop falls on the second of the held-out batches.
        run(spec, directory, should_stop=StopAfter(21), report=told.append)
    assert not [e for e in told if isinstance(e, EpochFinished)]
    resumed, events = run(spec, directory)
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [1, 2, 3]
    assert resumed == whole
    assert fingerprint(directory) == fingerprint(tmp_path / "whole")


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from gkl.errors import NoSpaceLeft
from gkl.run_context import RunContext
from gkl.spec import TrainSpec
from gkl.training import train
spec, directory = TrainSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2])
# One checkpoint fits, a second one does not.
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", str(directory)], check=True)
def go():
    return train(spec, RunContext(directory=directory, datasets_dir=Path("/nonexistent"), device="cpu"))
try:
    go()
except NoSpaceLeft as error:
    print(error)
print(*sorted(path.name for path in directory.iterdir()))
subprocess.run(["mount", "-o", "remount,size=10m", str(directory)], check=True)
print(go().manifest.weights_sha256)
"""


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """On a real, tiny disk: a tmpfs in a mount namespace of the test's own."""
    own_namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own_namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make a mount namespace, and so no disk to fill")
    directory = tmp_path / "tiny"
    directory.mkdir()
    # A larger network than the others': two of its checkpoints do not fit.
    spec = short(architecture="small_cnn")
    done = subprocess.run(
        [*own_namespace, sys.executable, "-c", FULL_DISK, spec.model_dump_json(), str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, left, weights = done.stdout.splitlines()
    assert re.match(rf"no space is left in {directory} for checkpoint-00002.*MiB\); free some, then resume", said)
    assert left == "checkpoint-00001-0000000.safetensors"
    assert weights == undisturbed(spec).weights_sha256


def test_gkl_keeps_its_class_prior_in_the_checkpoint(undisturbed: Undisturbed) -> None:
    directory = undisturbed(short()).directory
    tensors, metadata = load_tensors(directory / "checkpoint-00003-0000000.safetensors")
    assert metadata["epoch"] == 3
    torch.testing.assert_close(tensors["task.prior.rows"].sum(1), torch.ones(10))
    assert not torch.allclose(tensors["task.prior.rows"], torch.full((10, 10), 0.1))
    weights = load_file(directory / "weights.safetensors")
    assert all(torch.equal(weights[name], tensors[f"model.{name}"]) for name in weights)


def test_the_average_is_the_result(tmp_path: Path) -> None:
    averaging = {"averaging": {"kind": "epoch", "tau": 0.5}}
    spec = TrainSpec.model_validate(short(architecture="small_cnn").model_dump(mode="json") | averaging)
    run(spec, tmp_path, keep_checkpoints=3)
    expected: dict[str, torch.Tensor] = {}
    for number in (1, 2, 3):
        tensors, _ = load_tensors(tmp_path / f"checkpoint-{number:05d}-0000000.safetensors")
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        expected = {name: 0.5 * expected[name] + 0.5 * t if expected else t for name, t in weights.items()}
    result = load_file(tmp_path / "weights.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor)


def test_the_best_epoch_on_held_out_training_images_is_the_result(tmp_path: Path) -> None:
    spec = everything(
        epochs=4, averaging=None, schedule={"kind": "cosine"}, selection={"num_images": 200, "num_steps": 5}
    )
    _, events = run(spec, tmp_path, keep_checkpoints=4)
    robust = [e.held_out_robust_accuracy for e in events if isinstance(e, EpochFinished)]
    best = max(range(4), key=lambda index: robust[index] or 0.0)
    tensors, _ = load_tensors(tmp_path / f"checkpoint-{best + 1:05d}-0000000.safetensors")
    result = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(result[name], tensors[f"model.{name}"]) for name in result)


@pytest.mark.parametrize(("ties", "kept"), [("first", 1), ("last", 3)])
def test_of_epochs_with_the_same_accuracy_the_spec_says_which_is_kept(ties: str, kept: int, tmp_path: Path) -> None:
    """With a learning rate of next to nothing all epochs are the same."""
    spec = everything(
        optimizer={"learning_rate": 1e-12},
        averaging=None,
        batch_norm={"momentum": 1e-12},
        selection={"num_images": 100, "num_steps": 1, "ties": ties},
    )
    assert train(spec, RunContext(directory=tmp_path, datasets_dir=NO_FILES, device="cpu")).selected_epoch == kept


def test_each_step_has_its_momenta_after_a_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm's is another in the first step of the run, not of an epoch; SGD's moves from epoch to epoch."""
    seen: list[tuple[float, float]] = []

    class Watched(AdversarialTask):
        def __call__(self, *args: Any, **options: Any) -> StepOutcome:
            statistics = {m.momentum for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)}
            seen.append((*statistics, self.optimizer.param_groups[0]["momentum"]))
            return super().__call__(*args, **options)

    monkeypatch.setattr("gkl.training.tasks.AdversarialTask", Watched)
    # Two steps an epoch.
    spec = everything(**AS_RELEASED | {"batch_size": 600, "selection": None})
    with pytest.raises(Stopped):
        run(spec, tmp_path, should_stop=StopAfter(1))
    run(spec, tmp_path)
    assert [statistics for statistics, _ in seen] == [1.0, 0.01, 0.01, 0.01, 0.01, 0.01]
    # 0.3 of 3 epochs is the turn, 0.1 epochs before the first: the momentum rises from just above its lowest.
    expected = [0.95 - 0.15 * (1 + math.cos(math.pi * (e + 0.1) / 2.1)) / 2 for e in (0, 0, 1, 1, 2, 2)]
    assert [inertia for _, inertia in seen] == pytest.approx(expected)


def test_dropping_the_last_batch_leaves_so_many_steps(tmp_path: Path) -> None:
    _, events = run(short(drop_last_batch=True, epochs=1), tmp_path)
    # 1,437 images.
    assert [e.metrics.steps for e in events if isinstance(e, Progress) and e.metrics][-1] == 5


def test_synthetic_images_are_mixed_in_and_resume(tmp_path: Path) -> None:
    write_cifar10(tmp_path, per_batch=8)
    arrays = write_npz(tmp_path / "cifar10" / "synthetic" / "few.npz", 30)
    spec = TrainSpec.model_validate(
        {
            "name": "Synthetic",
            "dataset": "cifar10",
            "architecture": "tiny_cnn",
            "threat_model": {"epsilon": "8/255"},
            "inner_maximization": {"num_steps": 1},
            "epochs": 2,
            "batch_size": 10,
            "augmentation": {"kind": "autoaug"},
            "synthetic": {"file": "few", "fraction": 0.7},
        }
    )
    whole, events = run(spec, tmp_path / "whole", datasets_dir=tmp_path)
    # An epoch is as many batches as the 40 real images would make.
    assert next(e.metrics.steps for e in events if isinstance(e, Progress) and e.metrics) == 2 * 4
    with pytest.raises(Stopped):
        run(spec, tmp_path / "stopped", datasets_dir=tmp_path, should_stop=StopAfter(6))
    assert run(spec, tmp_path / "stopped", datasets_dir=tmp_path)[0] == whole
    assert len(arrays["label"]) == 30


@pytest.mark.parametrize("compute", [{"precision": "bfloat16"}, {"channels_last": False}])
def test_other_arithmetic_trains_as_well_and_gives_other_bytes(
    compute: dict[str, object], tmp_path: Path, undisturbed: Undisturbed
) -> None:
    plain = undisturbed(everything())
    other, events = run(everything(compute=compute), tmp_path / "other")
    assert other != plain.weights_sha256 or compute == {"channels_last": False}
    losses = [[e.loss for e in reported if isinstance(e, EpochFinished)] for reported in (plain.events, events)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_training_under_l2_perturbs_within_the_ball_and_learns(tmp_path: Path) -> None:
    spec = short(epochs=12, threat_model=ThreatModel(norm="L2", epsilon=0.8))
    _, events = run(spec, tmp_path)
    last = [e for e in events if isinstance(e, EpochFinished)][-1]
    assert last.epsilon == pytest.approx(0.8)
    assert last.clean_accuracy > 0.3
    assert last.adversarial_accuracy < last.clean_accuracy


def test_the_manifest_names_data_and_weights(tmp_path: Path) -> None:
    outcome = train(short(), RunContext(directory=tmp_path, datasets_dir=NO_FILES, device="cpu"))
    assert outcome.manifest.dataset_sha256 == load_train("digits", NO_FILES).sha256()
    assert outcome.manifest.spec == short().model_dump(mode="json")
    assert outcome.manifest.packages["torch"] == torch.__version__.split("+")[0]
