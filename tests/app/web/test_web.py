"""Pages of boards as a browser gets them: other people's markup, comparisons, caching."""

from __future__ import annotations

import csv
import io

import pytest
from fastapi.testclient import TestClient

from app.boards import robustbench
from app.core.formatting import plain
from app.db.database import Database
from app.web.rich_text import rich
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import CORRUPTED, LINF, contents, on_one
from tests.app.web.test_forms import FORM
from tests.app.web.test_pages import get

HOSTILE = LINF | {
    "name": "<script>alert(1)</script>",
    "authors": "<img src=x onerror=alert(1)>",
    "venue": '"><b>2023',
    "link": "javascript:alert(1)",
    "architecture": "</td><script>",
    "footnote": r'<a href="javascript:alert(1)">x</a><script>alert(1)</script>\(\text{<script>alert(1)</script>}\)',
}


@on_one
def test_imported_markup_does_nothing_on_any_page(client: TestClient, database: Database) -> None:
    robustbench.import_files(
        database, [("cifar10/Linf/Evil.json", contents(HOSTILE)), ("cifar10/Linf/Good.json", contents(LINF))]
    )
    for path in ("/", "/leaderboards/cifar10/Linf", "/entries/1", "/compare?entries=1&entries=2"):
        text = get(client, path, external=True)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert 'href="javascript' not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("one<br>two", "one<br>two"),
        (r"\(\frac{\)", r"\(\frac{\)"),
        ("<style>x</style>y", "y"),
    ],
)
def test_rich_text_keeps_what_is_harmless(text: str, shown: str) -> None:
    assert rich(text) == shown


def test_a_formula_is_mathml() -> None:
    assert "<msub><mi>\N{SCRIPT SMALL L}</mi>" in rich(r"\(\ell_2\)")
    assert plain("a<br>b") == "a b"


@on_one
def test_a_board_is_sent_once_and_again_when_it_changes(client: TestClient, database: Database) -> None:
    robustbench.import_files(database, [("cifar10/Linf/A.json", contents(LINF))])
    path = "/leaderboards/cifar10/Linf"
    first = client.get(path, headers={"Accept": "text/html"})
    tag = {"Accept": "text/html", "If-None-Match": first.headers["etag"]}
    assert client.get(path, headers=tag).status_code == 304
    assert client.get(f"{path}?sort=clean", headers=tag).status_code == 200
    robustbench.import_files(database, [("cifar10/Linf/B.json", contents(LINF))])
    assert client.get(path, headers=tag).status_code == 200


@on_one
def test_entries_are_compared_by_their_figures_where_points_are_not_known(
    client: TestClient, database: Database
) -> None:
    files = [(f"cifar10/Linf/{n}.json", contents(LINF | {"name": n} | c)) for n, c in ENTRIES.items()]
    robustbench.import_files(database, files)
    text = get(client, "/compare?entries=1&entries=4&entries=1")
    assert text.count('scope="col"') == 2
    assert "70.00 %" in text
    assert "Only entries with a certificate for the same images" in text
    for query in ("entries=1", "entries=1&entries=2&entries=3&entries=4&entries=5", "entries=1&entries=99"):
        assert client.get(f"/compare?{query}", headers={"Accept": "text/html"}).status_code in (404, 422)
    assert client.get("/compare?entries=1&entries=99999999999999999999").status_code == 422
    assert client.post("/submit/train", content="a=1&" * 2000, headers=FORM).status_code == 422


@on_one
def test_a_long_board_is_on_pages(client: TestClient, database: Database) -> None:
    files = [
        (f"cifar10/Linf/M{n}.json", contents(LINF | {"name": f"M{n}", "autoattack_acc": f"{n / 10:.2f}"}))
        for n in range(201)
    ]
    robustbench.import_files(database, files)
    first = get(client, "/leaderboards/cifar10/Linf", external=True)
    assert "1 to 200" in first
    assert 'href="?page=2"' in first
    second = get(client, "/leaderboards/cifar10/Linf?page=2", external=True)
    assert "201 to 201" in second
    assert ">M0</a>" in second


