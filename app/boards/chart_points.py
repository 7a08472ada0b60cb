"""The points of a board's charts: the entries of a view, thinned out if they are very many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session

from app.boards.listing import View, conditions
from app.boards.ranking import BEST_FIRST, Board, has_rank, is_on, orders, ranked_by
from app.db.tables import Entry
from gkl.answers import Provenance

# More dots would cover each other: then only the best dot of each grid cell is drawn.
_MOST_DOTS = 1000
# The grid's cells: as many dots as fit beside each other in a chart.
_COLUMNS_OF_DOTS, _ROWS_OF_DOTS = 48, 30


@dataclass(frozen=True)
class Point:
    """What charts show of an entry."""

    accuracy: float
    """The accuracy by which it ranks."""
    across: float
    """Its value on the axis across: clean accuracy, or on a board of clean accuracy the number of parameters."""
    id: int
    name: str
    slug: str
    year: int | None
    provenance: Provenance
    extra_data: bool | None
    synthetic_data: bool
    num_parameters: int | None


@dataclass(frozen=True)
class Points:
    """What charts show of a view."""

    by_accuracy: list[Point]
    """Best first; includes every point on the Pareto front."""
    by_year: list[Point]
    """Best first; includes the best point of each year."""
    count: int
    """How many entries could be drawn; more than the points if these were thinned out."""
    count_with_year: int
    count_of_view: int
    """How many entries the view has, including those without a rank or an accuracy."""


def points(session: Session, found: Board, view: View) -> Points:
    """The chart points of a view's entries that have a place on both axes; provisional ones are left out.

    If there are very many, only the best of those whose dots would cover each other.
    """
    axis, figure = _across(found), ranked_by(found)
    is_of_view = (is_on(found), *conditions(view))
    has_both = and_(has_rank(found), axis.by.is_not(None))
    is_drawn = (*is_of_view, has_both)

    def of_drawn(column: Any) -> ColumnElement[Any]:
        return case((has_both, column))

    across, up = of_drawn(axis.by), of_drawn(figure)
    # One query counts everything: each search reads every entry.
    counts = (func.count(), func.count(of_drawn(Entry.id)), func.count(of_drawn(Entry.year)))
    extent = (func.min(across), func.max(across), func.min(up), func.max(up))
    of_view, total, with_year, *ends = session.execute(select(*counts, *extent).where(*is_of_view)).one()
    if total <= _MOST_DOTS:
        listed = select(Entry.id).where(*is_drawn).order_by(*orders(BEST_FIRST))
        drawn = [(entry_id, True, True) for entry_id in session.scalars(listed)]
    else:
        lowest, highest = ends[2:]
        first, last = sorted(axis.goodness(end) for end in ends[:2])
        columns = _COLUMNS_OF_DOTS / max(last - first, 1e-9)
        rows = _ROWS_OF_DOTS / max(highest - lowest, 1e-9)
        query = select(Entry.id, axis.by, figure, Entry.year).where(*is_drawn).order_by(*orders(BEST_FIRST))
        read = session.connection().execute(query.execution_options(yield_per=1000))
        # On the connection itself: through the session, so many rows would take half as long again.
        placed = ((entry_id, axis.goodness(place), height, year) for entry_id, place, height, year in read)
        drawn = _best_of_places(placed, lambda x, y: (int((x - first) * columns), int((y - lowest) * rows)))
    shared = [getattr(Entry, field.name) for field in fields(Point)[2:]]
    chosen = Entry.id.in_([entry_id for entry_id, _, _ in drawn])
    known = {row[2]: Point(*row) for row in session.execute(select(figure, axis.by, *shared).where(chosen))}
    return Points(
        by_accuracy=[known[entry_id] for entry_id, is_shown, _ in drawn if is_shown and entry_id in known],
        by_year=[known[entry_id] for entry_id, _, is_shown in drawn if is_shown and entry_id in known],
        count=total,
        count_with_year=with_year,
        count_of_view=of_view,
    )


@dataclass(frozen=True)
class _Axis:
    """The axis of a chart across."""

    by: Any
    goodness: Callable[[float], float]
    """From a value of the column to its place on the axis; the better one is larger."""


def _across(found: Board) -> _Axis:
    if found.kind == "clean":
        # Of two networks of the same accuracy the smaller one is better.
        return _Axis(Entry.num_parameters, lambda number: -math.log10(max(number, 1)))
    return _Axis(Entry.clean_accuracy, lambda share: share)


def _best_of_places(
    placed: Iterable[tuple[int, float, float, int | None]], place_of: Callable[[float, float], tuple[int, int]]
) -> list[tuple[int, bool, bool]]:
    """The id of each drawn entry, and whether the charts by accuracy and by year draw it; best first.

    Args:
        placed: id, place across, accuracy and year of each entry, best first.
        place_of: the grid cell of a dot.
    """
    places: set[tuple[int, int]] = set()
    places_of_years: set[tuple[int, int]] = set()
    best = -math.inf
    drawn: list[tuple[int, bool, bool]] = []
    # A loop of many cheap steps: window functions over the same rows take the database three times as long.
    for entry_id, across, accuracy, year in placed:
        place = place_of(across, accuracy)
        # An entry is on the Pareto front if it is better along the axis than all entries of a higher accuracy.
        by_accuracy = across > best or place not in places
        by_year = year is not None and (year, place[1]) not in places_of_years
        if by_accuracy:
            places.add(place)
            best = max(best, across)
        if by_year and year is not None:
            places_of_years.add((year, place[1]))
        if by_accuracy or by_year:
            drawn.append((entry_id, by_accuracy, by_year))
    return drawn
