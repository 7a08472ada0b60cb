"""What a run is asked to do. The command line, the API and the worker validate with these same models.

A spec is frozen and complete: every number that changes the result stands in it, so that a spec and a
commit reproduce a row of the leaderboard. Fields that are not known are refused. Free of torch.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self, TypeAlias, cast, get_args

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

from gkl.catalog import (
    ARCHITECTURES,
    CORRUPTED_DATASETS,
    DATASETS,
    Norm,
    image_shape,
    preprocessing_for,
    unknown_name_message,
)
from gkl.zoo import ZOO

SHA256_PATTERN = r"^[0-9a-f]{64}$"
_EPSILON_PATTERN = r"^[0-9]+(\.[0-9]+)?(/[0-9]+)?$"
_LONGEST_BOARD = 50
# Beyond it 255ths are not the way in which anybody writes a budget.
_MOST_STEPS = 10**9


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

    Reading it gives the same number.

    >>> format_epsilon(8 / 255), format_epsilon(0.5), format_epsilon(0.15)
    ('8/255', '0.5', '0.15')
    >>> format_epsilon(8 / 255 + 1e-9), format_epsilon(9e-5)
    ('0.03137255001960784', '9e-05')
    """
    plain, steps = f"{epsilon:.6g}", round(epsilon * 255)
    if len(plain) > 5 and 0 < steps <= _MOST_STEPS and steps / 255 == epsilon:
        return f"{steps}/255"
    return plain if float(plain) == epsilon else repr(epsilon)


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
WeightsKey = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_printable_line)]
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


def why_not_within(inner: ThreatModel, outer: ThreatModel) -> str | None:
    """Why examples of one threat model need not be allowed by another, after 'the examples'; None if all are.

    >>> why_not_within(ThreatModel(epsilon=8 / 255), ThreatModel(epsilon=4 / 255))
    'go up to epsilon 8/255 in Linf, and the other entry was attacked up to 4/255 only'
    >>> why_not_within(ThreatModel(norm="L2", epsilon=0.5), ThreatModel(epsilon=0.1))
    'are bounded in L2, and the other entry was attacked in Linf'
    """
    if inner.norm != outer.norm:
        return f"are bounded in {inner.norm}, and the other entry was attacked in {outer.norm}"
    if inner.epsilon > outer.epsilon:
        return (
            f"go up to epsilon {format_epsilon(inner.epsilon)} in {inner.norm}, and the other entry was attacked up to "
            f"{format_epsilon(outer.epsilon)} only"
        )
    return None


class TradesObjective(Spec):
    """Cross-entropy on natural images plus the Kullback-Leibler divergence (TRADES, arXiv 1901.08573)."""

    loss: Literal["trades"]

    kl_weight: float = Field(default=6.0, ge=0, le=1000)
    """Weight of KL(natural || adversarial), 1/lambda in the paper."""


class DklObjective(Spec):
    """TRADES with the decoupled form of KL: equal gradients, another value (DKL, arXiv 2305.13948)."""

    loss: Literal["dkl"]

    kl_weight: float = Field(default=6.0, ge=0, le=1000)
    """Weight of the decoupled divergence."""


class IklObjective(Spec):
    """Cross-entropy on natural images plus the Improved Kullback-Leibler loss (IKL, arXiv 2305.13948)."""

    loss: Literal["ikl"]

    ce_weight: float = Field(default=4.0, ge=0, le=1000)
    """Weight of the soft-label cross-entropy part (`alpha` in the authors' code)."""

    wmse_weight: float = Field(default=20.0, ge=0, le=1000)
    """Weight of the weighted mean-squared-error part (`beta` in the authors' code, which multiplies wMSE / 4)."""

    prior_temperature: float = Field(default=4.0, gt=0, le=1000)
    """Temperature of the softmax from which the class prior is accumulated."""


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


Objective = Annotated[TradesObjective | DklObjective | IklObjective | GklObjective, Field(discriminator="loss")]


