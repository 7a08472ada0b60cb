"""Badges and model cards of entries, for READMEs elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient

from app.boards import placing, robustbench
from app.db.database import Database
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def texts(client: TestClient, entry_id: int) -> list[str]:
    answer = client.get(f"/entries/{entry_id}/badge.svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    # Another site's page may show it.
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    again = client.get(f"/entries/{entry_id}/badge.svg", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    picture = ElementTree.fromstring(answer.text)
    return [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_a_badge_says_the_figure_and_whose_it_is(client: TestClient, database: Database) -> None:
    measure(database, train(database, "verified"), robust=180)
    measure(database, train(database, "early"), robust=90, provisional=True)
    robustbench.import_files(
        database,
        [
            ("cifar10/Linf/A.json", contents(LINF | {"autoattack_acc": "57.1"})),
            ("cifar10/Linf/B.json", contents(LINF | {"name": "<&>", "autoattack_acc": "", "reported": "61.25"})),
        ],
    )
    assert texts(client, 1) == ["robust accuracy", "50.00 %"]
    assert texts(client, 2) == ["robust accuracy", "at most 25.00 %"]
    assert texts(client, 3) == ["robust accuracy", "57.10 % imported"]
    assert texts(client, 4) == ["robust accuracy", "61.25 % reported"]
    with database.writing() as session:
        placing.withdraw(session, 1, "a mistake")
    assert texts(client, 1) == ["robust accuracy", "withdrawn"]
    assert client.get("/entries/99/badge.svg").status_code == 404


def test_a_card_has_what_was_measured_and_how_to_check_it(client: TestClient, database: Database) -> None:
    publication = {"title": "A *bold* <b>title</b> | x", "authors": "Ada L.", "venue": "NeurIPS 2025"}
    measure(database, train(database, "net"), robust=180, publication=publication)
    answer = client.get("/entries/1/card.md")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    text = answer.text
    assert text.startswith("# A \\*bold\\* title \\| x\n")
    assert "| clean images | 97.22 % | 95.0 to 98.5 |" in text
    assert "| Linf attacks of at most 0.2 | 50.00 % | 44.9 to 55.1 |" in text
    assert re.search(r"rank 1 of 1 on \[its board\]\(http://[^/]+/leaderboards/digits/Linf\)", text)
    assert "/entries/1/badge.svg)](" in text
    assert "proves each broken image" in text
    assert "@misc{net," in text
    page = client.get("/entries/1", headers={"Accept": "text/html"}).text
    assert "/entries/1/card.md" in page
    assert "badge.svg" in page
