"""RobustBench's files in and out: always ones made alike, and the published ones where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jinja2 import DictLoader
from sqlalchemy import select

from app.boards import (
    listing,
    ranking,
    robustbench,
    robustbench_export,
)
from app.boards.listing import View
from app.boards.ranking import Board
from app.db.database import Database
from app.db.tables import Entry
from gkl.answers import Provenance
from gkl.errors import InvalidInput
from tests.app.boards.test_results import measure, sha, train

PUBLISHED = Path(__file__).parents[4] / "shared" / "robustbench" / "model_info"

LINF = {
    "link": "https://example.org/paper",
    "name": "A Paper",
    "authors": "Ada Lovelace, Alan Turing",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "ICML 2023",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "92.10",
    "reported": "67.3",
    "autoattack_acc": "66.50",
    "unreliable": False,
}
CORRUPTED = {key: value for key, value in LINF.items() if key not in ("autoattack_acc", "unreliable")} | {
    "eps": None,
    "corruptions_acc": "88.5",
    "corruptions_mce": "104.25",
}
# The key sets of the published files, with values as they have them.
MADE = {
    "cifar10/Linf/Plain.json": LINF,
    "cifar10/Linf/Broken.json": LINF | {"external": "12.00", "autoattack_acc": "75.28", "footnote": ""},
    "cifar10/Linf/Older.json": {k: v for k, v in LINF.items() if k != "unreliable"} | {"autoattack_acc": "66.50"},
    "cifar10/Linf/Synthetic_1M.json": LINF | {"footnote": "It uses additional 1M synthetic images in training."},
    "cifar10/L2/Other.json": LINF | {"eps": "0.5", "additional_data": True, "autoattack_acc": "0.00"},
    "cifar10/corruptions/Noisy.json": CORRUPTED,
    "imagenet/corruptions_3d/Deep.json": CORRUPTED
    | {"dataset": "imagenet", "corruptions_acc_3d": "50.1", "corruptions_mce_3d": "61"},
}


def contents(info: dict[str, Any]) -> bytes:
    return json.dumps(info, indent=2).encode()


def made() -> list[tuple[str, bytes]]:
    return [(name, contents(info)) for name, info in MADE.items()]


def published() -> list[tuple[str, bytes]]:
    return [(robustbench.name_of(path), path.read_bytes()) for path in robustbench.find_files(PUBLISHED)]


each_collection = pytest.mark.parametrize(
    "files",
    [
        pytest.param(made, id="made"),
        pytest.param(published, id="published", marks=pytest.mark.skipif(not PUBLISHED.is_dir(), reason="not at hand")),
    ],
)


# What does not depend on the database is tried on one.
on_one = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def written_to(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@each_collection
def test_import_then_export_gives_every_file_to_the_letter(
    database: Database, files: Callable[[], list[tuple[str, bytes]]], tmp_path: Path
) -> None:
    given = files()
    report = robustbench.import_files(database, given)
    assert (report.added, report.changed, report.unchanged, report.refused) == (len(given), 0, 0, 0)
    with database.reading() as session:
        assert robustbench_export.export_to(session, tmp_path) == len(given)
        revision = ranking.revision(session, "cifar10", "Linf")
    for name, data in given:
        assert (tmp_path / name).read_bytes() == data, name
    # Again, from what was exported: nothing changes.
    again = robustbench.import_files(
        database, [(robustbench.name_of(p), p.read_bytes()) for p in robustbench.find_files(tmp_path)]
    )
    assert (again.added, again.changed, again.unchanged, again.refused) == (0, 0, len(given), 0)
    assert again.anomalies == sorted(report.anomalies, key=lambda a: a.file)
    with database.reading() as session:
        assert ranking.revision(session, "cifar10", "Linf") == revision


# With the fields that RobustBench's page shows.
TEMPLATE = """[{% for m in models %}
{{ [loop.index, m.name, m.clean_acc, m[acc_field], m.architecture, m.venue, m.link, m.additional_data] | tojson }}
{{- "," if not loop.last }}{% endfor %}]"""


def rendered(folder: Path, dataset: str, board: str, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What RobustBench's own program makes of a folder. Its package on the index lacks the program's template."""
    from gkl.models.robustbench import _robustbench

    template = _robustbench("leaderboard.template")

    monkeypatch.setattr(template, "PackageLoader", lambda *_: DictLoader({"leaderboard.html.j2": TEMPLATE}))
    text: str = template.generate_leaderboard(dataset, board, str(folder))
    lines: list[list[Any]] = json.loads(text)
    return lines


