"""ShuffleNetV1 (arXiv 1707.01083) and ShuffleNetV2 (arXiv 1807.11164) for 32x32 images.

Both begin with a 1x1 convolution with stride 1, where the papers' networks for ImageNet have a 3x3 convolution with
stride 2 and max-pooling. The names of the state dicts are those of the public repositories RepDistiller and
mdistiller, so that their checkpoints load.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkl.models.input_normalization import small_image_normalization
from gkl.models.layers import average, convolution

_STEM = 24
_BLOCKS = (4, 8, 4)
_GROUPS = 3


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave groups of channels: the first of each group, then the second of each, and so on.

    Args:
        x: (B, channels, height, width).
        groups: how many groups the channels are divided into; must divide their number.
    """
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleNetV1(nn.Module):
    """A 1x1 convolution, three stages of 4, 8 and 4 blocks, an average, and a linear layer.

    The stages have 240, 480 and 960 channels; their 1x1 convolutions have 3 groups.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.conv1 = convolution(image_shape[0], _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        # The first block has too few channels for groups.
        self.layer1 = _stage_v1(_STEM, 240, _BLOCKS[0], first_groups=1)
        self.layer2 = _stage_v1(240, 480, _BLOCKS[1])
        self.layer3 = _stage_v1(480, 960, _BLOCKS[2])
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(self.normalization(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.linear(average(x)))


class _GroupedBlock(nn.Module):
    """A grouped 1x1, a depthwise 3x3 and a grouped 1x1 convolution, and a shortcut; ReLU at the end.

    At stride 1 the shortcut is the input, which is added. At stride 2 it is the input after average pooling, which is
    appended as more channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output, at stride 2 including those of the input.
            stride: 1 or 2.
            groups: of the first convolution.
        """
        super().__init__()
        self.stride, self.groups = stride, groups
        new_channels = out_channels if stride == 1 else out_channels - in_channels
        middle = new_channels // 4
        self.conv1 = convolution(in_channels, middle, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = convolution(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = convolution(middle, new_channels, 1, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(new_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, out_channels, height / stride, width / stride), rounded up."""
        new = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        # The paper has no ReLU after the depthwise convolution; the published checkpoints were trained with one.
        new = F.relu(self.bn2(self.conv2(new)))
        new = self.bn3(self.conv3(new))
        if self.stride == 1:
            return F.relu(new + x)
        return F.relu(torch.cat([new, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


def _stage_v1(in_channels: int, out_channels: int, blocks: int, first_groups: int = _GROUPS) -> nn.Sequential:
    first = _GroupedBlock(in_channels, out_channels, 2, first_groups)
    return nn.Sequential(first, *(_GroupedBlock(out_channels, out_channels, 1, _GROUPS) for _ in range(blocks - 1)))


class ShuffleNetV2(nn.Module):
    """A 1x1 convolution, three stages of 4, 8 and 4 blocks, another 1x1 convolution, an average, a linear layer.

    The stages have 116, 232 and 464 channels, and the second 1x1 convolution has 1024.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.conv1 = convolution(image_shape[0], _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage_v2(_STEM, 116, _BLOCKS[0])
        self.layer2 = _stage_v2(116, 232, _BLOCKS[1])
        self.layer3 = _stage_v2(232, 464, _BLOCKS[2])
        self.conv2 = convolution(464, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(self.normalization(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.linear(average(x)))


class _SplitBlock(nn.Module):
    """Keeps the first half of the channels, puts the other through convolutions, and shuffles the two halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) -> the same."""
        kept, changed = x.chunk(2, dim=1)
        changed = F.relu(self.bn1(self.conv1(changed)))
        changed = self.bn2(self.conv2(changed))
        changed = F.relu(self.bn3(self.conv3(changed)))
        return shuffle(torch.cat([kept, changed], dim=1), 2)


class _HalvingBlock(nn.Module):
    """Two branches of convolutions with stride 2, each with half of the output's channels, shuffled."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = convolution(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = convolution(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = convolution(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, height, width) -> (B, out_channels, height / 2, width / 2), rounded up."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], dim=1), 2)


def _stage_v2(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _HalvingBlock(in_channels, out_channels), *(_SplitBlock(out_channels) for _ in range(blocks - 1))
    )
