"""The verdict against what is known: closed forms, pyautoattack's own runs, real networks and real bad input."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyautoattack import AutoAttack
from torch import Tensor, nn

from gkl.attacks import autoattack
from gkl.attacks.autoattack import Attack, dlr_loss, make_attacks, margin_loss
from gkl.attacks.classifier import Classifier
from gkl.catalog import Norm
from gkl.data import ImageSet, load_test, load_train
from gkl.errors import InvalidInput, Stopped
from gkl.evaluation import Blocks, Measurement, Shard, measure, measure_shard, progress
from gkl.evaluation.measurement import run_stages
from gkl.evaluation.merging import measurement
from gkl.evaluation.points import MISCLASSIFIED, STANDS
from gkl.evaluation.run import Run
from gkl.models import build_model, load_model, load_weights
from gkl.outcome import AttackFinished, AttackSoFar, Event, PointsSoFar, Progress
from gkl.spec import AttackName, Evaluation, ThreatModel
from tests.gkl.evaluation.models import Around, Detached, NanNear, Noisy, Quantized, TwoSided, two_sided_problem
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.specs import NO_FILES

CPU = torch.device("cpu")
ATTACKS: dict[str, AttackName] = {
    "APGD-CE": "apgd-ce",
    "APGD-DLR": "apgd-dlr",
    "APGD-T": "apgd-t",
    "FAB": "fab",
    "FAB-T": "fab-t",
    "Square": "square",
}


def under(norm: Norm = "Linf", epsilon: float = 0.2, **more: object) -> Evaluation:
    return Evaluation(threat_model=ThreatModel(norm=norm, epsilon=epsilon), **more)  # type: ignore[arg-type]


def quick(norm: Norm = "Linf", epsilon: float = 0.2, **more: object) -> Evaluation:
    """One attack, where it does not matter which."""
    return under(norm, epsilon, **{"protocol": "custom", "attacks": ("apgd-ce",), **more})


TWO: tuple[AttackName, ...] = ("apgd-ce", "apgd-dlr")
"""Of which the second sees only what the first has left."""


def test_digits(count: int) -> ImageSet:
    return load_test("digits", NO_FILES).first(count)


test_digits.__test__ = False  # type: ignore[attr-defined]


def same(one: Measurement, other: Measurement) -> None:
    """Point by point, example by example; only the seconds may differ."""
    for name in ("labels", "prediction", "broken_by", "index", "adversarial", "adversarial_prediction"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.perturbation_norm.nan_to_num(-1), other.perturbation_norm.nan_to_num(-1))
    for a, b in zip(one.attacks, other.attacks, strict=True):
        assert a.model_copy(update={"seconds": 0.0}) == b.model_copy(update={"seconds": 0.0})
    assert (one.flags, one.answers_vary) == (other.flags, other.answers_vary)


# --- what is known in closed form --------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize(("norm", "epsilon", "dual"), [("Linf", 0.03, 1), ("L2", 0.19, 2), ("L1", 0.6, torch.inf)])
@pytest.mark.usefixtures("short_square")
def test_a_linear_models_verdict_is_its_closed_form(norm: Norm, epsilon: float, dual: float) -> None:
    model, data, score = two_sided_problem()
    # The most that a perturbation of norm epsilon can move the score: Hoelder's inequality, an equality here.
    margin = score - epsilon * model.weight.detach().norm(dual)
    assert margin.abs().min() > 1e-3, "no point so close that rounding decides"
    verdict = measure(model, data, under(norm, epsilon, batch_size=60), num_classes=10)
    robust = margin > 0
    assert 5 < robust.sum() < 55
    assert torch.equal(verdict.broken_by == STANDS, robust)


@pytest.mark.system
@pytest.mark.parametrize("classes", [2, 3, 4, *(pytest.param(many, marks=pytest.mark.long) for many in (5, 9))])
@pytest.mark.usefixtures("short_square")
def test_few_classes_are_attacked_all_the_same(classes: int) -> None:
    """AutoAttack raises IndexError there."""
    model, data, score = two_sided_problem(classes, points=12)
    margin = score - 0.03 * model.weight.detach().norm(1)
    protocol = {"protocol": "custom", "attacks": ("apgd-dlr", "apgd-t", "fab-t", "square")}
    verdict = measure(model, data, under("Linf", 0.03, **protocol), num_classes=classes)
    assert torch.equal(verdict.broken_by == STANDS, margin > 0)
    dlr, targeted, fab, _ = verdict.attacks
    assert targeted.targets == fab.targets == classes - 1
    assert dlr.loss == ("margin" if classes == 2 else "dlr")
    assert targeted.loss == ("dlr-targeted" if classes >= 4 else "ce-targeted")
    # Each of them alone finds all there is to find.
    for name in ("apgd-dlr", "apgd-t", "fab-t"):
        alone = measure(model, data, under("Linf", 0.03, protocol="custom", attacks=(name,)), num_classes=classes)
        assert torch.equal(alone.broken_by == STANDS, margin > 0), name


def test_dlr_is_pyautoattacks() -> None:
    logits, labels = torch.randn(50, 10), torch.arange(50) % 10
    reference = AutoAttack(nn.Identity(), eps=0.1).apgd.dlr_loss(logits, labels)
    assert torch.allclose(dlr_loss(logits, labels), reference)
    assert torch.equal(margin_loss(logits, labels) > 0, logits.argmax(1) != labels)


# --- parity with pyautoattack ------------------------------------------------------------------------------------


def reference_flags(model: nn.Module, data: ImageSet, evaluation: Evaluation, block_size: int) -> dict[str, Tensor]:
    """Which points stand after each attack, by pyautoattack's own run_standard_evaluation on each block."""
    assert evaluation.threat_model is not None
    after: dict[str, list[Tensor]] = {name: [] for name in evaluation.attack_names}
    for x, y in zip(data.images.split(block_size), data.labels.split(block_size), strict=True):
        with torch.no_grad():
            standing = model(x).argmax(1) == y
        reference = autoattack.AutoAttack(
            model,
            norm=evaluation.threat_model.norm,
            eps=evaluation.threat_model.epsilon,
            seed=evaluation.seed,
            version=evaluation.protocol,
            attacks=list(evaluation.attack_names) if evaluation.protocol == "custom" else None,
        )
        reference.logger = reference.apgd_targeted.logger = reference.apgd.logger = logging.getLogger("none")
        for name in evaluation.attack_names:
            if standing.any():
                reference.attacks_to_run = [name]
                x_adv, _ = reference.run_standard_evaluation(x[standing], y[standing], batch_size=block_size)
                with torch.no_grad():
                    standing[standing.clone()] = model(x_adv).argmax(1) == y[standing]
            after[name].append(standing.clone())
    return {name: torch.cat(parts) for name, parts in after.items()}


