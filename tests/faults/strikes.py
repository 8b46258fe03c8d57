"""Where hipscore dies: every row of the tables of ``lifecycle.py``, before and after its commit.

A fault that is aimed at a row names it, so that a test can say that none is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from tests.faults import acts, repairs
from tests.faults.acts import Act
from tests.faults.launch import How, When
from tests.faults.pacs_front import Mood
from tests.faults.sender import Expected

#: rows in which nothing can die, and why
UNREACHED = {
    "series.image.COMPLETE": "never committed: close, match and job are one transaction",
    **dict.fromkeys(
        (
            "job.cancel.QUEUED",
            "job.cancel.ANALYSING",
            "delivery.withdraw.PENDING",
            "delivery.withdraw.EXHAUSTED",
        ),
        "somebody's wish, in one transaction: whoever got no answer says it again",
    ),
}
DATABASES = ("sqlite", "postgresql")
Repair = Callable[..., None]
WHENS: tuple[When, ...] = get_args(When)
WAYS: tuple[How, ...] = ("process", "group", "parent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: the line of the table it counts in, what exactly it is, and how it is done.

    ``row`` is the row of a state machine in which something dies, ``machine.event.STATE``.
    ``database``: it is done on this one alone in a long run.
    ``alone``: it would hurt series of earlier rounds for good, so these are waited for.
    """

    kind: str
    name: str
    act: Act
    faults: int = 1
    row: str = ""
    alone: bool = False
    database: str = ""


def strikes() -> Iterator[Fault]:
    """Every process dies at every transition it makes, before and after the commit."""
    for turn, when in enumerate(WHENS):
        yield from _listener(when)
        yield from _beat(when)
        yield from _shared(_operator(when), turn)
        yield from (*_analysis(when, "process"), *_delivery(when, "process"))
        for how in WAYS[1:]:
            turn += 1  # noqa: PLW2901 - the databases take turns
            yield from _shared((*_analysis(when, how), *_delivery(when, how)), turn)


def _shared(faults: Iterable[Fault], turn: int) -> Iterator[Fault]:
    """What differs in no word to the database is done on one of the two, in turn."""
    for each in faults:
        yield replace(each, database=DATABASES[turn % 2])


def blow(kind: str, role: str, point: str, when: When, how: How = "process", **more: Any) -> Fault:
    """A process of this role dies at a point that any new series leads to."""
    act = partial(acts.dies, role=role, point=point, when=when, how=how, **more)
    return _at(kind, role, point, when, act, how)


def _at(  # noqa: PLR0917 - the same order everywhere, right here
    kind: str, role: str, row: str, when: When, act: Act, how: How = "process"
) -> Fault:
    name = f"{role} {when} {row}" + (f" ({how})" if how != "process" else "")
    return Fault(kind=kind, name=name, act=act, row=row)


def _listener(when: When) -> Iterator[Fault]:
    kind = "listener killed at a transition"
    yield blow(kind, "listener", "spool.put", when, nth=4)
    yield blow(kind, "listener", "series.open", when)
    yield blow(kind, "listener", "series.image.RECEIVING", when, nth=5)
    yield blow(kind, "listener", "answer.store", when, nth=6)
    yield blow(kind, "listener", "series.close.RECEIVING", when)
    yield blow(kind, "listener", "series.match.COMPLETE", when)
    yield blow(kind, "listener", "series.ignore.COMPLETE", when, expected=Expected.IGNORED)
    yield blow(kind, "listener", "job.open", when)
    yield blow(kind, "listener", "publish", when)
    for expected, state in ((Expected.SCORED, "MATCHED"), (Expected.IGNORED, "IGNORED")):
        act = partial(acts.dies_on_late_image, when=when, expected=expected)
        yield _at(kind, "listener", f"series.image.{state}", when, act)
    yield blow(kind, "listener", "delivery.commit.SENT", when)
    yield blow(kind, "listener", "answer.report", when)
    declined = partial(acts.dies_in_mood, bad=Mood.COMMIT_NOT, role="listener")
    act = partial(declined, point="delivery.decline.SENT", when=when)
    yield _at(kind, "listener", "delivery.decline.SENT", when, act)


def _beat(when: When) -> Iterator[Fault]:
    kind = "beat killed at a transition"
    for row in ("series.close.RECEIVING", "series.match.COMPLETE", "job.open", "publish"):
        yield blow(kind, "beat", row, when, release=False)
    ignored = Expected.IGNORED
    yield blow(kind, "beat", "series.ignore.COMPLETE", when, release=False, expected=ignored)
    act = partial(acts.dies_explaining, when=when)
    yield _at(kind, "beat", "series.order.IGNORED", when, act)
    for machine, held in (("job", "ANALYSING"), ("delivery", "SENDING")):
        act = partial(acts.dies_taking_back, machine=machine, when=when)
        yield _at(kind, "beat", f"{machine}.expire.{held}", when, act)


def _analysis(when: When, how: How) -> Iterator[Fault]:
    kind = "analysis worker killed at a transition"
    yield blow(kind, "analysis", "job.claim.QUEUED", when, how)
    yield blow(kind, "analysis", "spool.put", when, how, nth=2)
    yield blow(kind, "analysis", "job.analysed.ANALYSING", when, how)
    unsuitable = Expected.NOT_SCORABLE
    yield blow(kind, "analysis", "job.not_scorable.ANALYSING", when, how, expected=unsuitable)
    yield blow(kind, "analysis", "publish", when, how)
    act = partial(acts.dies_postponing_job, when=when, how=how)
    yield _at(kind, "analysis", "job.postpone.ANALYSING", when, act, how)


def _delivery(when: When, how: How) -> Iterator[Fault]:
    kind = "delivery worker killed at a transition"
    yield blow(kind, "delivery", "delivery.claim.PENDING", when, how)
    yield blow(kind, "delivery", "pacs.store", when, how)
    yield blow(kind, "delivery", "delivery.sent.SENDING", when, how)
    full = partial(acts.dies_in_mood, bad=Mood.FULL, role="delivery", how=how)
    act = partial(full, point="delivery.postpone.SENDING", when=when)
    yield _at(kind, "delivery", "delivery.postpone.SENDING", when, act, how)
    yield blow(kind, "delivery", "pacs.commit", when, how)


def _operator(when: When) -> Iterator[Fault]:
    """What ends in a state that only an operator leaves, and his command killed as well."""
    kind = "failed as it must, retry killed"
    made: list[tuple[tuple[str, ...], Repair]] = [
        (("job.fail.ANALYSING", "job.retry.FAILED", "job.retry.QUEUED"), repairs.job_fails),
        (
            ("delivery.refuse.SENDING", "delivery.retry.REFUSED", "delivery.retry.PENDING"),
            repairs.delivery_refused,
        ),
        (("delivery.exhaust.SENDING", "delivery.retry.EXHAUSTED"), repairs.delivery_exhausted),
    ]
    made.append((("delivery.retry.COMMITTED",), repairs.delivery_again))
    made += [
        (("delivery.refuse.SENT",), repairs.commitment_refused),
        (("delivery.exhaust.SENT",), repairs.commitment_exhausted),
        (("delivery.retry.SENT",), repairs.uncommitted_again),
    ]
    for rows, act in made:
        bound = partial(act, when=when)
        name = f"{when} {', '.join(rows)}"
        yield Fault(kind=kind, name=name, act=bound, row=" ".join(rows), alone=True)
