"""Adversarial examples that somebody else found: checked one by one, and merged into a certificate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gkl.data import ImageSet, load_test, unit_range
from gkl.device import device_name, out_of_memory_explained, select_device, set_tensor_float_32
from gkl.errors import InvalidInput, InvalidVerdict, Stopped
from gkl.evaluation.certificate import Certificate, read_certificate, verify_certificate, write_certificate
from gkl.evaluation.measurement import STANDS, Measurement
from gkl.evaluation.perturbation import is_allowed, norm_tolerance
from gkl.files import check_writable, sha256_of
from gkl.models import load_model, weights_sha256
from gkl.outcome import AttackOutcome, Event, ExternalOutcome, Progress
from gkl.spec import ExternalSpec, ThreatModel, format_epsilon
from gkl.tensor_files import load_tensors

MERGED_FILE = "merged.safetensors"


@out_of_memory_explained()
def merge_examples(
    spec: ExternalSpec,
    certificate: Path,
    examples: Path,
    weights: Path | None,
    directory: Path,
    *,
    datasets_dir: Path,
    models_dir: Path | None = None,
    report: Callable[[Event], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
    batch_size: int = 200,
    converted: Path | None = None,
) -> ExternalOutcome:
    """Check every example with an independent pass in float32, and add those that break a point which stands.

    Args:
        spec: whose examples they are, and of which weights.
        certificate: what is known so far of those weights, of N points.
        examples: safetensors with 'adversarial' (K, channels, height, width) float32 in [0, 1] and 'index' (K,) of
            whole numbers, the places of their clean images among the test images.
        weights: safetensors or state dict; None for RobustBench's published ones.
        directory: where the merged certificate is written, if there is something to merge.
        datasets_dir: where the data sets' files are, each in a folder of its name.
        models_dir: where RobustBench keeps published weights.
        report: called with progress.
        should_stop: asked before every pass of the model; when it says yes the run ends with `Stopped`.
        device: such as 'cpu' or 'cuda:1'; by default CUDA if there is one.
        batch_size: images at once.
        converted: what `gkl.conversion` made of the weights, to be read in their place; they keep their sha256.

    Raises:
        InvalidInput: an example is not allowed or does not fool the model, with the first such point; or a file
            cannot be used.
        InvalidVerdict: the merged certificate did not survive its own check.
        NoSpaceLeft: the disk is full.
        Stopped: `should_stop` said yes.
    """
    started = time.perf_counter()
    check_writable(directory)
    known = read_certificate(certificate)
    threat_model = known.evaluation.threat_model
    if threat_model is None or known.robust_correct is None:
        raise InvalidInput("this evaluation has no threat model, so that no example can be judged by it")
    sent = _read_examples(examples, known)
    selected = select_device(device)
    set_tensor_float_32(False)
    sha256 = weights_sha256(known.architecture, weights, models_dir)
    if (known.weights_sha256, known.dataset, known.architecture) != (sha256, spec.dataset, spec.architecture):
        raise InvalidInput("the certificate is about other weights; name those that it was made for")

    def on_pass(done: float, stage: str) -> None:
        if should_stop():
            raise Stopped
        report(Progress(stage=stage, fraction=done))

    on_pass(0.0, "loading the model")
    to_read = converted or weights
    model = load_model(known.architecture, known.dataset, to_read, models_dir, known.weights_key).to(selected).eval()
    data = load_test(known.dataset, datasets_dir, known.num_points, known.preprocessing)

    def on_examples(done: float) -> None:
        on_pass(0.5 * done, "checking the examples")

    judged = _judge(sent, model, data, threat_model, device=selected, batch_size=batch_size, on_call=on_examples)
    new = known.tensors["broken_by"][sent.index] == STANDS
    outcome = ExternalOutcome(
        attack=spec.name,
        examples=len(sent.index),
        broken=int(new.sum()),
        robust_correct=known.robust_correct - int(new.sum()),
        base_sha256=sha256_of(certificate),
        device=device_name(selected),
        seconds=time.perf_counter() - started,
    )
    if not outcome.broken:
        return outcome
    path = directory / MERGED_FILE
    write_certificate(
        path,
        _merged(known, sent, judged, new, spec.name),
        known.evaluation,
        data=data,
        dataset=known.dataset,
        architecture=known.architecture,
        weights_sha256=known.weights_sha256,
        dataset_sha256=known.dataset_sha256,
        manifest=known.manifest,
    )
    on_pass(0.6, "checking the merged certificate")
    verification = verify_certificate(
        read_certificate(path),
        model,
        data,
        weights_sha256=sha256,
        batch_size=batch_size,
        device=selected,
        on_call=lambda: on_pass(0.8, "checking the merged certificate"),
    )
    if not verification.holds:
        raise InvalidVerdict(
            f"the merged certificate did not survive its own check ({verification.problems[0]}); nothing was recorded, "
            "please report this"
        )
    return outcome.model_copy(update={"certificate": path.name, "seconds": time.perf_counter() - started})


@dataclass(frozen=True)
class _Examples:
    index: Tensor
    """(K,) int64."""
    adversarial: Tensor
    """(K, channels, height, width) float32."""


@dataclass(frozen=True)
class _Judged:
    prediction: Tensor
    """(K,) int64; -1 where the model answered NaN."""
    size: Tensor
    """(K,) float64: distances to the clean images."""


def _read_examples(path: Path, known: Certificate) -> _Examples:
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
    order = index.argsort()
    return _Examples(index[order], adversarial[order])


@torch.no_grad()
def _judge(
    sent: _Examples,
    model: nn.Module,
    data: ImageSet,
    threat_model: ThreatModel,
    *,
    device: torch.device,
    batch_size: int,
    on_call: Callable[[float], None],
) -> _Judged:
    """
    Raises:
        InvalidInput: the first point whose example is not allowed, or that the model gets right.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    predictions, sizes = [], []
    for rows in torch.arange(len(sent.index)).split(batch_size):
        on_call(int(rows[0]) / len(sent.index))
        index, adversarial = sent.index[rows], sent.adversarial[rows]
        allowed, size = is_allowed(adversarial, unit_range(data.images[index]), threat_model)
        logits: Tensor = model(adversarial.to(device, dtype)).float().cpu()
        found = logits.argmax(1).masked_fill(logits.isnan().any(1), -1)
        for i in ((~allowed) | (found == data.labels[index])).nonzero().squeeze(1).tolist()[:1]:
            raise InvalidInput(
                f"point {int(index[i])}: {_fault(adversarial[i], float(size[i]), threat_model, bool(allowed[i]))}; "
                "none of the examples was counted, mend it or leave it out"
            )
        predictions.append(found)
        sizes.append(size)
    return _Judged(torch.cat(predictions), torch.cat(sizes))


