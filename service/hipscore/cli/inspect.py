"""``jobs``, ``retry``: the queue and what is undelivered, for the person on call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy.orm import Session

from hipscore.cli.audit import record
from hipscore.cli.common import load_settings, print_json, ready_database, table
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, IllegalMove, JobState
from hipscore.store import deliveries, outbox, queries
from hipscore.store import engine as database
from hipscore.store import jobs as job_moves
from hipscore.store.moves import NotFound
from hipscore.store.summary import WITHDRAWN
from hipscore.store.whereabouts import RETRACTION, named


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
@click.option(
    "--state", type=click.Choice([state.value for state in JobState]), help="Only this state."
)
@click.option(
    "--undelivered", is_flag=True, help="List the deliveries that have not arrived, of all jobs."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jobs(*, state: str | None, undelivered: bool, limit: int, as_json: bool) -> None:
    """List analyses, newest first, and where their results are. Times are UTC."""
    with _reading() as session:
        if undelivered:
            found = outbox.undelivered(limit=limit, session=session)
            rows = [_delivery(each) for each in found]
        else:
            wanted = JobState(state) if state else None
            rows = [_job(each) for each in queries.jobs(session=session, state=wanted, limit=limit)]
    if as_json:
        print_json(rows)
    elif undelivered and not rows:
        click.echo("nothing is undelivered")
    else:
        header = _DELIVERY if undelivered else _JOB
        click.echo(table([[row[key] for key in header] for row in rows], list(header.values())))


#: key of a row and title of its column
_JOB = {
    "id": "id",
    "state": "state",
    "attempts": "tries",
    "series_instance_uid": "series",
    "reason": "reason",
    "delivery": "results",
    "next_attempt": "next try",
}
_DELIVERY = {
    "id": "delivery",
    "state": "state",
    "what": "what",
    "destination": "destination",
    "attempts": "tries",
    "next_attempt": "next try",
    "error": "last error",
    "series_instance_uid": "series",
}


def _job(item: queries.JobDetail) -> dict[str, Any]:
    waiting = [each for each in item.deliveries if each.state is DeliveryState.PENDING]
    due = [item.job.next_attempt_at, *(each.next_attempt_at for each in waiting)]
    times = [each for each in due if each is not None]
    withdrawn = item.job.withdrawn_at is not None
    return {
        "id": item.job.id,
        "state": item.job.state.value,
        "attempts": item.job.attempts,
        "series_instance_uid": item.series.series_instance_uid,
        "reason": WITHDRAWN if withdrawn else item.job.reason_code or item.job.error or "",
        "delivery": _in_words(item),
        "next_attempt": _time(min(times, default=None)),
        "withdrawn": _time(item.job.withdrawn_at),
        "deliveries": " ".join(f"{each.id}:{each.state.value}" for each in item.deliveries),
    }


def _in_words(item: queries.JobDetail) -> str:
    """Where the results are: ``SEG, SR committed``, ``SEG sent; SR refused``."""
    kinds = {artifact.id: named(artifact) for artifact in item.artifacts}
    states: dict[str, list[str]] = {}
    for delivery in item.deliveries:
        word = _STATE_WORDS[delivery.state]
        if delivery.state is DeliveryState.SENT and delivery.commit_at is not None:
            word = "sent, not committed yet"
        states.setdefault(word, []).append(kinds[delivery.artifact_id])
    return "; ".join(
        f"{', '.join(dict.fromkeys(carried))} {word}" for word, carried in states.items()
    )


_STATE_WORDS = {
    DeliveryState.PENDING: "waiting",
    DeliveryState.SENDING: "being sent",
    DeliveryState.SENT: "sent",
    DeliveryState.COMMITTED: "committed",
    DeliveryState.REFUSED: "refused",
    DeliveryState.EXHAUSTED: "given up",
}


def _delivery(item: outbox.Undelivered) -> dict[str, Any]:
    row = item.delivery
    return {
        "id": row.id,
        "job": item.job_id,
        "state": row.state.value,
        "artifact": item.kind.value,
        "what": RETRACTION if item.kind is ArtifactKind.REJECTION else item.kind.value,
        "destination": row.destination,
        "attempts": row.attempts,
        "next_attempt": _time(row.next_attempt_at),
        "error": row.error or "",
        "series_instance_uid": item.series_instance_uid,
    }


def _time(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


@click.command()
@click.argument("number", type=int, required=False)
@click.option("--delivery", is_flag=True, help="NUMBER is a delivery, not a job.")
@click.option(
    "--all-exhausted", "given_up", is_flag=True, help="All deliveries that were given up."
)
@click.option("--destination", help="With --all-exhausted: only to this AET@HOST:PORT.")
def retry(*, number: int | None, delivery: bool, given_up: bool, destination: str | None) -> None:
    """Queue a failed job, or an undelivered delivery, again.

    A delivery is sent again with the same bytes. The reaper picks it up within seconds.
    """
    if (number is None) != given_up or (destination and not given_up):
        msg = "give the NUMBER of a job or (--delivery) a delivery, or --all-exhausted"
        raise click.UsageError(msg)
    if number is None:
        _retry_given_up(destination)
        return
    name = "delivery" if delivery else "job"
    now = datetime.now(UTC)
    try:
        with _writing() as session:
            if delivery:
                deliveries.retry(number, now=now, session=session)
            else:
                job_moves.retry(number, now=now, session=session)
            record(f"retry {name}", session=session, detail={f"{name}_id": number}, now=now)
    except (IllegalMove, NotFound) as error:
        msg = f"{name} {number} cannot be queued again: {error}"
        raise click.ClickException(msg) from error
    click.echo(f"{name} {number} is queued again")


def _retry_given_up(destination: str | None) -> None:
    now = datetime.now(UTC)
    with _writing() as session:
        ids = outbox.exhausted(destination=destination, session=session)
        for delivery_id in ids:
            deliveries.retry(delivery_id, now=now, session=session)
            detail = {"delivery_id": delivery_id}
            record("retry delivery", session=session, detail=detail, now=now)
    where = "" if destination is None else f" to {destination}"
    click.echo(f"{len(ids)} deliveries{where} are queued again")
