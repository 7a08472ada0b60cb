"""Checks the certificate of a network whose weights only its owner has, as far as possible without the network."""

from __future__ import annotations

import time
from pathlib import Path

from gkl.catalog import DATASETS
from gkl.data import load_test
from gkl.errors import InvalidInput
from gkl.evaluation.certificate import Certificate, read_certificate
from gkl.evaluation.verification import verify_certificate
from gkl.outcome import ReportOutcome
from gkl.run_context import RunContext
from gkl.spec import ReportSpec, why_on_no_board


def check_report(spec: ReportSpec, certificate: Path, context: RunContext) -> ReportOutcome:
    """Check norms, box, labels, clean images and counts against the data, and trust the recorded predictions.

    Args:
        spec: names the network and the data set.
        certificate: the file.
        context: the folder of the data sets, and the receiver of progress.

    Raises:
        InvalidInput: the certificate does not hold (the message names the first problem), or no board accepts it.
        Stopped: the context's `should_stop` said yes before the data was read.
    """
    started = time.perf_counter()
    known = read_certificate(certificate)
    if known.dataset != spec.dataset:
        raise InvalidInput(f"the certificate is about {known.dataset}, and was sent for {spec.dataset}")
    reason = why_on_no_board(known.dataset, known.evaluation.protocol, known.num_points)
    if reason is not None:
        raise InvalidInput(f"the certificate {reason}")
    context.tell(0.0, "checking the certificate")
    data = load_test(known.dataset, context.datasets_dir, known.num_points, known.preprocessing)
    found = verify_certificate(known, None, data)
    problems = [*found.problems, *_impossible_answers(known)]
    if problems:
        raise InvalidInput(f"the certificate does not hold: {problems[0]}")
    if found.robust_correct is None:
        raise InvalidInput("the certificate names no attack")
    return ReportOutcome(
        evaluation=known.evaluation.model_dump(mode="json"),
        attacks=known.attacks,
        num_points=known.num_points,
        clean_correct=found.clean_correct,
        robust_correct=found.robust_correct,
        weights_sha256=known.weights_sha256,
        flags=known.flags,
        seconds=time.perf_counter() - started,
    )


def _impossible_answers(known: Certificate) -> list[str]:
    """Problems with predicted classes that the data set does not have; -1 stands for NaN."""
    num_classes = DATASETS[known.dataset].num_classes
    return [
        f"it holds the class {int(answers[wrong][0])}, and {known.dataset} has {num_classes} classes"
        for answers in (known.tensors["prediction"], known.tensors["adversarial_prediction"])
        if bool((wrong := (answers < -1) | (answers >= num_classes)).any())
    ]
