"""The service as an operator runs it: ``hipscore up``, an Orthanc as PACS, dcmtk as scanner."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from hipscore import reporting as hipscore_reporting
from tests import servers

FINAL = {"scored", "not_scorable", "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running hipscore and the Orthanc it delivers to."""

    dicom_port: int
    http_port: int
    orthanc: servers.Orthanc
    process: servers.Process
    environment: dict[str, str]

    def get(self, path: str) -> httpx.Response:
        """``GET path`` from the API."""
        url = f"http://{servers.LOOPBACK}:{self.http_port}{path}"
        return httpx.get(url, timeout=30.0, trust_env=False)

    def storescu(self, files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
        """Send files with dcmtk over one association, as a scanner would."""
        command = [servers.program("storescu", package="dcmtk"), "-R"]
        command += [servers.LOOPBACK, str(self.dicom_port), *map(str, files)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    def wait(self, study_uid: str, seconds: float = 90.0) -> dict[str, Any]:
        """Poll the score of a study until it is final; return the JSON."""
        answer: dict[str, Any] = {}

        def final() -> bool:
            response = self.get(f"/studies/{study_uid}/score")
            if response.status_code == 404:
                return False
            answer.clear()
            answer.update(response.json())
            return answer["status"] in FINAL

        servers.wait_until(final, what=f"a final score of {study_uid}", seconds=seconds)
        return answer

    def delivered(self, study_uid: str, count: int) -> dict[str, bytes]:
        """Wait until the PACS holds ``count`` results of the study; bytes by modality."""
        found: dict[str, bytes] = {}

        def complete() -> bool:
            found.clear()
            for modality in ("SEG", "SR"):
                series = self.orthanc.find("Series", StudyInstanceUID=study_uid, Modality=modality)
                for identifier in series:
                    (instance,) = self.orthanc.get(f"/series/{identifier}")["Instances"]
                    found[modality] = self.orthanc.file(instance)
            return len(found) >= count

        servers.wait_until(complete, what=f"{count} results of {study_uid} in Orthanc")
        return found


def result_schema() -> Any:
    """JSON schema of the result document."""
    path = Path(hipscore_reporting.__file__).parent / "result.schema.json"
    return json.loads(path.read_text("utf-8"))


def dciodvfy_errors(data: bytes, path: Path) -> list[str]:
    """Lines of dicom3tools' dciodvfy that are errors; the object is left at ``path``."""
    path.write_bytes(data)
    checked = subprocess.run(
        [servers.program("dciodvfy", package="dicom3tools"), "-new", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in checked.stderr.splitlines() if line.startswith("Error")]


def hipscore(
    *arguments: str, environment: dict[str, str] | None = None, timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hipscore", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module", params=["embedded", "production"])
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    orthanc_server: servers.Orthanc,
) -> Iterator[Service]:
    """``hipscore up``: once with SQLite and its own broker, once with PostgreSQL and a server."""
    root = tmp_path_factory.mktemp("up")
    resources = contextlib.ExitStack()
    dicom_port, http_port = servers.free_port(), servers.free_port()
    environment = {
        **os.environ,
        "HIPSCORE_DATA_DIR": str(root / "data"),
        "HIPSCORE_DICOM_PORT": str(dicom_port),
        "HIPSCORE_HTTP_PORT": str(http_port),
        "HIPSCORE_DESTINATIONS": orthanc_server.peer,
        "HIPSCORE_QUIET_SECONDS": "3",
        "HIPSCORE_REAP_SECONDS": "1",
    }
    if request.param == "production":
        postgres = request.getfixturevalue("postgres_server")
        environment["HIPSCORE_DATABASE_URL"] = resources.enter_context(postgres.database())
        # its own: workers take from the queues of every test that shares a broker with them
        environment["HIPSCORE_BROKER_URL"] = resources.enter_context(servers.redis()).url

    def ready() -> bool:
        try:
            url = f"http://{servers.LOOPBACK}:{http_port}/readyz"
            answer = httpx.get(url, timeout=5.0, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success and servers.listens(dicom_port)

    process = servers.Process(
        command=[
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in environment.items() if "HIPSCORE" in name),
            sys.executable,
            "-m",
            "hipscore",
            "up",
        ],
        log=root / "up.log",
        ready=ready,
    )
    with resources:
        process.start()
        try:
            yield Service(
                dicom_port=dicom_port,
                http_port=http_port,
                orthanc=orthanc_server,
                process=process,
                environment=environment,
            )
        finally:
            process.stop()
