"""``audit``: who looked at what, and who did what; and rows for what the command line does."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from hipscore.cli.common import load_settings, print_json, ready_database, table

if TYPE_CHECKING:  # needed for the work, not for --help
    from sqlalchemy.orm import Session

    from hipscore.store.tables import AuditEvent

_FORMS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")


@click.command()
@click.option("--study", metavar="UID", help="Only what is about this study.")
@click.option("--who", metavar="NAME", help='Only by this key, "local" or "command line".')
@click.option("--since", type=click.DateTime(_FORMS), help="Only from then on (UTC).")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(
    *, study: str | None, who: str | None, since: datetime | None, limit: int, as_json: bool
) -> None:
    """Show who looked at what, and who did what, newest first. Times are UTC."""
    from hipscore.store import audit as log
    from hipscore.store import engine as database

    from_then = None if since is None else since.replace(tzinfo=UTC)
    with (
        ready_database(load_settings()) as engine,
        database.transaction(database.readers(engine)) as session,
    ):
        found = log.events(study=study, who=who, since=from_then, limit=limit, session=session)
    rows = [_row(each) for each in found]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("nothing is recorded of that")
        return
    header = ("at", "who", "role", "action", "study", "address", "detail")
    click.echo(table([[_cell(row[name]) for name in header] for row in rows], header))
    if len(rows) == limit:
        click.echo(f"the newest {limit} only; more with --limit", err=True)


def record(
    action: str,
    *,
    study: str | None = None,
    detail: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    session: Session,
) -> None:
    """Write down what a command does, in the transaction that does it.

    Of a job or a delivery (``job_id``, ``delivery_id`` in ``detail``) the study is looked up.
    """
    from hipscore.store import audit as log

    known = dict(detail or {})
    if study is None:
        for name in ("job_id", "delivery_id"):
            if name in known:
                study = log.study_of(**{name: known[name]}, session=session)
    log.append(
        log.Actor(who=log.COMMAND_LINE, role="admin"),
        action,
        study=study,
        detail={**known, "os_user": os_user()},
        now=now or datetime.now(UTC),
        session=session,
    )


def os_user() -> str:
    """Name of the user of the operating system, as far as it has one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "unknown"


def _row(event: AuditEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "at": event.at.astimezone(UTC).isoformat(timespec="seconds"),
        "who": event.who,
        "role": event.role,
        "action": event.action,
        "study": event.study_instance_uid,
        "address": event.address,
        "detail": event.detail,
    }


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return value
