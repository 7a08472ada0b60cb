"""Progress of an evaluation, estimated from the calls of the model that its attacks make."""

from __future__ import annotations

import time
from collections.abc import Callable

from gkl.errors import Stopped
from gkl.outcome import Event, PointsSoFar, Progress

_REPORT_SECONDS = 0.5


class EvaluationProgress:
    """Counts the model's calls while attacks run, reports progress, and stops the run on request.

    An attack is a closed loop that runs for minutes to hours. Only when it calls the model can this class update the
    progress and check whether the run should stop.
    """

    def __init__(self, report: Callable[[Event], None], should_stop: Callable[[], bool]) -> None:
        self.report, self.should_stop = report, should_stop
        self.stage = self.detail = ""
        self.done = 0.0
        self.left = 0.0
        self.part = 0.0
        self.expected_calls = 1
        self.calls = 0
        self.restored = 0.0
        self.points: PointsSoFar | None = None
        """How many points have survived so far. Every report contains it."""
        self.started = self.last_report = time.perf_counter()

    def restore(self, work: float) -> None:
        """Count work that was done before this process began, and leave it out of the estimate of the speed."""
        self.done += work
        self.restored += work

    def start_part(self, stage: str, detail: str, *, work: float, calls: int, left: float) -> None:
        """Begin a part of `work` units of work and about `calls` calls of the model.

        `left` is the work of this part and all later ones. It is an upper estimate: every point that breaks leaves less
        work for later attacks.
        """
        is_new_stage = stage != self.stage
        self.stage, self.detail, self.part, self.left = stage, detail, work, left
        self.expected_calls, self.calls = max(1, calls), 0
        if is_new_stage:
            self._report()

    def restart_part(self) -> None:
        """Count the current part's calls from 0 again."""
        self.calls = 0

    def finish_part(self) -> None:
        self.done += self.part
        self.part = 0.0

    def on_call(self) -> None:
        """Count a call of the model; must be called at each one.

        Raises:
            Stopped: the run was asked to stop.
        """
        if self.should_stop():
            raise Stopped
        self.calls += 1
        if time.perf_counter() - self.last_report >= _REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        self.last_report = time.perf_counter()
        in_part = self.part * min(1.0, self.calls / self.expected_calls)
        total = self.done + self.left
        fraction = (self.done + in_part) / total if total else 1.0
        worked = self.done + in_part - self.restored
        elapsed = self.last_report - self.started
        self.report(
            Progress(
                stage=self.stage,
                fraction=min(1.0, fraction),
                seconds_left=elapsed * (self.left - in_part) / worked if worked > 0.01 * total else None,
                detail=self.detail,
                points=self.points,
            )
        )
