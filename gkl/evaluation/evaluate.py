"""Measure clean and robust accuracy of given weights.

The test images are cut into fixed blocks of `batch_size` consecutive ones. Attack after attack takes, block
by block, the points that still stand; a point is broken when an attack returns an image inside the threat
model that the model misclassifies. Robust accuracy is the share of points that nothing broke.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gkl.catalog import DATASETS
from gkl.data import ImageSet, load_test, unit_range
from gkl.device import out_of_memory_explained, select_device, set_tensor_float_32
from gkl.errors import InvalidInput, InvalidVerdict
from gkl.evaluation.attacks import Attack, standard_attacks
from gkl.evaluation.progress import EvaluationProgress
from gkl.files import sha256_of
from gkl.models import build_model, load_weights
from gkl.outcome import AttackFinished, AttackOutcome, EvaluationOutcome, Event
from gkl.provenance import git_commit, make_manifest
from gkl.spec import EvaluateSpec, ThreatModel

_log = logging.getLogger(__name__)

# Attacks project in float32; an image this little outside the ball is rounding, more is an attack's error.
_NORM_TOLERANCE = 1e-5


@out_of_memory_explained()
def evaluate(
    spec: EvaluateSpec,
    weights: Path,
    *,
    datasets_dir: Path,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
) -> EvaluationOutcome:
    """Attack the weights as the spec says.

    Args:
        spec: what to evaluate and how.
        weights: safetensors file; its sha256 must be the spec's.
        datasets_dir: where the data sets' files are, each in a folder of its name.
        report: called with progress and every finished attack.
        should_stop: asked at every call of the model; when it says yes the run ends with `Stopped`.
        device: such as 'cpu' or 'cuda:1'; by default CUDA if there is one.

    Raises:
        InvalidInput: the weights are other ones, or of another architecture, or their logits are not finite.
        InvalidVerdict: an attack returned an image outside the threat model.
        OutOfMemory: the batch is too large for the device.
        Stopped: `should_stop` said yes.
    """
    commit = git_commit()
    found = sha256_of(weights)
    if found != spec.weights:
        raise InvalidInput(f"the spec asks for weights {spec.weights}, but {weights.name} has sha256 {found}")
    selected = select_device(device)
    set_tensor_float_32(False)
    model = build_model(spec.architecture, spec.dataset)
    load_weights(model, weights)
    # Batch statistics must not move under attack, and gradients are only ever wanted for images.
    model.to(selected).eval().requires_grad_(False)
    data = load_test(spec.dataset, datasets_dir, spec.evaluation.num_points)
    started = time.perf_counter()
    # The attacks seed torch's global streams; a caller's are left as they were, on the one device that is used.
    with torch.random.fork_rng(devices=[selected] if selected.type == "cuda" else []):
        attacks = standard_attacks(model, spec.evaluation.threat_model, seed=spec.evaluation.seed, device=selected)
        clean_correct, outcomes = run_attacks(
            model,
            data,
            attacks,
            spec.evaluation.threat_model,
            num_classes=DATASETS[spec.dataset].num_classes,
            block_size=spec.evaluation.batch_size,
            device=selected,
            report=report,
            should_stop=should_stop,
        )
    return EvaluationOutcome(
        num_points=len(data),
        clean_correct=clean_correct,
        robust_correct=outcomes[-1].survivors,
        attacks=outcomes,
        seconds=time.perf_counter() - started,
        manifest=make_manifest(
            spec,
            commit=commit,
            seed=spec.evaluation.seed,
            device=selected,
            dataset_sha256=data.sha256(),
            weights_sha256=found,
        ),
    )


def run_attacks(
    model: nn.Module,
    data: ImageSet,
    attacks: list[Attack],
    threat_model: ThreatModel,
    *,
    num_classes: int,
    block_size: int,
    device: torch.device,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> tuple[int, list[AttackOutcome]]:
    """Run the attacks one after the other; returns the clean correct points and each attack's outcome."""
    check_images(data.images)
    blocks = list(zip(data.images.split(block_size), data.labels.split(block_size), strict=True))
    standing = [_classified_correctly(model, unit_range(x.to(device)), y.to(device), num_classes) for x, y in blocks]
    clean_correct = sum(int(mask.sum()) for mask in standing)
    outcomes: list[AttackOutcome] = []
    with EvaluationProgress(model, attacks, len(blocks), report, should_stop) as progress:
        entering = clean_correct
        for attack in attacks:
            progress.start_attack(attack, entering)
            attack_started, broken = time.perf_counter(), 0
            for number, (x, y) in enumerate(blocks):
                progress.start_block(number)
                index = standing[number].nonzero().squeeze(1)
                if len(index) == 0:
                    continue
                fooled = _attack_block(
                    model, attack, unit_range(x[index].to(device)), y[index].to(device), threat_model
                )
                standing[number][index[fooled]] = False
                broken += int(fooled.sum())
            outcome = AttackOutcome(
                attack=attack.name,
                points=entering,
                broken=broken,
                seconds=time.perf_counter() - attack_started,
            )
            outcomes.append(outcome)
            _log.info("%s broke %d of %d points", attack.name, broken, entering)
            report(AttackFinished(outcome=outcome))
            entering = outcome.survivors
    return clean_correct, outcomes


def check_images(images: Tensor) -> None:
    """The threat model's box is [0, 1]; attacks on images outside it give a wrong number without a word."""
    if images.dtype == torch.uint8:
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InvalidInput(
            f"the images have values from {low:g} to {high:g}, but an evaluation needs them in [0, 1]; "
            "leave normalization to the model"
        )


@torch.no_grad()
def _classified_correctly(model: nn.Module, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Which of the (B,) clean points the model gets right; refuses logits that no attack could judge."""
    logits = model(x)
    if logits.shape != (len(x), num_classes):
        raise InvalidInput(
            f"the model's output has shape {tuple(logits.shape)} for {len(x)} images of {num_classes} classes; "
            f"it must be ({len(x)}, {num_classes})"
        )
    if not logits.isfinite().all():
        # argmax of NaN is 0: the points of class 0 would count as robust.
        raise InvalidInput("the model gives NaN or infinite logits on test images; its training diverged")
    correct: Tensor = logits.argmax(1) == y
    return correct.cpu()


def _attack_block(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Tensor:
    """Which of the (B,) points the attack breaks, each judged again from the image it returned."""
    x_adv = attack.perturb(x, y).detach()
    with torch.no_grad():
        fooled: Tensor = model(x_adv).argmax(1) != y
    difference = (x_adv - x).flatten(1)
    size = difference.abs().amax(1) if threat_model.norm == "Linf" else difference.norm(dim=1)
    flat = x_adv.flatten(1)
    finite = flat.isfinite().all(1)
    inside = (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (size <= threat_model.epsilon + _NORM_TOLERANCE)
    # NaN is wrong even where it "fooled" nobody: the model's answer to it is NaN, whose argmax is class 0.
    wrong = (~finite | (fooled & ~inside)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise InvalidVerdict(
            f"{attack.name} returned an image outside the threat model ({threat_model.norm} {size[first]:.6f}, "
            f"values {flat[first].min():g} to {flat[first].max():g}); no result was recorded, please report this"
        )
    return fooled.cpu()
