"""From outcomes to a ranking, on both databases."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import jobs
from app.boards import listing, placing
from app.boards import ranking as board_ranking
from app.boards import results as leaderboard
from app.core.errors import NotFound, Unprocessable
from app.db.database import Database
from app.db.tables import Entry, FileKind
from app.jobs import job_files
from app.store import StoredFile
from gkl.catalog import CORRUPTIONS
from gkl.errors import FailureCode
from gkl.outcome import (
    REPAIR,
    AttackOutcome,
    CorruptionOutcome,
    EvaluationOutcome,
    Manifest,
    TeacherOutcome,
)
from gkl.recipes.adversarial import digits
from gkl.spec import (
    CrossEntropyObjective,
    EvaluateSpec,
    Evaluation,
    GklObjective,
    Publication,
    ThreatModel,
    TradesObjective,
)
from gkl.statistics.intervals import wilson_interval

LEASE = timedelta(seconds=90)


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def train(
    database: Database,
    name: str,
    dataset: str = "digits",
    *,
    teacher: str | None = None,
    teacher_accuracy: float = 0.99,
) -> str:
    """A finished training, perhaps from a teacher with these weights; returns the sha256 of its weights."""
    spec = digits().model_copy(update={"name": name, "evaluation": None, "dataset": dataset})
    with database.writing() as session:
        jobs.create(session, spec)
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        job = jobs.succeed(session, claim)
        stored = StoredFile(sha(name), 10)
        job_files.add_file(session, job.id, FileKind.WEIGHTS, number=1, file="w", stored=stored)
        learned_from = None
        if teacher is not None:
            learned_from = TeacherOutcome(
                architecture="small_cnn", weights_sha256=teacher, clean_accuracy=teacher_accuracy, num_points=360
            )
        leaderboard.record_model(session, job, spec, stored.sha256, teacher=learned_from)
    return stored.sha256


def measure(
    database: Database,
    weights: str,
    *,
    robust: int | None,
    clean: int = 350,
    points: int = 360,
    epsilon: float = 0.2,
    provisional: bool = False,
    evaluation: Evaluation | None = None,
    dataset: str = "digits",
    publication: dict[str, Any] | None = None,
    repaired: int = 0,
    certificate_sha256: str | None = None,
    **outcome: Any,
) -> int:
    """A finished evaluation, or one that is running and has a provisional verdict; returns its job's id."""
    spec = EvaluateSpec(
        name="other",
        dataset=dataset,
        architecture="small_cnn",
        weights=weights,
        evaluation=evaluation or Evaluation(threat_model=ThreatModel(epsilon=epsilon)),
        publication=None if publication is None else Publication(**publication),
    )
    attacks = []
    if robust is not None:
        left = robust + repaired
        attacks = [AttackOutcome(attack="APGD-CE", points=clean, broken=clean - left, seconds=1.5)]
        attacks += [AttackOutcome(attack=REPAIR, points=left, broken=repaired, seconds=0.5)]
    measured = EvaluationOutcome(
        num_points=points,
        clean_correct=clean,
        robust_correct=robust,
        attacks=attacks,
        seconds=2.0,
        **outcome,
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
        job = jobs.get(session, claim.job_id) if provisional else jobs.succeed(session, claim)
        leaderboard.record_evaluation(
            session, job, spec, measured, is_provisional=provisional, certificate_sha256=certificate_sha256
        )
        return job.id


def ranking(database: Database, name: str = "Linf") -> list[tuple[int | None, str, int | None]]:
    with database.reading() as session:
        board = board_ranking.board(session, "digits", name)
        rows = [(row.rank, row.entry) for row in listing.search(session, board, listing.View())]
        return [(rank, e.name, e.evaluation and e.evaluation.robust_correct) for rank, e in rows]


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
        boards = board_ranking.boards(session)
        assert [(board.name, board.num_entries, board.title) for board in boards] == [
            ("Linf", 2, "Digits, Linf 0.2"),
            ("Linf-0.3", 1, "Digits, Linf 0.3"),
        ]
        place = board_ranking.entries_of(session, 1)["Linf"]
        assert (place.rank, place.entry.name) == (2, "a")
        assert len(leaderboard.evaluations_of(session, 1)) == 5
        with pytest.raises(NotFound):
            board_ranking.board(session, "digits", "L2")


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
        pytest.raises(Unprocessable, match="known with architecture 'small_cnn', not 'wide'"),
        database.reading() as session,
    ):
        job_files.check_weights(session, spec.model_copy(update={"architecture": "wide"}))


