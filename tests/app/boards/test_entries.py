"""Boards: ranks, filters, order, files of a view; on both databases."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient

from app.boards import (
    chart_points,
    exports,
    listing,
    ranking,
    robustbench,
)
from app.boards.exports import FORMATS
from app.boards.listing import SORT_KEYS, View
from app.boards.ranking import Board
from app.db.database import Database
from app.routes.leaderboards import ExportFormat
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents

BOARD = Board("cifar10", "Linf", 0)
ENTRIES: dict[str, dict[str, Any]] = {
    "First": {"autoattack_acc": "70.00", "clean_acc": "90.00"},
    "Tied_lower": {"autoattack_acc": "60.00", "clean_acc": "88.00", "venue": "NeurIPS 2021"},
    "Tied_higher": {"autoattack_acc": "60.00", "clean_acc": "89.00", "eps": "0.031"},
    "Broken": {"autoattack_acc": "75.00", "external": "55.00", "footnote": "Broken by 100% of _them_."},
    "Synthetic": {"autoattack_acc": "50.00", "footnote": "It uses 1M synthetic images."},
    "Extra": {"autoattack_acc": "40.00", "additional_data": True, "architecture": "XCiT-S12"},
    "Doubtful": {"autoattack_acc": "30.00", "unreliable": True, "venue": "N/A"},
    "Claimed": {"autoattack_acc": None, "reported": "99.00"},
}


@pytest.fixture
def board(database: Database) -> Board:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()
    ]
    robustbench.import_files(database, files)
    with database.reading() as session:
        return ranking.board(session, "cifar10", "Linf")


def names(database: Database, **view: Any) -> list[str]:
    with database.reading() as session:
        found = listing.search(session, BOARD, View(**view))
        assert listing.count(session, BOARD, View(**view)) == len(found)
        return [row.entry.slug for row in found]


def test_rank_is_by_best_known_and_what_has_no_number_comes_last(database: Database, board: Board) -> None:
    with database.reading() as session:
        found = [(row.rank, row.entry.slug) for row in listing.search(session, board, View())]
    assert found == [
        (1, "First"),
        (2, "Tied_higher"),
        (3, "Tied_lower"),
        (4, "Broken"),
        (5, "Synthetic"),
        (6, "Extra"),
        (7, "Doubtful"),
        (None, "Claimed"),
    ]
    assert board.num_entries == 8


def test_a_rank_is_that_of_the_whole_board(database: Database, board: Board) -> None:
    with database.reading() as session:
        (row,) = listing.search(session, board, View(family="XCiT"))
        assert (row.rank, ranking.get(session, row.entry.id).rank) == (6, 6)
        first = ranking.leader(session, board)
        assert first is not None
        assert first.entry.slug == "First"


FILTERS: list[tuple[dict[str, Any], list[str] | None]] = [
    ({"q": "xcit"}, ["Extra"]),
    ({"q": "turing tied_"}, ["Tied_higher", "Tied_lower"]),
    ({"q": "100%"}, ["Broken"]),
    ({"q": "1%0"}, []),
    ({"q": ""}, None),
    ({"family": "XCiT"}, ["Extra"]),
    ({"data": "extra"}, ["Extra"]),
    ({"data": "synthetic"}, ["Synthetic"]),
    ({"data": "none", "q": "tied"}, ["Tied_higher", "Tied_lower"]),
    ({"epsilon": "0.031"}, ["Tied_higher"]),
    ({"epsilon": "8/255", "q": "tied"}, ["Tied_lower"]),
    ({"epsilon": "8/0"}, []),
    ({"epsilon": "1/00"}, []),
    ({"epsilon": "3.1e-2"}, ["Tied_higher"]),
    ({"venue": "NeurIPS"}, ["Tied_lower"]),
    ({"venue": "N/A"}, ["Doubtful"]),
    ({"year": 2021}, ["Tied_lower"]),
    ({"provenance": "reported"}, ["Claimed"]),
    ({"provenance": "verified"}, []),
    ({"unreliable": "yes"}, ["Doubtful"]),
    ({"unreliable": "no", "year": 2021}, ["Tied_lower"]),
    ({"loss": "GKL"}, []),
]


def test_filters(database: Database, board: Board) -> None:
    for view, found in FILTERS:
        assert names(database, **view) == (names(database) if found is None else found), view


def test_every_column_sorts_both_ways_with_unknowns_last(database: Database, board: Board) -> None:
    for key in SORT_KEYS:
        one, other = names(database, sort=key), names(database, sort=f"-{key}")
        assert sorted(one) == sorted(other) == sorted(ENTRIES), key
        if key in ("rank", "robust", "autoattack"):
            assert one[-1] == other[-1] == "Claimed"
        if key == "clean":
            assert (one[-1], other[0]) == ("Tied_lower", "Tied_lower")
        if key == "autoattack":
            assert one[0] == "Broken"
        if key == "name":
            assert one == sorted(ENTRIES, key=str.lower)


REFUSED = [
    ("sort=best", "must be one of rank, name, clean"),
    ("columns=colour", "'colour' is not a column"),
    ("year=soon", "query.year"),
    ("unreliable=perhaps", "query.unreliable"),
    ("colour=red", "query.colour"),
    ("q=%00", "must not contain NUL"),
    ("family=a%00", "must not contain NUL"),
]


def test_a_view_that_cannot_be_is_refused_with_a_sentence(client: TestClient, board: Board) -> None:
    for query, says in REFUSED:
        for path in ("/leaderboards/cifar10/Linf", "/api/v1/leaderboards/cifar10/Linf"):
            response = client.get(f"{path}?{query}")
            assert (response.status_code, says in response.text) == (422, True), query


def test_choices_are_what_there_is(database: Database, board: Board) -> None:
    with database.reading() as session:
        assert listing.choices(session, board) == {
            "family": ["WideResNet", "XCiT"],
            "venue": ["ICML", "N/A", "NeurIPS"],
            "year": [2023, 2021],
            "epsilon": ["0.031", "8/255"],
            "loss": [],
        }


def test_charts_leave_out_what_has_no_number(database: Database, board: Board) -> None:
    with database.reading() as session:
        points = chart_points.points(session, board, View())
    shown = [name for name in names(database) if name != "Claimed"]
    assert [point.name for point in points.by_accuracy] == [point.name for point in points.by_year] == shown
    assert points.count == len(shown)


def test_a_revision_changes_with_the_board_alone(database: Database, board: Board) -> None:
    def now() -> str:
        with database.reading() as session:
            return ranking.revision(session, "cifar10", "Linf")

    before = now()
    measure(database, train(database, "elsewhere"), robust=10)
    assert now() == before
    robustbench.import_files(database, [("cifar10/Linf/First.json", contents(LINF))])
    assert now() != before


def test_two_models_of_one_name_have_two_ids(database: Database) -> None:
    measure(database, train(database, "a b"), robust=100)
    measure(database, train(database, "a/b"), robust=90)
    with database.reading() as session:
        found = listing.search(session, Board("digits", "Linf", 0), View())
        slugs = [row.entry.slug for row in found]
        second = found[1].entry.model
        assert second is not None
        assert slugs == ["a_b", f"a_b_{second.weights_sha256[:12]}"]


# --- files of a view ---------------------------------------------------------------------------------------------


def test_files_are_listed_in_the_contract() -> None:
    assert get_args(ExportFormat) == tuple(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_has_exactly_the_view(client: TestClient, database: Database, board: Board, name: str) -> None:
    shown = names(database, q="tied", sort="clean")
    assert shown == ["Tied_higher", "Tied_lower"]
    response = client.get(f"/api/v1/leaderboards/cifar10/Linf/export/{name}?q=tied&sort=clean")
    assert response.status_code == 200
    assert response.headers["content-disposition"] == (f'attachment; filename="cifar10-Linf.{FORMATS[name].ending}"')
    text = response.text
    if name == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [(row["rank"], row["model_id"], row["robust"], row["epsilon"]) for row in rows] == [
            ("2", "Tied_higher", "60", "0.031"),
            ("3", "Tied_lower", "60", "8/255"),
        ]
    elif name == "json":
        assert [entry["model_id"] for entry in json.loads(text)["entries"]] == shown
    elif name == "robustbench":
        files = json.loads(text)
        assert list(files) == shown
        assert files["Tied_higher"] == LINF | {"name": "Tied_higher"} | ENTRIES["Tied_higher"]
    elif name == "bibtex":
        assert text.count("@misc{") == 2
        assert "author = {Ada Lovelace and Alan Turing}," in text
        assert "@misc{Tied_higher,\n  title = {{Tied\\_higher}}," in text
    else:
        assert text.index("Tied\\_higher") < text.index("Tied\\_lower")
        assert text.count(r"\\") == 3


def test_a_file_has_the_columns_of_the_view(client: TestClient, board: Board) -> None:
    address = "/api/v1/leaderboards/cifar10/Linf/export"
    csv_head = client.get(f"{address}/csv?columns=clean&columns=data&columns=added").text.splitlines()[0]
    assert csv_head == "rank,model_id,name,clean,extra_data,synthetic_data,added"
    text = client.get(f"{address}/latex?columns=venue&columns=autoattack&q=tied").text
    # In the page's order, whatever order they are asked for in.
    assert r"\# & Model & AutoAttack & Venue \\" in text
    assert r"\begin{tabular}{rlrl}" in text
    assert r"Tied\_higher~\cite{Tied_higher} & 60.00 & " in text


def test_models_of_one_paper_are_one_entry_and_cite_it(client: TestClient, database: Database) -> None:
    for number in range(3):
        name = "One paper" if number < 2 else "Another"
        content = LINF | {"name": name, "autoattack_acc": str(60 - number)}
        robustbench.import_files(database, [(f"cifar10/Linf/M{number}.json", contents(content))])
    address = "/api/v1/leaderboards/cifar10/Linf/export"
    assert re.findall(r"@misc\{(\w+),", client.get(f"{address}/bibtex").text) == ["M0", "M2"]
    assert re.findall(r"\\cite\{(\w+)\}", client.get(f"{address}/latex").text) == ["M0", "M0", "M2"]


def test_a_spreadsheet_computes_nothing_from_a_file(database: Database) -> None:
    evil = LINF | {"name": '=HYPERLINK("x")', "footnote": "+1", "authors": "-a, b"}
    robustbench.import_files(database, [("cifar10/Linf/Evil.json", contents(evil))])
    with database.reading() as session:
        text = "".join(FORMATS["csv"].write(BOARD, View(), listing.search(session, BOARD, View())))
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["name"], row["footnote"], row["authors"]) == ('\'=HYPERLINK("x")', "'+1", "'-a, b")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"a_b & \(\ell_{2}\)<br>c", r"a\_b \& \(\ell_{2}\) c"),
        ("{", r"\textbraceleft{}"),
        (
            r"\(\input{x}\)",
            r"\textbackslash{}(\textbackslash{}input\textbraceleft{}x\textbraceright{}\textbackslash{})",
        ),
        (r"\(^^5cinput\)", r"\textbackslash{}(\textasciicircum{}\textasciicircum{}5cinput\textbackslash{})"),
        (r"\(}{\)", r"\textbackslash{}(\textbraceright{}\textbraceleft{}\textbackslash{})"),
        (r"\(a % b\)", r"\textbackslash{}(a \% b\textbackslash{})"),
    ],
)
def test_text_for_latex_can_do_no_more_than_show_something(text: str, latex: str) -> None:
    assert exports._latex_text(text) == latex


def test_a_name_cannot_leave_its_field_of_bibtex(database: Database) -> None:
    evil = LINF | {"name": r"\(}}, note = {x}, y = {{\)} A } B"}
    robustbench.import_files(database, [("cifar10/Linf/Evil.json", contents(evil))])
    with database.reading() as session:
        text = "".join(FORMATS["bibtex"].write(BOARD, View(), listing.search(session, BOARD, View())))
    assert text.count("{") == text.count("}")
    assert "note = {" not in text


def test_what_is_chosen_stays_chosen_where_nothing_has_it(client: TestClient, board: Board) -> None:
    page = client.get("/leaderboards/cifar10/Linf?family=Foo", headers={"Accept": "text/html"}).text
    assert '<option value="Foo" selected>' in page
