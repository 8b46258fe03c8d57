"""One furnished service for all tests of the pages, and a browser that tolerates no error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import SecretStr

from hipscore.settings import Settings
from hipscore.store import engine
from tests import servers
from tests.pages.site import Site, furnish
from tests.serving import serving

#: what keeps Chromium from asking anybody outside
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def site(redis_server: servers.Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service with its studies."""
    root = tmp_path_factory.mktemp("site")
    settings = Settings(
        data_dir=root / "data",
        database_url=SecretStr(f"sqlite:///{root / 'hipscore.db'}"),
        broker_url=SecretStr(redis_server.url),
        dicom_port=servers.free_port(),
        http_port=servers.free_port(),
        reserve_mb=1,
        viewer_url="https://viewer.example/viewer?StudyInstanceUIDs={study}",
    )
    engine.upgrade(settings.database)
    studies = furnish(settings, root)
    with serving(settings) as url:
        yield Site(url=url, studies=studies, settings=settings)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=servers.program("chromium", package="chromium"), args=list(OPTIONS)
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """An empty tab; a line on its console or a request that fails fails the test."""
    context = browser.new_context(
        base_url=site.url, viewport={"width": 1440, "height": 1000}, color_scheme="light"
    )
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda line: wrong.append(f"{line.type}: {line.text}"))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    # what is still under way when one goes on to another page is given up
    tab.on(
        "requestfailed",
        lambda request: (
            None
            if request.failure == "net::ERR_ABORTED"
            else wrong.append(f"{request.failure} {request.url}")
        ),
    )
    tab.on(
        "response",
        lambda answer: (
            wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        ),
    )
    yield tab
    context.close()
    assert wrong == []
