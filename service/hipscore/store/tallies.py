"""How many series, jobs and deliveries are in each state, without counting them.

Triggers add a line of ``tallies`` for every row that comes into a state or leaves it
(migration 0003). The sum of the lines is the number, exact in every snapshot: a million
deliveries need no scan, and no two transactions wait for one counter. :func:`fold` keeps
the lines few.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from hipscore.store.tables import Tally

#: lines that are not worth folding
FEW = 200
#: lines folded at once
MANY = 5_000


def by_state(*, session: Session) -> dict[tuple[str, str], int]:
    """Rows by table and state; a state that no row was ever in may be missing."""
    query = select(Tally.what, Tally.state, func.sum(Tally.number))
    rows = session.execute(query.group_by(Tally.what, Tally.state))
    return {(what, state): int(number) for what, state, number in rows}


def fold(*, session: Session) -> int:
    """Replace many lines by their sums. Returns how many went.

    Any number of processes may do so at once: each takes lines that no other has.
    SQLite has one line for each state: there is nothing to fold.
    """
    some = select(Tally.id).order_by(Tally.id).limit(MANY)
    ids = session.scalars(some.with_for_update(skip_locked=True)).all()
    if len(ids) <= FEW:
        return 0
    gone = delete(Tally).where(Tally.id.in_(ids))
    rows = session.execute(
        gone.returning(Tally.what, Tally.state, Tally.number),
        execution_options={"synchronize_session": False},
    ).all()
    sums: Counter[tuple[str, str]] = Counter()
    for what, state, number in rows:
        sums[what, state] += number
    session.add_all(
        Tally(what=what, state=state, number=number) for (what, state), number in sums.items()
    )
    session.flush()
    return len(rows)
