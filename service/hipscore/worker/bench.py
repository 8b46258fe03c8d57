"""What one process works with, and the words all tasks share."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from hipscore import queue
from hipscore.domain import ModelCard, Segmenter, Transient
from hipscore.keeping import Closing
from hipscore.keeping.rules import load_rules
from hipscore.routing import Rules
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import deliveries, jobs, rehearsal
from hipscore.store import engine as database
from hipscore.worker.memory import Memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What one process works with.

    Analysing needs the networks (``segmenter``), reaping the ``card`` that new jobs are
    opened for, delivering neither.
    """

    settings: Settings
    sessions: sessionmaker[Session]
    spool: Spool
    broker: Celery
    segmenter: Segmenter | None = None
    card: ModelCard | None = None
    rules: Rules = field(default_factory=lambda: Rules(artifacts={}))
    memory: Memory = field(default_factory=Memory)

    def closing(self) -> Closing:
        """What closes series. Raises RuntimeError without a ``card``."""
        if self.card is None:
            msg = "closing a series needs the card of the bundle that jobs are opened for"
            raise RuntimeError(msg)
        return Closing(card=self.card, rules=self.rules, sessions=self.sessions, spool=self.spool)


def bench(
    settings: Settings, segmenter: Segmenter | None = None, *, card: ModelCard | None = None
) -> Bench:
    """Connect to the database, the spool and the broker (each on first use).

    Raises
    ------
    Transient
        If the spool cannot be made or written.
    """
    return Bench(
        settings=settings,
        sessions=database.sessions(database.connect(settings.database)),
        spool=Spool(settings.data_dir / "spool"),
        broker=queue.publisher(settings.broker),
        segmenter=segmenter,
        card=card if card is not None or segmenter is None else segmenter.card,
        rules=load_rules(settings),
    )


def warm(at: Bench) -> None:
    """Pay at start what the first task would pay: connections, and composing every statement.

    One analysis is led through the database and taken back again: nobody ever sees it. What
    cannot be had now is paid for later: nothing here keeps a worker from starting.
    """
    try:
        queue.warm(at.broker)
        with at.sessions() as session:
            rehearsal.play(now=now_utc(), session=session)
            session.rollback()
    except Exception as error:  # noqa: BLE001 - only time is lost
        log.warning("the first task will be slower: %s", describe(error))


def announce_jobs(ids: Sequence[int], at: Bench) -> bool:
    """Tell the workers about these jobs; False when the broker is down."""
    return _announce(ids, queue.enqueue_analyse, jobs.enqueued, at)


def announce_deliveries(ids: Sequence[int], at: Bench, *, remember: bool = True) -> bool:
    """Tell the workers about these deliveries; False when the broker is down.

    With ``remember``, the reaper does not announce them again for a while. Who has just made
    them due spares that transaction: they are taken at once, or announced once more in vain.
    """
    return _announce(ids, queue.enqueue_deliver, deliveries.enqueued if remember else None, at)


def announce_commitments(ids: Sequence[int], at: Bench, *, remember: bool = True) -> bool:
    """Tell the workers that what was sent like these is to be committed to; as above."""
    return _announce(ids, queue.enqueue_commit, deliveries.enqueued if remember else None, at)


def _announce(
    ids: Sequence[int],
    publish: Callable[[Celery, int], bool],
    remember: Callable[..., None] | None,
    at: Bench,
) -> bool:
    """Publish until the broker fails; remember what was published. Whether all was."""
    published: list[int] = []
    for row_id in ids:
        if not publish(at.broker, row_id):
            break
        published.append(row_id)
    if published and remember is not None:
        try:
            with database.transaction(at.sessions) as session:
                remember(published, now=now_utc(), session=session)
        except (Transient, SQLAlchemyError) as error:
            log.warning("announcements not remembered, they are repeated: %s", describe(error))
    return len(published) == len(ids)


def now_utc() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def term(at: Bench) -> dict[str, datetime]:
    """Return ``now`` and the end of a lease that starts now."""
    now = now_utc()
    return {"now": now, "lease_until": now + timedelta(seconds=at.settings.lease_seconds)}


def describe(error: BaseException) -> str:
    """Name an error in one line.

    The text of our own errors is written to be shown. That of others may quote the data
    set, so it is left out in favour of the place.
    """
    name = type(error).__name__
    if type(error).__module__.startswith("hipscore."):
        return f"{name}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{name} at {_place(frames[0])}" if frames else name


def trace(error: BaseException) -> str:
    """Return the call stack of an error without its text and without any value."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{_place(frame)} in {frame.name}" for frame in reversed(frames))


def _place(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}:{frame.lineno}"
