"""A view of a board as a file: exactly the entries and the order that its page shows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from app.boards import listing, ranking, robustbench_export
from app.boards.listing import View
from app.boards.rank_bands import Bands
from app.boards.ranking import Board, Ranked
from app.boards.teachers import teachers_of
from app.boards.views import entry_view
from app.core import formatting
from app.core.formatting import plain
from app.db.database import Database
from app.db.tables import Entry
from gkl.spec import format_epsilon

Write = Callable[[Board, View, Iterable[Ranked]], Iterator[str]]

_ENTRIES_AT_ONCE = 200
_PIECE_LENGTH = 64 * 1024


@dataclass(frozen=True)
class Format:
    """A file format."""

    title: str
    ending: str
    media_type: str
    write: Write
    """Yields the file in pieces: a long board is never in memory as a whole."""


def pieces(database: Database, board: Board, view: View, kind: Format, bands: Bands) -> Iterator[str]:
    """Yield an export file in pieces.

    The entries' ids, order and ranks are read at once, before the first piece. The entries themselves are read in short
    transactions, so that a slow client does not hold a database connection. An entry that changes meanwhile is written
    in its new form; one that is removed is left out.
    """
    with database.reading() as session:
        listed = listing.ids(session, board, view)
        ranks = ranking.ranks_of(session, board, listed)

    def rows() -> Iterator[Ranked]:
        for start in range(0, len(listed), _ENTRIES_AT_ONCE):
            chosen = listed[start : start + _ENTRIES_AT_ONCE]
            with database.reading() as session:
                known = listing.with_ids(session, chosen)
                teachers = teachers_of(session, known.values())
            yield from (
                Ranked(ranks.get(number), known[number], bands.get(number), teachers.get(number))
                for number in chosen
                if number in known
            )

    return _joined(kind.write(board, view, rows()))


def _joined(texts: Iterator[str]) -> Iterator[str]:
    """Join small texts into larger pieces: sending each row by itself would take longer than making the rows."""
    kept: list[str] = []
    length = 0
    for text in texts:
        kept.append(text)
        length += len(text)
        if length >= _PIECE_LENGTH:
            yield "".join(kept)
            kept, length = [], 0
    yield "".join(kept)


def _csv(found_on: Board, view: View, found: Iterable[Ranked]) -> Iterator[str]:
    """All columns, or those of the view; on a board of clean accuracy without those of robust accuracy."""
    names = [name for name in _CSV if not view.columns or _COLUMN_OF.get(name, name) in (*_ALWAYS, *view.columns)]
    if found_on.kind == "clean":
        names = [name for name in names if name not in listing.COLUMNS or "clean" in listing.COLUMNS[name].only]
    has_bands = not view.columns or "band" in view.columns
    yield _csv_line(["rank", *_BAND * has_bands, *names])
    for row in found:
        # In two cells: a spreadsheet reads '2-4' as a date.
        band = (row.band or ("", "")) if has_bands else ()
        yield _csv_line([row.rank or "", *band, *(_inert(_CSV[name](row)) for name in names)])


def _csv_line(cells: list[str | int]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.10g}"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


_CSV: dict[str, Callable[[Ranked], str]] = {
    "model_id": lambda row: row.entry.slug,
    "name": lambda row: row.entry.name,
    "authors": lambda row: row.entry.authors,
    "venue": lambda row: row.entry.venue,
    "year": lambda row: str(row.entry.year or ""),
    "architecture": lambda row: row.entry.architecture,
    "clean": lambda row: _percent(row.entry.clean_accuracy),
    "robust": lambda row: _percent(row.entry.robust_accuracy),
    "autoattack": lambda row: _percent(row.entry.autoattack_accuracy),
    "external": lambda row: _percent(row.entry.external_accuracy),
    "reported": lambda row: _percent(row.entry.reported_accuracy),
    "mce": lambda row: _percent(row.entry.mean_corruption_error),
    "mce_robustbench": lambda row: _percent(row.entry.robustbench_mean_corruption_error),
    "robust_3d": lambda row: _percent(row.entry.corruptions_3d_accuracy),
    "mce_3d": lambda row: _percent(row.entry.corruptions_3d_error),
    "parameters": lambda row: "" if row.entry.num_parameters is None else str(row.entry.num_parameters),
    "epsilon": lambda row: "" if row.entry.epsilon is None else format_epsilon(row.entry.epsilon),
    "extra_data": lambda row: _yes_no(row.entry.extra_data),
    "synthetic_data": lambda row: _yes_no(row.entry.synthetic_data),
    "loss": lambda row: row.entry.loss or "",
    "teacher": lambda row: "" if row.teacher is None else row.teacher.title,
    "teacher_clean": lambda row: "" if row.teacher is None else _percent(row.teacher.clean_accuracy),
    "unreliable": lambda row: _yes_no(row.entry.unreliable),
    "provisional": lambda row: _yes_no(row.entry.is_provisional),
    "withdrawn": lambda row: row.entry.withdrawn_reason or "",
    "provenance": lambda row: row.entry.provenance,
    "added": lambda row: f"{row.entry.created_at:%Y-%m-%d}",
    "link": lambda row: row.entry.link,
    "footnote": lambda row: row.entry.footnote,
}
# Columns that are always written, and the columns of the file for each column of the page.
_ALWAYS = ("model_id", "name")
_BAND = ("rank_first", "rank_last")
_COLUMN_OF = {"extra_data": "data", "synthetic_data": "data"}


def _inert(cell: str) -> str:
    """Quote a text that begins like a formula, so that no spreadsheet runs it."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _json(found_on: Board, view: View, found: Iterable[Ranked]) -> Iterator[str]:
    """The same text as `json.dumps` with an indent would give for the whole."""
    dataset, name = json.dumps(found_on.dataset), json.dumps(found_on.name)
    yield f'{{\n "dataset": {dataset},\n "threat_model": {name},\n "entries": ['
    is_first = True
    for row in found:
        text = json.dumps(entry_view(row).model_dump(mode="json"), indent=1)
        # JSON escapes line breaks in texts, so these are all between lines.
        yield ("" if is_first else ",") + "\n  " + text.replace("\n", "\n  ")
        is_first = False
    yield "]\n}" if is_first else "\n ]\n}"


