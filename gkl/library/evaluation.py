"""Robust accuracy of any classifier on any images, in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gkl.catalog import DATASETS, Norm
from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING, Preprocessing
from gkl.data import ImageSet, unit_range
from gkl.device import is_out_of_memory, out_of_memory_explained, select_device
from gkl.errors import GklError, InvalidInput
from gkl.evaluation.blocks import Blocks
from gkl.evaluation.inputs import checked_images
from gkl.evaluation.measurement import measure
from gkl.files import check_writable
from gkl.library.images import Data, image_set
from gkl.library.networks import PREPROCESSING_ATTRIBUTE, preprocessing_named
from gkl.library.undisturbed import undisturbed
from gkl.library.verdict import Verdict
from gkl.models.normalization import Normalization
from gkl.progress_bar import progress_bar
from gkl.spec import Evaluation

Numbers = float | tuple[float, ...] | list[float]


@out_of_memory_explained()
def evaluate(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Data,
    *,
    norm: Norm = "Linf",
    epsilon: float | str | None = None,
    protocol: str = "standard",
    attacks: tuple[str, ...] | list[str] | None = None,
    num_points: int | None = None,
    batch_size: int = 200,
    seed: int = 0,
    device: torch.device | str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    num_classes: int | None = None,
    preprocessing: str | None = None,
    output: Path | str | None = None,
    progress: bool = True,
    datasets_dir: Path | str | None = None,
) -> Verdict:
    """Attack a classifier and measure its robust accuracy, with an adversarial example for each point that breaks.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
    >>> evaluate(model, "digits", protocol="clean", num_points=30, progress=False)
    Verdict: clean 23.33 % (95 % interval 11.8 to 40.9) on 30 points

    The call leaves the model, its mode and device, the images, and the random streams of Python, NumPy and torch
    unchanged, whatever the model does when it is called, and also after Ctrl-C.

    Args:
        model: maps images (B, channels, height, width) in [0, 1] to logits (B, C): an `nn.Module` or any callable.
        data: images and labels as a pair of tensors, arrays or lists; a DataLoader or a Dataset; or a data set's name.
            Images are uint8 or floats in [0, 1], with channels first or last.
        norm: norm that bounds the perturbations.
        epsilon: largest norm of a perturbation, such as '8/255'; for a named data set its usual budget by default.
        protocol: AutoAttack's 'standard', 'plus' or 'rand', 'custom' with `attacks`, or 'clean'.
        attacks: attacks of the protocol 'custom', such as ['apgd-ce', 'square'].
        num_points: number of points to use, from the first on; by default all.
        batch_size: number of points attacked together. It affects the result: each block of this size has its own
            random stream.
        seed: seed of the attacks.
        device: where to compute; by default the model's device.
        mean: mean with which the model's images were normalized, one for each channel or one for all, in units of
            [0, 1]. The normalization is put in front of the model, so that attacks perturb images in [0, 1].
        std: standard deviation of the same normalization.
        num_classes: C; by default found by calling the model.
        preprocessing: how the photographs of "imagenet" are resized and cropped, by a name of
            `gkl.catalog.preprocessing.PREPROCESSINGS`. By default the preprocessing that a model of `gkl.load_model`
            was published with, else 'Res256Crop224'.
        output: a folder for finished parts of the evaluation, which needs an `nn.Module`. After an interruption the
            same call continues from them.
        progress: whether to show a progress bar; needs tqdm.
        datasets_dir: the folder with the files of a named data set; by default GKLBENCH_DATASETS_DIR, else the
            service's folder.

    Returns:
        The accuracies, the outcome of each point, and an adversarial example for each point that an attack broke.

    Raises:
        InvalidInput: the data, the options or the model's answers cannot be used; the message says what was found.
        OutOfMemory: not even a single image fits on the device.
    """
    prepared = _preprocessing(model, data, preprocessing)
    images, dataset = image_set(data, num_points=num_points, datasets_dir=datasets_dir, preprocessing=prepared)
    evaluation = _evaluation(
        dataset,
        norm=norm,
        epsilon=epsilon,
        protocol=protocol,
        attacks=attacks,
        batch_size=batch_size,
        seed=seed,
    )
    # Checked before the model is called.
    images = checked_images(images, max(2, num_classes or _classes_seen(images)), evaluation)
    network = _network(model, mean, std, images)
    with undisturbed(network):
        chosen = next((p.device for p in network.parameters()), torch.device("cpu"))
        if device is not None:
            chosen = select_device(str(device))
            network.to(chosen)
        if num_classes is None:
            num_classes = _count_classes(network, images, chosen)
        blocks = None if output is None else _blocks_in(Path(output), evaluation, network, images, num_classes)
        with progress_bar(shown=progress) as report:
            measurement = measure(
                network, images, evaluation, num_classes=num_classes, blocks=blocks, report=report, device=chosen
            )
        model_sha256 = state_sha256(network)
    return Verdict(
        measurement,
        evaluation,
        images,
        dataset=dataset,
        model=_name_of(model),
        model_sha256=model_sha256,
        num_classes=num_classes,
        preprocessing=None if prepared is None else prepared.name,
    )


def _preprocessing(model: Any, data: Data, given: str | None) -> Preprocessing | None:
    if not isinstance(data, str) or data != "imagenet":
        if given is not None:
            raise InvalidInput(
                'preprocessing is for the data set "imagenet"; prepare images of your own before the call'
            )
        return None
    # All modules are searched: a loaded model may be wrapped in another one.
    parts = model.modules() if isinstance(model, nn.Module) else (model,)
    own = (getattr(part, PREPROCESSING_ATTRIBUTE, None) for part in parts)
    return preprocessing_named(given or next(filter(None, own), DEFAULT_PREPROCESSING.name))


def _evaluation(
    dataset: str | None,
    *,
    norm: Norm,
    epsilon: float | str | None,
    protocol: str,
    attacks: tuple[str, ...] | list[str] | None,
    batch_size: int,
    seed: int,
) -> Evaluation:
    given: dict[str, Any] = {"protocol": protocol, "batch_size": batch_size, "seed": seed}
    if attacks is not None:
        given["attacks"] = tuple(attacks)
    if protocol == "corruptions":
        raise InvalidInput("corrupted images are files of a data set; send such an evaluation to the service")
    if protocol != "clean":
        if epsilon is None and dataset is not None:
            epsilon = DATASETS[dataset].epsilon.get(norm)
        if epsilon is None:
            raise InvalidInput("say how large a perturbation may be, such as epsilon='8/255' or epsilon=0.5")
        given["threat_model"] = {"norm": norm, "epsilon": epsilon}
    try:
        return Evaluation.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = next((str(each) for each in reversed(first["loc"]) if isinstance(each, str)), "")
        text = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{option}: {text[:1].lower()}{text[1:]}" if option else text) from error


def _classes_seen(images: ImageSet) -> int:
    """The number of classes that the labels need at least."""
    labels = images.labels
    return int(labels.max()) + 1 if len(labels) and not labels.is_floating_point() else 0


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Normalized(nn.Module):
    def __init__(self, front: Normalization, model: nn.Module) -> None:
        super().__init__()
        self.front, self.model = front.eval(), model
        # The evaluation reports modules in training mode. This one has no mode of its own, so it takes the model's.
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        """Calls the model in the images' number format, whichever the normalization has."""
        return self.model(self.front(x).to(x.dtype))


