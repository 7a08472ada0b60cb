"""Judging adversarial examples against a network that has a certificate, and merging them into the certificate.

Examples that a user sent and examples that were found for another network go through the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from gkl.attacks.classifier import predicted_classes
from gkl.data import ImageSet, load_test, unit_range
from gkl.device import select_device, set_tensor_float_32
from gkl.errors import InvalidInput, InvalidVerdict
from gkl.evaluation.certificate import Certificate, read_certificate, write_certificate
from gkl.evaluation.judge import Judged, judge
from gkl.evaluation.points import Points
from gkl.evaluation.verification import verify_certificate
from gkl.models import load_model, weights_sha256
from gkl.run_context import RunContext
from gkl.spec import ExternalSpec, ThreatModel, TransferSpec

MERGED_FILE = "merged.safetensors"


@dataclass(frozen=True)
class Examples:
    """K adversarial examples, in the order of their points."""

    index: Tensor
    """(K,) int64: positions of their clean images among the test images."""
    adversarial: Tensor
    """(K, channels, height, width) float32."""

    @classmethod
    def in_order(cls, index: Tensor, adversarial: Tensor) -> Self:
        order = index.argsort()
        return cls(index[order], adversarial[order])

    def __len__(self) -> int:
        return len(self.index)

    def chosen(self, which: Tensor) -> Examples:
        """The examples that a mask (K,) or a tensor of positions selects."""
        return Examples(self.index[which], self.adversarial[which])


@dataclass(frozen=True)
class Target:
    """A network with its certificate and the data on which it was evaluated."""

    known: Certificate
    model: nn.Module
    """In evaluation mode, on `device`."""
    data: ImageSet
    device: torch.device
    batch_size: int
    """Images at once."""

    @property
    def threat_model(self) -> ThreatModel:
        return threat_model_of(self.known)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [0, 1] -> logits (B, C) float32, on the CPU."""
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        found: Tensor = self.model(images.to(self.device, dtype)).float().cpu()
        return found

    def judge(self, examples: Examples, on_call: Callable[[float], None]) -> Iterator[tuple[Examples, Judged]]:
        """Judge examples by ball, box and the model's answer, `batch_size` at a time.

        Args:
            examples: any number of them.
            on_call: called before every pass of the model, with the share of the examples that is done.
        """
        for start in range(0, len(examples), self.batch_size):
            on_call(start / len(examples))
            part = examples.chosen(torch.arange(start, min(start + self.batch_size, len(examples))))
            clean = unit_range(self.data.images[part.index])
            prediction = predicted_classes(self.logits(part.adversarial))
            yield part, judge(part.adversarial, clean, self.data.labels[part.index], prediction, self.threat_model)


def read_attacked(path: Path) -> Certificate:
    """Read the certificate of an evaluation with attacks.

    Raises:
        InvalidInput: the file is not one.
    """
    known = read_certificate(path)
    threat_model_of(known)
    return known


def threat_model_of(known: Certificate) -> ThreatModel:
    """The threat model of a certificate.

    Raises:
        InvalidInput: its evaluation had no attacks.
    """
    threat_model = known.evaluation.threat_model
    if threat_model is None or known.robust_correct is None:
        raise InvalidInput("this evaluation has no threat model, so that no example can be judged by it")
    return threat_model


def load_target(
    spec: ExternalSpec | TransferSpec,
    known: Certificate,
    weights: Path | None,
    context: RunContext,
    *,
    converted: Path | None,
    batch_size: int,
) -> Target:
    """Load the network of a certificate and its data; TensorFloat-32 is turned off, for exact float32.

    Args:
        spec: names the data set and the architecture.
        known: the certificate.
        weights: safetensors or state dict; None for RobustBench's published ones.
        context: the folders of data and published weights, the device, and the receiver of progress.
        converted: a converted copy of the weights from `gkl.conversion`, which is read instead of them.
        batch_size: images at once.

    Raises:
        InvalidInput: the certificate is for other weights, or a file cannot be used.
        Stopped: the run was asked to stop.
    """
    selected = select_device(context.device)
    set_tensor_float_32(False)
    sha256 = weights_sha256(known.architecture, weights, context.models_dir)
    if (known.weights_sha256, known.dataset, known.architecture) != (sha256, spec.dataset, spec.architecture):
        raise InvalidInput("the certificate is about other weights; name those that it was made for")
    context.tell(0.0, "loading the model")
    to_read = converted or weights
    model = (
        load_model(known.architecture, known.dataset, to_read, context.models_dir, known.weights_key)
        .to(selected)
        .eval()
    )
    data = load_test(known.dataset, context.datasets_dir, known.num_points, known.preprocessing)
    return Target(known, model, data, selected, batch_size)


def merge(
    target: Target,
    added: Examples,
    judged: Judged,
    directory: Path,
    *,
    name: str,
    on_call: Callable[[float], None],
) -> Path:
    """Add examples to the target's certificate, write it to a new file, and check it as a whole.

    Args:
        target: the network.
        added: examples that break points which were unbroken in the certificate.
        judged: the judgement of each of them.
        directory: where the new certificate is written.
        name: the title under which the certificate lists the attack that found them.
        on_call: called before every pass of the model, with the share of the work that is done.

    Returns:
        The path of the new certificate.

    Raises:
        InvalidVerdict: the new certificate failed its check.
        NoSpaceLeft: the disk is full.
    """
    known, path = target.known, directory / MERGED_FILE
    write_certificate(
        path,
        _merged(known, added, judged),
        known.evaluation,
        attacks=(*known.attacks, name),
        data=target.data,
        dataset=known.dataset,
        architecture=known.architecture,
        weights_sha256=known.weights_sha256,
        dataset_sha256=known.dataset_sha256,
        manifest=known.manifest,
    )
    on_call(0.0)
    verification = verify_certificate(
        read_certificate(path),
        target.model,
        target.data,
        weights_sha256=known.weights_sha256,
        batch_size=target.batch_size,
        device=target.device,
        on_call=lambda: on_call(0.5),
    )
    if not verification.holds:
        raise InvalidVerdict(
            f"the merged certificate did not survive its own check ({verification.problems[0]}); nothing was recorded, "
            "please report this"
        )
    return path


def _merged(known: Certificate, added: Examples, judged: Judged) -> Points:
    """The certificate's table of points, with the added examples as those of one more attack."""
    old = known.tensors
    broken_by, norm = old["broken_by"].clone(), old["perturbation_norm"].clone()
    broken_by[added.index], norm[added.index] = len(known.attacks), judged.size
    index = torch.cat([old["index"], added.index])
    order = index.argsort()
    return Points(
        labels=old["label"],
        prediction=old["prediction"],
        broken_by=broken_by,
        perturbation_norm=norm,
        index=index[order],
        adversarial=torch.cat([old["adversarial"], added.adversarial])[order],
        adversarial_prediction=torch.cat([old["adversarial_prediction"], judged.prediction])[order],
        answers_vary=known.answers_vary,
    )
