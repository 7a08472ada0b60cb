"""The teachers of entries: the network that an entry's model learned from, and where that network is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, select, update
from sqlalchemy.orm import Session, aliased

from app.db.database import database_now
from app.db.tables import Entry, Model
from gkl.answers import TeacherView
from gkl.catalog import ARCHITECTURES

_AT_ONCE = 500

_Teacher = aliased(Model)
_TeacherEntry = aliased(Entry)
_IS_TEACHER = and_(
    _Teacher.weights_sha256 == Model.teacher_sha256,
    _Teacher.weights_key == Model.teacher_key,
    _Teacher.architecture == Model.teacher_architecture,
)


@dataclass(frozen=True)
class Teacher:
    """The network that a model learned from."""

    architecture: str
    weights_sha256: str
    weights_key: str
    clean_accuracy: float | None
    """Its accuracy on the data set's test images, measured when the student's training began."""
    model_id: int | None
    """The model, if this service knows it."""
    entry_id: int | None = None
    """Its entry on the board of the student's entry, if it has one."""

    @property
    def title(self) -> str:
        known = ARCHITECTURES.get(self.architecture)
        return self.architecture if known is None else known.title

    @property
    def path(self) -> str | None:
        """The path of its page; None if it has none."""
        if self.entry_id is not None:
            return f"/entries/{self.entry_id}"
        return None if self.model_id is None else f"/models/{self.model_id}"


_COLUMNS = (Model.teacher_architecture, Model.teacher_sha256, Model.teacher_key, Model.teacher_accuracy, _Teacher.id)


def teachers_of(session: Session, entries: Iterable[Entry]) -> dict[int, Teacher]:
    """The teacher of each entry whose model was distilled here, by the entry's id."""
    chosen = [entry.id for entry in entries if entry.model_id is not None]
    found: dict[int, Teacher] = {}
    on_same_board = and_(
        _TeacherEntry.model_id == _Teacher.id,
        _TeacherEntry.dataset == Entry.dataset,
        _TeacherEntry.board == Entry.board,
    )
    query = (
        select(Entry.id, *_COLUMNS, _TeacherEntry.id)
        .join(Model, Entry.model_id == Model.id)
        .outerjoin(_Teacher, _IS_TEACHER)
        .outerjoin(_TeacherEntry, on_same_board)
        .where(Model.teacher_sha256.is_not(None))
    )
    for start in range(0, len(chosen), _AT_ONCE):
        for entry_id, *values in session.execute(query.where(Entry.id.in_(chosen[start : start + _AT_ONCE]))):
            found[entry_id] = _made(values)
    return found


def teacher_of(session: Session, model: Model) -> Teacher | None:
    """The teacher of a model; None if it had none."""
    if model.teacher_sha256 is None:
        return None
    query = select(*_COLUMNS).outerjoin(_Teacher, _IS_TEACHER).where(Model.id == model.id)
    return _made(session.execute(query).one())


def _made(values: Sequence[Any]) -> Teacher:
    return Teacher(*values)


def note_new_model(session: Session, model: Model) -> None:
    """Mark the entries of a model's students as changed: they link to the model from now on."""
    students = select(Model.id).where(
        Model.teacher_sha256 == model.weights_sha256,
        Model.teacher_key == model.weights_key,
        Model.teacher_architecture == model.architecture,
    )
    session.execute(update(Entry).where(Entry.model_id.in_(students)).values(changed_at=database_now(session)))


def teacher_view(teacher: Teacher | None) -> TeacherView | None:
    if teacher is None:
        return None
    return TeacherView(
        architecture=teacher.architecture,
        title=teacher.title,
        weights_sha256=teacher.weights_sha256,
        weights_key=teacher.weights_key,
        clean=teacher.clean_accuracy,
        weights_id=teacher.model_id,
        entry_id=teacher.entry_id,
    )
