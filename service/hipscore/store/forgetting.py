"""Rows of old studies: which may go, and their deletion. By default they stay for ever.

A study goes as a whole, and only when nothing of it is left or open: its images and results
are purged, what was sent has arrived, no work item is in progress or held by a deletion lock
(PS3.4 CC.2.3). The audit log keeps its rows, and gets one that says what went.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, insert, or_, select
from sqlalchemy.orm import Session

from hipscore.lifecycle import JobState, SeriesState
from hipscore.procedure.states import FINAL
from hipscore.store import audit, outbox, retention
from hipscore.store.retention import Lot, What
from hipscore.store.tables import (
    ArtifactRow,
    Delivery,
    EarlierReport,
    Event,
    Instance,
    Job,
    JobInstance,
    Removal,
    Series,
    Study,
    Subscription,
    WorkItem,
    WorkItemEvent,
)

#: who is named in the audit log
RETENTION = audit.Actor(who="retention", role="service")
#: studies that one purge takes, so that the first one of a large site does not take a day
MOST = 5_000
_PAGE = 500
_CLOSED = (SeriesState.MATCHED, SeriesState.IGNORED)
_UNFINISHED = (JobState.QUEUED, JobState.ANALYSING)


class _Rows(NamedTuple):
    """Ids of everything that hangs on the series of a study."""

    series: list[int]
    jobs: list[int]
    artifacts: list[int]
    workitems: list[str]


def spare_rows(*, before: datetime, limit: int = MOST, session: Session) -> list[Lot]:
    """Studies of which nothing is left but rows, and nothing happened since ``before``.

    The oldest first, at most ``limit``; ``files`` and ``size`` of a lot are those of
    pictures that go along.
    """
    lots: list[Lot] = []
    after = 0
    while len(lots) < limit:
        page = session.execute(_oldest(after)).all()
        after = page[-1].newest_series_id if page else 0
        ids = [row.id for row in page if max(row.updated_at, row.last_received_at) < before]
        lots += _lots(ids, before, session=session)
        # ids follow the time: what comes behind is younger still
        if len(page) < _PAGE or page[-1].first_received_at >= before:
            break
    return lots[:limit]


def _oldest(after: int) -> Select[int, int, datetime, datetime, datetime]:
    """A page of studies, those first that came first; few columns, and no condition to plan."""
    return (
        select(
            Study.id,
            Study.newest_series_id,
            Study.updated_at,
            Series.last_received_at,
            Series.first_received_at,
        )
        .join(Series, Series.id == Study.newest_series_id)
        .where(Study.newest_series_id > after)
        .order_by(Study.newest_series_id)
        .limit(_PAGE)
    )


def _lots(ids: Sequence[int], before: datetime, *, session: Session) -> list[Lot]:
    """Those of these studies of which nothing is left but rows."""
    query = (
        select(Series.id, Series.series_instance_uid, Study.updated_at, Study.study_instance_uid)
        .join(Study, Study.newest_series_id == Series.id)
        .where(Study.id.in_(ids), *_settled(before))
        .order_by(Study.newest_series_id)
    )
    found = session.execute(query).all() if ids else []
    files = _files([row.study_instance_uid for row in found], session=session)
    return [
        Lot(
            what=What.ROWS,
            series_id=row.id,
            series_instance_uid=row.series_instance_uid,
            job_id=None,
            files=files.get(row.study_instance_uid, (0, 0))[0],
            size=files.get(row.study_instance_uid, (0, 0))[1],
            since=row.updated_at,
        )
        for row in found
    ]


def forget(lot: Lot, *, before: datetime, why: str, now: datetime, session: Session) -> list[str]:
    """Delete all rows of the study of this series, if that still may be done.

    Returns the spool keys of its pictures, to delete after the commit.
    """
    uid = session.scalar(select(Series.study_instance_uid).where(Series.id == lot.series_id))
    if uid is None:
        return []  # another purge was faster
    of_study = Series.study_instance_uid == uid
    # whoever brings an image, opens a job or sends a result again locks the series as well
    ids = session.scalars(select(Series.id).where(of_study).order_by(Series.id).with_for_update())
    series = list(ids)
    # A new series brings the line of the study to the top: it is waited for and then seen, or
    # it waits and makes the line anew.
    line = select(Study.id).where(Study.study_instance_uid == uid).with_for_update()
    session.scalars(line).one_or_none()
    still = select(Study.id).where(Study.study_instance_uid == uid, *_settled(before))
    if session.scalars(still).one_or_none() is None:
        return []
    rows = _rows(series, uid, session=session)
    pictures = select(ArtifactRow.spool_key).where(
        ArtifactRow.id.in_(rows.artifacts), ArtifactRow.purged_at.is_(None)
    )
    keys = list(session.scalars(pictures))
    lines = _delete(rows, uid, session=session)
    counted = {"series": len(rows.series), "analyses": len(rows.jobs), "ledger": lines}
    detail = {**counted, "why": why}
    audit.append(RETENTION, audit.DELETE_ROWS, study=uid, detail=detail, now=now, session=session)
    session.flush()
    return keys


def _settled(before: datetime) -> tuple[ColumnElement[bool], ...]:
    """The conditions that nothing is left of the study in ``Study`` but rows."""
    of_study = Series.study_instance_uid == Study.study_instance_uid
    analysis = and_(of_study, Job.series_id == Series.id)
    made = and_(analysis, ArtifactRow.job_id == Job.id)
    active = or_(Series.state.not_in(_CLOSED), Series.last_received_at >= before)
    image = and_(Instance.series_id == Series.id, Instance.purged_at.is_(None))
    working = or_(Job.state.in_(_UNFINISHED), Job.finished_at >= before)
    here = and_(ArtifactRow.purged_at.is_(None), retention.SENT)
    going = and_(
        Delivery.artifact_id == ArtifactRow.id,
        or_(Delivery.finished_at >= before, outbox.OPEN),
    )
    locked = exists().where(
        Subscription.workitem_uid == WorkItem.sop_instance_uid, Subscription.deletion_lock
    )
    held = or_(
        WorkItem.state.not_in([state.value for state in FINAL]),
        WorkItem.updated_at >= before,
        locked.correlate(WorkItem),
    )
    ordered = and_(WorkItem.study_instance_uid == Study.study_instance_uid, held)
    # an order may name no study, or another, and still be carried out by a job of this one
    bound = and_(analysis, WorkItem.job_id == Job.id, held)
    keeps = (
        (of_study, active),
        (of_study, image),
        (analysis, working),
        (made, here),
        (made, going),
        (ordered,),
        (bound,),
    )
    return (Study.updated_at < before, *(~exists().where(*each).correlate(Study) for each in keeps))


def _rows(series: list[int], study_instance_uid: str, *, session: Session) -> _Rows:
    its_jobs = list(session.scalars(select(Job.id).where(Job.series_id.in_(series))))
    artifacts = select(ArtifactRow.id).where(ArtifactRow.job_id.in_(its_jobs))
    items = select(WorkItem.sop_instance_uid).where(
        or_(WorkItem.study_instance_uid == study_instance_uid, WorkItem.job_id.in_(its_jobs))
    )
    return _Rows(
        series=series,
        jobs=its_jobs,
        artifacts=list(session.scalars(artifacts)),
        workitems=list(session.scalars(items)),
    )


def _delete(rows: _Rows, study_instance_uid: str, *, session: Session) -> int:
    """Delete what refers before what is referred to; how many lines of the ledger went."""
    # the trigger on the ledger lets only those of these series go
    session.execute(insert(Removal), [{"series_id": each} for each in rows.series])
    counted = select(func.count()).where(Event.series_id.in_(rows.series))
    lines = session.scalar(counted) or 0
    steps: Sequence[tuple[Any, ColumnElement[bool]]] = (
        (Event, Event.series_id.in_(rows.series)),
        (Delivery, Delivery.artifact_id.in_(rows.artifacts)),
        (ArtifactRow, ArtifactRow.id.in_(rows.artifacts)),
        (JobInstance, JobInstance.job_id.in_(rows.jobs)),
        (WorkItemEvent, WorkItemEvent.workitem_uid.in_(rows.workitems)),
        (Subscription, Subscription.workitem_uid.in_(rows.workitems)),
        (WorkItem, WorkItem.sop_instance_uid.in_(rows.workitems)),
        (EarlierReport, EarlierReport.study_instance_uid == study_instance_uid),
        (Study, Study.study_instance_uid == study_instance_uid),
        (Job, Job.id.in_(rows.jobs)),
        (Instance, Instance.series_id.in_(rows.series)),
        (Removal, Removal.series_id.in_(rows.series)),
        (Series, Series.id.in_(rows.series)),
    )
    for table, which in steps:
        session.execute(
            delete(table).where(which), execution_options={"synchronize_session": False}
        )
    return lines


def _files(study_uids: Sequence[str], *, session: Session) -> dict[str, tuple[int, int]]:
    """Number and bytes of the pictures that are here, by study."""
    query = (
        select(Series.study_instance_uid, func.count(), func.sum(ArtifactRow.size))
        .join(Job, Job.series_id == Series.id)
        .join(ArtifactRow, and_(ArtifactRow.job_id == Job.id, ArtifactRow.purged_at.is_(None)))
        .where(Series.study_instance_uid.in_(study_uids))
        .group_by(Series.study_instance_uid)
    )
    rows = session.execute(query).all() if study_uids else []
    return {uid: (files, int(size)) for uid, files, size in rows}
