"""From outcomes to a ranking, on both databases."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from app import checkpoints, jobs, leaderboard
from app.artifacts import StoredFile
from app.database import Database
from app.errors import NotFound, Unprocessable
from app.tables import CheckpointKind
from gkl.outcome import AttackOutcome, EvaluationOutcome, Manifest
from gkl.recipes import digits
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel

LEASE = timedelta(seconds=90)


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def train(database: Database, name: str) -> str:
    """A finished training; returns the sha256 of its weights."""
    spec = digits().model_copy(update={"name": name, "evaluation": None})
    with database.writing() as session:
        jobs.create(session, spec)
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        job = jobs.succeed(session, claim)
        stored = StoredFile(sha(name), 10)
        checkpoints.add(session, job.id, spec, CheckpointKind.WEIGHTS, epoch=1, file="w", stored=stored)
        leaderboard.record_model(session, job, spec, stored.sha256)
    return stored.sha256


def measure(
    database: Database, weights: str, *, robust: int, clean: int = 350, points: int = 360, epsilon: float = 0.2
) -> int:
    """A finished evaluation; returns its job's id."""
    spec = EvaluateSpec(
        name="other",
        dataset="digits",
        architecture="small_cnn",
        weights=weights,
        evaluation=Evaluation(threat_model=ThreatModel(epsilon=epsilon)),
    )
    outcome = EvaluationOutcome(
        num_points=points,
        clean_correct=clean,
        robust_correct=robust,
        attacks=[AttackOutcome(attack="APGD-CE", points=clean, broken=clean - robust, seconds=1.5)],
        seconds=2.0,
        manifest=Manifest(
            spec=spec.model_dump(mode="json"),
            git_commit=None,
            packages={},
            python="3",
            device="CPU",
            seed=0,
            dataset_sha256=sha("data"),
            weights_sha256=weights,
        ),
    )
    with database.writing() as session:
        jobs.create(session, spec)
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        job = jobs.succeed(session, claim)
        leaderboard.record_evaluation(session, job, spec, outcome)
        return job.id


def ranking(database: Database, name: str = "Linf") -> list[tuple[int, str, int]]:
    with database.reading() as session:
        rows = leaderboard.rows(session, "digits", name)
        return [(row.rank, row.model.name, row.evaluation.robust_correct) for row in rows]


def test_rows_rank_by_robust_then_clean_accuracy_then_age(database: Database) -> None:
    a, b, c, d = (train(database, name) for name in "abcd")
    measure(database, a, robust=100)
    measure(database, b, robust=200, clean=300)
    measure(database, c, robust=200, clean=301)
    measure(database, d, robust=100)
    assert ranking(database) == [(1, "c", 200), (2, "b", 200), (3, "a", 100), (4, "d", 100)]


def test_a_model_stands_with_its_lowest_complete_result_on_each_board(database: Database) -> None:
    a, b = train(database, "a"), train(database, "b")
    measure(database, a, robust=200)
    measure(database, a, robust=150)
    measure(database, a, robust=300)
    measure(database, a, robust=1, clean=5, points=10)
    measure(database, a, robust=20, epsilon=0.3)
    measure(database, b, robust=180)
    assert ranking(database) == [(1, "b", 180), (2, "a", 150)]
    assert ranking(database, "Linf-0.3") == [(1, "a", 20)]
    with database.reading() as session:
        boards = leaderboard.boards(session)
        assert [(board.name, board.num_models, board.title) for board in boards] == [
            ("Linf", 2, "Digits, Linf 0.2"),
            ("Linf-0.3", 1, "Digits, Linf 0.3"),
        ]
        first = leaderboard.rows(session, "digits", "Linf")[1]
        assert leaderboard.rank_of(session, first.evaluation) == 2
        assert len(leaderboard.evaluations_of(session, first.model.id)) == 5
        with pytest.raises(NotFound):
            leaderboard.board(session, "digits", "L2")


def test_the_same_weights_are_the_same_model(database: Database) -> None:
    weights = train(database, "first")
    again = digits().model_copy(update={"name": "second"})
    with database.writing() as session:
        job = jobs.create(session, again)
        model = leaderboard.record_model(session, job, again, weights)
        assert model.name == "first"


def test_a_jobs_result_counts_once(database: Database) -> None:
    job_id = measure(database, train(database, "a"), robust=1)
    with database.reading() as session:
        found = leaderboard.evaluation_of_job(session, job_id)
    assert found is not None
    with pytest.raises(IntegrityError), database.writing() as session:
        spec = EvaluateSpec.model_validate(found.manifest["spec"])
        outcome = EvaluationOutcome(
            num_points=1,
            clean_correct=1,
            robust_correct=1,
            attacks=[],
            seconds=0,
            manifest=Manifest.model_validate(found.manifest),
        )
        leaderboard.record_evaluation(session, jobs.get(session, job_id), spec, outcome)


def test_an_impossible_result_is_refused_by_the_database(database: Database) -> None:
    weights = train(database, "a")
    with pytest.raises(IntegrityError):
        measure(database, weights, robust=351, clean=350)


def test_weights_are_only_evaluated_as_what_they_are(database: Database) -> None:
    weights = train(database, "a")
    spec = EvaluateSpec(
        name="x",
        dataset="digits",
        architecture="small_cnn",
        weights=weights,
        evaluation=Evaluation(threat_model=ThreatModel(epsilon=0.2)),
    )
    # As if the catalog had another architecture: the check is on what the weights were made with.
    with (
        pytest.raises(Unprocessable, match="trained with architecture 'small_cnn', not 'wide'"),
        database.reading() as session,
    ):
        checkpoints.check_weights(session, spec.model_copy(update={"architecture": "wide"}))
