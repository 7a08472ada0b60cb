"""Adversarial training: cross-entropy on clean images plus a divergence to adversarial ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gkl.catalog import DATASETS
from gkl.spec import CrossEntropyObjective, TrainSpec
from gkl.training.objective import RobustObjective
from gkl.training.tasks.base import Batch
from gkl.training.tasks.perturbing import PerturbingTask


class AdversarialTask(PerturbingTask):
    """TRADES, DKL, IKL and GKL. It keeps the class prior of IKL and GKL."""

    def __init__(
        self, spec: TrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        super().__init__(spec, model, optimizer, generator)
        assert not isinstance(spec.objective, CrossEntropyObjective), "which has a task of its own"
        self.objective = RobustObjective(
            spec.objective,
            num_classes=DATASETS[spec.dataset].num_classes,
            device=generator.device,
            label_smoothing=spec.label_smoothing,
        )

    def finish_epoch(self) -> None:
        self.objective.prior.finish_epoch()

    def state(self) -> dict[str, Tensor]:
        return {f"prior.{name}": tensor for name, tensor in self.objective.prior.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.objective.prior.restore({name.removeprefix("prior."): tensor for name, tensor in state.items()})

    def _maximized(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            natural_logits = self.network(batch.x)
        loss = self.objective.inner(natural_logits, batch.labels, self.spec.inner_maximization.wmse_weight)
        return lambda x_adv: loss(self.network(x_adv))

    def _minimized(
        self, batch: Batch, x_adv: Tensor, *, epoch: int
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]:
        second_view_weight = getattr(self.spec.augmentation, "robust_weight", None)

        def loss(adversarial: Tensor, natural: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            value = self.objective(adversarial, natural, batch.labels, second_view_weight=second_view_weight)
            return value.total, value.parts

        return loss

    def _record(self, batch: Batch, natural_logits: Tensor) -> None:
        # With AutoAugment or Cutout only the basic view speaks for its class.
        own = batch.own
        self.objective.prior.accumulate(natural_logits[:own], batch.labels[:own])