def best_known(info: dict[str, Any]) -> float:
    return float(info.get("external", info.get("autoattack_acc", info.get("corruptions_acc"))))


@on_one
@each_collection
def test_robustbench_itself_renders_the_export_in_the_order_of_our_board(
    database: Database,
    files: Callable[[], list[tuple[str, bytes]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    robustbench.import_files(database, files())
    with database.reading() as session:
        robustbench_export.export_to(session, tmp_path)
        for name in ("Linf", "L2", "corruptions"):
            found = listing.search(session, Board("cifar10", name, 0), View())
            ours = [json.loads(row.entry.source or "") for row in found]
            theirs = rendered(tmp_path, "cifar10", name, monkeypatch)
            assert [row.rank for row in found] == list(range(1, len(theirs) + 1)) == [line[0] for line in theirs]
            # Equal figures stand in the order of the file system there.
            key = "corruptions_acc" if name == "corruptions" else "autoattack_acc"
            order = [(best_known(info), info["name"], info["clean_acc"], info[key]) for info in ours]
            known = {(info["name"], info["clean_acc"], info[key]): best_known(info) for info in ours}
            their_order = [(known[n, clean, robust], n, clean, robust) for _, n, clean, robust, *_ in theirs]
            assert [place[0] for place in order] == [place[0] for place in their_order]
            assert sorted(order) == sorted(their_order)


@on_one
@each_collection
def test_robustbench_itself_reads_the_export(
    database: Database,
    files: Callable[[], list[tuple[str, bytes]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gkl.models.robustbench import _robustbench

    utils = _robustbench("utils")

    robustbench.import_files(database, files())
    # A model of its zoo, so that its list has one in any case.
    zoo = LINF | {"name": "Unlabeled", "clean_acc": "89.69", "autoattack_acc": "59.53"}
    if "cifar10/Linf/Carmon2019Unlabeled.json" not in dict(files()):
        robustbench.import_files(database, [("cifar10/Linf/Carmon2019Unlabeled.json", contents(zoo))])
    with database.reading() as session:
        robustbench_export.export_to(session, tmp_path / "model_info")
    monkeypatch.chdir(tmp_path)
    utils.list_available_models("cifar10", "Linf")
    lines = capsys.readouterr().out.splitlines()
    assert any("Carmon2019Unlabeled" in line and "59.53%" in line for line in lines)
    for path in (tmp_path / "model_info").rglob("*.json"):
        # Its record has no place for these two.
        info = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("external", "unreliable")}
        assert utils.ModelInfo(**info).clean_acc == info["clean_acc"]


ODD = {
    "cifar10/Linf/Wrong_dataset.json": (contents(LINF | {"dataset": "cifar100"}), "dataset", "folder of cifar10"),
    "cifar10/Linf/Twice.json": (contents(LINF)[:-2] + b', "venue": "ICML 2024"\n}', "venue", "is a duplicate key"),
    "cifar10/Linf/Eps.json": (contents(LINF | {"eps": "0.031"}), "eps", "on the board of Linf 8/255"),
    "cifar10/Linf/Null.json": (contents(LINF | {"reported": "null"}), "reported", "not a number from 0 to 100"),
    "cifar10/Linf/Nan.json": (contents(LINF | {"autoattack_acc": "nan"}), "autoattack_acc", "not a number"),
    "cifar10/Linf/Number.json": (contents(LINF | {"clean_acc": 92.1}), "clean_acc", "not a text with a number"),
    "cifar10/Linf/Html.json": (contents(LINF | {"venue": "GitHub,<br>Sep 2019"}), "venue", "contains HTML"),
    "cifar10/Linf/Key.json": (contents(LINF | {"accuracy": "1"}), "accuracy", "not a key of RobustBench's"),
    "cifar10/Linf/Above.json": (contents(LINF | {"external": "70.00"}), "external", "is above autoattack_acc"),
    "cifar10/Linf/Flag.json": (contents(LINF | {"additional_data": "no"}), "additional_data", "neither true nor"),
    "cifar10/Linf/Passes.json": (contents(LINF | {"number_forward_passes": 0}), "number_forward_passes", "passes"),
    "cifar10/Linf/Nul.json": (contents(LINF | {"name": "a\0b", "x\0": 1}), "x\N{REPLACEMENT CHARACTER}", "not a key"),
    "cifar10/Linf/Half.json": (contents(LINF | {"name": "\ud800", "authors": 7}), "authors", "not a text"),
    "cifar10/Linf/Bare.json": (b"{}", "clean_acc", "is missing"),
    "cifar10/corruptions/Unmeasured.json": (
        contents({k: v for k, v in CORRUPTED.items() if k != "corruptions_acc"}),
        "corruptions_acc",
        "has no rank",
    ),
}


def test_what_is_odd_is_kept_and_reported_with_its_file_and_field(database: Database, tmp_path: Path) -> None:
    files = [(name, data) for name, (data, _, _) in ODD.items()]
    report = robustbench.import_files(database, files)
    assert (report.added, report.refused) == (len(ODD), 0)
    for name, (_, field, says) in ODD.items():
        assert [a for a in report.anomalies if (a.file, a.field) == (name, field) and says in a.what], name
    with database.reading() as session:
        robustbench_export.export_to(session, tmp_path)
        for name, (data, _, _) in ODD.items():
            assert (tmp_path / name).read_bytes() == data, name
        by_slug = {entry.slug: entry for entry in session.scalars(select(Entry))}
    assert by_slug["Nan"].robust_accuracy is None
    assert by_slug["Nan"].provenance is Provenance.REPORTED
    assert by_slug["Eps"].epsilon == 0.031
    assert by_slug["Above"].robust_accuracy == 0.7, "external ranks, as with RobustBench"
    assert (by_slug["Bare"].name, by_slug["Bare"].clean_accuracy) == ("Bare", None)
    assert by_slug["Nul"].name == "a\N{REPLACEMENT CHARACTER}b"
    assert len(by_slug["Bare"].anomalies) == 12


@on_one
@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("cifar10/Linf/A.json", b"<!DOCTYPE html>", "is not JSON"),
        ("cifar10/Linf/A.json", b"\xff\xfe", "is not UTF-8 text"),
        ("cifar10/Linf/A.json", b"[1]", "is not a JSON object"),
        ("cifar10/Linf/A.json", b"[" * 100_000, "is not JSON"),
        ("cifar10/Linf/A.json", b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        ("cifar10/Linf/A.json", b" " * 300_000, "more than"),
        ("mnist/Linf/A.json", b"{}", "not in a folder of a known data set"),
        ("cifar10/Linf-1e9/A.json", b"{}", "not a threat model"),
        ("cifar10/Linf-5/A.json", b"{}", "not a threat model"),
        ("cifar10/Linf-16-510/A.json", b"{}", "not a threat model"),
        ("cifar10/Linf-8-255/A.json", b"{}", "not a threat model"),
        ("cifar10/Linf/A.json", b'{"clean_acc": NaN}', "NaN is not part of it"),
        ("cifar10/Linf/../A.json", b"{}", "not in a folder of a known data set"),
        ("cifar10/Linf/A.txt", b"{}", "not a model id"),
        ("cifar10/Linf/..json", b"{}", "not a model id"),
        ("A.json", b"{}", "not in a folder of a known data set"),
    ],
)
def test_what_cannot_be_an_entry_is_refused_and_the_rest_is_taken(
    database: Database, name: str, data: bytes, says: str
) -> None:
    report = robustbench.import_files(database, [(name, data), ("cifar10/Linf/Good.json", contents(LINF))])
    assert (report.added, report.refused) == (1, 1)
    (anomaly,) = report.anomalies
    assert (anomaly.file, anomaly.field) == (name, None)
    assert says in anomaly.what


FRACTIONS: dict[str, tuple[dict[str, Any], str | None, float | None]] = {
    # What was said, which field is odd, and what ranks.
    "four decimals": ({"autoattack_acc": "0.6123"}, "autoattack_acc", None),
    "all of them": ({"clean_acc": "0.92", "autoattack_acc": "0.66", "reported": "0.67"}, "autoattack_acc", None),
    "clean alone": ({"clean_acc": "0.92"}, "clean_acc", 0.665),
    "beside what was reported": ({"autoattack_acc": "0.67"}, "autoattack_acc", None),
    "what would rank": ({"external": "0.6123"}, "external", None),
    "whole": ({"clean_acc": "1", "autoattack_acc": "1.0", "reported": "1"}, "autoattack_acc", None),
    "above a hundred": ({"autoattack_acc": "103.2"}, "autoattack_acc", None),
    "external above a hundred": ({"external": "665"}, "external", None),
    "below 0": ({"autoattack_acc": "-1.0"}, "autoattack_acc", None),
    "with its unit": ({"autoattack_acc": "66.5%"}, "autoattack_acc", None),
    "a number": ({"autoattack_acc": 66.5}, "autoattack_acc", None),
    "other digits": ({"autoattack_acc": "\N{ARABIC-INDIC DIGIT SIX}6.5"}, "autoattack_acc", None),
    "a broken network": ({"autoattack_acc": "0.26"}, None, 0.0026),
    "a broken network's one percent": ({"autoattack_acc": "1.0"}, None, 0.01),
    "none at all": ({"autoattack_acc": "0.00"}, None, 0.0),
    "an empty external": ({"external": ""}, "external", 0.665),
}


@pytest.mark.parametrize("what", FRACTIONS)
@on_one
def test_an_accuracy_in_another_unit_has_no_rank(database: Database, what: str) -> None:
    changes, field, robust = FRACTIONS[what]
    report = robustbench.import_files(database, [("cifar10/Linf/A.json", contents(LINF | changes))])
    assert {a.field for a in report.anomalies if a.field != "reported"} >= ({field} if field else set())
    assert field is not None or report.anomalies == []
    with database.reading() as session:
        (ranked,) = listing.search(session, Board("cifar10", "Linf", 1), View())
        assert ranked.entry.robust_accuracy == pytest.approx(robust)
        assert (ranked.rank is None) == (robust is None)


@on_one
def test_a_fraction_on_a_board_of_corruptions(database: Database) -> None:
    odd = CORRUPTED | {"corruptions_acc": "0.885", "corruptions_mce": "0.95"}
    report = robustbench.import_files(database, [("cifar10/corruptions/A.json", contents(odd))])
    assert {"corruptions_acc", "corruptions_mce"} <= {a.field for a in report.anomalies}
    with database.reading() as session:
        entry = session.scalars(select(Entry)).one()
        assert (entry.robust_accuracy, entry.mean_corruption_error) == (None, None)


@on_one
def test_an_entry_that_an_earlier_version_misread_is_read_again(database: Database) -> None:
    files = [("cifar10/Linf/A.json", contents(LINF | {"autoattack_acc": "0.6123"}))]
    robustbench.import_files(database, files)
    with database.writing() as session:
        entry = session.scalars(select(Entry)).one()
        entry.robust_accuracy, entry.anomalies = 0.006123, []
    assert robustbench.import_files(database, files).changed == 1
    assert robustbench.import_files(database, files).unchanged == 1
    with database.reading() as session:
        assert session.scalars(select(Entry)).one().robust_accuracy is None


@on_one
def test_text_that_turns_round_what_is_shown_is_reported_and_kept(database: Database, tmp_path: Path) -> None:
    data = contents(LINF | {"name": "Robust \N{RIGHT-TO-LEFT OVERRIDE}% 9.99", "authors": "A\N{ZERO WIDTH SPACE}da"})
    report = robustbench.import_files(database, [("cifar10/Linf/A.json", data)])
    said = {a.field: a.what for a in report.anomalies}
    assert said == {
        "name": "has characters that hide or turn round what is shown: U+202E",
        "authors": "has characters that hide or turn round what is shown: U+200B",
    }
    with database.reading() as session:
        robustbench_export.export_to(session, tmp_path)
    assert (tmp_path / "cifar10/Linf/A.json").read_bytes() == data


def test_a_file_that_changed_changes_its_entry(database: Database) -> None:
    robustbench.import_files(database, [("cifar10/Linf/A.json", contents(LINF))])
    report = robustbench.import_files(database, [("cifar10/Linf/A.json", contents(LINF | {"external": "1.5"}))])
    assert (report.added, report.changed) == (0, 1)
    with database.reading() as session:
        entry = session.scalars(select(Entry)).one()
        assert (entry.robust_accuracy, entry.autoattack_accuracy) == (0.015, 0.665)


def test_what_was_measured_here_goes_out_in_the_same_form_and_is_not_overwritten(
    database: Database, tmp_path: Path
) -> None:
    measure(database, train(database, "Größe 1"), robust=123, clean=341)
    with database.reading() as session:
        assert robustbench_export.export_to(session, tmp_path) == 1
    path = tmp_path / "digits" / "Linf" / "Gr_e_1.json"
    info = json.loads(path.read_text())
    assert info == {
        "link": "",
        "name": "Größe 1",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "digits",
        "venue": "",
        "architecture": "SmallCNN",
        "eps": "0.2",
        # As update_json of RobustBench writes them.
        "clean_acc": str(round(341 / 360 * 100, 2)),
        "reported": "",
        "autoattack_acc": str(round(123 / 360 * 100, 2)),
        "unreliable": False,
    }
    # Its own export says nothing new; another file of that id is RobustBench's, and takes it.
    again = robustbench.import_files(database, [(robustbench.name_of(path), path.read_bytes())])
    assert (again.added, again.unchanged) == (0, 1)
    other = robustbench.import_files(database, [("digits/Linf/Gr_e_1.json", contents(LINF | {"dataset": "digits"}))])
    assert (other.added, other.refused) == (1, 0)
    with database.reading() as session:
        slugs = session.scalars(select(Entry.slug).order_by(Entry.id)).all()
    assert slugs == [f"Gr_e_1_{sha('Größe 1')[:12]}", "Gr_e_1"]


def test_a_provisional_bound_is_no_model_info(client: TestClient, database: Database, tmp_path: Path) -> None:
    measure(database, train(database, "a"), robust=123, provisional=True)
    with database.reading() as session:
        assert robustbench_export.export_to(session, tmp_path) == 0
    assert client.get("/api/v1/entries/1/model_info.json").status_code == 409
    assert client.get("/api/v1/leaderboards/digits/Linf/export/robustbench").json() == {}
    assert "$\\le$ 34.17" in client.get("/api/v1/leaderboards/digits/Linf/export/latex").text
    assert client.get("/entries/1").status_code == 200


def test_a_checkout_a_folder_and_a_file_are_found(tmp_path: Path) -> None:
    written_to(tmp_path / "model_info", made())
    (tmp_path / "setup.json").write_text("{}")
    assert len(robustbench.find_files(tmp_path)) == len(MADE)
    assert len(robustbench.find_files(tmp_path / "model_info" / "cifar10" / "Linf")) == 4
    one = tmp_path / "model_info" / "cifar10" / "Linf" / "Plain.json"
    assert [robustbench.name_of(path) for path in robustbench.find_files(one)] == ["cifar10/Linf/Plain.json"]
    with pytest.raises(InvalidInput, match=r"no \.json file under"):
        robustbench.find_files(tmp_path / "nothing")


def test_over_rest(client: TestClient) -> None:
    files = {name: data.decode() for name, data in made()}
    report = client.post("/api/v1/robustbench/imports", json={"files": files})
    assert report.status_code == 200, report.text
    assert report.json()["added"] == len(files)
    board = client.get("/api/v1/leaderboards/cifar10/Linf").json()
    assert [(e["rank"], e["model_id"]) for e in board["entries"]] == [
        (1, "Plain"),
        (2, "Older"),
        (3, "Synthetic_1M"),
        (4, "Broken"),
    ]
    broken = board["entries"][3]
    assert (broken["robust"]["accuracy"], broken["autoattack"]["accuracy"]) == (0.12, 0.7528)
    file = client.get(f"/api/v1/entries/{broken['id']}/model_info.json")
    assert (file.text, file.headers["content-type"]) == (files["cifar10/Linf/Broken.json"], "application/json")
    again = client.post("/api/v1/robustbench/imports", json={"files": files}).json()
    assert (again["added"], again["unchanged"]) == (0, len(files))
    assert client.post("/api/v1/robustbench/imports", json={"files": {"a": 1}}).status_code == 422


def test_names_of_files_that_no_answer_can_hold_harm_nothing(client: TestClient) -> None:
    files = {
        "x\ud800/cifar10/Linf/A.json": json.dumps(LINF | {"eps": "1"}),
        "\0/cifar10/Linf/B.json": json.dumps(LINF | {"eps": "1"}),
        "a\ud800": "{}",
        "\0": "{}",
        "cifar10/\ud800/C.json": "{}",
        "cifar10/Linf/D.json": "\ud800",
    }
    body = json.dumps({"files": files})
    answer = client.post("/api/v1/robustbench/imports", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["added"], answer.json()["refused"]) == (2, 4)
    board = client.get("/api/v1/leaderboards/cifar10/Linf")
    assert [e["anomalies"][0]["file"] for e in board.json()["entries"]] == [
        "cifar10/Linf/A.json",
        "cifar10/Linf/B.json",
    ]