def flags(verdict: Measurement) -> dict[str, Tensor]:
    """Which points stand after each of AutoAttack's attacks."""
    names = [attack.attack for attack in verdict.attacks]
    return {
        ATTACKS[name]: (verdict.broken_by == STANDS) | (verdict.broken_by > position)
        for position, name in enumerate(names)
        if name in ATTACKS
    }


def assert_parity(model: nn.Module, data: ImageSet, evaluation: Evaluation) -> Measurement:
    verdict = measure(model, data, evaluation, num_classes=10)
    expected = reference_flags(model, data, evaluation, evaluation.batch_size)
    for name, found in flags(verdict).items():
        assert torch.equal(found, expected[name]), f"other points stand after {name}"
    # What comes after AutoAttack finds a few points more of these small networks, and not so many that it says so.
    assert "gap" not in {flag.name for flag in verdict.flags}
    return verdict


@pytest.mark.usefixtures("short_attacks")
def test_some_points_stand_after_every_attack_as_in_pyautoattack(robust_model: nn.Module) -> None:
    """Both in few steps. The next tests take all, on 500 points of two networks, in L2 too, which takes minutes."""
    verdict = assert_parity(robust_model, test_digits(12), under("Linf", 0.2, batch_size=12, seed=3))
    assert 0 < verdict.robust_correct < verdict.clean_correct


@pytest.mark.long
@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.2), ("L2", 0.8)])
def test_the_same_points_stand_after_every_attack_as_in_pyautoattack(
    robust_model: nn.Module, norm: Norm, epsilon: float
) -> None:
    """500 points in blocks of 250, of which the last is shorter."""
    data = load_train("digits", NO_FILES)
    assert isinstance(data, ImageSet)
    verdict = assert_parity(robust_model, data.first(500), under(norm, epsilon, batch_size=260, seed=3))
    assert all(attack.broken for attack in verdict.attacks[:2]), "attacks have something to agree on"
    assert 0 < verdict.robust_correct < 300


