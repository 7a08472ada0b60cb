"""Checks of whether attacks see a network as it is: honest networks raise nothing, and each kind of lie is told."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gkl.data import ImageSet, load_test, load_train, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import Measurement, measure
from gkl.spec import Evaluation, Norm, ThreatModel
from tests.specs import NO_FILES

POINTS = 60


class Wrapped(nn.Module):
    """A network with something done to its images and its logits."""

    def __init__(
        self,
        net: nn.Module,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
        before: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


def network(
    activation: type[nn.Module] = nn.ReLU, pool: type[nn.Module] = nn.AvgPool2d, *, norm: bool = False
) -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), *([nn.BatchNorm2d(16)] * norm), activation(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(256) if norm else nn.Identity(), nn.Linear(256, 10))


def trained(net: nn.Module, *, noise: float = 0.1) -> nn.Module:
    data = load_train("digits", NO_FILES)
    x, y = unit_range(data.images), data.labels
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    descent = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(8):
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net((x[part] + noise * torch.randn_like(x[part])).clamp(0, 1)), y[part])
            descent.zero_grad()
            loss.backward()
            descent.step()
    return net.eval()


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return trained(network())


def judged(model: nn.Module, *, norm: Norm = "Linf", epsilon: float = 0.1) -> Measurement:
    evaluation = Evaluation(
        protocol="custom", attacks=("apgd-ce",), threat_model=ThreatModel(norm=norm, epsilon=epsilon), batch_size=POINTS
    )
    return measure(model.eval(), load_test("digits", NO_FILES).first(POINTS), evaluation, num_classes=10)


def rounded(net: nn.Module, to: Callable[[Tensor], Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(to(parameter))
    return net


def in_8_bits(weights: Tensor) -> Tensor:
    step = weights.abs().max() / 127
    return (weights / step).round() * step


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ReLU": lambda net: net,
    "SiLU": lambda _: trained(network(nn.SiLU)),
    "GELU": lambda _: trained(network(nn.GELU)),
    "tanh": lambda _: trained(network(nn.Tanh)),
    "max-pool": lambda _: trained(network(pool=nn.MaxPool2d)),
    "BatchNorm and LayerNorm": lambda _: trained(network(norm=True)),
    "linear": lambda _: trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))),
    "naturally trained": lambda _: trained(network(), noise=0.0),
    "normalization inside": lambda net: Wrapped(trained(network()), before=lambda x: (x - 0.3) / 0.4),
    "logits times 100": lambda net: Wrapped(net, lambda logits: 100 * logits),
    "logits times .01": lambda net: Wrapped(net, lambda logits: 0.01 * logits),
    "weights rounded to bfloat16": lambda net: rounded(net, lambda w: w.bfloat16().float()),
    "weights rounded to 8 bits": lambda net: rounded(net, in_8_bits),
    "run in bfloat16": lambda net: copy.deepcopy(net).bfloat16(),
    "run in float64": lambda net: copy.deepcopy(net).double(),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_network_raises_nothing(kind: str, plain: nn.Module) -> None:
    verdict = judged(HONEST[kind](plain))
    assert (verdict.flags, verdict.unrankable) == ([], None)
    assert all(check.ran for check in verdict.checks), [check for check in verdict.checks if not check.ran]


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 0.6), ("L1", 2.0), ("Linf", 9e-5)])
def test_other_budgets_raise_nothing(norm: Norm, epsilon: float, plain: nn.Module) -> None:
    assert judged(plain, norm=norm, epsilon=epsilon).flags == []


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return -gradient


class Remembering(nn.Module):
    """Honest for a while, then the answer to the nearest image that it was asked first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls, self.seen = net, 0, torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if len(self.seen) == 0:
            self.seen = images.detach().clone()
        if self.calls <= 40:
            return self.net(images)
        nearest = torch.cdist(images.float().flatten(1), self.seen.float().flatten(1)).argmin(1)
        return self.net(self.seen[nearest]) + 0 * self.net(images)


