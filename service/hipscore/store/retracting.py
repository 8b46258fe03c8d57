"""What takes a withdrawn result back: which artifacts do, and that they come last."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.store.tables import ArtifactRow, Delivery

#: ``number`` of the HL7 message that takes a result back; that of the result is 0
RETRACTION = 1
#: how long a retraction waits at a time for what it is about
WAIT = timedelta(seconds=5)

#: the condition that an artifact takes a result back
TAKES_BACK = or_(
    ArtifactRow.kind == ArtifactKind.REJECTION,
    and_(ArtifactRow.kind == ArtifactKind.ORU, ArtifactRow.number == RETRACTION),
)


def takes_back(artifact: ArtifactRow) -> bool:
    """Whether this takes a result back: the note (DICOM), or the message (HL7)."""
    message = artifact.kind is ArtifactKind.ORU and artifact.number == RETRACTION
    return message or artifact.kind is ArtifactKind.REJECTION


def waits(delivery: Delivery, *, now: datetime, session: Session) -> bool:
    """Whether a delivery has to wait until what it takes back has gone, or has not.

    A receiver that got the retraction first would keep what comes after it. It is put off for
    :data:`WAIT` then, which is no attempt; the reaper announces it again.
    """
    artifact = session.get_one(ArtifactRow, delivery.artifact_id)
    if not takes_back(artifact):
        return False
    query = (
        select(Delivery.id)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .where(
            ArtifactRow.job_id == artifact.job_id,
            Delivery.destination == delivery.destination,
            Delivery.state == DeliveryState.SENDING,
            Delivery.id != delivery.id,
        )
    )
    if session.scalars(query.limit(1)).first() is None:
        return False
    session.execute(
        update(Delivery)
        .where(Delivery.id == delivery.id, Delivery.state == DeliveryState.PENDING)
        .values(next_attempt_at=now + WAIT, enqueued_at=None),
        execution_options={"synchronize_session": False},
    )
    session.refresh(delivery)
    return True
