"""Named runs: functions that return a full spec, so that a run starts from numbers known to work. Free of torch."""

from __future__ import annotations

from collections.abc import Callable

from gkl.catalog import unknown_name_message
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
