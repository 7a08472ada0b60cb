"""The page of a job in a real browser: the cursor of its curves, what lies beside them, what it says while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, Page, expect

from app import jobs
from app.boards import results
from app.core.settings import Settings
from app.db.database import Database
from app.jobs import Claim
from gkl.errors import FailureCode
from gkl.outcome import AttackSoFar, EpochFinished, PointsSoFar, Progress
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel, TradesObjective, TrainSpec
from tests.app.boards.test_results import train
from tests.flow.test_browser import browser as _browser_fixture
from tests.flow.test_browser import pytestmark as _pytestmark
from tests.flow.test_browser import watched
from tests.servers import served
from tests.specs import tiny_train_spec

browser = _browser_fixture
pytestmark = _pytestmark

LONG = "a_name_without_any_space_as_files_have_them_" * 2
EPOCHS = 5


@pytest.fixture
def page(browser: Browser, settings: Settings) -> Iterator[Page]:
    """On a service whose jobs this test runs itself."""
    with served(settings) as url, watched(browser, url) as page:
        yield page


def begun(database: Database, spec: TrainSpec | EvaluateSpec) -> Claim:
    with database.writing() as session:
        jobs.create(session, spec)
        claim = jobs.claim(session, worker=f"{LONG}/17", lease=timedelta(minutes=10))
        assert claim is not None
        return claim


def trained(database: Database, **changes: object) -> int:
    """A training whose epsilon rises to 0.1 and whose loss falls from 1."""
    spec = tiny_train_spec(epochs=EPOCHS, evaluation=None, **changes)
    claim = begun(database, spec)
    with database.writing() as session:
        for number in range(1, EPOCHS + 1):
            epoch = EpochFinished(
                epoch=number,
                epochs=EPOCHS,
                seconds=1.0,
                metrics={
                    "loss": 1 / number,
                    "clean_accuracy": number / 10,
                    "adversarial_accuracy": number / 20,
                    "epsilon": number / 50,
                    "learning_rate": 0.1,
                    "loss_natural": 2 / number,
                    "loss_kl": 0.001 * number,
                },
            )
            jobs.record_event(session, claim, epoch)
        results.record_model(session, jobs.succeed(session, claim), spec, f"{claim.job_id:064x}")
    return claim.job_id


def values(page: Page) -> list[str]:
    """Accuracies, loss, its parts, learning rate, epsilon: what is shown at the cursor."""
    return page.locator(".curves .value").all_inner_texts()


AT_3 = ["30.0 %", "15.0 %", "0.3333", "0.6667", "0.003", "0.1", "0.06"]
AT_4 = ["40.0 %", "20.0 %", "0.25", "0.5", "0.004", "0.1", "0.08"]
AT_5 = ["50.0 %", "25.0 %", "0.2", "0.4", "0.005", "0.1", "0.1"]


def test_one_cursor_shows_all_curves_at_an_epoch(page: Page, browser: Browser, database: Database) -> None:
    page.goto(f"/jobs/{trained(database)}")
    assert values(page) == AT_5
    plot = page.locator(".plot svg").nth(3)
    box = plot.bounding_box()
    assert box is not None
    main = page.locator("main").bounding_box()
    assert main is not None
    assert box["width"] > 0.7 * main["width"], "the page's width is used"
    # The third of five epochs is in the middle.
    plot.hover(position={"x": box["width"] * 0.52, "y": box["height"] / 2})
    expect(page.locator(".curves output")).to_have_text("3")
    assert values(page) == AT_3
    lines = page.locator(".at")
    assert {lines.nth(place).get_attribute("x1") for place in range(lines.count())} == {"500"}
    page.locator("h1").hover()
    expect(page.locator(".curves output")).to_have_text("5")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert values(page) == AT_4
    said = "epoch 4: clean 40.0 %, adversarial 20.0 %, loss 0.25, CE, natural 0.5, KL 0.004"
    assert (slider.get_attribute("aria-valuetext") or "").startswith(said)
    page.wait_for_url("**epoch=4")
    plot.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    page.wait_for_url("**epoch=3")
    page.reload()
    assert values(page) == AT_3, "the address says where the cursor stands"
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    page.wait_for_url(lambda url: "epoch" not in url)
    # The same without scripts.
    plain = browser.new_context(java_script_enabled=False, base_url=page.url).new_page()
    plain.goto(page.url)
    plain.get_by_role("slider").focus()
    plain.keyboard.press("ArrowLeft")
    plain.locator(".curves").get_by_role("button", name="Show").click()
    plain.wait_for_url("**epoch=4")
    assert values(plain) == AT_4
    plain.context.close()


def test_other_trainings_are_laid_over_it_with_what_differs(page: Page, database: Database) -> None:
    other = trained(database, name=LONG, objective=TradesObjective(loss="trades"))
    same = trained(database, name="Same")
    page.goto(f"/jobs/{trained(database)}")
    expect(page.locator(".compare")).to_have_count(0)
    page.get_by_role("checkbox", name=f"job {other}").check()
    page.get_by_role("checkbox", name=f"job {same}").check()
    page.locator(".beside").get_by_role("button", name="Show").click()
    page.wait_for_url(f"**beside={same}&beside={other}")
    expect(page.locator(".runs li")).to_have_text(["this job", f"job {same}, Same", f"job {other}, {LONG}"])
    for run in range(3):
        expect(page.locator(f"polyline.run-{run}")).to_have_count(len(AT_5))
    differing = page.locator(".compare tbody tr", has_text="objective.loss")
    expect(differing.locator("td")).to_have_text(["gkl", "gkl", "trades"])
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**beside={same}&beside={other}&epoch=4")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_running_evaluation_shows_its_points_and_speaks_each_tenth(page: Page, database: Database) -> None:
    weights = train(database, "Weights")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    claim = begun(
        database,
        EvaluateSpec(name=LONG, dataset="digits", architecture="small_cnn", weights=weights, evaluation=evaluation),
    )

    def tell(fraction: float, done: int) -> None:
        attack = AttackSoFar(attack="APGD-CE", points=350, done=done, broken=done // 2)
        points = PointsSoFar(points=360, clean_done=360, clean_correct=350, attacks=(attack,))
        progress = Progress(stage="APGD-CE", fraction=fraction, seconds_left=725, points=points)
        with database.writing() as session:
            jobs.heartbeat(session, claim, lease=timedelta(minutes=10), progress=progress)

    tell(0.11, 100)
    page.goto(f"/jobs/{claim.job_id}")
    expect(page.locator(".now")).to_contain_text("about 12 minutes left (by its own progress): it should end at")
    falls = page.locator(".survivors tbody tr")
    expect(falls.nth(1)).to_contain_text("APGD-CE, so far")
    expect(falls.nth(1).locator("td").nth(1)).to_have_text("300")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    spoken = page.get_by_role("status")
    expect(spoken).to_have_attribute("aria-live", "polite")
    page.evaluate(
        "window.said = []; const live = document.querySelector('[aria-live]');"
        "new MutationObserver(() => said.push(live.textContent)).observe(live, { childList: true })"
    )
    tell(0.15, 200)
    expect(falls.nth(1).locator("td").nth(1)).to_have_text("250")
    assert page.evaluate("said") == [], "a tenth is enough"
    tell(0.21, 240)
    expect(spoken).to_have_text(f"Job {claim.job_id} is running: 20 % done, about 12 minutes left.")
    with database.writing() as session:
        jobs.fail(session, claim, FailureCode.WORKER_LOST, LONG)
    expect(spoken).to_have_text(f"Job {claim.job_id} has failed.")
    assert len(page.evaluate("said")) == 2, "and nothing else was said"
    expect(page.locator(".way-out")).to_contain_text("Its workers were lost")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_failed_job_is_changed_and_sent_again(page: Page, database: Database) -> None:
    claim = begun(database, tiny_train_spec(batch_size=123))
    with database.writing() as session:
        jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "the GPU is too small for batch_size 123")
    page.goto(f"/jobs/{claim.job_id}")
    ways = page.locator(".way-out")
    expect(ways).to_contain_text("The GPU is too small for batch_size 123.")
    expect(ways.locator(".main")).to_have_text("Change and send again")
    page.get_by_role("link", name="Change and send again").click()
    expect(page.locator("[name=batch_size]")).to_have_value("123")
    page.locator("details:has([name=batch_size]) > summary").click()
    page.locator("[name=batch_size]").fill("64")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url(f"**/jobs/{claim.job_id + 1}")
    # It has succeeded or waits: nothing of the failure is on its page.
    expect(page.locator(".way-out")).to_have_count(0)


def test_the_cursor_stays_where_it_is_while_epochs_come(page: Page, database: Database) -> None:
    claim = begun(database, tiny_train_spec(epochs=EPOCHS, evaluation=None))

    def tell(number: int) -> None:
        epoch = EpochFinished(
            epoch=number,
            epochs=EPOCHS,
            seconds=1.0,
            metrics={
                "loss": 1 / number,
                "clean_accuracy": number / 10,
                "adversarial_accuracy": number / 20,
                "epsilon": 0.1,
                "learning_rate": 0.1,
            },
        )
        with database.writing() as session:
            jobs.record_event(session, claim, epoch)

    tell(1)
    page.goto(f"/jobs/{claim.job_id}")
    assert values(page)[:2] == ["10.0 %", "5.0 %"]
    tell(2)
    tell(3)
    expect(page.locator(".curves output")).to_have_text("3")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**epoch=1")
    page.locator("h1").click()
    slider.evaluate("slider => slider.blur()")
    tell(4)
    expect(page.locator("polyline.clean")).to_have_attribute("points", "0.0,90.0 250.0,80.0 500.0,70.0 750.0,60.0")
    expect(page.locator(".curves output")).to_have_text("1")
    assert values(page)[:2] == ["10.0 %", "5.0 %"]
