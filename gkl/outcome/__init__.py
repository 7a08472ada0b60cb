"""What a run reports while it works and when it ends. Free of torch.

The runner writes these models as JSON lines, the supervisor reads them, the database keeps them.
"""

from gkl.outcome.common import Manifest, Record
from gkl.outcome.evaluation import (
    REPAIR,
    TRANSFER,
    AttackOutcome,
    CheckName,
    CheckOutcome,
    CorruptionOutcome,
    EvaluationOutcome,
    Flag,
    ShardOutcome,
    broken_beyond_autoattack,
    gap,
)
from gkl.outcome.events import (
    MESSAGE,
    AttackFinished,
    AttackSoFar,
    BlockSaved,
    CheckpointSaved,
    Ending,
    Event,
    Failed,
    Interrupted,
    PointsSoFar,
    Progress,
    ProvisionalVerdict,
    Resources,
    WeightsConverted,
)
from gkl.outcome.evidence import ExternalOutcome, ReportOutcome, TransferByAttack, TransferCounts, TransferOutcome
from gkl.outcome.training import EpochFinished, LongTailAccuracy, StepMetrics, TeacherOutcome, TrainOutcome

__all__ = [
    "MESSAGE",
    "REPAIR",
    "TRANSFER",
    "AttackFinished",
    "AttackOutcome",
    "AttackSoFar",
    "BlockSaved",
    "CheckName",
    "CheckOutcome",
    "CheckpointSaved",
    "CorruptionOutcome",
    "Ending",
    "EpochFinished",
    "EvaluationOutcome",
    "Event",
    "ExternalOutcome",
    "Failed",
    "Flag",
    "Interrupted",
    "LongTailAccuracy",
    "Manifest",
    "PointsSoFar",
    "Progress",
    "ProvisionalVerdict",
    "Record",
    "ReportOutcome",
    "Resources",
    "ShardOutcome",
    "ShotAccuracies",
    "StepMetrics",
    "TeacherOutcome",
    "TrainOutcome",
    "TransferByAttack",
    "TransferCounts",
    "TransferOutcome",
    "WeightsConverted",
    "broken_beyond_autoattack",
    "gap",
]
