"""How many of what a site needs, computed from measured figures that stand here and nowhere else.

``python -m benchmarks.capacity`` prints the tables of docs/capacity.md, ``--keep`` writes them
there, ``--series-per-day N`` computes for another size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables

PAGE = Path("docs/capacity.md")
MEASURED, COMPUTED, ASSUMED = "measured", "computed", "assumed"

#: a site by its series a day
SITES = {
    20: "one clinic",
    500: "a hospital group",
    10_000: "a region",
    1_000_000: "a large country",
}
_HOUR = 3600.0
_DAYS = 365
_MIB = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that everything else follows from, and where it comes from."""

    value: float
    unit: str
    words: str
    source: str
    kind: str = MEASURED


IMAGES = Figure(
    value=24,
    unit="",
    words="images of a series",
    source="the phantom's; 20 to 30 in practice",
    kind=ASSUMED,
)
IMAGE_MIB = Figure(
    value=0.5, unit="MiB", words="an image", source="512 × 512, 16 bits, uncompressed", kind=ASSUMED
)
BUSIEST = Figure(
    value=0.2,
    unit="",
    words="of a day's series come in the busiest hour",
    source="two thirds of a working day in five hours, with a margin",
    kind=ASSUMED,
)
LOAD = Figure(
    value=0.7,
    unit="",
    words="of what it can do a process is planned for",
    source="queues grow beyond any bound as this nears 1",
    kind=ASSUMED,
)
KEPT_DAYS = Figure(
    value=30,
    unit="days",
    words="images are kept",
    source="`HIPSCORE_KEEP_IMAGES_DAYS`",
    kind=ASSUMED,
)
INTAKE = Figure(
    value=255,
    unit="images/s",
    words="one listener, one association, fsync and commit before each success",
    source="[reliability.md](reliability.md#speed), two cores shared with the sender",
)
WORKER_S = Figure(
    value=0.69,
    unit="s",
    words="one series in one worker of two cores, from the last image to the report",
    source="[performance.md](performance.md), int8 on a CPU with VNNI",
)
WORKER_CORES = Figure(value=2, unit="cores", words="of that worker", source="the same run")
NETWORKS = Figure(
    value=0.28,
    unit="",
    words="of that time are the networks, which a GPU takes over",
    source="[performance.md](performance.md): both networks alone, as a share of the whole",
)
GPU_PROCESSES = Figure(
    value=4,
    unit="",
    words="processes share a GPU, each with a core",
    source="`analysis.gpu.concurrency` of the chart; **not tried**",
    kind=ASSUMED,
)
WORKER_MB = Figure(
    value=484,
    unit="MB",
    words="memory of a worker",
    source="[performance.md](performance.md), after 20 analyses",
)
LISTENER_MB = Figure(
    value=162,
    unit="MB",
    words="memory of a listener",
    source="[reliability.md](reliability.md), soak",
)
#: how the next six were counted
_COUNTED = "counted on one series at a time: PostgreSQL, Redis, Orthanc that commits"
TRANSACTIONS = Figure(
    value=44,
    unit="",
    words="transactions of a series, from the first image to the commitment; 24 are the images'",
    source=f"{_COUNTED}; what runs without any series subtracted",
)
WAL_KIB = Figure(
    value=125, unit="KiB", words="write-ahead log of a series", source=f"{_COUNTED}; 12 series"
)
ROWS = Figure(
    value=79,
    unit="",
    words="rows of a series that stay, in all tables",
    source=f"{_COUNTED}; one destination, nobody looking at it",
)
ROW_KIB = Figure(
    value=72,
    unit="KiB",
    words="of tables and indexes for a series",
    source=f"{_COUNTED}; 12 series, so a little too much",
)
REDIS = Figure(value=45, unit="", words="Redis commands for a series: 4 messages", source=_COUNTED)
RESULT_MIB = Figure(
    value=2.3,
    unit="MiB",
    words="results of a series: SEG, overlay, PDF, two SR",
    source=f"{_COUNTED}; the phantom",
)
DELIVERIES = Figure(
    value=2, unit="", words="objects sent for a series to each destination", source="SEG and SR"
)
REAPER = Figure(
    value=20,
    unit="series/s",
    words="one beat closes by the quiet period",
    source="`REAP_BATCH` (100) every `HIPSCORE_REAP_SECONDS` (5)",
    kind=COMPUTED,
)
FIGURES = (
    IMAGES,
    IMAGE_MIB,
    BUSIEST,
    LOAD,
    KEPT_DAYS,
    INTAKE,
    WORKER_S,
    WORKER_CORES,
    NETWORKS,
    GPU_PROCESSES,
    WORKER_MB,
    LISTENER_MB,
    TRANSACTIONS,
    WAL_KIB,
    ROWS,
    ROW_KIB,
    REDIS,
    RESULT_MIB,
    DELIVERIES,
    REAPER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a site of ``series_per_day`` needs in its busiest hour, and in a day or a year."""

    series_per_day: int

    @property
    def series(self) -> float:
        """Series per second in the busiest hour."""
        return self.series_per_day * BUSIEST.value / _HOUR

    @property
    def images(self) -> float:
        """Images per second in the busiest hour."""
        return self.series * IMAGES.value

    @property
    def megabits(self) -> float:
        """Network into the listeners, Mbit/s."""
        return self.images * IMAGE_MIB.value * _MIB * 8 / 1e6

    @property
    def listeners(self) -> int:
        """Listener processes."""
        return _whole(self.images / (INTAKE.value * LOAD.value))

    @property
    def workers(self) -> int:
        """CPU workers."""
        return _whole(self.series * WORKER_S.value / LOAD.value)

    @property
    def cores(self) -> int:
        """Cores of the CPU workers."""
        return round(self.workers * WORKER_CORES.value)

    @property
    def gpus(self) -> int:
        """GPUs instead, where each is shared by several processes."""
        return _whole(self.series / (gpu_series() * LOAD.value))

    @property
    def deliveries(self) -> float:
        """Objects sent per second, for each destination."""
        return self.series * DELIVERIES.value

    @property
    def transactions(self) -> float:
        """Transactions per second."""
        return self.series * TRANSACTIONS.value

    @property
    def wal_megabits(self) -> float:
        """Write-ahead log, Mbit/s: what a replica has to follow."""
        return self.series * WAL_KIB.value * 1024 * 8 / 1e6

    @property
    def redis(self) -> float:
        """Redis commands per second."""
        return self.series * REDIS.value

    @property
    def beats(self) -> float:
        """Share of what one beat can close, if every series waits for the quiet period."""
        return self.series / REAPER.value

    @property
    def spool_day(self) -> float:
        """Bytes into the spool on one day."""
        size = IMAGES.value * IMAGE_MIB.value + RESULT_MIB.value
        return self.series_per_day * size * _MIB

    @property
    def spool(self) -> float:
        """Bytes of images in the spool after their time."""
        return self.series_per_day * IMAGES.value * IMAGE_MIB.value * _MIB * KEPT_DAYS.value

    @property
    def files(self) -> float:
        """Images in the spool after their time: each is looked at in every hourly sweep."""
        return self.series_per_day * IMAGES.value * KEPT_DAYS.value

    @property
    def rows_year(self) -> float:
        """Rows in a year."""
        return self.series_per_day * ROWS.value * _DAYS

    @property
    def database_year(self) -> float:
        """Bytes of tables and indexes in a year."""
        return self.series_per_day * ROW_KIB.value * 1024 * _DAYS


def gpu_series() -> float:
    """Series per second with one GPU: its processes compute everything but the networks."""
    cores = WORKER_S.value * (1 - NETWORKS.value)
    return GPU_PROCESSES.value / cores


def _whole(number: float) -> int:
    return max(1, math.ceil(number))


def rate(value: float) -> str:
    """A number per second with two or three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def size(value: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


def count(value: float) -> str:
    """A large number in words."""
    for unit in ("", " thousand", " million", " billion"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} thousand billion"


LINES: tuple[tuple[str, Callable[[Need], str]], ...] = (
    ("series/s in the busiest hour", lambda need: rate(need.series)),
    ("images/s", lambda need: rate(need.images)),
    ("network in, Mbit/s", lambda need: rate(need.megabits)),
    ("listeners", lambda need: f"{need.listeners:,}"),
    ("CPU workers (cores)", lambda need: f"{need.workers:,} ({need.cores:,})"),
    ("or GPUs, not tried", lambda need: f"{need.gpus:,}"),
    ("memory of the CPU workers, GB", lambda need: rate(need.workers * WORKER_MB.value / 1000)),
    ("deliveries/s to a destination", lambda need: rate(need.deliveries)),
    ("database transactions/s", lambda need: rate(need.transactions)),
    ("write-ahead log, Mbit/s", lambda need: rate(need.wal_megabits)),
    ("database rows a year", lambda need: count(need.rows_year)),
    ("database a year", lambda need: size(need.database_year)),
    ("Redis commands/s", lambda need: rate(need.redis)),
    ("one beat, if all wait for the quiet period", lambda need: f"{need.beats:.1%}"),
    ("into the spool a day", lambda need: size(need.spool_day)),
    ("images kept in the spool", lambda need: size(need.spool)),
    ("files in the spool", lambda need: count(need.files)),
)


def figures() -> str:
    """The table of what is put in."""
    rows = [
        (each.words, f"{each.value:g} {each.unit}".strip(), each.kind, each.source)
        for each in FIGURES
    ]
    return tables.table(("figure", "value", "", "from"), rows, left=4)


def needs(sites: Sequence[int]) -> str:
    """The table of what comes out."""
    header = ["", *(f"{site:,} a day" for site in sites)]
    wanted = [Need(series_per_day=site) for site in sites]
    names = ["", *(SITES.get(site, "") for site in sites)]
    rows = [(words, *(line(need) for need in wanted)) for words, line in LINES]
    return tables.table(header, [names, *rows] if any(names) else rows)


def main() -> None:
    """Print the tables, or keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series-per-day", type=int, nargs="+", metavar="N")
    parser.add_argument("--keep", action="store_true", help=f"write the tables into {PAGE}")
    arguments = parser.parse_args()
    if arguments.keep:
        if arguments.series_per_day:
            parser.error("the page has sizes of its own: --keep goes without --series-per-day")
        tables.keep("figures", figures(), PAGE)
        tables.keep("needs", needs(list(SITES)), PAGE)
        return
    print(figures(), needs(arguments.series_per_day or list(SITES)), sep="\n\n")


if __name__ == "__main__":
    main()
