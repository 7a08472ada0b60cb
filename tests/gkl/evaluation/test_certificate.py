"""A certificate holds for what it is about and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gkl.attacks.perturbation import norm_tolerance, perturbation_norm
from gkl.catalog import Norm
from gkl.data import load_test
from gkl.errors import InvalidInput
from gkl.evaluation import Verification, evaluate, measure, verify
from gkl.evaluation.certificate import contents_sha256, read_certificate, write_certificate
from gkl.evaluation.verification import verify_certificate
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.outcome import EvaluationOutcome
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.gkl.evaluation.models import Around, BatchCentered, Noisy
from tests.specs import NO_FILES


def spec_for(weights: Path, evaluation: Evaluation) -> EvaluateSpec:
    return EvaluateSpec(
        name="test", dataset="digits", architecture="tiny_cnn", weights=sha256_of(weights), evaluation=evaluation
    )


def attacked(weights: Path, directory: Path, evaluation: Evaluation) -> EvaluationOutcome:
    return evaluate(
        spec_for(weights, evaluation), weights, RunContext(directory=directory, datasets_dir=NO_FILES, device="cpu")
    )


def quick(norm: Norm = "Linf", epsilon: float = 0.2) -> Evaluation:
    return Evaluation(
        protocol="custom",
        attacks=("apgd-ce",),
        threat_model=ThreatModel(norm=norm, epsilon=epsilon),
        num_points=60,
        batch_size=25,
    )


@pytest.fixture(scope="module")
def certificate(robust_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificate")
    outcome = attacked(robust_weights, directory, quick())
    assert outcome.certificate == "certificate.safetensors"
    return directory / outcome.certificate


def check(certificate: Path, weights: Path) -> Verification:
    return verify(certificate, weights, datasets_dir=NO_FILES, device="cpu", batch_size=7)


def changed(certificate: Path, target: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    tensors, metadata = load_tensors(certificate)
    change(tensors, metadata)
    save_tensors(target, tensors, metadata)
    return target


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.2), ("L2", 0.8), ("L1", 2.0)])
def test_it_proves_what_the_evaluation_says(robust_weights: Path, tmp_path: Path, norm: Norm, epsilon: float) -> None:
    outcome = attacked(robust_weights, tmp_path, quick(norm, epsilon))
    found = check(tmp_path / "certificate.safetensors", robust_weights)
    assert found.holds, found.problems
    assert (found.clean_correct, found.robust_correct) == (outcome.clean_correct, outcome.robust_correct)
    assert outcome.robust_correct is not None
    assert found.examples == outcome.clean_correct - outcome.robust_correct > 0


def test_it_tells_of_each_point(certificate: Path) -> None:
    read = read_certificate(certificate)
    data = load_test("digits", NO_FILES).first(60)
    tensors = read.tensors
    assert torch.equal(tensors["label"], data.labels)
    broken = tensors["broken_by"] == 0
    assert torch.equal(broken.nonzero().squeeze(1), tensors["index"])
    size = perturbation_norm(tensors["adversarial"], data.images[tensors["index"]], "Linf")
    assert torch.equal(tensors["perturbation_norm"][broken], size)
    assert tensors["perturbation_norm"][~broken].isnan().all()
    assert (tensors["adversarial_prediction"] != data.labels[tensors["index"]]).all()
    assert read.attacks == ("APGD-CE",)
    for key in ("spec", "git_commit", "packages", "device", "seed", "dataset_sha256", "weights_sha256", "dtype"):
        assert key in read.manifest


def one_pixel_beyond(tensors: dict[str, Tensor], _: Any) -> None:
    """The smallest step that an 8-bit image can make, at the third example's pixel farthest from its clean value."""
    data = load_test("digits", NO_FILES)
    row = 3
    image, clean = tensors["adversarial"][row], data.images[tensors["index"][row]]
    difference = (image - clean).flatten()
    pixel = int((difference.abs() * (image.flatten() > 1 / 255) * (image.flatten() < 1 - 1 / 255)).argmax())
    image.view(-1)[pixel] += difference[pixel].sign() / 255


def other_label(tensors: dict[str, Tensor], _: Any) -> None:
    tensors["label"][5] = (tensors["label"][5] + 1) % 10


def outside_the_box(tensors: dict[str, Tensor], _: Any) -> None:
    clean = load_test("digits", NO_FILES).images[tensors["index"][2]].flatten()
    tensors["adversarial"][2].view(-1)[int(clean.argmin())] = -0.1


def clean_instead_of_adversarial(tensors: dict[str, Tensor], _: Any) -> None:
    tensors["adversarial"][4] = load_test("digits", NO_FILES).images[tensors["index"][4]]


def not_a_number(tensors: dict[str, Tensor], _: Any) -> None:
    tensors["adversarial"][0][0, 3, 3] = torch.nan


def a_point_too_many(tensors: dict[str, Tensor], _: Any) -> None:
    standing = (tensors["broken_by"] == -1).nonzero().squeeze(1)
    tensors["broken_by"][standing[0]] = 0


def a_point_less(tensors: dict[str, Tensor], _: Any) -> None:
    for name in ("index", "adversarial", "adversarial_prediction"):
        tensors[name] = tensors[name][1:].clone()


