"""Storage commitment of what was sent: asked for by destination, answered by transaction.

A SENT delivery with ``commit_at`` wants it. Whoever asks locks the rows that are due and moves
their ``commit_at`` on first, so that no object is in two requests at once; who dies while
asking has only postponed it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from hipscore.lifecycle import DELIVERY, DeliveryEvent, DeliveryState, backoff
from hipscore.store import ledger
from hipscore.store.deliveries import subject_of
from hipscore.store.moves import advance, clean
from hipscore.store.tables import ArtifactRow, Delivery, Job

#: objects of one request
BATCH = 100
#: a peer that does not offer storage commitment is asked again after this, at least
NOT_OFFERED_S = 3600.0
#: Failure Reason (0008,1197): Referenced SOP Class not supported (PS3.3 C.14.1.1)
NEVER = 0x0122
NO_REPORT = "stored; the peer has not reported on the storage commitment yet"

_NO_SYNC: dict[str, Any] = {"synchronize_session": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One request: SOP Class and SOP Instance UID of what a destination is to commit to."""

    uid: str
    destination: str
    objects: tuple[tuple[str, str], ...]


def due(
    now: datetime,
    *,
    session: Session,
    enqueued_before: datetime | None = None,
    limit: int = 100,
) -> list[int]:
    """One delivery of each destination that is to be asked for storage commitment now.

    With ``enqueued_before``, leaves out destinations for which a message was sent since
    then (see :func:`hipscore.store.deliveries.enqueued`).
    """
    query = (
        select(func.min(Delivery.id))
        .where(Delivery.state == DeliveryState.SENT, Delivery.commit_at <= now)
        .group_by(Delivery.destination)
    )
    if enqueued_before is not None:
        last = func.max(Delivery.enqueued_at)
        query = query.having(or_(last.is_(None), last < enqueued_before))
    return list(session.scalars(query.order_by(func.min(Delivery.id)).limit(limit)))


