"""The parts of a distillation's spec: the teacher, and what the student minimizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gkl.catalog.zoo import ZOO
from gkl.spec.common import PUBLISHED_WEIGHTS, SHA256_PATTERN, ArchitectureName, Spec, WeightsKey
from gkl.spec.training import CrossEntropyObjective


class TeacherWeights(Spec):
    """A teacher by its architecture and its file of weights."""

    kind: Literal["weights"] = "weights"

    architecture: ArchitectureName

    weights: str | None = Field(default=None, pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """sha256 of the file with the weights, as a finished train job or an upload reports it; or 'robustbench' for the
    published weights of an architecture of the zoo. Recipes leave it open; a job must name it."""

    weights_key: WeightsKey | None = None
    """Which network of that file, where it holds several, such as 'state_dict_ema'."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.weights is not None:
            check_published(self.weights, self.architecture, self.weights_key)
        return self


class TeacherJob(Spec):
    """The network that another job of the same service trains. The student waits until that job has succeeded."""

    kind: Literal["job"]

    job: int = Field(ge=1, lt=2**63)
    """Its number."""


class TeacherEntry(Spec):
    """The network of an entry of a board of the same service."""

    kind: Literal["entry"]

    entry: int = Field(ge=1, lt=2**63)
    """Its number."""


def _by_its_keys(value: Any) -> Any:
    """Add the kind that a teacher's keys imply: {'job': 12} needs no more."""
    if not isinstance(value, dict) or "kind" in value:
        return value
    return {"kind": next((kind for kind in ("job", "entry") if kind in value), "weights")} | value


Teacher = Annotated[
    TeacherWeights | TeacherJob | TeacherEntry, Field(discriminator="kind"), BeforeValidator(_by_its_keys)
]


def check_published(weights: str, architecture: str, weights_key: str | None) -> None:
    """
    Raises:
        ValueError: published weights are named for an architecture that has none, or together with a key.
    """
    if weights != PUBLISHED_WEIGHTS:
        return
    if architecture not in ZOO:
        raise ValueError(
            f"weights 'robustbench' are those of a model of the zoo, such as 'cifar10/Linf/Carmon2019Unlabeled', "
            f"not of {architecture!r}; give the sha256 of a file"
        )
    if weights_key is not None:
        raise ValueError(
            "weights_key is for a file that holds several networks; leave it out with weights 'robustbench'"
        )


# --- learning from a teacher on clean images ---------------------------------------------------------------------

_Weight = Annotated[float, Field(ge=0, le=1000)]
_Temperature = Annotated[float, Field(gt=0, le=1000)]


class _DistillationObjective(Spec):
    """Cross-entropy to the labels plus a term that pulls the student's prediction to the teacher's."""

    loss: str

    label_weight: _Weight = 1.0
    """Weight of the cross-entropy to the labels."""

    temperature: _Temperature = 4.0
    """Both sides' logits are divided by it in the term for the teacher."""

    ramp_epochs: int = Field(default=0, ge=0, le=10_000)
    """Over so many epochs the teacher's term grows to its full weight: in epoch e, counted from 1, it is multiplied by
    min(e / ramp_epochs, 1). 0 gives the full weight from the start."""


class KdObjective(_DistillationObjective):
    """Knowledge distillation with KL (Hinton et al., arXiv 1503.02531): label_weight * CE + kl_weight * T^2 * KL."""

    loss: Literal["kd"]

    label_weight: _Weight = 0.1
    kl_weight: _Weight = 0.9
    """Weight of T^2 * KL(teacher || student) at temperature T, averaged over the batch."""


class DkdObjective(_DistillationObjective):
    """Decoupled knowledge distillation (DKD, arXiv 2203.08679): KL divided into the target's part and the others'."""

    loss: Literal["dkd"]

    ramp_epochs: int = Field(default=20, ge=0, le=10_000)
    target_weight: _Weight = 1.0
    """Weight of the divergence between the two-way predictions 'the label' and 'another class' (`alpha`)."""

    non_target_weight: _Weight = 8.0
    """Weight of the divergence between the predictions among the other classes (`beta`)."""


class DistillDklObjective(_DistillationObjective):
    """The decoupled form of KL (DKL, arXiv 2305.13948) in KD's place. With a frozen teacher its gradient is KD's."""

    loss: Literal["dkl"]

    kl_weight: _Weight = 1.0
    """Weight of T^2 * DKL(teacher || student) at temperature T, averaged over the batch."""


class _ClassWise(Spec):
    loss: str

    class_wise: bool = True
    """Whether the pairs of classes are weighted by the teacher's mean prediction for the sample's class (the paper's
    class-wise global information), instead of its prediction for the sample itself."""

    prior_temperature: _Temperature = 4.0
    """Temperature of the teacher's softmax from which those weights are made (`T2` in the authors' code)."""


class DistillIklObjective(_DistillationObjective, _ClassWise):
    """The Improved Kullback-Leibler loss (IKL, arXiv 2305.13948) between teacher and student."""

    loss: Literal["ikl"]

    ramp_epochs: int = Field(default=20, ge=0, le=10_000)
    ce_weight: _Weight = 1.0
    """Weight of the soft-label cross-entropy part (`alpha` in the authors' code), without a factor T^2."""

    wmse_weight: _Weight = 4.0
    """Weight of the weighted mean-squared-error part (`beta` in the authors' code, which multiplies wMSE / 4)."""


