"""What this machine's processor computes fast, as Linux tells it."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from hipscore.inference.bundle import Precision

_CPUINFO = Path("/proc/cpuinfo")
#: what a container may use of the processors, "QUOTA PERIOD" in microseconds (cgroup v2)
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: one of these flags (x86 ``flags``, Arm ``Features``) makes a precision worth while
_UNITS = {
    Precision.INT8: frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "asimddp"}),
    Precision.BF16: frozenset({"amx_bf16", "avx512_bf16", "bf16"}),
}


@cache
def _described() -> str:
    try:
        return _CPUINFO.read_text("utf-8")
    except OSError:  # not Linux
        return ""


def cores() -> int:
    """How many cores this process may use: its affinity, or less where its container's quota is."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text("ascii").split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or "max": no quota
        return allowed


def processor() -> str:
    """Name of the processor."""
    named = re.search(r"^model name\s*:\s*(.+)$", _described(), re.MULTILINE)
    return named.group(1).strip() if named else platform.processor() or platform.machine()


def units() -> frozenset[str]:
    """Flags of the processor's instruction sets; empty where they are not known."""
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _described(), re.MULTILINE)
    return frozenset(listed.group(1).split()) if listed else frozenset()


def computes(precision: Precision) -> bool:
    """Whether the processor has units for this precision, so that it is faster than fp32."""
    return precision not in _UNITS or bool(_UNITS[precision] & units())
