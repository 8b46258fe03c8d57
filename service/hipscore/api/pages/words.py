"""How things are written on the pages: numbers, times, names, states. Times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from hipscore.routing import EXPLAINED, NO_RULE, ORDERED

_MISSING = "–"

_STATUS = {
    "queued": "waiting",
    "analysing": "being analysed",
    "scored": "scored",
    "not_scorable": "not scorable",
    "failed": "failed",
    "withdrawn": "withdrawn",
    None: "ignored",
}
_SENT = {
    "committed": "kept everywhere",
    "arrived": "kept everywhere",
    "unconfirmed": "sent, not yet confirmed",
    "waiting": "waiting",
    "needs_you": "needs you",
    None: _MISSING,
}
_DELIVERY = {
    "PENDING": "waits to be sent",
    "SENDING": "is being sent",
    "SENT": "sent",
    "COMMITTED": "kept: the destination has confirmed it",
    "REFUSED": "refused by the destination",
    "EXHAUSTED": "given up after the last attempt",
}
_RULES = {
    EXPLAINED: "no rule matched; analysed so that the study is told why",
    ORDERED: "analysed because somebody asked for it",
    NO_RULE: "no rule matched",
    "localizer": "nothing but scouts (localizer)",
    None: _MISSING,
}
_SEX = {"M": "male", "F": "female", "O": "other"}
_STEPS = (("day", 86400), ("hour", 3600), ("minute", 60))


def score(value: float | None) -> str:
    """A score with two decimals."""
    return _MISSING if value is None else f"{value:.2f}"


def difference(value: float | None) -> str:
    """A difference with its sign."""
    return _MISSING if value is None else f"{value:+.2f}".replace("-", "−")


def day(value: str | None) -> str:
    """A DICOM date (PS3.5 6.2, DA) as ``2026-03-14``."""
    if not value or len(value) != 8:
        return value or _MISSING
    return f"{value[:4]}-{value[4:6]}-{value[6:]}"


def moment(value: datetime | None, form: str = "%Y-%m-%d %H:%M") -> str:
    """A time, UTC."""
    return _MISSING if value is None else f"{value.astimezone(UTC):{form}}"


def ago(value: datetime | None, now: datetime) -> str:
    """How long ago a time is, in its largest unit."""
    if value is None:
        return _MISSING
    seconds = max((now - value).total_seconds(), 0.0)
    for name, length in _STEPS:
        if seconds >= length:
            return plural(int(seconds // length), name)
    return plural(int(seconds), "second")


def person(value: str) -> str:
    """A person's name (PS3.5 6.2.1) as ``Family, Given Middle``, ideographs behind it."""
    alphabetic, ideographic = ([*value.split("="), ""])[:2]
    first, other = _group(alphabetic, ", "), _group(ideographic, " ")
    return f"{first} ({other})" if first and other else first or other or _MISSING


def _group(text: str, comma: str) -> str:
    family, given, middle, prefix, suffix = (text.split("^") + [""] * 5)[:5]
    rest = " ".join(part.strip() for part in (prefix, given, middle, suffix) if part.strip())
    return comma.join(part for part in (family.strip(), rest) if part)


def sex(value: str) -> str:
    """Patient's Sex (PS3.3 C.7.1.1) as a word."""
    return _SEX.get(value, "")


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 slice``, ``2 slices``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def status(value: str | None) -> str:
    """The status of the result JSON in words."""
    return _STATUS.get(value, str(value))


def sent(value: str | None) -> str:
    """Where the results of a study are, in words."""
    return _SENT.get(value, str(value))


def delivery(state: str, *, confirmed: bool = True) -> str:
    """The state of a delivery in words.

    ``confirmed`` is false of what was sent and waits for the confirmation of its destination.
    """
    return _SENT["unconfirmed"] if not confirmed else _DELIVERY.get(state, state.lower())


def rule(name: str | None) -> str:
    """The rule that took a series, or what did in the place of a rule."""
    return _RULES.get(name, str(name))


def area(value: float | None) -> str:
    """An area in square millimetres with one decimal."""
    return _MISSING if value is None else f"{value:.1f}"


def words(code: str) -> str:
    """A stable code as words: ``one_hip_only`` is ``one hip only``."""
    return code.replace("_", " ")
