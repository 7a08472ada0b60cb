"""Shows a run on the terminal: a progress bar with the remaining time, a line for each result, the row at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from app.core.formatting import duration, interval, percent, visible
from gkl.answers import AccuracyView, EvaluationView, JobState, JobView, ModelDetail
from gkl.catalog import ARCHITECTURES, DATASETS, LOSS_TITLES
from gkl.client import Client, StreamEvent
from gkl.outcome import AttackFinished, AttackOutcome, EpochFinished, EvaluationOutcome, Event, Progress, TrainOutcome
from gkl.outcome.metrics import headlines, written
from gkl.spec import SentSpec, format_epsilon
from gkl.statistics.intervals import wilson_interval


def run_and_show(
    url: str,
    spec: SentSpec,
    console: Console,
    *,
    token: str | None = None,
    submitter: str | None = None,
    priority: int | None = None,
) -> bool:
    """Send a job, and show it and the jobs that follow from it until they end. Returns whether all succeeded."""
    with Client(url, token) as client:
        job = client.submit(spec, submitter=submitter, priority=priority)
        waiting = [job.id]
        finished: list[JobView] = []
        while waiting:
            job_id = waiting.pop(0)
            console.print(f"Job {job_id}: {client.url}/jobs/{job_id}", highlight=False)
            with Display(console) as display:
                for event in client.events(job_id):
                    display.show(event)
            job = client.job(job_id)
            finished.append(job)
            waiting += job.child_ids
            if job.failure is not None:
                console.print(
                    f"Job {job.id} failed ({job.failure.code}): {job.failure.message}", style="red", highlight=False
                )
        last = finished[-1]
        if last.model_id is not None:
            _show_row(client, client.model(last.model_id), last, console)
        return all(job.state is JobState.SUCCEEDED for job in finished)


class Display:
    """A progress bar and the lines above it, fed with a stream's events."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            transient=True,
            # In a file there is no bar, only the lines.
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, event: StreamEvent) -> None:
        if event.type == "progress":
            self.progress(Progress.model_validate(event.data))
        elif event.type == "state":
            self._state(event.data)
        elif event.type == "epoch":
            self.epoch(EpochFinished.model_validate(event.data | {"type": "epoch"}))
        elif event.type == "attack":
            self.attack(AttackOutcome.model_validate(event.data["outcome"]))

    def progress(self, progress: Progress) -> None:
        left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
        detail = progress.detail
        if progress.metrics is not None:
            step = progress.metrics
            detail += f", {_figures(step.metrics, most=3)}"
            if step.images_per_second is not None:
                detail += f", {step.images_per_second:.0f} images/s"
        if self.task is None:
            self.task = self.bars.add_task(progress.stage, total=1.0, left=left, detail=detail)
        self.bars.update(self.task, description=progress.stage, completed=progress.fraction, left=left, detail=detail)

    def epoch(self, epoch: EpochFinished) -> None:
        # About ten lines show the course of a training; a line for each epoch would hide the other lines.
        if epoch.epoch % max(1, epoch.epochs // 10) == 0 or epoch.epoch == epoch.epochs:
            # Four metrics fit into eighty columns.
            self._line(f"epoch {epoch.epoch:>4} of {epoch.epochs}: {_figures(epoch.metrics, most=4)}")

    def attack(self, attack: AttackOutcome) -> None:
        self._line(
            f"{attack.attack:<8} {attack.points} points entered, {attack.broken} broken, "
            f"{attack.survivors} left ({duration(attack.seconds)})"
        )

    def _state(self, data: dict[str, Any]) -> None:
        if data["state"] == JobState.QUEUED:
            self._line(f"queued: {data['reason']}")
        elif data["state"] == JobState.RUNNING:
            self._line(f"attempt {data['attempt']} on {data['worker']}")

    def _line(self, text: str) -> None:
        # Not wrapped, so that a hash stays in one piece.
        self.bars.console.print(f"  {text}", highlight=False, soft_wrap=True)


class LocalDisplay(Display):
    """The display for a run in this process."""

    def report(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress(event)
        elif isinstance(event, EpochFinished):
            self.epoch(event)
        elif isinstance(event, AttackFinished):
            self.attack(event.outcome)

    def trained(self, weights: Path, outcome: TrainOutcome) -> None:
        self._line(f"trained in {duration(outcome.seconds)}: {weights}, sha256 {outcome.manifest.weights_sha256}")
        teacher = outcome.teacher
        if teacher is not None:
            self._line(
                f"teacher {teacher.architecture}: {percent(teacher.clean_accuracy)} of {teacher.num_points} test images"
            )
        if outcome.test_accuracy is not None:
            found = outcome.test_accuracy
            groups = {
                "all images": found.top1,
                "classes with more than 100 training images": found.many,
                "with 20 to 100": found.medium,
                "with fewer": found.few,
            }
            said = [f"{what} {percent(share)}" for what, share in groups.items() if share is not None]
            self._line(f"test accuracy: {', '.join(said)}")

    def evaluated(self, outcome: EvaluationOutcome, certificate: Path) -> None:
        accuracies = [("clean", outcome.clean_correct / outcome.num_points)]
        if outcome.robust_accuracy is not None:
            accuracies.append(("mean corrupted" if outcome.corruptions else "robust", outcome.robust_accuracy))
        for what, accuracy in accuracies:
            bounds = wilson_interval(accuracy * outcome.num_points, outcome.num_points)
            self._line(
                f"{what:<6} accuracy {percent(accuracy)} on {outcome.num_points} points, "
                f"95 % interval {interval(bounds)}"
            )
        errors = {
            "Hendrycks": outcome.mean_corruption_error,
            "RobustBench": outcome.robustbench_mean_corruption_error,
        }
        for whose, error in errors.items():
            if error is not None:
                self._line(f"mean corruption error ({whose}) {percent(error)}")
        for note in outcome.manifest.weights_notes:
            self._line(f"weights: {note}")
        for flag in outcome.flags:
            self._line(f"unreliable, {flag.name}: {flag.sentence}")
        self._line(f"certificate: {certificate}")


def _show_row(client: Client, model: ModelDetail, job: JobView, console: Console) -> None:
    evaluation = next((found for found in model.evaluations if found.job_id == job.id), None)
    if evaluation is None:
        return
    rank = None
    if evaluation.not_ranked is None:
        rank = next((entry.rank for entry in model.entries if entry.threat_model == evaluation.threat_model), None)
    console.print(_row_table(model, evaluation, rank))
    for note in evaluation.manifest.get("weights_notes", ()):
        console.print(f"Weights: {note}", highlight=False, markup=False)
    for flag in evaluation.flags:
        console.print(f"Unreliable, {flag.name}: {flag.sentence}", style="yellow", highlight=False)
    if rank is not None:
        board = f"{client.url}/leaderboards/{model.dataset}/{evaluation.threat_model}"
        console.print(f"Leaderboard: {board}", highlight=False)
    console.print(f"This model:  {client.url}/models/{model.id}", highlight=False)


def _row_table(model: ModelDetail, evaluation: EvaluationView, rank: int | None) -> Table:
    if evaluation.norm is None or evaluation.epsilon is None:
        what = evaluation.protocol
    else:
        budget = f"{evaluation.norm}, epsilon {format_epsilon(evaluation.epsilon)}"
        what = f"{budget}, AutoAttack {evaluation.protocol}"
    table = Table(
        title=f"{DATASETS[model.dataset].title}, {what}",
        caption=f"on {evaluation.clean.points} points; below each accuracy its 95 % Wilson interval",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Rank", "Model", "Clean", "Robust", "Architecture", "Loss"):
        table.add_column(heading, no_wrap=heading != "Model")
    table.add_row(
        "-" if rank is None else str(rank),
        visible(model.name),
        _accuracy(evaluation.clean),
        "-" if evaluation.robust is None else _accuracy(evaluation.robust),
        ARCHITECTURES[model.architecture].title,
        LOSS_TITLES[model.loss] if model.loss else "-",
    )
    return table


def _figures(metrics: Mapping[str, float], *, most: int) -> str:
    return ", ".join(f"{metric.label} {written(metric, value)}" for metric, value in headlines(metrics, most))


def _accuracy(view: AccuracyView) -> str:
    return f"{percent(view.accuracy)}\n{interval(view.interval)}"
