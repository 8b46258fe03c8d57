"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. A NOTE is neither good nor bad."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, how it is, and what to do about it."""

    what: str
    level: Level
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding as JSON values."""
        return {
            "what": self.what,
            "level": self.level.value,
            "text": self.text,
            "remedy": self.remedy,
        }


def good(what: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(what=what, level=Level.GOOD, text=text)


def note(what: str, text: str) -> Finding:
    """It is so; nobody has to do anything."""
    return Finding(what=what, level=Level.NOTE, text=text)


def warning(what: str, text: str, remedy: str) -> Finding:
    """It works, and somebody should look at it."""
    return Finding(what=what, level=Level.WARNING, text=text, remedy=remedy)


def fault(what: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(what=what, level=Level.FAULT, text=text, remedy=remedy)
