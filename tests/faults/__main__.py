"""``python -m tests.faults``: break hipscore in every way there is, and count what is lost."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy.exc import SQLAlchemyError

from tests.faults import plan, table
from tests.faults.stage import OPEN, Stage, stage
from tests.faults.strikes import DATABASES, Fault
from tests.faults.verdict import Round, explain, judge, settled

#: rounds that may be on their way to recovery while the next faults are injected
PENDING = 5
#: after this long a series that has no outcome counts as lost
DEADLINE_SECONDS = 300.0
LOOK_SECONDS = 0.2
#: share of the faults of a long run whose results go to Orthanc without anything between
_DIRECT_SHARE = 0.15


@dataclass(slots=True)
class Run:
    """One database's share of a run: faults on one thread, verdicts on another."""

    stage: Stage
    done: list[Round] = field(default_factory=list)
    pending: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def through(self, faults: list[Fault]) -> None:
        """Inject one fault after the other; recoveries overlap with the next faults."""
        judging = threading.Thread(target=self._judge, daemon=True)
        judging.start()
        try:
            for number, fault in enumerate(faults, start=1):
                self._wait_for(1 if fault.alone else PENDING)
                self._inject(fault, number, len(faults))
            self._wait_for(1)
        finally:
            self._over.set()
            judging.join()
        self._look_back()

    def _inject(self, fault: Fault, number: int, total: int) -> None:
        round_ = Round(number=number, kind=fault.kind, faults=fault.faults)
        try:
            fault.act(self.stage, round_)
        except Exception:  # noqa: BLE001 - a fault that cannot be injected is a result
            round_.unsettled.append(f"{fault.name} could not be injected")
            with self._lock:
                self.done.append(round_)
            self._fail(round_, traceback.format_exc())
            return
        round_.over_at = time.monotonic()
        with self._lock:
            self.pending.append(round_)
        self._say(f"{number:4d}/{total} {fault.name}")

    def _wait_for(self, fewer: int) -> None:
        """Wait until fewer rounds than this are on their way to recovery."""
        while len(self.pending) >= fewer:
            time.sleep(LOOK_SECONDS)

    def _judge(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for each in list(self.pending):
                # what is asked may be down: then it is asked again
                with contextlib.suppress(SQLAlchemyError, httpx.HTTPError):
                    if settled(each, self.stage):
                        each.settled_at = each.settled_at or time.monotonic()
                    elif time.monotonic() - each.over_at < DEADLINE_SECONDS:
                        continue
                    judge(each, self.stage)
                    with self._lock:
                        self.pending.remove(each)
                        self.done.append(each)
                    if each.violations:
                        self._fail(each, explain(each, self.stage))

    def _look_back(self) -> None:
        """Whatever was right must have stayed so."""
        for each in self.done:
            if each.violations or each.settled_at is None:
                continue
            judge(each, self.stage)
            if each.violations:
                self._fail(each, explain(each, self.stage))

    def _fail(self, round_: Round, text: str) -> None:
        self.failures.append(text)
        self._say(f"VIOLATION in round {round_.number}, {round_.kind}\n{text}")

    def _say(self, text: str) -> None:
        bad = f", {len(self.failures)} violations" if self.failures else ""
        head = f"{datetime.now(UTC):%H:%M:%S} {self.stage.kind:10}"
        say(f"{head} {text} ({len(self.pending)} recovering{bad})")


def say(text: str) -> None:
    """One line, or several in one piece, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(
    kind: str, faults: list[Fault], root: Path, *, seed: int, own_disk: bool, direct: bool
) -> Run:
    """Run these faults on a new stage."""
    with stage(kind, root, seed=seed, own_disk=own_disk, direct=direct) as built:
        running = Run(built)
        running.through(faults)
        return running


def runs(kind: str, options: argparse.Namespace, root: Path, out: list[Run]) -> None:
    """Run everything for one database; results go to ``out``."""
    root.mkdir(parents=True)
    if options.fast:
        faults = plan.fast_plan(kind)
        out.append(
            run(kind, faults, root / "fast", seed=options.seed, own_disk=False, direct=False)
        )
        return
    own_disk = os.geteuid() == 0 and not options.no_mount
    if options.only is not None:
        faults = plan.plan_of(kind, options.only, own_disk=own_disk)
        out.append(
            run(
                kind,
                faults,
                root / "only",
                seed=options.seed,
                own_disk=own_disk,
                direct=options.direct,
            )
        )
        return
    here = options.faults // len(_databases(options))
    aside = max(4, int(here * _DIRECT_SHARE))
    long = plan.long_plan(kind, here - aside, seed=options.seed, own_disk=own_disk)
    out.append(run(kind, long, root / "front", seed=options.seed, own_disk=own_disk, direct=False))
    straight = plan.direct_plan(aside, seed=options.seed)
    out.append(run(kind, straight, root / "direct", seed=options.seed, own_disk=False, direct=True))


def _databases(options: argparse.Namespace) -> tuple[str, ...]:
    return DATABASES if options.database == "both" else (options.database,)


def main() -> int:
    """Run, print the table, return the exit code."""
    options = _options()
    root = Path(tempfile.mkdtemp(prefix="hipscore-faults-"))
    signal.signal(signal.SIGTERM, _give_up)
    signal.signal(signal.SIGINT, _give_up)
    started = time.monotonic()
    out: list[Run] = []
    errors: list[str] = []

    def one(kind: str) -> None:
        try:
            runs(kind, options, root / kind, out)
        except Exception:  # noqa: BLE001 - the other database goes on
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=one, args=(kind,)) for kind in _databases(options)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    rounds = [each for part in out for each in part.done]
    minutes = (time.monotonic() - started) / 60.0
    about = (
        f"{sum(each.faults for each in rounds)} faults in {len(rounds)} rounds over "
        f"{' and '.join(_databases(options))}, seed {options.seed}, {minutes:.0f} min."
    )
    say(f"\n{table.text(rounds)}\n\n{about}")
    for text in errors:
        say(text)
    bad = bool(errors) or any(part.failures for part in out)
    if options.markdown is not None and not bad:
        table.write(options.markdown, table.markdown(rounds, about=about))
    if bad:
        say(f"the promise was broken; files are kept in {root}")
        return 1
    shutil.rmtree(root, ignore_errors=True)
    return 0


def _give_up(number: int, frame: object) -> None:
    """Leave no server behind when told to end."""
    del frame
    for parts in OPEN:
        with contextlib.suppress(Exception):
            parts.close()
    os._exit(128 + number)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    options.add_argument("--database", choices=(*DATABASES, "both"), default="both")
    options.add_argument("--faults", type=int, default=300, help="at least so many, in all")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--fast", action="store_true", help="the short fixed choice")
    options.add_argument("--only", help="faults whose name this regular expression finds, once")
    options.add_argument("--direct", action="store_true", help="with --only: no PACS but Orthanc")
    options.add_argument("--no-mount", action="store_true", help="no disk of its own to fill")
    options.add_argument("--markdown", type=Path, help="page to write the table into")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
