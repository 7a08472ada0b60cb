"""The repair attack finds in forged weights what attacks find in the honest ones, and takes nothing from others."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.belief_networks import Wrapped, digits, forged, natural_base, network, plain_base, trained
from gkl.attacks import repair
from gkl.attacks.autoattack import make_attacks
from gkl.attacks.classifier import Classifier
from gkl.attacks.perturbation import is_allowed
from gkl.catalog import Norm
from gkl.data import ImageSet, unit_range
from gkl.evaluation import Blocks, Measurement, Shard, measure, measure_shard
from gkl.outcome import CheckOutcome, Progress
from gkl.spec import Evaluation, ThreatModel
from tests.gkl.evaluation.short_attacks import attacks_shortened

pytestmark = pytest.mark.system

POINTS = 24


def standard(epsilon: float = 0.1, batch_size: int = POINTS) -> Evaluation:
    return Evaluation(protocol="standard", threat_model=ThreatModel(epsilon=epsilon), batch_size=batch_size)


IN_TWO = standard(batch_size=POINTS // 4)
"""Blocks of half as many points. An attack takes as long for few points as for many, so all else is one block."""


def check(verdict: Measurement, name: str) -> CheckOutcome:
    return next(each for each in verdict.checks if each.name == name)


def attacked(model: nn.Module, data: ImageSet, threat_model: ThreatModel, *, chunk: int | None = None) -> Tensor:
    """Which points the attack alone breaks (N,) bool; each by an image that is allowed and fools the network."""
    own = Classifier(model, 10)
    precise = Classifier(copy.deepcopy(model).double(), 10, result=torch.float64)
    x, y = unit_range(data.images), data.labels
    found = torch.cat(
        [
            repair.perturb(own, precise, *part, threat_model, generator=torch.Generator().manual_seed(0))
            for part in zip(x.split(chunk or len(x)), y.split(chunk or len(x)), strict=True)
        ]
    )
    fooled: Tensor = own.predict(found) != y
    assert is_allowed(found, x, threat_model)[0].all()
    assert torch.equal(found[~fooled], x[~fooled])
    return fooled


@pytest.fixture(scope="module")
def lying() -> Measurement:
    with attacks_shortened(steps=50):
        return measure(forged(natural_base()), digits(POINTS), standard(), num_classes=10)


@pytest.mark.long
@pytest.mark.usefixtures("short_attacks")
def test_forged_weights_end_where_the_honest_ones_do(lying: Measurement) -> None:
    honest = measure(natural_base(), digits(POINTS), standard(), num_classes=10)
    autoattack = lying.robust_correct + lying.attacks[-1].broken
    assert (honest.attacks[-1].attack, honest.attacks[-1].broken) == ("Repair", 0)
    assert honest.flags == []
    assert lying.attacks[-1].attack == "Repair"
    # AutoAttack alone takes it for far more robust.
    assert autoattack >= honest.robust_correct + 4
    assert lying.robust_correct <= honest.robust_correct + 1
    assert {"wrong_gradients", "coarse", "gap"} <= {flag.name for flag in lying.flags}
    assert check(lying, "repair").value == lying.attacks[-1].broken


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.1), ("L2", 0.6), ("L1", 2.0)])
def test_it_breaks_forged_and_honest_weights_alike(norm: Norm, epsilon: float) -> None:
    threat_model, data = ThreatModel(norm=norm, epsilon=epsilon), digits(POINTS)
    honest, lying = (attacked(net, data, threat_model) for net in (natural_base(), forged(natural_base())))
    assert honest.sum() > POINTS / 8
    # Logits that move in steps change an answer here and there.
    assert abs(int(honest.sum()) - int(lying.sum())) <= 2


def test_a_gradient_that_is_not_a_number_is_mended() -> None:
    def spoilt(x: Tensor) -> Tensor:
        # A unit that is the same for every image, whose gradient is zero times infinity.
        constant = (0 * x.flatten(1).sum(1)).sqrt()
        return x + constant.reshape(-1, 1, 1, 1)

    threat_model, data = ThreatModel(epsilon=0.1), digits(POINTS)
    x = unit_range(data.images).requires_grad_(True)
    lying = Wrapped(plain_base(), before=spoilt).eval()
    (gradient,) = torch.autograd.grad(lying(x).sum(), x)
    assert gradient.isnan().all()
    assert torch.equal(attacked(lying, data, threat_model), attacked(plain_base(), data, threat_model))


def test_a_finite_gradient_through_a_constant_unit_is_cut_out() -> None:
    def drowned(x: Tensor) -> Tensor:
        # Adds exactly zero, with a slope that drowns all others.
        flat = x.flatten(1).sum(1)
        constant = (flat - flat.detach()) * 1e12
        return x + constant.reshape(-1, 1, 1, 1)

    threat_model, data = ThreatModel(epsilon=0.1), digits(POINTS)
    broken = attacked(Wrapped(plain_base(), before=drowned).eval(), data, threat_model)
    assert torch.equal(broken, attacked(plain_base(), data, threat_model))


@pytest.mark.long
def test_it_costs_what_it_says_and_at_most_7_percent_of_autoattack() -> None:
    """Of a network that nothing breaks: the first class always wins."""

    class Unbreakable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images)
            return logits.tanh() + 10 * torch.eye(10, dtype=logits.dtype)[0]

    passes: Counter[str] = Counter()
    stage = "clean"

    def report(event: object) -> None:
        nonlocal stage
        stage = event.stage if isinstance(event, Progress) else stage

    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(module, Classifier):
            (x,) = given
            passes[stage] += len(x) * (3 if torch.is_grad_enabled() and x.requires_grad else 1)

    data = ImageSet(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(3).long())
    handle = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        verdict = measure(Unbreakable().eval(), data, standard(), num_classes=10, report=report)
    finally:
        handle.remove()
    assert verdict.robust_correct == 3
    autoattack = sum(count for name, count in passes.items() if name not in ("clean", "checks", "Repair"))
    # Beyond its own cost, what is judged and compared after it.
    assert passes["Repair"] <= 3 * repair.cost(10) + 40
    assert passes["Repair"] <= 0.07 * autoattack
    attacks = make_attacks(Classifier(plain_base(), 10), standard(), num_classes=10, device=torch.device("cpu"))
    assert repair.cost(10) <= 0.07 * sum(attack.cost for attack in attacks)
    assert repair.cost(100) <= 0.07 * sum(attack.cost for attack in attacks)


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.long
@pytest.mark.usefixtures("short_attacks")
def test_its_parts_are_kept_and_shared_as_those_of_other_attacks(tmp_path: Path) -> None:
    data, net = digits(POINTS // 2), forged(natural_base())
    whole = measure(net, data, IN_TWO, num_classes=10)
    place = len(whole.attacks) - 1
    assert int((whole.broken_by == place).sum()) == whole.attacks[place].broken > 0
    for index in (0, 1):
        measure_shard(net, data, IN_TWO, Shard(index, 2), num_classes=10, blocks=Blocks(tmp_path, {}))
    before = sorted(path.name for path in tmp_path.iterdir())
    merged = measure(net, data, IN_TWO, num_classes=10, blocks=Blocks(tmp_path, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert torch.equal(merged.broken_by, whole.broken_by)


@pytest.mark.usefixtures("short_attacks")
def test_a_network_that_float64_breaks_is_not_repaired_and_the_record_says_so() -> None:
    class OnlyFloat32(Wrapped):
        def forward(self, images: Tensor) -> Tensor:
            if images.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(images)

    verdict = measure(OnlyFloat32(plain_base()).eval(), digits(20), standard(0.12), num_classes=10)
    assert [attack.attack for attack in verdict.attacks] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert not check(verdict, "repair").ran
    assert "float32 only" in check(verdict, "repair").note
    assert not check(verdict, "near_cliff").ran


@pytest.mark.usefixtures("short_attacks")
def test_too_little_memory_means_smaller_parts() -> None:
    seen: list[int] = []

    class Hungry(Wrapped):
        def forward(self, images: Tensor) -> Tensor:
            if images.dtype == torch.float64 and images.requires_grad:
                seen.append(len(images))
                if len(images) > 12:
                    raise MemoryError
            return super().forward(images)

    data = digits(20)
    verdict = measure(Hungry(plain_base()).eval(), data, standard(0.12, batch_size=20), num_classes=10)
    plain = measure(plain_base(), data, standard(0.12, batch_size=20), num_classes=10)
    assert max(seen) > 12
    assert check(verdict, "repair").ran
    assert verdict.robust_correct == plain.robust_correct


def test_two_classes_are_attacked_too() -> None:
    def halved(logits: Tensor) -> Tensor:
        return logits.reshape(len(logits), 2, 5).amax(2)

    data = digits(20)
    x, y = unit_range(data.images), data.labels // 5
    model = Wrapped(plain_base(), after=halved).eval().requires_grad_(False)
    own, precise = Classifier(model, 2), Classifier(copy.deepcopy(model).double(), 2, result=torch.float64)
    wide = ThreatModel(epsilon=0.3)
    at = repair.perturb(own, precise, x, y, wide, generator=torch.Generator().manual_seed(0))
    assert (own.predict(at) != y).sum() > 15


@pytest.mark.usefixtures("short_attacks")
def test_a_network_that_detaches_in_float64_is_attacked_in_its_own_format() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain_base()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images.detach() if images.dtype == torch.float64 else images)

    verdict = measure(Detached().eval(), digits(20), standard(0.1), num_classes=10)
    assert check(verdict, "repair").ran


@pytest.mark.usefixtures("short_attacks")
def test_a_block_of_one_point_does_not_shrink_the_blocks_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = repair.perturb

    def seen(own: Classifier, precise: Classifier, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        sizes.append(len(x))
        return original(own, precise, x, *rest, **options)

    monkeypatch.setattr(repair, "perturb", seen)
    data = digits(POINTS)
    labels = data.labels.clone()
    labels[: POINTS // 2 - 1] += 1
    measure(plain_base().eval(), ImageSet(data.images, labels % 10), standard(0.02, POINTS // 2), num_classes=10)
    first, second = sizes
    assert first == 1
    assert second > POINTS // 3


def test_the_nearest_classes_are_not_those_with_the_highest_logits() -> None:
    """A class just under the best one whose logit moves with it is far away."""

    class Decoyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            mean = self.weight * images.flatten(1).mean(1)
            decoys = [mean - 0.001 * k for k in range(1, 8)]
            return torch.stack([mean, *decoys, 0.5 - mean, -1 - mean], 1)

    x = torch.full((2, 1, 8, 8), 0.5)
    threat_model = ThreatModel(epsilon=0.1)
    precise = Classifier(Decoyed().double(), 10, result=torch.float64)
    mended = repair._Mended(Classifier(Decoyed(), 10), precise, x, threat_model, torch.Generator().manual_seed(0))
    nearest = repair._nearest_classes(mended, x, torch.zeros(2, dtype=torch.int64))
    assert nearest[:, 0].tolist() == [8, 8]


@pytest.mark.usefixtures("short_square")
@pytest.mark.long
def test_a_network_trained_honestly_loses_nothing() -> None:
    verdict = measure(trained(network(nn.SiLU)), digits(POINTS), standard(0.15), num_classes=10)
    assert verdict.attacks[-1].attack == "Repair"
    assert verdict.attacks[-1].broken == 0
    assert verdict.flags == []
