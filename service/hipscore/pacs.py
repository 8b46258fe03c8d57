"""Sending to DICOM peers: stored bytes leave as they are, the answer comes back as an Outcome.

The encoded data set is cut out of the Part 10 file behind its File Meta Information
(PS3.10 7.1) and put on the wire unread, so what a PACS keeps is what the spool keeps. Only
a peer that takes nothing but Implicit VR Little Endian, the transfer syntax every
application entity supports (PS3.5 10.1), gets the same data set in that encoding.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from hipscore.domain import Outcome
from hipscore.settings import Peer

# pynetdicom has no per-call switch for these two. With the first, send_c_store(path) puts the
# encoded data set of a file on the wire without decoding it; the second keeps it from
# formatting every PDU for its own log, which costs more than the transfer.
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_HANDLER_LEVEL = "none"

#: failures that say nothing about the object: processing failure, resource limitation
_PASSING = frozenset({0x0110, 0x0213})
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

#: contexts one association can propose: odd numbers 1 to 255 (PS3.8 9.3.2.2)
MAX_CONTEXTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds to wait for the connection, the association, and each DIMSE response."""

    connection: float = 10.0
    acse: float = 30.0
    dimse: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What negotiation needs to know about one Part 10 file."""

    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    class_name: str
    syntax_name: str
    convertible: bool


DEFAULT_TIMEOUTS = Timeouts()


def send(
    peer: Peer,
    data: Sequence[bytes],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Send these Part 10 objects by C-STORE over one association, bytes unchanged.

    Returns
    -------
    Outcome
        Delivered when the peer answered every object with success (0x0000) or a warning
        (0xBxxx, PS3.4 B.2.3). Otherwise the outcome of the first object that failed:
        retry for no connection, rejected association, no answer, out of resources
        (0xA7xx), processing failure (0x0110) and resource limitation (0x0213); no retry
        for a context the peer does not accept and any other status.

    Raises
    ------
    ValueError
        If ``data`` is empty or holds something that is not a DICOM file.
    """
    if not data:
        msg = "nothing to send"
        raise ValueError(msg)
    with _written(data) as paths:
        sending = send_files(peer, paths, calling_aet=calling_aet, timeouts=timeouts)
        with contextlib.closing(sending):
            for _, outcome in sending:
                if not outcome.delivered:
                    break
    return outcome


