"""Definitions that all specs share: the base class, types for names and perturbation budgets, and threat models."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from gkl.catalog import ARCHITECTURES, DATASETS, Norm, unknown_name_message

SHA256_PATTERN = r"^[0-9a-f]{64}$"
PUBLISHED_WEIGHTS = "robustbench"
"""In the place of a file's sha256: the weights that RobustBench's zoo publishes for the architecture."""
_EPSILON_PATTERN = r"^[0-9]+(\.[0-9]+)?(/[0-9]+)?$"
# Largest numerator of a budget that is written in 255ths; larger budgets are written as plain numbers.
_MOST_STEPS = 10**9


class Spec(BaseModel):
    """Base of all specs: frozen; refuses unknown fields, values of another type, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(unknown_name_message("dataset", name, DATASETS))
    return name


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(unknown_name_message("architecture", name, ARCHITECTURES))
    return name


def one_printable_line(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be one printable line without spaces at its ends")
    return name


def _parse_epsilon(value: Any) -> Any:
    """Accept '8/255' as well as 0.0314, since papers write the budgets of 8-bit images as fractions."""
    if not isinstance(value, str):
        return value
    # Not `fractions.Fraction`, which accepts '1e999999999' and computes for hours.
    if re.fullmatch(_EPSILON_PATTERN, value) and len(value) <= 32:
        numerator, _, denominator = value.partition("/")
        if float(denominator or 1) > 0:
            return float(numerator) / float(denominator or 1)
    raise ValueError("write it as a number such as 0.15 or a fraction such as '8/255'")


def format_epsilon(epsilon: float) -> str:
    """Write a budget as papers do: as a fraction such as '8/255' if it is exactly one, else as a plain number.

    Parsing the text gives the same number again.

    >>> format_epsilon(8 / 255), format_epsilon(0.5), format_epsilon(0.15)
    ('8/255', '0.5', '0.15')
    >>> format_epsilon(8 / 255 + 1e-9), format_epsilon(9e-5)
    ('0.03137255001960784', '9e-05')
    """
    plain, steps = f"{epsilon:.6g}", round(epsilon * 255)
    if len(plain) > 5 and 0 < steps <= _MOST_STEPS and steps / 255 == epsilon:
        return f"{steps}/255"
    return plain if float(plain) == epsilon else repr(epsilon)


DatasetName = Annotated[
    str,
    AfterValidator(_known_dataset),
    WithJsonSchema({"type": "string", "enum": sorted(DATASETS)}),
]
ArchitectureName = Annotated[
    str,
    AfterValidator(_known_architecture),
    WithJsonSchema({"type": "string", "enum": sorted(ARCHITECTURES)}),
]
ModelName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(one_printable_line)]
Epsilon = Annotated[
    float,
    BeforeValidator(_parse_epsilon),
    Field(gt=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": _EPSILON_PATTERN, "maxLength": 32},
            ]
        }
    ),
]
WeightsKey = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_printable_line)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ThreatModel(Spec):
    """The perturbations that an attack may make: all with a norm of at most epsilon that keep pixels inside [0, 1]."""

    norm: Norm = "Linf"
    """Norm of the perturbation, over all pixels of an image with values in [0, 1]."""

    epsilon: Epsilon
    """Largest norm of a perturbation, in units of the pixel range [0, 1]; a fraction such as '8/255' is accepted."""

    @model_validator(mode="after")
    def _epsilon_inside_box(self) -> Self:
        if self.norm == "Linf" and self.epsilon > 1:
            raise ValueError(
                f"epsilon {self.epsilon:g} is wider than the pixel range [0, 1]; "
                "give it in units of that range, for instance '8/255' instead of 8"
            )
        return self


def why_not_within(inner: ThreatModel, outer: ThreatModel) -> str | None:
    """Say why adversarial examples of the threat model `inner` may violate the threat model `outer`.

    Returns:
        The end of a sentence that begins with 'the examples'; None if `outer` allows all of them.

    >>> why_not_within(ThreatModel(epsilon=8 / 255), ThreatModel(epsilon=4 / 255))
    'go up to epsilon 8/255 in Linf, and the other entry was attacked up to 4/255 only'
    >>> why_not_within(ThreatModel(norm="L2", epsilon=0.5), ThreatModel(epsilon=0.1))
    'are bounded in L2, and the other entry was attacked in Linf'
    """
    if inner.norm != outer.norm:
        return f"are bounded in {inner.norm}, and the other entry was attacked in {outer.norm}"
    if inner.epsilon > outer.epsilon:
        return (
            f"go up to epsilon {format_epsilon(inner.epsilon)} in {inner.norm}, and the other entry was attacked up to "
            f"{format_epsilon(outer.epsilon)} only"
        )
    return None


def check_architecture_fits(dataset: str, architecture: str) -> None:
    """
    Raises:
        ValueError: the architecture cannot be built for the data set.
    """
    if dataset not in ARCHITECTURES[architecture].datasets:
        fitting = [a.name for a in ARCHITECTURES.values() if dataset in a.datasets]
        own = [name for name in fitting if "/" not in name] or fitting
        raise ValueError(
            f"the architecture {architecture!r} cannot be built for {dataset}; take one of {', '.join(own[:8])}"
        )


def check_epsilon_fits(dataset: str, shape: tuple[int, int, int], threat_model: ThreatModel) -> None:
    """Check that the ball of a threat model is not wider than the set of all images.

    Args:
        dataset: name of the data set, for the message.
        shape: (channels, height, width) of its images.
        threat_model: norm and epsilon of the ball.

    Raises:
        ValueError: epsilon exceeds the largest distance between two images, so that every image would be allowed.
    """
    pixels = math.prod(shape)
    widest = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat_model.norm]
    if threat_model.epsilon > widest:
        raise ValueError(
            f"epsilon {threat_model.epsilon:g} exceeds {widest:g}, the largest {threat_model.norm} distance of two "
            f"{dataset} images; give it in units of the pixel range [0, 1]"
        )
