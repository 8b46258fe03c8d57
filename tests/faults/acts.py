"""What is done to hipscore, fault by fault. Each act sends its series and hurts something.

An act returns when the fault is over: whatever died is being started again as systemd
would, whatever was down is up. What has to follow without any help is the verdict's part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sqlalchemy import select

from hipscore.store import engine as database
from hipscore.store.tables import Instance
from tests.faults.launch import How, When
from tests.faults.pacs_front import Mood
from tests.faults.sender import Expected, Scan, altered, scan
from tests.faults.stage import COMMANDS, LEASE_SECONDS, Stage
from tests.faults.verdict import Round, settled
from tests.processes import wait_until

Act = Callable[[Stage, Round], None]


def series(stage: Stage, round_: Round, expected: Expected = Expected.SCORED) -> Scan:
    """A new series of this round."""
    made = scan(f"{stage.root.name} {round_.number} {len(round_.scans)}", expected)
    round_.scans.append(made)
    return made


def finished(stage: Stage, round_: Round) -> None:
    """Wait until what was sent so far has its outcome."""
    wait_until(
        lambda: settled(round_, stage),
        what="the series before the fault is done",
        seconds=180.0,
        every=0.2,
    )


# --- a process dies exactly at a transition ----------------------------------------------


def dies(
    stage: Stage,
    round_: Round,
    *,
    role: str,
    point: str,
    when: When,
    how: How = "process",
    expected: Expected = Expected.SCORED,
    release: bool = True,
    nth: int = 1,
) -> None:
    """The process of a role dies at a point that any new series leads to."""
    stage.order(role, point, when, how=how, nth=nth)
    stage.modality.send(series(stage, round_, expected), release=release)
    stage.await_blow(role)


def dies_on_late_image(
    stage: Stage, round_: Round, *, when: When, expected: Expected = Expected.SCORED
) -> None:
    """The listener dies as a late image opens a closed series again."""
    late = series(stage, round_, expected)
    stage.modality.send(late, late.images[:-1])
    finished(stage, round_)
    late.reports += expected is not Expected.IGNORED
    state = "IGNORED" if expected is Expected.IGNORED else "MATCHED"
    stage.order("listener", f"series.image.{state}", when)
    stage.modality.send(late)
    stage.await_blow("listener")


def dies_explaining(stage: Stage, round_: Round, *, when: When) -> None:
    """No rule matches a study; the reaper dies as it orders the report that says why."""
    knee = series(stage, round_, Expected.NOT_SCORABLE)
    for image in knee.images:
        image.BodyPartExamined = "KNEE"
    stage.order("beat", "series.order.IGNORED", when)
    stage.modality.send(knee)
    stage.await_blow("beat")


def dies_taking_back(stage: Stage, round_: Round, *, machine: str, when: When) -> None:
    """A worker dies with a lease, and then the reaper that takes the lease back."""
    role = "analysis" if machine == "job" else "delivery"
    claimed = "job.claim.QUEUED" if machine == "job" else "delivery.claim.PENDING"
    stage.order(role, claimed, "after", how="group")
    held = "ANALYSING" if machine == "job" else "SENDING"
    stage.order("beat", f"{machine}.expire.{held}", when)
    stage.modality.send(series(stage, round_))
    stage.await_blow(role)
    stage.await_blow("beat")


def dies_postponing_job(stage: Stage, round_: Round, *, when: When, how: How = "process") -> None:
    """The disk fails under an analysis; its worker dies as it puts the job back."""
    stage.order("analysis", "job.postpone.ANALYSING", when, how=how)
    with _unreadable_image(stage, round_):
        stage.await_blow("analysis")


def dies_in_mood(
    stage: Stage,
    round_: Round,
    *,
    bad: Mood,
    role: str,
    point: str,
    when: When,
    how: How = "process",
) -> None:
    """The PACS fails, and the process that has to cope with it dies as it does."""
    with stage.pacs(bad):
        stage.order(role, point, when, how=how)
        stage.modality.send(series(stage, round_))
        stage.await_blow(role)


def freezes(
    stage: Stage, round_: Round, *, role: str, point: str, when: When, release: bool = True
) -> None:
    """A process stands still for longer than its lease, then goes on as if nothing were."""
    stage.order(role, point, when, how="freeze")
    sending = in_thread(partial(stage.modality.send, series(stage, round_), release=release))
    frozen = stage.await_blow(role)
    time.sleep(LEASE_SECONDS + 3.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(frozen, signal.SIGCONT)
    sending()


def killed(stage: Stage, round_: Round, *, role: str | None = None) -> None:
    """A process, any, is killed at any moment while a series is on its way."""
    sending = in_thread(partial(stage.modality.send, series(stage, round_)))
    time.sleep(stage.random.uniform(0.0, 4.0))
    stage.keeper.kill(role or stage.random.choice(sorted(COMMANDS)))
    sending()


def all_killed(stage: Stage, round_: Round) -> None:
    """Every process of hipscore and the broker are killed at once: a power cut."""
    sending = in_thread(partial(stage.modality.send, series(stage, round_)))
    time.sleep(stage.random.uniform(0.5, 4.0))
    for role in COMMANDS:
        stage.keeper.kill(role)
    stage.redis.process.kill()
    stage.redis.process.start()
    sending()


# --- senders -----------------------------------------------------------------------------


def sender_aborts(stage: Stage, round_: Round) -> None:
    """The sender aborts in mid-series, and later sends everything again."""
    aborted = series(stage, round_)
    stage.modality.offer(aborted, aborted.images[: stage.random.randint(1, 8)], release=False)
    time.sleep(stage.random.uniform(0.0, 1.0))
    if not stage.modality.offer(aborted, aborted.images):
        stage.modality.send(aborted)


def many_senders(stage: Stage, round_: Round, *, kill: bool = False) -> None:
    """The same series comes over eight associations at once."""
    crowded = series(stage, round_)
    sending = in_thread(partial(stage.modality.send_from_many, crowded, 8))
    if kill:
        time.sleep(stage.random.uniform(0.0, 0.5))
        stage.keeper.kill("listener")
    sending()


def other_bytes(stage: Stage, round_: Round, *, late: bool) -> None:
    """An image comes again with other bytes; what was acknowledged first is kept."""
    doubled = series(stage, round_)
    stage.modality.send(doubled, doubled.images if late else doubled.images[:-1], release=late)
    if late:
        finished(stage, round_)
    if not stage.modality.offer(doubled, [altered(doubled.images[0])], release=False):
        stage.modality.send(doubled)
    stage.modality.send(doubled)


def late_image(stage: Stage, round_: Round) -> None:
    """An image comes after the report: a second report names the first."""
    late = series(stage, round_)
    stage.modality.send(late, late.images[:-1])
    finished(stage, round_)
    late.reports += 1
    stage.modality.send(late)


def storm(stage: Stage, round_: Round, *, acts: Sequence[Act]) -> None:
    """Several acts at once. Each counts as one fault."""
    round_.faults = len(acts)
    waiting = [in_thread(partial(act, stage, round_)) for act in acts]
    for wait in waiting:
        wait()


# --- shared ------------------------------------------------------------------------------


def in_thread(function: Callable[[], None]) -> Callable[[], None]:
    """Run it beside the caller; the returned function waits, and raises what it raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if failures:
            raise failures[0]

    return wait


@contextlib.contextmanager
def _unreadable_image(stage: Stage, round_: Round) -> Iterator[None]:
    """A new series whose first image cannot be read from the spool while inside.

    In the quiet period, before the series closes, a directory takes the place of the file:
    to the program that is a disk that fails, not a file that is missing.
    """
    hurt = series(stage, round_)
    stage.modality.send(hurt, release=False)
    with database.readers(stage.engine)() as session:
        uid = str(hurt.images[0].SOPInstanceUID)
        key = session.scalars(
            select(Instance.spool_key).where(Instance.sop_instance_uid == uid)
        ).one()
    file = stage.data / "spool" / key
    aside = stage.root / f"aside-{round_.number}"
    shutil.move(file, aside)
    file.mkdir()
    try:
        yield
    finally:
        file.rmdir()
        shutil.move(aside, file)
