"""Purging: files that nothing needs any more go, by age, or early when the disk fills up.

A file goes in two steps: its row is marked, with a line in the ledger, and then it is
deleted. A crash in between leaves a file that the next sweep finds. Rows of old studies go
only where the site says so, after all their files. Why no acknowledged
image can be lost on the way: docs/decisions/0011-what-is-deleted-and-when.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import Transient
from hipscore.settings import Settings
from hipscore.spool import SETTLED_S
from hipscore.store import engine as database
from hipscore.store import forgetting, retention
from hipscore.store.retention import Lot, What
from hipscore.worker.bench import Bench, describe, now_utc, trace

#: how often the beat purges by age
PURGE_SECONDS = 3600.0
#: how often it looks again for something to purge while the disk stays too full
RELIEF_SECONDS = 60.0
#: how often it says that nothing more can be purged
COMPLAINT_SECONDS = 3600.0
#: a file that no row refers to is kept at least this long
ORPHAN_AGE = timedelta(days=1)
#: spool keys asked for in one statement
_BATCH = 500
_MB = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What goes: what was not needed since these times. None: none of its kind.

    ``failed``: also images of failed jobs, which then cannot be retried. ``why`` goes to
    the ledger.
    """

    images_before: datetime | None
    results_before: datetime | None
    orphans_before: datetime | None
    rows_before: datetime | None = None
    failed: bool = False
    why: str = "age"


@dataclass(slots=True, kw_only=True)
class Gone:
    """What a purge has deleted: files and their bytes."""

    files: int = 0
    size: int = 0

    def __add__(self, other: Gone) -> Gone:
        return Gone(files=self.files + other.files, size=self.size + other.size)


def by_age(settings: Settings, *, now: datetime) -> Rules:
    """The rules of the settings; 0 days mean for ever."""
    images, results = settings.keep_images_days, settings.keep_results_days
    rows = settings.keep_rows_days
    orphans = max(timedelta(days=images), ORPHAN_AGE)
    return Rules(
        images_before=now - _long_enough(images) if images else None,
        results_before=now - _long_enough(results) if results else None,
        orphans_before=now - orphans if images else None,
        rows_before=now - _long_enough(rows) if rows else None,
    )


def by_hand(
    settings: Settings,
    *,
    now: datetime,
    images_days: float | None = None,
    results_days: float | None = None,
    failed: bool = False,
) -> Rules:
    """The rules of the settings with other ages, in days; here 0 means all that may go."""
    rules = by_age(settings, now=now)
    return Rules(
        images_before=rules.images_before
        if images_days is None
        else now - _long_enough(images_days),
        results_before=rules.results_before
        if results_days is None
        else now - _long_enough(results_days),
        orphans_before=rules.orphans_before
        if images_days is None
        else now - max(timedelta(days=images_days), ORPHAN_AGE),
        rows_before=rules.rows_before,
        failed=failed,
        why="by hand",
    )


def plan(rules: Rules, at: Bench) -> list[Lot]:
    """What would go by these rules now, oldest first; changes nothing.

    Raises
    ------
    Transient
        If the database cannot be read.
    """
    lots: list[Lot] = []
    with database.transaction(_readers(at)) as session:
        if rules.images_before is not None:
            lots += retention.spare_images(
                before=rules.images_before, failed=rules.failed, session=session
            )
        if rules.results_before is not None:
            lots += retention.spare_results(before=rules.results_before, session=session)
        if rules.rows_before is not None:
            lots += forgetting.spare_rows(before=rules.rows_before, session=session)
    return lots


def take(lot: Lot, rules: Rules, at: Bench, *, now: datetime) -> Gone:
    """Mark one lot in the database (or delete its rows), then delete its files.

    Raises
    ------
    Transient
        If database or disk fail; what was marked and not deleted is found by a sweep.
    """
    before = {
        What.IMAGES: rules.images_before,
        What.RESULTS: rules.results_before,
        What.ROWS: rules.rows_before,
    }[lot.what]
    if before is None:
        return Gone()
    how: dict[str, Any] = {"before": before, "why": rules.why, "now": now}
    with database.transaction(at.sessions) as session:
        if lot.what is What.ROWS:
            keys = forgetting.forget(lot, session=session, **how)
        else:
            keys = retention.mark(lot, failed=rules.failed, session=session, **how)
    return _delete(keys, at, now=now)


def sweep(rules: Rules, at: Bench, *, now: datetime, dry: bool = False) -> Gone:
    """Delete (or, ``dry``, count) files that no row needs: leftovers of crashes.

    Files whose rows are purged go at once, files without any row after ``orphans_before``.

    Raises
    ------
    Transient
        If database or disk fail.
    """
    gone = Gone()
    settled = now.timestamp() - SETTLED_S
    limit = None if rules.orphans_before is None else rules.orphans_before.timestamp()
    for shard in at.spool.shards():
        old = {key: (put, size) for key, put, size in shard if put < settled}
        for keys in _batches(list(old)):
            with database.transaction(_readers(at)) as session:
                useless = set(keys) - retention.wanted(keys, session=session)
                known = retention.known(list(useless), session=session)
            for key in useless:
                put, size = old[key]
                if key not in known and (limit is None or put >= limit):
                    continue
                if dry or at.spool.discard(key, unless_since=settled):
                    gone += Gone(files=1, size=size)
    return gone


