"""Pictures of a scored study in OHIF: SEG over the MR, secondary captures, the PDF."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
#: a browser without a screen, a graphics card or a wish to call home; the new headless mode
#: is the whole browser, with its PDF viewer
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
#: milliseconds that a viewer without a graphics card needs to draw
DRAWN_MS = 6000
#: from the first slice that has a segment to the middle of the heads
SLICES_ON = 4


def pictures(url: str, study: str, directory: Path) -> list[Path]:
    """Open the study in the viewer at ``url`` and take a picture of each kind of result.

    Raises
    ------
    playwright.sync_api.TimeoutError
        If one of them does not appear.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=list(ARGUMENTS),
            headless=False,  # the old headless mode of Playwright would be a lesser browser
            ignore_default_args=[
                "--disable-extensions",
                "--disable-component-extensions-with-background-pages",
            ],
        )
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(f"{url}/viewer?StudyInstanceUIDs={study}")
        page.get_by_text("hipscore SEG").first.wait_for(timeout=60_000)
        for notice in ("Confirm and hide", "Skip all"):
            button = page.get_by_text(notice).first
            button.wait_for(timeout=30_000)
            button.dispatch_event("click")  # the veil of one lies over the other
        taken = [
            _open(page, "hipscore SEG", directory / "seg.png", asked=True),
            _open(page, "hipscore images", directory / "sc.png"),
            _open(page, "hipscore PDF", directory / "pdf.png"),
        ]
        browser.close()
    return taken


def _open(page: Page, series: str, picture: Path, *, asked: bool = False) -> Path:
    """Open a series by its description, as a reader would, and take the picture."""
    page.get_by_text(series).first.dblclick()
    if asked:  # "Do you want to open this Segmentation?"
        page.get_by_text("Yes", exact=True).first.click(timeout=30_000)
        page.wait_for_timeout(DRAWN_MS)
        page.mouse.click(750, 450)
        for _ in range(SLICES_ON):
            page.keyboard.press("ArrowDown")
    page.wait_for_timeout(DRAWN_MS)
    page.screenshot(path=picture)
    return picture
