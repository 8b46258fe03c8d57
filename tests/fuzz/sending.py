"""Mutants against the real listener process, which must answer, stay small and stay alive."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests import servers
from tests.fuzz.attacks import ATTACKS
from tests.fuzz.mutants import MARKER, Mutant, numbered
from tests.fuzz.sources import Source, phantom_series, single_sources
from tests.fuzz.watching import memory_mb
from tests.fuzz.wire import Ended, NoAnswer, Scu, associated

#: memory of the listener's process, MB
LISTENER_MB = 400.0
#: objects on one association, and between two sound images
BATCH = 50
_ESCAPE = Path("/tmp/hipscore-fuzz-escape")  # noqa: S108 - what a hostile UID asks for
_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR|CRITICAL) \d+ ")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one object or one attack; ``defect`` where it must not."""

    number: int
    how: str
    answer: str
    defect: str = ""


@dataclass(kw_only=True)
class Listener:
    """A running ``hipscore listen`` with everything it owns below one folder."""

    root: Path
    port: int
    process: servers.Process
    environment: dict[str, str]

    @property
    def peak_mb(self) -> float:
        """Most memory any of its processes ever had."""
        return max(memory_mb(pid, "VmHWM") for pid in [self.process.pid, *self._children()])

    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return memory_mb(self.process.pid) > 0

    def complaints(self) -> list[str]:
        """What is wrong with its log and with the files it left."""
        return [*_log_complaints(self.process.log), *self._stray_files()]

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(FileNotFoundError):
            return [int(pid) for pid in path.read_text("ascii").split()]
        return []

    def _stray_files(self) -> Iterator[str]:
        if _ESCAPE.exists():
            yield f"{_ESCAPE} was written"
        for path in self.root.iterdir():
            if path.name not in {"data", "home", "work", "tmp", "listener.log"}:
                yield f"{path} was written"
        for folder in ("home", "work", "tmp"):
            for path in (self.root / folder).rglob("*"):
                yield f"{path} was written"
        spool = self.root / "data" / "spool"
        for path in spool.rglob("*"):
            inside = path.relative_to(spool).as_posix()
            if re.fullmatch(r"(tmp|[0-9a-f]{2})(/[^/]+)?", inside) is None:
                yield f"{path} is no file of the spool"


