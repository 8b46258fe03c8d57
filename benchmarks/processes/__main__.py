"""Starting and standing: how long ``hipscore up`` and the command line take, and the memory.

``python -m benchmarks.processes`` starts the service several times from nothing (new data
directory: schema, embedded Valkey, every process) until ``/readyz`` answers and the DICOM port
is open, with an Orthanc started beside it each time for comparison. Then it reads the memory
of every process before and after some analyses, and times the command line.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import service, tables, usage
from tests import servers

#: what is wanted, seconds
TARGET_START_S, TARGET_IMPORT_S = 5.0, 0.3
#: what the processes run, by name
MODULES = {
    "up": "hipscore.cli.up",
    "listener": "hipscore.listener",
    "API": "hipscore.api",
    "worker": "hipscore.worker",
}
#: packages worth a look: each costs a tenth of a second or 10 MiB
HEAVY = (
    "numpy",
    "scipy",
    "highdicom",
    "pydicom",
    "pynetdicom",
    "PIL",
    "reportlab",
    "sqlalchemy",
    "alembic",
    "celery",
    "fastapi",
    "httpx",
    "matplotlib",
    "onnxruntime",
    "openvino",
    "torch",
)
_LOADED = """
import sys, time
begun = time.process_time()
__import__(sys.argv[1])
print(time.process_time() - begun, *(each for each in sys.argv[2:] if each in sys.modules))
"""


def main() -> None:
    """Measure, print, and keep when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--analyses", type=int, default=20)
    parser.add_argument("--fast", action="store_true", help="one start, two analyses")
    parser.add_argument("--keep", action="store_true", help=f"write the tables to {tables.PAGE}")
    arguments = parser.parse_args()
    count, analyses = (1, 2) if arguments.fast else (arguments.starts, arguments.analyses)
    text = "\n\n".join(
        (tables.machine(), starts(count), memory(analyses), imports(1 if arguments.fast else 5))
    )
    print(f"\n{text}")
    if arguments.keep:
        tables.keep("processes", text)


def starts(count: int) -> str:
    """Seconds until ready, and of processor, as Markdown; Orthanc is the peer."""
    ours, theirs, processor = [], [], []
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="start-", ignore_cleanup_errors=True) as folder:
            root = Path(folder)
            begun = time.perf_counter()
            with servers.orthanc(root) as pacs:
                theirs.append(time.perf_counter() - begun)
                each = service.prepared(root, pacs.peer)
                begun = time.perf_counter()
                each.process.start()
                ours.append(time.perf_counter() - begun)
                processor.append(sum(map(usage.seconds, usage.children(each.process.pid))))
                each.stop()
        _say(f"start {number + 1}: {ours[-1]:.2f} s, Orthanc {theirs[-1]:.2f} s")
    commands = {
        "`hipscore --help`": _times([sys.executable, "-m", "hipscore", "--help"], 3 * count),
        "`python -c pass`": _times([sys.executable, "-c", "pass"], 3 * count),
    }
    imported = [_import_time() for _ in range(3 * count)]
    start, peer, blank = tables.p50(ours), tables.p50(theirs), commands["`python -c pass`"]
    rows = [
        _row("`hipscore up` to ready", ours, f"{TARGET_START_S:g} s", peer),
        _row("Orthanc to ready", theirs, "", peer),
        _row("`hipscore --help`", commands["`hipscore --help`"], "", tables.p50(blank)),
        _row("`python -c pass`", blank, "", tables.p50(blank)),
        _row("`import hipscore.cli`", imported, f"{TARGET_IMPORT_S:g} s", tables.p50(blank)),
    ]
    met = start <= TARGET_START_S and tables.p50(imported) <= TARGET_IMPORT_S
    return "\n\n".join(
        (
            tables.table(["from nothing", "p50, s", "target", "÷ Orthanc or `python`"], rows),
            (
                f"`hipscore up` uses {tables.p50(processor):.1f} s of processor, all processes "
                f"together, until it is ready. Targets {'met' if met else 'missed'}."
            ),
        )
    )


def _row(name: str, seconds: Sequence[float], target: str, peer: float) -> list[str]:
    middle = tables.p50(seconds)
    return [name, f"{middle:.2f}", target, f"{middle / peer:.1f}×"]


def _times(command: Sequence[str], count: int) -> list[float]:
    """Seconds of a command, so many times."""
    spent = []
    for _ in range(count):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - begun)
    return spent


def _import_time() -> float:
    """Seconds that ``import hipscore.cli`` takes with all it imports, as the interpreter says."""
    command = [sys.executable, "-X", "importtime", "-c", "import hipscore.cli"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return cumulative("hipscore", said) + cumulative("hipscore.cli", said)


def cumulative(module: str, importtime: str) -> float:
    """Seconds of a module in what ``-X importtime`` printed, with what it imports.

    Raises
    ------
    ValueError
        If the module is not in it.
    """
    found = re.search(rf"\|\s+(\d+) \|\s+{re.escape(module)}$", importtime, re.MULTILINE)
    if found is None:
        raise ValueError(f"{module} was not imported")
    return int(found.group(1)) / 1e6


def memory(analyses: int) -> str:
    """MiB of each process, before and after so many analyses, as Markdown."""
    with tempfile.TemporaryDirectory(prefix="memory-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        with servers.orthanc(root) as pacs, service.running(root, pacs) as running:

            def taken() -> dict[int, usage.Memory]:
                return {each: usage.memory(each) for each in usage.names(running.process.pid)}

            _one(0, running)  # every process has loaded what it needs
            before = taken()
            for number in range(1, analyses + 1):
                _one(number, running)
                _say(f"analysis {number}")
            after, names = taken(), usage.names(running.process.pid)
            peer = usage.memory(pacs.process.pid)
    rows = [
        [names[pid], *_figures(before.get(pid, after[pid])), *_figures(after[pid])] for pid in names
    ]
    total = [sum(each.pss for each in which.values()) for which in (before, after)]
    rows.append(["**together**", "", f"{total[0]:.0f}", "", f"{total[1]:.0f}"])
    rows.append(["Orthanc, for comparison", "", "", *_figures(peer)])
    header = ["MiB", "RSS, idle", "PSS, idle", f"RSS after {analyses}", f"PSS after {analyses}"]
    grown = f"{total[1] / total[0]:.2f} times as much as before, {total[1] / peer.pss:.1f} times"
    return "\n\n".join(
        (
            tables.table(header, rows),
            f"Idle: after one analysis. After {analyses} more, {grown} Orthanc's.",
        )
    )


def _one(number: int, running: service.Service) -> None:
    images = service.series(number)
    service.send(images, running.dicom_port)
    service.settle(str(images[0].StudyInstanceUID), running, seconds=120)


def _figures(taken: usage.Memory) -> list[str]:
    return [f"{taken.rss:.0f}", f"{taken.pss:.0f}"]


def imports(count: int) -> str:
    """What each process imports before it does anything, as Markdown."""
    rows = []
    for name, module in MODULES.items():
        seconds, found = [], []
        for _ in range(count):
            said = subprocess.run(
                [sys.executable, "-c", _LOADED, module, *HEAVY],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            seconds.append(float(said[0]))
            found = said[1:]
        rows.append([f"{name} (`{module}`)", ", ".join(found), f"{tables.p50(seconds):.2f}"])
    return tables.table(["process", "imports of note", "processor, s"], rows, left=2)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
