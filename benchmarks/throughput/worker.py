"""A worker of hipscore that notes what its tasks do, and may compute with a stand-in.

``python -m benchmarks.throughput.worker`` runs :func:`hipscore.worker.run_worker` with the
settings of the environment. Every child appends a line of JSON to a file of its own for each
task: when it began and ended, and the seconds inside it that went to the database (a
connection checked out of SQLAlchemy's pool), to publishing (Celery and kombu) and to the
network (pynetdicom, waiting for the peer included).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from celery import signals
from pynetdicom import AE
from pynetdicom.association import Association
from sqlalchemy import event
from sqlalchemy.pool import Pool

from benchmarks.recorder import Recorder
from hipscore import inference, pipeline, queue, telemetry
from hipscore.domain import Engine, FloatArray, ModelCard, Segmenter
from hipscore.header import read_image
from hipscore.keeping.networks import configured
from hipscore.settings import Settings
from hipscore.worker import run_worker


@dataclass(kw_only=True)
class Notes:
    """What one process did: where it goes, and the seconds of the task that runs."""

    folder: Path
    spent: dict[str, float] = field(default_factory=dict)
    begun: float = 0.0

    def write(self, **what: Any) -> None:
        """Append a line."""
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")

    def add(self, what: str, seconds: float) -> None:
        """Count seconds of the task that runs."""
        self.spent[what] = self.spent.get(what, 0.0) + seconds

    def count(self, what: str, since: tuple[float, float]) -> None:
        """Count the seconds since then, and what they took of the processor."""
        passed, used = (now - then for now, then in zip(_now(), since, strict=True))
        self.add(what, passed)
        self.add("processor", used)

    def begin(self, **_: object) -> None:
        """Begin a task."""
        self.spent.clear()
        self.begun = time.perf_counter()

    def end(self, task: Any = None, **_: object) -> None:
        """End a task and write it down."""
        self.write(task=task.name, begun=self.begun, ended=time.perf_counter(), **self.spent)


class StandIn:
    """Networks that sleep and answer what the real ones answered to the same pictures."""

    def __init__(self, recorder: Recorder, seconds: float) -> None:
        self.card: ModelCard = recorder.card
        self.engine: Engine = recorder.engine
        self._answers = {_digest(given): answer for given, answer in recorder.calls}
        self._pause = seconds / len(recorder.calls)

    def localise(self, planes: FloatArray) -> FloatArray:
        """Sleep and answer."""
        return self._answer(planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        """Sleep and answer."""
        return self._answer(crops)

    def _answer(self, given: FloatArray) -> FloatArray:
        time.sleep(self._pause)
        return self._answers[_digest(given)]


def _digest(pictures: FloatArray) -> bytes:
    return hashlib.sha1(pictures.tobytes(), usedforsecurity=False).digest()


def main() -> None:
    """Run the worker until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--queue", action="append", required=True)
    parser.add_argument("--series", type=Path, required=True, help="warms the networks up")
    parser.add_argument("--sleep", type=float, help="compute with a stand-in that sleeps so long")
    parser.add_argument("--notes", type=Path, required=True)
    arguments = parser.parse_args()
    settings = Settings()
    telemetry.configure("WARNING")
    notes = Notes(folder=arguments.notes)
    observe(notes)

    def networks() -> Segmenter:
        threads = max(1, len(os.sched_getaffinity(0)) // arguments.concurrency)
        real = configured(settings, inference.shipped_bundle(), threads=threads)
        recorder = Recorder(networks=real)
        images = [read_image(path.read_bytes()) for path in sorted(arguments.series.iterdir())]
        pipeline.analyse(images, recorder)
        notes.write(ready=True)
        return real if arguments.sleep is None else StandIn(recorder, arguments.sleep)

    if queue.ANALYSIS_QUEUE not in arguments.queue:
        signals.worker_process_init.connect(lambda **_: notes.write(ready=True), weak=False)
    sys.exit(
        run_worker(
            settings, arguments.concurrency, queues=tuple(arguments.queue), segmenter=networks
        )
    )


def observe(notes: Notes) -> None:
    """Count what every task of this process and its children does from now on."""
    signals.task_prerun.connect(notes.begin, weak=False)
    signals.task_postrun.connect(notes.end, weak=False)
    published = (0.0, 0.0)

    def publishing(**_: object) -> None:
        nonlocal published
        published = _now()

    def has_published(**_: object) -> None:
        notes.count("publishing", published)

    signals.before_task_publish.connect(publishing, weak=False)
    signals.after_task_publish.connect(has_published, weak=False)

    @event.listens_for(Pool, "checkout")
    def _out(connection: Any, record: Any, proxy: Any) -> None:
        del connection, proxy
        record.info["since"] = _now()

    @event.listens_for(Pool, "checkin")
    def _back(connection: Any, record: Any) -> None:
        del connection
        if (since := record.info.pop("since", None)) is not None:
            notes.count("database", since)

    for owner, name in (
        (AE, "associate"),
        (Association, "send_c_store"),
        (Association, "release"),
        (Association, "abort"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), notes))


def _now() -> tuple[float, float]:
    """What the clock says, and how long this thread has had the processor, seconds."""
    return time.perf_counter(), time.thread_time()


def _timed(call: Callable[..., Any], notes: Notes) -> Callable[..., Any]:
    @wraps(call)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            notes.add("network", time.perf_counter() - begun)

    return timed


if __name__ == "__main__":
    main()
