"""Named runs: functions that return a full spec, so that a run starts from numbers known to work."""

from __future__ import annotations

from collections.abc import Callable

from gkl.catalog import DATASETS, unknown_name_message
from gkl.errors import InvalidInput
from gkl.spec import Evaluation, GklObjective, InnerMaximization, Sgd, ThreatModel, TradesObjective, TrainSpec


def digits() -> TrainSpec:
    """TRADES with the GKL loss on scikit-learn's digits; half a minute on two CPU cores."""
    threat_model = ThreatModel(norm="Linf", epsilon=DATASETS["digits"].epsilon["Linf"])
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
    """The same network and budget with TRADES' own KL divergence, to compare with."""
    return digits().model_copy(
        update={"name": "TRADES SmallCNN", "objective": TradesObjective(loss="trades", kl_weight=6.0)}
    )


RECIPES: dict[str, Callable[[], TrainSpec]] = {
    "digits": digits,
    "digits-trades": digits_trades,
}


def recipe(name: str) -> TrainSpec:
    """The full spec of a named recipe.

    Raises:
        InvalidInput: if there is no recipe of this name; the message offers the nearest ones.
    """
    if name not in RECIPES:
        raise InvalidInput(unknown_name_message("recipe", name, RECIPES))
    return RECIPES[name]()
