"""Which files may go, and writing down that they went.

Rows and the ledger stay, unless the site wants otherwise (:mod:`hipscore.store.forgetting`).

The policy is :func:`images_needed_until` and :func:`results_needed_until`: functions of a few
facts. The rest asks it about every series, and again, with the series locked, before it marks
anything. No file is touched here (:mod:`hipscore.worker.purging` does that).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Row, Select, func, literal_column, or_, select, update
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.store import jobs, ledger
from hipscore.store.moves import load
from hipscore.store.outbox import arrived
from hipscore.store.tables import ArtifactRow, Delivery, Event, Instance, Job, JobInstance, Series

#: ``reason_code`` of a FAILED job whose images were purged before it was done
IMAGES_PURGED = "images_purged"
#: results that may be sent somewhere: DICOM objects and HL7 messages (a constant in the
#: statement, so that the index of those that are here serves it)
SENT = or_(
    ArtifactRow.sop_class_uid.is_not(None),
    ArtifactRow.kind == literal_column(f"'{ArtifactKind.ORU.value}'"),
)
_UNFINISHED = {JobState.QUEUED, JobState.ANALYSING}
_PAGE = 200


class What(StrEnum):
    """What a purge takes."""

    IMAGES = "images"
    RESULTS = "results"
    ROWS = "rows"


class ImagesPurged(Exception):
    """The images of a job are no longer here."""


class SeriesFacts(NamedTuple):
    """A series as the policy sees it."""

    id: int
    series_instance_uid: str
    state: SeriesState
    last_received_at: datetime
    closed_at: datetime | None


class JobFacts(NamedTuple):
    """A job as the policy sees it."""

    id: int
    series_id: int
    state: JobState
    supersedes_id: int | None
    created_at: datetime
    finished_at: datetime | None


class DeliveryFacts(NamedTuple):
    """A delivery as the policy sees it."""

    job_id: int
    state: DeliveryState
    commit_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    form_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """What goes together: the images of one series, the results of one job, a study's rows.

    ``since`` is when they were needed last, ``size`` their bytes.
    """

    what: What
    series_id: int
    series_instance_uid: str
    job_id: int | None
    files: int
    size: int
    since: datetime


def images_needed_until(
    series: SeriesFacts,
    its_jobs: Sequence[JobFacts],
    deliveries: Sequence[DeliveryFacts],
    *,
    failed: bool = False,
) -> datetime | None:
    """When the images of a series were needed last; None while they are.

    Needed while the series is open, an analysis is not finished, or a delivery has not
    arrived. A FAILED job needs them for ever, for its retry, unless ``failed``; one that a
    later job supersedes cannot be retried.
    """
    if series.state is SeriesState.MATCHED and not its_jobs:
        return None
    if series.state not in {SeriesState.MATCHED, SeriesState.IGNORED}:
        return None
    superseded = {job.supersedes_id for job in its_jobs}
    for job in its_jobs:
        retry = job.state is JobState.FAILED and job.id not in superseded
        if job.state in _UNFINISHED or (retry and not failed):
            return None
    if not _all_arrived(deliveries):
        return None
    done: list[JobFacts | DeliveryFacts] = [*its_jobs, *deliveries]
    ended = [each.finished_at or each.created_at for each in done]
    return max([series.last_received_at, series.closed_at or series.last_received_at, *ended])


def results_needed_until(deliveries: Sequence[DeliveryFacts]) -> datetime | None:
    """When the results of a job were needed last; None while they are, or were never sent."""
    if not deliveries or not _all_arrived(deliveries):
        return None
    return max(each.finished_at or each.created_at for each in deliveries)


def _all_arrived(deliveries: Sequence[DeliveryFacts]) -> bool:
    return all(arrived(each.state, each.commit_at, each.form_id) for each in deliveries)


def spare_images(*, before: datetime, failed: bool = False, session: Session) -> list[Lot]:
    """Images not needed since ``before``, those needed longest ago first."""
    # from the images that are here, by an index of these alone: not from all series ever
    stored = select(Instance.series_id).where(
        Instance.purged_at.is_(None), Instance.received_at < before
    )
    lots = []
    for page in _pages(_distinct(stored, session=session)):
        counts = _images(page, session=session)
        for series, its_jobs, deliveries in _standing(page, session=session):
            since = images_needed_until(series, its_jobs, deliveries, failed=failed)
            if since is not None and since < before:
                files, size = counts[series.id]
                lots.append(_lot(What.IMAGES, series, None, files, size, since))
    return sorted(lots, key=lambda lot: (lot.since, lot.series_id))


def spare_results(*, before: datetime, session: Session) -> list[Lot]:
    """Results that arrived everywhere before ``before``, the oldest first."""
    stored = select(ArtifactRow.job_id).where(
        ArtifactRow.purged_at.is_(None), ArtifactRow.created_at < before, SENT
    )
    found: set[int] = set()
    for page in _pages(_distinct(stored, session=session)):
        found |= set(session.scalars(select(Job.series_id).where(Job.id.in_(page))))
    lots = []
    for page in _pages(sorted(found)):
        for series, its_jobs, deliveries in _standing(page, session=session):
            ids = [job.id for job in its_jobs]
            counts = _results(ids, session=session)
            for job_id in ids:
                own = [each for each in deliveries if each.job_id == job_id]
                since = results_needed_until(own)
                if since is not None and since < before and job_id in counts:
                    lots.append(_lot(What.RESULTS, series, job_id, *counts[job_id], since))
    return sorted(lots, key=lambda lot: (lot.since, lot.job_id))


def mark(
    lot: Lot, *, before: datetime, failed: bool = False, why: str, now: datetime, session: Session
) -> list[str]:
    """Write down that these files are purged, if the policy still says that they may be.

    Returns the spool keys to delete after the commit; empty when they are needed again, or
    another purge was faster.
    """
    # whoever brings an image, opens a job or restores an image locks the series as well
    load(Series, lot.series_id, session=session, lock=True)
    if lot.what is What.RESULTS:
        # and whoever sends a result again, the delivery
        own = select(ArtifactRow.id).where(ArtifactRow.job_id == lot.job_id)
        held = select(Delivery.id).where(Delivery.artifact_id.in_(own)).order_by(Delivery.id)
        session.execute(held.with_for_update(key_share=True)).all()
    ((series, its_jobs, deliveries),) = _standing([lot.series_id], session=session)
    if lot.what is What.IMAGES:
        since = images_needed_until(series, its_jobs, deliveries, failed=failed)
    else:
        since = results_needed_until([each for each in deliveries if each.job_id == lot.job_id])
    if since is None or since >= before:
        return []
    done = (
        _mark_images(lot, now, session)
        if lot.what is What.IMAGES
        else _mark_results(lot, now, session)
    )
    if done:
        detail = {"files": len(done), "bytes": sum(row[1] for row in done), "why": why}
        ledger.append(
            ledger.Subject(series_id=lot.series_id, job_id=lot.job_id),
            "purge",
            detail={"what": lot.what.value, **detail},
            now=now,
            session=session,
        )
    return [row[0] for row in done]


def _mark_images(lot: Lot, now: datetime, session: Session) -> Sequence[Row[str, int]]:
    swap = (
        update(Instance)
        .where(Instance.series_id == lot.series_id, Instance.purged_at.is_(None))
        .values(purged_at=now)
        .returning(Instance.spool_key, Instance.size)
    )
    return session.execute(swap, execution_options={"synchronize_session": False}).all()


def _mark_results(lot: Lot, now: datetime, session: Session) -> Sequence[Row[str, int]]:
    swap = (
        update(ArtifactRow)
        .where(
            ArtifactRow.job_id == lot.job_id,
            ArtifactRow.purged_at.is_(None),
            SENT,  # the rest is never sent anywhere
        )
        .values(purged_at=now)
        .returning(ArtifactRow.spool_key, ArtifactRow.size)
    )
    return session.execute(swap, execution_options={"synchronize_session": False}).all()


def restore(sop_instance_uid: str, *, now: datetime, session: Session) -> None:
    """An image came again after its purge, and its bytes lie in the spool: it is here again.

    The first of a series is worth a line in the ledger. When the last one that a job lacked
    is back, a job that FAILED for it is queued again.
    """
    query = select(Instance.series_id).where(Instance.sop_instance_uid == sop_instance_uid)
    series = load(Series, session.scalars(query).one(), session=session, lock=True)
    back = (
        update(Instance)
        .where(Instance.sop_instance_uid == sop_instance_uid, Instance.purged_at.is_not(None))
        .values(purged_at=None)
        .returning(Instance.id)
    )
    unsynchronised = {"synchronize_session": False}
    if session.execute(back, execution_options=unsynchronised).scalar_one_or_none() is None:
        return  # another association brought it meanwhile
    # so that a purge waits for the rest of them
    received = update(Series).where(Series.id == series.id).values(last_received_at=now)
    session.execute(received, execution_options=unsynchronised)
    lines = select(Event.what).where(
        Event.series_id == series.id, Event.job_id.is_(None), Event.what.in_(("purge", "restore"))
    )
    if session.scalars(lines.order_by(Event.id.desc()).limit(1)).one_or_none() != "restore":
        ledger.append(
            ledger.Subject(series_id=series.id),
            "restore",
            detail={"sop_instance_uid": sop_instance_uid},
            now=now,
            session=session,
        )
    newest = select(Job.id, Job.state, Job.reason_code).where(Job.series_id == series.id)
    job = session.execute(newest.order_by(Job.id.desc()).limit(1)).one_or_none()
    if job is None or (job.state, job.reason_code) != (JobState.FAILED, IMAGES_PURGED):
        return
    if _purged_at(job.id, session=session) is None:
        jobs.retry(job.id, now=now, session=session)


def require_images(job_id: int, *, session: Session) -> None:
    """Raise ImagesPurged, with the date and what to do, if an image of the job is gone."""
    gone = _purged_at(job_id, session=session)
    if gone is not None:
        raise ImagesPurged(
            f"the images were purged on {gone:%Y-%m-%d} by the retention policy; send the series "
            "again, and it is analysed when all of them are here"
        )


def wanted(keys: Sequence[str], *, session: Session) -> set[str]:
    """Those of the spool keys whose file a row still needs."""
    images = select(Instance.spool_key).where(
        Instance.spool_key.in_(keys), Instance.purged_at.is_(None)
    )
    results = select(ArtifactRow.spool_key).where(
        ArtifactRow.spool_key.in_(keys), ArtifactRow.purged_at.is_(None)
    )
    return {*session.scalars(images), *session.scalars(results)}


def known(keys: Sequence[str], *, session: Session) -> set[str]:
    """Those of the spool keys that any row refers to, purged or not."""
    images = select(Instance.spool_key).where(Instance.spool_key.in_(keys))
    results = select(ArtifactRow.spool_key).where(ArtifactRow.spool_key.in_(keys))
    return {*session.scalars(images), *session.scalars(results)}


def _purged_at(job_id: int, *, session: Session) -> datetime | None:
    """When the first purged image of the job was purged; None if all are here."""
    query = (
        select(func.min(Instance.purged_at))
        .join(JobInstance, JobInstance.instance_id == Instance.id)
        .where(JobInstance.job_id == job_id)
    )
    return session.scalar(query)


def _distinct(ids: Select[int], *, session: Session) -> list[int]:
    """Each id once, in order. With DISTINCT SQLite would leave the index of what is here."""
    return sorted(set(session.scalars(ids, execution_options={"yield_per": 10_000})))


def _standing(
    series_ids: Sequence[int], *, session: Session
) -> Iterator[tuple[SeriesFacts, list[JobFacts], list[DeliveryFacts]]]:
    """What the policy wants to know of these series, as the database has it now."""
    columns = select(
        Series.id,
        Series.series_instance_uid,
        Series.state,
        Series.last_received_at,
        Series.closed_at,
    )
    series = session.execute(columns.where(Series.id.in_(series_ids)).order_by(Series.id)).all()
    of_job = select(
        Job.id, Job.series_id, Job.state, Job.supersedes_id, Job.created_at, Job.finished_at
    )
    its_jobs: dict[int, list[JobFacts]] = {each: [] for each in series_ids}
    for job in session.execute(of_job.where(Job.series_id.in_(series_ids)).order_by(Job.id)):
        its_jobs[job.series_id].append(JobFacts(*job))
    of_delivery = (
        select(
            ArtifactRow.job_id,
            Delivery.state,
            Delivery.commit_at,
            Delivery.created_at,
            Delivery.finished_at,
            Delivery.form_id,
            Job.series_id,
        )
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
    )
    sent: dict[int, list[DeliveryFacts]] = {each: [] for each in series_ids}
    for each in session.execute(of_delivery.where(Job.series_id.in_(series_ids))):
        sent[each.series_id].append(DeliveryFacts(*each[:-1]))
    for row in series:
        yield SeriesFacts(*row), its_jobs[row.id], sent[row.id]


def _images(series_ids: Sequence[int], *, session: Session) -> dict[int, tuple[int, int]]:
    """Number and bytes of the images that are here, by series."""
    query = select(Instance.series_id, func.count(), func.sum(Instance.size)).where(
        Instance.series_id.in_(series_ids), Instance.purged_at.is_(None)
    )
    return _by_owner(session.execute(query.group_by(Instance.series_id)).all())


def _results(job_ids: Sequence[int], *, session: Session) -> dict[int, tuple[int, int]]:
    """Number and bytes of the DICOM results that are here, by job."""
    query = select(ArtifactRow.job_id, func.count(), func.sum(ArtifactRow.size)).where(
        ArtifactRow.job_id.in_(job_ids),
        ArtifactRow.purged_at.is_(None),
        SENT,
    )
    return _by_owner(session.execute(query.group_by(ArtifactRow.job_id)).all())


def _by_owner(rows: Sequence[Row[int, int, int]]) -> dict[int, tuple[int, int]]:
    return {owner: (files, int(size)) for owner, files, size in rows}


def _lot(  # noqa: PLR0917 - two callers, right above
    what: What, series: SeriesFacts, job_id: int | None, files: int, size: int, since: datetime
) -> Lot:
    return Lot(
        what=what,
        series_id=series.id,
        series_instance_uid=series.series_instance_uid,
        job_id=job_id,
        files=files,
        size=size,
        since=since,
    )


def _pages(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))
