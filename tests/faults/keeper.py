"""What systemd or ``hipscore up`` does: processes that end are started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: seconds between the death of a process and its next start
RESTART_SECONDS = 0.5
_LOOK_SECONDS = 0.1


@dataclass(slots=True, kw_only=True)
class _Kept:
    """One process to keep: what it runs, and since when it is dead."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    died_at: float | None = None
    held: bool = False
    groups: list[int] = field(default_factory=list)


class Keeper:
    """Starts processes, each in a session of its own, and starts them again when they end."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def add(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        """Start a process and keep it running."""
        with self._lock:
            self._kept[name] = _Kept(command=command, environment=environment, log=log)
            self._start(self._kept[name])
        if not self._thread.is_alive():
            self._thread.start()

    def names(self) -> list[str]:
        """Every process that is kept."""
        return list(self._kept)

    def pid(self, name: str) -> int:
        """Process id of the running process, or of the one that died last."""
        popen = self._kept[name].popen
        return 0 if popen is None else popen.pid

    def kill(self, name: str, *, group: bool = True) -> None:
        """SIGKILL to a process and its children, or to it alone."""
        self.signal(name, signal.SIGKILL, group=group)

    def signal(self, name: str, number: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to a process and its children, or to it alone."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid(name), number)

    @contextlib.contextmanager
    def absent(self, name: str) -> Iterator[None]:
        """Kill a process and do not start it again before the end."""
        with self._lock:
            kept = self._kept[name]
            kept.held = True
        self.kill(name)
        try:
            yield
        finally:
            with self._lock:
                kept.held = False

    def change(self, name: str, **environment: str) -> None:
        """Restart a process in an orderly way with other variables."""
        with self._lock:
            kept = self._kept[name]
            kept.environment = {**kept.environment, **environment}
            kept.held = True
        self._stop(kept)
        with self._lock:
            kept.held = False
            self._start(kept)

    def tail(self, name: str, lines: int = 25) -> str:
        """Return the end of a process's log."""
        text = self._kept[name].log.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End everything, orphans of killed parents as well."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        for kept in self._kept.values():
            for group in kept.groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            if kept.popen is not None:
                kept.popen.wait()

    def _start(self, kept: _Kept) -> None:
        with kept.log.open("ab") as log:
            kept.popen = subprocess.Popen(
                kept.command,
                env=dict(kept.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        kept.groups.append(kept.popen.pid)
        kept.died_at = None

    def _stop(self, kept: _Kept) -> None:
        if kept.popen is None:
            return
        kept.popen.terminate()
        try:
            kept.popen.wait(15.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kept.popen.pid, signal.SIGKILL)
            kept.popen.wait()

    def _keep(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            with self._lock:
                for kept in self._kept.values():
                    self._look(kept)

    def _look(self, kept: _Kept) -> None:
        if kept.held or kept.popen is None or kept.popen.poll() is None:
            return
        now = time.monotonic()
        if kept.died_at is None:
            kept.died_at = now
        elif now - kept.died_at >= RESTART_SECONDS:
            self._start(kept)
