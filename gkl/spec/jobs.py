"""The specs of jobs: trainings, evaluations, and checks of submitted adversarial examples and certificates."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from gkl.catalog import DATASETS
from gkl.catalog.zoo import ZOO
from gkl.spec.common import (
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
    one_printable_line,
)
from gkl.spec.evaluation import Evaluation, check_evaluation_fits
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
    InnerMaximization,
    Objective,
    Optimizer,
    PiecewiseSchedule,
    Schedule,
    Selection,
    Sgd,
    SyntheticData,
    WeightPerturbation,
)


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", text):
        raise ValueError("must be an address that begins with http:// or https://, without spaces")
    return text


_OneLine = Annotated[str, Field(max_length=500), AfterValidator(one_printable_line)]


class Publication(Spec):
    """How the leaderboard describes a model, besides its numbers; the fields follow RobustBench's `model_info`."""

    title: _OneLine = ""
    """Title of the paper; if it is empty, the model's name is shown."""

    authors: _OneLine = ""
    """Separated by commas."""

    link: Annotated[str, Field(max_length=500), AfterValidator(_web_address)] | None = None
    """Address of the paper or the code."""

    venue: _OneLine = ""
    """Where it was published, with the year: 'NeurIPS 2025'; 'arXiv, Mar 2025'."""

    extra_data: bool = False
    """Whether it was trained on real images besides the data set's own."""

    synthetic_data: bool = False
    """Whether it was trained on generated images."""

    footnote: _OneLine = ""


class TrainSpec(Spec):
    """Train a network, and, if `evaluation` is given, evaluate it afterwards.

    Training is adversarial, except with the objective 'ce', which takes no `threat_model`.
    """

    kind: Literal["train"] = "train"

    name: ModelName
    """Name of the model on the leaderboard."""

    dataset: DatasetName
    architecture: ArchitectureName

    threat_model: ThreatModel | None = None
    """What the adversary may do during training; left out with the objective 'ce', which has no adversary."""

    objective: Objective = Field(default_factory=GklObjective)
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

    def _check_adversary(self) -> None:
        """
        Raises:
            ValueError: the objective needs a threat model and none is given, or fields are set that the objective does
                not use.
        """
        objective, threat_model = self.objective, self.threat_model
        if not isinstance(objective, CrossEntropyObjective):
            if threat_model is None:
                raise ValueError(
                    f"the objective {objective.loss!r} needs a threat_model; give one, such as "
                    '{"norm": "Linf", "epsilon": "8/255"}, or take the objective \'ce\', which trains without'
                )
            check_epsilon_fits(self.dataset, DATASETS[self.dataset].image_shape, threat_model)
            if threat_model.norm == "L1":
                raise ValueError("threat_model.norm 'L1' is for evaluations; train under 'Linf' or 'L2'")
            return
        if threat_model is not None:
            raise ValueError(
                "the objective 'ce' trains without an adversary; leave out threat_model, or take another objective"
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
                f"the objective 'ce' trains without an adversary; leave out {', '.join(without_use)}, or take another "
                "objective"
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
    """Which network of the file to take, if it holds several, such as a network and its average: the name of the
    dictionary or the prefix of the tensors' names, 'state_dict_ema' or 'ema_model'. Required for such files."""

    evaluation: Evaluation

    publication: Publication | None = None
    """How the leaderboard describes the model."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_architecture_fits(self.dataset, self.architecture)
        check_evaluation_fits(self.dataset, self.architecture, self.evaluation)
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
    """Check submitted adversarial examples. The service makes this spec from a request about an entry."""

    kind: Literal["external"] = "external"

    name: ModelName
    """Name of the attack and of the submitter."""

    dataset: DatasetName
    architecture: ArchitectureName
    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    examples: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the file with the examples."""


class ReportSpec(Spec):
    """Check the certificate of a network that only its owner has. The service makes this spec from a request."""

    kind: Literal["report"] = "report"

    name: ModelName
    """Name of the network on the leaderboard."""

    dataset: DatasetName
    architecture: str = Field(default="", max_length=100)
    """The architecture as its owner describes it."""

    certificate: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the certificate's file."""

    publication: Publication | None = None
    """How the leaderboard describes the model."""


class TransferSpec(Spec):
    """Try the adversarial examples of one entry on the weights of another. The service makes this spec from a request
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
    """Architecture of the network that the examples are tried on."""

    weights: str = Field(pattern=rf"{SHA256_PATTERN}|^{PUBLISHED_WEIGHTS}$")
    """As in `EvaluateSpec`."""

    weights_key: WeightsKey | None = None
    """As in `EvaluateSpec`."""

    @property
    def attack(self) -> str:
        """The attack's name in a certificate, for points that these examples break and that were robust before."""
        return f"transfer from {self.source_name}"


AnySpec: TypeAlias = TrainSpec | EvaluateSpec | ExternalSpec | ReportSpec | TransferSpec
RunSpec = Annotated[AnySpec, Field(discriminator="kind")]
RUN_SPEC: TypeAdapter[AnySpec] = TypeAdapter(RunSpec)
"""All specs that a worker runs: the jobs that people submit, and those that the service makes from other requests."""


def _check_key_has_file(weights: str, weights_key: str | None) -> None:
    if weights == PUBLISHED_WEIGHTS and weights_key is not None:
        raise ValueError(
            "weights_key is for a file that holds several networks; leave it out with weights 'robustbench'"
        )
