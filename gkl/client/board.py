"""A leaderboard as a sequence of entries, or as a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from gkl.answers import BoardSummary, EntryView
from gkl.errors import InvalidInput

if TYPE_CHECKING:
    from pandas import DataFrame

_ACCURACIES = ("clean", "robust", "autoattack", "external")
# Long texts about one entry, which its page shows.
_LEFT_OUT = {"anomalies", "footnote"}


class Board(Sequence[EntryView]):
    """The entries of a leaderboard, or of a filtered view of one, in order. Ranks are those of the whole board."""

    def __init__(self, about: BoardSummary, entries: Sequence[EntryView]) -> None:
        self.about = about
        """The board's data set, threat model, title and epsilon."""
        self.entries = list(entries)

    @overload
    def __getitem__(self, index: int) -> EntryView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EntryView]: ...
    def __getitem__(self, index: int | slice) -> EntryView | Sequence[EntryView]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Board: {self.about.title}, {len(self)} of {self.about.num_entries} entries"

    def to_frame(self) -> DataFrame:
        """Return a DataFrame with a row for each entry.

        Accuracies are in [0, 1], each with its 95 % interval in the columns '<name>_low' and '<name>_high'. The column
        'teacher' has the architecture of the network that an entry learned from, 'teacher_clean' that one's accuracy.

        Raises:
            InvalidInput: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - an optional dependency  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidInput("a frame needs pandas: pip install pandas") from error
        columns = [column for name in EntryView.model_fields if name not in _LEFT_OUT for column in _columns_of(name)]
        frame = pandas.DataFrame([_row(entry) for entry in self.entries], columns=columns)
        whole = ("rank", "year", "weights_id", "evaluation_id")
        return frame.astype(dict.fromkeys(whole, "Int64"))


def _columns_of(name: str) -> tuple[str, ...]:
    if name == "teacher":
        return ("teacher", "teacher_clean")
    return (name, f"{name}_low", f"{name}_high") if name in _ACCURACIES else (name,)


def _row(entry: EntryView) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in EntryView.model_fields if name not in _LEFT_OUT}
    row["provenance"] = entry.provenance.value
    row["teacher"] = None if entry.teacher is None else entry.teacher.title
    row["teacher_clean"] = None if entry.teacher is None else entry.teacher.clean
    for name in _ACCURACIES:
        found = row[name]
        low, high = (None, None) if found is None else found.interval
        row |= dict(zip(_columns_of(name), (None if found is None else found.accuracy, low, high), strict=True))
    return row
