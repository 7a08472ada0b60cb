"""The verdict against what is known: a closed form, pyautoattack's own runs, and real bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyautoattack import AutoAttack
from safetensors.torch import save_file
from torch import Tensor, nn

from gkl.data import ImageSet, load_test
from gkl.errors import InvalidInput, InvalidVerdict, Stopped
from gkl.evaluation import evaluate
from gkl.evaluation.attacks import Attack, standard_attacks
from gkl.evaluation.evaluate import run_attacks
from gkl.files import sha256_of
from gkl.models import build_model
from gkl.outcome import AttackFinished, AttackOutcome, Event, Progress
from gkl.recipes import digits
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from gkl.training import train
from tests.specs import NO_FILES

CPU = torch.device("cpu")


def verdict(
    model: nn.Module, data: ImageSet, threat_model: ThreatModel, *, block_size: int, seed: int = 0
) -> tuple[int, list[AttackOutcome]]:
    model.eval().requires_grad_(False)
    return run_attacks(
        model,
        data,
        standard_attacks(model, threat_model, seed=seed, device=CPU),
        threat_model,
        num_classes=10,
        block_size=block_size,
        device=CPU,
        report=lambda _: None,
        should_stop=lambda: False,
    )


@pytest.fixture(scope="module")
def robust_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network trained for a few epochs, so that each attack finds something to do."""
    directory = tmp_path_factory.mktemp("robust")
    train(
        digits().model_copy(update={"epochs": 12}),
        directory,
        datasets_dir=NO_FILES,
        report=lambda _: None,
        device="cpu",
    )
    model = build_model("small_cnn", "digits")
    from gkl.models import load_weights

    load_weights(model, directory / "weights.safetensors")
    return model.eval(), directory / "weights.safetensors"


def spec_for(weights: Path, **evaluation: object) -> EvaluateSpec:
    return EvaluateSpec(
        name="test",
        dataset="digits",
        architecture="small_cnn",
        weights=sha256_of(weights),
        evaluation=Evaluation(**{"threat_model": ThreatModel(epsilon=0.2), **evaluation}),  # type: ignore[arg-type]
    )


