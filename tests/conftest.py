"""Fixtures every test may ask for: the real parts, started once, clean for each test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import real_scans, servers

# Same examples on every run of CI; no deadline, because CI machines share their cores.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    real_scans.skip_without(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    real_scans.say_without(terminalreporter)


@pytest.fixture(autouse=True)
def _pure_tests_stay_off_the_network(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit and contract tests cannot open connections."""
    kind = request.path.relative_to(Path(__file__).parent).parts[0]
    if kind not in {"unit", "contract"}:
        return

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a {kind} test tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own HIPSCORE_* variables and data directory stay out of the tests."""
    for name in [name for name in os.environ if name.startswith("HIPSCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Orthanc]:
    """One Orthanc for the whole run; tests ask for ``orthanc``."""
    with servers.orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def orthanc(orthanc_server: servers.Orthanc) -> servers.Orthanc:
    """Orthanc, empty."""
    orthanc_server.clear()
    return orthanc_server


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[servers.StoreScp]:
    """dcmtk storescp with an empty directory, for this test alone."""
    root = tmp_path / "storescp"
    root.mkdir()
    with servers.storescp(root) as running:
        yield running


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """One broker for the whole run; tests ask for ``redis``."""
    with servers.redis() as running:
        yield running
        # across the whole run: what the service may not do, it does not need
        assert running.denied() == []


@pytest.fixture
def redis(redis_server: servers.Redis) -> servers.Redis:
    """The broker, empty."""
    redis_server.clear()
    return redis_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Postgres]:
    """One PostgreSQL cluster for the whole run; tests ask for ``postgres_url``."""
    with servers.postgres() as running:
        yield running


@pytest.fixture
def postgres_url(postgres_server: servers.Postgres) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database, for this test alone."""
    with postgres_server.database() as url:
        yield url
