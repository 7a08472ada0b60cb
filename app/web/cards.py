"""A badge and a model card in Markdown, for the README of an entry's owner."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import escape

from app.boards.exports import reference
from app.boards.names import BoardKind, kind_of_board
from app.boards.ranking import Board, Ranked
from app.core import formatting
from app.core.formatting import plain
from app.db.tables import CLEAN_BOARD, Entry
from gkl.answers import Provenance
from gkl.catalog import DATASETS
from gkl.outcome import Flag
from gkl.spec import format_epsilon

# Width in pixels of a letter in Verdana at 11 pixels, the font of badges.
_LETTER = 6.6
_BADGE_TITLES: dict[BoardKind, str] = {
    "attacks": "robust accuracy",
    "corruptions": "corrupted accuracy",
    "clean": "clean accuracy",
}
_GREEN, _GREY, _AMBER = "#1a7f4b", "#59636e", "#8a5a00"


def badge(row: Ranked) -> str:
    """An SVG with the entry's accuracy and rank, as wide as its text."""
    entry = row.entry
    left = _BADGE_TITLES[kind_of_board(entry.dataset, entry.board)]
    right, colour = _standing(row)
    widths = [round(len(text) * _LETTER) + 12 for text in (left, right)]
    whole = sum(widths)
    said = escape(f"{left}: {right}")
    texts = "".join(
        f'<text x="{x}" y="14" fill="#fff" text-anchor="middle" textLength="{width - 12}">{escape(text)}</text>'
        for text, x, width in zip((left, right), (widths[0] / 2, widths[0] + widths[1] / 2), widths, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label="{said}">'
        f'<title>{said}</title><rect width="{whole}" height="20" rx="3" fill="#3b434b"/>'
        f'<path d="M{widths[0]} 0h{widths[1] - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{widths[1] - 3}z" fill="{colour}"/>'
        f'<g font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g></svg>'
    )


def _standing(row: Ranked) -> tuple[str, str]:
    """The text of a badge, and its color."""
    entry = row.entry
    figure = entry.ranked_accuracy
    if entry.is_withdrawn:
        return "withdrawn", _GREY
    if figure is None:
        if entry.reported_accuracy is None:
            return "unknown", _GREY
        return f"{formatting.percent(entry.reported_accuracy)} reported", _GREY
    if entry.is_provisional:
        return f"at most {formatting.percent(figure)}", _AMBER
    if entry.is_barred:
        return f"{formatting.percent(figure)}, not believed", _AMBER
    whose = "" if entry.provenance is Provenance.VERIFIED else " imported"
    return f"{formatting.percent(figure)}{whose}", _GREEN if entry.provenance is Provenance.VERIFIED else _GREY


def card(row: Ranked, board: Board, url: str) -> str:
    """A model card in Markdown: the results, who measured them, and how to check them.

    Args:
        row: the entry with its rank.
        board: the entry's board.
        url: the service's address.
    """
    return "\n".join(_card(row, board, url)) + "\n"


def _card(row: Ranked, board: Board, url: str) -> Iterator[str]:
    entry, here = row.entry, f"{url}/entries/{row.entry.id}"
    yield f"# {_text(entry.name)}"
    yield ""
    yield f"[![{_text(board.title)}]({here}/badge.svg)]({here})"
    yield ""
    if entry.authors:
        yield f"{_text(entry.authors)}{f', {_text(entry.venue)}' if entry.venue else ''}"
        yield ""
    yield f"## {'Accuracy' if board.kind == 'clean' else 'Robustness'}"
    yield ""
    yield "| on | accuracy | 95 % interval |"
    yield "|---|---|---|"
    yield from _figures(entry, board)
    yield ""
    place = f"rank {row.rank} of {board.num_entries}" if row.rank is not None else "no rank"
    yield f"{_text(board.title)}, {entry.num_points} test images, {place} on [its board]({_board_address(url, board)})."
    yield ""
    yield _measured_by(entry, here)
    for flag in _flags(entry):
        yield f"- **{_text(flag.name)}**: {_text(flag.sentence)}"
    yield ""
    yield "## Training"
    yield ""
    yield f"- Architecture: {_text(entry.architecture) or 'not stated'}"
    if entry.loss:
        yield f"- Loss: {_text(entry.loss)}"
    if row.teacher is not None:
        accuracy = row.teacher.clean_accuracy
        figure = "" if accuracy is None else f", {formatting.percent(accuracy)} on clean images"
        yield f"- Teacher: {_text(row.teacher.title)}{figure}"
    yield f"- Data: {_data(entry)}"
    if entry.link.startswith(("http://", "https://")):
        link = re.sub(r"[<>\s]", "", entry.link)
        yield f"- Paper or code: <{link}>"
    yield ""
    yield "## Citation"
    yield ""
    yield "```bibtex"
    yield reference(entry).replace("`", "'").strip()
    yield "```"


def _figures(entry: Entry, board: Board) -> Iterator[str]:
    attacked = "common corruptions"
    if board.norm is not None and entry.epsilon is not None:
        attacked = f"{board.norm} attacks of at most {format_epsilon(entry.epsilon)}"
    named = {"clean images": entry.clean_accuracy}
    if board.kind != "clean":
        named[attacked] = entry.robust_accuracy
    if entry.robust_accuracy is None and entry.reported_accuracy is not None:
        named[f"{attacked}, as its owner reports"] = entry.reported_accuracy
    for what, share in named.items():
        if share is not None:
            low, high = entry.interval_of(share)
            sign = "at most " if entry.is_provisional and what == attacked else ""
            yield f"| {what} | {sign}{formatting.percent(share)} | {100 * low:.1f} to {100 * high:.1f} |"


def _measured_by(entry: Entry, here: str) -> str:
    if entry.is_withdrawn:
        return f"Withdrawn: {_text(entry.withdrawn_reason or '')}"
    if entry.report is not None:
        return f"Measured by its owner. [Its certificate]({here}) is consistent; the network was not evaluated again."
    if entry.provenance is Provenance.VERIFIED:
        proves = "holds its answer to each image" if entry.board == CLEAN_BOARD else "proves each broken image"
        return f"Measured by [this service]({here}). Its certificate {proves}: `gklbench verify`."
    return "Measured by RobustBench." if entry.provenance is Provenance.IMPORTED else "Reported by its authors alone."


def _flags(entry: Entry) -> list[Flag]:
    found = entry.evaluation.flags if entry.evaluation is not None else []
    found = entry.report.outcome.get("flags", []) if entry.report is not None else found
    return [Flag.model_validate(flag) for flag in found]


def _data(entry: Entry) -> str:
    if entry.extra_data is None:
        return "not stated"
    kinds = ["extra real images"] * entry.extra_data + ["generated images"] * entry.synthetic_data
    title = DATASETS[entry.dataset].title
    return f"{title} and {' and '.join(kinds)}" if kinds else f"{title} alone"


def _board_address(url: str, board: Board) -> str:
    return f"{url}/leaderboards/{board.dataset}/{board.name}"


def _text(text: str) -> str:
    """Escape a text, so that it has no effect as Markdown or HTML."""
    one_line = formatting.visible(plain(text))
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", one_line)
