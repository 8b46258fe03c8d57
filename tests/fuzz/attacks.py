"""What can be sent to a port that is no object: broken PDUs, broken orders, slow drips."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType

from pydicom.uid import ImplicitVRLittleEndian, MRImageStorage

from tests.fuzz.wire import (
    Ended,
    NoAnswer,
    Scu,
    associate_rq,
    command,
    connected,
    context,
    data_pdus,
    echo_rq,
    every_context,
    item,
    pdu,
    store_rq,
)

#: called with the port; what happens to the connection is the listener's business
Attack = Callable[[int, Random], None]
_MR, _IMPLICIT = str(MRImageStorage), str(ImplicitVRLittleEndian)


def _throw(port: int, data: bytes, *, linger: float = 0.05) -> None:
    """Send these bytes to a new connection and leave."""
    with connected(port) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.settimeout(linger)
        connection.recv(4096)


def _throw_established(port: int, data: bytes, *, linger: float = 0.05) -> None:
    """The same after an association was accepted."""
    with connected(port) as connection, contextlib.suppress(OSError, Ended, NoAnswer):
        scu = Scu(connection)
        scu.send(associate_rq())
        scu.receive()
        connection.sendall(data)
        connection.settimeout(linger)
        connection.recv(4096)


def garbage_first(port: int, rng: Random) -> None:
    """Noise, HTTP, TLS in front of an A-ASSOCIATE-RQ."""
    noise = rng.choice(
        (
            rng.randbytes(rng.randint(1, 300)),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            b"\0" * rng.randint(1, 2000),
        )
    )
    _throw(port, noise + associate_rq())


def wrong_types(port: int, rng: Random) -> None:
    """PDUs of any type, known or not, in any state."""
    body = rng.randbytes(rng.choice((0, 4, 68, 500)))
    kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0x99, 0xFF))
    send = rng.choice((_throw, _throw_established))
    send(port, pdu(kind, body) * rng.randint(1, 3))


def lying_lengths(port: int, rng: Random) -> None:
    """PDU and item lengths up to 4 GB."""
    length = rng.choice((0, 1, 3, 5, 67, 68, 2**16, 2**24, 2**31, 2**32 - 1))
    kind = rng.choice((1, 4, 5, 7))
    send = rng.choice((_throw, _throw_established))
    send(port, pdu(kind, rng.randbytes(rng.randrange(400)), length=length))


def flipped_request(port: int, rng: Random) -> None:
    """An A-ASSOCIATE-RQ with changed bytes."""
    data = bytearray(associate_rq())
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(6, len(data) if rng.random() < 0.5 else 120)] = rng.randrange(256)
    _throw(port, bytes(data))


def odd_items(port: int, rng: Random) -> None:
    """User information, roles, extended negotiation and identities nobody asked for."""
    kinds = (0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x99)
    inner = b"".join(
        item(rng.choice(kinds), rng.randbytes(rng.randrange(60))) for _ in range(rng.randint(1, 40))
    )
    user = item(0x50, inner, length=rng.choice((None, 0, 3, 0xFFFF)))
    _throw(port, associate_rq(user=user))


def many_contexts(port: int, rng: Random) -> None:
    """Thousands of presentation contexts, with the same numbers, or even ones."""
    many = rng.choice((129, 1000, 5000))
    contexts = b"".join(
        context(rng.randrange(256), rng.choice((_MR, "1.2.3", "x" * 100, "")), [_IMPLICIT] * 2)
        for _ in range(many)
    )
    _throw(port, associate_rq(contexts))


def odd_titles(port: int, rng: Random) -> None:
    """AE titles with controls, markup, nothing."""
    titles = (
        b"",
        b" " * 16,
        b"\0" * 16,
        b"A\r\nINFO forged",
        b"\xff" * 16,
        b"<b>\x1b[31m",
        b"a\\b",
    )
    _throw(port, associate_rq(called=rng.choice(titles), calling=rng.choice(titles)))


def endless_fragments(port: int, rng: Random) -> None:
    """Fragments that are never the last, of a command or a data set; then gone."""
    part = bytes(rng.choice((0, 1, 1000, 60_000)))
    of_command = rng.choice((0, 1))
    one = pdu(0x04, struct.pack(">LBB", len(part) + 2, 1, of_command) + part)
    head = b"" if of_command else b"".join(data_pdus(1, store_rq(1, _MR, "1.2"), of_command=True))
    _throw_established(port, head + one * rng.choice((3, 60)))


def odd_fragments(port: int, rng: Random) -> None:
    """Presentation data values with lengths, contexts and flags that do not fit."""
    part = store_rq(1, _MR, "1.2")
    length = rng.choice((0, 1, 2, len(part), len(part) + 1000, 2**31, 2**32 - 1))
    body = struct.pack(">LBB", length, rng.choice((1, 2, 3, 255)), rng.randrange(256)) + part
    _throw_established(port, pdu(0x04, body) * rng.randint(1, 3))


def odd_commands(port: int, rng: Random) -> None:
    """Command sets without fields, with fields of other lengths, of other services."""
    fields = [
        (0x0002, rng.choice((b"", _MR.encode() + b"\0", b"1.2.3", b"\xff" * 70))),
        (0x0100, struct.pack("<H", rng.choice((1, 0x20, 0x30, 0x8001, 0x100, 0xFFF, 0, 0x140)))),
        (0x0110, rng.choice((b"", b"\x01\x00", b"\xff" * 4))),
        (0x0700, rng.choice((b"\0\0", b"\xff\xff", b""))),
        (0x0800, rng.choice((b"\0\0", b"\x01\x01", b""))),
        (0x1000, rng.choice((b"", b"1.2", b"../../x\0", b"1" * 65, b"\r\nforged\x1b"))),
    ]
    rng.shuffle(fields)
    data = bytearray(command(fields[: rng.randint(0, 6)]))
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] ^= 0xFF
    pdus = [*data_pdus(1, bytes(data), of_command=True)]
    pdus += data_pdus(1, rng.randbytes(50), of_command=False)
    _throw_established(port, b"".join(pdus))


def data_before_command(port: int, rng: Random) -> None:
    """A data set without a command, two commands at once, data in the middle of a command."""
    request = store_rq(1, _MR, "1.2")
    pieces = [
        *data_pdus(1, rng.randbytes(100), of_command=False),
        *data_pdus(1, request, of_command=True),
        *data_pdus(85, echo_rq(), of_command=True),
        pdu(0x05, bytes(4)),
    ]
    rng.shuffle(pieces)
    _throw_established(port, b"".join(pieces))


def abort_anywhere(port: int, rng: Random) -> None:
    """A conversation cut at any byte, with or without an A-ABORT."""
    whole = associate_rq()
    whole += b"".join(data_pdus(1, store_rq(1, _MR, "1.2"), of_command=True))
    whole += b"".join(data_pdus(1, rng.randbytes(2000), of_command=False))
    end = pdu(0x07, bytes((0, 0, 0, rng.randrange(8)))) if rng.random() < 0.5 else b""
    _throw(port, whole[: rng.randrange(len(whole))] + end, linger=0.01)


def slow_drip(port: int, rng: Random) -> None:
    """One byte at a time, for a second."""
    data = associate_rq()
    with connected(port) as connection, contextlib.suppress(OSError):
        for byte in data[: rng.randint(5, 20)]:
            connection.sendall(bytes((byte,)))
            time.sleep(0.05)


def deaf_sender(port: int, rng: Random) -> None:
    """Hundreds of requests whose answers nobody reads; then gone."""
    number = next(n for n, one, _ in every_context() if one == "1.2.840.10008.1.1")
    echo = b"".join(data_pdus(number, echo_rq(), of_command=True))
    _throw_established(port, echo * rng.choice((10, 300)), linger=0.01)


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "PDU: garbage first": garbage_first,
        "PDU: wrong types": wrong_types,
        "PDU: lengths that lie": lying_lengths,
        "PDU: bytes of the request": flipped_request,
        "PDU: odd items": odd_items,
        "PDU: many contexts": many_contexts,
        "PDU: odd AE titles": odd_titles,
        "PDU: endless fragments": endless_fragments,
        "PDU: odd fragments": odd_fragments,
        "PDU: odd commands": odd_commands,
        "PDU: out of order": data_before_command,
        "PDU: cut at any byte": abort_anywhere,
        "PDU: slow drip": slow_drip,
        "PDU: answers not read": deaf_sender,
    }
)