@contextlib.contextmanager
def running_listener(root: Path | None = None) -> Iterator[Listener]:
    """Run the listener on SQLite with a broker of its own."""
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hs-fuzz-")))
        for folder in ("data", "home", "work", "tmp"):
            (root / folder).mkdir()
        redis = stack.enter_context(servers.redis())
        port = servers.free_port()
        own = {
            "HIPSCORE_DATA_DIR": str(root / "data"),
            "HIPSCORE_BROKER_URL": redis.url,
            "HIPSCORE_DICOM_PORT": str(port),
            "HIPSCORE_RESERVE_MB": "1",
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HIPSCORE_")}
        environment = {**kept, **own}
        call = [sys.executable, "-m", "hipscore"]
        subprocess.run([*call, "db", "upgrade"], env=environment, check=True, capture_output=True)
        process = servers.Process(
            command=("/usr/bin/env", *(f"{k}={v}" for k, v in own.items()), *call, "listen"),
            log=root / "listener.log",
            ready=lambda: servers.listens(port),
            cwd=root / "work",
        )
        process.start()
        stack.callback(process.stop)
        yield Listener(root=root, port=port, process=process, environment=environment)


def _log_complaints(path: Path) -> Iterator[str]:
    """Names of patients, forged lines, defects that the listener logged itself."""
    foreign: list[str] = []
    for line in [*path.read_bytes().decode("utf-8", "replace").split("\n"), ""]:
        if MARKER in line:
            yield f"the log names a patient: {line[:200]!r}"
        if _CONTROL.search(line):
            yield f"a control character in the log: {line[:200]!r}"
        if line and _LINE.match(line) is None:
            foreign.append(line)
            continue
        if foreign:  # a traceback is one complaint
            yield f"lines of the log that are none of ours: {foreign[0]!r} ... {foreign[-1]!r}"
            foreign = []
        if " failed: " in line:
            yield f"a defect of the listener: {line[:300]!r}"


# --- objects -----------------------------------------------------------------------------


@dataclass
class _Sender:
    """One association after the other, until its numbers are used up."""

    port: int
    numbers: Sequence[int]
    sources: Sequence[Source]
    fates: list[Fate] = field(default_factory=list)

    def run(self) -> None:
        for at in range(0, len(self.numbers), BATCH):
            batch = list(self.numbers[at : at + BATCH])
            while batch:
                batch = self._batch(batch)
            self.fates.append(sound_image(self.port, self.numbers[at]))

    def _batch(self, numbers: list[int]) -> list[int]:
        """Send these over one association; what is left if it ended early."""
        fate = None
        done = 0
        try:
            with associated(self.port) as scu:
                for done, number in enumerate(numbers, start=1):  # noqa: B007 - used below
                    made = numbered(self.sources, number)
                    fate = _sent(scu, made)
                    self.fates.append(fate)
                    if fate.defect:
                        break
        except (NoAnswer, Ended, OSError) as error:
            if fate is None or not fate.defect:
                said = f"association: {type(error).__name__}: {error}"
                self.fates.append(Fate(numbers[max(0, done - 1)], "association", "ended", said))
                done = max(done, 1)
        return numbers[done:]


def _sent(scu: Scu, made: Mutant) -> Fate:
    """Send one mutant."""
    try:
        status = scu.store(made.sop_class, made.syntax, made.sop_instance, made.data_set)
    except NoAnswer as hang:
        return Fate(made.seed, made.how, "hang", str(hang))
    except Ended as ended:
        return Fate(made.seed, made.how, "aborted", str(ended))
    return Fate(made.seed, made.how, _kind(status))


def _kind(status: int) -> str:
    """A column of the table."""
    if status == 0:
        return "0000"
    return f"{status >> 8:02X}xx"


def sound_image(port: int, number: int) -> Fate:
    """A well-formed image: it must be accepted, whatever came before."""
    (source, *_) = phantom_series()["phantom ExplicitVRLittleEndian"]
    instance = f"2.25.4711.{os.getpid()}.{number}.{threading.get_ident() % 10**6}"
    padded = instance.encode() + b"\0" * (len(instance) % 2)
    parts = source.parts()
    for tag in (0x00080018, 0x0020000D, 0x0020000E):
        parts.put(tag, b"UI", padded)
    how = "(sound images)"
    try:
        with associated(port) as scu:
            status = scu.store(source.sop_class, source.syntax, instance, parts.encoded())
    except (NoAnswer, Ended, OSError) as error:
        return Fate(number, how, "refused", f"a sound image: {type(error).__name__}: {error}")
    defect = "" if status == 0 else f"a sound image got 0x{status:04X}"
    return Fate(number, how, _kind(status), defect)


def send_objects(
    listener: Listener, numbers: Sequence[int], *, associations: int = 4, real: bool = False
) -> list[Fate]:
    """Send these mutants over several associations at once."""
    sources = single_sources(real=real)
    phantom_series()
    senders = [
        _Sender(listener.port, numbers[index::associations], sources)
        for index in range(associations)
    ]
    threads = [threading.Thread(target=sender.run) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [fate for sender in senders for fate in sender.fates]


def attack(listener: Listener, numbers: Sequence[int]) -> list[Fate]:
    """Attack below the level of objects; after each attack a sound image must get through."""
    fates = []
    names = list(ATTACKS)
    for number in numbers:
        rng = Random(f"attack/{number}")
        how = names[number % len(names)]
        try:
            ATTACKS[how](listener.port, rng)
        except OSError as error:
            fates.append(Fate(number, how, "refused", f"no connection: {error}"))
            continue
        after = sound_image(listener.port, number)
        fates.append(Fate(number, how, "survived" if not after.defect else "lost", after.defect))
    return fates


def tally(fates: Sequence[Fate]) -> dict[str, Counter[str]]:
    """Answers by kind of mutation."""
    found: dict[str, Counter[str]] = {}
    for fate in fates:
        found.setdefault(fate.how, Counter())[fate.answer] += 1
    return found
