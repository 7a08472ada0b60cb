"""Small convolutional networks for images of a few hundred pixels."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, of which the second and third halve the size, and two linear layers, with ReLU between.

    Takes images with values in [0, 1] and centers them itself, so that the threat model's box is the
    network's input range.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], width: int = 16) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
            width: channels of the first convolution; the others have 2 and 4 times as many.
        """
        super().__init__()
        channels, height, image_width = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        pixels = -(-height // 4) * -(-image_width // 4)
        self.classifier = nn.Sequential(
            nn.Linear(4 * width * pixels, 8 * width), nn.ReLU(), nn.Linear(8 * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, self.classifier(self.features((x - 0.5) * 2)))


class TinyCNN(nn.Module):
    """Two 3x3 convolutions with BatchNorm, which both halve the size, and two linear layers, with ReLU between.

    On 28x28 images it needs a twentieth of SmallCNN's arithmetic. It centers its input itself.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], width: int = 8) -> None:
        """
        Args:
            num_classes: C.
            image_shape: (channels, height, width) of an image.
            width: channels of the first convolution; the second has twice as many.
        """
        super().__init__()
        channels, height, image_width = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
        )
        pixels = -(-height // 4) * -(-image_width // 4)
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * pixels, 4 * width), nn.ReLU(), nn.Linear(4 * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) in [0, 1] -> logits (B, C)."""
        return cast(Tensor, self.classifier(self.features((x - 0.5) * 2)))
