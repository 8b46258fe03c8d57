"""Encoded data sets taken apart and put together again, true or lying (PS3.5 chapter 7).

A small reader and writer of our own: pydicom refuses to write what a fuzzer has to write.
It takes apart well-formed data sets only and passes everything else on as one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
#: VRs whose length field has 32 bits (PS3.5 7.1.2)
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)


class NotTakenApart(ValueError):
    """These bytes are no plain sequence of elements."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a transfer syntax writes elements."""

    explicit: bool = True
    order: str = "little"

    @classmethod
    def of(cls, syntax: str) -> Coding:
        """The coding of a transfer syntax that is not deflated."""
        uid = UID(syntax)
        return cls(not uid.is_implicit_VR, "little" if uid.is_little_endian else "big")

    def number(self, value: int, size: int) -> bytes:
        """An unsigned integer."""
        return value.to_bytes(size, "big" if self.order == "big" else "little")

    def read(self, data: bytes) -> int:
        """The unsigned integer in these bytes."""
        return int.from_bytes(data, "big" if self.order == "big" else "little")

    def tag(self, value: int) -> bytes:
        """A tag: two numbers of two bytes."""
        return self.number(value >> 16, 2) + self.number(value & 0xFFFF, 2)


Items = list[list["Element"]]


@dataclass(slots=True)
class Element:
    """One element: its value as bytes, or the items of a sequence.

    ``claims`` is the length that is written instead of the true one.
    """

    tag: int
    vr: bytes
    value: bytes = b""
    items: Items | None = None
    undefined: bool = False
    claims: int | None = None

    def encoded(self, coding: Coding) -> bytes:
        """The element as it is written."""
        value = self.value if self.items is None else _encoded_items(self.items, coding)
        end = b""
        length = len(value)
        if self.undefined:
            length = UNDEFINED
            end = coding.tag(SEQUENCE_END) + bytes(4)
        if self.claims is not None:
            length = self.claims
        return self._head(coding, length) + value + end

    def _head(self, coding: Coding, length: int) -> bytes:
        head = coding.tag(self.tag)
        if not coding.explicit or self.tag >> 16 == 0xFFFE:
            return head + coding.number(length & UNDEFINED, 4)
        if self.vr in LONG_VRS:
            return head + self.vr + bytes(2) + coding.number(length & UNDEFINED, 4)
        return head + self.vr + coding.number(length & 0xFFFF, 2)


@dataclass(slots=True)
class Parts:
    """A data set taken apart."""

    coding: Coding
    elements: list[Element] = field(default_factory=list)

    def encoded(self) -> bytes:
        """The data set as it is written."""
        return b"".join(element.encoded(self.coding) for element in self.elements)

    def find(self, tag: int) -> Element | None:
        """The first top-level element with this tag."""
        return next((each for each in self.elements if each.tag == tag), None)

    def put(self, tag: int, vr: bytes, value: bytes) -> Element:
        """Replace or insert an element in its place."""
        found = self.find(tag)
        if found is None:
            found = Element(tag, vr)
            at = next((n for n, each in enumerate(self.elements) if each.tag > tag), None)
            self.elements.insert(len(self.elements) if at is None else at, found)
        found.value, found.items = value + b" " * (len(value) % 2), None
        found.undefined, found.claims = False, None
        return found

    def drop(self, *tags: int) -> None:
        """Leave elements out."""
        self.elements = [each for each in self.elements if each.tag not in tags]

    def everywhere(self) -> list[list[Element]]:
        """Every list of elements, the top level first, then those of items at any depth."""
        return list(_lists(self.elements))


def _lists(elements: list[Element]) -> Iterator[list[Element]]:
    yield elements
    for element in elements:
        for item in element.items or []:
            yield from _lists(item)


def _encoded_items(items: Sequence[Sequence[Element]], coding: Coding) -> bytes:
    out = []
    for item in items:
        inner = b"".join(element.encoded(coding) for element in item)
        out.append(coding.tag(ITEM) + coding.number(len(inner), 4) + inner)
    return b"".join(out)


def take_apart(data: bytes, coding: Coding) -> Parts:
    """Read a well-formed data set.

    Raises
    ------
    NotTakenApart
        If it is not well-formed.
    """
    elements, end = _read_elements(data, 0, len(data), coding, None)
    if end != len(data):
        msg = f"{len(data) - end} bytes are left"
        raise NotTakenApart(msg)
    return Parts(coding, elements)


def _read_elements(
    data: bytes, at: int, end: int, coding: Coding, stop: int | None
) -> tuple[list[Element], int]:
    """Elements up to ``end``, or behind the delimiter ``stop``."""
    elements: list[Element] = []
    while at < end:
        tag, vr, length, at = _read_head(data, at, coding)
        if tag == stop:
            return elements, at
        element = Element(tag, vr)
        if length == UNDEFINED:
            element.undefined = True
            if vr == b"SQ" or (vr == b"UN" and coding.explicit):
                element.vr = b"SQ"
                element.items, at = _read_items(data, at, end, coding, SEQUENCE_END)
            else:
                start = at
                at = _behind_fragments(data, at, coding)
                element.value = data[start : at - 8]
        else:
            if at + length > end:
                msg = f"element {tag:08x} is longer than what holds it"
                raise NotTakenApart(msg)
            element.value = data[at : at + length]
            if vr == b"SQ":
                element.items, _ = _read_items(data, at, at + length, coding, None)
            at += length
        elements.append(element)
    return elements, at


def _read_head(data: bytes, at: int, coding: Coding) -> tuple[int, bytes, int, int]:
    head = data[at : at + 8]
    if len(head) < 8:
        msg = "cut short"
        raise NotTakenApart(msg)
    tag = coding.read(head[:2]) << 16 | coding.read(head[2:4])
    if tag >> 16 == 0xFFFE:
        return tag, b"", coding.read(head[4:]), at + 8
    if not coding.explicit:
        return tag, _known_vr(tag), coding.read(head[4:]), at + 8
    vr = head[4:6]
    if vr in LONG_VRS:
        return tag, vr, coding.read(data[at + 8 : at + 12]), at + 12
    return tag, vr, coding.read(head[6:]), at + 8


def _known_vr(tag: int) -> bytes:
    try:
        return dictionary_VR(tag)[:2].encode()
    except KeyError:
        return b"UN"


def _read_items(
    data: bytes, at: int, end: int, coding: Coding, stop: int | None
) -> tuple[Items, int]:
    items: Items = []
    while at < end:
        tag, _, length, at = _read_head(data, at, coding)
        if tag == stop:
            return items, at
        if tag != ITEM:
            msg = f"{tag:08x} where an item is expected"
            raise NotTakenApart(msg)
        if length == UNDEFINED:
            item, at = _read_elements(data, at, end, coding, ITEM_END)
        else:
            item, at = _read_elements(data, at, at + length, coding, None)
        items.append(item)
    return items, at


def _behind_fragments(data: bytes, at: int, coding: Coding) -> int:
    """Behind the sequence delimiter of encapsulated pixel data (PS3.5 A.4)."""
    while True:
        tag, _, length, at = _read_head(data, at, coding)
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM or length == UNDEFINED:
            msg = "no plain fragments"
            raise NotTakenApart(msg)
        at += length
