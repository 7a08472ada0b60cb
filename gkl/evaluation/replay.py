"""Replays the adversarial examples of one network's certificate against another network, by forward passes only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gkl.data import unit_range
from gkl.device import device_name, out_of_memory_explained
from gkl.errors import InvalidInput, InvalidVerdict
from gkl.evaluation.certificate import Certificate
from gkl.evaluation.examples import Examples, Target, load_target, merge, read_attacked, threat_model_of
from gkl.evaluation.judge import Judged, compare_with_record
from gkl.evaluation.points import STANDS
from gkl.files import check_writable, sha256_of
from gkl.outcome import ExternalOutcome, TransferByAttack, TransferOutcome
from gkl.run_context import RunContext
from gkl.spec import TransferSpec, why_not_within


@out_of_memory_explained()
def measure_transfer(
    spec: TransferSpec,
    source: Path,
    certificate: Path,
    weights: Path | None,
    context: RunContext,
    *,
    batch_size: int = 200,
    converted: Path | None = None,
) -> TransferOutcome:
    """Count how many adversarial examples of one network break another, and merge those that break further points.

    An example breaks the other network if that network classifies the clean image correctly and the adversarial image
    wrongly, both in float32. NaN counts as wrong.

    Args:
        spec: names the certificate of the examples, and the network on which they are tried.
        source: the certificate that contains the examples.
        certificate: the certificate of the network on which they are tried.
        weights: that network's weights, safetensors or state dict; None for RobustBench's published ones.
        context: where the merged certificate is written, if any example is added; receives progress.
        batch_size: images at once.
        converted: a converted copy of the weights from `gkl.conversion`, which is read instead of them.

    Raises:
        InvalidInput: the two networks were measured on different images, the examples lie outside the other network's
            threat model, or a file cannot be used.
        InvalidVerdict: the network's answers differ from those in its certificate, or the merged certificate failed
            its check.
        NoSpaceLeft: the disk is full.
        Stopped: the context's `should_stop` said yes.
    """
    started = time.perf_counter()
    check_writable(context.directory)
    theirs, known = read_attacked(source), read_attacked(certificate)
    if sha256_of(source) != spec.source or theirs.actual_sha256 != theirs.contents_sha256:
        raise InvalidInput("the certificate that holds the examples is another one than was asked for")
    _check_fits(theirs, known)

    target = load_target(spec, known, weights, context, converted=converted, batch_size=batch_size)
    replayed = Examples.in_order(theirs.tensors["index"], theirs.tensors["adversarial"])
    is_right = _clean_right(replayed, target, lambda done: context.tell(0.3 * done, "clean images"))
    judged = _judged(replayed, target, lambda done: context.tell(0.3 + 0.3 * done, "adversarial images"))
    breaks = is_right & judged.fools
    merged = _merge_what_stood(
        spec,
        target,
        replayed,
        judged,
        breaks,
        directory=context.directory,
        base_sha256=sha256_of(certificate),
        on_call=lambda done: context.tell(0.6 + 0.4 * done, "checking the merged certificate"),
    )
    return TransferOutcome(
        examples=len(replayed),
        clean_correct=int(is_right.sum()),
        broken=int(breaks.sum()),
        attacks=_by_attack(theirs, replayed, is_right, breaks),
        answers_vary=known.answers_vary,
        merged=merged,
        seconds=time.perf_counter() - started,
    )


def _check_fits(theirs: Certificate, known: Certificate) -> None:
    """
    Raises:
        InvalidInput: the examples of `theirs` cannot be judged by the evaluation of `known`.
    """
    ours = (known.dataset, known.dataset_sha256, known.num_points, known.preprocessing)
    if (theirs.dataset, theirs.dataset_sha256, theirs.num_points, theirs.preprocessing) != ours:
        raise InvalidInput("the two networks were measured on different images; only the same ones can be replayed")
    reason = why_not_within(threat_model_of(theirs), threat_model_of(known))
    if reason is not None:
        raise InvalidInput(f"the examples {reason}")


def _clean_right(replayed: Examples, target: Target, on_call: Callable[[float], None]) -> Tensor:
    """Whether the network classifies each example's clean image correctly: bool (K,).

    Raises:
        InvalidVerdict: an answer differs from the one in the certificate by more than rounding explains.
    """
    found = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(replayed), target.batch_size):
        on_call(start / len(replayed))
        index = replayed.index[start : start + target.batch_size]
        recorded = target.known.tensors["prediction"][index]
        compared = compare_with_record(target.logits(unit_range(target.data.images[index])), recorded)
        answers = compared.found
        if not target.known.answers_vary:
            for i, difference in compared.differences("clean")[:1]:
                raise InvalidVerdict(f"point {int(index[i])}: {difference}; nothing was recorded, please report this")
            answers = compared.in_favour
        found.append(answers == target.data.labels[index])
    return torch.cat(found)


def _judged(replayed: Examples, target: Target, on_call: Callable[[float], None]) -> Judged:
    """Judge all examples.

    Raises:
        InvalidInput: an example lies outside ball or box; names the first such point.
    """
    found = []
    for examples, judged in target.judge(replayed, on_call):
        for i, fault in judged.faults(examples.adversarial, target.threat_model, must_fool=False)[:1]:
            raise InvalidInput(f"point {int(examples.index[i])}: {fault}; nothing was counted")
        found.append(judged)
    return Judged.joined(found)


def _by_attack(
    theirs: Certificate, replayed: Examples, is_right: Tensor, breaks: Tensor
) -> tuple[TransferByAttack, ...]:
    found_by = theirs.tensors["broken_by"][replayed.index]
    counts = []
    for position, attack in enumerate(theirs.attacks):
        own = found_by == position
        if own.any():
            right, broken = int((own & is_right).sum()), int((own & breaks).sum())
            counts.append(TransferByAttack(attack=attack, examples=int(own.sum()), clean_correct=right, broken=broken))
    return tuple(counts)


def _merge_what_stood(
    spec: TransferSpec,
    target: Target,
    replayed: Examples,
    judged: Judged,
    breaks: Tensor,
    *,
    directory: Path,
    base_sha256: str,
    on_call: Callable[[float], None],
) -> ExternalOutcome:
    started, known = time.perf_counter(), target.known
    assert known.robust_correct is not None
    new = breaks & (known.tensors["broken_by"][replayed.index] == STANDS)
    path = None
    if new.any():
        path = merge(target, replayed.chosen(new), judged.chosen(new), directory, name=spec.attack, on_call=on_call)
    return ExternalOutcome(
        attack=spec.attack,
        examples=int(breaks.sum()),
        broken=int(new.sum()),
        robust_correct=known.robust_correct - int(new.sum()),
        base_sha256=base_sha256,
        certificate=None if path is None else path.name,
        device=device_name(target.device),
        seconds=time.perf_counter() - started,
    )
