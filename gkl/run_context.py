"""Where a run of the engine reads and writes, and whom it tells of its progress. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gkl.errors import Stopped
from gkl.outcome import Event, Progress


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The same for each kind of run; what is to be done is in its spec."""

    directory: Path
    """Where the run writes, and finds what an earlier attempt left; made if it is missing."""
    datasets_dir: Path
    """Where the data sets' files are, each in a folder of its name."""
    models_dir: Path | None = None
    """Where RobustBench keeps published weights; None for its own default."""
    report: Callable[[Event], None] = lambda _: None
    """Called with progress, and with everything that is finished on the way."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked at every call of the model; when it says yes the run ends with `Stopped`."""
    device: str | None = None
    """Where to compute, such as 'cpu' or 'cuda:1'; None for CUDA if there is one."""

    decoding_processes: int | None = None
    """How many processes decode a training's image files; 0 for this process alone, None for as many as there are
    cores for it (`gkl.data.decoding.usable_processes`)."""

    def tell(self, fraction: float, stage: str) -> None:
        """Report how far the run is, before a pass of the model.

        Raises:
            Stopped: the run was asked to stop.
        """
        if self.should_stop():
            raise Stopped
        self.report(Progress(stage=stage, fraction=fraction))
