"""Forth and back over every revision, with rows in every table: nothing is lost or changed."""

from __future__ import annotations

import itertools
import re
import subprocess
from datetime import UTC
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import JSON, Boolean, Column, DateTime, Integer, MetaData, Numeric, Table, inspect
from sqlalchemy import insert as insert_into

from hipscore.cli import supervise
from hipscore.settings import Settings
from hipscore.store import engine
from hipscore.store.engine import SchemaState
from tests import servers
from tests.integration.store_steps import NOW
from tests.serving import serving

REVISIONS = [
    each.revision
    for each in reversed(list(ScriptDirectory(str(engine.migrations_dir())).walk_revisions()))
]
STEPS = list(itertools.pairwise(REVISIONS))
#: their rows are made by the revision, or by the database, from those of the others
DERIVED = frozenset({"alembic_version", "tallies", "studies"})
#: what only a newer version means anything by keeps its default
UNSAID = frozenset({"withdrawn_at"})
ROWS = (1, 2)

Rows = dict[str, list[dict[str, Any]]]


def fill(url: str) -> None:
    """Two rows in every table of the schema as it is."""
    connected = engine.connect(url)
    try:
        metadata = MetaData()
        metadata.reflect(connected)
        with connected.begin() as connection:
            for table in metadata.sorted_tables:
                if table.name in DERIVED:
                    continue
                choices = {
                    found[1]: found[2]
                    for check in inspect(connection).get_check_constraints(table.name)
                    if (found := re.search(r"\(?(\w+)\)?\D*?'(\w+)'", str(check["sqltext"])))
                }
                for number in ROWS:
                    row = {
                        column.name: _value(table, column, number, choices)
                        for column in table.columns
                        if column.name not in UNSAID
                    }
                    connection.execute(insert_into(table).values(row))
    finally:
        connected.dispose()


def _value(table: Table, column: Column[Any], number: int, choices: dict[str, str]) -> Any:
    to_itself = any(key.column.table is table for key in column.foreign_keys)
    if to_itself and column.nullable:
        return None  # not its own successor
    if column.name in choices:
        return choices[column.name]
    if isinstance(column.type, DateTime):
        return NOW if column.type.timezone else NOW.astimezone(UTC).replace(tzinfo=None)
    kinds: tuple[tuple[Any, Any], ...] = (
        (JSON, {}),
        (Boolean, True),
        ((Integer, Numeric), number),
    )
    return next((value for kind, value in kinds if isinstance(column.type, kind)), f"1.2.{number}")


def rows(url: str) -> Rows:
    """All rows of all tables, columns by name."""
    connected = engine.connect(url)
    try:
        metadata = MetaData()
        metadata.reflect(connected)
        with connected.connect() as connection:
            return {
                table.name: sorted(
                    (dict(row) for row in connection.execute(table.select()).mappings()), key=repr
                )
                for table in metadata.sorted_tables
                if table.name not in DERIVED
            }
    finally:
        connected.dispose()


