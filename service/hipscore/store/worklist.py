"""The worklist: pages of studies by time or score, with filters, from the table ``studies``.

Every order and every filter is one that an index of the table serves: the first page of a
hundred thousand studies costs as much as that of ten. Pages are cut by keyset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, not_, or_, select, tuple_
from sqlalchemy.orm import Session

from hipscore.lifecycle import SeriesState
from hipscore.store.sending import Sending, sendings
from hipscore.store.summary import WITHDRAWN
from hipscore.store.tables import Instance, Job, Series, Study

#: images of it may still come
ARRIVING = (SeriesState.RECEIVING, SeriesState.COMPLETE)
_QUEUED, _SCORED = "queued", "scored"
_WITHOUT_SCORE = ("not_scorable", "failed")
#: a series has two hips at most
_HIPS = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which studies are looked for; what is None (or empty) is not asked for.

    Parameters
    ----------
    status
        That of the result JSON.
    withdrawn
        Those whose result was withdrawn (their status is ``failed``), or the others.
    priority
        Flagged, or not flagged.
    min_score, max_score
        Limits of the patient's UNet-score, both included.
    study_from, study_to
        First and last study date, ``YYYYMMDD``.
    since
        A series of it began to arrive then or later.
    number
        Exactly its accession number or Study Instance UID.
    patient_id
        Exactly this one.
    patient_name
        How the name begins: family name first, ``Doe``, ``Doe, Jane`` or ``Doe^Jane``.
    """

    status: str | None = None
    withdrawn: bool | None = None
    priority: bool | None = None
    min_score: float | None = None
    max_score: float | None = None
    study_from: str | None = None
    study_to: str | None = None
    since: datetime | None = None
    number: str | None = None
    patient_id: str | None = None
    patient_name: str | None = None

    @property
    def by_score(self) -> bool:
        """Whether only studies with a score can match."""
        limited = self.min_score is not None or self.max_score is not None
        return limited or self.status == _SCORED


