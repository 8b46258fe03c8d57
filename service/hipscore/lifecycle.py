"""The three state machines, as data, and the pure decisions that drive them.

One literal table per machine: ``TABLE[state][event] -> state``. What is not in a
table is illegal, and :func:`next_state` says so. The store performs the moves; the
tables say which moves exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias, TypeVar

import numpy as np

from hipscore.domain import DoubleArray, ReceivedInstance


class SeriesState(StrEnum):
    """Where a series is between its first image and the decision to analyse it."""

    RECEIVING = "RECEIVING"
    COMPLETE = "COMPLETE"
    MATCHED = "MATCHED"
    IGNORED = "IGNORED"


class SeriesEvent(StrEnum):
    """What can happen to a series."""

    IMAGE = "image"
    CLOSE = "close"
    MATCH = "match"
    IGNORE = "ignore"
    ORDER = "order"


class JobState(StrEnum):
    """Where the analysis of one set of images by one model bundle is."""

    QUEUED = "QUEUED"
    ANALYSING = "ANALYSING"
    ANALYSED = "ANALYSED"
    NOT_SCORABLE = "NOT_SCORABLE"
    FAILED = "FAILED"


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    ANALYSED = "analysed"
    NOT_SCORABLE = "not_scorable"
    FAIL = "fail"
    POSTPONE = "postpone"
    EXPIRE = "expire"
    RETRY = "retry"
    CANCEL = "cancel"


class DeliveryState(StrEnum):
    """Where one artifact is on its way to one destination."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    REFUSED = "REFUSED"
    EXHAUSTED = "EXHAUSTED"


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    CLAIM = "claim"
    SENT = "sent"
    COMMIT = "commit"
    REFUSE = "refuse"
    EXHAUST = "exhaust"
    DECLINE = "decline"
    POSTPONE = "postpone"
    EXPIRE = "expire"
    RETRY = "retry"
    WITHDRAW = "withdraw"


State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)
Table: TypeAlias = Mapping[State, Mapping[Event, State]]

#: An image on a closed series (a late one) opens it again: it will be closed, and
#: analysed, once more. ORDER analyses what the rules left alone: somebody asked for it, or
#: the whole study would go without a word.
SERIES: Table[SeriesState, SeriesEvent] = {
    SeriesState.RECEIVING: {
        SeriesEvent.IMAGE: SeriesState.RECEIVING,
        SeriesEvent.CLOSE: SeriesState.COMPLETE,
    },
    SeriesState.COMPLETE: {
        SeriesEvent.IMAGE: SeriesState.RECEIVING,
        SeriesEvent.MATCH: SeriesState.MATCHED,
        SeriesEvent.IGNORE: SeriesState.IGNORED,
    },
    SeriesState.MATCHED: {SeriesEvent.IMAGE: SeriesState.RECEIVING},
    SeriesState.IGNORED: {
        SeriesEvent.IMAGE: SeriesState.RECEIVING,
        SeriesEvent.ORDER: SeriesState.MATCHED,
    },
}

#: RETRY of a QUEUED job cuts its waiting short. A finished job has no RETRY: its
#: artifacts carry deterministic UIDs and may already lie in a PACS, and building them
#: again would put other bytes under the same UIDs. CANCEL is somebody's wish; a worker that
#: is at it finds its lease gone and drops its result.
JOB: Table[JobState, JobEvent] = {
    JobState.QUEUED: {
        JobEvent.CLAIM: JobState.ANALYSING,
        JobEvent.RETRY: JobState.QUEUED,
        JobEvent.CANCEL: JobState.FAILED,
    },
    JobState.ANALYSING: {
        JobEvent.CANCEL: JobState.FAILED,
        JobEvent.ANALYSED: JobState.ANALYSED,
        JobEvent.NOT_SCORABLE: JobState.NOT_SCORABLE,
        JobEvent.FAIL: JobState.FAILED,
        JobEvent.POSTPONE: JobState.QUEUED,
        JobEvent.EXPIRE: JobState.QUEUED,
    },
    JobState.ANALYSED: {},
    JobState.NOT_SCORABLE: {},
    JobState.FAILED: {JobEvent.RETRY: JobState.QUEUED},
}

#: DECLINE, EXHAUST and REFUSE of a SENT delivery are storage commitments that failed
#: (PS3.4 J.3.3): the peer does not have the object and gets it again, as often as is
#: allowed, or says that it never will take it.
#: RETRY sends the same stored bytes again, also when they had arrived before. WITHDRAW stops
#: what is not under way: an operator has retracted the result.
DELIVERY: Table[DeliveryState, DeliveryEvent] = {
    DeliveryState.PENDING: {
        DeliveryEvent.CLAIM: DeliveryState.SENDING,
        DeliveryEvent.RETRY: DeliveryState.PENDING,
        DeliveryEvent.WITHDRAW: DeliveryState.REFUSED,
    },
    DeliveryState.SENDING: {
        DeliveryEvent.SENT: DeliveryState.SENT,
        DeliveryEvent.REFUSE: DeliveryState.REFUSED,
        DeliveryEvent.EXHAUST: DeliveryState.EXHAUSTED,
        DeliveryEvent.POSTPONE: DeliveryState.PENDING,
        DeliveryEvent.EXPIRE: DeliveryState.PENDING,
    },
    DeliveryState.SENT: {
        DeliveryEvent.COMMIT: DeliveryState.COMMITTED,
        DeliveryEvent.REFUSE: DeliveryState.REFUSED,
        DeliveryEvent.EXHAUST: DeliveryState.EXHAUSTED,
        DeliveryEvent.DECLINE: DeliveryState.PENDING,
        DeliveryEvent.RETRY: DeliveryState.PENDING,
    },
    DeliveryState.COMMITTED: {DeliveryEvent.RETRY: DeliveryState.PENDING},
    DeliveryState.REFUSED: {DeliveryEvent.RETRY: DeliveryState.PENDING},
    DeliveryState.EXHAUSTED: {
        DeliveryEvent.RETRY: DeliveryState.PENDING,
        DeliveryEvent.WITHDRAW: DeliveryState.REFUSED,
    },
}


