"""Upgrading a database of an earlier version: its schema, then values that the earlier version did not store."""

from __future__ import annotations

import json

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, joinedload

from app.boards.naming import imported_parameters
from app.boards.placing import IS_RANKED, place_on_board
from app.boards.robustbench import figures_in_3d
from app.db import migrations
from app.db.database import Database
from app.db.tables import Entry, Evaluation, Model
from app.jobs import metric_sums
from gkl.catalog import num_parameters


def upgrade(database: Database) -> None:
    """Upgrade the database; does nothing if it is of this version."""
    migrations.upgrade(database)
    # Steps of a newer version are unknown here; `gklbench up` says so when it checks the schema.
    if migrations.is_current(database):
        with database.writing() as session:
            add_missing(session)
        metric_sums.count_new_events(database)


def add_missing(session: Session) -> None:
    """Add entries and values that earlier versions did not store."""
    _add_entries(session)
    _add_corruption_errors(session)
    _add_parameters(session)
    _add_figures_in_3d(session)


def _add_entries(session: Session) -> None:
    found = session.execute(
        select(Model, Evaluation.board)
        .join(Evaluation.model)
        .outerjoin(Entry, and_(Entry.model_id == Model.id, Entry.board == Evaluation.board))
        .where(IS_RANKED, Entry.id.is_(None))
        .distinct()
        .order_by(Model.id, Evaluation.board)
    ).all()
    for model, name in found:
        place_on_board(session, model, name)


def _add_corruption_errors(session: Session) -> None:
    """Add RobustBench's mean corruption error (mCE) to entries that were measured here."""
    is_without = Entry.robustbench_mean_corruption_error.is_(None)
    on_its_board = and_(Entry.dataset == "imagenet", Entry.board == "corruptions")
    for entry in session.scalars(select(Entry).join(Entry.evaluation).where(on_its_board, is_without)):
        assert entry.evaluation is not None, "joined"
        entry.robustbench_mean_corruption_error = entry.evaluation.robustbench_mean_corruption_error


def _add_parameters(session: Session) -> None:
    """Add the number of parameters of networks that the earlier version did not know."""
    is_of_known_origin = or_(Entry.source.is_not(None), Entry.model_id.is_not(None))
    query = select(Entry).where(Entry.num_parameters.is_(None), is_of_known_origin).options(joinedload(Entry.model))
    for entry in session.scalars(query):
        if entry.model is not None:
            entry.num_parameters = num_parameters(entry.model.architecture, entry.dataset)
        else:
            entry.num_parameters = imported_parameters(entry.dataset, entry.board, entry.slug, entry.architecture)


def _add_figures_in_3d(session: Session) -> None:
    """Add the figures on corruptions in 3D from imported files on boards of corruptions."""
    is_without = and_(Entry.corruptions_3d_accuracy.is_(None), Entry.corruptions_3d_error.is_(None))
    query = select(Entry).where(Entry.source.is_not(None), Entry.board.startswith("corruptions"), is_without)
    for entry in session.scalars(query):
        assert entry.source is not None, "asked for"
        found = figures_in_3d(entry.board, json.loads(entry.source))
        entry.corruptions_3d_accuracy, entry.corruptions_3d_error = found
