"""Withdrawing a result: what of it may lie where, and stopping what has not gone yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hipscore.addresses import Mllp, destination
from hipscore.domain import ArtifactKind, Side
from hipscore.lifecycle import DeliveryState, IllegalMove, JobState
from hipscore.store import account, deliveries, jobs, ledger, summary
from hipscore.store.jobs import StoredArtifact
from hipscore.store.moves import load
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series

_FINISHED = {JobState.ANALYSED, JobState.NOT_SCORABLE}


class Moved(Exception):
    """Something was sent since it was looked up; look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abroad:
    """What may lie elsewhere of the result of a job.

    Parameters
    ----------
    job_key, study_instance_uid
        Whose result.
    objects
        DICOM objects that a destination has, or may have: an answer that was not heard, or
        a transfer under way, counts. In the order in which they were made.
    destinations
        DICOM and DICOMweb destinations that have or may have any of it.
    receivers
        HL7 receivers that have or may have the message.
    report
        The structured report, whose header says whose study it is; None if there is none.
    message
        The HL7 message; None if there is none.
    series_instance_uid, sides
        What the message is about.
    """

    job_key: str
    study_instance_uid: str
    objects: tuple[ArtifactRow, ...]
    destinations: tuple[str, ...]
    receivers: tuple[str, ...]
    report: ArtifactRow | None
    message: ArtifactRow | None
    series_instance_uid: str
    sides: tuple[Side, ...]


def abroad(job_id: int, *, session: Session) -> Abroad:
    """Look up what the note about a withdrawn result has to name, and who is to be told.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the job has no result, or it is withdrawn already.
    hipscore.store.moves.NotFound
        If there is no such job.
    """
    job = load(Job, job_id, session=session, lock=True)
    if job.withdrawn_at is not None:
        msg = f"the result of job {job_id} was withdrawn on {job.withdrawn_at:%Y-%m-%d %H:%M} UTC"
        raise IllegalMove(msg)
    if job.state not in _FINISHED:
        msg = f"job {job_id} is {job.state.value} and has no result to withdraw"
        raise IllegalMove(msg)
    query = select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.id)
    made = {row.id: row for row in session.scalars(query)}
    went: set[int] = set()
    reached: list[str] = []
    heard: list[str] = []
    rows = _deliveries(job_id, session=session)
    events = _events(job, rows, session=session)
    for row in rows:
        forms = _forms(row, list(made.values()), events.get(row.id, ()))
        if not forms:
            continue
        if isinstance(destination(row.destination), Mllp):
            heard.append(row.destination)
        else:
            went.update(forms)
            reached.append(row.destination)
    series = session.get_one(Series, job.series_id)
    hips = (job.result or {}).get("hips", ())
    return Abroad(
        job_key=job.key,
        study_instance_uid=series.study_instance_uid,
        objects=tuple(row for row in made.values() if row.id in went and row.sop_instance_uid),
        destinations=tuple(dict.fromkeys(reached)),
        receivers=tuple(dict.fromkeys(heard)),
        report=next((row for row in made.values() if row.kind is ArtifactKind.SR), None),
        message=next((row for row in made.values() if row.kind is ArtifactKind.ORU), None),
        series_instance_uid=series.series_instance_uid,
        sides=tuple(side for side in Side if any(hip["side"] == side.value for hip in hips)),
    )


