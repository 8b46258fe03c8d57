"""The embedded broker: reached by this user alone, and allowed what the service needs, no more."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_client
from celery import Celery
from pydantic import SecretStr

from hipscore import broker, heartbeat, queue
from hipscore.cli import supervise
from hipscore.settings import Settings
from tests import servers
from tests.integration.shell_steps import queued, sqlite_only

#: each would let whoever reaches the socket read, wipe, reconfigure or end the broker
FORBIDDEN = (
    "CONFIG GET *",
    "CONFIG SET dir /tmp",
    "FLUSHALL",
    "FLUSHDB",
    "SHUTDOWN NOSAVE",
    "KEYS *",
    "MONITOR",
    "MODULE LIST",
    "ACL SETUSER me on nopass +@all",
    "REPLICAOF 127.0.0.1 6379",
    "SAVE",
    "CLIENT LIST",
    "FUNCTION LIST",
    "SCRIPT FLUSH",
    "INFO",
)


@pytest.fixture(scope="module")
def attacked() -> Iterator[servers.Redis]:
    """A broker of its own: what it refuses here would count as refused to the service."""
    with servers.redis() as running:
        yield running


@pytest.mark.parametrize("command", FORBIDDEN)
def test_what_the_service_does_not_need_is_refused(attacked: servers.Redis, command: str) -> None:
    with (
        redis_client.Redis(unix_socket_path=str(attacked.socket)) as client,
        pytest.raises(redis_client.exceptions.NoPermissionError),
    ):
        client.execute_command(*command.split())


def test_the_server_is_of_a_release_without_known_holes() -> None:
    """9.1.2 mends all that was published until October 2026; an older one must not come back."""
    with servers.redis() as running, servers.administrator(running.socket) as client:
        found = client.info("server")
    release = tuple(map(int, re.findall(r"\d+", str(found["valkey_version"]))))
    assert release >= (9, 1, 2)


def test_the_broker_is_out_of_reach_for_other_users(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir(mode=0o755)
    assert stat.S_IMODE(broker.private(folder).stat().st_mode) == 0o700
    made = broker.private(tmp_path / "new" / "broker")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_folder_that_somebody_else_could_exchange_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "broker"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(broker.BrokerError, match="is not a folder of this user"):
        broker.private(link)
    (tmp_path / "file").touch()
    with pytest.raises(broker.BrokerError, match="cannot be used"):
        broker.private(tmp_path / "file")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
        with pytest.raises(broker.BrokerError, match="is not a folder of this user"):
            broker.private(theirs)


@sqlite_only
def test_no_worker_takes_commands_from_the_broker(settings: Settings, tmp_path: Path) -> None:
    """Celery's remote control would let anyone who may publish end the workers."""
    with servers.redis() as running:
        own = settings.model_copy(update={"broker_url": SecretStr(running.url)})
        _commanded(own, running, tmp_path)
        assert running.denied() == []


def _commanded(settings: Settings, running: servers.Redis, tmp_path: Path) -> None:
    log = tmp_path / "work.log"
    given = supervise.environment(settings)
    process = servers.Process(
        command=[*_env(given), *supervise.service("work", "--queue", "delivery")],
        log=log,
        ready=lambda: bool(_alive(settings)),
    )
    process.start()
    try:
        with servers.administrator(running.socket) as client:
            assert not client.keys("*pidbox*")
        Celery("stranger", broker=running.administrator_url).control.shutdown()
        time.sleep(1.0)
        queue.publisher(settings.broker).send_task(queue.DELIVER, args=[1])
        servers.wait_until(lambda: not queued(settings, "delivery"), what="the message is taken")
        assert _alive(settings)
    finally:
        process.stop()
    assert not _alive(settings)


def _alive(settings: Settings) -> list[heartbeat.Heartbeat]:
    found = heartbeat.read(heartbeat.folder(settings.data_dir))
    return [each for each in found if each.alive]


def _env(given: dict[str, str]) -> list[str]:
    return ["/usr/bin/env", *(f"{name}={value}" for name, value in given.items())]
