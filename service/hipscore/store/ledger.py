"""The append-only ledger: what happened to every series, job and delivery, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, cast

from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from hipscore.store.tables import Event, Series

_ADD: Final = insert(cast("Table", Event.__table__))


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
    append_all(
        [(subject, detail or {})],
        what,
        from_state=from_state,
        to_state=to_state,
        now=now,
        session=session,
    )


def append_all(
    lines: Sequence[tuple[Subject, Mapping[str, Any]]],
    what: str,
    *,
    from_state: StrEnum | None = None,
    to_state: StrEnum | None = None,
    now: datetime,
    session: Session,
) -> None:
    """Add a line each, with its detail, to several to whom the same happened; one statement."""
    rows = [
        {
            "at": now,
            "series_id": subject.series_id,
            "job_id": subject.job_id,
            "delivery_id": subject.delivery_id,
            "what": what,
            "from_state": from_state,
            "to_state": to_state,
            "detail": dict(detail),
        }
        for subject, detail in lines
    ]
    if rows:
        # into the table, not through the mapped class: nobody asks for the new ids
        session.connection().execute(_ADD, rows)


def of_series(series_instance_uid: str, *, session: Session) -> Sequence[Event]:
    """Every event of one series, oldest first; empty if the series is unknown."""
    return _of(session, Series.series_instance_uid == series_instance_uid)


def of_study(study_instance_uid: str, *, session: Session) -> Sequence[Event]:
    """Every event of one study, oldest first; empty if the study is unknown."""
    return _of(session, Series.study_instance_uid == study_instance_uid)


def _of(session: Session, condition: Any) -> Sequence[Event]:
    query = select(Event).join(Series, Series.id == Event.series_id).where(condition)
    return session.scalars(query.order_by(Event.id)).all()
