"""From received images to a job: record, close, match, open a job.

``close``, ``match`` and ``open_job`` of one series belong into one transaction, so that
a crash between them leaves the series open and the reaper does all three again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import insert, select, update
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
from hipscore.store import ledger
from hipscore.store.instances import columns, insert_if_new, received
from hipscore.store.moves import advance, load
from hipscore.store.tables import Instance, Job, JobInstance, Series


class Verdict(StrEnum):
    """What a received image is to what was received before."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    MISPLACED = "misplaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Answer of :func:`record`. ``late``: the series had been closed and is open again."""

    series_id: int
    verdict: Verdict
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What has arrived of a series: its images in order of arrival, and on which associations."""

    instances: tuple[ReceivedInstance, ...]
    associations: frozenset[str]

    def all_on(self, association_id: str) -> bool:
        """Whether every image came on this association."""
        return self.associations == {association_id}


def record(
    instance: ReceivedInstance,
    *,
    spool_key: str,
    calling_aet: str,
    called_aet: str,
    peer: str,
    association_id: str,
    now: datetime,
    session: Session,
) -> Recorded:
    """Remember one received image whose bytes already lie in the spool.

    The first bytes of a SOP Instance UID are kept for ever. The same bytes again are
    DUPLICATE and change nothing but the time of the last image of an open series. Other
    bytes under the same UID are CONFLICT, an unknown image that puts the series into
    another study is MISPLACED: neither is stored, one event is written. A NEW image on a
    closed series opens it again (``late``). Safe against any number of concurrent callers.
    """
    known = _known(instance, now=now, session=session)
    if known is not None:
        return known
    with session.begin_nested() as attempt:
        series = _open_series(
            instance,
            calling_aet=calling_aet,
            called_aet=called_aet,
            peer=peer,
            now=now,
            session=session,
        )
        if series.study_instance_uid != instance.study_instance_uid:
            kept = {"kept_study": series.study_instance_uid}
            return _set_aside(Verdict.MISPLACED, series.id, instance, kept, now, session)
        added = insert_if_new(
            Instance, columns(instance, series.id, spool_key, association_id, now), session
        )
        if added:
            return _arrived(series, instance, now=now, session=session)
        attempt.rollback()  # another association stored this UID meanwhile
    known = _known(instance, now=now, session=session)
    if known is None:
        msg = f"instance {instance.sop_instance_uid} exists and does not"
        raise RuntimeError(msg)
    return known


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


def of_association(association_id: str, *, session: Session) -> list[int]:
    """Ids of open series that got a new image on this association."""
    query = (
        select(Series.id)
        .join(Instance, Instance.series_id == Series.id)
        .where(Instance.association_id == association_id, Series.state == SeriesState.RECEIVING)
        .distinct()
        .order_by(Series.id)
    )
    return list(session.scalars(query))


def evidence(series_id: int, *, session: Session) -> Evidence:
    """What has arrived of the series, for ``lifecycle.completeness`` and ``lifecycle.match``.

    Raises
    ------
    hipscore.store.moves.NotFound
        If there is no such series.
    """
    series = load(Series, series_id, session=session)
    query = select(Instance).where(Instance.series_id == series_id).order_by(Instance.id)
    rows = session.scalars(query).all()
    return Evidence(
        instances=tuple(received(row, series) for row in rows),
        associations=frozenset(row.association_id for row in rows),
    )


def match(series_id: int, *, matched: bool, rule: str, now: datetime, session: Session) -> bool:
    """COMPLETE → MATCHED or IGNORED by ``rule``; False when another was faster.

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
        detail={"rule": rule},
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
    return job


def _known(instance: ReceivedInstance, *, now: datetime, session: Session) -> Recorded | None:
    """The answer for an instance whose UID is stored already; None if it is not."""
    query = select(Instance).where(Instance.sop_instance_uid == instance.sop_instance_uid)
    kept = session.scalars(query).one_or_none()
    if kept is None:
        return None
    if kept.sha256 != instance.sha256:
        other = {"kept_sha256": kept.sha256}
        return _set_aside(Verdict.CONFLICT, kept.series_id, instance, other, now, session)
    # the sender is still busy with this series: do not let it go quiet under its hands
    session.execute(
        update(Series)
        .where(Series.id == kept.series_id, Series.state == SeriesState.RECEIVING)
        .values(last_received_at=now),
        execution_options={"synchronize_session": False},
    )
    return Recorded(series_id=kept.series_id, verdict=Verdict.DUPLICATE)


def _set_aside(  # noqa: PLR0917 - two callers, right here
    verdict: Verdict,
    series_id: int,
    instance: ReceivedInstance,
    kept: dict[str, str],
    now: datetime,
    session: Session,
) -> Recorded:
    ledger.append(
        ledger.Subject(series_id=series_id),
        verdict.value,
        detail={
            "sop_instance_uid": instance.sop_instance_uid,
            "study_instance_uid": instance.study_instance_uid,
            "series_instance_uid": instance.series_instance_uid,
            "sha256": instance.sha256,
            **kept,
        },
        now=now,
        session=session,
    )
    return Recorded(series_id=series_id, verdict=verdict)


def _open_series(
    instance: ReceivedInstance,
    *,
    calling_aet: str,
    called_aet: str,
    peer: str,
    now: datetime,
    session: Session,
) -> Series:
    """The series of the instance, locked until the transaction ends; made if it is new."""
    created = insert_if_new(
        Series,
        {
            "study_instance_uid": instance.study_instance_uid,
            "series_instance_uid": instance.series_instance_uid,
            "state": SeriesState.RECEIVING,
            "calling_aet": calling_aet,
            "called_aet": called_aet,
            "peer": peer,
            "first_received_at": now,
            "last_received_at": now,
        },
        session,
    )
    query = select(Series).where(Series.series_instance_uid == instance.series_instance_uid)
    series = session.scalars(
        query.with_for_update(key_share=True), execution_options={"populate_existing": True}
    ).one()
    if created:
        ledger.append(
            ledger.Subject(series_id=series.id),
            "open",
            to_state=SeriesState.RECEIVING,
            detail={"calling_aet": calling_aet, "called_aet": called_aet, "peer": peer},
            now=now,
            session=session,
        )
    return series


def _arrived(
    series: Series, instance: ReceivedInstance, *, now: datetime, session: Session
) -> Recorded:
    """Bring the (locked) series to RECEIVING; only a late image is worth a line."""
    late = series.state is not SeriesState.RECEIVING
    if late:
        advance(
            series,
            SERIES,
            SeriesEvent.IMAGE,
            subject=ledger.Subject(series_id=series.id),
            values={
                "last_received_at": now,
                "close_reason": None,
                "match_rule": None,
                "closed_at": None,
            },
            detail={"late": True, "sop_instance_uid": instance.sop_instance_uid},
            now=now,
            session=session,
        )
    else:
        series.last_received_at = now
        session.flush()
    return Recorded(series_id=series.id, verdict=Verdict.NEW, late=late)


def _lock(series_id: int, *, session: Session) -> Series:
    """The series, locked against concurrent images until the transaction ends.

    On SQLite the whole transaction holds the write lock already (BEGIN IMMEDIATE).
    """
    return load(Series, series_id, session=session, lock=True)


def _instance_uids(series_id: int, *, session: Session) -> dict[int, str]:
    """SOP Instance UID by instance id."""
    query = select(Instance.id, Instance.sop_instance_uid).where(Instance.series_id == series_id)
    return {row.id: row.sop_instance_uid for row in session.execute(query)}
