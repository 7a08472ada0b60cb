"""The pages as HTML: what they show is tested in the flow; here that they are safe and stand alone."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app import jobs
from app.db.database import Database, database_now
from app.db.tables import AttackResult, FileKind, Job, WorkerRow
from app.http.service import Service
from app.jobs import job_files, job_log, workers
from app.store import StoredFile
from gkl.errors import FailureCode
from gkl.outcome import Flag, Progress, Resources, StepMetrics
from gkl.recipes.adversarial import digits
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.app.boards.test_results import LEASE, measure, train
from tests.app.boards.test_results import test_corruptions_have_a_board_of_their_own as corruptions_have_a_board
from tests.app.web.test_model_charts import epoch

HTML = {"Accept": "text/html,application/xhtml+xml"}
VOID = {"meta", "link", "img", "br", "input", "hr", "line", "rect", "polyline", "path", "circle"}


class WellFormed(HTMLParser):
    """Fails on a tag that is closed in the wrong place or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name == "style" or name.startswith("on")], "no inline style or script"
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag


def get(client: TestClient, path: str, status: int = 200, *, external: bool = False) -> str:
    """`external`: links to other sites may be on it."""
    response = client.get(path, headers=HTML)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    parser = WellFormed()
    parser.feed(response.text)
    assert parser.open == []
    elsewhere = [address for address in parser.addresses if re.match(r"(https?:)?//", address)]
    assert external or not elsewhere
    return response.text


HOSTILE = "<script>alert('x')</script>\"&"


def test_every_page_escapes_what_people_wrote(client: TestClient, database: Database) -> None:
    job_id = measure(database, train(database, HOSTILE), robust=239)
    pages = [
        "/",
        "/jobs",
        "/jobs?state=succeeded",
        f"/jobs/{job_id}",
        "/jobs/1",
        "/leaderboards/digits/Linf",
        "/models/1",
        "/entries/1",
        "/compare?entries=1&entries=1",
        "/submit/train?job=1",
    ]
    for path in pages:
        text = get(client, path)
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text


def test_empty_pages_say_so(client: TestClient) -> None:
    assert "Nothing has been measured yet" in get(client, "/")
    assert "No job has been sent yet." in get(client, "/jobs")
    assert "No job matches." in get(client, "/jobs?state=failed")


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/jobs/7", 404, "There is no job 7."),
        ("/models/7", 404, "There is no model 7."),
        ("/leaderboards/digits/L2", 404, "There is no leaderboard digits/L2"),
        ("/nothing", 404, "There is nothing at /nothing"),
        ("/jobs?state=lost", 422, "query.state"),
    ],
)
def test_a_browser_gets_errors_as_pages(client: TestClient, path: str, status: int, says: str) -> None:
    assert says in get(client, path, status)


def test_the_filter_form_works_without_javascript(client: TestClient) -> None:
    client.post("/api/v1/jobs", json=digits().model_dump(mode="json"))
    # What the form sends when nothing is chosen.
    assert "GKL SmallCNN" in get(client, "/jobs?state=&kind=")
    assert "GKL SmallCNN" in get(client, "/jobs?state=queued&kind=")
    assert "No job matches." in get(client, "/jobs?state=queued&kind=evaluate")


def test_many_jobs_are_on_pages(client: TestClient) -> None:
    for _ in range(51):
        client.post("/api/v1/jobs", json=digits().model_dump(mode="json"))
    first = get(client, "/jobs?kind=train")
    older = re.search(r'href="([^"]*cursor=[^"]*)"', first)
    assert older is not None
    assert "kind=train" in older[1]
    rest = get(client, "/jobs" + older[1].replace("&amp;", "&"))
    assert 'href="/jobs/1"' in rest
    assert 'href="/jobs/2"' not in rest


def test_files_of_the_pages_are_served(client: TestClient) -> None:
    for name in ("style.css", "live.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/../pages.py").status_code == 404


def test_a_running_training_shows_its_step(client: TestClient, database: Database) -> None:
    metrics = StepMetrics(
        step=12,
        steps=300,
        metrics={
            "loss": 11.25,
            "loss_natural": 1.5,
            "loss_ce": 2.25,
            "loss_wmse": 0.0375,
            "clean_accuracy": 0.875,
            "adversarial_accuracy": 0.5,
        },
        images_per_second=1234.5,
    )
    with database.writing() as session:
        jobs.create(session, digits())
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        progress = Progress(stage="training", fraction=0.04, detail="epoch 1 of 50", metrics=metrics)
        jobs.heartbeat(session, claim, lease=LEASE, progress=progress)
        jobs.record_event(session, claim, epoch(1, 0.5, held_out=0.3))
    text = re.sub(r"<[^>]*>|\s+", " ", get(client, f"/jobs/{claim.job_id}"))
    text = re.sub(r"\s+", " ", text)
    for figure in ("Step 12 of 300", "Loss 11.250", "CE, soft 2.25", "wMSE 0.0375", "Clean 87.5 %", "Images/s 1234"):
        assert figure in text
    assert "under PGD, best 30.0 %" in text


def test_flags_and_provisional_verdicts_are_shown_in_words(client: TestClient, database: Database) -> None:
    flag = Flag(name="zero_gradients", sentence="At 3 of 350 points <b>the gradient</b> is zero.", value=0.01)
    measure(database, train(database, "Doubtful"), robust=100, flags=[flag])
    measure(database, train(database, "Running"), robust=90, provisional=True)
    board = get(client, "/leaderboards/digits/Linf")
    assert board.count("unreliable") >= 1
    assert "≤ 25.00 %" in board
    assert ">provisional<" in board
    assert "At 3 of 350 points &lt;b&gt;the gradient&lt;/b&gt; is zero." in get(client, "/models/1")
    running = get(client, "/models/2")
    assert "Provisional: the first attacks have run" in running
    assert "when it is final" in running
    assert "at most 25.00 % robust" in get(client, "/jobs/4")


