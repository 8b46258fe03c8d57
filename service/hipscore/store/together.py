"""What goes together: deliveries of one job to one destination, over one association."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session, aliased

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.store.deliveries import Parcel, fallback_of
from hipscore.store.retracting import TAKES_BACK, takes_back
from hipscore.store.tables import ArtifactRow, Delivery

#: deliveries that follow one that was claimed, at most
LIMIT = 100
#: what a viewer needs first: the segmentation, then the report that refers to it
_ORDER = (ArtifactKind.SEG, ArtifactKind.SR)


class Sibling(NamedTuple):
    """A delivery that could follow, and the SOP classes it may be sent in."""

    id: int
    sop_classes: tuple[str, ...]


def beside(parcel: Parcel, *, now: datetime, session: Session) -> list[Sibling]:
    """What else of its job is PENDING and due where a claimed delivery goes, in sending order.

    Nothing is claimed by that: each is, by :func:`hipscore.store.deliveries.claim`, when its
    turn comes. PostgreSQL holds their rows until the transaction ends, so that they can be
    marked as announced. What takes a result back goes alone.
    """
    if takes_back(parcel.artifact):
        return []
    order = case({kind: n for n, kind in enumerate(_ORDER)}, value=ArtifactRow.kind, else_=9)
    other = aliased(ArtifactRow)
    query = (
        select(Delivery.id, ArtifactRow.sop_class_uid, other.sop_class_uid)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .outerjoin(other, fallback_of(other))
        .where(
            ArtifactRow.job_id == parcel.artifact.job_id,
            Delivery.destination == parcel.delivery.destination,
            Delivery.state == DeliveryState.PENDING,
            or_(Delivery.next_attempt_at.is_(None), Delivery.next_attempt_at <= now),
            ~TAKES_BACK,
        )
        .order_by(order, Delivery.id)
        .limit(LIMIT)
        # what another worker claims at this moment is its own; waiting for it could go crosswise
        .with_for_update(key_share=True, skip_locked=True, of=Delivery)
    )
    return [
        Sibling(delivery_id, tuple(each for each in classes if each is not None))
        for delivery_id, *classes in session.execute(query)
    ]


def leading(delivery_ids: Sequence[int], *, session: Session) -> list[int]:
    """Of new deliveries of one job, those to send a message for: the first to each destination."""
    query = (
        select(func.min(Delivery.id))
        .where(Delivery.id.in_(delivery_ids))
        .group_by(Delivery.destination)
        .order_by(func.min(Delivery.id))
    )
    return list(session.scalars(query)) if delivery_ids else []
