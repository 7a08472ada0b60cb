"""What people do on the pages, in a real browser, with the whole service running behind them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect, sync_playwright
from safetensors.numpy import save_file

from app.boards import robustbench
from app.cli.embedded import EmbeddedService
from app.core.settings import Settings
from app.db.database import Database
from gkl.answers import JobState, Scope
from gkl.client import Client
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_robustbench import LINF, contents
from tests.cluster import until
from tests.databases import either_database
from tests.flow.test_flow import running as _running_fixture
from tests.servers import served
from tests.specs import tiny_train_spec
from tests.tokens import token_of

running = _running_fixture
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")

pytestmark = [
    either_database,
    # Where changes are judged it has to be there.
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Chromium on the PATH"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    # Instead of 5 s, which are few on a machine with much else to do.
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def watched(browser: Browser, url: str) -> Iterator[Page]:
    """A page that fails the test on an error of a script, and on a request to anywhere else."""
    page = browser.new_page(base_url=url, viewport={"width": 1280, "height": 900})
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A refused form is answered with 422, a piece too large for a proxy with 413: the console tells both too.
        if message.type == "error" and not any(status in message.text for status in ("422", "413")):
            wrong.append(message.text)

    def check(request: Request) -> None:
        if not request.url.startswith((url, "data:")):
            wrong.append(f"asked {request.url}")

    page.on("console", note)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", check)
    page.set_default_timeout(30_000)
    yield page
    page.close()
    assert wrong == []


@pytest.fixture
def page(browser: Browser, running: EmbeddedService) -> Iterator[Page]:
    """On the whole service."""
    with watched(browser, running.url) as page:
        yield page


@pytest.fixture
def board_page(browser: Browser, settings: Settings, board: None) -> Iterator[Page]:
    """On a service that has a board and nothing to run."""
    with served(settings) as url, watched(browser, url) as page:
        yield page


@pytest.fixture
def board(database: Database) -> None:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()
    ]
    robustbench.import_files(database, files)


@pytest.fixture
def guarded_url(settings: Settings) -> Iterator[str]:
    """The API and the pages of a service that asks for tokens."""
    with served(settings.model_copy(update={"access": "tokens"})) as url:
        yield url


def names(page: Page) -> Locator:
    return page.locator(".board tbody td:nth-child(2) > a")


def test_a_board_is_sorted_filtered_searched_and_shared(board_page: Page, browser: Browser) -> None:
    page = board_page
    page.goto("/")
    page.get_by_role("link", name="CIFAR-10, Linf 8/255").click()
    expect(names(page).first).to_have_text("First")
    page.get_by_role("columnheader", name="Clean").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Clean")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("columnheader", name="Clean").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Clean")).to_have_attribute("aria-sort", "ascending")
    expect(names(page).first).to_have_text("Tied_lower")
    page.locator("select[name=venue]").select_option("NeurIPS")
    page.wait_for_url("**venue=NeurIPS**")
    expect(names(page)).to_have_text(["Tied_lower"])
    assert "q=" not in page.url
    assert "columns=" not in page.url
    page.get_by_role("link", name="Show all").click()
    expect(names(page).first).to_have_text("First")
    page.get_by_label("Search").fill("xcit")
    page.get_by_label("Search").press("Enter")
    page.wait_for_url("**q=xcit**")
    expect(names(page)).to_have_text(["Extra"])
    # The same address shows the same without scripts.
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(page.url)
    expect(names(plain)).to_have_text(["Extra"])
    plain.locator("select[name=provenance]").select_option("reported")
    plain.get_by_label("Search").fill("")
    plain.get_by_role("button", name="Show", exact=True).click()
    plain.wait_for_url("**provenance=reported**")
    expect(names(plain)).to_have_text(["Claimed"])
    plain.context.close()


def test_the_filters_say_what_is_shown_after_going_back(board_page: Page) -> None:
    page = board_page
    page.goto("/leaderboards/cifar10/Linf")
    page.get_by_label("Search").fill("xcit")
    page.get_by_label("Search").press("Enter")
    page.wait_for_url("**q=xcit**")
    page.locator("select[name=venue]").select_option(index=1)
    page.wait_for_url("**venue=**")
    page.go_back()
    page.wait_for_url(lambda url: "venue=" not in url)
    expect(page.locator("select[name=venue]")).to_have_value("")
    expect(page.get_by_label("Search")).to_have_value("xcit")
    page.go_back()
    page.wait_for_url(lambda url: "q=" not in url)
    expect(page.get_by_label("Search")).to_have_value("")
    page.goto("/jobs")
    page.locator("select[name=state]").select_option("failed")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**state=failed**")
    page.go_back()
    page.wait_for_url("**/jobs")
    expect(page.locator("select[name=state]")).to_have_value("")


def test_what_was_typed_outlives_the_login(browser: Browser, guarded_url: str, database: Database) -> None:
    context = browser.new_context(base_url=guarded_url)
    page, secret = context.new_page(), token_of(database, "Ada")

    def log_in(page: Page) -> None:
        page.goto("/login")
        page.get_by_label("Token").fill(secret)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("nav")).to_contain_text("Ada")

    log_in(page)
    page.goto("/submit/train")
    page.locator("[name=name]").fill("Typed for half an hour")
    context.clear_cookies()
    # A choice that cannot redraw the form leaves it as it is, and says why.
    page.get_by_role("combobox", name="Loss").select_option("trades")
    expect(page.locator("#problems")).to_contain_text("log in at /login")
    expect(page.locator("[name=name]")).to_have_value("Typed for half an hour")
    page.get_by_role("button", name="Send the job").click()
    expect(page.locator("dl")).to_contain_text("Typed for half an hour")
    with context.expect_page() as opened:
        page.get_by_role("main").get_by_role("link", name="Log in").click()
    log_in(opened.value)
    page.get_by_role("button", name="Send it again").click()
    expect(page.locator(".lead")).to_contain_text("does not belong to this login")
    page.get_by_role("button", name="Back to the form").click()
    expect(page.locator("[name=name]")).to_have_value("Typed for half an hour")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    context.close()


def test_columns_charts_and_downloads(board_page: Page, tmp_path: Path) -> None:
    page = board_page
    page.goto("/leaderboards/cifar10/Linf")
    page.get_by_text("Columns").click()
    # Not check(): it reads the box again, and the click has taken the page to another address.
    page.get_by_role("checkbox", name="Reported").click()
    page.wait_for_url("**columns=reported**")
    expect(page.get_by_role("columnheader", name="Reported")).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="RobustBench JSON").click()
    waiting.value.save_as(tmp_path / "view.json")
    assert set(json.loads((tmp_path / "view.json").read_text())) == set(ENTRIES)
    dots = page.locator(".scatter").first.locator("a circle")
    assert dots.count() == len(ENTRIES) - 1
    page.get_by_role("link", name="First: 70.00 % robust").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("First")


def test_a_phone_shows_all_of_a_board_without_scrolling_sideways(board_page: Page) -> None:
    page = board_page
    page.set_viewport_size({"width": 390, "height": 800})
    submit = ("/submit", "/submit/train", "/submit/evaluate", "/submit/import")
    for path in ("/", "/leaderboards/cifar10/Linf", "/entries/1", *submit, "/jobs", "/workers"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.goto("/leaderboards/cifar10/Linf")
    expect(page.locator(".board tbody tr").first).to_contain_text("WideResNet-28-10")


def test_a_job_is_sent_with_the_form_watched_and_its_pictures_looked_at(page: Page, running: EmbeddedService) -> None:
    page.goto("/submit/train")
    page.get_by_label("Recipe").select_option("digits-trades")
    page.get_by_role("button", name="Fill in").click()
    expect(page.get_by_label("kl weight")).to_be_visible()
    # Another data set brings its own budget; the way back does too.
    for dataset, epsilon in (("cifar10", "8/255"), ("digits", "0.2")):
        page.locator("[name='dataset']").select_option(dataset)
        expect(page.locator("[name='threat_model.epsilon']")).to_have_value(epsilon)
        expect(page.locator("[name='evaluation.threat_model.epsilon']")).to_have_value(epsilon)
        expect(page.locator("#problems")).to_contain_text("threat_model.epsilon is now")
    # A choice redraws the form; what was typed stays.
    page.locator("[name=name]").fill("From the form")
    held: list[Route] = []
    page.route("**/submit/train", lambda route: held.append(route))  # noqa: PLW0108 - it must be a Python function
    with page.expect_request("**/submit/train"):
        page.get_by_role("combobox", name="Loss").select_option("gkl")
    # Also what is typed while the service draws it.
    page.locator("[name=epochs]").fill("7")
    held[0].continue_()
    page.unroute("**/submit/train")
    expect(page.get_by_label("gamma", exact=False).first).to_be_visible()
    expect(page.locator("[name=name]")).to_have_value("From the form")
    expect(page.locator("[name=epochs]")).to_have_value("7")
    # An error stands beside its field, and the commands wait for it to be mended.
    page.locator("[name=epochs]").fill("0")
    expect(page.locator("#e-epochs")).to_contain_text("greater than or equal to 1")
    page.get_by_role("button", name="Send the job").click()
    expect(page.get_by_role("alert")).to_contain_text("Not sent.")
    expect(page.locator("#e-epochs")).to_contain_text("greater than or equal to 1")
    page.locator("[name=epochs]").fill("2")
    page.locator("[name=architecture]").select_option("tiny_cnn")
    page.locator("[name='threat_model.epsilon']").fill("0.9")
    page.locator("[name='evaluation.threat_model.epsilon']").fill("0.9")
    expect(page.locator("#commands")).to_contain_text('"epochs": 2')
    expect(page.locator("#commands")).to_contain_text("gklbench submit - --follow")
    page.get_by_label("Submitter").fill("Ada")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Job 1: From the form")
    # It goes on by itself: nobody loads the page again.
    expect(page.locator(".lead .state")).to_have_text("succeeded", timeout=120_000)
    page.get_by_role("link", name="job 2").click()
    expect(page.locator(".lead .state")).to_have_text("succeeded", timeout=120_000)
    page.get_by_role("link", name="From the form").click()
    page.get_by_role("link", name="1", exact=True).click()
    expect(page.locator(".provenance").first).to_have_text("verified here")
    pictures = page.locator(".pictures img")
    expect(pictures.first).to_be_visible()
    pictures.last.scroll_into_view_if_needed()
    # Not wait_for_function: it evaluates text in the page, which the page's policy forbids.
    widths = "[...document.querySelectorAll('.pictures img')].map((img) => img.naturalWidth)"
    until(lambda: set(page.evaluate(widths)) == {8}, 15)
    page.get_by_role("link", name="broken points").click()
    label = page.locator("select[name=label] option").nth(1).inner_text()
    page.locator("select[name=label]").select_option(label)
    page.wait_for_url(f"**label={label}**")
    shown = page.locator(".pictures strong:first-child").all_inner_texts()
    assert set(shown) == {label}


def test_a_file_of_weights_is_sent_with_the_page(page: Page, running: EmbeddedService, tmp_path: Path) -> None:
    from gkl.run_context import RunContext
    from gkl.training import train
    from tests.specs import NO_FILES

    train(
        tiny_train_spec(epochs=1, architecture="tiny_cnn"),
        RunContext(directory=tmp_path, datasets_dir=NO_FILES, device="cpu"),
    )
    page.goto("/submit/evaluate")
    (tmp_path / "page.html").write_text("<!doctype html>")
    page.get_by_label("File of weights").set_input_files(tmp_path / "page.html")
    expect(page.get_by_role("status")).to_contain_text("is an HTML page, not weights")
    page.get_by_label("File of weights").set_input_files(tmp_path / "weights.safetensors")
    expect(page.get_by_role("status")).to_contain_text("Sent: ")
    sha256 = page.locator("[name=weights]").input_value()
    assert len(sha256) == 64
    page.locator("[name=name]").fill("Sent")
    page.locator("[name=architecture]").select_option("tiny_cnn")
    page.locator("[name='evaluation.protocol']").select_option("clean")
    page.get_by_role("combobox", name="threat model").select_option("none")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    expect(page.locator(".lead .state")).to_have_text("succeeded", timeout=120_000)
    with Client(running.url) as client:
        assert client.job(1).state is JobState.SUCCEEDED
        assert client.job(1).weights_sha256 == sha256


@pytest.mark.usefixtures("board")
@pytest.mark.long
def test_somebody_logs_in_acts_and_logs_out(
    browser: Browser, guarded_url: str, database: Database, tmp_path: Path
) -> None:
    context = browser.new_context(base_url=guarded_url)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # What the policy forbids, a browser tells there.
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto("/submit/train")
    expect(page.get_by_role("button", name="Send the job")).to_have_count(0)
    page.get_by_role("link", name="Log in").first.click()
    page.get_by_label("Token").fill(token_of(database, "Ada", Scope.ADMIN))
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("nav")).to_contain_text("Ada")
    page.goto("/submit/train")
    # A choice redraws the form by a script, with the form's own token.
    page.get_by_role("combobox", name="Loss").select_option("trades")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    expect(page.locator(".lead")).to_contain_text("by Ada")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".lead .state")).to_have_text("cancelled")
    page.goto("/submit/evaluate")
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "weights.safetensors")
    page.get_by_label("File of weights").set_input_files(tmp_path / "weights.safetensors")
    expect(page.get_by_role("status")).to_contain_text("Sent: ")
    page.goto("/entries/1")
    page.get_by_text("Withdraw this entry").click()
    page.get_by_label("Reason").fill("It was a mistake.")
    page.get_by_role("button", name="Withdraw").click()
    expect(page.get_by_text("Withdrawn", exact=True)).to_be_visible()
    page.get_by_text("Undo the withdrawal").click()
    page.get_by_role("button", name="Restore its rank").click()
    expect(page.get_by_text("Withdrawn", exact=True)).to_have_count(0)
    page.get_by_role("link", name="Audit").click()
    for action in ("login", "job.create", "job.cancel", "weights.send", "entry.withdraw", "entry.restore"):
        expect(page.get_by_role("cell", name=action, exact=True)).to_be_visible()
    page.goto("/api")
    expect(page.get_by_text("Send a job", exact=True)).to_be_visible()
    page.goto("/")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    context.close()
    assert wrong == []
