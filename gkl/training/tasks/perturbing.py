"""What every task with an adversary does: inner maximization, weight perturbation, update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gkl.attacks.pgd import projected_gradient_ascent, uniform_start
from gkl.device import own_random_stream
from gkl.spec import BaseTrainSpec
from gkl.training.batch_norm import unrecorded_statistics
from gkl.training.network import Network, frozen
from gkl.training.selection import held_out_accuracy
from gkl.training.tasks.base import Batch, Objective, StepOutcome, Task
from gkl.training.weight_perturbation import WeightPerturber


class PerturbingTask(Task):
    """Each step makes adversarial images of its batch, and minimizes a loss of the logits on both.

    A subclass says what the inner maximization increases and what the step minimizes.
    """

    selects_by = "held_out_robust_accuracy"
    held_out_described = "held-out images under PGD"

    def __init__(
        self, spec: BaseTrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        super().__init__(spec, model, optimizer, generator)
        assert spec.threat_model is not None, "the spec requires one"
        self.threat_model = spec.threat_model
        perturbation = spec.weight_perturbation
        self.perturber = None if perturbation is None else WeightPerturber(model, perturbation.gamma)

    @abstractmethod
    def _maximized(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """What the inner maximization increases: a function from images (B, C, H, W) to a scalar.

        Called once for each batch, in the mode of the network that the inner maximization uses.
        """

    @abstractmethod
    def _minimized(
        self, batch: Batch, x_adv: Tensor, *, epoch: int
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]:
        """What the step minimizes: a function from the logits of the adversarial and of the natural images, (B, C)
        each, to the scalar and its parts. Called once for each batch."""

    def _record(self, batch: Batch, natural_logits: Tensor) -> None:
        """Called once for each step with the natural images' logits, without a gradient."""

    def epsilon(self, epoch: int) -> float:
        """The radius of an epoch, counted from 1."""
        return self.threat_model.epsilon * (epoch / self.spec.epochs if self.spec.epsilon_ramp else 1.0)

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        return {"epsilon": self.epsilon(epoch)}

    def _step(self, batch: Batch, *, epoch: int, where: str) -> StepOutcome:
        awp = self.spec.weight_perturbation
        perturb_weights = awp is not None and epoch >= awp.first_epoch
        return self._step_at(batch, self.epsilon(epoch), epoch=epoch, perturb_weights=perturb_weights, where=where)

    def step(
        self, views: tuple[Tensor, ...], labels: Tensor, *, epsilon: float, perturb_weights: bool = False
    ) -> StepOutcome:
        """The same step with a radius given, and weights perturbed or not, whichever epoch it is."""
        with own_random_stream(self.generator):
            batch = Batch.of(views, labels)
            return self._step_at(batch, epsilon, epoch=self.spec.epochs, perturb_weights=perturb_weights, where="")

    def _step_at(self, batch: Batch, epsilon: float, *, epoch: int, perturb_weights: bool, where: str) -> StepOutcome:
        x_adv = self._perturb(batch, epsilon)
        loss = self._minimized(batch, x_adv, epoch=epoch)

        def evaluated() -> tuple[Objective, Tensor]:
            adversarial, natural = self.network(x_adv), self.network(batch.x)
            total, parts = loss(adversarial, natural)
            correct = {
                "clean_accuracy": (natural.detach().argmax(1) == batch.labels).sum(),
                "adversarial_accuracy": (adversarial.detach().argmax(1) == batch.labels).sum(),
            }
            return Objective(total, parts, correct), natural.detach()

        def recorded() -> Objective:
            objective, natural_logits = evaluated()
            self._record(batch, natural_logits)
            return objective

        self.model.train()
        if self.perturber is None or not perturb_weights:
            return self._update(recorded, len(batch.labels), where=where)
        with unrecorded_statistics(self.model):
            objective = evaluated()[0].total
        with self.perturber.perturbed(objective):
            return self._update(recorded, len(batch.labels), where=where)

    def _perturb(self, batch: Batch, epsilon: float) -> Tensor:
        """The inner maximization. BatchNorm's running statistics do not move, whichever statistics it uses."""
        inner, norm, x = self.spec.inner_maximization, self.threat_model.norm, batch.x
        uses_batch_statistics = inner.network_mode == "train"
        self.model.train(uses_batch_statistics)
        if inner.start_noise == "uniform":
            start = uniform_start(x, norm=norm, epsilon=epsilon, generator=self.generator)
        else:
            start = x + inner.start_noise * torch.randn(x.shape, generator=self.generator, device=x.device)
        # Only the image's gradient is wanted: what the weights' gradient needs is then not even kept.
        unrecorded = unrecorded_statistics(self.model) if uses_batch_statistics else nullcontext()
        with frozen(self.model), unrecorded:
            return projected_gradient_ascent(
                self._maximized(batch),
                x,
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
