"""The test images of a board: which network gets which image right under every attack, and which images are hardest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from sqlalchemy.orm import Session

from app.boards import ranking, robust_points, strongest_certificates
from app.boards.certificates import BrokenPoint, examples_of
from app.boards.ranking import Board
from app.boards.robust_points import Points
from app.core.errors import NotFound, StoreAway
from app.store import ArtifactStore

_log = logging.getLogger(__name__)

Order = Literal["hardest", "easiest"]

# How many certificates are searched for pictures: each is a file to read, and perhaps to download.
_FILES_SEARCHED = 5


@dataclass(frozen=True)
class RankedPoints:
    """A ranked entry: the accuracy by which it ranks, and its points if they are stored."""

    entry_id: int
    accuracy: float
    num_points: int
    certificate_sha256: str | None
    points: Points | None


def ranked(session: Session, board: Board) -> list[RankedPoints]:
    """The ranked entries of a board, the first rank first."""
    certificates = strongest_certificates.of_board(session, board.dataset, board.name)
    known = robust_points.stored_points(session, certificates.values())
    found = []
    for entry_id, accuracy, num_points in ranking.ranked_figures(session, board):
        sha256 = certificates.get(entry_id)
        points = known.get(sha256 or "")
        # If the entry's accuracy is lower than its certificate's, the points of the certificate are out of date.
        agrees = points is not None and (len(points), points.sum()) == (num_points, round(accuracy * num_points))
        found.append(RankedPoints(entry_id, accuracy, num_points, sha256, points if agrees else None))
    return found


@dataclass(frozen=True)
class HardPoint:
    """A test image of a board."""

    index: int
    """Its index among the test images, from 0."""
    lost_by: int
    """How many networks get it wrong, with or without an attack."""


@dataclass(frozen=True)
class BoardPoints:
    """The test images of a board by how many of its networks get them wrong."""

    entry_ids: list[int]
    """The entries whose points are stored, the first rank first."""
    certificates: list[str]
    """The sha256 of their certificates."""
    counts: list[int]
    """How many images no network, one network, ..., all networks get wrong: one number more than there are entries."""
    listed: list[HardPoint]

    @property
    def num_points(self) -> int:
        return sum(self.counts)


def board_points(
    session: Session, board: Board, order: Order, *, offset: int, limit: int, least: int = 0
) -> BoardPoints:
    """The test images of a board, sorted by how many networks get them wrong.

    Args:
        session: to read with.
        board: the board.
        order: images that most networks get wrong first, or those that fewest do; equal ones by their index.
        offset: how many images to skip.
        limit: how many images at most.
        least: only images that at least this many networks get wrong.
    """
    found = ranked(session, board) if board.has_points else []
    # All have one length: imported entries have no points, and a ranked evaluation took all test images.
    known = [(each, each.points) for each in found if each.points is not None and each.certificate_sha256 is not None]
    if not known:
        return BoardPoints([], [], [], [])
    lost_by = (~np.stack([points for _, points in known])).sum(axis=0, dtype=np.int64)
    places = np.argsort(-lost_by if order == "hardest" else lost_by, kind="stable")
    places = places[lost_by[places] >= least][offset : offset + limit]
    return BoardPoints(
        entry_ids=[each.entry_id for each, _ in known],
        certificates=[each.certificate_sha256 or "" for each, _ in known],
        counts=np.bincount(lost_by, minlength=len(known) + 1).tolist(),
        listed=[HardPoint(int(place), int(lost_by[place])) for place in places],
    )


def pictured(store: ArtifactStore, found: BoardPoints, chosen: list[int]) -> dict[int, tuple[int, BrokenPoint]]:
    """For each image: an entry whose certificate has a picture of it, and the attack that broke it there.

    A certificate holds the images that an attack broke, so it has none that every network gets wrong without an attack.
    Only the best few certificates are read, since each may have to be downloaded, and only while a picture is missing;
    one that cannot be read is skipped.
    """
    pictures: dict[int, tuple[int, BrokenPoint]] = {}
    for entry_id, sha256 in list(zip(found.entry_ids, found.certificates, strict=True))[:_FILES_SEARCHED]:
        wanted = [place for place in chosen if place not in pictures]
        if not wanted:
            break
        try:
            broken = examples_of(store.path(sha256), wanted)
        except (NotFound, StoreAway, SafetensorError, OSError) as error:
            _log.warning("the certificate of entry %d cannot be read (%s)", entry_id, error)
            continue
        pictures |= {point.index: (entry_id, point) for point in broken}
    return pictures
