"""RobustBench's networks by its own names, and networks from files, in one call."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gkl
from gkl.catalog.preprocessing import PREPROCESSINGS
from gkl.catalog.zoo import ZOO, ZOO_PREPROCESSING
from gkl.data import load_test
from gkl.errors import InvalidInput
from gkl.evaluation import verify
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.library.folders import datasets_folder, models_folder
from gkl.library.networks import _check_name, _prepared
from gkl.models import build_model
from gkl.models.robustbench import _robustbench
from tests.data_files import pixels, write_imagenet_test_images

SMALL = "cifar10/Linf/Addepalli2022Efficient_RN18"


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RobustBench's own layout, with random weights in the file of one of its models."""
    directory = tmp_path_factory.mktemp("models")
    path = directory / f"{SMALL}.pt"
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(build_model(SMALL, "cifar10").state_dict(), path)
    yield directory
    path.unlink()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nothing listens on, so that a download ends at once wherever this runs."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_it_is_the_network_that_robustbench_loads(models_dir: Path) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    ours = gkl.load_model("Addepalli2022Efficient_RN18", "cifar10", "Linf", models_dir=models_dir)
    assert drawn() == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _robustbench("utils").load_model("Addepalli2022Efficient_RN18", model_dir=models_dir)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert not ours.training


def test_arguments_come_in_robustbenchs_order() -> None:
    theirs = list(inspect.signature(_robustbench("utils").load_model).parameters)
    ours = list(inspect.signature(gkl.load_model).parameters)[:3]
    assert ours == [name for name in theirs if name in ours]


