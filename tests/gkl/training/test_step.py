"""One training step against the same step written out."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.errors import InvalidInput
from gkl.losses import gkl_loss
from gkl.models import build_model
from gkl.recipes.adversarial import digits
from gkl.spec import Compute, Selection, Sgd, ThreatModel, TrainSpec
from gkl.training.network import Network
from gkl.training.objective import RobustObjective
from gkl.training.optimizers import make_optimizer
from gkl.training.selection import held_out_accuracy, negative_margin
from gkl.training.tasks import AdversarialTask

CPU = torch.device("cpu")


def spec(**changes: Any) -> TrainSpec:
    base = digits().model_dump(mode="json") | {"architecture": "tiny_cnn"}
    return TrainSpec.model_validate(base | changes)


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def stepped(spec: TrainSpec, model: nn.Module, *, views: int = 1, perturb_weights: bool = False) -> AdversarialTask:
    task = AdversarialTask(spec, model, make_optimizer(model, spec.optimizer), torch.Generator().manual_seed(1))
    x, y = batch()
    task.step((x, x.flip(3))[:views], y, epsilon=0.1, perturb_weights=perturb_weights)
    return task


def written_out(spec: TrainSpec, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """TRADES with GKL as the released scripts have it: natural logits anew at every inner step, uniform prior."""
    weights = torch.full((len(x), 10), 0.1)
    wmse_weight = spec.inner_maximization.wmse_weight
    model.eval()
    generator = torch.Generator().manual_seed(1)
    # Ours first draws a seed for networks that are random themselves.
    torch.randint(0, 2**62, (), generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    x_adv = (x + 0.001 * noise).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    for _ in range(spec.inner_maximization.num_steps):
        x_adv.requires_grad_()
        loss = gkl_loss(model(x_adv), model(x), weights, wmse_weight=wmse_weight, ce_weight=1.0)
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + 0.1 * spec.inner_maximization.relative_step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - 0.1), x + 0.1).clamp(0, 1)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    adversarial, natural = model(x_adv), model(x)
    loss = F.cross_entropy(natural, y) + gkl_loss(adversarial, natural, weights, wmse_weight=20.0, ce_weight=4.0)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("wmse_weight", [0.0, 1.0])
def test_a_step_equals_the_same_step_written_out(wmse_weight: float) -> None:
    s = spec(inner_maximization={"num_steps": 3, "relative_step_size": 0.5, "wmse_weight": wmse_weight})
    torch.manual_seed(0)
    ours = build_model("tiny_cnn", "digits")
    reference = copy.deepcopy(ours)
    stepped(s, ours)
    written_out(s, reference, *batch())
    for (name, mine), theirs in zip(ours.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_a_second_view_counts_with_its_weight_and_not_in_the_prior() -> None:
    s = spec(augmentation={"kind": "cutout", "padding": 0, "flip": False, "robust_weight": 0.25})
    objective = RobustObjective(s.objective, num_classes=10, device=CPU)
    generator = torch.Generator().manual_seed(0)
    adversarial, natural = torch.randn(2, 64, 10, generator=generator)
    y = batch()[1].repeat(2)
    value = objective(adversarial, natural, y, second_view_weight=0.25)
    halves = [objective(adversarial[part], natural[part], y[part]) for part in (slice(32), slice(32, None))]
    robust = [half.total - half.parts["natural"] for half in halves]
    expected = F.cross_entropy(natural, y) + robust[0] + 0.25 * robust[1]
    torch.testing.assert_close(value.total, expected)
    step = stepped(s, build_model("tiny_cnn", "digits"), views=2)
    assert step.objective.prior.state()["counts"].sum() == 32


def test_weight_perturbation_leaves_the_weights_where_the_update_alone_puts_them() -> None:
    """With a learning rate of next to nothing, the perturbation is all that could be left of the step."""
    torch.manual_seed(0)
    model = build_model("tiny_cnn", "digits")
    before = {name: p.clone() for name, p in model.named_parameters()}
    s = spec(weight_perturbation={"gamma": 0.5}, optimizer={"learning_rate": 1e-12})
    stepped(s, model, perturb_weights=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-5, atol=1e-7)
    # Each batch is counted once, in spite of the perturbation's own forward passes.
    counts = [t for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [2, 2]


def test_decay_leaves_batch_norm_alone_if_asked_to() -> None:
    model = build_model("tiny_cnn", "digits")
    spared = make_optimizer(model, Sgd(decay_batch_norm=False)).param_groups
    assert [group["weight_decay"] for group in spared] == [5e-4, 0.0]
    assert [len(group["params"]) for group in spared] == [6, 4]
    assert [len(group["params"]) for group in make_optimizer(model, Sgd()).param_groups] == [10]


@pytest.mark.parametrize("maximizes", ["cross_entropy", "margin"])
def test_held_out_accuracy_of_a_linear_network_is_its_closed_form(maximizes: Any) -> None:
    """PGD finds the worst image of a linear two-class network: the margin falls by epsilon * ||w||_1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 4, 4, generator=generator) * 0.6 + 0.2
    weights = torch.randn(16, generator=generator)
    bias = 0.01 - (x.flatten(1) @ weights).median()
    margin = x.flatten(1) @ weights + bias
    y = (torch.rand(200, generator=generator) < 0.9).long() * (margin > 0).long()

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model.load_state_dict({"1.weight": torch.stack([-weights, weights]), "1.bias": torch.stack([-bias, bias])})

    signed = torch.where(y == 1, margin, -margin)
    expected = (signed - 0.05 * weights.abs().sum() > 0).double().mean().item()
    selection = Selection(num_images=200, num_steps=20, maximizes=maximizes)
    accuracy = held_out_accuracy(
        Network(model, Compute(), CPU), x, y, selection, ThreatModel(epsilon=0.05), batch_size=64, seed=0
    )
    assert accuracy.clean == pytest.approx((signed > 0).double().mean().item())
    assert accuracy.robust == pytest.approx(expected)
    assert 0 < accuracy.robust < accuracy.clean


def test_the_margin_is_that_to_the_strongest_other_class_and_ends_at_0() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 7, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, 7, (64,), generator=generator)
    y[:20] = logits[:20].argmax(1)
    value = negative_margin(logits, y)
    (gradient,) = torch.autograd.grad(value, logits)
    expected, expected_gradient = 0.0, torch.zeros_like(logits)
    for row, label in enumerate(y.tolist()):
        values = logits[row].tolist()
        second = max((c for c in range(7) if c != label), key=values.__getitem__)
        if values[label] > values[second]:
            expected -= values[label] - values[second]
            expected_gradient[row, label], expected_gradient[row, second] = -1.0, 1.0
    assert value.item() == pytest.approx(expected, rel=1e-13)
    assert torch.equal(gradient, expected_gradient)
    assert 20 <= (gradient != 0).any(1).sum() < 64


@pytest.mark.system
def test_a_compiled_network_gives_the_same_logits_and_gradients() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        with pytest.raises(InvalidInput, match="needs a C\\+\\+ compiler"):
            Network(build_model("tiny_cnn", "digits"), Compute(compile=True), CPU)
        return
    model = build_model("tiny_cnn", "digits").eval().requires_grad_(False)
    x = batch()[0].requires_grad_()
    results = []
    for compute in (Compute(), Compute(compile=True)):
        logits = Network(model, compute, CPU)(x)
        results.append((logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
