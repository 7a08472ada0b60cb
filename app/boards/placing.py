"""Placing measured models on boards, and withdrawing or restoring their ranks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.audit import COMMAND_LINE, Actor
from app.boards.naming import architecture_family, series_and_year, slug_of_measured
from app.core.errors import Conflict, NotFound
from app.db.database import database_now
from app.db.tables import CLEAN_BOARD, Entry, Evaluation, Model
from gkl.answers import Provenance
from gkl.catalog import ARCHITECTURES, DATASETS, LOSS_TITLES, num_parameters
from gkl.outcome import Flag, gap
from gkl.outcome.flags import ON_CLEAN_BOARDS, unrankable
from gkl.spec import RANKED_PROTOCOLS, Publication

IS_RANKED = and_(Evaluation.is_complete, Evaluation.protocol.in_(RANKED_PROTOCOLS))


def why_not_ranked(evaluation: Evaluation) -> str | None:
    """Why an evaluation gets no rank, in words; None if it gets one, now or when it is final."""
    if evaluation.protocol not in RANKED_PROTOCOLS:
        return f"protocol {evaluation.protocol}: not ranked"
    if not evaluation.is_complete:
        return f"{evaluation.num_points} of {DATASETS[evaluation.model.dataset].num_test} points: not ranked"
    return None


def place_on_board(session: Session, model: Model, name: str) -> Entry | None:
    """Place a model on its board by its best-known evaluation; None if no evaluation may be ranked there.

    A model that was evaluated more than once gets its lowest robust accuracy: an adversarial example that was found
    once exists, whatever a later run with another seed finds. A provisional verdict counts only while there is no
    final one. On a board of clean accuracy it gets the lowest clean accuracy, so that measuring again cannot raise it.
    """
    _lock(session, model)
    figure = Evaluation.clean_correct if name == CLEAN_BOARD else Evaluation.robust_accuracy
    best_known = session.scalars(
        select(Evaluation)
        .where(Evaluation.model_id == model.id, Evaluation.board == name, IS_RANKED)
        .order_by(Evaluation.is_provisional, figure, Evaluation.id)
        .limit(1)
    ).first()
    if best_known is None:
        return None
    now = database_now(session)
    known = select(Entry).where(Entry.model_id == model.id, Entry.board == name)
    # Locked too: a job with external examples may be lowering its accuracy at this moment.
    entry = session.scalars(known.with_for_update().execution_options(populate_existing=True)).first()
    if entry is None:
        entry = Entry(dataset=model.dataset, board=name, model_id=model.id, created_at=now, anomalies=[])
        entry.slug = slug_of_measured(session, model, name, best_known)
        entry.provenance = Provenance.VERIFIED
    _describe(session, entry, model, best_known)
    if entry.evaluation_id != best_known.id:
        # The admin's note referred to the earlier evaluation.
        entry.rank_note = None
    entry.evaluation_id, entry.changed_at = best_known.id, now
    entry.epsilon, entry.num_points = best_known.epsilon, best_known.num_points
    entry.is_provisional = best_known.is_provisional
    entry.clean_accuracy = best_known.clean_accuracy
    entry.mean_corruption_error = best_known.mean_corruption_error
    entry.robustbench_mean_corruption_error = best_known.robustbench_mean_corruption_error
    entry.robust_accuracy = best_known.robust_accuracy
    if best_known.robust_correct is not None:
        _set_attacked_accuracies(session, entry, best_known)
    update_flags(entry, best_known)
    session.add(entry)
    session.flush()
    return entry


def _set_attacked_accuracies(session: Session, entry: Entry, evaluation: Evaluation) -> None:
    """Set the lowest accuracy under AutoAttack, and the lower one under other attacks or external examples, if any."""
    lowest = evaluation.robust_accuracy
    assert lowest is not None
    rivals = select(Evaluation).where(
        Evaluation.model_id == evaluation.model_id,
        Evaluation.board == evaluation.board,
        Evaluation.is_provisional.is_(evaluation.is_provisional),
        IS_RANKED,
    )
    known = [rival.autoattack_accuracy for rival in session.scalars(rivals)]
    autoattack = min(accuracy for accuracy in known if accuracy is not None)
    if entry.external_accuracy is not None:
        lowest = min(lowest, entry.external_accuracy)
    entry.autoattack_accuracy, entry.robust_accuracy = autoattack, lowest
    # An external accuracy ranks in place of AutoAttack's, so it is left out unless it is lower.
    entry.external_accuracy = lowest if lowest < autoattack else None


def update_flags(entry: Entry, evaluation: Evaluation) -> None:
    """Update whether the entry is unreliable, and the reason that bars it from a rank, from its current flags."""
    flags = flags_of(entry, evaluation)
    is_clean = entry.board == CLEAN_BOARD
    reason = unrankable(flags, is_clean=is_clean)
    if _kind(reason) != _kind(entry.unrankable_reason):
        # The admin's note referred to another kind of reason. One more broken point is the same kind: the note stays,
        # since anybody could send such a point.
        entry.rank_note = None
    entry.unreliable = any(not is_clean or flag.name in ON_CLEAN_BOARDS for flag in flags)
    entry.unrankable_reason = reason


def _kind(reason: str | None) -> str | None:
    return None if reason is None else reason.partition(":")[0]


def flags_of(entry: Entry, evaluation: Evaluation) -> list[Flag]:
    """The flags of the entry's evaluation, updated with the external examples received since."""
    flags = [Flag.model_validate(flag) for flag in evaluation.flags]
    if evaluation.robust_correct is None or entry.robust_accuracy is None:
        return flags
    external = evaluation.robust_correct - round(entry.robust_accuracy * evaluation.num_points)
    found = gap({each.attack: each.broken for each in evaluation.attacks}, evaluation.num_points, external=external)
    return flags if found is None or external <= 0 else [*(flag for flag in flags if flag.name != "gap"), found]


