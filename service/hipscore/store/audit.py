"""The audit log: who looked at what, and who did what. Rows are only ever added.

A row holds names of keys, verbs, UIDs, row ids and addresses: nothing of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hipscore.store.tables import ArtifactRow, AuditEvent, Delivery, Job, Series, WorkItem

COMMAND_LINE = "command line"
#: action of the line that says that all rows of a study were deleted
DELETE_ROWS = "delete rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who it was: name of the key, role, network address."""

    who: str
    role: str
    address: str = ""


def append(
    actor: Actor,
    action: str,
    *,
    study: str | None = None,
    detail: Mapping[str, Any] | None = None,
    now: datetime,
    session: Session,
) -> None:
    """Add one row. ``study`` is a Study Instance UID; ``detail`` names no patient."""
    session.add(
        AuditEvent(
            at=now,
            who=actor.who[:64],
            role=actor.role,
            action=action[:64],
            study_instance_uid=study,
            address=actor.address[:64],
            detail=dict(detail or {}),
        )
    )


def deletions(study: str, *, session: Session) -> int:
    """How often all rows of this study were deleted (:mod:`hipscore.store.forgetting`)."""
    query = (
        select(func.count())
        .select_from(AuditEvent)
        .where(AuditEvent.study_instance_uid == study, AuditEvent.action == DELETE_ROWS)
    )
    return session.scalar(query) or 0


def events(
    *,
    study: str | None = None,
    who: str | None = None,
    since: datetime | None = None,
    after: int | None = None,
    limit: int,
    session: Session,
) -> Sequence[AuditEvent]:
    """Rows, newest first; ``after`` is the id of the last row of the page before."""
    query = select(AuditEvent)
    if study is not None:
        query = query.where(AuditEvent.study_instance_uid == study)
    if who is not None:
        query = query.where(AuditEvent.who == who)
    if since is not None:
        query = query.where(AuditEvent.at >= since)
    if after is not None:
        query = query.where(AuditEvent.id < after)
    return session.scalars(query.order_by(AuditEvent.id.desc()).limit(limit)).all()


def study_of(
    *,
    job_id: int | None = None,
    delivery_id: int | None = None,
    workitem_uid: str | None = None,
    session: Session,
) -> str | None:
    """Study Instance UID that a job, a delivery or a work item belongs to, if it exists."""
    if workitem_uid is not None:
        return session.scalar(
            select(WorkItem.study_instance_uid).where(WorkItem.sop_instance_uid == workitem_uid)
        )
    query = select(Series.study_instance_uid).join(Job, Job.series_id == Series.id)
    if delivery_id is not None:
        query = (
            query.join(ArtifactRow, ArtifactRow.job_id == Job.id)
            .join(Delivery, Delivery.artifact_id == ArtifactRow.id)
            .where(Delivery.id == delivery_id)
        )
    else:
        query = query.where(Job.id == job_id)
    return session.scalar(query)