def withdraw(
    job_id: int,
    *,
    reason: str,
    seen: Abroad,
    note: StoredArtifact | None,
    message: StoredArtifact | None = None,
    now: datetime,
    session: Session,
) -> list[int]:
    """Withdraw the result of a job, with everything that belongs to it.

    What has not gone yet is stopped; the note goes to every destination of ``seen``, and the
    message to every receiver.

    Parameters
    ----------
    job_id
        The job.
    reason
        A code, no free text: it is written into the ledger.
    seen
        What :func:`abroad` said when the note was made.
    note
        The stored note; None where no DICOM object has gone anywhere.
    message
        The stored HL7 message that takes back the result's; None where that went nowhere.
    now, session
        As everywhere.

    Returns
    -------
    list of int
        Ids of the deliveries of note and message.

    Raises
    ------
    Moved
        If more has gone since; roll back, and make another note.
    hipscore.lifecycle.IllegalMove, hipscore.store.moves.NotFound
        As :func:`abroad`.
    """
    if _facts(abroad(job_id, session=session)) != _facts(seen):
        raise Moved
    job = load(Job, job_id, session=session)
    session.execute(
        update(Job).where(Job.id == job_id).values(withdrawn_at=now),
        execution_options={"synchronize_session": False},
    )
    told = ((note, seen.destinations), (message, seen.receivers))
    rows = [
        (jobs.artifact_row(job_id, stored, now), addresses)
        for stored, addresses in told
        if stored is not None
    ]
    session.add_all([row for row, _ in rows])
    session.flush()
    stopped = 0
    for delivery in _deliveries(job_id, session=session):
        if delivery.state in {DeliveryState.PENDING, DeliveryState.EXHAUSTED}:
            if not deliveries.stop(delivery, now=now, session=session):
                raise Moved
            stopped += 1
    ledger.append(
        ledger.Subject(series_id=job.series_id, job_id=job_id),
        "withdraw",
        detail={
            "reason": reason,
            "objects": len(seen.objects),
            "destinations": [*seen.destinations, *seen.receivers],
            "stopped": stopped,
        },
        now=now,
        session=session,
    )
    session.refresh(job)
    summary.refresh(job.series_id, now=now, session=session)
    return [
        jobs.open_delivery(job, row, each, now=now, session=session)
        for row, addresses in rows
        for each in addresses
    ]


def of_uid(uid: str, *, session: Session) -> list[int]:
    """Jobs whose results could be withdrawn under this UID, the newest of each series.

    ``uid`` is that of a study, a series, an image, or one of our objects (then its job).
    """
    query = select(ArtifactRow.job_id).where(ArtifactRow.sop_instance_uid == uid)
    made = session.scalars(query.limit(1)).one_or_none()
    if made is not None:
        return [made]
    found = []
    for each in account.find(uid, session=session).accounts:
        result = (
            detail.job.id
            for detail in each.jobs
            if detail.job.state in _FINISHED and detail.job.withdrawn_at is None
        )
        found += [job_id for job_id in [next(result, None)] if job_id is not None]
    return found


def _facts(found: Abroad) -> tuple[frozenset[int], frozenset[str]]:
    everywhere = frozenset((*found.destinations, *found.receivers))
    return frozenset(row.id for row in found.objects), everywhere


def _deliveries(job_id: int, *, session: Session) -> Sequence[Delivery]:
    query = (
        select(Delivery)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .where(ArtifactRow.job_id == job_id)
        .order_by(Delivery.id)
        .execution_options(populate_existing=True)
    )
    return session.scalars(query).all()


def _events(
    job: Job, rows: Sequence[Delivery], *, session: Session
) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """What the ledger says of tries and answers, by delivery."""
    found: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    query = (
        select(Event.delivery_id, Event.what, Event.detail)
        .where(
            Event.series_id == job.series_id,  # there is an index of the series alone
            Event.delivery_id.in_([row.id for row in rows]),
            Event.what.in_(("claim", "sent", "refuse")),
        )
        .order_by(Event.id)
    )
    for delivery_id, what, detail in session.execute(query):
        found.setdefault(delivery_id, []).append((what, detail))
    return found


def _forms(
    row: Delivery, made: Sequence[ArtifactRow], events: Sequence[tuple[str, dict[str, Any]]]
) -> set[int]:
    """Ids of the artifacts that went, or may have gone, by a delivery; empty if surely none."""
    own = next(each for each in made if each.id == row.artifact_id)
    kinds = {
        str(detail.get("artifact", own.kind.value)) for what, detail in events if what == "sent"
    }
    whats = [what for what, _ in events]
    # a try that ended in no answer may have arrived; one that was refused has not
    if whats.count("claim") > whats.count("sent") + whats.count("refuse"):
        kinds.add(own.kind.value)
        if own.kind is ArtifactKind.SR:
            kinds.add(ArtifactKind.SR_FALLBACK.value)
    return {
        each.id
        for each in made
        if each.kind.value in kinds and (each.kind is not own.kind or each.id == own.id)
    }
