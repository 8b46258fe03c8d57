"""What the REST API and the command line read. Nothing here changes anything.

Lists are newest first and paged by id (keyset): pass the ``cursor`` of the last item as
``after`` for the next page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session, aliased

from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.store import tallies
from hipscore.store.summary import rank
from hipscore.store.tables import ArtifactRow, Delivery, Instance, Job, Series, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """A job with the series it is about, its artifacts and their deliveries, oldest first."""

    job: Job
    series: Series
    artifacts: tuple[ArtifactRow, ...]
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesDetail:
    """A series with the number of its images and its jobs, newest first."""

    series: Series
    images: int
    jobs: tuple[JobDetail, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDetail:
    """A study with its series, oldest first, and the job whose result speaks for it."""

    study_instance_uid: str
    series: tuple[SeriesDetail, ...]
    job: JobDetail | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """One line of the list of studies. ``cursor`` is the id of its newest series."""

    cursor: int
    study_instance_uid: str
    series: tuple[Series, ...]
    images: int
    last_received_at: datetime
    job: JobDetail | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many rows are in each state (every state is present), for the metrics.

    ``oldest_queued_at`` is when the oldest job that waits now was opened,
    ``oldest_undelivered_at`` when the oldest result that a destination does not have was
    made. ``uncommitted`` results wait for the storage commitment of their destination, the
    oldest of them was sent at ``oldest_uncommitted_at``.
    """

    series: dict[SeriesState, int]
    jobs: dict[JobState, int]
    deliveries: dict[DeliveryState, int]
    oldest_queued_at: datetime | None
    oldest_undelivered_at: datetime | None
    uncommitted: int
    oldest_uncommitted_at: datetime | None

    @property
    def queue_depth(self) -> int:
        """Jobs that wait for a worker."""
        return self.jobs[JobState.QUEUED]


#: the destination does not have it
_UNDELIVERED = (
    DeliveryState.PENDING,
    DeliveryState.SENDING,
    DeliveryState.REFUSED,
    DeliveryState.EXHAUSTED,
)


def latest_job_of_study(study_instance_uid: str, *, session: Session) -> JobDetail | None:
    """The job whose result speaks for the study, or None when it has no job (yet).

    Of every series only the job that no later one supersedes counts. Among them scored
    goes before pending before not scorable before failed, then the newest.
    """
    return _speaking(_jobs_of_studies([study_instance_uid], current=True, session=session))


def series_of_study(study_instance_uid: str, *, session: Session) -> Sequence[Series]:
    """The series of the study in order of arrival; empty if the study is unknown."""
    query = select(Series).where(Series.study_instance_uid == study_instance_uid)
    return session.scalars(query.order_by(Series.id)).all()


def studies(*, session: Session, after: int | None = None, limit: int = 50) -> list[StudySummary]:
    """Studies, the one with the newest series first; at most ``limit`` below ``after``."""
    query = select(Study.newest_series_id, Study.study_instance_uid)
    if after is not None:
        query = query.where(Study.newest_series_id < after)
    newest = query.order_by(Study.newest_series_id.desc()).limit(limit)
    page = [(cursor, uid) for cursor, uid in session.execute(newest)]
    return _summaries(page, session=session)


def _summaries(page: Sequence[tuple[int, str]], *, session: Session) -> list[StudySummary]:
    """Lines of the studies of a page: newest series, Study Instance UID."""
    uids = [uid for _, uid in page]
    members: dict[str, list[Series]] = {uid: [] for uid in uids}
    for series in session.scalars(
        select(Series).where(Series.study_instance_uid.in_(uids)).order_by(Series.id)
    ):
        members[series.study_instance_uid].append(series)
    images = _images([series.id for each in members.values() for series in each], session=session)
    jobs: dict[str, list[JobDetail]] = {uid: [] for uid in uids}
    for detail in _jobs_of_studies(uids, current=True, session=session):
        jobs[detail.series.study_instance_uid].append(detail)
    return [
        StudySummary(
            cursor=cursor,
            study_instance_uid=uid,
            series=tuple(members[uid]),
            images=sum(images.get(series.id, 0) for series in members[uid]),
            last_received_at=max(series.last_received_at for series in members[uid]),
            job=_speaking(jobs[uid]),
        )
        for cursor, uid in page
    ]


def studies_of_series(series_uids: Sequence[str], *, session: Session) -> dict[str, str]:
    """Study Instance UID by Series Instance UID."""
    query = select(Series.series_instance_uid, Series.study_instance_uid).where(
        Series.series_instance_uid.in_(set(series_uids))
    )
    return dict(session.execute(query).all())


