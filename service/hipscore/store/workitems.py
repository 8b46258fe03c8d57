"""The rows of work items: added, found, and changed by compare and swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Select, Table, Text, func, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hipscore.domain import Transient
from hipscore.procedure import analysis, matching, reports
from hipscore.procedure.dataset import Attributes, tag, value
from hipscore.procedure.matching import Key
from hipscore.procedure.reports import Report
from hipscore.procedure.states import State
from hipscore.store import subscriptions
from hipscore.store.tables import WorkItem

#: columns that repeat what is searched for most
_COLUMNS: Mapping[tuple[str, ...], Any] = {
    (tag("ProcedureStepState"),): WorkItem.state,
    (tag("SOPInstanceUID"),): WorkItem.sop_instance_uid,
    (tag("ProcedureStepLabel"),): WorkItem.label,
    (tag("ScheduledProcedureStepPriority"),): WorkItem.priority,
}
_ITEMS: Final = cast("Table", WorkItem.__table__)
_ADD: Final = {
    dialect: insert(_ITEMS).on_conflict_do_nothing().returning(_ITEMS.c.id)
    for dialect, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


class Found(NamedTuple):
    """One page of a search, and how many more there are."""

    items: list[Attributes]
    more: int


def add(
    uid: str, attributes: Attributes, *, job_id: int | None = None, now: datetime, session: Session
) -> bool:
    """Add a SCHEDULED item and tell of it; False when there is one of that UID."""
    connection = session.connection()
    row = {
        "sop_instance_uid": uid,
        "state": State.SCHEDULED.value,
        "job_id": job_id,
        "version": 1,
        "created_at": now,
        **_repeated(attributes),
        "updated_at": now,
    }
    added = connection.execute(_ADD[connection.dialect.name], row).scalar_one_or_none()
    if added is None:
        return False
    subscriptions.enrol(uid, attributes, now=now, session=session)
    subscriptions.tell(uid, reports.at_creation(attributes), now=now, session=session)
    return True


def find(uid: str, *, session: Session, lock: bool = False) -> WorkItem | None:
    """The item as it is in the database now, or None; locked until the transaction ends."""
    query = select(WorkItem).where(WorkItem.sop_instance_uid == uid)
    return session.scalars(_fresh(query, lock=lock)).one_or_none()


def of_job(job_id: int, *, session: Session) -> Sequence[WorkItem]:
    """The items that a job performs and that have not ended, locked."""
    query = select(WorkItem).where(
        WorkItem.job_id == job_id,
        WorkItem.state.in_((State.SCHEDULED.value, State.IN_PROGRESS.value)),
    )
    return session.scalars(_fresh(query.order_by(WorkItem.id), lock=True)).all()


def swap(
    item: WorkItem,
    attributes: Attributes,
    told: Sequence[Report] = (),
    *,
    now: datetime,
    session: Session,
    **columns: Any,
) -> None:
    """Change an item if it still is as it was read, and tell of it.

    Its state is what the attributes say. ``columns`` are further ones to set.

    Raises
    ------
    hipscore.domain.Transient
        If another transaction was faster; nothing is changed.
    """
    change = (
        update(WorkItem)
        .where(
            WorkItem.id == item.id,
            WorkItem.version == item.version,
            WorkItem.state == item.state,
        )
        .values(
            state=value(attributes, "ProcedureStepState"),
            version=item.version + 1,
            **_repeated(attributes),
            updated_at=now,
            **columns,
        )
        .returning(WorkItem.id)
    )
    done = session.execute(change, execution_options={"synchronize_session": False})
    if done.scalar_one_or_none() is None:
        msg = f"work item {item.sop_instance_uid} was changed by someone else just now; try again"
        raise Transient(msg)
    uid = item.sop_instance_uid
    session.expire(item)
    subscriptions.tell(uid, told, now=now, session=session)


def search(keys: Sequence[Key], *, limit: int, offset: int, session: Session) -> Found:
    """The items that match, oldest first."""
    query = select(WorkItem.attributes).order_by(WorkItem.id)
    rest = []
    for key in keys:
        column = _COLUMNS.get(key.path)
        if not key.wanted:
            continue
        if column is None or any(c in key.wanted for c in "*?,\\"):
            rest.append(key)
            if piece := matching.literal(key):
                text = sql_cast(WorkItem.attributes, Text)
                query = query.where(text.icontains(piece, autoescape=True))
        else:
            query = query.where(column == key.wanted.strip(" "))
    if not rest:
        count = select(func.count()).select_from(query.order_by(None).subquery())
        total = session.scalar(count) or 0
        page = list(session.scalars(query.offset(offset).limit(limit)))
        return Found(page, max(0, total - offset - len(page)))
    page, hits = [], 0
    for attributes in session.scalars(query.execution_options(yield_per=500)):
        if matching.matches(attributes, rest):
            if offset <= hits < offset + limit:
                page.append(attributes)
            hits += 1
    return Found(page, max(0, hits - offset - len(page)))


def ours() -> Any:
    """The condition that an item orders an analysis of ours."""
    sequence, element = analysis.CODE_PATH
    found: Any = WorkItem.attributes[sequence]["Value"][0][element]["Value"][0].as_string()
    return found == value(analysis.HIP_SCORE, "CodeValue")


def _repeated(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attributes": dict(sorted(attributes.items())),
        "study_instance_uid": analysis.study_of(attributes),
        "label": str(value(attributes, "ProcedureStepLabel") or ""),
        "priority": str(value(attributes, "ScheduledProcedureStepPriority") or ""),
    }


def _fresh(query: Select[Any], *, lock: bool) -> Select[Any]:
    query = query.execution_options(populate_existing=True)
    return query.with_for_update(key_share=True) if lock else query
