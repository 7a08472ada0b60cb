"""What a job runs: a training, a distillation, an evaluation, or a check of what somebody sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, TypeAdapter, model_validator

from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.spec.common import (
    PUBLISHED_WEIGHTS,
    SHA256_PATTERN,
    ArchitectureName,
    DatasetName,
    ModelName,
    Seed,
    Spec,
    ThreatModel,
    WeightsKey,
    check_architecture_fits,
    check_epsilon_fits,
)
from gkl.spec.distillation import (
    DistillGklObjective,
    DistillObjective,
    IadObjective,
    RobustDistillationObjective,
    Teacher,
    TeacherWeights,
    check_published,
)
from gkl.spec.evaluation import Evaluation, check_evaluation_fits
from gkl.spec.evidence import ExternalSpec, ReportSpec, TransferSpec
from gkl.spec.publication import Publication
from gkl.spec.training import (
    Augmentation,
    AutoAugmentation,
    Averaging,
    BatchNormStatistics,
    Compute,
    CosineSchedule,
    CrossEntropyObjective,
    CutoutAugmentation,
    GklObjective,
    Imbalance,
    InnerMaximization,
    Objective,
    Optimizer,
    PiecewiseSchedule,
    ResizedCropAugmentation,
    Schedule,
    Selection,
    Sgd,
    SyntheticData,
    WeightPerturbation,
)


class BaseTrainSpec(Spec, ABC):
    """What every kind of training says: what `TrainSpec` and `DistillSpec` share, and all that the trainer reads."""

    kind: str

    name: ModelName
    """Name of the model on the leaderboard."""

    dataset: DatasetName
    architecture: ArchitectureName

    threat_model: ThreatModel | None = None
    """What the adversary of the training may do; left out with objectives that have none, such as 'ce'."""

    objective: Spec
    """What the training minimizes."""

    inner_maximization: InnerMaximization = Field(default_factory=InnerMaximization)
    optimizer: Optimizer = Field(default_factory=Sgd)
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

    imbalance: Imbalance | None = None
    """Makes the data set long-tailed. The result's test accuracy is then reported by size of the classes."""

    augmentation: Augmentation | None = None
    synthetic: SyntheticData | None = None
    averaging: Averaging | None = None
    """The averaged weights are the result, if averaging is given."""

    weight_perturbation: WeightPerturbation | None = None

    batch_norm: BatchNormStatistics | None = None
    """Without it, the architecture's own BatchNorm momentum is used; it is 0.1 for the architectures of the recipes."""

    selection: Selection | None = None
    """Without it the last epoch's weights are the result."""

    compute: Compute = Field(default_factory=Compute)

    seed: Seed = 0
    """Seed of initialization, order and noise."""

    evaluation: Evaluation | None = None
    """The evaluation to run on the trained weights, as a job of its own."""

    publication: Publication | None = None
    """How the leaderboard describes the model."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_architecture_fits(self.dataset, self.architecture)
        self._check_adversary()
        if self.evaluation is not None:
            check_evaluation_fits(self.dataset, self.architecture, self.evaluation)
        channels = DATASETS[self.dataset].image_shape[0]
        if isinstance(self.augmentation, AutoAugmentation) and channels != 3:
            raise ValueError(
                f"'autoaug' is a policy for colour images, which {self.dataset} has not; take 'basic' or 'cutout'"
            )
        if isinstance(self.augmentation, ResizedCropAugmentation) and not DATASETS[self.dataset].is_image_files:
            raise ValueError(
                f"'resized_crop' is for photographs of any size, and all images of {self.dataset} have the same; take "
                "'basic'"
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
        if isinstance(self.schedule, CosineSchedule) and self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs} leaves none of the {self.epochs} epochs for the "
                "cosine; lower it, or train longer"
            )
        self._check_imbalance(num_used)
        if isinstance(self.schedule, PiecewiseSchedule) and self.schedule.milestones[-1] > self.epochs:
            raise ValueError(
                f"the milestone {self.schedule.milestones[-1]} lies behind the last of the {self.epochs} epochs; "
                "leave it out, or train longer"
            )
        return self

    def _check_imbalance(self, num_used: int) -> None:
        """
        Raises:
            ValueError: the last class would have no image, as far as the catalog's numbers tell.
        """
        if self.imbalance is None:
            return
        described = DATASETS[self.dataset]
        # In none of the data sets is the largest class a tenth larger than the mean.
        largest = min(num_used, int(1.1 * described.num_train / described.num_classes))
        if not self.imbalance.class_sizes(largest, described.num_classes)[-1]:
            raise ValueError(
                f"imbalance.factor {self.imbalance.factor:g} leaves the last class of {self.dataset} without an image, "
                f"since a class has about {num_used / described.num_classes:.0f} to train on; lower it"
            )

    @property
    @abstractmethod
    def has_adversary(self) -> bool:
        """Whether each step makes adversarial images."""

    @property
    def loss(self) -> str:
        """The objective's name."""
        return str(self.objective.loss)  # type: ignore[attr-defined]

    def _check_adversary(self) -> None:
        """
        Raises:
            ValueError: the objective needs a threat model and none is given, or fields are set that the objective does
                not use.
        """
        threat_model = self.threat_model
        if self.has_adversary:
            if threat_model is None:
                raise ValueError(
                    f"the objective {self.loss!r} needs a threat_model; give one, such as "
                    '{"norm": "Linf", "epsilon": "8/255"}, or take the objective \'ce\', which trains without'
                )
            check_epsilon_fits(self.dataset, DATASETS[self.dataset].image_shape, threat_model)
            if threat_model.norm == "L1":
                raise ValueError("threat_model.norm 'L1' is for evaluations; train under 'Linf' or 'L2'")
            return
        if threat_model is not None:
            raise ValueError(
                f"the objective {self.loss!r} trains without an adversary; leave out threat_model, or take another "
                "objective"
            )
        without_use = [
            name
            for name, is_default in {
                "inner_maximization": self.inner_maximization == InnerMaximization(),
                "weight_perturbation": self.weight_perturbation is None,
                "epsilon_ramp": self.epsilon_ramp,
            }.items()
            if not is_default
        ]
        if isinstance(self.augmentation, AutoAugmentation | CutoutAugmentation):
            default = type(self.augmentation).model_fields["robust_weight"].default
            without_use += [] if self.augmentation.robust_weight == default else ["augmentation.robust_weight"]
        if self.selection is not None:
            without_use += [
                f"selection.{name}"
                for name in ("num_steps", "relative_step_size", "maximizes")
                if getattr(self.selection, name) != Selection.model_fields[name].default
            ]
        if without_use:
            raise ValueError(
                f"the objective {self.loss!r} trains without an adversary; leave out {', '.join(without_use)}, or take "
                "another objective"
            )

    def follow_up(self, weights_sha256: str) -> EvaluateSpec | None:
        """Make the spec that evaluates the trained weights; None if this spec asks for no evaluation."""
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


