"""The DICOM JSON model (PS3.18 F.2): made by keyword, and read with nothing taken on trust."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeAlias

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

Attributes: TypeAlias = dict[str, Any]

#: sequences in sequences
DEEPEST = 8
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBERS = frozenset({"FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"})
_WHOLE = _NUMBERS - {"FL", "FD"}
_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
#: longest value and its form (PS3.5 table 6.2-1)
_TEXTS: Mapping[str, tuple[int, re.Pattern[str] | None]] = {
    "AE": (16, re.compile(r"[ -\[\]-~]*")),
    "AS": (4, re.compile(r"(\d{3}[DWMY])?")),
    "AT": (8, _TAG),
    "CS": (16, re.compile(r"[A-Z0-9_ ]*")),
    "DA": (8, re.compile(r"(\d{8})?")),
    "DS": (16, re.compile(r" *([+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?)? *")),
    "DT": (26, re.compile(r"(\d{4}(\d{2}){0,5}|\d{14}\.\d{1,6})([+-]\d{4})? *|")),
    "IS": (12, re.compile(r" *([+-]?\d+)? *")),
    "LO": (64, None),
    "LT": (10240, None),
    "PN": (324, None),
    "SH": (16, None),
    "ST": (1024, None),
    "TM": (14, re.compile(r"(\d{2}|\d{4}|\d{6}(\.\d{1,6})?)? *")),
    "UC": (100_000, None),
    "UI": (64, re.compile(r"([0-9]+(\.[0-9]+)*)?")),
    "UR": (8192, None),
    "UT": (100_000, None),
}
_FREE = frozenset({"LT", "ST", "UT"})  # may have several lines
_GROUPS = frozenset({"Alphabetic", "Ideographic", "Phonetic"})


class Malformed(ValueError):
    """A data set that is none, or not one that can be accepted; the text names the element."""


@cache
def tag(keyword: str) -> str:
    """Tag of a keyword of PS3.6, eight hexadecimal digits.

    Raises
    ------
    KeyError
        If there is no such keyword.
    """
    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    return f"{number:08X}"


def data_set(**values: object) -> Attributes:
    """A data set by keyword; None and ``""`` make empty elements, lists several values or items."""
    return dict(sorted(element(keyword, value) for keyword, value in values.items()))


def element(keyword: str, value: object) -> tuple[str, dict[str, Any]]:
    """One element: its tag, and what stands there."""
    vr = dictionary_VR(tag_for_keyword(keyword) or 0)
    listed = list(value) if isinstance(value, list | tuple) else [value]
    listed = [each for each in listed if each not in {None, ""}] if vr != "SQ" else listed
    listed = [each for each in listed if each is not None]
    if vr == "PN":
        listed = [person(str(each)) for each in listed]
    return tag(keyword), {"vr": vr, **({"Value": listed} if listed else {})}


def person(name: str) -> dict[str, str]:
    """A person name (PS3.5 6.2.1) as its component groups (PS3.18 F.2.2)."""
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("=")[:3], strict=False)
    return {group: text for group, text in groups if text}


def code(value: str, scheme: str, meaning: str) -> Attributes:
    """An item of a code sequence (PS3.3 table 8.8-1)."""
    return data_set(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def values(attributes: Mapping[str, Any], keyword: str) -> list[Any]:
    """The values of an element; none where it is empty or absent."""
    found = attributes.get(tag(keyword)) or {}
    return list(found.get("Value") or [])


def value(attributes: Mapping[str, Any], keyword: str) -> Any:
    """The first value of an element, or None."""
    return next(iter(values(attributes, keyword)), None)


def stamp(moment: datetime) -> str:
    """A moment as DT, in UTC and saying so."""
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def read(body: bytes) -> Attributes:
    """Read one data set; an array of one is one as well (PS3.18 11.1.3).

    Tags come out in capitals. Values that their VR does not allow are not accepted, nor a VR
    that contradicts PS3.6.

    Raises
    ------
    Malformed
        If it is no such thing. The text holds tags, never values.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        msg = "the body is not JSON"
        raise Malformed(msg) from None
    if isinstance(parsed, list):
        if len(parsed) != 1:
            msg = f"the body has {len(parsed)} data sets; one is expected"
            raise Malformed(msg)
        parsed = parsed[0]
    return _checked(parsed, "the data set", DEEPEST)


