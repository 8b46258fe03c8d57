"""One association as the one who asks: made, judged, and ended in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from hipscore.addresses import Peer
from hipscore.domain import Outcome

# pynetdicom has no per-call switch for this: it would format every PDU for its own log, which
# costs more than the transfer.
_config.LOG_HANDLER_LEVEL = "none"

#: failures that say nothing about the object: processing failure, resource limitation
_PASSING = frozenset({0x0110, 0x0213})
#: refused: SOP class not supported
_CLASS_NOT_SUPPORTED = 0x0122
#: PS3.7 annex C, and the warnings of PS3.4 table B.2-1
_MEANINGS = {
    0x0106: "invalid attribute value",
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0112: "no such SOP instance",
    0x0117: "invalid object instance",
    0x0118: "no such SOP class",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0x0210: "duplicate invocation",
    0x0211: "unrecognised operation",
    0x0212: "mistyped argument",
    0x0213: "resource limitation",
    0xB000: "coercion of data elements",
    0xB006: "elements discarded",
    0xB007: "data set does not match SOP class",
}
#: PS3.4 table B.2-1, by the first two and by the first digit
_STORE_RANGES = {0xA7: "out of resources", 0xA9: "data set does not match SOP class"}
_STORE_CLASSES = {0xC: "cannot understand"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds to wait for the connection, the association, and each DIMSE response."""

    connection: float = 10.0
    acse: float = 30.0
    dimse: float = 60.0


DEFAULT_TIMEOUTS = Timeouts()


def associate(
    peer: Peer,
    contexts: list[PresentationContext],
    calling_aet: str,
    timeouts: Timeouts,
    handlers: list[evt.EventHandlerType] | None = None,
    *,
    roles: list[SCP_SCU_RoleSelectionNegotiation] | None = None,
) -> Association | Outcome:
    """An association on which at least one of the contexts is accepted, or why there is none.

    ``roles``: SOP classes of which we are the provider on it (PS3.7 D.3.3.4).
    """
    entity = AE(ae_title=calling_aet)
    entity.connection_timeout = timeouts.connection
    entity.acse_timeout = timeouts.acse
    entity.dimse_timeout = timeouts.dimse
    entity.network_timeout = timeouts.dimse
    try:
        association = entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            max_pdu=0,
            ext_neg=list(roles or []),
            evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay), *(handlers or [])],
        )
    except OSError as error:  # the name of the host cannot be resolved
        return _unreachable(f"{peer} cannot be reached: {error.strerror or error}")
    if association.is_established:
        leave_answers(association)
        return association
    if association.rejected_contexts:
        # None was accepted (else it would be established): asking again changes nothing.
        names = {UID(str(each.abstract_syntax)).name for each in association.rejected_contexts}
        text = f"{peer} does not accept {', '.join(sorted(names))}"
        return Outcome(delivered=False, retry=False, status=None, text=text, unsupported=True)
    if association.is_rejected:
        answer = association.acceptor.primitive
        reason = answer.reason_str if answer is not None else "no reason given"
        text = f"{peer} rejected the association: {reason}"
    elif association.is_aborted:
        text = f"{peer} cannot be reached or aborted the association"
    else:
        text = f"{peer} cannot be reached"
    return _unreachable(text)


def leave_answers(association: Association) -> None:
    """Keep the thread that serves a peer's requests from taking the answers to ours.

    pynetdicom halts that thread while it waits for an answer. A thread that has just been let go
    counts as halted until it runs again, which on a busy machine may be after the next request
    was sent: then it takes the answer, has no use for it, and the association is aborted.
    """
    dimse = association.dimse
    take = dimse.get_msg

    def get_msg(block: bool = False) -> Any:  # noqa: FBT001, FBT002 - pynetdicom's signature
        if not block:  # the thread that serves requests; who waits for an answer blocks
            with dimse.msg_queue.mutex:
                waiting = dimse.msg_queue.queue
                message = waiting[0][1] if waiting else None
            if getattr(message, "MessageIDBeingRespondedTo", None) is not None:
                return None, None
        return take(block)

    dimse.get_msg = get_msg  # type: ignore[method-assign] # has no setting for it


def ask(peer: Peer, timeouts: Timeouts, request: Callable[[], Dataset]) -> Dataset | Outcome:
    """Answer of the peer to one request, with a status that can be read; else what went wrong.

    A peer that is silent until the timeout is unwell, whatever it was asked; one that ends
    the association, or answers without a status, may only choke on this request.
    """
    started = time.monotonic()
    try:
        answer = request()
    except RuntimeError:  # the association ended before the request
        return _ended(peer)
    if isinstance(answer.get("Status"), int):
        return answer
    if time.monotonic() - started < timeouts.dimse:
        return _ended(peer)
    text = f"{peer} did not answer within {timeouts.dimse:g} s"
    return Outcome(
        delivered=False, retry=True, status=None, text=text, unreachable=True, silent=True
    )


def judge(peer: Peer, status: int, comment: str = "") -> Outcome:
    """Read a C-STORE or C-ECHO status (PS3.4 table B.2-1, PS3.7 annex C).

    The peer's comment stays out of the text: it may quote the patient's name.
    """
    delivered = status == 0x0000 or status >> 12 == 0xB
    retry = status >> 8 == 0xA7 or status in _PASSING
    if status == 0x0000:
        verdict = "accepted"
    elif delivered:
        verdict = f"accepted with warning 0x{status:04X}"
    elif retry:
        verdict = f"cannot take it now, 0x{status:04X}"
    else:
        verdict = f"refused with 0x{status:04X}"
    meaning = meaning_of(status)
    text = f"{peer} {verdict}" + (f" ({meaning})" if meaning else "")
    return Outcome(
        delivered=delivered,
        retry=retry,
        status=status,
        text=text,
        unsupported=status == _CLASS_NOT_SUPPORTED,
        comment=comment,
    )


def meaning_of(status: int) -> str:
    """What the standard calls the status; empty for success and for what it does not name."""
    return (
        _MEANINGS.get(status)
        or _STORE_RANGES.get(status >> 8)
        or _STORE_CLASSES.get(status >> 12, "")
    )


def leave(association: Association) -> None:
    """Release the association if it still is one."""
    if association.is_established:
        association.release()


def drop(association: Association) -> None:
    """Abort the association, and close its connection even if the thread that reads it died.

    pynetdicom's does, on a message whose command set cannot be decoded.
    """
    association.abort()
    if association.dul.socket is not None:
        association.dul.socket.close()


def _ended(peer: Peer) -> Outcome:
    text = f"{peer} ended the association or gave no answer that can be read"
    return Outcome(delivered=False, retry=True, status=None, text=text)


def _unreachable(text: str) -> Outcome:
    return Outcome(delivered=False, retry=True, status=None, text=text, unreachable=True)


def _without_delay(event: Event) -> None:
    """Send each PDU at once; waiting for an acknowledgement costs 40 ms per object."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