@pytest.mark.long
@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.1), ("L2", 0.8)])
def test_the_same_on_a_network_that_is_not_robust(plain_model: nn.Module, norm: Norm, epsilon: float) -> None:
    data = load_train("digits", NO_FILES)
    assert isinstance(data, ImageSet)
    verdict = assert_parity(plain_model, data.first(500), under(norm, epsilon, batch_size=250))
    assert verdict.robust_correct < 0.5 * verdict.clean_correct


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["plus", "rand"])
def test_the_other_versions_agree_too(robust_model: nn.Module, protocol: str) -> None:
    verdict = assert_parity(robust_model, test_digits(15), under(protocol=protocol, seed=1))
    found = [ATTACKS[attack.attack] for attack in verdict.attacks if attack.attack in ATTACKS]
    assert found == list(under(protocol=protocol).attack_names)


@pytest.mark.long
def test_l1_agrees_too(robust_model: nn.Module) -> None:
    verdict = assert_parity(robust_model, test_digits(30), under("L1", 0.8))
    assert 0 < verdict.robust_correct < verdict.clean_correct


# --- real networks -----------------------------------------------------------------------------------------------


def cifar10_images() -> ImageSet:
    """The 20 real CIFAR-10 test images of the package foolbox, whose labels are in their names."""
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None
    assert spec.origin is not None
    paths = sorted((Path(spec.origin).parent / "data").glob("cifar10_*.png"))
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    return ImageSet(torch.stack(images), torch.tensor([int(path.stem.split("_")[-1]) for path in paths]))


@pytest.fixture(scope="module")
def resnet_18() -> nn.Module:
    """Pyautoattack's own example, a state dict of torch.save, in our registry's architecture."""
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None
    assert spec.origin is not None
    model = build_model("resnet_18", "cifar10")
    load_weights(model, Path(spec.origin).parent / "examples" / "model_test.pt")
    return model.eval().to(memory_format=torch.channels_last)


@pytest.mark.long
def test_a_real_network_on_real_images_has_no_robustness(resnet_18: nn.Module) -> None:
    verdict = measure(resnet_18, cifar10_images(), under("Linf", 8 / 255), num_classes=10)
    assert (verdict.num_points, verdict.clean_correct, verdict.robust_correct) == (20, 20, 0)
    assert [attack.broken for attack in verdict.attacks] == [20, 0, 0, 0, 0]
    assert verdict.flags == []


@pytest.mark.system
@pytest.mark.parametrize(
    ("norm", "epsilon", "points"),
    [
        pytest.param("Linf", 0.5 / 255, [2], marks=pytest.mark.long),
        pytest.param("Linf", 0.5 / 255, [2, 7], marks=pytest.mark.long),
        pytest.param("Linf", 1 / 255, [0, 2], marks=pytest.mark.long),
        pytest.param("L2", 0.25, [0, 1], marks=pytest.mark.long),
    ],
)
def test_points_that_fall_to_the_smallest_budgets(
    resnet_18: nn.Module, norm: Norm, epsilon: float, points: list[int]
) -> None:
    everything = cifar10_images()
    data = ImageSet(everything.images[points].float() / 255, everything.labels[points])
    evaluation = under(norm, epsilon, protocol="custom", attacks=("apgd-ce",))
    verdict = assert_parity(resnet_18, data, evaluation)
    assert verdict.robust_correct == 0
    assert float(verdict.perturbation_norm.max()) <= epsilon + 1e-5


@pytest.mark.long
def test_a_quantized_input_is_broken_by_square_alone(robust_model: nn.Module) -> None:
    """Masked gradients: half the accuracy is left after three attacks, and flags say why not to trust it."""
    verdict = measure(Quantized(robust_model).eval(), test_digits(60), under("Linf", 0.3), num_classes=10)
    square = verdict.attacks[3]
    assert square.points > 0.8 * verdict.clean_correct, "attacks that follow gradients find little"
    assert square.survivors < 0.5 * square.points
    assert {flag.name for flag in verdict.flags} - {"coarse"} == {"zero_gradients", "square_improved", "gap"}
    assert next(flag.value for flag in verdict.flags if flag.name == "zero_gradients") == 1.0