def test_a_page_says_which_attacks_are_not_autoattacks(client: TestClient, database: Database) -> None:
    measure(database, train(database, "Repaired"), robust=200, repaired=3)
    sentence = "do not belong to AutoAttack: its own attacks leave 56.39 % of the points unbroken."
    assert sentence in words(client, "/models/1")
    titles = ("Square", "APGD-T", "Repair", "Transfer", "Mine (Ada)")
    assert [AttackResult(attack=title).is_beyond_autoattack for title in titles] == [False, False, True, True, False]


def test_corruptions_are_a_table(client: TestClient, database: Database) -> None:
    corruptions_have_a_board(database)
    board = get(client, "/leaderboards/cifar10/corruptions")
    assert "Mean accuracy over 15 common corruptions" in board
    assert "40.00 %" in board, "mCE"
    model = get(client, "/models/1")
    assert model.count("<td>gaussian noise</td>") == 1
    assert model.count("60.0 %") == 15 * 6


def words(client: TestClient, path: str) -> str:
    """A page's text."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", get(client, path)))


def test_a_job_tells_its_whole_story(client: TestClient, database: Database, service: Service) -> None:
    """Lost with one worker, failed on another, retried by somebody."""
    with database.writing() as session:
        job_id = jobs.create(session, digits(), submitter="Ada", priority=3).id
        jobs.claim(session, worker="host-a/1", lease=timedelta(seconds=-1))
    jobs.reap(database, max_lost_leases=3, backoff=timedelta(hours=1))
    text = words(client, f"/jobs/{job_id}")
    assert "by Ada · priority 3" in text
    assert "host-a/1 sent no heartbeat for a whole lease" in text
    assert "Its worker was lost (loss 1). Another worker may claim it from" in text
    with database.writing() as session:
        session.execute(update(Job).values(due_at=database_now(session)))
        claim = jobs.claim(session, worker="host-b/2", lease=LEASE)
        assert claim is not None
        used = Resources(device="A GPU", peak_memory_bytes=3_400_000_000, peak_gpu_memory_bytes=1, cpu_seconds=75)
        jobs.heartbeat(session, claim, lease=LEASE, resources=used)
        stored = StoredFile("a" * 64, 1)
        job_files.add_file(session, job_id, FileKind.RESUME, number=7, file="f", stored=stored)
        jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "the GPU is too small")
    with service.database.writing() as session:
        job_log.append(session, job_id, b"the last words\n", max_bytes=1000)
    text = words(client, f"/jobs/{job_id}")
    for told in (
        "1 host-a/1",
        "2 host-b/2",
        "out_of_memory: the GPU is too small",
        "Peak memory 3.4 GB",
        "Peak GPU memory 1 B",
        "Processor time 1 min 15 s",
        "It resumes from what it saved in epoch 7.",
        "the last words",
    ):
        assert told in text
    assert client.post(f"/jobs/{job_id}/retry", follow_redirects=False).status_code == 303
    text = words(client, f"/jobs/{job_id}")
    assert "queued retried" in text
    assert "Cancel" in text


def test_an_evaluation_shows_its_shards(client: TestClient, database: Database) -> None:
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2), batch_size=180, shards=2)
    spec = EvaluateSpec(
        name="Shared", dataset="digits", architecture="small_cnn", weights=train(database, "a"), evaluation=evaluation
    )
    with database.writing() as session:
        whole = jobs.create(session, spec).id
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        jobs.heartbeat(session, claim, lease=LEASE, progress=Progress(stage="APGD-CE", fraction=0.5))
    text = words(client, f"/jobs/{whole}")
    assert "waits for its 2 shards" in text
    assert "0 of 2 are done" in text
    assert "25 %" in text, "half of one of two"
    assert f"A shard of job {whole}" in words(client, f"/jobs/{claim.job_id}")
    listed = client.get(f"/api/v1/jobs/{whole}").json()
    assert (listed["child_ids"], listed["shard_ids"]) == ([], [whole + 1, whole + 2])
    assert client.get(f"/api/v1/jobs/{whole + 2}").json()["shard"] == 2


def test_workers_are_shown_with_what_they_do(client: TestClient, database: Database) -> None:
    assert "gklbench worker" in words(client, "/workers")
    with database.writing() as session:
        for _ in range(2):
            jobs.create(session, digits())
        workers.record_heartbeat(session, "host/1", host="host", device="NVIDIA H200, 143771 MiB", is_draining=False)
        workers.record_heartbeat(session, "host/2", host="host", device=HOSTILE, is_draining=True)
        workers.record_heartbeat(session, "host/3", host="host", device="CPU", is_draining=False)
        session.execute(
            update(WorkerRow)
            .where(WorkerRow.name == "host/3")
            .values(heard_at=database_now(session) - timedelta(seconds=100))
        )
        jobs.claim(session, worker="host/1", lease=LEASE)
    text = words(client, "/workers")
    assert "1 job waits for a worker." in text
    assert "host/1 NVIDIA H200, 143771 MiB busy 1 GKL SmallCNN" in text
    assert "draining" in text
    assert "host/3 CPU lost" in text
    assert "<script>" not in get(client, "/workers").split("<main")[1]
