"""Logging for every process, one line an event, without anything that names a patient."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = "%(asctime)sZ %(levelname)s %(process)d %(name)s: %(message)s"
#: libraries whose debug output could show attributes of a patient
_QUIET = ("highdicom", "celery.app.trace", "alembic", "httpx")
#: pydicom repeats the values it complains about, in its log and in its warnings; what
#: pynetdicom says about a broken connection stands in the outcome that we log
_SILENT = ("pydicom", "pynetdicom", "py.warnings")


class _OneLine(logging.Formatter):
    """UTC, and nothing that a peer sent can begin a line of its own."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Escape control characters; a traceback keeps its lines."""
        line = super().formatMessage(record)
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def configure(level: str = "INFO") -> None:
    """Log to standard error at ``level``; libraries that may name a patient stay quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Stopwatch:
    """Seconds per stage, in order of execution; pass :meth:`stage` to the pipeline."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``seconds[name]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        return " ".join(f"{name}={spent:.3f}s" for name, spent in self.seconds.items())
