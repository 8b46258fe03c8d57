"""The real parts the tests run against, each on free ports of its own and gone at the end.

Orthanc (a PACS), dcmtk ``storescp`` (a bare Storage SCP), the embedded broker (Valkey, named
by the protocol it speaks) and PostgreSQL. Every function is a context manager around one server and
raises :class:`MissingPart` when the program is not installed: a missing part fails a
test, it never skips one. ``make setup-system`` installs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis as redis_client

from hipscore import broker
from tests.processes import (
    LOOPBACK,
    MissingPart,
    NotStarted,
    Process,
    free_port,
    identity,
    listens,
    program,
    short_directory,
    wait_until,
)

__all__ = [
    "LOOPBACK",
    "MissingPart",
    "NotStarted",
    "Orthanc",
    "Postgres",
    "Process",
    "Redis",
    "StoreScp",
    "administrator",
    "free_port",
    "listens",
    "orthanc",
    "postgres",
    "program",
    "redis",
    "storescp",
    "wait_until",
]

# --- Orthanc -----------------------------------------------------------------------------


#: an Orthanc that accepts everything from everyone
ORTHANC_CONFIGURATION: Mapping[str, Any] = {
    "Name": "test",
    "Plugins": [],
    "DicomAet": "ORTHANC",
    "DicomCheckCalledAet": False,
    "DicomAlwaysAllowEcho": True,
    "DicomAlwaysAllowFind": True,
    "DicomAlwaysAllowGet": True,
    "DicomAlwaysAllowMove": True,
    "DicomAlwaysAllowStore": True,
    "UnknownSopClassAccepted": True,
    "DicomModalitiesInDatabase": True,
    "RemoteAccessAllowed": True,
    "AuthenticationEnabled": False,
    "OverwriteInstances": True,
    "StableAge": 1,
    "JobsHistorySize": 100,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Orthanc:
    """A running Orthanc: a Storage, Query/Retrieve and Storage Commitment SCP with REST."""

    ae_title: str
    host: str
    dicom_port: int
    http_port: int
    process: Process

    @property
    def peer(self) -> str:
        """``AET@HOST:PORT``, as in HIPSCORE_DESTINATIONS."""
        return f"{self.ae_title}@{self.host}:{self.dicom_port}"

    @property
    def url(self) -> str:
        """Base URL of its REST API."""
        return f"http://{self.host}:{self.http_port}"

    def get(self, path: str) -> Any:
        """JSON answer of ``GET path``."""
        return self._checked("GET", path).json()

    def file(self, instance: str) -> bytes:
        """Part 10 bytes of an instance, by Orthanc's identifier."""
        return self._checked("GET", f"/instances/{instance}/file").content

    def find(self, level: str, **query: str) -> list[str]:
        """Orthanc identifiers at ``Study``, ``Series`` or ``Instance`` level that match."""
        answer: list[str] = self._checked(
            "POST", "/tools/find", json={"Level": level, "Query": query}
        ).json()
        return answer

    def add_modality(self, name: str, *, ae_title: str, port: int, host: str = LOOPBACK) -> None:
        """Make another application entity known: commitment reports and C-MOVE go there."""
        entry = {"AET": ae_title, "Host": host, "Port": port}
        self._checked("PUT", f"/modalities/{name}", json=entry)

    def upload(self, data: bytes) -> None:
        """Store a Part 10 file over REST."""
        self._checked("POST", "/instances", content=data)

    def send(self, name: str, instances: Sequence[str]) -> None:
        """C-STORE instances (Orthanc identifiers) to a known modality; wait for the outcome."""
        self._checked("POST", f"/modalities/{name}/store", json=list(instances))

    def clear(self) -> None:
        """Forget everything stored and every modality."""
        for study in self.get("/studies"):
            self._checked("DELETE", f"/studies/{study}")
        for name in self.get("/modalities"):
            self._checked("DELETE", f"/modalities/{name}")

    def _checked(self, method: str, path: str, **content: Any) -> httpx.Response:
        answer = httpx.request(method, self.url + path, timeout=60.0, trust_env=False, **content)
        return answer.raise_for_status()


