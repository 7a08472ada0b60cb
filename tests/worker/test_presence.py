"""What a worker tells of itself."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import WorkerRow
from app.jobs import workers
from app.store import ArtifactStore
from tests.cluster import until
from worker.presence import Look, announce, describe_device, gpu_load


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool that knows two GPUs; a script, since no machine need have one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    # What it prints for each question, as recorded.
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '*utilization*) first="37, 12034, 143771"; second="[N/A], 512, 23034" ;;\n'
        '*) first="NVIDIA H200, 143771 MiB"; second="NVIDIA L4, 1 MiB" ;;\n'
        "esac\n"
        'case "$*" in *"-i 1"*) ;; *) echo "$first" ;; esac\n'
        'echo "$second"\n'
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


@pytest.mark.parametrize(("visible", "busy", "total"), [(None, 0.37, 143771), ("1", None, 23034)])
def test_a_worker_tells_how_busy_its_gpu_is(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, busy: float | None, total: int
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    load = gpu_load()
    assert load is not None
    assert (load.is_gpu, load.busy, load.memory_total_bytes) == (True, busy, total * 1024**2)


def test_without_a_gpu_it_tells_of_the_processor_and_the_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    load = Look(settings, threading.Event())._load()
    assert not load.is_gpu
    assert load.busy is None or 0 <= load.busy <= 1
    assert 0 < load.memory_bytes < load.memory_total_bytes == psutil.virtual_memory().total


def test_a_worker_tells_which_data_sets_and_published_weights_it_has(settings: Settings) -> None:
    look = Look(settings, threading.Event())
    before = look._once()
    assert before.datasets is not None
    assert "digits" in before.datasets
    assert "cifar10" not in before.datasets
    assert before.published == []
    folder = settings.effective_datasets_dir / "cifar10"
    (folder / "CIFAR-10-C").mkdir(parents=True)
    (folder / "cifar-10-python.tar.gz").touch()
    models = settings.effective_models_dir / "cifar10" / "Linf"
    models.mkdir(parents=True)
    (models / "Carmon2019Unlabeled.pt").touch()
    # One of three files of an ensemble.
    (models / "Chen2020Adversarial.pt_m0.pt").touch()
    after = look._once()
    assert after.datasets is not None
    assert {"cifar10", "CIFAR-10-C"} <= set(after.datasets)
    assert after.published == ["cifar10/Linf/Carmon2019Unlabeled"]


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

    def datasets() -> list[str] | None:
        with database.reading() as session:
            return session.get_one(WorkerRow, "host/1").datasets

    thread.start()
    until(lambda: seen() == [("host/1", "idle")])
    until(lambda: (datasets() or []) != [])
    stopping.set()
    until(lambda: seen() == [("host/1", "draining")])
    ended.set()
    thread.join(timeout=10)
    assert seen() == []