def _robustbench(_: Board, view: View, found: Iterable[Ranked]) -> Iterator[str]:
    """One object: model id -> model_info, each as in its own file. Without provisional and withdrawn entries."""
    yield "{\n"
    is_first = True
    for row in found:
        entry = row.entry
        if robustbench_export.why_not_exported(entry) is None:
            described = robustbench_export.model_info(entry).strip()
            yield ("" if is_first else ",\n") + f"{json.dumps(entry.slug)}: {described}"
            is_first = False
    yield "\n}\n"


class _Papers:
    """The BibTeX key of each paper in a view: the model id of the paper's first entry. The LaTeX export cites them."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], str] = {}

    def key_of(self, entry: Entry) -> tuple[str, bool]:
        """The key of an entry's paper, and whether this is its first use."""
        paper = (plain(entry.name).casefold(), plain(entry.authors).casefold())
        is_new = paper not in self._keys
        return self._keys.setdefault(paper, entry.slug), is_new


def _bibtex(_: Board, view: View, found: Iterable[Ranked]) -> Iterator[str]:
    papers, is_first = _Papers(), True
    for row in found:
        key, is_new = papers.key_of(row.entry)
        if is_new:
            yield ("" if is_first else "\n") + reference(row.entry, key)
            is_first = False


def reference(entry: Entry, key: str | None = None) -> str:
    """A BibTeX reference; `key` is by default the entry's own."""
    authors = " and ".join(author.strip() for author in entry.authors.split(",") if author.strip())
    fields = {
        "title": f"{{{_latex_text(entry.name)}}}",
        "author": _latex_text(authors),
        "howpublished": _latex_text(entry.venue),
        "year": str(entry.year or ""),
        "url": re.sub(r"[{}\\\s]", "", entry.link),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value and value != "{}"]
    return "\n".join([f"@misc{{{key or entry.slug},", *lines, "}\n"])


def _latex(found_on: Board, view: View, found: Iterable[Ranked]) -> Iterator[str]:
    """A table with the view's columns, by default those that papers show. Each entry cites its paper's key."""
    usual = _OF_A_PAPER_ON_CLEAN if found_on.kind == "clean" else _OF_A_PAPER
    shown = [name for name in view.columns or usual if name in _LATEX]
    columns = [name for name in shown if found_on.kind != "clean" or "clean" in listing.COLUMNS[name].only]
    has_bands = "band" in view.columns and found_on.has_points
    heads = " & ".join(_escaped(listing.COLUMNS[name].title) for name in columns)
    marks = "".join("r" if listing.COLUMNS[name].is_number else "l" for name in columns)
    yield (
        f"% {found_on.title}. Needs \\usepackage{{booktabs}}, and the BibTeX file of the same view for its citations.\n"
        f"\\begin{{tabular}}{{r{'r' * has_bands}l{marks}}}\n\\toprule\n"
        f"\\# {'& Rank band ' * has_bands}& Model & {heads} \\\\\n\\midrule\n"
    )
    papers = _Papers()
    for row in found:
        key, _ = papers.key_of(row.entry)
        cells = [_LATEX[name](row) for name in columns]
        band = ["--" if row.band is None else f"{row.band[0]}--{row.band[1]}"] * has_bands
        model = f"{_latex_text(row.entry.name)}~\\cite{{{key}}}"
        yield " & ".join([str(row.rank or "--"), *band, model, *cells]) + " \\\\\n"
    yield "\\bottomrule\n\\end{tabular}\n"


