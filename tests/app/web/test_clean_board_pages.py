"""Pages of boards of clean accuracy, and the teachers of entries on pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from app.boards import robust_points
from app.db.database import Database
from app.store import ArtifactStore
from tests.app.boards.test_clean_boards import measure_clean
from tests.app.boards.test_results import measure, sha, train
from tests.app.web.test_pages import get, words
from tests.databases import either_database

pytestmark = either_database


def answers(path: Path, right: np.ndarray) -> Path:
    """A certificate of clean images alone: the network's answer to each."""
    labels = np.arange(len(right)) % 10
    none = np.zeros((0, 1, 8, 8), dtype=np.float32)
    tensors = {
        "label": labels,
        "prediction": np.where(right, labels, (labels + 1) % 10),
        "broken_by": np.where(right, -1, -2),
        "perturbation_norm": np.full(len(right), np.nan),
        "index": np.zeros(0, dtype=np.int64),
        "adversarial": none,
        "adversarial_prediction": np.zeros(0, dtype=np.int64),
        "clean": none,
    }
    save_file(tensors, path, {"gklbench": json.dumps({"attacks": []})})
    return path


@pytest.fixture
def right(database: Database, store: ArtifactStore, tmp_path: Path) -> np.ndarray:
    """(2, N): which images a teacher (entry 1) and its student (entry 2) get right."""
    found = np.random.default_rng(1).random((2, 360)) < [[0.97], [0.9]]
    teacher = train(database, "Big")
    for number, (weights, each) in enumerate(
        zip((teacher, train(database, "Little", teacher=teacher)), found, strict=True)
    ):
        stored = store.put(answers(tmp_path / f"{number}", each))
        measure_clean(database, weights, int(each.sum()), certificate_sha256=stored.sha256)
    assert not robust_points.record_missing(database, store, set())
    return found


def test_no_page_shows_a_robust_figure(client: TestClient, right: np.ndarray) -> None:
    board = get(client, "/leaderboards/digits/clean")
    assert "Accuracy on all 360 test images as they are" in board
    assert ">Robust<" not in board
    assert "RobustBench JSON" not in board
    assert "Clean accuracy against the number of parameters, entries as dots" in board
    for path in ("/entries/1", "/entries/2", "/models/2", "/compare?entries=1&entries=2"):
        text = words(client, path)
        assert "Robust" not in text.replace("RobustBench", ""), path
    home = get(client, "/")
    assert f'{100 * right[0].mean():.2f} % <span class="quiet">clean</span>' in home


def test_the_board_links_to_teachers(client: TestClient, database: Database, right: np.ndarray) -> None:
    board = get(client, "/leaderboards/digits/clean")
    assert '<a href="/entries/1">SmallCNN</a>' in board
    assert "99.00 %" in board
    assert "SmallCNN, from SmallCNN" in board, "on a phone, below the name"
    measure(database, sha("Little"), robust=100)
    attacked = "/leaderboards/digits/Linf"
    assert "Teacher</a>" not in get(client, attacked)
    assert '<a href="/models/1">SmallCNN</a>' in get(client, f"{attacked}?columns=teacher&columns=teacher_clean")


def test_an_entry_says_what_it_learned_from(client: TestClient, database: Database, right: np.ndarray) -> None:
    assert "Learned from" not in get(client, "/entries/1")
    text = words(client, "/entries/2")
    big, little = (100 * each.mean() for each in right)
    difference = f"\N{MINUS SIGN}{big - little:.2f}"
    assert f"Clean accuracy {big:.2f} % {little:.2f} % {difference}" in text
    assert "The teacher\N{RIGHT SINGLE QUOTATION MARK}s figures are those of its entry on this board" in text
    # On a board where the teacher has no entry, its clean accuracy is the one of the training.
    measure(database, sha("Little"), robust=90)
    text = words(client, "/entries/3")
    assert "Clean accuracy 99.00 % 97.22 % \N{MINUS SIGN}1.78" in text
    assert "it has no entry on this board" in text
    measure(database, sha("Big"), robust=180, repaired=2)
    text = words(client, "/entries/3")
    assert "Robust accuracy 50.00 % 25.00 % \N{MINUS SIGN}25.00" in text
    assert "AutoAttack 50.56 % 25.00 % \N{MINUS SIGN}25.56" in text
    assert "It learned from SmallCNN , which gets 99.00 % of the test images right." in words(client, "/models/2")


def test_two_networks_are_compared_on_the_same_images(client: TestClient, right: np.ndarray) -> None:
    pair = client.get("/api/v1/compare?entries=1&entries=2").json()["pairs"][0]
    a, b = right
    assert [pair[name] for name in ("both", "only_first", "only_second", "neither")] == [
        int(table.sum()) for table in (a & b, a & ~b, ~a & b, ~a & ~b)
    ]
    more = int(a.sum() - b.sum())
    assert pair["sentence"].startswith(f"Big misclassifies {more} fewer of 360 images than Little: +")
    page = words(client, "/compare?entries=1&entries=2")
    assert "Big is right" in page
    assert "withstand" not in page
    assert f"all 2 entries get {(a & b).sum()} right" in page
    shown = words(client, "/compare/points?entries=1&entries=2&which=only_first")
    assert f"Only Big is right {(a & ~b).sum()} points of Big and Little." in shown
    assert "Big : right" in shown
    assert "attack" not in shown


def test_clean_accuracy_is_not_compared_with_accuracy_under_attack(
    client: TestClient, database: Database, store: ArtifactStore, tmp_path: Path, right: np.ndarray
) -> None:
    stored = store.put(answers(tmp_path / "attacked", right[1]))
    measure(database, sha("Little"), robust=int(right[1].sum()), certificate_sha256=stored.sha256)
    assert not robust_points.record_missing(database, store, set())
    answer = client.get("/api/v1/compare?entries=2&entries=3").json()
    assert answer["pairs"] == []
    assert "not compared with accuracy under attack" in get(client, "/compare?entries=2&entries=3")
    assert client.get("/compare/points?entries=2&entries=3", headers={"Accept": "text/html"}).status_code == 422


def test_the_hardest_images_are_listed_without_pictures(client: TestClient, right: np.ndarray) -> None:
    page = get(client, "/leaderboards/digits/clean/points")
    assert "with an attack" not in page
    assert "/points/" not in page
    assert "lost by 2 of 2" in page


def test_badge_and_card_say_clean(client: TestClient, right: np.ndarray) -> None:
    figure = f"{100 * right[1].mean():.2f} %"
    assert f"clean accuracy: {figure}" in client.get("/entries/2/badge.svg").text
    card = client.get("/entries/2/card.md").text
    assert f"| clean images | {figure} |" in card
    assert "corruptions" not in card
    assert "- Teacher: SmallCNN, 99.00 % on clean images" in card
    assert "Its certificate holds its answer to each image" in card
    assert "## Accuracy" in card
