"""What is known of one UID: the rows from which :mod:`hipscore.store.why` says what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal_column, or_, select
from sqlalchemy.orm import Session

from hipscore.lifecycle import JobState
from hipscore.store import explaining, ledger, queries
from hipscore.store.queries import JobDetail
from hipscore.store.tables import ArtifactRow, Event, Instance, Job, Series

#: constants in the statement: its index is of these alone
_REFUSED: tuple[Any, ...] = tuple(literal_column(f"'{what}'") for what in ("conflict", "misplaced"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One series: its row, its images, its jobs (newest first) and its ledger (oldest first).

    ``purged`` is how many images are not here any more, ``purged_at`` when the last went.
    ``unmatched_since`` is when the last image of its study came, if no rule matched a series
    of it and no report has said so yet.
    """

    series: Series
    images: int
    purged: int
    purged_at: datetime | None
    jobs: tuple[JobDetail, ...]
    events: tuple[Event, ...]
    unmatched_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a UID names: the series it leads to, and one line if it names a single object."""

    accounts: tuple[Account, ...]
    about: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What lies around one series: the time, the settings, and what the workers do.

    ``busy`` is how many analyses are held by a worker now, ``ahead`` how many older jobs
    wait for one. ``explains``: a study in which no rule matched gets a report that says why.
    """

    now: datetime
    quiet_seconds: float
    explains: bool = False
    busy: int = 0
    ahead: int = 0


def find(uid: str, *, session: Session) -> Found:
    """What is known of a study, series, image or output object; no accounts if nothing is."""
    of_series = or_(Series.study_instance_uid == uid, Series.series_instance_uid == uid)
    ids = session.scalars(select(Series.id).where(of_series).order_by(Series.id)).all()
    if ids:
        return Found(accounts=_accounts(ids, session=session))
    image = session.scalars(select(Instance).where(Instance.sop_instance_uid == uid)).one_or_none()
    if image is not None:
        here = f"purged {image.purged_at:%Y-%m-%d %H:%M}" if image.purged_at else "kept"
        about = f"image {uid}: received {image.received_at:%Y-%m-%d %H:%M:%S} and {here}"
        return Found(accounts=_accounts([image.series_id], session=session), about=about)
    output = select(ArtifactRow, Job.series_id).join(Job, Job.id == ArtifactRow.job_id)
    made = session.execute(output.where(ArtifactRow.sop_instance_uid == uid)).first()
    if made is not None:
        artifact, series_id = made
        about = f"{artifact.kind.value.upper()} {uid}: made by job {artifact.job_id}"
        return Found(accounts=_accounts([series_id], session=session), about=about)
    return _mentioned(uid, session=session)


def surroundings(
    *, quiet_seconds: float, explains: bool = False, now: datetime, session: Session
) -> Surroundings:
    """The time, and what the workers do now."""
    held = select(func.count()).where(Job.state == JobState.ANALYSING, Job.lease_until >= now)
    waiting = select(func.count()).where(
        Job.state == JobState.QUEUED, or_(Job.next_attempt_at.is_(None), Job.next_attempt_at <= now)
    )
    return Surroundings(
        now=now,
        quiet_seconds=quiet_seconds,
        explains=explains,
        busy=session.scalar(held) or 0,
        ahead=session.scalar(waiting) or 0,
    )


def _mentioned(uid: str, *, session: Session) -> Found:
    """An image that was refused is only named in the ledger; there is an index of refusals."""
    named = (Event.detail[f"{each}_instance_uid"].as_string() == uid for each in ("sop", "study"))
    refusals = select(Event).where(Event.what.in_(_REFUSED), or_(*named))
    event = session.scalars(refusals.order_by(Event.id.desc()).limit(1)).one_or_none()
    if event is not None:
        image, study = (event.detail.get(f"{each}_instance_uid") for each in ("sop", "study"))
        about = (
            f"image {image}: refused {event.at:%Y-%m-%d %H:%M:%S}; it says study {study}, "
            f"where its series is known in study {event.detail.get('kept_study')}"
        )
        return Found(accounts=_accounts([event.series_id], session=session), about=about)
    return Found(accounts=())


def _accounts(series_ids: Sequence[int], *, session: Session) -> tuple[Account, ...]:
    rows = session.scalars(select(Series).where(Series.id.in_(series_ids)).order_by(Series.id))
    found = []
    details: dict[int, queries.SeriesDetail] = {}
    unmatched: dict[str, datetime | None] = {}
    for series in rows.all():
        if series.id not in details:
            study = queries.study(series.study_instance_uid, session=session)
            details |= {each.series.id: each for each in (study.series if study else ())}
            unmatched[series.study_instance_uid] = _unmatched_since(study)
        detail = details[series.id]
        gone = select(func.count(), func.max(Instance.purged_at)).where(
            Instance.series_id == series.id, Instance.purged_at.is_not(None)
        )
        purged, purged_at = session.execute(gone).one()
        found.append(
            Account(
                series=series,
                images=detail.images,
                purged=purged,
                purged_at=purged_at,
                jobs=detail.jobs,
                events=tuple(ledger.of_series(series.series_instance_uid, session=session)),
                unmatched_since=unmatched[series.study_instance_uid],
            )
        )
    return tuple(found)


def _unmatched_since(study: queries.StudyDetail | None) -> datetime | None:
    members = [each.series for each in study.series] if study else []
    if not members or not explaining.pending(members):
        return None
    return max(each.last_received_at for each in members)
