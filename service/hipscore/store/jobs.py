"""Jobs: claim under a lease, finish with all results in one transaction, or try again later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import exists, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import JOB, DeliveryState, IllegalMove, JobEvent, JobState
from hipscore.routing import DICOM_RESULTS
from hipscore.store import ledger, performing
from hipscore.store.moves import LeaseLost, advance, clean, forfeited, load, nobody_died
from hipscore.store.tables import ArtifactRow, Delivery, Event, Instance, Job, JobInstance

_UNFINISHED = (JobState.QUEUED, JobState.ANALYSING)
_RELEASED: dict[str, Any] = {"lease": None, "lease_until": None, "enqueued_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """One built output whose bytes lie in the spool. DICOM objects have both UIDs."""

    kind: ArtifactKind
    media_type: str
    spool_key: str
    sha256: str
    size: int
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    number: int = 0


class StoredImage(NamedTuple):
    """Where the bytes of one image of a job are."""

    sop_instance_uid: str
    spool_key: str
    sha256: str


def claim(
    job_id: int, *, lease: str, lease_until: datetime, now: datetime, session: Session
) -> Job | None:
    """QUEUED → ANALYSING under ``lease`` (a token nobody else has); counts the attempt.

    Returns None, and changes nothing, when the job is not QUEUED, not due yet, claimed
    by another worker at this moment, or when the job it supersedes is not finished: the
    later report has to name the earlier one.

    Raises
    ------
    hipscore.store.moves.NotFound
        If there is no such job.
    """
    job = load(Job, job_id, session=session)
    early = job.next_attempt_at is not None and job.next_attempt_at > now
    if job.state is not JobState.QUEUED or early:
        return None
    if job.supersedes_id is not None:
        previous = load(Job, job.supersedes_id, session=session)
        if previous.state in _UNFINISHED:
            return None
    won = advance(
        job,
        JOB,
        JobEvent.CLAIM,
        subject=_subject(job),
        values={
            "attempts": Job.attempts + 1,
            "lease": lease,
            "lease_until": lease_until,
            "next_attempt_at": None,
        },
        detail={"attempt": job.attempts + 1},
        now=now,
        session=session,
    )
    return job if won else None


def renew(job_id: int, *, lease: str, lease_until: datetime, session: Session) -> None:
    """Hold the lease longer. Raises LeaseLost if it is no longer in force."""
    job = _held(job_id, lease, session=session)
    swap = (
        update(Job)
        .where(Job.id == job.id, Job.state == JobState.ANALYSING, Job.lease == lease)
        .values(lease_until=lease_until)
        .returning(Job.id)
    )
    done = session.execute(swap, execution_options={"synchronize_session": False})
    if done.scalar_one_or_none() is None:
        raise _lost(job_id)
    session.refresh(job)


def instances(job_id: int, *, session: Session) -> list[StoredImage]:
    """The images of a job, in order of arrival; fixed when the job was opened."""
    query = (
        select(Instance.sop_instance_uid, Instance.spool_key, Instance.sha256)
        .join(JobInstance, JobInstance.instance_id == Instance.id)
        .where(JobInstance.job_id == job_id)
        .order_by(Instance.id)
    )
    return [StoredImage(*row) for row in session.execute(query)]


def predecessor(job_id: int, *, session: Session) -> ArtifactRow | None:
    """The SR of the nearest earlier job of the series that has one, or None.

    This is what the report of the job supersedes (Predecessor Documents Sequence,
    PS3.3 C.17.2).
    """
    earlier = load(Job, job_id, session=session).supersedes_id
    while earlier is not None:
        query = select(ArtifactRow).where(
            ArtifactRow.job_id == earlier, ArtifactRow.kind == ArtifactKind.SR
        )
        report = session.scalars(query).one_or_none()
        if report is not None:
            return report
        earlier = load(Job, earlier, session=session).supersedes_id
    return None


def _dicom_results(destination: str, kind: ArtifactKind) -> bool:
    del destination
    return kind in DICOM_RESULTS


def finish(
    job_id: int,
    *,
    lease: str,
    state: Literal[JobState.ANALYSED, JobState.NOT_SCORABLE],
    result: Mapping[str, Any],
    artifacts: Sequence[StoredArtifact],
    destinations: Sequence[str],
    timings: Mapping[str, float],
    engine: Mapping[str, Any] | None = None,
    travels: Callable[[str, ArtifactKind], bool] = _dicom_results,
    now: datetime,
    session: Session,
) -> list[int]:
    """ANALYSING → ANALYSED or NOT_SCORABLE, with everything that belongs to it.

    Stores the result (``reporting/result.schema.json``; its reason code goes to
    ``reason_code``), the artifacts, and one PENDING delivery per artifact and destination
    that it ``travels`` to. The fallback of the report travels with the report.

    Returns
    -------
    list of int
        Ids of the deliveries, in the order of artifacts and destinations.

    Raises
    ------
    hipscore.store.moves.LeaseLost
        If the lease is not in force; nothing is changed.
    """
    events = {
        JobState.ANALYSED: JobEvent.ANALYSED,
        JobState.NOT_SCORABLE: JobEvent.NOT_SCORABLE,
    }
    job = _held(job_id, lease, session=session)
    reason = result.get("reason") or {}
    _leave(
        job,
        events[state],
        lease=lease,
        values={
            "result": dict(result),
            "timings": dict(timings),
            "engine": dict(engine) if engine is not None else None,
            "reason_code": reason.get("code"),
            "error": None,
            "finished_at": now,
        },
        detail={"reason": reason.get("code"), "artifacts": [a.kind.value for a in artifacts]},
        now=now,
        session=session,
    )
    rows = _add_artifacts(job_id, artifacts, now=now, session=session)
    goes_to = [each for each in destinations if any(travels(each, row.kind) for row in rows)]
    performing.finished(job, rows, goes_to, now=now, session=session)
    parcels = [
        (row, destination)
        for row in rows
        for destination in dict.fromkeys(destinations)
        if row.kind is not ArtifactKind.SR_FALLBACK and travels(destination, row.kind)
    ]
    return open_deliveries(job, parcels, now=now, session=session)


def postpone(
    job_id: int,
    *,
    lease: str,
    error: str,
    next_attempt_at: datetime,
    now: datetime,
    session: Session,
) -> None:
    """ANALYSING → QUEUED until ``next_attempt_at``, after something transient.

    ``error`` must not contain anything that identifies a patient. Raises LeaseLost.
    """
    job = _held(job_id, lease, session=session)
    _leave(
        job,
        JobEvent.POSTPONE,
        lease=lease,
        values={"error": clean(error), "next_attempt_at": next_attempt_at},
        detail={"error": clean(error), "next_attempt_at": next_attempt_at.isoformat()},
        now=now,
        session=session,
    )


def fail(
    job_id: int,
    *,
    lease: str,
    error: str,
    reason_code: str | None = None,
    now: datetime,
    session: Session,
) -> None:
    """ANALYSING → FAILED: a defect, or too many attempts. Raises LeaseLost.

    ``reason_code`` is for a failure that somebody waits to see mended (see
    :mod:`hipscore.store.retention`). ``error`` must not contain anything that identifies a patient.
    """
    job = _held(job_id, lease, session=session)
    _leave(
        job,
        JobEvent.FAIL,
        lease=lease,
        values={"error": clean(error), "reason_code": reason_code, "finished_at": now},
        detail={"error": clean(error), **({"reason": reason_code} if reason_code else {})},
        now=now,
        session=session,
    )


def retry(job_id: int, *, now: datetime, session: Session) -> Job:
    """Back to QUEUED by an operator, due at once, attempts counted from 0 again.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the job is running, has a result, or a newer job of the series replaced it.
    hipscore.store.moves.NotFound
        If there is no such job.
    """
    job = load(Job, job_id, session=session, lock=True)
    newer = session.scalars(select(Job.id).where(Job.supersedes_id == job_id)).first()
    if newer is not None:
        msg = f"job {job_id} is superseded by job {newer}; retry that one"
        raise IllegalMove(msg)
    moved = advance(
        job,
        JOB,
        JobEvent.RETRY,
        subject=_subject(job),
        values={
            "attempts": 0,
            "next_attempt_at": None,
            "enqueued_at": None,
            "reason_code": None,
            "finished_at": None,
        },
        now=now,
        session=session,
    )
    if not moved:
        msg = f"job {job_id} was changed by someone else just now; look again"
        raise IllegalMove(msg)
    return job


def expire_leases(
    *,
    now: datetime,
    max_attempts: int,
    died: Callable[[str], bool] = nobody_died,
    session: Session,
) -> list[int]:
    """Take jobs from workers that are silent or ``died``: back to QUEUED.

    A job that lost ``max_attempts`` workers, since an operator retried it, is FAILED: the
    next worker would not live longer. Returns the ids of those that are QUEUED again.
    """
    query = select(Job.id).where(Job.state == JobState.ANALYSING)  # as many as workers at most
    queued = []
    for job_id in session.scalars(query.order_by(Job.id)).all():
        job = load(Job, job_id, session=session, lock=True)
        error = forfeited(job, now=now, died=died)
        if job.state is not JobState.ANALYSING or error is None:
            continue  # in force, or finished since the scan
        spent = 1 + _deaths(job, session=session) >= max_attempts
        advance(
            job,
            JOB,
            JobEvent.FAIL if spent else JobEvent.EXPIRE,
            subject=_subject(job),
            lease=job.lease,
            values={
                **_RELEASED,
                "error": error,
                "finished_at": now if spent else None,
            },
            detail={"error": error, "attempt": job.attempts},
            now=now,
            session=session,
        )
        if not spent:
            queued.append(job_id)
    return queued


def due(
    now: datetime,
    *,
    session: Session,
    enqueued_before: datetime | None = None,
    limit: int = 100,
) -> list[int]:
    """Ids of the jobs a worker could claim now, oldest first.

    With ``enqueued_before``, leaves out those for which a message was sent since then
    (see :func:`enqueued`), so that a backlog is not announced over and over.
    """
    previous = aliased(Job)
    waits = exists().where(previous.id == Job.supersedes_id, previous.state.in_(_UNFINISHED))
    query = select(Job.id).where(
        Job.state == JobState.QUEUED,
        or_(Job.next_attempt_at.is_(None), Job.next_attempt_at <= now),
        ~waits,
    )
    if enqueued_before is not None:
        query = query.where(or_(Job.enqueued_at.is_(None), Job.enqueued_at < enqueued_before))
    return list(session.scalars(query.order_by(Job.id).limit(limit)))


def enqueued(job_ids: Sequence[int], *, now: datetime, session: Session) -> None:
    """Remember that a broker message was sent for these jobs."""
    session.execute(
        update(Job).where(Job.id.in_(job_ids)).values(enqueued_at=now),
        execution_options={"synchronize_session": False},
    )


def _deaths(job: Job, *, session: Session) -> int:
    """How many workers the job has lost since it was opened or retried, by the ledger.

    Attempts would count what a full disk or a locked database postponed as well.
    """
    own = (
        Event.series_id == job.series_id,
        Event.job_id == job.id,
        Event.delivery_id.is_(None),
    )
    retried = select(func.max(Event.id)).where(*own, Event.what == JobEvent.RETRY.value)
    since = session.scalar(retried) or 0
    lost = select(func.count()).where(*own, Event.what == JobEvent.EXPIRE.value, Event.id > since)
    return session.scalar(lost) or 0


def _subject(job: Job) -> ledger.Subject:
    return ledger.Subject(series_id=job.series_id, job_id=job.id)


def _lost(job_id: int) -> LeaseLost:
    return LeaseLost(f"the lease on job {job_id} is no longer in force; its result is dropped")


def _held(job_id: int, lease: str, *, session: Session) -> Job:
    job = load(Job, job_id, session=session)
    if job.state is not JobState.ANALYSING or job.lease != lease:
        raise _lost(job_id)
    return job


def _leave(
    job: Job,
    event: JobEvent,
    *,
    lease: str,
    values: Mapping[str, Any],
    detail: Mapping[str, Any],
    now: datetime,
    session: Session,
) -> None:
    """Move a held job out of ANALYSING and give the lease back."""
    moved = advance(
        job,
        JOB,
        event,
        subject=_subject(job),
        lease=lease,
        values={**_RELEASED, **values},
        detail=detail,
        now=now,
        session=session,
    )
    if not moved:
        raise _lost(job.id)


def artifact_row(job_id: int, artifact: StoredArtifact, now: datetime) -> ArtifactRow:
    """The line of an artifact whose bytes lie in the spool."""
    return ArtifactRow(**_artifact_columns(job_id, artifact, now))


def open_delivery(
    job: Job, artifact: ArtifactRow, destination: str, *, now: datetime, session: Session
) -> int:
    """Add a PENDING delivery, and its line in the ledger; returns its id."""
    return open_deliveries(job, [(artifact, destination)], now=now, session=session)[0]


def open_deliveries(
    job: Job,
    parcels: Sequence[tuple[ArtifactRow, str]],
    *,
    now: datetime,
    session: Session,
) -> list[int]:
    """Add a PENDING delivery for each artifact and destination; their ids in this order."""
    if not parcels:
        return []
    new = {"state": DeliveryState.PENDING, "attempts": 0, "created_at": now}
    rows = [
        {"artifact_id": artifact.id, "destination": destination, **new}
        for artifact, destination in parcels
    ]
    # one statement, whose answer may come in any order
    added = insert(Delivery).returning(Delivery.id, Delivery.artifact_id, Delivery.destination)
    ids = {(row.artifact_id, row.destination): row.id for row in session.execute(added, rows)}
    opened = [ids[artifact.id, destination] for artifact, destination in parcels]
    lines = [
        (
            ledger.Subject(series_id=job.series_id, job_id=job.id, delivery_id=delivery_id),
            {"artifact": artifact.kind.value, "destination": destination},
        )
        for delivery_id, (artifact, destination) in zip(opened, parcels, strict=True)
    ]
    ledger.append_all(lines, "open", to_state=DeliveryState.PENDING, now=now, session=session)
    return opened


def _add_artifacts(
    job_id: int, artifacts: Sequence[StoredArtifact], *, now: datetime, session: Session
) -> list[ArtifactRow]:
    """Their rows, in this order."""
    if not artifacts:
        return []
    rows = [_artifact_columns(job_id, each, now) for each in artifacts]
    added = session.scalars(insert(ArtifactRow).returning(ArtifactRow), rows)
    made = {(row.kind, row.number): row for row in added}
    return [made[each.kind, each.number] for each in artifacts]


def _artifact_columns(job_id: int, artifact: StoredArtifact, now: datetime) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "kind": artifact.kind,
        "number": artifact.number,
        "media_type": artifact.media_type,
        "spool_key": artifact.spool_key,
        "sha256": artifact.sha256,
        "size": artifact.size,
        "sop_class_uid": artifact.sop_class_uid,
        "sop_instance_uid": artifact.sop_instance_uid,
        "created_at": now,
    }
