"""Steps the tests of listener, worker and API are told in: a scanner sends, work is done."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import func, inspect, select

from hipscore import listener, phantom, worker
from hipscore.domain import ModelCard, Segmenter
from hipscore.phantom import Phantom
from hipscore.settings import Settings
from hipscore.store import engine
from hipscore.store.tables import Base, Job, Series
from tests import servers
from tests.analytic import CARD, Oracle

STEP_SECONDS = 30

#: for tests in which the kind of the database makes no difference
sqlite_only = pytest.mark.parametrize("database_url", ("sqlite",), indirect=True)


@contextlib.contextmanager
def listening(settings: Settings, *, card: ModelCard = CARD) -> Iterator[int]:
    """Run the listener in a thread; yields its port."""
    stop, up = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            listener.serve(settings, stop=stop, ready=lambda _: up.set(), card=card)
        except BaseException as error:  # noqa: BLE001 - raised again in the test
            failed.append(error)
            up.set()

    thread = threading.Thread(target=run, name="listener")
    thread.start()
    try:
        assert up.wait(STEP_SECONDS)
        if failed:
            raise failed[0]
        yield settings.dicom_port
    finally:
        stop.set()
        thread.join(STEP_SECONDS)
        assert not thread.is_alive()


@functools.cache
def make_phantom(seed: int = 1, **more: Any) -> Phantom:
    """A small, quickly made study; the same one for everybody, who must not change it."""
    small = {"rows": 128, "slices": 16, "slice_mm": 5.0, "supersampling": 1}
    return phantom.synthesise(seed=seed, **{**small, **more})


def images(seed: int = 1, **more: Any) -> list[Dataset]:
    """Images of a small study; changing one leaves the others alone."""
    # one by one: copied as a list, the copies would share elements as the originals do
    return [deepcopy(each) for each in _datasets(seed, **more)]


@functools.cache
def _datasets(seed: int, **more: Any) -> list[Dataset]:
    return phantom.to_datasets(make_phantom(seed), **more)


def unannounced(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The same images, without the number that says how many there are."""
    for dataset in datasets:
        del dataset.ImagesInAcquisition
    return list(datasets)


def save(datasets: Sequence[Dataset], folder: Path, *, meta_as_is: bool = False) -> list[Path]:
    """Write Part 10 files; the file meta follows the data set unless it is kept as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets):
        path = folder / f"{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=not meta_as_is)
        paths.append(path)
    return paths


def storescu(
    port: int, paths: Sequence[Path], *options: str, called: str = "HIPSCORE"
) -> subprocess.CompletedProcess[str]:
    """Send files over one association with dcmtk."""
    command = [servers.program("storescu", package="dcmtk"), "--verbose", "--aetitle", "SCANNER"]
    command += ["--call", called, *options, servers.LOOPBACK, str(port), *map(str, paths)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=STEP_SECONDS, check=False
    )


def statuses(sent: subprocess.CompletedProcess[str]) -> list[str]:
    """What the peer answered to each C-STORE, in dcmtk's words."""
    mark = "Received Store Response ("
    text = sent.stdout + sent.stderr
    return [line.split(mark)[1].rstrip(")") for line in text.splitlines() if mark in line]


def data_set(data: bytes) -> bytes:
    """The encoded data set of a Part 10 file, behind its File Meta Information."""
    length = int.from_bytes(data[140:144], "little")
    assert data[128:132] == b"DICM"
    return data[144 + length :]


def rows(settings: Settings, kind: type[Base]) -> list[Any]:
    """Every row of a table, oldest first."""
    with opened(settings) as maker, maker() as session:
        return list(session.scalars(select(kind).order_by(*inspect(kind).primary_key)))


def count(settings: Settings, kind: type[Base]) -> int:
    """How many rows a table has."""
    with opened(settings) as maker, maker() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Any]:
    """Yield a maker of reading sessions."""
    connected = engine.connect(settings.database)
    try:
        yield engine.readers(connected)
    finally:
        connected.dispose()


def queued(settings: Settings, queue: str) -> list[dict[str, Any]]:
    """Bodies of the messages that wait in a queue, newest first."""
    path = Path(settings.broker.removeprefix("redis+socket://"))
    with servers.administrator(path) as client:
        found = client.lrange(queue, 0, -1)
    return [json.loads(message) for message in found]


def received(settings: Settings, sent: Sequence[Dataset], folder: Path) -> Job:
    """Send a series to a listener of its own; the job it opens."""
    with listening(settings) as port:
        assert storescu(port, save(sent, folder)).returncode == 0
        servers.wait_until(
            lambda: any(
                series.series_instance_uid == sent[0].SeriesInstanceUID
                and series.state == "MATCHED"
                for series in rows(settings, Series)
            ),
            what="the series is matched",
        )
    job: Job = rows(settings, Job)[-1]
    return job


@contextlib.contextmanager
def bench(settings: Settings, segmenter: Segmenter | None = None) -> Iterator[worker.Bench]:
    """A worker's bench, with the Oracle if no other segmenter is given."""
    made = worker.bench(settings, segmenter or Oracle())
    try:
        yield made
    finally:
        made.sessions.kw["bind"].dispose()
        made.broker.close()


def knowing(*studies: tuple[Phantom, Sequence[Dataset]], card: ModelCard = CARD) -> Oracle:
    """An Oracle that knows these phantoms."""
    oracle = replace(Oracle(), card=card)
    for truth, datasets in studies:
        oracle.learn(truth, datasets)
    return oracle


@contextlib.contextmanager
def beating(settings: Settings) -> Iterator[None]:
    """A beat in a thread; it has to end when it is told to."""
    stop = threading.Event()
    beat = threading.Thread(target=lambda: worker.run_beat(settings, stop=stop, card=CARD))
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join(30)
        assert not beat.is_alive()


@contextlib.contextmanager
def at_work(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """Work in a thread meanwhile; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
        doing.result(120)