@contextlib.contextmanager
def orthanc(
    root: Path, *, configuration: Mapping[str, Any] = ORTHANC_CONFIGURATION
) -> Iterator[Orthanc]:
    """Run an empty Orthanc on free ports, with its files below ``root``.

    By default it accepts everything.
    """
    executable = program("Orthanc", package="orthanc")
    dicom_port, http_port = free_port(), free_port()
    here = {
        "StorageDirectory": str(root / "storage"),
        "IndexDirectory": str(root / "storage"),
        "DicomPort": dicom_port,
        "HttpPort": http_port,
    }
    ae_title = str(configuration["DicomAet"])
    path = root / "orthanc.json"
    path.write_text(json.dumps({**configuration, **here}, indent=2))
    url = f"http://{LOOPBACK}:{http_port}/system"

    def ready() -> bool:
        try:
            answer = httpx.get(url, timeout=5.0, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success and listens(dicom_port)

    process = Process(command=(executable, str(path)), log=root / "orthanc.log", ready=ready)
    process.start()
    try:
        yield Orthanc(
            ae_title=ae_title,
            host=LOOPBACK,
            dicom_port=dicom_port,
            http_port=http_port,
            process=process,
        )
    finally:
        process.kill()  # its files go too, and an orderly end takes it seconds


# --- dcmtk storescp ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreScp:
    """A running dcmtk ``storescp`` that writes exactly the bytes it gets."""

    ae_title: str
    host: str
    port: int
    directory: Path
    process: Process

    @property
    def peer(self) -> str:
        """``AET@HOST:PORT``, as in HIPSCORE_DESTINATIONS."""
        return f"{self.ae_title}@{self.host}:{self.port}"

    def received(self) -> list[Path]:
        """Part 10 files received so far, oldest first."""
        return sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@contextlib.contextmanager
def storescp(
    root: Path,
    *,
    ae_title: str = "STORESCP",
    options: Sequence[str] = ("--accept-all",),
) -> Iterator[StoreScp]:
    """Run ``storescp`` with its files below ``root``; more dcmtk options as given."""
    executable = program("storescp", package="dcmtk")
    port = free_port()
    directory = root / "received"
    directory.mkdir()
    command = (
        executable,
        "--aetitle",
        ae_title,
        "--output-directory",
        str(directory),
        "--bit-preserving",
        "--unique-filenames",
        *options,
        str(port),
    )
    process = Process(command=command, log=root / "storescp.log", ready=lambda: listens(port))
    process.start()
    try:
        yield StoreScp(
            ae_title=ae_title, host=LOOPBACK, port=port, directory=directory, process=process
        )
    finally:
        process.stop()


# --- the broker --------------------------------------------------------------------------


_ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """The embedded broker as ``hipscore up`` runs it, with one more user for the tests."""

    socket: Path
    process: Process

    @property
    def url(self) -> str:
        """As Celery and HIPSCORE_BROKER_URL want it."""
        return f"redis+socket://{self.socket}"

    @property
    def administrator_url(self) -> str:
        """Likewise, with every right."""
        return f"redis+socket://{_ADMINISTRATOR}:any@{self.socket}"

    def clear(self) -> None:
        """Delete every key."""
        with administrator(self.socket) as client:
            client.flushall()

    def denied(self) -> list[str]:
        """Commands that were asked for and that the service has no right to."""
        with administrator(self.socket) as client:
            return sorted({str(each["object"]) for each in client.acl_log(10_000)})


def administrator(socket: Path) -> redis_client.Redis:
    """A connection to the broker that may do everything."""
    return redis_client.Redis(unix_socket_path=str(socket), username=_ADMINISTRATOR, password="any")


@contextlib.contextmanager
def redis() -> Iterator[Redis]:
    """Run the broker that ``hipscore up`` embeds."""
    with short_directory() as root:
        path = root / "valkey.sock"
        command = broker.command(path, broker.private(root))
        command += ["--user", _ADMINISTRATOR, "on", "nopass", "~*", "&*", "+@all"]

        def ready() -> bool:
            try:
                with redis_client.Redis(unix_socket_path=str(path)) as client:
                    return bool(client.ping())
            except redis_client.RedisError:
                return False

        process = Process(command=command, log=root / "output.log", ready=ready)
        process.start()
        try:
            yield Redis(socket=path, process=process)
        finally:
            process.stop()


# --- PostgreSQL --------------------------------------------------------------------------


def postgres_program(name: str) -> str:
    """Path of a PostgreSQL server program, which Debian keeps off PATH. Newest version first."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(path.parts[-3]),
        reverse=True,
    )
    return str(versions[0]) if versions else program(name, package="postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A running PostgreSQL cluster that trusts whoever is on this machine."""

    host: str
    port: int
    process: Process
    _numbers: count[int] = field(default_factory=count)

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database of the cluster."""
        return f"postgresql+psycopg://postgres@{self.host}:{self.port}/{database}"

    def _run(self, statement: psycopg.sql.Composed) -> None:
        with psycopg.connect(
            host=self.host, port=self.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Yield the SQLAlchemy URL of a new database, dropped at the end.

        Empty, or a copy of ``template``, which nobody may be connected with.
        """
        name = f"test_{next(self._numbers)}"
        identifier = psycopg.sql.Identifier(name)
        source = psycopg.sql.Identifier(template or "template1")
        self._run(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, source))
        try:
            yield self.url(name)
        finally:
            self._run(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@contextlib.contextmanager
def postgres(*, fsync: bool = False) -> Iterator[Postgres]:
    """Run a new PostgreSQL cluster (as user ``postgres`` if we are root: it refuses root)."""
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with short_directory() as root:
        if user is not None:
            shutil.chown(root, user)
        data = root / "data"
        initialise = [postgres_program("initdb"), "--pgdata", str(data), "--username=postgres"]
        initialise += ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        done = subprocess.run(
            initialise,
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **identity(user),
        )
        if done.returncode != 0:
            raise NotStarted(f"initdb ended with {done.returncode}\n{done.stderr[-2000:]}")
        command = [postgres_program("postgres"), "-D", str(data), "-p", str(port), "-k", str(root)]
        command += ["-c", f"listen_addresses={LOOPBACK}", "-c", "max_connections=200"]
        command += ["-c", f"fsync={'on' if fsync else 'off'}", "-c", "timezone=UTC"]

        def ready() -> bool:
            try:
                psycopg.connect(
                    host=LOOPBACK, port=port, user="postgres", dbname="postgres", connect_timeout=5
                ).close()
            except psycopg.OperationalError:
                return False
            return True

        process = Process(
            command=command, log=root / "postgres.log", ready=ready, user=user, cwd=root
        )
        process.start()
        try:
            yield Postgres(host=LOOPBACK, port=port, process=process)
        finally:
            process.stop(signal.SIGINT)  # fast shutdown: does not wait for clients
