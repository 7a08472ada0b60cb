"""The contents of a board's page: cells, headings, filters, charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlencode

from markupsafe import Markup, escape
from sqlalchemy.orm import Session

from app.boards import chart_points, listing, rank_bands
from app.boards.chart_points import Point
from app.boards.exports import formats_of
from app.boards.listing import COLUMNS, PAGE_SIZE, View
from app.boards.names import BoardKind
from app.boards.ranking import Board, Ranked
from app.core import formatting
from app.core.formatting import plain
from app.core.recent import Recent
from app.db.tables import Entry
from app.web.board_charts import Scatter, accuracy_against_parameters, clean_against_robust, over_the_years
from gkl.answers import Provenance
from gkl.spec import format_epsilon

PROVENANCES = {
    Provenance.VERIFIED: "verified here",
    Provenance.IMPORTED: "imported",
    Provenance.REPORTED: "reported",
}


@dataclass(frozen=True)
class Heading:
    title: str
    href: str
    aria_sort: str | None
    classes: str


@dataclass(frozen=True)
class BoardRow:
    ranked: Ranked
    cells: Markup
    """The cells after the name as one piece of HTML: rendering each in the template takes several times as long."""
    summary: str
    """A summary of the columns that do not fit on a phone."""
    shows_band: bool

    @property
    def band(self) -> str:
        """The first and last rank of the band, or the only one; empty if there is none or it is not shown."""
        band = self.ranked.band if self.shows_band else None
        return "" if band is None else "\N{EN DASH}".join(map(str, dict.fromkeys(band)))

    @property
    def id_to_show(self) -> str | None:
        return own_name(self.ranked.entry)


def own_name(entry: Entry) -> str | None:
    """The model id, if it differs from the entry's name, as a paper often has several models; else None."""
    return None if entry.source is None and entry.slug in (entry.name, entry.name.replace(" ", "_")) else entry.slug


@dataclass(frozen=True)
class Choice:
    name: str
    label: str
    options: list[tuple[Any, str]]
    chosen: Any


@dataclass(frozen=True)
class Charts:
    """Charts and filters, which are the same on all pages of a view until its board changes."""

    choices: dict[str, list[Any]]
    count: int
    """The number of entries in the view."""
    points: list[Point]
    """Points of the chart by accuracy, best first."""
    accuracy_title: str
    """The title of the axis of the accuracy that ranks."""
    draw: Callable[..., Scatter | None]
    """Draws the chart by accuracy."""
    num_in_scatter: int
    """The number of entries with a place on both axes, before thinning out."""
    years: Scatter | None
    num_in_years: int

    # Computed on demand: most requests need only one of the two.
    @cached_property
    def whole(self) -> Scatter | None:
        return self.draw(self.points, self.accuracy_title)

    @cached_property
    def focused(self) -> Scatter | None:
        """The part of the chart where most entries are; None if that is the whole chart."""
        return self.draw(self.points, self.accuracy_title, is_focused=True)


@dataclass(frozen=True)
class BoardPage:
    board: Board
    view: View
    headings: list[Heading]
    rows: list[BoardRow]
    choices: list[Choice]
    columns: list[tuple[str, str, bool]]
    """Name, title, and whether it is shown, for each column that this board can have."""
    charts: Charts
    scatter: Scatter | None
    other_scatter: str | None
    """The query string of the page with the other chart: the whole one instead of the part, or the reverse."""
    is_whole: bool
    first: int
    """The number of the page's first row in the view, from 1."""
    earlier: str | None
    later: str | None
    exports: list[tuple[str, str]]


ChosenChart = Literal["focus", "all"]


