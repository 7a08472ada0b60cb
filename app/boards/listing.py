"""A view of a board: which entries to show, with which columns, in which order."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import ColumnElement, Text, and_, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.boards.names import BoardKind
from app.boards.ranking import BEST_FIRST, Board, Ranked, is_on, orders, ranks_of
from app.boards.teachers import teachers_of
from app.db.cursors import Key, cursor_of, rows_after, values_of
from app.db.tables import Entry, Model
from gkl.answers import Provenance
from gkl.spec import format_epsilon

PAGE_SIZE = 200


@dataclass(frozen=True)
class Column:
    """A column that a board can show."""

    title: str
    by: ColumnElement[Any] | Any
    """What it is sorted by; None if it cannot be sorted by."""
    falls: bool = False
    """Whether the largest values come first."""
    is_number: bool = False
    only: tuple[BoardKind, ...] = ("attacks", "corruptions", "clean")
    """The kinds of boards that have this column."""

    @property
    def is_sortable(self) -> bool:
        return self.by is not None


_DATA_ORDER = case((Entry.extra_data.is_(True), 2), else_=0) + case((Entry.synthetic_data, 1), else_=0)

_ROBUST: tuple[BoardKind, ...] = ("attacks", "corruptions")


def _of_model(column: InstrumentedAttribute[Any]) -> Any:
    """A value of an entry's model; null for an entry without one."""
    return select(column).where(Model.id == Entry.model_id).correlate(Entry).scalar_subquery()


COLUMNS: dict[str, Column] = {
    "band": Column("Rank band", None, is_number=True, only=("attacks", "clean")),
    "clean": Column("Clean", Entry.clean_accuracy, falls=True, is_number=True),
    "robust": Column("Robust", Entry.robust_accuracy, falls=True, is_number=True, only=_ROBUST),
    "autoattack": Column("AutoAttack", Entry.autoattack_accuracy, falls=True, is_number=True, only=("attacks",)),
    "external": Column("External", Entry.external_accuracy, falls=True, is_number=True, only=("attacks",)),
    "reported": Column("Reported", Entry.reported_accuracy, falls=True, is_number=True, only=_ROBUST),
    "mce": Column("mCE (Hendrycks)", Entry.mean_corruption_error, is_number=True, only=("corruptions",)),
    "mce_robustbench": Column(
        "mCE (RobustBench)", Entry.robustbench_mean_corruption_error, is_number=True, only=("corruptions",)
    ),
    "robust_3d": Column(
        "Robust (3D)", Entry.corruptions_3d_accuracy, falls=True, is_number=True, only=("corruptions",)
    ),
    "mce_3d": Column("mCE (3D)", Entry.corruptions_3d_error, is_number=True, only=("corruptions",)),
    "architecture": Column("Architecture", Entry.architecture),
    "parameters": Column("Parameters", Entry.num_parameters, is_number=True),
    "data": Column("Extra data", _DATA_ORDER),
    "loss": Column("Loss", Entry.loss),
    "teacher": Column("Teacher", _of_model(Model.teacher_architecture)),
    "teacher_clean": Column("Teacher, clean", _of_model(Model.teacher_accuracy), falls=True, is_number=True),
    "epsilon": Column("Epsilon", Entry.epsilon, is_number=True, only=_ROBUST),
    "venue": Column("Venue", Entry.venue_series),
    "year": Column("Year", Entry.year, falls=True, is_number=True),
    "provenance": Column("Provenance", Entry.provenance),
    "added": Column("Added", Entry.created_at, falls=True),
}
SORT_KEYS = ("rank", "name", *(name for name, column in COLUMNS.items() if column.is_sortable))
USUAL_COLUMNS = (
    *("band", "clean", "robust", "autoattack", "mce", "mce_robustbench", "robust_3d", "mce_3d"),
    *("architecture", "parameters", "data", "venue", "provenance"),
)
_USUAL_ON_CLEAN = ("teacher", "teacher_clean")
"""Further usual columns of boards of clean accuracy, where students are compared with their teachers."""
_OF_IMAGENET = ("mce_robustbench", "robust_3d", "mce_3d")


