"""Whose study it is: the identity that its images or its order give."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hipscore.domain import StudyIdentity
from hipscore.store.moves import load
from hipscore.store.tables import Series, Study

_FIELDS = [field.name for field in fields(StudyIdentity)]


def identify(series_id: int, identity: StudyIdentity, *, now: datetime, session: Session) -> None:
    """Remember whose the study of this series is, where that was not known before.

    The first series that says it decides; a later one only fills what is empty.
    """
    uid = load(Series, series_id, session=session).study_instance_uid
    complete(uid, identity, now=now, session=session)


def complete(
    study_instance_uid: str, identity: StudyIdentity, *, now: datetime, session: Session
) -> None:
    """Fill what is still empty of the study's identity. An unknown study is left alone."""
    row = by_uid(study_instance_uid, session=session)
    if row is None:
        return
    known = asdict(of(row))
    # another patient's data must not be mixed in: only an equal or unknown ID is completed
    if known["patient_id"] and identity.patient_id not in {"", known["patient_id"]}:
        return
    missing = {name: value for name, value in asdict(identity).items() if value and not known[name]}
    if not missing:
        return
    merged = StudyIdentity(**{**known, **missing})
    session.execute(
        update(Study)
        .where(Study.id == row.id)
        .values(**missing, patient_key=merged.patient_key, updated_at=now),
        execution_options={"synchronize_session": False},
    )
    session.expire(row)


def by_uid(study_instance_uid: str, *, session: Session) -> Study | None:
    """The line of the study, or None if it is unknown."""
    query = select(Study).where(Study.study_instance_uid == study_instance_uid)
    return session.scalars(query).one_or_none()


def of(row: Study) -> StudyIdentity:
    """The identity part of a line."""
    return StudyIdentity(**{name: getattr(row, name) for name in _FIELDS})
