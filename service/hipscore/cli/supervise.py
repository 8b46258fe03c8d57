"""Run hipscore's processes, and the embedded broker, under one parent.

A child that ends is started again after a pause that doubles up to half a minute. When
the parent goes, however it goes, the children go too: the kernel tells them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from hipscore.settings import Settings

_PR_SET_PDEATHSIG = 1
_LONGEST_PAUSE = 30.0
_STEADY_SECONDS = 60.0
#: seconds a child gets to finish before it is killed
STOP_SECONDS = 20.0
#: likewise a worker: one analysis, or one delivery, takes less on any machine of today
WORKER_STOP_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class _Child:
    """One supervised process."""

    name: str
    command: Sequence[str]
    patience: float
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0
    pause: float = 0.5
    due: float = 0.0


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """Starts children in order, restarts them, stops them in reverse order."""

    environment: dict[str, str]
    log_dir: Path | None = None
    say: Callable[[str], None] = field(default=lambda line: click.echo(line, err=True))
    _children: list[_Child] = field(default_factory=list)

    def add(self, name: str, command: Sequence[str], *, patience: float = STOP_SECONDS) -> None:
        """Start ``command`` as ``name``; at the end it gets ``patience`` seconds to finish."""
        child = _Child(name=name, command=command, patience=patience)
        self._children.append(child)
        self._start(child)

    def _start(self, child: _Child) -> None:
        output = None
        if self.log_dir is not None:
            output = (self.log_dir / f"{child.name}.log").open("ab")
        try:
            child.process = subprocess.Popen(  # noqa: S603 - our own commands
                child.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # its own group: Ctrl-C reaches the parent alone, which stops in order
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - only calls prctl(2)
            )
        finally:
            if output is not None:
                output.close()
        child.started = time.monotonic()

    def check(self) -> None:
        """Restart what has ended. Call it every second or so."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                if now - child.started > _STEADY_SECONDS:
                    child.pause = 0.5
                child.process = None
                child.due = now + child.pause
                self.say(f"{child.name} ended ({_ending(code)}); again in {child.pause:g} s")
                child.pause = min(2 * child.pause, _LONGEST_PAUSE)
                child.restarts += 1
            if child.process is None and now >= child.due:
                self._start(child)

    def pid(self, name: str) -> int | None:
        """Process id of the child of this name, None while it does not run."""
        running = (each.process for each in self._children if each.name == name)
        return next((process.pid for process in running if process is not None), None)

    def failed(self) -> str | None:
        """Name of a child that ended since the last :meth:`check`, if any."""
        for child in self._children:
            if child.restarts or (child.process is not None and child.process.poll() is not None):
                return child.name
        return None

    def stop(self) -> None:
        """Ask every child to finish, last started first; kill it when its patience is over."""
        for child in reversed(self._children):
            if child.process is None or child.process.poll() is not None:
                continue
            child.process.terminate()
            try:
                child.process.wait(child.patience)
            except subprocess.TimeoutExpired:
                self.say(f"{child.name} did not finish in {child.patience:g} s and is killed")
                child.process.kill()
                child.process.wait()
        self._children.clear()


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (prctl(2), Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def environment(settings: Settings) -> dict[str, str]:
    """Environment that gives a child exactly these settings."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("HIPSCORE_")
    }
    explicit = {
        "HIPSCORE_DATABASE_URL": settings.database,
        "HIPSCORE_BROKER_URL": settings.broker,
    }
    for name in type(settings).model_fields:
        key = f"HIPSCORE_{name.upper()}"
        value = getattr(settings, name)
        if key not in explicit and value is not None:
            explicit[key] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return {**inherited, **explicit, "PYTHONUNBUFFERED": "1"}


def service(*arguments: str) -> list[str]:
    """Command line of one of our own commands, run by this interpreter."""
    # -P: files of the folder it is started in are no modules of ours
    return [sys.executable, "-P", "-m", "hipscore", *arguments]


def port_open(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False
