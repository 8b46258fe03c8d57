"""The process of a shared engine: it loads the networks and computes until it is told to stop.

It imports what computes and nothing else of the service, so that it starts fast.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hipscore import telemetry
from hipscore.inference.bundle import BundleError
from hipscore.inference.networks import load_segmenter
from hipscore.inference.shared import Server

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which networks, and on what: see :func:`~hipscore.inference.networks.load_segmenter`."""

    directory: Path
    provider: str
    precision: str
    threads: int
    cache: Path
    log_level: str


def serve(asked: Asked, address: str, key: bytes, control: Connection) -> None:
    """Body of the process; ends it.

    It says ``ready`` through ``control`` when it computes, and ends when it is told anything
    through it, or when the worker and all its children are gone.
    """
    telemetry.configure(asked.log_level)
    # a terminal or systemd tells the whole group: the engine outlives the tasks that need it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        segmenter = load_segmenter(
            asked.directory,
            asked.threads,
            provider=asked.provider,
            precision=asked.precision,
            cache=asked.cache,
        )
    except BundleError as error:
        log.error("%s", error)  # noqa: TRY400 - our own line says it all
        sys.exit(1)
    server = Server(segmenter, address, key)

    def obey() -> None:
        with suppress(EOFError, OSError):
            control.recv_bytes()
        server.stop()

    threading.Thread(target=obey, name="control", daemon=True).start()
    control.send_bytes(b"ready")
    code = server.run()
    os._exit(code)  # threads hold connections, and what belongs to a lost device hangs