def test_a_provisional_verdict_has_a_place_without_a_rank_until_the_final_one(database: Database) -> None:
    a, b, c = (train(database, name) for name in "abc")
    measure(database, a, robust=200)
    running = measure(database, b, robust=220, provisional=True)
    measure(database, c, robust=240)
    assert ranking(database) == [(1, "c", 240), (None, "b", 220), (2, "a", 200)]
    with database.reading() as session:
        provisional = leaderboard.evaluation_of_job(session, running)
        assert provisional is not None
        assert board_ranking.entries_of(session, provisional.model_id)["Linf"].rank is None
        assert [board.num_entries for board in board_ranking.boards(session)] == [3]
    with database.writing() as session:
        spec = EvaluateSpec.model_validate(provisional.manifest["spec"])
        final = EvaluationOutcome(
            num_points=360,
            clean_correct=350,
            robust_correct=180,
            attacks=[
                AttackOutcome(attack="APGD-CE", points=350, broken=130, seconds=1.0),
                AttackOutcome(attack="Square", points=220, broken=40, seconds=1.0),
            ],
            seconds=2.0,
            manifest=Manifest.model_validate(provisional.manifest),
        )
        job = jobs.get(session, running)
        leaderboard.record_evaluation(session, job, spec, final, certificate_sha256=sha("certificate"))
    assert ranking(database) == [(1, "c", 240), (2, "a", 200), (3, "b", 180)]
    with database.reading() as session:
        replaced = leaderboard.evaluation_of_job(session, running)
        assert replaced is not None
        assert replaced.id == provisional.id, "a link to it stays good"
        assert [attack.attack for attack in replaced.attacks] == ["APGD-CE", "Square"]


def test_a_final_verdict_stands_before_a_provisional_one_of_the_same_model(database: Database) -> None:
    weights = train(database, "a")
    measure(database, weights, robust=200)
    measure(database, weights, robust=150, provisional=True)
    assert ranking(database) == [(1, "a", 200)]


@pytest.mark.parametrize(
    ("evaluation", "robust", "why"),
    [
        (Evaluation(protocol="rand", threat_model=ThreatModel(epsilon=0.2)), 300, "protocol rand: not ranked"),
        (
            Evaluation(protocol="custom", attacks=("apgd-ce",), threat_model=ThreatModel(epsilon=0.2)),
            300,
            "protocol custom: not ranked",
        ),
    ],
)
def test_a_weaker_protocol_is_kept_but_not_ranked(
    database: Database, evaluation: Evaluation, robust: int, why: str
) -> None:
    weights = train(database, "a")
    job_id = measure(database, weights, robust=robust, evaluation=evaluation)
    with database.reading() as session:
        assert board_ranking.boards(session) == []
        found = leaderboard.evaluation_of_job(session, job_id)
        assert found is not None
        assert placing.why_not_ranked(found) == why


