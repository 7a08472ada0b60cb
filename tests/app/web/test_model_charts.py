"""The charts of one model."""

from __future__ import annotations

from app.web.model_charts import training_curves
from gkl.outcome import EpochFinished


def epoch(number: int, clean: float, held_out: float | None = None) -> EpochFinished:
    return EpochFinished(
        epoch=number,
        epochs=3,
        seconds=1.0,
        metrics={
            "loss": 1.0,
            "clean_accuracy": clean,
            "adversarial_accuracy": 0.0,
            "epsilon": 0.1,
            "learning_rate": 0.1,
        }
        | ({} if held_out is None else {"held_out_robust_accuracy": held_out}),
    )


def test_a_curve_goes_from_the_first_to_the_last_epoch() -> None:
    assert training_curves([]) is None
    # Epoch 2 was trained again after its worker was lost.
    curve = training_curves([epoch(1, 0.0), epoch(2, 0.9), epoch(2, 0.5), epoch(3, 1.0)])
    assert curve is not None
    assert curve.best_held_out is None
    assert [line.metric.name for line in curve.lines] == ["clean_accuracy", "adversarial_accuracy"]
    middle = (curve.left + curve.right) / 2
    assert curve.lines[0].points == (
        f"{curve.left:.1f},{curve.bottom:.1f} {middle:.1f},{(curve.top + curve.bottom) / 2:.1f} "
        f"{curve.right:.1f},{curve.top:.1f}"
    )


def test_the_curve_shows_held_out_accuracy_where_it_was_measured() -> None:
    best = epoch(2, 0.5, held_out=0.5)
    curve = training_curves([epoch(1, 0.0), best, epoch(3, 1.0, held_out=0.25)])
    assert curve is not None
    assert curve.best_held_out == best
    height = curve.bottom - curve.top
    middle = (curve.left + curve.right) / 2
    assert curve.lines[2].points == (
        f"{middle:.1f},{curve.bottom - height / 2:.1f} {curve.right:.1f},{curve.bottom - height / 4:.1f}"
    )
