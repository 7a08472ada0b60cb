"""Whether examples of one entry break another, asked for on the page of a comparison, in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from app import jobs
from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import Transfer
from app.evidence import transfers
from gkl.outcome import ExternalOutcome, TransferByAttack, TransferOutcome
from tests.app.boards.test_results import LEASE, measure, train
from tests.flow.test_browser import CHROMIUM, watched
from tests.flow.test_browser import browser as _browser_fixture
from tests.servers import served

browser = _browser_fixture

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Chromium on the PATH"),
]


@pytest.fixture
def page(browser: Browser, settings: Settings, database: Database) -> Iterator[Page]:
    """On a service with two entries of a board, and nothing that runs jobs."""
    for number, name in enumerate(("GKL", "TRADES with a name that a phone has to break")):
        measure(database, train(database, name), robust=200, certificate_sha256=str(number) * 64)
    with served(settings) as url, watched(browser, url) as page:
        yield page


def finish(database: Database) -> None:
    """As a worker ends the job, with counts that nothing has measured."""
    counts = {"examples": 130, "clean_correct": 120, "broken": 34}
    with database.writing() as session:
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        outcome = TransferOutcome(
            **counts,
            attacks=(TransferByAttack(attack="APGD-CE", **counts),),
            answers_vary=False,
            merged=ExternalOutcome(
                attack="transfer from GKL",
                examples=34,
                broken=0,
                robust_correct=200,
                base_sha256=transfers.certificate_of_target(session, claim.job_id),
                device="CPU",
                seconds=1.0,
            ),
            seconds=1.0,
        )
        assert transfers.record(session, jobs.lock_claimed(session, claim), outcome, None)
        jobs.succeed(session, claim)


def test_it_is_asked_for_with_a_button_and_read_on_a_phone(page: Page, database: Database) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto("/compare?entries=1&entries=2")
    buttons = page.get_by_role("button", name="Measure ")
    expect(buttons).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    buttons.first.click()
    expect(page.locator("#transfers")).to_contain_text("being measured")
    expect(buttons).to_have_count(1)
    with database.reading() as session:
        asked = session.scalars(select(Transfer)).one()
        assert (asked.source_id, asked.target_id) == (1, 2)
    finish(database)
    page.reload()
    finding = page.locator("#transfers .finding").first
    expect(finding).to_contain_text("Of GKL's 120 adversarial examples whose clean images TRADES with")
    expect(finding).to_contain_text("34 (28.3 %, 95 % interval 21.0 to 37.0)")
    page.get_by_text("By the attack that found them").click()
    expect(page.locator("#transfers tbody tr")).to_contain_text(["APGD-CE"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("link", name=f"job {asked.job_id}").click()
    expect(page.get_by_text("34 break it")).to_be_visible()
    page.get_by_role("link", name="Side by side").click()
    expect(page.locator("#transfers .finding").first).to_contain_text("Of GKL's 120")
