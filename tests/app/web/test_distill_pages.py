"""Distillation on the pages: its form, its teacher and its students."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import jobs
from app.boards import results, robustbench
from app.db.database import Database
from app.db.tables import FileKind
from app.jobs import job_files
from app.store import StoredFile
from app.web.fitting import Drawn, fitted
from app.web.forms import inputs
from app.web.submit_form import first_values, form_of, prefilled
from gkl.errors import FailureCode
from gkl.outcome import TeacherOutcome
from gkl.recipes import RECIPES, listed_recipes
from gkl.spec import DistillSpec, TeacherJob, TeacherWeights
from tests.app.boards.test_results import LEASE, measure, sha, train
from tests.app.boards.test_robustbench import LINF, contents, on_one
from tests.app.web.test_forms import FORM, sent
from tests.app.web.test_pages import get
from tests.databases import either_database
from tests.specs import tiny_train_spec


def values(**changes: Any) -> dict[str, Any]:
    return first_values("distill") | changes


def student(teacher: int | str, **changes: Any) -> DistillSpec:
    """A distillation from a job with this number, or from weights with this sha256."""
    found = TeacherJob(kind="job", job=teacher) if isinstance(teacher, int) else None
    weights = TeacherWeights(architecture="small_cnn", weights=None if found else str(teacher))
    return DistillSpec.model_validate(values(teacher=(found or weights).model_dump(), evaluation=None) | changes)


def form_with(**fields: str) -> dict[str, str]:
    return sent(inputs(DistillSpec, first_values("distill"), {})) | fields


def learned(database: Database, weights: str) -> int:
    """A finished distillation from these weights; returns its job's number."""
    spec = student(weights, name="Student")
    with database.writing() as session:
        jobs.create(session, spec)
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        job = jobs.succeed(session, claim)
        stored = StoredFile(sha("student"), 10)
        job_files.add_file(session, job.id, FileKind.WEIGHTS, number=1, file="w", stored=stored)
        teacher = TeacherOutcome(architecture="small_cnn", weights_sha256=weights, clean_accuracy=0.975, num_points=360)
        results.record_model(session, job, spec, stored.sha256, teacher=teacher)
        return job.id


# --- what a choice changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kd", "dkd", "dkl", "ikl", "gkl"])
def test_without_an_adversary_a_distillation_takes_no_threat_model(loss: str) -> None:
    before = RECIPES["digits-robust-distill"]().model_dump(mode="json")
    found, told = fitted(before | {"objective": {"loss": loss}}, Drawn.of(before))
    assert f"threat_model, inner_maximization left out, since '{loss}' trains without an adversary" in told
    assert DistillSpec.model_validate(found).threat_model is None


def test_with_an_adversary_it_takes_the_usual_one() -> None:
    found, told = fitted(values(objective={"loss": "rslad"}), Drawn.of(values()))
    assert told == ["threat_model is now Linf, epsilon 0.2, the usual one"]
    assert DistillSpec.model_validate(found).has_adversary


def test_cross_entropy_takes_no_teacher_and_the_others_ask_for_one() -> None:
    found, told = fitted(values(objective={"loss": "ce"}), Drawn.of(values()))
    assert told == ["teacher left out, since 'ce' learns from the labels alone"]
    assert DistillSpec.model_validate(found).teacher is None
    back, told = fitted(found | {"objective": {"loss": "kd"}}, Drawn.of(found))
    assert told == ["teacher is now a small_cnn, since 'kd' needs a teacher"]
    assert DistillSpec.model_validate(back).teacher == TeacherWeights(architecture="small_cnn")


def test_the_student_and_the_teacher_follow_the_data_set() -> None:
    before = RECIPES["res56-res20-gkl"]().model_dump(mode="json")
    found, told = fitted(before | {"dataset": "digits"}, Drawn.of(before))
    assert told == ["teacher.architecture is now small_cnn"], "its student fits"
    assert DistillSpec.model_validate(found).dataset == "digits"
    found, told = fitted(before | {"dataset": "imagenet"}, Drawn.of(before))
    assert [each.partition(" is")[0] for each in told] == ["architecture", "teacher.architecture"]
    assert DistillSpec.model_validate(found).dataset == "imagenet"
    of_job = values(dataset="cifar100", teacher={"kind": "job", "job": 12})
    assert fitted(of_job, Drawn.of(values()))[0]["teacher"] == {"kind": "job", "job": 12}


def test_defaults_follow_the_objective_and_what_was_typed_stays() -> None:
    before = RECIPES["cifar10-ard"]().model_dump(mode="json")
    objective = before["objective"] | {"loss": "adaad", "adversarial_weight": 5 / 6, "temperature": 7}
    found, told = fitted(before | {"objective": objective}, Drawn.of(before))
    assert (found["objective"]["kl_mean"], found["objective"]["maximizes"]) == ("batch", "adaptive_divergence")
    assert found["objective"]["adversarial_weight"] == 5 / 6
    assert "objective.kl_mean is now batch, the default of 'adaad'" in told
    assert Drawn.read(str(Drawn.of(before))) == Drawn.of(before)


