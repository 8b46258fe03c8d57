"""Storage commitment (PS3.4 annex J): a peer is asked to answer for what it was sent.

The request is an N-ACTION. The report comes as an N-EVENT-REPORT, at once or hours later,
on the association of the request or on one that the peer opens to our listener; both read
it here.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DimseServiceType
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hipscore.addresses import Peer
from hipscore.domain import Outcome
from hipscore.pacs.association import (
    DEFAULT_TIMEOUTS,
    Timeouts,
    ask,
    associate,
    drop,
    leave,
    meaning_of,
)

#: Action Type ID of PS3.4 table J.3-1, Event Type IDs of table J.3-2
REQUEST = 1
EVENTS = frozenset({1, 2})

SUCCESS = 0x0000
#: answers to a report, PS3.7 10.1.1.1.8 and annex C
PROCESSING_FAILURE = 0x0110
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT = 0x0115

#: Failure Reason (0008,1197), PS3.3 C.14.1.1
_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class and instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
#: answers to the request that mean "not here": PS3.7 annex C
_NOT_OFFERED = frozenset({0x0118, 0x0122, 0x0211})
_UID = re.compile(r"[0-9.]{1,64}")
#: seconds between two looks for a report that came another way
_LOOK_SECONDS = 0.1
#: seconds for the release: a peer that sends a report at that moment may not answer it
_RELEASE_SECONDS = 5.0

log = logging.getLogger(__name__)


class Malformed(Exception):
    """An N-EVENT-REPORT that cannot be understood. ``status`` is the answer to it."""

    def __init__(self, text: str, status: int = INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.status = status


class Reference(NamedTuple):
    """An object that was sent."""

    sop_class_uid: str
    sop_instance_uid: str


class Failure(NamedTuple):
    """Failure Reason (0008,1197), and what the standard calls it."""

    reason: int
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a peer says of the objects of one request, by SOP Instance UID."""

    transaction_uid: str
    succeeded: frozenset[str]
    failed: Mapping[str, Failure]