def test_what_repair_broke_counts_beside_autoattacks_own_figure(database: Database) -> None:
    a, b = train(database, "a"), train(database, "b")
    measure(database, a, robust=200, repaired=3)
    measure(database, b, robust=201)
    assert ranking(database) == [(1, "b", 201), (2, "a", 200)]
    with database.reading() as session:
        first, second = session.scalars(select(Entry).order_by(Entry.robust_accuracy)).all()
    assert (first.autoattack_accuracy, first.external_accuracy) == (203 / 360, 200 / 360)
    assert (second.autoattack_accuracy, second.external_accuracy) == (201 / 360, None)
    # AutoAttack's own figure is its lowest too, whichever evaluation has the lowest in all.
    measure(database, b, robust=190, repaired=30)
    with database.reading() as session:
        entry = session.scalars(select(Entry).where(Entry.name == "b")).one()
    assert (entry.autoattack_accuracy, entry.external_accuracy) == (201 / 360, 190 / 360)


def test_weights_that_were_sent_are_a_model_once_they_are_measured(database: Database) -> None:
    spec = EvaluateSpec(
        name="Sent",
        dataset="digits",
        architecture="small_cnn",
        weights=sha("sent"),
        evaluation=Evaluation(threat_model=ThreatModel(epsilon=0.2)),
    )
    with pytest.raises(Unprocessable, match="send the file to /api/v1/weights first"), database.writing() as session:
        jobs.create(session, spec)
    with database.writing() as session:
        job_files.record_upload(session, StoredFile(sha("sent"), 10), "torch", "Ada")
    measure(database, sha("sent"), robust=100)
    assert ranking(database) == [(1, "other", 100)]
    # From then on they are known as what they are.
    with (
        pytest.raises(Unprocessable, match="known with architecture 'small_cnn', not 'tiny_cnn'"),
        database.writing() as session,
    ):
        jobs.create(session, spec.model_copy(update={"architecture": "tiny_cnn"}))


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_bound_goes_when_its_evaluation_cannot_end(database: Database, how: str) -> None:
    job_id = measure(database, train(database, "a"), robust=200, provisional=True)
    assert ranking(database) == [(None, "a", 200)]
    with database.writing() as session:
        job = jobs.get(session, job_id)
        claim = jobs.Claim(job_id, job.attempt, job.spec, None, 0.0)
        if how == "failed":
            jobs.fail(session, claim, FailureCode.TIMED_OUT, "it took too long")
        else:
            jobs.end_cancelled(session, claim)
    with database.reading() as session:
        assert board_ranking.boards(session) == []


def test_a_board_is_led_by_a_final_verdict(database: Database) -> None:
    a, b = train(database, "a"), train(database, "b")
    measure(database, a, robust=300, provisional=True)
    with database.reading() as session:
        assert leader(session).name == "a"
    measure(database, b, robust=100)
    with database.reading() as session:
        assert leader(session).name == "b"


def leader(session: Session) -> Entry:
    first = board_ranking.leader(session, board_ranking.board(session, "digits", "Linf"))
    assert first is not None
    return first.entry


def test_corruptions_have_a_board_of_their_own(database: Database) -> None:
    weights = train(database, "a", dataset="cifar10")
    corruptions = [
        CorruptionOutcome(
            corruption=name, severity=severity, points=10_000, correct=6000, seconds=1, data_sha256=sha("data")
        )
        for name in CORRUPTIONS
        for severity in range(1, 6)
    ]
    measure(
        database,
        weights,
        robust=None,
        clean=9000,
        points=10_000,
        evaluation=Evaluation(protocol="corruptions"),
        dataset="cifar10",
        corruptions=corruptions,
        mean_corruption_error=0.4,
    )
    with database.reading() as session:
        (board,) = board_ranking.boards(session)
        assert (board.name, board.title) == ("corruptions", "CIFAR-10, common corruptions")
        (row,) = listing.search(session, board, listing.View())
        assert (row.rank, row.entry.autoattack_accuracy, row.entry.mean_corruption_error) == (1, None, 0.4)
        assert row.entry.robust_accuracy == pytest.approx(0.6)
        assert row.entry.evaluation is not None
        assert row.entry.evaluation.robust_interval == pytest.approx(wilson_interval(6000, 10_000))


