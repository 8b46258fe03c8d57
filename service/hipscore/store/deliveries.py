"""Deliveries: one stored artifact on its way to one destination, sent as often as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DELIVERY, DeliveryEvent, DeliveryState, IllegalMove
from hipscore.store import ledger
from hipscore.store.moves import LeaseLost, advance, clean, load
from hipscore.store.tables import ArtifactRow, Delivery, Job

_RELEASED: dict[str, Any] = {"lease": None, "lease_until": None, "enqueued_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A claimed delivery and the artifact whose stored bytes are to be sent.

    ``fallback`` is sent in its place to a peer that does not take its SOP class.
    """

    delivery: Delivery
    artifact: ArtifactRow
    fallback: ArtifactRow | None = None


def claim(
    delivery_id: int, *, lease: str, lease_until: datetime, now: datetime, session: Session
) -> Parcel | None:
    """PENDING → SENDING under ``lease`` (a token nobody else has); counts the attempt.

    Returns None, and changes nothing, when the delivery is not PENDING, not due yet, or
    claimed by another worker at this moment.

    Raises
    ------
    hipscore.store.moves.NotFound
        If there is no such delivery.
    """
    delivery = load(Delivery, delivery_id, session=session)
    early = delivery.next_attempt_at is not None and delivery.next_attempt_at > now
    if delivery.state is not DeliveryState.PENDING or early:
        return None
    won = advance(
        delivery,
        DELIVERY,
        DeliveryEvent.CLAIM,
        subject=_subject(delivery, session=session),
        values={
            "attempts": Delivery.attempts + 1,
            "lease": lease,
            "lease_until": lease_until,
            "next_attempt_at": None,
        },
        detail={"attempt": delivery.attempts + 1},
        now=now,
        session=session,
    )
    if not won:
        return None
    artifact = session.get_one(ArtifactRow, delivery.artifact_id)
    return Parcel(
        delivery=delivery, artifact=artifact, fallback=_fallback(artifact, session=session)
    )


