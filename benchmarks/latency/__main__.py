"""From the last image's C-STORE response to the report in the PACS, and where the time goes.

``python -m benchmarks.latency`` runs ``hipscore up`` as it comes (embedded database and
broker, warm worker) with an Orthanc as PACS, sends synthetic hip series of 24 slices one
after the other over an association each, and takes the time from the last response to the
moment Orthanc has the SR. The stages are those of the ledger and of the job's timings.
After each series its unavoidable steps are timed alone in this process (``parts``).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from sqlalchemy import select

from benchmarks import service, tables, usage
from benchmarks.latency import parts
from benchmarks.latency.arrivals import EVERY_S, Arrivals
from benchmarks.service import Service
from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series
from tests import servers

#: what is wanted, seconds, and of the whole
TARGET_P50_S, TARGET_P95_S, TARGET_SHARE = 1.0, 2.0, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds of one series: in all, by stage in order, and by step when done alone.

    ``processor``: seconds of processor by process meanwhile, ``others`` what the rest of the
    machine used.
    """

    total: float
    stages: dict[str, float]
    alone: dict[str, float]
    processor: dict[str, float]
    others: float


def main() -> None:
    """Measure, print, and keep when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=20, help="series that count")
    parser.add_argument("--fast", action="store_true", help="three series")
    parser.add_argument("--keep", action="store_true", help=f"write the tables to {tables.PAGE}")
    arguments = parser.parse_args()
    count = 3 if arguments.fast else arguments.series
    runs = []
    with tempfile.TemporaryDirectory(prefix="latency-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        with servers.orthanc(root) as pacs, service.running(root, pacs) as running:
            alone = parts.Parts(pacs.peer)
            for number in range(count + 2):
                run = one(number, pacs, running, alone)
                print(f"series {number}: {run.total:.2f} s", file=sys.stderr, flush=True)
                if number > 1:  # the first ones warm up
                    runs.append(run)
    texts = {"latency": whole(runs, alone.engine), "parts": shares(runs)}
    for name, text in texts.items():
        print(f"\n{text}")
        if arguments.keep:
            tables.keep(name, text)


def one(number: int, pacs: servers.Orthanc, running: Service, alone: parts.Parts) -> Run:
    """Send one series, follow it to the PACS, then time its steps alone."""
    images: list[Dataset] = service.series(number)
    study = str(images[0].StudyInstanceUID)
    arrivals = Arrivals(pacs)
    names = {
        **usage.names(running.process.pid),
        pacs.process.pid: "Orthanc",
        os.getpid(): "this measurement",
    }
    last = service.send(images, running.dicom_port)
    before, busy = {pid: usage.seconds(pid) for pid in names}, usage.busy()
    arrived = arrivals.wait_for("SR")
    after, busy = {pid: usage.seconds(pid) for pid in names}, usage.busy() - busy
    # what still runs (storage commitment) is no part of either figure
    service.settle(study, running)
    processor: dict[str, float] = {}
    for pid, name in names.items():
        processor[name] = processor.get(name, 0.0) + after[pid] - before[pid]
    return Run(
        total=arrived - last,
        stages=stages(study, running.database, last, arrived),
        alone=alone.measure(images, hashlib.sha256(study.encode()).hexdigest()),
        processor=processor,
        others=max(0.0, busy - sum(processor.values())),
    )


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


def whole(runs: list[Run], engine: str) -> str:
    """Percentiles of the whole and the share of each stage, as Markdown."""
    totals = [run.total for run in runs]
    middle = tables.p50(totals)
    rows = [["**last C-STORE response to SR in Orthanc**", *_cells(totals, middle)]]
    rows += [
        [name, *_cells([run.stages.get(name, 0.0) for run in runs], middle)]
        for name in runs[0].stages
    ]
    used = {
        name: tables.p50([run.processor.get(name, 0.0) for run in runs])
        for name in runs[0].processor
    }
    spent = ", ".join(
        f"{name} {seconds:.2f}"
        for name, seconds in sorted(used.items(), key=lambda each: -each[1])
        if seconds >= 0.005
    )
    return "\n\n".join(
        (
            f"{tables.machine()}; {engine}; {len(runs)} series of 24 slices",
            tables.table(["stage", "p50, s", "p95, s", "share"], rows),
            (
                f"Target: p50 ≤ {TARGET_P50_S:.1f} s ({_met(middle <= TARGET_P50_S)}), "
                f"p95 ≤ {TARGET_P95_S:.1f} s ({_met(tables.p95(totals) <= TARGET_P95_S)}). "
                f"Orthanc is asked every {1000 * EVERY_S:.0f} ms."
            ),
            (
                f"Seconds of processor meanwhile (median): {spent}; everything else on the machine "
                f"{tables.p50([run.others for run in runs]):.2f}."
            ),
        )
    )


def shares(runs: list[Run]) -> str:
    """What each step takes alone, and of the whole of the same series, as Markdown."""

    def row(name: str, seconds: list[float]) -> list[str]:
        share = [each / run.total for each, run in zip(seconds, runs, strict=True)]
        return [name, f"{tables.p50(seconds):.3f}", f"{tables.p50(share):.0%}"]

    sums = [sum(run.alone.values()) for run in runs]
    rows = [row(name, [run.alone[name] for run in runs]) for name in parts.STEPS]
    rows.append(row("**sum of these**", sums))
    rows.append(row("the whole, in the service", [run.total for run in runs]))
    share = tables.p50([each / run.total for each, run in zip(sums, runs, strict=True)])
    return "\n\n".join(
        (
            tables.table(["step, alone", "p50, s", "share of the whole"], rows),
            (
                f"Target: the sum is at least {TARGET_SHARE:.0%} of the whole "
                f"({_met(share >= TARGET_SHARE)})."
            ),
        )
    )


def _cells(seconds: list[float], middle: float) -> list[str]:
    median = tables.p50(seconds)
    return [f"{median:.3f}", f"{tables.p95(seconds):.3f}", f"{median / middle:.0%}"]


def _met(met: bool) -> str:  # noqa: FBT001 - a word for it
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
