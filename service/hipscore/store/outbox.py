"""What has not arrived: the deliveries an operator looks at after an outage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, literal_column, or_, select
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.store.retracting import TAKES_BACK
from hipscore.store.tables import ArtifactRow, Delivery, Job, Series


def _in(*states: DeliveryState) -> ColumnElement[bool]:
    """Constants in the statement, not parameters: an index of these rows alone serves it."""
    return Delivery.state.in_([literal_column(f"'{state.value}'") for state in states])


#: the deliveries about which something is still to be done, as ``ix_deliveries_open_id`` has
#: them: without what something else went in the place of, which is a delivery of its own
OPEN = or_(
    _in(DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.EXHAUSTED),
    and_(_in(DeliveryState.REFUSED), Delivery.form_id.is_(None)),
    and_(_in(DeliveryState.SENT), Delivery.commit_at.is_not(None)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """A delivery that has not arrived for good (see :func:`arrived`), and what it carries."""

    delivery: Delivery
    kind: ArtifactKind
    job_id: int
    series_instance_uid: str


def arrived(state: DeliveryState, commit_at: datetime | None, form_id: int | None = None) -> bool:
    """Whether the peer has it for good: it said so, or was asked for no more than to take it.

    ``commit_at`` and ``form_id`` are those of the delivery: when its storage commitment is
    asked for next, and what went. What was REFUSED has a form if other forms of the result go
    instead, each by a delivery of its own: nothing of it is left to be done.
    """
    if state is DeliveryState.REFUSED:
        return form_id is not None
    if state is DeliveryState.SENT:
        return commit_at is None
    return state is DeliveryState.COMMITTED


def undelivered(*, session: Session, limit: int = 1000) -> list[Undelivered]:
    """Those that somebody has to act on first, then in the order of their next attempt."""
    urgency = case(
        (Delivery.state == DeliveryState.EXHAUSTED, 0),
        (Delivery.state == DeliveryState.REFUSED, 1),
        (Delivery.state == DeliveryState.SENT, 3),
        else_=2,
    )
    query = (
        select(Delivery, ArtifactRow.kind, Job.id, Series.series_instance_uid)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .join(Series, Series.id == Job.series_id)
        .where(OPEN)
        .order_by(urgency, Delivery.next_attempt_at.nulls_first(), Delivery.id)
    )
    return [
        Undelivered(delivery=delivery, kind=kind, job_id=job_id, series_instance_uid=uid)
        for delivery, kind, job_id, uid in session.execute(query.limit(limit))
    ]


def exhausted(*, destination: str | None = None, session: Session) -> Sequence[int]:
    """Ids of the deliveries that were given up (for this destination) and can be sent again."""
    query = (
        select(Delivery.id)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(
            Delivery.state == DeliveryState.EXHAUSTED,
            ArtifactRow.purged_at.is_(None),
            or_(Job.withdrawn_at.is_(None), TAKES_BACK),
        )
    )
    if destination is not None:
        query = query.where(Delivery.destination == destination)
    return session.scalars(query.order_by(Delivery.id)).all()
