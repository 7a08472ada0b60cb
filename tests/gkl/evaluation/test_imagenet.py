"""Evaluations on ImageNet: each architecture on the images that it was published with, from spec to re-check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gkl.catalog import preprocessing_for
from gkl.catalog.preprocessing import PREPROCESSINGS
from gkl.data import load_test, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import evaluate, merge_examples, verify
from gkl.evaluation.certificate import contents_sha256, read_certificate
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.models import build_model
from gkl.outcome import EvaluationOutcome
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ExternalSpec, ThreatModel
from tests.data_files import write_imagenet_test_images
from tests.examples import saved, weakened

CROPPED = "imagenet/Linf/Wong2020Fast"
DEFAULT = "imagenet/Linf/Salman2020Do_R18"


@pytest.fixture(scope="module")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datasets")
    slope = np.linspace(0, 255, 400 * 330 * 3).reshape(330, 400, 3)
    noise = np.random.default_rng(2).normal(0, 40, slope.shape)
    photograph = directory / "photograph.JPEG"
    Image.fromarray((slope + noise).clip(0, 255).astype(np.uint8)).save(photograph)
    write_imagenet_test_images(directory, [photograph])
    return directory


def right_about_the_first(architecture: str, datasets_dir: Path, path: Path) -> Path:
    """Random weights that get the first test image right, by so little that any step changes the answer."""
    torch.manual_seed(0)
    model = build_model(architecture, "imagenet").eval()
    data = load_test("imagenet", datasets_dir, 1, preprocessing_for("imagenet", architecture))
    head = model.get_submodule("model.fc")
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        logits = model(unit_range(data.images))[0]
        head.bias -= logits
        head.bias[data.labels] += 1e-3 * logits.std()
    save_file(model.state_dict(), path)
    return path


ATTACKED = Evaluation(
    protocol="custom",
    attacks=("apgd-ce",),
    threat_model=ThreatModel(epsilon="4/255"),  # type: ignore[arg-type]
    num_points=1,
)
CLEAN = Evaluation(protocol="clean", num_points=1)


def run(
    architecture: str, weights: Path, directory: Path, datasets_dir: Path, evaluation: Evaluation
) -> EvaluationOutcome:
    spec = EvaluateSpec(
        name="test",
        dataset="imagenet",
        architecture=architecture,
        weights=sha256_of(weights),
        evaluation=evaluation,
    )
    return evaluate(spec, weights, RunContext(directory=directory, datasets_dir=datasets_dir, device="cpu"))


@pytest.mark.long
def test_a_288_pixel_model_is_attacked_proven_and_beaten_at_288_pixels(datasets_dir: Path, tmp_path: Path) -> None:
    weights = right_about_the_first(CROPPED, datasets_dir, tmp_path / "weights.safetensors")
    outcome = run(CROPPED, weights, tmp_path / "run", datasets_dir, ATTACKED)
    assert outcome.manifest.preprocessing == "Crop288"
    assert (outcome.clean_correct, outcome.robust_correct) == (1, 0)
    certificate = tmp_path / "run" / "certificate.safetensors"
    known = read_certificate(certificate)
    assert known.preprocessing == PREPROCESSINGS["Crop288"]
    assert known.tensors["adversarial"].shape == (1, 3, 288, 288)
    prepared = load_test("imagenet", datasets_dir, 1, PREPROCESSINGS["Crop288"])
    assert outcome.manifest.dataset_sha256 == prepared.sha256() != load_test("imagenet", datasets_dir, 1).sha256()
    found = verify(certificate, weights, datasets_dir=datasets_dir, device="cpu")
    assert found.holds, found.problems

    weak, examples = weakened(certificate, tmp_path, 1, datasets_dir)
    spec = ExternalSpec(
        name="Mine", dataset="imagenet", architecture=CROPPED, weights=sha256_of(weights), examples="0" * 64
    )
    merged = merge_examples(
        spec,
        weak,
        saved(tmp_path / "e", examples),
        weights,
        RunContext(directory=tmp_path, datasets_dir=datasets_dir, device="cpu"),
    )
    assert (merged.broken, merged.robust_correct) == (1, 0)
    assert read_certificate(tmp_path / "merged.safetensors").preprocessing == PREPROCESSINGS["Crop288"]


def rewritten(certificate: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    tensors, metadata = load_tensors(certificate)
    change(metadata["manifest"])
    save_tensors(path, tensors, metadata | {"contents_sha256": contents_sha256(tensors, metadata)})
    return path


def test_a_certificate_of_an_earlier_version_still_holds(datasets_dir: Path, tmp_path: Path) -> None:
    """They name no preprocessing, since there was one for all."""
    weights = right_about_the_first(DEFAULT, datasets_dir, tmp_path / "weights.safetensors")
    assert run(DEFAULT, weights, tmp_path / "run", datasets_dir, CLEAN).manifest.preprocessing == "Res256Crop224"
    certificate = tmp_path / "run" / "certificate.safetensors"
    old = rewritten(certificate, tmp_path / "old.safetensors", lambda manifest: manifest.pop("preprocessing"))
    assert read_certificate(old).preprocessing == PREPROCESSINGS["Res256Crop224"]
    assert verify(old, weights, datasets_dir=datasets_dir, device="cpu").holds
    # The same pixels under another name are found out.
    other = rewritten(certificate, tmp_path / "other.safetensors", lambda m: m.update(preprocessing="Res224"))
    found = verify(other, weights, datasets_dir=datasets_dir, device="cpu")
    assert any(problem.startswith("this data has sha256") for problem in found.problems)
    unknown = rewritten(certificate, tmp_path / "unknown.safetensors", lambda m: m.update(preprocessing="Crop17"))
    with pytest.raises(InvalidInput, match="is a damaged certificate"):
        read_certificate(unknown)