def _lock(session: Session, model: Model) -> None:
    """Lock a model, so that transactions that place it run one after another and see each other's changes."""
    # Not the stronger lock: another transaction may just have added an evaluation that refers to the model.
    session.execute(select(Model.id).where(Model.id == model.id).with_for_update(key_share=True))


def withdraw_bound(session: Session, job_id: int) -> None:
    """Remove the provisional verdict of an evaluation that will not finish."""
    bound = session.scalars(
        select(Evaluation).where(Evaluation.job_id == job_id, Evaluation.is_provisional)
    ).one_or_none()
    if bound is None:
        return
    model, name = bound.model, bound.board
    _lock(session, model)
    standing_with = select(Entry).where(Entry.evaluation_id == bound.id).execution_options(populate_existing=True)
    entry = session.scalars(standing_with).one_or_none()
    if entry is not None:
        entry.evaluation_id = None
        session.flush()
    session.delete(bound)
    session.flush()
    if place_on_board(session, model, name) is None and entry is not None:
        session.delete(entry)
        session.flush()


def withdraw(session: Session, entry_id: int, reason: str, *, by: Actor = COMMAND_LINE) -> Entry:
    """Withdraw an entry: it loses its rank but stays on its board with the reason, also after a new evaluation.

    Raises:
        NotFound: there is no such entry.
        Conflict: it is already withdrawn.
    """
    entry = _locked(session, entry_id)
    if entry.is_withdrawn:
        raise Conflict(f"entry {entry_id} is already withdrawn: {entry.withdrawn_reason}")
    entry.withdrawn_at = entry.changed_at = database_now(session)
    entry.withdrawn_reason = reason
    session.flush()
    audit.record(session, by, "entry.withdraw", f"entry {entry_id}", {"reason": reason})
    return entry


def restore(session: Session, entry_id: int, *, by: Actor = COMMAND_LINE) -> Entry:
    """Restore the rank of a withdrawn entry.

    Raises:
        NotFound: there is no such entry.
        Conflict: it is not withdrawn.
    """
    entry = _locked(session, entry_id)
    if not entry.is_withdrawn:
        raise Conflict(f"entry {entry_id} is not withdrawn")
    entry.withdrawn_at = entry.withdrawn_reason = None
    entry.changed_at = database_now(session)
    session.flush()
    audit.record(session, by, "entry.restore", f"entry {entry_id}")
    return entry


def restore_rank(session: Session, entry_id: int, note: str, *, by: Actor = COMMAND_LINE) -> Entry:
    """Rank an entry although its flags bar it; the note is shown with it.

    Raises:
        NotFound: there is no such entry.
        Conflict: its flags do not bar it, or only its owner has measured it.
    """
    entry = _locked(session, entry_id)
    if not entry.is_barred:
        raise Conflict(f"entry {entry_id} is not barred from its rank by its flags")
    if entry.provenance is Provenance.REPORTED:
        raise Conflict(f"entry {entry_id} has no rank to restore: only its owner has measured it")
    entry.rank_note, entry.changed_at = note, database_now(session)
    session.flush()
    audit.record(session, by, "entry.rank", f"entry {entry_id}", {"note": note})
    return entry


def _locked(session: Session, entry_id: int) -> Entry:
    entry = session.scalars(select(Entry).where(Entry.id == entry_id).with_for_update()).first()
    if entry is None:
        raise NotFound(f"there is no entry {entry_id}")
    return entry


def _describe(session: Session, entry: Entry, model: Model, evaluation: Evaluation) -> None:
    publication = _publication(session, model, evaluation)
    architecture = ARCHITECTURES[model.architecture].title
    train_spec = {} if model.train_job is None else model.train_job.spec
    publish(entry, publication, name=model.name, year=model.created_at.year)
    entry.architecture, entry.family = architecture, architecture_family(architecture)
    entry.num_parameters = num_parameters(model.architecture, model.dataset)
    entry.loss = None if model.loss is None else LOSS_TITLES[model.loss]
    entry.synthetic_data = publication.synthetic_data or train_spec.get("synthetic") is not None


def publish(entry: Entry, publication: Publication, *, name: str, year: int) -> None:
    """Set what the owner publishes about an entry; `name` and `year` are the defaults."""
    entry.name = publication.title or name
    entry.authors, entry.link = publication.authors, publication.link or ""
    entry.venue, entry.footnote = publication.venue, publication.footnote
    entry.venue_series, published = series_and_year(publication.venue)
    entry.year = published or year
    entry.extra_data, entry.synthetic_data = publication.extra_data, publication.synthetic_data


def _publication(session: Session, model: Model, evaluation: Evaluation) -> Publication:
    """The publication from the evaluation's spec, else from the training's, else from the first evaluation with one."""
    others = session.scalars(select(Evaluation.manifest).where(Evaluation.model_id == model.id).order_by(Evaluation.id))
    specs = [
        evaluation.manifest.get("spec", {}),
        {} if model.train_job is None else model.train_job.spec,
        *(manifest.get("spec", {}) for manifest in others),
    ]
    said: dict[str, Any] = next((spec["publication"] for spec in specs if spec.get("publication")), {})
    return Publication.model_validate(said)
