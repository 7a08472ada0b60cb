"""How photographs of any size are resized and cropped to a network's input. Free of torch.

RobustBench defines a preprocessing for each of its ImageNet models (`robustbench.data.get_preprocessing`). With a
different one a model does not reach its published accuracy, so each architecture of the zoo keeps its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Preprocessing(BaseModel):
    """Turns photographs into images of one size, with torchvision's Resize and CenterCrop on a Pillow image."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(
        description="RobustBench's name; for models that use timm's transform, which has none, one in the same pattern."
    )
    resize: int | tuple[int, int] | None = Field(
        description="Pixels of the shorter side after resizing; or (height, width), whatever the photograph's "
        "proportions; null: not resized."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(description="The interpolation of the resizing.")
    crop: int | None = Field(
        description="Side of the central square that is kept, padded with black if the photograph is smaller; "
        "null: not cropped."
    )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the resulting image."""
        if self.crop is not None:
            return self.crop, self.crop
        assert isinstance(self.resize, tuple), "without a crop, the photograph's proportions would decide"
        return self.resize


def _resized_and_cropped(
    name: str, resize: int | None, crop: int, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> Preprocessing:
    return Preprocessing(name=name, resize=resize, interpolation=interpolation, crop=crop)


PREPROCESSINGS: dict[str, Preprocessing] = {
    preprocessing.name: preprocessing
    for preprocessing in [
        _resized_and_cropped("Res256Crop224", 256, 224),
        _resized_and_cropped("BicubicRes256Crop224", 256, 224, "bicubic"),
        _resized_and_cropped("Crop288", None, 288),
        Preprocessing(name="Res224", resize=(224, 224), interpolation="bilinear", crop=None),
        # These are from timm's configurations of the models; RobustBench has no names for them.
        _resized_and_cropped("Res224Crop224", 224, 224),
        _resized_and_cropped("BicubicRes224Crop224", 224, 224, "bicubic"),
        _resized_and_cropped("BicubicRes248Crop224", 248, 224, "bicubic"),
    ]
}
"""Every preprocessing that a model of RobustBench's zoo is published with."""

DEFAULT_PREPROCESSING = PREPROCESSINGS["Res256Crop224"]
"""The preprocessing of trainings, and of all evaluations made before architectures had preprocessings of their own."""

CORRUPTED_PREPROCESSING = PREPROCESSINGS["Res224"]
"""RobustBench's preprocessing of ImageNet-C, whose images have this size already, for all models."""
