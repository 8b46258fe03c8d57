"""``python -m tests.fuzz.soak``: fifty thousand images, and the memory of every process.

Listener, beat, worker and API of the command line on SQLite. Most series are scouts or too
short; one in fifty is scored. The verdict: no process grows, and the rate stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
import numpy as np

from tests import servers
from tests.fuzz.sources import Source, phantom_series
from tests.fuzz.watching import memory_mb
from tests.fuzz.wire import associated

ASSOCIATIONS = 4
#: images of an ordinary series
_IMAGES = 24
#: one series in so many is scored, and one has too few images
_SCORED_EVERY, _SCORED, _SHORT_EVERY = 50, 3, 7
#: series on one association
_SERIES = 4
#: images after which memory must not grow any more
WARM = 10_000
#: what a process may still grow by: the larger of these
GROWTH_MB, GROWTH_SHARE = 20.0, 0.05
RATE_SHARE = 0.2
_SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Images acknowledged, seconds since the start, and MB by process."""

    images: int
    seconds: float
    mb: dict[str, float]


@dataclass
class Flood:
    """Senders that together send so many images."""

    port: int
    images: int
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Send until there are enough; any number of threads may do so."""
        try:
            while self.acknowledged < self.images and not self.refused:
                with associated(self.port) as scu:
                    for _ in range(_SERIES):
                        for sop_class, syntax, uid, data in _series(next(self._numbers)):
                            self._count(scu.store(sop_class, syntax, uid, data))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict
            self.refused.append(f"{type(error).__name__}: {error}")

    def _count(self, status: int) -> None:
        with self._lock:
            self.acknowledged += 1
            if status:
                self.refused.append(f"status 0x{status:04X}")


def _series(number: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Class, syntax, UID and data set of the images of a series of its own."""
    sources = phantom_series()["phantom ExplicitVRLittleEndian"]
    scored = number % _SCORED_EVERY == _SCORED
    images = len(sources) if scored else 4 if number % _SHORT_EVERY == 0 else _IMAGES
    for index in range(images):
        yield _image(sources[index % len(sources)], number, index, scout=not scored)


def _study(number: int) -> str:
    return f"2.25.99.{os.getpid()}.{number}"


def _image(source: Source, number: int, index: int, *, scout: bool) -> tuple[str, str, str, bytes]:
    parts = source.parts()
    study = _study(number)
    uid = f"{study}.1.{index + 1}"
    for tag, value in ((0x0020000D, study), (0x0020000E, f"{study}.1"), (0x00080018, uid)):
        parts.put(tag, b"UI", value.encode() + b"\0" * (len(value) % 2))
    parts.put(0x00200013, b"IS", str(index + 1).encode())
    if scout:
        parts.put(0x00080008, b"CS", b"ORIGINAL\\PRIMARY\\LOCALIZER")
    return source.sop_class, source.syntax, uid, parts.encoded()


