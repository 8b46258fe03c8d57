"""Everything one run needs, as real processes: database, broker, PACS, and hipscore's four."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from hipscore.store import engine as database
from tests import servers
from tests.faults.keeper import Keeper
from tests.faults.launch import How, Order, Orders, When
from tests.faults.pacs_front import Front, Mood
from tests.faults.sender import Modality
from tests.processes import NotStarted, free_port, listens, wait_until

COMMANDS = {
    "listener": ("listen",),
    "analysis": ("work", "--queue", "analysis"),
    "delivery": ("work", "--queue", "delivery"),
    "beat": ("beat",),
}
LEASE_SECONDS = 12.0
QUIET_SECONDS = 3.0
#: what a run that is told to end has to take down
OPEN: list[contextlib.ExitStack] = []
#: seconds an ordered blow may take to fall
_STRIKE_SECONDS = 150.0


@dataclass(slots=True, kw_only=True)
class Stage:
    """One hipscore with its surroundings. ``kind`` is the database: sqlite or postgresql."""

    kind: str
    root: Path
    environment: dict[str, str]
    port: int
    keeper: Keeper
    front: Front
    orthanc: servers.Orthanc
    redis: servers.Redis
    postgres: servers.Postgres | None
    engine: Engine
    random: random.Random
    own_disk: bool
    orders: dict[str, Orders] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """A modality that sends here."""
        return Modality(self.port)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def order(
        self, role: str, point: str, when: When, *, how: How = "process", nth: int = 1
    ) -> None:
        """Let a process of this role strike itself when it comes to the point."""
        self.orders[role].give(Order(point=point, when=when, how=how, nth=nth))

    def await_blow(self, role: str) -> int:
        """Wait until the order is obeyed; process id of who obeyed.

        Raises
        ------
        TimeoutError
            If it never is: then the fault was not injected.
        """
        orders = self.orders[role]
        try:
            wait_until(
                lambda: orders.struck() is not None,
                what=f"the {role} obeys its order",
                seconds=_STRIKE_SECONDS,
            )
        finally:
            orders.withdraw()
        return orders.struck() or 0

    def await_service(self) -> None:
        """Wait until images can be sent."""
        wait_until(lambda: listens(self.port), what="the listener is up", seconds=60.0)

    def await_mood(self, mood: Mood, times: int) -> None:
        """Wait until the PACS has answered in this mood so often."""
        wait_until(
            lambda: self.front.struck[mood] >= times,
            what=f"the PACS {mood.value}",
            seconds=_STRIKE_SECONDS,
        )

    @contextlib.contextmanager
    def pacs(self, mood: Mood) -> Iterator[None]:
        """The PACS in this mood while inside."""
        self.front.mood = mood
        try:
            yield
        finally:
            self.front.mood = Mood.WELL

    @contextlib.contextmanager
    def postgres_down(self, *, kill: bool) -> Iterator[None]:
        """End the database server, in an orderly way or not; start it again at the end."""
        if self.postgres is None:
            raise ValueError("this stage has no PostgreSQL")
        process = self.postgres.process
        if kill:
            process.kill()
        else:
            process.stop(signal.SIGINT)
        try:
            yield
        finally:
            for _ in range(50):  # its orphans hold its shared memory for a moment
                try:
                    process.start()
                except NotStarted:
                    time.sleep(0.2)
                else:
                    break
            else:
                process.start()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold SQLite's write lock."""
        with contextlib.closing(
            sqlite3.connect(self.data / "hipscore.db", isolation_level=None, timeout=60.0)
        ) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")

    def hipscore(self, *command: str) -> str:
        """Run a command of hipscore to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "hipscore", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout + done.stderr


@contextlib.contextmanager
def stage(kind: str, root: Path, *, seed: int, own_disk: bool, direct: bool) -> Iterator[Stage]:
    """Build a stage below ``root`` and tear it down at the end; its files stay.

    Parameters
    ----------
    kind
        ``sqlite`` or ``postgresql``.
    root
        An empty directory.
    seed
        Of what is drawn at random.
    own_disk
        Whether the data directory lies on a small disk of its own (needs root), so that
        it can be filled.
    direct
        Whether results go to Orthanc itself instead of the PACS that fails on demand.
    """
    with contextlib.ExitStack() as parts:
        OPEN.append(parts)
        (root / "data").mkdir(parents=True)
        (root / "orders").mkdir()
        if own_disk:
            parts.enter_context(_disk(root / "data"))
        (root / "orthanc").mkdir()
        port = free_port()
        orthanc = parts.enter_context(servers.orthanc(root / "orthanc"))
        orthanc.add_modality("hipscore", ae_title="HIPSCORE", port=port)
        redis = parts.enter_context(servers.redis())
        postgres, url = None, f"sqlite:///{root / 'data' / 'hipscore.db'}"
        if kind == "postgresql":
            postgres = parts.enter_context(servers.postgres())
            url = postgres.url("postgres")
        front = Front(orthanc, report_to=port)
        parts.callback(front.close)
        environment = {
            **{name: value for name, value in os.environ.items() if "HIPSCORE" not in name},
            "OMP_NUM_THREADS": "1",
            "HIPSCORE_DATA_DIR": str(root / "data"),
            "HIPSCORE_DATABASE_URL": url,
            "HIPSCORE_BROKER_URL": redis.url,
            "HIPSCORE_DICOM_PORT": str(port),
            "HIPSCORE_DESTINATIONS": orthanc.peer if direct else front.peer,
            "HIPSCORE_QUIET_SECONDS": f"{QUIET_SECONDS:g}",
            "HIPSCORE_REAP_SECONDS": "1",
            "HIPSCORE_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
            "HIPSCORE_COMMITMENT_SECONDS": "5",
            "HIPSCORE_RESERVE_MB": "1",
            "HIPSCORE_WATERMARK_MB": "0",
            "HIPSCORE_THREADS": "1",
        }
        database.upgrade(url)
        engine = database.connect(url)
        parts.callback(engine.dispose)
        keeper = Keeper()
        parts.callback(keeper.close)
        made = Stage(
            kind=kind,
            root=root,
            environment=environment,
            port=port,
            keeper=keeper,
            front=front,
            orthanc=orthanc,
            redis=redis,
            postgres=postgres,
            engine=engine,
            random=random.Random(f"{kind} {seed}"),
            own_disk=own_disk,
        )
        for role, command in COMMANDS.items():
            made.orders[role] = Orders(root / "orders", role)
            keeper.add(role, launched(root, role, command), environment, root / f"{role}.log")
        made.orders["operator"] = Orders(root / "orders", "operator")
        made.await_service()
        yield made


def launched(root: Path, role: str, command: tuple[str, ...]) -> list[str]:
    """``hipscore`` with this command, as a role that obeys orders."""
    launch = [sys.executable, "-m", "tests.faults.launch", "--role", role]
    return [*launch, "--orders", str(root / "orders"), "--", *command]


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "none", str(path)], check=True)
    try:
        yield
    finally:
        kept = path.with_name("kept")
        shutil.copytree(path, kept, ignore=shutil.ignore_patterns("filler"))
        subprocess.run(["umount", "--lazy", str(path)], check=True)
