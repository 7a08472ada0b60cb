"""Weights from strangers where they are read: what only that can judge is refused with a sentence and does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from app import jobs
from app.db.database import Database
from app.jobs import job_files
from app.store import ArtifactStore
from gkl.answers import JobState
from gkl.conversion import convert
from gkl.errors import FailureCode, InvalidInput, Stopped
from gkl.formats.weights_file import open_weights
from gkl.formats.weights_format import check_weights_file
from gkl.models import build_model, load_weights
from gkl.outcome import Failed, Progress
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.cluster import until
from tests.databases import either_database
from tests.hostile import FOR_THE_ARCHITECTURE, FOR_THE_READER, network, saved
from tests.specs import endless_train_spec
from tests.worker.test_worker import Background, files, look, runners, send
from tests.worker.test_worker import worker as _worker_fixture
from worker.tasks import Worker

worker = _worker_fixture


@pytest.mark.parametrize("kind", FOR_THE_ARCHITECTURE)
def test_what_the_architecture_tells(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sent"
    path.write_bytes(FOR_THE_ARCHITECTURE[kind].make())
    check_weights_file(path)
    with pytest.raises(InvalidInput, match=FOR_THE_ARCHITECTURE[kind].says):
        load_weights(build_model("tiny_cnn", "digits"), path)


# What `python -m gkl.conversion` does, in a fork of one process for each file: importing torch takes seconds.
_READ_ALL = """
import os, sys
from pathlib import Path
import torch
import gkl.formats.confinement, gkl.device, gkl.formats.state_dict, gkl.formats.tensor_files
from gkl.conversion import _main

for source in sorted(Path(sys.argv[1]).iterdir()):
    process = os.fork()
    if process == 0:
        target = Path(sys.argv[2]) / source.name
        target.mkdir()
        os.dup2(os.open(target / "answer", os.O_CREAT | os.O_WRONLY), 1)
        _main(source, target / "weights.safetensors")
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def test_what_reading_them_tells(tmp_path: Path) -> None:
    sent, made = tmp_path / "sent", tmp_path / "made"
    sent.mkdir()
    made.mkdir()
    for kind, hostile in FOR_THE_READER.items():
        (sent / kind).write_bytes(hostile.make())
        check_weights_file(sent / kind)
    done = subprocess.run(
        [sys.executable, "-c", _READ_ALL, sent, made],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    for kind, status in zip(sorted(FOR_THE_READER), done.stdout.split(), strict=True):
        assert status == "1", (kind, done.stderr)
        failed = Failed.model_validate_json((made / kind / "answer").read_bytes())
        assert failed.code is FailureCode.INVALID_INPUT, kind
        assert any(says in failed.message for says in FOR_THE_READER[kind].says.split("|")), failed.message
        assert [path.name for path in (made / kind).iterdir()] == ["answer"]


def evaluate(database: Database, store: ArtifactStore, path: Path) -> int:
    """Queue an evaluation of the file, as if it had been sent."""
    stored = store.put(path)
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.9), batch_size=360)
    with database.writing() as session:
        job_files.record_upload(session, stored, "torch", "Ada")
        spec = EvaluateSpec(
            name="Sent", dataset="digits", architecture="tiny_cnn", weights=stored.sha256, evaluation=evaluation
        )
        return jobs.create(session, spec).id


@either_database
def test_a_run_refuses_them_and_leaves_nothing(
    worker: Worker, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    """Of each way in which it does so one."""
    corpus = FOR_THE_ARCHITECTURE | FOR_THE_READER
    for kind in ("NaN", "tensor of 4 TB out of one number", "infinite, of torch.save"):
        path = tmp_path / "sent"
        path.write_bytes(corpus[kind].make())
        job_id = evaluate(database, store, path)
        before = set(files(worker.settings))
        assert worker.run_next() == job_id
        job = look(database, job_id)
        assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT), job.failure_message
        assert corpus[kind].says in (job.failure_message or "")
        assert not list(worker.settings.runs_dir.iterdir())
        assert not runners()
        # Of the right form, with only the wrong values, it is kept as what it was converted to.
        assert len(set(files(worker.settings)) - before) == (kind == "infinite, of torch.save")


# --- the room in which they are read -----------------------------------------------------------------------------