# --- blocks, interruptions, shards -------------------------------------------------------------------------------


IN_BLOCKS = quick(batch_size=16, attacks=TWO)


@pytest.fixture(scope="module")
def whole(robust_weights: Path) -> Measurement:
    """By two attacks on three blocks, at once and undisturbed."""
    model = load_model("tiny_cnn", "digits", robust_weights, None).eval()
    with attacks_shortened():
        return measure(model, test_digits(40), IN_BLOCKS, num_classes=10)


# While it is checked, in the first attack's first block, and in a later one.
@pytest.mark.parametrize("calls", [15, 60, 250])
@pytest.mark.usefixtures("short_attacks")
def test_a_resumed_evaluation_equals_an_uninterrupted_one(
    robust_model: nn.Module, whole: Measurement, tmp_path: Path, calls: int
) -> None:
    data, evaluation = test_digits(40), IN_BLOCKS
    counted = iter(range(1_000_000))
    with pytest.raises(Stopped):
        measure(
            robust_model,
            data,
            evaluation,
            num_classes=10,
            blocks=Blocks(tmp_path, {"a": 1}),
            should_stop=lambda: next(counted) >= calls,
        )
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    resumed = measure(robust_model, data, evaluation, num_classes=10, blocks=Blocks(tmp_path, {"a": 1}))
    same(resumed, whole)
    assert all(path.read_bytes() == content for path, content in left.items()), "no finished part was run again"


@pytest.mark.usefixtures("short_attacks")
def test_shards_make_the_same_verdict_in_any_order(robust_model: nn.Module, whole: Measurement, tmp_path: Path) -> None:
    data, evaluation = test_digits(40), IN_BLOCKS
    for index in (1, 0):
        # A process of its own each, as far as they know of each other.
        blocks = Blocks(tmp_path, {})
        measure_shard(robust_model, data, evaluation, Shard(index, 2), num_classes=10, blocks=blocks)
    calls: list[int] = []
    hook = robust_model.register_forward_pre_hook(lambda *_: calls.append(1))
    merged = measure(robust_model, data, evaluation, num_classes=10, blocks=Blocks(tmp_path, {}))
    hook.remove()
    same(merged, whole)
    assert calls == [], "merging asks the model nothing"


@pytest.mark.usefixtures("short_attacks")
def test_a_randomized_models_parts_depend_on_the_block_alone_too(robust_model: nn.Module, tmp_path: Path) -> None:
    model, data = Noisy(robust_model).eval(), test_digits(24)
    evaluation = under(protocol="custom", attacks=("apgd-ce",), batch_size=8, seed=5)
    torch.manual_seed(1)
    whole = measure(model, data, evaluation, num_classes=10)
    for index in (1, 0):
        torch.manual_seed(index + 2)
        measure_shard(model, data, evaluation, Shard(index, 2), num_classes=10, blocks=Blocks(tmp_path, {}))
    same(measure(model, data, evaluation, num_classes=10, blocks=Blocks(tmp_path, {})), whole)


@pytest.mark.usefixtures("short_attacks")
def test_seconds_of_finished_parts_are_kept(robust_model: nn.Module, tmp_path: Path) -> None:
    first = measure(robust_model, test_digits(20), quick(), num_classes=10, blocks=Blocks(tmp_path, {}))
    again = measure(robust_model, test_digits(20), quick(), num_classes=10, blocks=Blocks(tmp_path, {}))
    assert [a.seconds for a in again.attacks] == [a.seconds for a in first.attacks]
    assert again.seconds == first.seconds > 0


@pytest.mark.usefixtures("short_attacks")
def test_parts_of_another_evaluation_are_refused(robust_model: nn.Module, tmp_path: Path) -> None:
    measure(robust_model, test_digits(8), quick(), num_classes=10, blocks=Blocks(tmp_path, {"seed": 1}))
    with pytest.raises(InvalidInput, match="its seed is 1, not 2"):
        measure(robust_model, test_digits(8), quick(), num_classes=10, blocks=Blocks(tmp_path, {"seed": 2}))


