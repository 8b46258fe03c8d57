"""Both databases, for the tests that ask: empty, or with the tables of this version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from hipscore.settings import Settings
from hipscore.store import engine
from tests import servers


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with the tables of this version, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "hipscore.db"
    engine.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: servers.Postgres) -> Iterator[str]:
    """Name of a database with the tables of this version, to be copied."""
    with postgres_server.database() as url:
        engine.upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture(params=("sqlite", "postgresql"))
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database for this test alone; every test runs on both kinds.

    Empty, unless the test asks for ``database`` too. The migrations run once: a copy of what they
    made is the same and takes a fifth of the time.
    """
    with_tables = "database" in request.fixturenames
    if request.param == "sqlite":
        file = tmp_path / "database" / "hipscore.db"
        if with_tables:
            file.parent.mkdir()
            shutil.copy(request.getfixturevalue("migrated_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    running: servers.Postgres = request.getfixturevalue("postgres_server")
    template = request.getfixturevalue("migrated_postgres") if with_tables else None
    with running.database(template=template) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """A database with the tables of this version, as the migrations make them."""
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
