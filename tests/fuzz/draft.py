"""An object while it is being mutated, and what the mutations share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from tests.fuzz.encoding import Element, Parts
from tests.fuzz.sources import Source

PIXEL_DATA = 0x7FE00010
SOP_INSTANCE = 0x00080018


@dataclass(slots=True, kw_only=True)
class Draft:
    """What the mutations of one object work on.

    Changes of elements come first; changes of bytes are kept in ``spoil`` and done to the
    encoded data set in their order.
    """

    rng: Random
    source: Source
    parts: Parts
    syntax: str
    sop_instance: str = ""
    spoil: list[Callable[[bytearray], bytearray]] = field(default_factory=list)

    def encoded(self) -> bytes:
        """The encoded data set."""
        whole = self.parts.encoded() if self.parts.elements else self.source.data
        data = bytearray(whole)
        for change in self.spoil:
            data = bytearray(change(data))
        return bytes(data)

    def siblings(self) -> list[Element]:
        """A list of elements: mostly the top level, else that of an item; never empty."""
        lists = [each for each in self.parts.everywhere() if each]
        if not lists:
            return [Element(0x00090010, b"LO", b"HIPSCORE FUZZ ")]
        return lists[0] if self.rng.random() < 0.6 else self.rng.choice(lists)

    def element(self) -> Element:
        """Any element at any depth."""
        return self.rng.choice(self.siblings())

    def element_of(self, *tags: int) -> Element | None:
        """Any element with one of these tags, at any depth."""
        found = [e for each in self.parts.everywhere() for e in each if e.tag in tags]
        return self.rng.choice(found) if found else None

    def set(self, tag: int, vr: bytes, value: bytes) -> None:
        """Give an element another value wherever it is; insert it if it is nowhere."""
        found = self.element_of(tag)
        if found is None or self.rng.random() < 0.1:
            self.parts.put(tag, vr, value)
        else:
            pad = b"\0" if found.vr in {b"UI", b"OB", b"UN"} else b" "
            found.value, found.items = value + pad * (len(value) % 2), None
            found.undefined, found.claims = False, None


Mutation: TypeAlias = Callable[[Draft], None]
