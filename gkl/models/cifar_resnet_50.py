"""ResNet-50 for 32x32 images: ImageNet's stages of bottlenecks (arXiv 1512.03385), with a first layer for small images.

The names of the state dict are those of the public repositories RepDistiller and mdistiller, so that their checkpoints
load.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from gkl.models.input_normalization import small_image_normalization
from gkl.models.layers import average, convolution, initialize_convolutions, projection

_EXPANSION = 4


class CifarResNet50(nn.Module):
    """A 3x3 convolution with stride 1, four stages of 3, 4, 6 and 3 bottlenecks, an average, and a linear layer.

    ImageNet's ResNet-50 begins with a 7x7 convolution with stride 2 and max-pooling instead.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.conv1 = convolution(image_shape[0], 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(64 * _EXPANSION, 128, blocks=4, stride=2)
        self.layer3 = _stage(128 * _EXPANSION, 256, blocks=6, stride=2)
        self.layer4 = _stage(256 * _EXPANSION, 512, blocks=3, stride=2)
        self.linear = nn.Linear(512 * _EXPANSION, num_classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(self.normalization(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.linear(average(x)))


class _Bottleneck(nn.Module):
    """ReLU(shortcut(x) + convolutions of 1x1, 3x3 and 1x1 with BatchNorm, ReLU between them)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """
        Args:
            in_channels: channels of the input.
            width: channels of the 3x3 convolution; the output has four times as many.
            stride: of the 3x3 convolution.
        """
        super().__init__()
        out_channels = _EXPANSION * width
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, 4 * width, height / stride, width / stride), rounded up."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return F.relu(self.shortcut(x) + residual)


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(_Bottleneck(_EXPANSION * width, width, 1) for _ in range(blocks - 1)))
