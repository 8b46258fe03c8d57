"""What every benchmark prints, and keeps in ``docs/performance.md``: Markdown tables.

A table on the page stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; a run
replaces what is between them and nothing else, so that the words around it stay hand-written.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

#: where the last run is kept
PAGE = Path("docs/performance.md")
#: what speeds up a network on a processor, as Linux names it
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are words, the rest numbers."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    rule = [
        "-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(lines[0]), line(rule), *(line(each) for each in lines[1:])])


def keep(name: str, text: str, page: Path = PAGE) -> None:
    """Put ``text`` between the marks of ``name`` on the page.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = page.read_text("utf-8")
    if begin not in content or end not in content:
        msg = f"{page} has no marks for {name!r}: {begin} and {end}"
        raise ValueError(msg)
    before, rest = content.split(begin, 1)
    _, after = rest.split(end, 1)
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def machine(*packages: str) -> str:
    """One line about the machine, and the versions of ``packages``."""
    described = Path("/proc/cpuinfo").read_text("utf-8")
    model = re.search(r"^model name\s*:\s*(.*)$", described, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", described, re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {model.group(1) if model else platform.machine()} "
        f"({', '.join(flag for flag in _FLAGS if flag in known) or 'no vector units known'}), "
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Python "
        f"{platform.python_version()}{'; ' + versions if versions else ''}"
    )


def p50(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile by rank: of fewer than 20 values the largest."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