class TrainSpec(BaseTrainSpec):
    """Train a network, and, if `evaluation` is given, evaluate it afterwards.

    Training is adversarial, except with the objective 'ce', which takes no `threat_model`.
    """

    kind: Literal["train"] = "train"

    objective: Objective = Field(default_factory=GklObjective)

    @property
    def has_adversary(self) -> bool:
        return not isinstance(self.objective, CrossEntropyObjective)


class DistillSpec(BaseTrainSpec):
    """Train a student to predict what a teacher predicts, and, if `evaluation` is given, evaluate it afterwards.

    The objectives 'ard', 'iad', 'rslad', 'adaad' and 'rslad-gkl' are adversarial and need a `threat_model`. The
    objective 'ce' learns from the labels alone, without a teacher: the baseline of the others.
    """

    kind: Literal["distill"] = "distill"

    objective: DistillObjective = Field(default_factory=DistillGklObjective)

    teacher: Teacher | None = None
    """The network to learn from: a file of weights, or what a job trains or an entry shows; left out with the objective
    'ce'."""

    @property
    def has_adversary(self) -> bool:
        return isinstance(self.objective, RobustDistillationObjective)

    @model_validator(mode="after")
    def _teacher_fits(self) -> Self:
        needs_one = not isinstance(self.objective, CrossEntropyObjective)
        if needs_one and self.teacher is None:
            raise ValueError(
                f'the objective {self.loss!r} needs a teacher; give one, such as {{"job": 12}} for the network that '
                "job 12 trains, or take the objective 'ce', which learns from the labels alone"
            )
        if not needs_one and self.teacher is not None:
            raise ValueError(
                "the objective 'ce' learns from the labels alone; leave out teacher, or take 'kd' or 'gkl'"
            )
        if isinstance(self.teacher, TeacherWeights) and self.dataset not in (
            ARCHITECTURES[self.teacher.architecture].datasets
        ):
            raise ValueError(
                f"teacher.architecture {self.teacher.architecture!r} has other images or classes than {self.dataset}; "
                f"take a teacher for {self.dataset}"
            )
        if self.inner_maximization.wmse_weight:
            raise ValueError(
                "inner_maximization.wmse_weight is for trainings without a teacher; leave it out, and choose "
                "objective.maximizes"
            )
        if self.has_adversary and isinstance(self.augmentation, AutoAugmentation | CutoutAugmentation):
            raise ValueError(
                f"the objective {self.loss!r} takes one view of each image; choose the augmentation 'basic', or none"
            )
        if isinstance(self.objective, IadObjective) and self.objective.first_introspective_epoch > self.epochs:
            raise ValueError(
                f"objective.first_introspective_epoch {self.objective.first_introspective_epoch} lies behind the last "
                f"of the {self.epochs} epochs, which makes it ARD; lower it, or take the objective 'ard'"
            )
        return self


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
    """Which network of the file to take, if it holds several, such as a network and its average: the name of the
    dictionary or the prefix of the tensors' names, 'state_dict_ema' or 'ema_model'. Required for such files."""

    evaluation: Evaluation

    publication: Publication | None = None
    """How the leaderboard describes the model."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_architecture_fits(self.dataset, self.architecture)
        check_evaluation_fits(self.dataset, self.architecture, self.evaluation)
        check_published(self.weights, self.architecture, self.weights_key)
        return self


SentSpec: TypeAlias = TrainSpec | DistillSpec | EvaluateSpec
"""What people send as a job."""
JobSpec = Annotated[SentSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[SentSpec] = TypeAdapter(JobSpec)


AnySpec: TypeAlias = SentSpec | ExternalSpec | ReportSpec | TransferSpec


class NamedWeights(NamedTuple):
    """The network that a run reads weights of."""

    architecture: str
    dataset: str
    weights: str
    """sha256 of the file, or 'robustbench'."""
    weights_key: str | None


def named_weights(spec: AnySpec) -> NamedWeights | None:
    """The network that a run of this spec reads: what is evaluated or checked, or a distillation's teacher; None if it
    reads none, or if the teacher is a job or an entry that is still to be looked up."""
    if isinstance(spec, DistillSpec):
        teacher = spec.teacher
        if not isinstance(teacher, TeacherWeights) or teacher.weights is None:
            return None
        return NamedWeights(teacher.architecture, spec.dataset, teacher.weights, teacher.weights_key)
    if isinstance(spec, TrainSpec | ReportSpec):
        return None
    return NamedWeights(spec.architecture, spec.dataset, spec.weights, spec.weights_key)


RunSpec = Annotated[AnySpec, Field(discriminator="kind")]
RUN_SPEC: TypeAdapter[AnySpec] = TypeAdapter(RunSpec)
"""What a worker runs: what people send as a job, and what the service makes of other requests."""
