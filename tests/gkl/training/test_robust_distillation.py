"""One step of each robust method against the published definition, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.models import build_model
from gkl.recipes import recipe
from gkl.spec import DistillSpec
from gkl.training.optimizers import make_optimizer
from gkl.training.tasks import RobustDistillationTask, make_task
from gkl.training.teacher import Teacher

CPU = torch.device("cpu")
C = 10
EPSILON, STEP = 0.1, 0.05
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def spec(**changes: Any) -> DistillSpec:
    base = recipe("digits-robust-distill").model_dump(mode="json")
    inner = {"num_steps": 3, "relative_step_size": 0.5}
    return DistillSpec.model_validate(
        base | {"inner_maximization": inner, "epochs": 2, "epsilon_ramp": False} | changes
    )


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = build_model("tiny_cnn", "digits").double()
    torch.manual_seed(1)
    teacher = build_model("tiny_cnn", "digits").double()
    with torch.no_grad():
        next(p for name, p in teacher.named_parameters() if name.endswith("classifier.2.weight")).mul_(20)
    return student, teacher.eval()


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(24, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, (24,), generator=generator)


def kl_elements(target: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """Released code: torch's element-wise KL, then the mean over images *and* classes."""
    p = F.softmax(target / temperature, dim=1)
    return F.kl_div(F.log_softmax(other / temperature, dim=1), p, reduction="none").mean()


def wmse_and_ce(s: Tensor, t: Tensor) -> Tensor:
    """4 * wMSE + 4 * CE with uniform weights: the first epoch's GKL."""
    d = (t[:, :, None] - t[:, None, :]) - (s[:, :, None] - s[:, None, :])
    wmse = 0.25 * d.square().sum(dim=(1, 2)).mean() / C**2
    return 4 * wmse - 4 * (F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1).mean()


def ard(sx: Tensor, sa: Tensor, tx: Tensor, ta: Tensor, y: Tensor) -> Tensor:
    return 0.8 * 30**2 * kl_elements(tx, sa, 30.0) + 0.2 * F.cross_entropy(sx, y)


def iad(sx: Tensor, sa: Tensor, tx: Tensor, ta: Tensor, y: Tensor) -> Tensor:
    trust = F.softmax(ta, 1)[torch.arange(len(y)), y] ** 0.1
    own = F.softmax(sx, 1)
    each = (own * (own.log() - F.log_softmax(sa, 1))).sum(1)
    return C * kl_elements(tx, sa) + ((1 - trust) * each).mean()


def rslad(sx: Tensor, sa: Tensor, tx: Tensor, ta: Tensor, y: Tensor) -> Tensor:
    return 5 / 6 * kl_elements(tx, sa) + 1 / 6 * kl_elements(tx, sx)


def adaad(sx: Tensor, sa: Tensor, tx: Tensor, ta: Tensor, y: Tensor) -> Tensor:
    return C * kl_elements(ta, sa)


def rslad_gkl(sx: Tensor, sa: Tensor, tx: Tensor, ta: Tensor, y: Tensor) -> Tensor:
    return 5 / 6 * wmse_and_ce(sa, tx) + 1 / 6 * wmse_and_ce(sx, tx)


METHODS: dict[str, tuple[dict[str, Any], str, Callable[..., Tensor]]] = {
    "ard": ({"loss": "ard", "teacher_weight": 0.8}, "cross_entropy", ard),
    "iad": ({"loss": "iad", "first_introspective_epoch": 2}, "cross_entropy", iad),
    "iad before": (
        {"loss": "iad", "first_introspective_epoch": 2},
        "before",
        lambda sx, sa, tx, ta, y: C * kl_elements(tx, sa),
    ),
    "rslad": ({"loss": "rslad"}, "divergence", rslad),
    "adaad": ({"loss": "adaad"}, "adaptive", adaad),
    "rslad-gkl": ({"loss": "rslad-gkl", "ce_weight": 4.0, "wmse_weight": 4.0}, "divergence", rslad_gkl),
}


