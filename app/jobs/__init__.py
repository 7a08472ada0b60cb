"""The life of a job: created, claimed by a worker, ended, or cancelled and retried.

The other modules of this package keep what belongs to jobs besides their state: files, logs, queue messages, workers.
"""

from app.jobs.asking import cancel_own, request_cancel, retry, retry_own
from app.jobs.claiming import claim, heartbeat, lock_claimed, record_event
from app.jobs.creating import create, register_all_submitters, submit
from app.jobs.ending import end_cancelled, fail, hand_back, succeed
from app.jobs.reading import count_due, events_after, page, progress, seconds_on_workers
from app.jobs.reaping import reap
from app.jobs.state import Claim, get, get_locked
from app.jobs.teachers import release_students

__all__ = [
    "Claim",
    "cancel_own",
    "claim",
    "count_due",
    "create",
    "end_cancelled",
    "events_after",
    "fail",
    "get",
    "get_locked",
    "hand_back",
    "heartbeat",
    "lock_claimed",
    "page",
    "progress",
    "reap",
    "record_event",
    "register_all_submitters",
    "release_students",
    "request_cancel",
    "retry",
    "retry_own",
    "seconds_on_workers",
    "submit",
    "succeed",
]
