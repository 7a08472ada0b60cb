"""Every recipe of distillation, field by field, against tables transcribed from the papers' released configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gkl.catalog import ARCHITECTURES
from gkl.recipes import recipe
from gkl.recipes.distillation import DISTILLATION
from gkl.recipes.robust_distillation import ROBUST_DISTILLATION
from gkl.spec import DistillSpec, TrainSpec
from gkl.training.schedule import learning_rate

SGD = {"momentum": 0.9, "nesterov": False, "decay_batch_norm": True}

# CIFAR-100: GKL's (CE weight, wMSE weight, gamma, class-wise information) from jiequancui/DKL c5e8ad2,
# DKLv2/KD-dkl/cifar100_config_gkl; DKD's beta and the learning rate from megvii-research/mdistiller a08d46f.
PAIRS: dict[str, tuple[str, str, tuple[float, float, float, bool], float, float]] = {
    "res56-res20": ("resnet_56", "resnet_20", (1, 4, 0.2, True), 2, 0.05),
    "res110-res32": ("resnet_110", "resnet_32", (1, 4, 0.1, False), 2, 0.05),
    "res32x4-res8x4": ("resnet_32x4", "resnet_8x4", (1, 16, 0.05, True), 8, 0.05),
    "wrn40_2-wrn16_2": ("wrn_40_2", "wrn_16_2", (3, 20, 0.3, False), 6, 0.05),
    "wrn40_2-wrn40_1": ("wrn_40_2", "wrn_40_1", (1, 12, 0.3, False), 6, 0.05),
    "vgg13-vgg8": ("vgg_13", "vgg_8", (1, 8, 0.2, True), 6, 0.05),
    "res32x4-shuffle_v1": ("resnet_32x4", "shufflenet_v1", (1, 8, 0, True), 8, 0.01),
    "wrn40_2-shuffle_v1": ("wrn_40_2", "shufflenet_v1", (1, 8, 0, False), 8, 0.01),
    "vgg13-mobile_v2": ("vgg_13", "mobilenet_v2", (4, 12, 0.1, True), 6, 0.01),
    "res50-mobile_v2": ("resnet_50", "mobilenet_v2", (1, 8, 0.05, True), 8, 0.01),
    "res32x4-shuffle_v2": ("resnet_32x4", "shufflenet_v2", (3, 12, 0.1, True), 8, 0.01),
}


def distilled(name: str) -> DistillSpec:
    spec = recipe(name)
    assert isinstance(spec, DistillSpec)
    return spec


def check_cifar100(spec: TrainSpec | DistillSpec, learning_rate: float) -> None:
    found = spec.model_dump()
    assert (found["dataset"], found["epochs"], found["batch_size"]) == ("cifar100", 240, 64)
    assert found["optimizer"] == {"learning_rate": learning_rate, "weight_decay": 5e-4, **SGD}
    assert found["schedule"] == {"kind": "piecewise", "milestones": (151, 181, 211), "factor": 0.1}
    assert found["augmentation"] == {"kind": "basic", "padding": 4, "flip": True, "rotation": 0.0}
    assert found["drop_last_batch"] is False
    assert found["threat_model"] is found["averaging"] is found["selection"] is None
    assert spec.evaluation is not None
    assert spec.evaluation.protocol == "clean"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("loss", ["gkl", "kd", "dkd"])
def test_a_pair_of_cifar_100_is_the_released_one(pair: str, loss: str) -> None:
    teacher, student, (ce, wmse, gamma, class_wise), beta, learning_rate = PAIRS[pair]
    spec = distilled(f"{pair}-{loss}")
    check_cifar100(spec, learning_rate)
    assert spec.architecture == student
    assert spec.teacher is not None
    assert spec.teacher.model_dump() == {
        "kind": "weights",
        "architecture": teacher,
        "weights": None,
        "weights_key": None,
    }
    expected: dict[str, dict[str, Any]] = {
        "gkl": {
            "label_weight": 1.0,
            "ce_weight": ce,
            "wmse_weight": wmse,
            "gamma": gamma,
            "class_wise": class_wise,
            "temperature": 4.0,
            "prior_temperature": 4.0,
            "ramp_epochs": 20,
        },
        "kd": {"label_weight": 0.1, "kl_weight": 0.9, "temperature": 4.0, "ramp_epochs": 0},
        "dkd": {
            "label_weight": 1.0,
            "target_weight": 1.0,
            "non_target_weight": beta,
            "temperature": 4.0,
            "ramp_epochs": 20,
        },
    }
    assert spec.objective.model_dump() == {"loss": loss, **expected[loss]}


@pytest.mark.parametrize("name", ["res56", "res110", "res32x4", "wrn40_2", "vgg13", "res50"])
def test_a_teacher_is_trained_as_its_students(name: str) -> None:
    spec = recipe(f"{name}-ce")
    check_cifar100(spec, 0.05)
    assert spec.objective.model_dump() == {"loss": "ce"}
    assert spec.architecture in {pair[0] for pair in PAIRS.values()}


def test_every_teacher_of_a_pair_has_a_recipe() -> None:
    taught = {recipe(f"{name.partition('-')[0]}-ce").architecture for name in PAIRS}
    assert taught == {pair[0] for pair in PAIRS.values()}


def check_imagenet(spec: TrainSpec | DistillSpec) -> None:
    assert spec.dataset == "imagenet"
    assert spec.augmentation is not None
    assert spec.augmentation.kind == "resized_crop"
    assert spec.evaluation is not None
    assert spec.evaluation.protocol == "clean"


@pytest.mark.parametrize(
    ("pair", "teacher", "student", "gkl", "beta"),
    [
        ("r34-r18", "imagenet_resnet_34", "imagenet_resnet_18", (1, 0.5, 0.6), 0.5),
        ("r50-mobile_v1", "imagenet_resnet_50", "mobilenet_v1", (4, 1, 0.5), 2.0),
    ],
)
def test_a_pair_of_imagenet_is_the_released_one(
    pair: str, teacher: str, student: str, gkl: tuple[float, float, float], beta: float
) -> None:
    """T is 1 everywhere. GKL's ramp is the code's default for ImageNet, 5 epochs; DKD has none."""
    expected: dict[str, dict[str, Any]] = {
        "gkl": {
            "label_weight": 1.0,
            "ce_weight": gkl[0],
            "wmse_weight": gkl[1],
            "gamma": gkl[2],
            "class_wise": True,
            "temperature": 1.0,
            "prior_temperature": 1.0,
            "ramp_epochs": 5,
        },
        "kd": {"label_weight": 0.5, "kl_weight": 0.5, "temperature": 1.0, "ramp_epochs": 0},
        "dkd": {"label_weight": 1.0, "target_weight": 1.0, "non_target_weight": beta, "temperature": 1.0}
        | {"ramp_epochs": 1},
    }
    for loss, says in expected.items():
        spec = distilled(f"imagenet-{pair}-{loss}")
        check_imagenet(spec)
        assert spec.objective.model_dump() == {"loss": loss, **says}
        assert (spec.architecture, spec.teacher.architecture) == (student, teacher)  # type: ignore[union-attr]
        assert (spec.epochs, spec.batch_size) == (100, 512)
        assert spec.optimizer.model_dump() == {"learning_rate": 0.2, "weight_decay": 1e-4, **SGD}
        assert spec.schedule.model_dump() == {"kind": "piecewise", "milestones": (31, 61, 91), "factor": 0.1}


LONG_TAIL = {
    "imagenet-lt-x101-r18": ("imagenet_resnext_101_32x4d", "imagenet_resnet_18", 4.0, 4.0),
    "imagenet-lt-x101-r50": ("imagenet_resnext_101_32x4d", "imagenet_resnet_50", 3.0, 4.0),
    "imagenet-lt-r50-r50": ("imagenet_resnet_50", "imagenet_resnet_50", 1.0, 1.0),
    "imagenet-lt-r18-r18": ("imagenet_resnet_18", "imagenet_resnet_18", 1.0, 0.5),
}


@pytest.mark.parametrize("name", LONG_TAIL)
def test_a_pair_of_imagenet_lt_is_the_released_one(name: str) -> None:
    teacher, student, ce, wmse = LONG_TAIL[name]
    gkl, kl = distilled(f"{name}-gkl"), distilled(f"{name}-kl")
    assert gkl.objective.model_dump() == {
        "loss": "gkl",
        "label_weight": 1.0,
        "ce_weight": ce,
        "wmse_weight": wmse,
        "gamma": 0.3,
        "class_wise": True,
        "temperature": 1.0,
        "prior_temperature": 1.0,
        "ramp_epochs": 0,
    }
    says = {"label_weight": 1.0, "kl_weight": ce, "temperature": 1.0, "ramp_epochs": 0}
    assert kl.objective.model_dump() == {"loss": "kd", **says}
    for spec in (gkl, kl):
        assert (spec.architecture, spec.teacher.architecture) == (student, teacher)  # type: ignore[union-attr]
        check_long_tail(spec)


@pytest.mark.parametrize("name", ["x101", "r50", "r18"])
def test_a_teacher_of_imagenet_lt_has_the_same_images(name: str) -> None:
    spec = recipe(f"imagenet-lt-{name}-ce")
    assert spec.objective.model_dump() == {"loss": "ce"}
    check_long_tail(spec)


def check_long_tail(spec: TrainSpec | DistillSpec) -> None:
    """The rate in epoch e, counted from 0: .05 (e + 1) / 10 below 10, then .025 (1 + cos(pi (e - 9) / 81))."""
    check_imagenet(spec)
    assert (spec.epochs, spec.batch_size) == (90, 128)
    assert spec.optimizer.model_dump() == {"learning_rate": 0.05, "weight_decay": 5e-4, **SGD}
    assert spec.imbalance is not None
    assert spec.imbalance.factor == 256
    for e in range(90):
        expected = 0.05 * (e + 1) / 10 if e < 10 else 0.025 * (1 + math.cos(math.pi * (e - 9) / 81))
        assert learning_rate(spec, e * 7, 7) == pytest.approx(expected, rel=1e-12)


# Loss, epochs, milestones, weight decay, start of the inner maximization, what it increases, and what the loss says.
ROBUST: dict[str, tuple[int, tuple[int, ...], float, Any, str, dict[str, Any]]] = {
    "ard": (200, (101, 151), 2e-4, "uniform", "cross_entropy", {"teacher_weight": 1.0, "temperature": 30.0}),
    "iad": (
        *(200, (101, 151), 2e-4, "uniform", "cross_entropy"),
        {
            "teacher_weight": 1.0,
            "temperature": 1.0,
            "first_introspective_epoch": 61,
            "kl_mean": "batch",
            "trust_exponent": 0.1,
        },
    ),
    "rslad": (300, (216, 261, 286), 2e-4, 0.001, "divergence", {"kl_mean": "elements"}),
    "adaad": (200, (101, 151), 5e-4, 0.001, "adaptive_divergence", {"adversarial_weight": 1.0, "natural_weight": 0.0}),
    "rslad-gkl": (
        *(300, (216, 261, 286), 2e-4, 0.001, "divergence"),
        {"adversarial_weight": 5 / 6, "natural_weight": 1 / 6, "ce_weight": 4.0, "wmse_weight": 20.0},
    ),
}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("method", ROBUST)
def test_a_robust_method_has_its_published_settings(dataset: str, method: str) -> None:
    epochs, milestones, weight_decay, start, maximizes, says = ROBUST[method]
    spec = distilled(f"{dataset}-{method}")
    found = spec.model_dump()
    assert (found["dataset"], found["architecture"], found["epochs"]) == (dataset, "resnet_18", epochs)
    assert found["schedule"] == {"kind": "piecewise", "milestones": milestones, "factor": 0.1}
    assert found["optimizer"] == {"learning_rate": 0.1, "weight_decay": weight_decay, **SGD}
    assert found["batch_size"] == 128
    assert found["threat_model"] == {"norm": "Linf", "epsilon": 8 / 255}
    assert found["epsilon_ramp"] is False
    inner = found["inner_maximization"]
    # Steps of 2/255.
    assert inner["network_mode"] == ("train" if method in ("ard", "iad") else "eval")
    assert inner["project_start"] is False
    assert (inner["num_steps"], inner["relative_step_size"], inner["start_noise"]) == (10, 0.25, start)
    assert found["objective"]["loss"] == method
    assert found["objective"]["maximizes"] == maximizes
    for name, value in says.items():
        assert found["objective"][name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert found["teacher"]["weights"] == "robustbench"
    assert dataset in ARCHITECTURES[found["teacher"]["architecture"]].datasets


@pytest.mark.parametrize(("dataset", "tenth"), [("cifar10", 10), ("cifar100", 100)])
def test_rslads_kl_is_a_tenth_of_the_batch_mean_on_both_data_sets(dataset: str, tenth: int) -> None:
    """Released: the mean over images and classes, times 10 on CIFAR-100."""
    objective = distilled(f"{dataset}-rslad").objective.model_dump()
    assert objective["adversarial_weight"] / tenth == pytest.approx(5 / 6 / 10)
    assert objective["natural_weight"] / tenth == pytest.approx(1 / 6 / 10)


def test_no_recipe_is_left_out_of_the_comparison() -> None:
    ours = {"digits-teacher", "digits-distill", "digits-robust-distill"}
    pairs = {f"{pair}-{loss}" for pair in PAIRS for loss in ("gkl", "kd", "dkd")}
    teachers = {f"{pair.partition('-')[0]}-ce" for pair in PAIRS}
    robust = {f"{dataset}-{method}" for dataset in ("cifar10", "cifar100") for method in ROBUST}
    imagenet = {f"imagenet-{pair}-{loss}" for pair in ("r34-r18", "r50-mobile_v1") for loss in ("gkl", "kd", "dkd")}
    long_tail = {f"{pair}-{loss}" for pair in LONG_TAIL for loss in ("gkl", "kl")}
    long_tail |= {f"imagenet-lt-{name}-ce" for name in ("x101", "r50", "r18")}
    named = ours | pairs | teachers | robust | imagenet | long_tail
    assert DISTILLATION.keys() | ROBUST_DISTILLATION.keys() == named
