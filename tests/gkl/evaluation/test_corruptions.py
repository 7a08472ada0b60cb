"""Accuracy under corruptions against the files themselves; the layouts of the published data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gkl.catalog import CORRUPTIONS
from gkl.data import ImageSet, load_corrupted
from gkl.errors import InvalidInput, Stopped
from gkl.evaluation import evaluate, verify
from gkl.evaluation.certificate import read_certificate
from gkl.evaluation.corruptions import ALL
from gkl.files import sha256_of
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.models import build_model
from gkl.outcome import EvaluationOutcome, Event, Progress
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation
from tests.data_files import pixels, write_cifar10

EACH = 20


@pytest.fixture(scope="module")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 and CIFAR-10-C in their published layouts, with 20 random images in each severity."""
    directory = tmp_path_factory.mktemp("datasets")
    write_cifar10(directory, per_batch=EACH)
    folder = directory / "cifar10" / "CIFAR-10-C"
    folder.mkdir()
    labels = np.arange(6 * EACH)[5 * EACH :] % 10
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for number, corruption in enumerate(CORRUPTIONS):
        np.save(folder / f"{corruption}.npy", pixels(5 * EACH, 32, 32, 3, seed=number))
    return directory


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(build_model("tiny_cnn", "cifar10").state_dict(), path)
    return path


def spec_for(weights: Path, **changes: object) -> EvaluateSpec:
    return EvaluateSpec(
        name="test",
        dataset="cifar10",
        architecture="tiny_cnn",
        weights=sha256_of(weights),
        evaluation=Evaluation(protocol="corruptions", batch_size=7, num_points=EACH).model_copy(update=changes),
    )


