"""Distillation on clean images: the pairs of the GKL paper, their teachers, and a quick one on digits.

CIFAR-100: the eleven pairs of mdistiller (megvii-research/mdistiller a08d46f, whose settings for KD and DKD these are),
with GKL's weights from its authors' code (jiequancui/DKL c5e8ad2, DKLv2/KD-dkl). Published figures of these pairs are
the best epoch on the test set, mean of five runs; here the last epoch is the result.

ImageNet: the two pairs of the same code. ImageNet-LT (arXiv 1904.05160): its three pairs, self-distillation (arXiv
2305.13948), and the KL baseline with the same weights; `imbalance` makes a long tail of the size of ImageNet-LT, which
is another choice of images than the published list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from gkl.recipes.adversarial import digits_ce
from gkl.spec import (
    BasicAugmentation,
    CosineSchedule,
    CrossEntropyObjective,
    DistillGklObjective,
    DistillObjective,
    DistillSpec,
    DkdObjective,
    Evaluation,
    Imbalance,
    KdObjective,
    PiecewiseSchedule,
    ResizedCropAugmentation,
    Sgd,
    TeacherWeights,
    TrainSpec,
)

Loss = Literal["gkl", "kd", "dkd"]


@dataclass(frozen=True)
class Pair:
    """A teacher and a student of CIFAR-100, with the weights of their losses."""

    teacher: str
    student: str
    ce_weight: float
    wmse_weight: float
    gamma: float
    class_wise: bool
    non_target_weight: float
    """DKD's beta."""
    learning_rate: float = 0.05
    """mdistiller's is 0.01 for MobileNets and ShuffleNets."""


CIFAR100_PAIRS: dict[str, Pair] = {
    "res56-res20": Pair("resnet_56", "resnet_20", 1, 4, 0.2, True, 2),
    "res110-res32": Pair("resnet_110", "resnet_32", 1, 4, 0.1, False, 2),
    "res32x4-res8x4": Pair("resnet_32x4", "resnet_8x4", 1, 16, 0.05, True, 8),
    "wrn40_2-wrn16_2": Pair("wrn_40_2", "wrn_16_2", 3, 20, 0.3, False, 6),
    "wrn40_2-wrn40_1": Pair("wrn_40_2", "wrn_40_1", 1, 12, 0.3, False, 6),
    "vgg13-vgg8": Pair("vgg_13", "vgg_8", 1, 8, 0.2, True, 6),
    "res32x4-shuffle_v1": Pair("resnet_32x4", "shufflenet_v1", 1, 8, 0.0, True, 8, 0.01),
    "wrn40_2-shuffle_v1": Pair("wrn_40_2", "shufflenet_v1", 1, 8, 0.0, False, 8, 0.01),
    "vgg13-mobile_v2": Pair("vgg_13", "mobilenet_v2", 4, 12, 0.1, True, 6, 0.01),
    "res50-mobile_v2": Pair("resnet_50", "mobilenet_v2", 1, 8, 0.05, True, 8, 0.01),
    "res32x4-shuffle_v2": Pair("resnet_32x4", "shufflenet_v2", 3, 12, 0.1, True, 8, 0.01),
}

_CLEAN = Evaluation(protocol="clean")
_IMAGENET_SCHEDULE = PiecewiseSchedule(kind="piecewise", milestones=(31, 61, 91), factor=0.1)
_CIFAR100_SCHEDULE = PiecewiseSchedule(kind="piecewise", milestones=(151, 181, 211), factor=0.1)


