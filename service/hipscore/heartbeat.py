"""Which workers live, and which of them are warm: one small file each, below the data directory.

A worker's main loop writes its file again every :data:`PERIOD_S`; what is older than
:data:`LOST_S` is a worker that was killed or hangs. All workers share the data directory, so all
are seen, on whatever machine they run, and nobody needs a right to command them: Celery's remote
control, which could be asked the same, would also end or starve them for anyone on the broker.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 10.0
LOST_S = 60.0
#: how often the main loop looks whether there is something to tell
LOOK_S = 0.5
#: of workers that were killed; long enough for an administrator to wonder about
FORGOTTEN_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a worker says of itself.

    Attributes
    ----------
    queues
        What it serves.
    host, pid
        Where it runs.
    processes
        How many child processes it runs, each doing one task at a time.
    warm
        How many of them have loaded what they work with (the networks, where it analyses).
    age_s
        Seconds since it was written.
    """

    queues: tuple[str, ...]
    host: str
    pid: int
    processes: int
    warm: int
    age_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it was written lately."""
        return self.age_s < LOST_S


def folder(data_dir: Path) -> Path:
    """Where the workers of a data directory write."""
    return data_dir / "workers"


def here() -> str:
    """Name of this machine or container, as the heartbeats give it."""
    return socket.gethostname()


def read(into: Path) -> list[Heartbeat]:
    """Heartbeats of all workers, lost ones too, by queue, host and process."""
    return sorted(_read(into), key=lambda each: (each.queues, each.host, each.pid))


def _read(into: Path) -> Iterator[Heartbeat]:
    for path in into.glob("*.json"):
        with suppress(OSError, ValueError, TypeError):  # it ended meanwhile, or is not ours
            age = time.time() - path.stat().st_mtime
            facts = json.loads(path.read_text("utf-8"))
            facts["queues"] = tuple(facts["queues"])
            yield Heartbeat(**facts, age_s=max(age, 0.0))


class Writer:
    """Writes the heartbeat of this process, when the main loop of the worker calls it.

    Parameters
    ----------
    into
        :func:`folder`; made if it does not exist.
    queues, processes
        As in :class:`Heartbeat`.
    warm
        Tells how many processes are warm; one that was replaced may count twice.
    """

    def __init__(
        self, into: Path, *, queues: Sequence[str], processes: int, warm: Callable[[], int]
    ) -> None:
        self._into, self._queues, self._processes, self._warm = into, queues, processes, warm
        name = f"{'+'.join(queues)}.{here()}.{os.getpid()}.json"
        self._path = into / name
        self._written: tuple[float, int] | None = None
        self._forget()

    def __call__(self) -> None:
        """Write it if it is time, or if something changed.

        A disk that fails costs the heartbeat, not the work.
        """
        warm = min(self._warm(), self._processes)
        now = time.monotonic()
        if self._written is not None:
            at, told = self._written
            if warm == told and now - at < PERIOD_S:
                return
        with suppress(OSError):
            self._write(warm)
            self._written = (now, warm)

    def close(self) -> None:
        """Take it away: the worker ends in order."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, warm: int) -> None:
        """Whole or not at all."""
        self._into.mkdir(parents=True, exist_ok=True)
        facts = {
            "queues": list(self._queues),
            "host": here(),
            "pid": os.getpid(),
            "processes": self._processes,
            "warm": warm,
        }
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts), "utf-8")
        temporary.replace(self._path)

    def _forget(self) -> None:
        for path in self._into.glob("*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                    path.unlink()
