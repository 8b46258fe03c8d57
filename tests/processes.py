"""Starting, awaiting and ending real server processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"))


class MissingPart(RuntimeError):
    """A program the tests need is not installed."""


class NotStarted(RuntimeError):
    """A server ended or stayed silent instead of becoming ready; its last words are in it."""


def program(name: str, *, package: str) -> str:
    """Path of an installed program.

    Raises
    ------
    MissingPart
        If it is not there, naming the Debian package that has it.
    """
    found = shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise MissingPart(
            f"{name} is not installed: run `make setup-system` (Debian package {package})"
        )
    return found


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def wait_until(
    ready: Callable[[], bool], *, what: str, seconds: float = 30.0, every: float = 0.05
) -> None:
    """Poll until true.

    Raises
    ------
    TimeoutError
        After ``seconds``, saying ``what`` did not happen.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


@dataclass(kw_only=True)
class Process:
    """One server process with its log file; can be killed and started again."""

    command: Sequence[str]
    log: Path
    ready: Callable[[], bool]
    user: str | None = None
    cwd: Path | None = None
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._popen is None:
            raise NotStarted(f"{self.command[0]} is not running")
        return self._popen.pid

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises
        ------
        NotStarted
            If it ends or is not ready in time, with the end of its log.
        """
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                start_new_session=True,
                **identity(self.user),
            )
        running = self._popen
        try:
            wait_until(
                lambda: running.poll() is not None or self.ready(),
                what=f"{self.command[0]} is ready",
                seconds=_START_SECONDS,
            )
        except TimeoutError as silent:
            self.kill()
            raise NotStarted(f"{silent}\n{self.tail()}") from silent
        if running.poll() is not None:
            self._popen = None
            raise NotStarted(
                f"{self.command[0]} ended with {running.returncode} at start\n{self.tail()}"
            )

    def stop(self, ask: signal.Signals = signal.SIGTERM) -> None:
        """End it in an orderly way; kill it if it does not obey."""
        if self._popen is None:
            return
        self._popen.send_signal(ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it and its children at once, as a power cut would."""
        if self._popen is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._popen = None

    def tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def identity(user: str | None) -> dict[str, Any]:
    """``Popen`` arguments that run a program as another user, without its groups."""
    if user is None:
        return {}
    account = pwd.getpwnam(user)
    return {
        "user": account.pw_uid,
        "group": account.pw_gid,
        "extra_groups": [],
        "env": {**os.environ, "HOME": account.pw_dir},
    }


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Yield a directory with a path short enough for Unix sockets (107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="hs-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
