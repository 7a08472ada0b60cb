"""What a stored certificate says of each point, without torch and without its images."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

from app.schemas import PointView


def points_of(path: Path) -> list[PointView]:
    """Each point of an evaluation, in the order of the test images."""
    with safe_open(path, framework="np") as file:
        attacks = json.loads(file.metadata()["gklbench"])["attacks"]
        labels, predictions, broken_by, norms, index, adversarial = (
            file.get_tensor(name).tolist()
            for name in ("label", "prediction", "broken_by", "perturbation_norm", "index", "adversarial_prediction")
        )
    classes = dict(zip(index, adversarial, strict=True))
    return [
        PointView(
            index=number,
            label=label,
            prediction=prediction,
            broken_by=attacks[by] if by >= 0 else None,
            adversarial_prediction=classes.get(number),
            perturbation_norm=None if math.isnan(norm) else norm,
        )
        for number, (label, prediction, by, norm) in enumerate(zip(labels, predictions, broken_by, norms, strict=True))
    ]
