"""The pages as HTML: what they show is tested in the flow; here that they are safe and stand alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from app import jobs
from app.database import Database
from app.web.charts import training_curves
from gkl.outcome import EpochFinished, Flag, Progress, StepMetrics
from gkl.recipes import digits
from tests.app.test_leaderboard import LEASE, measure, train
from tests.app.test_leaderboard import test_corruptions_have_a_board_of_their_own as corruptions_have_a_board

HTML = {"Accept": "text/html,application/xhtml+xml"}
VOID = {"meta", "link", "img", "br", "input", "hr", "line", "rect", "polyline", "path"}


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


def get(client: TestClient, path: str, status: int = 200) -> str:
    response = client.get(path, headers=HTML)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    parser = WellFormed()
    parser.feed(response.text)
    assert parser.open == []
    assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], "nothing from elsewhere"
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
    ]
    for path in pages:
        text = get(client, path)
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text


def test_empty_pages_say_so(client: TestClient) -> None:
    assert "Nothing has been measured yet" in get(client, "/")
    assert "No job yet." in get(client, "/jobs")
    assert "No job of this kind yet." in get(client, "/jobs?state=failed")


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
    assert "No job of this kind yet." in get(client, "/jobs?state=queued&kind=evaluate")


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


def epoch(number: int, clean: float, held_out: float | None = None) -> EpochFinished:
    return EpochFinished(
        epoch=number,
        epochs=3,
        loss=1.0,
        clean_accuracy=clean,
        adversarial_accuracy=0.0,
        epsilon=0.1,
        learning_rate=0.1,
        seconds=1.0,
        held_out_robust_accuracy=held_out,
    )


def test_a_curve_goes_from_the_first_to_the_last_epoch() -> None:
    assert training_curves([]) is None
    # Epoch 2 was trained again after its worker was lost.
    curve = training_curves([epoch(1, 0.0), epoch(2, 0.9), epoch(2, 0.5), epoch(3, 1.0)])
    assert curve is not None
    assert (curve.held_out, curve.best_held_out) == ("", None)
    middle = (curve.left + curve.right) / 2
    assert curve.clean == (
        f"{curve.left:.1f},{curve.bottom:.1f} {middle:.1f},{(curve.top + curve.bottom) / 2:.1f} "
        f"{curve.right:.1f},{curve.top:.1f}"
    )


def test_the_curve_shows_held_out_accuracy_where_it_was_measured() -> None:
    best = epoch(2, 0.5, held_out=0.5)
    curve = training_curves([epoch(1, 0.0), best, epoch(3, 1.0, held_out=0.25)])
    assert curve is not None
    assert curve.best_held_out == best
    height = curve.bottom - curve.top
    middle = (curve.left + curve.right) / 2
    assert curve.held_out == (
        f"{middle:.1f},{curve.bottom - height / 2:.1f} {curve.right:.1f},{curve.bottom - height / 4:.1f}"
    )


def test_a_running_training_shows_its_step(client: TestClient, database: Database) -> None:
    metrics = StepMetrics(
        step=12,
        steps=300,
        loss=11.25,
        parts={"natural": 1.5, "ce": 2.25, "wmse": 0.0375},
        clean_accuracy=0.875,
        adversarial_accuracy=0.5,
        images_per_second=1234.5,
    )
    with database.writing() as session:
        jobs.create(session, digits())
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        progress = Progress(stage="training", fraction=0.04, detail="epoch 1 of 50", metrics=metrics)
        jobs.heartbeat(session, claim, lease=LEASE, progress=progress)
        jobs.record(session, claim, epoch(1, 0.5, held_out=0.3))
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


def test_corruptions_are_a_table(client: TestClient, database: Database) -> None:
    corruptions_have_a_board(database)
    board = get(client, "/leaderboards/cifar10/corruptions")
    assert "Mean accuracy over 15 common corruptions" in board
    assert "40.00 %" in board, "mCE"
    model = get(client, "/models/1")
    assert model.count("<td>gaussian noise</td>") == 1
    assert model.count("60.0 %") == 15 * 6
