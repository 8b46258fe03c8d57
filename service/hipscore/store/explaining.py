"""Studies in which nothing matched a rule, and series that are analysed all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from hipscore.domain import ModelCard
from hipscore.lifecycle import SERIES, SeriesEvent, SeriesState
from hipscore.routing import NO_RULE, ORDERED
from hipscore.store import intake, ledger
from hipscore.store.moves import advance, load
from hipscore.store.tables import Event, Instance, Job, Series, Study

#: a study that nobody has explained in this time (no reaper ran) is not explained any more;
#: it keeps what is looked through at every reap small
HORIZON = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A series that no rule matched; ``told`` when it has had a report before."""

    series_id: int
    images: int
    told: bool


def unexplained(
    *, before: datetime, horizon: timedelta = HORIZON, session: Session, limit: int = 100
) -> list[str]:
    """Studies that would go without a word, by UID, longest silent first.

    All their series are closed and none is matched, at least one is ignored because no rule
    matched it, and nothing came since ``before``, but within the ``horizon`` before that.
    """
    other = aliased(Series)
    in_work = exists().where(
        other.study_instance_uid == Series.study_instance_uid,
        (other.state != SeriesState.IGNORED) | (other.last_received_at >= before),
    )
    stored = exists().where(Instance.series_id == Series.id, Instance.purged_at.is_(None))
    query = (
        select(Series.study_instance_uid)
        .where(
            Series.state == SeriesState.IGNORED,
            Series.match_rule == NO_RULE,
            Series.last_received_at < before,
            Series.last_received_at >= before - horizon,
            stored,
            ~in_work,
        )
        .group_by(Series.study_instance_uid)
        .order_by(func.max(Series.last_received_at), Series.study_instance_uid)
        .limit(limit)
    )
    return list(session.scalars(query))


def candidates(study_instance_uid: str, *, session: Session) -> list[Candidate]:
    """The series of a study that no rule matched and whose images are here, as they came."""
    images = (
        select(func.count())
        .where(Instance.series_id == Series.id, Instance.purged_at.is_(None))
        .correlate(Series)
        .scalar_subquery()
    )
    told = exists().where(Job.series_id == Series.id)
    query = (
        select(Series.id, images, told)
        .where(
            Series.study_instance_uid == study_instance_uid,
            Series.state == SeriesState.IGNORED,
            Series.match_rule == NO_RULE,
        )
        .order_by(Series.id)
    )
    return [
        Candidate(series_id=row[0], images=row[1], told=bool(row[2]))
        for row in session.execute(query)
        if row[1]
    ]


def pending(series: Sequence[Series]) -> bool:
    """Whether these series, all of a study, wait for the report that says why none matched."""
    return all(each.state is SeriesState.IGNORED for each in series) and any(
        each.match_rule == NO_RULE for each in series
    )


def order(
    series_id: int,
    rule: str,
    *,
    card: ModelCard,
    why: Sequence[str] = (),
    unmatched_since: datetime | None = None,
    now: datetime,
    session: Session,
) -> Job | None:
    """IGNORED → MATCHED by ``rule``, with a job; of a MATCHED series, the job it has.

    With ``unmatched_since``, only while its study still is one of :func:`unexplained`; None
    if it is not any more, or if another was faster. The study's row is locked, so that two
    reapers cannot order two series of it.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the series is still receiving images.
    hipscore.store.moves.NotFound
        If there is no such series.
    """
    uid = load(Series, series_id, session=session).study_instance_uid
    session.execute(
        select(Study.id).where(Study.study_instance_uid == uid).with_for_update(key_share=True)
    )
    series = load(Series, series_id, session=session, lock=True)
    if unmatched_since is not None and not _still(uid, unmatched_since, session=session):
        return None
    if series.state is not SeriesState.MATCHED:
        moved = advance(
            series,
            SERIES,
            SeriesEvent.ORDER,
            subject=ledger.Subject(series_id=series_id),
            values={"match_rule": rule},
            detail={"rule": rule, **({"why": list(why)} if why else {})},
            now=now,
            session=session,
        )
        if not moved:
            return None
    elif (existing := _newest(series_id, session=session)) is not None:
        return existing
    return intake.open_job(
        series_id,
        bundle_id=card.id,
        bundle_version=card.version,
        bundle_sha256=card.sha256,
        now=now,
        session=session,
    )


def was_ordered(series_id: int, *, session: Session) -> bool:
    """Whether somebody has asked for the analysis of this series: late images belong to it."""
    query = select(Event.detail).where(
        Event.series_id == series_id, Event.what == SeriesEvent.ORDER.value
    )
    return any(detail.get("rule") == ORDERED for detail in session.scalars(query))


def _still(study_instance_uid: str, before: datetime, *, session: Session) -> bool:
    query = select(Series.state, Series.last_received_at).where(
        Series.study_instance_uid == study_instance_uid
    )
    rows = session.execute(query).all()
    return all(state is SeriesState.IGNORED and last < before for state, last in rows)


def _newest(series_id: int, *, session: Session) -> Job | None:
    query = select(Job).where(Job.series_id == series_id).order_by(Job.id.desc()).limit(1)
    return session.scalars(query).one_or_none()
