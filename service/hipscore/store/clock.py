"""After a clock that went back, no row may wait for a time that was near and is far now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, or_, update
from sqlalchemy.orm import Session

from hipscore.lifecycle import BACKOFF_CAP_S, DeliveryState, JobState, SeriesState
from hipscore.store.tables import Delivery, Job, Series

#: clocks of several machines may differ by so much, seconds
SLACK_S = 60.0


def rewind(
    now: datetime,
    *,
    lease_s: float,
    commitment_s: float,
    went_back: bool,
    session: Session,
) -> dict[str, int]:
    """Bring back every time that lies further ahead than anything we write.

    Leases end at most ``lease_s`` from now, attempts and commitments are due now: one
    attempt too early costs nothing, one hours late does.

    Parameters
    ----------
    now
        The time by the clock as it is.
    lease_s, commitment_s
        Seconds of a lease, and between two requests for one commitment.
    went_back
        The clock was seen to go back: whatever lies ahead at all is brought back.
    session
        A writing session.

    Returns
    -------
    dict of str to int
        How many rows were brought back, by what; without what was in order.
    """
    slack = timedelta(seconds=0.0 if went_back else SLACK_S)
    lease = timedelta(seconds=lease_s)
    waits = timedelta(seconds=0.0 if went_back else BACKOFF_CAP_S)
    asks = timedelta(seconds=0.0 if went_back else max(BACKOFF_CAP_S, commitment_s))
    wanted = and_(Delivery.state == DeliveryState.SENT, Delivery.commit_at.is_not(None))
    moves: tuple[tuple[str, Any, Any, dict[str, Any]], ...] = (
        (
            "leases",
            Job,
            and_(Job.state == JobState.ANALYSING, Job.lease_until > now + lease + slack),
            {"lease_until": now + lease},
        ),
        (
            "leases",
            Delivery,
            and_(
                Delivery.state == DeliveryState.SENDING, Delivery.lease_until > now + lease + slack
            ),
            {"lease_until": now + lease},
        ),
        (
            "attempts",
            Job,
            and_(Job.state == JobState.QUEUED, Job.next_attempt_at > now + waits + slack),
            {"next_attempt_at": now},
        ),
        (
            "attempts",
            Delivery,
            and_(
                Delivery.state == DeliveryState.PENDING,
                Delivery.next_attempt_at > now + waits + slack,
            ),
            {"next_attempt_at": now},
        ),
        (
            "commitments",
            Delivery,
            and_(wanted, Delivery.commit_at > now + asks + slack),
            {"commit_at": now},
        ),
        (
            "series",
            Series,
            and_(Series.state == SeriesState.RECEIVING, Series.last_received_at > now + slack),
            {"last_received_at": now},
        ),
        (
            "messages",
            Job,
            and_(Job.state == JobState.QUEUED, Job.enqueued_at > now + slack),
            {"enqueued_at": None},
        ),
        (
            "messages",
            Delivery,
            and_(
                or_(Delivery.state == DeliveryState.PENDING, wanted),
                Delivery.enqueued_at > now + slack,
            ),
            {"enqueued_at": None},
        ),
    )
    brought: dict[str, int] = {}
    for what, kind, ahead, values in moves:
        swap = update(kind).where(ahead).values(**values).returning(kind.id)
        done = session.execute(swap, execution_options={"synchronize_session": False})
        if number := len(done.scalars().all()):
            brought[what] = brought.get(what, 0) + number
    return brought
