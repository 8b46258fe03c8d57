"""The whole service for a benchmark: ``hipscore up`` on free ports, and series to send to it."""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pynetdicom import AE
from sqlalchemy import select

from benchmarks import usage
from hipscore import phantom
from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Delivery, Job, Series
from tests import servers

#: where nothing more is to come of a delivery by itself
SETTLED = frozenset({"COMMITTED", "REFUSED", "EXHAUSTED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running ``hipscore up``. ``database``: its URL."""

    dicom_port: int
    http_port: int
    database: str
    process: servers.Process

    def stop(self) -> None:
        """Stop it, and wait until every process of it is gone: they would disturb what follows."""
        family = usage.children(self.process.pid)
        self.process.stop()
        servers.wait_until(
            lambda: not any(map(usage.alive, family)), what="all processes ended", seconds=90
        )


def answers(port: int, path: str) -> bool:
    """Whether ``GET path`` on loopback is answered with 200; costs a fraction of a millisecond."""
    connection = http.client.HTTPConnection(servers.LOOPBACK, port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def prepared(root: Path, destinations: str = "", *options: str, **more: str) -> Service:
    """The service with its data below ``root``, not started yet.

    ``options`` are those of ``hipscore up``, ``more`` further settings without ``HIPSCORE_``.
    """
    dicom_port, http_port = servers.free_port(), servers.free_port()
    data = root / "data"
    settings = {
        "DATA_DIR": str(data),
        "DICOM_PORT": str(dicom_port),
        "HTTP_PORT": str(http_port),
        "DESTINATIONS": destinations,
        **more,
    }
    process = servers.Process(
        command=[
            "/usr/bin/env",
            *(f"HIPSCORE_{name}={value}" for name, value in settings.items() if value),
            *(sys.executable, "-m", "hipscore", "up", *options),
        ],
        log=root / "up.log",
        ready=lambda: servers.listens(dicom_port) and answers(http_port, "/readyz"),
    )
    url = f"sqlite:///{data / 'hipscore.db'}"
    return Service(dicom_port=dicom_port, http_port=http_port, database=url, process=process)


@contextlib.contextmanager
def running(root: Path, pacs: servers.Orthanc) -> Iterator[Service]:
    """Run the service as it comes, embedded database and broker, with Orthanc as its PACS."""
    service = prepared(root, pacs.peer)
    pacs.add_modality("hipscore", ae_title="HIPSCORE", port=service.dicom_port)
    service.process.start()
    try:
        yield service
    finally:
        service.stop()


def series(seed: int) -> list[Dataset]:
    """A synthetic hip study of 24 slices with its own UIDs."""
    made = phantom.synthesise(seed=seed, burden=phantom.Burden("moderate"))
    return phantom.to_datasets(made, study_uid=generate_uid(), series_uid=generate_uid())


def send(images: Sequence[Dataset], port: int) -> float:
    """Send a series over an association of its own; the time (epoch) of the last response."""
    entity = AE(ae_title="BENCH")
    entity.add_requested_context(MRImageStorage, images[0].file_meta.TransferSyntaxUID)
    association = entity.associate(servers.LOOPBACK, port, ae_title="HIPSCORE")
    if not association.is_established:
        raise SystemExit("hipscore did not accept the association")
    for image in images:
        answer = association.send_c_store(image)
        if answer.get("Status") != 0:
            raise SystemExit(f"hipscore answered {answer}")
    last = time.time()
    association.release()
    return last


def settle(study: str, service: Service, seconds: float = 60.0) -> None:
    """Wait until all results of a study have arrived and the PACS has committed to them."""
    engine = database.connect(service.database)
    states = (
        select(Delivery.state)
        .join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
        .join(Job, Job.id == ArtifactRow.job_id)
        .join(Series, Series.id == Job.series_id)
        .where(Series.study_instance_uid == study)
    )

    def settled() -> bool:
        with database.readers(engine)() as session:
            found = set(session.scalars(states))
        return bool(found) and found <= SETTLED

    try:
        servers.wait_until(settled, what="all is committed to", seconds=seconds, every=0.1)
    finally:
        engine.dispose()