class InnerMaximization(Spec):
    """The projected gradient ascent that makes the training's adversarial images."""

    num_steps: int = Field(default=10, ge=1, le=1000)
    """Gradient steps per batch."""

    relative_step_size: float = Field(default=0.25, gt=0, le=2)
    """Step size as a fraction of the epoch's epsilon."""

    start_noise: Annotated[float, Field(ge=0, le=1)] | Literal["uniform"] = 0.001
    """Standard deviation of the Gaussian noise added to the natural image before the first step, or 'uniform' to
    start anywhere in the ball with equal probability."""

    project_start: bool = True
    """Whether the start is projected onto ball and box before the first gradient. Without it only the images after a
    step are projected, as in the released code of TRADES, DKL and GKL."""

    network_mode: Literal["eval", "train"] = "eval"
    """'train' makes the images with each batch's own BatchNorm statistics, which are not recorded, and with dropout, as
    the released code of arXiv 2302.04638 does; 'eval' with the running statistics."""

    wmse_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the wMSE part in what is maximized; the soft-label cross-entropy part has weight 1."""


class Sgd(Spec):
    """Stochastic gradient descent."""

    learning_rate: float = Field(default=0.1, gt=0, le=100)
    """Learning rate that the schedule scales."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    nesterov: bool = False

    decay_batch_norm: bool = True
    """Whether the weight decay acts on BatchNorm's scale and shift too."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set one, or leave nesterov out")
        return self


class CosineSchedule(Spec):
    """Half a cosine, from epoch to epoch: learning_rate * (1 + cos(pi * t)) / 2 (arXiv 1608.03983, one cycle)."""

    kind: Literal["cosine"] = "cosine"

    span: Literal["epochs", "epochs_plus_one"] = "epochs"
    """What t is in epoch e of E, counted from 1: 'epochs' makes it (e - 1) / E, so that the first epoch has the full
    rate; 'epochs_plus_one' makes it e / (E + 1), as in the released code of DKL and GKL."""


class PiecewiseSchedule(Spec):
    """The learning rate is multiplied by `factor` when each of the milestones is reached."""

    kind: Literal["piecewise"]

    milestones: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=1, strict=False)
    """Epochs, counted from 1, from which on the lower rate is used; rising."""

    factor: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise; write each epoch once, in order")
        return self


class OneCycleSchedule(Spec):
    """Half a cosine up from learning_rate / start_divisor and half a cosine down (arXiv 1708.07120)."""

    kind: Literal["one_cycle"]

    warmup_fraction: float = Field(default=0.025, gt=0, lt=1)
    """Share of all steps, or of all epochs, in which the rate rises."""

    start_divisor: float = Field(default=25.0, ge=1)
    end_divisor: float = Field(default=10_000.0, ge=1)
    """The rate ends at learning_rate / start_divisor / end_divisor."""

    moves: Literal["per_step", "per_epoch"] = "per_step"
    """When the rate changes. 'per_epoch' keeps it for a whole epoch, as the released code of arXiv 2302.04638 does."""

    low_momentum: float | None = Field(default=None, gt=0, lt=1)
    """Momentum at the peak of the rate, where the momentum moves too: from high_momentum down to it while the rate
    rises, and back while the rate falls. Takes the place of optimizer.momentum."""

    high_momentum: float | None = Field(default=None, gt=0, lt=1)
    """Momentum at the first and at the last step; given together with low_momentum, or neither."""

    @model_validator(mode="after")
    def _momenta_agree(self) -> Self:
        low, high = self.low_momentum, self.high_momentum
        if (low is None) != (high is None):
            raise ValueError("low_momentum and high_momentum move the momentum together; give both, or neither")
        if low is not None and high is not None and low > high:
            raise ValueError(f"low_momentum {low:g} is above high_momentum {high:g}; exchange them")
        return self


Schedule = Annotated[CosineSchedule | PiecewiseSchedule | OneCycleSchedule, Field(discriminator="kind")]


class BasicAugmentation(Spec):
    """Random crop out of the zero-padded image, and horizontal flip; drawn anew in every epoch."""

    kind: Literal["basic"] = "basic"

    padding: int = Field(default=4, ge=0, le=64)
    """Pixels added on each side before the crop."""

    flip: bool = True
    """Whether half of the images are mirrored; leave it out where left and right mean something, as in digits."""

    rotation: float = Field(default=0.0, ge=0, le=180)
    """Each image is then turned about its centre by an angle between -rotation and rotation degrees, drawn uniformly;
    each pixel takes the nearest one's value, black where the image has none."""


