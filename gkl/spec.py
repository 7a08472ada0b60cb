"""What a run is asked to do. The command line, the API and the worker validate with these same models.

A spec is frozen and complete: every number that changes the result stands in it, so that a spec and a
commit reproduce a row of the leaderboard. Fields that are not known are refused. Free of torch.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from gkl.catalog import ARCHITECTURES, DATASETS, Norm, unknown_name_message

SHA256_PATTERN = r"^[0-9a-f]{64}$"
_EPSILON_PATTERN = r"^[0-9]+(\.[0-9]+)?(/[0-9]+)?$"


class Spec(BaseModel):
    """Base of all specs: frozen, no unknown field, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(unknown_name_message("dataset", name, DATASETS))
    return name


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(unknown_name_message("architecture", name, ARCHITECTURES))
    return name


def _one_printable_line(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be one printable line without spaces at its ends")
    return name


def _parse_epsilon(value: Any) -> Any:
    """Accept '8/255' beside 0.0314: the field writes budgets of 8-bit images as fractions."""
    if not isinstance(value, str):
        return value
    # Fraction itself would take '1e999999999' and compute for hours.
    if re.fullmatch(_EPSILON_PATTERN, value) and len(value) <= 32:
        numerator, _, denominator = value.partition("/")
        if float(denominator or 1) > 0:
            return float(numerator) / float(denominator or 1)
    raise ValueError("write it as a number such as 0.15 or a fraction such as '8/255'")


def format_epsilon(epsilon: float) -> str:
    """The way the field writes a budget: '8/255' where it is one, else the plain number.

    >>> format_epsilon(8 / 255), format_epsilon(0.5), format_epsilon(0.15)
    ('8/255', '0.5', '0.15')
    """
    plain = f"{epsilon:.6g}"
    steps = epsilon * 255
    if len(plain) > 5 and round(steps) > 0 and math.isclose(steps, round(steps), rel_tol=1e-6):
        return f"{round(steps)}/255"
    return plain


DatasetName = Annotated[
    str,
    AfterValidator(_known_dataset),
    WithJsonSchema({"type": "string", "enum": sorted(DATASETS)}),
]
ArchitectureName = Annotated[
    str,
    AfterValidator(_known_architecture),
    WithJsonSchema({"type": "string", "enum": sorted(ARCHITECTURES)}),
]
ModelName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_printable_line)]
Epsilon = Annotated[
    float,
    BeforeValidator(_parse_epsilon),
    Field(gt=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": _EPSILON_PATTERN, "maxLength": 32},
            ]
        }
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ThreatModel(Spec):
    """The set of perturbations a model is to withstand: all of norm at most epsilon, inside the box [0, 1]."""

    norm: Norm = "Linf"
    """Norm of the perturbation, over all pixels of an image with values in [0, 1]."""

    epsilon: Epsilon
    """Largest norm of a perturbation, in units of the pixel range [0, 1]; a fraction such as '8/255' is accepted."""

    @model_validator(mode="after")
    def _epsilon_inside_box(self) -> Self:
        if self.norm == "Linf" and self.epsilon > 1:
            raise ValueError(
                f"epsilon {self.epsilon:g} is wider than the pixel range [0, 1]; "
                "give it in units of that range, for instance '8/255' instead of 8"
            )
        return self


def board_name(dataset: str, threat_model: ThreatModel) -> str:
    """Name of the board on which a result under this threat model ranks, unique within its data set.

    The data set's own budget gives RobustBench's plain name; any other budget is a board of its own.

    >>> board_name("digits", ThreatModel(norm="Linf", epsilon=0.2))
    'Linf'
    >>> board_name("digits", ThreatModel(norm="Linf", epsilon="8/255"))
    'Linf-8-255'
    """
    standard = DATASETS[dataset].epsilon.get(threat_model.norm)
    if standard is not None and math.isclose(standard, threat_model.epsilon, rel_tol=1e-6):
        return threat_model.norm
    return f"{threat_model.norm}-{format_epsilon(threat_model.epsilon).replace('/', '-')}"


class GklObjective(Spec):
    """Cross-entropy on natural images plus the Generalized Kullback-Leibler loss (arXiv 2503.08038)."""

    loss: Literal["gkl"] = "gkl"

    ce_weight: float = Field(default=4.0, ge=0, le=1000)
    """Weight of the soft-label cross-entropy part (`alpha` in the authors' code)."""

    wmse_weight: float = Field(default=20.0, ge=0, le=1000)
    """Weight of the weighted mean-squared-error part (`beta` in the authors' code, which multiplies wMSE / 4)."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Exponent that smooths the class weights: 1 leaves the prior as it is, 0 makes all weights equal."""

    prior_temperature: float = Field(default=4.0, gt=0, le=1000)
    """Temperature of the softmax from which the class prior is accumulated."""


class TradesObjective(Spec):
    """Cross-entropy on natural images plus the Kullback-Leibler divergence (TRADES, arXiv 1901.08573)."""

    loss: Literal["trades"]

    kl_weight: float = Field(default=6.0, ge=0, le=1000)
    """Weight of KL(natural || adversarial), 1/lambda in the paper."""


