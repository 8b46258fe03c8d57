"""``keys``: who may look at the API and the pages, and who may act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hipscore.cli.audit import record
from hipscore.cli.common import load_settings, print_json, ready_database, table

if TYPE_CHECKING:  # needed for the work, not for --help
    from sqlalchemy.orm import Session

    from hipscore.store.tables import AccessKey

#: as hipscore.store.access.Role, which --help need not wait for
ROLES = ("viewer", "operator", "admin")


@click.group()
def keys() -> None:
    """Make, list and revoke keys for the API and the pages.

    viewer: sees everything about results. operator: also retries, withdraws, stores images and
    works on work items. admin: also reads the audit log.
    """


@keys.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True, max=36500), help="Ends then.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(name: str, *, role: str, days: float | None, as_json: bool) -> None:
    """Make the key NAME and print it: it is shown only now.

    NAME stands in the audit log; give every person and every program a key of its own.
    """
    from hipscore.store import access

    now = datetime.now(UTC)
    try:
        with _database(write=True) as session:
            key = access.create(name, access.Role(role), days=days, now=now, session=session)
            detail = {"key": name, "role": role, "days": days}
            record("create key", session=session, detail=detail, now=now)
    except access.NotAllowed as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"name": name, "role": role, "days": days, "key": key})
        return
    click.echo(key)
    click.echo(
        f"key {name} ({role}) is made; it is not shown again. Programs send it as "
        '"Authorization: Bearer KEY", people enter it at /login',
        err=True,
    )


@keys.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, as_json: bool) -> None:
    """List all keys that ever were, never what they are. Times are UTC."""
    from hipscore.store import access

    now = datetime.now(UTC)
    with _database(write=False) as session:
        rows = [_row(each, now) for each in access.everyone(session=session)]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("there are no keys; make one: hipscore keys create NAME --role viewer")
    else:
        click.echo(table([list(row.values()) for row in rows], list(rows[0])))


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """End the key NAME and every session that was opened with it, at once and for ever."""
    from hipscore.store import access
    from hipscore.store.moves import NotFound

    now = datetime.now(UTC)
    try:
        with _database(write=True) as session:
            access.revoke(name, now=now, session=session)
            record("revoke key", session=session, detail={"key": name}, now=now)
    except NotFound as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"key {name} is revoked")


@contextmanager
def _database(*, write: bool) -> Iterator[Session]:
    from hipscore.store import engine as database

    maker = database.sessions if write else database.readers
    with (
        ready_database(load_settings()) as engine,
        database.transaction(maker(engine)) as session,
    ):
        yield session


def _row(key: AccessKey, now: datetime) -> dict[str, str | None]:
    state = "valid"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= now:
        state = "expired"
    return {
        "name": key.name,
        "role": key.role,
        "state": state,
        "created": _time(key.created_at),
        "expires": _time(key.expires_at),
        "revoked": _time(key.revoked_at),
        "last used": _time(key.last_used_at),
    }


def _time(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"
