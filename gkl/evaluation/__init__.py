"""Robust accuracy by AutoAttack, measured in blocks that can be resumed and proven by a certificate.

`evaluate` and `verify` work on files, as the service does. `measure` takes any classifier and any images.
"""

from gkl.evaluation.blocks import Blocks
from gkl.evaluation.evaluate import CERTIFICATE_FILE, evaluate, evaluate_shard, verify
from gkl.evaluation.external import merge_examples
from gkl.evaluation.measurement import Shard, measure, measure_shard
from gkl.evaluation.points import Measurement
from gkl.evaluation.replay import measure_transfer
from gkl.evaluation.report import check_report
from gkl.evaluation.verification import Verification

__all__ = [
    "CERTIFICATE_FILE",
    "Blocks",
    "Measurement",
    "Shard",
    "Verification",
    "check_report",
    "evaluate",
    "evaluate_shard",
    "measure",
    "measure_shard",
    "measure_transfer",
    "merge_examples",
    "verify",
]
