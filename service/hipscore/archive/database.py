"""Both kinds of database into one file and back, by their own means.

SQLite: its online backup, which holds up no writer. PostgreSQL: ``pg_dump`` and ``pg_restore``,
in the snapshot that the rows are counted in.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, func, inspect, make_url, select, table, text

from hipscore.archive.manifest import ArchiveError
from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Instance

#: keys read at a time
_BATCH = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the spool that a row refers to."""

    key: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the database held at one moment.

    Attributes
    ----------
    kind
        ``sqlite`` or ``postgresql``.
    revision
        Of its schema.
    rows
        How many, by table.
    files
        What its rows refer to and have not purged, each once.
    """

    kind: str
    revision: str
    rows: dict[str, int]
    files: tuple[File, ...]


def kind(url: str) -> str:
    """``sqlite`` or ``postgresql``."""
    return make_url(url).get_backend_name()


def dump(url: str, into: Path) -> Snapshot:
    """Write the database to a new file; what it held.

    Raises
    ------
    ArchiveError
        If it has no schema, or the tools of PostgreSQL are missing, too old, or fail.
    """
    if kind(url) == "sqlite":
        return _dump_sqlite(Path(str(make_url(url).database)), into)
    return _dump_postgresql(url, into)


def load(file: Path, url: str) -> None:
    """Make the database of a dump; all of it, or nothing.

    Parameters
    ----------
    file
        What :func:`dump` wrote.
    url
        Of a database that is :func:`empty`.

    Raises
    ------
    ArchiveError
        If the dump cannot be loaded.
    """
    if kind(url) == "sqlite":
        target = Path(str(make_url(url).database))
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as connection:
            (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
            if sound != "ok":
                msg = f"the database of the archive is damaged: {sound}"
                raise ArchiveError(msg)
        # from another disk it would not come whole or not at all
        staged = target.with_name(f".{target.name}.restored")
        shutil.copyfile(file, staged)
        with staged.open("rb") as copied:
            os.fsync(copied.fileno())
        staged.replace(target)
        return
    command = [_tool("pg_restore", _server(url)), "--single-transaction", "--exit-on-error"]
    command += ["--no-owner", "--no-privileges"]
    _run([*command, f"--dbname={_conninfo(url)}", str(file)], url)


def empty(url: str) -> bool:
    """Whether there is nothing that a restoration would overwrite."""
    if kind(url) == "sqlite":
        return not Path(str(make_url(url).database)).exists()
    engine = database.connect(url)
    try:
        return not inspect(engine).get_table_names()
    finally:
        engine.dispose()


def counted(connection: Connection) -> dict[str, int]:
    """How many rows there are, by table."""
    names = sorted(inspect(connection).get_table_names())
    return {
        name: connection.scalar(select(func.count()).select_from(table(name))) or 0
        for name in names
    }


def _dump_sqlite(path: Path, into: Path) -> Snapshot:
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as ours,
        closing(sqlite3.connect(into)) as copy,
    ):
        ours.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        return _looked_at_sqlite(copy)


def _looked_at_sqlite(connection: sqlite3.Connection) -> Snapshot:
    names = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith("sqlite_")
    ]
    if "alembic_version" not in names:
        raise ArchiveError(_NO_SCHEMA)
    (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    rows = {
        name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
        for name in sorted(names)
    }
    files = {
        key: digest
        for name in (Instance.__tablename__, ArtifactRow.__tablename__)
        for key, digest in connection.execute(
            f"SELECT spool_key, sha256 FROM {name} WHERE purged_at IS NULL"  # noqa: S608
        )
    }
    return Snapshot(kind="sqlite", revision=revision, rows=rows, files=_files(files))


def _dump_postgresql(url: str, into: Path) -> Snapshot:
    with _snapshot(url) as (connection, name):
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            raise ArchiveError(_NO_SCHEMA)
        command = [_tool("pg_dump", _server(url)), "--format=custom", f"--snapshot={name}"]
        command += ["--no-owner", "--no-privileges", f"--file={into}"]
        _run([*command, f"--dbname={_conninfo(url)}"], url)
        files = {
            str(key): str(digest)
            for of in (Instance, ArtifactRow)
            for key, digest in connection.execute(
                select(of.spool_key, of.sha256).where(of.purged_at.is_(None)),
                execution_options={"yield_per": _BATCH},
            )
        }
        return Snapshot(
            kind="postgresql", revision=revision, rows=counted(connection), files=_files(files)
        )


@contextmanager
def _snapshot(url: str) -> Iterator[tuple[Connection, str]]:
    """A transaction that sees one moment, and the name under which others see the same."""
    engine = database.connect(url)
    try:
        quiet = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        with quiet.connect() as connection:
            # a dump takes longer than any transaction of the service may idle
            connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
            yield connection, str(connection.scalar(text("SELECT pg_export_snapshot()")))
    finally:
        engine.dispose()


def _server(url: str) -> int:
    """Major version of the server."""
    engine = database.connect(url)
    try:
        with engine.connect() as connection:
            return int(connection.scalar(text("SHOW server_version_num"))) // 10_000
    finally:
        engine.dispose()


def _tool(name: str, server: int) -> str:
    """Path of a tool of PostgreSQL that is not older than the server.

    Raises
    ------
    ArchiveError
        If there is none.
    """
    places = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    if (found := shutil.which(name)) is not None:
        places.append(Path(found))
    known = {place: _version(place) for place in places}
    if not known:
        msg = f"{name} is not installed: install postgresql-client {server} or newer"
        raise ArchiveError(msg)
    best = max(known, key=lambda place: known[place])
    if known[best] < server:
        msg = (
            f"{name} is of PostgreSQL {known[best]} and the server of {server}: install "
            f"postgresql-client-{server}"
        )
        raise ArchiveError(msg)
    return str(best)


def _version(tool: Path) -> int:
    shown = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    found = re.search(r"\) (\d+)", shown)
    return int(found[1]) if found else 0


def _conninfo(url: str) -> str:
    """The address for libpq, without the password, which other users could see."""
    parsed: URL = make_url(url)
    given: dict[str, Any] = {
        "host": parsed.host,
        "port": parsed.port,
        "user": parsed.username,
        "dbname": parsed.database,
        **parsed.query,
    }
    return make_conninfo(**{key: str(value) for key, value in given.items() if value})


def _run(command: list[str], url: str) -> None:
    password = make_url(url).password
    secret = {} if password is None else {"PGPASSWORD": str(password)}
    done = subprocess.run(  # noqa: S603 - PostgreSQL's own tools
        command, env={**os.environ, **secret}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ArchiveError(lines[0])


def _files(found: dict[str, str]) -> tuple[File, ...]:
    return tuple(File(key=key, sha256=found[key]) for key in sorted(found))


_NO_SCHEMA = "the database has no tables yet: there is nothing to back up"
