"""``why``, ``jobs``, ``retry``: the ledger and the queue, for the person on call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy.orm import Session

from hipscore.cli.common import load_settings, print_json, ready_database, table
from hipscore.lifecycle import IllegalMove, JobState
from hipscore.store import deliveries, ledger, queries
from hipscore.store import engine as database
from hipscore.store import jobs as job_moves
from hipscore.store.moves import NotFound
from hipscore.store.tables import Event


@contextmanager
def _reading() -> Iterator[Session]:
    with (
        ready_database(load_settings()) as engine,
        database.transaction(database.readers(engine)) as session,
    ):
        yield session


@contextmanager
def _writing() -> Iterator[Session]:
    with (
        ready_database(load_settings()) as engine,
        database.transaction(database.sessions(engine)) as session,
    ):
        yield session


@click.command()
@click.argument("uid")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(uid: str, *, as_json: bool) -> None:
    """Tell what happened to a series or study, and why.

    UID is a Series or Study Instance UID. Prints the ledger, oldest first.
    """
    with _reading() as session:
        rows = [_event(event) for event in ledger.of_uid(uid, session=session)]
    if not rows:
        msg = f"nothing is known of {uid}; is it a Series or Study Instance UID?"
        raise click.ClickException(msg)
    if as_json:
        print_json(rows)
        return
    header = ("at (UTC)", "about", "what", "from", "to", "detail")
    click.echo(table([tuple(row.values()) for row in rows], header))


def _event(event: Event) -> dict[str, Any]:
    about = f"series {event.series_id}"
    if event.delivery_id is not None:
        about = f"delivery {event.delivery_id}"
    elif event.job_id is not None:
        about = f"job {event.job_id}"
    detail = event.detail or {}
    return {
        "at": event.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        "about": about,
        "what": event.what,
        "from": event.from_state or "",
        "to": event.to_state or "",
        "detail": ", ".join(f"{name}={value}" for name, value in detail.items()),
    }


@click.command()
@click.option(
    "--state", type=click.Choice([state.value for state in JobState]), help="Only this state."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jobs(*, state: str | None, limit: int, as_json: bool) -> None:
    """List analyses, newest first."""
    with _reading() as session:
        wanted = JobState(state) if state else None
        found = queries.jobs(session=session, state=wanted, limit=limit)
        rows = [
            {
                "id": item.job.id,
                "state": item.job.state.value,
                "attempts": item.job.attempts,
                "series_instance_uid": item.series.series_instance_uid,
                "reason": item.job.reason_code or item.job.error or "",
                "deliveries": " ".join(
                    f"{delivery.id}:{delivery.state.value}" for delivery in item.deliveries
                ),
            }
            for item in found
        ]
    if as_json:
        print_json(rows)
        return
    header = ("id", "state", "tries", "series", "reason", "deliveries")
    click.echo(table([tuple(row.values()) for row in rows], header))


@click.command()
@click.argument("number", type=int)
@click.option("--delivery", is_flag=True, help="NUMBER is a delivery, not a job.")
def retry(number: int, *, delivery: bool) -> None:
    """Queue a failed job, or an undelivered delivery, again.

    A delivery is sent again with the same bytes. The reaper picks it up within seconds.
    """
    name = "delivery" if delivery else "job"
    now = datetime.now(UTC)
    try:
        with _writing() as session:
            if delivery:
                deliveries.retry(number, now=now, session=session)
            else:
                job_moves.retry(number, now=now, session=session)
    except (IllegalMove, NotFound) as error:
        msg = f"{name} {number} cannot be queued again: {error}"
        raise click.ClickException(msg) from error
    click.echo(f"{name} {number} is queued again")
