"""What each model of the zoo sees is what RobustBench gives it: by its own definitions, and bit by bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gkl.catalog import ARCHITECTURES, image_shape, preprocessing_for, recorded_preprocessing
from gkl.catalog.preprocessing import CORRUPTED_PREPROCESSING, DEFAULT_PREPROCESSING, PREPROCESSINGS
from gkl.catalog.zoo import ZOO, ZOO_PREPROCESSING
from gkl.data import unit_range
from gkl.data.imagenet import decoder
from gkl.errors import InvalidInput
from gkl.models.robustbench import _robustbench, _timm_name

# (width, height): larger than every size that is asked for, smaller, tall, and of odd proportions.
SIZES = [(500, 375), (180, 200), (140, 420), (301, 257), (224, 224), (289, 287)]


def robustbenchs(name: str) -> Any:
    """Its own transform for a model of the zoo, of photographs."""
    dataset, threat_model, model_id = ZOO[name]
    enums, data = _robustbench("model_zoo.enums"), _robustbench("data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.get_preprocessing(
            enums.BenchmarkDataset(dataset), enums.ThreatModel(threat_model), model_id, preprocessing=None
        )


def parameters(transform: Any) -> tuple[Any, str, int | None]:
    """(resize, interpolation, crop) of torchvision's transforms."""
    *steps, last = transform.transforms
    assert type(last).__name__ == "ToTensor"
    resize, interpolation, crop = None, "bilinear", None
    for step in steps:
        if type(step).__name__ == "Resize":
            assert crop is None
            assert (step.max_size, step.antialias) == (None, True)
            resize = tuple(step.size) if isinstance(step.size, list | tuple) else step.size
            interpolation = step.interpolation.value
        else:
            assert type(step).__name__ == "CenterCrop"
            assert step.size[0] == step.size[1]
            crop = step.size[0]
    return resize, interpolation, crop


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_model_of_the_zoo_gets_the_preprocessing_that_it_is_published_with(name: str) -> None:
    dataset, _, model_id = ZOO[name]
    ours = ARCHITECTURES[name].preprocessing
    theirs = parameters(robustbenchs(name))
    if ours is None:
        assert dataset != "imagenet"
        assert theirs == (None, "bilinear", None)
        return
    assert (ours.resize, ours.interpolation, ours.crop) == theirs
    if _timm_name(name) is None:
        definitions = _robustbench("model_zoo").model_dicts
        enums = _robustbench("model_zoo.enums")
        by_threat_model = definitions[enums.BenchmarkDataset(dataset)]
        assert ours.name == by_threat_model[enums.ThreatModel(ZOO[name][1])][model_id]["preprocessing"]


def test_every_preprocessing_is_some_models() -> None:
    """And every ImageNet model has one."""
    assert set(ZOO_PREPROCESSING.values()) == set(PREPROCESSINGS)
    assert set(ZOO_PREPROCESSING) == {name for name, (dataset, *_) in ZOO.items() if dataset == "imagenet"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEGs of noise over edges and slopes, one of them grey, one with an alpha channel saved as PNG."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(1)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        pixels = np.stack([x, y, ((x // 16 + y // 16) % 2) * 255], 2) + random.normal(0, 25, (height, width, 3))
        path = folder / f"{number}.JPEG"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    grey = folder / "grey.JPEG"
    Image.open(paths[0]).convert("L").save(grey)
    # One photograph of ImageNet's validation set is a PNG by another name, others are CMYK.
    odd = folder / "odd.JPEG"
    Image.open(paths[1]).convert("RGBA").save(odd, "PNG")
    cmyk = folder / "cmyk.JPEG"
    Image.open(paths[2]).convert("CMYK").save(cmyk)
    return [*paths, grey, odd, cmyk]


@pytest.mark.parametrize("preprocessing", sorted(PREPROCESSINGS))
def test_pixels_are_robustbenchs_bit_by_bit(preprocessing: str, photographs: list[Path]) -> None:
    name = next(name for name, used in ZOO_PREPROCESSING.items() if used == preprocessing)
    transform, load = robustbenchs(name), _robustbench("loaders").default_loader
    for path in photographs:
        ours = decoder(PREPROCESSINGS[preprocessing])(path)
        assert ours.dtype == torch.uint8
        assert ours.shape == image_shape("imagenet", PREPROCESSINGS[preprocessing])
        assert torch.equal(unit_range(ours), transform(load(str(path)))), path.name


def test_corrupted_pixels_are_robustbenchs_for_every_model(photographs: list[Path]) -> None:
    """Its `benchmark` passes 'Res224' for ImageNet-C, whatever the clean images of a model need."""
    data, enums = _robustbench("data"), _robustbench("model_zoo.enums")
    theirs = data.get_preprocessing(
        enums.BenchmarkDataset.imagenet, enums.ThreatModel.corruptions, "Tian2022Deeper_DeiT-S", "Res224"
    )
    for path in photographs:
        ours = decoder(CORRUPTED_PREPROCESSING)(path)
        assert torch.equal(unit_range(ours), theirs(_robustbench("loaders").default_loader(str(path))))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "n01440764_1.JPEG"
    path.write_bytes(b"<html>")
    with pytest.raises(InvalidInput, match=r"n01440764_1\.JPEG cannot be read as an image"):
        decoder(DEFAULT_PREPROCESSING)(path)


def test_a_record_without_a_preprocessing_is_of_an_earlier_version() -> None:
    assert recorded_preprocessing("imagenet", {}) == DEFAULT_PREPROCESSING
    assert recorded_preprocessing("imagenet", {"preprocessing": "Crop288"}) == PREPROCESSINGS["Crop288"]
    assert recorded_preprocessing("cifar10", {}) is None
    with pytest.raises(KeyError):
        recorded_preprocessing("imagenet", {"preprocessing": "Crop17"})


def test_other_data_sets_have_one_size() -> None:
    assert preprocessing_for("cifar10", "wrn_34_10") is None
    assert image_shape("cifar10", None) == (3, 32, 32)
