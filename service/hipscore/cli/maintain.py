"""``config``, ``db``, ``bundle``: what an administrator looks at and keeps in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from hipscore.cli.common import load_settings, print_json, table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(*, as_json: bool) -> None:
    """Print the effective settings, secrets masked."""
    settings = load_settings()
    values: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        values[name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    values["database_url"] = masked(settings.database)
    values["broker_url"] = masked(settings.broker)
    if as_json:
        print_json(values)
        return
    fields = type(settings).model_fields
    rows = [
        (f"HIPSCORE_{name.upper()}", "" if value is None else str(value), fields[name].description)
        for name, value in values.items()
    ]
    click.echo(table(rows, ("setting", "value", "meaning")))


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

    settings = load_settings()
    _migrate(database.upgrade, settings.database)
    click.echo("the database schema is up to date")


@db.command()
@click.option("--revision", required=True, help='Alembic revision, or "base" for an empty schema.')
@click.confirmation_option(prompt="Rows of tables that go away are lost. Continue?")
def downgrade(revision: str) -> None:
    """Take the schema back to an earlier revision."""
    from hipscore.store import engine as database

    settings = load_settings()
    _migrate(lambda url: database.downgrade(url, revision), settings.database)
    click.echo(f"the database schema is at {revision}")


def _migrate(migrate: Callable[[str], None], url: str) -> None:
    """Run a migration; any failure is one line without the URL's password."""
    try:
        migrate(url)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        msg = f"the schema was not changed: {type(error).__name__}: {lines[0]}"
        raise click.ClickException(msg) from error


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
