"""The points of a board's charts: the entries of a view, thinned out if they are very many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session

from app.boards.listing import View, conditions
from app.boards.ranking import BEST_FIRST, HAS_RANK, Board, is_on, orders
from app.db.tables import Entry
from gkl.answers import Provenance

# More dots would cover each other: then only the best dot of each grid cell is drawn.
_MOST_DOTS = 1000
# The grid's cells: as many dots as fit beside each other in a chart.
_COLUMNS_OF_DOTS, _ROWS_OF_DOTS = 48, 30


@dataclass(frozen=True)
class Point:
    """What charts show of an entry."""

    id: int
    name: str
    slug: str
    clean_accuracy: float
    robust_accuracy: float
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
    """The chart points of a view's entries that have both accuracies; provisional ones are left out.

    If there are very many, only the best of those whose dots would cover each other.
    """
    is_of_view = (is_on(found), *conditions(view))
    has_both = and_(HAS_RANK, Entry.clean_accuracy.is_not(None))
    is_drawn = (*is_of_view, has_both)

    def of_drawn(column: Any) -> ColumnElement[Any]:
        return case((has_both, column))

    clean, robust = of_drawn(Entry.clean_accuracy), of_drawn(Entry.robust_accuracy)
    # One query counts everything: each search reads every entry.
    counts = (func.count(), func.count(of_drawn(Entry.id)), func.count(of_drawn(Entry.year)))
    extent = (func.min(clean), func.max(clean), func.min(robust), func.max(robust))
    of_view, total, with_year, *ends = session.execute(select(*counts, *extent).where(*is_of_view)).one()
    if total <= _MOST_DOTS:
        listed = select(Entry.id).where(*is_drawn).order_by(*orders(BEST_FIRST))
        drawn = [(entry_id, True, True) for entry_id in session.scalars(listed)]
    else:
        least_clean, most_clean, least_robust, most_robust = (end or 0.0 for end in ends)
        across = _COLUMNS_OF_DOTS / max(most_clean - least_clean, 1e-9)
        up = _ROWS_OF_DOTS / max(most_robust - least_robust, 1e-9)
        drawn = _best_of_places(
            session, is_drawn, lambda c, r: (int((c - least_clean) * across), int((r - least_robust) * up))
        )
    columns = [getattr(Entry, field.name) for field in fields(Point)]
    rows = session.execute(select(*columns).where(Entry.id.in_([entry_id for entry_id, _, _ in drawn])))
    known = {row[0]: Point(*row) for row in rows}
    return Points(
        by_accuracy=[known[entry_id] for entry_id, is_shown, _ in drawn if is_shown and entry_id in known],
        by_year=[known[entry_id] for entry_id, _, is_shown in drawn if is_shown and entry_id in known],
        count=total,
        count_with_year=with_year,
        count_of_view=of_view,
    )


def _best_of_places(
    session: Session, is_drawn: Sequence[ColumnElement[bool]], place_of: Callable[[float, float], tuple[int, int]]
) -> list[tuple[int, bool, bool]]:
    """The id of each drawn entry, and whether the charts by accuracy and by year draw it; best first."""
    columns = (Entry.id, Entry.clean_accuracy, Entry.robust_accuracy, Entry.year)
    listed = select(*columns).where(*is_drawn).order_by(*orders(BEST_FIRST)).execution_options(yield_per=1000)
    places: set[tuple[int, int]] = set()
    places_of_years: set[tuple[int, int]] = set()
    most_accurate = -1.0
    drawn: list[tuple[int, bool, bool]] = []
    # A loop of many cheap steps: window functions over the same rows take the database three times as long.
    # On the connection itself: through the session, so many rows would take half as long again.
    for entry_id, clean, robust, year in session.connection().execute(listed):
        assert clean is not None, "so it was asked for"
        assert robust is not None, "what has none has no rank"
        place = place_of(clean, robust)
        # An entry is on the Pareto front if it is more accurate than all that are more robust.
        by_accuracy = clean > most_accurate or place not in places
        by_year = year is not None and (year, place[1]) not in places_of_years
        if by_accuracy:
            places.add(place)
            most_accurate = max(most_accurate, clean)
        if by_year and year is not None:
            places_of_years.add((year, place[1]))
        if by_accuracy or by_year:
            drawn.append((entry_id, by_accuracy, by_year))
    return drawn
