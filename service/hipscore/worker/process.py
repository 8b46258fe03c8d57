"""The processes ``hipscore work`` and ``hipscore beat``: Celery around the three tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from celery import Celery, signals
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from kombu import Producer
from kombu.exceptions import OperationalError

from hipscore import inference, queue
from hipscore.domain import Segmenter
from hipscore.settings import Settings
from hipscore.worker.analysis import analyse
from hipscore.worker.bench import Bench, bench
from hipscore.worker.delivery import deliver
from hipscore.worker.reaping import reap

log = logging.getLogger(__name__)


def run_worker(
    settings: Settings,
    concurrency: int = 1,
    *,
    queues: Sequence[str] = (queue.ANALYSIS_QUEUE, queue.DELIVERY_QUEUE),
    segmenter: Callable[[], Segmenter] | None = None,
) -> int:
    """Run a Celery worker in this process until it is told to stop.

    Parameters
    ----------
    settings
        Database, broker, spool, bundle and destinations.
    concurrency
        Child processes; each loads the networks once and does one task at a time.
    queues
        Which queues to serve.
    segmenter
        Called in every child to make its networks; default: the bundle of the settings on
        its share of the cores.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    hipscore.inference.BundleError
        If the default is used and the bundle is missing or damaged.
    """
    if segmenter is None:
        directory = inference.open_bundle(settings.bundle_dir).directory
        threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // concurrency)

        def segmenter() -> Segmenter:
            return inference.load_segmenter(directory, threads)

    app = _consumer(settings)
    _register(app, _Once(settings, segmenter))
    worker = app.Worker(
        pool="prefork",
        concurrency=concurrency,
        queues=list(queues),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def run_beat(settings: Settings) -> None:
    """Ask for a reap every ``reap_seconds`` until told to stop. Keeps no file of its own."""
    _consumer(settings).Beat(scheduler=f"{__name__}:_Scheduler", quiet=True).run()


class _Scheduler(Scheduler):
    """Celery's scheduler without its file, a line per message, and a stack per failure."""

    def apply_entry(self, entry: ScheduleEntry, producer: Producer | None = None) -> None:
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except (SchedulingError, OperationalError, OSError) as error:
            log.warning("broker is down, %s is asked for again soon: %s", entry.task, error)


class _Once:
    """The bench of a worker process, made at its start, or at the next task if that failed."""

    def __init__(self, settings: Settings, segmenter: Callable[[], Segmenter]) -> None:
        self._settings = settings
        self._segmenter = segmenter
        self._bench: Bench | None = None

    def __call__(self) -> Bench:
        if self._bench is None:
            self._bench = bench(self._settings, self._segmenter())
        return self._bench


def _consumer(settings: Settings) -> Celery:
    # An empty receiver keeps Celery from configuring logging on its own.
    signals.setup_logging.connect(_leave_logging, weak=False)
    # A line per message says nothing that the lines per job and delivery do not say better.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    return queue.consumer(
        settings.broker,
        lease_seconds=settings.lease_seconds,
        reap_seconds=settings.reap_seconds,
    )


def _leave_logging(**_: object) -> None:
    pass


def _register(app: Celery, make: Callable[[], Bench]) -> None:
    def warm(**_: object) -> None:
        make()

    signals.worker_process_init.connect(warm, weak=False)

    @app.task(name=queue.ANALYSE)
    def _analyse(job_id: int) -> None:
        analyse(job_id, make())

    @app.task(name=queue.DELIVER)
    def _deliver(delivery_id: int) -> None:
        deliver(delivery_id, make())

    @app.task(name=queue.REAP)
    def _reap() -> None:
        reap(make())
