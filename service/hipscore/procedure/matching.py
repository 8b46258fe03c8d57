"""Searching work items: keys as QIDO-RS writes them (PS3.18 8.3.4, PS3.4 C.2.2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, TypeAlias

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

from hipscore.procedure.dataset import DEEPEST, Attributes, Malformed, tag

_Span: TypeAlias = tuple[datetime, datetime]

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_WILD = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_TIMES = frozenset({"DA", "DT", "TM"})
_NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_MOMENT = re.compile(
    r"(?P<year>\d{4})(?:(?P<month>\d{2})(?:(?P<day>\d{2})(?:(?P<hour>\d{2})(?:(?P<minute>\d{2})"
    r"(?:(?P<second>\d{2})(?:\.(?P<part>\d{1,6}))?)?)?)?)?)?"
    r"(?P<zone>[+-](?:0\d|1[0-4])[0-5]\d)?"
)
_ONE = r"\d+(?:\.\d+)?(?:[+-](?:0\d|1[0-4])[0-5]\d)?"  # no zone is further away than 14 hours
_RANGE = re.compile(rf"(?P<low>{_ONE})?-(?P<high>{_ONE})?")
#: what a search answers with, beside what it asks for (return key types 1, 1C and 2)
RETURNED = tuple(
    tag(keyword)
    for keyword in (
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
        "ScheduledProcedureStepStartDateTime",
        "ScheduledWorkitemCodeSequence",
        "ScheduledStationNameCodeSequence",
        "ScheduledStationClassCodeSequence",
        "ScheduledStationGeographicLocationCodeSequence",
        "ScheduledHumanPerformersSequence",
        "InputReadinessState",
        "InputInformationSequence",
        "ExpectedCompletionDateTime",
        "StudyInstanceUID",
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "AdmissionID",
        "ReferencedRequestSequence",
        "ReplacedProcedureStepSequence",
        "ProcedureStepState",
        "ProcedureStepProgressInformationSequence",
        "ScheduledProcedureStepPriority",
        "ScheduledProcedureStepModificationDateTime",
        "WorklistLabel",
        "ProcedureStepLabel",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One matching key: the path of tags to an element, its VR, and what is wanted there."""

    path: tuple[str, ...]
    vr: str
    wanted: str


def path_of(name: str) -> tuple[str, ...]:
    """Tags of an attribute that is named by keywords or tags, joined by dots.

    Raises
    ------
    Malformed
        If a part is neither.
    """
    parts = name.split(".")
    if len(parts) > DEEPEST:
        msg = f"an attribute of a query has at most {DEEPEST} parts"
        raise Malformed(msg)
    return tuple(_tag(part) for part in parts)


def _tag(part: str) -> str:
    if _TAG.fullmatch(part):
        return part.upper()
    number = tag_for_keyword(part)
    if number is None:
        msg = f"{part[:64]!r} is neither a keyword nor a tag of PS3.6"
        raise Malformed(msg)
    return f"{number:08X}"


def key(name: str, wanted: str) -> Key:
    """One key of a query.

    Raises
    ------
    Malformed
        If the attribute is unknown, or cannot be compared with such a value.
    """
    path = path_of(name)
    number = int(path[-1], 16)
    vr = dictionary_VR(number)[:2] if dictionary_has_tag(number) else "LO"
    if any(not c.isprintable() for c in wanted):
        msg = f"the value for {name} has characters that cannot be searched for"
        raise Malformed(msg)
    if vr == "SQ" and wanted:
        msg = f"{name} is a sequence; name an element of its items, as in {name}.CodeValue"
        raise Malformed(msg)
    if vr in _TIMES and wanted and _spans(wanted, vr) is None:
        msg = f"the value for {name} is no {vr} and no range of two"
        raise Malformed(msg)
    return Key(path=path, vr=vr, wanted=wanted)


def literal(wanted: Key) -> str:
    """The longest text that is in the JSON of everything that matches a key; maybe empty.

    Only of letters, digits and what is written alike in every JSON: it narrows a search down
    before the data sets are looked at.
    """
    if wanted.vr not in _WILD and (wanted.vr != "UI" or re.search(r"[,\\]", wanted.wanted)):
        return ""
    return max(re.findall(r"[A-Za-z0-9.^_-]+", wanted.wanted), key=len, default="")


def matches(attributes: Mapping[str, Any], keys: Sequence[Key]) -> bool:
    """Whether a data set matches all the keys; one without a value matches everything."""
    return all(not each.wanted or any(_hits(attributes, each)) for each in keys)


def _hits(attributes: Mapping[str, Any], wanted: Key) -> Iterator[bool]:
    for found in _reached(attributes, wanted.path):
        if wanted.vr == "PN":
            groups = list(found.values()) if isinstance(found, dict) else []
            yield any(_like(wanted.wanted, str(text), same_case=False) for text in groups)
        else:
            yield _hit(wanted, found)


