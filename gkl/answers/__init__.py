"""Models of the REST API's answers, which the service and its client share.

The service builds them from database rows, `gkl.client` parses them, and the OpenAPI document describes them. Importing
them needs neither torch nor any package of the server.
"""

from gkl.answers.accounts import AuditPage, AuditView, IdentityView, LimitsView, UsedView
from gkl.answers.boards import (
    Anomaly,
    BoardDetail,
    BoardPointsView,
    BoardPointView,
    BoardSummary,
    EntryDetail,
    EntryView,
    ExternalAttackView,
    ModelDetail,
    ModelInfoFiles,
    NumberView,
    RankNote,
    Withdrawal,
)
from gkl.answers.common import HELD, FieldProblem, JobKind, JobState, Problem, Provenance, Readiness, Schema, Scope
from gkl.answers.comparison import (
    ComparisonView,
    PairTransferView,
    PairView,
    SpecDifference,
    TransferByAttackView,
    TransferCountsView,
    TransferRequest,
    TransferView,
)
from gkl.answers.jobs import FailureView, JobMetrics, JobPage, JobView, LoadView, WorkerView
from gkl.answers.measurements import AccuracyView, AttackView, ClassView, EvaluationView, ModelView, PointView, TakenFor
from gkl.answers.weights import UploadView

__all__ = [
    "HELD",
    "AccuracyView",
    "Anomaly",
    "AttackView",
    "AuditPage",
    "AuditView",
    "BoardDetail",
    "BoardPointView",
    "BoardPointsView",
    "BoardSummary",
    "ClassView",
    "ComparisonView",
    "EntryDetail",
    "EntryView",
    "EvaluationView",
    "ExternalAttackView",
    "FailureView",
    "FieldProblem",
    "IdentityView",
    "JobKind",
    "JobMetrics",
    "JobPage",
    "JobState",
    "JobView",
    "LimitsView",
    "LoadView",
    "ModelDetail",
    "ModelInfoFiles",
    "ModelView",
    "NumberView",
    "PairTransferView",
    "PairView",
    "PointView",
    "Problem",
    "Provenance",
    "RankNote",
    "Readiness",
    "Schema",
    "Scope",
    "SpecDifference",
    "TakenFor",
    "TransferByAttackView",
    "TransferCountsView",
    "TransferRequest",
    "TransferView",
    "UploadView",
    "UsedView",
    "Withdrawal",
    "WorkerView",
]
