"""Whether one entry is better than another: over the API, on the page, and by the client."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from scipy import stats
from sqlalchemy import select

from app.boards import placing, robust_points, robustbench
from app.db.database import Database
from app.db.tables import Entry
from app.store import ArtifactStore
from gkl.answers import ComparisonView
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents

POINTS = 360
HTML = {"Accept": "text/html"}
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def certificate(path: Path, stands: np.ndarray) -> Path:
    """As a page reads it: the first 30 points misclassified without an attack, the others that fall broken by one."""
    broken = np.flatnonzero(~stands)
    attacked = broken[broken >= 30]
    broken_by = np.where(stands, -1, 0)
    broken_by[:30] = np.where(stands[:30], -1, -2)
    norms = np.full(POINTS, np.nan)
    norms[attacked] = 0.2
    images = np.random.default_rng(0).random((len(attacked), 1, 8, 8)).astype(np.float32)
    labels = np.arange(POINTS) % 10
    tensors = {
        "label": labels,
        "prediction": np.where(broken_by == -2, (labels + 1) % 10, labels),
        "broken_by": broken_by,
        "perturbation_norm": norms,
        "index": attacked,
        "adversarial": images,
        "adversarial_prediction": (labels[attacked] + 1) % 10,
        "clean": images,
    }
    save_file(tensors, path, {"gklbench": json.dumps({"attacks": ["APGD-CE"]})})
    return path


@pytest.fixture
def stands(database: Database, store: ArtifactStore, tmp_path: Path) -> np.ndarray:
    """(2, N): entry 1 withstands more than entry 2; both were trained here, and measured point by point."""
    found = np.random.default_rng(1).random((2, POINTS)) < [[0.6], [0.45]]
    for number, each in enumerate(found):
        weights = train(database, f"net {number + 1}")
        stored = store.put(certificate(tmp_path / f"{number}", each))
        measure(database, weights, robust=int(each.sum()), certificate_sha256=stored.sha256)
    assert not robust_points.record_missing(database, store, set())
    return found


def compared(client: TestClient, *numbers: int) -> ComparisonView:
    answer = client.get("/api/v1/compare", params={"entries": list(numbers)})
    assert answer.status_code == 200, answer.text
    return ComparisonView.model_validate_json(answer.content)


def test_points_that_only_one_loses_tell_two_networks_apart(client: TestClient, stands: np.ndarray) -> None:
    (pair,) = compared(client, 1, 2).pairs
    a, b = stands
    table = [int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())]
    assert [pair.both, pair.only_first, pair.only_second, pair.neither] == table
    assert (pair.is_paired, pair.points, pair.is_told_apart) == (True, POINTS, True)
    assert pair.p_value == pytest.approx(stats.binomtest(table[1], table[1] + table[2]).pvalue)
    assert pair.difference == pytest.approx(a.mean() - b.mean())
    assert pair.interval[0] < pair.difference < pair.interval[1]
    assert pair.sentence.startswith(f"net 1 loses {table[1] - table[2]} fewer of 360 points than net 2: +")
    assert "exact McNemar p = " in pair.sentence
    # The other way round it is the same finding.
    (back,) = compared(client, 2, 1).pairs
    assert back.p_value == pair.p_value
    assert back.difference == -pair.difference
    assert " more of 360 points than net 1: -" in back.sentence


def test_the_page_says_it_first_and_opens_the_points(client: TestClient, stands: np.ndarray) -> None:
    page = client.get("/compare?entries=1&entries=2", headers=HTML).text
    assert page.index("significant") < page.index("Figures") < page.index("Which points each loses")
    a, b = stands
    for which, chosen in (("only_first", a & ~b), ("only_second", ~a & b), ("neither", ~a & ~b)):
        link = f"/compare/points?entries=1&entries=2&which={which}"
        assert link.replace("&", "&amp;") in page
        text = client.get(link, headers=HTML).text
        assert f"{chosen.sum()} points of" in text
        shown = [int(part.split("<")[0]) for part in text.split('<span class="quiet">point ')[1:]]
        assert shown == np.flatnonzero(chosen)[: len(shown)].tolist()
        pictures = {part.split('"')[0] for part in text.split('<img src="')[1:]}
        assert pictures
        assert all(client.get(address).status_code == 200 for address in list(pictures)[:4])
    assert "without an attack" in client.get("/compare/points?entries=1&entries=2&which=neither", headers=HTML).text
    last = client.get("/compare/points?entries=1&entries=2&which=neither&page=50", headers=HTML)
    assert "There is no such point" in last.text
    assert client.get("/compare/points?entries=1&entries=2&which=all", headers=HTML).status_code == 422


def test_what_has_no_points_is_compared_by_its_figure_and_says_so(
    client: TestClient, database: Database, stands: np.ndarray
) -> None:
    of_digits = LINF | {"dataset": "digits", "eps": "0.2"}
    robustbench.import_files(
        database,
        [
            ("digits/Linf/A.json", contents(of_digits | {"name": "Published", "autoattack_acc": "46.0"})),
            ("digits/L2/B.json", contents(of_digits | {"name": "Elsewhere", "autoattack_acc": "46.0"})),
        ],
    )
    found = compared(client, 1, 3, 4)
    assert [entry.name for entry in found.entries] == ["net 1", "Published", "Elsewhere"]
    (pair,) = found.pairs
    assert (pair.is_paired, pair.both, pair.points) == (False, None, POINTS)
    own, published = int(stands[0].sum()), round(0.46 * POINTS)
    table = [[own, POINTS - own], [published, POINTS - published]]
    assert pair.p_value == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    assert re.match(r"net 1's robust accuracy is \d+\.\d\d points higher than Published's: \+", pair.sentence)
    assert "Compared by accuracy" in client.get("/compare?entries=1&entries=3", headers=HTML).text
    missing = client.get("/compare/points?entries=1&entries=3", headers=HTML)
    assert (missing.status_code, "are not stored" in missing.text) == (404, True)


def test_figures_that_are_too_close_say_so(client: TestClient, database: Database) -> None:
    names = ("57.00", "57.01")
    files = [(f"cifar10/Linf/{n}.json", contents(LINF | {"name": n, "autoattack_acc": n})) for n in names]
    robustbench.import_files(database, files)
    (pair,) = compared(client, 1, 2).pairs
    assert not pair.is_told_apart
    assert "0.01 points lower than 57.01's, a difference that is not significant: -0.0 points" in pair.sentence


def test_a_board_of_corruptions_has_no_test(
    client: TestClient, database: Database, store: ArtifactStore, stands: np.ndarray, tmp_path: Path
) -> None:
    """Its certificates say of no point whether it withstands: standing means that the clean image is right."""
    stored = [store.put(certificate(tmp_path / f"c{i}", each)) for i, each in enumerate(stands)]
    with database.writing() as session:
        for row, file in zip(session.scalars(select(Entry)), stored, strict=True):
            assert row.evaluation is not None
            row.board, row.epsilon = "corruptions", None
            row.evaluation.certificate_sha256 = file.sha256
    assert compared(client, 1, 2).pairs == []
    page = client.get("/compare?entries=1&entries=2", headers=HTML).text
    assert "significant" not in page
    assert "Which points each loses" not in page
    assert client.get("/compare/points?entries=1&entries=2", headers=HTML).status_code == 404
    assert client.get("/api/v1/entries/1/classes").status_code == 404


def test_what_is_not_to_be_believed_is_said_beside_the_finding(
    client: TestClient, database: Database, stands: np.ndarray
) -> None:
    del stands
    with database.writing() as session:
        placing.withdraw(session, 1, "sent by mistake.")
        barred = session.get_one(Entry, 2)
        barred.unrankable_reason = "wrong_gradients: at many points"
    (pair,) = compared(client, 1, 2).pairs
    assert pair.sentence.endswith(
        "net 1 was withdrawn: sent by mistake. net 2 has no rank, since its accuracy is not reliable."
    )
    page = client.get("/compare?entries=1&entries=2", headers=HTML).text
    assert ">withdrawn<" in page
    assert ">no rank<" in page


def test_only_what_differs_in_their_specs_is_told(client: TestClient, stands: np.ndarray) -> None:
    del stands
    differences = {each.field: each.values for each in compared(client, 1, 2).differences}
    assert all(values[0] != values[1] for values in differences.values())
    assert not {name for name in differences if name.startswith(("train.name", "train.evaluation"))}


@pytest.mark.parametrize("numbers", [(1,), (1, 2, 3, 4, 5), (1, 99)])
def test_what_cannot_be_compared_is_a_sentence(client: TestClient, stands: np.ndarray, numbers: tuple[int]) -> None:
    del stands
    answer = client.get("/api/v1/compare", params={"entries": list(numbers)})
    assert answer.status_code in (404, 422)
    assert answer.json()["detail"]


def test_a_class_has_its_accuracies_and_what_it_is_taken_for(client: TestClient, stands: np.ndarray) -> None:
    found = client.get("/api/v1/entries/1/classes").json()
    assert len(found) == 10
    assert [each["robust"] for each in found] == sorted(each["robust"] for each in found)
    labels = np.arange(POINTS) % 10
    for each in found:
        own = labels == each["label"]
        assert each["points"] == own.sum() == 36
        assert each["robust"] == pytest.approx(stands[0][own].mean())
        attacked = int((~stands[0][own & (np.arange(POINTS) >= 30)]).sum())
        (other,) = each["taken_for"]
        assert (other["label"], other["count"]) == ((each["label"] + 1) % 10, attacked)
    page = client.get("/entries/1", headers=HTML).text
    assert "By class" in page
    assert "Taken for" in page
