"""Boards in a real browser: the chart, the search while one types, the compare bar, the way from an entry to a job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from app.boards import robustbench
from app.db.database import Database
from app.db.tables import Job
from tests.app.boards.test_robustbench import LINF, contents
from tests.flow import test_browser
from tests.flow.test_browser import names

browser, board_page = test_browser.browser, test_browser.board_page
pytestmark = test_browser.pytestmark

PATH = "/leaderboards/cifar10/Linf"
ENTRIES: dict[str, dict[str, Any]] = {
    **{
        f"Usual{number:02}": {"clean_acc": f"{92 - number / 4:.2f}", "autoattack_acc": f"{50 + number / 2:.2f}"}
        for number in range(30)
    },
    "Carmon2019Unlabeled": {"clean_acc": "89.69", "autoattack_acc": "70.00", "additional_data": True},
    "Hollow": {"clean_acc": "95.00", "autoattack_acc": "60.00", "architecture": "XCiT-S12"},
    "Generated": {"clean_acc": "94.00", "autoattack_acc": "65.00", "footnote": "It uses synthetic images."},
    "Far": {"clean_acc": "96.00", "autoattack_acc": "1.00"},
}


@pytest.fixture
def board(database: Database) -> None:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()
    ]
    robustbench.import_files(database, files)


@pytest.fixture
def plain_page(browser: Browser, board_page: Page) -> Iterator[Page]:
    """On the same service, without scripts."""
    board_page.goto("/")
    context = browser.new_context(java_script_enabled=False, base_url=board_page.url)
    yield context.new_page()
    context.close()


def shown_in_chart(page: Page) -> set[str]:
    labels = page.locator(".scatter").first.locator("a title").all_text_contents()
    return {label.partition(":")[0] for label in labels}


def test_the_chart_looks_where_most_entries_are_and_names_each(board_page: Page) -> None:
    page = board_page
    page.goto(PATH)
    # First: above the table.
    chart = page.locator(".scatter").first
    for title in ("Robust accuracy", "Clean accuracy"):
        expect(chart.get_by_text(title, exact=True)).to_be_visible()
    box, table = chart.bounding_box(), page.locator(".board").bounding_box()
    assert box is not None
    assert table is not None
    assert box["y"] + box["height"] <= table["y"]
    assert shown_in_chart(page) == ENTRIES.keys() - {"Far"}
    for words in ("extra real images", "generated images too", "hollow: number of parameters not known"):
        expect(page.locator(".scatter-key").get_by_text(words)).to_be_visible()
    page.get_by_role("link", name="Draw all 34").click()
    page.wait_for_url("**chart=all**")
    assert shown_in_chart(page) == ENTRIES.keys()
    # It stays so in another order and after a search.
    page.get_by_role("columnheader", name="Clean").get_by_role("link").click()
    page.wait_for_url("**sort=clean**")
    page.get_by_label("Search").fill("a")
    page.get_by_label("Search").press("Enter")
    page.wait_for_url("**q=a**")
    assert "chart=all" in page.url
    assert "Far" in shown_in_chart(page)
    page.get_by_role("link", name="Focus on where most entries are").click()
    page.wait_for_url(lambda url: "chart=" not in url)
    assert "Far" not in shown_in_chart(page)


def test_a_dot_says_its_name_to_the_mouse_and_to_the_keyboard(board_page: Page) -> None:
    page = board_page
    page.goto(PATH)
    chart, tip = page.locator(".scatter").first, page.locator(".tip")
    chart.locator("circle.unsized").hover()
    expect(tip).to_have_text("Hollow: 60.00 % robust, 95.00 % clean")
    page.mouse.move(1, 1)
    expect(tip).to_be_hidden()
    # One stop of the tabulator for all dots, on the best; arrow keys lead to its neighbours.
    page.locator(".downloads a").last.focus()
    page.keyboard.press("Tab")
    expect(tip).to_have_text("Carmon2019Unlabeled: 70.00 % robust, 89.69 % clean, 38.1M parameters")
    page.keyboard.press("ArrowDown")
    expect(tip).to_have_text("Generated: 65.00 % robust, 94.00 % clean, 36.5M parameters")
    page.keyboard.press("ArrowRight")
    expect(tip).to_have_text("Hollow: 60.00 % robust, 95.00 % clean")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Hollow")


def test_without_scripts_a_click_draws_all_and_opens_an_entry(plain_page: Page) -> None:
    page = plain_page
    page.goto(PATH)
    assert "Far" not in shown_in_chart(page)
    page.get_by_role("link", name="Draw all 34").click()
    page.get_by_role("link", name="Far: 1.00 % robust, 96.00 % clean").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Far")


def test_a_board_is_searched_while_one_types(board_page: Page) -> None:
    page = board_page
    page.goto(PATH)
    page.get_by_label("Compare Usual29").check()
    search = page.get_by_label("Search")
    search.press_sequentially("hollow")
    expect(names(page)).to_have_text(["Hollow"])
    expect(search).to_be_focused()
    expect(search).to_have_value("hollow")
    expect(page.locator("#announced")).to_have_text("1 of 34 entries")
    assert shown_in_chart(page) == {"Hollow"}
    page.wait_for_url("**q=hollow")
    # Leaving the field loads nothing; what was ticked before is still chosen.
    search.blur()
    page.get_by_label("Compare Hollow").check()
    expect(page.locator(".chosen")).to_have_text("Usual29, Hollow")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?**")
    expect(page.get_by_role("columnheader", name="Hollow")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Usual29")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Search")).to_have_value("hollow")
    page.get_by_label("Search").fill("")
    expect(names(page)).to_have_count(34)
    page.wait_for_url(lambda url: "q=" not in url)


@pytest.mark.parametrize("width", [390, 1440])
def test_the_header_and_the_compare_bar_stay_in_sight(board_page: Page, width: int) -> None:
    page = board_page
    page.set_viewport_size({"width": width, "height": 700})
    page.goto(PATH)
    bar, header = page.locator(".compare-bar"), page.get_by_role("columnheader", name="Model")
    expect(bar).to_be_hidden()
    page.get_by_label("Compare Usual00").check()
    compare = bar.get_by_role("button", name="Compare")
    expect(compare).to_be_disabled()
    place = header.bounding_box()
    assert place is not None
    assert place["y"] == pytest.approx(0, abs=1)
    page.get_by_label("Compare Carmon2019Unlabeled").check()
    page.evaluate("scrollTo(0, 0)")
    expect(compare).to_be_in_viewport(ratio=1)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(compare).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    compare.click()
    page.wait_for_url(re.compile(r"/compare\?entries=\d+&entries=\d+$"))
    page.go_back()
    # Ticks come back with the page, or are gone with it: the bar says which.
    ticked = page.locator("input[name=entries]:checked").count()
    expect(bar).to_be_visible(visible=ticked > 0)


def test_entries_are_compared_without_scripts(plain_page: Page) -> None:
    page = plain_page
    page.goto(PATH)
    bar = page.locator(".compare-bar")
    expect(bar).to_be_hidden()
    page.get_by_label("Compare Far").check()
    page.get_by_label("Compare Hollow").check()
    bar.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("columnheader", name="Hollow")).to_be_visible()
    page.goto(PATH)
    page.get_by_label("Search").fill("generated")
    page.get_by_label("Search").press("Enter")
    expect(names(page)).to_have_text(["Generated"])


def test_published_weights_are_sent_to_be_measured_from_their_entry(board_page: Page, database: Database) -> None:
    page = board_page
    page.goto(f"{PATH}?q=hollow")
    page.get_by_role("link", name="Hollow", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Hollow")
    expect(page.get_by_role("button", name="Measure it here")).to_have_count(0)
    page.goto(f"{PATH}?q=carmon")
    names(page).first.click()
    page.get_by_role("button", name="Measure it here").click()
    expect(page.locator("[name=architecture]")).to_have_value("cifar10/Linf/Carmon2019Unlabeled")
    expect(page.locator("[name=weights]")).to_have_value("robustbench")
    expect(page.locator("[name='evaluation.threat_model.epsilon']")).to_have_value("8/255")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/1")
    with database.reading() as session:
        job = session.get(Job, 1)
        assert job is not None
        assert job.spec["evaluation"]["protocol"] == "standard"
        assert job.spec["publication"]["extra_data"] is True