@contextlib.contextmanager
def service(root: Path) -> Iterator[tuple[dict[str, servers.Process], int, int]]:
    """Run the four processes; yields them by name, the DICOM and the HTTP port."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(servers.redis())
        dicom_port, http_port = servers.free_port(), servers.free_port()
        own = {
            "HIPSCORE_DATA_DIR": str(root / "data"),
            "HIPSCORE_BROKER_URL": redis.url,
            "HIPSCORE_DICOM_PORT": str(dicom_port),
            "HIPSCORE_HTTP_PORT": str(http_port),
            "HIPSCORE_RESERVE_MB": "1",
            "HIPSCORE_QUIET_SECONDS": "3",
            "HIPSCORE_LOG_LEVEL": "WARNING",
        }
        call = [sys.executable, "-m", "hipscore"]
        subprocess.run([*call, "db", "upgrade"], env={**os.environ, **own}, check=True)
        ready = {
            "listen": lambda: servers.listens(dicom_port),
            "serve": lambda: servers.listens(http_port),
            "beat": lambda: True,
            "work": lambda: True,
        }
        running = {}
        for name, is_ready in ready.items():
            running[name] = servers.Process(
                command=("/usr/bin/env", *(f"{k}={v}" for k, v in own.items()), *call, name),
                log=root / f"{name}.log",
                ready=is_ready,
                cwd=root,
            )
            running[name].start()
            stack.callback(running[name].stop)
        yield running, dicom_port, http_port


def _tree_mb(pid: int) -> float:
    """Memory of a process and of those it started."""
    total = memory_mb(pid)
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        total += sum(_tree_mb(int(child)) for child in children)
    return total


def run(images: int, root: Path) -> tuple[list[Sample], list[str]]:
    """Send the images; samples of memory, and what went wrong."""
    phantom_series()
    with service(root) as (running, dicom_port, http_port):
        _warm_up(dicom_port, http_port)
        flood = Flood(dicom_port, images)
        senders = [threading.Thread(target=flood.run) for _ in range(ASSOCIATIONS)]
        started = time.monotonic()
        for sender in senders:
            sender.start()
        samples = []
        while any(sender.is_alive() for sender in senders):
            time.sleep(_SAMPLE_S)
            for path in ("/studies", "/healthz", "/metrics"):
                with contextlib.suppress(httpx.HTTPError):
                    url = f"http://{servers.LOOPBACK}:{http_port}{path}"
                    httpx.get(url, timeout=10, trust_env=False)
            mb = {name: _tree_mb(process.pid) for name, process in running.items()}
            samples.append(Sample(flood.acknowledged, time.monotonic() - started, mb))
    return samples, flood.refused


def _warm_up(dicom_port: int, http_port: int) -> None:
    """Have one series scored, so that every process has loaded what it needs."""
    number = 10**6 + _SCORED
    with associated(dicom_port) as scu:
        for sop_class, syntax, uid, data in _series(number):
            scu.store(sop_class, syntax, uid, data)
    url = f"http://{servers.LOOPBACK}:{http_port}/studies/{_study(number)}/score"

    def scored() -> bool:
        return httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.OK

    servers.wait_until(scored, what="the first series is scored", seconds=120)


def slope(samples: Sequence[Sample], name: str) -> float:
    """MB per 10,000 images, by least squares."""
    images = np.array([sample.images for sample in samples], dtype=np.float64)
    memory = np.array([sample.mb[name] for sample in samples])
    return float(np.polyfit(images, memory, 1)[0] * 10_000)


def rates(samples: Sequence[Sample]) -> tuple[float, float]:
    """Images per second in the first and in the last fifth."""
    total = samples[-1].images
    early = [sample for sample in samples if sample.images <= 0.2 * total] or list(samples[:2])
    late = [sample for sample in samples if sample.images >= 0.8 * total] or list(samples[-2:])
    return _rate([Sample(0, 0.0, {}), *early]), _rate(late)


def _rate(samples: Sequence[Sample]) -> float:
    spent = samples[-1].seconds - samples[0].seconds
    return (samples[-1].images - samples[0].images) / spent if spent else 0.0


def judge(samples: Sequence[Sample], warm: int) -> list[str]:
    """Print the table; what violates the verdict."""
    after = [sample for sample in samples if sample.images >= warm]
    if len(after) < 6:
        return [f"only {len(after)} samples after {warm} images"]
    wrong = []
    print(f"{'process':8} {'start MB':>9} {'end MB':>9} {'growth MB':>10} {'MB/10,000 images':>17}")
    for name in samples[0].mb:
        first = statistics.mean(sample.mb[name] for sample in after[:3])
        last = statistics.mean(sample.mb[name] for sample in after[-3:])
        grown = last - first
        print(f"{name:8} {first:9.1f} {last:9.1f} {grown:10.1f} {slope(after, name):17.2f}")
        if grown > max(GROWTH_MB, GROWTH_SHARE * first):
            wrong.append(f"{name} grew by {grown:.1f} MB after the first {warm} images")
        if min(sample.mb[name] for sample in after) == 0:
            wrong.append(f"{name} ended")
    early, late = rates(samples)
    print(f"{samples[-1].images} images in {samples[-1].seconds:.0f} s; at the start {early:.0f} "
          f"images/s, at the end {late:.0f}")  # fmt: skip
    if late < (1 - RATE_SHARE) * early:
        wrong.append(f"the rate fell from {early:.0f} to {late:.0f} images/s")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; 1 where a process grew, slowed down or refused an image."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hs-soak-") as folder:
        samples, refused = run(chosen.images, Path(folder))
    wrong = [*judge(samples, min(WARM, chosen.images // 3)), *refused]
    for line in wrong:
        print(f"VIOLATION {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
