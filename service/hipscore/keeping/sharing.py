"""The process that holds the networks for all processes of one worker, started and kept."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from hipscore.domain import Segmenter
from hipscore.inference import (
    Bundle,
    BundleError,
    BundleSegmenter,
    choices,
    hardware,
    serving,
    shared,
)
from hipscore.inference.networks import ON_THE_CPU, Room
from hipscore.settings import Settings

#: longest start of the engine: TensorRT builds for minutes when it does so for the first time
READY_SECONDS = 600.0
#: seconds until it is started again, doubled each time it fails
PAUSES_S = (0.5, 30.0)
#: starts in a row that gave no engine, before a worker that has nothing else ends
FAILURES = 5
STOP_SECONDS = 10.0
_DEEPEST_BYTES = 70

log = logging.getLogger(__name__)


def wanted(settings: Settings, bundle: Bundle, concurrency: int) -> bool:
    """Whether the processes of a worker share one engine.

    Raises
    ------
    hipscore.inference.BundleError
        If nothing here runs the networks as the settings say.
    """
    if settings.engine != "auto":
        return settings.engine == "shared"
    if concurrency == 1:
        return False
    first = choices(bundle, settings.provider, settings.precision)[0]
    return first.provider not in ON_THE_CPU


@contextmanager
def shared_engine(settings: Settings, bundle: Bundle, *, concurrency: int) -> Iterator[Feeder]:
    """Run the engine while inside; gives what makes the networks of a feeder.

    The socket lies in a folder that only this user enters, and the key is handed on in memory:
    feeders are forked from this process, or given both.

    Raises
    ------
    hipscore.inference.BundleError
        If the engine cannot be started and the operator allows nothing else.
    """
    threads = settings.threads or max(1, hardware.cores() // concurrency)
    alone = _own(settings, bundle, threads) is None
    # a socket's path is limited to about 100 bytes (unix(7))
    deep = len(os.fsencode(tempfile.gettempdir())) > _DEEPEST_BYTES
    home = "/tmp" if deep else None  # noqa: S108 - what is made there is this user's alone
    with tempfile.TemporaryDirectory(prefix="hipscore-engine-", dir=home) as folder:
        address, key = str(Path(folder) / "engine"), secrets.token_bytes(32)
        asked = serving.Asked(
            directory=bundle.directory,
            provider=settings.provider,
            precision=settings.precision,
            threads=settings.threads,
            cache=settings.engine_cache,
            log_level=settings.log_level,
        )
        keeper = _Keeper(asked, address, key, alone=alone)
        try:
            keeper.start()
            yield Feeder(
                settings=settings, bundle=bundle, threads=threads, address=address, key=key
            )
        finally:
            keeper.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeder:
    """Makes the networks of one feeder, in whichever process it is called."""

    settings: Settings
    bundle: Bundle
    #: of the processor, for networks of its own
    threads: int
    address: str
    key: bytes = field(repr=False)

    def __call__(self) -> Segmenter:
        own = _own(self.settings, self.bundle, self.threads)
        return shared.SharedSegmenter(self.address, self.key, self.bundle.card, own)


def _own(settings: Settings, bundle: Bundle, threads: int) -> shared.Own | None:
    """Networks of a feeder on its share of the processor, if the operator allows that."""
    try:
        found = choices(bundle, settings.provider, settings.precision)
    except BundleError:
        return None
    ways = [each for each in found if each.provider in ON_THE_CPU]
    return (lambda: BundleSegmenter(bundle, ways, Room(threads=threads))) if ways else None


class _Keeper:
    """Starts the engine's process, and again whenever it ends.

    ``alone``: nothing else computes. Then a worker without engine must not take jobs, each of
    which would use up its attempts: it does not begin, or ends, so that its supervisor sees it.
    """

    def __init__(self, asked: serving.Asked, address: str, key: bytes, *, alone: bool) -> None:
        self._arguments, self._alone = (asked, address, key), alone
        self._address = Path(address)
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._ready = False
        self._control: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._thread = threading.Thread(target=self._keep, name="engine-keeper", daemon=True)

    def start(self) -> None:
        """Return when the engine computes, or could not be started.

        Raises
        ------
        hipscore.inference.BundleError
            If it could not, and nothing else computes.
        """
        self._thread.start()
        if not self._begun.wait(READY_SECONDS):
            log.error("the shared engine is not ready after %g s", READY_SECONDS)
        if self._alone and not self._ready:
            provider = self._arguments[0].provider
            msg = f"the shared engine does not start with HIPSCORE_PROVIDER={provider}: see its log"
            raise BundleError(msg)

    def stop(self) -> None:
        self._stop.set()
        self._tell()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()

    def _tell(self) -> None:
        """Close our end: the engine ends with what it computes."""
        control, self._control = self._control, None
        if control is not None:
            with suppress(OSError):
                control.send_bytes(b"stop")
            control.close()

    def _keep(self) -> None:
        shortest, longest = PAUSES_S
        pause, failures = shortest, 0
        while not self._stop.is_set():
            if self._once():
                pause, failures = shortest, 0
            else:
                failures += 1
            if self._alone and failures >= FAILURES and not self._stop.is_set():
                log.error("the shared engine failed to start %d times: the worker ends", failures)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if self._stop.wait(pause):
                return
            pause = min(2 * pause, longest)

    def _once(self) -> bool:
        """Run the engine until it ends; whether it ever computed."""
        # spawned, not forked: CUDA wants a process of its own, and so do the locks of threads
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        ours = self._control
        self._address.unlink(missing_ok=True)  # of one that was killed
        process = context.Process(
            target=serving.serve, args=(*self._arguments, theirs), name="engine", daemon=True
        )
        process.start()
        self._process = process
        theirs.close()
        ready = False
        wait([ours, process.sentinel])
        with suppress(EOFError, OSError):
            ready = ours.poll() and bool(ours.recv_bytes())
        self._ready = ready
        self._begun.set()
        if self._stop.is_set():
            self._tell()
        process.join()
        if not self._stop.is_set():
            log.error("the shared engine ended (%s) and is started again", process.exitcode)
        return ready