ALL = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the worklist shows of the result of a job.

    ``slices`` are the slices summed, by side (``right``, ``left``) of the scored hips.
    """

    reason: dict[str, Any] | None = None
    quality: tuple[dict[str, Any], ...] = ()
    slices: dict[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One study of the worklist.

    ``status`` is that of its row, but ``queued`` where there is no score and images arrive:
    the next series may be the one that is scored.
    """

    study: Study
    status: str | None
    series: int
    images: int
    last_received_at: datetime
    told: Told
    sending: Sending


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Lines in order, and whether there are more behind them."""

    lines: tuple[Line, ...]
    more: bool


def page(
    wanted: Wanted = ALL,
    *,
    session: Session,
    highest: bool = False,
    after: int | None = None,
    below: float | None = None,
    limit: int = 50,
) -> Page:
    """One page of the worklist.

    Parameters
    ----------
    wanted
        Which studies.
    session
        A reading session.
    highest
        The highest score first and those without last; otherwise, and among equals, the
        one with the newest series first.
    after, below
        ``newest_series_id`` and ``score`` of the last study of the previous page.
    limit
        At most so many.
    """
    conditions = _conditions(wanted, session=session)
    if conditions is None:
        return Page(lines=(), more=False)
    many = limit + 1
    if highest and wanted.status in {None, _SCORED}:
        rows = _highest(wanted, conditions, after, below, many, session=session)
    elif wanted.status == _QUEUED:
        rows = _queued(conditions, after, many, session=session)
    else:
        rows = _newest(conditions, after, many, session=session)
    return Page(lines=_lines(rows[:limit], session=session), more=len(rows) > limit)


# --- which rows ----------------------------------------------------------------------------


def _newest(
    conditions: Iterable[ColumnElement[bool]], after: int | None, many: int, *, session: Session
) -> Sequence[Study]:
    query = select(Study).where(*conditions)
    if after is not None:
        query = query.where(Study.newest_series_id < after)
    return session.scalars(query.order_by(Study.newest_series_id.desc()).limit(many)).all()


def _highest(
    wanted: Wanted,
    conditions: Sequence[ColumnElement[bool]],
    after: int | None,
    below: float | None,
    many: int,
    *,
    session: Session,
) -> Sequence[Study]:
    """Two reads of one index: PostgreSQL cannot serve NULLS LAST from it in one."""
    rows: list[Study] = []
    if after is None or below is not None:
        query = select(Study).where(*conditions, Study.score.is_not(None))
        if after is not None:
            place = tuple_(Study.score, Study.newest_series_id)
            query = query.where(place < tuple_(below, after))
        order = (Study.score.desc(), Study.newest_series_id.desc())
        rows += session.scalars(query.order_by(*order).limit(many))
        after = None
    if len(rows) < many and not wanted.by_score:
        without = (*conditions, Study.score.is_(None))
        rows += _newest(without, after, many - len(rows), session=session)
    return rows


def _queued(
    conditions: Sequence[ColumnElement[bool]], after: int | None, many: int, *, session: Session
) -> Sequence[Study]:
    """Those with a job that waits, and those without a score of which images arrive."""
    arriving = select(Series.study_instance_uid).where(Series.state.in_(ARRIVING))
    open_ones = (
        Study.study_instance_uid.in_(arriving),
        or_(Study.status.is_(None), Study.status.in_(_WITHOUT_SCORE)),
    )
    found = {
        row.id: row
        for one in ((Study.status == _QUEUED,), open_ones)
        for row in _newest((*conditions, *one), after, many, session=session)
    }
    return sorted(found.values(), key=lambda row: -row.newest_series_id)[:many]


def _conditions(wanted: Wanted, *, session: Session) -> list[ColumnElement[bool]] | None:
    """The filters; None where nothing can match."""
    found = [*_by_outcome(wanted), *_by_study(wanted)]
    if wanted.since is not None:
        first = _first_since(wanted.since, session=session)
        if first is None:
            return None
        found.append(Study.newest_series_id >= first)
    if wanted.study_to and wanted.study_to != wanted.study_from:
        last = _last_until(wanted.study_to, wanted.study_from or "", session=session)
        if last is None:
            return None
        found.append(Study.newest_series_id <= last)
    return found


def _by_outcome(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.status is not None and wanted.status != _QUEUED:
        yield Study.status == wanted.status
        if wanted.status in _WITHOUT_SCORE:
            yield ~_arriving()
    if wanted.withdrawn is not None:
        withdrawn = func.coalesce(Study.reason_code, "") == WITHDRAWN
        yield withdrawn if wanted.withdrawn else not_(withdrawn)
    if wanted.priority is not None:
        yield Study.priority.is_(wanted.priority)
    if wanted.min_score is not None:
        yield Study.score >= wanted.min_score
    if wanted.max_score is not None:
        yield Study.score <= wanted.max_score


def _by_study(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.study_from and wanted.study_from == wanted.study_to:
        yield Study.study_date == wanted.study_from  # the index has them in order
        wanted = replace(wanted, study_from=None, study_to=None)
    if wanted.study_from:
        yield Study.study_date >= wanted.study_from
    if wanted.study_to:
        # an unknown date is an empty text, which is not before anything
        yield and_(Study.study_date <= wanted.study_to, Study.study_date != "")
    if wanted.number:
        accession = Study.accession_number == wanted.number
        yield or_(accession, Study.study_instance_uid == wanted.number)
    if wanted.patient_id:
        yield Study.patient_id == wanted.patient_id
    if wanted.patient_name:
        yield or_(*(_begins_with(each) for each in _spellings(wanted.patient_name)))


def _arriving() -> ColumnElement[bool]:
    return exists().where(
        Series.study_instance_uid == Study.study_instance_uid, Series.state.in_(ARRIVING)
    )


def _first_since(when: datetime, *, session: Session) -> int | None:
    """Id of the first series that began to arrive at ``when`` or later; ids follow the time."""
    query = select(Series.id).where(Series.first_received_at >= when)
    return session.scalar(query.order_by(Series.first_received_at, Series.id).limit(1))


def _last_until(date: str, first: str, *, session: Session) -> int | None:
    """Highest ``newest_series_id`` of the studies of these dates; None if there are none.

    Without it a page of old studies would begin with a look at all younger ones. One look into
    the index for each date that there is, not for each study.
    """
    of_dates = and_(Study.study_date > "", Study.study_date >= first)
    newest = select(func.max(Study.study_date).label("date")).where(
        of_dates, Study.study_date <= date
    )
    days = newest.cte("days", recursive=True)
    before = select(func.max(Study.study_date)).where(of_dates, Study.study_date < days.c.date)
    days = days.union_all(
        select(before.correlate(days).scalar_subquery()).where(days.c.date.is_not(None))
    )
    last = select(func.max(Study.newest_series_id)).where(Study.study_date == days.c.date)
    highest = select(func.max(last.correlate(days).scalar_subquery())).select_from(days)
    found: int | None = session.scalar(highest)
    return found


def _begins_with(text: str) -> ColumnElement[bool]:
    return Study.patient_name.startswith(text, autoescape=True)


def _spellings(name: str) -> list[str]:
    """How a name may be written in images: as it is given, in capitals, capitalised."""
    parts = [part.strip() for part in name.replace(",", "^").split("^")]
    given = "^".join(parts).rstrip("^") or name
    forms = (given, given.replace(" ", "^"))
    return list(
        dict.fromkeys(each for form in forms for each in (form, form.upper(), form.title()))
    )


# --- what is shown of them -----------------------------------------------------------------


def _lines(rows: Sequence[Study], *, session: Session) -> tuple[Line, ...]:
    """Everything a page shows, in a fixed number of statements."""
    uids = [row.study_instance_uid for row in rows]
    job_ids = [row.job_id for row in rows if row.job_id is not None]
    members = _members(uids, session=session)
    told = _told(job_ids, session=session)
    sending = sendings(job_ids, session=session)
    lines = []
    for row in rows:
        own = members[row.study_instance_uid]
        states = [each.state for each, _ in own]
        lines.append(
            Line(
                study=row,
                status=_status(row, states),
                series=len(own),
                images=sum(images for _, images in own),
                last_received_at=max(each.last_received_at for each, _ in own),
                # what was withdrawn is shown nowhere
                told=Told() if row.reason_code == WITHDRAWN else told.get(row.job_id or 0, Told()),
                sending=sending.get(row.job_id or 0, Sending()),
            )
        )
    return tuple(lines)


def _status(row: Study, states: Sequence[SeriesState]) -> str | None:
    if row.status is None:
        waits = any(state is not SeriesState.IGNORED for state in states)
        return _QUEUED if waits else None
    arriving = any(state in ARRIVING for state in states)
    return _QUEUED if arriving and row.status in _WITHOUT_SCORE else row.status


def _members(study_uids: Sequence[str], *, session: Session) -> dict[str, list[tuple[Series, int]]]:
    """The series of each study with the number of their images."""
    images = (
        select(func.count())
        .where(Instance.series_id == Series.id)
        .correlate(Series)
        .scalar_subquery()
    )
    query = select(Series, images).where(Series.study_instance_uid.in_(study_uids))
    found: dict[str, list[tuple[Series, int]]] = {uid: [] for uid in study_uids}
    for series, count in session.execute(query.order_by(Series.id)):
        found[series.study_instance_uid].append((series, count))
    return found


def _told(job_ids: Sequence[int], *, session: Session) -> dict[int, Told]:
    """What is shown of the results, without the slices: a result has many kilobytes."""
    found = {}
    for job_id, error, reason, quality, *hips in session.execute(_results(job_ids)):
        by_side = zip(hips[0::3], hips[1::3], hips[2::3], strict=True)
        slices = {side: count for side, score, count in by_side if score is not None}
        found[job_id] = Told(
            reason=reason, quality=tuple(quality or ()), slices=slices, error=error
        )
    return found


def _results(job_ids: Sequence[int]) -> Select[Any]:
    hips = [
        part
        for number in _HIPS
        for part in (
            Job.result["hips", number, "side"].as_string(),
            Job.result["hips", number, "unet_score"].as_float(),
            Job.result["hips", number, "slices_used"].as_integer(),
        )
    ]
    return select(Job.id, Job.error, Job.result["reason"], Job.result["quality"], *hips).where(
        Job.id.in_(job_ids)
    )