def request_commitment(
    peer: Peer,
    references: Sequence[Reference],
    *,
    transaction_uid: str,
    calling_aet: str,
    on_report: Callable[[Report], bool],
    still_wanted: Callable[[], bool],
    grace: float = 2.0,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Ask the peer to commit to these objects (N-ACTION, PS3.4 J.3.2).

    Parameters
    ----------
    peer
        Who has them.
    references
        The objects.
    transaction_uid
        A new UID; the report repeats it.
    calling_aet
        Our AE title: a peer that reports on another association looks up by it where to.
    on_report
        Called in another thread with each report that comes on this association, as by
        :func:`take_report`.
    still_wanted
        Whether any object is unanswered. The association is kept open while it says so,
        at most ``grace`` seconds, for the report.

    Returns
    -------
    Outcome
        Delivered when the peer took the request; of the report it says nothing.
        Otherwise no retry for a peer that does not offer storage commitment, retry for
        everything else: no association, no answer, or a status that refuses the request.
    """
    serving = threading.Lock()

    def prepare(event: Event) -> None:
        _serve_in_order(event.assoc, serving)

    def take(event: Event) -> tuple[int, None]:
        return take_report(event, on_report), None

    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    association = associate(
        peer,
        [build_context(StorageCommitmentPushModel, syntaxes)],
        calling_aet,
        timeouts,
        [(evt.EVT_CONN_OPEN, prepare), (evt.EVT_N_EVENT_REPORT, take)],
    )
    if isinstance(association, Outcome):
        return association
    information = _information(transaction_uid, references)

    def act() -> Dataset:
        return association.send_n_action(
            information, REQUEST, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )[0]

    answer = ask(peer, timeouts, act)
    if isinstance(answer, Outcome):
        drop(association)
        return answer
    outcome = _judge(peer, int(answer.Status))
    until = time.monotonic() + grace
    while outcome.delivered and association.is_established and still_wanted():
        if time.monotonic() >= until:
            break
        time.sleep(_LOOK_SECONDS)
    association.acse_timeout = _RELEASE_SECONDS
    with serving:  # a report that is being taken is answered first
        leave(association)
    return outcome


def take_report(event: Event, on_report: Callable[[Report], bool]) -> int:
    """Hand the report of an N-EVENT-REPORT over; the DIMSE status to answer it with.

    ``on_report`` records it and says whether its transaction is known. If it fails, the
    peer is told so and sends the report again, or is asked again.
    """
    caller = event.assoc.remote["ae_title"]
    try:
        report = read_report(event)
    except Malformed as error:
        log.warning("a commitment report of %s is not understood: %s", caller, error)
        return error.status
    try:
        known = on_report(report)
    except Exception as error:  # noqa: BLE001 - a defect must not look like success
        kind = type(error).__name__
        log.error("report on %s not recorded: %s", report.transaction_uid, kind)  # noqa: TRY400
        return PROCESSING_FAILURE
    if not known:
        uid = report.transaction_uid
        log.warning("%s reports on the unknown or old transaction %s", caller, uid)
        return INVALID_ARGUMENT
    return SUCCESS


def read_report(event: Event) -> Report:
    """Read the Event Information of an N-EVENT-REPORT (PS3.4 table J.3-2).

    An object that is listed as committed and as failed has failed.

    Raises
    ------
    Malformed
        If it is no report on a storage commitment, or cannot be read.
    """
    if event.event_type not in EVENTS:
        msg = f"event type {event.event_type}"
        raise Malformed(msg, NO_SUCH_EVENT_TYPE)
    try:
        information = event.event_information
        transaction_uid = _uid(information.get("TransactionUID"))
        succeeded = {
            _uid(item.get("ReferencedSOPInstanceUID"))
            for item in information.get("ReferencedSOPSequence") or ()
        }
        failed = {
            _uid(item.get("ReferencedSOPInstanceUID")): _failure(item.get("FailureReason"))
            for item in information.get("FailedSOPSequence") or ()
        }
    except Malformed:
        raise
    except Exception as error:
        # Whatever a damaged data set makes the parser raise. Its text may quote elements.
        msg = f"unreadable ({type(error).__name__})"
        raise Malformed(msg) from error
    return Report(
        transaction_uid=transaction_uid, succeeded=frozenset(succeeded - set(failed)), failed=failed
    )


def _information(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Action Information, PS3.4 table J.3-1."""
    items = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class_uid
        item.ReferencedSOPInstanceUID = reference.sop_instance_uid
        items.append(item)
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = items
    return information


def _judge(peer: Peer, status: int) -> Outcome:
    """Read an N-ACTION status (PS3.7 10.1.4.1.10); warnings are successes."""
    if status in {SUCCESS, 0x0001, 0x0107, 0x0116} or status >> 12 == 0xB:
        text = f"{peer} took the request for storage commitment"
        return Outcome(delivered=True, retry=False, status=status, text=text)
    meaning = meaning_of(status)
    text = f"{peer} refused to be asked for storage commitment with 0x{status:04X}"
    text += f" ({meaning})" if meaning else ""
    return Outcome(delivered=False, retry=status not in _NOT_OFFERED, status=status, text=text)


def _uid(value: object) -> str:
    text = str(value or "").strip("\0 ")
    if _UID.fullmatch(text) is None:
        msg = "a UID is missing or invalid"
        raise Malformed(msg)
    return text


def _failure(value: object) -> Failure:
    reason = value if isinstance(value, int) else PROCESSING_FAILURE
    return Failure(reason, _REASONS.get(reason, "no reason that the standard names"))


def _serve_in_order(association: Association, serving: threading.Lock) -> None:
    """Keep a report of the peer and a request of ours apart on one association.

    pynetdicom serves an N-EVENT-REPORT in a thread of its own, which ends by noting that
    the reactor runs, also where it was stopped for a request; who then waits for it to
    stop waits for ever. And nothing keeps a release from overtaking the answer.
    """
    serve = association._serve_request  # noqa: SLF001 - there is no other way in
    running = association._reactor_checkpoint  # noqa: SLF001 - likewise

    def in_order(message: DimseServiceType, context_id: int) -> None:
        with serving:
            serve(message, context_id)
            if not running.is_set():
                association._is_paused = True  # noqa: SLF001 - likewise

    association._serve_request = in_order  # type: ignore[method-assign,assignment] # noqa: SLF001 - likewise