@pytest.mark.usefixtures("short_attacks")
def test_a_damaged_part_is_run_again(robust_model: nn.Module, tmp_path: Path) -> None:
    whole = measure(robust_model, test_digits(20), quick(), num_classes=10, blocks=Blocks(tmp_path, {}))
    for path in sorted(tmp_path.iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:-5])
    same(measure(robust_model, test_digits(20), quick(), num_classes=10, blocks=Blocks(tmp_path, {})), whole)


@pytest.mark.usefixtures("short_attacks")
def test_a_verdict_does_not_depend_on_how_many_points_come_after(robust_model: nn.Module) -> None:
    evaluation = quick(batch_size=16)
    few = measure(robust_model, test_digits(32), evaluation, num_classes=10)
    many = measure(robust_model, test_digits(48), evaluation, num_classes=10)
    assert torch.equal(few.broken_by, many.broken_by[:32])


# --- memory ------------------------------------------------------------------------------------------------------


class Greedy(Around):
    """Takes 4 MiB for each image."""

    def forward(self, x: Tensor) -> Tensor:
        big = torch.ones(len(x), 2**20) * x.mean()
        logits: Tensor = self.inner(x) + 0 * big.sum()
        return logits


_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch._dynamo  # torch.utils.checkpoint loads it when it is first called
from gkl.evaluation import Blocks, measure
from gkl.models import load_model
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.gkl.evaluation.test_measurement import Greedy, quick, test_digits

model = Greedy(load_model("tiny_cnn", "digits", Path(sys.argv[1]), None).eval())
evaluation = quick(epsilon=0.9, batch_size=6)
with attacks_shortened():
    measure(model.inner, test_digits(6), evaluation, num_classes=10)
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 2**20,) * 2)
blocks = Blocks(Path(sys.argv[2]), {})
with attacks_shortened():
    verdict = measure(model.eval(), test_digits(6), evaluation, num_classes=10, blocks=blocks)
print(verdict.batch_size_used, verdict.broken_by.tolist())
"""


@pytest.mark.long
@pytest.mark.usefixtures("short_attacks")
def test_too_little_memory_halves_the_batch_and_keeps_the_verdict(
    robust_model: nn.Module, robust_weights: Path, tmp_path: Path
) -> None:
    """In a process that really may not have more; 6 images would need 24 MiB and their gradients as much."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_LITTLE_MEMORY, str(robust_weights), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        # Address space is what is limited: no arenas of other threads, and what is freed goes back at once.
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    assert done.returncode == 0, done.stderr
    used, broken_by = done.stdout.split(maxsplit=1)
    assert int(used) in (3, 1)
    evaluation = quick(epsilon=0.9, batch_size=6)
    expected = measure(robust_model, test_digits(6), evaluation, num_classes=10)
    assert broken_by.strip() == str(expected.broken_by.tolist())
    # What was recorded is what a resumption starts with.
    again = measure(robust_model, test_digits(6), evaluation, num_classes=10, blocks=Blocks(tmp_path, {}))
    assert again.batch_size_used == int(used)


# --- inputs of all kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.usefixtures("short_attacks")
def test_images_of_any_format_and_layout_work(robust_model: nn.Module, dtype: torch.dtype) -> None:
    data = test_digits(20)
    exact = (data.images * 16).round() / 16
    images = (exact * 255).round().to(dtype) if dtype == torch.uint8 else exact.to(dtype)
    expected = measure(robust_model, ImageSet(exact, data.labels), quick(), num_classes=10)
    for layout in (images.contiguous(memory_format=torch.channels_last), images.transpose(2, 3).contiguous().mT):
        found = measure(robust_model, ImageSet(layout, data.labels.int()), quick(), num_classes=10)
        if dtype != torch.uint8:
            same(found, expected)
        assert found.clean_correct >= expected.clean_correct - 1


TARGETED_AND_SQUARE = under(protocol="custom", attacks=("apgd-t", "square"))


