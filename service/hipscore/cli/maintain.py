"""``config``, ``db``, ``bundle``: what an administrator looks at and keeps in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from hipscore.cli.common import load_settings, missing_database, print_json, table
from hipscore.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(*, as_json: bool) -> None:
    """Print the effective settings, secrets masked."""
    settings = load_settings()
    values = effective(settings)
    if as_json:
        print_json(values)
        return
    fields = type(settings).model_fields
    rows = [
        (f"HIPSCORE_{name.upper()}", "" if value is None else str(value), fields[name].description)
        for name, value in values.items()
    ]
    click.echo(table(rows, ("setting", "value", "meaning")))


def effective(settings: Settings) -> dict[str, object]:
    """The settings in force by name, secrets masked."""
    values: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        values[name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    values["database_url"] = masked(settings.database)
    values["broker_url"] = masked(settings.broker)
    return values


def masked(url: str) -> str:
    """Hide the password of a URL, also of one that is no proper URL."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "********"
    # up to the last @: a password may hold what a proper URL would have encoded
    rest = re.sub(r"^([^:/@]*):.*@", r"\1:********@", rest)
    rest = re.sub(r"(?i)([?&][^=&]*pass[^=&]*=)[^&]*", r"\1********", rest)
    return f"{scheme}://{rest}"


@click.group()
def db() -> None:
    """Create or update the database schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema to this version. Safe to run again and from several hosts."""
    from hipscore.store import engine as database

    _migrate(database.upgrade, load_settings().database)


@db.command()
def current() -> None:
    """Say at which revision the schema is. Exits 1 if this version cannot work with it."""
    from hipscore.store import engine as database

    settings = load_settings()
    missing = missing_database(settings)
    if missing is not None:
        msg = f"there is no database {missing} yet; run: hipscore db upgrade"
        raise click.ClickException(msg)
    try:
        found = database.judged(database.revision(settings.database))
    except Exception as error:
        msg = f"the database cannot be used: {type(error).__name__}; check HIPSCORE_DATABASE_URL"
        raise click.ClickException(msg) from error
    if not found.current:
        raise click.ClickException(found.text)
    click.echo(f"the database schema is at {found.found}, as this version needs it")


@db.command()
@click.option("--revision", required=True, help='Alembic revision, or "base" for an empty schema.')
@click.confirmation_option(prompt="Rows of tables that go away are lost. Continue?")
def downgrade(revision: str) -> None:
    """Take the schema back to an earlier revision."""
    from hipscore.store import engine as database

    _migrate(lambda url: database.downgrade(url, revision), load_settings().database)


def _migrate(migrate: Callable[[str], None], url: str) -> None:
    """Run a migration and say what it did; any failure is one line without the URL's password."""
    from hipscore.store import engine as database

    try:
        before = database.revision(url)
        migrate(url)
        after = database.revision(url)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        msg = f"the schema was not changed: {type(error).__name__}: {lines[0]}"
        raise click.ClickException(msg) from error
    shown = "empty" if after is None else f"at {after}"
    if before == after:
        click.echo(f"the database schema is {shown} already")
    else:
        was = "empty" if before is None else f"at {before}"
        click.echo(f"the database schema was {was} and is {shown}")


@click.group()
def bundle() -> None:
    """Inspect and verify model bundles."""


@bundle.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(directory: Path | None, *, as_json: bool) -> None:
    """Check a bundle's digests and that its networks reproduce its reference output.

    Without DIRECTORY the bundle in use is checked.
    """
    from dataclasses import asdict

    from hipscore.inference import BundleError
    from hipscore.keeping.networks import configured

    settings = load_settings()
    try:
        segmenter = configured(settings, directory)
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    card = segmenter.card
    facts = {
        "id": card.id,
        "version": card.version,
        "name": card.name,
        "sha256": card.sha256,
        "trained_on": card.trained_on,
        **asdict(segmenter.engine),
        "deviation_from_reference": segmenter.deviation,
    }
    if as_json:
        print_json(facts)
        return
    click.echo("\n".join(f"{name:>24}: {value}" for name, value in facts.items()))
    click.echo("the bundle is intact and reproduces its reference output")
