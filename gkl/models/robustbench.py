"""Builds networks from RobustBench's own classes, so that weights trained here load in RobustBench unchanged."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pyautoattack
import torch
from torch import nn

from gkl.catalog import DATASETS
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.formats.weights_format import weights_format

# Mean and standard deviation of the training images; RobustBench has none for this data set.
_FASHION_MNIST_STATISTICS = (0.2860,), (0.3530,)


def resnet_18(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    architectures = _robustbench("model_zoo.architectures.resnet")
    return _built(lambda: architectures.ResNet(architectures.BasicBlock, [2, 2, 2, 2], num_classes=num_classes))


def preact_resnet_18(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    architectures = _robustbench("model_zoo.architectures.resnet")
    return _built(lambda: architectures.PreActResNet(architectures.PreActBlock, [2, 2, 2, 2], num_classes=num_classes))


def wide_resnet(depth: int, width: int) -> Callable[[int, tuple[int, int, int]], nn.Module]:
    """Return a builder of TRADES' WideResNet with ReLU and without input normalization."""

    def build(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        network = _robustbench("model_zoo.architectures.wide_resnet").WideResNet
        return _built(lambda: network(depth=depth, num_classes=num_classes, widen_factor=width))

    return build


def dm_network(kind: str, depth: int, width: int) -> Callable[[int, tuple[int, int, int]], nn.Module]:
    """Return a builder of a network of arXiv 2010.03593, with SiLU and input normalization.

    Args:
        kind: name of the network's class in RobustBench.
        depth: its depth.
        width: its width factor; 0 for the ResNet, which has none.
    """

    def build(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        module = _robustbench("model_zoo.architectures.dm_wide_resnet")
        network = getattr(module, kind)
        channels, height, _ = image_shape
        if channels == 1:
            mean, std = _FASHION_MNIST_STATISTICS
        else:
            cifar = f"CIFAR{num_classes}"
            mean, std = getattr(module, f"{cifar}_MEAN"), getattr(module, f"{cifar}_STD")
        return _built(
            lambda: network(
                num_classes=num_classes,
                depth=depth,
                width=width,
                activation_fn=nn.SiLU,
                mean=mean,
                std=std,
                # Pads to 32x32 pixels, the size that its pooling needs.
                padding=(32 - height) // 2,
                num_input_channels=channels,
            )
        )

    return build


def zoo_definition(name: str) -> Callable[[int, tuple[int, int, int]], nn.Module]:
    """Return a builder of a zoo model, which builds it as `robustbench.load_model` does, but with random weights."""

    def build(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        dataset, threat_model, model_id = ZOO[name]
        zoo, enums = _robustbench("model_zoo"), _robustbench("model_zoo.enums")
        timm_name = _timm_name(name)
        if timm_name is not None:
            create = import_module("timm").create_model
            return _built(lambda: create(timm_name, num_classes=num_classes, pretrained=False))
        definitions = zoo.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat_model)]
        return _built(definitions[model_id]["model"])

    return build


def published_files(name: str, models_dir: Path) -> list[Path]:
    """Return the files of a zoo model's published weights in RobustBench's cache; an ensemble has several.

    RobustBench downloads its timm models into torch's cache instead. If such a file is missing in RobustBench's cache
    and exists in torch's, the latter is returned.
    """
    files = files_in(models_dir, name)
    in_cache = name_in_torch_cache(name)
    if in_cache is not None and not files[0].is_file():
        cached = Path(torch.hub.get_dir()) / "checkpoints" / in_cache
        return [cached] if cached.is_file() else files
    return files


def files_in(models_dir: Path, name: str) -> list[Path]:
    """Return the paths of a zoo model's published weights in RobustBench's cache, whether the files exist or not."""
    dataset, threat_model, model_id = ZOO[name]
    zoo, enums = _robustbench("model_zoo"), _robustbench("model_zoo.enums")
    definition = zoo.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat_model)].get(model_id, {})
    path = models_dir / dataset / threat_model / f"{model_id}.pt"
    parts = definition.get("gdrive_id")
    return [path.with_name(f"{path.name}_m{i}.pt") for i in range(len(parts))] if isinstance(parts, list) else [path]


def name_in_torch_cache(name: str) -> str | None:
    """Return the file name of a timm model's published weights in torch's cache; None for the zoo's other models."""
    timm_name = _timm_name(name)
    return None if timm_name is None else Path(urlsplit(_timm_address(timm_name)).path).name


def load_published(name: str, models_dir: Path) -> nn.Module:
    """Load a zoo model with its published weights by RobustBench's own loader, which downloads missing files.

    Raises:
        InvalidInput: a file is missing and cannot be downloaded, or does not hold the weights; the message names the
            file and says where to put it.
    """
    dataset, threat_model, model_id = ZOO[name]
    files = published_files(name, models_dir)
    timm_name = _timm_name(name)
    for file in files:
        if file.is_file():
            weights_format(file)
    missing = [file for file in files if not file.is_file()]
    try:
        if timm_name is not None:
            return _built(lambda: _load_timm(timm_name, files[0], DATASETS[dataset].num_classes))
        loader = _robustbench("utils").load_model
        return _built(lambda: loader(model_id, model_dir=models_dir, dataset=dataset, threat_model=threat_model))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if missing:
            raise InvalidInput(
                f"the published weights of {name} are not here and cannot be downloaded ({reason:.200}); put them at "
                f"{missing[0]}, or set GKLBENCH_MODELS_DIR to where RobustBench keeps its models"
            ) from error
        raise InvalidInput(
            f"{files[0]} cannot be loaded as the weights of {name} ({reason:.300}); fetch the file again"
        ) from error


def _load_timm(timm_name: str, file: Path, num_classes: int) -> nn.Module:
    """Load a timm model as RobustBench's `load_model` does, but from `file`, which is downloaded if it is missing.

    RobustBench's own argument for a file, `custom_checkpoint`, does not work for these models: timm downloads the
    published weights anyway, and RobustBench then loads the file into the network with a normalization layer, whose
    tensors have other names than those in the file.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_timm_address(timm_name), str(file), progress=False)
        weights_format(file)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model: nn.Module = import_module("timm").create_model(
        timm_name, num_classes=num_classes, pretrained=True, pretrained_cfg_overlay={"state_dict": weights}
    )
    for module in model.modules():
        # Otherwise the configuration would keep a second copy of the weights in memory.
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return model.eval()


def _timm_address(timm_name: str) -> str:
    """Return the URL from which timm downloads the model's weights."""
    address = import_module("timm.models").get_pretrained_cfg(timm_name).url
    assert isinstance(address, str)
    return address


def _timm_name(name: str) -> str | None:
    """Return timm's name of a zoo model; None if timm does not have the model."""
    dataset, threat_model, model_id = ZOO[name]
    # Importing the zoo registers its models in timm.
    _robustbench("model_zoo")
    timm_name = f"{model_id.lower().replace('-', '_')}_{dataset}_{threat_model.lower()}"
    return timm_name if import_module("timm").is_model(timm_name) else None


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    # Several definitions print to standard output, or raise warnings that only their authors can fix.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def _robustbench(module: str) -> ModuleType:
    # RobustBench imports AutoAttack as `autoattack`, which is not on PyPI; pyautoattack is its release there.
    sys.modules.setdefault("autoattack", pyautoattack)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(f"robustbench.{module}")
    except ImportError as error:
        raise InvalidInput(
            f"this architecture needs the package robustbench, which cannot be imported here: {error}"
        ) from error
