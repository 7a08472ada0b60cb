"""Distillation against its equations written out with torch alone, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.errors import InvalidInput, Stopped
from gkl.files import sha256_of
from gkl.models import build_model
from gkl.outcome import CheckpointSaved, EpochFinished, Event, TrainOutcome
from gkl.recipes import recipe
from gkl.run_context import RunContext
from gkl.spec import DistillSpec
from gkl.training import train
from gkl.training.optimizers import make_optimizer
from gkl.training.tasks import DistillationTask, make_task
from gkl.training.teacher import Teacher

CPU = torch.device("cpu")
C = 10


def spec(**changes: Any) -> DistillSpec:
    return DistillSpec.model_validate(recipe("digits-distill").model_dump(mode="json") | changes)


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher, in double precision."""
    torch.manual_seed(0)
    student = build_model("tiny_cnn", "digits").double()
    torch.manual_seed(1)
    teacher = build_model("tiny_cnn", "digits").double()
    with torch.no_grad():
        # Far from uniform predictions, as a trained network's are.
        next(p for name, p in teacher.named_parameters() if name.endswith("classifier.2.weight")).mul_(20)
    return student, teacher


def drawn(number: int, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, (size,), generator=generator)


def task_of(s: DistillSpec, student: nn.Module, teacher: nn.Module) -> DistillationTask:
    optimizer = make_optimizer(student, s.optimizer)
    task = make_task(s, student, optimizer, torch.Generator().manual_seed(1), Teacher(teacher, s.compute, CPU))
    assert isinstance(task, DistillationTask)
    return task


def soft_ce(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return -(F.softmax(t / temperature, dim=1) * F.log_softmax(s / temperature, dim=1)).sum(1).mean()


def pairs(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """wMSE with the paper's B * C * C differences, divided by the sum over the whole batch."""
    differences = (t[:, :, None] - t[:, None, :]) - (s[:, :, None] - s[:, None, :])
    weights = w[:, :, None] * w[:, None, :]
    return 0.25 * (weights * differences.square()).sum() / weights.sum()


def kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1), reduction="batchmean")


