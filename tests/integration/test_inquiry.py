"""Asking the PACS how many images a series has, and closing the series on its answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.header import read_header
from hipscore.lifecycle import SeriesState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine
from hipscore.store.tables import Job, Series
from hipscore.worker import inquiry
from hipscore.worker.memory import Pauses
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import refused_sockets

FIND = StudyRootQueryRetrieveInformationModelFind
QUICK = pacs.Timeouts(connection=2.0, acse=2.0, dimse=2.0)


@contextlib.contextmanager
def answering(
    matches: dict[str, list[Dataset]], status: int = 0x0000, seconds: float = 0.0
) -> Iterator[Peer]:
    """A PACS with these matches at each level, then the status, each after so many seconds."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for match in matches.get(event.identifier.QueryRetrieveLevel, []):
            time.sleep(seconds)
            yield 0xFF00, match
        yield status, None

    entity = AE(ae_title="FINDER")
    entity.add_supported_context(FIND)
    handlers: list[Any] = [(evt.EVT_C_FIND, find)]
    server = entity.start_server((servers.LOOPBACK, 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield Peer(ae_title="FINDER", host=servers.LOOPBACK, port=int(server.server_address[1]))
    finally:
        server.shutdown()


def match(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def image(number: int, series: str = "1.2.7") -> Dataset:
    return match(SeriesInstanceUID=series, SOPInstanceUID=f"{series}.{number}")


def count(peer: Peer) -> int | None:
    return pacs.count_images(peer, "1.2", "1.2.7", calling_aet="HIPSCORE", timeouts=QUICK)


def test_the_number_at_series_level_is_taken() -> None:
    with answering(
        {"SERIES": [match(SeriesInstanceUID="1.2.7", NumberOfSeriesRelatedInstances=24)]}
    ) as peer:
        assert count(peer) == 24


@pytest.mark.parametrize("level", ([], [match(SeriesInstanceUID="1.2.7")]))
def test_a_peer_that_does_not_say_the_number_has_its_images_counted(level: list[Dataset]) -> None:
    images = [image(1), image(2), image(2), image(1, "1.2.8")]  # one twice, one of another series
    with answering({"SERIES": level, "IMAGE": images}) as peer:
        assert count(peer) == 2


@refused_sockets
def test_a_peer_that_fails_is_slow_or_is_down_says_nothing() -> None:
    with answering({}, status=0xA700) as peer:
        assert count(peer) is None
    with answering({"SERIES": [], "IMAGE": [image(n) for n in range(9)]}, seconds=0.5) as peer:
        assert count(peer) is None
    assert count(peer) is None


def received(
    settings: Settings,
    datasets: list[Dataset],
    folder: Path,
    now: datetime = store_steps.NOW,
) -> None:
    """The images lie in the database as if they had come without any proof, long ago."""
    connected = engine.connect(settings.database)
    with engine.transaction(engine.sessions(connected)) as session:
        for path in steps.save(datasets, folder):
            Spool(settings.data_dir / "spool").put(path.read_bytes())
            store_steps.receive(read_header(path.read_bytes()), session=session, now=now)
    connected.dispose()


def test_a_series_of_which_the_pacs_has_no_more_is_closed(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    images = steps.images()
    asking = settings.model_copy(update={"query_peer": Peer.parse(orthanc.peer)})
    received(settings, images[:-1], tmp_path / "first")
    for path in steps.save(images, tmp_path / "pacs"):
        orthanc.upload(path.read_bytes())
    with steps.bench(asking) as at:
        inquiry.inquire(at)
        assert steps.rows(settings, Series)[0].state is SeriesState.RECEIVING
        received(settings, images[-1:], tmp_path / "last")
        inquiry.inquire(at)  # too soon to ask again
        assert steps.rows(settings, Series)[0].state is SeriesState.RECEIVING
        at.memory.asked.keep([])  # time passes
        inquiry.inquire(at)
    (series,) = steps.rows(settings, Series)
    assert (series.state, series.close_reason) == (SeriesState.MATCHED, "peer_count")
    assert steps.count(settings, Job) == 1
    assert len(steps.queued(settings, "analysis")) == 1


@steps.sqlite_only
def test_an_image_that_comes_while_the_pacs_is_asked_keeps_the_series_open(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = steps.images()
    received(settings, images[:8], tmp_path / "first")

    def meanwhile(*_: object, **__: object) -> int:
        received(settings, images[8:9], tmp_path / "next", datetime.now(UTC))
        return 8

    monkeypatch.setattr(pacs, "count_images", meanwhile)
    asking = settings.model_copy(update={"query_peer": Peer.parse("PACS@127.0.0.1:1")})
    with steps.bench(asking) as at:
        inquiry.inquire(at)
    assert steps.rows(settings, Series)[0].state is SeriesState.RECEIVING


@steps.sqlite_only
def test_beat_asks_the_pacs(settings: Settings, orthanc: servers.Orthanc, tmp_path: Path) -> None:
    images = steps.images()
    received(settings, images, tmp_path / "first")
    for path in steps.save(images, tmp_path / "pacs"):
        orthanc.upload(path.read_bytes())
    asking = settings.model_copy(
        update={"query_peer": Peer.parse(orthanc.peer), "quiet_seconds": 1e9}
    )
    with steps.beating(asking):
        servers.wait_until(
            lambda: steps.rows(settings, Series)[0].close_reason == "peer_count",
            what="the series is closed on the word of the PACS",
        )


def test_pauses_grow_and_end() -> None:
    pauses = Pauses(first=0.2, longest=0.3)
    assert pauses.over(1)
    pauses.grow(1)
    assert not pauses.over(1)
    servers.wait_until(lambda: pauses.over(1), what="the pause is over")
    pauses.grow(1)
    pauses.grow(2)
    pauses.keep([2])
    assert (pauses.over(1), pauses.over(2), len(pauses)) == (True, False, 1)
