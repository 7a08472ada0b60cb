"""What all outcomes share: the base class, and the record of where a result comes from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Manifest(Record):
    """Where a result comes from: everything needed to measure it again."""

    spec: dict[str, Any]
    """The spec, complete."""
    git_commit: str | None
    """Commit of the engine's source, with '+changes' if files differed from it; null outside a checkout."""
    packages: dict[str, str]
    """Versions of the packages that computed the result."""
    python: str
    device: str
    """Name of the processor or GPU."""
    seed: int
    dataset_sha256: str
    """sha256 over the images and labels that the run used; over names and sizes for ImageNet's files."""
    synthetic_sha256: str | None = None
    """sha256 over the checksums in the .npz of generated images, where a training used one."""
    weights_sha256: str
    """sha256 of the file with the weights, made by a training or attacked by an evaluation."""
    weights_key: str | None = None
    """Which of the networks in that file was evaluated; null if the file holds only one."""
    weights_notes: tuple[str, ...] = ()
    """What was changed in the file's tensors while they were loaded, a sentence each: a conversion to float32."""
    dtype: str | None = None
    """Number format of the network's weights, for an evaluation: 'float32'."""
    batch_size_used: int | None = None
    """The most images that an evaluation gave its model at once; smaller than the spec's batch_size if so many did not
    fit into the device's memory."""
    preprocessing: str | None = None
    """How an evaluation's images were resized and cropped, for ImageNet: 'BicubicRes256Crop224'. Null in evaluations
    of earlier versions, which used 'Res256Crop224'."""
