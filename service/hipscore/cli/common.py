"""What several commands share: settings, files in, tables out."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import ValidationError

from hipscore import telemetry
from hipscore.settings import Settings, unknown_variables

if TYPE_CHECKING:  # most commands work without a database: they need not wait for its library
    from sqlalchemy import Engine

T = TypeVar("T")


def load_settings(**overrides: object) -> Settings:
    """Read the settings, or end the command with one line per wrong value.

    A variable that looks like a setting and is none is named on standard error.
    ``overrides`` are options of the command line; None means not given.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"HIPSCORE_{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise click.ClickException("; ".join(lines)) from error
    except (OSError, ValueError) as error:
        msg = f"the settings file cannot be read: {error}"
        raise click.ClickException(msg) from error
    for name, meant in unknown_variables(os.environ).items():
        guess = f"; did you mean {meant}?" if meant is not None else ""
        click.echo(f"warning: {name} is no setting and changes nothing{guess}", err=True)
    return settings


def ready_rules(settings: Settings) -> None:
    """End the command with one line unless the rules file, if there is one, can be read."""
    if settings.rules is None:  # nothing to read: half a second of imports for nothing
        return
    from hipscore.keeping.rules import RulesError, load_rules

    try:
        load_rules(settings)
    except RulesError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data directory's lock; two instances need two directories."""
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = (
                f"another hipscore runs in {data_dir}; "
                "stop it, or set HIPSCORE_DATA_DIR and other ports for a second one"
            )
            raise click.ClickException(msg) from error
        yield


@contextmanager
def ready_database(settings: Settings, *, any_schema: bool = False) -> Iterator[Engine]:
    """A connection to the database; ends with one line unless it has this version's schema.

    A database that does not exist is not made: ``hipscore db upgrade`` does that. With
    ``any_schema``, one of another version will do.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from hipscore.store import engine as database

    missing = missing_database(settings)
    if missing is not None:
        msg = f"there is no database {missing} yet; run: hipscore db upgrade"
        raise click.ClickException(msg)
    try:
        engine = database.connect(settings.database)
    except ValueError as error:
        raise click.ClickException(f"HIPSCORE_DATABASE_URL: {error}") from error
    try:
        try:
            schema = database.schema(engine)
        except SQLAlchemyError as error:
            # without the driver's words: they may repeat the password
            msg = f"the database cannot be reached ({type(error).__name__})"
            raise click.ClickException(f"{msg}; check HIPSCORE_DATABASE_URL") from error
        if not schema.current and not any_schema:
            raise click.ClickException(schema.text)
        yield engine
    finally:
        engine.dispose()


def missing_database(settings: Settings) -> str | None:
    """Path of the SQLite database if it does not exist; connecting would make an empty one."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(settings.database)
    except ArgumentError:
        return None  # connect() says what is wrong with it
    path = parsed.database
    if parsed.get_backend_name() != "sqlite" or not path or path.startswith((":", "file:")):
        return None
    return None if Path(path).exists() else path


def start(settings: Settings) -> None:
    """Set up logging for a command that works on images."""
    telemetry.configure(settings.log_level)


def files_in(paths: Iterable[Path]) -> list[Path]:
    """Every file named by ``paths`` or inside them, sorted, hidden ones left out."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            inside = (item for item in path.rglob("*") if item.is_file())
            found.update(item for item in inside if not item.name.startswith("."))
        else:
            found.add(path)
    return sorted(found)


def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar on standard error."""
    with click.progressbar(items, length, label, show_pos=True, file=sys.stderr) as bar:
        yield from bar


def print_json(value: Any) -> None:
    """Write ``value`` to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Lay out rows under a header; numbers to the right, an empty cell for None."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(title), *(len(row[column]) for row in cells)) if cells else len(title)
        for column, title in enumerate(header)
    ]
    numeric = [
        bool(rows)
        and all(row[column] is None or isinstance(row[column], int | float) for row in rows)
        for column in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *(line(row) for row in cells)])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
