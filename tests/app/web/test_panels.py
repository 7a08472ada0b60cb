"""Curves as coordinates and words, and what lies beside them."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from app import jobs
from app.boards import results
from app.db.database import Database
from app.web.panels import HEIGHT, WIDTH, Panels, Run, panels_of
from gkl.outcome import EpochFinished, Progress
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel, TrainSpec
from tests.app.boards.test_results import LEASE, train
from tests.app.jobs.test_job_metrics import finished
from tests.app.web.test_pages import get, words
from tests.databases import either_database
from tests.specs import tiny_train_spec


def shown(*runs: list[EpochFinished], at: int | None = None) -> Panels:
    found = panels_of([Run(number, "x", epochs) for number, epochs in enumerate(runs, 1)], at)
    assert found is not None
    return found


def test_there_are_none_before_the_first_epoch() -> None:
    assert panels_of([Run(1, "x", []), Run(2, "y", [finished(1)])]) is None


def test_each_quantity_has_a_panel_of_its_own() -> None:
    found = shown([finished(1), finished(2)])
    titles = ["Accuracy", "Loss", "CE, natural", "KL", "Learning rate", "Epsilon"]
    assert [panel.title for panel in found.panels] == titles
    assert [line.name for line in found.panels[0].lines] == ["clean", "adversarial"], "nothing was held out"
    assert found.said.startswith("epoch 2: clean 50.0 %, adversarial 25.0 %, loss 1.5, CE, natural 1.25")
    held_out = shown([finished(1), finished(2, held_out_robust_accuracy=0.125), finished(3)])
    line = held_out.panels[0].lines[2]
    assert (line.name, line.values) == ("held out, PGD", ["\N{EN DASH}", "12.5 %", "\N{EN DASH}"])
    assert line.points == f"{WIDTH / 2},{HEIGHT * 7 / 8} {WIDTH / 2},{HEIGHT * 7 / 8}", "a dot"
    assert held_out.best_held_out == finished(2, held_out_robust_accuracy=0.125)


def test_a_training_without_an_adversary_is_drawn_by_what_it_measures() -> None:
    """And what a later version measures has a chart of its own."""
    epochs = [
        EpochFinished(
            epoch=number,
            epochs=2,
            seconds=1.0,
            metrics={
                "loss": 1.0,
                "clean_accuracy": 0.5,
                "held_out_clean_accuracy": 0.25 * number,
                "learning_rate": 0.1,
                "loss_teacher": 0.75,
            },
        )
        for number in (1, 2)
    ]
    found = shown(epochs)
    drawn = {panel.title: [line.name for line in panel.lines] for panel in found.panels if panel.lines}
    assert drawn == {
        "Accuracy": ["clean", "held out, clean"],
        "Loss": ["loss"],
        "Learning rate": ["learning rate"],
        "loss_teacher": ["loss_teacher"],
    }
    beside = shown(epochs, [finished(1)]).panels[0]
    assert [(line.run, line.name, line.shown) for line in beside.lines] == [
        (0, "clean", "50.0 %"),
        (0, "adversarial", "\N{EN DASH}"),
        (0, "held out, clean", "50.0 %"),
        (1, "clean", "\N{EN DASH}"),
        (1, "adversarial", "\N{EN DASH}"),
        (1, "held out, clean", "\N{EN DASH}"),
    ], "the other has no second epoch, and nothing held out"
    assert found.best_held_out == epochs[1]
    assert found.selects_by is not None
    assert found.selects_by.name == "held_out_clean_accuracy"


def test_lines_reach_from_edge_to_edge_of_what_is_planned() -> None:
    """Two of three epochs: half the width. The loss goes from the upper to the lower edge of its chart."""
    found = shown([finished(1, loss=2.0, epsilon=0.05), finished(2, loss=1.0)])
    loss, epsilon = found.panels[1], found.panels[5]
    assert (loss.low, loss.high, loss.lines[0].points) == ("1", "2", "0.0,0.0 500.0,100.0")
    assert (epsilon.low, epsilon.high, epsilon.lines[0].points) == ("0", "0.1", "0.0,50.0 500.0,0.0")
    assert (found.total, found.at, found.at_x) == (3, 2, 500.0)


def test_runs_of_other_lengths_share_the_epochs() -> None:
    long = [finished(number, epochs=5) for number in range(1, 6)]
    found = shown([finished(1), finished(2), finished(3)], long, at=4)
    assert (found.total, found.epochs, found.at) == (5, [1, 2, 3, 4, 5], 4)
    loss = found.panels[1].lines
    assert [(line.run, line.shown) for line in loss] == [(0, "\N{EN DASH}"), (1, "1.5")]
    assert shown([finished(1), finished(2)], long).at == 2, "by default where the job itself is"
    assert shown([finished(1), finished(2)], at=99).at == 2


def test_of_very_many_epochs_some_are_drawn() -> None:
    found = shown([finished(number, epochs=10_000, loss=float(number)) for number in range(1, 10_001)], at=5_000)
    assert found.is_thinned
    assert len(found.epochs) == 400
    assert (found.epochs[0], found.epochs[-1]) == (1, 10_000)
    assert abs(found.at - 5_000) <= 13
    assert len(found.panels[1].lines[0].points.split(" ")) == 400


def test_what_is_no_number_is_no_point() -> None:
    found = shown([finished(1, loss=float("nan")), finished(2)])
    assert found.panels[1].lines[0].values == ["\N{EN DASH}", "1.5"]


# --- beside ------------------------------------------------------------------------------------------------------


def trained(database: Database, spec: TrainSpec) -> int:
    with database.writing() as session:
        job_id = jobs.create(session, spec).id
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        jobs.record_event(session, claim, finished(1))
        results.record_model(session, jobs.succeed(session, claim), spec, f"{job_id:064x}")
    return job_id


@either_database
def test_only_trainings_of_its_kind_are_suggested_and_may_lie_beside_it(client: TestClient, database: Database) -> None:
    spec = tiny_train_spec(evaluation=None)
    job_id, same = trained(database, spec), trained(database, spec.model_copy(update={"name": "Same", "epochs": 3}))
    other = trained(database, spec.model_copy(update={"architecture": "small_cnn"}))
    text = get(client, f"/jobs/{job_id}")
    assert f'name="beside" value="{same}"' in text
    assert f'name="beside" value="{other}"' not in text
    assert f'name="beside" value="{job_id}"' not in text
    beside = get(client, f"/jobs/{job_id}?beside={same}&beside={same}&beside={job_id}")
    assert beside.count(" checked") == 1
    assert re.search(r"<code>epochs</code></th><td>2</td><td>3</td>", beside)
    assert "does not fit" not in beside
    assert "choose a training of the same data set and architecture" in words_of(
        get(client, f"/jobs/{job_id}?beside={other}", 422)
    )
    assert "There is no job 99." in get(client, f"/jobs/{job_id}?beside=99", 404)
    assert "choose at most 4" in get(
        client, f"/jobs/{job_id}?" + "&".join(f"beside={number}" for number in range(91, 96)), 422
    )
    assert "query.beside" in get(client, f"/jobs/{job_id}?beside=x", 422)
    assert "query.epoch" in get(client, f"/jobs/{job_id}?epoch=0", 422)
    assert get(client, f"/jobs/{job_id}?epoch=").count('class="at"') == 6, "what an empty form sends"


def words_of(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


@either_database
def test_a_repeated_training_differs_in_nothing(client: TestClient, database: Database) -> None:
    spec = tiny_train_spec(evaluation=None)
    job_id, again = trained(database, spec), trained(database, spec.model_copy(update={"name": "Again"}))
    assert "Only their names differ" in words(client, f"/jobs/{job_id}?beside={again}")


@either_database
def test_an_evaluation_has_neither_curves_nor_anything_beside(client: TestClient, database: Database) -> None:
    of = {"dataset": "digits", "architecture": "small_cnn", "weights": train(database, "a")}
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    with database.writing() as session:
        job_id = jobs.create(session, EvaluateSpec(name="x", evaluation=evaluation, **of)).id
    assert "curves" not in get(client, f"/jobs/{job_id}").replace("curves.js", "")
    assert "do not fit" in get(client, f"/jobs/{job_id}?beside=1", 422)


@either_database
def test_what_another_version_wrote_of_its_progress_breaks_no_page(client: TestClient, database: Database) -> None:
    of = {"dataset": "digits", "architecture": "small_cnn", "weights": train(database, "a")}
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    with database.writing() as session:
        jobs.create(session, EvaluateSpec(name="x", evaluation=evaluation, **of))
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        known = Progress(stage="APGD-CE", fraction=0.5).model_dump(mode="json")
        jobs.get(session, claim.job_id).progress = known | {"points": {"of": "later"}}
    text = words(client, f"/jobs/{claim.job_id}")
    assert "APGD-CE" in text
    assert "Points left" not in text