class TwoSided(nn.Module):
    """Ten logits of which two depend on the image: +-w x. A point is robust iff |w x| > epsilon * |w|_1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.weight
        others = torch.stack([-100.0 - 0.01 * k - 0.001 * score for k in range(8)], dim=1)
        return torch.cat([score[:, None], -score[:, None], others], dim=1)


def test_a_linear_models_verdict_is_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=generator)
    # Inside the box with room for epsilon on all sides, so that the ball is whole.
    images = 0.2 + 0.6 * torch.rand(60, 1, 8, 8, generator=generator)
    score = (images.flatten(1) - 0.5) @ weight
    labels = (score < 0).long()
    epsilon = 0.03
    margin = score.abs() - epsilon * weight.abs().sum()
    assert margin.abs().min() > 1e-3, "no point so close that rounding decides"
    clean, outcomes = verdict(TwoSided(weight), ImageSet(images, labels), ThreatModel(epsilon=epsilon), block_size=25)
    assert clean == 60
    assert outcomes[-1].survivors == int((margin > 0).sum())
    assert 0 < outcomes[-1].survivors < 60


@pytest.mark.parametrize(
    "threat_model", [ThreatModel(epsilon=0.2), ThreatModel(norm="L2", epsilon=0.8)], ids=["Linf", "L2"]
)
def test_each_attack_breaks_what_pyautoattack_breaks(
    robust_model: tuple[nn.Module, Path], threat_model: ThreatModel
) -> None:
    """Block by block the same seed, so the same number of points after every attack."""
    model, _ = robust_model
    data = load_test("digits", NO_FILES).first(48)
    clean, outcomes = verdict(model, data, threat_model, block_size=24, seed=3)
    expected = dict.fromkeys(("clean", "apgd-ce", "apgd-t", "fab-t", "square"), 0)
    for x, y in zip(data.images.split(24), data.labels.split(24), strict=True):
        standing = model(x).argmax(1) == y
        expected["clean"] += int(standing.sum())
        reference = AutoAttack(
            model, norm=threat_model.norm, eps=threat_model.epsilon, seed=3, version="standard", device="cpu"
        )
        for name in list(expected)[1:]:
            if standing.any():
                reference.attacks_to_run = [name]
                x_adv, _ = reference.run_standard_evaluation(x[standing], y[standing], batch_size=24)
                index = standing.nonzero().squeeze(1)
                standing[index] = model(x_adv).argmax(1) == y[index]
            expected[name] += int(standing.sum())
    assert [clean, *(o.survivors for o in outcomes)] == list(expected.values())


def test_evaluate_reports_each_attack_and_progress_that_only_rises(robust_model: tuple[nn.Module, Path]) -> None:
    _, weights = robust_model
    events: list[Event] = []
    outcome = evaluate(
        spec_for(weights, num_points=40, batch_size=16),
        weights,
        datasets_dir=NO_FILES,
        report=events.append,
        device="cpu",
    )
    assert outcome.num_points == 40
    assert [e.outcome for e in events if isinstance(e, AttackFinished)] == outcome.attacks
    assert [a.attack for a in outcome.attacks] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    entered = [a.points for a in outcome.attacks]
    assert entered == [outcome.clean_correct, *(a.survivors for a in outcome.attacks[:-1])]
    assert outcome.robust_correct == outcome.attacks[-1].survivors
    fractions = [e.fraction for e in events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    assert outcome.manifest.dataset_sha256 == load_test("digits", NO_FILES).first(40).sha256()
    assert outcome.manifest.weights_sha256 == sha256_of(weights)


def test_evaluate_stops_inside_an_attack(robust_model: tuple[nn.Module, Path]) -> None:
    _, weights = robust_model
    calls = iter(range(1_000_000))
    with pytest.raises(Stopped):
        evaluate(
            spec_for(weights),
            weights,
            datasets_dir=NO_FILES,
            report=lambda _: None,
            should_stop=lambda: next(calls) >= 20,
            device="cpu",
        )
    assert next(calls) == 21


def test_a_point_that_no_attack_may_touch_is_not_attacked() -> None:
    """All points misclassified: nothing enters, nothing is robust."""
    data = load_test("digits", NO_FILES).first(8)
    model = TwoSided(torch.zeros(64))
    clean, outcomes = verdict(model, ImageSet(data.images, torch.full((8,), 5)), ThreatModel(epsilon=0.1), block_size=4)
    assert clean == 0
    assert [(o.points, o.broken) for o in outcomes] == [(0, 0)] * 4


def test_other_weights_than_the_spec_names_are_refused(robust_model: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, weights = robust_model
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(InvalidInput, match="the spec asks for weights"):
        evaluate(spec_for(weights), other, datasets_dir=NO_FILES, report=lambda _: None)


def weights_with(tmp_path: Path, **changes: Tensor | None) -> Path:
    tensors = dict(build_model("small_cnn", "digits").state_dict())
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classifier__2__bias": None}, "lacks the tensor 'classifier.2.bias'"),
        ({"classifier__2__bias": torch.zeros(11)}, r"\(11,\), but the architecture has .* \(10,\)"),
        ({"classifier__2__bias": torch.zeros(10, dtype=torch.float64)}, "torch.float64"),
        ({"classifier__2__bias": torch.full((10,), torch.nan)}, "NaN or infinite values"),
        ({"surplus": torch.zeros(1)}, "'surplus' that the architecture does not have"),
        ({"classifier__2__weight": torch.full((10, 128), 3e38)}, "NaN or infinite logits"),
    ],
)
def test_unusable_weights_are_refused_before_any_attack(
    changes: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    path = weights_with(tmp_path, **changes)
    with pytest.raises(InvalidInput, match=says):
        evaluate(spec_for(path), path, datasets_dir=NO_FILES, report=lambda _: None)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b"\xff" * 100])
def test_a_file_that_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be read as safetensors"):
        evaluate(spec_for(path), path, datasets_dir=NO_FILES, report=lambda _: None)


@pytest.mark.parametrize("low_high", [(-0.1, 1.0), (0.0, 255.0), (0.0, float("nan"))])
def test_images_outside_the_box_are_refused(low_high: tuple[float, float]) -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = low_high
    with pytest.raises(InvalidInput, match=r"needs them in \[0, 1\]"):
        verdict(
            TwoSided(torch.ones(64)), ImageSet(images, torch.zeros(2).long()), ThreatModel(epsilon=0.1), block_size=2
        )


@pytest.mark.parametrize("distance", [0.11, float("nan"), 0.95])
def test_an_attack_that_leaves_the_threat_model_gives_no_verdict(distance: float) -> None:
    """The image is inside the model's blind spot but outside the ball, the box, or the numbers."""
    weight = torch.full((64,), -1.0)
    data = ImageSet(torch.full((1, 1, 8, 8), 0.45), torch.tensor([0]))
    cheat = Attack("cheat", 1, 1, lambda x, y: x + distance)
    model = TwoSided(weight)
    with pytest.raises(InvalidVerdict, match="cheat returned an image outside the threat model"):
        run_attacks(
            model,
            data,
            [cheat],
            ThreatModel(epsilon=0.1),
            num_classes=10,
            block_size=1,
            device=CPU,
            report=lambda _: None,
            should_stop=lambda: False,
        )
