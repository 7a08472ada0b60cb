"""Data sets: real ones where they are at hand, else their file formats with a few made images."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gkl.catalog import DATASETS
from gkl.data import fashion_mnist as fashion_mnist_module
from gkl.data import load_test, load_train
from gkl.data.imagenet import _robustbench_helper_files
from gkl.errors import InvalidInput
from tests.data_files import pixels, write_cifar10, write_idx
from tests.specs import NO_FILES


def test_digits_are_what_the_catalog_says_and_split_without_overlap() -> None:
    described = DATASETS["digits"]
    train, test = load_train("digits", NO_FILES), load_test("digits", NO_FILES)
    assert (len(train), len(test)) == (described.num_train, described.num_test)
    for images in (train.take(torch.arange(len(train))), test.images):
        assert images.shape[1:] == described.image_shape
        assert (images.dtype, images.min(), images.max()) == (torch.float32, 0, 1)
    assert set(test.labels.tolist()) == set(range(10))
    seen = {image.numpy().tobytes() for image in train.take(torch.arange(len(train)))}
    assert not [image for image in test.images if image.numpy().tobytes() in seen]


def test_digits_are_scikit_learns() -> None:
    """Ours are read from its file; its own function, which takes a second to import, says what they are."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    train, test = load_train("digits", NO_FILES), load_test("digits", NO_FILES)
    in_test = torch.arange(len(raw.target)) % 5 == 0
    for images, chosen in ((train, ~in_test), (test, in_test)):
        assert torch.equal(images.take(torch.arange(len(images))).squeeze(1) * 16, torch.from_numpy(raw.images)[chosen])
        assert torch.equal(images.labels, torch.from_numpy(raw.target)[chosen])


def test_the_hash_tells_data_apart() -> None:
    test = load_test("digits", NO_FILES)
    assert test.sha256() == load_test("digits", NO_FILES).sha256()
    assert test.first(10).sha256() != test.first(11).sha256()
    changed = test.first(10)
    changed.labels[0] += 1
    assert changed.sha256() != load_test("digits", NO_FILES, 10).sha256()


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "imagenet"])
def test_missing_data_is_one_sentence_that_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist_module, "_DEBIAN", tmp_path / "no package")
    with pytest.raises(InvalidInput, match=rf"is not here: put .*{tmp_path}/{name}"):
        load_train(name, tmp_path)


# --- Fashion-MNIST ---


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read(suffix: str, tmp_path: Path) -> None:
    images, labels = pixels(12, 28, 28), np.arange(12, dtype=np.uint8) % 10
    write_idx(tmp_path / "fashion_mnist" / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / "fashion_mnist" / f"train-labels-idx1-ubyte{suffix}", labels)
    data = load_train("fashion_mnist", tmp_path)
    assert torch.equal(data.take(torch.tensor([3, 1])), torch.from_numpy(images[[3, 1]]).unsqueeze(1))
    assert data.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("damage", ["short", "no idx", "no gzip", "other sizes"])
def test_damaged_idx_files_are_refused(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "fashion_mnist"
    write_idx(folder / "t10k-images-idx3-ubyte", pixels(12, 28, 28))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(12, dtype=np.uint8))
    images = folder / "t10k-images-idx3-ubyte"
    if damage == "short":
        images.write_bytes(images.read_bytes()[:-1])
    elif damage == "no idx":
        images.write_bytes(b"<html>not found</html>")
    elif damage == "no gzip":
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    else:
        write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(11, dtype=np.uint8))
    with pytest.raises(InvalidInput, match=r"fetch (it|them) again"):
        load_test("fashion_mnist", tmp_path)


def test_the_real_fashion_mnist_is_found_where_debian_puts_it(tmp_path: Path) -> None:
    if not fashion_mnist_module._DEBIAN.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed; the file format is tested above")
    train, test = load_train("fashion_mnist", tmp_path), load_test("fashion_mnist", tmp_path)
    described = DATASETS["fashion_mnist"]
    assert (len(train), len(test)) == (described.num_train, described.num_test)
    # Every class has as many images (arXiv 1708.07747, section 2).
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    # Published mean and standard deviation of the training pixels: 0.2860 and 0.3530.
    values = train.take(torch.arange(len(train))).double() / 255
    assert values.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert values.std().item() == pytest.approx(0.3530, abs=5e-5)


