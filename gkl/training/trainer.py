"""The training loop: epochs, order of the batches, schedules, averaging, checkpoints and progress, for every task."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gkl.catalog import DATASETS
from gkl.data import Images, find_test, load_test, load_train
from gkl.data.augmentation import augmented_views
from gkl.data.decoding import usable_processes
from gkl.data.imbalance import class_counts, imbalanced
from gkl.data.resized_crop import resized_crop
from gkl.data.synthetic import SyntheticImages
from gkl.device import device_name, out_of_memory_explained, select_device, set_tensor_float_32
from gkl.errors import DecodingEnded, InvalidInput, Stopped
from gkl.files import check_writable, sha256_of
from gkl.formats.shared_memory import overlapping_parameters
from gkl.formats.tensor_files import save_tensors
from gkl.models import build_model
from gkl.outcome import (
    CheckpointSaved,
    EpochFinished,
    Event,
    LongTailAccuracy,
    Progress,
    StepMetrics,
    TeacherOutcome,
    TrainOutcome,
)
from gkl.provenance import git_commit, make_manifest
from gkl.run_context import RunContext
from gkl.spec import (
    BaseTrainSpec,
    CrossEntropyObjective,
    DistillSpec,
    ResizedCropAugmentation,
    Selection,
    TeacherWeights,
)
from gkl.training.averaging import WeightAverage
from gkl.training.batch_norm import set_momentum
from gkl.training.batches import Batches, EpochOrder, FetchedBatch
from gkl.training.checkpoint import Best, EpochSums, TrainingState, check_finite, restore_newest, save_checkpoint
from gkl.training.long_tail import measure_long_tail
from gkl.training.network import Network
from gkl.training.optimizers import make_optimizer, set_rates
from gkl.training.schedule import learning_rate, momentum
from gkl.training.tasks import StepOutcome, make_task
from gkl.training.teacher import Teacher, load_teacher, measured

_log = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"

_REPORT_SECONDS = 0.25


@out_of_memory_explained()
def train(
    spec: BaseTrainSpec,
    context: RunContext,
    *,
    teacher: Path | None = None,
    converted_teacher: Path | None = None,
    keep_checkpoints: int = 2,
    checkpoint_seconds: float = 600.0,
    least_checkpoint_seconds: float = 0.0,
) -> TrainOutcome:
    """Train a network as the spec says, or resume from the newest checkpoint in the context's directory.

    Args:
        spec: what to train.
        context: its directory gets the checkpoints and, at the end, the weights; it is told of progress, of every
            finished epoch and of every checkpoint, and asked before every step whether to stop.
        teacher: the file with the weights of a distillation's teacher; None for those that RobustBench publishes.
        converted_teacher: what an earlier run converted that file to; None if it is read itself.
        keep_checkpoints: how many of the newest checkpoints stay on disk, at least 1.
        checkpoint_seconds: a checkpoint is written after every epoch, and during an epoch whenever the last one is
            older than this.
        least_checkpoint_seconds: no checkpoint is written after an epoch if the last one is younger than this. After
            the last epoch, and when the run is stopped, one is written in any case.

    Raises:
        InvalidInput: data or the teacher is missing, or does not fit; nothing can be written to the directory, or the
            checkpoints there are of another spec.
        NonFiniteLoss: the loss became NaN or infinite; the last checkpoint remains.
        NoSpaceLeft: the disk is full; the last checkpoint remains.
        OutOfMemory: the batch is too large for the device; the last checkpoint remains.
        DecodingEnded: a process that decodes images was ended from outside; the last checkpoint remains.
        Stopped: the context asked for it; the state is saved, and a later call with the same arguments resumes.
    """
    check_writable(context.directory)
    if teacher is not None and teacher.resolve() == (context.directory / WEIGHTS_FILE).resolve():
        raise InvalidInput(
            f"the teacher {teacher} is the file that the student is written to; choose another directory"
        )
    run = _Run(
        spec,
        context,
        teacher=(teacher, converted_teacher),
        keep_checkpoints=keep_checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        least_checkpoint_seconds=least_checkpoint_seconds,
    )
    try:
        return _train(run, spec, context)
    finally:
        run.close()


def _train(run: _Run, spec: BaseTrainSpec, context: RunContext) -> TrainOutcome:
    for problem in restore_newest(context.directory, run.state, spec):
        _log.warning(problem)
    if run.state.epoch or run.state.step:
        _log.info("resumed after epoch %d of %d and %d steps", run.state.epoch, spec.epochs, run.state.step)
    if run.state.sums.images and not run.state.step:
        run.conclude_epoch()
    while run.state.epoch < spec.epochs:
        run.epoch()
    return run.finish()


class _Run:
    def __init__(
        self,
        spec: BaseTrainSpec,
        context: RunContext,
        *,
        teacher: tuple[Path | None, Path | None],
        keep_checkpoints: int,
        checkpoint_seconds: float,
        least_checkpoint_seconds: float,
    ) -> None:
        self.spec, self.directory, self.device = spec, context.directory, select_device(context.device)
        self.report, self.should_stop = context.report, context.should_stop
        self.processes = usable_processes() if context.decoding_processes is None else context.decoding_processes
        self.keep_checkpoints, self.checkpoint_seconds = keep_checkpoints, checkpoint_seconds
        self.least_checkpoint_seconds = least_checkpoint_seconds
        self.commit = git_commit()
        described = DATASETS[spec.dataset]
        device, datasets_dir = self.device, context.datasets_dir
        data = load_train(spec.dataset, datasets_dir)
        synthetic = None
        if spec.synthetic is not None:
            synthetic = SyntheticImages(
                datasets_dir / spec.dataset / "synthetic" / f"{spec.synthetic.file}.npz",
                image_shape=described.image_shape,
                num_classes=described.num_classes,
            )
        num_held_out = spec.selection.num_images if spec.selection is not None else 0
        self.class_counts: tuple[int, ...] | None = None
        self.test_images: Images | None = None
        if spec.imbalance is not None:
            classes = described.num_classes
            data = imbalanced(data, spec.imbalance, num_classes=classes, num_held_out=num_held_out)
            self.class_counts = class_counts(data.labels[num_held_out:], classes)
            # Found before the training, so that it does not fail after it.
            self.test_images = find_test(spec.dataset, datasets_dir)
        self.dataset_sha256 = data.sha256()
        self.synthetic_sha256 = None if synthetic is None else synthetic.sha256()
        set_tensor_float_32(spec.compute.precision == "tf32")
        self.batches = Batches(
            data,
            batch_size=spec.batch_size,
            device=device,
            num_held_out=num_held_out,
            synthetic=synthetic,
            synthetic_fraction=spec.synthetic.fraction if spec.synthetic is not None else 0.0,
            drop_last=spec.drop_last_batch,
            crop=resized_crop(spec.augmentation, described.image_shape[-1])
            if isinstance(spec.augmentation, ResizedCropAugmentation)
            else None,
            processes=self.processes,
        )
        self.steps_per_epoch = self.batches.per_epoch
        self.total_steps = self.steps_per_epoch * spec.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = build_model(spec.architecture, spec.dataset)
        overlapping = overlapping_parameters(model)
        if overlapping is not None:
            raise InvalidInput(
                f"{spec.architecture} has two tensors in one memory, {overlapping[0]!r} and {overlapping[1]!r}, "
                "which come apart on another device or in another memory layout; make them one nn.Parameter"
            )
        model = model.to(device)
        if spec.compute.channels_last:
            model = model.to(memory_format=torch.channels_last)
        # The run's own random stream, saved in checkpoints: a resumed run draws the same order and noise as one that
        # was never stopped.
        generator = torch.Generator(device).manual_seed(spec.seed)
        optimizer = make_optimizer(model, spec.optimizer)
        self.teacher: Teacher | None = None
        self.teacher_outcome: TeacherOutcome | None = None
        if isinstance(spec, DistillSpec) and not isinstance(spec.objective, CrossEntropyObjective):
            self.teacher, self.teacher_outcome = self._prepare_teacher(spec, teacher, context)
        self.task = make_task(spec, model, optimizer, generator, self.teacher)
        self.state = TrainingState(
            model=model,
            optimizer=optimizer,
            task=self.task,
            generator=generator,
            average=WeightAverage(model, spec.averaging, self.total_steps) if spec.averaging is not None else None,
            origin={
                "data set": self.dataset_sha256,
                "generated images": self.synthetic_sha256,
                "kind of device": device.type,
                **({} if self.teacher_outcome is None else {"teacher": self.teacher_outcome.weights_sha256}),
            },
        )
        self.measured_network = Network(self.state.result, spec.compute, device)
        self.progress = _ProgressReports(self.report, self.total_steps)
        self.last_checkpoint = time.perf_counter()

    def _prepare_teacher(
        self, spec: DistillSpec, files: tuple[Path | None, Path | None], context: RunContext
    ) -> tuple[Teacher, TeacherOutcome]:
        """Load and measure the teacher; keep its logits where they are the same in every epoch."""
        context.tell(0.0, "preparing the teacher")
        file, converted = files
        teacher = load_teacher(spec, file, context, self.device, converted=converted)
        assert isinstance(spec.teacher, TeacherWeights), "else it was not loaded"
        test = load_test(spec.dataset, context.datasets_dir)
        outcome = measured(
            teacher, spec.teacher, test, batch_size=spec.batch_size, file=file, context=context, device=self.device
        )

        def images_done(number: int) -> None:
            context.tell(0.0, "collecting the teacher's predictions")

        if spec.augmentation is None and spec.synthetic is None:
            teacher.keep(self.batches.data, batch_size=spec.batch_size, device=self.device, images_done=images_done)
        return teacher, outcome

    def epoch(self) -> None:
        """Train for one epoch, or for the rest of one after a resume; save a checkpoint whenever one is due."""
        spec, state = self.spec, self.state
        number = state.epoch + 1
        resumed_at = state.step
        order = self._order()
        already, started = state.sums.seconds, time.perf_counter()
        for images, labels, rows in self._batches(order, resumed_at):
            if self.should_stop():
                self._checkpoint()
                raise Stopped
            step = state.epoch * self.steps_per_epoch + state.step
            set_rates(
                state.optimizer,
                learning_rate=learning_rate(spec, step, self.steps_per_epoch),
                momentum=momentum(spec, step, self.steps_per_epoch),
            )
            if spec.batch_norm is not None:
                set_momentum(state.model, spec.batch_norm, step)
            outcome = self.task(
                augmented_views(images, spec.augmentation, state.generator),
                labels,
                epoch=number,
                where=f"at step {step + 1} of {self.total_steps} (epoch {number})",
                rows=rows if spec.augmentation is None else None,
            )
            state.step += 1
            state.sums.add(outcome)
            state.sums.seconds = already + time.perf_counter() - started
            if state.average is not None:
                state.average.after_step(state.model, step + 1)
            self.progress.step_done(step + 1, outcome, f"epoch {number} of {spec.epochs}")
            if time.perf_counter() - self.last_checkpoint > self.checkpoint_seconds:
                self._checkpoint()
        self.task.finish_epoch()
        if state.average is not None:
            state.average.after_epoch(state.model, number)
        state.epoch, state.step, state.epoch_start = number, 0, None
        self.conclude_epoch()

    def _batches(self, order: EpochOrder, first: int) -> Iterator[FetchedBatch]:
        try:
            yield from self.batches.iterate(order, first=first)
        except DecodingEnded:
            # A signal to the whole process group ends them too.
            if not self.should_stop():
                raise
            self._checkpoint()
            raise Stopped from None

    def close(self) -> None:
        """End the processes that decode images."""
        self.batches.close()

    def _order(self) -> EpochOrder:
        """Draw this epoch's order of images. After a resume within the epoch, draw its original order again."""
        state = self.state
        if state.epoch_start is None:
            state.epoch_start = state.generator.get_state()
            return self.batches.order(state.generator)
        now = state.generator.get_state()
        state.generator.set_state(state.epoch_start)
        order = self.batches.order(state.generator)
        state.generator.set_state(now)
        return order

    def conclude_epoch(self) -> None:
        """Measure the finished epoch if the spec has a selection, report it, and save a checkpoint if one is due."""
        spec, state, sums = self.spec, self.state, self.state.sums
        check_finite(state)
        held_out = self._select()
        finished = EpochFinished(
            epoch=state.epoch,
            epochs=spec.epochs,
            seconds=sums.seconds,
            metrics={
                **sums.metrics,
                **held_out,
                **self.task.epoch_metrics(state.epoch),
                "learning_rate": learning_rate(spec, state.epoch * self.steps_per_epoch - 1, self.steps_per_epoch),
            },
        )
        # Reported before it is saved: a run that is killed in between reports the epoch again after its resume, so
        # that no epoch's report is lost.
        self.report(finished)
        _log.info(
            "epoch %d of %d: %s",
            state.epoch,
            spec.epochs,
            ", ".join(f"{name} {value:.4g}" for name, value in finished.metrics.items()),
        )
        state.seconds += sums.seconds
        state.sums = EpochSums()
        since = time.perf_counter() - self.last_checkpoint
        if state.epoch == spec.epochs or since >= self.least_checkpoint_seconds:
            self._checkpoint()

    def _select(self) -> dict[str, float]:
        """Measure the epoch that has just ended on the held-out images, and keep its weights if it is the best so far.

        Returns:
            The held-out metrics; empty if the spec does not ask for a measurement of this epoch.
        """
        selection, state, spec = self.spec.selection, self.state, self.spec
        if selection is None or not self._is_measured(selection):
            return {}
        started = time.perf_counter()
        images, labels = self.batches.fetch(self.batches.held_out())

        def batch_done(images_done: int) -> None:
            images_of = f"{images_done} of {len(labels)} {self.task.held_out_described}"
            self.progress.selecting(f"epoch {state.epoch} of {spec.epochs}, {images_of}")
            if self.should_stop():
                # The checkpoint holds the trained epoch; the resumed run starts its measurement again.
                self._checkpoint()
                raise Stopped

        found = self.task.measure_held_out(self.measured_network, images, labels, batch_done=batch_done)
        now = found[self.task.selects_by]
        before = -1.0 if state.best is None else state.best.metrics[self.task.selects_by]
        if now > before or (now == before and selection.ties == "last"):
            weights = {name: tensor.cpu().clone() for name, tensor in state.result.state_dict().items()}
            state.best = Best(state.epoch, found, weights)
        state.sums.seconds += time.perf_counter() - started
        return found

    def _is_measured(self, selection: Selection) -> bool:
        return self.state.epoch % selection.every_epochs == 0 or self.state.epoch == self.spec.epochs

    def _checkpoint(self) -> None:
        path = save_checkpoint(self.directory, self.state, self.spec, keep=self.keep_checkpoints)
        self.last_checkpoint = time.perf_counter()
        self.report(CheckpointSaved(file=path.name, epoch=self.state.epoch, step=self.state.step))

    def finish(self) -> TrainOutcome:
        """Write the weights of the selected epoch, else of the last one, and return the outcome."""
        spec, best = self.spec, self.state.best
        tensors = self.state.result.state_dict() if best is None else best.weights
        path = self.directory / WEIGHTS_FILE
        save_tensors(path, tensors, {"architecture": spec.architecture, "dataset": spec.dataset})
        accuracy = self._test_accuracy()
        return TrainOutcome(
            weights=path.name,
            epochs=spec.epochs,
            selected_epoch=best.epoch if best is not None else None,
            held_out_clean_accuracy=best.metrics.get("held_out_clean_accuracy") if best is not None else None,
            held_out_robust_accuracy=best.metrics.get("held_out_robust_accuracy") if best is not None else None,
            teacher=self.teacher_outcome,
            class_counts=self.class_counts,
            test_accuracy=accuracy,
            seconds=self.state.seconds,
            manifest=make_manifest(
                spec,
                commit=self.commit,
                seed=spec.seed,
                device=device_name(self.device),
                dataset_sha256=self.dataset_sha256,
                synthetic_sha256=self.synthetic_sha256,
                weights_sha256=sha256_of(path),
            ),
        )

    def _test_accuracy(self) -> LongTailAccuracy | None:
        """The result's accuracy on the test images by size of the classes; None without an imbalance."""
        if self.test_images is None or self.class_counts is None:
            return None
        if self.state.best is not None:
            self.state.result.load_state_dict(self.state.best.weights)
        test = Batches(self.test_images, batch_size=self.spec.batch_size, device=self.device, processes=self.processes)
        in_order = EpochOrder(list(torch.arange(len(self.test_images)).split(self.spec.batch_size)), None)

        def batch_done(images_done: int) -> None:
            self.progress.testing(f"{images_done} of {test.num_images} test images")
            if self.should_stop():
                # The last epoch is saved; the test images are measured again.
                raise Stopped

        try:
            found = measure_long_tail(
                self.measured_network,
                ((images, labels) for images, labels, _ in test.iterate(in_order)),
                self.class_counts,
                batch_done=batch_done,
            )
        finally:
            test.close()
        by_group = {name: value for name, value in found.model_dump().items() if value is not None}
        _log.info("test accuracy: %s", ", ".join(f"{name} {value:.4g}" for name, value in by_group.items()))
        return found


