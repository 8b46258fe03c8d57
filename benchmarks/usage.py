"""What processes take of the machine, from /proc: seconds of processor, and memory."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a process, MiB. RSS counts a shared page in full, PSS its share of it."""

    rss: float
    pss: float


def children(pid: int) -> list[int]:
    """The process and all that descend from it, parents first."""
    below: dict[int, list[int]] = defaultdict(list)
    for path in _PROC.glob("[0-9]*"):
        fields = _fields(int(path.name))
        if fields:
            below[int(fields[1])].append(int(path.name))
    found = [pid]
    for each in found:  # grows while we go through it
        found += sorted(below[each])
    return found


def names(pid: int) -> dict[int, str]:
    """The process ``hipscore up`` and its descendants: id and what each one is."""
    found: dict[int, str] = {}
    for each in children(pid):
        called = name((_PROC / f"{each}/cmdline").read_bytes().decode(errors="replace").split("\0"))
        fields = _fields(each)
        parent = found.get(int(fields[1]), "") if fields else ""
        found[each] = f"{called}, child" if parent == called else called
    return found


def name(command: list[str]) -> str:
    """What a process of the service is, from its command line."""
    known = {"up": "up", "listen": "listener", "beat": "beat", "serve": "API"}
    if "valkey-server" in command[0]:  # it writes its socket behind its name
        return "Valkey"
    if "work" in command:
        served = [command[at + 1] for at, each in enumerate(command) if each == "--queue"]
        return f"worker ({', '.join(served) or 'all'})"
    for word, shown in known.items():
        if word in command:
            return shown
    return Path(command[0]).name or "?"


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    fields = _fields(pid)
    return bool(fields) and fields[0] != "Z"


def seconds(pid: int) -> float:
    """Seconds of processor that the process has used, user and system; 0 when it is gone."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK_S if fields else 0.0


def busy() -> float:
    """Seconds of processor that all processes of the machine have used since it started."""
    ticks = [int(each) for each in (_PROC / "stat").read_text().splitlines()[0].split()[1:]]
    idle = ticks[3] + ticks[4]  # idle, iowait
    return (sum(ticks[:8]) - idle) * _TICK_S


def memory(pid: int) -> Memory:
    """RSS and PSS now."""
    kib: dict[str, float] = {}
    for line in (_PROC / f"{pid}/smaps_rollup").read_text().splitlines()[1:]:
        what, amount, *_ = line.split()
        kib[what.rstrip(":")] = float(amount)
    return Memory(rss=kib["Rss"] / 1024, pss=kib["Pss"] / 1024)


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name, as proc(5) lists them from the state on."""
    try:
        text = (_PROC / f"{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()
