"""The teachers of entries: columns, files, answers of the API; on both databases."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.boards import exports, listing, ranking
from app.boards.exports import FORMATS
from app.boards.listing import View
from app.boards.ranking import Board
from app.db.database import Database
from app.jobs import job_files
from app.store import StoredFile
from gkl.answers import EntryView
from gkl.client.board import Board as ClientBoard
from tests.app.boards.test_clean_boards import measure_clean
from tests.app.boards.test_results import measure, sha, train

BOARD = Board("digits", "clean", 0)


@pytest.fixture
def family(database: Database) -> None:
    """A teacher with a student on the board `clean`; the teacher alone is on the board of attacks too. And a student of
    a network that this service has not measured."""
    teacher = train(database, "teacher")
    student = train(database, "student", teacher=teacher, teacher_accuracy=0.975)
    orphan = train(database, "orphan", teacher=sha("elsewhere"), teacher_accuracy=0.8)
    for weights, clean in ((teacher, 351), (student, 340), (orphan, 330)):
        measure_clean(database, weights, clean)
    measure(database, teacher, robust=200)


def test_a_teacher_is_found_by_its_weights(database: Database, family: None) -> None:
    with database.reading() as session:
        teacher, student, orphan = listing.search(session, BOARD, View())
    assert teacher.teacher is None
    assert student.teacher is not None
    assert (student.teacher.title, student.teacher.clean_accuracy) == ("SmallCNN", 0.975)
    assert (student.teacher.model_id, student.teacher.entry_id) == (1, teacher.entry.id)
    assert student.teacher.path == f"/entries/{teacher.entry.id}"
    assert orphan.teacher is not None
    assert (orphan.teacher.weights_sha256, orphan.teacher.path) == (sha("elsewhere"), None)


def test_a_teacher_that_is_not_on_the_board_is_shown_by_its_model(database: Database) -> None:
    teacher = train(database, "teacher")
    student = train(database, "student", teacher=teacher)
    measure(database, student, robust=100)
    measure_clean(database, teacher, 350)
    with database.reading() as session:
        (row,) = listing.search(session, Board("digits", "Linf", 0), View())
    assert row.teacher is not None
    assert row.teacher.path == "/models/1"


def test_the_board_sorts_by_teacher(database: Database, family: None) -> None:
    def names(**view: Any) -> list[str]:
        found, cursor = [], None
        while True:
            with database.reading() as session:
                rows, cursor = listing.page(session, BOARD, View(**view), limit=1, cursor=cursor)
            found += [row.entry.name for row in rows]
            if cursor is None:
                return found

    assert names(sort="teacher_clean") == ["student", "orphan", "teacher"]
    assert names(sort="-teacher_clean") == ["orphan", "student", "teacher"]
    assert names(sort="teacher") == ["student", "orphan", "teacher"]


def test_the_columns_are_usual_on_clean_boards_only() -> None:
    both = {"teacher", "teacher_clean"}
    assert both <= set(View().columns_on(BOARD))
    assert "parameters" in View().columns_on(BOARD)
    assert "robust" not in View(columns=list(listing.COLUMNS)).columns_on(BOARD)
    attacked = Board("digits", "Linf", 0)
    assert not both & set(View().columns_on(attacked))
    assert both <= set(View(columns=list(listing.COLUMNS)).columns_on(attacked))


def test_files_and_answers_have_the_teacher(database: Database, client: TestClient, family: None) -> None:
    with database.reading() as session:
        board = ranking.board(session, "digits", "clean")
    text = "".join(exports.pieces(database, board, View(), FORMATS["csv"], {}))
    rows = [(row["name"], row["teacher"], row["teacher_clean"]) for row in csv.DictReader(io.StringIO(text))]
    assert rows == [("teacher", "", ""), ("student", "SmallCNN", "97.5"), ("orphan", "SmallCNN", "80")]
    found = client.get("/api/v1/leaderboards/digits/clean").json()["entries"]
    assert found[0]["teacher"] is None
    assert found[1]["teacher"] == {
        "architecture": "small_cnn",
        "title": "SmallCNN",
        "weights_sha256": sha("teacher"),
        "weights_key": "",
        "clean": 0.975,
        "weights_id": 1,
        "entry_id": found[0]["id"],
    }
    assert client.get(f"/api/v1/entries/{found[1]['id']}").json()["teacher"] == found[1]["teacher"]
    model = client.get("/api/v1/models/2").json()
    assert model["teacher"] == found[1]["teacher"] | {"entry_id": None}
    assert model["entries"][0]["teacher"] == found[1]["teacher"]
    about = client.get("/api/v1/leaderboards").json()
    frame = (
        pytest.importorskip("pandas") and ClientBoard(about, [EntryView.model_validate(e) for e in found]).to_frame()
    )
    assert frame["teacher_clean"].tolist()[1:] == [0.975, 0.8]


def test_a_cached_board_changes_when_a_teacher_becomes_known(client: TestClient, database: Database) -> None:
    student = train(database, "student", teacher=sha("sent"))
    measure_clean(database, student, 340)
    before = client.get("/api/v1/leaderboards/digits/clean")
    assert before.json()["entries"][0]["teacher"]["weights_id"] is None
    with database.writing() as session:
        job_files.record_upload(session, StoredFile(sha("sent"), 10), "torch", "Ada")
    measure(database, sha("sent"), robust=100)
    after = client.get("/api/v1/leaderboards/digits/clean", headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.json()["entries"][0]["teacher"]["weights_id"] == 2
