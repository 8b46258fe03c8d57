"""The DICOM upper layer written by hand, so that anything at all can be sent (PS3.8 9.3).

Only what a Storage SCU needs, over a plain socket: no library stands between a mutant and
the wire.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom.uid import (
    EnhancedMRImageStorage,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from tests.fuzz.sources import SYNTAXES
from tests.processes import LOOPBACK

SOP_CLASSES = (
    str(MRImageStorage),
    str(EnhancedMRImageStorage),
    str(LegacyConvertedEnhancedMRImageStorage),
)
VERIFICATION = "1.2.840.10008.1.1"
#: every object must be answered within this time, s
ANSWER_SECONDS = 10.0
#: bytes of a data set in one PDU
_FRAGMENT = 64 * 1024
_APPLICATION = b"1.2.840.10008.3.1.1.1"


class NoAnswer(Exception):
    """Nothing came within the time: a hang."""


class Ended(Exception):
    """The peer aborted the association or closed the connection."""


def pdu(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    """One PDU; its length field may lie."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def item(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    """One item of a PDU (PS3.8 9.3.2); its length field may lie."""
    size = (len(body) if length is None else length) & 0xFFFF
    return struct.pack(">BBH", kind, 0, size) + body


def context(number: int, abstract: str, syntaxes: Sequence[str]) -> bytes:
    """A presentation context item."""
    inner = item(0x30, abstract.encode())
    inner += b"".join(item(0x40, str(syntax).encode()) for syntax in syntaxes)
    return item(0x20, bytes((number & 255, 0, 0, 0)) + inner)


def every_context() -> list[tuple[int, str, str]]:
    """Number, SOP class and transfer syntax of what the fuzzer proposes."""
    pairs = [(one, str(syntax)) for one in SOP_CLASSES for syntax in SYNTAXES]
    pairs.append((VERIFICATION, str(ImplicitVRLittleEndian)))
    return [(2 * n + 1, one, syntax) for n, (one, syntax) in enumerate(pairs)]


def associate_rq(
    contexts: bytes | None = None,
    *,
    called: bytes = b"HIPSCORE",
    calling: bytes = b"FUZZ",
    user: bytes | None = None,
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    if contexts is None:
        contexts = b"".join(context(n, one, [syntax]) for n, one, syntax in every_context())
    if user is None:
        inner = item(0x51, struct.pack(">L", 256 * 1024)) + item(0x52, b"1.2.3")
        user = item(0x50, inner + item(0x55, b"FUZZ"))
    head = struct.pack(">HH16s16s32s", 1, 0, called.ljust(16), calling.ljust(16), bytes(32))
    return pdu(0x01, head + item(0x10, _APPLICATION) + contexts + user)


def command(fields: Sequence[tuple[int, bytes]]) -> bytes:
    """A command set (PS3.7 6.3.1), Implicit VR Little Endian; values as they are."""
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value for element, value in fields
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def store_rq(message: int, sop_class: str, sop_instance: str) -> bytes:
    """The command set of a C-STORE request (PS3.7 9.3.1.1)."""
    one, instance = sop_class.encode(), sop_instance.encode("latin-1", "replace")
    return command(
        [
            (0x0002, one + b"\0" * (len(one) % 2)),
            (0x0100, b"\x01\x00"),
            (0x0110, struct.pack("<H", message & 0xFFFF)),
            (0x0700, b"\0\0"),
            (0x0800, b"\0\0"),
            (0x1000, instance + b"\0" * (len(instance) % 2)),
        ]
    )


def echo_rq(message: int = 1) -> bytes:
    """The command set of a C-ECHO request (PS3.7 9.3.5.1)."""
    return command(
        [
            (0x0002, b"1.2.840.10008.1.1\0"),
            (0x0100, b"\x30\x00"),
            (0x0110, struct.pack("<H", message)),
            (0x0800, b"\x01\x01"),
        ]
    )


def data_pdus(number: int, data: bytes, *, of_command: bool) -> Iterator[bytes]:
    """P-DATA-TF PDUs with one fragment each (PS3.8 annex E)."""
    for at in range(0, len(data) or 1, _FRAGMENT):
        part = data[at : at + _FRAGMENT]
        control = int(of_command) | (2 if at + _FRAGMENT >= len(data) else 0)
        yield pdu(0x04, struct.pack(">LBB", len(part) + 2, number, control) + part)


@dataclass(slots=True)
class Scu:
    """A connection with an established association."""

    connection: socket.socket
    accepted: dict[tuple[str, str], int] = field(default_factory=dict)
    message: int = 0

    def store(self, sop_class: str, syntax: str, sop_instance: str, data_set: bytes) -> int:
        """Send one object; the status of its answer (PS3.7 9.1.1.1).

        Raises
        ------
        NoAnswer
            If there is none in time.
        Ended
            If the peer ends the association instead.
        """
        self.message = self.message % 65535 + 1
        # an object of a class nobody offers comes in the context of another one
        number = self.accepted.get((sop_class, syntax)) or self.accepted[SOP_CLASSES[0], syntax]
        request = store_rq(self.message, sop_class, sop_instance)
        whole = [*data_pdus(number, request, of_command=True)]
        whole += data_pdus(number, data_set, of_command=False)
        self.send(b"".join(whole))
        return self._status()

    def echo(self) -> int:
        """Ask for a C-ECHO; its status."""
        number = self.accepted[VERIFICATION, str(ImplicitVRLittleEndian)]
        self.send(b"".join(data_pdus(number, echo_rq(), of_command=True)))
        return self._status()

    def release(self) -> None:
        """End the association in an orderly way."""
        self.send(pdu(0x05, bytes(4)))
        kind, _ = self.receive()
        if kind != 0x06:
            msg = f"PDU 0x{kind:02x} where A-RELEASE-RP is due"
            raise Ended(msg)

    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""
        try:
            self.connection.sendall(data)
        except TimeoutError as error:
            msg = "the peer reads nothing"
            raise NoAnswer(msg) from error
        except OSError as error:
            raise Ended(str(error)) from error

    def receive(self) -> tuple[int, bytes]:
        """The next PDU: its type and its content."""
        head = self._exactly(6)
        kind, _, length = struct.unpack(">BBL", head)
        if kind == 0x07:
            msg = "A-ABORT"
            raise Ended(msg)
        return kind, self._exactly(length)

    def _status(self) -> int:
        answer = b""
        while True:
            kind, body = self.receive()
            if kind != 0x04:
                msg = f"PDU 0x{kind:02x} where an answer is due"
                raise Ended(msg)
            answer += body[6:]
            if body[5] & 2:
                break
        at = 0
        while at + 8 <= len(answer):
            _, element, length = struct.unpack("<HHL", answer[at : at + 8])
            if element == 0x0900:
                return int.from_bytes(answer[at + 8 : at + 10], "little")
            at += 8 + length
        msg = "an answer without status"
        raise Ended(msg)

    def _exactly(self, size: int) -> bytes:
        data = b""
        end = time.monotonic() + ANSWER_SECONDS
        while len(data) < size:
            self.connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                part = self.connection.recv(size - len(data))
            except TimeoutError as error:
                msg = f"no answer within {ANSWER_SECONDS:g} s"
                raise NoAnswer(msg) from error
            except OSError as error:
                raise Ended(str(error)) from error
            if not part:
                msg = "the connection was closed"
                raise Ended(msg)
            data += part
        return data


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A TCP connection."""
    with socket.create_connection((LOOPBACK, port), timeout=ANSWER_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


@contextmanager
def associated(port: int) -> Iterator[Scu]:
    """An association with every context; released at the end unless it broke."""
    with connected(port) as connection:
        scu = Scu(connection)
        scu.send(associate_rq())
        kind, body = scu.receive()
        if kind != 0x02:
            msg = f"association refused, PDU 0x{kind:02x}"
            raise Ended(msg)
        proposed = {number: (one, syntax) for number, one, syntax in every_context()}
        at = 68
        while at + 4 <= len(body):
            of, _, length = struct.unpack(">BBH", body[at : at + 4])
            if of == 0x21 and body[at + 6] == 0:
                scu.accepted[proposed[body[at + 4]]] = body[at + 4]
            at += 4 + length
        yield scu
        scu.release()
