"""The command sets of C-STORE: the request read, the response written (PS3.7 6.3, 9.3.1).

A command set is always Implicit VR Little Endian and starts with its own length, so it
takes a few lines; what is not exactly a C-STORE request is left to pynetdicom.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
NO_DATA_SET = 0x0101

_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_RESPONDED_TO = 0x0120
_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE = 0x1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """What a C-STORE-RQ says of the data set that follows (PS3.7 table 9.3-1)."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


def read_store_request(encoded: bytes) -> StoreRequest | None:
    """Read a whole encoded command set; None unless it is a C-STORE-RQ with a data set."""
    elements: dict[int, bytes] = {}
    place = 0
    while place < len(encoded):
        if place + 8 > len(encoded):
            return None
        group, element, length = struct.unpack_from("<HHL", encoded, place)
        place += 8
        if group != 0 or place + length > len(encoded):
            return None
        elements[element] = encoded[place : place + length]
        place += length
    if (
        _number(elements.get(_COMMAND_FIELD)) != C_STORE_RQ
        or _number(elements.get(_DATA_SET_TYPE)) in {None, NO_DATA_SET}
        or elements.get(_GROUP_LENGTH) != struct.pack("<L", len(encoded) - 12)
    ):
        return None
    message_id = _number(elements.get(_MESSAGE_ID))
    sop_class = _uid(elements.get(_AFFECTED_SOP_CLASS))
    sop_instance = _uid(elements.get(_AFFECTED_SOP_INSTANCE))
    if message_id is None or not sop_class or not sop_instance:
        return None
    return StoreRequest(
        message_id=message_id, sop_class_uid=sop_class, sop_instance_uid=sop_instance
    )


def store_response(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """The encoded C-STORE-RSP to a request (PS3.7 table 9.3-2)."""
    elements = [
        _element(_AFFECTED_SOP_CLASS, _padded(request.sop_class_uid, b"\0")),
        _element(_COMMAND_FIELD, struct.pack("<H", C_STORE_RSP)),
        _element(_RESPONDED_TO, struct.pack("<H", request.message_id)),
        _element(_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        _element(_STATUS, struct.pack("<H", status)),
        *([_element(_ERROR_COMMENT, _padded(_plain(comment[:64]), b" "))] if comment else []),
        _element(_AFFECTED_SOP_INSTANCE, _padded(request.sop_instance_uid, b"\0")),
    ]
    body = b"".join(elements)
    return _element(_GROUP_LENGTH, struct.pack("<L", len(body))) + body


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, element, len(value)) + value


def _plain(comment: str) -> str:
    """Text of VR LO (PS3.5 6.2): no control character, and no backslash, which separates values."""
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in comment)


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)


def _number(value: bytes | None) -> int | None:
    if value is None or len(value) != 2:
        return None
    number: int = struct.unpack("<H", value)[0]
    return number


def _uid(value: bytes | None) -> str | None:
    if value is None or len(value) > 64 or not value.isascii():
        return None
    return value.decode("ascii").rstrip("\0 ")