class TwoFaced(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits.flip(1) if images.requires_grad else logits


def one_hot(logits: Tensor) -> Tensor:
    return nn.functional.one_hot(logits.argmax(1), 10).to(logits) + 1e-4 * logits.tanh()


LIARS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "reversed gradient": (lambda net: Wrapped(net, _Reversed.apply), "wrong_gradients"),
    "large common offset": (lambda net: Wrapped(net, lambda logits: logits + 2.0**24), "coarse"),
    "rounded input": (
        lambda net: Wrapped(net, before=lambda x: x + ((8 * x).round() / 8 - x).detach() - x + x.detach()),
        "zero_gradients",
    ),
    "remembered answers": (Remembering, "remembers"),
    "two faces": (TwoFaced, "two_faces"),
    "one-hot of the answer": (lambda net: Wrapped(net, one_hot), "cliff"),
    "noise at inference, with an offset": (
        lambda net: Wrapped(net, lambda z: z + 2.0**16 + torch.randn_like(z)),
        "randomized",
    ),
}


@pytest.mark.parametrize("kind", LIARS)
def test_a_network_that_lies_is_told_and_has_no_rank(kind: str, plain: nn.Module) -> None:
    make, flag = LIARS[kind]
    verdict = judged(make(copy.deepcopy(plain)))
    assert flag in {raised.name for raised in verdict.flags}
    assert verdict.unrankable is not None


def test_what_cannot_be_checked_is_said(plain: nn.Module) -> None:
    class OnlyFloat32(Wrapped):
        def forward(self, images: Tensor) -> Tensor:
            if images.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(images)

    verdict = judged(OnlyFloat32(plain))
    missing = {check.name: check.note for check in verdict.checks if not check.ran}
    assert {"wrong_gradients", "coarse", "cliff"} <= missing.keys()
    assert "float32 only" in missing["wrong_gradients"]
    assert verdict.unrankable is None


def test_the_points_are_drawn_anew_for_each_run(plain: nn.Module) -> None:
    assert judged(plain).checks_seed != judged(plain).checks_seed


# --- what a model may answer -------------------------------------------------------------------------------------


def _writes(images: Tensor) -> Tensor:
    images.mul_(0.5)
    return images


def _writes_by_numpy(images: Tensor) -> Tensor:
    images.detach().numpy()[...] = 0
    return images


def _raises(_: Tensor) -> Tensor:
    raise KeyError("weights")


STRANGE: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], Tensor], str]] = {
    "tuple": (lambda z: (z, z), lambda x: x, "a tuple of 2"),
    "dict": (lambda z: {"logits": z}, lambda x: x, "a dict with the keys 'logits'"),
    "None": (lambda z: None, lambda x: x, "returned None"),
    "NumPy": (lambda z: z.detach().numpy(), lambda x: x, "numpy.ndarray"),
    "another batch": (lambda z: z[:1], lambda x: x, r"shape \(1, 10\)"),
    "other classes": (lambda z: z[:, :5], lambda x: x, r"shape \(60, 5\)"),
    "whole numbers": (lambda z: z.long(), lambda x: x, "torch.int64"),
    "writes": (lambda z: z, _writes, "writes into the images"),
    "writes by NumPy": (lambda z: z, _writes_by_numpy, "writes into the images"),
    "raises": (lambda z: z, _raises, "raised KeyError"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_answer_is_refused_and_the_caller_is_left_alone(kind: str, plain: nn.Module) -> None:
    after, before, said = STRANGE[kind]
    model = Wrapped(plain, after, before).train()  # type: ignore[arg-type]
    test = load_test("digits", NO_FILES).first(POINTS)
    images = unit_range(test.images).clone()
    kept, state = images.clone(), torch.get_rng_state()
    evaluation = Evaluation(protocol="custom", attacks=("apgd-ce",), threat_model=ThreatModel(epsilon=0.1))
    with pytest.raises(InvalidInput, match=said):
        measure(model, ImageSet(images, test.labels), evaluation, num_classes=10)
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    plain.eval()


@pytest.mark.parametrize("protocol", ["standard", "plus", "rand", "clean"])
@pytest.mark.parametrize("right", [True, False])
def test_one_point_of_a_constant_model_has_a_verdict(protocol: str, right: bool) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(10)[0 if right else 1] + 0 * images.flatten(1).sum(1, keepdim=True)

    data = ImageSet(torch.from_numpy(np.full((1, 1, 8, 8), 0.5, dtype=np.float32)), torch.zeros(1, dtype=torch.int64))
    threat_model = None if protocol == "clean" else ThreatModel(epsilon=0.1)
    evaluation = Evaluation.model_validate({"protocol": protocol, "threat_model": threat_model})
    verdict = measure(Constant(), data, evaluation, num_classes=10)
    assert (verdict.clean_correct, verdict.robust_correct) == (int(right), int(right))
