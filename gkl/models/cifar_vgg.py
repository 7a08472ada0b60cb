"""VGG networks with BatchNorm for 32x32 images (arXiv 1409.1556), as distillation uses them.

The names of the state dict are those of the public repositories RepDistiller and mdistiller, so that their checkpoints
load.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from gkl.models.input_normalization import small_image_normalization
from gkl.models.layers import average, initialize_convolutions, initialize_linear


class CifarVGG(nn.Module):
    """Five stages of 3x3 convolutions, an average over the image, and one linear layer.

    Max-pooling halves the size after each of the first three stages. Networks for ImageNet also pool after the fourth.
    """

    def __init__(self, convolutions: int, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            convolutions: how many each stage has: 1 in VGG-8, 2 in VGG-13.
            num_classes: C.
            image_shape: (channels, height, width) of an image.
        """
        super().__init__()
        self.normalization = small_image_normalization(num_classes, image_shape)
        self.block0 = _stage(image_shape[0], 64, convolutions)
        self.block1 = _stage(64, 128, convolutions)
        self.block2 = _stage(128, 256, convolutions)
        self.block3 = _stage(256, 512, convolutions)
        self.block4 = _stage(512, 512, convolutions)
        self.classifier = nn.Linear(512, num_classes)
        initialize_convolutions(self)
        initialize_linear(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C). Images need 8 pixels a side or more."""
        x = self.normalization(x)
        for stage in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(stage(x), 2)
        return cast(Tensor, self.classifier(average(self.block4(self.block3(x)))))


def _stage(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        # With a bias, although BatchNorm takes it away again: the published checkpoints have one.
        layer = nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, padding=1)
        layers += [layer, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
