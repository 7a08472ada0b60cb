"""The certificate of an entry that breaks the most points: its evaluation's own, or one with merged examples."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, select, true
from sqlalchemy.orm import Session

from app.boards.names import board_name
from app.db.tables import Entry, Evaluation, ExternalAttack, Model
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec

# How many other models' certificates are tried on a new model: only forward passes, but each is a file to read.
_OTHERS = 5


def of_entry(session: Session, entry: Entry) -> str | None:
    """The sha256 of the entry's strongest certificate: its evaluation's, one with merged examples, or a report's."""
    own = entry.evaluation
    if own is None:
        return None if entry.report is None else entry.report.certificate_sha256
    merged = _merged(session, ExternalAttack.entry_id == entry.id)
    return _strongest(own.certificate_sha256, own.robust_correct, merged.get(entry.id))


def of_board(session: Session, dataset: str, board: str) -> dict[int, str]:
    """The sha256 of `of_entry` by entry id, for each entry of a board that was measured here and has a certificate."""
    merged = _merged(session, ExternalAttack.entry.has(and_(Entry.dataset == dataset, Entry.board == board)))
    measured = (
        select(Entry.id, Evaluation.certificate_sha256, Evaluation.robust_correct)
        .join(Entry.evaluation)
        .where(Entry.dataset == dataset, Entry.board == board)
    )
    found = {entry_id: _strongest(own, left, merged.get(entry_id)) for entry_id, own, left in session.execute(measured)}
    return {entry_id: sha256 for entry_id, sha256 in found.items() if sha256 is not None}


def _merged(session: Session, which: ColumnElement[bool]) -> dict[int, tuple[str, int]]:
    """By entry id: the certificate with merged examples that leaves the fewest points, and how many it leaves."""
    columns = (ExternalAttack.entry_id, ExternalAttack.certificate_sha256, ExternalAttack.robust_correct)
    has_one = and_(ExternalAttack.certificate_sha256.is_not(None), ExternalAttack.robust_correct.is_not(None))
    rows = session.execute(
        # Among equals the first comes last, and so overwrites the others.
        select(*columns).where(which, has_one).order_by(ExternalAttack.robust_correct.desc(), ExternalAttack.id.desc())
    )
    return {entry_id: (sha256, left) for entry_id, sha256, left in rows if sha256 is not None and left is not None}


def _strongest(own: str | None, own_left: int | None, merged: tuple[str, int] | None) -> str | None:
    return merged[0] if merged is not None and own_left is not None and merged[1] < own_left else own


def of_others(session: Session, spec: EvaluateSpec) -> list[str]:
    """The sha256 of the certificates of a few of the most robust other models on the evaluation's board."""
    entries = session.scalars(
        select(Entry)
        .join(Entry.model)
        .where(
            Entry.dataset == spec.dataset,
            Entry.board == board_name(spec.dataset, spec.evaluation),
            Entry.is_provisional.is_(False),
            Entry.withdrawn_at.is_(None),
            Model.weights_sha256 != spec.weights,
            # Published weights are named by their architecture.
            Model.architecture != spec.architecture if spec.weights == PUBLISHED_WEIGHTS else true(),
        )
        .order_by(Entry.unrankable_reason.is_not(None), Entry.robust_accuracy.desc(), Entry.id)
        .limit(_OTHERS)
    )
    return [found for entry in entries if (found := of_entry(session, entry)) is not None]
