"""What a student learned: its figures on a board beside those of its teacher."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.boards.ranking import Board, Ranked
from app.boards.teachers import Teacher
from app.db.tables import Entry
from gkl.catalog import ARCHITECTURES, num_parameters


@dataclass(frozen=True)
class Figure:
    """An accuracy of both, as shares; None if it is not known."""

    title: str
    teacher: float | None
    student: float | None
    is_bound: bool = False
    """Whether one of them is provisional, and so an upper bound."""

    @property
    def difference(self) -> float | None:
        """The student's minus the teacher's; None if that is not known."""
        if self.teacher is None or self.student is None or self.is_bound:
            return None
        return self.student - self.teacher


@dataclass(frozen=True)
class Lesson:
    teacher: Teacher
    entry: Entry | None
    """The teacher's entry on the same board."""
    num_parameters: int | None
    """The teacher's."""
    figures: list[Figure]


def lesson_of(session: Session, row: Ranked, board: Board) -> Lesson | None:
    """The lesson of an entry; None if its model had no teacher."""
    teacher, student = row.teacher, row.entry
    if teacher is None:
        return None
    entry = None if teacher.entry_id is None else session.get(Entry, teacher.entry_id)
    clean = teacher.clean_accuracy if entry is None else entry.clean_accuracy
    figures = [Figure("Clean accuracy", clean, student.clean_accuracy)]
    if entry is not None and board.kind != "clean":
        is_bound = entry.is_provisional or student.is_provisional
        title = "Robust accuracy" if board.kind == "attacks" else "Mean corrupted accuracy"
        figures.append(Figure(title, entry.robust_accuracy, student.robust_accuracy, is_bound))
        if entry.external_accuracy is not None or student.external_accuracy is not None:
            figures.append(Figure("AutoAttack", entry.autoattack_accuracy, student.autoattack_accuracy, is_bound))
    parameters = None
    if teacher.architecture in ARCHITECTURES:
        parameters = num_parameters(teacher.architecture, student.dataset)
    return Lesson(teacher, entry, parameters, figures)
