"""The pages that send a job, as a browser uses them."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from app.boards import robustbench
from app.db.database import Database
from app.web.forms import inputs
from app.web.submit_form import first_values
from gkl.recipes import RECIPES
from gkl.spec import EvaluateSpec, TrainSpec
from tests.app.boards.test_robustbench import CORRUPTED, LINF, contents, on_one
from tests.app.web.test_forms import FORM, sent
from tests.app.web.test_pages import get


@on_one
def test_the_form_sends_a_job_or_says_what_is_wrong(client: TestClient) -> None:
    form = sent(inputs(TrainSpec, first_values("train"), {}))
    wrong = client.post("/submit/train", data=form | {"epochs": "-1"}, headers=FORM)
    assert wrong.status_code == 422
    assert "Not sent." in wrong.text
    assert re.search(r'id="e-epochs"><p class="wrong">[^<]*greater than or equal to 1', wrong.text)
    checked = client.post("/submit/train", data=form | {"epochs": "-1", "action": "check"}, headers=FORM)
    assert (checked.status_code, "Not sent." in checked.text) == (200, False)
    assert 'id="e-epochs"><p class="wrong">' in checked.text
    redrawn = client.post("/submit/train", data=form | {"epochs": "-1", "action": "update"}, headers=FORM)
    assert redrawn.status_code == 200
    assert "Not sent." not in redrawn.text
    done = client.post("/submit/train", data=form | {"submitter": "Ada"}, headers=FORM, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/jobs/1")
    assert client.get("/api/v1/jobs/1").json()["submitter"] == "Ada"
    bad = client.post("/submit/train", data=form | {"submitter": "<b>"}, headers=FORM)
    assert "submitter: write letters" in bad.text


@on_one
def test_a_form_that_is_sent_twice_is_one_job(client: TestClient) -> None:
    nonces = [re.search(r'name="nonce" value="(\w+)"', get(client, "/submit/train")) for _ in range(2)]
    form = sent(inputs(TrainSpec, first_values("train"), {}))

    def job(nonce: re.Match[str] | None, **changes: str) -> str:
        assert nonce is not None
        body = form | changes | {"nonce": nonce[1]}
        return client.post("/submit/train", data=body, headers=FORM, follow_redirects=False).headers["location"]

    assert job(nonces[0]) == job(nonces[0]) == "/jobs/1"
    assert job(nonces[0], epochs="7") == "/jobs/2", "changed after the way back"
    assert job(nonces[1]) == "/jobs/3"


@on_one
def test_what_only_the_service_knows_stands_beside_its_field(client: TestClient) -> None:
    form = sent(inputs(EvaluateSpec, first_values("evaluate") | {"name": "a", "weights": "0" * 64}, {}))
    answer = client.post("/submit/evaluate", data=form, headers=FORM)
    assert answer.status_code == 422
    assert re.search(r'id="e-weights"><p class="wrong">no weights with sha256', answer.text)


@on_one
def test_a_form_is_filled_in_from_another_job(client: TestClient) -> None:
    spec = RECIPES["digits"]().model_copy(update={"name": "The first", "epochs": 17})
    client.post("/api/v1/jobs", json=spec.model_dump(mode="json"))
    text = get(client, "/submit/train?job=1")
    assert 'value="The first"' in text
    assert 'name="epochs" value="17"' in text
    assert "There is no job 9" in get(client, "/submit/train?job=9", 404)
    assert "Unknown recipe" in get(client, "/submit/train?recipe=nothing", 404)


@on_one
def test_a_link_goes_to_its_form_at_once(client: TestClient) -> None:
    for query, place in (
        ("kind=train", "/submit/train"),
        ("kind=import", "/submit/import"),
        ("kind=evaluate&dataset=cifar10", "/submit/evaluate?dataset=cifar10"),
        ("weights=robustbench&architecture=a%2Fb", "/submit/evaluate?weights=robustbench&architecture=a%2Fb"),
        ("recipe=digits", "/submit/train?recipe=digits"),
    ):
        answer = client.get(f"/submit?{query}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, place)
    assert client.get("/submit?kind=nothing", headers={"Accept": "text/html"}).status_code == 422
    assert "import-robustbench" in get(client, "/submit/import")


def test_what_no_board_has_cannot_be_measured_from_an_entry(client: TestClient, database: Database) -> None:
    files = [
        ("cifar10/Linf/Unheard_of.json", contents(LINF)),
        ("imagenet/corruptions/AlexNet.json", contents(CORRUPTED | {"dataset": "imagenet"})),
        ("cifar10/Linf/Rice2020Overfitting.json", contents(LINF | {"name": "x" * 600, "link": "a paper"})),
    ]
    robustbench.import_files(database, files)
    assert "Measure it here" not in get(client, "/entries/1", external=True)
    assert "not in RobustBench&#39;s zoo" in get(client, "/submit/evaluate?entry=1", 404)
    assert "There is no entry 9" in get(client, "/submit/evaluate?entry=9", 404)
    for number, says in ((2, "corruptions"), (3, "cifar10/Linf/Rice2020Overfitting")):
        assert "Measure it here" in get(client, f"/entries/{number}", external=True)
        form = get(client, f"/submit/evaluate?entry={number}", external=True)
        assert f'value="{says}" selected' in form
        assert "gklbench submit - --follow" in form