class _SecondView(BasicAugmentation):
    """Doubles the batch: every image comes a second time, augmented more strongly."""

    robust_weight: float = Field(default=0.5, ge=0, le=10)
    """Weight of the divergence over the second views; the natural cross-entropy is the mean over both."""


class AutoAugmentation(_SecondView):
    """A second view of every image with crop, flip and AutoAugment's policy for CIFAR-10 (arXiv 1805.09501)."""

    kind: Literal["autoaug"]  # type: ignore[assignment]

    fill: int = Field(default=0, ge=0, le=255)
    """Grey level of the pixels that a shear, a translation or a rotation leaves without an image: 0 is black."""

    shear: Literal["nearest", "bicubic"] = "nearest"
    """How a shear finds a pixel's value; 'bicubic' is Pillow's."""


class CutoutAugmentation(_SecondView):
    """A second view of every image with crop, flip and a square of zeros (Cutout, arXiv 1708.04552)."""

    kind: Literal["cutout"]  # type: ignore[assignment]

    size: int = Field(default=16, ge=1, le=512)
    """Side of the square in pixels; its centre lies anywhere in the image, so that its edge may lie outside."""


Augmentation = Annotated[
    BasicAugmentation | AutoAugmentation | CutoutAugmentation,
    Field(discriminator="kind"),
]


class SyntheticData(Spec):
    """Generated images mixed into every batch (arXiv 2302.04638), from an .npz in the server's data sets."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The file <data sets>/<dataset>/synthetic/<file>.npz with 'image' (N, H, W, C) uint8 and 'label' (N,) integers."""

    fraction: float = Field(default=0.7, gt=0, lt=1)
    """Share of each batch that is generated, drawn with replacement."""


BufferAveraging = Literal["averaged", "copied"]


class EpochAveraging(Spec):
    """After every epoch average = tau * average + (1 - tau) * weights."""

    kind: Literal["epoch"] = "epoch"
    tau: float = Field(default=0.9, ge=0, lt=1)

    buffers: BufferAveraging = "averaged"
    """Whether BatchNorm's running statistics are averaged like the weights, or copied from the trained network."""


class StepAveraging(Spec):
    """After every step average = decay * average + (1 - decay) * weights.

    In warm-up the average is the weights; k steps later decay = min(tau, (1 + k) / (10 + k)).
    """

    kind: Literal["step"]
    tau: float = Field(default=0.995, ge=0, lt=1)

    warmup_fraction: float = Field(default=0.025, ge=0, lt=1)
    """Share of all steps that is warm-up."""

    buffers: BufferAveraging = "averaged"
    """Whether BatchNorm's running statistics are averaged like the weights, or copied from the trained network, as the
    released code of arXiv 2302.04638 does."""


Averaging = Annotated[EpochAveraging | StepAveraging, Field(discriminator="kind")]


class WeightPerturbation(Spec):
    """Adversarial weight perturbation (AWP, arXiv 2004.05884): each step's gradient is taken at perturbed weights.

    Convolution and linear weights move along the gradient of the trained objective by gamma times their norm.
    """

    gamma: float = Field(default=0.005, gt=0, le=1)
    """Size of the perturbation, relative to each weight tensor's norm."""

    first_epoch: int = Field(default=10, ge=1)
    """Epoch, counted from 1, from which on weights are perturbed."""


class BatchNormStatistics(Spec):
    """How fast BatchNorm's running statistics follow the batches': momentum * new + (1 - momentum) * old."""

    momentum: float = Field(default=0.1, gt=0, le=1)
    """Share of a batch's statistics in the running ones. Each step records twice: the adversarial and the natural
    images."""

    first_momentum: float | None = Field(default=None, gt=0, le=1)
    """That share in the first step of the run: 1 begins with a batch's statistics instead of mean 0 and variance 1."""


