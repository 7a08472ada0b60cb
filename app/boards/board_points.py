"""The test images of a board: which network gets which right under every attack, and which images are hard for all."""

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

# Certificates that are searched for a picture of a point: each is a file to read, and perhaps to fetch.
_FILES_SEARCHED = 5


@dataclass(frozen=True)
class RankedPoints:
    """An entry with a rank: its figure, and its points where they are known here."""

    entry_id: int
    robust_accuracy: float
    num_points: int
    certificate_sha256: str | None
    points: Points | None


def ranked(session: Session, board: Board) -> list[RankedPoints]:
    """The entries of a board that have a rank, the first rank first."""
    certificates = strongest_certificates.of_board(session, board.dataset, board.name)
    known = robust_points.known(session, certificates.values())
    found = []
    for entry_id, accuracy, num_points in ranking.ranked_figures(session, board):
        sha256 = certificates.get(entry_id)
        points = known.get(sha256 or "")
        # A figure that is lower than its certificate says is a figure alone.
        agrees = points is not None and (len(points), points.sum()) == (num_points, round(accuracy * num_points))
        found.append(RankedPoints(entry_id, accuracy, num_points, sha256, points if agrees else None))
    return found


@dataclass(frozen=True)
class HardPoint:
    """A test image of a board."""

    index: int
    """Its place among the test images, from 0."""
    lost_by: int
    """How many of the networks get it wrong, with an attack or without."""


@dataclass(frozen=True)
class BoardPoints:
    """The test images of a board by how many of its networks lose them."""

    entry_ids: list[int]
    """Whose points are known, the first rank first."""
    certificates: list[str]
    """sha256 of theirs."""
    counts: list[int]
    """How many images are lost by none, by one, ..., by all of them: one number more than there are entries."""
    listed: list[HardPoint]

    @property
    def num_points(self) -> int:
        return sum(self.counts)


def board_points(
    session: Session, board: Board, order: Order, *, offset: int, limit: int, least: int = 0
) -> BoardPoints:
    """
    Args:
        session: to read with.
        board: whose.
        order: the images that most networks lose first, or those that fewest do; equal ones in their own order.
        offset: how many to pass over.
        limit: how many at most.
        least: only images that at least so many networks lose.
    """
    found = ranked(session, board) if board.epsilon is not None else []
    # All of one length: an imported figure has no points, and what is ranked took all test images.
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
    """For each image an entry whose certificate has a picture of it, and what broke it there.

    A certificate holds the images that an attack broke: one that every network gets wrong without an attack is in none.
    Only the certificates of the best few are read, each a file that may have to come from a bucket, and only as long as
    a picture is missing; one that cannot be had is passed over.
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
