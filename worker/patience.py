"""How an attempt waits for a database or an artifact store that is away, while its run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.orm import Session

from app.core.errors import StoreAway
from app.db.database import Database
from worker.lease import Lease
from worker.run_log import RunLog

_T = TypeVar("_T")
_STORE_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """Of one attempt."""

    database: Database
    lease: Lease
    log: RunLog
    gives_up: Callable[[], bool]
    """Whether to wait no longer: the job will be taken from here."""
    store_seconds: float
    """Longest wait for the store."""

    def write(self, change: Callable[[Session], _T]) -> _T:
        """The run goes on while the database is away."""
        return self.database.write_patiently(change, give_up=self.gives_up)

    def with_store(self, use: Callable[[], _T]) -> _T:
        """The run goes on while the store is away; for so long as a run may be silent, then others may have the GPU."""
        began = time.monotonic()
        waited = False
        while True:
            try:
                found = use()
            except StoreAway as error:
                is_long = time.monotonic() - began > self.store_seconds
                if is_long or self.lease.is_to_cancel or self.gives_up():
                    raise
                if not waited:
                    self.log.add(f"--- waiting: {error} ---\n".encode())
                waited = True
                time.sleep(_STORE_SECONDS)
                continue
            if waited:
                self.log.add(b"--- the artifact store is back ---\n")
            return found
