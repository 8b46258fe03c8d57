"""Data types of HL7 v2.5.1 (chapter 2A), made of ours and of DICOM's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import hl7
from pydicom.sr.coding import Code
from pydicom.valuerep import PersonName

from hipscore.domain import Side

_SUFFIX = {Side.RIGHT: "R", Side.LEFT: "L"}
#: representation of the groups of a person name (PS3.5 6.2.1.1), HL7 table 0465
_GROUPS = ("A", "I", "P")
_ASCII = re.compile(r"[\x00-\x7f]+")

#: components of one repetition; sub-components are a tuple
Components: TypeAlias = Sequence[str | tuple[str, ...]]
Field: TypeAlias = str | Sequence[Components]


def coded(code: Code, side: Side | None = None) -> Field:
    """CE or CWE: identifier, text, coding system (SNOMED CT and LOINC as table 0396 names them)."""
    value, meaning = code.value, code.meaning
    if side is not None:
        value, meaning = f"{value}-{_SUFFIX[side]}", f"{meaning}, {side.value} hip"
    return [[value, meaning, code.scheme_designator]]


def names(name: str, *, leading: int = 0, trailing: int = 0) -> Field:
    """XPN (or XCN, with more components around) for each group of a DICOM person name.

    DICOM has family, given, middle, prefix, suffix; HL7 suffix before prefix.
    """
    groups = PersonName(name).components if name else ()
    found: list[Components] = []
    for group, representation in zip(groups, _GROUPS, strict=False):
        parts = ([each.strip() for each in group.split("^")] + [""] * 5)[:5]
        if not any(parts):
            continue
        family, given, middle, prefix, suffix = parts
        legal = "L"  # HL7 table 0200
        found.append(
            [
                *[""] * leading,
                family,
                given,
                middle,
                suffix,
                prefix,
                "",
                *(["", ""] if trailing else []),  # XCN: source table, authority
                legal,
                *[""] * trailing,
                representation,
            ]
        )
    return found or ""


def time_of(date: str, time: str) -> str:
    """TS from DA and TM (PS3.5 6.2): no part of a time without those before it."""
    digits, _, fraction = time.partition(".")
    if not date or len(digits) < 4:
        return date
    whole = digits[: len(digits) // 2 * 2]
    return f"{date}{whole}" + (f".{fraction[:4]}" if fraction and len(whole) == 6 else "")


def derived(*parts: str) -> str:
    """Derive an identifier of 20 characters, the most that MSH-10 takes (HL7 v2.5.1 2.15.9.10)."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20].upper()


def moment(time: datetime) -> str:
    """Write TS with the offset from UTC."""
    return f"{time:%Y%m%d%H%M%S%z}"


def segment(message: hl7.Message, name: str, fields: Sequence[Field]) -> hl7.Segment:
    """A segment of the library, with everything escaped that has to be."""

    def escaped(text: str) -> str:
        shown = "".join(each for each in text if each.isprintable())
        # the library would write what is not ASCII in hexadecimal, against MSH-18
        return _ASCII.sub(lambda found: str(message.escape(found[0])), shown)

    def repetition(components: Components) -> hl7.Repetition:
        return hl7.Repetition(
            "^",
            [
                hl7.Component(
                    "&", [escaped(sub) for sub in ([part] if isinstance(part, str) else part)]
                )
                for part in components
            ],
        )

    made = [
        hl7.Field(
            "~",
            [escaped(each)] if isinstance(each, str) else [repetition(rest) for rest in each],
        )
        for each in fields
    ]
    lead = [hl7.Field("", [name])]
    if name == "MSH":
        lead += [hl7.Field("", ["|"]), hl7.Field("", ["^~\\&"])]
    return hl7.Segment("|", [*lead, *made])