def test_where_weights_are_looked_for(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKLBENCH_MODELS_DIR", str(models_dir))
    assert isinstance(gkl.load_model("Addepalli2022Efficient_RN18"), torch.nn.Module)


def test_folders_are_the_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from app.core.settings import Settings

    for variables in (
        {},
        {"DATA_DIR": "a"},
        {"MODELS_DIR": "b", "DATASETS_DIR": "c"},
        {"DATA_DIR": "a", "MODELS_DIR": ""},
    ):
        with monkeypatch.context() as set_for_now:
            set_for_now.chdir(tmp_path)
            for name in ("DATA_DIR", "MODELS_DIR", "DATASETS_DIR"):
                set_for_now.delenv(f"GKLBENCH_{name}", raising=False)
            for name, value in variables.items():
                set_for_now.setenv(f"GKLBENCH_{name}", value)
            settings = Settings()
            assert models_folder(None).resolve() == settings.effective_models_dir
            assert datasets_folder(None).resolve() == settings.effective_datasets_dir


@pytest.mark.usefixtures("no_network")
def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        gkl.load_model("Wong2020Fast", "cifar10", "Linf", models_dir=tmp_path)
    said = str(refused.value)
    assert "are not here and cannot be downloaded" in said
    assert f"put them at {tmp_path / 'cifar10' / 'Linf' / 'Wong2020Fast.pt'}" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (("Carmon2019Unlabelled", "cifar10", "Linf"), "did you mean 'Carmon2019Unlabeled' or"),
        (("Carmon2019Unlabeled", "cifar", "Linf"), "did you mean 'cifar10' or 'cifar100'?"),
        (("Carmon2019Unlabeled", "cifar10", "linf"), "did you mean 'Linf'?"),
        (("Carmon2019Unlabeled", "digits", "Linf"), "known: cifar10, cifar100, imagenet"),
        (
            ("Carmon2019Unlabeled", "cifar10", "L2"),
            "has no Carmon2019Unlabeled for cifar10, L2; it has one for 'cifar10/Linf'",
        ),
        (("Standard_R50", "imagenet", "Linf"), "is not offered here: it downloads weights"),
        (("Nothing", "cifar10", "Linf"), "unknown model of RobustBench's zoo for cifar10, Linf, 'Nothing'"),
    ],
)
def test_a_name_that_is_unknown_is_told(name: tuple[str, str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        gkl.load_model(*name, models_dir=tmp_path)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 3000


def test_every_name_of_the_zoo_is_accepted() -> None:
    for dataset, threat_model, model in ZOO.values():
        _check_name(model, dataset, threat_model)


# --- files -------------------------------------------------------------------------------------------------------


def test_what_is_trained_here_says_what_it_is(tmp_path: Path) -> None:
    trained = gkl.train("digits", tmp_path, architecture="tiny_cnn", epochs=1, evaluation=None, progress=False)
    loaded = gkl.load_weights(str(trained.weights))
    assert not loaded.training
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor.cpu(), loaded.state_dict()[name])
    with pytest.raises(InvalidInput, match=r"weights\.safetensors"):
        gkl.load_weights(trained.weights, "small_cnn")


def test_a_file_from_elsewhere_needs_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    model = build_model("tiny_cnn", "digits")
    state = {f"module.1.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"state_dict": state | {"module.0.mean": torch.tensor([0.5]), "module.0.std": torch.tensor([0.5])}}, path
    )
    with pytest.raises(InvalidInput, match="does not say which network it is; give its architecture and data set"):
        gkl.load_weights(path)
    loaded = gkl.load_weights(path, "tiny_cnn", "digits")
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        # That is what it does by itself.
        assert torch.equal(loaded(x), model.eval()(x))
    for names, says in [
        (("tiny_cn", "digits"), "unknown architecture 'tiny_cn'; did you mean 'tiny_cnn'?"),
        (("tiny_cnn", "digit"), "unknown data set 'digit'; did you mean 'digits'?"),
        (("resnet_18", "digits"), "cannot be built for digits"),
    ]:
        with pytest.raises(InvalidInput, match=re.escape(says)):
            gkl.load_weights(path, *names)
    with pytest.raises(InvalidInput, match="there is no file"):
        gkl.load_weights(tmp_path / "none.pt", "tiny_cnn", "digits")


# --- ImageNet ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datasets")
    photograph = directory / "photograph.png"
    Image.fromarray(pixels(1, 330, 410, 3)[0]).save(photograph)
    write_imagenet_test_images(directory, [photograph])
    return directory


class _FirstPixels(torch.nn.Module):
    """Two classes by an image's first rows, for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x[:, 0, 0, :2] * self.weight, (0, 998))


def test_every_imagenet_model_is_marked_with_its_preprocessing() -> None:
    for name, (dataset, _, _) in ZOO.items():
        marked = getattr(_prepared(torch.nn.Identity(), name, dataset), "gkl_preprocessing", None)
        assert marked == ZOO_PREPROCESSING.get(name)


@pytest.mark.long
def test_an_imagenet_model_sees_what_it_was_published_with(photographs: Path, tmp_path: Path) -> None:
    name = "imagenet/Linf/Wong2020Fast"
    path = tmp_path / f"{name}.safetensors"
    save_tensors(path, build_model(name, "imagenet").state_dict(), {})
    model = gkl.load_weights(path, name, "imagenet")
    path.unlink()
    assert model.gkl_preprocessing == "Crop288"
    options = {"protocol": "clean", "num_points": 2, "datasets_dir": photographs, "progress": False}
    verdict = gkl.evaluate(model, "imagenet", **options)  # type: ignore[arg-type]
    expected = load_test("imagenet", photographs, 2, PREPROCESSINGS["Crop288"])
    assert torch.equal(verdict.data.images, expected.images)
    certificate = verdict.save_certificate(tmp_path / "certificate.safetensors")
    assert load_tensors(certificate)[1]["manifest"]["preprocessing"] == "Crop288"
    assert verify(certificate, None, datasets_dir=photographs).holds


def test_a_preprocessing_can_be_said(photographs: Path, tmp_path: Path) -> None:
    options = {"protocol": "clean", "num_points": 1, "datasets_dir": photographs, "progress": False}
    model = _FirstPixels()
    model.gkl_preprocessing = "BicubicRes256Crop224"
    own = gkl.evaluate(torch.nn.Sequential(model).eval(), "imagenet", **options)  # type: ignore[arg-type]
    assert own.preprocessing == "BicubicRes256Crop224"
    assert torch.equal(
        own.data.images, load_test("imagenet", photographs, 1, PREPROCESSINGS["BicubicRes256Crop224"]).images
    )
    certificate = own.save_certificate(tmp_path / "certificate.safetensors")
    assert load_tensors(certificate)[1]["manifest"]["preprocessing"] == "BicubicRes256Crop224"
    assert verify(certificate, None, datasets_dir=photographs).holds
    model = _FirstPixels()
    plain = gkl.evaluate(model, "imagenet", **options)  # type: ignore[arg-type]
    assert (plain.preprocessing, plain.data.images.shape) == ("Res256Crop224", (1, 3, 224, 224))
    said = gkl.evaluate(model, "imagenet", preprocessing="Crop288", **options)  # type: ignore[arg-type]
    assert said.data.images.shape == (1, 3, 288, 288)
    with pytest.raises(InvalidInput, match="unknown preprocessing 'Crop28'; did you mean 'Crop288'"):
        gkl.evaluate(model, "imagenet", preprocessing="Crop28", **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match='preprocessing is for the data set "imagenet"'):
        gkl.evaluate(model, "digits", preprocessing="Crop288", protocol="clean")
