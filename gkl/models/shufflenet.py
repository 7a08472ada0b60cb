"""ShuffleNets for 32x32 images, with the tensor names of CIFAR distillation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.models.input_statistics import normalized, register_statistics


def _conv1x1(channels_in: int, channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class _GroupedBlock(nn.Module):
    """Grouped 1x1 convolution, shuffle of the channels, 3x3 on each channel, grouped 1x1 (arXiv 1707.01083, figure 2).

    With stride 2 the shortcut is an average pooling whose channels are added to the others.
    """

    def __init__(self, channels_in: int, channels: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        narrow = channels // 4
        # The 24 channels of the first convolution are too few to be divided.
        self.groups = 1 if channels_in == 24 else groups
        self.conv1 = _conv1x1(channels_in, narrow, self.groups)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = _depthwise(narrow, stride)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = _conv1x1(narrow, channels, groups)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class CifarShuffleNetV1(nn.Module):
    """ShuffleNetV1 with three groups (arXiv 1707.01083). The first convolution is 1x1, without stride or pooling."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        self.conv1 = _conv1x1(image_shape[0], 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 240, blocks=4)
        self.layer2 = self._stage(240, 480, blocks=8)
        self.layer3 = self._stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, *, blocks: int) -> nn.Sequential:
        first = _GroupedBlock(channels_in, channels - channels_in, stride=2, groups=3)
        rest = (_GroupedBlock(channels, channels, stride=1, groups=3) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = F.relu(self.bn1(self.conv1(normalized(self, x))))
        out = self.layer3(self.layer2(self.layer1(out)))
        return cast(Tensor, self.linear(out.mean(dim=(2, 3))))


class _HalfBlock(nn.Module):
    """Half of the channels pass unchanged, the others through 1x1, 3x3 and 1x1 (arXiv 1807.11164, figure 3c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _conv1x1(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        unchanged, other = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(other)))
        out = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))))
        return F.channel_shuffle(torch.cat([unchanged, out], dim=1), 2)


class _DownBlock(nn.Module):
    """Two branches with stride 2, each with half of the channels that come out (arXiv 1807.11164, figure 3d)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _depthwise(channels_in, 2), nn.BatchNorm2d(channels_in)
        self.conv2, self.bn2 = _conv1x1(channels_in, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv1x1(channels_in, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        other = F.relu(self.bn3(self.conv3(x)))
        other = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(other)))))
        return F.channel_shuffle(torch.cat([one, other], dim=1), 2)


class CifarShuffleNetV2(nn.Module):
    """ShuffleNetV2 at its full width (arXiv 1807.11164). The first convolution is 1x1, without stride or pooling."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        self.conv1 = _conv1x1(image_shape[0], 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 116, blocks=4)
        self.layer2 = self._stage(116, 232, blocks=8)
        self.layer3 = self._stage(232, 464, blocks=4)
        self.conv2 = _conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, *, blocks: int) -> nn.Sequential:
        return nn.Sequential(_DownBlock(channels_in, channels), *(_HalfBlock(channels) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = F.relu(self.bn1(self.conv1(normalized(self, x))))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.relu(self.bn2(self.conv2(out)))
        return cast(Tensor, self.linear(out.mean(dim=(2, 3))))
