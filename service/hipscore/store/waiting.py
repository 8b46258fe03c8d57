"""Waiting for a peer that is down: one delivery finds out, all of that destination wait."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from hipscore.lifecycle import DeliveryState
from hipscore.store.moves import clean, load
from hipscore.store.tables import Delivery


def wait_for_peer(
    delivery_id: int, *, error: str, next_attempt_at: datetime, now: datetime, session: Session
) -> int:
    """Postpone what else is due for the destination of this delivery: the peer is down.

    One statement, no attempt counted, and no line each in the ledger, because nothing
    happened to them: the line of the delivery that was tried names how many wait with it.
    Their ``error`` says why they wait.

    Returns
    -------
    int
        How many were postponed.
    """
    destination = load(Delivery, delivery_id, session=session).destination
    swap = (
        update(Delivery)
        .where(
            Delivery.destination == destination,
            Delivery.id != delivery_id,
            Delivery.state == DeliveryState.PENDING,
            or_(Delivery.next_attempt_at.is_(None), Delivery.next_attempt_at <= now),
        )
        .values(next_attempt_at=next_attempt_at, enqueued_at=None, error=clean(error))
        .returning(Delivery.id)
    )
    waiting = session.execute(swap, execution_options={"synchronize_session": False})
    return len(waiting.scalars().all())


def peer_is_back(delivery_id: int, *, now: datetime, session: Session) -> int:
    """Make due what waited only because the destination of this delivery was down.

    What was tried itself keeps its own pause: it may be that object the peer chokes on.

    Returns
    -------
    int
        How many are due now.
    """
    destination = load(Delivery, delivery_id, session=session).destination
    swap = (
        update(Delivery)
        .where(
            Delivery.destination == destination,
            Delivery.state == DeliveryState.PENDING,
            Delivery.attempts == 0,
            Delivery.next_attempt_at > now,
        )
        .values(next_attempt_at=None, enqueued_at=None, error=None)
        .returning(Delivery.id)
    )
    freed = session.execute(swap, execution_options={"synchronize_session": False})
    return len(freed.scalars().all())
