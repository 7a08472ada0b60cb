"""Every published recipe, field by field, against the table that was transcribed from papers and authors' code."""

from __future__ import annotations

from typing import Any

import pytest

from gkl.errors import InvalidInput
from gkl.recipes import RECIPES, recipe
from gkl.recipes.adversarial import ADVERSARIAL
from gkl.spec import JOB_SPEC

# Of all CIFAR recipes without extra data.
PLAIN: dict[str, Any] = {
    "architecture": "wrn_34_10",
    "threat_model": {"norm": "Linf", "epsilon": 8 / 255},
    "inner_maximization.num_steps": 5,
    "inner_maximization.relative_step_size": 0.5,
    "inner_maximization.start_noise": 0.001,
    "inner_maximization.project_start": False,
    "inner_maximization.network_mode": "eval",
    "optimizer": {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "decay_batch_norm": True,
    },
    "schedule": {"kind": "cosine", "span": "epochs_plus_one", "warmup_epochs": 0},
    "epochs": 200,
    "batch_size": 128,
    "drop_last_batch": False,
    "epsilon_ramp": True,
    "label_smoothing": 0.0,
    "augmentation": {"kind": "basic", "padding": 4, "flip": True, "rotation": 0.0},
    "synthetic": None,
    "averaging": {"kind": "epoch", "tau": 0.9, "buffers": "averaged"},
    "weight_perturbation": {"gamma": 0.005, "first_epoch": 10},
    "batch_norm": None,
    "selection": None,
    # torch 1.8 on RTX 3090 and A100, with nothing switched off.
    "compute": {"precision": "tf32", "channels_last": True, "compile": False},
    "evaluation.protocol": "standard",
    "evaluation.num_points": None,
    "evaluation.threat_model": {"norm": "Linf", "epsilon": 8 / 255},
}

# Of all recipes with generated images.
SYNTHETIC: dict[str, Any] = {
    **PLAIN,
    "architecture": "wrn_28_10_silu",
    "inner_maximization": {
        "num_steps": 10,
        "relative_step_size": 0.25,
        "start_noise": "uniform",
        "project_start": True,
        "network_mode": "train",
        "wmse_weight": 0.0,
    },
    "optimizer": {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
        "decay_batch_norm": False,
    },
    "schedule.kind": "one_cycle",
    "schedule.warmup_fraction": 0.025,
    "schedule.start_divisor": 25.0,
    "schedule.end_divisor": 10_000.0,
    "schedule.moves": "per_epoch",
    "schedule.low_momentum": 0.85,
    "schedule.high_momentum": 0.95,
    "epsilon_ramp": False,
    "label_smoothing": 0.1,
    "averaging": {"kind": "step", "tau": 0.995, "warmup_fraction": 0.025, "buffers": "copied"},
    "weight_perturbation": None,
    "batch_norm": {"momentum": 0.01, "first_momentum": 1.0},
    "selection.num_images": 1024,
    "selection.num_steps": 40,
    "selection.relative_step_size": 0.25,
    "selection.maximizes": "margin",
    "selection.ties": "last",
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
    "inner_maximization.project_start",
    "inner_maximization.network_mode",
):
    SYNTHETIC.pop(moved)


def gkl(ce: float, wmse: float, gamma: float, temperature: float) -> dict[str, Any]:
    return {"loss": "gkl", "ce_weight": ce, "wmse_weight": wmse, "gamma": gamma, "prior_temperature": temperature}


AUTOAUG = {
    "kind": "autoaug",
    "padding": 4,
    "flip": True,
    "rotation": 0.0,
    "robust_weight": 0.5,
    "fill": 128,
    "shear": "bicubic",
}
TURNED = {"kind": "basic", "padding": 4, "flip": True, "rotation": 15.0}
# Their script for TRADES is another one than those for DKL and GKL.
TRADES = {**PLAIN, "schedule": {"kind": "cosine", "span": "epochs", "warmup_epochs": 0}, "drop_last_batch": True}

# Recipe -> what must stand in its spec. CIFAR-10 maximizes the cross-entropy part alone, CIFAR-100 the whole loss.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {**PLAIN, "objective": gkl(4, 20, 1.0, 4), "inner_maximization.wmse_weight": 0.0},
    "cifar10-alpha3": {**PLAIN, "objective": gkl(3, 20, 1.0, 4), "inner_maximization.wmse_weight": 0.0},
    "cifar10-smooth-prior": {**PLAIN, "objective": gkl(4, 20, 0.2, 1), "inner_maximization.wmse_weight": 0.0},
    "cifar10-autoaug": {
        **PLAIN,
        "objective": gkl(4, 20, 1.0, 4),
        "augmentation": AUTOAUG,
        "inner_maximization.wmse_weight": 0.0,
    },
    "cifar10-trades": {
        **TRADES,
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
    "cifar100-autoaug-weight03": {
        **PLAIN,
        "objective": gkl(4, 20, 1.0, 4),
        "augmentation": AUTOAUG | {"robust_weight": 0.3},
        "inner_maximization.wmse_weight": 1.0,
    },
    "cifar100-trades": {
        **TRADES,
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
        "augmentation": TURNED,
        "objective": gkl(5, 12, 1.0, 4),
        "epochs": 400,
        "batch_size": 512,
        "synthetic": {"file": "1m", "fraction": 0.7},
    },
    "cifar100-50m": {
        **SYNTHETIC,
        "augmentation": TURNED,
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
    assert {name for name in ADVERSARIAL if name.startswith("cifar")} == PUBLISHED.keys()


def test_every_recipe_is_another_run_with_another_name() -> None:
    specs = [make() for make in RECIPES.values()]
    assert len({(spec.name, spec.dataset) for spec in specs}) == len(specs)
    assert len({spec.model_copy(update={"name": "x"}).model_dump_json() for spec in specs}) == len(specs)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_and_valid_spec(name: str) -> None:
    spec = recipe(name)
    assert JOB_SPEC.validate_json(spec.model_dump_json()) == spec
    assert spec.evaluation is not None


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="unknown recipe 'cifar10_trade'; did you mean 'cifar10-trades'"):
        recipe("cifar10_trade")
