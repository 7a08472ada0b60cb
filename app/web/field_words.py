"""Titles of the spec's fields in the form, and which fields are shown first."""

from __future__ import annotations

import re

_TITLES = {
    "name": "Name",
    "dataset": "Data set",
    "architecture": "Architecture",
    "weights": "Weights",
    "weights_key": "Which network of the file",
    "teacher": "Teacher",
    "teacher.job": "Number of the job",
    "teacher.entry": "Number of the entry",
    "threat_model": "Threat model",
    "norm": "Norm",
    "epsilon": "Largest perturbation (epsilon)",
    "objective": "Loss",
    "objective.kl_weight": "KL weight (1/lambda)",
    "objective.ce_weight": "Cross-entropy weight (alpha)",
    "objective.wmse_weight": "Weighted MSE weight (beta)",
    "objective.prior_temperature": "Temperature of the class prior",
    "objective.gamma": "Smoothing of the class weights (gamma)",
    "objective.label_weight": "Weight of the labels' cross-entropy",
    "temperature": "Temperature (T)",
    "ramp_epochs": "Epochs over which the teacher's term grows",
    "target_weight": "Weight of the label's part (alpha)",
    "non_target_weight": "Weight of the other classes' part (beta)",
    "class_wise": "Weights by class",
    "objective.maximizes": "What the attack increases",
    "kl_mean": "What each KL is averaged over",
    "teacher_weight": "Weight of the teacher's term (alpha)",
    "first_introspective_epoch": "Introspection from epoch",
    "trust_exponent": "Exponent of the trust in the teacher",
    "adversarial_weight": "Weight on adversarial images",
    "natural_weight": "Weight on clean images",
    "inner_maximization": "Attack during training",
    "num_steps": "Attack steps",
    "relative_step_size": "Step size, relative to epsilon",
    "start_noise": "Noise at the start",
    "project_start": "Project the start",
    "network_mode": "Mode of the network",
    "inner_maximization.wmse_weight": "Weighted MSE weight in the attack",
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "nesterov": "Nesterov momentum",
    "decay_batch_norm": "Weight decay on BatchNorm",
    "schedule": "Learning rate schedule",
    "milestones": "Epochs at which the rate falls",
    "schedule.factor": "Factor at each of them",
    "warmup_fraction": "Share of warm-up",
    "warmup_epochs": "Epochs of warm-up",
    "start_divisor": "Divisor of the first rate",
    "end_divisor": "Divisor of the last rate",
    "schedule.moves": "When the rate changes",
    "schedule.span": "How epochs are counted",
    "low_momentum": "Lowest momentum",
    "high_momentum": "Highest momentum",
    "batch_size": "Images per step",
    "evaluation.batch_size": "Images attacked at once",
    "drop_last_batch": "Leave out the last, smaller batch",
    "epsilon_ramp": "Raise epsilon over the epochs",
    "label_smoothing": "Label smoothing",
    "imbalance": "Imbalance of the classes",
    "imbalance.factor": "First class divided by the last",
    "augmentation": "Augmentation of the images",
    "min_scale": "Least share of the photograph",
    "robust_weight": "Weight of the divergence over second views",
    "augmentation.flip": "Mirror half of the images",
    "synthetic": "Generated images",
    "synthetic.fraction": "Share of each batch",
    "averaging": "Averaging of the weights",
    "averaging.tau": "Share of the average that is kept (tau)",
    "averaging.buffers": "BatchNorm's statistics",
    "weight_perturbation": "Perturbation of the weights (AWP)",
    "weight_perturbation.gamma": "Size of the perturbation (gamma)",
    "first_epoch": "From epoch",
    "batch_norm": "BatchNorm statistics",
    "batch_norm.momentum": "Share of each batch",
    "batch_norm.first_momentum": "Share of the first batch",
    "selection": "Choice of the best epoch",
    "selection.num_images": "Images held out",
    "selection.maximizes": "What the attack increases",
    "selection.ties": "Of equal epochs take the",
    "every_epochs": "Epochs between measurements",
    "compute": "Arithmetic",
    "channels_last": "Channels last",
    "compute.compile": "Use torch.compile",
    "seed": "Random seed",
    "protocol": "Protocol",
    "attacks": "Attacks of a custom protocol",
    "num_points": "Points to attack",
    "shards": "Jobs that share the work",
    "evaluation": "Evaluation",
    "publication": "Publication",
    "extra_data": "Trained on additional real images",
    "synthetic_data": "Trained on generated images",
}
"""By dotted path, or by the field's name if it means the same everywhere."""

_BASIC = re.compile(
    r"name|dataset|architecture|weights|epochs|objective|evaluation"
    r"|teacher(\.(architecture|weights|job|entry))?"
    r"|(evaluation\.)?threat_model(\.(norm|epsilon))?|evaluation\.(protocol|num_points)"
)

SHOWN_FIRST = (
    *("name", "dataset", "architecture", "weights", "teacher"),
    *("teacher.architecture", "teacher.weights", "teacher.job", "teacher.entry"),
    *("threat_model", "objective", "epochs", "evaluation"),
    *("evaluation.protocol", "evaluation.threat_model", "evaluation.num_points"),
)
"""The basic fields of the form and of its parts, in the order in which they are shown."""


def title(path: str) -> str:
    """The title of a field.

    >>> title("evaluation.num_points"), title("objective.ce_weight"), title("optimizer.momentum")
    ('Points to attack', 'Cross-entropy weight (alpha)', 'Momentum')
    """
    own = path.rpartition(".")[2]
    return _TITLES.get(path) or _TITLES.get(own) or own.replace("_", " ").capitalize()


def is_basic(path: str) -> bool:
    """Whether the field is shown at once; others are folded."""
    return _BASIC.fullmatch(path) is not None
