"""One step of adversarial training: inner maximization, weight perturbation, update."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkl.attacks.pgd import projected_gradient_ascent, uniform_start
from gkl.data import unit_range
from gkl.device import own_random_stream
from gkl.errors import InvalidInput, NonFiniteLoss
from gkl.spec import Compute, Sgd, TrainSpec
from gkl.training.batch_norm import unrecorded_statistics
from gkl.training.descent import GradientDescent, ParameterGroup
from gkl.training.objective import ObjectiveValue, RobustObjective
from gkl.training.weight_perturbation import WeightPerturber


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured on its batch, second views included."""

    images: int
    loss: float
    parts: dict[str, float]
    clean_correct: int
    adversarial_correct: int


class Network:
    """A model as the spec computes it: precision, memory layout, compiler. Logits come out in float32."""

    def __init__(self, model: nn.Module, compute: Compute, device: torch.device) -> None:
        """
        Raises:
            InvalidInput: the spec wants the model compiled, and there is no compiler.
        """
        self.model = model
        self.device = device
        self.compute = compute
        self._forward: Callable[[Tensor], Tensor] = model
        if compute.compile:
            if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
                raise InvalidInput("compute.compile needs a C++ compiler such as g++; install one, or leave it out")
            # A program for each of: train and eval mode, gradients to images, weights, both or neither, the last,
            # smaller batch of an epoch, the statistics' update on and off, and their momentum in the first step.
            # (torch's own annotations lack the two options.)
            options: dict[str, Any] = {"recompile_limit": 64, "isolate_recompiles": True}
            self._forward = torch.compile(model, dynamic=False, **options)

    def __call__(self, x: Tensor) -> Tensor:
        if self.compute.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.compute.precision != "bfloat16":
            return self._forward(x)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self._forward(x)
        return logits.float()


class AdversarialStep:
    """The step that a spec describes, on a model, its optimizer and its objective."""

    def __init__(
        self,
        spec: TrainSpec,
        model: nn.Module,
        optimizer: GradientDescent,
        objective: RobustObjective,
        generator: torch.Generator,
    ) -> None:
        self.spec = spec
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.network = Network(model, spec.compute, generator.device)
        self.generator = generator
        perturbation = spec.weight_perturbation
        self.perturber = None if perturbation is None else WeightPerturber(model, perturbation.gamma)

    def __call__(
        self,
        views: tuple[Tensor, ...],
        labels: Tensor,
        *,
        epsilon: float,
        perturb_weights: bool = False,
        where: str = "",
    ) -> StepOutcome:
        """
        Args:
            views: one or two views of the batch, each (B, C, H, W), uint8, or float32 in [0, 1].
            labels: (B,) int64.
            epsilon: this epoch's radius.
            perturb_weights: whether this epoch uses the spec's weight perturbation.
            where: names the step in an error.

        Raises:
            NonFiniteLoss: the loss is NaN or infinite; no weight has been changed by this step's gradient.
        """
        # Networks with dropout draw from torch's global stream.
        with own_random_stream(self.generator):
            return self._step(views, labels, epsilon, perturb_weights=perturb_weights, where=where)

    def _step(
        self, views: tuple[Tensor, ...], labels: Tensor, epsilon: float, *, perturb_weights: bool, where: str
    ) -> StepOutcome:
        x = unit_range(torch.cat(views) if len(views) > 1 else views[0])
        labels = labels.repeat(len(views))
        second_view_weight = getattr(self.spec.augmentation, "robust_weight", None)

        def evaluated() -> tuple[ObjectiveValue, Tensor, Tensor]:
            adversarial, natural = self.network(x_adv), self.network(x)
            value = self.objective(adversarial, natural, labels, second_view_weight=second_view_weight)
            return value, natural.detach(), adversarial.detach()

        x_adv = self._perturb(x, labels, epsilon)
        self.model.train()
        if self.perturber is None or not perturb_weights:
            return self._update(evaluated, labels, own=len(views[0]), where=where)
        with unrecorded_statistics(self.model):
            objective = evaluated()[0].total
        with self.perturber.perturbed(objective):
            return self._update(evaluated, labels, own=len(views[0]), where=where)

    def _update(
        self, evaluate: Callable[[], tuple[ObjectiveValue, Tensor, Tensor]], labels: Tensor, *, own: int, where: str
    ) -> StepOutcome:
        value, natural_logits, adversarial_logits = evaluate()
        outcome = _measured(value, natural_logits, adversarial_logits, labels)
        if not math.isfinite(outcome.loss):
            parts = ", ".join(f"{name} {part:.4g}" for name, part in outcome.parts.items())
            raise NonFiniteLoss(
                f"the loss became {outcome.loss} ({parts}) {where}; usually the learning rate or a loss weight is "
                "too high, so lower one of them and train again"
            )
        # With AutoAugment or Cutout only the basic view speaks for its class.
        self.objective.prior.accumulate(natural_logits[:own], labels[:own])
        self.optimizer.zero_grad()
        value.total.backward()
        self.optimizer.step()
        return outcome

    def _perturb(self, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """The inner maximization. BatchNorm's running statistics do not move, whichever statistics it uses."""
        inner, norm = self.spec.inner_maximization, self.spec.threat_model.norm
        uses_batch_statistics = inner.network_mode == "train"
        self.model.train(uses_batch_statistics)
        if inner.start_noise == "uniform":
            start = uniform_start(x, norm=norm, epsilon=epsilon, generator=self.generator)
        else:
            start = x + inner.start_noise * torch.randn(x.shape, generator=self.generator, device=x.device)
        # Only the image's gradient is wanted: what the weights' gradient needs is then not even kept.
        unrecorded = unrecorded_statistics(self.model) if uses_batch_statistics else nullcontext()
        with frozen(self.model), unrecorded:
            with torch.no_grad():
                natural_logits = self.network(x)
            return projected_gradient_ascent(
                self.network,
                x,
                self.objective.inner(natural_logits, labels, inner.wmse_weight),
                norm=norm,
                epsilon=epsilon,
                num_steps=inner.num_steps,
                step_size=inner.relative_step_size * epsilon,
                start=start,
                project_start=inner.project_start,
            )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter asks for a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _measured(value: ObjectiveValue, natural: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutcome:
    scalars = [
        value.total,
        (natural.argmax(1) == labels).sum(),
        (adversarial.argmax(1) == labels).sum(),
        *value.parts.values(),
    ]
    # Together, so that the device is waited for once.
    loss, clean, robust, *parts = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    return StepOutcome(
        images=len(labels),
        loss=loss,
        parts=dict(zip(value.parts, parts, strict=True)),
        clean_correct=round(clean),
        adversarial_correct=round(robust),
    )


def make_optimizer(model: nn.Module, spec: Sgd) -> GradientDescent:
    """SGD whose weight decay leaves BatchNorm alone if the spec says so."""
    normalization = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)}
    apart = normalization if not spec.decay_batch_norm else set()
    groups = [
        ParameterGroup([p for p in model.parameters() if id(p) not in apart], spec.weight_decay),
        ParameterGroup([p for p in model.parameters() if id(p) in apart], 0.0),
    ]
    return GradientDescent(
        groups,
        learning_rate=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
    )
