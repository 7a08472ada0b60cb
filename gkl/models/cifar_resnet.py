"""ResNets for 32x32 images (arXiv 1512.03385), as distillation uses them.

The names of the state dict are those of the public repositories RepDistiller and mdistiller, so that their checkpoints
load.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from gkl.models.input_normalization import small_image_normalization
from gkl.models.layers import average, convolution, initialize_convolutions, projection


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of basic blocks, an average over the image, and a linear layer.

    The section on CIFAR-10 of arXiv 1512.03385 describes it. Here a shortcut is a 1x1 convolution with BatchNorm where
    the shape changes (its option B).
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        """
        Args:
            depth: number of layers with weights on the main path, 6 n + 2 for n blocks in each stage.
            widths: channels of the first convolution and of the three stages.
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.conv1 = convolution(image_shape[0], stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.fc = nn.Linear(third, num_classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(self.normalization(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(average(x)))


class _BasicBlock(nn.Module):
    """ReLU(shortcut(x) + two 3x3 convolutions with BatchNorm, ReLU between them)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, out_channels, height / stride, width / stride), rounded up."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(self.downsample(x) + residual)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(_BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