def answers_that_vary(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Which would make the check less strict."""
    metadata["answers_vary"] = True
    tensors["prediction"][:] = 0


def smaller_norms(tensors: dict[str, Tensor], _: Any) -> None:
    tensors["perturbation_norm"] *= 0.5


def better_numbers(_: Any, metadata: dict[str, Any]) -> None:
    metadata["robust_correct"] += 1


def a_wider_ball(_: Any, metadata: dict[str, Any]) -> None:
    metadata["evaluation"]["threat_model"]["epsilon"] = 0.1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_pixel_beyond, r"point {3}: its adversarial image is 0.203922 away in Linf, further than epsilon 0.2"),
        (other_label, r"point 5: its label is \d, the certificate says \d"),
        (outside_the_box, r"point {2}: its adversarial image has values from -0.1 to"),
        (clean_instead_of_adversarial, r"point {4}: (its perturbation's norm is 0,|the model)"),
        (not_a_number, r"point {0}: its adversarial image (has values|is nan)"),
        (a_point_too_many, r"point \d+: it says that APGD-CE broke it"),
        (a_point_less, r"point {0}: it has a perturbation's norm without an adversarial example"),
        (answers_that_vary, r"it says that the model's answers vary, and they do not"),
        (smaller_norms, r"point {0}: its perturbation's norm is 0.2, the certificate says 0.1"),
        (better_numbers, r"it claims \(\d+, \d+\) clean and robust points, and shows"),
        (a_wider_ball, r"point {0}: its adversarial image is 0.2 away in Linf, further than epsilon 0.1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_whatever_is_changed_is_found_at_its_first_point(
    certificate: Path,
    robust_weights: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
    says: str,
) -> None:
    """Also by someone who writes a new checksum for it."""
    index = load_tensors(certificate)[0]["index"].tolist()

    def both(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        change(tensors, metadata)
        metadata["contents_sha256"] = contents_sha256(tensors, metadata)

    found = check(changed(certificate, tmp_path / "changed.safetensors", both), robust_weights)
    assert not found.holds
    for row in range(5):
        says = says.replace(f"{{{row}}}", str(index[row]))

    assert re.match(says, found.problems[0]), found.problems[0]


def test_a_change_that_breaks_nothing_is_found_too(certificate: Path, robust_weights: Path, tmp_path: Path) -> None:
    """A pixel inside the ball that changes no answer."""

    def nudge(tensors: dict[str, Tensor], _: Any) -> None:
        image = tensors["adversarial"][0]
        image += (image < 0.05) * 1e-6

    found = check(changed(certificate, tmp_path / "c.safetensors", nudge), robust_weights)
    assert found.problems == ["it was changed after it was written"]


@pytest.mark.parametrize("defense", [Noisy, BatchCentered])
def test_a_model_whose_answers_vary_is_checked_for_what_it_shows(
    robust_model: nn.Module, tmp_path: Path, defense: type[Around]
) -> None:
    model, data, evaluation = defense(robust_model).eval(), load_test("digits", NO_FILES).first(30), quick()
    measurement = measure(model, data, evaluation, num_classes=10)
    assert measurement.answers_vary
    write_certificate(
        tmp_path / "c.safetensors",
        measurement,
        evaluation,
        attacks=measurement.attack_titles,
        data=data,
        dataset="digits",
        architecture="tiny_cnn",
        weights_sha256="0" * 64,
        dataset_sha256=data.sha256(),
        manifest={},
    )
    certificate = read_certificate(tmp_path / "c.safetensors")
    found = verify_certificate(certificate, model, data, weights_sha256="0" * 64, batch_size=7)
    assert found.problems == []
    assert found.answers_vary


def test_other_weights_fail_at_a_point_and_by_name(
    certificate: Path, plain_weights: Path, robust_weights: Path
) -> None:
    found = check(certificate, plain_weights)
    assert found.problems[0].startswith("point "), found.problems
    assert any(sha256_of(plain_weights) in problem for problem in found.problems)
    assert any(sha256_of(robust_weights) in problem for problem in found.problems)


def test_other_data_is_found(certificate: Path, robust_weights: Path, tmp_path: Path) -> None:
    def other(_: Any, metadata: dict[str, Any]) -> None:
        metadata["dataset_sha256"] = "0" * 64

    found = check(changed(certificate, tmp_path / "c.safetensors", other), robust_weights)
    assert "this data has sha256" in found.problems[0]


@pytest.mark.parametrize("what", ["half", "weights", "short", "elsewhere", "list"])
def test_what_is_no_certificate_is_one_sentence(
    what: str, certificate: Path, robust_weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    if what == "half":
        path.write_bytes(certificate.read_bytes()[: certificate.stat().st_size // 2])
    elif what == "weights":
        path = robust_weights
    elif what == "short":
        changed(certificate, path, lambda tensors, _: tensors.pop("prediction"))
    elif what == "elsewhere":
        changed(certificate, path, lambda _, metadata: metadata.update(dataset="../../etc"))
    else:
        tensors, _ = load_tensors(certificate)
        save_file(tensors, path, {"gklbench": "[]"})
    with pytest.raises(InvalidInput, match=r"cannot be read as safetensors|is no certificate|damaged certificate"):
        check(path, robust_weights)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_tolerance_covers_rounding_and_no_grey_level(norm: Norm) -> None:
    """float32 steps of exactly epsilon from random 8-bit images of CIFAR's size, against one more grey level."""
    epsilon = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}[norm]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(40, 215, (64, 3, 32, 32), generator=generator).float() / 255
    direction = torch.randn(x.shape, generator=generator).sign()
    flat = {"Linf": 1.0, "L2": 3072**0.5, "L1": 3072.0}[norm]
    x_adv = x + epsilon / flat * direction
    excess = perturbation_norm(x_adv, x, norm).max() - epsilon
    tolerance = norm_tolerance(ThreatModel(norm=norm, epsilon=epsilon), 3072)
    assert excess <= tolerance
    x_adv[0, 0, 0, 0] += direction[0, 0, 0, 0] / 255
    assert perturbation_norm(x_adv, x, norm)[0] > epsilon + tolerance
