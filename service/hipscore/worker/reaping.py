"""The reaper: makes lost messages, dead workers, silent senders and clock steps harmless."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from hipscore import queue
from hipscore.domain import Transient
from hipscore.lease import holder_died
from hipscore.lifecycle import CloseReason
from hipscore.store import (
    clock,
    commitment,
    deliveries,
    explaining,
    intake,
    jobs,
    procedures,
    tallies,
)
from hipscore.store import engine as database
from hipscore.worker.bench import (
    Bench,
    announce_commitments,
    announce_deliveries,
    announce_jobs,
    describe,
    now_utc,
    trace,
)
from hipscore.worker.commitment import wanted

#: a job that killed its worker this often is FAILED instead of killing the next one
FATAL_ATTEMPTS = 5
#: rows one reap handles; what is left over is found by the next
REAP_BATCH = 100
#: after this many answers of "not now", the database is left alone until the next reap
GIVE_UP_AFTER = 3
#: a due row is announced again when its last message is this old
ANNOUNCE_AGAIN = timedelta(seconds=60)
#: likewise, when no message waits in the broker
ANNOUNCE_LOST = timedelta(seconds=10)
#: studies that went quiet so long ago at most are looked through for a match at every reap,
#: those of :data:`hipscore.store.explaining.HORIZON` after so many seconds
RECENT = timedelta(hours=1)
ALL_AGAIN_S = 600.0

log = logging.getLogger(__name__)


def reap(at: Bench) -> None:
    """Close quiet series, take rows back from dead workers, announce what is due.

    What a clock that went back has put off comes first: the other steps compare times.

    Any number of reapers may run at once, at any time. One step that fails keeps none of
    the others from being done.
    """
    steps = (
        _rewind,
        _expire_jobs,
        _expire_deliveries,
        _close_quiet,
        _take_orders,
        _explain,
        _waive,
        _announce_due,
        _fold,
        _clean,
    )
    for step in steps:
        try:
            step(at)
        except (Transient, SQLAlchemyError, OSError) as error:
            log.warning("%s is tried again: %s", _name(step), describe(error))
        except Exception as error:  # noqa: BLE001 - the other steps must not wait for its repair
            log.error("%s failed: %s (%s)", _name(step), describe(error), trace(error))  # noqa: TRY400


def _rewind(at: Bench) -> None:
    now = now_utc()
    went_back = at.memory.went_back(now)
    with database.transaction(at.sessions) as session:
        brought = clock.rewind(
            now,
            lease_s=at.settings.lease_seconds,
            commitment_s=at.settings.commitment_seconds,
            went_back=went_back,
            session=session,
        )
    if brought:
        listed = ", ".join(f"{number} {what}" for what, number in brought.items())
        log.warning("the clock went back; brought back as well: %s", listed)


def _expire_jobs(at: Bench) -> None:
    with database.transaction(at.sessions) as session:
        back = jobs.expire_leases(
            now=now_utc(), max_attempts=FATAL_ATTEMPTS, died=holder_died, session=session
        )
    for job_id in back:
        log.warning("job %d taken back from a silent or dead worker", job_id)


def _expire_deliveries(at: Bench) -> None:
    allowed = at.settings.max_attempts
    with database.transaction(at.sessions) as session:
        back = deliveries.expire_leases(
            now=now_utc(), max_attempts=allowed, died=holder_died, session=session
        )
    for delivery_id in back:
        log.warning("delivery %d taken back from a silent or dead worker", delivery_id)


def _close_quiet(at: Bench) -> None:
    """Close what is quiet, one transaction each: a series that fails holds up no other.

    One that cannot be closed is left alone for a growing while, so that many of them
    leave room for the rest.
    """
    closing = at.closing()
    before = now_utc() - timedelta(seconds=at.settings.quiet_seconds)
    stuck = at.memory.stuck
    with database.transaction(at.sessions) as session:
        silent = intake.quiet(before=before, limit=REAP_BATCH + len(stuck), session=session)
    stuck.keep(silent)
    refused = 0
    for series_id in filter(stuck.over, silent):
        try:
            closing.close(series_id, CloseReason.QUIET_PERIOD, quiet_before=before)
        except Transient as error:
            # One row may be locked; a database that refuses them all is not asked for all.
            log.warning("series %d stays open for now: %s", series_id, describe(error))
            refused += 1
            if refused == GIVE_UP_AFTER:
                return
        except Exception as error:  # noqa: BLE001 - the defect belongs to this series alone
            stuck.grow(series_id)
            text = f"{describe(error)} ({trace(error)})"
            log.error("series %d cannot be closed: %s", series_id, text)  # noqa: TRY400


def _take_orders(at: Bench) -> None:
    """Bind work items that order an analysis to it; what no rule took is analysed for them."""
    with database.transaction(at.sessions) as session:
        orders = procedures.waiting(limit=REAP_BATCH, session=session)
    for uid in orders:
        try:
            with database.transaction(at.sessions) as session:
                series = procedures.take(uid, now=now_utc(), session=session)
            for series_id in series:
                job = at.closing().order(series_id)
                log.info("work item %s orders job %d", uid, job.id)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - the defect belongs to this order alone
            log.error("work item %s is not taken: %s (%s)", uid, describe(error), trace(error))  # noqa: TRY400


def _explain(at: Bench) -> None:
    """A study of which no rule took a series gets one report that says why."""
    if not at.settings.explain_unmatched:
        return
    closing = at.closing()
    before = now_utc() - timedelta(seconds=at.settings.quiet_seconds)
    begun = time.monotonic()
    everything = begun - at.memory.explained >= ALL_AGAIN_S
    horizon = explaining.HORIZON if everything else RECENT
    with database.transaction(at.sessions) as session:
        studies = explaining.unexplained(
            before=before, horizon=horizon, limit=REAP_BATCH, session=session
        )
    if everything and len(studies) < REAP_BATCH:
        at.memory.explained = begun
    for uid in studies:
        try:
            job = closing.explain(uid, quiet_before=before)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - the defect belongs to this study alone
            log.error("study %s cannot be explained: %s (%s)", uid, describe(error), trace(error))  # noqa: TRY400
        else:
            if job is not None:
                log.info("no series of study %s matched a rule: job %d says why", uid, job.id)


def _waive(at: Bench) -> None:
    """Let go of commitments to destinations that are not asked for them any more."""
    if not at.settings.no_commitment:
        return
    with database.transaction(at.sessions) as session:
        for destination in commitment.destinations(session=session):
            if not wanted(destination, at):
                left = commitment.waive(destination, session=session)
                log.info("%s is not asked for commitment any more: %d sent", destination, left)


def _fold(at: Bench) -> None:
    with database.transaction(at.sessions) as session:
        tallies.fold(session=session)


def _clean(at: Bench) -> None:
    at.spool.clean()


def _name(step: Callable[[Bench], None]) -> str:
    return f"reaping ({step.__name__.strip('_').replace('_', ' ')})"


def _announce_due(at: Bench) -> None:
    now = now_utc()
    analyses = _announced_before(queue.ANALYSIS_QUEUE, at)
    outgoing = _announced_before(queue.DELIVERY_QUEUE, at)
    due: dict[str, Any] = {"limit": REAP_BATCH}
    with database.transaction(at.sessions) as session:
        due["session"] = session
        job_ids = jobs.due(now, enqueued_before=now - analyses, **due)
        delivery_ids = deliveries.due(now, enqueued_before=now - outgoing, **due)
        sent_ids = commitment.due(now, enqueued_before=now - outgoing, **due)
    if announce_jobs(job_ids, at) and announce_deliveries(delivery_ids, at):
        announce_commitments(sent_ids, at)


def _announced_before(name: str, at: Bench) -> timedelta:
    """How old the last message for a due row must be to send another.

    An empty queue has lost what was announced, or a worker is just taking it.
    """
    return ANNOUNCE_AGAIN if queue.waiting(at.broker, name) else ANNOUNCE_LOST
