"""FHIR dates in searches: a value of any precision with a prefix, as an interval."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from hipscore.api.fhir.outcome import SearchError
from hipscore.store.clinical import Days, Instants

_VALUE = re.compile(
    r"(?P<prefix>[a-z]{2})?(?P<year>[0-9]{4})(-(?P<month>[0-9]{2})(-(?P<day>[0-9]{2})"
    r"(T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(:(?P<second>[0-9]{2})(\.(?P<part>[0-9]{1,6}))?)?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)
PREFIXES = ("eq", "ne", "ge", "gt", "le", "lt", "sa", "eb")
_YEARS = range(1800, 9999)  # far from where sums of dates overflow
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """What a value means: from ``start`` on and before ``end``; ``timed``: finer than days."""

    prefix: str
    start: datetime
    end: datetime
    timed: bool


def days(text: str, name: str) -> Days:
    """Study dates that a value means. They have no time, so a day counts as a whole.

    Raises
    ------
    SearchError
        If the value is no date.
    """
    span = _span(text, name)
    first = span.start.date()
    last = (span.end - timedelta(microseconds=1)).date()
    if span.timed and span.prefix in {"eq", "ne"}:
        # a moment contains no day
        return Days() if span.prefix == "ne" else Days(first=_dicom(last), last="0")
    meant = {
        "eq": Days(first=_dicom(first), last=_dicom(last)),
        "ne": Days(first=_dicom(first), last=_dicom(last), outside=True),
        "ge": Days(first=_dicom(first)),
        "le": Days(last=_dicom(last)),
        # the rest of the day of a moment lies behind it, and its beginning before it
        "gt": Days(first=_dicom(span.end.date())),
        "lt": Days(last=_dicom(first if _into_the_day(span) else first - _DAY)),
        "sa": Days(first=_dicom(last + _DAY)),
        "eb": Days(last=_dicom(first - _DAY)),
    }
    return meant[span.prefix]


def instants(text: str, name: str) -> Instants:
    """Times that a value means; without a zone it is in UTC.

    Raises
    ------
    SearchError
        If the value is no date.
    """
    span = _span(text, name)
    match span.prefix:
        case "eq" | "ne":
            return Instants(since=span.start, before=span.end, outside=span.prefix == "ne")
        case "ge":
            return Instants(since=span.start)
        case "gt" | "sa":
            return Instants(since=span.end)
        case "le":
            return Instants(before=span.end)
        case _:
            return Instants(before=span.start)


def _span(text: str, name: str) -> _Span:
    found = _VALUE.fullmatch(text)
    prefix = "eq" if found is None else found["prefix"] or "eq"
    if found is None or prefix not in PREFIXES:
        msg = (
            f"{name}: not a date with one of the prefixes {', '.join(PREFIXES)}; "
            "write for example ge2026-03-14 (a + in a zone is %2B in a URL)"
        )
        raise SearchError(msg)
    try:
        start, end = _limits(found)
    except ValueError:
        msg = f"{name}: no such date or time, or a year before {_YEARS[0]} or after {_YEARS[-1]}"
        raise SearchError(msg) from None
    return _Span(prefix=prefix, start=start, end=end, timed=found["hour"] is not None)


def _limits(found: re.Match[str]) -> tuple[datetime, datetime]:
    year, month, day = (int(found[part] or 1) for part in ("year", "month", "day"))
    if year not in _YEARS:
        raise ValueError(year)
    if found["hour"] is not None:
        start = datetime.fromisoformat(found[0].removeprefix(found["prefix"] or ""))
        start = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
        width = timedelta(minutes=1)
        if found["second"] is not None:
            width = timedelta(seconds=1 / 10 ** len(found["part"] or ""))
        return start, start + width
    start = datetime(year, month, day, tzinfo=UTC)
    if found["day"] is not None:
        return start, start + _DAY
    if found["month"] is not None:
        return start, start.replace(year=year + month // 12, month=month % 12 + 1)
    return start, start.replace(year=year + 1)


def _into_the_day(span: _Span) -> bool:
    return span.timed and (span.start.hour, span.start.minute, span.start.second) != (0, 0, 0)


def _dicom(day: date) -> str:
    return f"{day.year:04d}{day.month:02d}{day.day:02d}"
