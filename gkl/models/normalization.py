"""Finds and adds input normalization: a layer that a file has in front of its network, or the network's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkl.errors import InvalidInput

# Tolerance for comparing statistics, which files store in float32, rounded from decimal numbers.
_ROUNDING = 1e-5


class Normalization(nn.Module):
    """Computes (x - mean) / std, with one mean and std per channel or one for all channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, in_state_dict: bool = True) -> None:
        """
        Args:
            mean: (channels,) or (1,), in units of the pixel range [0, 1].
            std: the same.
            in_state_dict: whether the statistics are entries of the state dict. False for a network whose published
                checkpoints lack them.
        """
        super().__init__()
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1), persistent=in_state_dict)
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1), persistent=in_state_dict)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) -> the same shape."""
        return (x - self.mean) / self.std

    @property
    def is_identity(self) -> bool:
        return bool((self.mean == 0).all() and (self.std == 1).all())

    def equals(self, other: Normalization) -> bool:
        """Whether the two normalize equally, up to rounding."""
        pairs = ((self.mean, other.mean), (self.std, other.std))
        return all(bool(((a - b).abs() <= _ROUNDING * (1 + b.abs())).all()) for a, b in pairs)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4g}" for v in t.flatten().tolist()) for t in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def normalization_in_front(mean: Tensor, std: Tensor, file: str) -> Normalization:
    """Build the layer that a file has in front of its network.

    Args:
        mean: the layer's mean in the file; one number, or one per channel.
        std: its standard deviation, likewise.
        file: the file's name in messages.

    Raises:
        InvalidInput: the layer is not for images with values in [0, 1].
    """
    found = Normalization(mean.flatten(), std.flatten())
    if not (found.mean.isfinite().all() and found.std.isfinite().all() and (found.std > 0).all()):
        raise InvalidInput(f"{file} has a normalization layer ({found}) that does not divide by positive numbers")
    if float(found.mean.abs().max()) > 1 or float(found.std.max()) > 1:
        raise InvalidInput(
            f"{file} has a normalization layer ({found}) in front that is not for images with values in [0, 1], as "
            "all attacks here use; save the network with a layer for such images"
        )
    return found


def with_normalization(
    model: nn.Module, front: Normalization, image_shape: tuple[int, int, int]
) -> tuple[nn.Module, str]:
    """Put a normalization layer in front of a network, unless the network itself normalizes equally.

    Returns:
        The network to use, and a sentence that says which of the two was done.

    Raises:
        InvalidInput: the network itself normalizes differently, so that it is unclear how it was trained.
    """
    if {front.mean.numel(), front.std.numel()} - {1, image_shape[0]}:
        raise InvalidInput(f"its normalization layer ({front}) is not for images of {image_shape[0]} channels")
    own = own_normalization(model, image_shape)
    if own is None:
        return nn.Sequential(front, model), f"the file's normalization ({front}) was put in front of the network"
    if own.equals(front):
        return model, f"the file's normalization ({front}) is already part of the architecture"
    raise InvalidInput(
        f"the file has a normalization layer ({front}) in front, and the architecture itself normalizes its images "
        f"with other numbers ({own}); choose an architecture without a normalization of its own"
    )


class _FirstLayerReached(Exception):
    def __init__(self, seen: Tensor) -> None:
        self.seen = seen


@torch.no_grad()
def own_normalization(model: nn.Module, image_shape: tuple[int, int, int]) -> Normalization | None:
    """Find the normalization that a network applies before its first layer with weights; None if it applies none.

    Compares images with the input of that layer, since networks keep their statistics under many different names.

    Args:
        model: the network, on the CPU.
        image_shape: (channels, height, width) of its images.

    Raises:
        InvalidInput: the input of that layer is not a normalized image.
    """
    black, white = torch.zeros(1, *image_shape), torch.ones(1, *image_shape)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, *image_shape, generator=generator)
    seen_black, seen_white, seen_noise = (_first_input(model, x) for x in (black, white, noise))
    # A black and a white image give the scale and shift of each channel. Taken at the middle pixel, which is part of
    # the image even if the network has added a border.
    middle = (..., image_shape[1] // 2, image_shape[2] // 2)
    shift = _cropped(seen_black, image_shape)[middle].reshape(1, -1, 1, 1)
    scale = _cropped(seen_white, image_shape)[middle].reshape(1, -1, 1, 1) - shift
    if not torch.allclose(_cropped(seen_noise, image_shape), scale * noise + shift, rtol=1e-4, atol=1e-4):
        raise _unknown()
    if torch.allclose(scale, torch.ones(1)) and torch.allclose(shift, torch.zeros(1), atol=1e-6):
        return None
    return Normalization(-shift / scale, 1 / scale)


def _first_input(model: nn.Module, x: Tensor) -> Tensor:
    def reached(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            raise _FirstLayerReached(inputs[0].detach().clone())

    layers = [m for m in model.modules() if not [*m.children()] and [*m.parameters(recurse=False)]]
    handles = [layer.register_forward_pre_hook(reached) for layer in layers]
    was_training = model.training
    try:
        model.eval()(x)
    except _FirstLayerReached as found:
        return found.seen
    except Exception as error:
        raise _unknown() from error
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    raise _unknown()


def _cropped(seen: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Recover the image from a layer's input: undo flattening, and cut off an added border."""
    channels, height, width = image_shape
    if seen.shape == (1, channels * height * width):
        return seen.reshape(1, *image_shape)
    if seen.dim() != 4 or seen.shape[1] != channels or seen.shape[2] < height or seen.shape[3] < width:
        raise _unknown()
    top, left = (seen.shape[2] - height) // 2, (seen.shape[3] - width) // 2
    return seen[:, :, top : top + height, left : left + width]


def _unknown() -> InvalidInput:
    return InvalidInput(
        "the file has a normalization layer in front, and it is unclear whether the architecture itself normalizes its "
        "images"
    )
