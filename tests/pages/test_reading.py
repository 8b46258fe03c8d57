"""A radiologist's and an operator's way through the pages, in a real browser.

Any line on the console, among them every violation of the Content-Security-Policy, fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from hipscore.domain import RESEARCH_USE
from tests.pages.site import NOBODY, Site

#: where to leave pictures of the pages, to be looked at
_PICTURES = os.environ.get("PAGES_PICTURES")


def picture(page: Page, name: str) -> None:
    if _PICTURES is not None:
        page.screenshot(path=Path(_PICTURES) / f"{name}.png", full_page=True)


def shown(page: Page, number: int) -> None:
    """The viewer shows this slice, decoded."""
    stage = page.locator("#stage")
    expect(stage).to_have_attribute("data-shown", str(number))
    assert page.evaluate("document.getElementById('grey').naturalWidth") > 0


def test_the_worklist_by_keyboard_alone(page: Page, site: Site) -> None:
    page.goto("/")
    expect(page.get_by_text(RESEARCH_USE)).to_be_visible()
    rows = page.locator("#worklist tbody tr")
    expect(rows).to_have_count(len(site.studies))
    picture(page, "worklist")
    focused = page.locator("#worklist tbody tr:focus-within")
    page.keyboard.press("j")
    expect(focused).to_have_attribute("data-uid", site.studies["now"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(focused).to_have_attribute("data-uid", site.studies["one"])
    page.keyboard.press("/")
    page.keyboard.type("A102")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(page).to_have_url(re.compile(r"/\?number=A102$"))
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"/studies/{site.studies['now']}/view$"))


def test_a_refreshed_worklist_keeps_ones_place(page: Page, site: Site) -> None:
    page.goto("/")
    page.keyboard.press("j")
    page.keyboard.press("j")
    # as if another study stood in the list since it was loaded
    page.evaluate("document.querySelector('#worklist tbody tr:last-child').remove()")
    rows = page.locator("#worklist tbody tr")
    expect(rows).to_have_count(len(site.studies) - 1)
    page.evaluate("document.getElementById('worklist').dispatchEvent(new Event('refresh'))")
    expect(rows).to_have_count(len(site.studies))
    expect(page.locator("#news")).to_have_text("Refreshed: 1 new study.")
    focused = page.locator("#worklist tbody tr:focus-within")
    expect(focused).to_have_attribute("data-uid", site.studies["one"])


def test_a_patient_is_searched_without_a_trace_in_the_address(page: Page, site: Site) -> None:
    page.goto("/")
    page.get_by_label("Name begins with").fill("doe, ja")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#worklist tbody tr")).to_have_count(3)
    assert page.url == f"{site.url}/search"
    page.get_by_label("Patient ID, exactly").fill("P-2")
    page.get_by_label("Name begins with").fill("")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#worklist tbody th")).to_have_text(["Müller, Ada (穆勒 艾达)"])
    assert page.url == f"{site.url}/search"


def test_slices_by_keys_wheel_slider_and_chart(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['now']}/view")
    stage = page.locator("#stage")
    expect(stage).to_have_attribute("data-shown", re.compile(r"\d+"))
    picture(page, "study")
    page.keyboard.press("Home")
    shown(page, 1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    shown(page, 3)
    page.keyboard.press("End")
    shown(page, 20)
    stage.hover()
    page.mouse.wheel(0, -120)
    shown(page, 19)  # one notch, one slice
    page.locator("#slice").fill("5")
    shown(page, 5)
    slots = page.locator("#ratios .slot")
    expect(slots).to_have_count(20)
    slots.nth(9).click()
    shown(page, 10)
    mark = page.locator("#shown")
    assert mark.get_attribute("x") == slots.nth(9).get_attribute("x")
    expect(page.locator("#west")).to_have_text("R")
    expect(page.locator("#east")).to_have_text("L")


def test_outlines_can_be_switched_filled_and_faded(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['middle']}/view")
    outlines = page.locator("#outlines")
    expect(outlines).to_be_visible()
    expect(outlines).to_have_attribute("src", re.compile("style=contour"))
    page.keyboard.press("o")
    expect(outlines).to_be_hidden()
    page.keyboard.press("Space")
    expect(outlines).to_be_visible()
    page.keyboard.press("f")
    expect(outlines).to_have_attribute("src", re.compile("style=filled"))
    page.locator("#opacity").fill("40")
    expect(outlines).to_have_css("opacity", "0.4")
    picture(page, "filled")


def test_the_window_follows_the_mouse_and_can_be_reset(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['now']}/view")
    grey = page.locator("#grey")
    expect(grey).to_have_attribute("src", re.compile(r"\.png\?job=\d+$"))
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 170, steps=4)
    page.mouse.up()
    expect(grey).to_have_attribute("src", re.compile(r"&low=-?[\d.]+&high=[\d.]+$"))
    page.keyboard.press("r")
    expect(grey).to_have_attribute("src", re.compile(r"\.png\?job=\d+$"))


def test_the_picture_keeps_the_aspect_of_the_patient(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['now']}/view")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile(r"\d+"))
    box = page.locator("#grey").bounding_box()
    stack = page.request.get(f"/studies/{site.studies['now']}/slices.json").json()
    assert box is not None
    assert abs(box["width"] / box["height"] - stack["width_mm"] / stack["height_mm"]) < 0.01


def test_an_operator_sends_again_what_was_given_up(page: Page, site: Site) -> None:
    page.goto("/queue")
    row = page.locator("tr", has_text="given up after the last attempt").first
    expect(row).to_contain_text(NOBODY)
    picture(page, "queue")
    row.get_by_role("link").click()
    expect(page).to_have_url(re.compile(f"{site.studies['now']}/view$"))
    given_up = page.locator("tr", has_text="given up after the last attempt")
    expect(given_up).to_have_count(2)  # SEG and SR
    given_up.first.get_by_role("button").click()
    expect(given_up).to_have_count(1)
    expect(page).to_have_url(re.compile(f"{site.studies['now']}/view$"))
    expect(page.get_by_text("waits to be sent")).to_be_visible()


def test_the_trend_says_what_cannot_be_compared(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['now']}/view")
    page.get_by_role("link", name="Trend", exact=True).click()
    expect(page.locator("svg.trend .mark.total")).to_have_count(3)
    expect(page.locator("svg.trend .mark.total.hollow")).to_have_count(1)
    expect(page.get_by_text("1 study does not compare with this one")).to_be_visible()
    picture(page, "trend")
    page.get_by_role("link", name="2025-03-10").click()
    expect(page).to_have_url(re.compile(f"{site.studies['middle']}/view$"))


def test_the_ledger_can_be_filtered(page: Page, site: Site) -> None:
    page.goto(f"/studies/{site.studies['now']}/ledger/view")
    caption = page.locator("caption")
    expect(caption).to_contain_text(re.compile(r"(\d+) of \1 lines"))
    picture(page, "ledger")
    page.get_by_label("Delivery").select_option(index=1)
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile(r"delivery=\d+$"))
    expect(caption).not_to_contain_text(re.compile(r"(\d+) of \1 lines"))
    expect(page.locator("table tbody tr th")).to_contain_text(["claim"])


def test_it_is_dark_unless_asked_otherwise_and_remembers(page: Page, site: Site) -> None:
    page.goto("/")  # the browser says that it prefers light pages
    ground = "getComputedStyle(document.body).backgroundColor"
    assert brightness(page.evaluate(ground)) < 60
    page.get_by_role("button", name="Theme: dark").click()
    light = brightness(page.evaluate(ground))
    assert 150 < light < 230  # grey, not white
    page.reload()
    assert brightness(page.evaluate(ground)) == light
    picture(page, "light")


def brightness(colour: str) -> float:
    """Mean of red, green and blue of ``rgb(r, g, b)``."""
    return sum(int(each) for each in re.findall(r"\d+", colour)[:3]) / 3


def test_the_first_tab_skips_to_the_content(page: Page, site: Site) -> None:
    for path in ("/", "/queue", f"/studies/{site.studies['now']}/trend"):
        page.goto(path)
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_text("Skip to the content")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