# --- the form ----------------------------------------------------------------------------------------------------


def test_the_teachers_file_is_asked_for() -> None:
    form = form_of("distill", first_values("distill"))
    (teacher,) = [each for each in form.inputs if each.name == "teacher"]
    (weights,) = [each for each in teacher.inputs if each.has_errors]
    assert (weights.name, weights.is_required) == ("teacher.weights", True)
    (architecture,) = [each for each in teacher.inputs if each.name == "teacher.architecture"]
    assert [heading for heading, _ in architecture.groups] == ["To train and evaluate"]
    assert (form.spec, form.errors) == (None, [])


@pytest.mark.parametrize(
    ("given", "teacher"),
    [
        ({"teacher.job": "12"}, {"kind": "job", "job": 12}),
        ({"teacher.entry": "7"}, {"kind": "entry", "entry": 7}),
        ({"teacher.weights": "0" * 64}, {"kind": "weights", "architecture": "small_cnn", "weights": "0" * 64}),
        ({"teacher": "none"}, None),
    ],
)
def test_a_link_names_a_teacher(given: dict[str, str], teacher: dict[str, Any] | None) -> None:
    found = prefilled("distill", first_values("distill"), given)
    if teacher is None:
        # The objective of the first recipe needs one.
        assert found.get("teacher", {}).get("kind") in (None, "weights")
    else:
        assert found["teacher"] == teacher


def test_the_recipes_are_in_groups_and_of_the_forms_kind() -> None:
    assert {each.name for each in listed_recipes()} == set(RECIPES)
    found = listed_recipes("distill")
    assert {each.kind for each in found} == {"distill"}
    groups = [each.group for each in found]
    assert len(set(groups)) == sum(one != other for one, other in zip(groups, [None, *groups], strict=False))
    assert "CIFAR-10, adversarial" in groups


@on_one
def test_its_page_and_links_to_it(client: TestClient) -> None:
    page = get(client, "/submit/distill")
    assert "<h1>Distill and evaluate</h1>" in page
    assert '<option value="digits-distill" selected>' in page
    assert '<option value="digits-trades"' not in page
    assert 'class="wrong"' not in page
    assert '<option value="cifar10-ard" selected>' in get(client, "/submit/distill?recipe=cifar10-ard")
    assert "Distill a network" in get(client, "/submit")
    for query, place in (
        ("kind=distill", "/submit/distill"),
        ("recipe=digits-distill", "/submit/distill?recipe=digits-distill"),
        ("teacher.job=3", "/submit/distill?teacher.job=3"),
    ):
        assert client.get(f"/submit?{query}", follow_redirects=False).headers["location"] == place
    other = client.get("/submit/train?recipe=cifar10-ard", follow_redirects=False)
    assert other.headers["location"] == "/submit/distill?recipe=cifar10-ard"


@either_database
def test_the_form_sends_a_distillation(client: TestClient, database: Database) -> None:
    weights = train(database, "Teacher")
    page = get(client, f"/submit/distill?teacher.weights={weights}")
    assert f'<option value="{weights}">Teacher, small_cnn, ' in page
    assert "gklbench submit - --follow" in page
    fields = form_with(**{"teacher.weights": weights})
    answer = client.post("/submit/distill", data=fields, headers=FORM, follow_redirects=False)
    assert answer.headers["location"] == "/jobs/2"
    stored = client.get("/api/v1/jobs/2").json()
    assert (stored["kind"], stored["spec"]["teacher"]["weights"]) == ("distill", weights)
    assert "Send another one like it" in get(client, "/jobs/2")
    assert weights in get(client, "/submit/distill?job=2")


@either_database
def test_the_architecture_of_known_weights_follows_them(client: TestClient, database: Database) -> None:
    weights = train(database, "Teacher")
    fields = form_with(**{"teacher.weights": weights, "teacher.architecture": "tiny_cnn"})
    redrawn = client.post("/submit/distill", data=fields | {"action": "update"}, headers=FORM)
    assert "Changed to fit: teacher.architecture is now small_cnn, as these weights are known" in redrawn.text
    checked = client.post("/submit/distill", data=fields | {"action": "check"}, headers=FORM)
    assert re.search(r'id="e-teacher.architecture"><p class="wrong">these weights are known with', checked.text)


