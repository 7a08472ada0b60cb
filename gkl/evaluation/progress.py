"""How far an evaluation is, from the calls of the model that its attacks make."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import nn

from gkl.errors import Stopped
from gkl.evaluation.attacks import Attack
from gkl.outcome import Event, Progress

_REPORT_SECONDS = 0.5


class EvaluationProgress:
    """Counts the model's calls while attacks run; reports, and stops the run from within when asked to.

    Attacks are closed loops of minutes to hours: a hook on the model is the one place inside them where the
    count can advance and a request to stop can be seen.
    """

    def __init__(
        self,
        model: nn.Module,
        attacks: list[Attack],
        num_blocks: int,
        report: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.model, self.report, self.should_stop = model, report, should_stop
        self.later = list(attacks)
        self.num_blocks = num_blocks
        self.attack: Attack | None = None
        self.entering = 0
        self.block = 0
        self.calls = 0
        self.cost_done = 0.0
        self.started = self.last_report = time.perf_counter()

    def __enter__(self) -> Self:
        self._hook = self.model.register_forward_pre_hook(self._on_call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def start_attack(self, attack: Attack, entering: int) -> None:
        if self.attack is not None:
            self.cost_done += self.attack.cost * self.entering
        self.attack, self.entering = attack, entering
        self.later.remove(attack)
        self.start_block(0)
        self._report()

    def start_block(self, block: int) -> None:
        self.block, self.calls = block, 0

    def _on_call(self, *_: Any) -> None:
        if self.should_stop():
            raise Stopped
        self.calls += 1
        if time.perf_counter() - self.last_report >= _REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        assert self.attack is not None
        self.last_report = time.perf_counter()
        in_block = min(1.0, self.calls / self.attack.calls)
        current = self.attack.cost * self.entering
        done = self.cost_done + current * (self.block + in_block) / self.num_blocks
        # Points that break later make the rest cheaper: the estimate is from above.
        total = self.cost_done + current + sum(attack.cost for attack in self.later) * self.entering
        fraction = done / total if total else 1.0
        elapsed = self.last_report - self.started
        self.report(
            Progress(
                stage=self.attack.name,
                fraction=min(1.0, fraction),
                seconds_left=elapsed * (1 - fraction) / fraction if fraction > 0.01 else None,
                detail=f"{self.entering} points left, block {self.block + 1} of {self.num_blocks}",
            )
        )
