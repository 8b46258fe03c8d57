"""The real parts are there, ready when their fixture returns, and keep what they should."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
import redis as redis_client
from pynetdicom import AE

from tests import servers


def _echo(host: str, port: int, title: str) -> int:
    entity = AE(ae_title="TEST")
    entity.add_requested_context("1.2.840.10008.1.1")  # Verification, PS3.4 A.4
    association = entity.associate(host, port, ae_title=title)
    assert association.is_established
    status = association.send_c_echo()
    association.release()
    return int(status.Status)


def test_orthanc_answers_c_echo_and_is_empty(orthanc: servers.Orthanc) -> None:
    assert _echo(orthanc.host, orthanc.dicom_port, orthanc.ae_title) == 0x0000
    assert orthanc.get("/instances") == []


def test_storescp_answers_c_echo_and_is_empty(storescp: servers.StoreScp) -> None:
    assert _echo(storescp.host, storescp.port, storescp.ae_title) == 0x0000
    assert storescp.received() == []


def test_redis_keeps_its_keys_when_killed() -> None:
    with servers.redis() as running:
        with redis_client.Redis(unix_socket_path=str(running.socket)) as client:
            client.set("key", "kept")
        running.process.kill()
        running.process.start()
        with redis_client.Redis(unix_socket_path=str(running.socket)) as client:
            assert client.get("key") == b"kept"


def test_postgres_gives_each_test_an_empty_database_of_its_own(
    postgres_server: servers.Postgres,
) -> None:
    with postgres_server.database() as first, postgres_server.database() as second:
        assert first != second
        for url in (first, second):
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                tables = connection.execute(
                    "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
                ).fetchone()
            assert tables == (0,)


def test_a_server_is_gone_when_its_block_ends() -> None:
    with servers.redis() as running:
        pid = running.process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not running.socket.exists()


def test_a_server_that_ends_at_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    process = servers.Process(
        command=("sh", "-c", "echo the disk is full; exit 3"),
        log=tmp_path / "log",
        ready=lambda: False,
    )
    with pytest.raises(servers.NotStarted, match=r"ended with 3 at start\nthe disk is full"):
        process.start()


def test_a_missing_program_is_an_error_that_names_its_package() -> None:
    with pytest.raises(servers.MissingPart, match="Debian package no-such-package"):
        servers.program("no-such-program", package="no-such-package")
