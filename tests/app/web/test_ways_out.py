"""What a page offers for a job that ended without a result."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from app import jobs
from app.db.database import Database
from app.db.tables import FileKind
from app.jobs import job_files
from app.store import StoredFile
from app.web.ways_out import RULES, way_out
from gkl.errors import FailureCode
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.app.boards.test_results import LEASE, train
from tests.app.web.test_pages import get
from tests.databases import either_database
from tests.specs import tiny_train_spec


def failed(database: Database, code: FailureCode, *, saved: bool = False) -> int:
    with database.writing() as session:
        jobs.create(session, tiny_train_spec())
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        if saved:
            stored = StoredFile("b" * 64, 1)
            job_files.add_file(session, claim.job_id, FileKind.RESUME, number=1, file="f", stored=stored)
        jobs.fail(session, claim, code, "it did not work out")
        return claim.job_id


def test_each_failure_has_its_decision() -> None:
    assert set(RULES) == set(FailureCode)


@either_database
@pytest.mark.parametrize(
    ("code", "saved", "shown"),
    [
        (FailureCode.INVALID_INPUT, True, ["Change and send again", "Retry"]),
        (FailureCode.OUT_OF_MEMORY, False, ["Change and send again", "Retry"]),
        (FailureCode.NON_FINITE_LOSS, True, ["Change and send again"]),
        (FailureCode.TIMED_OUT, False, ["Change and send again", "Retry"]),
        (FailureCode.TIMED_OUT, True, ["Retry", "Change and send again"]),
        (FailureCode.WORKER_LOST, False, ["Retry", "Change and send again"]),
    ],
)
def test_the_page_says_what_went_wrong_and_then_what_helps(
    client: TestClient, database: Database, code: FailureCode, saved: bool, shown: list[str]
) -> None:
    job_id = failed(database, code, saved=saved)
    text = get(client, f"/jobs/{job_id}")
    assert text.index(RULES[code].what) < text.index("It did not work out.") < text.index(shown[0])
    ways = text[text.index('class="ways"') : text.index("</section>")]
    places = {name: ways.index(name) for name in ("Change and send again", "Retry") if name in ways}
    assert sorted(places, key=places.__getitem__) == shown
    main = ways.index('class="main"') if 'class="main"' in ways else ways.index('class="button main"')
    assert main < places[shown[0]], "the first is the main one"
    assert ways.count("main") == 1
    if "Change and send again" in shown:
        assert f'href="/submit/train?job={job_id}"' in ways


@either_database
def test_a_shard_is_changed_as_its_whole_evaluation(client: TestClient, database: Database) -> None:
    weights = train(database, "a")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2), batch_size=180, shards=2)
    with database.writing() as session:
        spec = EvaluateSpec(
            name="x", dataset="digits", architecture="small_cnn", weights=weights, evaluation=evaluation
        )
        whole = jobs.create(session, spec).id
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "the GPU is too small")
    text = get(client, f"/jobs/{claim.job_id}")
    assert claim.job_id != whole
    assert f'href="/submit/evaluate?job={whole}"' in text
    assert "Retry its evaluation" in text


@either_database
def test_a_cancelled_job_has_no_failure_and_one_that_goes_on_no_way_out(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        job = jobs.create(session, tiny_train_spec())
        assert way_out(job, has_saved=False) is None
        jobs.request_cancel(session, job.id)
        found = way_out(job, has_saved=False)
    assert found is not None
    assert (found.what, found.retry, found.change_first) == (None, True, False)
    text = get(client, f"/jobs/{job.id}")
    assert "notice bad" not in text
    assert "Retry" in text
