"""Images per second that a Storage SCP takes: hipscore beside dcmtk storescp and Orthanc.

``python -m benchmarks.intake`` sends the same 512 KiB MR images with dcmtk ``storescu`` over
1, 4 and 8 associations to each server in turn, every round with empty servers and in
another order, and prints medians and the ratio of hipscore to each peer in the same round.
hipscore answers after fsync of the image and commit of its row; Orthanc with its defaults
(``SyncStorageArea`` on); storescp writes without fsync and is the upper bound of the sender.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from benchmarks import tables
from tests import servers

IMAGES_PER_SERIES = 24
ROWS = COLUMNS = 512  # 16 bit: 512 KiB of pixel data


def images(folder: Path, count: int, *, seed: int) -> list[Path]:
    """``count`` MR images in series of 24, without any geometry that would start an analysis."""
    noise = np.random.default_rng(seed)
    study = generate_uid(entropy_srcs=[f"bench {seed}"])
    paths = []
    for number in range(count):
        series = generate_uid(entropy_srcs=[f"bench {seed} {number // IMAGES_PER_SERIES}"])
        image = Dataset()
        image.SOPClassUID = MRImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=[f"bench {seed} image {number}"])
        image.StudyInstanceUID, image.SeriesInstanceUID = UID(study), UID(series)
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        image.Modality, image.PatientID, image.PatientName = "MR", f"BENCH{seed}", "BENCH^INTAKE"
        image.StudyDate, image.StudyTime, image.StudyID = "20240102", "120000", "1"
        image.SeriesNumber = str(number // IMAGES_PER_SERIES + 1)
        image.InstanceNumber = str(number % IMAGES_PER_SERIES + 1)
        image.ImagePositionPatient = ["0", str(4 * (number % IMAGES_PER_SERIES)), "0"]
        image.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
        image.PixelSpacing, image.SliceThickness = ["0.7", "0.7"], "4"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = ROWS, COLUMNS
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 0
        image.PixelData = noise.integers(0, 4096, (ROWS, COLUMNS), dtype=np.uint16).tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:05d}.dcm"
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def send(paths: list[Path], port: int, associations: int) -> float:
    """Send everything over so many ``storescu`` at once; returns images per second."""
    storescu = servers.program("storescu", package="dcmtk")
    shares = [paths[number::associations] for number in range(associations)]
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [storescu, "-aec", "HIPSCORE", servers.LOOPBACK, str(port), *map(str, share)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    for each in running:
        _, said = each.communicate()
        if each.returncode != 0 or "E:" in said:
            raise SystemExit(f"storescu ended with {each.returncode}: {said[-500:]}")
    return len(paths) / (time.perf_counter() - start)


@contextlib.contextmanager
def storescp(root: Path) -> Iterator[int]:
    """Run dcmtk storescp: a child per association, no fsync, no database."""
    with servers.storescp(root, options=("--accept-all", "--fork")) as running:
        yield running.port


@contextlib.contextmanager
def orthanc(root: Path) -> Iterator[int]:
    """Run Orthanc with the defaults of its storage."""
    configuration = {
        key: value for key, value in servers.ORTHANC_CONFIGURATION.items() if key != "StableAge"
    }
    with servers.orthanc(root, configuration=configuration) as running:
        yield running.dicom_port


@contextlib.contextmanager
def hipscore(root: Path, *, listeners: int, database: str | None) -> Iterator[int]:
    """Run so many listener processes of hipscore on one port, with a Redis to announce to."""
    port = servers.free_port()
    with servers.redis() as broker:
        settings = {
            "HIPSCORE_DATA_DIR": str(root / "data"),
            "HIPSCORE_DICOM_PORT": str(port),
            "HIPSCORE_BROKER_URL": broker.url,
            "HIPSCORE_LISTENERS": str(listeners),
            "HIPSCORE_LOG_LEVEL": "WARNING",
            **({"HIPSCORE_DATABASE_URL": database} if database else {}),
        }
        command = [
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in settings.items()),
            sys.executable,
            "-m",
            "hipscore",
        ]
        subprocess.run([*command, "db", "upgrade"], check=True, capture_output=True)
        processes = [
            servers.Process(
                command=[*command, "listen"],
                log=root / f"listener-{number}.log",
                ready=lambda: servers.listens(port),
            )
            for number in range(listeners)
        ]
        try:
            for process in processes:
                process.start()
            yield port
        finally:
            for process in processes:
                process.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384, help="images per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--listeners", type=int, default=1, help="listener processes of hipscore")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite, fsync on")
    parser.add_argument("--both", action="store_true", help="SQLite, then PostgreSQL")
    parser.add_argument("--only", nargs="+", help="only these servers")
    parser.add_argument("--json", type=Path, help="write all rates there")
    parser.add_argument("--fast", action="store_true", help="48 images, one round")
    parser.add_argument("--keep", action="store_true", help=f"write the table to {tables.PAGE}")
    arguments = parser.parse_args()
    if arguments.fast:
        arguments.images, arguments.rounds, arguments.associations = 48, 1, [1, 4]
    os.environ["TCP_NODELAY"] = "1"  # dcmtk would stall 40 ms an image on loopback without it

    texts, rates = [tables.machine()], {}
    for postgresql in (False, True) if arguments.both else (arguments.postgresql,):
        arguments.postgresql = postgresql
        with contextlib.ExitStack() as resources:
            database: Callable[[], contextlib.AbstractContextManager[str | None]]
            database = contextlib.nullcontext
            if postgresql:
                database = resources.enter_context(servers.postgres(fsync=True)).database
            rates = measure(arguments, database)
        texts.append(report(rates, arguments))
        if arguments.json:
            kind = "-postgresql" if arguments.both and postgresql else ""
            path = arguments.json.with_stem(arguments.json.stem + kind)
            path.write_text(json.dumps(rates, indent=1))
    text = "\n\n".join(texts)
    print(f"\n{text}")
    if arguments.keep:
        tables.keep("intake", text)


def measure(
    arguments: argparse.Namespace,
    database: Callable[[], contextlib.AbstractContextManager[str | None]],
) -> dict[str, dict[int, list[float]]]:
    """Images per second by server and number of associations, one value per round."""
    kinds = [
        kind for kind in ("storescp", "orthanc", "hipscore") if kind in (arguments.only or [kind])
    ]
    rates: dict[str, dict[int, list[float]]] = {
        kind: {count: [] for count in arguments.associations} for kind in kinds
    }
    with tempfile.TemporaryDirectory(prefix="intake-") as folder:
        pools = {}
        for count in arguments.associations:
            pool = Path(folder) / f"images-{count}"
            pool.mkdir()
            pools[count] = images(pool, arguments.images, seed=count)
        for number in range(arguments.rounds):
            for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                root = Path(folder) / f"{kind}-{number}"
                root.mkdir()
                with contextlib.ExitStack() as running:
                    if kind == "storescp":
                        port = running.enter_context(storescp(root))
                    elif kind == "orthanc":
                        port = running.enter_context(orthanc(root))
                    else:
                        url = running.enter_context(database())
                        port = running.enter_context(
                            hipscore(root, listeners=arguments.listeners, database=url)
                        )
                    for count in arguments.associations:
                        rate = send(pools[count], port, count)
                        rates[kind][count].append(rate)
                        print(
                            f"round {number + 1}: {kind:9} {count} associations {rate:7.1f}/s",
                            file=sys.stderr,
                            flush=True,
                        )
    return rates


def report(rates: dict[str, dict[int, list[float]]], arguments: argparse.Namespace) -> str:
    """Medians over the rounds, and medians of the ratios within a round, as Markdown."""
    store = "PostgreSQL" if arguments.postgresql else "SQLite"
    peers = [peer for peer in ("orthanc", "storescp") if {peer, "hipscore"} <= rates.keys()]
    rows = []
    for count in arguments.associations:
        cells = [f"{statistics.median(rates[kind][count]):.1f}" for kind in rates]
        for peer in peers:
            pairs = zip(rates["hipscore"][count], rates[peer][count], strict=True)
            cells.append(f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}×")
        rows.append([str(count), *cells])
    header = ["associations", *(f"{each}/s" for each in rates), *(f"÷ {each}" for each in peers)]
    return (
        f"512 KiB MR images per second, {arguments.images} per measurement, median of "
        f"{arguments.rounds} rounds; hipscore on {store}, {arguments.listeners} listener "
        f"processes:\n\n{tables.table(header, rows, left=0)}"
    )


if __name__ == "__main__":
    main()