class _ProgressReports:
    """Reports the latest step at most four times a second, with speed and time left."""

    def __init__(self, report: Callable[[Event], None], total_steps: int) -> None:
        self.report, self.total = report, total_steps
        self.first_step: int | None = None
        self.first_moment = self.last_report = 0.0
        self.images_since = 0
        self.fraction = 0.0

    def selecting(self, detail: str) -> None:
        self._measuring("selection", detail)

    def testing(self, detail: str) -> None:
        self._measuring("test", detail)

    def _measuring(self, stage: str, detail: str) -> None:
        now = time.perf_counter()
        if now - self.last_report >= _REPORT_SECONDS:
            self.last_report, self.images_since = now, 0
            self.report(Progress(stage=stage, fraction=self.fraction, detail=detail))

    def step_done(self, done: int, outcome: StepOutcome, detail: str) -> None:
        now = time.perf_counter()
        if self.first_step is None:
            # The first step is slower than the others (warm-up), so the estimate of the time left excludes it.
            self.first_step, self.first_moment = done, now
        self.images_since += outcome.images
        since_report = now - self.last_report
        if since_report < _REPORT_SECONDS and done < self.total:
            return
        timed = done - self.first_step
        metrics = StepMetrics(
            step=done,
            steps=self.total,
            metrics=outcome.metrics,
            images_per_second=self.images_since / since_report if timed else None,
        )
        self.last_report, self.images_since, self.fraction = now, 0, done / self.total
        self.report(
            Progress(
                stage="training",
                fraction=done / self.total,
                seconds_left=(now - self.first_moment) / timed * (self.total - done) if timed else None,
                detail=detail,
                metrics=metrics,
            )
        )