def cifar100(pair: Pair, loss: Loss) -> DistillSpec:
    """A pair of CIFAR-100: 240 epochs, the divergence growing over the first 20 with GKL and DKD."""
    objectives: dict[Loss, DistillObjective] = {
        "gkl": DistillGklObjective(
            ce_weight=pair.ce_weight,
            wmse_weight=pair.wmse_weight,
            gamma=pair.gamma,
            class_wise=pair.class_wise,
            temperature=4.0,
            prior_temperature=4.0,
            ramp_epochs=20,
        ),
        "kd": KdObjective(loss="kd", label_weight=0.1, kl_weight=0.9, temperature=4.0),
        "dkd": DkdObjective(loss="dkd", non_target_weight=pair.non_target_weight, temperature=4.0, ramp_epochs=20),
    }
    return DistillSpec(
        name=f"{loss.upper()} {pair.student} from {pair.teacher}",
        dataset="cifar100",
        architecture=pair.student,
        teacher=TeacherWeights(architecture=pair.teacher),
        objective=objectives[loss],
        optimizer=Sgd(learning_rate=pair.learning_rate, momentum=0.9, weight_decay=5e-4),
        schedule=_CIFAR100_SCHEDULE,
        epochs=240,
        batch_size=64,
        augmentation=BasicAugmentation(padding=4, flip=True),
        evaluation=_CLEAN,
    )


def cifar100_teacher(architecture: str) -> TrainSpec:
    """A teacher of CIFAR-100, trained with cross-entropy as the students are."""
    return TrainSpec(
        name=f"Cross-entropy {architecture}",
        dataset="cifar100",
        architecture=architecture,
        objective=CrossEntropyObjective(loss="ce"),
        optimizer=Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=_CIFAR100_SCHEDULE,
        epochs=240,
        batch_size=64,
        augmentation=BasicAugmentation(padding=4, flip=True),
        evaluation=_CLEAN,
    )


ImageNetPair = Literal["r34-r18", "r50-mobile_v1"]


def imagenet(pair: ImageNetPair, loss: Loss) -> DistillSpec:
    """A pair of ImageNet: 100 epochs at batch 512. Published with GKL: 71.91 (R34-R18), 72.92 (R50-MobileNetV1)."""
    teacher, student, ce, wmse, gamma, beta = {
        "r34-r18": ("imagenet_resnet_34", "imagenet_resnet_18", 1.0, 0.5, 0.6, 0.5),
        "r50-mobile_v1": ("imagenet_resnet_50", "mobilenet_v1", 4.0, 1.0, 0.5, 2.0),
    }[pair]
    objectives: dict[Loss, DistillObjective] = {
        "gkl": DistillGklObjective(
            ce_weight=ce, wmse_weight=wmse, gamma=gamma, temperature=1.0, prior_temperature=1.0, ramp_epochs=5
        ),
        "kd": KdObjective(loss="kd", label_weight=0.5, kl_weight=0.5, temperature=1.0),
        "dkd": DkdObjective(loss="dkd", non_target_weight=beta, temperature=1.0, ramp_epochs=1),
    }
    return DistillSpec(
        name=f"{loss.upper()} {student} from {teacher}",
        dataset="imagenet",
        architecture=student,
        teacher=TeacherWeights(architecture=teacher),
        objective=objectives[loss],
        optimizer=Sgd(learning_rate=0.2, momentum=0.9, weight_decay=1e-4),
        schedule=_IMAGENET_SCHEDULE,
        epochs=100,
        batch_size=512,
        augmentation=ResizedCropAugmentation(kind="resized_crop"),
        evaluation=_CLEAN,
    )


@dataclass(frozen=True)
class LongTailPair:
    """A teacher and a student of ImageNet-LT, with the weights of GKL's two parts."""

    teacher: str
    student: str
    ce_weight: float
    wmse_weight: float


_X101, _R50, _R18 = "imagenet_resnext_101_32x4d", "imagenet_resnet_50", "imagenet_resnet_18"
LONG_TAIL_PAIRS: dict[str, LongTailPair] = {
    "imagenet-lt-x101-r18": LongTailPair(_X101, _R18, 4.0, 4.0),
    "imagenet-lt-x101-r50": LongTailPair(_X101, _R50, 3.0, 4.0),
    "imagenet-lt-r50-r50": LongTailPair(_R50, _R50, 1.0, 1.0),
    "imagenet-lt-r18-r18": LongTailPair(_R18, _R18, 1.0, 0.5),
}


