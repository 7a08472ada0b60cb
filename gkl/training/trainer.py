"""Adversarial training: per batch an inner maximization, then one step of gradient descent on the objective."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gkl.adversary import projected_gradient_ascent
from gkl.catalog import DATASETS
from gkl.data import load_train
from gkl.device import select_device
from gkl.errors import NonFiniteLoss, Stopped
from gkl.files import check_writable, sha256_of
from gkl.models import build_model
from gkl.outcome import CheckpointSaved, EpochFinished, Event, Progress, TrainOutcome
from gkl.provenance import git_commit, make_manifest
from gkl.spec import TrainSpec
from gkl.tensor_files import save_tensors
from gkl.training.checkpoint import TrainingState, restore_newest, save_checkpoint
from gkl.training.objective import RobustObjective

_log = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"


@dataclass
class _EpochSums:
    """Sums over the images of an epoch."""

    images: int = 0
    loss: float = 0.0
    clean_correct: int = 0
    adversarial_correct: int = 0


def train(
    spec: TrainSpec,
    directory: Path,
    *,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
) -> TrainOutcome:
    """Train a network as the spec says, or go on from the newest checkpoint in `directory`.

    Args:
        spec: what to train.
        directory: where checkpoints and, at the end, the weights are written.
        report: called with progress, every finished epoch and every checkpoint.
        should_stop: asked before every step; when it says yes the run ends with `Stopped`.
        device: such as 'cpu' or 'cuda:1'; by default CUDA if there is one.

    Raises:
        InvalidInput: nothing can be written to `directory`, or the checkpoints there are of another spec.
        NonFiniteLoss: the loss became NaN or infinite; the last checkpoint remains.
        Stopped: `should_stop` said yes; a later call with the same arguments goes on.
    """
    check_writable(directory)
    run = _Run(spec, directory, select_device(device), report, should_stop)
    for problem in restore_newest(directory, run.state, spec):
        _log.warning(problem)
    if run.state.epoch:
        _log.info("resumed after epoch %d of %d", run.state.epoch, spec.epochs)
    while run.state.epoch < spec.epochs:
        run.epoch()
    return run.finish()


class _Run:
    def __init__(
        self,
        spec: TrainSpec,
        directory: Path,
        device: torch.device,
        report: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.spec, self.directory, self.device = spec, directory, device
        self.report, self.should_stop = report, should_stop
        self.commit = git_commit()
        data = load_train(spec.dataset)
        self.data_sha256 = data.sha256()
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = build_model(spec.architecture, spec.dataset).to(device)
        self.objective = RobustObjective(spec.objective, num_classes=DATASETS[spec.dataset].num_classes, device=device)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=spec.optimizer.learning_rate,
            momentum=spec.optimizer.momentum,
            weight_decay=spec.optimizer.weight_decay,
            nesterov=spec.optimizer.nesterov,
        )
        # Its own stream, saved with the rest: order and noise go on after a resume as if never stopped.
        generator = torch.Generator(device).manual_seed(spec.seed)
        self.state = TrainingState(model, optimizer, self.objective.prior, generator)
        self.steps_per_epoch = math.ceil(len(data) / spec.batch_size)
        self.first_step = -1
        self.started = time.perf_counter()
        self.last_report = 0.0

    def epoch(self) -> None:
        """Train one epoch and checkpoint it."""
        spec, state, started = self.spec, self.state, time.perf_counter()
        number = state.epoch + 1
        epsilon = spec.threat_model.epsilon * (number / spec.epochs if spec.epsilon_ramp else 1.0)
        learning_rate = cosine_learning_rate(spec.optimizer.learning_rate, number, spec.epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        order = torch.randperm(len(self.labels), generator=state.generator, device=self.device)
        sums = _EpochSums()
        for index, chosen in enumerate(order.split(spec.batch_size)):
            if self.should_stop():
                raise Stopped
            step = (number - 1) * self.steps_per_epoch + index
            self._step(self.images[chosen], self.labels[chosen], epsilon, step, sums)
            self._report_progress(number, step)
        self.objective.prior.finish_epoch()
        seconds = time.perf_counter() - started
        state.epoch, state.seconds = number, state.seconds + seconds
        path = save_checkpoint(self.directory, state, spec)
        self.report(CheckpointSaved(file=path.name, epoch=number))
        finished = EpochFinished(
            epoch=number,
            epochs=spec.epochs,
            loss=sums.loss / sums.images,
            clean_accuracy=sums.clean_correct / sums.images,
            adversarial_accuracy=sums.adversarial_correct / sums.images,
            epsilon=epsilon,
            learning_rate=learning_rate,
            seconds=seconds,
        )
        self.report(finished)
        _log.info(
            "epoch %d of %d: loss %.4f, clean %.4f, adversarial %.4f",
            number,
            spec.epochs,
            finished.loss,
            finished.clean_accuracy,
            finished.adversarial_accuracy,
        )

    def _step(self, x: Tensor, labels: Tensor, epsilon: float, step: int, sums: _EpochSums) -> None:
        model, optimizer = self.state.model, self.state.optimizer
        x_adv = self._perturb(x, labels, epsilon)
        model.train()
        natural_logits, adversarial_logits = model(x), model(x_adv)
        loss = self.objective(adversarial_logits, natural_logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"the loss became {value} at step {step + 1} (epoch {self.state.epoch + 1}); usually the "
                "learning rate or a loss weight is too high, so lower one of them and train again"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums.images += len(labels)
        sums.loss += value * len(labels)
        sums.clean_correct += int((natural_logits.argmax(1) == labels).sum())
        sums.adversarial_correct += int((adversarial_logits.argmax(1) == labels).sum())

    def _perturb(self, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """The inner maximization, with batch statistics standing still."""
        inner, model = self.spec.inner_maximization, self.state.model
        model.eval()
        with torch.no_grad():
            natural_logits = model(x)
        noise = torch.randn(x.shape, generator=self.state.generator, device=x.device)
        return projected_gradient_ascent(
            model,
            x,
            self.objective.inner(natural_logits, labels, inner.wmse_weight),
            norm=self.spec.threat_model.norm,
            epsilon=epsilon,
            num_steps=inner.num_steps,
            step_size=inner.relative_step_size * epsilon,
            start=x + inner.start_noise * noise,
        )

    def _report_progress(self, epoch: int, step: int) -> None:
        now = time.perf_counter()
        if self.first_step < 0:
            # The first step pays for warm-up; the estimate starts after it.
            self.first_step, self.started = step, now
        total = self.steps_per_epoch * self.spec.epochs
        timed = step - self.first_step
        if now - self.last_report < 0.25 and step + 1 < total:
            return
        self.last_report = now
        left = (now - self.started) / timed * (total - step - 1) if timed else None
        self.report(
            Progress(
                stage="training",
                fraction=(step + 1) / total,
                seconds_left=left,
                detail=f"epoch {epoch} of {self.spec.epochs}",
            )
        )

    def finish(self) -> TrainOutcome:
        path = self.directory / WEIGHTS_FILE
        metadata = {"architecture": self.spec.architecture, "dataset": self.spec.dataset}
        save_tensors(path, self.state.model.state_dict(), metadata)
        return TrainOutcome(
            weights=path.name,
            epochs=self.spec.epochs,
            seconds=self.state.seconds,
            manifest=make_manifest(
                self.spec,
                commit=self.commit,
                seed=self.spec.seed,
                device=self.device,
                dataset_sha256=self.data_sha256,
                weights_sha256=sha256_of(path),
            ),
        )


def cosine_learning_rate(base: float, epoch: int, epochs: int) -> float:
    """Half a cosine from `base` in epoch 1 towards 0 after epoch `epochs`.

    >>> cosine_learning_rate(0.2, 1, 200), round(cosine_learning_rate(0.2, 101, 200), 12)
    (0.2, 0.1)
    """
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
