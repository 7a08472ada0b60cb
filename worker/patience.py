"""How an attempt waits for a database or an artifact store that is down, while its run continues."""

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
    """Waiting for the database and the store on behalf of one attempt."""

    database: Database
    lease: Lease
    log: RunLog
    gives_up: Callable[[], bool]
    """Whether to stop waiting, because this worker has lost the job or must stop."""
    store_seconds: float
    """The longest wait for the store."""

    def write(self, change: Callable[[Session], _T]) -> _T:
        """Run a transaction; while the database is down, try again, and the run continues."""
        return self.database.write_patiently(change, give_up=self.gives_up)

    def with_store(self, use: Callable[[], _T]) -> _T:
        """Use the store; while it is down, try again for at most `store_seconds`, and the run continues meanwhile.

        Raises:
            StoreAway: the store was down for longer, or the job is to stop.
        """
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
