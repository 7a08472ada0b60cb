"""Boards of clean accuracy: what is placed on them, in which order, and in which files; on both databases."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select

from app.boards import chart_points, exports, listing, placing, rank_bands, ranking, robust_points, robustbench_export
from app.boards.board_points import board_points
from app.boards.exports import FORMATS
from app.boards.listing import View
from app.boards.ranking import Board
from app.core.recent import Recent
from app.db.database import Database
from app.db.tables import Entry, Evaluation
from app.maintenance import upgrading
from app.store import ArtifactStore
from gkl.outcome import Flag
from gkl.spec import Evaluation as EvaluationSpec
from tests.app.boards.test_results import measure, sha, train
from tests.app.evidence.test_compare import certificate
from tests.databases import either_database

CLEAN = EvaluationSpec(protocol="clean")
BOARD = Board("digits", "clean", 0)


def measure_clean(database: Database, weights: str, clean: int, **others: Any) -> int:
    return measure(database, weights, robust=None, clean=clean, evaluation=CLEAN, **others)


def shown(database: Database, **view: Any) -> list[tuple[int | None, str]]:
    with database.reading() as session:
        found = listing.search(session, BOARD, View(**view))
        assert listing.count(session, BOARD, View(**view)) == len(found)
        return [(row.rank, row.entry.name) for row in found]


@pytest.fixture
def three(database: Database) -> None:
    for name, clean in (("low", 300), ("high", 350), ("middle", 320)):
        measure_clean(database, train(database, name), clean)


def test_a_complete_clean_evaluation_ranks_by_clean_accuracy(database: Database, three: None) -> None:
    assert shown(database) == [(1, "high"), (2, "middle"), (3, "low")]
    assert shown(database, sort="-rank") == [(3, "low"), (2, "middle"), (1, "high")]
    assert shown(database, sort="-clean") == [(3, "low"), (2, "middle"), (1, "high")]
    assert shown(database, sort="name", q="i") == [(1, "high"), (2, "middle")]
    with database.reading() as session:
        (board,) = ranking.boards(session)
        assert (board.name, board.kind, board.num_entries, board.title) == ("clean", "clean", 3, "Digits, clean images")
        leader = ranking.leader(session, board)
        assert leader is not None
        assert (leader.entry.name, leader.entry.ranked_accuracy) == ("high", 350 / 360)
        assert (leader.entry.robust_accuracy, leader.entry.autoattack_accuracy) == (None, None)
        assert ranking.best_by_year(session, board) == {leader.entry.year: 350 / 360}


def test_pages_of_the_board_follow_each_other(database: Database, three: None) -> None:
    for sort, names in (("rank", ["high", "middle", "low"]), ("clean", ["high", "middle", "low"])):
        cursor, found = None, []
        while True:
            with database.reading() as session:
                rows, cursor = listing.page(session, BOARD, View(sort=sort), limit=1, cursor=cursor)
            found += [row.entry.name for row in rows]
            if cursor is None:
                break
        assert found == names


def test_some_images_or_an_attack_give_no_place_there(database: Database) -> None:
    weights = train(database, "a")
    job_id = measure_clean(database, weights, 9, points=10)
    measure(database, weights, robust=200)
    with database.reading() as session:
        assert [board.name for board in ranking.boards(session)] == ["Linf"]
        partial = session.scalars(select(Evaluation).where(Evaluation.job_id == job_id)).one()
        assert placing.why_not_ranked(partial) == "10 of 360 points: not ranked"


def test_measuring_again_cannot_raise_a_model(database: Database) -> None:
    weights = train(database, "a")
    for clean in (340, 330, 350):
        measure_clean(database, weights, clean)
    with database.reading() as session:
        (entry,) = session.scalars(select(Entry)).all()
        assert entry.clean_accuracy == 330 / 360


@either_database
def test_only_flags_that_concern_clean_images_take_the_rank(database: Database) -> None:
    for number, name in enumerate(("probabilities_as_logits", "dynamic", "batch_dependent", "randomized")):
        flag = Flag.model_validate({"name": name, "sentence": "It is so."})
        measure_clean(database, train(database, name), 350 - number, flags=[flag])
    assert shown(database) == [
        (1, "probabilities_as_logits"),
        (2, "dynamic"),
        (None, "batch_dependent"),
        (None, "randomized"),
    ]
    with database.reading() as session:
        entries = {entry.name: entry for entry in session.scalars(select(Entry))}
        assert [entries[name].unreliable for name in ("dynamic", "randomized")] == [False, True]
        evaluations = [entries[name].evaluation for name in ("dynamic", "randomized")]
        assert [each is not None and each.is_unreliable for each in evaluations] == [False, True]
        assert "make its answers the same each time" in (entries["randomized"].unrankable_reason or "")


def test_evaluations_of_an_earlier_version_appear_after_upgrading(database: Database, three: None) -> None:
    with database.writing() as session:
        session.execute(delete(Entry))
    upgrading.upgrade(database)
    assert shown(database) == [(1, "high"), (2, "middle"), (3, "low")]


def test_bands_and_hard_images_come_from_the_answers(database: Database, store: ArtifactStore, tmp_path: Path) -> None:
    right = np.random.default_rng(1).random((3, 360)) < [[0.9], [0.88], [0.5]]
    for number, each in enumerate(right):
        stored = store.put(certificate(tmp_path / f"{number}", each))
        measure_clean(database, train(database, f"{number}"), int(each.sum()), certificate_sha256=stored.sha256)
    assert not robust_points.record_missing(database, store, set())
    with database.reading() as session:
        bands = rank_bands.of_board(session, Recent(10), BOARD, "now")
        assert [bands[number] for number in (1, 2, 3)] == [(1, 2), (1, 2), (3, 3)]
        found = board_points(session, BOARD, "hardest", offset=0, limit=5)
    lost = (~right).sum(axis=0)
    assert found.counts == np.bincount(lost, minlength=4).tolist()
    assert found.listed[0].lost_by == lost.max()


def test_the_chart_draws_accuracy_against_parameters(
    database: Database, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.writing() as session:
        for entry, number in zip(
            session.scalars(select(Entry).order_by(Entry.id)), (10_000, 90_000, None), strict=True
        ):
            entry.num_parameters = number
    for most in (1000, 0):
        monkeypatch.setattr(chart_points, "_MOST_DOTS", most)
        with database.reading() as session:
            points = chart_points.points(session, BOARD, View())
        drawn = [(point.name, point.across, point.accuracy) for point in points.by_accuracy]
        assert drawn == [("high", 90_000, 350 / 360), ("low", 10_000, 300 / 360)]
        assert (points.count, points.count_of_view, points.count_with_year) == (2, 3, 2)


def export(database: Database, kind: str, **view: Any) -> str:
    with database.reading() as session:
        board = ranking.board(session, "digits", "clean")
    return "".join(exports.pieces(database, board, View(**view), FORMATS[kind], {}))


def test_files_of_the_board_have_no_robust_figure(database: Database, client: TestClient, three: None) -> None:
    rows = list(csv.DictReader(io.StringIO(export(database, "csv"))))
    assert (rows[0]["rank"], rows[0]["name"], rows[0]["clean"]) == ("1", "high", "97.22222222")
    without = {"robust", "autoattack", "external", "reported", "mce", "robust_3d", "epsilon"}
    assert not without & set(rows[0])
    assert {"teacher", "teacher_clean", "parameters"} <= set(rows[0])
    assert "robust" not in export(database, "csv", columns=["robust", "clean"])
    table = export(database, "latex")
    assert r"\# & Model & Architecture & Parameters & Clean & Teacher & Teacher, clean & Venue \\" in table
    assert "Robust" not in export(database, "latex", columns=["robust", "clean"])
    entry = json.loads(export(database, "json"))["entries"][0]
    assert (entry["clean"]["accuracy"], entry["robust"], entry["autoattack"]) == (350 / 360, None, None)
    assert export(database, "bibtex").count("@misc") == 3


def test_robustbench_has_no_such_format(database: Database, client: TestClient, three: None, tmp_path: Path) -> None:
    answer = client.get("/api/v1/leaderboards/digits/clean/export/robustbench")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "The board digits/clean is about clean accuracy, for which RobustBench has no format; take csv or json.",
    )
    answer = client.get("/api/v1/entries/1/model_info.json")
    assert answer.status_code == 409
    assert "is about clean accuracy, for which RobustBench has no format" in answer.json()["detail"]
    with database.reading() as session:
        assert robustbench_export.export_to(session, tmp_path) == 0


def test_the_api_shows_the_board(client: TestClient, three: None) -> None:
    (summary,) = client.get("/api/v1/leaderboards").json()
    assert (summary["threat_model"], summary["norm"], summary["epsilon"]) == ("clean", None, None)
    board = client.get("/api/v1/leaderboards/digits/clean?limit=2").json()
    assert [(entry["rank"], entry["name"]) for entry in board["entries"]] == [(1, "high"), (2, "middle")]
    assert [entry["robust"] for entry in board["entries"]] == [None, None]
    assert board["entries"][0]["rank_band"] is not None
    rest = client.get("/api/v1/leaderboards/digits/clean", params={"cursor": board["next_cursor"]}).json()
    assert [(entry["rank"], entry["name"]) for entry in rest["entries"]] == [(3, "low")]
    assert client.get("/api/v1/entries/1/classes").status_code == 404
    refused = client.post("/api/v1/entries/1/attacks?name=x&submitter=Ada", content=b"x" * 100)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


@either_database
def test_an_attacked_model_and_a_clean_one_share_no_certificate(database: Database) -> None:
    weights = train(database, "a")
    measure(database, weights, robust=200, clean=351)
    measure_clean(database, weights, 350)
    with database.reading() as session:
        entries = ranking.entries_of(session, 1)
    assert {name: row.rank for name, row in entries.items()} == {"Linf": 1, "clean": 1}
    assert entries["clean"].entry.clean_accuracy == 350 / 360
    assert entries["Linf"].entry.clean_accuracy == 351 / 360
    assert sha("a") == weights