def open_transaction(
    destination: str, *, held_until: datetime, now: datetime, session: Session
) -> Transaction | None:
    """Take what is due for this destination into one request, at most 100 objects.

    Commit before the request leaves: the report may come at once. Until ``held_until``
    nobody else asks for these objects; :func:`accepted` or :func:`failed` say what then.

    Returns
    -------
    Transaction or None
        None when nothing is due, or another was faster.
    """
    query = (
        select(Delivery, ArtifactRow, Job.series_id)
        .join(ArtifactRow, ArtifactRow.id == Delivery.form_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(
            Delivery.destination == destination,
            Delivery.state == DeliveryState.SENT,
            Delivery.commit_at <= now,
        )
        .order_by(Delivery.id)
        .limit(BATCH)
        .with_for_update(key_share=True, of=Delivery)
    )
    uid = f"2.25.{uuid.uuid4().int}"
    # The lock lets whoever asks at this moment finish: then they are not due any more.
    due_now = session.execute(query, execution_options={"populate_existing": True}).all()
    if not due_now:
        return None
    # No report on the last request, though the peer took it.
    overdue = [
        delivery
        for delivery, _, _ in due_now
        if delivery.transaction_uid is not None and delivery.error in {None, NO_REPORT}
    ]
    asked = [
        ledger.Subject(series_id=series_id, job_id=form.job_id, delivery_id=delivery.id)
        for delivery, form, series_id in due_now
        if not delivery.commit_attempts
    ]
    _take([delivery.id for delivery, _, _ in due_now], uid, held_until, session)
    for delivery in overdue:
        _note(delivery, "no_report", NO_REPORT, now=now, session=session)
    lines = [(subject, {"transaction_uid": uid}) for subject in asked]
    ledger.append_all(lines, "commitment_asked", now=now, session=session)
    objects = [(str(form.sop_class_uid), str(form.sop_instance_uid)) for _, form, _ in due_now]
    return Transaction(uid=uid, destination=destination, objects=tuple(objects))


def accepted(transaction_uid: str, *, wait_s: float, now: datetime, session: Session) -> None:
    """The peer took the request: it is asked again when no report comes for ``wait_s``."""
    for delivery in _waiting(transaction_uid, session=session):
        pause = max(backoff(delivery.commit_attempts), wait_s)
        delivery.commit_at = now + timedelta(seconds=pause)
        delivery.error = NO_REPORT if delivery.error == NO_REPORT else None
    session.flush()


def failed(
    transaction_uid: str,
    *,
    error: str,
    offered: bool = True,
    max_attempts: int,
    now: datetime,
    session: Session,
) -> datetime | None:
    """The request did not reach the peer, or was refused: ask again later.

    A peer that does not offer storage commitment is asked at most once an hour, and not
    any more after ``max_attempts``: the deliveries stay SENT and their ``error`` says what
    to do. Everything else that is due for the destination waits as well.

    Returns
    -------
    datetime or None
        When it is asked again; None if it is not.
    """
    later = None
    rows = _waiting(transaction_uid, session=session)
    for delivery in rows:
        pause = backoff(delivery.commit_attempts)
        later = now + timedelta(seconds=pause if offered else max(pause, NOT_OFFERED_S))
        if not offered and delivery.commit_attempts >= max_attempts:
            later = None
        delivery.commit_at = later
        what = "commitment_failed" if offered else "no_commitment_offered"
        _note(delivery, what, error, now=now, session=session)
    session.flush()
    if rows and later is not None:
        others = update(Delivery).where(
            Delivery.destination == rows[0].destination,
            Delivery.state == DeliveryState.SENT,
            Delivery.commit_at <= now,
        )
        session.execute(others.values(commit_at=later), execution_options=_NO_SYNC)
    return later


def destinations(*, session: Session) -> list[str]:
    """Those that have something whose storage commitment is wanted."""
    query = select(Delivery.destination).where(
        Delivery.state == DeliveryState.SENT, Delivery.commit_at.is_not(None)
    )
    return list(session.scalars(query.distinct()))


def waive(destination: str, *, session: Session) -> int:
    """Ask this destination no more: what it has stays SENT. Returns how many."""
    swap = (
        update(Delivery)
        .where(
            Delivery.destination == destination,
            Delivery.state == DeliveryState.SENT,
            Delivery.commit_at.is_not(None),
        )
        .values(commit_at=None, error=None, enqueued_at=None)
        .returning(Delivery.id)
    )
    return len(session.execute(swap, execution_options=_NO_SYNC).scalars().all())


def report(
    transaction_uid: str,
    *,
    succeeded: Collection[str],
    failed: Mapping[str, tuple[int, str]],
    by: Callable[[str], bool],
    max_attempts: int,
    now: datetime,
    session: Session,
) -> bool:
    """What the peer says of the objects of one request (PS3.4 J.3.3), by SOP Instance UID.

    SENT → COMMITTED for what ``succeeded``. What ``failed`` (Failure Reason and its
    meaning) goes back to PENDING and is sent again after the usual pause; EXHAUSTED after
    ``max_attempts``, REFUSED if the peer never takes its SOP class. The same report again,
    or a late one on what was sent again since, changes nothing; nor does one on deliveries to
    a destination that is not the reporter (``by``, asked with ``AET@HOST:PORT``).

    Returns
    -------
    bool
        Whether the transaction is known.
    """
    query = (
        select(Delivery, ArtifactRow.sop_instance_uid, ArtifactRow.job_id, Job.series_id)
        .join(ArtifactRow, ArtifactRow.id == Delivery.form_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(Delivery.transaction_uid == transaction_uid)
        .order_by(Delivery.id)
        .with_for_update(key_share=True, of=Delivery)
    )
    found = session.execute(query, execution_options={"populate_existing": True}).all()
    rows = [each for each in found if by(each.Delivery.destination)]
    for delivery, sop_instance_uid, job_id, series_id in rows:
        uid = str(sop_instance_uid)
        subject = ledger.Subject(series_id=series_id, job_id=job_id, delivery_id=delivery.id)
        if delivery.state is not DeliveryState.SENT:
            continue
        if uid in failed:
            _decline(delivery, subject, *failed[uid], max_attempts, now, session)
        elif uid in succeeded:
            _move(
                delivery,
                subject,
                DeliveryEvent.COMMIT,
                {"commit_at": None, "enqueued_at": None, "error": None, "finished_at": now},
                {"transaction_uid": transaction_uid},
                now,
                session,
            )
    return bool(rows)


def unanswered(transaction_uid: str, *, session: Session) -> bool:
    """Whether any object of the request still waits for the report."""
    query = select(Delivery.id).where(
        Delivery.transaction_uid == transaction_uid, Delivery.state == DeliveryState.SENT
    )
    return session.scalars(query.limit(1)).first() is not None


def _take(delivery_ids: Sequence[int], uid: str, held_until: datetime, session: Session) -> None:
    """Put deliveries that are locked into the request."""
    swap = (
        update(Delivery)
        .where(Delivery.id.in_(delivery_ids))
        .values(
            commit_at=held_until,
            commit_attempts=Delivery.commit_attempts + 1,
            transaction_uid=uid,
            enqueued_at=None,
        )
    )
    session.execute(swap, execution_options=_NO_SYNC)


def _waiting(transaction_uid: str, *, session: Session) -> Sequence[Delivery]:
    """What waits for the report on this request, locked."""
    query = (
        select(Delivery)
        .where(Delivery.transaction_uid == transaction_uid, Delivery.state == DeliveryState.SENT)
        .order_by(Delivery.id)
        .with_for_update(key_share=True)
    )
    return session.scalars(query, execution_options={"populate_existing": True}).all()


def _decline(  # noqa: PLR0917 - one caller, right here
    delivery: Delivery,
    subject: ledger.Subject,
    reason: int,
    meaning: str,
    max_attempts: int,
    now: datetime,
    session: Session,
) -> None:
    error = clean(f"{delivery.destination} does not keep it: {meaning} (0x{reason:04X})")
    values: dict[str, Any] = {
        "status": reason,
        "error": error,
        "commit_at": None,
        "enqueued_at": None,
        "finished_at": now,
    }
    detail = {"failure_reason": f"0x{reason:04X}", "error": error}
    if reason == NEVER:
        event = DeliveryEvent.REFUSE
    elif delivery.attempts >= max_attempts:
        event = DeliveryEvent.EXHAUST
    else:
        event = DeliveryEvent.DECLINE
        later = now + timedelta(seconds=backoff(max(delivery.attempts, 1)))
        values |= {"next_attempt_at": later, "finished_at": None}
        detail["next_attempt_at"] = later.isoformat()
    _move(delivery, subject, event, values, detail, now, session)


def _move(  # noqa: PLR0917 - two callers, right here
    delivery: Delivery,
    subject: ledger.Subject,
    event: DeliveryEvent,
    values: Mapping[str, Any],
    detail: Mapping[str, Any],
    now: datetime,
    session: Session,
) -> None:
    advance(
        delivery,
        DELIVERY,
        event,
        subject=subject,
        values=values,
        detail=detail,
        now=now,
        session=session,
    )


def _note(delivery: Delivery, what: str, error: str, *, now: datetime, session: Session) -> None:
    """Show what went wrong; a line in the ledger only when it is something new."""
    error = clean(error)
    if delivery.error == error:
        return
    delivery.error = error
    session.flush()
    detail = {"error": error}
    subject = subject_of(delivery, session=session)
    ledger.append(subject, what, detail=detail, now=now, session=session)
