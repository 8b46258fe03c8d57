"""What queue and database cost per job, derived in two ways that share no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

#: stages of a job's timings that ask the database too: what they compute is measured apart
MIXED = frozenset({"read", "orders"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Seconds per job inside SQLAlchemy, inside Celery's publishing, and between two tasks.

    ``processor``: what the first two took of it, which a busy machine changes less.
    """

    database: float
    publishing: float
    between: float
    processor: float

    @property
    def total(self) -> float:
        return self.database + self.publishing + self.between


def unexplained(
    *, span: float, timings: Sequence[Mapping[str, float]], network: float, reading: float
) -> float:
    """Seconds per job that neither computing, reading, building, storing nor sending explains.

    Parameters
    ----------
    span
        Seconds from the first claim to the last delivery, as the ledger has them; one
        process did everything.
    timings
        Of every job, seconds by stage.
    network
        Seconds spent with the peer, all jobs together.
    reading
        Seconds to read and parse the images of one job, measured apart.
    """
    computed = sum(
        seconds for each in timings for name, seconds in each.items() if name not in MIXED
    )
    return (span - computed - network) / len(timings) - reading


def counted(tasks: Sequence[Mapping[str, Any]], jobs: int) -> Counted:
    """Per job, what one process noted about its tasks (``begun``, ``ended``, and what is in it)."""
    ordered = sorted(tasks, key=lambda each: float(each["begun"]))
    between = sum(after["begun"] - before["ended"] for before, after in pairwise(ordered))
    return Counted(
        database=sum(each.get("database", 0.0) for each in tasks) / jobs,
        publishing=sum(each.get("publishing", 0.0) for each in tasks) / jobs,
        between=between / jobs,
        processor=sum(each.get("processor", 0.0) for each in tasks) / jobs,
    )
