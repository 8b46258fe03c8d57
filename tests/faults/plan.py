"""Which faults are injected, in which order."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from functools import partial

from tests.faults import acts, outside
from tests.faults.acts import Act
from tests.faults.pacs_front import SLOW_SECONDS, Mood
from tests.faults.stage import LEASE_SECONDS
from tests.faults.strikes import Fault, blow, strikes


def fault(kind: str, act: Act, name: str = "") -> Fault:
    """A fault of the surroundings, which counts once."""
    return Fault(kind=kind, name=name or kind, act=act)


def _database(kind: str) -> Iterator[Fault]:
    """The database goes away, and comes back."""
    if kind == "postgresql":
        for kill, pause, under_way in (
            (True, 0.0, True),
            (True, 6.0, False),
            (False, 6.0, False),
            (False, 6.0, True),
        ):
            down = partial(outside.postgres_restarted, kill=kill, pause=pause)
            name = "PostgreSQL killed" if kill else "PostgreSQL stopped"
            act = partial(down, under_way=under_way)
            yield fault(name, act, name + ("" if under_way else ", then images"))
    else:
        for seconds, under_way in ((12.0, False), (12.0, True), (4.0, True)):
            act = partial(outside.sqlite_locked, seconds=seconds, under_way=under_way)
            name = f"SQLite locked for {seconds:g} s" + ("" if under_way else ", then images")
            yield fault("SQLite locked", act, name)


def surroundings(kind: str, *, own_disk: bool) -> Iterator[Fault]:
    """Faults of everything around hipscore, short ones."""
    for role, point, when in (
        ("analysis", "spool.put", "before"),
        ("delivery", "pacs.store", "before"),
        ("delivery", "pacs.store", "after"),
        ("listener", "answer.store", "before"),
    ):
        act = partial(acts.freezes, role=role, point=point, when=when)  # type: ignore[arg-type]
        yield fault("process frozen past its lease", act, f"{role} frozen {when} {point}")
    for role in ("listener", "analysis", "delivery", "beat"):
        yield fault("process killed at random", partial(acts.killed, role=role), f"{role} killed")
    yield fault("everything killed at once", acts.all_killed)
    yield fault("broker wiped", outside.broker_wiped)
    yield fault("broker lost with its files", outside.broker_lost)
    yield fault("broker down", partial(outside.broker_down, seconds=5.0))
    yield fault("broker hangs", partial(outside.broker_hangs, seconds=5.0))
    yield from _database(kind)
    yield fault("PACS down", partial(outside.pacs_down, seconds=0.0))
    for bad in (Mood.REJECT, Mood.FULL, Mood.CUT, Mood.SWALLOW, Mood.EMPTY):
        yield fault(f"PACS {bad.value}", partial(outside.pacs_in_mood, bad=bad))
    hang = partial(outside.pacs_in_mood, bad=Mood.HANG, pause=LEASE_SECONDS + 3.0)
    slow = partial(outside.pacs_in_mood, bad=Mood.SLOW, pause=SLOW_SECONDS)
    yield fault(f"PACS {Mood.SLOW.value}", slow)
    yield fault(f"PACS {Mood.HANG.value}", hang)
    for bad in (Mood.COMMIT_NEVER, Mood.COMMIT_NOT, Mood.COMMIT_ERROR):
        yield fault(f"PACS {bad.value}", partial(outside.pacs_in_mood, bad=bad))
    yield fault("disk below its reserve", outside.reserve_reached)
    if own_disk:
        for under_way in (True, False):
            act = partial(outside.disk_full, seconds=4.0, under_way=under_way)
            yield fault("disk full", act, "disk full" + ("" if under_way else ", then images"))
    for role in ("listener", "analysis", "delivery", "beat"):
        act = partial(outside.clock_back, role=role, seconds=6.0)
        yield fault("clock back one hour", act, f"clock of {role} back one hour")
    yield fault("clock back one hour", outside.clock_of_all_back, "clock of all back one hour")
    yield fault("sender aborts and sends again", acts.sender_aborts)
    yield fault("eight associations at once", acts.many_senders)
    yield fault(
        "eight associations at once",
        partial(acts.many_senders, kill=True),
        "eight, listener killed",
    )
    yield fault("other bytes under a known UID", partial(acts.other_bytes, late=False))
    yield fault("other bytes under a known UID", partial(acts.other_bytes, late=True))
    yield fault("late image after the report", acts.late_image)
    yield storm(acts.killed, acts.killed, outside.broker_lost)
    yield storm(acts.sender_aborts, acts.killed, partial(outside.pacs_in_mood, bad=Mood.SWALLOW))


def storm(*several: Act) -> Fault:
    """Several at once."""
    act = partial(acts.storm, acts=several)
    return Fault(kind="several at once", name="several at once", act=act, faults=len(several))


def outages(kind: str, *, own_disk: bool) -> Iterator[Fault]:
    """Long ones, minutes each; once per database in a long run."""
    yield fault("broker down", partial(outside.broker_down, seconds=120.0), "broker down, 2 min")
    yield fault("PACS down", partial(outside.pacs_down, seconds=60.0), "PACS down, 1 min")
    if kind == "postgresql":
        act = partial(outside.postgres_restarted, kill=False, pause=60.0, under_way=False)
        yield fault("PostgreSQL stopped", act, "PostgreSQL stopped, 1 min")
    else:
        act = partial(outside.sqlite_locked, seconds=40.0, under_way=False)
        yield fault("SQLite locked", act, "SQLite locked, 40 s")
    if own_disk:
        act = partial(outside.disk_full, seconds=30.0, under_way=False)
        yield fault("disk full", act, "disk full, 30 s")


def direct() -> Iterator[Fault]:
    """Faults of a run whose results go to Orthanc itself."""
    for seconds in (0.0, 3.0, 8.0):
        yield fault("Orthanc killed", partial(outside.orthanc_killed, seconds=seconds))
    kind = "delivery worker killed at a transition"
    yield blow(kind, "delivery", "pacs.store", "after")
    yield blow(kind, "delivery", "pacs.store", "before", "group")
    yield fault("process killed at random", acts.killed)
    yield fault("everything killed at once", acts.all_killed)
    yield fault("late image after the report", acts.late_image)


def long_plan(kind: str, count: int, *, seed: int, own_disk: bool) -> list[Fault]:
    """At least ``count`` faults: every one there is once, then again at random."""
    dice = random.Random(f"plan {kind} {seed}")
    once = [each for each in strikes() if each.database in {"", kind}]
    once += surroundings(kind, own_disk=own_disk)
    again = [*once]
    dice.shuffle(once)
    # what takes longest to get over comes first, so that its end is not waited for
    chosen = [*outages(kind, own_disk=own_disk), *once]
    while _count(chosen) < count:
        chosen.append(dice.choice(again))
    return chosen


def direct_plan(count: int, *, seed: int) -> list[Fault]:
    """At least ``count`` faults for results that go to Orthanc itself."""
    dice = random.Random(f"direct {seed}")
    chosen = once = [*direct()]
    while _count(chosen) < count:
        chosen = [*chosen, dice.choice(once)]
    return chosen


def plan_of(kind: str, pattern: str, *, own_disk: bool) -> list[Fault]:
    """Every fault whose name the regular expression finds, once."""
    every = [
        *strikes(),
        *surroundings(kind, own_disk=own_disk),
        *outages(kind, own_disk=own_disk),
        *direct(),
    ]
    return [each for each in every if re.search(pattern, each.name)]


def fast_plan(kind: str) -> list[Fault]:
    """A dozen for each database, the same every time."""
    wanted = _FAST[kind]
    all_ = [*strikes(), *surroundings(kind, own_disk=False)]
    by_name = {each.name: each for each in all_}
    return [by_name[name] for name in wanted]


_FAST = {
    "sqlite": (
        "broker wiped",
        "listener before answer.store",
        "listener after series.close.RECEIVING",
        "analysis before job.analysed.ANALYSING (group)",
        "delivery after pacs.store",
        "beat before job.open",
        "SQLite locked for 12 s, then images",
        f"PACS {Mood.SWALLOW.value}",
        "disk below its reserve",
        "analysis after job.claim.QUEUED",
        "late image after the report",
        "eight associations at once",
    ),
    "postgresql": (
        "broker lost with its files",
        "PostgreSQL killed, then images",
        "listener after series.image.RECEIVING",
        "listener before series.ignore.COMPLETE",
        "analysis after job.not_scorable.ANALYSING",
        "delivery before delivery.sent.SENDING (group)",
        "delivery after delivery.claim.PENDING",
        f"PACS {Mood.CUT.value}",
        f"PACS {Mood.EMPTY.value}",
        "clock of listener back one hour",
        "sender aborts and sends again",
        "other bytes under a known UID",
        "everything killed at once",
    ),
}


def _count(faults: Iterable[Fault]) -> int:
    return sum(each.faults for each in faults)
