"""The append-only ledger: what happened to every series, job and delivery, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hipscore.store.tables import Event, Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom an event is about: always a series, and the job and delivery if there is one."""

    series_id: int
    job_id: int | None = None
    delivery_id: int | None = None


def append(
    subject: Subject,
    what: str,
    *,
    from_state: StrEnum | None = None,
    to_state: StrEnum | None = None,
    detail: Mapping[str, Any] | None = None,
    now: datetime,
    session: Session,
) -> None:
    """Add one line. ``detail`` is JSON without anything that identifies a patient."""
    session.add(
        Event(
            at=now,
            series_id=subject.series_id,
            job_id=subject.job_id,
            delivery_id=subject.delivery_id,
            what=what,
            from_state=from_state,
            to_state=to_state,
            detail=dict(detail or {}),
        )
    )


def of_series(series_instance_uid: str, *, session: Session) -> Sequence[Event]:
    """Every event of one series, oldest first; empty if the series is unknown."""
    return _of(session, Series.series_instance_uid == series_instance_uid)


def of_study(study_instance_uid: str, *, session: Session) -> Sequence[Event]:
    """Every event of one study, oldest first; empty if the study is unknown."""
    return _of(session, Series.study_instance_uid == study_instance_uid)


def _of(session: Session, condition: Any) -> Sequence[Event]:
    query = select(Event).join(Series, Series.id == Event.series_id).where(condition)
    return session.scalars(query.order_by(Event.id)).all()
