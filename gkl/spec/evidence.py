"""Checks of what somebody sent about an entry. The service makes these specs from requests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gkl.spec.common import (
    PUBLISHED_WEIGHTS,
    SHA256_PATTERN,
    ArchitectureName,
    DatasetName,
    ModelName,
    Spec,
    WeightsKey,
)
from gkl.spec.publication import Publication


class ExternalSpec(Spec):
    """Check adversarial examples that somebody found. Made by the service, from a request about an entry."""

    kind: Literal["external"] = "external"

    name: ModelName
    """Name of the attack, and whose it is."""

    dataset: DatasetName
    architecture: ArchitectureName
    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    examples: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the file with the examples."""


class ReportSpec(Spec):
    """Check the certificate of a network that its owner alone has. Made by the service, from a request."""

    kind: Literal["report"] = "report"

    name: ModelName
    """Name of the network on the leaderboard."""

    dataset: DatasetName
    architecture: str = Field(default="", max_length=100)
    """In its owner's words."""

    certificate: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the file."""

    publication: Publication | None = None
    """What the leaderboard is to say of it."""


class TransferSpec(Spec):
    """Replay the adversarial examples of one entry against the weights of another. Made by the service, from a request
    about an entry.
    """

    kind: Literal["transfer"] = "transfer"

    name: ModelName
    """Names of both networks."""

    source_name: str = Field(max_length=80)
    """Name of the network that the examples were made for."""

    source: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the certificate that holds the examples."""

    dataset: DatasetName
    architecture: ArchitectureName
    """Of the network that they are tried on."""

    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    @property
    def attack(self) -> str:
        """What a certificate calls these examples where they break points that stood."""
        return f"transfer from {self.source_name}"
