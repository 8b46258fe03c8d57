"""Mutations of the encoding: bytes, lengths, nesting, order (PS3.5 chapter 7)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType

from tests.fuzz.draft import PIXEL_DATA, Draft, Mutation
from tests.fuzz.encoding import ITEM, SEQUENCE_END, UNDEFINED, Coding, Element

_LENGTHS = (0, 1, 2, 7, 0xFF, 0xFFFE, 0xFFFF, 2**31 - 1, 2**31, UNDEFINED - 1, UNDEFINED)
_VRS = (
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OW PN SH SL SQ SS ST TM UC UI UL UN UR US "
    b"UT OV ZZ aa \x00\x00 \xff\xff"
).split()


def flip_bits(draft: Draft) -> None:
    """Anywhere."""
    rng = draft.rng

    def spoil(data: bytearray) -> bytearray:
        for _ in range(rng.randint(1, 24)):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return data

    draft.spoil.append(spoil)


def flip_header(draft: Draft) -> None:
    """In front of the pixels only."""
    rng = draft.rng

    def spoil(data: bytearray) -> bytearray:
        end = min(len(data), 1500)
        for _ in range(rng.randint(1, 8)):
            if end:
                data[rng.randrange(end)] = rng.randrange(256)
        return data

    draft.spoil.append(spoil)


def truncate(draft: Draft) -> None:
    """Anywhere, the header as likely as the pixels."""
    rng = draft.rng

    def spoil(data: bytearray) -> bytearray:
        within = len(data) if rng.random() < 0.5 else min(len(data), 2000)
        return data[: rng.randrange(within + 1)]

    draft.spoil.append(spoil)


def splice(draft: Draft) -> None:
    """Insert noise, repeat or drop a stretch of bytes."""
    rng = draft.rng

    def spoil(data: bytearray) -> bytearray:
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 200)
        kind = rng.randrange(3)
        if kind == 0:
            return data[:at] + rng.randbytes(size) + data[at:]
        if kind == 1:
            return data[:at] + data[at : at + size] * rng.randint(2, 50) + data[at:]
        return data[:at] + data[at + size :]

    draft.spoil.append(spoil)


def append_noise(draft: Draft) -> None:
    """Behind the pixels: noise, a stray delimiter, or a sequence that does not end."""
    rng, coding = draft.rng, draft.parts.coding
    endless = Element(0xFFFCFFFC, b"SQ", coding.tag(ITEM) + coding.number(UNDEFINED, 4))
    endless.claims = UNDEFINED
    tail = rng.choice(
        (rng.randbytes(rng.randint(1, 64)), coding.tag(SEQUENCE_END), endless.encoded(coding))
    )
    draft.spoil.append(lambda data: data + tail)


def file_in_data_set(draft: Draft) -> None:
    """A Part 10 preamble, sound or not, where the data set begins."""
    rng = draft.rng
    head = (bytes(128) if rng.random() < 0.5 else rng.randbytes(rng.choice((5, 128)))) + b"DICM"
    meta = b"\x02\x00\x00\x00UL\x04\x00" + rng.choice((bytes(4), b"\xff" * 4, b"\x10\0\0\0"))
    draft.spoil.append(lambda data: bytearray(head + meta) + data)


def remove_elements(draft: Draft) -> None:
    """Some elements are missing, as often a needed one as any."""
    rng = draft.rng
    if rng.random() < 0.5:
        draft.parts.drop(rng.choice(_NEEDED))
        return
    for _ in range(rng.randint(1, 6)):
        siblings = draft.siblings()
        if siblings:
            del siblings[rng.randrange(len(siblings))]


def repeat_elements(draft: Draft) -> None:
    """Elements twice, in another place, or all out of order."""
    rng = draft.rng
    siblings = draft.siblings()
    if rng.random() < 0.3:
        rng.shuffle(siblings)
        return
    for _ in range(rng.randint(1, 4)):
        siblings.insert(rng.randrange(len(siblings) + 1), copy.deepcopy(draft.element()))


def insert_elements(draft: Draft) -> None:
    """Elements nobody asked for, of any tag."""
    rng = draft.rng
    for _ in range(rng.randint(1, 5)):
        siblings = draft.siblings()
        tag = rng.choice((rng.getrandbits(32), rng.choice(_NEEDED), rng.getrandbits(16), ITEM))
        value = rng.randbytes(rng.randrange(40))
        siblings.insert(rng.randrange(len(siblings) + 1), Element(tag, rng.choice(_VRS), value))


def private_elements(draft: Draft) -> None:
    """Thousands of them."""
    rng = draft.rng
    many = [
        Element(0x00290000 | 0x1000 + n, b"UN", rng.randbytes(rng.randrange(0, 24, 2)))
        for n in range(rng.choice((10, 1000, 10_000)))
    ]
    at = next((n for n, e in enumerate(draft.parts.elements) if e.tag > 0x00290000), 0)
    draft.parts.elements[at:at] = many


def claim_length(draft: Draft) -> None:
    """An element, sequence or pixel data that claims another length."""
    rng = draft.rng
    element = draft.parts.find(PIXEL_DATA) if rng.random() < 0.3 else draft.element()
    if element is not None:
        element.claims = rng.choice(_LENGTHS)


def undefined_length(draft: Draft) -> None:
    """Undefined lengths, with and without a delimiter, where none are allowed."""
    for _ in range(draft.rng.randint(1, 3)):
        element = draft.element()
        if draft.rng.random() < 0.5:
            element.undefined = not element.undefined
        else:
            element.claims = UNDEFINED


def wrong_vr(draft: Draft) -> None:
    """Elements under another VR, known or not."""
    for _ in range(draft.rng.randint(1, 4)):
        element = draft.element()
        if element.items is None or draft.rng.random() < 0.3:
            element.vr = draft.rng.choice(_VRS)


def nest_deeply(draft: Draft) -> None:
    """Sequences in sequences, thousands deep, of defined or undefined length."""
    rng, coding = draft.rng, draft.parts.coding
    tag = rng.choice((0x00081140, 0x00400275, 0x52009229, 0x52009230, 0x00400555, 0x00290010))
    depth = rng.choice((3, 40, 300, 5000))
    nested = _nested(tag, depth, coding, defined=depth <= 300 and rng.random() < 0.5)
    element = draft.parts.put(tag, b"SQ", nested[0])
    element.claims = nested[1]


def _nested(tag: int, depth: int, coding: Coding, *, defined: bool) -> tuple[bytes, int | None]:
    """Content of a sequence element; its claimed length where it is undefined."""
    if defined:
        value = b""
        for _ in range(depth):
            inner = Element(tag, b"SQ", value).encoded(coding)
            value = coding.tag(ITEM) + coding.number(len(inner), 4) + inner
        return value, None
    opened = coding.tag(ITEM) + coding.number(UNDEFINED, 4)
    inner = Element(tag, b"SQ", claims=UNDEFINED).encoded(coding)
    return (opened + inner) * depth, UNDEFINED


#: what no image can do without (type 1), and what geometry is read from
_NEEDED = (
    0x00080005,
    0x00080008,
    0x00080016,
    0x00080018,
    0x00080060,
    0x0020000D,
    0x0020000E,
    0x00200032,
    0x00200037,
    0x00200052,
    0x00280002,
    0x00280004,
    0x00280008,
    0x00280010,
    0x00280011,
    0x00280030,
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
    0x52009229,
    0x52009230,
    PIXEL_DATA,
)

MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        "bits anywhere": flip_bits,
        "bytes of the header": flip_header,
        "cut short": truncate,
        "bytes in, out, again": splice,
        "noise at the end": append_noise,
        "a file as data set": file_in_data_set,
        "elements missing": remove_elements,
        "elements repeated": repeat_elements,
        "elements inserted": insert_elements,
        "private elements": private_elements,
        "lengths that lie": claim_length,
        "undefined lengths": undefined_length,
        "other VRs": wrong_vr,
        "nested deeply": nest_deeply,
    }
)
