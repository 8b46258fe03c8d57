"""One move of a state machine in the database: compare, swap, write it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import update
from sqlalchemy.orm import Session

from hipscore.lifecycle import JobEvent, Table, next_state
from hipscore.store import ledger, performing, summary
from hipscore.store.tables import Delivery, Job, Series

Row = TypeVar("Row", Series, Job, Delivery)
#: error texts are cut to this length before they are stored
TEXT_LIMIT = 2000
#: what RETURNING brings back is what the session knows of the row from now on
_AS_WRITTEN: Any = {"synchronize_session": False, "populate_existing": True}


def clean(text: str) -> str:
    """``text`` as it can be stored: PostgreSQL takes no NUL, and nobody reads megabytes."""
    return text.replace("\0", "")[:TEXT_LIMIT]


class NotFound(LookupError):
    """No such series, job or delivery."""


class LeaseLost(Exception):
    """The caller's lease on a job or delivery is no longer in force; nothing was changed."""


def load(kind: type[Row], row_id: int, *, session: Session, lock: bool = False) -> Row:
    """The row as it is in the database now, whatever the session remembers.

    With ``lock``, PostgreSQL holds the row for this transaction (FOR NO KEY UPDATE: rows
    that refer to it, such as lines of the ledger, can still be added by others).

    Raises
    ------
    NotFound
        If there is none.
    """
    row = session.get(
        kind, row_id, populate_existing=True, with_for_update={"key_share": True} if lock else None
    )
    if row is None:
        msg = f"there is no {kind.__name__.lower()} {row_id}"
        raise NotFound(msg)
    return row


def nobody_died(lease: str) -> bool:
    """Answer for leases whose holders cannot be seen: only the time ends them."""
    del lease
    return False


def forfeited(row: Job | Delivery, *, now: datetime, died: Callable[[str], bool]) -> str | None:
    """Why the lease of a held row is over, in one line; None while it is in force.

    ``died`` says of a lease token whether its holder is known to be dead.
    """
    if row.lease is None or row.lease_until is None:
        return None
    if row.lease_until < now:
        return f"no sign of life from the worker until the lease ended, attempt {row.attempts}"
    if died(row.lease):
        return f"the worker that held it died, attempt {row.attempts}"
    return None


def advance(
    row: Row,
    table: Table[Any, Any],
    event: StrEnum,
    *,
    subject: ledger.Subject,
    lease: str | None = None,
    values: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
    now: datetime,
    session: Session,
) -> bool:
    """Move ``row`` by ``event`` if it still is in the state (and under the lease) it was read in.

    Returns
    -------
    bool
        False when another transaction was faster; nothing is changed then.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the table does not have the move.
    """
    kind, before = type(row), row.state
    after = next_state(table, before, event)
    swap = update(kind).where(kind.id == row.id, kind.state == before)
    if lease is not None and not isinstance(row, Series):
        swap = swap.where(type(row).lease == lease)
    swap = swap.values(state=after, **(values or {})).returning(kind)
    if session.scalars(swap, execution_options=_AS_WRITTEN).one_or_none() is None:
        return False
    ledger.append(
        subject,
        event.value,
        from_state=before,
        to_state=after,
        detail=detail,
        now=now,
        session=session,
    )
    if isinstance(row, Job):
        summary.refresh(row.series_id, now=now, session=session)
        performing.follow(row, JobEvent(event), before, now=now, session=session)
    return True
