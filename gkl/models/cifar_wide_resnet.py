"""Wide residual networks for 32x32 images (arXiv 1605.07146), as distillation uses them.

The names of the state dict are those of the public repositories RepDistiller and mdistiller, so that their checkpoints
load.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from gkl.models.input_normalization import small_image_normalization
from gkl.models.layers import average, convolution, initialize_convolutions


class CifarWideResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation blocks, BatchNorm, ReLU, an average, and a linear layer."""

    def __init__(self, depth: int, widening: int, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            depth: number of layers, 6 n + 4 for n blocks in each stage.
            widening: the stages have 16, 32 and 64 channels times this factor.
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        blocks = (depth - 4) // 6
        first, second, third = (widening * channels for channels in (16, 32, 64))
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.conv1 = convolution(image_shape[0], 16, 3)
        self.block1 = _Stage(16, first, blocks, stride=1)
        self.block2 = _Stage(first, second, blocks, stride=2)
        self.block3 = _Stage(second, third, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        initialize_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = self.conv1(self.normalization(x))
        x = self.block3(self.block2(self.block1(x)))
        return cast(Tensor, self.fc(average(F.relu(self.bn1(x)))))


class _Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = _PreActivationBlock(in_channels, out_channels, stride)
        others = (_PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x))


class _PreActivationBlock(nn.Module):
    """shortcut(x) + two 3x3 convolutions, with BatchNorm and ReLU before each.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the input after the first BatchNorm and
    ReLU. Elsewhere it is the input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        changes = in_channels != out_channels
        self.convShortcut = convolution(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, out_channels, height / stride, width / stride), rounded up."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return cast(Tensor, shortcut + residual)