def send_one_of(
    peer: Peer,
    forms: Sequence[bytes],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> tuple[Outcome, int]:
    """Send one object in the first of these forms whose presentation context is accepted.

    Returns
    -------
    tuple of Outcome and int
        As :func:`send`, and the index of the form that was sent; 0 where none was.

    Raises
    ------
    ValueError
        If ``forms`` is empty or holds something that is not a DICOM file.
    """
    if not forms:
        msg = "nothing to send"
        raise ValueError(msg)
    with _written(forms) as paths:
        headers = [_header(path) for path in paths]
        association = _associate(peer, _contexts(headers), calling_aet, timeouts)
        if isinstance(association, Outcome):
            return association, 0
        accepted = _accepted(association)
        chosen = next((n for n, each in enumerate(headers) if _syntax(each, accepted)), 0)
        outcome = _store(association, peer, headers[chosen], 1)
        if outcome.status is None and outcome.retry:
            association.abort()
        elif association.is_established:
            association.release()
    return outcome, chosen


def send_files(
    peer: Peer,
    paths: Iterable[Path],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Generator[tuple[Path, Outcome]]:
    """Send files over one association and yield the outcome of each as it is known.

    When the association cannot be made or breaks, the remaining files are yielded with a
    retry outcome, so that every path is accounted for.

    Raises
    ------
    ValueError
        If a file is not a DICOM file with complete File Meta Information, or if the files
        need more presentation contexts than one association can hold.
    """
    headers = [_header(path) for path in paths]
    if not headers:
        return
    association = _associate(peer, _contexts(headers), calling_aet, timeouts)
    if isinstance(association, Outcome):
        for header in headers:
            yield header.path, association
        return
    broken: Outcome | None = None
    try:
        for number, header in enumerate(headers):
            outcome = broken or _store(association, peer, header, number % 65535 + 1)
            if outcome.status is None and outcome.retry:
                # pynetdicom notices a broken association only a moment later; another
                # request on it would wait for an answer until the timeout.
                broken = outcome
            yield header.path, outcome
    finally:
        if broken is not None:
            association.abort()
        elif association.is_established:
            association.release()


def echo(peer: Peer, *, calling_aet: str, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Outcome:
    """Ask the peer for a C-ECHO (PS3.4 annex A)."""
    association = _associate(peer, [build_context(Verification)], calling_aet, timeouts)
    if isinstance(association, Outcome):
        return association
    try:
        status = association.send_c_echo().get("Status")
    finally:
        if association.is_established:
            association.release()
    return _broken(peer) if status is None else _judge(peer, int(status))


@contextlib.contextmanager
def _written(data: Sequence[bytes]) -> Iterator[list[Path]]:
    """Files with these contents, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="hipscore-send-") as folder:
        paths = []
        for number, content in enumerate(data):
            path = Path(folder) / f"{number}.dcm"
            path.write_bytes(content)
            paths.append(path)
        yield paths


def _header(path: Path) -> _Header:
    try:
        meta, _ = split_dataset(path)
        sop_class = meta.MediaStorageSOPClassUID
        syntax = meta.TransferSyntaxUID
        return _Header(
            path=path,
            sop_class=str(sop_class),
            sop_instance=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax=str(syntax),
            class_name=sop_class.name,
            syntax_name=syntax.name,
            convertible=not syntax.is_private
            and not syntax.is_compressed
            and syntax.is_little_endian,
        )
    except (InvalidDicomError, AttributeError, ValueError, EOFError, OSError) as error:
        msg = f"{path} is not a DICOM file with File Meta Information: {error}"
        raise ValueError(msg) from error


def _contexts(headers: Iterable[_Header]) -> list[PresentationContext]:
    """One context per SOP class and transfer syntax, plus the default syntax where we can."""
    wanted: dict[tuple[str, str], None] = {}
    for header in headers:
        wanted[header.sop_class, header.transfer_syntax] = None
    for header in headers:
        if header.convertible:
            wanted.setdefault((header.sop_class, str(ImplicitVRLittleEndian)), None)
    if len(wanted) > MAX_CONTEXTS:
        msg = (
            f"these files need {len(wanted)} presentation contexts, one association holds "
            f"{MAX_CONTEXTS}; send fewer kinds of objects at once"
        )
        raise ValueError(msg)
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]


def _associate(
    peer: Peer, contexts: list[PresentationContext], calling_aet: str, timeouts: Timeouts
) -> Association | Outcome:
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
            evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
        )
    except OSError as error:  # the name of the host cannot be resolved
        return _unreachable(f"{peer} cannot be reached: {error.strerror or error}")
    if association.is_established:
        return association
    if association.rejected_contexts:
        # None was accepted (else it would be established): asking again changes nothing.
        names = {UID(str(each.abstract_syntax)).name for each in association.rejected_contexts}
        text = f"{peer} does not accept {', '.join(sorted(names))}"
        return Outcome(delivered=False, retry=False, status=None, text=text)
    if association.is_rejected:
        answer = association.acceptor.primitive
        reason = answer.reason_str if answer is not None else "no reason given"
        text = f"{peer} rejected the association: {reason}"
    elif association.is_aborted:
        text = f"{peer} cannot be reached or aborted the association"
    else:
        text = f"{peer} cannot be reached"
    return _unreachable(text)


def _unreachable(text: str) -> Outcome:
    return Outcome(delivered=False, retry=True, status=None, text=text, unreachable=True)


def _without_delay(event: Event) -> None:
    """Send each PDU at once; waiting for an acknowledgement costs 40 ms per object."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _accepted(association: Association) -> set[tuple[str, str]]:
    """SOP class and transfer syntax of every accepted presentation context."""
    return {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }


def _syntax(header: _Header, accepted: set[tuple[str, str]]) -> str | None:
    """The transfer syntax in which the object can be sent, or None."""
    if (header.sop_class, header.transfer_syntax) in accepted:
        return header.transfer_syntax
    default = str(ImplicitVRLittleEndian)
    return default if header.convertible and (header.sop_class, default) in accepted else None


def _store(association: Association, peer: Peer, header: _Header, message_id: int) -> Outcome:
    syntax = _syntax(header, _accepted(association))
    if syntax is None:
        text = f"{peer} does not accept {header.class_name} in {header.syntax_name}"
        return Outcome(delivered=False, retry=False, status=None, text=text)
    as_stored = syntax == header.transfer_syntax
    try:
        answer = association.send_c_store(
            header.path if as_stored else dcmread(header.path), msg_id=message_id
        )
    except RuntimeError:  # the association ended between two objects
        return _broken(peer)
    status = answer.get("Status")
    if status is None:
        return _broken(peer)
    return _judge(peer, int(status), str(answer.get("ErrorComment", "")))


def _broken(peer: Peer) -> Outcome:
    return Outcome(
        delivered=False,
        retry=True,
        status=None,
        text=f"{peer} ended the association or did not answer in time",
    )


def _judge(peer: Peer, status: int, comment: str = "") -> Outcome:
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
    meaning = _meaning(status)
    text = f"{peer} {verdict}" + (f" ({meaning})" if meaning else "")
    return Outcome(delivered=delivered, retry=retry, status=status, text=text, comment=comment)


def _meaning(status: int) -> str:
    """What the standard calls the status; empty for success and for what it does not name."""
    return (
        _MEANINGS.get(status)
        or _STORE_RANGES.get(status >> 8)
        or _STORE_CLASSES.get(status >> 12, "")
    )