def _robust(entry: Entry) -> str:
    return (r"$\le$ " if entry.is_provisional else "") + _latex_number(entry.robust_accuracy)


def _latex_parameters(entry: Entry) -> str:
    return "--" if entry.num_parameters is None else formatting.millions(entry.num_parameters)


def _latex_data(entry: Entry) -> str:
    kinds = ["extra"] * bool(entry.extra_data) + ["synthetic"] * entry.synthetic_data
    return " + ".join(kinds) or "--"


_OF_A_PAPER = ("architecture", "clean", "robust", "venue")
_OF_A_PAPER_ON_CLEAN = ("architecture", "parameters", "clean", "teacher", "teacher_clean", "venue")
_LATEX: dict[str, Callable[[Ranked], str]] = {
    "clean": lambda row: _latex_number(row.entry.clean_accuracy),
    "robust": lambda row: _robust(row.entry),
    "autoattack": lambda row: _latex_number(row.entry.autoattack_accuracy),
    "external": lambda row: _latex_number(row.entry.external_accuracy),
    "reported": lambda row: _latex_number(row.entry.reported_accuracy),
    "mce": lambda row: _latex_number(row.entry.mean_corruption_error),
    "mce_robustbench": lambda row: _latex_number(row.entry.robustbench_mean_corruption_error),
    "robust_3d": lambda row: _latex_number(row.entry.corruptions_3d_accuracy),
    "mce_3d": lambda row: _latex_number(row.entry.corruptions_3d_error),
    "architecture": lambda row: _latex_text(row.entry.architecture),
    "parameters": lambda row: (
        "--" if row.entry.num_parameters is None else formatting.millions(row.entry.num_parameters)
    ),
    "data": lambda row: _latex_data(row.entry),
    "loss": lambda row: _latex_text(row.entry.loss or "--"),
    "teacher": lambda row: "--" if row.teacher is None else _latex_text(row.teacher.title),
    "teacher_clean": lambda row: "--" if row.teacher is None else _latex_number(row.teacher.clean_accuracy),
    "epsilon": lambda row: "--" if row.entry.epsilon is None else format_epsilon(row.entry.epsilon),
    "venue": lambda row: _latex_text(row.entry.venue),
    "year": lambda row: str(row.entry.year or "--"),
    "provenance": lambda row: row.entry.provenance,
    "added": lambda row: f"{row.entry.created_at:%Y-%m-%d}",
}


def _latex_number(share: float | None) -> str:
    return "--" if share is None else f"{100 * share:.2f}"


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# Braces by name: BibTeX counts braces, also those behind a backslash.
_SPECIAL |= {"{": r"\textbraceleft{}", "}": r"\textbraceright{}"}
_SPECIAL |= {character: "\\" + character for character in "&%$#_"}


# The commands that a formula may contain to be kept: it must only show something, and run nothing.
_COMMAND = r"\\(?:ell|infty|varepsilon|epsilon|leq?|geq?|approx|times|cdot|frac|sim|pm)(?![A-Za-z])"
_PIECE = rf"{_COMMAND}|[A-Za-z0-9 .,+\-=/()<>|_^{{}}]"
_FORMULA = re.compile(rf"(\\\((?:{_PIECE}){{1,200}}?\\\))")


def _latex_text(text: str) -> str:
    """Remove HTML tags, keep simple formulas, and escape everything else."""
    pieces = _FORMULA.split(re.sub(r"\s+", " ", re.sub(r"<[^<>]*>", " ", text)).strip())
    kept = (number % 2 and _is_harmless(piece) for number, piece in enumerate(pieces))
    text = "".join(piece if keep else _escaped(piece) for piece, keep in zip(pieces, kept, strict=True))
    return formatting.visible(text)


def _is_harmless(formula: str) -> bool:
    """Whether braces are balanced and there is no ^^, with which TeX can write any character."""
    depths = list(itertools.accumulate((c == "{") - (c == "}") for c in formula))
    return "^^" not in formula and min(depths) >= 0 and depths[-1] == 0


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


FORMATS: dict[str, Format] = {
    "csv": Format("CSV", "csv", "text/csv; charset=utf-8", _csv),
    "json": Format("JSON", "json", "application/json", _json),
    "robustbench": Format("RobustBench JSON", "robustbench.json", "application/json", _robustbench),
    "bibtex": Format("BibTeX", "bib", "application/x-bibtex; charset=utf-8", _bibtex),
    "latex": Format("LaTeX", "tex", "application/x-tex; charset=utf-8", _latex),
}


def formats_of(board: Board) -> dict[str, Format]:
    """The formats that a board can be written in: all, but RobustBench's not for one of clean accuracy."""
    return {name: kind for name, kind in FORMATS.items() if name != "robustbench" or board.kind != "clean"}
