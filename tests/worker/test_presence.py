"""What a worker tells of itself."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from app import workers
from app.artifacts import ArtifactStore
from app.database import Database
from app.settings import Settings
from tests.cluster import until
from worker.presence import announce, describe_device


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool that knows two GPUs; a script, since no machine need have one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *"-i 1"*) ;; *) echo "NVIDIA H200, 143771 MiB" ;; esac\necho "NVIDIA L4, 1 MiB"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tool


@pytest.mark.parametrize(
    ("visible", "says"),
    [(None, "NVIDIA H200, 143771 MiB"), ("1,0", "NVIDIA L4, 1 MiB"), ("", "CPU ("), ("-1", "CPU (")],
)
def test_a_worker_names_the_gpu_that_its_runs_will_use(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, says: str
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert describe_device().startswith(says)


def test_a_driver_that_fails_is_no_gpu(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert describe_device().startswith("CPU (")


def test_a_worker_is_seen_from_its_start_to_its_end(
    database: Database, settings: Settings, store: ArtifactStore
) -> None:
    stopping, ended = threading.Event(), threading.Event()
    quick = settings.model_copy(update={"heartbeat_seconds": 0.1})
    thread = threading.Thread(
        target=announce,
        args=(quick, database, store, "host/1"),
        kwargs={"stopping": stopping, "ended": ended},
    )

    def seen() -> list[tuple[str, str]]:
        with database.reading() as session:
            found = workers.all_of_them(session, lease=timedelta(seconds=90))
            return [(status.row.name, status.state) for status in found]

    thread.start()
    until(lambda: seen() == [("host/1", "idle")])
    stopping.set()
    until(lambda: seen() == [("host/1", "draining")])
    ended.set()
    thread.join(timeout=10)
    assert seen() == []
