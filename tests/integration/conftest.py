"""Both databases, for the tests that ask: empty, or with the tables of this version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from hipscore.settings import Settings
from hipscore.store import engine
from tests import servers


@pytest.fixture(params=("sqlite", "postgresql"))
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, for this test alone; every test runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database' / 'hipscore.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """A database with the tables of this version, made by the migrations."""
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    yield connected
    connected.dispose()


@pytest.fixture
def maker(database: Engine) -> sessionmaker[Session]:
    """Maker of writing sessions."""
    return engine.sessions(database)


@pytest.fixture
def settings(database: Engine, database_url: str, redis: servers.Redis, tmp_path: Path) -> Settings:
    """Settings of an installation of its own: migrated database, empty broker, free ports."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=SecretStr(database_url),
        broker_url=SecretStr(redis.url),
        dicom_port=servers.free_port(),
        http_port=servers.free_port(),
        reserve_mb=1,
    )