def _fault(adversarial: Tensor, size: float, threat_model: ThreatModel, allowed: bool) -> str:
    if allowed:
        return "the model gets its adversarial image right"
    if not torch.isfinite(adversarial).all():
        return "its adversarial image has values that are no numbers"
    if size <= threat_model.epsilon + norm_tolerance(threat_model, adversarial.numel()):
        return f"its adversarial image has values from {adversarial.min():g} to {adversarial.max():g}, outside [0, 1]"
    return (
        f"its adversarial image is {size:.6g} away in {threat_model.norm}, further than epsilon "
        f"{format_epsilon(threat_model.epsilon)}"
    )


def _merged(known: Certificate, sent: _Examples, judged: _Judged, new: Tensor, name: str) -> Measurement:
    old = known.tensors
    added = sent.index[new]
    broken_by, norm = old["broken_by"].clone(), old["perturbation_norm"].clone()
    broken_by[added], norm[added] = len(known.attacks), judged.size[new]
    index = torch.cat([old["index"], added])
    order = index.argsort()
    stands = known.clean_correct
    attacks = []
    for position, attack in enumerate((*known.attacks, name)):
        broken = int((broken_by == position).sum())
        attacks.append(AttackOutcome(attack=attack, points=stands, broken=broken, seconds=0.0))
        stands -= broken
    return Measurement(
        labels=old["label"],
        prediction=old["prediction"],
        broken_by=broken_by,
        perturbation_norm=norm,
        index=index[order],
        adversarial=torch.cat([old["adversarial"], sent.adversarial[new]])[order],
        adversarial_prediction=torch.cat([old["adversarial_prediction"], judged.prediction[new]])[order],
        attacks=attacks,
        flags=[],
        answers_vary=known.answers_vary,
        device="",
        batch_size_used=0,
        seconds=0.0,
    )
