"""The input normalization of the distillation networks: each normalizes images in [0, 1] itself.

The authors' training scripts normalize the images before the network, so their checkpoints hold no statistics. These
layers add none to the state dict either.
"""

from __future__ import annotations

import torch

from gkl.models.normalization import Normalization

_Channels = tuple[float, ...]

# By the number of classes: (mean, standard deviation) of the training images, red, green, blue.
_CIFAR: dict[int, tuple[_Channels, _Channels]] = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
_IMAGENET: tuple[_Channels, _Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Maps [0, 1] to [-1, 1], as TinyCNN does.
_GREYSCALE: tuple[_Channels, _Channels] = ((0.5,), (0.5,))


def small_image_normalization(num_classes: int, image_shape: tuple[int, int, int]) -> Normalization:
    """Build the normalization for CIFAR-10 or CIFAR-100, by the number of classes, or for greyscale images.

    Args:
        num_classes: C; 10 or 100 for colour images.
        image_shape: (channels, height, width) of an image.
    """
    return _fixed(*(_GREYSCALE if image_shape[0] == 1 else _CIFAR[num_classes]))


def imagenet_normalization() -> Normalization:
    """Build the normalization for ImageNet."""
    return _fixed(*_IMAGENET)


def _fixed(mean: _Channels, std: _Channels) -> Normalization:
    return Normalization(torch.tensor(mean), torch.tensor(std), in_state_dict=False)