def _long_tail() -> dict[str, Any]:
    """What all trainings of ImageNet-LT have: 90 epochs, a warm-up of 10, and classes of 1,280 down to 5 images."""
    return {
        "dataset": "imagenet",
        "optimizer": Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4),
        "schedule": CosineSchedule(span="epochs_plus_one", warmup_epochs=10),
        "epochs": 90,
        "batch_size": 128,
        "imbalance": Imbalance(factor=256.0),
        "augmentation": ResizedCropAugmentation(kind="resized_crop"),
        "evaluation": _CLEAN,
    }


def imagenet_lt(pair: LongTailPair, loss: Literal["gkl", "kl"]) -> DistillSpec:
    """A pair of ImageNet-LT, or self-distillation. `kl` is the baseline of the same code: CE + ce_weight * KL."""
    objective: DistillObjective = (
        DistillGklObjective(
            ce_weight=pair.ce_weight,
            wmse_weight=pair.wmse_weight,
            gamma=0.3,
            temperature=1.0,
            prior_temperature=1.0,
            ramp_epochs=0,
        )
        if loss == "gkl"
        else KdObjective(loss="kd", label_weight=1.0, kl_weight=pair.ce_weight, temperature=1.0)
    )
    return DistillSpec(
        name=f"{loss.upper()} {pair.student} from {pair.teacher}, long tail",
        architecture=pair.student,
        teacher=TeacherWeights(architecture=pair.teacher),
        objective=objective,
        **_long_tail(),
    )


def imagenet_lt_teacher(architecture: str) -> TrainSpec:
    """A teacher of ImageNet-LT: cross-entropy on the same images."""
    return TrainSpec(
        name=f"Cross-entropy {architecture}, long tail",
        architecture=architecture,
        objective=CrossEntropyObjective(loss="ce"),
        **_long_tail(),
    )


def digits_teacher() -> TrainSpec:
    """The teacher of `digits_gkl`: plain cross-entropy, evaluated on clean images."""
    return digits_ce().model_copy(update={"name": "Teacher SmallCNN", "epochs": 20, "evaluation": _CLEAN})


def digits_gkl() -> DistillSpec:
    """A TinyCNN of digits learns from the SmallCNN of `digits_teacher` with GKL; seconds on two CPU cores."""
    return DistillSpec(
        name="GKL TinyCNN from SmallCNN",
        dataset="digits",
        architecture="tiny_cnn",
        teacher=TeacherWeights(architecture="small_cnn"),
        objective=DistillGklObjective(ce_weight=1.0, wmse_weight=0.5, gamma=0.6, temperature=1.0, ramp_epochs=5),
        optimizer=Sgd(learning_rate=0.05),
        epochs=20,
        batch_size=64,
        evaluation=_CLEAN,
    )


_TEACHERS = {name.partition("-")[0]: pair.teacher for name, pair in CIFAR100_PAIRS.items()}
_LOSSES: tuple[Loss, ...] = ("gkl", "kd", "dkd")
_IMAGENET_PAIRS: tuple[ImageNetPair, ...] = ("r34-r18", "r50-mobile_v1")
_LONG_TAIL_LOSSES: tuple[Literal["gkl", "kl"], ...] = ("gkl", "kl")
_LONG_TAIL_TEACHERS = {"x101": _X101, "r50": _R50, "r18": _R18}

DISTILLATION: dict[str, Callable[[], TrainSpec | DistillSpec]] = {
    "digits-teacher": digits_teacher,
    "digits-distill": digits_gkl,
    **{f"{name}-ce": partial(cifar100_teacher, architecture) for name, architecture in _TEACHERS.items()},
    **{f"{name}-{loss}": partial(cifar100, pair, loss) for name, pair in CIFAR100_PAIRS.items() for loss in _LOSSES},
    **{f"imagenet-{pair}-{loss}": partial(imagenet, pair, loss) for pair in _IMAGENET_PAIRS for loss in _LOSSES},
    **{f"imagenet-lt-{name}-ce": partial(imagenet_lt_teacher, each) for name, each in _LONG_TAIL_TEACHERS.items()},
    **{
        f"{name}-{loss}": partial(imagenet_lt, pair, loss)
        for name, pair in LONG_TAIL_PAIRS.items()
        for loss in _LONG_TAIL_LOSSES
    },
}