# --- CIFAR ---


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar10_is_read_from_folder_and_archive(form: str, tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path)
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    if form == "archive":
        with tarfile.open(tmp_path / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, "cifar-10-batches-py")
        folder.rename(tmp_path / "elsewhere")
    train = load_train("cifar10", tmp_path)
    assert torch.equal(train.take(torch.arange(100)), torch.from_numpy(images))
    assert train.labels.tolist() == labels.tolist()
    assert len(load_test("cifar10", tmp_path)) == 20


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    batch = {"data": pixels(100, 3072), "fine_labels": list(range(100)), "coarse_labels": [0] * 100}
    (folder / "test").write_bytes(pickle.dumps(batch, protocol=2))
    assert load_test("cifar100", tmp_path).labels.tolist() == list(range(100))


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch hostile-was-here",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"data": _Hostile(), "labels": []}), "it asks for posix.system"),
        (pickle.dumps({"data": pixels(2, 3072)}), "'labels'"),
        (pickle.dumps({"data": pixels(2, 100), "labels": [0, 1]}), "not rows of 3,072 bytes"),
        (pickle.dumps({"data": pixels(2, 3072), "labels": [0, 10]}), "labels outside 0 to 9"),
        (pickle.dumps({"data": pixels(2, 3072), "labels": [0, 1]})[:-100], ""),
        (b"<html>quota exceeded</html>", ""),
    ],
    ids=["hostile", "no labels", "other images", "labels out of range", "truncated", "html"],
)
def test_a_cifar_batch_that_is_none_is_refused_and_runs_nothing(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=f"cannot be read .*{said}.*fetch cifar-10-python.tar.gz again"):
        load_test("cifar10", tmp_path)
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_damaged_cifar_batch_is_a_sentence_or_harmless(tmp_path: Path) -> None:
    """One bit flipped at a time; what a flip in the pixels gives is another image."""
    write_cifar10(tmp_path, per_batch=2)
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for place in [*range(0, 200), *range(len(whole) - 200, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            load_test("cifar10", tmp_path)
        except InvalidInput as error:
            assert "fetch cifar-10-python.tar.gz again" in str(error)


# --- ImageNet ---


def jpeg(color: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def test_imagenet_is_read_from_folders_and_tested_on_robustbenchs_images(tmp_path: Path) -> None:
    """A thousand class folders with an image each, and RobustBench's 5,000 names, all links to two files."""
    red, blue = tmp_path / "red.jpg", tmp_path / "blue.jpg"
    red.write_bytes(jpeg((250, 0, 0), (300, 260)))
    blue.write_bytes(jpeg((0, 0, 250), (100, 400)))
    listed = (_robustbench_helper_files() / "imagenet_test_image_ids.txt").read_text().split()
    assert len(listed) == DATASETS["imagenet"].num_test
    # Three classes have no image among the 5,000.
    classes = sorted(json.loads((_robustbench_helper_files() / "imagenet_class_to_id_map.json").read_text()))
    assert len(classes) == DATASETS["imagenet"].num_classes
    for part, names in (("val", listed), ("train", [f"{name}/{name}_1.JPEG" for name in classes])):
        for name in classes:
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
        for number, name in enumerate(names):
            os.link(red if number % 2 == 0 else blue, tmp_path / "imagenet" / part / name)
    test = load_test("imagenet", tmp_path, 3)
    assert (test.images.shape, test.images.dtype) == ((3, 3, 224, 224), torch.uint8)
    # Labels count the classes in the order of their names.
    assert test.labels.tolist() == [classes.index(name.split("/")[0]) for name in listed[:3]]
    assert [int(image[0].float().mean() > 200) for image in test.images] == [1, 0, 1]
    train = load_train("imagenet", tmp_path)
    assert sorted(train.labels.tolist()) == list(range(1000)) != train.labels.tolist()
    assert torch.equal(train.labels, load_train("imagenet", tmp_path).labels)
    colors = train.take(torch.arange(4)).float().mean((2, 3)).argmax(1)
    assert colors.tolist() == [0 if label % 2 == 0 else 2 for label in train.labels[:4].tolist()]
    (tmp_path / "imagenet" / "val" / listed[7]).unlink()
    with pytest.raises(InvalidInput, match=rf"not whole: there is no .*{listed[7]}, and 0 more"):
        load_test("imagenet", tmp_path, 3)
