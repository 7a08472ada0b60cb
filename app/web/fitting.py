"""Adapting a form after a choice: the budget, architectures, teacher and defaults that fit a data set, a norm or an
objective."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from app.web.forms import defaults_of_variant
from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.catalog.zoo import ZOO
from gkl.recipes import RECIPES
from gkl.spec import (
    DistillSpec,
    InnerMaximization,
    RobustDistillationObjective,
    TeacherWeights,
    ThreatModel,
    TrainSpec,
    format_epsilon,
)

_THREAT_MODELS = ("threat_model", "evaluation.threat_model")
_OF_AN_ADVERSARY = ("threat_model", "inner_maximization", "weight_perturbation")
_WITHOUT_CHANGE = {"inner_maximization": InnerMaximization().model_dump(mode="json")}
_ROBUST_DISTILLATION = frozenset(
    get_args(each.model_fields["loss"].annotation)[0] for each in get_args(RobustDistillationObjective)
)
"""The objectives of a distillation that train with an adversary."""


@dataclass(frozen=True)
class Drawn:
    """The data set, norms and objective for which a form was rendered; the form sends them back."""

    dataset: str
    norms: Mapping[str, str]
    """By the dotted path of each threat model."""
    loss: str = ""
    """The name of the objective; '' if the form has none."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Drawn:
        norms = {path: str(found.get("norm")) for path, found in _threat_models(values)}
        return cls(str(values.get("dataset", "")), norms, _loss(values))

    @classmethod
    def read(cls, text: str) -> Drawn:
        dataset, *choices = text.split(" ")
        by_path = dict(choice.split("=", 1) for choice in choices if "=" in choice)
        loss = by_path.pop("loss", "")
        return cls(dataset, by_path, loss)

    def __str__(self) -> str:
        choices = {**self.norms, **({"loss": self.loss} if self.loss else {})}
        return " ".join([self.dataset, *(f"{path}={choice}" for path, choice in choices.items())])


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
    """Replace the old choice's defaults by the new one's, and choose architectures that fit.

    Other values that the user typed stay.

    Returns:
        The values, and what was changed, in words.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    dataset = str(changed.get("dataset", ""))
    if dataset not in DATASETS:
        return changed, []
    changes = [
        *_fit_objective(changed, drawn.loss),
        *_fit_adversary(changed, dataset),
        *_fit_teacher(changed, dataset),
    ]
    for path, found in _threat_models(changed):
        was, usual = _usual(drawn.dataset, drawn.norms.get(path)), _usual(dataset, str(found.get("norm")))
        if usual is not None and was not in (None, usual) and _number(found.get("epsilon")) == was:
            found["epsilon"] = usual
            changes.append(f"{path}.epsilon is now {format_epsilon(usual)}, the default")
    # If the form does not say what it was rendered for, a value that does not fit is an error at its field.
    if drawn.dataset not in ("", dataset):
        changes += _fit_architectures(changed, dataset)
    return changed, changes


def _fit_architectures(changed: dict[str, Any], dataset: str) -> list[str]:
    """Choose other architectures in the place of those that do not fit the data set; return what was changed."""
    changes, fitting = [], fitting_architectures(dataset)
    if changed.get("architecture") not in fitting:
        made = [recipe() for recipe in RECIPES.values()]
        of_kind = [each for each in made if each.kind == changed.get("kind", "train") and each.dataset == dataset]
        changed["architecture"] = next(iter([*(each.architecture for each in of_kind), *fitting]), "")
        changes.append(f"architecture is now {changed['architecture']}")
    teacher = changed.get("teacher")
    if isinstance(teacher, Mapping) and teacher.get("kind") == "weights" and teacher.get("architecture") not in fitting:
        changed["teacher"] = _usual_teacher(changed, dataset)
        changes.append(f"teacher.architecture is now {changed['teacher']['architecture']}")
    return changes


def _fit_objective(changed: dict[str, Any], before: str) -> list[str]:
    """Replace the defaults of the objective before by those of the one that was chosen; return what was changed."""
    loss, model = _loss(changed), DistillSpec if changed.get("kind") == "distill" else TrainSpec
    if not before or loss in ("", before):
        return []
    was, usual = (defaults_of_variant(model, "objective", name) for name in (before, loss))
    changes = []
    for name, value in usual.items():
        if name in was and value != was[name] and changed["objective"].get(name) == was[name]:
            changed["objective"][name] = value
            shown = f"{value:g}" if isinstance(value, float) else value
            changes.append(f"objective.{name} is now {shown}, the default of {loss!r}")
    return changes


def _loss(values: Mapping[str, Any]) -> str:
    objective = values.get("objective")
    return str(objective.get("loss", "")) if isinstance(objective, Mapping) else ""


def _fit_adversary(changed: dict[str, Any], dataset: str) -> list[str]:
    """Leave out what says how an adversary trains where the objective has none; else give it the usual budget.

    Returns:
        What was changed, in words.
    """
    loss = _loss(changed)
    if not loss:
        return []
    if loss in _ROBUST_DISTILLATION if changed.get("kind") == "distill" else loss != "ce":
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
    return [f"{', '.join(left_out)} left out, since {loss!r} trains without an adversary"] if left_out else []


def _fit_teacher(changed: dict[str, Any], dataset: str) -> list[str]:
    """Leave out a distillation's teacher where the objective has none; else ask for one.

    Returns:
        What was changed, in words.
    """
    loss, has_one = _loss(changed), isinstance(changed.get("teacher"), Mapping)
    if changed.get("kind") != "distill" or not loss:
        return []
    if loss == "ce":
        changed.pop("teacher", None)
        return ["teacher left out, since 'ce' learns from the labels alone"] if has_one else []
    if has_one:
        return []
    changed["teacher"] = _usual_teacher(changed, dataset)
    return [f"teacher is now a {changed['teacher']['architecture']}, since {loss!r} needs a teacher"]


def _usual_teacher(changed: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The teacher of a recipe for the data set, of the same student if there is one; else the student's architecture.

    Its weights are given only where they are published.
    """
    made = [recipe() for recipe in RECIPES.values()]
    taught = [each for each in made if isinstance(each, DistillSpec) and each.dataset == dataset]
    taught.sort(key=lambda each: each.architecture != changed.get("architecture"))
    for each in taught:
        if isinstance(each.teacher, TeacherWeights):
            return each.teacher.model_dump(mode="json")
    return {"kind": "weights", "architecture": changed.get("architecture", "")}


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