@pytest.fixture(scope="module")
def in_single_precision(robust_weights: Path) -> Measurement:
    model = load_model("tiny_cnn", "digits", robust_weights, None).eval()
    with attacks_shortened():
        return measure(model, test_digits(24), TARGETED_AND_SQUARE, num_classes=10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.usefixtures("short_attacks")
def test_models_of_any_number_format_work(
    robust_model: nn.Module, in_single_precision: Measurement, dtype: torch.dtype
) -> None:
    """Square and DLR die of half precision in AutoAttack."""
    found = measure(robust_model.to(dtype), test_digits(24), TARGETED_AND_SQUARE, num_classes=10)
    expected = in_single_precision
    assert found.adversarial.dtype == torch.float32
    assert abs(found.robust_correct - expected.robust_correct) <= 2
    assert found.flags == []


def test_the_callers_model_and_random_streams_are_left_as_they_were(robust_model: nn.Module) -> None:
    robust_model.train()
    before = {name: tensor.clone() for name, tensor in robust_model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(robust_model, test_digits(8), quick(), num_classes=10)
    assert torch.equal(torch.rand(3), expected)
    assert robust_model.training
    assert all(parameter.requires_grad for parameter in robust_model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in robust_model.state_dict().items())


def test_nan_beside_clean_images_is_refused(robust_model: nn.Module) -> None:
    """Its argmax is class 0, so AutoAttack would count points of that class as robust."""
    with pytest.raises(InvalidInput, match="NaN or infinite logits on test images with noise"):
        measure(NanNear(robust_model).eval(), test_digits(8), quick(epsilon=0.01), num_classes=10)


def test_nan_is_no_right_answer(robust_model: nn.Module) -> None:
    data = test_digits(8)
    classifier = Classifier(NanNear(robust_model), 10)
    assert torch.equal(classifier.predict(data.images), robust_model(data.images).argmax(1))
    assert set(classifier.predict(data.images * 0.99 + 0.001).tolist()) == {-1}


@pytest.mark.parametrize("low_high", [(-0.1, 1.0), (0.0, 255.0), (0.0, float("nan"))])
def test_images_outside_the_box_are_refused_with_their_range(low_high: tuple[float, float]) -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = low_high
    with pytest.raises(InvalidInput, match=r"values from .* needs them in \[0, 1\]"):
        measure(TwoSided(torch.ones(64)), ImageSet(images, torch.zeros(2).long()), under(), num_classes=10)


ZEROS = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "says"),
    [
        (torch.zeros(2, 64), torch.zeros(2).long(), 10, r"shape \(2, 64\); an evaluation needs \(points, channels"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), 10, "shape"),
        (ZEROS.long(), torch.zeros(2).long(), 10, "torch.int64; give uint8"),
        (ZEROS, torch.zeros(3).long(), 10, "2 images, but labels of shape"),
        (ZEROS, torch.tensor([0, 10]), 10, "from 0 to 9"),
        (ZEROS, torch.tensor([0, -1]), 10, "from 0 to 9"),
        (ZEROS, torch.zeros(2), 10, "whole numbers"),
        (ZEROS, torch.zeros(2).long(), 1, "at least 2 classes"),
        (ZEROS, torch.zeros(2).long(), 11, r"shape \(2, 10\) for 2 images of 11 classes"),
    ],
)
def test_other_shapes_are_refused(images: Tensor, labels: Tensor, classes: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        measure(TwoSided(torch.ones(64)), ImageSet(images, labels), under(), num_classes=classes)


def test_a_model_without_gradients_is_for_square_alone(robust_model: nn.Module) -> None:
    model = Detached(robust_model).eval()
    with pytest.raises(InvalidInput, match="only the protocol 'custom' with 'square' alone"):
        measure(model, test_digits(4), quick(), num_classes=10)
    alone = under(epsilon=0.9, protocol="custom", attacks=("square",))
    verdict = measure(model, test_digits(4), alone, num_classes=10)
    assert [flag.name for flag in verdict.flags] == ["zero_gradients"]


def test_square_in_tiles_refuses_sides_that_its_tiles_do_not_fit() -> None:
    """14 pixels: seven tiles of 2 from pixel 2 on."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(196, 10))
    data = ImageSet(torch.zeros(2, 1, 14, 14), torch.zeros(2).long())
    with pytest.raises(InvalidInput, match="cannot tile images of 14 x 14 pixels"):
        measure(model, data, under("L1", 0.1), num_classes=10)


def test_square_in_tiles_needs_room_for_them() -> None:
    data = ImageSet(torch.zeros(2, 1, 4, 16), torch.zeros(2).long())
    with pytest.raises(InvalidInput, match="at least 5 x 5 pixels, and these have 4 x 16"):
        measure(TwoSided(torch.ones(64)), data, under("L2", 0.1), num_classes=10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused_before_any_attack(value: float) -> None:
    events: list[Event] = []
    data = ImageSet(torch.full((2, 1, 8, 8), 0.5), torch.zeros(2).long())
    with pytest.raises(InvalidInput, match="NaN or infinite logits"):
        measure(TwoSided(torch.full((64,), value)), data, under(), num_classes=10, report=events.append)
    assert not any(isinstance(event, AttackFinished) for event in events)


def test_a_model_of_two_number_formats_is_refused(robust_model: nn.Module) -> None:
    next(robust_model.parameters()).data = next(robust_model.parameters()).data.double()
    with pytest.raises(InvalidInput, match=r"mixes number formats \(torch.float32, torch.float64\)"):
        measure(robust_model, test_digits(4), under(), num_classes=10)


# --- the attacks' answers are judged again -----------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0.11, float("nan"), 0.95])
def test_an_image_outside_the_threat_model_breaks_nothing(distance: float, caplog: pytest.LogCaptureFixture) -> None:
    """An attack that cheats: outside the ball, the box, or the numbers."""
    data = ImageSet(torch.full((1, 1, 8, 8), 0.45), torch.tensor([0]))
    run = Run(
        TwoSided(torch.full((64,), -1.0)),
        data,
        under(epsilon=0.1),
        num_classes=10,
        blocks=None,
        report=lambda _: None,
        should_stop=lambda: False,
        device=None,
    )
    run.attacks = [Attack("square", 1, 1, lambda x, y: x + distance)]
    with run.prepared():
        run_stages(run, [0], lambda _: None)
        verdict = measurement(run, 1)
    assert (verdict.clean_correct, verdict.robust_correct) == (1, 1)
    assert verdict.attacks[0].discarded == 1
    assert "outside the threat model; not counted" in caplog.text


def test_a_point_that_no_attack_may_touch_is_not_attacked() -> None:
    """All points misclassified: nothing enters, nothing is robust."""
    data = ImageSet(test_digits(8).images, torch.full((8,), 5))
    verdict = measure(TwoSided(torch.zeros(64)), data, under(epsilon=0.1, batch_size=4), num_classes=10)
    assert set(verdict.broken_by.tolist()) == {MISCLASSIFIED}
    assert [(a.points, a.broken) for a in verdict.attacks] == [(0, 0)] * 5


def test_attacks_are_made_with_the_published_options() -> None:
    model = TwoSided(torch.ones(64))
    made = make_attacks(model, under("L1", 1.0), num_classes=10, device=CPU)
    assert [(a.title, a.calls, a.targets) for a in made] == [
        ("APGD-CE", 500, None),
        ("APGD-T", 500, 5),
        ("FAB-T", 1800, 9),
        ("Square", 5000, None),
    ]
    assert [a.calls for a in make_attacks(model, under(protocol="plus"), num_classes=10, device=CPU)] == [
        500, 500, 1000, 5000, 900, 1800,
    ]  # fmt: skip
    assert [a.calls for a in make_attacks(model, under(protocol="rand"), num_classes=10, device=CPU)] == [2000, 2000]


def test_progress_tells_what_has_become_of_the_points_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block: what the reports count ends where the verdict does."""
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.0)
    model, data, _ = two_sided_problem()
    evaluation = quick(epsilon=0.03, attacks=TWO, batch_size=16)
    told: list[PointsSoFar] = []

    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.points is not None:
            told.append(event.points)

    measured = measure(model, data, evaluation, num_classes=10, report=report)
    first, second = measured.attacks
    assert 0 < first.broken < first.points, "else there is nothing to see"
    assert told[0] == PointsSoFar(points=len(data), clean_done=0, clean_correct=0)
    last = told[-1]
    assert (last.clean_done, last.clean_correct) == (len(data), measured.clean_correct)
    assert last.attacks[0] == AttackSoFar(attack="APGD-CE", points=first.points, done=first.points, broken=first.broken)
    assert (last.attacks[1].attack, last.attacks[1].points) == ("APGD-DLR", second.points)
    seen = [each.attacks[0] for each in told if len(each.attacks) == 1]
    assert len({each.done for each in seen}) > 2, "after each block"
    assert [each.broken for each in seen] == sorted(each.broken for each in seen)
