"""Transactions: all or nothing, one writer at a time, readers undisturbed, outages named."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import Transient
from hipscore.store import engine
from hipscore.store.engine import transaction
from hipscore.store.tables import Event, Instance, Series
from tests.integration.store_steps import image, receive, rows
from tests.servers import Postgres

Maker = sessionmaker[Session]


def test_an_exception_rolls_everything_back(maker: Maker) -> None:
    def receive_and_fail() -> None:
        with transaction(maker) as session:
            receive(image(1), session=session)
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        receive_and_fail()
    with maker() as session:
        assert rows(Series, session=session) == rows(Instance, session=session) == 0
        assert rows(Event, session=session) == 0


def test_what_is_committed_survives_the_process(database_url: str, maker: Maker) -> None:
    with transaction(maker) as session:
        receive(image(1), session=session)
    again = engine.connect(database_url)
    with engine.sessions(again)() as session:
        assert rows(Instance, session=session) == 1
    again.dispose()


def test_references_are_checked(maker: Maker) -> None:
    with transaction(maker) as session:
        receive(image(1), session=session)
    with pytest.raises(IntegrityError), transaction(maker) as session:
        session.execute(delete(Series))


def test_a_reader_neither_waits_for_a_writer_nor_sees_half_a_transaction(
    database: Engine, maker: Maker
) -> None:
    readers = engine.readers(database)
    with maker() as writing:
        receive(image(1), session=writing)
        writing.flush()
        with readers() as reading:
            assert rows(Series, session=reading) == 0
            writing.commit()
            assert rows(Series, session=reading) == 0, "one snapshot"
        with readers() as reading:
            assert rows(Series, session=reading) == 1


def test_a_postgresql_reader_cannot_write(database: Engine, maker: Maker) -> None:
    if database.dialect.name == "sqlite":
        return  # there the reader is a promise, not a permission
    with engine.readers(database)() as session, pytest.raises(DBAPIError, match="read-only"):
        session.execute(update(Series).values(peer="x"))
    with transaction(maker) as session:  # the connection goes back to the pool as it was
        receive(image(1), session=session)


def test_writers_queue_up_and_lose_no_update(maker: Maker) -> None:
    """Read, then write: without a lock at the start, SQLite would fail in the middle."""
    with transaction(maker) as session:
        receive(image(1), session=session)
    together = threading.Barrier(6)
    errors: list[BaseException] = []

    def add() -> None:
        together.wait()
        try:
            for _ in range(5):
                with transaction(maker) as session:
                    series = session.scalars(select(Series).with_for_update()).one()
                    series.peer = str(int(series.peer or 0) + 1 if series.peer.isdigit() else 1)
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with maker() as session:
        assert session.scalars(select(Series.peer)).one() == "30"


def test_a_locked_database_is_transient(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    maker = engine.sessions(connected)
    with maker.begin() as holding:
        receive(image(1), session=holding)
        with pytest.raises(Transient, match=r"database: .*lock"), transaction(maker) as session:
            receive(image(2), session=session)
    connected.dispose()


def test_an_unreachable_sqlite_file_is_transient(tmp_path: Path) -> None:
    (tmp_path / "hipscore.db").mkdir()
    connected = engine.connect(f"sqlite:///{tmp_path / 'hipscore.db'}")
    with (
        pytest.raises(Transient, match="unable to open database file"),
        transaction(engine.sessions(connected)) as session,
    ):
        rows(Series, session=session)


def test_a_postgresql_that_goes_away_is_transient_and_comes_back(
    postgres_server: Postgres, postgres_url: str
) -> None:
    engine.upgrade(postgres_url)
    connected = engine.connect(postgres_url)
    maker = engine.sessions(connected)
    with transaction(maker) as session:
        receive(image(1), session=session)
    postgres_server.process.kill()
    try:
        with pytest.raises(Transient, match="database: "), transaction(maker) as session:
            receive(image(2), session=session)
    finally:
        postgres_server.process.start()
    with transaction(maker) as session:
        receive(image(2), session=session)
    with maker() as session:
        assert rows(Instance, session=session) == 2
    connected.dispose()


def test_a_password_is_not_in_the_message(tmp_path: Path) -> None:
    connected = engine.connect("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    with (
        pytest.raises(Transient) as failed,
        transaction(engine.sessions(connected)) as session,
    ):
        rows(Series, session=session)
    assert "secret" not in str(failed.value)
    assert "\n" not in str(failed.value)
