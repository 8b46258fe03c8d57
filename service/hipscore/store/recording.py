"""Received images become rows: as many as wait, in one transaction.

A C-STORE is answered after the commit, and a commit costs an fsync. Images that arrive at
the same time over several associations therefore share one (group commit): the number of
statements does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, cast

from sqlalchemy import Table, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hipscore.domain import ReceivedInstance
from hipscore.lifecycle import SERIES, SeriesEvent, SeriesState
from hipscore.store import ledger, retention
from hipscore.store.instances import columns
from hipscore.store.moves import advance, load
from hipscore.store.tables import Instance, Series, Study


class Verdict(StrEnum):
    """What a received image is to what was received before.

    CONFLICT keeps the first, CHANGED cannot: its bytes have been purged.
    """

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    MISPLACED = "misplaced"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One received image whose bytes already lie in the spool, and how it came."""

    instance: ReceivedInstance
    spool_key: str
    calling_aet: str
    called_aet: str
    peer: str
    association_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Answer of :func:`record`. ``late``: the series had been closed and is open again."""

    series_id: int
    verdict: Verdict
    late: bool = False


class _Kept(NamedTuple):
    """What is known of an image that was received before."""

    series_id: int
    sha256: str
    purged: bool


class _Home(NamedTuple):
    """The series of an image, its row locked until the transaction ends."""

    id: int
    study_instance_uid: str
    state: SeriesState


# Built once and on the tables, not the mapped classes: this is what a C-STORE waits for, and
# composing a statement costs more than running it.
_SERIES: Final = cast("Table", Series.__table__)
_INSTANCES: Final = cast("Table", Instance.__table__)
_FIND_IMAGES: Final = select(
    _INSTANCES.c.sop_instance_uid,
    _INSTANCES.c.series_id,
    _INSTANCES.c.sha256,
    _INSTANCES.c.purged_at,
).where(_INSTANCES.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
_LOCK_SERIES: Final = (
    select(
        _SERIES.c.series_instance_uid,
        _SERIES.c.id,
        _SERIES.c.study_instance_uid,
        _SERIES.c.state,
    )
    .where(_SERIES.c.series_instance_uid.in_(bindparam("uids", expanding=True)))
    # always in the same order, so that two transactions cannot lock crosswise
    .order_by(_SERIES.c.series_instance_uid)
    .with_for_update(key_share=True)
)
_TOUCH_SERIES: Final = (
    update(_SERIES)
    .where(
        _SERIES.c.id.in_(bindparam("ids", expanding=True)),
        _SERIES.c.state == SeriesState.RECEIVING,
    )
    .values(last_received_at=bindparam("now"))
)
_STUDIES: Final = cast("Table", Study.__table__)
_ADD: Final = {
    (dialect, kind): insert(table).on_conflict_do_nothing().returning(column)
    for dialect, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
    for kind, table, column in (
        ("series", _SERIES, _SERIES.c.series_instance_uid),
        ("instances", _INSTANCES, _INSTANCES.c.sop_instance_uid),
    )
}


_ADD_STUDY: Final = {
    dialect: (made := insert(_STUDIES)).on_conflict_do_update(
        index_elements=["study_instance_uid"],
        set_={
            "newest_series_id": made.excluded.newest_series_id,
            "updated_at": made.excluded.updated_at,
        },
    )
    for dialect, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


def record(arrival: Arrival, *, now: datetime, session: Session) -> Recorded:
    """Remember one received image; see :func:`record_all`."""
    return record_all([arrival], now=now, session=session)[0]


def record_all(arrivals: Sequence[Arrival], *, now: datetime, session: Session) -> list[Recorded]:
    """Remember received images whose bytes already lie in the spool; answers in their order.

    The first bytes of a SOP Instance UID are kept for ever. The same bytes again are
    DUPLICATE: they keep an open series from going quiet, bring back what was purged, and
    change nothing else. Other bytes under the same UID are CONFLICT, or CHANGED when the
    first were purged; an unknown image that puts the series into another study is
    MISPLACED: none of them is stored, one event is written. A NEW image on a closed series
    opens it again (``late``). Safe against any number of concurrent callers.
    """
    # Every series at once, in one order, before anything else: nothing locks crosswise.
    homes = _lock({arrival.instance.series_instance_uid for arrival in arrivals}, session)
    known = _kept((arrival.instance.sop_instance_uid for arrival in arrivals), session)
    first: dict[str, Arrival] = {}
    for arrival in arrivals:
        if arrival.instance.sop_instance_uid not in known:
            first.setdefault(arrival.instance.sop_instance_uid, arrival)
    added = _add(list(first.values()), homes, now=now, session=session)
    # what came twice at once, or was stored by another process meanwhile, is known by now
    known |= _kept(
        {
            uid
            for each in arrivals
            if (uid := each.instance.sop_instance_uid) not in known and id(each) not in added
        },
        session,
    )
    answers = []
    for each in arrivals:
        uid = each.instance.sop_instance_uid
        answer = added.get(id(each))
        if answer is None and uid not in known:
            answer = added[id(first[uid])]  # the twin of a misplaced one
        if answer is None:
            answer = _again(each.instance, known[uid], now=now, session=session)
        answers.append(answer)
    return answers


def _kept(uids: Iterable[str], session: Session) -> dict[str, _Kept]:
    wanted = list(uids)
    if not wanted:
        return {}
    rows = session.connection().execute(_FIND_IMAGES, {"uids": wanted})
    return {
        row.sop_instance_uid: _Kept(row.series_id, row.sha256, row.purged_at is not None)
        for row in rows
    }


def _again(instance: ReceivedInstance, kept: _Kept, *, now: datetime, session: Session) -> Recorded:
    """The answer for an instance whose UID is stored already."""
    if kept.sha256 != instance.sha256:
        other = {"kept_sha256": kept.sha256}
        verdict = Verdict.CHANGED if kept.purged else Verdict.CONFLICT
        return _set_aside(verdict, kept.series_id, instance, other, now, session)
    if kept.purged:
        retention.restore(instance.sop_instance_uid, now=now, session=session)
    # the sender is still busy with this series: do not let it go quiet under its hands
    _touch([kept.series_id], now=now, session=session)
    return Recorded(series_id=kept.series_id, verdict=Verdict.DUPLICATE)


def _touch(series_ids: Iterable[int], *, now: datetime, session: Session) -> None:
    ids = list(series_ids)
    if ids:
        session.connection().execute(_TOUCH_SERIES, {"ids": ids, "now": now})


def _add(
    arrivals: Sequence[Arrival],
    homes: dict[str, _Home],
    *,
    now: datetime,
    session: Session,
) -> dict[int, Recorded]:
    """Add images that were unknown a moment ago; by ``id()``, without those that no longer are."""
    if not arrivals:
        return {}
    made = _make_missing(arrivals, homes, now=now, session=session)
    fitting = [
        arrival
        for arrival in arrivals
        if _home(arrival, homes).study_instance_uid == arrival.instance.study_instance_uid
    ]
    rows = [
        columns(each.instance, _home(each, homes).id, each.spool_key, each.association_id, now)
        for each in fitting
    ]
    stored = _insert("instances", rows, session)
    fitting = [each for each in fitting if each.instance.sop_instance_uid in stored]
    _keep_what_was_made(made, fitting, homes, now=now, session=session)
    answers: dict[int, Recorded] = {}
    late: set[int] = set()
    for each in fitting:
        home = _home(each, homes)
        opens = home.state is not SeriesState.RECEIVING and home.id not in late
        if opens:
            late.add(home.id)
            _open_again(home.id, each.instance, now=now, session=session)
        answers[id(each)] = Recorded(series_id=home.id, verdict=Verdict.NEW, late=opens)
    _touch({each.series_id for each in answers.values()} - late, now=now, session=session)
    for each in arrivals:
        home = _home(each, homes)
        if home.study_instance_uid != each.instance.study_instance_uid:
            kept = {"kept_study": home.study_instance_uid}
            answers[id(each)] = _set_aside(
                Verdict.MISPLACED, home.id, each.instance, kept, now, session
            )
    return answers


def _home(arrival: Arrival, homes: Mapping[str, _Home]) -> _Home:
    return homes[arrival.instance.series_instance_uid]


def _make_missing(
    arrivals: Sequence[Arrival],
    homes: dict[str, _Home],
    *,
    now: datetime,
    session: Session,
) -> dict[str, Arrival]:
    """Make the series that ``homes`` lacks, and add them there; the first image of each."""
    first = {arrival.instance.series_instance_uid: arrival for arrival in reversed(arrivals)}
    missing = sorted(first.keys() - homes.keys())
    made: dict[str, Arrival] = {}
    for uid in missing:
        row = {
            "study_instance_uid": first[uid].instance.study_instance_uid,
            "series_instance_uid": uid,
            "state": SeriesState.RECEIVING,
            "calling_aet": first[uid].calling_aet,
            "called_aet": first[uid].called_aet,
            "peer": first[uid].peer,
            "first_received_at": now,
            "last_received_at": now,
        }
        if _insert("series", [row], session):
            made[uid] = first[uid]
    if missing:
        homes |= _lock(missing, session)
    return made


def _lock(uids: Iterable[str], session: Session) -> dict[str, _Home]:
    rows = session.connection().execute(_LOCK_SERIES, {"uids": list(uids)})
    return {
        row.series_instance_uid: _Home(row.id, row.study_instance_uid, row.state) for row in rows
    }


def _insert(kind: str, rows: Sequence[Mapping[str, object]], session: Session) -> set[str]:
    """INSERT … ON CONFLICT DO NOTHING; the UIDs of the rows that were added."""
    if not rows:
        return set()
    connection = session.connection()
    return set(connection.execute(_ADD[connection.dialect.name, kind], rows).scalars())


def _keep_what_was_made(
    made: Mapping[str, Arrival],
    stored: Sequence[Arrival],
    homes: Mapping[str, _Home],
    *,
    now: datetime,
    session: Session,
) -> None:
    """Write the first line of a new series; take it back if its image belongs to another."""
    used = {each.instance.series_instance_uid for each in stored}
    for uid, arrival in made.items():
        if uid not in used:
            session.connection().execute(delete(_SERIES).where(_SERIES.c.id == homes[uid].id))
            continue
        _show(homes[uid], now, session)
        ledger.append(
            ledger.Subject(series_id=homes[uid].id),
            "open",
            to_state=SeriesState.RECEIVING,
            detail={
                "calling_aet": arrival.calling_aet,
                "called_aet": arrival.called_aet,
                "peer": arrival.peer,
            },
            now=now,
            session=session,
        )


def _show(home: _Home, now: datetime, session: Session) -> None:
    """Give the study of a new series its line in the worklist, or bring the line to its top."""
    connection = session.connection()
    connection.execute(
        _ADD_STUDY[connection.dialect.name],
        {
            "study_instance_uid": home.study_instance_uid,
            "newest_series_id": home.id,
            "updated_at": now,
        },
    )


def _open_again(
    series_id: int, instance: ReceivedInstance, *, now: datetime, session: Session
) -> None:
    """A late image brings its closed (locked) series back to RECEIVING."""
    advance(
        load(Series, series_id, session=session, lock=True),
        SERIES,
        SeriesEvent.IMAGE,
        subject=ledger.Subject(series_id=series_id),
        values={
            "last_received_at": now,
            "close_reason": None,
            "match_rule": None,
            "closed_at": None,
        },
        detail={"late": True, "sop_instance_uid": instance.sop_instance_uid},
        now=now,
        session=session,
    )


def _set_aside(  # noqa: PLR0917 - two callers, right above
    verdict: Verdict,
    series_id: int,
    instance: ReceivedInstance,
    kept: dict[str, str],
    now: datetime,
    session: Session,
) -> Recorded:
    ledger.append(
        ledger.Subject(series_id=series_id),
        verdict.value,
        detail={
            "sop_instance_uid": instance.sop_instance_uid,
            "study_instance_uid": instance.study_instance_uid,
            "series_instance_uid": instance.series_instance_uid,
            "sha256": instance.sha256,
            **kept,
        },
        now=now,
        session=session,
    )
    return Recorded(series_id=series_id, verdict=verdict)
