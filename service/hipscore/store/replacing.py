"""What goes instead: other forms for a destination that does not take the first, later results.

Whoever gets messages and not documents keeps the one that came last. So none goes behind a
later one of its series.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.store import ledger
from hipscore.store.moves import load
from hipscore.store.retracting import takes_back
from hipscore.store.tables import ArtifactRow, Delivery, Job

_THERE = {DeliveryState.SENT, DeliveryState.COMMITTED}


def replace(
    delivery_id: int, kinds: Sequence[ArtifactKind], *, now: datetime, session: Session
) -> list[int]:
    """Open deliveries of these kinds to the destination of a REFUSED delivery of the same job.

    Its ``form_id`` names the first of what goes instead: nobody has to act on it. Several
    refused deliveries of a job open them once.

    Returns
    -------
    list of int
        Ids of what is new; empty if all of them were opened before, or there are none.
    """
    refused = load(Delivery, delivery_id, session=session)
    job_id = session.get_one(ArtifactRow, refused.artifact_id).job_id
    job = load(Job, job_id, session=session, lock=True)  # SEG and SR may be refused at once
    instead = session.scalars(
        select(ArtifactRow)
        .where(
            ArtifactRow.job_id == job_id,
            ArtifactRow.kind.in_(kinds),
            ArtifactRow.purged_at.is_(None),
        )
        .order_by(ArtifactRow.id)
    ).all()
    if not instead:
        return []
    known = set(
        session.scalars(
            select(Delivery.artifact_id).where(
                Delivery.destination == refused.destination,
                Delivery.artifact_id.in_([each.id for each in instead]),
            )
        )
    )
    session.execute(
        update(Delivery).where(Delivery.id == delivery_id).values(form_id=instead[0].id),
        execution_options={"synchronize_session": False},
    )
    opened = []
    for artifact in instead:
        if artifact.id in known:
            continue
        delivery = Delivery(
            artifact_id=artifact.id,
            destination=refused.destination,
            state=DeliveryState.PENDING,
            attempts=0,
            created_at=now,
        )
        session.add(delivery)
        session.flush()
        ledger.append(
            ledger.Subject(series_id=job.series_id, job_id=job_id, delivery_id=delivery.id),
            "open",
            to_state=DeliveryState.PENDING,
            detail={
                "artifact": artifact.kind.value,
                "destination": refused.destination,
                "instead_of": delivery_id,
                "why": "the destination takes no objects of that SOP class",
            },
            now=now,
            session=session,
        )
        opened.append(delivery.id)
    return opened


class Overtaken(NamedTuple):
    """Whether the message of a delivery may go: ``by`` a later one it is not to follow.

    ``waits``: an earlier one is being sent at this moment.
    """

    by: int | None
    waits: bool


def overtaken(delivery_id: int, *, session: Session) -> Overtaken:
    """Look at the other messages of the series to the same destination.

    A retraction is not to follow a later result that is there: they have one order number,
    and it would take back both. One that only waits does not keep it: that may never go.
    """
    delivery = load(Delivery, delivery_id, session=session)
    own = session.get_one(ArtifactRow, delivery.artifact_id)
    series_id = load(Job, own.job_id, session=session).series_id
    others = (
        select(ArtifactRow.id, ArtifactRow.job_id, Delivery.state)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(
            Job.series_id == series_id,
            ArtifactRow.kind == own.kind,
            Delivery.destination == delivery.destination,
            Delivery.id != delivery_id,
        )
        .order_by(Job.id.desc())
    )
    found = session.execute(others).all()
    later = [each for each in found if each.job_id > own.job_id]
    sending = [each for each in found if each.state is DeliveryState.SENDING]
    if takes_back(own):
        later = [each for each in later if each.state in _THERE]
    else:
        sending = [each for each in sending if each.job_id < own.job_id]
    return Overtaken(by=later[0].id if later else None, waits=bool(sending))
