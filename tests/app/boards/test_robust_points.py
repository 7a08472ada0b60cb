"""Which points each certificate's network withstands: kept, found again, used by boards, and forgotten."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select

from app.boards import (
    board_points,
    placing,
    rank_bands,
    ranking,
    robust_points,
    robustbench,
    strongest_certificates,
)
from app.db.database import Database
from app.db.tables import Evaluation, ExternalAttack, RobustPoints
from app.http.service import Service
from app.maintenance.relay import Relay
from app.store import ArtifactStore
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.app.evidence.test_compare import HTML, POINTS, certificate, stands

__all__ = ["stands"]
BOARD = "/api/v1/leaderboards/digits/Linf"


def test_bits_of_certificates_are_those_of_their_files(
    database: Database, store: ArtifactStore, stands: np.ndarray
) -> None:
    with database.reading() as session:
        certificates = strongest_certificates.of_board(session, "digits", "Linf")
        known = robust_points.stored_points(session, certificates.values())
        assert certificates == {
            n: strongest_certificates.of_entry(session, ranking.get(session, n).entry) for n in (1, 2)
        }
    for number, own in enumerate(stands, start=1):
        assert np.array_equal(known[certificates[number]], own)
        assert np.array_equal(
            robust_points.standing_points(store.path(certificates[number])), known[certificates[number]]
        )


def test_a_file_that_is_gone_is_passed_over_and_keeps_no_other(
    database: Database, store: ArtifactStore, stands: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone, here = store.put(certificate(tmp_path / "a", ~stands[0])), store.put(certificate(tmp_path / "b", stands[0]))
    store.path(gone.sha256).unlink()
    for name, stored in (("third", gone), ("fourth", here)):
        measure(database, train(database, name), robust=100, certificate_sha256=stored.sha256)
    unreadable: set[str] = set()
    assert not robust_points.record_missing(database, store, unreadable)
    assert unreadable == {gone.sha256}
    assert gone.sha256 in caplog.text
    caplog.clear()
    assert not robust_points.record_missing(database, store, unreadable)
    assert not caplog.text
    with database.reading() as session:
        assert robust_points.stored_points(session, [gone.sha256, here.sha256]).keys() == {here.sha256}


def test_what_no_measurement_names_is_forgotten(database: Database, stands: np.ndarray) -> None:
    del stands
    with database.writing() as session:
        robust_points.record(session, "f" * 64, np.ones(8, dtype=bool))
        robust_points.forget_unnamed(session)
        assert session.scalar(select(func.count()).select_from(RobustPoints)) == 2
        session.get_one(Evaluation, 1).certificate_sha256 = None
        robust_points.forget_unnamed(session)
        assert session.scalar(select(func.count()).select_from(RobustPoints)) == 1


def test_examples_that_somebody_sent_count_among_the_points(
    database: Database, store: ArtifactStore, stands: np.ndarray, tmp_path: Path
) -> None:
    lower = stands[0] & (np.arange(POINTS) % 3 > 0)
    merged = store.put(certificate(tmp_path / "merged", lower))
    with database.writing() as session:
        job_id = session.get_one(Evaluation, 2).job_id - 1
        row = ExternalAttack(entry_id=1, job_id=job_id, name="mine", submitter="me", robust_correct=int(lower.sum()))
        row.certificate_sha256, row.created_at = merged.sha256, session.get_one(Evaluation, 2).created_at
        session.add(row)
    with database.reading() as session:
        found = strongest_certificates.of_board(session, "digits", "Linf")
        assert found[1] == merged.sha256 == strongest_certificates.of_entry(session, ranking.get(session, 1).entry)


def add_published(database: Database, *accuracies: str) -> None:
    of_digits = LINF | {"dataset": "digits", "eps": "0.2"}
    files = [(f"digits/Linf/P{a}.json", contents(of_digits | {"name": a, "autoattack_acc": a})) for a in accuracies]
    robustbench.import_files(database, files)


def test_a_board_says_which_ranks_an_entry_may_have(client: TestClient, database: Database, stands: np.ndarray) -> None:
    first, second = (100 * each.mean() for each in stands)
    # Near the second, and the last by far.
    add_published(database, f"{second + 0.5:.2f}", "5.00")
    listed = client.get(BOARD).json()["entries"]
    assert [entry["rank"] for entry in listed] == [1, 2, 3, 4]
    assert [entry["rank_band"] for entry in listed] == [[1, 1], [2, 3], [2, 3], [4, 4]]
    assert first > second + 10
    # The same on the entry by itself, in exports and on pages.
    assert client.get("/api/v1/entries/2").json()["rank_band"] == [2, 3]
    rows = list(csv.DictReader(io.StringIO(client.get(f"{BOARD}/export/csv").text)))
    assert [(row["rank_first"], row["rank_last"]) for row in rows] == [("1", "1"), ("2", "3"), ("2", "3"), ("4", "4")]
    exported = json.loads(client.get(f"{BOARD}/export/json").text)["entries"]
    assert [entry["rank_band"] for entry in exported] == [[1, 1], [2, 3], [2, 3], [4, 4]]
    assert "& 2--3 &" in client.get(f"{BOARD}/export/latex?columns=band&columns=robust").text
    page = client.get("/leaderboards/digits/Linf", headers=HTML).text
    assert page.count("2\N{EN DASH}3</span>") == 2
    assert "band 2 to 3 at 95 %" in client.get("/entries/2", headers=HTML).text


def test_bands_are_an_option_of_the_board(client: TestClient, database: Database, stands: np.ndarray) -> None:
    del stands
    add_published(database, "44.00")
    assert "band of ranks" in client.get("/leaderboards/digits/Linf", headers=HTML).text
    assert "band of ranks" not in client.get("/leaderboards/digits/Linf?columns=robust", headers=HTML).text
    assert "band of ranks" in client.get("/leaderboards/digits/Linf?columns=robust&columns=band", headers=HTML).text
    assert "rank_first" not in client.get(f"{BOARD}/export/csv?columns=robust").text


def test_a_board_that_changed_has_other_bands(client: TestClient, database: Database, stands: np.ndarray) -> None:
    del stands
    assert client.get(BOARD).json()["entries"][0]["rank_band"] == [1, 1]
    with database.writing() as session:
        placing.withdraw(session, 1, "sent by mistake.")
    found = client.get(BOARD).json()["entries"]
    # One entry alone needs no band, and a withdrawn one has no rank.
    assert [(entry["rank"], entry["rank_band"]) for entry in found] == [(1, None), (None, None)]


def test_a_board_of_very_many_has_none(client: TestClient, stands: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    del stands
    monkeypatch.setattr(rank_bands, "MAX_ENTRIES", 1)
    assert [entry["rank_band"] for entry in client.get(BOARD).json()["entries"]] == [None, None]


def test_hard_images_are_those_that_most_lose(client: TestClient, stands: np.ndarray) -> None:
    lost_by = (~stands).sum(axis=0)
    found = client.get(f"{BOARD}/points", params={"limit": 200}).json()
    assert found["entries"] == [1, 2]
    assert found["counts"] == [int((lost_by == n).sum()) for n in range(3)]
    assert [point["lost_by"] for point in found["points"]] == sorted(lost_by, reverse=True)[:200]
    following = client.get(f"{BOARD}/points", params={"cursor": found["next_cursor"]}).json()
    assert following["next_cursor"] is None
    every = found["points"] + following["points"]
    assert sorted(point["index"] for point in every) == list(range(POINTS))
    assert all(lost_by[point["index"]] == point["lost_by"] for point in every)
    easy = client.get(f"{BOARD}/points", params={"order": "easiest", "limit": 5}).json()["points"]
    assert [point["lost_by"] for point in easy] == [0] * 5


def test_the_page_of_hard_images_shows_what_broke_them(client: TestClient, stands: np.ndarray) -> None:
    lost_by = (~stands).sum(axis=0)
    page = client.get("/leaderboards/digits/Linf/points", headers=HTML).text
    assert f"{(lost_by == 2).sum()} are lost by all 2 models" in page
    assert "No picture: the best models misclassify it without an attack." in page
    addresses = [part.split('"')[0] for part in page.split('<img src="')[1:]]
    assert addresses
    assert all(client.get(address).status_code == 200 for address in addresses[:4])
    easy = client.get("/leaderboards/digits/Linf/points?order=easiest", headers=HTML).text
    assert "lost by 1 of 2" in easy
    assert "lost by 0 of 2" not in easy
    assert client.get("/leaderboards/digits/Linf/points?page=99", headers=HTML).status_code == 200
    assert client.get("/leaderboards/digits/Linf/points?order=worst", headers=HTML).status_code == 422


def test_a_board_without_points_says_so(client: TestClient, database: Database) -> None:
    add_published(database, "44.00")
    assert client.get(f"{BOARD}/points").json() == {"entries": [], "counts": [], "points": [], "next_cursor": None}
    page = client.get("/leaderboards/digits/Linf/points", headers=HTML).text
    assert "No model of this board was evaluated here yet" in page


def test_the_relay_reads_the_points_of_earlier_certificates(
    database: Database, store: ArtifactStore, service: Service, stands: np.ndarray
) -> None:
    del stands
    with database.writing() as session:
        session.execute(delete(RobustPoints))
    relay = Relay(service)
    relay._record_missing_points()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RobustPoints)) == 2
    assert not relay.has_missing_points


def test_a_board_knows_of_points_that_were_read_later(
    client: TestClient, database: Database, store: ArtifactStore, stands: np.ndarray
) -> None:
    """What is kept of a board, here and by browsers, was made from figures alone."""
    del stands
    with database.writing() as session:
        session.execute(delete(RobustPoints))
    before = client.get(BOARD)
    again = client.get(BOARD, headers={"If-None-Match": before.headers["etag"]})
    assert again.status_code == 304
    robust_points.record_missing(database, store, set())
    assert client.get(BOARD, headers={"If-None-Match": before.headers["etag"]}).status_code == 200


def test_reading_certificates_ends_in_time_and_goes_on_later(
    database: Database, store: ArtifactStore, stands: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads them takes jobs from lost workers too; a certificate in a bucket may take a minute."""
    del stands
    with database.writing() as session:
        session.execute(delete(RobustPoints))
    monkeypatch.setattr(robust_points, "_SECONDS_AT_ONCE", -1.0)
    assert robust_points.record_missing(database, store, set()), "one, and there is another"
    assert not robust_points.record_missing(database, store, set())


def test_a_page_of_hard_images_reads_few_certificates_and_does_without_lost_ones(
    client: TestClient, store: ArtifactStore, stands: np.ndarray, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    del stands
    with database.reading() as session:
        first = strongest_certificates.of_board(session, "digits", "Linf")[1]
    store.path(first).unlink()
    page = client.get("/leaderboards/digits/Linf/points", headers=HTML)
    assert page.status_code == 200
    assert "/api/v1/entries/2/points/" in page.text, "the second has pictures"
    monkeypatch.setattr(board_points, "_FILES_SEARCHED", 1)
    assert "/clean.png" not in client.get("/leaderboards/digits/Linf/points", headers=HTML).text