def test_corruptions_in_3d_stand_beside_the_common_ones(client: TestClient, database: Database) -> None:
    in_3d = {"dataset": "imagenet", "corruptions_acc_3d": "50.1", "corruptions_mce_3d": "61"}
    files = [
        ("imagenet/corruptions/AlexNet.json", contents(CORRUPTED | in_3d)),
        ("imagenet/corruptions/Other.json", contents(CORRUPTED | {"dataset": "imagenet"})),
        # There they are what ranks, and need no column of their own.
        ("imagenet/corruptions_3d/Deep.json", contents(CORRUPTED | in_3d)),
    ]
    robustbench.import_files(database, files)
    path = "/leaderboards/imagenet/corruptions"
    both = get(client, f"{path}?sort=robust_3d", external=True)
    assert "Robust (3D)" in both
    assert ">50.10 %<" in both
    assert both.index("AlexNet") < both.index("Other")
    alone = get(client, "/leaderboards/imagenet/corruptions_3d", external=True)
    assert ">Robust (3D)</a>" not in alone
    rows = list(csv.DictReader(io.StringIO(client.get(f"/api/v1{path}/export/csv?sort=mce_3d").text)))
    assert [(row["model_id"], row["robust_3d"], row["mce_3d"]) for row in rows] == [
        ("AlexNet", "50.1", "61"),
        ("Other", "", ""),
    ]
    view = client.get("/api/v1/entries/1").json()
    assert (view["corruptions_3d_accuracy"], view["corruptions_3d_error"]) == (0.501, 0.61)


def test_parameters_are_those_of_the_network_that_is_known(client: TestClient, database: Database) -> None:
    made = {
        "Carmon2019Unlabeled": "WideResNet-28-10",
        "Unheard_of": "WideResNet-28-10",
        "Either": "PreActResNet-18",
        "Small": "ResNet-18",
    }
    robustbench.import_files(
        database, [(f"cifar10/Linf/{n}.json", contents(LINF | {"architecture": a})) for n, a in made.items()]
    )
    path = "/leaderboards/cifar10/Linf"
    known = [("Small", "11173962"), ("Unheard_of", "36479194"), ("Carmon2019Unlabeled", "38119866"), ("Either", "")]
    rows = csv.DictReader(io.StringIO(client.get(f"/api/v1{path}/export/csv?sort=parameters&columns=parameters").text))
    assert [(row["model_id"], row["parameters"]) for row in rows] == known
    page = get(client, path, external=True)
    assert '<span title="38,119,866">38.1M</span>' in page
    assert ">Parameters</a>" in page
    entry = client.get(f"/api/v1{path}?q=Either").json()["entries"][0]
    assert entry["num_parameters"] is None


def test_the_front_page_names_models_and_not_only_papers(client: TestClient, database: Database) -> None:
    robustbench.import_files(database, [("cifar10/Linf/Carmon2019Unlabeled.json", contents(LINF))])
    measure(database, train(database, "Our own"), robust=100)
    page = get(client, "/", external=True)
    assert '<span class="slug">Carmon2019Unlabeled</span><span class="authors">WideResNet-28-10</span>' in page
    # Its name is the model's own already.
    assert "Our own</a><span" in page
    assert '<span class="slug">Our' not in page


@on_one
def test_no_page_shows_text_that_turns_round_what_stands_beside_it(client: TestClient, database: Database) -> None:
    override, isolate, hidden = "\N{RIGHT-TO-LEFT OVERRIDE}", "\N{LEFT-TO-RIGHT ISOLATE}", "\N{ZERO WIDTH SPACE}"
    odd = LINF | {
        "link": "",
        "name": f"Robust {override}% 9.99",
        "authors": f"Ada{hidden}",
        "venue": f"ICML{isolate} 2023",
        "architecture": f"Wide{override}",
        "footnote": f"<b>a&#x202e;b</b> \\(x{override}\\) {isolate}",
    }
    robustbench.import_files(database, [("cifar10/Linf/A.json", contents(odd)), ("cifar10/Linf/B.json", contents(odd))])
    for path in ("/", "/leaderboards/cifar10/Linf", "/entries/1", "/compare?entries=1&entries=2"):
        text = get(client, path)
        assert "Robust \N{REPLACEMENT CHARACTER}% 9.99" in text, path
        for character in (override, isolate, hidden, "&#x202e;", "&#8238;"):
            assert character not in text, path
