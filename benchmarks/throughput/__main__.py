"""Series per hour over 1, 2 and 4 analysis workers, and what queue and database cost per job.

``python -m benchmarks.throughput`` sends series through the real listener, starts workers,
and when all of them are warm announces all jobs at once. The clock stops when the last result
is in Orthanc. Networks: the shipped ones, or a stand-in that sleeps and answers what they
answered. Database and broker: PostgreSQL (fsync on) and Redis, or SQLite and the Valkey that
hipscore embeds. Storage commitment is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select

from benchmarks import service, tables
from benchmarks.throughput.overhead import Counted, counted, unexplained
from hipscore import inference, listener, phantom, queue
from hipscore.header import read_image
from hipscore.lifecycle import JobState
from hipscore.settings import Settings
from hipscore.store import engine as database
from hipscore.store.tables import Delivery, Event, Job
from tests import servers

BOTH = (queue.ANALYSIS_QUEUE, queue.DELIVERY_QUEUE)
#: what is wanted of queue and database per job, seconds
TARGETS_S = {"PostgreSQL, Redis": 0.030, "SQLite, embedded": 0.050}
#: seconds that the stand-in sleeps for one series
SLEEP_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    jobs: int
    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What all measurements share: the PACS, the broker, one series, and where files go."""

    pacs: servers.Orthanc
    broker: servers.Redis
    root: Path
    images: list[Dataset]
    files: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds per job for queue and database: what is left over, and what was counted."""

    left: float
    counted: Counted


def main() -> None:
    """Measure, print, and keep when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16, help="series per measurement")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--fast", action="store_true", help="four series, one worker")
    parser.add_argument("--keep", action="store_true", help=f"write the tables to {tables.PAGE}")
    arguments = parser.parse_args()
    plan = Plan(jobs=arguments.jobs, workers=tuple(arguments.workers))
    if arguments.fast:
        plan = Plan(jobs=4, workers=(1,))
    with contextlib.ExitStack() as parts:
        root = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
        images = phantom.to_datasets(phantom.synthesise(seed=1, burden=phantom.Burden("moderate")))
        files = root / "series"
        files.mkdir()
        for number, image in enumerate(images):
            image.save_as(files / f"{number:04d}.dcm", enforce_file_format=True)
        site = Site(
            pacs=parts.enter_context(servers.orthanc(root)),
            broker=parts.enter_context(servers.redis()),
            root=root,
            images=images,
            files=files,
        )
        server = parts.enter_context(servers.postgres(fsync=True))
        databases: dict[str, Callable[[], contextlib.AbstractContextManager[str | None]]] = {
            "PostgreSQL, Redis": server.database,
            "SQLite, embedded": contextlib.nullcontext,
        }
        text = "\n\n".join(
            (tables.machine(), rates(site, plan, databases), overheads(site, plan, databases))
        )
    print(f"\n{text}")
    if arguments.keep:
        tables.keep("throughput", text)


def rates(site: Site, plan: Plan, databases: Any) -> str:
    """Series per hour, as Markdown."""
    rows = []
    for kind, made in databases.items():
        for networks, sleep in (("shipped", None), (f"stand-in, {SLEEP_S:g} s", SLEEP_S)):
            cells: list[str] = []
            first = 0.0
            for workers in plan.workers:
                with made() as url, stored(site, url, plan.jobs) as settings:
                    span = analysed(settings, site, workers=workers, sleep=sleep)
                rate = 3600 * plan.jobs / span
                first = first or rate
                cells += [f"{rate:.0f}", f"{rate / first:.2f}×"]
                _say(f"{kind}, {networks}, {workers} workers: {rate:.0f} series per hour")
            rows.append([kind, networks, *cells])
    header = [
        cell for each in plan.workers for cell in (f"{each} worker{'s' * (each > 1)}", "÷ first")
    ]
    return "\n\n".join(
        (
            (
                f"Series per hour, {plan.jobs} series of 24 slices per measurement; a delivery "
                "worker runs beside the analysis workers:"
            ),
            tables.table(["database, broker", "networks", *header], rows, left=2),
        )
    )


