"""Checks adversarial examples that a user sent, one by one, and merges them into a certificate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from gkl.device import device_name, out_of_memory_explained
from gkl.errors import InvalidInput
from gkl.evaluation.certificate import Certificate
from gkl.evaluation.examples import Examples, Target, load_target, merge, read_attacked
from gkl.evaluation.judge import Judged
from gkl.evaluation.points import STANDS
from gkl.files import check_writable, sha256_of
from gkl.formats.tensor_files import load_tensors
from gkl.outcome import ExternalOutcome
from gkl.run_context import RunContext
from gkl.spec import ExternalSpec


@out_of_memory_explained()
def merge_examples(
    spec: ExternalSpec,
    certificate: Path,
    examples: Path,
    weights: Path | None,
    context: RunContext,
    *,
    batch_size: int = 200,
    converted: Path | None = None,
) -> ExternalOutcome:
    """Check every example with a pass of the network in float32, and merge those that break further points.

    Args:
        spec: names the network, and the attack that found the examples.
        certificate: the network's certificate so far, of N points.
        examples: safetensors with 'adversarial' (K, channels, height, width) float32 in [0, 1] and 'index' (K,) of
            integers, the positions of their clean images among the test images.
        weights: safetensors or state dict; None for RobustBench's published ones.
        context: where the merged certificate is written, if any example is added; receives progress.
        batch_size: images at once.
        converted: a converted copy of the weights from `gkl.conversion`, which is read instead of them.

    Raises:
        InvalidInput: an example is not allowed or does not fool the model (the message names the first such point), or
            a file cannot be used.
        InvalidVerdict: the merged certificate failed its check.
        NoSpaceLeft: the disk is full.
        Stopped: the context's `should_stop` said yes.
    """
    started = time.perf_counter()
    check_writable(context.directory)
    known = read_attacked(certificate)
    assert known.robust_correct is not None
    sent = _read_examples(examples, known)

    target = load_target(spec, known, weights, context, converted=converted, batch_size=batch_size)
    judged = _judged(sent, target, lambda done: context.tell(0.5 * done, "checking the examples"))
    new = known.tensors["broken_by"][sent.index] == STANDS
    outcome = ExternalOutcome(
        attack=spec.name,
        examples=len(sent),
        broken=int(new.sum()),
        robust_correct=known.robust_correct - int(new.sum()),
        base_sha256=sha256_of(certificate),
        device=device_name(target.device),
        seconds=time.perf_counter() - started,
    )
    if not outcome.broken:
        return outcome
    path = merge(
        target,
        sent.chosen(new),
        judged.chosen(new),
        context.directory,
        name=spec.name,
        on_call=lambda done: context.tell(0.6 + 0.4 * done, "checking the merged certificate"),
    )
    return outcome.model_copy(update={"certificate": path.name, "seconds": time.perf_counter() - started})


def _read_examples(path: Path, known: Certificate) -> Examples:
    tensors, _ = load_tensors(path)
    for name in ("adversarial", "index"):
        if name not in tensors:
            raise InvalidInput(f"the examples lack the tensor {name!r}; send 'adversarial' and 'index'")
    adversarial, index = tensors["adversarial"], tensors["index"]
    shape = tuple(known.tensors["adversarial"].shape[1:])
    if adversarial.dtype != torch.float32 or tuple(adversarial.shape[1:]) != shape:
        raise InvalidInput(
            f"'adversarial' is {adversarial.dtype} {tuple(adversarial.shape)}; send float32 images in [0, 1], "
            f"(examples, {', '.join(map(str, shape))})"
        )
    if index.is_floating_point() or index.dtype == torch.bool or index.shape != adversarial.shape[:1] or not len(index):
        raise InvalidInput("'index' must hold one whole number for each of the examples, at least one")
    index = index.long()
    outside = ((index < 0) | (index >= known.num_points)).nonzero()
    if len(outside):
        raise InvalidInput(f"there is no point {int(index[outside[0]])}; points are 0 to {known.num_points - 1}")
    places, counts = index.unique(return_counts=True)
    if (counts > 1).any():
        raise InvalidInput(f"point {int(places[counts > 1][0])} has two examples; send one for each point")
    return Examples.in_order(index, adversarial)


def _judged(sent: Examples, target: Target, on_call: Callable[[float], None]) -> Judged:
    """Judge all examples.

    Raises:
        InvalidInput: an example is not allowed, or the model classifies it correctly; names the first such point.
    """
    found = []
    for examples, judged in target.judge(sent, on_call):
        for i, fault in judged.faults(examples.adversarial, target.threat_model, must_fool=True)[:1]:
            raise InvalidInput(
                f"point {int(examples.index[i])}: {fault}; none of the examples was counted, mend it or leave it out"
            )
        found.append(judged)
    return Judged.joined(found)
