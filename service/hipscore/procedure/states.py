"""The state machine of a work item, as one literal table (PS3.4 table CC.1.1-2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class State(StrEnum):
    """Procedure Step State (0074,1000)."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    CANCELED = "CANCELED"
    COMPLETED = "COMPLETED"


FINAL = frozenset({State.CANCELED, State.COMPLETED})


class Wish(StrEnum):
    """What somebody may ask of an item that there is."""

    CLAIM = "claim"
    COMPLETE = "complete"
    CANCEL = "cancel"
    RESCHEDULE = "reschedule"
    REQUEST_CANCEL = "request cancel"
    UPDATE = "update"


class Status(IntEnum):
    """Status of an N-ACTION or N-SET (PS3.4 tables CC.2.1-2, CC.2.2-2 and CC.2.6-1)."""

    SUCCESS = 0x0000
    ALREADY_CANCELED = 0xB304
    ALREADY_COMPLETED = 0xB306
    NO_LONGER_UPDATED = 0xC300
    WRONG_TRANSACTION = 0xC301
    ALREADY_IN_PROGRESS = 0xC302
    ONLY_CREATED_SCHEDULED = 0xC303
    FINAL_STATE_UNMET = 0xC304
    NOT_IN_PROGRESS = 0xC310
    COMPLETED_BEFORE = 0xC311


@dataclass(frozen=True, slots=True)
class Ruling:
    """What follows from a wish: the status, and the states it leads through, in order."""

    status: Status
    through: tuple[State, ...] = ()


_DONE = Status.SUCCESS
_CLAIM = Ruling(_DONE, (State.IN_PROGRESS,))
_OVER = Ruling(Status.NO_LONGER_UPDATED)
_NEVER = Ruling(Status.ONLY_CREATED_SCHEDULED)
_NOT_YET = Ruling(Status.NOT_IN_PROGRESS)
_WAS_CANCELED = Ruling(Status.ALREADY_CANCELED)

#: for a wish that comes with the right Transaction UID, where one is needed
TABLE: Mapping[Wish, Mapping[State, Ruling]] = {
    Wish.CLAIM: {
        State.SCHEDULED: _CLAIM,
        State.IN_PROGRESS: Ruling(Status.ALREADY_IN_PROGRESS),
        State.CANCELED: _OVER,
        State.COMPLETED: _OVER,
    },
    Wish.COMPLETE: {
        State.SCHEDULED: _NOT_YET,
        State.IN_PROGRESS: Ruling(_DONE, (State.COMPLETED,)),
        State.CANCELED: _OVER,
        State.COMPLETED: Ruling(Status.ALREADY_COMPLETED),
    },
    Wish.CANCEL: {
        State.SCHEDULED: _NOT_YET,
        State.IN_PROGRESS: Ruling(_DONE, (State.CANCELED,)),
        State.CANCELED: _WAS_CANCELED,
        State.COMPLETED: _OVER,
    },
    Wish.RESCHEDULE: dict.fromkeys(State, _NEVER),
    # Nobody performs what is SCHEDULED: it is claimed and canceled at once. Otherwise the
    # performer is told, and decides.
    Wish.REQUEST_CANCEL: {
        State.SCHEDULED: Ruling(_DONE, (State.IN_PROGRESS, State.CANCELED)),
        State.IN_PROGRESS: Ruling(_DONE),
        State.CANCELED: _WAS_CANCELED,
        State.COMPLETED: Ruling(Status.COMPLETED_BEFORE),
    },
    Wish.UPDATE: {
        State.SCHEDULED: Ruling(_DONE),
        State.IN_PROGRESS: Ruling(_DONE),
        State.CANCELED: _OVER,
        State.COMPLETED: _OVER,
    },
}
#: the value of Procedure Step State that is asked for, as a wish
CHANGES: Mapping[State, Wish] = {
    State.SCHEDULED: Wish.RESCHEDULE,
    State.IN_PROGRESS: Wish.CLAIM,
    State.COMPLETED: Wish.COMPLETE,
    State.CANCELED: Wish.CANCEL,
}


def rule(state: State, wish: Wish, *, held: str | None = None, given: str | None = None) -> Ruling:
    """What follows from ``wish`` in ``state``.

    Parameters
    ----------
    held
        The Transaction UID under which the item was claimed; None if it was not.
    given
        The one that came with the wish.
    """
    if _locked(state, wish) and (given is None or given != held):
        return Ruling(Status.WRONG_TRANSACTION)
    return TABLE[wish][state]


def _locked(state: State, wish: Wish) -> bool:
    """Whether only who holds the item may wish this. Any Transaction UID claims it."""
    if wish is Wish.UPDATE:
        return state is State.IN_PROGRESS
    if wish in {Wish.REQUEST_CANCEL, Wish.RESCHEDULE}:
        return False
    return state is not State.SCHEDULED