def overheads(site: Site, plan: Plan, databases: Any) -> str:
    """Milliseconds per job for queue and database, as Markdown."""
    rows = []
    for kind, made in databases.items():
        with made() as url, stored(site, url, plan.jobs + 1) as settings:
            found = overhead(settings, site)
        parts = (found.counted.database, found.counted.publishing, found.counted.between)
        seconds = (found.left, found.counted.total, *parts, found.counted.processor)
        target = f"{1000 * TARGETS_S[kind]:.0f}"
        rows.append([kind, *(f"{1000 * each:.1f}" for each in seconds), target])
        _say(f"{kind}: {rows[-1]}")
    header = ["left over", "counted", "database", "publishing", "between tasks"]
    header += ["processor of the two", "target"]
    return "\n\n".join(
        (
            (
                "Queue and database per job, milliseconds; one process serves both queues, "
                f"{plan.jobs} series, stand-in. *Left over*: the ledger's span per job without "
                "the job's timings, reading and sending. *Counted*: inside SQLAlchemy and the "
                "broker's client, and between two tasks:"
            ),
            tables.table(["database, broker", *header], rows),
        )
    )


@contextlib.contextmanager
def stored(site: Site, url: str | None, count: int) -> Iterator[Settings]:
    """Settings of an installation in which so many series were received and wait."""
    data = Path(tempfile.mkdtemp(prefix="data-", dir=site.root))
    settings = Settings(
        data_dir=data,
        database_url=None if url is None else SecretStr(url),
        broker_url=SecretStr(site.broker.url),
        dicom_port=servers.free_port(),
        http_port=servers.free_port(),
        destinations=(site.pacs.peer,),
        no_commitment=(site.pacs.ae_title,),
    )
    database.upgrade(settings.database)
    card = inference.open_bundle(inference.shipped_bundle()).card
    stop, up = threading.Event(), threading.Event()
    receiving = threading.Thread(
        target=listener.serve,
        args=(settings,),
        kwargs={"stop": stop, "ready": lambda _: up.set(), "card": card},
    )
    receiving.start()
    try:
        up.wait(30)
        for _ in range(count):
            service.send(_another(site.images), settings.dicom_port)
        servers.wait_until(lambda: len(_jobs(settings)) == count, what="all jobs are opened")
    finally:
        stop.set()
        receiving.join()
    site.broker.clear()  # they are announced once the workers are warm
    yield settings


def _another(images: Sequence[Dataset]) -> list[Dataset]:
    """The same pictures as a series of another study."""
    study, series = generate_uid(), generate_uid()
    for image in images:
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.SOPInstanceUID = generate_uid()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return list(images)


def analysed(settings: Settings, site: Site, *, workers: int, sleep: float | None) -> float:
    """Seconds from the announcement of all jobs to the last result in the PACS."""
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=site.root))
    with (
        working(settings, site, notes, queues=BOTH[:1], concurrency=workers, sleep=sleep),
        working(settings, site, notes, queues=BOTH[1:], concurrency=1, sleep=sleep),
    ):
        servers.wait_until(
            lambda: len(list(notes.glob("*.jsonl"))) == workers + 1,
            what="all workers are warm",
            seconds=120,
        )
        jobs = _jobs(settings)
        begun = time.perf_counter()
        _announce(settings, jobs)
        _wait_until_sent(settings, len(jobs))
        return time.perf_counter() - begun