def perturbed(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, climbs: str) -> Tensor:
    """Three steps of PGD from x + 0.001 N(0, 1), with the student in eval mode."""
    student.eval()
    generator = torch.Generator().manual_seed(1)
    # Ours first draws a seed for networks that are random themselves.
    torch.randint(0, 2**62, (), generator=generator)
    start = x + 0.001 * torch.randn(x.shape, generator=generator)
    x_adv = (x + (start - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        if climbs in ("cross_entropy", "before"):
            loss = F.cross_entropy(student(x_adv), y)
        else:
            # With 'adaptive' the gradient passes through the teacher's prediction too.
            target = teacher(x_adv) if climbs == "adaptive" else teacher(x).detach()
            loss = kl_elements(target, student(x_adv))
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = (x + (x_adv.detach() + STEP * gradient.sign() - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    return x_adv.detach()


def task_of(s: DistillSpec, student: nn.Module, teacher: nn.Module) -> RobustDistillationTask:
    optimizer = make_optimizer(student, s.optimizer)
    task = make_task(s, student, optimizer, torch.Generator().manual_seed(1), Teacher(teacher, s.compute, CPU))
    assert isinstance(task, RobustDistillationTask)
    return task


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_the_published_definition(name: str) -> None:
    objective, climbs, loss = METHODS[name]
    ours, teacher = networks()
    reference = copy.deepcopy(ours)
    s = spec(objective=objective, threat_model={"norm": "Linf", "epsilon": EPSILON})
    x, y = drawn()
    outcome = task_of(s, ours, copy.deepcopy(teacher))((x,), y, epoch=1 if climbs == "before" else 2)
    x_adv = perturbed(reference, teacher, x, y, climbs)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    reference.train()
    adversarial, natural = reference(x_adv), reference(x)
    with torch.no_grad():
        on_clean, on_adversarial = teacher(x), teacher(x_adv)
    value = loss(natural, adversarial, on_clean, on_adversarial, y)
    value.backward()
    optimizer.step()
    assert outcome.metrics["loss"] == pytest.approx(value.item(), rel=1e-6)
    for (key, mine), theirs in zip(ours.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


def test_the_scale_of_rslad_is_a_tenth_of_the_batch_mean() -> None:
    """The released mean over images and classes, against the usual one: a factor C, in the loss and in the record."""
    found = []
    for mean in ("elements", "batch"):
        student, teacher = networks()
        s = spec(objective={"loss": "rslad", "kl_mean": mean})
        x, y = drawn()
        found.append(task_of(s, student, teacher)((x,), y, epoch=2).metrics)
    assert found[1]["loss"] == pytest.approx(C * found[0]["loss"], rel=1e-12)
    assert found[1]["loss_kl"] == pytest.approx(C * found[0]["loss_kl"], rel=1e-12)


def test_what_the_inner_maximization_increases_can_be_chosen() -> None:
    """Each choice gives other images, since each climbs another loss."""
    found = []
    for maximizes in ("cross_entropy", "divergence", "adaptive_divergence"):
        student, teacher = networks()
        s = spec(objective={"loss": "rslad", "maximizes": maximizes})
        x, y = drawn()
        found.append(task_of(s, student, teacher)((x,), y, epoch=2).metrics["loss_kl"])
    assert len({round(each, 9) for each in found}) == 3


def test_weights_are_perturbed_here_too() -> None:
    student, teacher = networks()
    s = spec(objective={"loss": "rslad"}, weight_perturbation={"gamma": 0.05, "first_epoch": 1})
    plain = copy.deepcopy(student)
    x, y = drawn()
    task_of(s, student, copy.deepcopy(teacher))((x,), y, epoch=1)
    task_of(spec(objective={"loss": "rslad"}), plain, copy.deepcopy(teacher))((x,), y, epoch=1)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), plain.parameters(), strict=True))
