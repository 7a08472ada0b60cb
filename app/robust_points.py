"""Which test images each certificate's network gets right under every attack: one bit an image, in the database.

A certificate is a large file, perhaps in a bucket; boards and comparisons need only these bits of it. They are kept by
the certificate's sha256, so that they can never disagree with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sqlalchemy import Select, delete, select, union
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.certificates import standing_points
from app.database import Database
from app.errors import NotFound
from app.tables import Evaluation, ExternalAttack, Report, RobustPoints

_log = logging.getLogger(__name__)

_AT_ONCE = 500
# Of a round of the cleanup: each is a file to read, and perhaps to fetch.
_FILES_AT_ONCE = 50

Points = NDArray[np.bool_]
"""(N,): in the order of the test images, whether the network gets each right under every attack."""


def record(session: Session, certificate_sha256: str, points: Points) -> None:
    """Keep the bits of a certificate, unless they are kept already."""
    if session.get(RobustPoints, certificate_sha256) is None:
        bits = np.packbits(points).tobytes()
        session.add(RobustPoints(certificate_sha256=certificate_sha256, num_points=len(points), bits=bits))
        session.flush()


def known(session: Session, certificates: Iterable[str]) -> dict[str, Points]:
    """Of those certificates whose bits are kept."""
    wanted = sorted(set(certificates))
    found: dict[str, Points] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        chosen = wanted[start : start + _AT_ONCE]
        for row in session.scalars(select(RobustPoints).where(RobustPoints.certificate_sha256.in_(chosen))):
            bits = np.frombuffer(row.bits, dtype=np.uint8)
            found[row.certificate_sha256] = np.unpackbits(bits, count=row.num_points).astype(np.bool_)
    return found


def record_missing(database: Database, store: ArtifactStore, unreadable: set[str]) -> bool:
    """Keep the bits of certificates that are older than this table, some of them a call.

    Args:
        database: where.
        store: which has the files.
        unreadable: certificates that are passed over; those whose file is gone or damaged are added.

    Returns:
        Whether there are more.
    """
    with database.reading() as session:
        missing = set(session.scalars(_named().except_(select(RobustPoints.certificate_sha256)))) - unreadable
    for sha256 in sorted(missing)[:_FILES_AT_ONCE]:
        try:
            points = standing_points(store.path(sha256))
        except (NotFound, SafetensorError, OSError) as error:
            _log.warning("the certificate %s cannot be read (%s): its points are not known", sha256, error)
            unreadable.add(sha256)
            continue
        with database.writing() as session:
            record(session, sha256, points)
    return len(missing) > _FILES_AT_ONCE


def forget_unnamed(session: Session) -> None:
    """Remove the bits of certificates that no measurement names any more."""
    named = _named().subquery()
    session.execute(delete(RobustPoints).where(RobustPoints.certificate_sha256.not_in(select(named.c[0]))))


def _named() -> Select[str]:
    columns = (Evaluation.certificate_sha256, ExternalAttack.certificate_sha256, Report.certificate_sha256)
    every = union(*(select(column.label("sha256")).where(column.is_not(None)) for column in columns)).subquery()
    return select(every.c.sha256)
