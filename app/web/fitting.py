"""Adapting a form after the choice of a data set or norm: a budget and an architecture that fit it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.catalog.zoo import ZOO
from gkl.recipes import RECIPES
from gkl.spec import InnerMaximization, ThreatModel, format_epsilon

_THREAT_MODELS = ("threat_model", "evaluation.threat_model")
_OF_AN_ADVERSARY = ("threat_model", "inner_maximization", "weight_perturbation")
_WITHOUT_CHANGE = {"inner_maximization": InnerMaximization().model_dump(mode="json")}


@dataclass(frozen=True)
class Drawn:
    """The data set and norms for which a form was rendered; the form sends them back."""

    dataset: str
    norms: Mapping[str, str]
    """By the dotted path of each threat model."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Drawn:
        norms = {path: str(found.get("norm")) for path, found in _threat_models(values)}
        return cls(str(values.get("dataset", "")), norms)

    @classmethod
    def read(cls, text: str) -> Drawn:
        dataset, *norms = text.split(" ")
        return cls(dataset, dict(norm.split("=", 1) for norm in norms if "=" in norm))

    def __str__(self) -> str:
        return " ".join([self.dataset, *(f"{path}={norm}" for path, norm in self.norms.items())])


def fitting_architectures(dataset: str) -> list[str]:
    """The architectures that fit a data set, this project's own first; all if there is no such data set."""
    names = [each.name for each in ARCHITECTURES.values() if dataset not in DATASETS or dataset in each.datasets]
    return sorted(names, key=lambda name: "/" in name)


def grouped(names: Iterable[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Architectures under headings: this project's own, then RobustBench's zoo by board; each with its label there."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if name in ZOO:
            dataset, threat_model, model = ZOO[name]
            heading, label = f"RobustBench's zoo: {DATASETS[dataset].title}, {threat_model}", model
        else:
            heading, label = "To train and evaluate", name
        groups.setdefault(heading, []).append((name, label))
    return list(groups.items())


def fitted(values: Mapping[str, Any], drawn: Drawn) -> tuple[dict[str, Any], list[str]]:
    """Replace the old choice's default budget by the new one's, and choose an architecture that fits.

    Other values that the user typed stay.

    Returns:
        The values, and what was changed, in words.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    dataset = str(changed.get("dataset", ""))
    if dataset not in DATASETS:
        return changed, []
    changes = _fit_adversary(changed, dataset)
    for path, found in _threat_models(changed):
        was, usual = _usual(drawn.dataset, drawn.norms.get(path)), _usual(dataset, str(found.get("norm")))
        if usual is not None and was not in (None, usual) and _number(found.get("epsilon")) == was:
            found["epsilon"] = usual
            changes.append(f"{path}.epsilon is now {format_epsilon(usual)}, the default")
    fitting = fitting_architectures(dataset)
    # If the form does not say what it was rendered for, a value that does not fit is an error at its field.
    if drawn.dataset not in ("", dataset) and changed.get("architecture") not in fitting:
        of_recipes = [recipe().architecture for recipe in RECIPES.values() if recipe().dataset == dataset]
        changed["architecture"] = next(iter([*of_recipes, *fitting]), "")
        changes.append(f"architecture is now {changed['architecture']}")
    return changed, changes


def _fit_adversary(changed: dict[str, Any], dataset: str) -> list[str]:
    """Leave out what says how an adversary trains where the objective has none; else give it the usual budget.

    Returns:
        What was changed, in words.
    """
    objective = changed.get("objective")
    if not isinstance(objective, Mapping):
        return []
    if objective.get("loss") != "ce":
        usual = _usual(dataset, "Linf")
        if isinstance(changed.get("threat_model"), Mapping) or usual is None:
            return []
        changed["threat_model"] = {"norm": "Linf", "epsilon": usual}
        return [f"threat_model is now Linf, epsilon {format_epsilon(usual)}, the usual one"]
    left_out = [
        name
        for name in _OF_AN_ADVERSARY
        if isinstance(found := changed.pop(name, None), Mapping) and found != _WITHOUT_CHANGE.get(name)
    ]
    # A box that is not ticked says false, and without an adversary it says nothing.
    if not changed.pop("epsilon_ramp", True):
        left_out.append("epsilon_ramp")
    return [f"{', '.join(left_out)} left out, since 'ce' trains without an adversary"] if left_out else []


def _usual(dataset: str, norm: str | None) -> float | None:
    budgets = DATASETS[dataset].epsilon.items() if dataset in DATASETS else ()
    return next((epsilon for known, epsilon in budgets if known == norm), None)


def _threat_models(values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _THREAT_MODELS:
        found: Any = values
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(found, dict):
            yield path, found


def _number(epsilon: Any) -> float | None:
    """The budget as a spec parses it; None if it cannot."""
    try:
        # L1 accepts the largest budgets of all norms.
        return ThreatModel(norm="L1", epsilon=epsilon).epsilon
    except ValueError:
        return None
