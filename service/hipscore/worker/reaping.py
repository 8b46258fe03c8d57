"""The reaper: what makes lost messages, dead workers and silent senders harmless."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from hipscore.domain import Transient
from hipscore.lifecycle import CloseReason
from hipscore.store import deliveries, intake, jobs
from hipscore.store import engine as database
from hipscore.store.closing import settle
from hipscore.worker.bench import (
    Bench,
    announce_deliveries,
    announce_jobs,
    describe,
    now_utc,
)

#: a job that killed its worker this often is FAILED instead of killing the next one
FATAL_ATTEMPTS = 3
#: rows one reap handles; what is left over is found by the next
REAP_BATCH = 100
#: a due row is announced again when its last message is this old
ANNOUNCE_AGAIN = timedelta(seconds=60)

log = logging.getLogger(__name__)


def reap(at: Bench) -> None:
    """Close quiet series, take rows back from dead workers, announce what is due."""
    try:
        _expire(at)
        _close_quiet(at)
        _announce_due(at)
        at.spool.clean()
    except (Transient, SQLAlchemyError, OSError) as error:
        log.warning("the reaper could not finish and tries again: %s", describe(error))


def _expire(at: Bench) -> None:
    now = now_utc()
    with database.transaction(at.sessions) as session:
        back = jobs.expire_leases(now=now, max_attempts=FATAL_ATTEMPTS, session=session)
        again = deliveries.expire_leases(
            now=now, max_attempts=at.settings.max_attempts, session=session
        )
    for job_id in back:
        log.warning("job %d taken back from a silent worker", job_id)
    for delivery_id in again:
        log.warning("delivery %d taken back from a silent worker", delivery_id)


def _close_quiet(at: Bench) -> None:
    before = now_utc() - timedelta(seconds=at.settings.quiet_seconds)
    with database.transaction(at.sessions) as session:
        silent = intake.quiet(before=before, limit=REAP_BATCH, session=session)
    for series_id in silent:
        with database.transaction(at.sessions) as session:
            settle(
                series_id,
                CloseReason.QUIET_PERIOD,
                card=at.segmenter.card,
                quiet_before=before,
                now=now_utc(),
                session=session,
            )


def _announce_due(at: Bench) -> None:
    now = now_utc()
    with database.transaction(at.sessions) as session:
        due: dict[str, Any] = {
            "enqueued_before": now - ANNOUNCE_AGAIN,
            "limit": REAP_BATCH,
            "session": session,
        }
        job_ids = jobs.due(now, **due)
        delivery_ids = deliveries.due(now, **due)
    if announce_jobs(job_ids, at):
        announce_deliveries(delivery_ids, at)