def relieve(at: Bench, *, now: datetime) -> bool:
    """Purge finished images early until the disk is above the watermark; whether it is now.

    Oldest first, whatever their age, but nothing that is still needed, and nothing at all
    where images are kept for ever (``keep_images_days`` 0).
    """
    short = _too_full(at)
    if not short or not at.settings.keep_images_days:
        return not short
    rules = Rules(
        images_before=now - _long_enough(0),
        results_before=None,
        orphans_before=now - ORPHAN_AGE,
        why="watermark",
    )
    series, gone = 0, sweep(rules, at, now=now)
    if not _too_full(at):
        return True
    for lot in plan(rules, at):
        gone += take(lot, rules, at, now=now)
        series += 1
        if not _too_full(at):
            break
    if series:
        log.warning(
            "less than %d MB of disk left: the images of %d finished series (%d MB) were purged "
            "early",
            at.settings.watermark_mb,
            series,
            gone.size // _MB,
        )
    return not _too_full(at)


def watch(at: Bench, stop: threading.Event) -> None:
    """Purge by age every hour, and early whenever the disk is too full, until ``stop`` is set."""
    purge = _Every(PURGE_SECONDS, lambda: _purge_by_age(at))
    relief = _Every(RELIEF_SECONDS, lambda: _relieve_or_complain(at, complaint))
    held = _Every(COMPLAINT_SECONDS, _say_held)
    complaint = _Every(COMPLAINT_SECONDS, lambda: _complain(at))
    while not stop.is_set():
        for step in (purge, relief):
            try:
                if at.spool.held():
                    held()
                    break
                if step is purge or _too_full(at):
                    step()
            except (Transient, SQLAlchemyError, OSError) as error:
                log.warning("purging is tried again: %s", describe(error))
            except Exception as error:  # noqa: BLE001 - the next round must not wait for a repair
                log.error("purging failed: %s (%s)", describe(error), trace(error))  # noqa: TRY400
        stop.wait(at.settings.reap_seconds)


class _Every:
    """Does something, but not again before so many seconds have passed."""

    def __init__(self, seconds: float, work: Callable[[], None]) -> None:
        self._seconds = seconds
        self._work = work
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._work()


def _purge_by_age(at: Bench) -> None:
    now = now_utc()
    rules = by_age(at.settings, now=now)
    lots = plan(rules, at)
    gone = Gone()
    for lot in lots:
        gone += take(lot, rules, at, now=now)
    left = sweep(rules, at, now=now)
    studies = sum(lot.what is What.ROWS for lot in lots)
    if gone.files or left.files or studies:
        log.info(
            "purged %d files of %d series and analyses (%d MB), %d left over by crashes, and the "
            "rows of %d studies",
            gone.files,
            len(lots) - studies,
            gone.size // _MB,
            left.files,
            studies,
        )


def _relieve_or_complain(at: Bench, complain: Callable[[], None]) -> None:
    if not relieve(at, now=now_utc()):
        complain()


def _say_held() -> None:
    log.info("a backup runs: nothing is purged until it has ended")


def _complain(at: Bench) -> None:
    log.warning(
        "%d MB of disk left at %s, below HIPSCORE_WATERMARK_MB (%d), and nothing more may be "
        "purged. Below HIPSCORE_RESERVE_MB (%d) images are refused. See what is undelivered "
        'with "hipscore jobs --undelivered" (a PACS that never confirms storage commitment is '
        'named in HIPSCORE_NO_COMMITMENT), give up failed analyses with "hipscore purge '
        '--failed", or enlarge the disk',
        at.spool.free_bytes() // _MB,
        at.spool.root,
        at.settings.watermark_mb,
        at.settings.reserve_mb,
    )


def _too_full(at: Bench) -> bool:
    return at.spool.free_bytes() < at.settings.watermark_mb * _MB


def _delete(keys: Sequence[str], at: Bench, *, now: datetime) -> Gone:
    """Delete the files of purged rows that no other row needs."""
    gone = Gone()
    settled = now.timestamp() - SETTLED_S
    for batch in _batches(sorted(set(keys))):
        with database.transaction(_readers(at)) as session:
            kept = retention.wanted(batch, session=session)
        for key in batch:
            if key in kept:
                continue  # the same bytes belong to another row
            size = _size(key, at)
            if at.spool.discard(key, unless_since=settled):
                gone += Gone(files=1, size=size)
    return gone


def _size(key: str, at: Bench) -> int:
    try:
        return at.spool.path(key).stat().st_size
    except OSError:
        return 0


def _batches(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]


def _long_enough(days: float) -> timedelta:
    """An age, but never so young that somebody may still be recording the file."""
    return max(timedelta(days=days), timedelta(seconds=SETTLED_S))


def _readers(at: Bench) -> sessionmaker[Session]:
    return database.readers(at.sessions.kw["bind"])