def shared(one: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Both, cut down to the tables and columns that both revisions know."""

    def cut(found: Rows, beside: Rows) -> Rows:
        return {
            table: sorted(
                (
                    {name: value for name, value in row.items() if name in beside[table][0]}
                    for row in found[table]
                ),
                key=repr,
            )
            for table in found.keys() & beside.keys()
            if found[table] and beside[table]
        }

    return cut(one, other), cut(other, one)


@pytest.mark.parametrize(("lower", "upper"), STEPS)
def test_a_revision_changes_no_row_on_its_way_up_and_none_on_its_way_back(
    database_url: str, lower: str, upper: str
) -> None:
    engine.upgrade(database_url, lower)
    fill(database_url)
    before = rows(database_url)
    assert all(len(found) == len(ROWS) for found in before.values())
    engine.upgrade(database_url, upper)
    above = rows(database_url)
    was, now = shared(before, above)
    assert now == was
    assert was.keys() == before.keys()
    engine.downgrade(database_url, lower)
    assert rows(database_url) == before


@pytest.mark.parametrize("start", REVISIONS[:-1])
def test_the_newest_revision_is_reached_from_every_older_one_at_once(
    database_url: str, start: str
) -> None:
    engine.upgrade(database_url, start)
    fill(database_url)
    before = rows(database_url)
    engine.upgrade(database_url)
    was, now = shared(before, rows(database_url))
    assert now == was
    engine.downgrade(database_url, start)
    assert rows(database_url) == before


def test_what_the_newest_version_wrote_survives_a_rollback_by_one(database_url: str) -> None:
    engine.upgrade(database_url)
    fill(database_url)
    before = rows(database_url)
    engine.downgrade(database_url, REVISIONS[-2])
    was, now = shared(before, rows(database_url))
    assert now == was
    engine.upgrade(database_url)
    after = rows(database_url)
    was, now = shared(before, after)
    assert {name: len(found) for name, found in now.items()} == {
        name: len(found) for name, found in was.items()
    }


def test_a_schema_says_what_to_run(database_url: str) -> None:
    newest = REVISIONS[-1]
    connected = engine.connect(database_url)
    try:
        for revision, state, remedy in (
            (None, SchemaState.EMPTY, "run: hipscore db upgrade"),
            (REVISIONS[-2], SchemaState.OLDER, "run: hipscore backup FILE, then: hipscore db up"),
            (newest, SchemaState.CURRENT, ""),
        ):
            if revision is not None:
                engine.upgrade(database_url, revision)
            found = engine.schema(connected)
            assert (found.found, found.state) == (revision, state)
            assert remedy in found.text
            assert "\n" not in found.text
        with connected.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        found = engine.schema(connected)
        assert found.state is SchemaState.UNKNOWN
        assert f"hipscore db downgrade --revision {newest}" in found.text
    finally:
        connected.dispose()


# --- the commands ------------------------------------------------------------------------


def hipscore(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        supervise.service(*arguments),
        env=supervise.environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def unmigrated(database_url: str, tmp_path: Path, redis: servers.Redis) -> Settings:
    """Settings of an installation whose database has no tables yet."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=SecretStr(database_url),
        broker_url=SecretStr(redis.url),
        dicom_port=servers.free_port(),
        http_port=servers.free_port(),
    )


def test_the_commands_name_the_revision_before_and_after(unmigrated: Settings) -> None:
    newest, older = REVISIONS[-1], REVISIONS[-2]
    for arguments, said in (
        (("db", "upgrade"), f"the database schema was empty and is at {newest}\n"),
        (("db", "upgrade"), f"the database schema is at {newest} already\n"),
        (("db", "current"), f"the database schema is at {newest}, as this version needs it\n"),
        (
            ("db", "downgrade", "--revision", older, "--yes"),
            f"the database schema was at {newest} and is at {older}\n",
        ),
        (("db", "upgrade"), f"the database schema was at {older} and is at {newest}\n"),
    ):
        done = hipscore(unmigrated, *arguments)
        assert (done.returncode, done.stdout) == (0, said), done.stderr


@pytest.mark.parametrize("command", ("up", "listen", "work", "beat", "serve", "db current"))
def test_nothing_starts_on_a_schema_of_another_version(
    unmigrated: Settings, database_url: str, command: str
) -> None:
    engine.upgrade(database_url, REVISIONS[-2])
    before = rows(database_url)
    done = hipscore(unmigrated, *command.split())
    assert done.returncode == 1
    assert f"is at {REVISIONS[-2]}, this version needs {REVISIONS[-1]}" in done.stderr
    assert "run: hipscore backup FILE, then: hipscore db upgrade" in done.stderr
    assert engine.revision(database_url) == REVISIONS[-2]
    assert rows(database_url) == before


def test_readiness_says_what_to_run(unmigrated: Settings, database_url: str) -> None:
    engine.upgrade(database_url)
    with serving(unmigrated) as base:
        assert httpx.get(f"{base}/readyz", trust_env=False).status_code == HTTPStatus.OK
        engine.downgrade(database_url, REVISIONS[-2])
        answer = httpx.get(f"{base}/readyz", trust_env=False)
    assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert answer.json()["checks"]["database"].endswith("then: hipscore db upgrade")
