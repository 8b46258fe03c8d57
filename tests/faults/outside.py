"""What is done to whatever hipscore stands on: broker, database, PACS, disk, clock."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

from sqlalchemy import select

from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Delivery, Job, Series
from tests.faults.acts import finished, in_thread, series
from tests.faults.pacs_front import Mood
from tests.faults.sender import Scan
from tests.faults.stage import COMMANDS, Stage
from tests.faults.verdict import Round
from tests.processes import wait_until

# --- broker ------------------------------------------------------------------------------


def broker_wiped(stage: Stage, round_: Round) -> None:
    """FLUSHALL between the message and the worker."""
    with stage.keeper.absent("analysis"):
        stage.modality.send(series(stage, round_))
        wait_until(lambda: _announced(stage, round_.scans[-1]), what="a job is announced")
        stage.redis.clear()


def broker_lost(stage: Stage, round_: Round) -> None:
    """The broker is killed and comes back without its files."""
    sending = in_thread(partial(stage.modality.send, series(stage, round_)))
    time.sleep(stage.random.uniform(0.0, 2.0))
    stage.redis.process.kill()
    shutil.rmtree(stage.redis.socket.parent / "appendonlydir", ignore_errors=True)
    for file in stage.redis.socket.parent.glob("*.aof"):
        file.unlink()
    stage.redis.process.start()
    sending()


def broker_down(stage: Stage, round_: Round, *, seconds: float) -> None:
    """The broker is killed and away for a while; series come in meanwhile."""
    stage.redis.process.kill()
    stage.modality.send(series(stage, round_))
    time.sleep(seconds)
    stage.redis.process.start()


def broker_hangs(stage: Stage, round_: Round, *, seconds: float) -> None:
    """The broker takes connections and answers nothing."""
    os.kill(stage.redis.process.pid, signal.SIGSTOP)
    stage.modality.send(series(stage, round_))
    time.sleep(seconds)
    os.kill(stage.redis.process.pid, signal.SIGCONT)


# --- database ----------------------------------------------------------------------------


def postgres_restarted(
    stage: Stage, round_: Round, *, kill: bool, pause: float, under_way: bool
) -> None:
    """PostgreSQL is killed or stopped, and started after a pause."""
    with _sending(stage, round_, under_way=under_way) as go, stage.postgres_down(kill=kill):
        go()
        time.sleep(pause)


def sqlite_locked(stage: Stage, round_: Round, *, seconds: float, under_way: bool) -> None:
    """Somebody else holds SQLite's write lock, perhaps for longer than anybody waits for it."""
    with _sending(stage, round_, under_way=under_way) as go, stage.locked():
        go()
        time.sleep(seconds)


# --- PACS --------------------------------------------------------------------------------


def pacs_in_mood(
    stage: Stage, round_: Round, *, bad: Mood, times: int = 1, pause: float = 0.0
) -> None:
    """The PACS fails in one way until it has done so often enough, then is well."""
    before = stage.front.struck[bad]
    with stage.pacs(bad):
        stage.modality.send(series(stage, round_))
        stage.await_mood(bad, before + times)
        time.sleep(pause)


def pacs_down(stage: Stage, round_: Round, *, seconds: float) -> None:
    """Nothing listens at the PACS for a while."""
    with stage.pacs(Mood.DOWN):
        stage.modality.send(series(stage, round_))
        wait_until(
            lambda: _waits(stage, round_.scans[-1]),
            what="a delivery finds the PACS down",
            seconds=150.0,
        )
        time.sleep(seconds)


def orthanc_killed(stage: Stage, round_: Round, *, seconds: float) -> None:
    """The PACS itself is killed and started again."""
    sending = in_thread(partial(stage.modality.send, series(stage, round_)))
    time.sleep(stage.random.uniform(0.0, 5.0))
    stage.orthanc.process.kill()
    time.sleep(seconds)
    stage.orthanc.process.start()
    sending()


# --- disk, clock -------------------------------------------------------------------------


def reserve_reached(stage: Stage, round_: Round) -> None:
    """The listener finds less disk than it keeps free: 0xA700, until there is more."""
    stage.keeper.change("listener", HIPSCORE_RESERVE_MB="1000000000")
    stage.await_service()
    refused = series(stage, round_)
    if stage.modality.offer(refused, refused.images):
        raise RuntimeError("images were taken although the disk counts as full")
    stage.keeper.change("listener", HIPSCORE_RESERVE_MB="1")
    stage.await_service()
    stage.modality.send(refused)


def disk_full(stage: Stage, round_: Round, *, seconds: float, under_way: bool) -> None:
    """The disk of the data directory is full to the last byte for a while."""
    if not stage.own_disk:
        raise ValueError("only a stage with a disk of its own can fill it")
    filler = stage.data / "filler"
    with _sending(stage, round_, under_way=under_way) as go:
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True, check=False
        )
        go()
        time.sleep(seconds)
        filler.unlink()


def clock_of_all_back(stage: Stage, round_: Round) -> None:
    """The clock of the machine goes back one hour under a series; nothing waits for an hour.

    When all is done it is set right again, which is a step ahead for what comes then.
    """
    sending = in_thread(partial(stage.modality.send, series(stage, round_)))
    time.sleep(stage.random.uniform(0.0, 3.0))
    for role in COMMANDS:
        stage.orders[role].shift_clock(-3600.0)
    try:
        sending()
        stage.modality.send(series(stage, round_), release=False)
        finished(stage, round_)
    finally:
        for role in COMMANDS:
            stage.orders[role].shift_clock(0.0)


def clock_back(stage: Stage, round_: Round, *, role: str, seconds: float) -> None:
    """The clock of one process goes back one hour, and is right again later."""
    stage.orders[role].shift_clock(-3600.0)
    try:
        stage.modality.send(series(stage, round_), release=role != "beat")
        time.sleep(seconds)
    finally:
        stage.orders[role].shift_clock(0.0)


@contextlib.contextmanager
def _sending(stage: Stage, round_: Round, *, under_way: bool) -> Iterator[Callable[[], None]]:
    """A new series is sent; all of its images are acknowledged at the end.

    ``under_way``: it was begun a moment before, so that the fault meets it anywhere between
    the modality and the PACS. Else it is begun when the yielded function is called.
    """
    send = partial(stage.modality.send, series(stage, round_))
    waits = []
    if under_way:
        waits.append(in_thread(send))
        time.sleep(stage.random.uniform(0.0, 3.0))
    yield lambda: None if waits else waits.append(in_thread(send))
    for wait in waits:
        wait()


def _announced(stage: Stage, sent: Scan) -> bool:
    """Whether a message about the job of the series was sent to the broker."""
    with database.readers(stage.engine)() as session:
        query = select(Job.id).join(Series, Series.id == Job.series_id)
        query = query.where(
            Series.series_instance_uid == sent.series_uid, Job.enqueued_at.is_not(None)
        )
        return session.scalars(query).first() is not None


def _waits(stage: Stage, sent: Scan) -> bool:
    """Whether a delivery of the series was tried in vain."""
    with database.readers(stage.engine)() as session:
        query = select(Delivery.id).join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        query = query.join(Job, Job.id == ArtifactRow.job_id)
        query = query.join(Series, Series.id == Job.series_id)
        query = query.where(
            Series.series_instance_uid == sent.series_uid, Delivery.next_attempt_at.is_not(None)
        )
        return session.scalars(query).first() is not None
