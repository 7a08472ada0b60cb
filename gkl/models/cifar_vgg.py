"""VGG networks with BatchNorm for 32x32 images (arXiv 1409.1556), with the tensor names of CIFAR distillation."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from gkl.models.input_statistics import initialize_by_fan_out, normalized, register_statistics

_WIDTHS = (64, 128, 256, 512, 512)


class CifarVgg(nn.Module):
    """VGG-8 and VGG-13: five stages of 3x3 convolutions, max pooling after the first three, average, linear layer."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], *, convolutions: int) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
            convolutions: in each stage: 1 for VGG-8, 2 for VGG-13.
        """
        super().__init__()
        register_statistics(self, num_classes, image_shape)
        channels_in = image_shape[0]
        for number, channels in enumerate(_WIDTHS):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                channels_in = channels
            # The last ReLU of a stage is applied outside: the numbers of published tensors end before it.
            self.add_module(f"block{number}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels_in, num_classes)
        initialize_by_fan_out(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        out = normalized(self, x)
        for number in range(len(_WIDTHS)):
            out = F.relu(self.get_submodule(f"block{number}")(out))
            if number < 3:
                out = F.max_pool2d(out, 2)
        return cast(Tensor, self.classifier(out.mean(dim=(2, 3))))
