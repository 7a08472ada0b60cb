"""Reading stored certificates without torch: what each says about each point."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from app.core.errors import NotFound
from gkl.answers import ClassView, PointView, TakenFor
from gkl.catalog import Dataset

STANDS = -1
"""The value of `broken_by` for a point that withstands every attack; -2: misclassified without an attack."""


def points_of(path: Path, *, first: int = 0, limit: int | None = None) -> tuple[list[PointView], int | None]:
    """Points of an evaluation in the order of the test images, and the number of the next point; None at the end.

    Args:
        path: the certificate.
        first: the number of the first point.
        limit: how many points at most.
    """
    with safe_open(path, framework="np") as file:
        attacks = json.loads(file.metadata()["gklbench"])["attacks"]
        total = file.get_slice("label").get_shape()[0]
        end = total if limit is None else min(total, first + limit)
        labels, predictions, broken_by, norms = (
            file.get_slice(name)[first:end].tolist() if first < end else []
            for name in ("label", "prediction", "broken_by", "perturbation_norm")
        )
        classes = dict(
            zip(file.get_tensor("index").tolist(), file.get_tensor("adversarial_prediction").tolist(), strict=True)
        )
    found = [
        PointView(
            index=number,
            label=label,
            prediction=prediction,
            broken_by=attacks[by] if by >= 0 else None,
            adversarial_prediction=classes.get(number),
            perturbation_norm=None if math.isnan(norm) else norm,
        )
        for number, (label, prediction, by, norm) in enumerate(
            zip(labels, predictions, broken_by, norms, strict=True), start=first
        )
    ]
    return found, end if end < total else None


def classes_of(path: Path, dataset: Dataset) -> list[ClassView]:
    """The classes that have images, the least robust first."""
    with safe_open(path, framework="np") as file:
        labels, predictions, broken_by = (file.get_tensor(name) for name in ("label", "prediction", "broken_by"))
        taken, index = file.get_tensor("adversarial_prediction"), file.get_tensor("index")
    found = []
    for label in np.unique(labels).tolist():
        own = labels == label
        others, counts = np.unique(taken[labels[index] == label], return_counts=True)
        frequent = np.argsort(-counts, kind="stable")
        found.append(
            ClassView(
                label=label,
                name=dataset.class_name(label),
                points=int(own.sum()),
                clean=float((predictions[own] == label).mean()),
                robust=float((broken_by[own] == STANDS).mean()),
                taken_for=[
                    TakenFor(label=other, name=_class_or_nothing(dataset, other), count=int(count))
                    for other, count in zip(others[frequent].tolist(), counts[frequent].tolist(), strict=True)
                ],
            )
        )
    return sorted(found, key=lambda each: (each.robust, each.clean, each.label))


def _class_or_nothing(dataset: Dataset, label: int) -> str:
    return "nothing (NaN)" if label < 0 else dataset.class_name(label)


Picture = Literal["clean", "adversarial", "difference"]


@dataclass(frozen=True)
class BrokenPoint:
    """A point with an adversarial example that can be shown."""

    index: int
    label: int
    prediction: int
    """The class of the adversarial image; -1 where the model answered NaN."""
    broken_by: str
    norm: float
    """Distance of the two images, in units of the pixel range."""


@dataclass(frozen=True)
class Broken:
    """The selected broken points of a certificate."""

    attacks: list[str]
    """All attacks that broke a point, in the order in which they ran."""
    labels: list[int]
    """All labels of broken points."""
    count: int
    points: list[BrokenPoint]
    has_pictures: bool


def broken_points(
    path: Path,
    *,
    attack: str | None = None,
    label: int | None = None,
    first_point: int = 0,
    limit: int = 24,
    offset: int = 0,
) -> Broken:
    """Points that an attack broke, of one attack or label if given, from a point on; in the order of the images."""
    with safe_open(path, framework="np") as file:
        names: list[str] = json.loads(file.metadata()["gklbench"])["attacks"]
        index, wrong = file.get_tensor("index"), file.get_tensor("adversarial_prediction")
        by, labels = file.get_tensor("broken_by")[index], file.get_tensor("label")[index]
        norms = file.get_tensor("perturbation_norm")[index]
        has_pictures = "clean" in file.keys()  # noqa: SIM118 - this handle is no mapping
    chosen = index >= first_point
    if attack is not None:
        chosen &= np.isin(by, [position for position, name in enumerate(names) if name == attack])
    if label is not None:
        chosen &= labels == label
    rows = chosen.nonzero()[0]
    return Broken(
        attacks=list(dict.fromkeys(names[position] for position in sorted(set(by.tolist())))),
        labels=sorted(set(labels.tolist())),
        count=len(rows),
        points=[
            BrokenPoint(int(index[row]), int(labels[row]), int(wrong[row]), names[by[row]], float(norms[row]))
            for row in rows[offset : offset + limit].tolist()
        ],
        has_pictures=has_pictures,
    )


def examples_of(path: Path, chosen: Sequence[int]) -> list[BrokenPoint]:
    """The chosen points, without those that no attack broke or that have no picture."""
    with safe_open(path, framework="np") as file:
        if "clean" not in file.keys():  # noqa: SIM118 - this handle is no mapping
            return []
        names: list[str] = json.loads(file.metadata()["gklbench"])["attacks"]
        index, wrong = file.get_tensor("index"), file.get_tensor("adversarial_prediction")
        rows = np.isin(index, chosen).nonzero()[0]
        by, labels, norms = (file.get_tensor(name)[index[rows]] for name in ("broken_by", "label", "perturbation_norm"))
    return [
        BrokenPoint(int(index[row]), int(label), int(wrong[row]), names[attack], float(norm))
        for row, attack, label, norm in zip(rows.tolist(), by.tolist(), labels.tolist(), norms.tolist(), strict=True)
    ]


def picture(path: Path, point: int, which: Picture) -> bytes:
    """A point's clean image, its adversarial example, or their difference stretched to the whole range, as PNG.

    Raises:
        NotFound: no attack broke this point, or the certificate is from a version that stored no clean images.
    """
    with safe_open(path, framework="np") as file:
        rows = (file.get_tensor("index") == point).nonzero()[0]
        if not len(rows):
            raise NotFound(f"no attack broke point {point}: there is no adversarial example to show")
        if "clean" not in file.keys():  # noqa: SIM118
            raise NotFound("this certificate is too old to have the clean images; evaluate again to see them")
        row = int(rows[0])
        clean = _unit(file.get_slice("clean")[row : row + 1][0])
        adversarial = file.get_slice("adversarial")[row : row + 1][0].astype(np.float64)
    pixels = {"clean": clean, "adversarial": adversarial}.get(which)
    if pixels is None:
        difference = adversarial - clean
        # Gray means no change.
        pixels = 0.5 + 0.5 * difference / max(np.abs(difference).max(), 1e-12)
    eight_bit = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(eight_bit[0] if len(eight_bit) == 1 else eight_bit.transpose(1, 2, 0))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _unit(image: NDArray[Any]) -> NDArray[np.float64]:
    """uint8 or float pixels -> float64 in [0, 1]."""
    return image / 255 if image.dtype == np.uint8 else image.astype(np.float64)


def standing_points(path: Path) -> NDArray[np.bool_]:
    """(N,): whether the model gets each point right under every attack."""
    with safe_open(path, framework="np") as file:
        withstands: NDArray[np.bool_] = file.get_tensor("broken_by") == STANDS
        return withstands
