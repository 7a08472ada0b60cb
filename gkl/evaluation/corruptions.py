"""Accuracy under common corruptions (arXiv 1903.12261): 15 corruptions at five severities."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gkl.attacks.classifier import Classifier
from gkl.catalog import CORRUPTIONS
from gkl.data import SEVERITIES, Images, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation.blocks import Block, Blocks
from gkl.evaluation.progress import EvaluationProgress
from gkl.outcome import CorruptionOutcome, Event

ALL = tuple((corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)
"""Every corruption at every severity, in the order in which they are run."""


def measure_corruptions(
    model: nn.Module,
    load: Callable[[str, int], Images],
    labels: Tensor,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    blocks: Blocks,
    first_part: int,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
    device: torch.device,
) -> tuple[list[CorruptionOutcome], Tensor]:
    """Classify every corrupted image with the model.

    Args:
        model: the network, in evaluation mode.
        load: corruption and severity -> the images, of which the first N are used.
        labels: (N,) int64 of the clean images; those of the corrupted images must be the same.
        num_classes: C.
        batch_size: images at once.
        seed: torch is seeded with it before each corruption, for randomized models.
        blocks: where finished parts are kept.
        first_part: number of the first part; the others follow it.
        report, should_stop, device: as for `measure`.

    Returns:
        The outcome of each corruption at each severity, and the predictions (75, N) int64, in the order of `ALL`.

    Raises:
        InvalidInput: the labels of the corrupted images differ.
        Stopped: `should_stop` said yes.
    """
    progress = EvaluationProgress(report, should_stop)
    progress.restore(1)
    classifier = Classifier(model, num_classes, progress.on_call)
    outcomes, predictions = [], []
    for position, (corruption, severity) in enumerate(ALL):
        found = blocks.get(first_part + position)
        if found is None:
            calls = -(-len(labels) // batch_size)
            progress.start_part(
                corruption.replace("_", " "),
                f"severity {severity}, {position + 1} of {len(ALL)}",
                work=1,
                calls=calls,
                left=len(ALL) - position,
            )
            started = time.perf_counter()
            images = load(corruption, severity)
            if not torch.equal(images.labels[: len(labels)], labels):
                raise InvalidInput(
                    f"the labels of {corruption}, severity {severity}, are not those of the clean images; "
                    "fetch the corrupted data set again"
                )
            torch.manual_seed(seed)
            batches = torch.arange(len(labels)).split(batch_size)
            prediction = torch.cat(
                [classifier.first_logits(unit_range(images.take(b)).to(device)).argmax(1).cpu() for b in batches]
            )
            record = {
                "stage": corruption,
                "severity": severity,
                "seconds": time.perf_counter() - started,
                "data_sha256": images.sha256(),
            }
            found = Block({"prediction": prediction}, record)
            blocks.put(first_part + position, found)
            progress.finish_part()
        else:
            progress.restore(1)
        predictions.append(found.tensors["prediction"])
        outcomes.append(
            CorruptionOutcome(
                corruption=corruption,
                severity=severity,
                points=len(labels),
                correct=int((predictions[-1] == labels).sum()),
                seconds=found.record["seconds"],
                data_sha256=found.record["data_sha256"],
            )
        )
    return outcomes, torch.stack(predictions)