def test_a_re_evaluation_keeps_what_was_said_of_the_model(database: Database) -> None:
    weights = train(database, "a")
    said = {"title": "A Paper", "authors": "Ada", "extra_data": True, "venue": "ICML 2024"}
    measure(database, weights, robust=200, publication=said)
    measure(database, weights, robust=190)
    with database.reading() as session:
        entry = board_ranking.entries_of(session, 1)["Linf"].entry
    assert (entry.name, entry.authors, entry.extra_data, entry.year) == ("A Paper", "Ada", True, 2024)
    assert entry.autoattack_accuracy == 190 / 360


def at_once(*what: Callable[[], object]) -> None:
    """In threads that begin together; what one raises is raised here."""
    barrier = threading.Barrier(len(what))

    def run(one: Callable[[], object]) -> object:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(what)) as pool:
        for future in [pool.submit(run, one) for one in what]:
            future.result()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_of_evaluations_that_end_at_once_the_lowest_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that waits for the other's commit sees what it wrote."""
    weights = train(database, "a")
    measure(database, weights, robust=300)
    stand = placing.place_on_board

    def slow(*arguments: Any) -> Entry | None:
        found = stand(*arguments)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(placing, "place_on_board", slow)
    results = [100, 150, 120, 110]
    at_once(*(lambda robust=robust: measure(database, weights, robust=robust) for robust in results))  # type: ignore[misc]
    with database.reading() as session:
        assert board_ranking.entries_of(session, 1)["Linf"].entry.robust_accuracy == 100 / 360


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_bounds_that_go_at_once_leave_nothing_behind(database: Database) -> None:
    weights = train(database, "a")
    ids = [measure(database, weights, robust=robust, provisional=True) for robust in (200, 190)]
    with database.writing() as session:
        for job_id in ids:
            jobs.request_cancel(session, job_id)
    claims = []
    with database.reading() as session:
        for job_id in ids:
            job = jobs.get(session, job_id)
            claims.append(jobs.Claim(job_id, job.attempt, job.spec, None, 0.0))

    def end(claim: jobs.Claim) -> None:
        with database.writing() as session:
            jobs.end_cancelled(session, claim)

    at_once(*(lambda claim=claim: end(claim) for claim in claims))  # type: ignore[misc]
    with database.reading() as session:
        assert board_ranking.boards(session) == []


def test_an_entry_keeps_its_number_when_its_bound_goes_and_another_stands(database: Database) -> None:
    weights = train(database, "a")
    ids = [measure(database, weights, robust=robust, provisional=True) for robust in (190, 200)]
    with database.reading() as session:
        before = board_ranking.entries_of(session, 1)["Linf"].entry
        job = jobs.get(session, ids[0])
        claim = jobs.Claim(ids[0], job.attempt, job.spec, None, 0.0)
    with database.writing() as session:
        jobs.fail(session, claim, FailureCode.TIMED_OUT, "it took too long")
    with database.reading() as session:
        after = board_ranking.entries_of(session, 1)["Linf"].entry
    assert (after.id, after.robust_accuracy, before.robust_accuracy) == (before.id, 200 / 360, 190 / 360)


def test_plain_training_is_not_called_by_the_loss_whose_robust_part_it_leaves_out(database: Database) -> None:
    for number, (objective, loss) in enumerate(
        (
            (TradesObjective(loss="trades", kl_weight=0), None),
            (GklObjective(ce_weight=0, wmse_weight=0), None),
            (TradesObjective(loss="trades"), "trades"),
            (GklObjective(ce_weight=0), "gkl"),
            (CrossEntropyObjective(loss="ce"), "ce"),
        )
    ):
        spec = digits().model_copy(update={"objective": objective})
        with database.writing() as session:
            job = jobs.create(session, spec)
            assert leaderboard.record_model(session, job, spec, sha(f"weights {number}")).loss == loss
