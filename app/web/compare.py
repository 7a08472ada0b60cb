"""Entries side by side: their figures, and which points each of them loses."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sqlalchemy.orm import Session

from app import entries, external
from app.artifacts import ArtifactStore
from app.certificates import standing_points
from app.entries import Board, Ranked
from app.errors import NotFound, StoreAway


@dataclass(frozen=True)
class Overlap:
    """Of entries that were attacked point by point on the same images."""

    names: list[str]
    num_points: int
    lost: list[int]
    """How many each loses, in the order of the names."""
    only: list[int]
    """How many each alone loses."""
    all_lose: int
    none_loses: int
    agreement: list[list[float]]
    """Share of points on which two of them come to the same."""
    examples: list[list[int]]
    """The first few points that each alone loses."""
    entry_ids: list[int]


@dataclass(frozen=True)
class Comparison:
    rows: list[tuple[Ranked, Board]]
    overlap: Overlap | None
    without_points: list[str]
    """Names of those whose points are not known here, or are others'."""


_EXAMPLES = 8


def comparison_of(session: Session, store: ArtifactStore, chosen: list[int]) -> Comparison:
    """
    Raises:
        NotFound: there is no such entry.
    """
    rows = [entries.get(session, entry_id) for entry_id in dict.fromkeys(chosen)]
    places = [(row, entries.board(session, row.entry.dataset, row.entry.board)) for row in rows]
    known = {}
    for row in rows:
        sha256 = external.certificate(session, row.entry)
        # A file that cannot be had takes the comparison by points with it, not the page.
        with suppress(NotFound, StoreAway):
            if sha256 is not None:
                known[row.entry.id] = standing_points(store.path(sha256))
    first = next((row.entry for row in rows if row.entry.id in known), None)
    same = [
        row
        for row in rows
        if first is not None
        and row.entry.id in known
        and (row.entry.dataset, len(known[row.entry.id])) == (first.dataset, len(known[first.id]))
    ]
    others = [row.entry.name for row in rows if row not in same]
    if len(same) < 2:
        return Comparison(places, None, others)
    stands = np.stack([known[row.entry.id] for row in same])
    agreement = [[float((a == b).mean()) for b in stands] for a in stands]
    only = [~stands[i] & np.delete(stands, i, axis=0).all(axis=0) for i in range(len(same))]
    overlap = Overlap(
        names=[row.entry.name for row in same],
        num_points=stands.shape[1],
        lost=[int((~each).sum()) for each in stands],
        only=[int(each.sum()) for each in only],
        all_lose=int((~stands).all(axis=0).sum()),
        none_loses=int(stands.all(axis=0).sum()),
        agreement=agreement,
        examples=[each.nonzero()[0][:_EXAMPLES].tolist() for each in only],
        entry_ids=[row.entry.id for row in same],
    )
    assert all(agreement[i][j] == agreement[j][i] for i, j in combinations(range(len(same)), 2))
    return Comparison(places, overlap, others)
