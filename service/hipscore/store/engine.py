"""Connections, transactions and schema versions, the same for SQLite and PostgreSQL.

SQLite runs in WAL mode with ``synchronous=FULL``: a committed image survives a power
cut. Every writing transaction starts with ``BEGIN IMMEDIATE``, so that it waits for the
write lock at its start instead of failing in its middle.
"""

from __future__ import annotations

import json
import select
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import Transient

BUSY_SECONDS = 10.0
_URL_FORMS = "sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"
MIGRATION_LOCK = 0x68697073  # any constant of ours: "hips"

#: a server that vanishes without a word is noticed in seconds, not hours
_LIBPQ = {
    "application_name": "hipscore",
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "tcp_user_timeout": 15_000,
}
#: NaN is not JSON: PostgreSQL would refuse it and SQLite keep it, so both refuse it
_JSON = partial(json.dumps, allow_nan=False)
#: Alembic keeps the running migration in a module; the database's lock is for processes
_ONE_AT_A_TIME = threading.Lock()


def connect(url: str) -> Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql+psycopg://…``; connects lazily.

    The directory of a SQLite file is made if it does not exist.

    Raises
    ------
    ValueError
        If the URL is of another database or unreadable (its password is not repeated).
    """
    return _engine(url, foreign_keys=True)


def sessions(engine: Engine) -> sessionmaker[Session]:
    """Maker of sessions that write. Rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def readers(engine: Engine) -> sessionmaker[Session]:
    """Maker of sessions that only read, each in one consistent snapshot.

    They do not wait for writers, and on PostgreSQL a write is an error.
    """
    if engine.dialect.name == "postgresql":
        quiet = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
    else:
        quiet = engine.execution_options(sqlite_begin="BEGIN DEFERRED")
    return sessionmaker(quiet, expire_on_commit=False)


@contextmanager
def transaction(maker: sessionmaker[Session]) -> Iterator[Session]:
    """One transaction: committed at the end, rolled back on any exception.

    Raises
    ------
    Transient
        If the database cannot be reached, is locked or full, or gave up on a deadlock.
    """
    try:
        with maker.begin() as session:
            yield session
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise Transient(_one_line(error)) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Transient(_one_line(error)) from error
        raise


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema to ``revision``. Safe when several processes start at once."""
    with _migrating(url) as config:
        command.upgrade(config, revision)


def downgrade(url: str, revision: str = "base") -> None:
    """Take the schema back to ``revision``. Tables that go away take their rows along."""
    with _migrating(url) as config:
        command.downgrade(config, revision)


class SchemaState(Enum):
    """How the schema of a database is to what this version of the program was written for."""

    CURRENT = "current"
    EMPTY = "empty"
    OLDER = "older"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The schema of a database.

    Attributes
    ----------
    found
        Its revision; None if there is none.
    wanted
        The revision that this version of the program was written for.
    state
        How one is to the other. A revision that this version does not know is that of a newer one.
    """

    found: str | None
    wanted: str
    state: SchemaState

    @property
    def current(self) -> bool:
        """Whether the program may work with it."""
        return self.state is SchemaState.CURRENT

    @property
    def text(self) -> str:
        """One line: what is wrong, and what to run. Empty where nothing is wrong."""
        return {
            SchemaState.CURRENT: "",
            SchemaState.EMPTY: "the database has no tables yet; run: hipscore db upgrade",
            SchemaState.OLDER: f"the database schema is at {self.found}, this version needs "
            f"{self.wanted}; run: hipscore backup FILE, then: hipscore db upgrade",
            SchemaState.UNKNOWN: f"the database schema is at {self.found}, which a newer hipscore "
            f"made; this version knows {self.wanted}. Install the newer one, and run with it: "
            f"hipscore db downgrade --revision {self.wanted}",
        }[self.state]


def schema(engine: Engine) -> Schema:
    """Look at the schema of a database; changes nothing."""
    with engine.execution_options(sqlite_begin="BEGIN DEFERRED").connect() as connection:
        return judged(MigrationContext.configure(connection).get_current_revision())


def judged(found: str | None) -> Schema:
    """How a revision (None: no schema) is to that of this version of the program."""
    wanted, known = _revisions()
    if found is None:
        state = SchemaState.EMPTY
    elif found == wanted:
        state = SchemaState.CURRENT
    else:
        state = SchemaState.OLDER if found in known else SchemaState.UNKNOWN
    return Schema(found=found, wanted=wanted, state=state)


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The newest revision that this version of the program knows, and all of them."""
    scripts = ScriptDirectory(str(migrations_dir()))
    known = frozenset(each.revision for each in scripts.walk_revisions())
    return str(scripts.get_current_head()), known


def revision(url: str) -> str | None:
    """The revision of the schema of a database; None if it has none."""
    engine = connect(url)
    try:
        return schema(engine).found
    finally:
        engine.dispose()


def migrations_dir() -> Path:
    """Where the Alembic scripts are: in the installed package, else in the source tree."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "_migrations", package.parents[1] / "migrations")
    for candidate in candidates:
        if (candidate / "env.py").is_file():
            return candidate
    msg = f"no database migrations in {candidates[0]} or {candidates[1]}; reinstall hipscore"
    raise FileNotFoundError(msg)


@contextmanager
def _migrating(url: str) -> Iterator[Config]:
    """An Alembic configuration bound to one transaction that holds the migration lock."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    engine = _engine(url, foreign_keys=False)
    try:
        with _ONE_AT_A_TIME, engine.begin() as connection:
            _lock(connection)
            config.attributes["connection"] = connection
            yield config
    finally:
        engine.dispose()


def _lock(connection: Connection) -> None:
    # SQLite: BEGIN IMMEDIATE has taken the only write lock already
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        # a migration that waits for a table lock makes everybody else wait behind it
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))


def _engine(url: str, *, foreign_keys: bool) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        msg = f"the database URL is unreadable; write {_URL_FORMS}"
        raise ValueError(msg) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        engine = create_engine(parsed, json_serializer=_JSON, connect_args=_LIBPQ)
        _prepare_postgresql(engine)
        return engine
    on_disk = parsed.database and parsed.database != ":memory:"
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"} and on_disk:
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            parsed, json_serializer=_JSON, connect_args={"timeout": BUSY_SECONDS}
        )
        _prepare_sqlite(engine, foreign_keys=foreign_keys)
        return engine
    shown = parsed.render_as_string(hide_password=True)
    msg = f"{shown} is no database hipscore can use; write {_URL_FORMS}"
    raise ValueError(msg)


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: psycopg.Connection[Any], record: Any) -> None:
        del record
        # as patient as SQLite; and whoever hangs in a transaction must not block the rest
        connection.execute(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")
        connection.execute("SET idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    @event.listens_for(engine, "checkout")
    def _on_checkout(connection: psycopg.Connection[Any], record: Any, proxy: Any) -> None:
        # Instead of a question to the server before every transaction (pool_pre_ping): it has
        # nothing to say on an idle connection but that it ended it, which the kernel knows.
        del record, proxy
        if connection.closed or _speaks(connection.fileno()):
            raise DisconnectionError


def _speaks(descriptor: int) -> bool:
    """Whether there is anything to read, be it the end."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(0))


def _prepare_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, record: Any) -> None:
        del record
        connection.isolation_level = None  # the driver must not begin transactions: we do
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # rebuilding a referenced table, as migrations do, needs the check to be off
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        begin = connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE")
        connection.exec_driver_sql(begin)


def _one_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return f"database: {str(cause).strip().splitlines()[0] if str(cause).strip() else cause!r}"