class Selection(Spec):
    """Keep the epoch with the highest accuracy under PGD on held-out training images; the test set plays no part."""

    num_images: int = Field(default=1024, ge=1)
    """The first so many training images are held out and never trained on."""

    num_steps: int = Field(default=40, ge=1, le=1000)
    """Steps of the PGD attack, at the full epsilon from a uniform start."""

    relative_step_size: float = Field(default=0.25, gt=0, le=2)
    """Its step size as a fraction of epsilon."""

    maximizes: Literal["cross_entropy", "margin"] = "cross_entropy"
    """What the attack increases: the cross-entropy, or the negative margin -max(z_y - max z_other, 0), which leaves an
    image alone as soon as it is misclassified (Carlini and Wagner, arXiv 1608.04644)."""

    ties: Literal["first", "last"] = "first"
    """Which of several epochs with the same accuracy is kept."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between two measurements; the last epoch is always measured."""


class Compute(Spec):
    """How the arithmetic is done. Part of the spec, since it changes the result in its last digits."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """'tf32' lets CUDA round the factors of convolutions and products to 10 bits; 'bfloat16' runs the network under
    autocast, while weights, losses and updates stay in float32."""

    channels_last: bool = True
    """Store images and convolution weights channels last, which is faster on CPUs and on GPUs with tensor cores."""

    compile: bool = False
    """Run the network through torch.compile, which needs a C++ compiler on the machine."""


Protocol = Literal["standard", "plus", "rand", "custom", "clean", "corruptions"]
AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

PROTOCOL_ATTACKS: dict[Protocol, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""AutoAttack's versions (arXiv 2003.01690) and their attacks, in their order."""

PROTOCOLS_WITH_MORE: tuple[Protocol, ...] = ("standard", "plus")
"""Those after which attacks follow that do not trust gradients: the repair attack, other networks' examples."""

RANKED_PROTOCOLS: tuple[Protocol, ...] = (*PROTOCOLS_WITH_MORE, "corruptions")
"""Those whose results may stand beside each other on a board: no weaker than the standard one."""


ATTACK_TITLES: dict[AttackName, str] = {
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "fab-t": "FAB-T",
    "square": "Square",
}
"""What attacks are called in a verdict."""


class Evaluation(Spec):
    """What is measured of a model: accuracy under attacks, under common corruptions, or on clean images alone."""

    protocol: Protocol = "standard"
    """AutoAttack's 'standard', 'plus' or 'rand' (for randomized models; 20 gradients a step); 'custom' with a list of
    attacks; 'clean' without any; or 'corruptions', the 15 common ones in five severities."""

    attacks: tuple[AttackName, ...] | None = Field(default=None, strict=False)
    """The attacks of the protocol 'custom', in their order, with the options of AutoAttack's custom version."""

    threat_model: ThreatModel | None = None
    """What an attack may do; not for 'clean' and 'corruptions'."""

    num_points: int | None = Field(default=None, ge=1)
    """Take only the first so many test images; null takes all of them. Only complete evaluations are ranked."""

    batch_size: int = Field(default=200, ge=1, le=10_000)
    """Images attacked at once; part of the result, since each block of this size has its own random stream."""

    seed: Seed = 0
    """Seed of the attacks."""

    shards: int = Field(default=1, ge=1, le=256)
    """Share the blocks between so many jobs, which any workers take; the verdict is the same."""

    @property
    def attack_names(self) -> tuple[AttackName, ...]:
        """The attacks in their order; none for 'clean' and 'corruptions'."""
        return self.attacks or PROTOCOL_ATTACKS.get(self.protocol, ())

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.protocol == "custom":
            if not self.attacks:
                # AutoAttack would run nothing and report the clean accuracy as the robust one.
                raise ValueError(f"the protocol 'custom' needs attacks; name some of {', '.join(get_args(AttackName))}")
            if len(set(self.attacks)) < len(self.attacks):
                raise ValueError("attacks names one twice, which would find nothing new; name each once")
        elif self.attacks is not None:
            raise ValueError(f"attacks are for the protocol 'custom'; {self.protocol!r} has its own, leave them out")
        if self.protocol in ("clean", "corruptions"):
            if self.threat_model is not None:
                raise ValueError(f"the protocol {self.protocol!r} has no threat_model; leave it out")
        elif self.threat_model is None:
            raise ValueError(
                f"the protocol {self.protocol!r} needs a threat_model, such as {{'norm': 'Linf', 'epsilon': '8/255'}}"
            )
        if self.protocol == "corruptions" and self.shards > 1:
            raise ValueError("an evaluation on corruptions has no shards; leave them out")
        return self


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", text):
        raise ValueError("must be an address that begins with http:// or https://, without spaces")
    return text


