"""Forms from specs, other people's markup, comparisons, caching; in HTML what a browser gets."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.boards import robustbench
from app.boards.chart_points import Point
from app.core.formatting import plain
from app.db.database import Database
from app.web.charts import _round_range, clean_against_robust
from app.web.forms import Input, advanced, basic, inputs, parse
from app.web.rich_text import rich
from app.web.submit import SPECS, Kind, commands, first_values, form_of, prefilled
from gkl.answers import Provenance
from gkl.recipes import RECIPES
from gkl.spec import JOB_SPEC, EvaluateSpec, TrainSpec
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import CORRUPTED, LINF, contents, on_one
from tests.app.web.test_pages import get

FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}


def sent(made: list[Input]) -> dict[str, str]:
    """What a browser sends of a form."""
    values: dict[str, str] = {}
    for each in made:
        if each.kind == "checkbox":
            values |= {each.name: "true"} if each.value else {}
        elif each.kind != "group":
            values[each.name] = each.value
        values |= sent(each.inputs)
    return values


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_through_the_form_unchanged(name: str) -> None:
    spec = RECIPES[name]()
    made = inputs(TrainSpec, spec.model_dump(mode="json"), {})
    assert TrainSpec.model_validate(parse(TrainSpec, sent(made))) == spec


def test_every_field_of_the_specs_has_an_input() -> None:
    def paths(schema: dict[str, Any], part: dict[str, Any]) -> set[str]:
        return set(part["properties"]) - {"kind"}

    for spec in SPECS.values():
        schema = spec.model_json_schema()
        assert {each.name for each in inputs(spec, {}, {})} == paths(schema, schema)


def test_the_variant_that_is_chosen_has_its_own_fields() -> None:
    values = RECIPES["digits"]().model_dump(mode="json") | {"averaging": {"kind": "step"}}
    names = set(sent(inputs(TrainSpec, values, {})))
    assert {"averaging", "averaging.tau", "averaging.warmup_fraction"} <= names
    got = parse(TrainSpec, sent(inputs(TrainSpec, values, {})) | {"averaging": "none"})
    assert "averaging" not in got


def test_what_is_no_number_reaches_the_spec_and_is_refused_there() -> None:
    values = parse(TrainSpec, sent(inputs(TrainSpec, first_values("train"), {})) | {"epochs": "many"})
    assert values["epochs"] == "many"
    form = form_of("train", values)
    (wrong,) = [each for each in form.inputs if each.errors]
    assert (wrong.name, wrong.value) == ("epochs", "many")
    assert form.body is None


@pytest.mark.parametrize("kind", SPECS)
def test_the_commands_say_the_same_job(kind: Kind) -> None:
    values = first_values(kind) | {"name": "It's"}
    if kind == "evaluate":
        values["weights"] = "0" * 64
    form = form_of(kind, values, submitter="Ada L")
    assert form.body is not None
    assert JOB_SPEC.validate_json(form.body) == SPECS[kind].model_validate(values)
    said = commands(form, "http://host")
    assert said is not None
    texts = dict(said)
    assert "--submitter 'Ada L'" in texts["gklbench"]
    assert "http://host/api/v1/jobs?submitter=Ada%20L" in texts["curl"]
    assert JOB_SPEC.validate_json(texts["JSON"]) == SPECS[kind].model_validate(values)


def test_an_error_about_the_whole_spec_is_told_too() -> None:
    form = form_of("train", first_values("train") | {"selection": {"num_images": 9999}})
    (said,) = form.errors
    assert "leaves none of the 1437 training images" in said


@on_one
def test_the_form_sends_a_job_or_says_what_is_wrong(client: TestClient) -> None:
    form = sent(inputs(TrainSpec, first_values("train"), {}))
    wrong = client.post("/submit/train", data=form | {"epochs": "-1"}, headers=FORM)
    assert wrong.status_code == 422
    assert "Not sent." in wrong.text
    assert re.search(r'id="e-epochs"><p class="wrong">[^<]*greater than or equal to 1', wrong.text)
    checked = client.post("/submit/train", data=form | {"epochs": "-1", "action": "check"}, headers=FORM)
    assert (checked.status_code, "Not sent." in checked.text) == (200, False)
    assert 'id="e-epochs"><p class="wrong">' in checked.text
    redrawn = client.post("/submit/train", data=form | {"epochs": "-1", "action": "update"}, headers=FORM)
    assert redrawn.status_code == 200
    assert "Not sent." not in redrawn.text
    done = client.post("/submit/train", data=form | {"submitter": "Ada"}, headers=FORM, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/jobs/1")
    assert client.get("/api/v1/jobs/1").json()["submitter"] == "Ada"
    bad = client.post("/submit/train", data=form | {"submitter": "<b>"}, headers=FORM)
    assert "submitter: write letters" in bad.text


@on_one
def test_a_form_that_is_sent_twice_is_one_job(client: TestClient) -> None:
    nonces = [re.search(r'name="nonce" value="(\w+)"', get(client, "/submit/train")) for _ in range(2)]
    form = sent(inputs(TrainSpec, first_values("train"), {}))

    def job(nonce: re.Match[str] | None, **changes: str) -> str:
        assert nonce is not None
        body = form | changes | {"nonce": nonce[1]}
        return client.post("/submit/train", data=body, headers=FORM, follow_redirects=False).headers["location"]

    assert job(nonces[0]) == job(nonces[0]) == "/jobs/1"
    assert job(nonces[0], epochs="7") == "/jobs/2", "changed after the way back"
    assert job(nonces[1]) == "/jobs/3"


@on_one
def test_what_only_the_service_knows_stands_beside_its_field(client: TestClient) -> None:
    form = sent(inputs(EvaluateSpec, first_values("evaluate") | {"name": "a", "weights": "0" * 64}, {}))
    answer = client.post("/submit/evaluate", data=form, headers=FORM)
    assert answer.status_code == 422
    assert re.search(r'id="e-weights"><p class="wrong">no weights with sha256', answer.text)


@on_one
def test_a_form_is_filled_in_from_another_job(client: TestClient) -> None:
    spec = RECIPES["digits"]().model_copy(update={"name": "The first", "epochs": 17})
    client.post("/api/v1/jobs", json=spec.model_dump(mode="json"))
    text = get(client, "/submit/train?job=1")
    assert 'value="The first"' in text
    assert 'name="epochs" value="17"' in text
    assert "There is no job 9" in get(client, "/submit/train?job=9", 404)
    assert "Unknown recipe" in get(client, "/submit/train?recipe=nothing", 404)


def test_a_link_sets_fields_and_what_follows_from_them() -> None:
    found = prefilled("train", first_values("train"), {"dataset": "cifar10", "epochs": "3"})
    spec = TrainSpec.model_validate(found)
    assert (spec.dataset, spec.epochs, spec.threat_model.epsilon) == ("cifar10", 3, 8 / 255)
    # What it names itself stays, also where it is what was usual before.
    typed = prefilled("train", first_values("train"), {"dataset": "cifar10", "threat_model.epsilon": "0.2"})
    assert (typed["threat_model"]["epsilon"], typed["evaluation"]["threat_model"]["epsilon"]) == (0.2, "8/255")
    assert prefilled("train", first_values("train"), {"nothing": "1"}) == prefilled("train", first_values("train"), {})
    assert TrainSpec.model_validate(prefilled("train", first_values("train"), {})) == RECIPES["digits"]()


@on_one
def test_a_link_goes_to_its_form_at_once(client: TestClient) -> None:
    for query, place in (
        ("kind=train", "/submit/train"),
        ("kind=import", "/submit/import"),
        ("kind=evaluate&dataset=cifar10", "/submit/evaluate?dataset=cifar10"),
        ("weights=robustbench&architecture=a%2Fb", "/submit/evaluate?weights=robustbench&architecture=a%2Fb"),
        ("recipe=digits", "/submit/train?recipe=digits"),
    ):
        answer = client.get(f"/submit?{query}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, place)
    assert client.get("/submit?kind=nothing", headers={"Accept": "text/html"}).status_code == 422
    assert "import-robustbench" in get(client, "/submit/import")


def test_what_is_folded_says_how_much_of_it_is_set() -> None:
    spec = RECIPES["digits"]()
    made = inputs(TrainSpec, spec.model_dump(mode="json"), {})
    assert [each.name for each in basic(made)] == [
        *("name", "dataset", "architecture", "threat_model", "objective", "epochs", "evaluation")
    ]
    assert {each.name for each in [*basic(made), *advanced(made)]} == set(TrainSpec.model_fields) - {"kind"}
    changed = {"label_smoothing": 0.1, "averaging": {"kind": "epoch"}, "seed": 0}
    plain = spec.model_copy(update={"inner_maximization": type(spec.inner_maximization)()}).model_dump(mode="json")
    both = [inputs(TrainSpec, plain | more, {}) for more in ({}, changed)]
    set_before, set_now = ({each.name for each in advanced(one) if each.is_changed} for one in both)
    assert set_now - set_before == {"label_smoothing", "averaging"} - set_before
    assert "inner_maximization" not in set_before


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


def _point(number: int, clean: float, robust: float, **others: Any) -> Point:
    known: dict[str, Any] = {"slug": f"M{number}", "year": 2020, "provenance": Provenance.IMPORTED}
    known |= {"extra_data": False, "synthetic_data": False, "num_parameters": 36_000_000}
    return Point(id=number, name=f"M{number}", across=clean, accuracy=robust, **known | others)


def test_the_front_is_a_staircase_from_the_left_edge_to_the_lower_one() -> None:
    points = [_point(1, 0.80, 0.60), _point(2, 0.90, 0.50), _point(3, 0.79, 0.50), _point(4, 0.85, 0.45)]
    chart = clean_against_robust(points, "Robust accuracy")
    assert chart is not None
    places = {dot.id: (dot.x, dot.y) for dot in chart.dots}
    corners = [tuple(map(float, corner.split(","))) for corner in chart.line.split()]
    (x1, y1), (x2, y2) = places[1], places[2]
    expected = [(chart.left, y1), (x1, y1), (x1, y2), (x2, y2), (x2, chart.bottom)]
    assert [pytest.approx(corner, abs=0.06) for corner in expected] == corners


def test_an_outlier_does_not_squeeze_the_rest() -> None:
    usual = [_point(n, 0.85 + n / 1000, 0.50 + n / 1000) for n in range(20)]
    outliers = [_point(100, 0.95, 0.0), _point(101, 0.30, 0.70, extra_data=True, num_parameters=None)]
    focused = clean_against_robust([*usual, *outliers], "Robust accuracy", is_focused=True)
    whole = clean_against_robust([*usual, *outliers], "Robust accuracy")
    assert focused is not None
    assert whole is not None
    assert ({dot.id for dot in focused.dots}, focused.num_outside) == ({point.id for point in usual}, 2)
    assert {dot.id for dot in whole.dots} >= {100, 101}
    assert next(dot for dot in whole.dots if dot.id == 101).classes == "extra unsized"
    # Where none is far from the others, or there are few, the whole is all there is.
    assert clean_against_robust(usual, "Robust accuracy", is_focused=True) is None
    assert clean_against_robust([*usual[:3], outliers[0]], "Robust accuracy", is_focused=True) is None


def test_what_no_board_has_cannot_be_measured_from_an_entry(client: TestClient, database: Database) -> None:
    files = [
        ("cifar10/Linf/Unheard_of.json", contents(LINF)),
        ("imagenet/corruptions/AlexNet.json", contents(CORRUPTED | {"dataset": "imagenet"})),
        ("cifar10/Linf/Rice2020Overfitting.json", contents(LINF | {"name": "x" * 600, "link": "a paper"})),
    ]
    robustbench.import_files(database, files)
    assert "Measure it here" not in get(client, "/entries/1", external=True)
    assert "not in RobustBench&#39;s zoo" in get(client, "/submit/evaluate?entry=1", 404)
    assert "There is no entry 9" in get(client, "/submit/evaluate?entry=9", 404)
    for number, says in ((2, "corruptions"), (3, "cifar10/Linf/Rice2020Overfitting")):
        assert "Measure it here" in get(client, f"/entries/{number}", external=True)
        form = get(client, f"/submit/evaluate?entry={number}", external=True)
        assert f'value="{says}" selected' in form
        assert "gklbench submit - --follow" in form


@pytest.mark.parametrize(
    ("values", "low", "high"), [([50.0], 50.0, 50.5), ([0.0, 100.0], 0.0, 100.0), ([91.2, 93.7], 91.0, 94.0)]
)
def test_axes_hold_all_values_between_round_ends(values: list[float], low: float, high: float) -> None:
    assert _round_range(values, None)[:2] == (low, high)


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