class View(BaseModel):
    """Which entries of a board, in which order: the query string of its page, its exports and its API."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    q: str | None = Field(default=None, max_length=200)
    """Words that must all occur in the name, model id, authors, architecture, venue or footnote."""

    family: str | None = Field(default=None, max_length=100)
    """Family of the architecture, such as 'WideResNet'."""

    data: Literal["none", "extra", "synthetic"] | None = None
    """Training data: only the data set, also extra real images, also generated images."""

    epsilon: str | None = Field(default=None, max_length=32)
    """Budget as entries state it: '8/255'."""

    venue: str | None = Field(default=None, max_length=200)
    """Venue without its year: 'NeurIPS'."""

    year: int | None = Field(default=None, ge=1900, le=2999)

    provenance: Provenance | None = None
    """'verified': measured here; 'imported': from RobustBench; 'reported': by the authors alone."""

    unreliable: Literal["yes", "no"] | None = None
    """Whether there is a reason not to trust the number."""

    loss: str | None = Field(default=None, max_length=50)
    """The loss of its training, if known: 'GKL'."""

    sort: str = "rank"
    """A column, or 'rank' or 'name'; '-' before it reverses the order."""

    columns: list[str] = Field(default_factory=list, max_length=50)
    """Columns of the page and of exports; by default the usual ones."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        # Without JavaScript, a form sends an empty text for each field without a choice.
        if not isinstance(values, dict):
            return values
        if any("\0" in text for text in values.values() if isinstance(text, str)):
            raise ValueError("a view's address must not contain NUL; remove it")
        return {k: v for k, v in values.items() if v not in ("", [""])}

    @field_validator("sort")
    @classmethod
    def _known_key(cls, value: str) -> str:
        if value.removeprefix("-") not in SORT_KEYS:
            raise ValueError(f"must be one of {', '.join(SORT_KEYS)}, with or without '-' before it")
        return value

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in COLUMNS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a column; the columns are {', '.join(COLUMNS)}")
        return [name for name in COLUMNS if name in value]

    @property
    def sort_key(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def is_reversed(self) -> bool:
        return self.sort.startswith("-")

    @property
    def is_filtered(self) -> bool:
        return bool(self.model_dump(exclude={"sort", "columns", "page"}, exclude_none=True))

    def columns_on(self, found: Board) -> list[str]:
        """The columns to show, without those that this kind of board does not have."""
        # RobustBench has mCE and corruptions in 3D only for ImageNet, and its board of the latter has no other columns.
        left_out = _OF_IMAGENET if found.dataset != "imagenet" else _OF_IMAGENET[1:] * (found.name != "corruptions")
        usual = {*USUAL_COLUMNS, *(_USUAL_ON_CLEAN if found.kind == "clean" else ())}.difference(left_out)
        chosen = self.columns or usual
        return [name for name, column in COLUMNS.items() if name in chosen and found.kind in column.only]


def search(
    session: Session, found: Board, view: View, *, limit: int | None = None, offset: int = 0, cursor: str | None = None
) -> list[Ranked]:
    """The entries of a view in its order, each with its rank on the whole board.

    Args:
        session: to read with.
        found: the board.
        view: which entries, in which order.
        limit: how many at most.
        offset: how many to skip.
        cursor: from `page`, to begin after its last entry.

    Raises:
        Unprocessable: the cursor does not belong to this order.
    """
    return [row for row, _ in _listed(session, found, view, limit=limit, offset=offset, cursor=cursor)]


def page(
    session: Session, found: Board, view: View, *, limit: int, cursor: str | None = None
) -> tuple[list[Ranked], str | None]:
    """A page of a view's entries, and the cursor of the next page; None on the last page.

    Raises:
        Unprocessable: the cursor does not belong to this order.
    """
    listed = _listed(session, found, view, limit=limit + 1, cursor=cursor)
    following = cursor_of(view.sort, listed[limit - 1][1]) if len(listed) > limit else None
    return [row for row, _ in listed[:limit]], following


def _listed(
    session: Session, found: Board, view: View, *, limit: int | None, offset: int = 0, cursor: str | None
) -> list[tuple[Ranked, tuple[Any, ...]]]:
    """Each entry with the values by which it is sorted."""
    keys = _order(view)
    values = [key.by.label(f"key_{number}") for number, key in enumerate(keys)]
    query = select(Entry, *values).where(is_on(found), *conditions(view), *_behind(view, cursor))
    rows = session.execute(query.order_by(*orders(keys)).limit(limit).offset(offset)).all()
    ranks = ranks_of(session, found, [row[0].id for row in rows])
    teachers = teachers_of(session, [row[0] for row in rows])
    return [(Ranked(ranks.get(row[0].id), row[0], teacher=teachers.get(row[0].id)), tuple(row)[1:]) for row in rows]


def _behind(view: View, cursor: str | None) -> list[ColumnElement[bool]]:
    if cursor is None:
        return []
    keys = _order(view)
    return [rows_after(keys, values_of(cursor, view.sort, keys))]


def ids(session: Session, found: Board, view: View) -> array[int]:
    """The ids of all entries of a view, in its order."""
    query = select(Entry.id).where(is_on(found), *conditions(view)).order_by(*orders(_order(view)))
    return array("q", session.scalars(query.execution_options(yield_per=1000)))


def with_ids(session: Session, chosen: Sequence[int]) -> dict[int, Entry]:
    """The entries with these ids, by id; missing ones are left out."""
    return {entry.id: entry for entry in session.scalars(select(Entry).where(Entry.id.in_(list(chosen))))}


def count(session: Session, found: Board, view: View) -> int:
    """How many entries a view has."""
    query = select(func.count()).select_from(Entry).where(is_on(found), *conditions(view))
    return session.scalar(query) or 0


def choices(session: Session, found: Board) -> dict[str, list[Any]]:
    """The values that each filter of a board can have."""
    options: dict[str, set[Any]] = {name: set() for name in ("family", "venue", "year", "epsilon", "loss")}
    rows = session.execute(
        select(Entry.family, Entry.venue_series, Entry.year, Entry.epsilon, Entry.loss).where(is_on(found)).distinct()
    )
    for family, venue, year, epsilon, loss in rows:
        known = (family, venue or None, year, None if epsilon is None else format_epsilon(epsilon), loss)
        for name, value in zip(options, known, strict=True):
            if value is not None:
                options[name].add(value)
    return {name: sorted(values, reverse=name == "year") for name, values in options.items()}


def conditions(view: View) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for word in (view.q or "").split():
        fields = (Entry.name, Entry.slug, Entry.authors, Entry.architecture, Entry.venue, Entry.footnote)
        conditions.append(or_(*(field.icontains(word, autoescape=True) for field in fields)))
    exact = {Entry.family: view.family, Entry.venue_series: view.venue, Entry.year: view.year, Entry.loss: view.loss}
    conditions += [column == value for column, value in exact.items() if value is not None]
    if view.provenance is not None:
        conditions.append(Entry.provenance == view.provenance)
    if view.unreliable is not None:
        conditions.append(Entry.unreliable.is_(view.unreliable == "yes"))
    if view.data == "extra":
        conditions.append(Entry.extra_data.is_(True))
    elif view.data == "synthetic":
        conditions.append(Entry.synthetic_data.is_(True))
    elif view.data == "none":
        conditions.append(and_(Entry.extra_data.is_(False), Entry.synthetic_data.is_(False)))
    if view.epsilon is not None:
        epsilon = _number(view.epsilon)
        # A text that is not a number matches no entry.
        near = func.abs(Entry.epsilon - epsilon) < 1e-6 * epsilon if epsilon is not None else Entry.id.is_(None)
        conditions.append(near)
    return conditions


_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,30})?(?:e[-+]?[0-9]{1,3})?"


def _number(text: str) -> float | None:
    """As `format_epsilon` writes it."""
    found = re.fullmatch(rf"({_NUMBER})(?:/({_NUMBER}))?", text)
    if found is None or float(found[2] or 1) == 0:
        return None
    return float(found[1]) / float(found[2] or 1)


def _order(view: View) -> tuple[Key, ...]:
    if view.sort_key == "rank":
        if not view.is_reversed:
            return BEST_FIRST
        standing_first, robust, clean, first = BEST_FIRST
        return (standing_first, *(replace(key, falls=not key.falls) for key in (robust, clean, first)))
    by, falls = (
        (func.lower(Entry.name, type_=Text()), False)
        if view.sort_key == "name"
        else (
            COLUMNS[view.sort_key].by,
            COLUMNS[view.sort_key].falls,
        )
    )
    return (Key(by, falls=falls != view.is_reversed), *BEST_FIRST)