def decoupled(s: Tensor, t: Tensor, y: Tensor, temperature: float, beta: float) -> Tensor:
    """TCKD + beta * NCKD sample by sample, with the label's column taken out."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(s)):
        p, q = F.softmax(t[row] / temperature, 0), F.softmax(s[row] / temperature, 0)
        rest = torch.arange(C) != y[row]
        p2 = torch.stack([p[y[row]], p[rest].sum()])
        q2 = torch.stack([q[y[row]], q[rest].sum()])
        p_hat, q_hat = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        total = total + (p2 * (p2 / q2).log()).sum() + beta * (p_hat * (p_hat / q_hat).log()).sum()
    return total / len(s)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
UNIFORM = torch.full((24, C), 1 / C, dtype=torch.float64)

LOSSES: dict[str, tuple[dict[str, Any], Loss]] = {
    "kd": (
        {"loss": "kd"},
        lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * 16 * kl(s, t, 4.0),
    ),
    "dkd": (
        {"loss": "dkd", "ramp_epochs": 20, "non_target_weight": 8.0},
        lambda s, t, y: F.cross_entropy(s, y) + 3 / 20 * 16 * decoupled(s, t, y, 4.0, 8.0),
    ),
    "dkl": (
        {"loss": "dkl", "kl_weight": 2.0, "temperature": 3.0},
        # Another value than KL, the same gradient.
        lambda s, t, y: F.cross_entropy(s, y) + 2 * 9 * kl(s, t, 3.0),
    ),
    "ikl": (
        {"loss": "ikl", "ramp_epochs": 20, "ce_weight": 1.5, "wmse_weight": 4.0},
        lambda s, t, y: F.cross_entropy(s, y) + 3 / 20 * (4 * pairs(s, t, UNIFORM) + 1.5 * soft_ce(s, t, 4.0)),
    ),
    "gkl": (
        {"loss": "gkl", "ramp_epochs": 20, "ce_weight": 3.0, "wmse_weight": 12.0, "gamma": 0.1, "temperature": 2.0},
        lambda s, t, y: F.cross_entropy(s, y) + 3 / 20 * (12 * pairs(s, t, UNIFORM**0.1) + 3 * soft_ce(s, t, 2.0)),
    ),
    "gkl without class-wise information": (
        {"loss": "gkl", "ramp_epochs": 0, "class_wise": False, "gamma": 0.3, "prior_temperature": 4.0},
        lambda s, t, y: F.cross_entropy(s, y) + 4 * pairs(s, t, F.softmax(t / 4, 1) ** 0.3) + soft_ce(s, t, 4.0),
    ),
    "gkl with gamma 0": (
        {"loss": "gkl", "ramp_epochs": 0, "class_wise": True, "gamma": 0.0},
        lambda s, t, y: F.cross_entropy(s, y) + 4 * pairs(s, t, torch.ones_like(t)) + soft_ce(s, t, 4.0),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_that_of_the_equation(name: str) -> None:
    """Weights after a step in the third epoch, whose ramp is 3/20, before any prior has been gathered."""
    objective, loss = LOSSES[name]
    ours, teacher = networks()
    reference = copy.deepcopy(ours)
    s = spec(objective=objective)
    x, y = drawn(0)
    outcome = task_of(s, ours, copy.deepcopy(teacher))((x,), y, epoch=3)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    with torch.no_grad():
        target = teacher.eval()(x)
    value = loss(reference.train()(x), target, y)
    value.backward()
    optimizer.step()
    if objective["loss"] != "dkl":
        assert outcome.metrics["loss"] == pytest.approx(value.item(), rel=1e-6)
    # The prior is kept in float32; what is computed from it is not more exact.
    for (key, mine), theirs in zip(ours.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


def test_a_student_that_equals_its_teacher_has_no_wmse() -> None:
    # Without BatchNorm's batch statistics the student in train mode computes what its teacher does.
    torch.manual_seed(0)
    student = build_model("small_cnn", "digits").double()
    s = spec(objective={"loss": "gkl", "ramp_epochs": 0}, architecture="small_cnn")
    x, y = drawn(0)
    teacher = copy.deepcopy(student)
    batch_norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not batch_norms
    outcome = task_of(s, student, teacher)((x,), y, epoch=1)
    assert outcome.metrics["loss_wmse"] == pytest.approx(0.0, abs=1e-30)


def test_the_first_epoch_has_a_twentieth_of_the_divergence() -> None:
    objective = {"loss": "gkl", "ramp_epochs": 20, "label_weight": 0.0}
    losses = []
    for epoch in (1, 10, 20, 30):
        student, teacher = networks()
        x, y = drawn(0)
        losses.append(task_of(spec(objective=objective), student, teacher)((x,), y, epoch=epoch).metrics["loss"])
    assert [each / losses[2] for each in losses] == pytest.approx([1 / 20, 1 / 2, 1, 1], rel=1e-12)


def test_the_prior_is_the_teachers_mean_in_the_epoch_before() -> None:
    student, teacher = networks()
    s = spec(objective={"loss": "gkl", "prior_temperature": 2.0})
    task = task_of(s, student, copy.deepcopy(teacher))
    x, y = drawn(0)
    y = y % 9  # the last class is absent
    task((x,), y, epoch=1)
    assert task.weights is not None
    assert torch.equal(task.weights.prior.rows, torch.full((C, C), 0.1))
    task.finish_epoch()
    with torch.no_grad():
        predictions = F.softmax(teacher.eval()(x) / 2, dim=1).float()
    for label in range(C):
        expected = predictions[y == label].mean(0) if (y == label).any() else torch.full((C,), 0.1)
        torch.testing.assert_close(task.weights.prior.rows[label], expected)


def test_the_teacher_stays_as_it_is() -> None:
    student, teacher = networks()
    before = copy.deepcopy(teacher.state_dict())
    x, y = drawn(0)
    task = task_of(spec(), student, teacher.train())
    for number in range(3):
        task((x,), y, epoch=1 + number)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- whole runs on digits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    s = recipe("digits-teacher").model_copy(update={"epochs": 3, "architecture": "tiny_cnn", "evaluation": None})
    outcome = train(s, RunContext(directory=folder, datasets_dir=folder))
    return folder / outcome.weights


def of(file: Path, **changes: Any) -> DistillSpec:
    named = {"architecture": "tiny_cnn", "weights": sha256_of(file)}
    return spec(**{"teacher": named, "epochs": 3, "evaluation": None} | changes)


def ran(
    s: DistillSpec, folder: Path, teacher: Path | None, *, stop_after: int | None = None
) -> tuple[TrainOutcome, list[Event]]:
    events: list[Event] = []

    def should_stop() -> bool:
        steps = sum(isinstance(event, EpochFinished) for event in events)
        return stop_after is not None and steps >= stop_after

    context = RunContext(directory=folder, datasets_dir=folder, report=events.append, should_stop=should_stop)
    return train(s, context, teacher=teacher), events


@pytest.mark.parametrize("augmentation", [None, {"kind": "basic", "padding": 1, "flip": False}])
def test_a_resumed_run_equals_an_uninterrupted_one(taught: Path, tmp_path: Path, augmentation: Any) -> None:
    s = of(taught, augmentation=augmentation, averaging={"kind": "epoch"}, selection={"num_images": 100})
    whole, _ = ran(s, tmp_path / "whole", taught)
    with pytest.raises(Stopped):
        ran(s, tmp_path / "parts", taught, stop_after=1)
    parts, events = ran(s, tmp_path / "parts", taught)
    assert [event.epoch for event in events if isinstance(event, EpochFinished)] == [2, 3]
    assert parts.manifest.weights_sha256 == whole.manifest.weights_sha256
    assert any(isinstance(event, CheckpointSaved) for event in events)


def test_the_outcome_names_the_teacher_with_its_accuracy(taught: Path, tmp_path: Path) -> None:
    outcome, events = ran(of(taught), tmp_path, taught)
    assert outcome.teacher is not None
    assert outcome.teacher.weights_sha256 == sha256_of(taught)
    assert outcome.teacher.num_points == 360
    assert 0.2 < outcome.teacher.clean_accuracy < 1
    epochs = [event for event in events if isinstance(event, EpochFinished)]
    assert epochs[0].metrics.keys() >= {"loss", "loss_natural", "loss_ce", "loss_wmse", "clean_accuracy"}


def test_another_teacher_in_its_place_is_refused(taught: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    s = recipe("digits-teacher").model_copy(update={"epochs": 1, "architecture": "tiny_cnn", "seed": 9})
    made = train(s, RunContext(directory=tmp_path / "made", datasets_dir=tmp_path))
    (tmp_path / "made" / made.weights).rename(other)
    with pytest.raises(InvalidInput, match="the spec names a teacher whose weights have sha256"):
        ran(of(taught), tmp_path / "student", other)
    with pytest.raises(InvalidInput, match="name where it is"):
        ran(of(taught), tmp_path / "student", None)
    with pytest.raises(InvalidInput, match="which only a service can find"):
        ran(of(taught, teacher={"job": 3}), tmp_path / "student", None)
    with pytest.raises(InvalidInput, match="leaves open which tiny_cnn"):
        ran(of(taught, teacher={"architecture": "tiny_cnn"}), tmp_path / "student", None)


def test_a_student_is_not_written_over_its_teacher(taught: Path) -> None:
    before = taught.read_bytes()
    with pytest.raises(InvalidInput, match="is the file that the student is written to"):
        ran(of(taught), taught.parent, taught)
    assert taught.read_bytes() == before


def test_a_file_of_another_network_is_refused(taught: Path, tmp_path: Path) -> None:
    named = {"architecture": "small_cnn", "weights": sha256_of(taught)}
    with pytest.raises(InvalidInput, match=r"tensor 'features\.0\.weight' in"):
        ran(of(taught, teacher=named), tmp_path, taught)
