"""Adversarial training: recipes for digits, Fashion-MNIST and CIFAR.

The CIFAR recipes are the published ones: GKL (arXiv 2503.08038) and IKL (arXiv 2305.13948) as in their authors' code,
and with synthetic data the training of arXiv 2302.04638, which both papers follow. The authors ran that code on torch
1.8 with RTX 3090 or A100 cards, where TF32 was on by default; hence the precision 'tf32'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gkl.catalog import DATASETS
from gkl.spec import (
    AutoAugmentation,
    BasicAugmentation,
    BatchNormStatistics,
    Compute,
    CosineSchedule,
    CrossEntropyObjective,
    EpochAveraging,
    Evaluation,
    GklObjective,
    InnerMaximization,
    OneCycleSchedule,
    Selection,
    Sgd,
    StepAveraging,
    SyntheticData,
    ThreatModel,
    TradesObjective,
    TrainSpec,
    WeightPerturbation,
)

CifarName = Literal["cifar10", "cifar100"]


def digits() -> TrainSpec:
    """TRADES with the GKL loss on scikit-learn's digits; half a minute on two CPU cores."""
    threat_model = standard_threat_model("digits")
    return TrainSpec(
        name="GKL SmallCNN",
        dataset="digits",
        architecture="small_cnn",
        threat_model=threat_model,
        objective=GklObjective(ce_weight=4.0, wmse_weight=20.0, gamma=1.0, prior_temperature=4.0),
        inner_maximization=InnerMaximization(num_steps=5, relative_step_size=0.5),
        optimizer=Sgd(learning_rate=0.1),
        epochs=50,
        batch_size=128,
        evaluation=Evaluation(threat_model=threat_model, batch_size=360),
    )


def digits_trades() -> TrainSpec:
    """The network and budget of `digits` with TRADES' own KL divergence, for comparison."""
    return changed(digits(), "TRADES SmallCNN", objective=TradesObjective(loss="trades", kl_weight=6.0))


def digits_ce() -> TrainSpec:
    """Plain cross-entropy on the same network, without an adversary: the baseline without robustness."""
    return changed(
        digits(),
        "Cross-entropy SmallCNN",
        threat_model=None,
        objective=CrossEntropyObjective(loss="ce"),
        inner_maximization=InnerMaximization(),
    )


def fashion_mnist() -> TrainSpec:
    """TRADES with the GKL loss on Fashion-MNIST with a tiny network: minutes on a CPU, 1,000 points attacked."""
    threat_model = standard_threat_model("fashion_mnist")
    return TrainSpec(
        name="GKL TinyCNN",
        dataset="fashion_mnist",
        architecture="tiny_cnn",
        threat_model=threat_model,
        objective=GklObjective(ce_weight=4.0, wmse_weight=20.0, gamma=1.0, prior_temperature=4.0),
        inner_maximization=InnerMaximization(num_steps=5, relative_step_size=0.5),
        optimizer=Sgd(learning_rate=0.1),
        epochs=5,
        batch_size=256,
        evaluation=Evaluation(threat_model=threat_model, num_points=1000, batch_size=1000),
    )


def cifar(
    dataset: CifarName, *, ce_weight: float = 4.0, gamma: float = 1.0, prior_temperature: float = 4.0
) -> TrainSpec:
    """WRN-34-10 without extra data, 200 epochs with AWP; published on CIFAR-100: 65.76/31.91 % clean/robust accuracy.

    Two runs are published for each data set: gamma 1 with temperature 4, and a smoothed prior (gamma 0.4 on
    CIFAR-100, 0.2 on CIFAR-10) with temperature 1. For the 85.31/57.09 published on CIFAR-10, the sources differ in
    ce_weight: the authors' script says 4, while the names of that run's log and weights say 3.
    """
    threat_model = standard_threat_model(dataset)
    return TrainSpec(
        name=f"GKL WRN-34-10, gamma {gamma:g}",
        dataset=dataset,
        architecture="wrn_34_10",
        threat_model=threat_model,
        objective=GklObjective(ce_weight=ce_weight, wmse_weight=20.0, gamma=gamma, prior_temperature=prior_temperature),
        inner_maximization=InnerMaximization(
            num_steps=5,
            relative_step_size=0.5,
            start_noise=0.001,
            project_start=False,
            # On CIFAR-10 the authors' attack maximizes the cross-entropy part alone.
            wmse_weight=1.0 if dataset == "cifar100" else 0.0,
        ),
        optimizer=Sgd(learning_rate=0.2, momentum=0.9, weight_decay=5e-4),
        schedule=CosineSchedule(span="epochs_plus_one"),
        epochs=200,
        batch_size=128,
        epsilon_ramp=True,
        augmentation=BasicAugmentation(padding=4, flip=True),
        averaging=EpochAveraging(tau=0.9),
        weight_perturbation=WeightPerturbation(gamma=0.005, first_epoch=10),
        compute=Compute(precision="tf32"),
        evaluation=Evaluation(threat_model=threat_model),
    )


