"""Who hears of which work item (PS3.4 CC.2.3), and what they have not heard yet.

An event is a row of the transaction that caused it. A subscriber is a row per item, or one for
all items; ``sent_id`` is the last event it does not need. Row by row, ``filter`` says more:
``off`` (this item is left out of a subscription to all), ``until`` (no item with a higher row
number: the subscription to all was suspended), ``keys`` (a filter, as it was given).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Table, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hipscore.procedure import matching, reports
from hipscore.procedure.matching import Key
from hipscore.procedure.reports import FILTERED, GLOBAL, Report
from hipscore.store.tables import Subscription, WorkItem, WorkItemEvent

WORKLISTS = frozenset({GLOBAL, FILTERED})
#: events of one page
PAGE = 200
#: longest wait for transactions that could still add events, seconds
PATIENCE_S = 30.0
_SUBSCRIPTIONS: Final = cast("Table", Subscription.__table__)
_PUT: Final = {
    dialect: (made := upsert(_SUBSCRIPTIONS)).on_conflict_do_update(
        index_elements=["subscriber", "workitem_uid"],
        set_={name: made.excluded[name] for name in ("deletion_lock", "filter")},
    )
    for dialect, upsert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


class Mark(NamedTuple):
    """What the event table held at some moment.

    ``newest`` is its highest id; ``oldest_open`` and ``next`` are the oldest transaction that
    was running and the next that would be (PostgreSQL; 0 elsewhere).
    """

    newest: int
    oldest_open: int
    next: int


class Pending(NamedTuple):
    """Events for one subscriber, in order, and up to which id there are no others."""

    events: list[WorkItemEvent]
    until: int


def tell(
    workitem_uid: str,
    told: Sequence[Report],
    *,
    to: str | None = None,
    now: datetime,
    session: Session,
) -> None:
    """Write events, for everybody who is subscribed or for one."""
    lines = [
        {
            "at": now,
            "workitem_uid": workitem_uid,
            "event_type": int(report.kind),
            "body": {"report": report.attributes, **({"to": to} if to else {})},
        }
        for report in told
    ]
    if lines:
        session.execute(insert(WorkItemEvent), lines)


def subscribe(
    subscriber: str,
    target: str,
    *,
    deletion_lock: bool,
    keys: Sequence[tuple[str, str]] = (),
    now: datetime,
    session: Session,
) -> bool:
    """Subscribe to an item, to all (:data:`GLOBAL`), or to what matches (:data:`FILTERED`).

    Returns
    -------
    bool
        False when there is no such item.
    """
    items: Sequence[WorkItem] = ()
    if target not in WORKLISTS:
        # the lock lets whoever is changing the item finish: what it tells is not missed
        one = select(WorkItem).where(WorkItem.sop_instance_uid == target)
        items = session.scalars(one.with_for_update(key_share=True)).all()
        if not items:
            return False
    elif target == FILTERED:
        items = _matching([matching.key(*key) for key in keys], session=session)
    if target == GLOBAL:
        _delete([row.id for row in _rows(subscriber, session) if _off(row)], session)
    newest = _newest(session)
    lot: dict[str, Any] = {"deletion_lock": deletion_lock, "now": now, "session": session}
    if target in WORKLISTS:
        more = {"keys": [list(key) for key in keys]} if target == FILTERED else None
        _put(subscriber, target, newest, more, **lot)
    for item in items:
        _put(subscriber, item.sop_instance_uid, newest, None, **lot)
    if target == GLOBAL and deletion_lock:  # PS3.4 CC.2.4.3
        items = session.scalars(select(WorkItem).order_by(WorkItem.id)).all()
    for item in items:
        report = reports.state(item.attributes)
        tell(item.sop_instance_uid, [report], to=subscriber, now=now, session=session)
    return True


def unsubscribe(subscriber: str, target: str, *, now: datetime, session: Session) -> bool:
    """End a subscription; to all, every one that the subscriber has. False when there is none."""
    rows = {row.workitem_uid: row for row in _rows(subscriber, session)}
    if target == GLOBAL:
        _delete([row.id for row in rows.values()], session)
        return bool(rows)
    row = rows.get(target)
    if row is not None and _off(row):
        return False
    if GLOBAL in rows and target != FILTERED:
        known = select(WorkItem.id).where(WorkItem.sop_instance_uid == target)
        if session.scalar(known) is None:
            return False
        lot: dict[str, Any] = {"deletion_lock": False, "now": now, "session": session}
        _put(subscriber, target, _newest(session), {"off": True}, **lot)
        return True
    if row is not None:
        _delete([row.id], session)
    return row is not None


def suspend(subscriber: str, target: str, *, session: Session) -> bool:
    """Hear of no new items; those that there are go on. False when there is no subscription."""
    rows = [row for row in _rows(subscriber, session) if row.workitem_uid == target]
    if not rows:
        return False
    newest = session.scalar(select(func.max(WorkItem.id))) or 0
    for row in rows:
        more = {**(row.filter or {}), "until": newest}
        session.execute(
            update(Subscription).where(Subscription.id == row.id).values(filter=more),
            execution_options={"synchronize_session": False},
        )
    return True


def enrol(
    workitem_uid: str, attributes: Mapping[str, Any], *, now: datetime, session: Session
) -> None:
    """Subscribe to a new item those whose filter it matches."""
    query = select(Subscription).where(Subscription.workitem_uid == FILTERED)
    for row in session.scalars(query):
        keys = [matching.key(*key) for key in (row.filter or {}).get("keys", ())]
        if _until(row) is not None or not matching.matches(attributes, keys):
            continue
        session.add(
            Subscription(
                subscriber=row.subscriber,
                workitem_uid=workitem_uid,
                deletion_lock=row.deletion_lock,
                sent_id=row.sent_id,
                created_at=now,
            )
        )


def pending(subscriber: str, *, after: int, until: int, session: Session) -> Pending:
    """What a subscriber has not heard of, behind ``after`` and up to ``until``; one page."""
    rows = _rows(subscriber, session)
    if not rows:
        return Pending([], until)
    by_uid = {row.workitem_uid: row for row in rows}
    start = max(after, min(row.sent_id for row in rows))
    query = select(WorkItemEvent).where(WorkItemEvent.id > start, WorkItemEvent.id <= until)
    if GLOBAL not in by_uid and len(rows) < PAGE:
        query = query.where(WorkItemEvent.workitem_uid.in_({GLOBAL, *by_uid}))
    page = session.scalars(query.order_by(WorkItemEvent.id).limit(PAGE)).all()
    numbers = _numbers(page, session) if _until(by_uid.get(GLOBAL)) is not None else {}
    events = [event for event in page if _hears(subscriber, by_uid, event, numbers)]
    return Pending(events, page[-1].id if len(page) == PAGE else until)


def _hears(
    subscriber: str,
    rows: Mapping[str, Subscription],
    event: WorkItemEvent,
    numbers: Mapping[str, int],
) -> bool:
    """Whether a subscriber is to get an event, by the rows that it has."""
    if event.body.get("to") not in {None, subscriber}:
        return False
    if event.workitem_uid == GLOBAL:  # about the worklist itself: for everybody
        return any(row.sent_id < event.id for row in rows.values())
    own, every = rows.get(event.workitem_uid), rows.get(GLOBAL)
    if own is not None and _off(own):
        return False
    if own is not None and own.sent_id < event.id:
        return True
    until = _until(every)
    if every is None or (until is not None and numbers.get(event.workitem_uid, 0) > until):
        return False
    return every.sent_id < event.id


def _numbers(events: Sequence[WorkItemEvent], session: Session) -> dict[str, int]:
    """Row number of each item that the events are about."""
    uids = {event.workitem_uid for event in events}
    query = select(WorkItem.sop_instance_uid, WorkItem.id)
    return {
        row[0]: row[1] for row in session.execute(query.where(WorkItem.sop_instance_uid.in_(uids)))
    }


def heard(subscriber: str, until: int, *, session: Session) -> None:
    """Remember that a subscriber has got everything up to this event."""
    session.execute(
        update(Subscription)
        .where(Subscription.subscriber == subscriber, Subscription.sent_id < until)
        .values(sent_id=until),
        execution_options={"synchronize_session": False},
    )


def mark(*, session: Session) -> Mark:
    """What the event table holds now, and which transactions could still add to it."""
    newest = _newest(session)
    if session.get_bind().dialect.name != "postgresql":
        return Mark(newest, 0, 0)
    snapshot = text(
        "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint "
        "FROM pg_current_snapshot() AS s"
    )
    oldest, following = session.execute(snapshot).one()
    return Mark(newest, int(oldest), int(following))


class Horizon:
    """Up to which event nothing can be added any more, so that nobody is sent past it.

    PostgreSQL gives ids before the commit: a lower one may be seen later. Whoever has taken an
    id up to the highest that can be seen is a transaction that has begun; when all of those
    have ended, no lower one is outstanding. Transactions of others in the same cluster count as
    well, but not for longer than :data:`PATIENCE_S`: ours are shorter.
    """

    def __init__(self) -> None:
        self.until = -1
        self._open: tuple[int, int, float] | None = None

    def see(self, seen: Mark, at: float) -> bool:
        """Take note of the table as it was ``at`` some second; whether the horizon moved."""
        before = self.until
        if self._open is not None:
            newest, following, since = self._open
            if seen.oldest_open >= following or at - since > PATIENCE_S:
                self.until, self._open = max(self.until, newest), None
        if seen.oldest_open >= seen.next:
            self.until, self._open = max(self.until, seen.newest), None
        elif self._open is None:
            self._open = (seen.newest, seen.next, at)
        return self.until > before


def restarted(*, now: datetime, session: Session) -> None:
    """Tell all subscribers that the worklist is up again (SCP Status Change)."""
    if session.scalar(select(Subscription.id).limit(1)) is not None:
        tell(GLOBAL, [reports.restarted()], now=now, session=session)


def _matching(keys: Sequence[Key], *, session: Session) -> list[WorkItem]:
    everything = select(WorkItem).order_by(WorkItem.id).execution_options(yield_per=500)
    return [item for item in session.scalars(everything) if matching.matches(item.attributes, keys)]


def _put(
    subscriber: str,
    target: str,
    sent_id: int,
    more: dict[str, Any] | None,
    *,
    deletion_lock: bool,
    now: datetime,
    session: Session,
) -> None:
    """Make the subscription, or change the one that there is; what it has not heard it keeps."""
    if any(row.workitem_uid == target and _off(row) for row in _rows(subscriber, session)):
        _delete(
            [row.id for row in _rows(subscriber, session) if row.workitem_uid == target], session
        )
    row = {
        "subscriber": subscriber,
        "workitem_uid": target,
        "sent_id": sent_id,
        "created_at": now,
        "deletion_lock": deletion_lock,
        "filter": more,
    }
    connection = session.connection()
    connection.execute(_PUT[connection.dialect.name], row)


def _rows(subscriber: str, session: Session) -> Sequence[Subscription]:
    query = select(Subscription).where(Subscription.subscriber == subscriber)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def _delete(ids: Sequence[int], session: Session) -> None:
    session.execute(
        delete(Subscription).where(Subscription.id.in_(ids)),
        execution_options={"synchronize_session": False},
    )


def _off(row: Subscription) -> bool:
    return bool((row.filter or {}).get("off"))


def _until(row: Subscription | None) -> int | None:
    return None if row is None else (row.filter or {}).get("until")


def _newest(session: Session) -> int:
    return session.scalar(select(func.max(WorkItemEvent.id))) or 0
