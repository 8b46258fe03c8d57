"""The words in which :mod:`hipscore.store.why` tells what happened. Times are UTC."""

from __future__ import annotations

from datetime import datetime, timedelta

from hipscore.store.account import Surroundings

#: something that is due for this long should have been taken by a worker
OVERDUE = timedelta(seconds=60)


class Telling:
    """The sentences as they are found; the same advice is given once."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.sentences: list[str] = []
        self.what_next: list[str] = []

    def say(self, sentence: str, *advice: str) -> None:
        """Add a sentence, and what follows from it."""
        self.sentences.append(sentence)
        self.advise(*advice)

    def advise(self, *advice: str) -> None:
        """Add what is to be done next."""
        self.what_next += [each for each in advice if each not in self.what_next]

    def at(self, time: datetime | None) -> str:
        """The time of day, with the date if it was another day."""
        if time is None:
            return "at an unknown time"
        same_day = time.date() == self.around.now.date()
        return f"{time:%H:%M}" if same_day else f"{time:%Y-%m-%d %H:%M}"


def images(count: int) -> str:
    """Count images."""
    return f"{count} image" if count == 1 else f"{count} images"


def analyses(count: int) -> str:
    """Count analyses."""
    return "1 analysis" if count == 1 else f"{count} analyses"


def tries(count: int) -> str:
    """Count tries."""
    return "1 try" if count == 1 else f"{count} tries"


def times(count: int) -> str:
    """How often."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def duration(span: timedelta) -> str:
    """A duration in the unit that suits it."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"
