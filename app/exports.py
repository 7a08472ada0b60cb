"""A view of a board as a file: exactly the entries and the order that its page shows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app import formatting, robustbench
from app.entries import Board, Ranked
from app.schemas import EntryView
from app.tables import Entry
from gkl.spec import format_epsilon

Write = Callable[[Board, Sequence[Ranked]], str]


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    title: str
    ending: str
    media_type: str
    write: Write


def _csv(_: Board, found: Sequence[Ranked]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", *_CSV])
    for row in found:
        writer.writerow([row.rank or "", *(_inert(value(row.entry)) for value in _CSV.values())])
    return out.getvalue()


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.10g}"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


_CSV: dict[str, Callable[[Entry], str]] = {
    "model_id": lambda e: e.slug,
    "name": lambda e: e.name,
    "authors": lambda e: e.authors,
    "venue": lambda e: e.venue,
    "year": lambda e: str(e.year or ""),
    "architecture": lambda e: e.architecture,
    "clean": lambda e: _percent(e.clean_accuracy),
    "robust": lambda e: _percent(e.robust_accuracy),
    "autoattack": lambda e: _percent(e.autoattack_accuracy),
    "external": lambda e: _percent(e.external_accuracy),
    "reported": lambda e: _percent(e.reported_accuracy),
    "mce": lambda e: _percent(e.mean_corruption_error),
    "mce_robustbench": lambda e: _percent(e.robustbench_mean_corruption_error),
    "epsilon": lambda e: "" if e.epsilon is None else format_epsilon(e.epsilon),
    "extra_data": lambda e: _yes_no(e.extra_data),
    "synthetic_data": lambda e: _yes_no(e.synthetic_data),
    "loss": lambda e: e.loss or "",
    "unreliable": lambda e: _yes_no(e.unreliable),
    "provisional": lambda e: _yes_no(e.is_provisional),
    "withdrawn": lambda e: e.withdrawn_reason or "",
    "provenance": lambda e: e.provenance,
    "link": lambda e: e.link,
    "footnote": lambda e: e.footnote,
}


def _inert(cell: str) -> str:
    """A spreadsheet computes what begins like a formula; somebody else's text must not run there."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _json(found_on: Board, found: Sequence[Ranked]) -> str:
    entries = [EntryView.of(row).model_dump(mode="json") for row in found]
    return json.dumps({"dataset": found_on.dataset, "threat_model": found_on.name, "entries": entries}, indent=1)


def _robustbench(_: Board, found: Sequence[Ranked]) -> str:
    """One object: model id -> model_info, each to the letter as its own file has. Only final ones that stand."""
    final = [row.entry for row in found if not row.entry.is_provisional and not row.entry.is_withdrawn]
    pieces = [f"{json.dumps(entry.slug)}: {robustbench.model_info(entry).strip()}" for entry in final]
    return "{\n" + ",\n".join(pieces) + "\n}\n"


def _bibtex(_: Board, found: Sequence[Ranked]) -> str:
    return "\n".join(_reference(row.entry) for row in found)


def _reference(entry: Entry) -> str:
    authors = " and ".join(author.strip() for author in entry.authors.split(",") if author.strip())
    fields = {
        "title": f"{{{_latex_text(entry.name)}}}",
        "author": _latex_text(authors),
        "howpublished": _latex_text(entry.venue),
        "year": str(entry.year or ""),
        "url": re.sub(r"[{}\\\s]", "", entry.link),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value and value != "{}"]
    return "\n".join([f"@misc{{{entry.slug},", *lines, "}\n"])


def _latex(found_on: Board, found: Sequence[Ranked]) -> str:
    rows = [
        " & ".join(
            [
                str(row.rank or "--"),
                _latex_text(row.entry.name),
                _latex_text(row.entry.architecture),
                _latex_number(row.entry.clean_accuracy),
                (r"$\le$ " if row.entry.is_provisional else "") + _latex_number(row.entry.robust_accuracy),
                _latex_text(row.entry.venue),
            ]
        )
        + r" \\"
        for row in found
    ]
    head = r"\# & Model & Architecture & Clean & Robust & Venue \\"
    lines = [
        f"% {found_on.title}. Needs \\usepackage{{booktabs}}.",
        r"\begin{tabular}{rllrrl}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_number(share: float | None) -> str:
    return "--" if share is None else f"{100 * share:.2f}"


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# By name: BibTeX counts braces, also those behind a backslash.
_SPECIAL |= {"{": r"\textbraceleft{}", "}": r"\textbraceright{}"}
_SPECIAL |= {character: "\\" + character for character in "&%$#_"}


# What a formula may be made of to be left as it is: it must not be able to do more than show something.
_COMMAND = r"\\(?:ell|infty|varepsilon|epsilon|leq?|geq?|approx|times|cdot|frac|sim|pm)(?![A-Za-z])"
_PIECE = rf"{_COMMAND}|[A-Za-z0-9 .,+\-=/()<>|_^{{}}]"
_FORMULA = re.compile(rf"(\\\((?:{_PIECE}){{1,200}}?\\\))")


def _latex_text(text: str) -> str:
    """Tags taken out, simple formulas left as they are, all else to be read as it stands."""
    pieces = _FORMULA.split(re.sub(r"\s+", " ", re.sub(r"<[^<>]*>", " ", text)).strip())
    kept = (number % 2 and _is_harmless(piece) for number, piece in enumerate(pieces))
    text = "".join(piece if keep else _escaped(piece) for piece, keep in zip(pieces, kept, strict=True))
    return formatting.visible(text)


def _is_harmless(formula: str) -> bool:
    """Braces that fit, and no ^^, by which TeX writes any character."""
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
