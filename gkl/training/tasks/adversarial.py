"""Adversarial training. A step consists of inner maximization, weight perturbation and update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gkl.attacks.pgd import projected_gradient_ascent, uniform_start
from gkl.catalog import DATASETS
from gkl.data import unit_range
from gkl.device import own_random_stream
from gkl.spec import CrossEntropyObjective, TrainSpec
from gkl.training.batch_norm import unrecorded_statistics
from gkl.training.network import Network, frozen
from gkl.training.objective import RobustObjective
from gkl.training.selection import held_out_accuracy
from gkl.training.tasks.base import Objective, StepOutcome, Task
from gkl.training.weight_perturbation import WeightPerturber


class AdversarialTask(Task):
    """Minimizes cross-entropy on clean images plus a divergence between clean and adversarial predictions.

    Each step makes its own adversarial images. The task keeps the class prior of IKL and GKL.
    """

    selects_by = "held_out_robust_accuracy"
    held_out_described = "held-out images under PGD"

    def __init__(
        self, spec: TrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        super().__init__(spec, model, optimizer, generator)
        assert spec.threat_model is not None, "the spec requires one"
        assert not isinstance(spec.objective, CrossEntropyObjective), "which has a task of its own"
        self.threat_model = spec.threat_model
        self.objective = RobustObjective(
            spec.objective,
            num_classes=DATASETS[spec.dataset].num_classes,
            device=generator.device,
            label_smoothing=spec.label_smoothing,
        )
        perturbation = spec.weight_perturbation
        self.perturber = None if perturbation is None else WeightPerturber(model, perturbation.gamma)

    def epsilon(self, epoch: int) -> float:
        """Return the radius of the perturbations in an epoch, counted from 1."""
        return self.threat_model.epsilon * (epoch / self.spec.epochs if self.spec.epsilon_ramp else 1.0)

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        return {"epsilon": self.epsilon(epoch)}

    def finish_epoch(self) -> None:
        self.objective.prior.finish_epoch()

    def state(self) -> dict[str, Tensor]:
        return {f"prior.{name}": tensor for name, tensor in self.objective.prior.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.objective.prior.restore({name.removeprefix("prior."): tensor for name, tensor in state.items()})

    def _step(self, views: tuple[Tensor, ...], labels: Tensor, *, epoch: int, where: str) -> StepOutcome:
        awp = self.spec.weight_perturbation
        perturb_weights = awp is not None and epoch >= awp.first_epoch
        return self._step_at(views, labels, self.epsilon(epoch), perturb_weights=perturb_weights, where=where)

    def step(
        self, views: tuple[Tensor, ...], labels: Tensor, *, epsilon: float, perturb_weights: bool = False
    ) -> StepOutcome:
        """Do one step with a given radius, with or without weight perturbation, independently of the epoch.

        Args:
            views: as for `Task.__call__`.
            labels: as for `Task.__call__`.
            epsilon: radius of the perturbations of images.
            perturb_weights: whether to perturb the weights; needs `weight_perturbation` in the spec.
        """
        with own_random_stream(self.generator):
            return self._step_at(views, labels, epsilon, perturb_weights=perturb_weights, where="")

    def _step_at(
        self, views: tuple[Tensor, ...], labels: Tensor, epsilon: float, *, perturb_weights: bool, where: str
    ) -> StepOutcome:
        x = unit_range(torch.cat(views) if len(views) > 1 else views[0])
        labels = labels.repeat(len(views))
        own = len(views[0])
        second_view_weight = getattr(self.spec.augmentation, "robust_weight", None)

        def evaluated() -> tuple[Objective, Tensor]:
            adversarial, natural = self.network(x_adv), self.network(x)
            value = self.objective(adversarial, natural, labels, second_view_weight=second_view_weight)
            correct = {
                "clean_accuracy": (natural.detach().argmax(1) == labels).sum(),
                "adversarial_accuracy": (adversarial.detach().argmax(1) == labels).sum(),
            }
            return Objective(value.total, value.parts, correct), natural.detach()

        def recorded() -> Objective:
            objective, natural_logits = evaluated()
            # With AutoAugment or Cutout, only the first, basic view counts in the class prior.
            self.objective.prior.accumulate(natural_logits[:own], labels[:own])
            return objective

        x_adv = self._perturb(x, labels, epsilon)
        self.model.train()
        if self.perturber is None or not perturb_weights:
            return self._update(recorded, len(labels), where=where)
        with unrecorded_statistics(self.model):
            objective = evaluated()[0].total
        with self.perturber.perturbed(objective):
            return self._update(recorded, len(labels), where=where)

    def _perturb(self, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """Make the adversarial images (inner maximization). BatchNorm's running statistics are not updated."""
        inner, norm = self.spec.inner_maximization, self.threat_model.norm
        uses_batch_statistics = inner.network_mode == "train"
        self.model.train(uses_batch_statistics)
        if inner.start_noise == "uniform":
            start = uniform_start(x, norm=norm, epsilon=epsilon, generator=self.generator)
        else:
            start = x + inner.start_noise * torch.randn(x.shape, generator=self.generator, device=x.device)
        # Only the images need a gradient. With frozen weights torch does not keep what their gradients would need.
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

    def measure_held_out(
        self, network: Network, images: Tensor, labels: Tensor, *, batch_done: Callable[[int], None]
    ) -> dict[str, float]:
        assert self.spec.selection is not None, "else nothing is held out"
        accuracy = held_out_accuracy(
            network,
            images,
            labels,
            self.spec.selection,
            self.threat_model,
            batch_size=self.spec.batch_size,
            seed=self.spec.seed,
            batch_done=batch_done,
        )
        return {"held_out_clean_accuracy": accuracy.clean, "held_out_robust_accuracy": accuracy.robust}