def _network(model: Any, mean: Numbers | None, std: Numbers | None, images: ImageSet) -> nn.Module:
    if not callable(model) or isinstance(model, type):
        called = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise InvalidInput(f"the model is {called}; give a network that can be called with images")
    network = model if isinstance(model, nn.Module) else _Called(model)
    if mean is None and std is None:
        return network
    if mean is None or std is None:
        raise InvalidInput("a normalization needs both mean and std; give the other one too")
    channels = images.images.shape[1]
    try:
        front = [torch.as_tensor(given, dtype=torch.float32).reshape(-1) for given in (mean, std)]
    except (TypeError, ValueError) as error:
        raise InvalidInput("mean and std are numbers, one for each channel or one for all") from error
    if any(len(given) not in (1, channels) for given in front):
        raise InvalidInput(f"mean and std have one number, or one for each of the {channels} channels")
    if not all(bool(given.isfinite().all()) for given in front) or not bool((front[1] > 0).all()):
        raise InvalidInput("mean and std are finite, and std above 0")
    if float(front[0].abs().max()) > 1:
        raise InvalidInput("mean and std are in units of pixels in [0, 1]; divide them by 255")
    return _Normalized(Normalization(front[0], front[1]), network)


@torch.no_grad()
def _count_classes(network: nn.Module, images: ImageSet, device: torch.device) -> int:
    """The number of logits that the model returns for each of two images."""
    x = unit_range(images.images[:2]).to(device)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    modes = [(module, module.training) for module in network.modules()]
    try:
        answer = network.eval()(x.to(dtype))
    except (GklError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise InvalidInput(
            f"the model raised {type(error).__name__} on images of shape {tuple(x.shape)}: {error}"
        ) from error
    finally:
        # The verdict records the mode in which the model was given.
        for module, mode in modes:
            module.training = mode
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(x):
        shape = f" of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else ""
        raise InvalidInput(
            f"the model returned a {type(answer).__name__}{shape} for {len(x)} images; it must return a tensor of "
            "logits (images, classes)"
        )
    if answer.shape[1] < 2:
        raise InvalidInput(
            "the model returned one number for each image; it must return one for each of 2 or more classes"
        )
    return answer.shape[1]


def _blocks_in(output: Path, evaluation: Evaluation, network: nn.Module, images: ImageSet, num_classes: int) -> Blocks:
    """
    Raises:
        InvalidInput: nothing can be written there, or the model has no parameters that identify it.
    """
    if not network.state_dict():
        raise InvalidInput(
            "output: a model without parameters cannot be told from another one by its finished parts; leave output "
            "out, or give the nn.Module itself"
        )
    check_writable(output)
    return Blocks(
        output,
        {
            **evaluation.model_dump(mode="json", exclude={"shards"}),
            "num_classes": num_classes,
            "model": repr(network),
            "model_sha256": state_sha256(network),
            "dataset_sha256": images.sha256(),
        },
    )


def state_sha256(model: nn.Module) -> str:
    """sha256 of the names, shapes and numbers of all parameters and buffers."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name_of(model: Any) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)
