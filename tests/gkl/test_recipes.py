"""Every published recipe, field by field, against the table that was transcribed from papers and authors' code."""

from __future__ import annotations

from typing import Any

import pytest

from gkl.errors import InvalidInput
from gkl.recipes import RECIPES, recipe
from gkl.spec import TrainSpec

# Of all CIFAR recipes without extra data.
PLAIN: dict[str, Any] = {
    "architecture": "wrn_34_10",
    "threat_model": {"norm": "Linf", "epsilon": 8 / 255},
    "inner_maximization.num_steps": 5,
    "inner_maximization.relative_step_size": 0.5,
    "inner_maximization.start_noise": 0.001,
    "optimizer": {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "decay_batch_norm": True,
    },
    "schedule": {"kind": "cosine"},
    "epochs": 200,
    "batch_size": 128,
    "epsilon_ramp": True,
    "label_smoothing": 0.0,
    "augmentation": {"kind": "basic", "padding": 4, "flip": True},
    "synthetic": None,
    "averaging": {"kind": "epoch", "tau": 0.9},
    "weight_perturbation": {"gamma": 0.005, "first_epoch": 10},
    "selection": None,
    "compute": {"precision": "float32", "channels_last": True, "compile": False},
    "evaluation.protocol": "standard",
    "evaluation.num_points": None,
    "evaluation.threat_model": {"norm": "Linf", "epsilon": 8 / 255},
}

# Of all recipes with generated images.
SYNTHETIC: dict[str, Any] = {
    **PLAIN,
    "architecture": "wrn_28_10_silu",
    "inner_maximization": {"num_steps": 10, "relative_step_size": 0.25, "start_noise": "uniform", "wmse_weight": 0.0},
    "optimizer": {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
        "decay_batch_norm": False,
    },
    "schedule.kind": "one_cycle",
    "schedule.warmup_fraction": 0.025,
    "epsilon_ramp": False,
    "label_smoothing": 0.1,
    "averaging": {"kind": "step", "tau": 0.995, "warmup_fraction": 0.025},
    "weight_perturbation": None,
    "selection.num_images": 1024,
    "selection.num_steps": 40,
    "selection.relative_step_size": 0.25,
    "selection.every_epochs": 1,
    "objective.gamma": 1.0,
    "objective.prior_temperature": 4.0,
}
for moved in (
    "schedule",
    "synthetic",
    "selection",
    "inner_maximization.num_steps",
    "inner_maximization.relative_step_size",
    "inner_maximization.start_noise",
):
    SYNTHETIC.pop(moved)


def gkl(ce: float, wmse: float, gamma: float, temperature: float) -> dict[str, Any]:
    return {"loss": "gkl", "ce_weight": ce, "wmse_weight": wmse, "gamma": gamma, "prior_temperature": temperature}


AUTOAUG = {"kind": "autoaug", "padding": 4, "flip": True, "robust_weight": 0.5}

# Recipe -> what must stand in its spec. CIFAR-10 maximizes the cross-entropy part alone, CIFAR-100 the whole loss.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {**PLAIN, "objective": gkl(4, 20, 1.0, 4), "inner_maximization.wmse_weight": 0.0},
    "cifar10-smooth-prior": {**PLAIN, "objective": gkl(4, 20, 0.2, 1), "inner_maximization.wmse_weight": 0.0},
    "cifar10-autoaug": {
        **PLAIN,
        "objective": gkl(4, 20, 1.0, 4),
        "augmentation": AUTOAUG,
        "inner_maximization.wmse_weight": 0.0,
    },
    "cifar10-trades": {
        **PLAIN,
        "objective": {"loss": "trades", "kl_weight": 6.0},
        "inner_maximization.wmse_weight": 0.0,
    },
    "cifar100": {**PLAIN, "objective": gkl(4, 20, 1.0, 4), "inner_maximization.wmse_weight": 1.0},
    "cifar100-smooth-prior": {**PLAIN, "objective": gkl(4, 20, 0.4, 1), "inner_maximization.wmse_weight": 1.0},
    "cifar100-autoaug": {
        **PLAIN,
        "objective": gkl(4, 20, 1.0, 4),
        "augmentation": AUTOAUG,
        "inner_maximization.wmse_weight": 1.0,
    },
    "cifar100-trades": {
        **PLAIN,
        "objective": {"loss": "trades", "kl_weight": 9.0},
        "inner_maximization.wmse_weight": 0.0,
    },
    "cifar10-1m": {
        **SYNTHETIC,
        "objective": gkl(3, 10, 1.0, 4),
        "epochs": 400,
        "batch_size": 512,
        "synthetic": {"file": "1m", "fraction": 0.7},
    },
    "cifar10-20m": {
        **SYNTHETIC,
        "objective": gkl(3, 10, 1.0, 4),
        "epochs": 2400,
        "batch_size": 2048,
        "synthetic": {"file": "20m", "fraction": 0.8},
    },
    "cifar100-1m": {
        **SYNTHETIC,
        "objective": gkl(5, 12, 1.0, 4),
        "epochs": 400,
        "batch_size": 512,
        "synthetic": {"file": "1m", "fraction": 0.7},
    },
    "cifar100-50m": {
        **SYNTHETIC,
        "objective": gkl(5, 12, 1.0, 4),
        "epochs": 1600,
        "batch_size": 2048,
        "synthetic": {"file": "50m", "fraction": 0.8},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_one(name: str) -> None:
    spec = recipe(name).model_dump()
    assert spec["dataset"] == name.split("-", maxsplit=1)[0]
    for field, expected in PUBLISHED[name].items():
        found: Any = spec
        for part in field.split("."):
            found = found[part]
        assert found == expected, field


def test_no_published_recipe_is_left_out_of_the_comparison() -> None:
    assert {name for name in RECIPES if name.startswith("cifar")} == PUBLISHED.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_and_valid_spec(name: str) -> None:
    spec = recipe(name)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.evaluation is not None


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="unknown recipe 'cifar10_trade'; did you mean 'cifar10-trades'"):
        recipe("cifar10_trade")
