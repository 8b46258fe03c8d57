"""The segmenter on every runtime of one GPU, beside its roofline, and whole series after it.

``python -m benchmarks.gpu`` needs one NVIDIA GPU and what is to be compared (torch,
onnxruntime-gpu, TensorRT); what is missing gets a row that says so. Without a GPU the same
table is made on the processor. Times are from NumPy to NumPy: the copies to the device and
back are part of them, as they are part of the service. With ``--fast`` there are few rounds
and no torch.compile, with ``--keep`` the tables go to docs/performance.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.gpu import feeders, graph
from benchmarks.gpu.ways import EAGER, Run, Way, ways
from hipscore.domain import FloatArray
from hipscore.inference import Bundle, Precision, gpu, hardware, open_bundle, runtimes
from hipscore.settings import Settings

BATCHES = {"cuda": (1, 8, 32, 64), "cpu": (1, 8)}
FEEDERS = {"cuda": (1, 2, 4), "cpu": (1, 2)}
_HEADER = (
    "runtime",
    "batch",
    "ms",
    "pictures/s",
    "times torch eager",
    "largest deviation",
    "GFLOP/s",
    "roofline ms",
    "share of it",
)
NO_CEILING = (
    "Some rows are faster than the roofline: the matrix product or the copy that it is drawn from "
    "was disturbed by other work, or is slower here than it could be. The shares say nothing then, "
    "and the ratios to torch eager little: its threads wait for each other and suffer most."
)
LACKING = "No GPU here: the rows of CUDA and TensorRT and the roofline of a GPU are missing."


@dataclass(slots=True, kw_only=True)
class Entry:
    """One way with one batch: the times, or why there are none."""

    way: Way
    batch: int
    run: Run | None = None
    why: str = ""
    seconds: list[float] = field(default_factory=list)
    eager: float = float("nan")
    deviation: float = float("nan")

    def turn(self, pictures: FloatArray) -> None:
        if self.run is None:
            return
        try:
            begun = time.perf_counter()
            self.run(pictures)
            self.seconds.append(time.perf_counter() - begun)
        except Exception as error:  # noqa: BLE001 - a row of its own says so
            self.run, self.why = None, _reason(error)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="3 rounds, no torch.compile")
    parser.add_argument("--keep", action="store_true", help=f"write the tables to {tables.PAGE}")
    arguments = parser.parse_args()
    rounds, series = (3, 2) if arguments.fast else (15, 10)
    bundle = open_bundle()
    where = "cuda" if gpu.available("cuda") else "cpu"
    with tempfile.TemporaryDirectory(prefix="hipscore-gpu-") as folder:
        whole = end_to_end(bundle, where, series, Path(folder))
        probe, entries = graph.Probe(where), []
        for batch in BATCHES[where]:
            compared = ways(bundle, Path(folder), compile_too=not arguments.fast)
            entries += turns(bundle, [_made(way, batch) for way in compared], probe, rounds)
    name = gpu.device_name() if where == "cuda" else hardware.processor()
    work, device = graph.work(bundle), probe.device(name)
    rows = [_row(entry, device, work) for entry in entries]
    text = "\n\n".join((_words(device, work, rounds), tables.table(_HEADER, rows), whole))
    if any(_share(entry, device, work) > 1.0 for entry in entries):
        text += f"\n\n{NO_CEILING}"
    print(text)
    if arguments.keep:
        tables.keep("gpu", text)


def _made(way: Way, batch: int) -> Entry:
    try:
        return Entry(way=way, batch=batch, run=way.make(batch))
    except Exception as error:  # noqa: BLE001 - a row of its own says so
        return Entry(way=way, batch=batch, why=_reason(error))


def turns(bundle: Bundle, entries: list[Entry], probe: graph.Probe, rounds: int) -> list[Entry]:
    """Let each compute the same pictures in turn, and the probe between them; then let go."""
    pictures = _pictures(bundle, entries[0].batch)
    for turn in range(rounds + 1):
        probe.turn()
        for entry in entries:
            entry.turn(pictures)
            if not turn:
                entry.seconds.clear()  # the first turn warms up
    eager = next(each for each in entries if each.way.name == EAGER)
    path = bundle.variants[Precision.FP32].segmenter
    plain = runtimes.OnnxRuntime(path, "CPUExecutionProvider", threads=hardware.cores())
    answers = {False: plain(pictures), True: eager.run(pictures) if eager.run else None}
    for entry in entries:
        wanted = answers[entry.way.of_torch]
        if entry.run is not None and wanted is not None:
            entry.deviation = float(np.abs(entry.run(pictures) - wanted).max())
            if eager.seconds:
                entry.eager = tables.p50(eager.seconds)
    for entry in entries:
        entry.run = None  # the next batch needs the memory
    return entries


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}".replace("|", "/")


def _pictures(bundle: Bundle, batch: int) -> FloatArray:
    spec = bundle.card.segmenter
    shape = (batch, spec.context, spec.rows, spec.columns)
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def _row(entry: Entry, device: graph.Device, work: graph.Work) -> tuple[str, ...]:
    batch = entry.batch
    if not entry.seconds:
        return (entry.way.name, str(batch), entry.why, *[""] * 6)
    seconds = tables.p50(entry.seconds)
    bound = device.bound(work, batch, entry.way.precision)
    share = _share(entry, device, work)
    return (
        entry.way.name,
        str(batch),
        f"{1000 * seconds:.1f}",
        f"{batch / seconds:.0f}",
        _number(entry.eager / seconds, "{:.2f}"),
        _number(entry.deviation, "{:.1e}"),
        _number(batch * work.gflop / seconds, "{:.0f}"),
        _number(1000 * bound, "{:.2f}"),
        _number(100 * share, "{:.0f} %"),
    )


def _share(entry: Entry, device: graph.Device, work: graph.Work) -> float:
    """How much of the roofline was reached; NaN where that is not known."""
    if not entry.seconds:
        return float("nan")
    bound = device.bound(work, entry.batch, entry.way.precision)
    return bound / tables.p50(entry.seconds)


def _installed() -> list[str]:
    known = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
    there = {str(each.metadata["Name"]).lower() for each in metadata.distributions()}
    return [name for name in known if name in there]


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else ""


def _words(device: graph.Device, work: graph.Work, rounds: int) -> str:
    lacking = "" if gpu.available("cuda") else f" {LACKING}"
    return (
        f"{tables.machine(*_installed())}; {device.name}. {_peaks(device)} {_costs(work)} "
        f"Medians of {rounds}.{lacking}"
    )


def _peaks(device: graph.Device) -> str:
    if not device.flop_s:
        return "Without torch the device's peaks are not known."
    peaks = ", ".join(
        f"{1e-9 * each:.0f} GFLOP/s in {name}" for name, each in device.flop_s.items()
    )
    return f"A matrix product reaches {peaks}, a copy {device.bytes_s / 1e9:.0f} GB/s."


def _costs(work: graph.Work) -> str:
    return (
        f"A picture costs {work.gflop:.2f} GFLOP and moves {work.moved / 1e6:.0f} MB in fp32 "
        f"(activations; the weights are {work.weights / 1e6:.1f} MB a batch)."
    )


def end_to_end(bundle: Bundle, where: str, series: int, folder: Path) -> str:
    """Series per second with several feeders and one shared engine."""
    settings = Settings(engine="shared", engine_cache_dir=folder)
    rows, first = [], 0.0
    for count in FEEDERS[where]:
        try:
            speed, engine = feeders.series_per_second(
                settings, bundle, feeders=count, series=series
            )
        except Exception as error:  # noqa: BLE001 - a row of its own says so
            rows.append((str(count), _reason(error), "", "", ""))
            continue
        first = first or speed
        declined = "; ".join(engine.declined) or "none"
        shown = f"{engine.provider} {engine.precision}"
        rows.append((str(count), shown, f"{speed:.2f}", f"{speed / first:.2f}", declined))
    return tables.table(
        ("feeders", "shared engine", "series/s", "times the first row", "declined"), rows, left=2
    )


if __name__ == "__main__":
    main()
