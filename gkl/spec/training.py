"""The parts of a training's spec: objective, inner maximization, optimizer, schedule, data, averaging and so on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gkl.spec.common import Seed, Spec


class TradesObjective(Spec):
    """Cross-entropy on natural images plus the Kullback-Leibler divergence (TRADES, arXiv 1901.08573)."""

    loss: Literal["trades"]

    kl_weight: float = Field(default=6.0, ge=0, le=1000)
    """Weight of KL(natural || adversarial), 1/lambda in the paper."""


class DklObjective(Spec):
    """TRADES with the decoupled form of KL, which has the same gradients but another value (DKL, arXiv 2305.13948)."""

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


class CrossEntropyObjective(Spec):
    """Cross-entropy on clean images, without an adversary: the baseline without robustness."""

    loss: Literal["ce"]


Objective = Annotated[
    TradesObjective | DklObjective | IklObjective | GklObjective | CrossEntropyObjective,
    Field(discriminator="loss"),
]


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
    """Stochastic gradient descent, as `torch.optim.SGD` computes it."""

    kind: Literal["sgd"] = Field(default="sgd", exclude=True)
    """May be left out. It is never written, so that specs from before this field keep their JSON and their hash."""

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


_Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Spec):
    """Adam with decoupled weight decay (arXiv 1711.05101), as `torch.optim.AdamW` computes it."""

    kind: Literal["adamw"]

    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    """Learning rate that the schedule scales."""

    betas: tuple[_Beta, _Beta] = Field(default=(0.9, 0.999), strict=False)
    """Decay of the running means of the gradients and of their squares. A 'one_cycle' schedule that changes the
    momentum changes the first."""

    eps: float = Field(default=1e-8, gt=0, le=1)
    """Added to the denominator of each update."""

    weight_decay: float = Field(default=0.01, ge=0, le=10)

    decay_batch_norm: bool = True
    """Whether the weight decay acts on BatchNorm's scale and shift too."""


def _sgd_by_default(value: Any) -> Any:
    """Specs from before `kind` existed mean SGD, which was the only optimizer."""
    return {"kind": "sgd"} | value if isinstance(value, dict) else value


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="kind"), BeforeValidator(_sgd_by_default)]


class CosineSchedule(Spec):
    """Half a cosine, from epoch to epoch: learning_rate * (1 + cos(pi * t)) / 2 (arXiv 1608.03983, one cycle)."""

    kind: Literal["cosine"] = "cosine"

    span: Literal["epochs", "epochs_plus_one"] = "epochs"
    """The value of t in epoch e of E, counted from 1: with 'epochs' it is (e - 1) / E, so that the first epoch has the
    full rate; with 'epochs_plus_one' it is e / (E + 1), as in the released code of DKL and GKL."""

    warmup_epochs: int = Field(default=0, ge=0, le=10_000)
    """In the first W epochs the rate is learning_rate * e / W; then the half cosine spans the others, with e - W and
    E - W in the place of e and E."""


class PiecewiseSchedule(Spec):
    """The learning rate is multiplied by `factor` when each of the milestones is reached."""

    kind: Literal["piecewise"]

    milestones: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=1, strict=False)
    """Epochs, counted from 1, in rising order. From each of them on, the lower rate is used."""

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
    """Momentum at the peak of the learning rate. The momentum falls from high_momentum to it while the rate rises, and
    rises again while the rate falls. Replaces optimizer.momentum; without it the momentum does not change."""

    high_momentum: float | None = Field(default=None, gt=0, lt=1)
    """Momentum at the first and at the last step. Give both of low_momentum and high_momentum, or neither."""

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
    """Each image is then rotated about its centre by an angle drawn uniformly from -rotation to rotation degrees, with
    nearest-neighbour interpolation; pixels from outside the image are black."""


class _SecondView(BasicAugmentation):
    """Doubles the batch: every image is used a second time, with a stronger augmentation."""

    robust_weight: float = Field(default=0.5, ge=0, le=10)
    """Weight of the divergence over the second views; the natural cross-entropy is the mean over both."""


class AutoAugmentation(_SecondView):
    """A second view of every image with crop, flip and AutoAugment's policy for CIFAR-10 (arXiv 1805.09501)."""

    kind: Literal["autoaug"]  # type: ignore[assignment]

    fill: int = Field(default=0, ge=0, le=255)
    """Grey level of the pixels that a shear, a translation or a rotation leaves empty: 0 is black."""

    shear: Literal["nearest", "bicubic"] = "nearest"
    """Interpolation of a shear; 'bicubic' is Pillow's."""


class CutoutAugmentation(_SecondView):
    """A second view of every image with crop, flip and a square of zeros (Cutout, arXiv 1708.04552)."""

    kind: Literal["cutout"]  # type: ignore[assignment]

    size: int = Field(default=16, ge=1, le=512)
    """Side of the square in pixels. Its centre is a random pixel, so that parts of it may lie outside the image."""


class ResizedCropAugmentation(Spec):
    """Random part of a photograph, resized to the size of the training images, and horizontal flip; for data sets whose
    images are files. Its width / height is between 3/4 and 4/3; torchvision's RandomResizedCrop.
    """

    kind: Literal["resized_crop"]

    min_scale: float = Field(default=0.08, gt=0, le=1)
    """The part's least share of the photograph's area; the share is uniform between it and 1."""

    flip: bool = True
    """Whether half of the images are mirrored."""


Augmentation = Annotated[
    BasicAugmentation | AutoAugmentation | CutoutAugmentation | ResizedCropAugmentation,
    Field(discriminator="kind"),
]


class Imbalance(Spec):
    """Leaves out training images so that class sizes fall exponentially from the first class to the last.

    Class c of C keeps n_c = int(n_max * (1 / factor)^(c / (C - 1))) images, where n_max is the size of the largest
    class without the held-out images. A class with fewer images keeps all of them.
    """

    factor: float = Field(gt=1, le=1e6)
    """Size of the first class divided by that of the last."""

    seed: Seed = 0
    """Seed of the random order whose first n_c images of class c are kept."""

    def class_sizes(self, largest: int, num_classes: int) -> list[int]:
        """n_c of each class, for n_max = `largest`.

        >>> Imbalance(factor=100).class_sizes(500, 3)
        [500, 50, 5]
        """
        rate = 1 / self.factor
        return [int(largest * rate ** (label / (num_classes - 1))) for label in range(num_classes)]


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

    During warm-up the average equals the weights; k steps after it decay = min(tau, (1 + k) / (10 + k)).
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
    """Share of a batch's statistics in the running ones. Each step updates them twice: with the adversarial and with
    the natural images."""

    first_momentum: float | None = Field(default=None, gt=0, le=1)
    """That share in the run's first step. With 1 the running statistics start from those of a batch, instead of from
    mean 0 and variance 1."""


class Selection(Spec):
    """Keep the epoch with the highest accuracy under PGD on held-out training images; the test set is not used.

    With the objective 'ce' it is the epoch with the highest accuracy on the clean held-out images; no attack is run.
    """

    num_images: int = Field(default=1024, ge=1)
    """This many training images, the first ones, are held out and never trained on."""

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
    """'tf32' lets CUDA round the factors of convolutions and matrix products to 10 bits of mantissa; 'bfloat16' runs
    the network under autocast, while weights, losses and updates stay in float32."""

    channels_last: bool = True
    """Store images and convolution weights channels last, which is faster on CPUs and on GPUs with tensor cores."""

    compile: bool = False
    """Run the network through torch.compile, which needs a C++ compiler on the machine."""
