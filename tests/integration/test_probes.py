"""The probes of the Kubernetes chart, run as they stand there, against the processes they watch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hipscore import broker as embedded
from hipscore.store import engine
from tests import kubernetes, servers
from tests.kubernetes import Manifest, container, pods, render


@pytest.fixture(scope="module")
def rendered() -> dict[str, Manifest]:
    """The containers of the chart by component."""
    return {
        component: container(template)
        for component, template in pods(render(kubernetes.example("hospital")))
    }


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """URL of a Redis that is reached over TCP, as in a cluster."""
    port = servers.free_port()
    options = ["--port", str(port), "--bind", servers.LOOPBACK, "--dir", str(tmp_path)]
    redis = servers.Process(
        command=[str(embedded.program()), *options, "--save", ""],
        log=tmp_path / "valkey.log",
        ready=lambda: servers.listens(port),
    )
    redis.start()
    try:
        yield f"redis://{servers.LOOPBACK}:{port}/0"
    finally:
        redis.stop()


def _asked(probe: Manifest, environment: dict[str, str], port: int = 0) -> int:
    """Exit status of a probe in a pod with this environment; 0 is healthy."""
    command = [
        part.replace("11112", str(port)) if port else part for part in probe["exec"]["command"]
    ]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env={**environment, "PATH": programs, "HOSTNAME": socket.gethostname()},
        timeout=60,
        check=False,
        capture_output=True,
    )
    return done.returncode


def _process(tmp_path: Path, ready: str, *arguments: str, **settings: str) -> servers.Process:
    log = tmp_path / f"{arguments[0]}.log"
    given = [f"HIPSCORE_{name}={value}" for name, value in settings.items()]
    return servers.Process(
        command=["/usr/bin/env", *given, sys.executable, "-m", "hipscore", *arguments],
        log=log,
        ready=lambda: log.is_file() and ready in log.read_text(),
    )


def test_the_probes_of_the_listener_tell_a_living_one_from_none(
    rendered: dict[str, Manifest], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'hipscore.db'}"
    engine.upgrade(url)
    port = servers.free_port()
    probes = [rendered["listener"][name] for name in ("livenessProbe", "readinessProbe")]
    listener = _process(
        tmp_path,
        "listening as",
        "listen",
        DATA_DIR=str(tmp_path),
        DATABASE_URL=url,
        BROKER_URL="redis://127.0.0.1:1/0",
        DICOM_HOST="0.0.0.0",  # noqa: S104 - as in the image: only then are strangers turned away
        DICOM_PORT=str(port),
        SENDERS="MR@192.0.2.1",
    )
    listener.start()
    try:
        assert [_asked(probe, {}, port) for probe in probes] == [0, 0]
    finally:
        listener.stop()
    assert all(_asked(probe, {}, port) != 0 for probe in probes)


def test_the_probe_of_a_worker_tells_a_living_one_from_none(
    rendered: dict[str, Manifest], tmp_path: Path, broker: str
) -> None:
    url = f"sqlite:///{tmp_path / 'hipscore.db'}"
    engine.upgrade(url)
    environment = {"HIPSCORE_DATA_DIR": str(tmp_path)}
    startup = rendered["delivery"]["startupProbe"]
    worker = _process(
        tmp_path,
        "ready.",
        *("work", "--queue", "delivery"),
        DATA_DIR=str(tmp_path),
        DATABASE_URL=url,
        BROKER_URL=broker,
    )
    worker.start()
    try:
        assert _asked(startup, environment) == 0
        assert _asked(rendered["delivery"]["livenessProbe"], environment) == 0
        other = rendered["analysis-cpu"]["livenessProbe"]
        assert _asked(other, environment) != 0  # nobody serves that queue here
    finally:
        worker.stop()


def test_the_probe_of_beat_tells_a_database_that_is_there_from_none(
    rendered: dict[str, Manifest], database_url: str
) -> None:
    probe = rendered["beat"]["readinessProbe"]
    gone = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    assert _asked(probe, {"HIPSCORE_DATABASE_URL": database_url}) == 0
    assert _asked(probe, {"HIPSCORE_DATABASE_URL": gone}) != 0
