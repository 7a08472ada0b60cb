"""Loads networks with their weights: those that RobustBench publishes, and those in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from gkl.catalog import ARCHITECTURES, DATASETS, preprocessing_for, unknown_name_message
from gkl.catalog.preprocessing import PREPROCESSINGS, Preprocessing
from gkl.catalog.zoo import NOT_OFFERED, ZOO
from gkl.errors import InvalidInput
from gkl.formats.tensor_files import load_metadata
from gkl.formats.weights_format import weights_format
from gkl.library.folders import models_folder
from gkl.library.undisturbed import own_streams
from gkl.models.weights import read_model

PREPROCESSING_ATTRIBUTE = "gkl_preprocessing"
"""Attribute of an ImageNet network that holds the name of the preprocessing it was published with."""


def load_model(
    model_name: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    *,
    models_dir: Path | str | None = None,
) -> nn.Module:
    """Load a model of RobustBench's zoo with its published weights, by the names of RobustBench's own `load_model`.

    The network takes images (B, channels, height, width) in [0, 1] and returns logits (B, classes); it normalizes its
    input itself, if it needs to. RobustBench's loader downloads a missing file, if there is an internet connection.

    An ImageNet model was published with a preprocessing such as 'BicubicRes256Crop224': how photographs are resized and
    cropped for it. The network's attribute `gkl_preprocessing` has its name, and `gkl.evaluate(model, "imagenet")` uses
    it. Prepare your own images in the same way: another preprocessing gives other accuracies.

    Args:
        model_name: RobustBench's model id, such as 'Carmon2019Unlabeled'.
        dataset: 'cifar10', 'cifar100' or 'imagenet'.
        threat_model: 'Linf', 'L2' or 'corruptions': the leaderboard on which RobustBench lists the model.
        models_dir: the folder with the weights, as <dataset>/<threat_model>/<model_name>.pt; by default
            GKLBENCH_MODELS_DIR, else the service's folder.

    Returns:
        The network, on the CPU and in evaluation mode.

    Raises:
        InvalidInput: there is no such model (the message lists the nearest names); its file is missing and cannot be
            downloaded (the message says where to put it); or the file is damaged.
    """
    _check_name(model_name, dataset, threat_model)
    name = f"{dataset}/{threat_model}/{model_name}"
    with own_streams():
        model = read_model(name, dataset, None, models_folder(models_dir)).network
    return _prepared(model, name, dataset)


def load_weights(
    path: Path | str,
    architecture: str | None = None,
    dataset: str | None = None,
    *,
    weights_key: str | None = None,
) -> nn.Module:
    """Build a network of this project's catalog and load its weights from a file.

    A file from `gkl.train` or from the service names its network. For any other file give the architecture and the data
    set. Prefixes of tensor names, such as DataParallel's 'module.', are ignored. If the file has a normalization layer
    in front of the network, the returned network has it too.

    Args:
        path: a safetensors file, or a state dict of torch.save.
        architecture: a name of `gkl.catalog.ARCHITECTURES`, such as 'wrn_34_10' or 'cifar10/Linf/Carmon2019Unlabeled'.
        dataset: a name of `gkl.catalog.DATASETS`; the network is built for its images and classes.
        weights_key: which network to load from a file that holds several, such as 'state_dict_ema'.

    Returns:
        The network, on the CPU and in evaluation mode. It takes images (B, channels, height, width) in [0, 1] and
        returns logits (B, classes).

    Raises:
        InvalidInput: the file is missing, damaged or of another network; neither the file nor the call says which
            network it is; or a name is unknown.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}; name a file of weights")
    if architecture is None or dataset is None:
        described = load_metadata(path) if weights_format(path) == "safetensors" else {}
        architecture, dataset = architecture or described.get("architecture"), dataset or described.get("dataset")
    if architecture is None or dataset is None:
        raise InvalidInput(
            f"{path.name} does not say which network it is; give its architecture and data set, such as "
            "load_weights(path, 'wrn_34_10', 'cifar10')"
        )
    for what, given, known in (("architecture", architecture, ARCHITECTURES), ("data set", dataset, DATASETS)):
        if str(given) not in known:
            raise InvalidInput(unknown_name_message(what, str(given), known))
    with own_streams():
        model = read_model(architecture, dataset, path, None, weights_key).network
    return _prepared(model, architecture, dataset)


def preprocessing_named(name: str) -> Preprocessing:
    """
    Raises:
        InvalidInput: there is no preprocessing of this name.
    """
    if name not in PREPROCESSINGS:
        raise InvalidInput(unknown_name_message("preprocessing", name, PREPROCESSINGS))
    return PREPROCESSINGS[name]


def _prepared(model: nn.Module, architecture: str, dataset: str) -> nn.Module:
    preprocessing = preprocessing_for(dataset, architecture)
    if preprocessing is not None:
        setattr(model, PREPROCESSING_ATTRIBUTE, preprocessing.name)
    return model.eval()


def _check_name(model_name: str, dataset: str, threat_model: str) -> None:
    datasets = dict.fromkeys(each for each, _, _ in ZOO.values())
    _check_known("data set of RobustBench's zoo", dataset, datasets)
    threat_models = dict.fromkeys(threat for each, threat, _ in ZOO.values() if each == dataset)
    _check_known(f"threat model of RobustBench's zoo for {dataset}", threat_model, threat_models)
    name = f"{dataset}/{threat_model}/{model_name}"
    if name in NOT_OFFERED:
        raise InvalidInput(f"{model_name} is not offered here: it {NOT_OFFERED[name]}")
    if name in ZOO:
        return
    elsewhere = [each for each, (_, _, model) in ZOO.items() if model == model_name]
    if elsewhere:
        places = " and ".join(repr(each.rpartition("/")[0]) for each in elsewhere)
        raise InvalidInput(f"RobustBench has no {model_name} for {dataset}, {threat_model}; it has one for {places}")
    _check_known(
        f"model of RobustBench's zoo for {dataset}, {threat_model},",
        model_name,
        [model for each, threat, model in ZOO.values() if (each, threat) == (dataset, threat_model)],
    )


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InvalidInput(unknown_name_message(what, str(name), known))