class DistillGklObjective(_DistillationObjective, _ClassWise):
    """The Generalized Kullback-Leibler loss (GKL, arXiv 2503.08038) between teacher and student."""

    loss: Literal["gkl"] = "gkl"

    ramp_epochs: int = Field(default=20, ge=0, le=10_000)
    ce_weight: _Weight = 1.0
    """Weight of the soft-label cross-entropy part (`alpha` in the authors' code), without a factor T^2."""

    wmse_weight: _Weight = 4.0
    """Weight of the weighted mean-squared-error part (`beta` in the authors' code, which multiplies wMSE / 4)."""

    gamma: float = Field(default=0.2, ge=0, le=1)
    """Exponent that smooths the weights of the classes: 1 leaves them as they are, 0 makes all equal."""


# --- robust distillation: the student also sees adversarial images -----------------------------------------------

Maximized = Literal["cross_entropy", "divergence", "adaptive_divergence"]


class _RobustObjective(Spec):
    """Makes adversarial images x' of the student in each step, and pulls the student's prediction on them to the
    teacher's.
    """

    loss: str

    maximizes: Maximized = "divergence"
    """What the inner maximization increases: the cross-entropy CE(s(x'), y); the divergence KL(t(x) || s(x')); or
    'adaptive_divergence', KL(t(x') || s(x')), whose gradient passes through the teacher too."""


class _KlScale(Spec):
    loss: str

    kl_mean: Literal["elements", "batch"] = "elements"
    """What each KL is averaged over. Released code of ARD and RSLAD averages over images and classes, so that with C
    classes its KL is 1/C of the usual mean over the batch."""


class ArdObjective(_RobustObjective, _KlScale):
    """Adversarially robust distillation (ARD, arXiv 1905.09747):
    teacher_weight * T^2 * KL(t(x) || s(x')) + (1 - teacher_weight) * CE(s(x), y)."""

    loss: Literal["ard"]

    maximizes: Maximized = "cross_entropy"
    teacher_weight: float = Field(default=1.0, ge=0, le=1)
    """`alpha` in the authors' code, where it is 1."""

    temperature: _Temperature = 30.0
    """T of the divergence."""


class IadObjective(ArdObjective):
    """Introspective adversarial distillation (IAD-I, arXiv 2106.04928): ARD, and from an epoch on the student also
    follows its own clean prediction where the teacher is not to be trusted."""

    loss: Literal["iad"]  # type: ignore[assignment]

    kl_mean: Literal["elements", "batch"] = "batch"
    temperature: _Temperature = 1.0
    first_introspective_epoch: int = Field(default=61, ge=1)
    """Epoch, counted from 1, from which on (1 - t_y(x')^trust_exponent) * KL(s(x) || s(x')) is added, with the weight
    teacher_weight. Its gradient reaches both sides, as in the released code."""

    trust_exponent: float = Field(default=0.1, gt=0, le=100)
    """Exponent of t_y(x'), the teacher's probability of the label on the adversarial image."""


class RsladObjective(_RobustObjective, _KlScale):
    """Robust soft label adversarial distillation (RSLAD, arXiv 2108.07969):
    adversarial_weight * KL(t(x) || s(x')) + natural_weight * KL(t(x) || s(x)), without labels."""

    loss: Literal["rslad"]

    adversarial_weight: _Weight = 5 / 6
    natural_weight: _Weight = 1 / 6


class AdaadObjective(_RobustObjective, _KlScale):
    """Adaptive adversarial distillation (AdaAD, CVPR 2023): adversarial_weight * KL(t(x') || s(x')), plus
    natural_weight * KL(t(x) || s(x))."""

    loss: Literal["adaad"]

    maximizes: Maximized = "adaptive_divergence"
    kl_mean: Literal["elements", "batch"] = "batch"
    adversarial_weight: _Weight = 1.0
    natural_weight: _Weight = 0.0


class RsladGklObjective(_RobustObjective, _ClassWise):
    """RSLAD with GKL (arXiv 2503.08038) in the place of each KL. This combination is ours; no paper has it."""

    loss: Literal["rslad-gkl"]

    adversarial_weight: _Weight = 5 / 6
    natural_weight: _Weight = 1 / 6
    ce_weight: _Weight = 1.0
    """Weight of the soft-label cross-entropy part of each divergence."""

    wmse_weight: _Weight = 4.0
    """Weight of the weighted mean-squared-error part of each divergence."""

    gamma: float = Field(default=0.2, ge=0, le=1)
    """Exponent that smooths the weights of the classes: 1 leaves them as they are, 0 makes all equal."""

    temperature: _Temperature = 1.0
    """T of the soft-label cross-entropy part."""


RobustDistillationObjective = ArdObjective | IadObjective | RsladObjective | AdaadObjective | RsladGklObjective

DistillObjective = Annotated[
    CrossEntropyObjective
    | KdObjective
    | DkdObjective
    | DistillDklObjective
    | DistillIklObjective
    | DistillGklObjective
    | RobustDistillationObjective,
    Field(discriminator="loss"),
]