_OneLine = Annotated[str, Field(max_length=500), AfterValidator(_one_printable_line)]


class Publication(Spec):
    """What a leaderboard says of a model besides its numbers, in the terms of RobustBench's `model_info`."""

    title: _OneLine = ""
    """Of the paper; without one the model's name stands in its place."""

    authors: _OneLine = ""
    """Separated by commas."""

    link: Annotated[str, Field(max_length=500), AfterValidator(_web_address)] | None = None
    """Where the paper or the code is."""

    venue: _OneLine = ""
    """Where it was published, with the year: 'NeurIPS 2025'; 'arXiv, Mar 2025'."""

    extra_data: bool = False
    """Whether it was trained on real images besides the data set's own."""

    synthetic_data: bool = False
    """Whether it was trained on generated images."""

    footnote: _OneLine = ""


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
    schedule: Schedule = Field(default_factory=CosineSchedule)

    epochs: int = Field(ge=1, le=10_000)
    """Passes over the training images; with synthetic data, as many batches as such a pass would have."""

    batch_size: int = Field(default=128, ge=1, le=65_536)
    """Images per step."""

    drop_last_batch: bool = False
    """Whether the last batch of an epoch is left out if it is smaller than the others."""

    epsilon_ramp: bool = True
    """Train epoch e of E with epsilon * e / E instead of the full epsilon from the start."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the natural cross-entropy's target that is spread over all classes."""

    augmentation: Augmentation | None = None
    synthetic: SyntheticData | None = None
    averaging: Averaging | None = None
    """The averaged weights are the result, if averaging is given."""

    weight_perturbation: WeightPerturbation | None = None

    batch_norm: BatchNormStatistics | None = None
    """Without it the architecture's own BatchNorm momentum holds, which is 0.1 for those of the recipes."""

    selection: Selection | None = None
    """Without it the last epoch's weights are the result."""

    compute: Compute = Field(default_factory=Compute)

    seed: Seed = 0
    """Seed of initialization, order and noise."""

    evaluation: Evaluation | None = None
    """The evaluation to run on the trained weights, as a job of its own."""

    publication: Publication | None = None
    """What the leaderboard is to say of it."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        _check_architecture_fits(self.dataset, self.architecture)
        _check_epsilon_fits(self.dataset, DATASETS[self.dataset].image_shape, self.threat_model)
        if self.threat_model.norm == "L1":
            raise ValueError("threat_model.norm 'L1' is for evaluations; train under 'Linf' or 'L2'")
        if self.evaluation is not None:
            _check_evaluation_fits(self.dataset, self.architecture, self.evaluation)
        channels = DATASETS[self.dataset].image_shape[0]
        if isinstance(self.augmentation, AutoAugmentation) and channels != 3:
            raise ValueError(
                f"'autoaug' is a policy for colour images, which {self.dataset} has not; take 'basic' or 'cutout'"
            )
        num_train = DATASETS[self.dataset].num_train
        if self.selection is not None and self.selection.num_images >= num_train:
            raise ValueError(
                f"selection.num_images {self.selection.num_images} leaves none of the {num_train} training images "
                f"of {self.dataset} to train on; hold out fewer"
            )
        if self.synthetic is not None:
            generated = round(self.batch_size * self.synthetic.fraction)
            if not 0 < generated < self.batch_size:
                raise ValueError(
                    f"a batch of {self.batch_size} cannot be {self.synthetic.fraction:g} generated; raise batch_size"
                )
            if self.drop_last_batch:
                raise ValueError("every batch with generated images is whole; leave drop_last_batch out")
        num_used = num_train - (0 if self.selection is None else self.selection.num_images)
        if self.drop_last_batch and self.batch_size > num_used:
            raise ValueError(
                f"drop_last_batch leaves nothing to train on, since a batch of {self.batch_size} is more than the "
                f"{num_used} training images; lower batch_size"
            )
        if isinstance(self.schedule, PiecewiseSchedule) and self.schedule.milestones[-1] > self.epochs:
            raise ValueError(
                f"the milestone {self.schedule.milestones[-1]} lies behind the last of the {self.epochs} epochs; "
                "leave it out, or train longer"
            )
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
            publication=self.publication,
        )


PUBLISHED_WEIGHTS = "robustbench"


class EvaluateSpec(Spec):
    """Evaluate weights: trained here, sent here, or published with RobustBench's model zoo."""

    kind: Literal["evaluate"] = "evaluate"

    name: ModelName
    """Name of the job, and of the model if it has none yet."""

    dataset: DatasetName
    architecture: ArchitectureName

    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """sha256 of the file with the weights, as a finished train job or an upload reports it; or 'robustbench' for the
    published weights of an architecture of the zoo."""

    weights_key: WeightsKey | None = None
    """Which network of that file, where it holds several, such as one beside its average: the name of its dictionary or
    the prefix of its tensors' names, 'state_dict_ema' or 'ema_model'. Without it a file with several is refused."""

    evaluation: Evaluation

    publication: Publication | None = None
    """What the leaderboard is to say of it."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        _check_architecture_fits(self.dataset, self.architecture)
        _check_evaluation_fits(self.dataset, self.architecture, self.evaluation)
        if self.weights == PUBLISHED_WEIGHTS and self.architecture not in ZOO:
            raise ValueError(
                f"weights 'robustbench' are those of a model of the zoo, such as 'cifar10/Linf/Carmon2019Unlabeled', "
                f"not of {self.architecture!r}; give the sha256 of a file"
            )
        _check_key_has_file(self.weights, self.weights_key)
        return self


JobSpec = Annotated[TrainSpec | EvaluateSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[TrainSpec | EvaluateSpec] = TypeAdapter(JobSpec)


class ExternalSpec(Spec):
    """Check adversarial examples that somebody found. Made by the service, from a request about an entry."""

    kind: Literal["external"] = "external"

    name: ModelName
    """Name of the attack, and whose it is."""

    dataset: DatasetName
    architecture: ArchitectureName
    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    examples: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the file with the examples."""


