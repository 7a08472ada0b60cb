"""RobustBench's timm models with published weights: from a file, against RobustBench's own loader."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn

from gkl.catalog import DATASETS
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.models import load_model, weights_sha256
from gkl.models.robustbench import _robustbench, _timm_address, _timm_name, published_files

QUICK = (
    "cifar10/Linf/Debenedetti2022Light_XCiT-S12",
    "imagenet/Linf/Debenedetti2022Light_XCiT-S12",
    "imagenet/corruptions/AlexNet",
    "imagenet/corruptions/Tian2022Deeper_DeiT-S",
)
LARGE = (
    "cifar10/Linf/Debenedetti2022Light_XCiT-M12",
    "cifar10/Linf/Debenedetti2022Light_XCiT-L12",
    "cifar100/Linf/Debenedetti2022Light_XCiT-S12",
    "cifar100/Linf/Debenedetti2022Light_XCiT-M12",
    "cifar100/Linf/Debenedetti2022Light_XCiT-L12",
    "imagenet/Linf/Debenedetti2022Light_XCiT-M12",
    "imagenet/Linf/Debenedetti2022Light_XCiT-L12",
    "imagenet/corruptions/Tian2022Deeper_DeiT-B",
)


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where RobustBench's loader finds the weights of timm models that it downloaded before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # A proxy that nothing listens on, so that this test reaches nothing wherever it runs.
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    return tmp_path / "torch" / "hub" / "checkpoints"


def publish(name: str, torch_cache: Path, wrap: str | None = None) -> Path:
    """Random weights in the file that RobustBench's loader would have downloaded: the bare network's state dict."""
    timm_name = _timm_name(name)
    assert timm_name is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        built = import_module("timm").create_model(timm_name, num_classes=DATASETS[ZOO[name][0]].num_classes)
    # RobustBench puts the normalization around it after the weights are loaded.
    state = (built.model if isinstance(built, nn.Sequential) else built).state_dict()
    path = torch_cache / Path(urlsplit(_timm_address(timm_name)).path).name
    path.parent.mkdir(parents=True)
    torch.save({wrap: state} if wrap else state, path)
    return path


def check_that_both_loaders_agree(name: str, torch_cache: Path, models_dir: Path) -> None:
    dataset, threat_model, model_id = ZOO[name]
    published = publish(name, torch_cache)
    images = torch.rand(2, *DATASETS[dataset].image_shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        load = _robustbench("utils").load_model
        theirs = load(model_id, model_dir=models_dir, dataset=dataset, threat_model=threat_model)(images)
        (ours,) = published_files(name, models_dir)
        assert ours == published
        ours = models_dir / dataset / threat_model / f"{model_id}.pt"
        ours.parent.mkdir(parents=True)
        published.rename(ours)
        assert published_files(name, models_dir) == [ours]
        model = load_model(name, dataset, None, models_dir)
        assert not model.training
        assert torch.equal(model(images), theirs)
    # The largest has 400 MB, and pytest keeps what tests leave.
    ours.unlink()
    for module in model.modules():
        assert "state_dict" not in getattr(module, "pretrained_cfg", {})


@pytest.mark.parametrize("name", QUICK)
def test_a_timm_model_is_what_robustbench_loads(name: str, torch_cache: Path, tmp_path: Path) -> None:
    check_that_both_loaders_agree(name, torch_cache, tmp_path / "models")


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_a_large_timm_model_is_what_robustbench_loads(name: str, torch_cache: Path, tmp_path: Path) -> None:
    check_that_both_loaders_agree(name, torch_cache, tmp_path / "models")


def test_these_are_all_timm_models_of_the_zoo() -> None:
    assert {name for name in ZOO if _timm_name(name) is not None} == {*QUICK, *LARGE}


def test_a_download_that_robustbench_made_is_used_where_it_lies(torch_cache: Path, tmp_path: Path) -> None:
    """Here with the state dict under 'model', which timm unpacks for XCiT."""
    name = "cifar10/Linf/Debenedetti2022Light_XCiT-S12"
    published = publish(name, torch_cache, wrap="model")
    assert isinstance(load_model(name, "cifar10", None, tmp_path), nn.Module)
    assert published_files(name, tmp_path) == [published]
    assert len(weights_sha256(name, None, tmp_path)) == 64


@pytest.mark.usefixtures("torch_cache")
def test_a_timm_models_weights_that_cannot_be_downloaded_are_named(tmp_path: Path) -> None:
    wanted = tmp_path / "imagenet" / "corruptions" / "AlexNet.pt"
    with pytest.raises(InvalidInput, match=f"cannot be downloaded .*; put them at {wanted}, or set"):
        load_model("imagenet/corruptions/AlexNet", "imagenet", None, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("torch_cache")
def test_other_weights_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    (path,) = published_files("imagenet/corruptions/AlexNet", tmp_path)
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InvalidInput, match=r"AlexNet\.pt cannot be loaded as the weights of imagenet/corruptions/"):
        load_model("imagenet/corruptions/AlexNet", "imagenet", None, tmp_path)
