"""Named runs: functions that return a full spec, so that a run starts from numbers known to work. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from gkl.catalog import DATASETS, unknown_name_message
from gkl.errors import InvalidInput
from gkl.recipes.adversarial import ADVERSARIAL
from gkl.recipes.distillation import DISTILLATION
from gkl.recipes.robust_distillation import ROBUST_DISTILLATION
from gkl.spec import DistillSpec, TrainSpec

RECIPES: dict[str, Callable[[], TrainSpec | DistillSpec]] = {**ADVERSARIAL, **DISTILLATION, **ROBUST_DISTILLATION}
"""By name. The spec of a distillation leaves the file of its teacher open."""


def recipe(name: str) -> TrainSpec | DistillSpec:
    """Return the full spec of a named recipe.

    Raises:
        InvalidInput: there is no recipe of this name; the message suggests the nearest names.
    """
    if name not in RECIPES:
        raise InvalidInput(unknown_name_message("recipe", name, RECIPES))
    return RECIPES[name]()


class ListedRecipe(NamedTuple):
    """A recipe as lists show it."""

    name: str
    title: str
    """The name that its spec gives to the job."""
    kind: str
    """'train' or 'distill'."""
    dataset: str
    group: str
    """The heading under which lists show it: its data set's title, and whether it trains with an adversary."""


@cache
def listed_recipes(kind: str | None = None) -> tuple[ListedRecipe, ...]:
    """Return the recipes for a list, those of a group one after the other.

    Args:
        kind: 'train' or 'distill'; None for both, 'train' first.
    """
    found = []
    for name, make in RECIPES.items():
        spec = make()
        group = f"{DATASETS[spec.dataset].title}, {'adversarial' if spec.has_adversary else 'clean images'}"
        found.append(ListedRecipe(name, spec.name, spec.kind, spec.dataset, group))
    places = {each: place for place, each in enumerate(dict.fromkeys((each.kind, each.group) for each in found))}
    listed = sorted(found, key=lambda each: (each.kind != "train", places[each.kind, each.group]))
    return tuple(each for each in listed if kind in (None, each.kind))