@on_one
@pytest.mark.parametrize(
    ("teacher", "field", "says"),
    [
        ({"teacher": "job", "teacher.job": "9"}, "teacher.job", "there is no job 9"),
        ({"teacher": "entry", "teacher.entry": "9"}, "teacher.entry", "there is no entry 9"),
        ({"teacher.weights": "0" * 64}, "teacher.weights", "no weights with sha256"),
        ({"teacher.weights": ""}, "teacher.weights", "give the sha256"),
        ({"teacher": "job", "teacher.job": "0"}, "teacher.job", "[^<]*greater than or equal to 1"),
    ],
)
@pytest.mark.parametrize("action", ["send", "check"])
def test_what_the_service_says_of_a_teacher_is_beside_its_field(
    client: TestClient, teacher: dict[str, str], field: str, says: str, action: str
) -> None:
    answer = client.post("/submit/distill", data=form_with(**teacher, action=action), headers=FORM)
    assert answer.status_code == (422 if action == "send" else 200)
    assert re.search(rf'id="e-{field}"><p class="wrong">{says}', answer.text)
    assert client.get("/api/v1/jobs").json()["jobs"] == []


# --- pages that lead to it ---------------------------------------------------------------------------------------


@either_database
def test_a_training_leads_to_a_distillation_from_it(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        teacher = jobs.create(session, tiny_train_spec(name="Teacher", dataset="fashion_mnist")).id
    assert f'href="/submit/distill?teacher.job={teacher}"' in get(client, f"/jobs/{teacher}")
    form = get(client, f"/submit/distill?teacher.job={teacher}")
    assert 'name="teacher.job" value="1"' in form
    assert re.search(r'<option value="fashion_mnist" selected>', form)
    assert 'class="wrong"' not in form
    with database.writing() as session:
        jobs.request_cancel(session, teacher)
    assert "Distill from it" not in get(client, f"/jobs/{teacher}")
    assert re.search(r'id="e-teacher.job"><p class="wrong">job 1 is cancelled', get(client, "/submit?teacher.job=1"))


@on_one
def test_an_entry_leads_to_a_distillation_from_it(client: TestClient, database: Database) -> None:
    measure(database, train(database, "Teacher"), robust=100)
    assert 'href="/submit/distill?teacher.entry=1"' in get(client, "/entries/1")
    form = get(client, "/submit/distill?teacher.entry=1")
    assert 'name="teacher.entry" value="1"' in form
    assert "gklbench submit - --follow" in form
    files = [(f"cifar10/Linf/{name}.json", contents(LINF)) for name in ("Unheard_of", "Rice2020Overfitting")]
    robustbench.import_files(database, files)
    assert "Distill from it" not in get(client, "/entries/2", external=True)
    assert "Distill from it" in get(client, "/entries/3", external=True)
    assert re.search(r'<option value="cifar10" selected>', get(client, "/submit/distill?teacher.entry=3"))


# --- the page of a job -------------------------------------------------------------------------------------------


@either_database
def test_a_student_waits_for_its_teacher(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        teacher = jobs.create(session, tiny_train_spec(name="Teacher")).id
        waiting = jobs.create(session, student(teacher, name="Student")).id
    page = get(client, f"/jobs/{waiting}")
    assert f'It waits for its teacher, <a href="/jobs/{teacher}">job {teacher}</a>.' in page
    assert f'Learns from the network of <a href="/jobs/{teacher}">job {teacher}</a>.' in page
    page = get(client, f"/jobs/{teacher}")
    assert "Its students" in page
    assert f'<a href="/jobs/{waiting}">Job {waiting}</a>, Student' in page
    assert f"waits for job {teacher}" in get(client, "/jobs")
    with database.writing() as session:
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "too small")
    page = get(client, f"/jobs/{waiting}")
    assert "It waits for its teacher" not in page
    assert f'href="/submit/distill?job={waiting}"' in page, "change and send again"


@either_database
def test_a_student_shows_its_teacher_and_the_teacher_its_student(client: TestClient, database: Database) -> None:
    weights = train(database, "Teacher")
    number = learned(database, weights)
    page = re.sub(r"\s+", " ", get(client, f"/jobs/{number}"))
    assert 'Learns from <a href="/models/1">Teacher</a>, SmallCNN, trained by <a href="/jobs/1">job 1</a>' in page
    assert "It classifies 97.50 % of the test images correctly." in page
    assert weights in page
    assert f'<a href="/jobs/{number}">Job {number}</a>, Student' in get(client, "/jobs/1")
    assert "Its students" not in page


@on_one
def test_published_weights_teach(client: TestClient, database: Database) -> None:
    robustbench.import_files(database, [("cifar10/Linf/Zhang2019Theoretically.json", contents(LINF))])
    client.post("/api/v1/jobs", json=RECIPES["cifar10-ard"]().model_dump(mode="json"))
    page = get(client, "/jobs/1")
    assert '<a href="/entries/1">entry 1</a>' in page
    assert "Weights that RobustBench publishes." in page


@either_database
def test_curves_of_both_kinds_of_training_are_drawn_together(client: TestClient, database: Database) -> None:
    weights = train(database, "Teacher")
    number = learned(database, weights)
    with database.writing() as session:
        plain = jobs.create(session, tiny_train_spec()).id
    # The student is a TinyCNN, too.
    assert get(client, f"/jobs/{plain}?beside={number}")
    assert "do not fit beside" in get(client, f"/jobs/1?beside={number}", 422)