class IllegalMove(Exception):
    """A move that the state machine does not have."""


def next_state(table: Table[State, Event], state: State, event: Event) -> State:
    """The state after ``event``.

    Raises
    ------
    IllegalMove
        Naming the state, the event and what would have been legal.
    """
    moves = table[state]
    if event not in moves:
        legal = f"possible: {', '.join(moves)}" if moves else "this state is final"
        msg = f"{event.value!r} is not possible in state {state.value}; {legal}"
        raise IllegalMove(msg)
    return moves[event]


BACKOFF_FIRST_S = 10.0
BACKOFF_CAP_S = 4 * 3600.0


def backoff(attempt: int) -> float:
    """Seconds to wait after the failed ``attempt`` (1 is the first): 10, 20, 40 … 4 h.

    Raises
    ------
    ValueError
        If ``attempt`` is below 1.
    """
    if attempt < 1:
        msg = f"attempts are counted from 1, not {attempt}"
        raise ValueError(msg)
    # the exponent is bounded so that a large count cannot overflow a float
    return min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 32))


class CloseReason(StrEnum):
    """The evidence on which a series was closed. These strings are stable."""

    EXPECTED_COUNT = "expected_count"
    CONTIGUOUS = "association_released_contiguous"
    MULTI_FRAME = "multi_frame"
    PEER_COUNT = "peer_count"
    QUIET_PERIOD = "quiet_period"


#: fewer images than this are no evidence: some senders open one association per image
MIN_EVIDENCE = 5
#: two orientations are the same when no cosine differs by more (rounding of DS values)
ORIENTATION_TOLERANCE = 1e-3
#: slices are contiguous when no step differs from the median step by more than this part
STEP_TOLERANCE = 0.1


def completeness(
    instances: Sequence[ReceivedInstance], *, released: bool, one_association: bool
) -> CloseReason | None:
    """Decide whether what has arrived proves that the series is complete.

    Parameters
    ----------
    instances
        All images of the series received so far.
    released
        The association that brought the last of them was released by the sender.
    one_association
        All of them came on that association.

    Returns
    -------
    CloseReason or None
        ``multi_frame``: only multi-frame objects, and the sender is done.
        ``expected_count``: exactly as many images as Images in Acquisition (0020,1002)
        announces, at least 5.
        ``association_released_contiguous``: at least 5 parallel slices at equal steps,
        instance numbers without a gap where there are any, all on one association, and
        no more announced.
        None: no proof; the quiet period decides.
    """
    if not released or not instances:
        return None
    if all(instance.number_of_frames > 1 for instance in instances):
        return CloseReason.MULTI_FRAME
    if len(instances) < MIN_EVIDENCE:
        return None
    announced = {instance.images_in_acquisition for instance in instances}
    if announced == {len(instances)}:
        return CloseReason.EXPECTED_COUNT
    more = any(count is not None and count > len(instances) for count in announced)
    proven = one_association and not more and _numbered_without_gap(instances)
    if proven and _contiguous(instances):
        return CloseReason.CONTIGUOUS
    return None


def _numbered_without_gap(instances: Sequence[ReceivedInstance]) -> bool:
    """Whether Instance Number (0020,0013) runs n, n+1, n+2 …; absent everywhere is fine.

    Every second slice of an interleaved stack is equally spaced too: only the numbers
    show that the other half is missing.
    """
    numbers = [instance.instance_number for instance in instances]
    known = sorted(number for number in numbers if number is not None)
    if not known:
        return True
    return known == list(range(known[0], known[0] + len(numbers)))


def _contiguous(instances: Sequence[ReceivedInstance]) -> bool:
    """Whether the images are one stack of parallel slices at equal, non-zero steps.

    Headers are what senders make of them: geometry that is absent, of another length or
    not finite is no proof, and no error either.
    """
    orientations = [i.orientation for i in instances if len(i.orientation or ()) == 6]
    positions = [i.position_mm for i in instances if len(i.position_mm or ()) == 3]
    if len(orientations) < len(instances) or len(positions) < len(instances):
        return False
    cosines: DoubleArray = np.asarray(orientations, dtype=np.float64)  # (N, 6)
    points: DoubleArray = np.asarray(positions, dtype=np.float64)  # (N, 3)
    if not (np.isfinite(cosines).all() and np.isfinite(points).all()):
        return False
    if np.abs(cosines - cosines[0]).max() > ORIENTATION_TOLERANCE:
        return False
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    steps = np.diff(np.sort(points @ normal))
    step = float(np.median(steps))
    return step > 0 and bool(np.abs(steps - step).max() <= STEP_TOLERANCE * step)


def instances_digest(sop_instance_uids: Iterable[str]) -> str:
    """SHA-256 (hex) of a set of SOP Instance UIDs; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(set(sop_instance_uids))).encode("ascii")).hexdigest()


def job_key(
    *,
    series_instance_uid: str,
    instances_digest: str,
    bundle_id: str,
    bundle_sha256: str,
    generation: int = 0,
) -> str:
    """Key of a job, SHA-256 in hex: which images of which series, and which model.

    All output UIDs derive from it, so a job that runs twice cannot make twins. ``generation``
    is how often the rows of the study were deleted: what is made anew after that has other
    bytes, and so must not have the UIDs of what was sent before.
    """
    parts = [series_instance_uid, instances_digest, bundle_id, bundle_sha256]
    if generation:
        parts.append(str(generation))
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
