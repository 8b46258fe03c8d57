"""Where the results of studies are, in one word, for lists of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, not_, or_, select
from sqlalchemy.orm import Session

from hipscore.lifecycle import DeliveryState
from hipscore.store.retracting import TAKES_BACK
from hipscore.store.tables import ArtifactRow, Delivery, Job, Study

#: somebody has to act
GIVEN_UP = (DeliveryState.REFUSED, DeliveryState.EXHAUSTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How many of the deliveries of a result are where.

    ``committed``: the destination has said that it keeps it. ``sent``: it has it and is not
    asked for more. ``unconfirmed``: it has it and has not said yet that it keeps it.
    ``waiting``: it does not have it yet. ``given_up``: somebody has to act.

    Of a withdrawn result what takes it back counts alone.
    """

    committed: int = 0
    sent: int = 0
    unconfirmed: int = 0
    waiting: int = 0
    given_up: int = 0

    @property
    def word(self) -> str | None:
        """The worst of them; None where nothing is sent."""
        if self.given_up:
            return "needs_you"
        if self.waiting:
            return "waiting"
        if self.unconfirmed:
            return "unconfirmed"
        if self.sent:
            return "arrived"
        return "committed" if self.committed else None


def sendings(job_ids: Sequence[int], *, session: Session) -> dict[int, Sending]:
    """Where the results of these jobs are; nothing of a job that has no delivery."""
    settled = Delivery.commit_at.is_(None)
    # as outbox.arrived: something else went in its place, or it was withdrawn before it went
    replaced = and_(Delivery.state == DeliveryState.REFUSED, Delivery.form_id.is_not(None))
    query = (
        select(ArtifactRow.job_id, Delivery.state, settled, func.count())
        .join(Delivery, Delivery.artifact_id == ArtifactRow.id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(
            ArtifactRow.job_id.in_(job_ids),
            ~replaced,
            or_(Job.withdrawn_at.is_(None), TAKES_BACK),
        )
        .group_by(ArtifactRow.job_id, Delivery.state, settled)
    )
    counts: dict[int, dict[str, int]] = {}
    for job_id, state, is_settled, count in session.execute(query):
        of_job = counts.setdefault(job_id, {})
        kind = _kind(state, settled=bool(is_settled))
        of_job[kind] = of_job.get(kind, 0) + count
    return {job_id: Sending(**each) for job_id, each in counts.items()}


def _kind(state: DeliveryState, *, settled: bool) -> str:
    if state is DeliveryState.COMMITTED:
        return "committed"
    if state in GIVEN_UP:
        return "given_up"
    if state is DeliveryState.SENT:
        return "sent" if settled else "unconfirmed"
    return "waiting"


def named(study_uids: Iterable[str], *, session: Session) -> dict[str, Study]:
    """The lines of these studies by Study Instance UID, to say whose they are."""
    query = select(Study).where(Study.study_instance_uid.in_(set(study_uids)))
    return {row.study_instance_uid: row for row in session.scalars(query)}


def stopped(delivery_ids: Iterable[int], *, session: Session) -> set[int]:
    """Those of these deliveries that never go again: what they carry was withdrawn."""
    query = (
        select(Delivery.id)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .where(Delivery.id.in_(set(delivery_ids)), Job.withdrawn_at.is_not(None), not_(TAKES_BACK))
    )
    return set(session.scalars(query))
