"""Thin wide ResNets for 32x32 images (arXiv 1605.07146), with the tensor names of CIFAR distillation."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from gkl.models.input_statistics import initialize_by_fan_out, normalized, register_statistics


class _Block(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions. Where the number of channels changes, the shortcut is a
    1x1 convolution of the already activated input.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if channels_in != channels:
            self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return cast(Tensor, out + (x if self.convShortcut is None else self.convShortcut(activated)))


class _Group(nn.Module):
    def __init__(self, channels_in: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            _Block(channels_in, channels, stride), *(_Block(channels, channels, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x))


class CifarWideResNet(nn.Module):
    """WRN-depth-width: three groups of (depth - 4) / 6 blocks, the second and third with stride 2."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], *, depth: int, width: int) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
            depth: number of layers with weights, 6 n + 4.
            width: factor of the channels 16, 32 and 64.
        """
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        self.block1 = _Group(16, 16 * width, blocks, 1)
        self.block2 = _Group(16 * width, 32 * width, blocks, 2)
        self.block3 = _Group(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialize_by_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = self.block3(self.block2(self.block1(self.conv1(normalized(self, x)))))
        return cast(Tensor, self.fc(F.relu(self.bn1(out)).mean(dim=(2, 3))))
