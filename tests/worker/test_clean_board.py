"""A teacher and its student, trained and evaluated on clean images by a real worker, beside each other on a board."""

from __future__ import annotations

import threading

import pytest

from app import jobs
from app.boards import listing, rank_bands, ranking
from app.boards.listing import View
from app.core.recent import Recent
from app.core.settings import Settings
from app.db.database import Database
from app.evidence.compare import comparison_of
from app.store import ArtifactStore
from gkl.recipes.distillation import digits_gkl, digits_teacher
from gkl.spec import DistillSpec
from tests.databases import either_database
from worker.tasks import Worker


@pytest.fixture
def worker(settings: Settings, database: Database, store: ArtifactStore) -> Worker:
    return Worker(settings, database, store, name="test", stopping=threading.Event())


@either_database
def test_a_student_is_shown_beside_its_teacher(worker: Worker, database: Database) -> None:
    teacher = digits_teacher().model_copy(update={"name": "Teacher", "epochs": 3})
    with database.writing() as session:
        sent = jobs.create(session, teacher).id
        changes = {"name": "Student", "epochs": 1, "teacher": {"job": sent}}
        jobs.create(session, DistillSpec.model_validate(digits_gkl().model_dump() | changes))
    while worker.run_next() is not None:
        pass
    with database.reading() as session:
        board = ranking.board(session, "digits", "clean")
        rows = {row.entry.name: row for row in listing.search(session, board, View())}
        bands = rank_bands.of_board(session, Recent(10), board, ranking.revision(session, "digits", "clean"))
    assert set(rows) == {"Teacher", "Student"}
    taught, other = rows["Student"], rows["Teacher"]
    assert other.teacher is None
    assert taught.teacher is not None
    assert (taught.teacher.title, taught.teacher.entry_id) == ("SmallCNN", other.entry.id)
    assert taught.teacher.clean_accuracy == pytest.approx(other.entry.clean_accuracy)
    assert (taught.entry.robust_accuracy, taught.entry.is_barred) == (None, False)
    assert set(bands) == {taught.entry.id, other.entry.id}
    (pair,) = comparison_of(database, [other.entry.id, taught.entry.id]).pairs
    assert pair.is_paired
    assert pair.difference == pytest.approx((other.entry.clean_accuracy or 0) - (taught.entry.clean_accuracy or 0))
