"""The table of a run, for the terminal and for docs/reliability.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.verdict import Round

HEADER = (
    "fault",
    "injected",
    "acknowledged images lost",
    "series without outcome",
    "duplicates",
    "manual repairs",
    "median s",
    "max s",
)
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of fault, or all."""

    kind: str
    rounds: Sequence[Round]

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of the header."""
        seconds = [each.seconds for each in self.rounds if each.seconds is not None]
        return (
            self.kind,
            str(sum(each.faults for each in self.rounds)),
            str(sum(len(each.lost) for each in self.rounds)),
            str(sum(len(each.unsettled) for each in self.rounds)),
            str(sum(len(each.duplicates) for each in self.rounds)),
            str(sum(each.unplanned for each in self.rounds)),
            f"{statistics.median(seconds):.1f}" if seconds else "",
            f"{max(seconds):.1f}" if seconds else "",
        )


def lines(rounds: Iterable[Round]) -> list[Line]:
    """One line for each kind, in alphabetical order, then one for all."""
    every = list(rounds)
    kinds = sorted({each.kind for each in every}, key=str.lower)
    result = [
        Line(kind=kind, rounds=[each for each in every if each.kind == kind]) for kind in kinds
    ]
    return [*result, Line(kind="all", rounds=every)]


def text(rounds: Iterable[Round]) -> str:
    """For the terminal."""
    rows = [HEADER, *(line.cells() for line in lines(rounds))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(rounds: Iterable[Round], *, about: str) -> str:
    """For the page, with a sentence about the run."""
    rows = ["| " + " | ".join(line.cells()) + " |" for line in lines(rounds)]
    rule = "|---|" + "---:|" * (len(HEADER) - 1)
    return "\n".join([about, "", "| " + " | ".join(HEADER) + " |", rule, *rows])


def write(path: Path, content: str) -> None:
    """Put the table between the two comments of the page.

    Raises
    ------
    ValueError
        If the page does not have them.
    """
    page = path.read_text("utf-8")
    whole = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if whole.search(page) is None:
        raise ValueError(f"{path} has no {BEGIN} … {END}")
    path.write_text(whole.sub(lambda _: f"{BEGIN}\n{content}\n{END}", page), "utf-8")
