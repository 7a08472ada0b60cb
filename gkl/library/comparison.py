"""Compares two verdicts on the same points, point by point."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gkl.errors import InvalidInput
from gkl.evaluation.certificate import OWN, Certificate, read_certificate
from gkl.evaluation.points import MISCLASSIFIED, STANDS
from gkl.library.verdict import Verdict
from gkl.spec import Evaluation, ThreatModel, format_epsilon
from gkl.statistics.paired import PairedCounts

if TYPE_CHECKING:
    from pandas import DataFrame

_NAMES = 2


@dataclass(frozen=True)
class _Side:
    """One of the two compared networks, from a verdict or a certificate; N points."""

    name: str
    evaluation: Evaluation
    dataset: str
    dataset_sha256: str
    attacks: tuple[str, ...]
    points: Mapping[str, Tensor]
    """'label', 'prediction', 'broken_by' (N,) int64 and 'perturbation_norm' (N,) float64, as in a certificate."""

    @property
    def is_robust(self) -> Tensor:
        """Whether each point is classified correctly and survived every attack, (N,) bool."""
        return self.points["broken_by"] == STANDS

    @property
    def protocol(self) -> str:
        named = self.evaluation.protocol
        return f"{named} ({', '.join(self.evaluation.attack_names)})" if named == "custom" else named

    def broken_by(self, point: int) -> str | None:
        code = int(self.points["broken_by"][point])
        if code == STANDS:
            return None
        return "misclassified" if code == MISCLASSIFIED else self.attacks[code]


class Comparison:
    """What `gkl.compare` returns.

    A network withstands a point if it classifies the image correctly and no attack broke it.
    """

    def __init__(self, first: _Side, second: _Side) -> None:
        self._first, self._second = first, second
        robust_first, robust_second = first.is_robust, second.is_robust
        self.counts = PairedCounts(
            both=int((robust_first & robust_second).sum()),
            only_first=int((robust_first & ~robust_second).sum()),
            only_second=int((~robust_first & robust_second).sum()),
            neither=int((~robust_first & ~robust_second).sum()),
        )
        """How many points both networks, only the first, only the second, and neither withstand."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two networks."""
        return self._first.name, self._second.name

    @property
    def num_points(self) -> int:
        """Number of points that both networks were evaluated on."""
        return self.counts.num_points

    @property
    def difference(self) -> float:
        """Robust accuracy of the first network minus that of the second, in [-1, 1]; clean accuracies if nothing was
        attacked."""
        return self.counts.difference

    @property
    def interval(self) -> tuple[float, float]:
        """Tango's 95 % score interval of the difference (`gkl.statistics.paired.paired_interval`)."""
        return self.counts.interval

    @property
    def p_value(self) -> float:
        """Two-sided p-value of McNemar's exact test (`gkl.statistics.paired.mcnemar_exact`): how often two equally good
        networks would differ at least this much by chance."""
        return self.counts.p_value

    @property
    def protocols(self) -> tuple[str, str]:
        """Protocol of each evaluation. If they differ, the network that faced fewer attacks looks better than it is."""
        return self._first.protocol, self._second.protocol

    def __repr__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"{self._headline()}: {100 * self.difference:+.1f} points "
            f"(95 % paired interval {low:+.1f} to {high:+.1f}), "
            f"exact McNemar p = {self.p_value:.2g}{self._reservation()}"
        )

    def _headline(self) -> str:
        (first, second), counts = self.names, self.counts
        more = counts.only_first - counts.only_second
        verb = "classifies" if self._first.evaluation.protocol == "clean" else "withstands attacks on"
        if more == 0:
            return f"{first} {verb} as many of {self.num_points} points as {second}"
        return f"{first} {verb} {abs(more)} {'more' if more > 0 else 'fewer'} of {self.num_points} points than {second}"

    def _reservation(self) -> str:
        first, second = self.protocols
        return "" if first == second else f"; by different protocols: {first} and {second}"

    def _repr_html_(self) -> str:
        (first, second), counts = (html.escape(name) for name in self.names), self.counts
        cell = "style='text-align:right;padding:0 1em'"
        return (
            f"<div><p><b>{html.escape(repr(self))}</b></p><table>"
            f"<tr><th></th><th>{second} withstands</th><th>{second} fails</th></tr>"
            f"<tr><th>{first} withstands</th><td {cell}>{counts.both}</td><td {cell}>{counts.only_first}</td></tr>"
            f"<tr><th>{first} fails</th><td {cell}>{counts.only_second}</td><td {cell}>{counts.neither}</td></tr>"
            "</table></div>"
        )

    def to_frame(self) -> DataFrame:
        """Return a DataFrame with a row for each point on which the two networks differ.

        Its index is named 'point'. Its columns are 'label'; 'stands', the name of the network that withstands the
        point; 'prediction_a' and 'prediction_b', the predicted classes of the clean image; 'broken_by_a' and
        'broken_by_b', an attack's name, 'misclassified', or missing for the network that withstands the point; 'norm_a'
        and 'norm_b', the norms of the perturbations that broke it, in units of the pixel range [0, 1].

        Raises:
            InvalidInput: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - an optional dependency  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidInput("a frame needs pandas: pip install pandas") from error
        sides = {"a": self._first, "b": self._second}
        differ = (self._first.is_robust != self._second.is_robust).nonzero().squeeze(1)
        columns: dict[str, object] = {
            "label": self._first.points["label"][differ].numpy(),
            "stands": [self.names[0 if first else 1] for first in self._first.is_robust[differ].tolist()],
        }
        columns |= {f"prediction_{end}": side.points["prediction"][differ].numpy() for end, side in sides.items()}
        columns |= {f"broken_by_{end}": [side.broken_by(i) for i in differ.tolist()] for end, side in sides.items()}
        columns |= {f"norm_{end}": side.points["perturbation_norm"][differ].numpy() for end, side in sides.items()}
        return pandas.DataFrame(columns, index=pandas.Index(differ.numpy(), name="point"))


def compare(a: Verdict | Path | str, b: Verdict | Path | str, *, names: tuple[str, str] | None = None) -> Comparison:
    """Compare two networks on the same points under the same threat model.

    The comparison is paired: only the points on which the two networks differ count. It finds differences that are too
    small for two separate confidence intervals to show.

    Args:
        a: the result of `gkl.evaluate`, or the path of a certificate. The certificate is read, not verified.
        b: the other one.
        names: what to call the two networks; by default the networks' own names, or the names of the jobs.

    Returns:
        The 2x2 table, the difference of robust accuracies with Tango's 95 % score interval for paired proportions
        (Statistics in Medicine 17, 1998, p. 891), and the p-value of McNemar's exact test (Psychometrika 12, 1947).
        If both networks were evaluated without attacks, their clean accuracies are compared.

    Raises:
        InvalidInput: the two differ in images, labels, norm or epsilon; or a file is not a certificate, was changed
            after it was written, or is about common corruptions.
    """
    first, second = _side(a), _side(b)
    if names is not None and (len(names) != _NAMES or not all(isinstance(name, str) for name in names)):
        raise InvalidInput("names are two texts, one for each network")
    if names is None:
        same = first.name == second.name
        names = (f"the first {first.name}", f"the second {first.name}") if same else (first.name, second.name)
    _check_same_points(first, second)
    budgets = [side.evaluation.threat_model for side in (first, second)]
    if budgets[0] != budgets[1]:
        raise InvalidInput(
            f"the two were measured under {_in_words(budgets[0])} and under {_in_words(budgets[1])}; "
            "compare them under the same threat model"
        )
    return Comparison(*(replace(side, name=name) for side, name in zip((first, second), names, strict=True)))


def _check_same_points(first: _Side, second: _Side) -> None:
    if first.dataset != second.dataset and OWN not in (first.dataset, second.dataset):
        raise InvalidInput(f"one is about {first.dataset}, the other about {second.dataset}; compare the same images")
    sizes = [len(side.points["label"]) for side in (first, second)]
    if sizes[0] != sizes[1]:
        raise InvalidInput(
            f"one is about {sizes[0]} points, the other about {sizes[1]}; evaluate both on the same ones"
        )
    different = int((first.points["label"] != second.points["label"]).sum())
    if different:
        raise InvalidInput(f"the labels of {different} of {sizes[0]} points differ; evaluate both on the same data")
    if first.dataset_sha256 != second.dataset_sha256:
        raise InvalidInput(
            "the two are about different images with the same labels; evaluate both on the same images, prepared in "
            "the same way and of the same type"
        )


def _in_words(threat_model: ThreatModel | None) -> str:
    return "no attack" if threat_model is None else f"{threat_model.norm} {format_epsilon(threat_model.epsilon)}"


def _side(given: Verdict | Path | str) -> _Side:
    if isinstance(given, Verdict):
        found = given.measurement
        return _Side(
            given.model,
            given.evaluation,
            given.dataset or OWN,
            given.data.sha256(),
            tuple(attack.attack for attack in given.attacks),
            {
                "label": found.labels,
                "prediction": found.prediction,
                "broken_by": found.broken_by,
                "perturbation_norm": found.perturbation_norm,
            },
        )
    if not isinstance(given, str | Path):
        raise InvalidInput(f"a {type(given).__name__} cannot be compared; give verdicts, or paths of certificates")
    path = Path(given)
    certificate = read_certificate(path)
    if certificate.actual_sha256 != certificate.contents_sha256:
        raise InvalidInput(f"{path.name} was changed after it was written; download it again")
    if certificate.evaluation.protocol == "corruptions":
        raise InvalidInput(
            f"{path.name} is about common corruptions, whose points are many versions of each image; give certificates "
            "of evaluations with attacks, or of clean accuracy"
        )
    return _Side(
        _name_in(certificate, path),
        certificate.evaluation,
        certificate.dataset,
        certificate.dataset_sha256,
        certificate.attacks,
        certificate.tensors,
    )


def _name_in(certificate: Certificate, path: Path) -> str:
    """The job's name, or the file's name if the certificate comes from no job."""
    spec = certificate.manifest.get("spec")
    name = spec.get("name") if isinstance(spec, dict) else None
    return name if isinstance(name, str) else path.stem
