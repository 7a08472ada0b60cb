"""The surroundings of a run: its folders and device, and functions to report progress and to stop it. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gkl.errors import Stopped
from gkl.outcome import Event, Progress


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every kind of run needs besides its spec, which says what to do."""

    directory: Path
    """Folder that the run writes to, and in which it finds the files of an earlier attempt; created if missing."""
    datasets_dir: Path
    """Folder with the data sets, each in a subfolder of its name."""
    models_dir: Path | None = None
    """Folder in which RobustBench keeps published weights; only needed by runs that load those."""
    report: Callable[[Event], None] = lambda _: None
    """Called with progress and with partial results, such as finished epochs or attacks."""
    should_stop: Callable[[], bool] = lambda: False
    """Called before every training step or pass of the model; once it returns True, the run ends with `Stopped`."""
    device: str | None = None
    """The device to compute on, such as 'cpu' or 'cuda:1'; None for CUDA if available, else the CPU."""

    decoding_processes: int | None = None
    """How many processes decode a training's image files; 0 for this process alone, None for as many as there are
    cores for it (`gkl.data.decoding.usable_processes`)."""

    def tell(self, fraction: float, stage: str) -> None:
        """Report the run's progress before a pass of the model.

        Args:
            fraction: the share of the run that is done, in [0, 1].
            stage: what the run is doing, for people.

        Raises:
            Stopped: `should_stop` returned True.
        """
        if self.should_stop():
            raise Stopped
        self.report(Progress(stage=stage, fraction=fraction))
