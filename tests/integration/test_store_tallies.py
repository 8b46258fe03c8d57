"""Rows by state without counting them: always what a count would say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import Engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from hipscore.lifecycle import JobState
from hipscore.store import engine, tallies
from hipscore.store.tables import Delivery, Job, Series, Tally
from tests.integration.store_steps import PACS, a_job, a_scored_job, at_once, claim, rows

Maker = sessionmaker[Session]
KINDS = (Series, Job, Delivery)


def counted(session: Session) -> dict[tuple[str, str], int]:
    """What a count says."""
    return {
        (kind.__tablename__, state.value): number
        for kind in KINDS
        for state, number in session.execute(
            select(kind.state, func.count()).group_by(kind.state)
        ).all()
    }


def known(session: Session) -> dict[tuple[str, str], int]:
    """What the tallies say, without the states in which there is nothing."""
    return {key: number for key, number in tallies.by_state(session=session).items() if number}


def agree(maker: Maker) -> bool:
    with maker() as session:
        assert known(session) == counted(session)
        return bool(known(session))


def test_every_move_is_counted(maker: Maker) -> None:
    with maker.begin() as session:
        a_scored_job(session=session, destinations=(PACS,))
        waiting = a_job(session=session, series="1.2.9").id
    assert agree(maker)
    with maker.begin() as session:
        claim(waiting, session=session)
    assert agree(maker)
    with maker() as session:
        assert known(session)["jobs", JobState.ANALYSING] == 1


def test_what_is_rolled_back_is_not_counted(maker: Maker) -> None:
    with maker.begin() as session:
        a_scored_job(session=session)
    with maker() as session:
        a_job(session=session, series="1.2.9")
        session.flush()
        session.rollback()
    assert agree(maker)


def test_statements_over_many_rows_are_counted(maker: Maker) -> None:
    with maker.begin() as session:
        for number in range(3):
            a_job(session=session, series=f"1.2.{number}")
        session.execute(update(Job).where(Job.id < 3).values(state=JobState.FAILED))
        session.execute(update(Job).values(attempts=7))
    assert agree(maker)


def test_rows_that_were_there_before_the_tallies_are_counted(database_url: str) -> None:
    engine.upgrade(database_url, "0002")
    connected = engine.connect(database_url)
    a_series = (
        "INSERT INTO series (study_instance_uid, series_instance_uid, state, calling_aet,"
        " called_aet, peer, first_received_at, last_received_at)"
        " VALUES ('1.2', :uid, 'IGNORED', 'A', 'B', 'C', '2026-01-01', '2026-01-01')"
    )
    with connected.begin() as connection:
        connection.execute(text(a_series), [{"uid": f"1.3.{number}"} for number in range(3)])
    engine.upgrade(database_url)
    assert agree(engine.sessions(connected))
    engine.downgrade(database_url, "0002")
    engine.upgrade(database_url)
    assert agree(engine.sessions(connected))
    connected.dispose()


def test_folding_changes_no_number(maker: Maker, database: Engine) -> None:
    with maker.begin() as session:
        for number in range(40):
            a_scored_job(session=session, series=f"1.2.{number}")
    with maker() as session:
        before, lines = known(session), rows(Tally, session=session)
    with maker.begin() as session:
        folded = tallies.fold(session=session)
    with maker() as session:
        assert known(session) == before == counted(session)
        left = rows(Tally, session=session)
    if database.dialect.name == "sqlite":
        assert (folded, left) == (0, lines)
    else:
        assert folded == lines > tallies.FEW
        assert left <= 15
    with maker.begin() as session:
        assert tallies.fold(session=session) == 0


def test_folding_and_moving_at_the_same_time_lose_nothing(maker: Maker) -> None:
    def fold() -> None:
        for _ in range(20):
            with maker.begin() as session:
                tallies.fold(session=session)

    def move(worker: int) -> None:
        for number in range(10):
            with maker.begin() as session:
                a_scored_job(
                    session=session, series=f"1.2.{worker}.{number}", study=f"1.9.{worker}"
                )

    works: list[Callable[[], object]] = [fold, fold, *(partial(move, each) for each in range(3))]
    at_once(works)
    assert agree(maker)


@pytest.mark.parametrize("state", ("SENT", "COMMITTED"))
def test_deleted_rows_are_not_counted(maker: Maker, state: str) -> None:
    with maker.begin() as session:
        _, (first, *_) = a_scored_job(session=session)
        session.execute(update(Delivery).where(Delivery.id == first).values(state=state))
        one = session.get_one(Delivery, first)
        session.execute(
            insert(Delivery),
            [
                {
                    "artifact_id": one.artifact_id,
                    "destination": f"OTHER@10.0.0.{number}:104",
                    "state": state,
                    "attempts": 1,
                    "created_at": one.created_at,
                }
                for number in range(3)
            ],
        )
    assert agree(maker)
    with maker.begin() as session:
        session.execute(delete(Delivery).where(Delivery.destination.startswith("OTHER")))
    assert agree(maker)
