"""Input normalization inside a network, with the statistics of the data set that it is built for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Means and standard deviations of the training images' channels, as CIFAR distillation and torchvision use them.
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COLOUR = {10: _CIFAR10, 100: _CIFAR100, 1000: _IMAGENET}
_GREY = (0.5,), (0.5,)


def register_statistics(network: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Give a network the statistics for `normalized`. They add nothing to its state dict."""
    mean, std = _COLOUR[num_classes] if image_shape[0] == 3 else _GREY
    network.register_buffer("input_mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
    network.register_buffer("input_std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)


def normalized(network: nn.Module, x: Tensor) -> Tensor:
    """(x - mean) / std per channel: (B, channels, height, width) in [0, 1] -> the same shape."""
    mean, std = network.input_mean, network.input_std
    assert isinstance(mean, Tensor) and isinstance(std, Tensor), "registered when the network was built"
    return (x - mean) / std


def initialize_by_fan_out(network: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw convolutions from N(0, 2 / (kernel area * output channels)), as ResNet does (arXiv 1502.01852).

    Args:
        network: whose convolutions and linear layers are initialized in place.
        linear_std: standard deviation of linear layers' weights, whose biases become 0; None leaves them as torch has
            them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, 0.0, (2.0 / (area * module.out_channels)) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)
