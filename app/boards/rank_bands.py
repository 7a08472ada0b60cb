"""Rank bands: which ranks an entry may have, given the uncertainty of its board's accuracies.

Each entry is compared with every other entry of its board. Its band begins after the entries that are significantly
better and ends before those that are significantly worse. Holm's procedure (Scandinavian Journal of Statistics 6, 1979)
bounds the chance that any comparison of an entry is wrong by 5 %. So with 95 % confidence the band contains the rank
that the entry would have with infinitely many test images. These are the marginal confidence sets of ranks of Mogstad,
Romano, Shaikh and Wilhelm (Review of Economic Studies 91, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.boards import board_points, ranking
from app.boards.ranking import Board, Ranked
from app.boards.robust_points import Points
from app.core.recent import Recent
from gkl.statistics.paired import mcnemar_exact

LEVEL = 0.05
MAX_ENTRIES = 5000
"""A board with more ranked entries has no bands: comparing all pairs would take too long for a page."""

# Beyond this distance a pair differs significantly on a board of any size, by either test: the standard error of the
# paired test is at most 1.41 times that of the unpaired one.
_FAR = 8.0
# With this many differing points, the exact test and its normal approximation agree within 2 % of the p-value.
_MANY_DIFFER = 1000

Bands = Mapping[int, tuple[int, int]]
"""Ranked entry -> first and last rank of its band, counted from 1."""


def of_board(session: Session, recent: Recent, board: Board, revision: str) -> Bands:
    """The rank bands of a board.

    Args:
        session: to read with.
        recent: where the bands are cached until the board changes.
        board: the board; one of corruptions has no bands, since a mean over corruptions is not a count of points.
        revision: of the board, read before.
    """
    return recent.get((board.dataset, board.name, revision, "bands"), lambda: _read(session, board))


def with_band(session: Session, recent: Recent, row: Ranked) -> Ranked:
    """An entry with its rank band."""
    if row.rank is None:
        return row
    entry = row.entry
    revision = ranking.revision(session, entry.dataset, entry.board)
    bands = of_board(session, recent, Board(entry.dataset, entry.board, 0), revision)
    return replace(row, band=bands.get(entry.id))


def with_bands(rows: Iterable[Ranked], bands: Bands) -> list[Ranked]:
    return [replace(row, band=bands.get(row.entry.id)) for row in rows]


def _read(session: Session, board: Board) -> Bands:
    if not board.has_points or not 1 < ranking.count_ranked(session, board) <= MAX_ENTRIES:
        return {}
    found = board_points.ranked(session, board)
    figures = [(each.accuracy, each.num_points) for each in found]
    return _OnDemand([each.entry_id for each in found], figures, [each.points for each in found])


def bands_of(figures: list[tuple[float, int]], points: list[Points | None]) -> list[tuple[int, int]]:
    """The band of each entry.

    Args:
        figures: accuracy and number of test images of each entry, the first rank first.
        points: which test images each entry's network gets right under every attack; None if that is unknown. Two
            entries with points are compared point by point (McNemar's exact test), others by their accuracies (the
            score test of two shares, which treats their test images as different ones).
    """
    return list(_OnDemand(list(range(len(figures))), figures, points).values())


class _OnDemand(Mapping[int, tuple[int, int]]):
    """Bands that are computed on access: a page shows only few of a long board's entries."""

    def __init__(self, ids: list[int], figures: list[tuple[float, int]], points: list[Points | None]) -> None:
        """Takes the arguments of `bands_of`, and the entries' ids."""
        self._places = {entry_id: place for place, entry_id in enumerate(ids)}
        self._known: dict[int, tuple[int, int]] = {}
        self._paired = _Paired(points)
        self._accuracy = np.array([share for share, _ in figures])
        self._num_points = np.array([count for _, count in figures], dtype=np.float64)
        # 0.25 is the largest variance that a share can have.
        self._reach = _FAR * math.sqrt(0.25 * 2 / self._num_points.min())

    def __getitem__(self, entry_id: int) -> tuple[int, int]:
        if entry_id not in self._known:
            self._known[entry_id] = self._band(self._places[entry_id])
        return self._known[entry_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _band(self, i: int) -> tuple[int, int]:
        accuracy, num_points = self._accuracy, self._num_points
        start = int(np.searchsorted(-accuracy, -accuracy[i] - self._reach, side="left"))
        end = int(np.searchsorted(-accuracy, -accuracy[i] + self._reach, side="right"))
        near = slice(start, end)
        z = _unpaired_z(accuracy[i], num_points[i], accuracy[near], num_points[near])
        self._paired.put_z(i, start, z)
        apart = _told_apart(np.delete(z, i - start))
        better, worse = apart[: i - start].sum(), apart[i - start :].sum()
        return int(start + better + 1), int(end - worse)


def _unpaired_z(
    share: float, count: float, shares: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The absolute statistic of the score test of one entry against others, as in `gkl.statistics.unpaired`."""
    common = (share * count + shares * counts) / (count + counts)
    variance = common * (1 - common) * (1 / count + 1 / counts)
    return np.where(variance > 0, np.abs(shares - share) / np.sqrt(np.maximum(variance, 1e-300)), 0.0)


class _Paired:
    """Paired comparisons of the entries that have points."""

    def __init__(self, points: list[Points | None]) -> None:
        self.lengths = [None if each is None else len(each) for each in points]
        self.bits = [None if each is None else np.packbits(each) for each in points]

    def put_z(self, i: int, start: int, z: NDArray[np.float64]) -> None:
        """Replace the statistics of the entries that can be compared with entry `i` point by point; z[0] belongs to
        entry `start`."""
        own = self.bits[i]
        if own is None:
            return
        others = [j for j in range(start, start + len(z)) if j != i and self.lengths[j] == self.lengths[i]]
        if not others:
            return
        bits = np.stack([other for j in others if (other := self.bits[j]) is not None])
        only_own = np.bitwise_count(own & ~bits).sum(axis=1, dtype=np.int64)
        only_other = np.bitwise_count(~own & bits).sum(axis=1, dtype=np.int64)
        for j, first, second in zip(others, only_own.tolist(), only_other.tolist(), strict=True):
            z[j - start] = _paired_z(min(first, second), max(first, second))


@lru_cache(maxsize=100_000)
def _paired_z(fewer: int, more: int) -> float:
    """The quantile of the normal distribution for the p-value of McNemar's test."""
    differ = fewer + more
    if differ >= _MANY_DIFFER:
        return max(0.0, more - fewer - 1) / math.sqrt(differ)
    return _quantile(max(mcnemar_exact(fewer, more), 1e-15))


def _quantile(p_value: float) -> float:
    return -NormalDist().inv_cdf(p_value / 2)


def _told_apart(z: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of one entry's comparisons are significant by Holm's procedure.

    Entries far away are always significant, so they do not make the bound of the others stricter.
    """
    rejected, before = 0, -1
    while rejected > before:
        # Each round compares the smallest remaining p-value with the level divided by the remaining comparisons.
        before, rejected = rejected, int((z >= _bound(len(z) - rejected)).sum())
    return z >= _bound(len(z) - rejected)


@lru_cache(maxsize=2 * MAX_ENTRIES)
def _bound(comparisons: int) -> float:
    """The value that a statistic must exceed, with this many comparisons."""
    return _quantile(LEVEL / max(1, comparisons))
