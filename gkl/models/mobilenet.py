"""MobileNetV2 for 32x32 images and MobileNetV1 for ImageNet, with the tensor names of distillation's code."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from gkl.models.input_statistics import initialize_by_fan_out, normalized, register_statistics


def _convolution(channels_in: int, channels: int, size: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    return [
        nn.Conv2d(channels_in, channels, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]


class _InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without an activation (arXiv 1801.04381)."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and channels_in == channels
        wide = channels_in * expansion
        self.conv = nn.Sequential(
            *_convolution(channels_in, wide, 1),
            nn.ReLU(),
            *_convolution(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU(),
            *_convolution(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = cast(Tensor, self.conv(x))
        return x + out if self.is_residual else out


# Expansion, channels at width 1, blocks, and stride of the first block, for each of the seven stages.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 at half its width (arXiv 1801.04381). The first convolution has stride 2, the second stage 1."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        channels_in = 16
        self.conv1 = nn.Sequential(*_convolution(image_shape[0], channels_in, 3, stride=2), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, wide, blocks, stride in _STAGES:
            channels = wide // 2
            stage = []
            for number in range(blocks):
                stage.append(
                    _InvertedResidual(channels_in, channels, stride=stride if number == 0 else 1, expansion=expansion)
                )
                channels_in = channels
            self.blocks.append(nn.Sequential(*stage))
        self.conv2 = nn.Sequential(*_convolution(channels_in, 1280, 1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialize_by_fan_out(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = self.conv1(normalized(self, x))
        for stage in self.blocks:
            out = stage(out)
        return cast(Tensor, self.classifier(self.conv2(out).mean(dim=(2, 3))))


# Channels and stride of the 13 separable convolutions.
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """MobileNetV1 at its full width: 13 depthwise separable convolutions (arXiv 1704.04861, table 1)."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        layers = [nn.Sequential(*_convolution(image_shape[0], 32, 3, stride=2), nn.ReLU())]
        channels_in = 32
        for channels, stride in _SEPARABLE:
            depthwise = _convolution(channels_in, channels_in, 3, stride=stride, groups=channels_in)
            layers.append(nn.Sequential(*depthwise, nn.ReLU(), *_convolution(channels_in, channels, 1), nn.ReLU()))
            channels_in = channels
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, self.fc(self.model(normalized(self, x)).mean(dim=(2, 3))))
