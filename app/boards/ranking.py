"""Boards and the ranks of the entries on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, func, not_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload

from app.boards.names import BoardKind, kind_of_board, threat_model_of_board
from app.boards.teachers import Teacher, teachers_of
from app.core.errors import NotFound
from app.db.cursors import Key
from app.db.tables import Entry, Evaluation
from gkl.catalog import DATASETS
from gkl.spec import format_epsilon

# For more entries than this, computing the ranks of the whole board is faster.
_MOST_CHOSEN = 1000


@dataclass(frozen=True)
class Board:
    """A ranking of models on one data set: under one threat model, under corruptions, or on clean images."""

    dataset: str
    name: str
    num_entries: int

    @property
    def norm(self) -> str | None:
        threat_model = threat_model_of_board(self.dataset, self.name)
        return None if threat_model is None else threat_model.norm

    @property
    def epsilon(self) -> float | None:
        threat_model = threat_model_of_board(self.dataset, self.name)
        return None if threat_model is None else threat_model.epsilon

    @property
    def kind(self) -> BoardKind:
        return kind_of_board(self.dataset, self.name)

    @property
    def has_points(self) -> bool:
        """Whether its figure counts test images, each of which an entry gets right or wrong: a mean over corruptions
        does not."""
        return self.kind != "corruptions"

    @property
    def title(self) -> str:
        dataset = DATASETS[self.dataset].title
        if self.kind == "clean":
            return f"{dataset}, clean images"
        if self.norm is None or self.epsilon is None:
            return f"{dataset}, common corruptions{' in 3D' if self.name == 'corruptions_3d' else ''}"
        return f"{dataset}, {self.norm} {format_epsilon(self.epsilon)}"


def boards(session: Session) -> list[Board]:
    """The boards that have an entry, by data set and name."""
    rows = session.execute(
        select(Entry.dataset, Entry.board, func.count())
        .group_by(Entry.dataset, Entry.board)
        .order_by(Entry.dataset, Entry.board)
    )
    return [Board(*row) for row in rows]


def board(session: Session, dataset: str, name: str) -> Board:
    """The board of this name.

    Raises:
        NotFound: there is no entry on it yet.
    """
    count = session.scalar(select(func.count()).select_from(Entry).where(Entry.dataset == dataset, Entry.board == name))
    if not count:
        raise NotFound(f"there is no leaderboard {dataset}/{name}; /api/v1/leaderboards lists all leaderboards")
    return Board(dataset, name, count)


def revision(session: Session, dataset: str, name: str) -> str:
    """A text that differs whenever an entry of the board has changed, in whatever order the changes were committed."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    changed = func.extract("epoch", Entry.changed_at) if is_postgresql else Entry.changed_at
    line = cast(Entry.id, Text).concat(" ").concat(cast(changed, Text))
    # The database builds the text: ten times as fast as fetching the rows.
    lines = (
        select(line.label("line"), Entry.id)
        .where(Entry.dataset == dataset, Entry.board == name)
        .order_by(Entry.id)
        .subquery()
    )
    text = func.aggregate_strings(lines.c.line, "\n")
    if is_postgresql:
        return session.scalar(select(func.md5(text.aggregate_order_by(lines.c.id)))) or ""
    return hashlib.sha256((session.scalar(select(text)) or "").encode()).hexdigest()


@dataclass(frozen=True)
class Ranked:
    """An entry and its rank; None if it is provisional, withdrawn, barred by its flags, or has no accuracy."""

    rank: int | None
    entry: Entry
    band: tuple[int, int] | None = None
    """The ranks that it may have, if requested: see `app.boards.rank_bands`."""
    teacher: Teacher | None = None
    """The network that it learned from, if it was distilled here."""


# With equal robust accuracy: the higher clean accuracy first, then the older entry. At the end come entries without an
# accuracy, then those barred by their flags, then withdrawn ones. On a board of clean accuracy no entry has a robust
# one, so that the clean one decides.
BEST_FIRST = (
    Key(Entry.tier, is_optional=False),
    Key(Entry.robust_accuracy, falls=True),
    Key(Entry.clean_accuracy, falls=True),
    Key(Entry.id, is_optional=False),
)


