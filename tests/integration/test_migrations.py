"""The schema goes up and down on both databases and is exactly what the tables say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from hipscore.store import engine
from hipscore.store.engine import SchemaState
from hipscore.store.tables import Base

A_SERIES = (
    "INSERT INTO series (study_instance_uid, series_instance_uid, state, calling_aet, called_aet,"
    " peer, first_received_at, last_received_at) VALUES"
    " ('1.2', '1.3', '{state}', 'A', 'B', 'C', '2026-01-01', '2026-01-01')"
)
A_LINE = "INSERT INTO events (at, series_id, what, detail) VALUES ('2026-01-01', 1, 'open', '{}')"


def tables(url: str) -> set[str]:
    connected = engine.connect(url)
    try:
        return set(inspect(connected).get_table_names()) - {"alembic_version"}
    finally:
        connected.dispose()


def test_upgrade_downgrade_upgrade(database_url: str) -> None:
    everything = set(Base.metadata.tables)
    engine.upgrade(database_url)
    assert tables(database_url) == everything
    engine.downgrade(database_url)
    assert tables(database_url) == set()
    engine.upgrade(database_url)
    assert tables(database_url) == everything


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    engine.upgrade(database_url)
    engine.upgrade(database_url)
    assert tables(database_url) == set(Base.metadata.tables)


def test_migrations_and_tables_agree(database_url: str) -> None:
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    with connected.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    connected.dispose()
    assert differences == []


def test_check_constraints_of_migrations_and_tables_agree(database_url: str) -> None:
    """Alembic does not compare these: the allowed states are compared here."""
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    migrated = {
        (table, check["name"]): values_in(check["sqltext"])
        for table in Base.metadata.tables
        for check in inspect(connected).get_check_constraints(table)
    }
    connected.dispose()
    declared = {
        (table.name, str(constraint.name)): values_in(
            str(constraint.sqltext.compile(compile_kwargs={"literal_binds": True}))
        )
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert migrated == declared
    assert len(declared) == 4


def values_in(sql: str) -> set[str]:
    """Every second part between quotes: the values of ``column IN ('A', 'B')``."""
    return set(sql.split("'")[1::2])


def test_a_schema_is_current_only_after_the_upgrade(database_url: str) -> None:
    connected = engine.connect(database_url)
    assert engine.schema(connected).state is SchemaState.EMPTY
    engine.upgrade(database_url)
    assert engine.schema(connected).current
    engine.downgrade(database_url, "0001")
    assert engine.schema(connected).state is SchemaState.OLDER
    engine.downgrade(database_url)
    assert engine.schema(connected).state is SchemaState.EMPTY
    connected.dispose()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    program = f"from hipscore.store.engine import upgrade; upgrade({database_url!r})"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert ended == [("", 0)] * 3
    assert tables(database_url) == set(Base.metadata.tables)


def test_the_database_itself_refuses_an_unknown_state(database_url: str) -> None:
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    with pytest.raises(IntegrityError), connected.begin() as connection:
        connection.execute(text(A_SERIES.format(state="LOST")))
    connected.dispose()


@pytest.mark.parametrize(
    "statement",
    (
        "UPDATE events SET what = 'nothing'",
        "DELETE FROM events",
        "DELETE FROM events WHERE id = 1",
        "TRUNCATE events",
        "TRUNCATE series CASCADE",
    ),
)
def test_the_database_itself_refuses_to_change_the_ledger(
    database_url: str, statement: str
) -> None:
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    with connected.begin() as connection:
        connection.execute(text(A_SERIES.format(state="RECEIVING")))
        connection.execute(text(A_LINE))
    truncates = statement.startswith("TRUNCATE")
    told = "append-only" if not truncates or "postgresql" in database_url else "syntax error"
    with pytest.raises(DBAPIError, match=told), connected.begin() as connection:
        connection.execute(text(statement))
    with connected.connect() as connection:
        kept = connection.execute(text("SELECT what FROM events")).scalars().all()
    connected.dispose()
    assert kept == ["open"]


def test_sqlite_is_durable_and_checks_references(database_url: str) -> None:
    connected = engine.connect(database_url)
    if connected.dialect.name == "sqlite":
        with connected.connect() as connection:
            pragma = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert pragma == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "busy_timeout": 10_000,
        }
    else:
        with connected.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    connected.dispose()


@pytest.mark.parametrize(
    "url", ("mysql://user:secret@host/name", "sqlite://", "sqlite:///:memory:", "no url at all")
)
def test_an_unusable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///PATH or postgresql\+psycopg://") as refused:
        engine.connect(url)
    assert "secret" not in str(refused.value)


def test_a_plain_postgresql_url_means_psycopg() -> None:
    connected = engine.connect("postgresql://someone@nowhere/name")
    assert connected.url.drivername == "postgresql+psycopg"
    connected.dispose()
