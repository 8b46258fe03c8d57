"""Processes that are watched from outside: how much memory they take, whether they live."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.analysing import drawn

#: seconds one series may take before it counts as a hang
SERIES_SECONDS = 60.0
#: memory of the worker's process, MB
WORKER_MB = 1500.0
_POLL_S = 0.05


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process (``VmHWM``: its peak); 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith(what + ":")), "x 0")
    return int(line.split()[1]) / 1024


@dataclass
class Analysts:
    """A process that analyses series by number; replaced whenever one ends it."""

    real: bool = False
    _process: subprocess.Popen[str] | None = None
    _lines: queue.Queue[str] = field(default_factory=queue.Queue)

    def outcomes(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """What became of each series; an ended process is an outcome, too."""
        try:
            for number in numbers:
                yield self._outcome(number)
        finally:
            self._end()

    def _outcome(self, number: int) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        end = time.monotonic() + SERIES_SECONDS
        peak = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                answer: dict[str, Any] = json.loads(self._lines.get(timeout=_POLL_S))
                if answer["peak_mb"] > WORKER_MB:
                    answer |= {"outcome": "memory", "defect": f"{answer['peak_mb']:.0f} MB"}
                return answer
            peak = max(peak, memory_mb(process.pid))
            fate = None
            if process.poll() is not None:
                fate = ("crash", f"the process ended with {process.returncode}")
            elif peak > WORKER_MB:
                fate = ("memory", f"more than {WORKER_MB:.0f} MB")
            elif time.monotonic() > end:
                fate = ("hang", f"no answer within {SERIES_SECONDS:g} s")
            if fate is not None:
                self._end()
                return _ended(number, *fate, peak)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz.analysing", *["--real"] * self.real]
            self._lines = queue.Queue()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            threading.Thread(target=_drain, args=(self._process, self._lines), daemon=True).start()
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _drain(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)


def _ended(number: int, what: str, why: str, peak: float) -> dict[str, Any]:
    source, how, _ = drawn(number)
    return {
        "number": number,
        "how": how,
        "source": source,
        "objects": 1,
        "outcome": what,
        "defect": why,
        "peak_mb": round(peak, 1),
    }
