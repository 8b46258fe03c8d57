"""From the last image's C-STORE response to the report in the PACS, and where the time goes.

``python -m benchmarks.latency`` runs ``hipscore up`` as it comes (embedded database and
broker, warm worker) with an Orthanc as PACS, sends synthetic hip series of 24 slices one
after the other over an association each, and takes the time from the last response to the
moment Orthanc lists the SR. The stages are those of the ledger and of the job's timings.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pynetdicom import AE
from sqlalchemy import select

from hipscore import phantom
from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series
from tests import servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds of one series, by stage in order, and in all."""

    total: float
    stages: dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=20)
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        root = Path(folder)
        with servers.orthanc(root) as pacs, service(root, pacs) as (dicom_port, url):
            for number in range(arguments.series + 1):
                run = one(number, pacs, dicom_port, url)
                print(f"series {number}: {run.total:.2f} s", file=sys.stderr, flush=True)
                if number:  # the first one warms up
                    runs.append(run)
    report(runs)


@contextlib.contextmanager
def service(root: Path, pacs: servers.Orthanc) -> Iterator[tuple[int, str]]:
    """Run hipscore; yields its DICOM port and the URL of its database."""
    dicom_port, http_port = servers.free_port(), servers.free_port()
    data = root / "data"
    pacs.add_modality("hipscore", ae_title="HIPSCORE", port=dicom_port)
    settings = {
        "HIPSCORE_DATA_DIR": str(data),
        "HIPSCORE_DICOM_PORT": str(dicom_port),
        "HIPSCORE_HTTP_PORT": str(http_port),
        "HIPSCORE_DESTINATIONS": pacs.peer,
    }

    def ready() -> bool:
        try:
            answer = httpx.get(
                f"http://{servers.LOOPBACK}:{http_port}/readyz", timeout=5.0, trust_env=False
            )
        except httpx.TransportError:
            return False
        return answer.is_success and servers.listens(dicom_port)

    process = servers.Process(
        command=[
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in settings.items()),
            *(sys.executable, "-m", "hipscore", "up"),
        ],
        log=root / "up.log",
        ready=ready,
    )
    process.start()
    try:
        yield dicom_port, f"sqlite:///{data / 'hipscore.db'}"
    finally:
        process.stop()


def series(seed: int) -> list[Dataset]:
    """A synthetic hip study of 24 slices with its own UIDs."""
    made = phantom.synthesise(seed=seed, burden=phantom.Burden("moderate"))
    return phantom.to_datasets(made, study_uid=generate_uid(), series_uid=generate_uid())


def one(seed: int, pacs: servers.Orthanc, port: int, url: str) -> Run:
    """Send one series and follow it to the PACS."""
    images = series(seed)
    study = str(images[0].StudyInstanceUID)
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
    servers.wait_until(
        lambda: bool(pacs.find("Series", StudyInstanceUID=study, Modality="SR")),
        what="the report is in Orthanc",
        seconds=60,
        every=0.005,
    )
    arrived = time.time()
    return Run(total=arrived - last, stages=stages(study, url, last, arrived))


def stages(study: str, url: str, last: float, arrived: float) -> dict[str, float]:
    """What the ledger and the timings of the job say about the time between."""
    engine = database.connect(url)
    sr = select(Delivery.id).join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
    spans: dict[str, float] = {}
    with database.readers(engine)() as session:
        row = session.scalars(select(Series).where(Series.study_instance_uid == study)).one()
        job = session.scalars(select(Job).where(Job.series_id == row.id)).one()
        delivery = session.scalars(
            sr.where(ArtifactRow.job_id == job.id, ArtifactRow.kind == "sr")
        ).one()
        events = session.scalars(
            select(Event).where(Event.series_id == row.id).order_by(Event.id)
        ).all()
        at = {
            (each.delivery_id, each.what): each.at.timestamp()
            for each in events
            if each.delivery_id in {None, delivery}
        }
        timings = job.timings or {}
    engine.dispose()
    closed = at[None, "close"]
    claimed = at[None, "claim"]
    finished = at[None, "analysed"]
    taken = at[delivery, "claim"]
    spans["wait for the end of the series"] = closed - last
    spans["queue, analysis"] = claimed - closed
    spans |= timings
    spans["claim and finish"] = finished - claimed - sum(timings.values())
    spans["queue, delivery (SEG first)"] = taken - finished
    spans["send, stored by Orthanc"] = arrived - taken
    return spans


def report(runs: list[Run]) -> None:
    """Print percentiles and the share of each stage."""
    totals = sorted(run.total for run in runs)
    p95 = statistics.quantiles(totals, n=20)[-1]
    print(
        f"\n{len(runs)} series of 24 slices, embedded database and broker, warm worker, "
        f"{len(os.sched_getaffinity(0))} cores\n"
        f"last C-STORE response to SR in Orthanc: p50 {statistics.median(totals):.2f} s, "
        f"p95 {p95:.2f} s, worst {totals[-1]:.2f} s\n"
    )
    whole = statistics.mean(totals)
    print(f"{'stage':32} {'median s':>9} {'p95 s':>8} {'share':>7}")
    for name in runs[0].stages:
        spent = sorted(run.stages[name] for run in runs)
        share = statistics.mean(spent) / whole
        high = statistics.quantiles(spent, n=20)[-1]
        print(f"{name:32} {statistics.median(spent):9.3f} {high:8.3f} {share:7.0%}")


if __name__ == "__main__":
    main()