class ReportSpec(Spec):
    """Check the certificate of a network that its owner alone has. Made by the service, from a request."""

    kind: Literal["report"] = "report"

    name: ModelName
    """Name of the network on the leaderboard."""

    dataset: DatasetName
    architecture: str = Field(default="", max_length=100)
    """In its owner's words."""

    certificate: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the file."""

    publication: Publication | None = None
    """What the leaderboard is to say of it."""


class TransferSpec(Spec):
    """Replay the adversarial examples of one entry against the weights of another. Made by the service, from a request
    about an entry.
    """

    kind: Literal["transfer"] = "transfer"

    name: ModelName
    """Names of both networks."""

    source_name: str = Field(max_length=80)
    """Name of the network that the examples were made for."""

    source: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the certificate that holds the examples."""

    dataset: DatasetName
    architecture: ArchitectureName
    """Of the network that they are tried on."""

    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    @property
    def attack(self) -> str:
        """What a certificate calls these examples where they break points that stood."""
        return f"transfer from {self.source_name}"


AnySpec: TypeAlias = TrainSpec | EvaluateSpec | ExternalSpec | ReportSpec | TransferSpec
RunSpec = Annotated[AnySpec, Field(discriminator="kind")]
RUN_SPEC: TypeAdapter[AnySpec] = TypeAdapter(RunSpec)
"""What a worker runs: what people send as a job, and what the service makes of other requests."""


def why_on_no_board(dataset: str, protocol: str, num_points: int) -> str | None:
    """Why a verdict has no place on a board of attacks, after 'the verdict'; None if it has.

    >>> why_on_no_board("digits", "standard", 50)
    'is about 50 of the 360 test images of digits, and a board is about all of them; evaluate without num_points'
    """
    if dataset not in DATASETS:
        return f"is about other images than those that there are boards of: {', '.join(DATASETS)}"
    if protocol not in PROTOCOLS_WITH_MORE:
        takes = " and ".join(repr(each) for each in PROTOCOLS_WITH_MORE)
        return f"is of protocol {protocol!r}, and a board takes {takes}"
    if num_points != DATASETS[dataset].num_test:
        return (
            f"is about {num_points} of the {DATASETS[dataset].num_test} test images of {dataset}, and a board is about "
            "all of them; evaluate without num_points"
        )
    return None