def ranked_by(found: Board) -> InstrumentedAttribute[float | None]:
    """The column of the accuracy by which a board's entries rank."""
    return Entry.clean_accuracy if found.kind == "clean" else Entry.robust_accuracy


def has_rank(found: Board) -> ColumnElement[bool]:
    return and_(Entry.tier == 0, ranked_by(found).is_not(None), not_(Entry.is_provisional))


def leader(session: Session, found: Board) -> Ranked | None:
    """The first entry of a board; a provisional one only if there is no final one."""
    first = select(Entry).where(is_on(found)).order_by(*orders(BEST_FIRST)).limit(1)
    ranked = session.scalars(first.where(has_rank(found))).first()
    if ranked is not None:
        return Ranked(1, ranked)
    other = session.scalars(first).first()
    return None if other is None else Ranked(None, other)


def count_ranked(session: Session, found: Board) -> int:
    return session.scalar(select(func.count()).select_from(Entry).where(is_on(found), has_rank(found))) or 0


def ranked_figures(session: Session, found: Board) -> list[tuple[int, float, int]]:
    """Entry id, accuracy and number of test images of each ranked entry, the first rank first."""
    query = select(Entry.id, ranked_by(found), Entry.num_points).where(is_on(found), has_rank(found))
    rows = session.execute(query.order_by(*orders(BEST_FIRST)))
    return [(entry_id, accuracy, points) for entry_id, accuracy, points in rows if accuracy is not None]


def best_by_year(session: Session, found: Board) -> dict[int, float]:
    """The highest accuracy on a board, by year."""
    query = (
        select(Entry.year, func.max(ranked_by(found)))
        .where(is_on(found), has_rank(found), Entry.year.is_not(None), Entry.clean_accuracy.is_not(None))
        .group_by(Entry.year)
        .order_by(Entry.year)
    )
    return {year: best for year, best in session.execute(query) if year is not None and best is not None}


def get(session: Session, entry_id: int) -> Ranked:
    """The entry of this id, with its rank.

    Raises:
        NotFound: there is no such entry.
    """
    options = (
        joinedload(Entry.model),
        joinedload(Entry.report),
        joinedload(Entry.evaluation).selectinload(Evaluation.attacks),
    )
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).options(*options)).first()
    if entry is None:
        raise NotFound(f"there is no entry {entry_id}")
    return Ranked(rank_of(session, entry), entry, teacher=teachers_of(session, [entry]).get(entry.id))


def rank_of(session: Session, entry: Entry) -> int | None:
    return ranks_of(session, Board(entry.dataset, entry.board, 0), [entry.id]).get(entry.id)


def entries_of(session: Session, model_id: int) -> dict[str, Ranked]:
    """A model's entry on each of its boards, by the board's name."""
    found = session.scalars(select(Entry).where(Entry.model_id == model_id).order_by(Entry.board)).all()
    teachers = teachers_of(session, found)
    return {entry.board: Ranked(rank_of(session, entry), entry, teacher=teachers.get(entry.id)) for entry in found}


def is_on(found: Board) -> ColumnElement[bool]:
    return and_(Entry.dataset == found.dataset, Entry.board == found.name)


def ranks_of(session: Session, found: Board, chosen: Sequence[int]) -> dict[int, int]:
    """The ranks on the whole board of the chosen entries; entries without a rank are left out."""
    place = func.row_number().over(order_by=orders(BEST_FIRST)).label("rank")
    ranks = select(Entry.id, place).where(is_on(found), has_rank(found)).subquery()
    query = select(ranks.c.id, ranks.c.rank)
    if len(chosen) <= _MOST_CHOSEN:
        query = query.where(ranks.c.id.in_(list(chosen)))
    rows = session.execute(query.execution_options(yield_per=1000))
    return {entry_id: rank for entry_id, rank in rows}  # noqa: C416 - rows are no pairs to a type checker


def orders(keys: Sequence[Key]) -> list[Any]:
    return [key.order for key in keys]
