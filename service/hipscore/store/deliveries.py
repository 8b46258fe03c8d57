"""Deliveries: one stored artifact on its way to one destination, sent as often as it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session, aliased

from hipscore.addresses import DicomWeb, Mllp
from hipscore.addresses import destination as parse
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DELIVERY, DeliveryEvent, DeliveryState, IllegalMove
from hipscore.store import ledger, retracting
from hipscore.store.moves import (
    LeaseLost,
    NotFound,
    advance,
    clean,
    forfeited,
    load,
    nobody_died,
)
from hipscore.store.tables import ArtifactRow, Delivery, Job

_RELEASED: dict[str, Any] = {"lease": None, "lease_until": None, "enqueued_at": None}


#: why a delivery was stopped
WITHDRAWN = "the result was withdrawn before it was sent"


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
    claimed by another worker at this moment. What was withdrawn meanwhile is stopped. What
    takes a result back waits while that is being sent (:mod:`hipscore.store.retracting`).

    Raises
    ------
    hipscore.store.moves.NotFound
        If there is no such delivery.
    """
    found = _found(delivery_id, session=session)
    delivery, artifact = found.delivery, found.artifact
    early = delivery.next_attempt_at is not None and delivery.next_attempt_at > now
    if delivery.state is not DeliveryState.PENDING or early:
        return None
    if found.withdrawn_at is not None and not retracting.takes_back(artifact):
        stop(delivery, now=now, session=session)
        return None
    if retracting.waits(delivery, now=now, session=session):
        return None
    won = advance(
        delivery,
        DELIVERY,
        DeliveryEvent.CLAIM,
        subject=found.subject,
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
    return Parcel(delivery=delivery, artifact=artifact, fallback=found.fallback) if won else None


def sent(
    delivery_id: int,
    *,
    lease: str,
    status: int | None,
    form: ArtifactRow | None = None,
    commit: bool = False,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → SENT: the peer answered that it has it (``status``: see :func:`shown`).

    ``form`` is the artifact that went, where there was a choice. With ``commit``, storage
    commitment is to be asked for (:mod:`hipscore.store.commitment`), and is due at once.
    Raises LeaseLost.
    """
    _leave(
        delivery_id,
        DeliveryEvent.SENT,
        lease=lease,
        values={
            "status": status,
            "error": None,
            "form_id": Delivery.artifact_id if form is None else form.id,
            "commit_at": now if commit else None,
            "commit_attempts": 0,
            "transaction_uid": None,
            "finished_at": now,
        },
        detail=lambda destination: {
            "status": shown(destination, status),
            **({"artifact": form.kind.value} if form else {}),
        },
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
        detail=lambda destination: {
            **_answer(destination, status, error),
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
    form_id: int | None = None,
    now: datetime,
    session: Session,
) -> None:
    """SENDING → REFUSED: the peer will not take it, however often. Raises LeaseLost.

    ``form_id`` is the artifact that goes instead (:mod:`hipscore.store.replacing`), if any:
    then nobody has to act.
    """
    _leave(
        delivery_id,
        DeliveryEvent.REFUSE,
        lease=lease,
        values={
            "status": status,
            "error": clean(error),
            "form_id": form_id,
            "finished_at": now,
        },
        detail=lambda destination: _answer(destination, status, error),
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
        detail=lambda destination: _answer(destination, status, error),
        now=now,
        session=session,
    )


def retry(delivery_id: int, *, now: datetime, session: Session) -> Delivery:
    """Back to PENDING by an operator, due at once, attempts counted from 0 again.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the delivery is being sent at this moment, or what it sends was purged or withdrawn.
    hipscore.store.moves.NotFound
        If there is no such delivery.
    """
    delivery = load(Delivery, delivery_id, session=session, lock=True)
    purged_at = session.scalar(
        select(ArtifactRow.purged_at).where(ArtifactRow.id == delivery.artifact_id)
    )
    if purged_at is not None:
        msg = f"what delivery {delivery_id} sends was purged on {purged_at:%Y-%m-%d}"
        raise IllegalMove(msg)
    if _withdrawn(delivery, session=session):
        msg = f"what delivery {delivery_id} sends was withdrawn; it does not go out any more"
        raise IllegalMove(msg)
    moved = advance(
        delivery,
        DELIVERY,
        DeliveryEvent.RETRY,
        subject=subject_of(delivery, session=session),
        values={
            "attempts": 0,
            "next_attempt_at": None,
            "enqueued_at": None,
            "finished_at": None,
            "form_id": None,
            "commit_at": None,
            "commit_attempts": 0,
            "transaction_uid": None,
        },
        now=now,
        session=session,
    )
    if not moved:
        msg = f"delivery {delivery_id} was changed by someone else just now; look again"
        raise IllegalMove(msg)
    return delivery


def stop(delivery: Delivery, *, now: datetime, session: Session) -> bool:
    """PENDING or EXHAUSTED → REFUSED: the result was withdrawn. False if somebody was faster.

    As with everything that something else goes in the place of, ``form_id`` says that
    nothing is left to be done: the note of the withdrawal goes where it has to.
    """
    return advance(
        delivery,
        DELIVERY,
        DeliveryEvent.WITHDRAW,
        subject=subject_of(delivery, session=session),
        values={
            **_RELEASED,
            "error": WITHDRAWN,
            "next_attempt_at": None,
            "form_id": delivery.artifact_id,
            "finished_at": now,
        },
        detail={"error": WITHDRAWN},
        now=now,
        session=session,
    )


def expire_leases(
    *,
    now: datetime,
    max_attempts: int,
    died: Callable[[str], bool] = nobody_died,
    session: Session,
) -> list[int]:
    """Take deliveries from workers that are silent or ``died``: PENDING, or EXHAUSTED.

    Returns the ids of those that are PENDING again.
    """
    query = select(Delivery.id).where(Delivery.state == DeliveryState.SENDING)  # very few
    pending = []
    for delivery_id in session.scalars(query.order_by(Delivery.id)).all():
        delivery = load(Delivery, delivery_id, session=session, lock=True)
        error = forfeited(delivery, now=now, died=died)
        if delivery.state is not DeliveryState.SENDING or error is None:
            continue  # in force, or sent since the scan
        spent = delivery.attempts >= max_attempts
        advance(
            delivery,
            DELIVERY,
            DeliveryEvent.EXHAUST if spent else DeliveryEvent.EXPIRE,
            subject=subject_of(delivery, session=session),
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


def underway(destination: str, now: datetime, *, session: Session) -> bool:
    """Whether anything is being sent to this destination, or could be now."""
    due_now = or_(Delivery.next_attempt_at.is_(None), Delivery.next_attempt_at <= now)
    query = select(Delivery.id).where(
        Delivery.destination == destination,
        or_(
            Delivery.state == DeliveryState.SENDING,
            and_(Delivery.state == DeliveryState.PENDING, due_now),
        ),
    )
    return session.scalars(query.limit(1)).first() is not None


def enqueued(delivery_ids: Sequence[int], *, now: datetime, session: Session) -> None:
    """Remember that a broker message was sent for these deliveries."""
    session.execute(
        update(Delivery).where(Delivery.id.in_(delivery_ids)).values(enqueued_at=now),
        execution_options={"synchronize_session": False},
    )


def shown(destination: str, status: int | None) -> str | None:
    """A status as people read it: ``0xA700`` of a DICOM peer, ``HTTP 503`` of DICOMweb."""
    if status is None or isinstance(kind := parse(destination), Mllp):
        return None
    return f"HTTP {status}" if isinstance(kind, DicomWeb) else f"0x{status:04X}"


def subject_of(delivery: Delivery, *, session: Session) -> ledger.Subject:
    """Whom a line of the ledger about this delivery is about."""
    query = (
        select(Job.series_id, Job.id)
        .join(ArtifactRow, ArtifactRow.job_id == Job.id)
        .where(ArtifactRow.id == delivery.artifact_id)
    )
    series_id, job_id = session.execute(query).one()
    return ledger.Subject(series_id=series_id, job_id=job_id, delivery_id=delivery.id)


def _withdrawn(delivery: Delivery, *, session: Session) -> bool:
    """Whether this is part of a withdrawn result; what says so is not."""
    query = (
        select(ArtifactRow.id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(
            ArtifactRow.id == delivery.artifact_id,
            ~retracting.TAKES_BACK,
            Job.withdrawn_at.is_not(None),
        )
    )
    return session.scalars(query).one_or_none() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A delivery as it is in the database now, and what belongs to it."""

    delivery: Delivery
    artifact: ArtifactRow
    fallback: ArtifactRow | None
    subject: ledger.Subject
    withdrawn_at: datetime | None


def _found(delivery_id: int, *, session: Session) -> _Found:
    """One statement: this is read before and after every object that is sent."""
    other = aliased(ArtifactRow)
    query = (
        select(Delivery, ArtifactRow, other, Job.series_id, Job.withdrawn_at)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .outerjoin(other, fallback_of(other))
        .where(Delivery.id == delivery_id)
        .execution_options(populate_existing=True)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        msg = f"there is no delivery {delivery_id}"
        raise NotFound(msg)
    delivery, artifact, fallback, series_id, withdrawn_at = found
    return _Found(
        delivery=delivery,
        artifact=artifact,
        fallback=fallback,
        subject=ledger.Subject(
            series_id=series_id, job_id=artifact.job_id, delivery_id=delivery_id
        ),
        withdrawn_at=withdrawn_at,
    )


def fallback_of(other: Any) -> ColumnElement[bool]:
    """The condition that an (aliased) artifact is the other form of the report of ArtifactRow."""
    return and_(
        ArtifactRow.kind == ArtifactKind.SR,
        other.kind == ArtifactKind.SR_FALLBACK,
        other.job_id == ArtifactRow.job_id,
    )


def _answer(destination: str, status: int | None, error: str) -> dict[str, Any]:
    return {"status": shown(destination, status), "error": clean(error)}


def _leave(
    delivery_id: int,
    event: DeliveryEvent,
    *,
    lease: str,
    values: Mapping[str, Any],
    detail: Callable[[str], Mapping[str, Any]],
    now: datetime,
    session: Session,
) -> None:
    """Move a held delivery out of SENDING and give the lease back.

    ``detail`` is asked with the destination for the line of the ledger.
    """
    found = _found(delivery_id, session=session)
    delivery = found.delivery
    held = delivery.state is DeliveryState.SENDING and delivery.lease == lease
    moved = held and advance(
        delivery,
        DELIVERY,
        event,
        subject=found.subject,
        lease=lease,
        values={**_RELEASED, **values},
        detail=detail(delivery.destination),
        now=now,
        session=session,
    )
    if not moved:
        msg = f"the lease on delivery {delivery_id} is no longer in force"
        raise LeaseLost(msg)
