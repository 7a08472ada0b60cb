"""Saves what a run reports while it works: events as rows, files in the store."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import jobs
from app.core.errors import StoreAway
from app.core.settings import Settings
from app.db.tables import FileKind
from app.jobs import job_files
from app.jobs.broker import relay_is_running
from app.store import ArtifactStore
from gkl.outcome import (
    BlockSaved,
    CheckpointSaved,
    Event,
    Progress,
    ProvisionalVerdict,
    Resources,
    WeightsConverted,
)
from gkl.spec import named_weights
from worker.patience import Patience
from worker.results import save_provisional

_log = logging.getLogger(__name__)


class RunEvents:
    """Saves the events of one attempt."""

    def __init__(
        self, settings: Settings, store: ArtifactStore, claim: jobs.Claim, directory: Path, patience: Patience
    ) -> None:
        self.settings, self.store, self.claim = settings, store, claim
        self.directory, self.patience = directory, patience
        self.superseded: set[str] = set()
        """Hashes of this attempt's checkpoints that nothing needs any more and that are not removed yet."""

    def take(self, event: Event) -> None:
        """Save one event.

        Raises:
            StaleAttempt: another worker has the job.
            NoSpaceLeft: the disk of the artifact store is full.
            StoreAway: the artifact store was down for too long.
        """
        if isinstance(event, Progress | Resources):
            self.patience.lease.tell(event)
        elif isinstance(event, CheckpointSaved):
            self._keep(FileKind.RESUME, event.file, event.epoch)
        elif isinstance(event, BlockSaved):
            self._keep(FileKind.BLOCK, event.file, event.number)
        elif isinstance(event, WeightsConverted):
            self._keep_converted(event.file)
        elif isinstance(event, ProvisionalVerdict):
            save_provisional(self.patience.database, self.claim, event.outcome, give_up=self.patience.gives_up)
        else:
            self.patience.write(lambda session: jobs.record_event(session, self.claim, event))

    def _keep(self, kind: FileKind, file: str, number: int) -> None:
        """Store a file from which a later attempt can resume."""
        try:
            stored = self.patience.with_store(lambda: self.store.put(self.directory / file))
        except FileNotFoundError:
            # The runner keeps only its newest files, and has already removed this one.
            return

        def keep(session: Session) -> list[str]:
            jobs.lock_claimed(session, self.claim)
            job_id = self.claim.job_id
            if kind is FileKind.RESUME:
                return job_files.add_resume_point(session, job_id, number, file=file, stored=stored)
            job_files.add_file(session, job_id, kind, number=number, file=file, stored=stored)
            return []

        self.superseded.update(self.patience.write(keep))
        self._discard_superseded()

    def _discard_superseded(self) -> None:
        """Remove superseded checkpoints now instead of with the next cleanup, since a fast training writes many.

        Nothing is removed while no relay runs. An administrator can stop the relay during a backup, which then holds
        all files that its rows name.
        """
        if not self.superseded or not relay_is_running(self.settings):
            return

        def is_named(hashes: list[str]) -> set[str]:
            with self.patience.database.reading() as session:
                return job_files.named_hashes(session, hashes)

        try:
            self.superseded -= self.store.discard(
                self.superseded, is_named, older_than_seconds=self.settings.young_seconds
            )
        except (StoreAway, SQLAlchemyError, OSError) as error:
            _log.warning("job %d: superseded checkpoints are left to the cleanup (%s)", self.claim.job_id, error)

    def _keep_converted(self, file: str) -> None:
        """Store converted weights, so that later jobs need not convert the same file."""
        named = named_weights(self.claim.spec)
        assert named is not None, "else there was nothing to convert"
        stored = self.patience.with_store(lambda: self.store.put(self.directory / file))

        def keep(session: Session) -> None:
            jobs.lock_claimed(session, self.claim)
            job_files.record_converted(session, self.claim.job_id, named.weights, stored)

        self.patience.write(keep)