def cifar_autoaug(dataset: CifarName, *, robust_weight: float = 0.5) -> TrainSpec:
    """WRN-34-10 with a second, AutoAugmented view of every image; published on CIFAR-100: 65.93/32.52.

    The authors link the same weights under IKL and under GKL. The script for IKL weights the second view with 0.3, the
    one for GKL with 0.5. It is not known which script gave the published figure.
    """
    augmentation = AutoAugmentation(
        kind="autoaug", padding=4, flip=True, robust_weight=robust_weight, fill=128, shear="bicubic"
    )
    name = "GKL WRN-34-10, AutoAugment" + ("" if robust_weight == 0.5 else f" weighted {robust_weight:g}")
    return changed(cifar(dataset), name, augmentation=augmentation)


def cifar_trades(dataset: CifarName) -> TrainSpec:
    """The baseline: TRADES with KL and AWP. The authors weight KL with 9 on CIFAR-100; 6 is TRADES' own weight.

    Their script for it also has another learning rate schedule than those for DKL and GKL, and drops the last batch.
    """
    return changed(
        cifar(dataset),
        "TRADES WRN-34-10",
        objective=TradesObjective(loss="trades", kl_weight=9.0 if dataset == "cifar100" else 6.0),
        inner_maximization=InnerMaximization(
            num_steps=5, relative_step_size=0.5, start_noise=0.001, project_start=False
        ),
        schedule=CosineSchedule(span="epochs"),
        drop_last_batch=True,
    )


def cifar_synthetic(dataset: CifarName, images: Literal["1m", "20m", "50m"]) -> TrainSpec:
    """WRN-28-10 (SiLU) with generated images; published on CIFAR-100 with 50 million images: 73.65/39.37.

    The loss weights are published for 20 million (CIFAR-10) and 50 million images (CIFAR-100). For 1 million only the
    figures are published, 90.75/63.54 on CIFAR-10 and 68.99/35.89 on CIFAR-100 (IKL); the same weights are used here.
    """
    threat_model = standard_threat_model(dataset)
    epochs, batch_size = {"1m": (400, 512), "20m": (2400, 2048), "50m": (1600, 2048)}[images]
    weights = {"cifar10": (3.0, 10.0), "cifar100": (5.0, 12.0)}[dataset]
    return TrainSpec(
        name=f"GKL WRN-28-10, {images[:-1]}M generated",
        dataset=dataset,
        architecture="wrn_28_10_silu",
        threat_model=threat_model,
        objective=GklObjective(ce_weight=weights[0], wmse_weight=weights[1], gamma=1.0, prior_temperature=4.0),
        inner_maximization=InnerMaximization(
            num_steps=10, relative_step_size=0.25, start_noise="uniform", network_mode="train"
        ),
        optimizer=Sgd(learning_rate=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True, decay_batch_norm=False),
        # torch's OneCycleLR cycles the momentum too by default.
        schedule=OneCycleSchedule(
            kind="one_cycle", warmup_fraction=0.025, moves="per_epoch", low_momentum=0.85, high_momentum=0.95
        ),
        epochs=epochs,
        batch_size=batch_size,
        epsilon_ramp=False,
        label_smoothing=0.1,
        augmentation=BasicAugmentation(padding=4, flip=True, rotation=15.0 if dataset == "cifar100" else 0.0),
        synthetic=SyntheticData(file=images, fraction=0.7 if images == "1m" else 0.8),
        averaging=StepAveraging(kind="step", tau=0.995, warmup_fraction=0.025, buffers="copied"),
        batch_norm=BatchNormStatistics(momentum=0.01, first_momentum=1.0),
        selection=Selection(num_images=1024, num_steps=40, relative_step_size=0.25, maximizes="margin", ties="last"),
        compute=Compute(precision="tf32"),
        evaluation=Evaluation(threat_model=threat_model),
    )


ADVERSARIAL: dict[str, Callable[[], TrainSpec]] = {
    "digits": digits,
    "digits-trades": digits_trades,
    "digits-ce": digits_ce,
    "fashion-mnist": fashion_mnist,
    "cifar10": lambda: cifar("cifar10"),
    "cifar10-alpha3": lambda: changed(cifar("cifar10", ce_weight=3.0), "GKL WRN-34-10, gamma 1, alpha 3"),
    "cifar10-smooth-prior": lambda: cifar("cifar10", gamma=0.2, prior_temperature=1.0),
    "cifar10-autoaug": lambda: cifar_autoaug("cifar10"),
    "cifar10-trades": lambda: cifar_trades("cifar10"),
    "cifar10-1m": lambda: cifar_synthetic("cifar10", "1m"),
    "cifar10-20m": lambda: cifar_synthetic("cifar10", "20m"),
    "cifar100": lambda: cifar("cifar100"),
    "cifar100-smooth-prior": lambda: cifar("cifar100", gamma=0.4, prior_temperature=1.0),
    "cifar100-autoaug": lambda: cifar_autoaug("cifar100"),
    "cifar100-autoaug-weight03": lambda: cifar_autoaug("cifar100", robust_weight=0.3),
    "cifar100-trades": lambda: cifar_trades("cifar100"),
    "cifar100-1m": lambda: cifar_synthetic("cifar100", "1m"),
    "cifar100-50m": lambda: cifar_synthetic("cifar100", "50m"),
}


def standard_threat_model(dataset: str) -> ThreatModel:
    return ThreatModel(norm="Linf", epsilon=DATASETS[dataset].epsilon["Linf"])


def changed(spec: TrainSpec, name: str, **changes: object) -> TrainSpec:
    return spec.model_copy(update={"name": name, **changes})
