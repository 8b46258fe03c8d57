"""From the images of a series to a job: close, match, open a job.

``close``, ``match`` and ``open_job`` of one series belong into one transaction, so that
a crash between them leaves the series open and the reaper does all three again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from hipscore.domain import ReceivedInstance
from hipscore.lifecycle import (
    SERIES,
    IllegalMove,
    JobState,
    SeriesEvent,
    SeriesState,
    instances_digest,
    job_key,
)
from hipscore.store import audit, ledger, performing, summary
from hipscore.store.instances import RECEIVED, received
from hipscore.store.moves import advance, load
from hipscore.store.tables import Instance, Job, JobInstance, Series


def close(
    series_id: int,
    reason: str,
    *,
    now: datetime,
    session: Session,
    quiet_before: datetime | None = None,
) -> bool:
    """RECEIVING → COMPLETE on ``reason`` (see :class:`hipscore.lifecycle.CloseReason`).

    Returns False, and changes nothing, when the series is closed already or, with
    ``quiet_before``, when an image has arrived since then.
    """
    series = _lock(series_id, session=session)
    if series.state is not SeriesState.RECEIVING:
        return False
    if quiet_before is not None and series.last_received_at >= quiet_before:
        return False
    images = len(_instance_uids(series_id, session=session))
    return advance(
        series,
        SERIES,
        SeriesEvent.CLOSE,
        subject=ledger.Subject(series_id=series_id),
        values={"close_reason": str(reason), "closed_at": now},
        detail={"reason": str(reason), "images": images},
        now=now,
        session=session,
    )


def quiet(*, before: datetime, session: Session, limit: int = 100) -> list[int]:
    """Ids of open series without a new image since ``before``, longest silent first."""
    query = (
        select(Series.id)
        .where(Series.state == SeriesState.RECEIVING, Series.last_received_at < before)
        .order_by(Series.last_received_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def evidence(series_id: int, *, session: Session) -> tuple[ReceivedInstance, ...]:
    """What has arrived of the series, in order, for ``lifecycle.completeness`` and ``match``.

    Raises
    ------
    hipscore.store.moves.NotFound
        If there is no such series.
    """
    series = load(Series, series_id, session=session)
    query = select(*RECEIVED).where(Instance.series_id == series_id).order_by(Instance.id)
    return tuple(received(row, series) for row in session.execute(query))


class StoredBytes(NamedTuple):
    """Where the bytes of one image are."""

    spool_key: str
    sha256: str


def first_images(series_id: int, *, limit: int = 5, session: Session) -> list[StoredBytes]:
    """The images of the series that arrived first among those whose bytes are here."""
    query = (
        select(Instance.spool_key, Instance.sha256)
        .where(Instance.series_id == series_id, Instance.purged_at.is_(None))
        .order_by(Instance.id)
        .limit(limit)
    )
    return [StoredBytes(*row) for row in session.execute(query)]


def origin(series_id: int, *, session: Session) -> dict[str, str]:
    """How its first image came, as :class:`hipscore.routing.Came` takes it."""
    series = load(Series, series_id, session=session)
    return {
        "calling_aet": series.calling_aet,
        "called_aet": series.called_aet,
        "peer": series.peer,
    }


def match(
    series_id: int,
    *,
    matched: bool,
    rule: str,
    why: Sequence[str] = (),
    now: datetime,
    session: Session,
) -> bool:
    """COMPLETE → MATCHED or IGNORED by ``rule``; False when another was faster.

    ``why`` are the lines of the ledger that explain it: no values of the images in them.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the series is not COMPLETE.
    """
    series = _lock(series_id, session=session)
    return advance(
        series,
        SERIES,
        SeriesEvent.MATCH if matched else SeriesEvent.IGNORE,
        subject=ledger.Subject(series_id=series_id),
        values={"match_rule": rule},
        detail={"rule": rule, **({"why": list(why)} if why else {})},
        now=now,
        session=session,
    )


def open_job(
    series_id: int,
    *,
    bundle_id: str,
    bundle_version: str,
    bundle_sha256: str,
    now: datetime,
    session: Session,
) -> Job:
    """The job for the images the series has now; made, QUEUED, if there is none yet.

    A new job supersedes the previous one of the series, if any. Images, series and
    bundle make the key, so calling this twice gives the same job.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the series is not MATCHED.
    """
    series = _lock(series_id, session=session)
    if series.state is not SeriesState.MATCHED:
        uid, state = series.series_instance_uid, series.state.value
        msg = f"series {uid} is {state}; only a MATCHED one gets a job"
        raise IllegalMove(msg)
    uids = _instance_uids(series_id, session=session)
    digest = instances_digest(uids.values())
    key = job_key(
        series_instance_uid=series.series_instance_uid,
        instances_digest=digest,
        bundle_id=bundle_id,
        bundle_sha256=bundle_sha256,
        generation=audit.deletions(series.study_instance_uid, session=session),
    )
    # the series row is locked: nobody else opens a job of this series meanwhile
    existing = session.scalars(select(Job).where(Job.key == key)).one_or_none()
    if existing is not None:
        return existing
    newest = select(Job.id).where(Job.series_id == series_id).order_by(Job.id.desc()).limit(1)
    job = Job(
        key=key,
        series_id=series_id,
        instances_digest=digest,
        bundle_id=bundle_id,
        bundle_version=bundle_version,
        bundle_sha256=bundle_sha256,
        supersedes_id=session.scalars(newest).one_or_none(),
        state=JobState.QUEUED,
        attempts=0,
        created_at=now,
    )
    session.add(job)
    session.flush()
    session.execute(insert(JobInstance), [{"job_id": job.id, "instance_id": each} for each in uids])
    ledger.append(
        ledger.Subject(series_id=series_id, job_id=job.id),
        "open",
        to_state=JobState.QUEUED,
        detail={
            "images": len(uids),
            "bundle": f"{bundle_id} {bundle_version}",
            "supersedes": job.supersedes_id,
        },
        now=now,
        session=session,
    )
    summary.refresh(series_id, now=now, session=session)
    performing.opened(job, now=now, session=session)
    return job


def _lock(series_id: int, *, session: Session) -> Series:
    """The series, locked against concurrent images until the transaction ends.

    On SQLite the whole transaction holds the write lock already (BEGIN IMMEDIATE).
    """
    return load(Series, series_id, session=session, lock=True)


def _instance_uids(series_id: int, *, session: Session) -> dict[int, str]:
    """SOP Instance UID by instance id."""
    query = select(Instance.id, Instance.sop_instance_uid).where(Instance.series_id == series_id)
    return {row.id: row.sop_instance_uid for row in session.execute(query)}