def study(study_instance_uid: str, *, session: Session) -> StudyDetail | None:
    """Everything about one study, or None if it is unknown."""
    members = series_of_study(study_instance_uid, session=session)
    if not members:
        return None
    images = _images([series.id for series in members], session=session)
    details = _jobs_of_studies([study_instance_uid], current=False, session=session)
    superseded = {d.job.supersedes_id for d in details}
    return StudyDetail(
        study_instance_uid=study_instance_uid,
        series=tuple(
            SeriesDetail(
                series=series,
                images=images.get(series.id, 0),
                jobs=tuple(d for d in details if d.series.id == series.id),
            )
            for series in members
        ),
        job=_speaking(d for d in details if d.job.id not in superseded),
    )


def job(job_id: int, *, session: Session) -> JobDetail | None:
    """One job, or None if there is none with this id."""
    details = _details([Job.id == job_id], session=session)
    return details[0] if details else None


def jobs(
    *,
    session: Session,
    state: JobState | None = None,
    after: int | None = None,
    limit: int = 50,
) -> list[JobDetail]:
    """Jobs (in ``state``), newest first; at most ``limit`` with ids below ``after``."""
    conditions: list[ColumnElement[bool]] = []
    if state is not None:
        conditions.append(Job.state == state)
    if after is not None:
        conditions.append(Job.id < after)
    return _details(conditions, session=session, limit=limit)


def counts(*, session: Session) -> Counts:
    """Rows by state, for the metrics; nothing is counted row by row."""
    known = tallies.by_state(session=session)
    waits = and_(Delivery.state == DeliveryState.SENT, Delivery.commit_at.is_not(None))
    uncommitted, sent_at = session.execute(
        select(func.count(), func.min(Delivery.finished_at)).where(waits)
    ).one()
    return Counts(
        series={state: known.get(("series", state.value), 0) for state in SeriesState},
        jobs={state: known.get(("jobs", state.value), 0) for state in JobState},
        deliveries={state: known.get(("deliveries", state.value), 0) for state in DeliveryState},
        oldest_queued_at=_oldest(Job, (JobState.QUEUED,), session=session),
        oldest_undelivered_at=_oldest(Delivery, _UNDELIVERED, session=session),
        uncommitted=uncommitted,
        oldest_uncommitted_at=sent_at,
    )


def _oldest(
    kind: type[Job | Delivery],
    states: Sequence[JobState | DeliveryState],
    *,
    session: Session,
) -> datetime | None:
    """When the oldest row in these states was made; ids follow the time."""
    first = [
        select(func.min(kind.id)).where(kind.state == state).scalar_subquery() for state in states
    ]
    return session.scalar(select(func.min(kind.created_at)).where(kind.id.in_(first)))


def _speaking(details: Iterable[JobDetail]) -> JobDetail | None:
    return min(details, key=lambda detail: rank(detail.job), default=None)


def _jobs_of_studies(
    study_uids: Sequence[str], *, current: bool, session: Session
) -> list[JobDetail]:
    conditions: list[ColumnElement[bool]] = [Series.study_instance_uid.in_(study_uids)]
    if current:
        later = aliased(Job)
        conditions.append(~exists().where(later.supersedes_id == Job.id))
    return _details(conditions, session=session)


def _details(
    conditions: Sequence[ColumnElement[bool]], *, session: Session, limit: int | None = None
) -> list[JobDetail]:
    """Jobs newest first, with everything that hangs on them, in two statements."""
    query = (
        select(Job, Series)
        .join(Series, Series.id == Job.series_id)
        .where(*conditions)
        .order_by(Job.id.desc())
    )
    rows = session.execute(query.limit(limit)).all()
    job_ids = [each.id for each, _ in rows]
    artifacts: dict[int, dict[int, ArtifactRow]] = {job_id: {} for job_id in job_ids}
    deliveries: dict[int, list[Delivery]] = {job_id: [] for job_id in job_ids}
    hanging = (
        select(ArtifactRow, Delivery)
        .outerjoin(Delivery, Delivery.artifact_id == ArtifactRow.id)
        .where(ArtifactRow.job_id.in_(job_ids))
        .order_by(ArtifactRow.id, Delivery.id)
    )
    for made, delivery in session.execute(hanging) if job_ids else ():
        artifacts[made.job_id][made.id] = made
        if delivery is not None:
            deliveries[made.job_id].append(delivery)
    return [
        JobDetail(
            job=each,
            series=series,
            artifacts=tuple(artifacts[each.id].values()),
            deliveries=tuple(sorted(deliveries[each.id], key=lambda row: row.id)),
        )
        for each, series in rows
    ]


def _images(series_ids: Sequence[int], *, session: Session) -> dict[int, int]:
    query = (
        select(Instance.series_id, func.count())
        .where(Instance.series_id.in_(series_ids))
        .group_by(Instance.series_id)
    )
    return dict(session.execute(query).all())