def board_page(
    session: Session,
    recent: Recent,
    board: Board,
    *,
    revision: str,
    view: View,
    page: int,
    chart: ChosenChart = "focus",
    root: str = "",
) -> BoardPage:
    """The contents of a page.

    Args:
        session: to read with.
        recent: where charts are cached.
        board: the board.
        revision: of the board, read before.
        view: which entries, in which order.
        page: the number of the page, from 1.
        chart: the part of the chart where most entries are, or all of it.
        root: the path under which the service is served, for links.
    """
    filters = view.model_dump_json(exclude={"sort", "columns"})
    charts = recent.get((board.dataset, board.name, revision, filters), lambda: _charts(session, board, view))
    shown, known = view.columns_on(board), charts.choices
    if known["loss"] and not view.columns:
        # The loss is what this service compares, so show it if any entry has one.
        shown.insert(shown.index("architecture") + 1, "loss")
    offset = (page - 1) * PAGE_SIZE
    found = listing.search(session, board, view, limit=PAGE_SIZE, offset=offset)
    # The band is shown below the rank, so that it fits on a phone.
    shows_bands, cells = "band" in shown, [name for name in shown if name != "band"]
    if shows_bands:
        found = rank_bands.with_bands(found, rank_bands.of_board(session, recent, board, revision))
    path = f"/leaderboards/{board.dataset}/{board.name}"
    files = [(kind.title, f"/api/v1{path}/export/{name}{_query(view)}") for name, kind in formats_of(board).items()]
    is_whole = chart == "all" or charts.focused is None
    other = {"chart": "all"} if chart == "focus" else {}
    # Links to other pages and orders keep this choice.
    kept = {"chart": "all"} if chart == "all" else {}
    made = [(Markup(f'<td class="{_classes(name)}">'), _CELLS[name]) for name in cells]
    return BoardPage(
        board=board,
        view=view,
        headings=[_heading(view, name, kept) for name in ("rank", "name", *cells)],
        rows=[
            BoardRow(
                row,
                _CELLS_END.join(opened + cell(row, root) for opened, cell in made),
                _summary(row, shown),
                shows_bands,
            )
            for row in found
        ],
        choices=_choices(view, known),
        columns=[(name, COLUMNS[name].title, name in shown) for name in View(columns=list(COLUMNS)).columns_on(board)],
        charts=charts,
        scatter=charts.whole if is_whole else charts.focused,
        other_scatter=None if charts.focused is None else _query(view, **other) or "?",
        is_whole=is_whole,
        first=offset + 1,
        earlier=_query(view, **kept, page=page - 1) or "?" if page > 1 else None,
        later=_query(view, **kept, page=page + 1) if offset + PAGE_SIZE < charts.count else None,
        exports=files,
    )


_ACCURACIES: dict[BoardKind, str] = {
    "attacks": "Robust accuracy",
    "corruptions": "Mean accuracy under corruptions",
    "clean": "Clean accuracy",
}


def _charts(session: Session, board: Board, view: View) -> Charts:
    points = chart_points.points(session, board, view)
    title, is_clean = _ACCURACIES[board.kind], board.kind == "clean"
    return Charts(
        choices=listing.choices(session, board),
        count=points.count_of_view,
        points=points.by_accuracy,
        accuracy_title=title,
        draw=accuracy_against_parameters if is_clean else clean_against_robust,
        num_in_scatter=points.count,
        years=over_the_years(points.by_year, title, figure="clean" if is_clean else "robust"),
        num_in_years=points.count_with_year,
    )


def _query(view: View, **changes: Any) -> str:
    """The query string that leads to this view, changed; begins with '?', or is empty."""
    said = view.model_dump(mode="json", exclude_defaults=True) | changes
    said = {key: value for key, value in said.items() if value is not None and (key, value) not in _DEFAULTS}
    return f"?{urlencode(said, doseq=True)}" if said else ""


_DEFAULTS = (("page", 1), ("sort", "rank"))
_NUMBERS = {"rank"} | {name for name, column in COLUMNS.items() if column.is_number}
_ON_PHONES = ("rank", "name", "clean", "robust")


def _classes(name: str) -> str:
    return " ".join(["number"] * (name in _NUMBERS) + ["wide"] * (name not in _ON_PHONES))


def _heading(view: View, name: str, kept: dict[str, str]) -> Heading:
    title = {"rank": "#", "name": "Model"}[name] if name in ("rank", "name") else COLUMNS[name].title
    falls = name in COLUMNS and COLUMNS[name].falls
    by_this = view.sort_key == name
    href = _query(view, **kept, sort=f"-{name}" if by_this and not view.is_reversed else name, page=None)
    aria_sort = ("descending" if falls != view.is_reversed else "ascending") if by_this else None
    return Heading(title, href or "?", aria_sort, _classes(name))


def _summary(row: Ranked, shown: Sequence[str]) -> str:
    entry, teacher = row.entry, row.teacher if "teacher" in shown else None
    from_teacher = "" if teacher is None else f"from {teacher.title}"
    return ", ".join(filter(None, (plain(entry.architecture), from_teacher, plain(entry.venue), _data(entry))))


_CELLS_END = Markup("</td>\n")
_DASH = Markup('<span class="quiet">&ndash;</span>')


def _accuracy(entry: Entry, accuracy: float | None) -> Markup:
    if accuracy is None:
        return _DASH
    low, high = entry.interval_of(accuracy)
    said = f"95 % Wilson interval over {entry.num_points} images: {100 * low:.1f} to {100 * high:.1f} %"
    return Markup(f'<span title="{said}">{formatting.percent(accuracy)}</span>')


