"""MobileNetV1 for ImageNet (arXiv 1704.04861) and MobileNetV2 for 32x32 images (arXiv 1801.04381).

The names of the state dicts are those of the public repository mdistiller, so that its checkpoints load; those of
MobileNetV2 are RepDistiller's, too.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from gkl.models.input_normalization import imagenet_normalization, small_image_normalization
from gkl.models.layers import (
    average,
    convolution,
    convolution_norm_relu,
    initialize_convolutions,
    initialize_linear,
)

# Of each depthwise separable convolution of MobileNetV1: output channels, stride.
_SEPARABLE = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)

# Of each stage of MobileNetV2: expansion, output channels at width 1, blocks, stride of the first block.
# ImageNet's form has the strides 1, 2, 2, 2, 1, 2, 1.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """A 3x3 convolution, 13 depthwise separable convolutions, an average, and a linear layer; width 1."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image; 224 pixels as published.
        """
        super().__init__()
        self.normalization = imagenet_normalization()
        channels = 32
        parts = [nn.Sequential(*convolution_norm_relu(image_shape[0], channels, 3, stride=2))]
        for out_channels, stride in _SEPARABLE:
            depthwise = convolution_norm_relu(channels, channels, 3, stride, groups=channels)
            parts.append(nn.Sequential(*depthwise, *convolution_norm_relu(channels, out_channels, 1)))
            channels = out_channels
        self.model = nn.Sequential(*parts)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, self.fc(average(self.model(self.normalization(x)))))


class MobileNetV2(nn.Module):
    """A 3x3 convolution with stride 2, 17 inverted residual blocks, a 1x1 convolution, an average, and a linear layer.

    The second stage has stride 1, where ImageNet's form has 2, and the activation is ReLU, where the paper has ReLU6.
    """

    def __init__(self, width: float, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            width: factor of all channels but the 1280 of the last convolution; at most 1.
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        self.normalization = small_image_normalization(num_classes, image_shape)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*convolution_norm_relu(image_shape[0], channels, 3, stride=2))
        self.blocks = nn.Sequential()
        for expansion, at_width_1, blocks, stride in _STAGES:
            out_channels = int(at_width_1 * width)
            first = _InvertedResidual(channels, out_channels, stride, expansion)
            others = (_InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *others))
            channels = out_channels
        self.conv2 = nn.Sequential(*convolution_norm_relu(channels, 1280, 1))
        linear = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(linear)
        initialize_convolutions(self)
        initialize_linear(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = self.conv2(self.blocks(self.conv1(self.normalization(x))))
        return cast(Tensor, self.classifier(average(x)))


class _InvertedResidual(nn.Module):
    """Convolutions that widen (1x1), filter each channel (3x3) and narrow (1x1); added to the input if the shape stays.

    A block of expansion 1 has the first 1x1 convolution, too, which the paper leaves out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.adds_input = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *convolution_norm_relu(in_channels, hidden, 1),
            *convolution_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            convolution(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, out_channels, height / stride, width / stride), rounded up."""
        changed = cast(Tensor, self.conv(x))
        return x + changed if self.adds_input else changed
