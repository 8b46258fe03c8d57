"""What a clinical system asks for: the report, the observations and the images of studies.

Every search is over the lines of ``studies`` by keyset, and a page costs the same few
statements however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, false, func, not_, or_, select, tuple_
from sqlalchemy.orm import Session

from hipscore.lifecycle import SeriesState
from hipscore.store.summary import WITHDRAWN
from hipscore.store.tables import ArtifactRow, Instance, Job, Series, Study

_ARRIVING = (SeriesState.RECEIVING, SeriesState.COMPLETE)
_PENDING = ("queued", "analysing")
#: no result is final while images arrive: the next series may be the STIR of the hips
_WITHOUT_SCORE = ("not_scorable", "failed")


class Stage(StrEnum):
    """How far the result of a study is."""

    PENDING = "pending"
    REPORTED = "reported"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """Study dates from ``first`` to ``last`` (``YYYYMMDD``, both included, None: open).

    ``outside``: every known date but those.
    """

    first: str | None = None
    last: str | None = None
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instants:
    """Times of the last change from ``since`` on and before ``before`` (None: open).

    ``outside``: every other time.
    """

    since: datetime | None = None
    before: datetime | None = None
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which studies are searched for. None: whichever; empty: none at all.

    ``numbers`` are accession numbers; a study is meant by its UID or by its number.
    ``days`` and ``changed`` are alternatives within, all of which groups must hold.
    """

    studies: frozenset[str] | None = None
    named: tuple[frozenset[str], frozenset[str]] | None = None
    job_keys: frozenset[str] | None = None
    patients: frozenset[str] | None = None
    days: tuple[tuple[Days, ...], ...] = ()
    changed: tuple[tuple[Instants, ...], ...] = ()
    stages: frozenset[Stage] | None = None


class Place(NamedTuple):
    """A study's place in a list: its date where the list is by date, and its row."""

    day: str
    row: int