def board_name(dataset: str, evaluation: Evaluation) -> str:
    """Name of the board on which a result ranks, unique within its data set: RobustBench's threat model.

    The data set's own budget gives the plain name of the norm; any other budget is a board of its own, whose name leads
    back to it (`threat_model_of_board`).

    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon=0.2)))
    'Linf'
    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon="8/255")))
    'Linf-8-255'
    >>> board_name("digits", Evaluation(threat_model=ThreatModel(norm="Linf", epsilon=9e-5)))
    'Linf-9e-05'
    """
    threat_model = evaluation.threat_model
    if threat_model is None:
        return evaluation.protocol
    if DATASETS[dataset].epsilon.get(threat_model.norm) == threat_model.epsilon:
        return threat_model.norm
    return f"{threat_model.norm}-{format_epsilon(threat_model.epsilon).replace('/', '-')}"


def threat_model_of_board(dataset: str, name: str) -> ThreatModel | None:
    """What an attack may do on a board; None for one without attacks, such as 'corruptions'.

    >>> threat_model_of_board("cifar10", "Linf").epsilon == 8 / 255
    True
    >>> threat_model_of_board("digits", "Linf-8-255").epsilon == 8 / 255
    True
    >>> threat_model_of_board("digits", "Linf-9e-05").epsilon == 9e-5
    True
    """
    found = re.fullmatch(r"(Linf|L2|L1)(?:-([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?)(?:-([0-9]+))?)?", name)
    if found is None or len(name) > _LONGEST_BOARD:
        return None
    norm, numerator, denominator = cast("Norm", found[1]), found[2], found[3]
    epsilon = DATASETS[dataset].epsilon.get(norm) if numerator is None else float(numerator)
    if epsilon is None or float(denominator or 1) == 0:
        return None
    try:
        return ThreatModel(norm=norm, epsilon=epsilon / float(denominator or 1))
    except ValueError:
        # 0, more than a number can hold, or wider than the pixel range.
        return None


def _check_architecture_fits(dataset: str, architecture: str) -> None:
    if dataset not in ARCHITECTURES[architecture].datasets:
        fitting = [a.name for a in ARCHITECTURES.values() if dataset in a.datasets]
        own = [name for name in fitting if "/" not in name] or fitting
        raise ValueError(
            f"the architecture {architecture!r} cannot be built for {dataset}; take one of {', '.join(own[:8])}"
        )


def _check_key_has_file(weights: str, weights_key: str | None) -> None:
    if weights == PUBLISHED_WEIGHTS and weights_key is not None:
        raise ValueError(
            "weights_key is for a file that holds several networks; leave it out with weights 'robustbench'"
        )


def _check_epsilon_fits(dataset: str, shape: tuple[int, int, int], threat_model: ThreatModel) -> None:
    """An L1 or L2 ball wider than the whole image box would allow every image."""
    pixels = math.prod(shape)
    widest = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat_model.norm]
    if threat_model.epsilon > widest:
        raise ValueError(
            f"epsilon {threat_model.epsilon:g} exceeds {widest:g}, the largest {threat_model.norm} distance of two "
            f"{dataset} images; give it in units of the pixel range [0, 1]"
        )


def _check_evaluation_fits(dataset: str, architecture: str, evaluation: Evaluation) -> None:
    if evaluation.threat_model is not None:
        shape = image_shape(dataset, preprocessing_for(dataset, architecture))
        _check_epsilon_fits(dataset, shape, evaluation.threat_model)
    if evaluation.protocol == "corruptions" and dataset not in CORRUPTED_DATASETS:
        raise ValueError(
            f"there is no corrupted version of {dataset}; the protocol 'corruptions' is for "
            f"{', '.join(CORRUPTED_DATASETS)}"
        )
    available = DATASETS[dataset].num_test
    if evaluation.num_points is not None and evaluation.num_points > available:
        raise ValueError(
            f"num_points {evaluation.num_points} exceeds the {available} test images of {dataset}; "
            "leave it out to attack all of them"
        )
    num_points = evaluation.num_points or available
    blocks = math.ceil(num_points / evaluation.batch_size)
    if evaluation.shards > blocks:
        raise ValueError(
            f"shards {evaluation.shards} exceeds the {blocks} blocks of batch_size {evaluation.batch_size} that "
            f"{num_points} points make; lower one of them"
        )
