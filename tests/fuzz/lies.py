"""Mutations of pixel data: transfer syntaxes that lie, frames that claim, bombs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from pydicom.uid import UID

from tests.fuzz.draft import PIXEL_DATA, Draft, Mutation
from tests.fuzz.encoding import ITEM, Coding, Element
from tests.fuzz.sources import SYNTAXES, phantom_series, pixel_elements

_ROWS, _COLUMNS, _BITS = 0x00280010, 0x00280011, 0x00280100


def lying_syntax(draft: Draft) -> None:
    """Another transfer syntax announced than the data set is written in."""
    draft.syntax = str(draft.rng.choice(SYNTAXES))


def lying_pixels(draft: Draft) -> None:
    """The pixel data of another syntax, announced as any compressed one."""
    rng = draft.rng
    packed = [s for s in SYNTAXES if s.is_compressed]
    series = rng.choice(list(phantom_series().values()))
    other = rng.choice(series).parts()
    pixels = other.find(PIXEL_DATA)
    if pixels is None or draft.parts.coding != Coding():
        lying_syntax(draft)
        return
    _replace_pixels(draft, pixels)
    draft.syntax = str(rng.choice(packed)) if rng.random() < 0.7 else draft.syntax


def fragments(draft: Draft) -> None:
    """Frames cut, changed, emptied, many, and with offset tables that lie."""
    rng = draft.rng
    pixels = _packed(draft)
    found = _fragments(pixels.value)
    if len(found) < 2:
        draft.spoil.append(lambda data: data[: len(data) - rng.randint(1, 3000)])
        return
    kind = rng.randrange(6)
    frame = bytearray(found[-1])
    if kind == 0:
        frame = frame[: rng.randrange(len(frame) + 1)]
    elif kind <= 2:
        # the head of a stream holds its claims
        for _ in range(rng.randint(1, 12)):
            within = min(len(frame), 200) if kind == 1 else len(frame)
            if within:
                frame[rng.randrange(within)] = rng.randrange(256)
    elif kind == 3:
        found[0] = rng.randbytes(rng.choice((4, 8, 400)))
    elif kind == 4:
        found += [b""] * rng.choice((1, 1000))
    else:
        found += [bytes(frame)] * rng.choice((1, 200))
    found[-1] = bytes(frame) if kind < 3 else found[-1]
    pixels.value = _joined(found)
    if rng.random() < 0.2:
        at = 4 + 8 * (not found[0])
        claimed = rng.choice((2**31, 0xFFFFFFFE, 0xFFFFFFFF, 10**6)).to_bytes(4, "little")
        pixels.value = pixels.value[:at] + claimed + pixels.value[at + 4 :]


def bombs(draft: Draft) -> None:
    """Little data that claims to be much, in every coding we accept."""
    rng = draft.rng
    rows, columns = rng.choice(((65535, 65535), (20000, 20000), (4000, 4000), (96, 96), (1, 65535)))
    name, stream = rng.choice(_bombs(rows, columns, rng.choice((1, 3, 255, 16384))))
    if draft.parts.coding != Coding():
        draft.syntax = name
        return
    _replace_pixels(draft, Element(PIXEL_DATA, b"OB", _joined([b"", stream]), undefined=True))
    draft.syntax = name
    if rng.random() < 0.7:
        draft.parts.put(_ROWS, b"US", rows.to_bytes(2, "little"))
        draft.parts.put(_COLUMNS, b"US", columns.to_bytes(2, "little"))
    if rng.random() < 0.3:
        draft.parts.put(0x00280008, b"IS", rng.choice((b"1000", b"2147483647")))


def grafts(draft: Draft) -> None:
    """The pixels of one image, the description of another."""
    series = draft.rng.choice(list(phantom_series().values()))
    other = draft.rng.choice(series)
    if other.parts().coding != draft.parts.coding:
        return
    for element in draft.rng.sample(pixel_elements(other.parts()), k=3):
        draft.parts.drop(element.tag)
        draft.parts.put(element.tag, element.vr, element.value).undefined = element.undefined


def colours(draft: Draft) -> None:
    """Grey values announced as something else, and bits that do not fit."""
    rng = draft.rng
    kind = rng.choice((b"RGB", b"PALETTE COLOR", b"YBR_FULL_422", b"MONOCHROME1", b"", b"HSV"))
    if rng.random() < 0.5:
        draft.parts.put(0x00280004, b"CS", kind)
    else:
        for tag in (0x00280100, 0x00280101, 0x00280102, 0x00280103):
            number = draft.parts.coding.number(rng.choice((0, 1, 8, 11, 12, 16, 32, 64)), 2)
            draft.parts.put(tag, b"US", number)
    if rng.random() < 0.3:
        draft.parts.drop(PIXEL_DATA)
        tag, vr = rng.choice(((0x7FE00008, b"OF"), (0x7FE00009, b"OD")))
        draft.parts.put(tag, vr, rng.randbytes(96 * 96 * 4))


def _replace_pixels(draft: Draft, pixels: Element) -> None:
    draft.parts.drop(PIXEL_DATA)
    draft.parts.elements.append(pixels)


def _packed(draft: Draft) -> Element:
    """Encapsulated pixel data; the image is made a compressed one if it is none."""
    pixels = draft.parts.find(PIXEL_DATA)
    if pixels is not None and pixels.undefined:
        return pixels
    every = phantom_series()
    name = draft.rng.choice([key for key in sorted(every) if _is_packed(every[key][0].syntax)])
    source = draft.rng.choice(every[name])
    found = source.parts().find(PIXEL_DATA)
    assert found is not None
    if draft.parts.coding == Coding():
        _replace_pixels(draft, found)
        draft.syntax = source.syntax
    return found


def _is_packed(syntax: str) -> bool:
    return UID(syntax).is_compressed


def _fragments(value: bytes) -> list[bytes]:
    """Fragments of encapsulated pixel data, the offset table first (PS3.5 A.4)."""
    found, at = [], 0
    while at + 8 <= len(value):
        length = int.from_bytes(value[at + 4 : at + 8], "little")
        found.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _joined(found: list[bytes]) -> bytes:
    coding = Coding()
    whole = (each + b"\0" * (len(each) % 2) for each in found)
    return b"".join(coding.tag(ITEM) + coding.number(len(e), 4) + e for e in whole)


def _bombs(rows: int, columns: int, components: int) -> list[tuple[str, bytes]]:
    """Streams of this claimed size, each with the transfer syntax it is announced as."""
    few = min(components, 255)
    jpeg = struct.pack(">BHHB", 8, rows, columns, few)
    jpeg += b"".join(bytes((n & 255, 0x11, 0)) for n in range(few))
    frame = [
        b"\xff\xd8\xff" + bytes((marker,)) + struct.pack(">H", 2 + len(jpeg)) + jpeg
        for marker in (0xC0, 0xC1, 0xC3, 0xF7, 0xC2)
    ]
    scan = b"\xff\xda\x00\x08\x01\x00\x00\x00\x3f\x00" + bytes(400) + b"\xff\xd9"
    segments = struct.pack("<16L", 2, 64, 64 + 400, *([0] * 13))
    packed = bytes((0x81, 0)) * 200  # each pair is 128 zeros
    return [
        ("1.2.840.10008.1.2.4.50", frame[0] + scan),
        ("1.2.840.10008.1.2.4.51", frame[1] + scan),
        ("1.2.840.10008.1.2.4.70", frame[2] + scan),
        ("1.2.840.10008.1.2.4.57", frame[4] + scan),
        ("1.2.840.10008.1.2.4.80", frame[3] + scan),
        ("1.2.840.10008.1.2.4.90", _codestream(rows, columns, components)),
        ("1.2.840.10008.1.2.4.91", _jp2(rows, columns, components)),
        ("1.2.840.10008.1.2.4.201", _codestream(rows, columns, components, tile=1)),
        ("1.2.840.10008.1.2.4.90", b"\xff\xd8\xff" + _codestream(rows, columns, components)),
        ("1.2.840.10008.1.2.4.50", _png(rows, columns)),
        ("1.2.840.10008.1.2.5", segments + packed * 2),
        ("1.2.840.10008.1.2.5", struct.pack("<16L", 15, *range(64, 79)) + packed),
    ]


def _codestream(rows: int, columns: int, components: int, tile: int = 0) -> bytes:
    """A JPEG 2000 codestream of nothing (ITU-T T.800 A.5.1)."""
    size = struct.pack(">HLLLL", 0, columns, rows, 0, 0)
    size += struct.pack(">LLLL", tile or columns, tile or rows, 0, 0)
    size += struct.pack(">H", components) + b"\x0f\x01\x01" * components
    siz = b"\xff\x51" + struct.pack(">H", (2 + len(size)) & 0xFFFF) + size
    cod = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01"
    qcd = b"\xff\x5c\x00\x13\x40" + bytes(16)
    start = b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x20\x00\x01\xff\x93"
    return b"\xff\x4f" + siz + cod + qcd + start + bytes(20) + b"\xff\xd9"


def _jp2(rows: int, columns: int, components: int) -> bytes:
    """The same in the boxes of a JP2 file."""
    header = struct.pack(">LLHBBBB", rows, columns, components & 0xFFFF, 15, 7, 0, 0)
    ihdr = struct.pack(">L4s", 8 + len(header), b"ihdr") + header
    colour = struct.pack(">L4sBBBL", 15, b"colr", 1, 0, 0, 17)
    boxes = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\x00\x00\x00\x14ftypjp2 \0\0\0\0jp2 "
    boxes += struct.pack(">L4s", 8 + len(ihdr) + len(colour), b"jp2h") + ihdr + colour
    stream = _codestream(rows, columns, components)
    return boxes + struct.pack(">L4s", 8 + len(stream), b"jp2c") + stream


def _png(rows: int, columns: int) -> bytes:
    """A PNG, which no DICOM file holds and some libraries read all the same."""
    head = struct.pack(">LLBBBBB", columns, rows, 8, 0, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")):
        out += struct.pack(">L", len(data)) + kind + data
        out += struct.pack(">L", zlib.crc32(kind + data))
    return out


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        "lying transfer syntax": lying_syntax,
        "pixels of another syntax": lying_pixels,
        "fragments": fragments,
        "claims and bombs": bombs,
        "pixels of another image": grafts,
        "colours and bits": colours,
    }
)