def _robust(entry: Entry) -> Markup:
    if entry.robust_accuracy is None:
        if entry.reported_accuracy is None:
            return _DASH
        said = "Reported by its owner and not measured here, so it has no rank"
        return Markup('<span class="quiet" title="{}">{}</span><span class="interval">reported</span>').format(
            said, formatting.percent(entry.reported_accuracy)
        )
    if entry.is_provisional:
        said = "An upper bound after the first attacks"
        return Markup('<span class="accuracy" title="{}">≤ {}</span>').format(
            said, formatting.percent(entry.robust_accuracy)
        )
    bounds = formatting.interval(entry.interval_of(entry.robust_accuracy))
    # Only numbers, so nothing needs escaping; rendering them in the template takes three times as long.
    figure = formatting.percent(entry.robust_accuracy)
    return Markup(f'<span class="accuracy">{figure}</span><span class="interval">{bounds}</span>')


def _data(entry: Entry) -> str:
    kinds = ["extra"] * bool(entry.extra_data) + ["synthetic"] * entry.synthetic_data
    return " + ".join(kinds)


def _text(value: str | None) -> Markup:
    return escape(plain(value)) if value else _DASH


def _share(value: float | None) -> Markup:
    return _DASH if value is None else Markup("{}").format(formatting.percent(value))


def _parameters(entry: Entry) -> Markup:
    if entry.num_parameters is None:
        return _DASH
    # Only a number, so nothing needs escaping.
    return Markup(f'<span title="{entry.num_parameters:,}">{formatting.millions(entry.num_parameters)}</span>')


def _teacher(row: Ranked, root: str) -> Markup:
    if row.teacher is None:
        return _DASH
    if row.teacher.path is None:
        return escape(row.teacher.title)
    return Markup('<a href="{}">{}</a>').format(f"{root}{row.teacher.path}", row.teacher.title)


# From a row and the path under which the service is served.
_CELLS: dict[str, Callable[[Ranked, str], Markup]] = {
    "clean": lambda row, _: _accuracy(row.entry, row.entry.clean_accuracy),
    "robust": lambda row, _: _robust(row.entry),
    "autoattack": lambda row, _: _accuracy(row.entry, row.entry.autoattack_accuracy),
    "external": lambda row, _: _accuracy(row.entry, row.entry.external_accuracy),
    "reported": lambda row, _: _share(row.entry.reported_accuracy),
    "mce": lambda row, _: _share(row.entry.mean_corruption_error),
    "mce_robustbench": lambda row, _: _share(row.entry.robustbench_mean_corruption_error),
    "robust_3d": lambda row, _: _share(row.entry.corruptions_3d_accuracy),
    "mce_3d": lambda row, _: _share(row.entry.corruptions_3d_error),
    "architecture": lambda row, _: _text(row.entry.architecture),
    "parameters": lambda row, _: _parameters(row.entry),
    "data": lambda row, _: _text(_data(row.entry)),
    "loss": lambda row, _: _text(row.entry.loss),
    "teacher": _teacher,
    "teacher_clean": lambda row, _: _share(None if row.teacher is None else row.teacher.clean_accuracy),
    "epsilon": lambda row, _: _text(None if row.entry.epsilon is None else format_epsilon(row.entry.epsilon)),
    "venue": lambda row, _: _text(row.entry.venue),
    "year": lambda row, _: _text(None if row.entry.year is None else str(row.entry.year)),
    "provenance": lambda row, _: Markup('<span class="provenance {}">{}</span>').format(
        row.entry.provenance, PROVENANCES[row.entry.provenance]
    ),
    "added": lambda row, _: Markup("{}").format(f"{row.entry.created_at:%Y-%m-%d}"),
}


def _choices(view: View, known: dict[str, list[Any]]) -> list[Choice]:
    """The filters that have options. A chosen value is an option even if no entry has it."""
    labels = {"family": "Architecture", "venue": "Venue", "year": "Year", "epsilon": "Epsilon", "loss": "Loss"}
    data = [("none", "none"), ("extra", "extra real images"), ("synthetic", "generated images")]
    choices = [
        Choice(name, labels[name], _options(known[name], getattr(view, name)), getattr(view, name))
        for name in ("family", "venue", "year", "epsilon", "loss")
        if len(known[name]) > 1 or getattr(view, name) is not None
    ]
    choices.insert(1, Choice("data", "Extra data", data, view.data))
    choices.append(
        Choice("provenance", "Provenance", [(p.value, title) for p, title in PROVENANCES.items()], view.provenance)
    )
    choices.append(Choice("unreliable", "Unreliable", [("yes", "yes"), ("no", "no")], view.unreliable))
    return choices


def _options(known: list[Any], chosen: Any) -> list[tuple[Any, str]]:
    return [(value, str(value)) for value in (known if chosen is None or chosen in known else [*known, chosen])]