Objective = Annotated[GklObjective | TradesObjective, Field(discriminator="loss")]


class InnerMaximization(Spec):
    """The projected gradient ascent that makes the training's adversarial images."""

    num_steps: int = Field(default=10, ge=1, le=1000)
    """Gradient steps per batch."""

    relative_step_size: float = Field(default=0.25, gt=0, le=2)
    """Step size as a fraction of the epoch's epsilon."""

    start_noise: float = Field(default=0.001, ge=0, le=1)
    """Standard deviation of the Gaussian noise added to the natural image before the first step."""

    wmse_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the wMSE part in what is maximized; the soft-label cross-entropy part has weight 1."""


class Sgd(Spec):
    """Stochastic gradient descent with a learning rate that falls along a half cosine, epoch by epoch."""

    learning_rate: float = Field(default=0.1, gt=0, le=100)
    """Learning rate before the cosine: epoch e of E uses learning_rate * (1 + cos(pi * (e - 1) / E)) / 2."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set one, or leave nesterov out")
        return self


class Evaluation(Spec):
    """How a model is attacked. 'standard' is AutoAttack's: APGD-CE, APGD-T, FAB-T and Square (arXiv 2003.01690)."""

    protocol: Literal["standard"] = "standard"

    threat_model: ThreatModel

    num_points: int | None = Field(default=None, ge=1)
    """Attack only the first so many test images; null attacks all of them. Only complete evaluations are ranked."""

    batch_size: int = Field(default=200, ge=1, le=10_000)
    """Images attacked at once; part of the result, since each block of this size has its own random stream."""

    seed: Seed = 0
    """Seed of the attacks."""


class TrainSpec(Spec):
    """Train a network adversarially, and, if `evaluation` is given, evaluate it afterwards."""

    kind: Literal["train"] = "train"

    name: ModelName
    """Name of the model on the leaderboard."""

    dataset: DatasetName
    architecture: ArchitectureName
    threat_model: ThreatModel
    objective: Objective = Field(default_factory=GklObjective)
    inner_maximization: InnerMaximization = Field(default_factory=InnerMaximization)
    optimizer: Sgd = Field(default_factory=Sgd)

    epochs: int = Field(ge=1, le=10_000)
    """Passes over the training images."""

    batch_size: int = Field(default=128, ge=1, le=65_536)
    """Images per step; the last, smaller batch of an epoch is used too."""

    epsilon_ramp: bool = True
    """Train epoch e of E with epsilon * e / E instead of the full epsilon from the start."""

    seed: Seed = 0
    """Seed of initialization, order and noise."""

    evaluation: Evaluation | None = None
    """The evaluation to run on the trained weights, as a job of its own."""

    @model_validator(mode="after")
    def _epsilon_fits_dataset(self) -> Self:
        _check_epsilon_fits(self.dataset, self.threat_model)
        if self.evaluation is not None:
            _check_evaluation_fits(self.dataset, self.evaluation)
        return self

    def follow_up(self, weights_sha256: str) -> EvaluateSpec | None:
        """The evaluation of the trained weights, if one is asked for."""
        if self.evaluation is None:
            return None
        return EvaluateSpec(
            name=self.name,
            dataset=self.dataset,
            architecture=self.architecture,
            weights=weights_sha256,
            evaluation=self.evaluation,
        )


class EvaluateSpec(Spec):
    """Evaluate weights that the service already has, named by their sha256."""

    kind: Literal["evaluate"] = "evaluate"

    name: ModelName
    """Name of the job; the model keeps the name under which it was trained."""

    dataset: DatasetName
    architecture: ArchitectureName

    weights: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the safetensors file with the weights, as a finished train job reports it."""

    evaluation: Evaluation

    @model_validator(mode="after")
    def _evaluation_fits_dataset(self) -> Self:
        _check_evaluation_fits(self.dataset, self.evaluation)
        return self


JobSpec = Annotated[TrainSpec | EvaluateSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[TrainSpec | EvaluateSpec] = TypeAdapter(JobSpec)


def _check_epsilon_fits(dataset: str, threat_model: ThreatModel) -> None:
    """An L2 ball wider than the whole image box would allow every image."""
    diagonal = math.sqrt(math.prod(DATASETS[dataset].image_shape))
    if threat_model.norm == "L2" and threat_model.epsilon > diagonal:
        raise ValueError(
            f"epsilon {threat_model.epsilon:g} exceeds {diagonal:g}, the largest L2 distance of two "
            f"{dataset} images; give it in units of the pixel range [0, 1]"
        )


def _check_evaluation_fits(dataset: str, evaluation: Evaluation) -> None:
    _check_epsilon_fits(dataset, evaluation.threat_model)
    available = DATASETS[dataset].num_test
    if evaluation.num_points is not None and evaluation.num_points > available:
        raise ValueError(
            f"num_points {evaluation.num_points} exceeds the {available} test images of {dataset}; "
            "leave it out to attack all of them"
        )
