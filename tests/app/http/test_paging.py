"""Lists that grow: pages of them, files that are streamed, answers that are still the same; on both databases."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from sqlalchemy import delete

from app import jobs
from app.accounts.principals import Principal
from app.accounts.tokens import Limits
from app.boards import (
    chart_points,
    exports,
    listing,
    rank_bands,
    ranking,
    robustbench,
)
from app.boards.certificates import points_of
from app.boards.exports import FORMATS
from app.boards.listing import SORT_KEYS, View
from app.boards.ranking import Board
from app.boards.views import entry_view
from app.core.recent import Recent
from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import Entry, ExternalAttack
from app.http import access
from app.jobs import workers
from app.store import open_store
from gkl.answers import JobKind
from gkl.recipes.adversarial import digits
from tests.app.boards.test_entries import BOARD, ENTRIES
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.app.routes.test_api import SPEC
from tests.local import serving
from tests.tokens import bearer, token_of

PATH = "/api/v1/leaderboards/cifar10/Linf"


def add(database: Database, **changes: dict[str, Any]) -> None:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | change)) for name, change in changes.items()
    ]
    robustbench.import_files(database, files)


@pytest.fixture
def board(database: Database) -> Board:
    add(database, **ENTRIES)
    return BOARD


def all_pages(client: TestClient, path: str, limit: int, key: str = "entries") -> list[Any]:
    """What all pages of a list hold, found by the Link header."""
    joint = "&" if "?" in path else "?"
    address: str | None = f"{path}{joint}limit={limit}"
    found: list[Any] = []
    while address is not None:
        response = client.get(address)
        assert response.status_code == 200, response.text
        answer = response.json()
        rows = answer[key] if isinstance(answer, dict) else answer
        assert len(rows) <= limit
        link = response.links.get("next")
        if isinstance(answer, dict):
            assert (answer["next_cursor"] is None) == (link is None)
        found += rows
        address = None if link is None else str(response.url.join(str(link["url"])))
    return found


# --- a board -----------------------------------------------------------------------------------------------------


def test_pages_of_a_board_are_its_view_in_every_order(client: TestClient, database: Database, board: Board) -> None:
    # Pages of one, of some, and all at once; each order has two of them, and a hundred walks would take long.
    limits = itertools.cycle((1, 3, 8, 3))
    for sort in SORT_KEYS:
        for key, limit in zip((sort, f"-{sort}"), limits, strict=False):
            with database.reading() as session:
                shown = [(row.rank, row.entry.slug) for row in listing.search(session, board, View(sort=key))]
            found = all_pages(client, f"{PATH}?sort={key}", limit)
            assert [(entry["rank"], entry["model_id"]) for entry in found] == shown, (key, limit)


def test_a_page_says_how_many_there_are_and_keeps_its_filters(client: TestClient, board: Board) -> None:
    first = client.get(f"{PATH}?q=tied&limit=1").json()
    assert (first["num_entries"], first["count"], len(first["entries"])) == (8, 2, 1)
    assert [entry["model_id"] for entry in all_pages(client, f"{PATH}?q=tied", 1)] == ["Tied_higher", "Tied_lower"]
    assert client.get(f"{PATH}?limit=1000").json()["next_cursor"] is None
    for limit in (0, 1001):
        assert client.get(f"{PATH}?limit={limit}").status_code == 422


def test_what_comes_and_goes_meanwhile_moves_no_page(client: TestClient, database: Database, board: Board) -> None:
    first = client.get(f"{PATH}?limit=3").json()
    add(database, Newest={"autoattack_acc": "80.00"})
    with database.writing() as session:
        session.execute(delete(Entry).where(Entry.slug == "Tied_lower"))
    second = client.get(f"{PATH}?limit=3&cursor={first['next_cursor']}").json()
    assert [entry["model_id"] for entry in first["entries"]] == ["First", "Tied_higher", "Tied_lower"]
    assert [(entry["rank"], entry["model_id"]) for entry in second["entries"]] == [
        (4, "Broken"),
        (5, "Synthetic"),
        (6, "Extra"),
    ]


def test_equal_and_missing_values_part_no_pages(client: TestClient, database: Database) -> None:
    twins = {f"Twin{number}": {"autoattack_acc": "50.00", "clean_acc": "90.00"} for number in range(5)}
    without = {f"None{number}": {"autoattack_acc": None, "clean_acc": None} for number in range(5)}
    add(database, **twins, **without)
    found = all_pages(client, PATH, 2)
    assert [entry["rank"] for entry in found] == [1, 2, 3, 4, 5, None, None, None, None, None]
    assert len({entry["id"] for entry in found}) == 10


def cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


STRANGE = [
    "x",
    "=" * 50,
    "W10",
    cursor(),
    cursor("rank"),
    cursor("rank", 0, 0.5, 0.5),
    cursor("rank", 0, 0.5, 0.5, 1, 2),
    cursor("name", "a", 0, 0.5, 0.5, 1),
    cursor("rank", None, 0.5, 0.5, 1),
    cursor("rank", "0", 0.5, 0.5, 1),
    cursor("rank", 0, True, 0.5, 1),
    cursor("rank", 0, float("nan"), 0.5, 1),
    cursor("rank", 0, float("inf"), 0.5, 1),
    cursor("rank", 0, 0.5, "0.5", 1),
    cursor("rank", 0, 0.5, [0.5], 1),
    cursor("rank", 0, 0.5, 0.5, 2**63),
    cursor("rank", 0, 0.5, 0.5, 1.5),
    base64.urlsafe_b64encode(b"[" * 1000).decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
]


def test_a_cursor_of_no_page_is_refused_with_a_sentence(client: TestClient, board: Board) -> None:
    for text in STRANGE:
        response = client.get(f"{PATH}?cursor={text}")
        assert (response.status_code, "begin again without" in response.text) == (422, True), text
    for sort, value in (
        ("name", "a\0"),
        ("name", "\ud800"),
        ("added", "yesterday"),
        ("added", "0001-01-01T00:00:00+14:00"),
        ("added", 5),
        ("provenance", "nobody"),
        ("year", "2021"),
        ("year", 2**70),
    ):
        response = client.get(f"{PATH}?sort={sort}&cursor={cursor(sort, value, 0, 0.5, 0.5, 1)}")
        assert (response.status_code, "begin again without" in response.text) == (422, True), (sort, value)
    for text in ("%00", "a" * 2001):
        assert client.get(f"{PATH}?cursor={text}").status_code == 422


def test_an_answer_that_is_still_the_same_is_not_sent_again(
    client: TestClient, database: Database, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (PATH, f"{PATH}?limit=2", *(f"{PATH}/export/{name}" for name in FORMATS))
    tags = {path: client.get(path).headers["etag"] for path in paths}
    assert len(set(tags.values())) == len(paths)
    with monkeypatch.context() as nothing_is_read:
        nothing_is_read.setattr(listing, "page", None)
        nothing_is_read.setattr(listing, "ids", None)
        for path, tag in tags.items():
            again = client.get(path, headers={"If-None-Match": tag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    add(database, First={"autoattack_acc": "71.00"})
    for path, tag in tags.items():
        response = client.get(path, headers={"If-None-Match": tag})
        assert response.status_code == 200
        assert response.headers["etag"] != tag


# --- files -------------------------------------------------------------------------------------------------------


def test_a_streamed_json_file_is_what_json_makes_of_the_whole(
    client: TestClient, database: Database, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_ENTRIES_AT_ONCE", 3)
    for query in ({}, {"q": "tied"}, {"q": "no such entry"}):
        with database.reading() as session:
            bands = rank_bands.of_board(session, Recent(1), board, "")
            found = rank_bands.with_bands(listing.search(session, board, View(**query)), bands)
        rows = [entry_view(row).model_dump(mode="json") for row in found]
        whole = json.dumps({"dataset": "cifar10", "threat_model": "Linf", "entries": rows}, indent=1)
        assert client.get(f"{PATH}/export/json", params=query).text == whole


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_many_pieces_is_that_of_one(
    client: TestClient, board: Board, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = client.get(f"{PATH}/export/{name}").text
    monkeypatch.setattr(exports, "_ENTRIES_AT_ONCE", 1)
    monkeypatch.setattr(exports, "_PIECE_LENGTH", 1)
    assert client.get(f"{PATH}/export/{name}").text == whole
    with client.stream("GET", f"{PATH}/export/{name}") as response:
        assert "content-length" not in response.headers
        assert len(list(response.iter_raw())) > len(ENTRIES) / 2


def test_a_reader_who_is_slow_keeps_no_connection_and_misses_only_what_is_gone(
    database: Database, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_ENTRIES_AT_ONCE", 2)
    monkeypatch.setattr(exports, "_PIECE_LENGTH", 1)
    sent = exports.pieces(database, board, View(columns=[]), FORMATS["csv"], {})
    lines = [next(sent), next(sent)]
    # On SQLite a transaction that still reads would not keep this one waiting; on PostgreSQL neither.
    with database.writing() as session:
        session.execute(delete(Entry).where(Entry.slug.in_(("Tied_lower", "Extra"))))
    add(database, Newest={"autoattack_acc": "80.00"})
    lines += [line for line in sent if line]
    shown = [line.split(",")[::3][:2] for line in lines]
    assert shown == [
        ["rank", "model_id"],
        ["1", "First"],
        ["2", "Tied_higher"],
        ["4", "Broken"],
        ["5", "Synthetic"],
        ["7", "Doubtful"],
        ["", "Claimed"],
    ]


# --- how much an answer counts -----------------------------------------------------------------------------------


def test_answers_of_many_rows_count_as_several_requests(
    settings: Settings, database: Database, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "ROWS_OF_A_REQUEST", 2)
    guarded = settings.model_copy(update={"access": "tokens"})
    # The counts at the broker outlive a test: whose they are must be somebody new.
    who = f"Ada {tmp_path.name}"[-90:]
    with serving(guarded) as client:
        headers = bearer(token_of(database, who, limits=Limits(requests_per_minute=10)))
        export = client.get(f"{PATH}/export/csv", headers=headers)
        assert export.status_code == 200
        # Four of ten. What has not changed is one more.
        unchanged = client.get(f"{PATH}/export/csv", headers=headers | {"If-None-Match": export.headers["etag"]})
        assert unchanged.status_code == 304
        assert client.get(f"{PATH}?limit=2", headers=headers).status_code == 200
        refused = client.get(f"{PATH}?limit=1000", headers=headers)
        assert refused.status_code == 429
        assert "this one counts as 5" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get(f"{PATH}?limit=2", headers=headers).status_code == 200


def test_what_counts_as_much_as_a_minute_allows_can_be_had_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    class Limiter:
        def count(self, who: str, per_minute: int, cost: int = 1) -> None:
            counted.append(cost)

    class OneService:
        rate_limiter = Limiter()

    for allowed, rows in ((600, 100), (600, 101), (600, 20_000), (600, 10**6), (1, 10**6), (None, 10**6)):
        limits = Limits(requests_per_minute=allowed)
        access.charge(OneService(), Principal("Ada", None, limits), rows=rows)  # type: ignore[arg-type]
    assert counted == [1, 199, 300]


# --- charts and the front page -----------------------------------------------------------------------------------


def test_charts_of_many_entries_draw_the_best_of_each_place(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    made = {
        f"M{number}": {
            "autoattack_acc": f"{draw.uniform(10, 60):.2f}",
            "clean_acc": f"{draw.uniform(61, 99):.2f}",
            "venue": f"ICML {2015 + number % 5}",
        }
        for number in range(300)
    }
    add(database, **made, Claimed={"autoattack_acc": None})
    with database.reading() as session:
        everything = chart_points.points(session, BOARD, View())
        monkeypatch.setattr(chart_points, "_MOST_DOTS", 100)
        monkeypatch.setattr(chart_points, "_COLUMNS_OF_DOTS", 6)
        monkeypatch.setattr(chart_points, "_ROWS_OF_DOTS", 4)
        drawn = chart_points.points(session, BOARD, View())
        best = ranking.best_by_year(session, BOARD)
    assert everything.count == drawn.count == len(everything.by_accuracy) == 300
    assert 20 < len(drawn.by_accuracy) < 60
    assert len(drawn.by_year) <= 5 * 5
    order = [point.id for point in everything.by_accuracy]
    assert [point.id for point in drawn.by_accuracy] == sorted((p.id for p in drawn.by_accuracy), key=order.index)
    front = {
        p.id
        for p in everything.by_accuracy
        if not any(q.across >= p.across and q.accuracy >= p.accuracy and q.id != p.id for q in everything.by_accuracy)
    }
    assert front <= {point.id for point in drawn.by_accuracy}
    for year in range(2015, 2020):
        highest = max(p.accuracy for p in everything.by_year if p.year == year)
        assert max(p.accuracy for p in drawn.by_year if p.year == year) == highest == best[year]


def test_a_page_says_that_its_charts_draw_a_part(client: TestClient, database: Database, board: Board) -> None:
    html = {"Accept": "text/html"}
    assert "The chart draws" not in client.get("/leaderboards/cifar10/Linf", headers=html).text
    add(database, Again={"autoattack_acc": "70.00", "clean_acc": "90.00"})
    page = client.get("/leaderboards/cifar10/Linf", headers=html).text
    # One of the eight names no year.
    assert "The chart draws 7 of 8 entries" in page
    assert "The chart draws 6 of 7 entries" in page


# --- other lists -------------------------------------------------------------------------------------------------


def test_workers_in_pages(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        for number in range(7):
            workers.record_heartbeat(session, f"h{number % 2}/{number}", host=f"h{number % 2}", device="GPU")
    whole = [worker["name"] for worker in client.get("/api/v1/workers").json()]
    assert len(whole) == 7
    for limit in (1, 2, 3, 7):
        assert [worker["name"] for worker in all_pages(client, "/api/v1/workers", limit)] == whole
    assert client.get("/api/v1/workers?cursor=x").status_code == 422
    with database.reading() as session:
        lease = timedelta(seconds=90)
        assert [status.row.name for status in workers.all_of_them(session, lease=lease)] == whole


def test_evaluations_of_a_model_in_pages(client: TestClient, database: Database) -> None:
    weights = train(database, "Often measured")
    for number in range(23):
        measure(database, weights, robust=100 + number)
    whole = client.get("/api/v1/models/1").json()
    assert (len(whole["evaluations"]), whole["next_cursor"]) == (23, None)
    assert [(entry["threat_model"], entry["rank"]) for entry in whole["entries"]] == [("Linf", 1)]
    assert all_pages(client, "/api/v1/models/1", 5, "evaluations") == whole["evaluations"]
    page = client.get("/models/1", headers={"Accept": "text/html"}).text
    assert 'href="?cursor=4">Older evaluations' in page
    older = client.get("/models/1?cursor=4", headers={"Accept": "text/html"}).text
    assert "Newest evaluations" in older
    assert older.count("<section>") == 3
    assert "There are no older evaluations" in client.get("/models/1?cursor=1", headers={"Accept": "text/html"}).text


def test_attacks_on_an_entry_in_pages(client: TestClient, database: Database) -> None:
    measure(database, train(database, "Attacked"), robust=100)
    with database.writing() as session:
        for number in range(7):
            made = jobs.create(session, digits())
            made.kind = JobKind.EXTERNAL
            held = None if number == 3 else number
            session.add(
                ExternalAttack(
                    entry_id=1,
                    job_id=made.id,
                    name=f"A{number}",
                    submitter="Ada",
                    examples=held,
                    created_at=made.created_at,
                )
            )
            session.flush()
    found = all_pages(client, "/api/v1/entries/1", 2, "external_attacks")
    assert [attack["name"] for attack in found] == ["A0", "A1", "A2", "A4", "A5", "A6"]
    page = client.get("/entries/1", headers={"Accept": "text/html"}).text
    assert all(f"<td>A{number}</td>" in page for number in range(7))


def test_points_in_pages(client: TestClient, settings: Settings, database: Database, tmp_path: Path) -> None:
    total, broken = 25, [3, 4, 20]
    by = np.full(total, -1, np.int32)
    by[broken] = 0
    norms = np.full(total, np.nan, np.float32)
    norms[broken] = 0.1
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "label": np.arange(total) % 10,
        "prediction": np.arange(total) % 10,
        "broken_by": by,
        "perturbation_norm": norms,
        "index": np.array(broken),
        "adversarial_prediction": np.array([1, 2, 3]),
    }
    path = tmp_path / "certificate.safetensors"
    save_file(tensors, path, metadata={"gklbench": json.dumps({"attacks": ["APGD-CE"]})})
    whole, following = points_of(path)
    assert (len(whole), following) == (total, None)
    assert [point.index for point in whole if point.broken_by] == broken
    assert [point.adversarial_prediction for point in whole if point.broken_by] == [1, 2, 3]
    assert points_of(path, first=20, limit=5) == (whole[20:], None)
    assert points_of(path, first=10, limit=5) == (whole[10:15], 15)
    assert points_of(path, first=10**9, limit=5) == ([], None)

    with open_store(settings).incoming() as incoming:
        incoming.write(path.read_bytes())
        incoming.flush()
        stored = incoming.keep()
    measure(database, train(database, "Proven"), robust=100, certificate_sha256=stored.sha256)
    for address in ("/api/v1/evaluations/1/points", "/api/v1/entries/1/points"):
        assert all_pages(client, address, 10) == [point.model_dump() for point in whole]
        assert client.get(f"{address}?cursor=20&limit=1").json()[0]["index"] == 20
        assert client.get(f"{address}?limit=10001").status_code == 422


def test_jobs_and_the_audit_name_their_next_page(client: TestClient) -> None:
    for _ in range(5):
        assert client.post("/api/v1/jobs", json=SPEC).status_code == 202
    assert [job["id"] for job in all_pages(client, "/api/v1/jobs?state=queued", 2, "jobs")] == [5, 4, 3, 2, 1]
    assert len(all_pages(client, "/api/v1/audit", 2, "records")) == 5
