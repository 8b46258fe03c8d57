"""The processes ``hipscore work``, Celery around three tasks, and ``hipscore beat``, a loop."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeAlias

from celery import Celery, bootsteps, signals

from hipscore import heartbeat, inference, queue, routing
from hipscore.domain import ModelCard, Segmenter
from hipscore.inference import hardware
from hipscore.keeping import sharing
from hipscore.keeping.networks import configured
from hipscore.keeping.rules import destinations
from hipscore.settings import Settings
from hipscore.worker import inquiry, purging
from hipscore.worker.analysis import analyse
from hipscore.worker.bench import Bench, bench, warm
from hipscore.worker.commitment import commit
from hipscore.worker.delivery import deliver
from hipscore.worker.reaping import reap
from hipscore.worker.rehearsal import rehearse

#: seconds that a reap gets to finish when the process is told to stop
GRACE_SECONDS = 0.5

log = logging.getLogger(__name__)

_Count: TypeAlias = "Synchronized[int]"


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
    with ExitStack() as while_running:
        if queue.ANALYSIS_QUEUE not in queues:
            segmenter = None
        elif segmenter is None:
            segmenter = while_running.enter_context(_networks(settings, concurrency))
        app = _consumer(settings)
        warm = _register(app, _Once(settings, segmenter))
        _beat(app, settings, queues=queues, concurrency=concurrency, warm=warm)
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


@contextmanager
def _networks(settings: Settings, concurrency: int) -> Iterator[Callable[[], Segmenter]]:
    """What makes the networks of a child: its own, or those of the engine they share.

    Raises
    ------
    hipscore.inference.BundleError
        If the bundle is not usable, or nothing here can run it as the settings say: refused
        here, in one line, and not in every child.
    """
    bundle = inference.open_bundle(settings.bundle_dir)
    inference.choices(bundle, settings.provider, settings.precision)
    if sharing.wanted(settings, bundle, concurrency):
        with sharing.shared_engine(settings, bundle, concurrency=concurrency) as feeder:
            yield feeder
        return
    threads = max(1, hardware.cores() // concurrency)
    yield lambda: configured(settings, bundle.directory, threads=threads)


def _beat(
    app: Celery, settings: Settings, *, queues: Sequence[str], concurrency: int, warm: _Count
) -> None:
    """Let the main loop write the worker's heartbeat: while it turns, and while it turns only."""
    writer = heartbeat.Writer(
        heartbeat.folder(settings.data_dir),
        queues=queues,
        processes=concurrency,
        warm=lambda: int(warm.value),
    )

    class Beat(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Timer",)

        def start(self, parent: Any) -> None:
            writer()
            self._timer = parent.timer.call_repeatedly(heartbeat.LOOK_S, writer)

        def stop(self, parent: Any) -> None:
            del parent
            self._timer.cancel()
            writer.close()

    app.steps["worker"].add(Beat)


def renew(segmenter: Segmenter | None, worker: int) -> bool:
    """End the worker ``worker``, our parent, after its tasks if our engine was lost; whether so.

    A process whose GPU failed does not get it back, nor its faster way on the processor; whoever
    runs the worker (``hipscore up``, systemd, Compose, Kubernetes) starts it again.
    """
    if not (isinstance(segmenter, inference.BundleSegmenter) and segmenter.lost):
        return False
    if os.getppid() != worker:  # it has ended already
        return False
    log.error("the engine was lost: this worker ends after its tasks, to be started again")
    os.kill(worker, signal.SIGTERM)
    return True


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
            made = bench(self._settings, networks)
            if networks is not None:
                receivers = map(str, destinations(self._settings, made.rules))
                rehearse(networks, routing.built(made.rules, receivers))
            warm(made)
            # what is loaded by now stays: the collector need not look through it at every task
            gc.collect()
            gc.freeze()
            self._bench = made
        return self._bench


def _consumer(settings: Settings) -> Celery:
    # An empty receiver keeps Celery from configuring logging on its own.
    signals.setup_logging.connect(_leave_logging, weak=False)
    # A line per message says nothing that the lines per job and delivery do not say better.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    return queue.consumer(settings.broker, lease_seconds=settings.lease_seconds)


def _leave_logging(**_: object) -> None:
    pass


def _register(app: Celery, make: Callable[[], Bench]) -> _Count:
    """Register the tasks; return the count of child processes that have loaded everything."""
    warm: _Count = multiprocessing.get_context("fork").Value("i", 0)

    def begin(**_: object) -> None:
        make()
        with warm.get_lock():
            warm.value += 1

    signals.worker_process_init.connect(begin, weak=False)
    worker = os.getpid()  # here; in a task it is the child's parent

    @app.task(name=queue.ANALYSE)
    def _analyse(job_id: int) -> None:
        at = make()
        analyse(job_id, at)
        renew(at.segmenter, worker)

    @app.task(name=queue.DELIVER)
    def _deliver(delivery_id: int) -> None:
        deliver(delivery_id, make())

    @app.task(name=queue.COMMIT)
    def _commit(delivery_id: int) -> None:
        commit(delivery_id, make())

    return warm
