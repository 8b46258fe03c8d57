"""The processes ``hipscore work``, Celery around three tasks, and ``hipscore beat``, a loop."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence

from celery import Celery, signals

from hipscore import inference, queue
from hipscore.domain import ModelCard, Segmenter
from hipscore.settings import Settings
from hipscore.worker import inquiry, purging
from hipscore.worker.analysis import analyse
from hipscore.worker.bench import Bench, bench
from hipscore.worker.commitment import commit
from hipscore.worker.delivery import deliver
from hipscore.worker.reaping import reap

#: seconds that a reap gets to finish when the process is told to stop
GRACE_SECONDS = 0.5

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
        Child processes; each does one task at a time.
    queues
        Which queues to serve. Each child loads the networks once, if analysis is among them.
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
    if queue.ANALYSIS_QUEUE not in queues:
        segmenter = None
    elif segmenter is None:
        directory = inference.open_bundle(settings.bundle_dir).directory
        threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // concurrency)

        def segmenter() -> Segmenter:
            return inference.load_segmenter(directory, threads)

    app = _consumer(settings)
    _register(app, _Once(settings, segmenter))
    worker = app.Worker(
        pool="prefork",
        hostname=f"{node(queues)}@{socket.gethostname()}",
        concurrency=concurrency,
        queues=list(queues),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def node(queues: Sequence[str]) -> str:
    """First part of the worker's name: the queue it serves, "celery" where it serves all."""
    return queues[0] if len(queues) == 1 else "celery"


def run_beat(settings: Settings, *, stop: threading.Event, card: ModelCard | None = None) -> None:
    """Reap every ``reap_seconds``, and purge, until ``stop`` is set; then return within a second.

    The reaper asks the database and nothing else, so that it works while the broker is
    down, and never behind a queue. Several at once do no harm.

    Parameters
    ----------
    settings
        Database, spool, and the broker to announce to.
    stop
        Set it to end.
    card
        The model bundle that new jobs are opened for; default: the one in the settings.

    Raises
    ------
    hipscore.inference.BundleError
        If ``card`` is not given and the bundle is not usable.
    Transient
        If the spool cannot be made or written.
    """
    at = bench(settings, card=card or inference.open_bundle(settings.bundle_dir).card)

    def loop() -> None:
        while not stop.is_set():
            reap(at)
            stop.wait(settings.reap_seconds)

    # A database or broker that hangs holds this thread, not the process: what it has not
    # committed is rolled back, and the next reaper does it again. Purging may take minutes
    # and must not hold up the reaper.
    reaping = threading.Thread(target=loop, name="reaper", daemon=True)
    reaping.start()
    threading.Thread(target=purging.watch, args=(at, stop), name="purger", daemon=True).start()
    if settings.query_peer is not None:
        asking = threading.Thread(
            target=inquiry.watch, args=(at, stop), name="inquirer", daemon=True
        )
        asking.start()
    log.info("reaping every %g s", settings.reap_seconds)
    stop.wait()
    reaping.join(GRACE_SECONDS)


class _Once:
    """The bench of a worker process, made at its start, or at the next task if that failed."""

    def __init__(self, settings: Settings, segmenter: Callable[[], Segmenter] | None) -> None:
        self._settings = settings
        self._segmenter = segmenter
        self._bench: Bench | None = None

    def __call__(self) -> Bench:
        if self._bench is None:
            networks = None if self._segmenter is None else self._segmenter()
            self._bench = bench(self._settings, networks)
        return self._bench


def _consumer(settings: Settings) -> Celery:
    # An empty receiver keeps Celery from configuring logging on its own.
    signals.setup_logging.connect(_leave_logging, weak=False)
    # A line per message says nothing that the lines per job and delivery do not say better.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    return queue.consumer(settings.broker, lease_seconds=settings.lease_seconds)


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

    @app.task(name=queue.COMMIT)
    def _commit(delivery_id: int) -> None:
        commit(delivery_id, make())