def test_an_evaluation_on_corruptions_is_measured_proven_and_resumed(
    datasets_dir: Path, weights: Path, tmp_path: Path
) -> None:
    spec = spec_for(weights)
    events: list[Event] = []

    def run(directory: Path, stop_after: int = 1_000_000) -> EvaluationOutcome:
        calls = iter(range(1_000_000))
        return evaluate(
            spec,
            weights,
            RunContext(
                directory=directory,
                datasets_dir=datasets_dir,
                report=events.append,
                should_stop=lambda: next(calls) > stop_after,
                device="cpu",
            ),
        )

    outcome = run(tmp_path / "whole")
    assert [(c.corruption, c.severity) for c in outcome.corruptions] == list(ALL)
    fractions = [e.fraction for e in events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    # The same numbers, straight from the files.
    network = build_model("tiny_cnn", "cifar10").eval()
    network.load_state_dict(load_tensors(weights)[0])
    for each in outcome.corruptions[:8]:
        images = np.load(datasets_dir / "cifar10" / "CIFAR-10-C" / f"{each.corruption}.npy")
        part = slice((each.severity - 1) * EACH, each.severity * EACH)
        x = torch.from_numpy(images[part]).permute(0, 3, 1, 2).float() / 255
        y = torch.arange(6 * EACH)[5 * EACH :] % 10
        assert each.correct == int((network(x).argmax(1) == y).sum())
    assert outcome.robust_accuracy == pytest.approx(sum(c.correct for c in outcome.corruptions) / (75 * EACH))
    assert outcome.mean_corruption_error == pytest.approx(1 - (outcome.robust_accuracy or 0))
    assert outcome.robust_correct is None

    certificate = tmp_path / "whole" / "certificate.safetensors"
    found = verify(certificate, weights, datasets_dir=datasets_dir, device="cpu")
    assert found.holds, found.problems

    with pytest.raises(Stopped):
        run(tmp_path / "resumed", stop_after=100)
    resumed = run(tmp_path / "resumed")
    assert [c.correct for c in resumed.corruptions] == [c.correct for c in outcome.corruptions]
    read = read_certificate(tmp_path / "resumed" / "certificate.safetensors")
    expected = read_certificate(certificate)
    assert torch.equal(read.tensors["corrupted_prediction"], expected.tensors["corrupted_prediction"])

    tensors, metadata = load_tensors(certificate)
    tensors["corrupted_prediction"][3, 5] = (tensors["corrupted_prediction"][3, 5] + 1) % 10
    save_tensors(tmp_path / "changed.safetensors", tensors, metadata)
    changed = verify(tmp_path / "changed.safetensors", weights, datasets_dir=datasets_dir, device="cpu")
    assert changed.problems[0].startswith("point 5: the model answers")
    assert "gaussian_noise, severity 4" in changed.problems[0]


def test_corruptions_with_other_labels_are_refused(datasets_dir: Path, weights: Path, tmp_path: Path) -> None:
    labels = datasets_dir / "cifar10" / "CIFAR-10-C" / "labels.npy"
    original = labels.read_bytes()
    np.save(labels, (np.load(labels) + 1) % 10)
    try:
        with pytest.raises(InvalidInput, match="labels of gaussian_noise, severity 1, are not those of the clean"):
            evaluate(spec_for(weights), weights, RunContext(directory=tmp_path, datasets_dir=datasets_dir))
    finally:
        labels.write_bytes(original)


@pytest.mark.parametrize("of_images", [">u2", "<i8", ">i8", "|u1", ">u1"])
@pytest.mark.parametrize("of_labels", [">i8", ">u2", "<i4", "|i1", ">i4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_any_byte_order_and_width(of_images: str, of_labels: str, fortran: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "CIFAR-10-C"
    folder.mkdir(parents=True)
    images, labels = pixels(10, 32, 32, 3), np.tile([3, 9], 5)
    order = np.asfortranarray if fortran else np.ascontiguousarray
    np.save(folder / "fog.npy", order(images.astype(of_images)))
    np.save(folder / "labels.npy", labels.astype(of_labels))
    found = load_corrupted("cifar10", tmp_path, "fog", 2)
    assert isinstance(found, ImageSet)
    assert torch.equal(found.images, torch.from_numpy(images[2:4]).permute(0, 3, 1, 2))
    assert (found.labels.tolist(), found.labels.dtype) == ([3, 9], torch.int64)


def test_files_that_are_missing_or_other_are_named(datasets_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"CIFAR-100-C is not here: put its files at .*gaussian_noise.npy"):
        load_corrupted("cifar100", tmp_path, "fog", 1)
    with pytest.raises(InvalidInput, match=r"ImageNet-C is not here: put its files at .*n01440764"):
        load_corrupted("imagenet", tmp_path, "fog", 1)
    folder = tmp_path / "cifar10" / "CIFAR-10-C"
    folder.mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"not whole: there is no .*fog.npy"):
        load_corrupted("cifar10", tmp_path, "fog", 1)
    np.save(folder / "labels.npy", np.zeros(100, dtype=np.int64))
    np.save(folder / "fog.npy", np.zeros((100, 3, 32, 32), dtype=np.uint8))
    with pytest.raises(InvalidInput, match="expected five severities of 32 x 32 x 3 uint8"):
        load_corrupted("cifar10", tmp_path, "fog", 1)
    np.save(folder / "fog.npy", np.full((100, 32, 32, 3), 256, dtype=">i2"))
    with pytest.raises(InvalidInput, match=r"fog\.npy has pixels outside 0 to 255"):
        load_corrupted("cifar10", tmp_path, "fog", 1)
    np.save(folder / "fog.npy", np.zeros((100, 32, 32, 3), dtype=np.uint8))
    for labels in (np.zeros(99, dtype=">i8"), np.zeros((20, 1), dtype=np.int64), np.zeros(20), np.zeros((), np.int64)):
        np.save(folder / "labels.npy", labels)
        with pytest.raises(
            InvalidInput, match=r"labels\.npy has shape .*; expected a whole number for each of the 100"
        ):
            load_corrupted("cifar10", tmp_path, "fog", 1)
    for wrong in (-1, 10):
        np.save(folder / "labels.npy", np.full(20, wrong, dtype=">i8"))
        with pytest.raises(InvalidInput, match="has labels outside 0 to 9"):
            load_corrupted("cifar10", tmp_path, "fog", 1)
    (folder / "fog.npy").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_corrupted("cifar10", tmp_path, "fog", 1)


def test_imagenet_c_is_read_in_robustbenchs_layout_and_order(tmp_path: Path) -> None:
    from gkl.data.imagenet import evaluated_image_names

    names, labels = evaluated_image_names()
    folder = tmp_path / "imagenet" / "ImageNet-C" / "fog" / "2"
    image = Image.fromarray(pixels(1, 224, 224, 3)[0])
    encoded = tmp_path / "one.JPEG"
    image.save(encoded)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(encoded)
    images = load_corrupted("imagenet", tmp_path, "fog", 2)
    assert torch.equal(images.labels, labels)
    assert images.take(torch.tensor([0, 4999])).shape == (2, 3, 224, 224)
    (folder / names[7]).unlink()
    with pytest.raises(InvalidInput, match=f"not whole: there is no .*{names[7]}, and 0 more"):
        load_corrupted("imagenet", tmp_path, "fog", 2)
