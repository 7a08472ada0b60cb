"""Layers and an initialization that several of the distillation networks share."""

from __future__ import annotations

from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias for odd kernels, padded so that stride 1 keeps the image size."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)


def convolution_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Such a convolution, BatchNorm and ReLU, as three layers for an `nn.Sequential`."""
    layer = convolution(in_channels, out_channels, kernel_size, stride, groups)
    return [layer, nn.BatchNorm2d(out_channels), nn.ReLU()]


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A residual block's shortcut: a 1x1 convolution and BatchNorm; without layers, the identity, if the shape stays.

    An identity has no entries in the state dict.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def average(x: Tensor) -> Tensor:
    """Average each channel over the image: (B, channels, height, width) -> (B, channels)."""
    return x.mean((2, 3))


def initialize_convolutions(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / (k^2 * out_channels)), k the kernel size; biases become 0.

    This is the initialization of arXiv 1502.01852 for ReLU, by the number of outputs.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_linear(layer: nn.Linear) -> None:
    """Draw the weights from N(0, 0.01^2); the bias becomes 0."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
