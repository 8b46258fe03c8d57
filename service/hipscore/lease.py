"""Who holds a lease: the token names the process, so that its death is seen, not awaited.

A lease ends by itself after ``lease_seconds``, which has to be longer than the longest
work. A process that was killed would keep its work for all that time. The reaper on the
same machine therefore asks the kernel whether the holder still lives; only for holders
elsewhere, another container included, does the time decide.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def token() -> str:
    """A lease token that nobody else has: machine, process, its start, and something random."""
    pid = os.getpid()
    try:
        started = _started(pid)
    except OSError:
        started = None
    return f"{_here()}-{pid}-{started or 0}-{uuid.uuid4().hex}"


def holder_died(lease: str) -> bool:
    """Whether the process that took this lease is known to be dead.

    False when it lives, and when that cannot be told from here: it runs on another machine
    or in another container, or the token has another form.
    """
    where, _, rest = lease.partition("-")
    pid, _, rest = rest.partition("-")
    started, _, _ = rest.partition("-")
    if where != _here() or not where or not pid.isdecimal() or not started.isdecimal():
        return False
    if started == "0":
        return False
    try:
        # A number is given again to another process: only with the same start is it the same.
        return _started(int(pid)) != int(started)
    except OSError:
        return False  # no more files may be open here, or processes of others are hidden


@cache
def _here() -> str:
    """Name the boot of this machine and the namespace its process numbers count in (Linux)."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:16]


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5)); None if it is gone.

    Raises
    ------
    OSError
        If that cannot be told.
    """
    try:
        state = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise  # it lives, and /proc does not show it to us
    fields = state.rpartition(")")[2].split()  # behind the name, which may hold anything
    return None if fields[0] in {"Z", "X"} else int(fields[19])