def overhead(settings: Settings, site: Site) -> Overhead:
    """What queue and database cost per job in one process that does everything."""
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=site.root))
    with working(settings, site, notes, queues=BOTH, concurrency=1, sleep=SLEEP_S):
        servers.wait_until(
            lambda: bool(list(notes.glob("*.jsonl"))), what="the worker is warm", seconds=120
        )
        warming, *jobs = _jobs(settings)
        _announce(settings, [warming])
        _wait_until_sent(settings, 1)
        begun = time.perf_counter()  # of one clock in all processes (Linux)
        _announce(settings, jobs)
        _wait_until_sent(settings, len(jobs) + 1)
    tasks = [
        line
        for path in notes.glob("*.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
        if line.get("begun", 0.0) >= begun
    ]
    network = sum(each.get("network", 0.0) for each in tasks)
    if not network:
        raise SystemExit("no time was spent with the PACS: what sends has changed, see worker.py")
    engine = database.connect(settings.database)
    with database.readers(engine)() as session:
        kept = session.scalars(select(Job.timings).where(Job.id.in_(jobs)))
        timings = [each or {} for each in kept]
        moments = [
            each.timestamp()
            for each in session.scalars(
                select(Event.at)
                .join(Job, Job.series_id == Event.series_id)
                .where(Event.what.in_(("claim", "sent")), Job.id.in_(jobs))
            )
        ]
    engine.dispose()
    span = max(moments) - min(moments)
    left = unexplained(span=span, timings=timings, network=network, reading=_reading(site.files))
    return Overhead(left=left, counted=counted(tasks, len(timings)))


@contextlib.contextmanager
def working(
    settings: Settings,
    site: Site,
    notes: Path,
    *,
    queues: Sequence[str],
    concurrency: int,
    sleep: float | None,
) -> Iterator[None]:
    """Run a worker that takes notes."""
    environment = {
        "HIPSCORE_DATA_DIR": str(settings.data_dir),
        "HIPSCORE_DATABASE_URL": settings.database,
        "HIPSCORE_BROKER_URL": settings.broker,
        "HIPSCORE_DESTINATIONS": ",".join(map(str, settings.destinations)),
        "HIPSCORE_NO_COMMITMENT": ",".join(settings.no_commitment),
    }
    process = servers.Process(
        command=[
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in environment.items()),
            *(sys.executable, "-m", "benchmarks.throughput.worker"),
            *(word for each in queues for word in ("--queue", each)),
            *("--concurrency", str(concurrency), "--series", str(site.files)),
            *("--notes", str(notes)),
            *(("--sleep", str(sleep)) if sleep is not None else ()),
        ],
        log=notes / f"{'-'.join(queues)}.log",
        ready=lambda: True,
    )
    process.start()
    try:
        yield
    except BaseException:
        _say(process.tail())
        raise
    finally:
        process.stop()


def _jobs(settings: Settings) -> list[int]:
    engine = database.connect(settings.database)
    try:
        with database.readers(engine)() as session:
            return list(session.scalars(select(Job.id).order_by(Job.id)))
    finally:
        engine.dispose()


def _announce(settings: Settings, jobs: Sequence[int]) -> None:
    app = queue.publisher(settings.broker)
    for each in jobs:
        if not queue.enqueue_analyse(app, each):
            raise SystemExit("the broker is down")
    app.close()


def _wait_until_sent(settings: Settings, count: int) -> None:
    """Wait until so many jobs have ended and everything of them is sent."""
    engine = database.connect(settings.database)

    def ended() -> bool:
        with database.readers(engine)() as session:
            states = session.scalars(select(Job.state)).all()
            deliveries = set(session.scalars(select(Delivery.state)))
        jobs = set(states)
        if not jobs <= {"QUEUED", "ANALYSING", "ANALYSED"} or deliveries & {"REFUSED", "EXHAUSTED"}:
            raise SystemExit(f"jobs {sorted(jobs)}, deliveries {sorted(deliveries)}")
        return states.count(JobState.ANALYSED) == count and deliveries == {"SENT"}

    try:
        servers.wait_until(ended, what="everything is sent", seconds=900, every=0.05)
    finally:
        engine.dispose()


def _reading(folder: Path) -> float:
    """Seconds to read and parse the images of one series, the median of ten times."""
    spent = []
    for _ in range(10):
        begun = time.perf_counter()
        for path in folder.iterdir():
            read_image(path.read_bytes())
        spent.append(time.perf_counter() - begun)
    return tables.p50(spent)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
