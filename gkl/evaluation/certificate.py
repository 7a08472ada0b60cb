"""The proof of an evaluation, in one file that anyone can check in seconds.

It is a safetensors file with the outcome of each point and the adversarial example of each broken point. Its metadata
say what was evaluated. The check (`gkl.evaluation.verification`) needs the weights and the data and makes one pass over
clean and adversarial images; it runs no attack.

A certificate proves that the accuracies are no higher than it states: every example in it is a failure of the model. It
cannot prove that no other example exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gkl.catalog import DATASETS, recorded_preprocessing
from gkl.catalog.preprocessing import Preprocessing
from gkl.data import ImageSet
from gkl.errors import InvalidInput
from gkl.evaluation.points import Points
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.outcome import CorruptionOutcome, Flag
from gkl.spec import Evaluation

_FORMAT = "gkl-certificate-1"
OWN = "own"
"""The architecture of a user's own network and the data set of a user's own images, which no registry contains."""
_POINT_TENSORS = ("label", "prediction", "broken_by", "perturbation_norm")
_BROKEN_TENSORS = ("index", "adversarial", "adversarial_prediction")


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read from a file, of N points, of which M were broken."""

    tensors: Mapping[str, Tensor]
    evaluation: Evaluation
    dataset: str
    architecture: str
    weights_sha256: str
    dataset_sha256: str
    attacks: tuple[str, ...]
    clean_correct: int
    robust_correct: int | None
    answers_vary: bool
    corruptions: tuple[CorruptionOutcome, ...]
    manifest: Mapping[str, Any]
    contents_sha256: str
    """The hash of the contents that the file states."""
    actual_sha256: str
    """The hash of the contents that was computed on reading."""

    @property
    def num_points(self) -> int:
        return len(self.tensors["label"])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How its images were resized and cropped; None for data sets whose images all have one size."""
        return recorded_preprocessing(self.dataset, self.manifest)

    @property
    def weights_key(self) -> str | None:
        """Which network in the file of weights was evaluated; None if there is no other, and in earlier versions."""
        key = self.manifest.get("weights_key")
        return key if isinstance(key, str) else None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Flags that the owner's run raised for a network of their own. Other networks' flags are in their jobs."""
        return tuple(Flag.model_validate(flag) for flag in self.manifest.get("flags", ()))


def write_certificate(
    path: Path,
    points: Points,
    evaluation: Evaluation,
    *,
    attacks: Sequence[str],
    data: ImageSet,
    dataset: str,
    architecture: str,
    weights_sha256: str,
    dataset_sha256: str,
    manifest: Mapping[str, Any],
    corruptions: Sequence[CorruptionOutcome] = (),
    corrupted_prediction: Tensor | None = None,
) -> None:
    """Write a certificate.

    Args:
        path: where it is written.
        points: what became of each point.
        evaluation: what was evaluated.
        attacks: titles of the attacks, in the order of `points.broken_by`.
        data: the N clean images.
        dataset: name of the data set, or OWN.
        architecture: name of the network's architecture, or OWN.
        weights_sha256: sha256 of the file of weights.
        dataset_sha256: sha256 of images and labels.
        manifest: where the result comes from, as JSON.
        corruptions: outcomes on corrupted images.
        corrupted_prediction: the classes that the network predicts for these, (corruptions, N) int64.

    Raises:
        NoSpaceLeft: the disk is full.
    """
    tensors = {
        "label": points.labels,
        "prediction": points.prediction,
        "broken_by": points.broken_by,
        "perturbation_norm": points.perturbation_norm,
        "index": points.index,
        "adversarial": points.adversarial,
        "adversarial_prediction": points.adversarial_prediction,
        # A check has the data and does not need these; with them, the file alone shows its examples.
        "clean": data.images[points.index],
    }
    if corrupted_prediction is not None:
        tensors["corrupted_prediction"] = corrupted_prediction
    metadata = {
        "format": _FORMAT,
        "dataset": dataset,
        "architecture": architecture,
        "weights_sha256": weights_sha256,
        "dataset_sha256": dataset_sha256,
        "evaluation": evaluation.model_dump(mode="json"),
        "attacks": list(attacks),
        "clean_correct": points.clean_correct,
        "robust_correct": points.robust_correct if attacks else None,
        "answers_vary": points.answers_vary,
        "corruptions": [outcome.model_dump() for outcome in corruptions],
        "manifest": dict(manifest),
    }
    save_tensors(path, tensors, metadata | {"contents_sha256": contents_sha256(tensors, metadata)})


def read_certificate(path: Path) -> Certificate:
    """Read a certificate and check its form, but not what it states.

    Raises:
        InvalidInput: the file is missing, damaged, or no certificate.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise InvalidInput(f"{path.name} is no certificate of an evaluation")
    try:
        certificate = Certificate(
            tensors=tensors,
            evaluation=Evaluation.model_validate(metadata["evaluation"]),
            dataset=metadata["dataset"],
            architecture=metadata["architecture"],
            weights_sha256=metadata["weights_sha256"],
            dataset_sha256=metadata["dataset_sha256"],
            attacks=tuple(metadata["attacks"]),
            clean_correct=metadata["clean_correct"],
            robust_correct=metadata["robust_correct"],
            answers_vary=metadata["answers_vary"],
            corruptions=tuple(CorruptionOutcome.model_validate(each) for each in metadata["corruptions"]),
            manifest=metadata["manifest"],
            contents_sha256=metadata["contents_sha256"],
            actual_sha256=contents_sha256(tensors, metadata),
        )
        _check_shapes(certificate)
    except (KeyError, TypeError, ValidationError) as error:
        raise InvalidInput(f"{path.name} is a damaged certificate ({type(error).__name__}: {error})") from error
    return certificate


def _check_shapes(certificate: Certificate) -> None:
    # A user's own images are allowed only with a user's own network: other networks are for data sets of the catalog.
    if certificate.dataset not in DATASETS and (certificate.dataset, certificate.architecture) != (OWN, OWN):
        raise TypeError(f"there is no data set {certificate.dataset!r}")
    recorded_preprocessing(certificate.dataset, certificate.manifest)
    _ = certificate.flags
    tensors = certificate.tensors
    points, broken = len(tensors["label"]), len(tensors["index"])
    for name in (*_POINT_TENSORS, *_BROKEN_TENSORS):
        is_float = name in ("perturbation_norm", "adversarial")
        if tensors[name].dim() != (4 if name == "adversarial" else 1) or tensors[name].is_floating_point() != is_float:
            raise TypeError(f"the tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}")
        if len(tensors[name]) != (points if name in _POINT_TENSORS else broken):
            raise TypeError(f"the tensor {name!r} has {len(tensors[name])} rows")
    if points == 0 or (broken and (int(tensors["index"].min()) < 0 or int(tensors["index"].max()) >= points)):
        raise TypeError("an adversarial example belongs to no point")
    if tensors["index"].unique().numel() != broken:
        raise TypeError("a point has two adversarial examples")


def contents_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """sha256 over all tensors and all metadata except this hash itself."""
    rest = {key: value for key, value in metadata.items() if key != "contents_sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()