def _hit(wanted: Key, found: object) -> bool:
    text = str(found).strip(" ")
    if wanted.vr == "UI":
        return text in re.split(r"[,\\]", wanted.wanted)
    if wanted.vr in _TIMES:
        return _within(wanted.wanted, text, wanted.vr)
    if wanted.vr in _NUMBERS:
        return _number(text) == _number(wanted.wanted) is not None
    if wanted.vr in _WILD:
        return _like(wanted.wanted, text)
    return text == wanted.wanted.strip(" ")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _reached(attributes: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
    for found in (attributes.get(path[0]) or {}).get("Value") or ():
        if len(path) == 1:
            yield found
        elif isinstance(found, dict):
            yield from _reached(found, path[1:])


def _like(wanted: str, text: str, *, same_case: bool = True) -> bool:
    """Wild card matching (PS3.4 C.2.2.2.4), linear in the length of the text."""
    pieces = _pattern(wanted if same_case else wanted.lower())
    return _glob(pieces, text if same_case else text.lower())


@lru_cache(maxsize=256)
def _pattern(wanted: str) -> tuple[str, ...]:
    return tuple(wanted.strip(" ").split("*"))


def _glob(pieces: tuple[str, ...], text: str) -> bool:
    """Whether ``pieces`` with anything between them make up the text; ``?`` is any character.

    No regular expression: many asterisks would make one exponential.
    """
    first, *rest = pieces
    if not _at(first, text, 0):
        return False
    if not rest:
        return len(first) == len(text)
    *middle, last = rest
    place = len(first)
    for piece in middle:
        place = next(
            (at for at in range(place, len(text) - len(piece) + 1) if _at(piece, text, at)), -1
        )
        if place < 0:
            return False
        place += len(piece)
    end = len(text) - len(last)
    return end >= place and _at(last, text, end)


def _at(piece: str, text: str, at: int) -> bool:
    part = text[at : at + len(piece)]
    return len(part) == len(piece) and all(a in {b, "?"} for a, b in zip(piece, part, strict=True))


def _within(wanted: str, found: str, vr: str) -> bool:
    spans, moment = _spans(wanted, vr), _span(found, vr)
    if spans is None or moment is None:
        return False
    low, high = spans
    return (low is None or moment[0] >= low) and (high is None or moment[0] < high)


@lru_cache(maxsize=256)
def _spans(wanted: str, vr: str) -> tuple[datetime | None, datetime | None] | None:
    """From when on, and before when; None if it is neither a moment nor a range (C.2.2.2.5)."""
    single = _span(wanted, vr)
    if single is not None:
        return single
    found = _RANGE.fullmatch(wanted)
    if found is None or wanted == "-":
        return None
    low, high = (found[side] and _span(found[side], vr) for side in ("low", "high"))
    if (found["low"] and low is None) or (found["high"] and high is None):
        return None
    return (low[0] if low else None, high[1] if high else None)


def _span(text: str, vr: str) -> _Span | None:
    """First moment that a DA, TM or DT can mean, and the first that it cannot.

    A time without a zone is taken for UTC, in which ours are.
    """
    found = _MOMENT.fullmatch(("19000101" if vr == "TM" else "") + text.strip(" "))
    if found is None or (vr != "DT" and found["zone"]):
        return None
    if vr == "DA" and (found["day"] is None or found["hour"] is not None):
        return None
    numbers = [found[part] for part in ("year", "month", "day", "hour", "minute", "second")]
    given = [int(number) for number in numbers if number is not None]
    part = (found["part"] or "").ljust(6, "0")
    year, month, day, hour, minute, second = (*given, *(1, 1, 1, 0, 0, 0)[len(given) :])
    try:
        start = datetime(
            year, month, day, hour, minute, second, int(part), tzinfo=_zone(found["zone"])
        )
        return start.astimezone(UTC), _next(start, len(given), found["part"]).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _next(start: datetime, precision: int, part: str | None) -> datetime:
    """The first moment behind the year, month, day … or fraction of a second."""
    if part:
        return start + timedelta(microseconds=10 ** (6 - len(part)))
    if precision == 1:
        return start.replace(year=start.year + 1)
    if precision == 2:
        return (start + timedelta(days=31)).replace(day=1)
    unit = ("days", "hours", "minutes", "seconds")[precision - 3]
    return start + timedelta(**{unit: 1})


def _zone(text: str | None) -> timezone:
    if text is None:
        return UTC
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[3:])))


def shown(attributes: Mapping[str, Any], also: Sequence[tuple[str, ...]] | None) -> Attributes:
    """What a search answers of an item; ``also`` None: everything."""
    if also is None:
        return dict(attributes)
    wanted = {*RETURNED, *(path[0] for path in also)}
    return {name: body for name, body in attributes.items() if name in wanted}
