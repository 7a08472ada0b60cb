"""Who may ask for a transfer, of what, and how many: everything before a worker takes it."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import select

from app.accounts.tokens import Limits
from app.boards import placing, robustbench
from app.db.database import Database
from app.db.tables import AuditRecord, Entry, JobFile, Transfer
from gkl.answers import ComparisonView, PairTransferView, Scope
from gkl.spec import Evaluation, ThreatModel
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.app.routes.test_api import assert_problem
from tests.databases import either_database
from tests.tokens import bearer, token_of

HTML = {"Accept": "text/html"}


def stands(database: Database, name: str, epsilon: float = 0.2, **options: Any) -> None:
    """Put an entry on a board, as a worker would have."""
    measure(database, train(database, name), robust=200, epsilon=epsilon, **options)


def transfers_of(client: TestClient, *numbers: int) -> list[PairTransferView]:
    answer = client.get("/api/v1/compare", params={"entries": list(numbers)})
    assert answer.status_code == 200, answer.text
    return ComparisonView.model_validate_json(answer.content).transfers


@either_database
def test_what_cannot_be_measured_says_why(database: Database, client: TestClient) -> None:
    of_digits = LINF | {"dataset": "digits", "eps": "0.2"}

    stands(database, "one", certificate_sha256="1" * 64)
    stands(database, "two", certificate_sha256="2" * 64)
    stands(database, "wide", 0.3, certificate_sha256="3" * 64)
    l2 = Evaluation(threat_model=ThreatModel(norm="L2", epsilon=0.2))
    stands(database, "L2", certificate_sha256="4" * 64, evaluation=l2)
    stands(database, "provisional", provisional=True)
    stands(database, "withdrawn", certificate_sha256="6" * 64)
    stands(database, "bare")
    fashion = train(database, "fashion", dataset="fashion_mnist")
    measure(database, fashion, robust=200, dataset="fashion_mnist", points=10_000, certificate_sha256="8" * 64)
    robustbench.import_files(database, [("digits/Linf/A.json", contents(of_digits))])
    numbers = {}
    with database.writing() as session:
        for row in session.scalars(select(Entry)):
            numbers[row.name] = row.id
        placing.withdraw(session, numbers["withdrawn"], "a mistake")
    imported = next(number for name, number in numbers.items() if name not in (*_NAMES, "fashion"))
    one = numbers["one"]
    for source, target, status, says in (
        (one, one, 422, "is the target itself"),
        (999, one, 422, "Source: there is no entry 999"),
        (one, 999, 404, "There is no entry 999"),
        (numbers["fashion"], one, 422, "uses fashion_mnist and entry 1 digits; name an entry of the same data set"),
        (numbers["wide"], one, 422, "go up to epsilon 0.3 in Linf, and the other entry was attacked up to 0.2 only"),
        (numbers["L2"], one, 422, "are bounded in L2, and the other entry was attacked in Linf"),
        (imported, one, 409, "has no certificate here"),
        (one, imported, 409, "its weights are not stored here"),
        (numbers["provisional"], one, 409, "still provisional"),
        (one, numbers["provisional"], 409, "still provisional"),
        (numbers["withdrawn"], one, 409, "is withdrawn (a mistake)"),
        (one, numbers["withdrawn"], 409, "is withdrawn (a mistake)"),
        (numbers["bare"], one, 409, "has no certificate"),
    ):
        answer = client.post(f"/api/v1/entries/{target}/transfers", json={"source": source})
        assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert client.get("/api/v1/entries/999/transfers").status_code == 404
    for body in ({}, {"source": 0}, {"source": "x"}, {"source": 2, "more": 1}):
        assert client.post(f"/api/v1/entries/{one}/transfers", json=body).status_code == 422
    wrong = client.post(f"/compare?entries={one}&entries=2", data={"source": "x"}, headers=HTML)
    assert (wrong.status_code, "choose two entries" in wrong.text.lower()) == (422, True)
    with database.reading() as session:
        assert session.scalars(select(Transfer)).all() == []
    # The larger budget takes the smaller one's examples; not the other way round.
    there, back = transfers_of(client, one, numbers["wide"])
    assert (there.can_be_measured, there.why_not) == (True, None)
    assert (back.can_be_measured, "attacked up to 0.2 only" in (back.why_not or "")) == (False, True)
    page = client.get(f"/compare?entries={one}&entries={imported}", headers=HTML).text
    assert "Do examples of one break the other?" not in page


_NAMES = ("one", "two", "wide", "L2", "provisional", "withdrawn", "bare")


@either_database
def test_any_submitter_may_ask_for_as_many_as_they_may_queue(visitor: TestClient, database: Database) -> None:
    for number in (1, 2, 3):
        stands(database, f"net {number}", certificate_sha256=str(number) * 64)
    ada = bearer(token_of(database, "Ada", limits=Limits(queued_jobs=1)))
    bob, reader = bearer(token_of(database, "Bob")), bearer(token_of(database, "Reader", Scope.READ))
    first = visitor.post("/api/v1/entries/2/transfers", json={"source": 1}, headers=ada)
    assert first.status_code == 202, first.text
    job = first.json()
    assert (job["kind"], job["name"], job["submitter"]) == ("transfer", "net 1 against net 2", "Ada")
    assert job["spec"]["source"] == "1" * 64
    refused = visitor.post("/api/v1/entries/1/transfers", json={"source": 2}, headers=ada)
    assert_problem(refused, 429, "Ada has 1 queued job, the limit")
    assert_problem(visitor.post("/api/v1/entries/1/transfers", json={"source": 2}, headers=reader), 403, "'submit'")
    assert_problem(visitor.post("/api/v1/entries/1/transfers", json={"source": 2}), 401, "'submit'")
    said = {"submitter": "Ada"}
    spoken_for = visitor.post("/api/v1/entries/1/transfers", json={"source": 2}, params=said, headers=bob)
    assert_problem(spoken_for, 403, "not as Ada")
    assert_problem(visitor.post(f"/api/v1/jobs/{job['id']}/cancel", headers=bob), 403, "is Ada's")
    assert visitor.post("/api/v1/entries/1/transfers", json={"source": 2}, headers=bob).status_code == 202
    with database.reading() as session:
        assert len(session.scalars(select(Transfer)).all()) == 2
        # While they wait each names the file that it is to read.
        assert sorted(session.scalars(select(JobFile.sha256).where(JobFile.kind == "examples"))) == ["1" * 64, "2" * 64]
        record = session.scalars(select(AuditRecord).where(AuditRecord.action == "entry.transfer")).first()
        assert record is not None
        assert (record.actor, record.subject, record.detail) == ("Ada", "entry 2", {"source": 1, "job": job["id"]})
    # Whoever may only read is told what they would need, beside what is not being measured yet.
    page = visitor.get("/compare?entries=1&entries=3", headers=HTML | reader).text
    assert "with a token that may send jobs" in page
    assert ">Measure it</button>" not in page
    assert visitor.get("/compare?entries=1&entries=3", headers=HTML | bob).text.count(">Measure it</button>") == 2


@either_database
def test_the_list_of_an_entry_has_both_directions_in_pages(client: TestClient, database: Database) -> None:
    for number in (1, 2, 3):
        stands(database, f"net {number}", certificate_sha256=str(number) * 64)
    sent = [
        client.post(f"/api/v1/entries/{target}/transfers", json={"source": source}).json()["id"]
        for source, target in ((1, 2), (2, 1), (3, 2), (1, 3))
    ]
    first = client.get("/api/v1/entries/2/transfers?limit=2")
    assert [each["job_id"] for each in first.json()] == [sent[2], sent[1]]
    second = client.get(f"/api/v1/entries/2/transfers{first.links['next']['url']}")
    assert ([each["job_id"] for each in second.json()], second.links) == ([sent[0]], {})
