"""Every analysis is a work item: opened with its job, it follows every move of it.

A few statements in the transaction of the move. An item that somebody else created as an order
is bound to the job, and follows it in place of one of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from hipscore.domain import RESEARCH_USE, ArtifactKind, StudyIdentity
from hipscore.lifecycle import JobEvent, JobState
from hipscore.procedure import analysis, reports, rules
from hipscore.procedure.analysis import Image, Output
from hipscore.procedure.dataset import Attributes, data_set, value
from hipscore.procedure.states import State
from hipscore.reporting import uids
from hipscore.store import workitems
from hipscore.store.tables import ArtifactRow, Instance, Job, JobInstance, Series, Study, WorkItem

_WAITS = {
    JobEvent.POSTPONE: "waits for another attempt",
    JobEvent.EXPIRE: "goes on with another worker",
}
#: the report once more, and the note that takes a result back
_NO_OUTPUT = frozenset({ArtifactKind.SR_FALLBACK, ArtifactKind.REJECTION})
_FIELDS = [field.name for field in fields(StudyIdentity)]


def opened(job: Job, *, again: bool = False, now: datetime, session: Session) -> None:
    """Give a job its item; ``again``: it is tried again, and its last item has ended."""
    series = session.get_one(Series, job.series_id)
    earlier = _earlier(job.id, session=session) if again else []
    uid = uids.derive(job.key, "ups", *([str(len(earlier) + 1)] if earlier else []))
    waiting, taken = _waiting(series, uid, session=session)
    for item in waiting:
        ready = data_set(InputReadinessState="READY")
        bind(item, job, {**item.attributes, **ready}, now=now, session=session)
    if waiting:
        return
    if taken:  # by an item of somebody else, or of a job that had this key once
        uid = uids.derive(job.key, "ups", str(job.id), str(len(earlier) + 1))
    attributes = analysis.opened(
        uid,
        study_uid=series.study_instance_uid,
        series_uid=series.series_instance_uid,
        images=_images(job.id, session=session),
        identity=_identity(series.study_instance_uid, session=session),
        replaces=earlier[-1] if earlier else None,
        now=now,
    )
    workitems.add(uid, attributes, job_id=job.id, now=now, session=session)


def follow(job: Job, event: JobEvent, before: JobState, *, now: datetime, session: Session) -> None:
    """Move the items of a job as it has just moved; see :func:`finished` for its results."""
    if event in {JobEvent.ANALYSED, JobEvent.NOT_SCORABLE}:
        return
    if event is JobEvent.RETRY:
        if before is JobState.FAILED:
            opened(job, again=True, now=now, session=session)
        return
    for item in workitems.of_job(job.id, session=session):
        if event is JobEvent.CLAIM:
            _claimed(item, job, now=now, session=session)
        elif event in _WAITS:
            attributes = analysis.waits(item.attributes, _WAITS[event], now=now)
            told = [reports.progress(attributes)]
            workitems.swap(item, attributes, told, now=now, session=session)
        else:
            why = analysis.why_failed(job.reason_code, job.error)
            end_canceled(item, why=why, now=now, session=session)


def finished(
    job: Job,
    artifacts: Sequence[ArtifactRow],
    destinations: Sequence[str],
    *,
    now: datetime,
    session: Session,
) -> None:
    """COMPLETE the items of a job that has a result, with what was made and where it goes."""
    for item in workitems.of_job(job.id, session=session):
        complete(item, job, artifacts, destinations, now=now, session=session)


def complete(
    item: WorkItem,
    job: Job,
    artifacts: Sequence[ArtifactRow],
    destinations: Sequence[str],
    *,
    now: datetime,
    session: Session,
) -> None:
    """COMPLETE one item; what is still SCHEDULED is claimed first."""
    series = session.get_one(Series, job.series_id)
    study_uid = series.study_instance_uid
    result = job.result or {}
    before = item.attributes
    if not value(before, "ReferencedRequestSequence"):
        before = analysis.ordered(before, _identity(study_uid, session=session), study_uid)
    reason = "" if job.reason_code is None else f" ({job.reason_code})"
    attributes = analysis.performed(
        before,
        study_uid=study_uid,
        outputs=_outputs(job, artifacts),
        retrieve_from=_titles(destinations),
        remark=f"{job.state.value.lower().replace('_', ' ')}{reason}. {RESEARCH_USE}",
        urgent=bool((result.get("priority") or {}).get("flag")),
        now=now,
    )
    through = [] if item.state == State.IN_PROGRESS else [State.IN_PROGRESS]
    end(item, attributes, [*through, State.COMPLETED], now=now, session=session)


def end_canceled(
    item: WorkItem, *, why: Attributes, now: datetime, session: Session, **columns: Any
) -> None:
    """CANCEL one item; what is still SCHEDULED is claimed first (PS3.4 CC.2.2.3)."""
    through = [] if item.state == State.IN_PROGRESS else [State.IN_PROGRESS]
    attributes = rules.canceled(item.attributes, why=why, now=now)
    end(item, attributes, [*through, State.CANCELED], now=now, session=session, **columns)


def end(
    item: WorkItem,
    attributes: Attributes,
    through: Sequence[State],
    *,
    now: datetime,
    session: Session,
    **columns: Any,
) -> None:
    """Lead an item through states, in one statement and with a report for each."""
    steps = [rules.ended(attributes, state, now=now) for state in through]
    told = [reports.state(step) for step in steps]
    workitems.swap(item, steps[-1], told, now=now, session=session, **columns)


def bind(
    item: WorkItem, job: Job, attributes: Attributes, *, now: datetime, session: Session
) -> None:
    """Let an item that was ordered follow a job, from where the job is now."""
    told = reports.of_change(item.attributes, attributes)
    workitems.swap(item, attributes, told, now=now, session=session, job_id=job.id)
    if job.state is JobState.ANALYSING:
        _claimed(item, job, now=now, session=session)


def _claimed(item: WorkItem, job: Job, *, now: datetime, session: Session) -> None:
    """IN PROGRESS under a Transaction UID of ours, that of the lease; or so again."""
    held = uids.derive("transaction", str(job.lease))
    if item.state == State.IN_PROGRESS:
        workitems.swap(item, item.attributes, now=now, session=session, transaction_uid=held)
        return
    attributes = analysis.begun(item.attributes, now=now)
    end(item, attributes, [State.IN_PROGRESS], now=now, session=session, transaction_uid=held)


def _waiting(series: Series, uid: str, *, session: Session) -> tuple[list[WorkItem], bool]:
    """Orders that wait for this series, locked; and whether the UID is taken."""
    order = (
        (WorkItem.study_instance_uid == series.study_instance_uid)
        & (WorkItem.state == State.SCHEDULED.value)
        & WorkItem.job_id.is_(None)
        & workitems.ours()
    )
    query = select(WorkItem).where(or_(order, WorkItem.sop_instance_uid == uid))
    query = query.order_by(WorkItem.id).with_for_update(key_share=True)
    found = session.scalars(query.execution_options(populate_existing=True)).all()
    waiting = [item for item in found if item.state == State.SCHEDULED and item.job_id is None]
    fitting = [item for item in waiting if wants(item, series)]
    return fitting, any(item.sop_instance_uid == uid for item in found)


def wants(item: WorkItem, series: Series) -> bool:
    """Whether an item orders the analysis of this series: it, or just its study, is its input."""
    named = analysis.series_of(item.attributes)
    same = item.study_instance_uid == series.study_instance_uid
    ours = analysis.is_ours(item.attributes)
    return ours and same and (not named or series.series_instance_uid in named)


def _earlier(job_id: int, *, session: Session) -> Sequence[str]:
    """UIDs of the items that a job had, in order."""
    query = select(WorkItem.sop_instance_uid).where(WorkItem.job_id == job_id)
    return session.scalars(query.order_by(WorkItem.id)).all()


def _images(job_id: int, *, session: Session) -> list[Image]:
    query = (
        select(Instance.sop_class_uid, Instance.sop_instance_uid)
        .join(JobInstance, JobInstance.instance_id == Instance.id)
        .where(JobInstance.job_id == job_id)
        .order_by(Instance.id)
    )
    return [Image(*row) for row in session.execute(query)]


def _identity(study_uid: str, *, session: Session) -> StudyIdentity:
    row = session.scalars(select(Study).where(Study.study_instance_uid == study_uid)).one_or_none()
    return StudyIdentity(**{name: getattr(row, name, "") for name in _FIELDS})


def _outputs(job: Job, artifacts: Sequence[ArtifactRow]) -> list[Output]:
    """The DICOM objects among the results."""
    return [
        Output(
            uids.derive(job.key, row.kind.value, "series"), row.sop_class_uid, row.sop_instance_uid
        )
        for row in artifacts
        if row.sop_class_uid and row.sop_instance_uid and row.kind not in _NO_OUTPUT
    ]


def _titles(destinations: Sequence[str]) -> list[str]:
    """AE titles of the DICOM peers among the destinations."""
    titles = [each.partition("@")[0] for each in destinations if "://" not in each]
    return list(dict.fromkeys(titles))