class Order(StrEnum):
    """Order of a list. ``ARRIVED``: the study that was heard of last comes first."""

    ARRIVED = "arrived"
    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A study, the job that speaks for it, and what that job made, oldest first.

    ``current``: no other job speaks for the study.
    """

    study: Study
    job: Job | None
    arriving: bool
    artifacts: tuple[ArtifactRow, ...]
    current: bool = True

    @property
    def stage(self) -> Stage | None:
        """How far its result is; None where there is nothing to score (yet)."""
        if self.job is None:
            return None
        if self.job.withdrawn_at is not None:
            return Stage.WITHDRAWN
        status = self.study.status
        if status in _PENDING or (status in _WITHOUT_SCORE and self.arriving):
            return Stage.PENDING
        return Stage.FAILED if status == "failed" else Stage.REPORTED

    def place(self, order: Order) -> Place:
        """Where the study stands in a list of this order."""
        day = "" if order is Order.ARRIVED else self.study.study_date
        return Place(day, self.study.id)


class Image(NamedTuple):
    """One received image of a series."""

    sop_instance_uid: str
    sop_class_uid: str
    instance_number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imaging:
    """A study with its series, in order of arrival, and their images."""

    record: Record
    series: tuple[tuple[Series, tuple[Image, ...]], ...]


def records(
    wanted: Wanted,
    *,
    session: Session,
    order: Order = Order.ARRIVED,
    start: Place | None = None,
    limit: int = 50,
) -> list[Record]:
    """Studies that are wanted, at most ``limit``, from ``start`` on."""
    conditions = _conditions(wanted)
    if start is not None:
        conditions.append(_from(start, order))
    day, row = Study.study_date, Study.id
    by = {
        Order.ARRIVED: (row.desc(),),
        Order.OLDEST: (day, row),
        Order.NEWEST: (day.desc(), row.desc()),
    }
    query = select(Study, Job, _arriving().label("arriving")).outerjoin(Job, Job.id == Study.job_id)
    found = session.execute(query.where(*conditions).order_by(*by[order]).limit(limit)).all()
    jobs: list[Job | None] = [row[1] for row in found]  # of a study without one, None
    made = _artifacts([job.id for job in jobs if job is not None], session=session)
    return [
        Record(
            study=row[0],
            job=job,
            arriving=bool(row[2]),
            artifacts=() if job is None else tuple(made.get(job.id, ())),
        )
        for row, job in zip(found, jobs, strict=True)
    ]


def count(wanted: Wanted, *, session: Session) -> int:
    """How many studies are wanted."""
    query = select(func.count()).select_from(Study).outerjoin(Job, Job.id == Study.job_id)
    return session.scalar(query.where(*_conditions(wanted))) or 0


def record(study_instance_uid: str, *, session: Session) -> Record | None:
    """One study, or None if it is unknown."""
    found = records(Wanted(studies=frozenset({study_instance_uid})), session=session, limit=1)
    return found[0] if found else None


def record_of_job(job_key: str, *, session: Session) -> Record | None:
    """The study of this job and the job, whether it speaks for the study or not."""
    query = (
        select(Study, Job, _arriving().label("arriving"))
        .join(Series, Series.study_instance_uid == Study.study_instance_uid)
        .join(Job, Job.series_id == Series.id)
        .where(Job.key == job_key)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    study, job, arriving = row
    return Record(
        study=study,
        job=job,
        arriving=bool(arriving),
        artifacts=tuple(_artifacts([job.id], session=session).get(job.id, ())),
        current=study.job_id == job.id,
    )


def imaging(found: Sequence[Record], *, session: Session) -> list[Imaging]:
    """The same studies with their series and images, in two statements."""
    uids = [each.study.study_instance_uid for each in found]
    rows = session.scalars(
        select(Series).where(Series.study_instance_uid.in_(uids)).order_by(Series.id)
    ).all()
    images: dict[int, list[Image]] = {row.id: [] for row in rows}
    query = (
        select(
            Instance.series_id,
            Instance.sop_instance_uid,
            Instance.sop_class_uid,
            Instance.instance_number,
        )
        .where(Instance.series_id.in_(images))
        .order_by(Instance.id)
    )
    for series_id, uid, sop_class, number in session.execute(query):
        images[series_id].append(Image(uid, sop_class, number))
    members: dict[str, list[tuple[Series, tuple[Image, ...]]]] = {uid: [] for uid in uids}
    for row in rows:
        members[row.study_instance_uid].append((row, tuple(images[row.id])))
    return [
        Imaging(record=each, series=tuple(members[each.study.study_instance_uid])) for each in found
    ]


def patient_keys(
    patient_id: str, issuer: str | None, *, session: Session, limit: int = 50
) -> frozenset[str]:
    """Opaque keys of the patients with this ID (of this issuer, ``""``: of none)."""
    conditions = [Study.patient_id == patient_id, Study.patient_key.is_not(None)]
    if issuer is not None:
        conditions.append(Study.issuer_of_patient_id == issuer)
    query = select(Study.patient_key).where(*conditions).distinct().limit(limit)
    return frozenset(key for key in session.scalars(query) if key is not None)


def _artifacts(job_ids: Sequence[int], *, session: Session) -> dict[int, list[ArtifactRow]]:
    made: dict[int, list[ArtifactRow]] = {}
    query = select(ArtifactRow).where(ArtifactRow.job_id.in_(job_ids)).order_by(ArtifactRow.id)
    for each in session.scalars(query):
        made.setdefault(each.job_id, []).append(each)
    return made


def _arriving() -> ColumnElement[bool]:
    member = Series.__table__.alias("member")
    return exists().where(
        member.c.study_instance_uid == Study.study_instance_uid, member.c.state.in_(_ARRIVING)
    )


def _from(place: Place, order: Order) -> ColumnElement[bool]:
    """From this place on, whether or not there is still a study at it."""
    if order is Order.ARRIVED:
        return Study.id <= place.row
    here, there = tuple_(Study.study_date, Study.id), tuple_(place.day, place.row)
    return here >= there if order is Order.OLDEST else here <= there


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for column, values in (
        (Study.study_instance_uid, wanted.studies),
        (Study.patient_key, wanted.patients),
        (Job.key, wanted.job_keys),
    ):
        if values is not None:
            conditions.append(column.in_(sorted(values)))
    if wanted.named is not None:
        uids, numbers = wanted.named
        conditions.append(
            or_(
                Study.study_instance_uid.in_(sorted(uids)),
                Study.accession_number.in_(sorted(numbers)),
            )
        )
    conditions.extend(or_(false(), *map(_on, group)) for group in wanted.days)
    conditions.extend(or_(false(), *map(_changed, group)) for group in wanted.changed)
    if wanted.stages is not None:
        conditions.append(or_(false(), *(_at(stage) for stage in sorted(wanted.stages))))
    return conditions


def _at(stage: Stage) -> ColumnElement[bool]:
    """The same decision as :attr:`Record.stage`, in SQL."""
    withdrawn = Study.reason_code == WITHDRAWN
    status, arriving = Study.status, _arriving()
    kept = or_(Study.reason_code.is_(None), not_(withdrawn))
    if stage is Stage.WITHDRAWN:
        return and_(status == "failed", withdrawn)
    if stage is Stage.PENDING:
        return and_(kept, or_(status.in_(_PENDING), and_(status.in_(_WITHOUT_SCORE), arriving)))
    if stage is Stage.FAILED:
        return and_(kept, status == "failed", not_(arriving))
    return or_(status == "scored", and_(status == "not_scorable", not_(arriving)))


def _on(days: Days) -> ColumnElement[bool]:
    conditions = [Study.study_date != ""]  # nothing is before or after an unknown date
    within = []
    if days.first is not None:
        within.append(Study.study_date >= days.first)
    if days.last is not None:
        within.append(Study.study_date <= days.last)
    if within:
        conditions.append(not_(and_(*within)) if days.outside else and_(*within))
    return and_(*conditions)


def _changed(instants: Instants) -> ColumnElement[bool]:
    within = []
    if instants.since is not None:
        within.append(Study.updated_at >= instants.since)
    if instants.before is not None:
        within.append(Study.updated_at < instants.before)
    both = and_(*within)
    return not_(both) if instants.outside else both
