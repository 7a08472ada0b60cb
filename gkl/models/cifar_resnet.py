"""ResNets for 32x32 images (arXiv 1512.03385, section 4.2), with the tensor names of CIFAR distillation."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from gkl.models.input_statistics import initialize_by_fan_out, normalized, register_statistics


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """ResNet-8 to ResNet-110: three stages of (depth - 2) / 6 basic blocks, the second and third with stride 2."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        *,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    ) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
            depth: number of layers with weights, 6 n + 2.
            widths: channels of the first convolution and of the three stages.
        """
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(image_shape[0], widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialize_by_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = F.relu(self.bn1(self.conv1(normalized(self, x))))
        out = self.layer3(self.layer2(self.layer1(out)))
        return cast(Tensor, self.fc(out.mean(dim=(2, 3))))


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(_BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; four times as many channels come out."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarResNet50(nn.Module):
    """ResNet-50 with a 3x3 convolution in the place of the first 7x7 one, and without the first pooling."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        self.conv1 = _conv3x3(image_shape[0], 64)
        self.bn1 = nn.BatchNorm2d(64)
        channels_in = 64
        for number, (channels, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
            layers = []
            for block in range(blocks):
                layers.append(_Bottleneck(channels_in, channels, 2 if number > 1 and block == 0 else 1))
                channels_in = 4 * channels
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = F.relu(self.bn1(self.conv1(normalized(self, x))))
        for number in range(1, 5):
            out = self.get_submodule(f"layer{number}")(out)
        return cast(Tensor, self.linear(out.mean(dim=(2, 3))))
