"""How somebody sends a job on the pages, in a real browser: what they are asked, shown, and told before it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app.core.settings import Settings
from app.db.database import Database
from app.jobs import workers
from gkl.answers import LoadView
from tests.app.boards.test_results import train
from tests.app.jobs.test_run_time import trained
from tests.databases import either_database
from tests.flow.test_browser import CHROMIUM, watched
from tests.flow.test_browser import browser as _browser_fixture
from tests.flow.test_browser import pytestmark as _of_a_browser
from tests.servers import served
from tests.specs import tiny_train_spec
from tests.weights import weights_of

browser = _browser_fixture
pytestmark = [each for each in _of_a_browser if each is not either_database] + [
    # The pages are the same on both.
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
]
assert CHROMIUM is None or Path(CHROMIUM).exists()


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """The API and the pages: nothing is run here."""
    with served(settings) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with watched(browser, url) as page:
        yield page


def fields_that_show(page: Page) -> set[str]:
    return {
        str(each.get_attribute("name"))
        for each in page.locator("form[data-spec] .field [name]").all()
        if each.is_visible()
    }


def test_the_choices_lead_to_the_forms_without_scripts_too(browser: Browser, page: Page, url: str) -> None:
    plain = browser.new_context(java_script_enabled=False, base_url=url).new_page()
    for each in (page, plain):
        for choice, heading in (
            ("Evaluate weights", "Evaluate weights"),
            ("Train a network", "Train and evaluate"),
            ("Distill a network", "Distill and evaluate"),
            ("Import published figures", "Import published figures"),
        ):
            each.goto("/")
            each.get_by_role("navigation", name="Main").get_by_role("link", name="Submit").click()
            expect(each.get_by_role("heading", level=1)).to_have_text("What do you want to send?")
            each.locator(".choices").get_by_role("link", name=choice).click()
            expect(each.get_by_role("heading", level=1)).to_have_text(heading)
    plain.context.close()


def test_the_teachers_architecture_follows_its_file(page: Page, database: Database) -> None:
    weights = train(database, "Teacher")
    page.goto("/submit/distill")
    architecture = page.locator("select[name='teacher.architecture']")
    architecture.select_option("tiny_cnn")
    page.locator("[name='teacher.weights']").fill(weights)
    expect(page.get_by_role("status").filter(has_text="teacher.architecture is now small_cnn")).to_be_visible()
    expect(architecture).to_have_value("small_cnn")
    # What an objective does not take goes, and comes back with another one.
    page.locator("select[name='objective']").select_option("ce")
    expect(page.locator("[name='teacher.weights']")).to_have_count(0)
    page.locator("select[name='objective']").select_option("kd")
    expect(architecture).to_have_value("small_cnn")


def test_a_link_fills_the_form_in(page: Page) -> None:
    page.goto("/submit?weights=robustbench&dataset=cifar10&architecture=cifar10/Linf/Carmon2019Unlabeled&name=Carmon")
    expect(page.get_by_role("heading", level=1)).to_have_text("Evaluate weights")
    for name, value in (
        ("name", "Carmon"),
        ("dataset", "cifar10"),
        ("architecture", "cifar10/Linf/Carmon2019Unlabeled"),
        ("weights", "robustbench"),
        ("evaluation.threat_model.epsilon", "8/255"),
    ):
        expect(page.locator(f"[name='{name}']")).to_have_value(value)


def test_what_few_set_is_folded_and_opens_where_it_is_wrong(page: Page) -> None:
    page.goto("/submit/evaluate")
    shown = {"name", "dataset", "architecture", "weights", "evaluation.protocol", "evaluation.num_points"}
    threat_model = {"evaluation.threat_model.norm", "evaluation.threat_model.epsilon"}
    assert fields_that_show(page) == shown | threat_model | {"submitter"}
    expect(page.get_by_label("Points to attack")).to_be_visible()
    page.locator("#more-evaluation > summary").click()
    page.locator("[name='evaluation.seed']").fill("minus one")
    page.locator("[name='dataset']").select_option("cifar10")
    expect(page.locator("#problems")).to_contain_text("is now 8/255")
    # What was opened stays open when a choice redraws the form.
    expect(page.locator("[name='evaluation.seed']")).to_be_visible()
    page.locator("#more-evaluation > summary").click()
    expect(page.locator("[name='evaluation.seed']")).to_be_hidden()
    page.get_by_role("button", name="Send the job").click()
    expect(page.get_by_role("alert")).to_contain_text("Not sent.")
    expect(page.locator("[id='e-evaluation.seed']")).to_be_visible()


def test_an_architecture_is_searched(page: Page) -> None:
    page.goto("/submit/evaluate?dataset=cifar10")
    options = page.locator("[name=architecture] option")
    expect(page.locator("[name=architecture] optgroup").first).to_have_attribute("label", "To train and evaluate")
    before, all_of_them = page.locator("[name=architecture]").input_value(), options.count()
    assert all_of_them > 100
    box = page.get_by_label("Search Architecture")
    box.fill("l2 wang2023 70-16")
    expect(options).to_have_count(1)
    box.press("Enter")
    expect(page.locator("[name=architecture]")).to_have_value("cifar10/L2/Wang2023Better_WRN-70-16")
    expect(options).to_have_count(all_of_them)
    # Left without a choice, what was chosen stays.
    box.fill("carmon")
    expect(options).to_have_count(1)
    page.locator("[name=name]").click()
    expect(page.locator("[name=architecture]")).to_have_value("cifar10/L2/Wang2023Better_WRN-70-16")
    assert before != "cifar10/L2/Wang2023Better_WRN-70-16"


def test_weights_of_another_network_are_told_before_they_are_sent(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_of("small_cnn", "digits"))
    page.goto("/submit/evaluate")
    page.locator("[name=name]").fill("Mine")
    page.locator("[name=architecture]").select_option("tiny_cnn")
    page.get_by_label("File of weights").set_input_files(file)
    expect(page.locator("#e-weights")).to_contain_text("It fits small_cnn")
    page.locator("[name=architecture]").select_option("small_cnn")
    expect(page.locator("#e-weights")).to_have_text("")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    # Nothing runs here, and the job says so.
    expect(page.locator("main")).to_contain_text("No worker is running")


def test_what_no_worker_has_and_how_long_it_takes_is_told(page: Page, database: Database) -> None:
    spec = tiny_train_spec(evaluation=None)
    trained(database, spec, 20.0, 20.0)
    page.goto("/submit/train")
    expect(page.locator("#outlook")).to_contain_text("No worker is running")
    with database.writing() as session:
        seen = workers.Seen(datasets=["digits"], published=[])
        workers.record_heartbeat(session, "h/1", host="h", device="CPU", seen=seen)
    page.locator("[name=dataset]").select_option("cifar10")
    expect(page.locator("#n-dataset")).to_contain_text("No running worker has the files of CIFAR-10")
    page.goto("/submit/train?job=1")
    expect(page.locator("#outlook")).to_contain_text("from 1 earlier job")
    expect(page.locator("#n-dataset")).to_have_text("")


def test_the_same_job_is_copied(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page.goto("/submit/train")
    page.get_by_role("button", name="Copy curl").click()
    expect(page.get_by_role("button", name="Copy curl")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl {url}/api/v1/jobs --json")
    for title in ("gklbench", "curl", "JSON"):
        expect(page.locator("#commands")).to_contain_text(title)


def test_the_workers_page_shows_the_queue_the_load_and_what_each_has(page: Page, database: Database) -> None:
    load = LoadView(is_gpu=True, busy=0.37, memory_bytes=12 * 10**9, memory_total_bytes=144 * 10**9)
    with database.writing() as session:
        seen = workers.Seen(datasets=["digits", "cifar10"], published=["cifar10/Linf/Carmon2019Unlabeled"], load=load)
        workers.record_heartbeat(session, "h/1", host="h", device="NVIDIA H200, 143771 MiB", seen=seen)
    from app import jobs

    with database.writing() as session:
        for submitter in ("Ada", "Ada", "Bob"):
            jobs.create(session, tiny_train_spec(), submitter=submitter)
        jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
    page.goto("/workers")
    expect(page.locator(".queue tbody tr").first).to_contain_text("Ada")
    expect(page.locator(".queue tbody tr").first.locator("td")).to_have_text(["Ada", "1", "1"])
    expect(page.locator(".load")).to_contain_text("GPU 37 %")
    expect(page.locator(".load")).to_contain_text("12 GB of 144 GB")
    expect(page.locator("main")).to_contain_text("Digits, CIFAR-10")
    expect(page.get_by_text("published weights of 1 network")).to_be_visible()
