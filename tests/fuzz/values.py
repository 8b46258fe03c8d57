"""Mutations of values: numbers, texts, UIDs, geometry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tests.fuzz.draft import SOP_INSTANCE, Draft, Mutation

_NUMBERS = (
    b"",
    b" ",
    b"0",
    b"-1",
    b"-0",
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"1e309",
    b"-1e308",
    b"1e-320",
    b"2147483647",
    b"2147483648",
    b"99999999999999999999999999",
    b"1.5",
    b"0x10",
    b"1_000",
    b"\xd9\xa1\xd9\xa2",
    b"1\\2",
    b"\\",
    b"abc",
    b"1\x00",
    b"9" * 5000,
)
_INTEGERS = (0x00200013, 0x00201002, 0x00280008, 0x00200011, 0x00200012)
_DECIMALS = (
    0x00200032,
    0x00200037,
    0x00280030,
    0x00281052,
    0x00281053,
    0x00180050,
    0x00180088,
    0x00180082,
    0x00280106,
    0x00101030,
)
_COUNTS = (
    0x00280002,
    0x00280010,
    0x00280011,
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
    0x00280006,
)
_SHORTS = (0, 1, 2, 7, 8, 12, 15, 16, 17, 32, 33, 64, 255, 4096, 65535)
_CHARSETS = (
    b"",
    b"KLINGON",
    b"ISO_IR 192",
    b"ISO_IR 100\\ISO_IR 192",
    b"\\ISO 2022 IR 87\\ISO 2022 IR 159",
    b"ISO 2022 IR 149",
    b"GB18030",
    b"GBK\\GBK",
    b"\\" * 500,
    b"\xff\xfe",
    b"utf-16",
    b"rot13",
    b"idna",
    b"ISO_IR 13\x00",
    b"A" * 3000,
)
_TEXTS = (
    b"<script>alert(1)</script>",
    b"../../../../etc/passwd",
    b"/tmp/hipscore-fuzz-escape",
    b"a\r\nb\x00c\x1b[31m\x07",
    b"\xff\xfe\x80\x81",
    b"\x1b$B\x1b(J\x1b$)C\xc0",
    b"'; DROP TABLE series; --",
    b"{}%s%n%x${jndi:ldap://x}",
    "\u202e\u2028\ud7ff\U0001f480".encode(),
    b"^" * 300,
    b"=" * 300,
    b"\\" * 300,
    b"x" * 60_000,
)
_TEXT_TAGS = (
    0x00100010,
    0x00100020,
    0x00080050,
    0x00080090,
    0x0008103E,
    0x00081030,
    0x00181030,
    0x00180024,
    0x00080070,
    0x00081090,
    0x00080080,
    0x00080201,
    0x00100030,
    0x00080020,
    0x00080030,
    0x00100040,
    0x00101010,
    0x00080060,
    0x00280004,
    0x00180022,
)
_UIDS = (
    b"",
    b" ",
    b"\0\0",
    b"../../x",
    b"/tmp/hipscore-fuzz-escape",
    b"1.2.3/../../x",
    b"1.2.3\n4",
    b"1" * 65,
    b"1." * 40,
    b"1.2.3 ",
    b"1.2.3\0\0",
    b"1.2.3\\1.2.4",
    b"1.2.03",
    b"\xd9\xa1.2",
    b"1..2",
    b".",
    b"con",
    b"1.2.3;rm -rf",
)
_UID_TAGS = (0x00080016, SOP_INSTANCE, 0x0020000D, 0x0020000E, 0x00200052, 0x00081155)


def number_texts(draft: Draft) -> None:
    """Numbers written as text that are absurd, or none."""
    rng = draft.rng
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            draft.set(rng.choice(_INTEGERS), b"IS", rng.choice(_NUMBERS))
        else:
            count = rng.choice((1, 1, 2, 3, 6, 7))
            values = b"\\".join(rng.choice(_NUMBERS) for _ in range(count))
            draft.set(rng.choice(_DECIMALS), b"DS", values)


def counts(draft: Draft) -> None:
    """Rows, columns and bits nobody has."""
    rng, coding = draft.rng, draft.parts.coding
    for _ in range(rng.randint(1, 3)):
        values = [coding.number(rng.choice(_SHORTS), 2) for _ in range(rng.choice((1, 1, 1, 2)))]
        draft.set(rng.choice(_COUNTS), b"US", b"".join(values))


def frame_counts(draft: Draft) -> None:
    """Numbers of frames, huge, negative, none."""
    value = draft.rng.choice((b"2147483647", b"-1", b"0", b"100000", b"2", b"4294967296", b"1e9"))
    draft.set(0x00280008, b"IS", value)


def multiplicity(draft: Draft) -> None:
    """Many values where one is allowed, one or none where many are needed."""
    rng = draft.rng
    tag = rng.choice((0x00080008, *_UID_TAGS, *_DECIMALS, *_TEXT_TAGS))
    element = draft.element_of(tag)
    value = b"ORIGINAL" if element is None else element.value
    times = rng.choice((0, 2, 3, 10_000))
    draft.set(tag, b"CS" if element is None else element.vr, b"\\".join([value] * times)[:60_000])


def character_sets(draft: Draft) -> None:
    """Character sets that are odd or lie, and bytes that are invalid in them."""
    rng = draft.rng
    draft.set(0x00080005, b"CS", rng.choice(_CHARSETS))
    for _ in range(rng.randint(1, 3)):
        draft.set(rng.choice(_TEXT_TAGS), b"LO", rng.randbytes(rng.randrange(40)))


def texts(draft: Draft) -> None:
    """Names and descriptions with markup, paths, controls."""
    rng = draft.rng
    for _ in range(rng.randint(1, 3)):
        tag = rng.choice(_TEXT_TAGS[:2]) if rng.random() < 0.4 else rng.choice(_TEXT_TAGS)
        draft.set(tag, b"LO", b"ZZMARKERZZ" + rng.choice(_TEXTS))


def uids(draft: Draft) -> None:
    """UIDs that are paths, too long, empty, padded."""
    rng = draft.rng
    tag, value = rng.choice(_UID_TAGS), rng.choice(_UIDS)
    draft.set(tag, b"UI", value)
    if tag == SOP_INSTANCE and value.isascii() and value.decode().isprintable():
        draft.sop_instance = value.decode()[:64]


def geometry(draft: Draft) -> None:
    """Planes that are none, and places that are far away."""
    rng = draft.rng
    tag, choices = rng.choice(
        (
            (0x00280030, (b"0\\0", b"-1\\-1", b"1e9\\1e9", b"1e-9\\1", b"1", b"1\\2\\3", b"4\\4")),
            (
                0x00200037,
                (
                    b"0\\0\\0\\0\\0\\0",
                    b"1\\0\\0\\1\\0\\0",
                    b"1\\0\\0\\0.5\\0.5\\0",
                    b"1\\0\\0\\0\\1\\0",
                    b"2\\0\\0\\0\\0\\-2",
                    b"1\\0\\0",
                ),
            ),
            (0x00200032, (b"0\\0\\0", b"1e300\\0\\0", b"0\\0", b"9\\99\\9", b"-90000\\1\\1")),
            (0x00281053, (b"0", b"-1", b"1e300", b"1e-300", b"1e5")),
            (0x00281052, (b"1e300", b"-1e9", b"nan", b"1e9")),
        )
    )
    draft.set(tag, b"DS", rng.choice(choices))


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        "absurd numbers": number_texts,
        "rows, columns, bits": counts,
        "numbers of frames": frame_counts,
        "multiplicity": multiplicity,
        "character sets": character_sets,
        "names and texts": texts,
        "UIDs": uids,
        "geometry": geometry,
    }
)
