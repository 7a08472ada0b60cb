"""torchvision's ResNets for ImageNet, with its tensor names and the usual input normalization inside."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from gkl.models.input_statistics import normalized, register_statistics

_LAYERS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
}


class ImageNetResNet(ResNet):
    """ResNet (arXiv 1512.03385) or ResNeXt (arXiv 1611.05431) as torchvision defines it."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], *, depth: int, **options: Any) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (3, height, width) of an image.
            depth: 18, 34, 50 or 101.
            options: torchvision's: `groups` and `width_per_group` make a ResNeXt.
        """
        block, layers = _LAYERS[depth]
        super().__init__(block, layers, num_classes=num_classes, **options)
        register_statistics(self, num_classes, image_shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, super().forward(normalized(self, x)))
