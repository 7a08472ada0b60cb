"""Which test images each certificate's network gets right under every attack: one bit per image, in the database.

For an evaluation without attacks these are the images that it classifies correctly.

A certificate is a large file, perhaps in a bucket; boards and comparisons need only these bits of it. They are stored
by the certificate's sha256, so that they can never disagree with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sqlalchemy import Select, delete, or_, select, union, update
from sqlalchemy.orm import Session

from app.boards.certificates import standing_points
from app.core.errors import NotFound
from app.db.database import Database, database_now
from app.db.tables import Entry, Evaluation, ExternalAttack, Report, RobustPoints
from app.store import ArtifactStore

_log = logging.getLogger(__name__)

_AT_ONCE = 500
# Each certificate is a file to read, and perhaps to download, and the relay that calls this has other work to do.
_SECONDS_AT_ONCE = 2.0

Points = NDArray[np.bool_]
"""(N,): in the order of the test images, whether the network gets each right under every attack."""


def record(session: Session, certificate_sha256: str, points: Points) -> None:
    """Store the bits of a certificate, unless they are stored already."""
    if session.get(RobustPoints, certificate_sha256) is None:
        bits = np.packbits(points).tobytes()
        session.add(RobustPoints(certificate_sha256=certificate_sha256, num_points=len(points), bits=bits))
        session.flush()


def stored_points(session: Session, certificates: Iterable[str]) -> dict[str, Points]:
    """The points of each of these certificates whose bits are stored."""
    wanted = sorted(set(certificates))
    found: dict[str, Points] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        chosen = wanted[start : start + _AT_ONCE]
        for row in session.scalars(select(RobustPoints).where(RobustPoints.certificate_sha256.in_(chosen))):
            bits = np.frombuffer(row.bits, dtype=np.uint8)
            found[row.certificate_sha256] = np.unpackbits(bits, count=row.num_points).astype(np.bool_)
    return found


def record_missing(database: Database, store: ArtifactStore, unreadable: set[str]) -> bool:
    """Store the bits of certificates that are older than this table: for a few seconds, and at least of one.

    Args:
        database: where the bits are stored.
        store: has the certificates.
        unreadable: certificates to skip; those whose file is missing or damaged are added.

    Returns:
        Whether there are more.
    """
    with database.reading() as session:
        missing = set(session.scalars(_named().except_(select(RobustPoints.certificate_sha256)))) - unreadable
    ends = time.monotonic() + _SECONDS_AT_ONCE
    for number, sha256 in enumerate(sorted(missing)):
        if number > 0 and time.monotonic() > ends:
            return True
        try:
            points = standing_points(store.path(sha256))
        except (NotFound, SafetensorError, OSError) as error:
            _log.warning("the certificate %s cannot be read (%s): its points are not known", sha256, error)
            unreadable.add(sha256)
            continue
        with database.writing() as session:
            record(session, sha256, points)
            _note_change(session, sha256)
    return False


def _note_change(session: Session, sha256: str) -> None:
    """Mark the entries with this certificate as changed, since caches of their boards lack these points."""
    measured = select(Evaluation.id).where(Evaluation.certificate_sha256 == sha256)
    attacked = select(ExternalAttack.entry_id).where(ExternalAttack.certificate_sha256 == sha256)
    which = or_(Entry.evaluation_id.in_(measured), Entry.id.in_(attacked))
    session.execute(update(Entry).where(which).values(changed_at=database_now(session)))


def forget_unnamed(session: Session) -> None:
    """Remove the bits of certificates that no result names any more."""
    named = _named().subquery()
    session.execute(delete(RobustPoints).where(RobustPoints.certificate_sha256.not_in(select(named.c[0]))))


def _named() -> Select[str]:
    columns = (Evaluation.certificate_sha256, ExternalAttack.certificate_sha256, Report.certificate_sha256)
    every = union(*(select(column.label("sha256")).where(column.is_not(None)) for column in columns)).subquery()
    return select(every.c.sha256)