def _checked(found: object, where: str, deeper: int) -> Attributes:
    if not isinstance(found, dict):
        msg = f"{where} is not an object of the DICOM JSON model"
        raise Malformed(msg)
    if deeper == 0:
        msg = f"{where} has sequences nested deeper than {DEEPEST}"
        raise Malformed(msg)
    elements: Attributes = {}
    for name, body in found.items():
        if _TAG.fullmatch(name) is None:
            msg = f"{where} has a name that is not a tag of eight hexadecimal digits"
            raise Malformed(msg)
        elements[name.upper()] = _element(name.upper(), body, deeper)
    return dict(sorted(elements.items()))


def _element(name: str, body: object, deeper: int) -> dict[str, Any]:
    shown = f"({name[:4]},{name[4:]})"
    if not isinstance(body, dict) or set(body) - {"vr", "Value", "InlineBinary", "BulkDataURI"}:
        msg = f"{shown} is not an element of the DICOM JSON model"
        raise Malformed(msg)
    vr = body.get("vr")
    number = int(name, 16)
    if dictionary_has_tag(number):
        known = dictionary_VR(number)
        if vr is None:
            vr = known
        elif vr not in known.split(" or "):
            msg = f"{shown} has another VR than {known}"
            raise Malformed(msg)
    if vr in _BULK or "InlineBinary" in body or "BulkDataURI" in body:
        msg = f"{shown} is bulk data, which a work item does not have"
        raise Malformed(msg)
    if vr != "SQ" and vr not in _TEXTS and vr not in _NUMBERS:
        msg = f"{shown} has no VR of PS3.5"
        raise Malformed(msg)
    listed = body.get("Value", [])
    if not isinstance(listed, list):
        msg = f"{shown} has a Value that is not an array"
        raise Malformed(msg)
    if vr == "SQ":
        inside = [_checked({} if each is None else each, shown, deeper - 1) for each in listed]
        return {"vr": vr, **({"Value": inside} if inside else {})}
    if any(not _fits(each, str(vr)) for each in listed):
        msg = f"{shown} has a value that is not a {vr}"
        raise Malformed(msg)
    empty = all(each in (None, "", {}) for each in listed)
    return {"vr": vr, **({} if empty else {"Value": listed})}


def _fits(each: object, vr: str) -> bool:
    if each is None:
        return True
    if vr == "PN":
        groups = each if isinstance(each, dict) else {"": None}
        return set(groups) <= _GROUPS and all(_text(text, vr) for text in groups.values())
    if isinstance(each, bool):
        return False
    if vr in _NUMBERS or (vr in {"DS", "IS"} and isinstance(each, int | float)):
        whole = vr in _WHOLE or vr == "IS"
        if not isinstance(each, int if whole else int | float):
            return False
        return abs(each) < 2**64 if whole else _finite(each)
    return _text(each, vr)


def _finite(each: float) -> bool:
    try:
        return math.isfinite(each)
    except OverflowError:
        return False


def _text(each: object, vr: str) -> bool:
    longest, form = _TEXTS[vr]
    if not isinstance(each, str) or len(each) > longest:
        return False
    breaks = "\r\n\t\f" if vr in _FREE else ""
    # neither NUL nor half a surrogate pair can be stored
    if any((ord(c) < 32 and c not in breaks) or 0xD800 <= ord(c) <= 0xDFFF for c in each):
        return False
    return form is None or form.fullmatch(each) is not None


def without(attributes: Mapping[str, Any], keywords: Sequence[str]) -> Attributes:
    """The data set without these elements."""
    gone = {tag(keyword) for keyword in keywords}
    return {name: body for name, body in attributes.items() if name not in gone}
