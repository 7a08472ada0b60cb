"""The database's tables, by subject. `app.jobs.state` is the only place where a job's state changes."""

from app.db.tables.accounts import AuditRecord, LoginSession, Token
from app.db.tables.base import Base, UtcDateTime
from app.db.tables.boards import CLEAN_BOARD, AttackResult, Entry, Evaluation, Model
from app.db.tables.evidence import ExternalAttack, Report, RobustPoints, Transfer
from app.db.tables.jobs import (
    ANONYMOUS,
    NEEDED_BY_A_RETRY,
    TO_GO_ON_FROM,
    UNFINISHED,
    FileKind,
    IdempotencyKey,
    Job,
    JobEvent,
    JobFile,
    JobLogPart,
    OutboxMessage,
    Submitter,
)
from app.db.tables.metrics import MetricRun, MetricSum
from app.db.tables.weights import PartialUpload, Upload, UploadSender
from app.db.tables.workers import WorkerLoad, WorkerRow, WorkerTime

__all__ = [
    "ANONYMOUS",
    "CLEAN_BOARD",
    "NEEDED_BY_A_RETRY",
    "TO_GO_ON_FROM",
    "UNFINISHED",
    "AttackResult",
    "AuditRecord",
    "Base",
    "Entry",
    "Evaluation",
    "ExternalAttack",
    "FileKind",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobFile",
    "JobLogPart",
    "LoginSession",
    "MetricRun",
    "MetricSum",
    "Model",
    "OutboxMessage",
    "PartialUpload",
    "Report",
    "RobustPoints",
    "Submitter",
    "Token",
    "Transfer",
    "Upload",
    "UploadSender",
    "UtcDateTime",
    "WorkerLoad",
    "WorkerRow",
    "WorkerTime",
]
