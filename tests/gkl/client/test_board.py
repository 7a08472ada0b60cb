"""A board as a list and as a frame."""

from __future__ import annotations

import sys

import pytest

from app.boards import robustbench
from app.db.database import Database
from gkl.client import Client
from gkl.errors import InvalidInput
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_robustbench import LINF, contents

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def board(database: Database) -> None:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()
    ]
    robustbench.import_files(database, files)


@pytest.mark.usefixtures("board")
def test_all_entries_of_a_board_in_its_order(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.client.client._ENTRIES_PER_PAGE", 3)
    board = client.board("cifar10", "Linf")
    assert len(board) == len(ENTRIES) == board.about.num_entries
    ranks = [entry.rank for entry in board if entry.rank is not None]
    assert ranks == sorted(ranks)
    assert [entry.name for entry in board[:2]] == [board[0].name, board[1].name]
    assert repr(board) == f"Board: CIFAR-10, Linf 8/255, {len(ENTRIES)} of {len(ENTRIES)} entries"
    some = client.board("cifar10", "Linf", q=board[0].name, sort="-clean")
    assert 0 < len(some) < len(board)


@pytest.mark.usefixtures("board")
def test_a_frame_has_a_row_for_each_entry(client: Client) -> None:
    board = client.board("cifar10", "Linf")
    frame = board.to_frame()
    assert list(frame["name"]) == [entry.name for entry in board]
    assert frame["rank"].dtype == "Int64"
    for row, entry in zip(frame.to_dict("records"), board, strict=True):
        if entry.robust is not None:
            assert row["robust"] == entry.robust.accuracy
            assert (row["robust_low"], row["robust_high"]) == entry.robust.interval
        assert row["provenance"] == entry.provenance.value
    assert list(client.board("cifar10", "Linf", q="no such name").to_frame().columns) == list(frame.columns)


@pytest.mark.usefixtures("board")
def test_a_frame_needs_pandas(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match="a frame needs pandas: pip install pandas"):
        client.board("cifar10", "Linf").to_frame()
