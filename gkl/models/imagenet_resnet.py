"""ResNets (arXiv 1512.03385) and a ResNeXt (arXiv 1611.05431) for ImageNet: torchvision's, with input normalization.

Their state dicts have torchvision's names and shapes. Nothing is downloaded.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torchvision.models import resnet

from gkl.models.input_normalization import imagenet_normalization


class ImageNetResNet(resnet.ResNet):  # type: ignore[misc]
    """torchvision's ResNet, which normalizes its images itself."""

    def __init__(
        self,
        block: type[resnet.BasicBlock | resnet.Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        *,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        """
        Args:
            block: torchvision's class of the residual blocks.
            blocks: how many each stage has.
            num_classes: C.
            groups: of the 3x3 convolutions of bottlenecks.
            group_width: channels of a group in the first stage.
        """
        super().__init__(block, list(blocks), num_classes, groups=groups, width_per_group=group_width)
        self.normalization = imagenet_normalization()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, super().forward(self.normalization(x)))


def imagenet_resnet_18(num_classes: int, image_shape: tuple[int, int, int]) -> ImageNetResNet:
    """ResNet-18."""
    return ImageNetResNet(resnet.BasicBlock, (2, 2, 2, 2), num_classes)


def imagenet_resnet_34(num_classes: int, image_shape: tuple[int, int, int]) -> ImageNetResNet:
    """ResNet-34."""
    return ImageNetResNet(resnet.BasicBlock, (3, 4, 6, 3), num_classes)


def imagenet_resnet_50(num_classes: int, image_shape: tuple[int, int, int]) -> ImageNetResNet:
    """ResNet-50, with the stride in the 3x3 convolutions as torchvision has it."""
    return ImageNetResNet(resnet.Bottleneck, (3, 4, 6, 3), num_classes)


def imagenet_resnext_101_32x4d(num_classes: int, image_shape: tuple[int, int, int]) -> ImageNetResNet:
    """ResNeXt-101 with 32 groups of 4 channels, which torchvision has no function for."""
    return ImageNetResNet(resnet.Bottleneck, (3, 4, 23, 3), num_classes, groups=32, group_width=4)