def sent(
    delivery_id: int,
    *,
    lease: str,
    status: int,
    form: ArtifactKind | None = None,
    transaction_uid: str | None = None,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → SENT: the peer answered Success or a warning (``status``, PS3.4 B.2.3).

    ``form`` is the artifact that went, for the ledger, where there was a choice.

    ``transaction_uid`` is that of the storage commitment request that follows, if one
    does (see :func:`committed`). Raises LeaseLost.
    """
    _leave(
        delivery_id,
        DeliveryEvent.SENT,
        lease=lease,
        values={
            "status": status,
            "error": None,
            "transaction_uid": transaction_uid,
            "finished_at": now,
        },
        detail={"status": f"0x{status:04X}", **({"artifact": form.value} if form else {})},
        now=now,
        session=session,
    )


def requested(delivery_id: int, *, transaction_uid: str, session: Session) -> None:
    """Remember the Transaction UID of the storage commitment asked for a SENT delivery.

    Call it, and commit, before the request leaves: the report may come at once.
    """
    delivery = load(Delivery, delivery_id, session=session)
    if delivery.state is not DeliveryState.SENT:
        msg = f"delivery {delivery_id} is {delivery.state.value}; commitment is asked when SENT"
        raise IllegalMove(msg)
    delivery.transaction_uid = transaction_uid
    session.flush()


def of_transaction(
    transaction_uid: str, sop_instance_uid: str, *, session: Session
) -> Delivery | None:
    """The delivery a line of an N-EVENT-REPORT is about (PS3.4 J.3.3), or None."""
    query = (
        select(Delivery)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .where(
            Delivery.transaction_uid == transaction_uid,
            ArtifactRow.sop_instance_uid == sop_instance_uid,
        )
    )
    return session.scalars(query).one_or_none()


def committed(delivery_id: int, *, now: datetime, session: Session) -> bool:
    """SENT → COMMITTED: the peer took over safekeeping. False if it was so before.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the delivery is neither SENT nor COMMITTED.
    """
    delivery = load(Delivery, delivery_id, session=session, lock=True)
    if delivery.state is DeliveryState.COMMITTED:
        return False
    return advance(
        delivery,
        DELIVERY,
        DeliveryEvent.COMMIT,
        subject=_subject(delivery, session=session),
        values={"finished_at": now},
        now=now,
        session=session,
    )


def uncommitted(
    delivery_id: int, *, reason: int, error: str, now: datetime, session: Session
) -> bool:
    """SENT → REFUSED: the peer declined the commitment (Failure Reason 0008,1197)."""
    delivery = load(Delivery, delivery_id, session=session, lock=True)
    return advance(
        delivery,
        DELIVERY,
        DeliveryEvent.REFUSE,
        subject=_subject(delivery, session=session),
        values={"status": reason, "error": clean(error), "finished_at": now},
        detail={"failure_reason": f"0x{reason:04X}", "error": clean(error)},
        now=now,
        session=session,
    )


def postpone(
    delivery_id: int,
    *,
    lease: str,
    error: str,
    status: int | None,
    next_attempt_at: datetime,
    also_waiting: int = 0,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → PENDING until ``next_attempt_at``: the peer is down or busy. Raises LeaseLost.

    ``also_waiting`` is how many others wait with it
    (:func:`hipscore.store.waiting.wait_for_peer`).
    """
    _leave(
        delivery_id,
        DeliveryEvent.POSTPONE,
        lease=lease,
        values={
            "status": status,
            "error": clean(error),
            "next_attempt_at": next_attempt_at,
        },
        detail={
            **_answer(status, error),
            "next_attempt_at": next_attempt_at.isoformat(),
            **({"also_waiting": also_waiting} if also_waiting else {}),
        },
        now=now,
        session=session,
    )


def refuse(
    delivery_id: int,
    *,
    lease: str,
    error: str,
    status: int | None,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → REFUSED: the peer will not take it, however often. Raises LeaseLost."""
    _leave(
        delivery_id,
        DeliveryEvent.REFUSE,
        lease=lease,
        values={"status": status, "error": clean(error), "finished_at": now},
        detail=_answer(status, error),
        now=now,
        session=session,
    )


def exhaust(
    delivery_id: int,
    *,
    lease: str,
    error: str,
    status: int | None,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → EXHAUSTED: it failed as often as is allowed. Raises LeaseLost."""
    _leave(
        delivery_id,
        DeliveryEvent.EXHAUST,
        lease=lease,
        values={"status": status, "error": clean(error), "finished_at": now},
        detail=_answer(status, error),
        now=now,
        session=session,
    )


def retry(delivery_id: int, *, now: datetime, session: Session) -> Delivery:
    """Back to PENDING by an operator, due at once, attempts counted from 0 again.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the delivery is being sent at this moment.
    hipscore.store.moves.NotFound
        If there is no such delivery.
    """
    delivery = load(Delivery, delivery_id, session=session, lock=True)
    moved = advance(
        delivery,
        DELIVERY,
        DeliveryEvent.RETRY,
        subject=_subject(delivery, session=session),
        values={
            "attempts": 0,
            "next_attempt_at": None,
            "enqueued_at": None,
            "finished_at": None,
            "transaction_uid": None,
        },
        now=now,
        session=session,
    )
    if not moved:
        msg = f"delivery {delivery_id} was changed by someone else just now; look again"
        raise IllegalMove(msg)
    return delivery


def expire_leases(*, now: datetime, max_attempts: int, session: Session) -> list[int]:
    """Take deliveries from silent workers: back to PENDING, EXHAUSTED after ``max_attempts``.

    Returns the ids of those that are PENDING again.
    """
    query = select(Delivery.id).where(
        Delivery.state == DeliveryState.SENDING, Delivery.lease_until < now
    )
    pending = []
    for delivery_id in session.scalars(query.order_by(Delivery.id)).all():
        delivery = load(Delivery, delivery_id, session=session, lock=True)
        until = delivery.lease_until
        if delivery.state is not DeliveryState.SENDING or until is None or until >= now:
            continue  # sent since the scan
        spent = delivery.attempts >= max_attempts
        error = (
            f"no sign of life from the worker until the lease ended, attempt {delivery.attempts}"
        )
        advance(
            delivery,
            DELIVERY,
            DeliveryEvent.EXHAUST if spent else DeliveryEvent.EXPIRE,
            subject=_subject(delivery, session=session),
            lease=delivery.lease,
            values={**_RELEASED, "error": error, "finished_at": now if spent else None},
            detail={"error": error, "attempt": delivery.attempts},
            now=now,
            session=session,
        )
        if not spent:
            pending.append(delivery_id)
    return pending


def due(
    now: datetime,
    *,
    session: Session,
    enqueued_before: datetime | None = None,
    limit: int = 100,
) -> list[int]:
    """Ids of the deliveries a worker could claim now, oldest first.

    With ``enqueued_before``, leaves out those for which a message was sent since then
    (see :func:`enqueued`).
    """
    query = select(Delivery.id).where(
        Delivery.state == DeliveryState.PENDING,
        or_(Delivery.next_attempt_at.is_(None), Delivery.next_attempt_at <= now),
    )
    if enqueued_before is not None:
        query = query.where(
            or_(Delivery.enqueued_at.is_(None), Delivery.enqueued_at < enqueued_before)
        )
    return list(session.scalars(query.order_by(Delivery.id).limit(limit)))


def enqueued(delivery_ids: Sequence[int], *, now: datetime, session: Session) -> None:
    """Remember that a broker message was sent for these deliveries."""
    session.execute(
        update(Delivery).where(Delivery.id.in_(delivery_ids)).values(enqueued_at=now),
        execution_options={"synchronize_session": False},
    )


def _fallback(artifact: ArtifactRow, *, session: Session) -> ArtifactRow | None:
    """The other form of the report, for a delivery of the report."""
    if artifact.kind is not ArtifactKind.SR:
        return None
    query = select(ArtifactRow).where(
        ArtifactRow.job_id == artifact.job_id, ArtifactRow.kind == ArtifactKind.SR_FALLBACK
    )
    return session.scalars(query).one_or_none()


def _subject(delivery: Delivery, *, session: Session) -> ledger.Subject:
    query = (
        select(Job.series_id, Job.id)
        .join(ArtifactRow, ArtifactRow.job_id == Job.id)
        .where(ArtifactRow.id == delivery.artifact_id)
    )
    series_id, job_id = session.execute(query).one()
    return ledger.Subject(series_id=series_id, job_id=job_id, delivery_id=delivery.id)


def _answer(status: int | None, error: str) -> dict[str, Any]:
    shown = None if status is None else f"0x{status:04X}"
    return {"status": shown, "error": clean(error)}


def _leave(
    delivery_id: int,
    event: DeliveryEvent,
    *,
    lease: str,
    values: Mapping[str, Any],
    detail: Mapping[str, Any],
    now: datetime,
    session: Session,
) -> None:
    """Move a held delivery out of SENDING and give the lease back."""
    delivery = load(Delivery, delivery_id, session=session)
    held = delivery.state is DeliveryState.SENDING and delivery.lease == lease
    moved = held and advance(
        delivery,
        DELIVERY,
        event,
        subject=_subject(delivery, session=session),
        lease=lease,
        values={**_RELEASED, **values},
        detail=detail,
        now=now,
        session=session,
    )
    if not moved:
        msg = f"the lease on delivery {delivery_id} is no longer in force"
        raise LeaseLost(msg)