def test_a_confined_process_has_lost_what_it_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    code = """
import ctypes, os, platform, signal, socket, subprocess, sys, threading
from pathlib import Path
from gkl.formats.confinement import _MACHINES, Limits, confine

mine, other, there = (Path(sys.argv[1]) / name for name in ("mine", "other", "there"))
libc = ctypes.CDLL(None, use_errno=True)

def tgkill(process):
    if libc.syscall(_MACHINES[platform.machine()].tgkill, process, process, 0) != 0:
        raise OSError(ctypes.get_errno(), "tgkill")

confine(Limits(memory_bytes=2**28, cpu_seconds=30, file_bytes=10_000), mine)
thread = threading.Thread(target=(mine / "thread").touch)
thread.start()
thread.join()

def is_refused(what):
    try:
        what()
    except (PermissionError, MemoryError, OSError) as error:
        print(type(error).__name__, getattr(error, "errno", None))
    else:
        print("done")

is_refused(lambda: socket.socket())
is_refused(lambda: socket.socketpair())
is_refused(lambda: os.execv("/bin/true", ["true"]))
is_refused(os.fork)
is_refused(lambda: subprocess.run(["true"]))
is_refused(lambda: os.kill(os.getppid(), 0))
is_refused(lambda: tgkill(os.getppid()))
is_refused(lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 5))
is_refused(lambda: os.sched_setaffinity(os.getppid(), {0}))
is_refused(lambda: os.truncate(there, 0))
is_refused(lambda: there.chmod(0))
is_refused(lambda: os.utime(there, (0, 0)))
is_refused(lambda: os.setxattr(there, "user.a", b"b"))
is_refused(lambda: tgkill(os.getpid()))
is_refused(other.touch)
is_refused(lambda: (mine / "file").write_bytes(bytes(20_000)))
is_refused(lambda: bytes(2**29))
is_refused(lambda: (mine / "well").write_bytes(b"well"))
is_refused(lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(100)])
"""
    (tmp_path / "there").write_text("kept")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True)
    refused = ["PermissionError 1"] * 13 + ["done", "PermissionError 13"]
    assert done.stdout.splitlines() == [*refused, "OSError 27", "MemoryError None", "done", "OSError 24"], done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "there"]
    assert (tmp_path / "there").read_text() == "kept"
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["file", "thread", "well"]


def test_a_confined_process_ends_with_its_time(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from gkl.formats.confinement import Limits, confine

confine(Limits(memory_bytes=2**28, cpu_seconds=1, file_bytes=0), Path(sys.argv[1]))
while True:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True)
    assert done.returncode == -signal.SIGXCPU


def test_a_conversion_keeps_names_values_and_formats(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    state = {
        "module.a": shared,
        "module.b": shared[:2],
        "module.transposed": shared.T,
        "module.half": torch.nn.Parameter(torch.ones(3).half()),
        "module.count": torch.tensor(7),
    }
    path, target = tmp_path / "model.pt", tmp_path / "made" / "weights.safetensors"
    path.write_bytes(saved({"state_dict": state, "epoch": 3}))
    target.parent.mkdir()
    told: list[object] = []
    convert(path, target, report=told.append)
    converted = open_weights(target)
    assert {where: [*tensors] for where, tensors in converted.containers.items()} == {"state_dict": sorted(state)}
    for name, tensor in state.items():
        found = converted.read("state_dict", [name])[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert isinstance(told[0], Progress)


def test_a_conversion_that_takes_too_long_or_is_not_wanted_any_more_ends(tmp_path: Path) -> None:
    path, target = tmp_path / "model.pt", tmp_path / "weights.safetensors"
    path.write_bytes(saved(network()))
    with pytest.raises(InvalidInput, match=r"reading model\.pt took more than 0 seconds; save the weights with"):
        convert(path, target, seconds=0.01)
    with pytest.raises(Stopped):
        convert(path, target, should_stop=lambda: True)
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]
    assert not [each for each in psutil.Process().children() if "gkl.conversion" in " ".join(each.cmdline())]


@either_database
def test_a_run_is_told_no_secret(worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GKLBENCH_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD", "SOMETHING"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    send(database, endless_train_spec())
    running = Background(worker)
    until(runners)
    (runner,) = runners()
    told = Path(f"/proc/{runner.pid}/environ").read_bytes()
    runner.send_signal(signal.SIGKILL)
    running.wait()
    assert b"planted" not in told
    assert b"CUDA_VISIBLE_DEVICES=0" in told
    assert b"PATH=" in told


# As another user than root, who is kept from nothing; without starting a program, since that undoes it.
_LOOK_AT = """
import ctypes, os, sys
from pathlib import Path
from app.core.lifeline import hide_from_processes_of_this_user

os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
environment = Path(f"/proc/{os.getpid()}/environ")

def is_read():
    process = os.fork()
    if process == 0:
        try:
            os._exit(b"planted" in environment.read_bytes())
        except PermissionError:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

print(is_read())
hide_from_processes_of_this_user()
print(is_read())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's rights, which only root can")
def test_the_worker_is_hidden_from_its_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK_AT],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "GKLBENCH_DATABASE_URL": "planted"},
    )
    assert done.stdout.split() == ["1", "2"], done.stderr
