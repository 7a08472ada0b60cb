"""Hostile names and contents: nothing outside the data directory is written, nor read, but for the programs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from celery import Celery
from fastapi.testclient import TestClient
from kombu import Connection

from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import Entry
from app.http.service import Service
from gkl.answers import Provenance
from gkl.outcome import CheckOutcome, Flag
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.app.routes.test_api import assert_problem
from tests.databases import either_database
from tests.specs import NO_FILES, tiny_train_spec

_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
ROOT = Path(__file__).parents[3]

HOSTILE = [
    "../../escaped",
    "/etc/passwd",
    "..",
    "....//....//x",
    "a/../../b",
    "%2e%2e%2fescaped",
    "..\\..\\escaped",
    "~/escaped",
    "$(touch escaped)",
    "`touch escaped`",
    "; touch escaped",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "con\u0000trol",
    "\u202egnp.escaped",
]


class Watch:
    """What this process opens and changes on disk while it watches. Python cannot forget a hook: it is only told to
    look away."""

    def __init__(self) -> None:
        self.is_on, self.read, self.written = False, set[str](), set[str]()
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            (self.written if changes else self.read).add(os.fsdecode(path))
        elif event in _WRITES:
            self.written |= {os.fsdecode(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)}

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.read.clear()
        self.written.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


WATCH = Watch()


def outside(paths: set[str], *allowed: Path) -> list[str]:
    inside = [path.resolve() for path in allowed]
    found = (Path(path).resolve() for path in paths)
    return sorted(str(path) for path in found if not any(path.is_relative_to(folder) for folder in inside))


# The interpreter, the packages, this project, and what the system has for every program.
PROGRAMS = [Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_paths()["stdlib"]), ROOT]
SYSTEM = [Path(path) for path in ("/usr", "/lib", "/proc", "/sys", "/dev", "/etc")]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_the_data_directory(
    client: TestClient, settings: Settings, database: Database, tmp_path: Path, name: str
) -> None:
    spec = tiny_train_spec().model_dump(mode="json")
    evaluate = {
        "kind": "evaluate",
        "name": name,
        "dataset": "digits",
        "architecture": "tiny_cnn",
        "weights": name,
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.1}},
    }
    client.get("/")
    before = set(tmp_path.rglob("*"))
    with WATCH.watching():
        answers = [
            client.post("/api/v1/jobs", json=spec | {"name": name}),
            client.post("/api/v1/jobs", json=spec | {"architecture": name}),
            client.post("/api/v1/jobs", json=spec | {"dataset": name}),
            client.post("/api/v1/jobs", json=evaluate),
            client.post("/api/v1/jobs", json=spec, params={"submitter": name}),
            client.post("/api/v1/robustbench/imports", json={"files": {f"{name}.json": contents(LINF).decode()}}),
            client.post("/api/v1/robustbench/imports", json={"files": {f"cifar10/Linf/{name}.json": "{}"}}),
            client.post("/api/v1/weights", content=b"not weights", headers={"X-Name": "a"}),
            client.post("/api/v1/entries/1/attacks", params={"name": name}, content=b"x"),
            *(
                client.get(f"{path}/{name.replace(chr(0), '%00').replace('#', '')}")
                for path in ("/static", "/swagger", "/jobs", "/api/v1/weights", "/api/v1/uploads", "/api/v1/recipes")
            ),
            client.get(f"/api/v1/leaderboards/cifar10/{name.replace(chr(0), '%00')}"),
        ]
    for answer in answers:
        assert answer.status_code < 500, answer.text
        assert "root:" not in answer.text
    written = outside(WATCH.written, settings.data_dir, *(path for path in before if "test.sqlite3" in path.name))
    assert [path for path in written if "sqlite3" not in path and not path.startswith("/dev")] == []
    assert outside(WATCH.read, tmp_path, *PROGRAMS, *SYSTEM) == []
    made = {path for path in set(tmp_path.rglob("*")) - before if not path.is_relative_to(settings.data_dir)}
    assert {path.name for path in made if "sqlite3" not in path.name} == set()
    assert not list(tmp_path.rglob("*escaped*"))


TRACED = """
import os, runpy, sys
written = set()
def see(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.add(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"):
        written.update(os.path.realpath(os.fsdecode(a)) for a in arguments if isinstance(a, (str, bytes)))
    elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        written.add(f"/{event} {arguments[0]}")
sys.addaudithook(see)
try:
    runpy.run_module("worker.runner", run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write("WRITTEN " + repr(sorted(written)) + "\\n")
"""


@pytest.mark.system
def test_a_run_writes_in_its_own_directory_and_reaches_for_nothing(tmp_path: Path) -> None:
    directory, elsewhere, temporary = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "temporary"
    for folder in (directory, elsewhere, temporary):
        folder.mkdir()
    spec = tiny_train_spec().model_copy(update={"name": "../../escaped; touch escaped"})
    order: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "directory": str(directory)}
    order |= {"datasets_dir": str(NO_FILES), "models_dir": str(NO_FILES)}
    order |= dict.fromkeys(("shard_index", "weights", "converted"))
    order["checkpoint_seconds"] = 0.0
    with subprocess.Popen(
        [sys.executable, "-P", "-c", TRACED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(elsewhere),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(temporary),
        },
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        said, log = process.stdout.read(), process.stderr.read()
        # Not before: the end of its input ends a run at once.
        process.wait()
    assert '"weights.safetensors"' in said, log[-3000:]
    (line,) = [line for line in log.splitlines() if line.startswith("WRITTEN ")]
    written = set(eval(line.removeprefix("WRITTEN ")))
    # How Python finds where a library is, and which commit this is.
    written -= {"/subprocess.Popen /sbin/ldconfig", "/subprocess.Popen git"}
    assert [path for path in outside(written, directory, temporary) if not path.startswith("/dev/")] == []
    assert list(elsewhere.iterdir()) == []


class Planted:
    """What a pickle would run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_reads_nothing_but_json_from_its_broker(service: Service, broker_url: str, tmp_path: Path) -> None:
    """A pickle in a message is not opened, and the worker goes on with the next one."""
    from worker.celery_app import make_worker, make_worker_app

    canary = tmp_path / "canary"
    worker = make_worker(service.settings)
    app: Celery = make_worker_app(worker)
    heard = Event()
    app.tasks["jobs.wake"].run = lambda job_id: heard.set()
    with Connection(broker_url) as connection:
        queue = connection.SimpleQueue("gklbench")
        queue.clear()
        queue.put(
            pickle.dumps(Planted(canary)), content_type="application/x-python-serialize", content_encoding="binary"
        )
        body = base64.b64encode(pickle.dumps([[1], {}, {}])).decode()
        queue.put(body, content_type="application/x-python-serialize", headers={"task": "jobs.wake", "id": "1"})
        queue.close()
    from celery.contrib.testing.worker import start_worker

    with start_worker(app, perform_ping_check=False, pool="solo", loglevel="CRITICAL"):
        app.send_task("jobs.wake", args=[1])
        assert heard.wait(30), "it does not go on"
    assert not canary.exists()


# --- the board's honesty -----------------------------------------------------------------------------------------


def test_only_a_workers_measurement_is_verified(client: TestClient, database: Database) -> None:
    forged = LINF | {"provenance": "verified", "rank": 1, "verified": True, "evaluation_id": 1, "model_id": 1}
    client.post("/api/v1/robustbench/imports", json={"files": {"cifar10/Linf/Forged.json": json.dumps(forged)}})
    with database.reading() as session:
        (entry,) = session.query(Entry)
        assert (entry.provenance, entry.model_id, entry.evaluation_id) == (Provenance.IMPORTED, None, None)


@either_database
@pytest.mark.parametrize(
    "forged",
    [
        {"robust_accuracy": 0.99},
        {"clean_accuracy": 1.0},
        {"provenance": "verified"},
        {"publication": {"title": "x", "external": "99.0"}},
        {"evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.1}, "robust_correct": 360}},
        {"state": "succeeded"},
        {"id": 7},
        {"attempt": 3},
    ],
)
def test_a_spec_has_no_place_for_a_number_that_was_not_measured(client: TestClient, forged: dict[str, Any]) -> None:
    answer = client.post("/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json") | forged)
    assert_problem(answer, 422, "unknown field; remove it")


def test_nothing_over_rest_changes_what_was_measured(client: TestClient) -> None:
    """The only ways in are a job, examples that are checked or another entry's, and RobustBench's files; no PUT, no
    PATCH of a result.

    Withdrawals and restored ranks change where an entry stands, with a reason for all to read, and none of its numbers.
    """
    document = client.get("/openapi.json").json()["paths"]
    changing = {
        (method, path)
        for path, operations in document.items()
        for method in operations
        if method in ("put", "patch", "post", "delete")
    }
    assert {path for method, path in changing if method in ("put", "patch")} == {"/api/v1/uploads/{upload_id}"}
    about_results = {path for _, path in changing if "entries" in path or "evaluations" in path or "models" in path}
    assert about_results == {
        "/api/v1/entries/{entry_id}/attacks",
        "/api/v1/entries/{entry_id}/rank",
        "/api/v1/entries/{entry_id}/transfers",
        "/api/v1/entries/{entry_id}/withdrawal",
    }


def test_a_withdrawn_entry_stays_to_be_seen(client: TestClient, database: Database) -> None:
    files = {
        f"cifar10/Linf/{slug}.json": json.dumps(LINF | {"autoattack_acc": acc, "clean_acc": "95.00"})
        for slug, acc in (("Best", "70.00"), ("Second", "60.00"))
    }
    client.post("/api/v1/robustbench/imports", json={"files": files})
    board = "/api/v1/leaderboards/cifar10/Linf"
    best = client.get(board).json()["entries"][0]
    assert (best["model_id"], best["rank"]) == ("Best", 1)
    address = f"/api/v1/entries/{best['id']}/withdrawal"
    assert_problem(client.post(address, json={"reason": ""}), 422, "body.reason")
    withdrawn = client.post(address, json={"reason": "Its weights were another model's <b>."}).json()
    assert (withdrawn["rank"], withdrawn["withdrawn"]) == (None, "Its weights were another model's <b>.")
    assert withdrawn["robust"] == best["robust"], "what is known of it stays"
    assert_problem(client.post(address, json={"reason": "again"}), 409, "is already withdrawn")
    shown = [(entry["model_id"], entry["rank"]) for entry in client.get(board).json()["entries"]]
    assert shown == [("Second", 1), ("Best", None)], "last, and without a rank"
    page = client.get("/leaderboards/cifar10/Linf", headers={"Accept": "text/html"}).text
    assert "withdrawn" in page
    entry = client.get(f"/entries/{best['id']}", headers={"Accept": "text/html"}).text
    assert "Its weights were another model&#39;s &lt;b&gt;." in entry
    exported = client.get(f"{board}/export/robustbench").json()
    assert set(exported) == {"Second"}
    assert "Its weights were another" in client.get(f"{board}/export/csv").text
    assert_problem(client.get(f"/api/v1/entries/{best['id']}/model_info.json"), 409, "was withdrawn")
    # The same file again does not bring it back.
    client.post("/api/v1/robustbench/imports", json={"files": files})
    assert client.get(f"/api/v1/entries/{best['id']}").json()["rank"] is None
    home = client.get("/", headers={"Accept": "text/html"}).text
    assert "60.00" in home
    restored = client.delete(address).json()
    assert (restored["rank"], restored["withdrawn"]) == (1, None)
    assert_problem(client.delete(address), 409, "is not withdrawn")
    trail = [(each["action"], each["subject"]) for each in client.get("/api/v1/audit").json()["records"]]
    assert ("entry.withdraw", f"entry {best['id']}") in trail
    assert ("entry.restore", f"entry {best['id']}") in trail


def test_an_entry_that_cannot_be_believed_has_no_rank_until_an_admin_restores_it(
    client: TestClient, database: Database
) -> None:
    liar = train(database, "liar")
    honest = train(database, "honest")
    lie = Flag(name="wrong_gradients", sentence="At 40% of 64 points the gradient is another's.", value=0.4)
    measure(database, liar, robust=300, flags=[lie], checks=[CheckOutcome(name="repair", note="not here")])
    measure(database, honest, robust=200)
    board = client.get("/api/v1/leaderboards/digits/Linf").json()["entries"]
    assert [(entry["rank"], entry["clean"]["accuracy"] > 0) for entry in board] == [(1, True), (None, True)]
    barred = board[1]
    assert barred["unreliable"]
    assert "another's" in barred["unrankable"]
    assert "To have it ranked" in barred["unrankable"]
    for address in ("/leaderboards/digits/Linf", f"/entries/{barred['id']}"):
        page = client.get(address, headers={"Accept": "text/html"}).text
        assert "another&#39;s" in page
        assert "/flags" in page
    assert json.loads(client.get(f"/api/v1/entries/{barred['id']}/model_info.json").text)["unreliable"] is True
    evaluation = client.get(f"/api/v1/evaluations/{barred['evaluation_id']}").json()
    assert evaluation["checks"][0]["note"] == "not here"
    address = f"/api/v1/entries/{barred['id']}/rank"
    assert_problem(client.post(address, json={"note": ""}), 422, "body.note")
    restored = client.post(address, json={"note": "Its straight-through gradient is meant so."}).json()
    assert (restored["rank"], restored["rank_note"]) == (1, "Its straight-through gradient is meant so.")
    assert_problem(client.post(address, json={"note": "again"}), 409, "not barred")
    trail = [(each["action"], each["subject"]) for each in client.get("/api/v1/audit").json()["records"]]
    assert ("entry.rank", f"entry {barred['id']}") in trail
    # Another verdict is another question: the note was about this one.
    measure(database, liar, robust=299, flags=[lie])
    assert client.get(f"/api/v1/entries/{barred['id']}").json()["rank"] is None


def test_an_empty_board_of_withdrawn_entries_has_no_leader(client: TestClient) -> None:
    client.post("/api/v1/robustbench/imports", json={"files": {"cifar10/Linf/Only.json": contents(LINF).decode()}})
    client.post("/api/v1/entries/1/withdrawal", json={"reason": "a mistake"})
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
    assert client.get("/api/v1/leaderboards").json()[0]["threat_model"] == "Linf"
