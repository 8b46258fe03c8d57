"""What clients do with work items: create, change, claim, end, and ask to cancel (PS3.4 CC.2).

Items that order an analysis of ours are performed here: nobody else claims or ends them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from hipscore.lifecycle import JOB, IllegalMove, JobEvent, JobState, SeriesState
from hipscore.procedure import analysis, reports, rules
from hipscore.procedure.dataset import Attributes, data_set, tag
from hipscore.procedure.states import CHANGES, FINAL, State, Status, Wish, rule
from hipscore.reporting import uids
from hipscore.store import jobs, ledger, performing, subscriptions, workitems
from hipscore.store.moves import NotFound, advance, load
from hipscore.store.tables import ArtifactRow, Delivery, Job, Series, WorkItem

#: ``reason_code`` of a job that somebody had canceled
CANCELED = "canceled"
_UNFINISHED = {JobState.QUEUED, JobState.ANALYSING}
_WHAT_WE_DO = ("ScheduledWorkitemCodeSequence", "InputInformationSequence")


class PerformedHere(Exception):
    """The item is ours to perform; the text says so."""

    def __init__(self, uid: str) -> None:
        super().__init__(f"hipscore itself performs work item {uid}; ask it to cancel if need be")


class Exists(Exception):
    """There is a work item of this UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a wish. ``unmet`` are keywords that the item lacks for its final state."""

    status: Status
    unmet: Sequence[str] = ()


def create(uid: str, attributes: Attributes, *, now: datetime, session: Session) -> None:
    """Add an item that a client made; one that orders an analysis is bound to it if we can.

    Raises
    ------
    Exists
        If there is one of this UID.
    """
    if not workitems.add(uid, attributes, now=now, session=session):
        msg = f"there is a work item {uid} already"
        raise Exists(msg)
    if analysis.is_ours(attributes):
        take(uid, now=now, session=session)


def retrieve(uid: str, *, session: Session) -> Attributes:
    """The item; it never shows its Transaction UID. Raises NotFound."""
    return dict(_item(uid, session=session).attributes)


def change(
    uid: str,
    changes: Mapping[str, Any],
    *,
    transaction_uid: str | None,
    now: datetime,
    session: Session,
) -> Answer:
    """Set attributes of an item (PS3.4 CC.2.6).

    Raises
    ------
    hipscore.procedure.dataset.Malformed
        If the changes are not allowed.
    hipscore.store.moves.NotFound
        If there is no such item.
    PerformedHere
        If it is ours and in progress, or the change would make it another order.
    """
    item = _item(uid, session=session, lock=True)
    state = State(item.state)
    ours = item.job_id is not None or analysis.is_ours(item.attributes)
    another = state is State.IN_PROGRESS or any(tag(each) in changes for each in _WHAT_WE_DO)
    if ours and another and state not in FINAL:
        raise PerformedHere(uid)
    if state is State.SCHEDULED and transaction_uid is not None:
        return Answer(status=Status.NOT_IN_PROGRESS)
    ruling = rule(state, Wish.UPDATE, held=item.transaction_uid, given=transaction_uid)
    if ruling.status is Status.SUCCESS:
        attributes = rules.updated(item.attributes, changes, now=now)
        told = reports.of_change(item.attributes, attributes)
        workitems.swap(item, attributes, told, now=now, session=session)
    return Answer(status=ruling.status)


def change_state(
    uid: str, wanted: State, *, transaction_uid: str | None, now: datetime, session: Session
) -> Answer:
    """Claim, complete or cancel an item (PS3.4 CC.2.1). Raises NotFound or PerformedHere."""
    item = _item(uid, session=session, lock=True)
    state = State(item.state)
    ours = item.job_id is not None or analysis.is_ours(item.attributes)
    if ours and state not in FINAL:
        raise PerformedHere(uid)
    if transaction_uid is None:
        return Answer(status=Status.WRONG_TRANSACTION)
    ruling = rule(state, CHANGES[wanted], held=item.transaction_uid, given=transaction_uid)
    if ruling.status is not Status.SUCCESS:
        return Answer(status=ruling.status)
    if wanted is State.CANCELED:
        performing.end_canceled(item, why={}, now=now, session=session)
        return Answer(status=Status.SUCCESS)
    unmet = rules.unmet(item.attributes, wanted) if wanted in FINAL else []
    if unmet:
        return Answer(status=Status.FINAL_STATE_UNMET, unmet=unmet)
    claim = {"transaction_uid": transaction_uid} if wanted is State.IN_PROGRESS else {}
    performing.end(item, item.attributes, ruling.through, now=now, session=session, **claim)
    return Answer(status=Status.SUCCESS)


def request_cancel(
    uid: str,
    request: Mapping[str, Any],
    *,
    requester: str,
    now: datetime,
    session: Session,
) -> Answer:
    """Ask to cancel an item (PS3.4 CC.2.2). Raises NotFound.

    What nobody has claimed is canceled at once, and what we perform as well: the job with it.
    Of anything else its performer is told.
    """
    item = _item(uid, session=session)
    # the job before the item, as its own moves lock them
    job = None if item.job_id is None else load(Job, item.job_id, session=session, lock=True)
    item = _item(uid, session=session, lock=True)
    state = State(item.state)
    ruling = rule(state, Wish.REQUEST_CANCEL)
    if ruling.status is not Status.SUCCESS:
        return Answer(status=ruling.status)
    why = rules.reasons(request)
    told = [reports.cancel_requested(why, requester=requester)]
    subscriptions.tell(uid, told, now=now, session=session)
    if job is not None and job.state in _UNFINISHED:
        if why:
            progress = {**item.attributes, **data_set(**{rules.PROGRESS: [why]})}
            workitems.swap(item, progress, now=now, session=session)
        cancel_job(job, now=now, session=session)
    elif ruling.through:
        held = uids.derive("transaction", uid, "canceled")
        performing.end_canceled(item, why=why, now=now, session=session, transaction_uid=held)
    return Answer(status=Status.SUCCESS)


def cancel_job(job: Job, *, now: datetime, session: Session) -> None:
    """QUEUED or ANALYSING → FAILED by somebody's wish; a worker that is at it loses its lease.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the job has ended.
    """
    moved = advance(
        job,
        JOB,
        JobEvent.CANCEL,
        subject=ledger.Subject(series_id=job.series_id, job_id=job.id),
        values={
            "lease": None,
            "lease_until": None,
            "enqueued_at": None,
            "next_attempt_at": None,
            "reason_code": CANCELED,
            "error": "canceled on request",
            "finished_at": now,
        },
        detail={"reason": CANCELED},
        now=now,
        session=session,
    )
    if not moved:
        msg = f"job {job.id} was changed by someone else just now; look again"
        raise IllegalMove(msg)


def waiting(*, session: Session, limit: int = 100) -> list[str]:
    """UIDs of orders that :func:`take` can do something about, oldest first.

    Those for what we hold in closed series: analysed already, or ignored and named. The
    others would stand before younger ones for as long as they wait.
    """
    inputs = WorkItem.attributes[tag("InputInformationSequence")].as_string()
    named = inputs.contains(Series.series_instance_uid)
    whole = func.coalesce(inputs, "").not_like(f"%{tag('SeriesInstanceUID')}%")
    analysed = select(Job.id).where(Job.series_id == Series.id, *_current()).exists()
    possible = (
        select(Series.id)
        .where(
            Series.study_instance_uid == WorkItem.study_instance_uid,
            Series.state.in_((SeriesState.MATCHED, SeriesState.IGNORED)),
            or_(
                and_(analysed, or_(named, whole)),
                and_(Series.state == SeriesState.IGNORED, named),
            ),
        )
        .exists()
    )
    query = select(WorkItem.sop_instance_uid).where(
        WorkItem.state == State.SCHEDULED.value,
        WorkItem.job_id.is_(None),
        workitems.ours(),
        possible,
    )
    return list(session.scalars(query.order_by(WorkItem.id).limit(limit)))


def take(uid: str, *, now: datetime, session: Session) -> list[int]:
    """Bind an order to the analysis of its images, if there is one; see :mod:`.performing`.

    One that is done gives the order its results at once; one that failed is tried again.

    Returns
    -------
    list of int
        Ids of series that it names and that are not going to be analysed by themselves: the
        caller has to order them. Their jobs, when opened, find the order.
    """
    item = workitems.find(uid, session=session)
    if item is None:
        return []
    held = [each for each in _held(item, session=session) if performing.wants(item, each)]
    newest = (
        select(func.max(Job.id))
        .where(Job.series_id.in_([each.id for each in held]), *_current())
        .scalar_subquery()
    )
    job = session.scalars(select(Job).where(Job.id == newest)).one_or_none()
    if job is None:
        named = analysis.series_of(item.attributes)
        return [
            each.id
            for each in held
            if each.state is SeriesState.IGNORED and each.series_instance_uid in named
        ]
    job = load(Job, job.id, session=session, lock=True)
    item = workitems.find(uid, session=session, lock=True)
    if item is None or item.job_id is not None or item.state != State.SCHEDULED:
        return []
    if job.state is JobState.FAILED:
        _try_again(job, item, now=now, session=session)
        return []
    ready = data_set(InputReadinessState="READY")
    performing.bind(item, job, {**item.attributes, **ready}, now=now, session=session)
    if job.state not in _UNFINISHED:
        _give_results(job, item, now=now, session=session)
    return []


def _try_again(job: Job, item: WorkItem, *, now: datetime, session: Session) -> None:
    """RETRY gives the order to the job, or there is no way and the order ends."""
    try:
        jobs.retry(job.id, now=now, session=session)
    except IllegalMove:
        why = analysis.why_failed(job.reason_code, job.error)
        performing.end_canceled(item, why=why, now=now, session=session, job_id=job.id)


def _give_results(job: Job, item: WorkItem, *, now: datetime, session: Session) -> None:
    rows = session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job.id)).all()
    went = select(Delivery.destination).where(Delivery.artifact_id.in_([row.id for row in rows]))
    destinations = session.scalars(went.distinct().order_by(Delivery.destination)).all()
    performing.complete(item, job, rows, destinations, now=now, session=session)


def _current() -> tuple[ColumnElement[bool], ...]:
    """The condition that a job is not withdrawn, and the last word on its series.

    A result that a withdrawn one had replaced does not come back for an order either.
    """
    later = aliased(Job)
    superseded = select(later.id).where(later.supersedes_id == Job.id).exists()
    return Job.withdrawn_at.is_(None), ~superseded


def _held(item: WorkItem, *, session: Session) -> Sequence[Series]:
    query = select(Series).where(Series.study_instance_uid == item.study_instance_uid)
    return session.scalars(query.order_by(Series.id)).all()


def _item(uid: str, *, session: Session, lock: bool = False) -> WorkItem:
    item = workitems.find(uid, session=session, lock=lock)
    if item is None:
        msg = f"there is no work item {uid}"
        raise NotFound(msg)
    return item
