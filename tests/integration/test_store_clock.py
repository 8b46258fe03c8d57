"""A clock that goes back leaves no row waiting for a time that was near."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hipscore.lifecycle import BACKOFF_CAP_S, DeliveryState, JobState, SeriesState
from hipscore.store import clock
from hipscore.store.engine import transaction
from hipscore.store.tables import Delivery, Job, Series
from tests.integration.store_steps import (
    NOW,
    a_job,
    a_scored_job,
    image,
    later,
    receive,
)

Maker = sessionmaker[Session]

LEASE_S, HOUR = 180.0, 3600.0
#: the clock stood so far ahead when the rows were written
AHEAD = 10 * HOUR


def rewind(session: Session, *, went_back: bool = False) -> dict[str, int]:
    return clock.rewind(
        NOW, lease_s=LEASE_S, commitment_s=HOUR, went_back=went_back, session=session
    )


def a_leased_job(session: Session, seconds: float) -> None:
    job = a_job(session=session)
    job.state, job.lease, job.lease_until = JobState.ANALYSING, "x", later(seconds + LEASE_S)


def a_waiting_job(session: Session, seconds: float) -> None:
    a_job(session=session).next_attempt_at = later(seconds + 20)


def an_announced_job(session: Session, seconds: float) -> None:
    a_job(session=session).enqueued_at = later(seconds)


def a_delivery(session: Session) -> Delivery:
    """The one delivery that is not committed."""
    first, second = a_scored_job(session=session)[1]
    session.get_one(Delivery, second).state = DeliveryState.COMMITTED
    return session.get_one(Delivery, first)


def a_leased_delivery(session: Session, seconds: float) -> None:
    delivery = a_delivery(session)
    delivery.state, delivery.lease_until = DeliveryState.SENDING, later(seconds + LEASE_S)


def a_waiting_delivery(session: Session, seconds: float) -> None:
    a_delivery(session).next_attempt_at = later(seconds + 20)


def an_announced_delivery(session: Session, seconds: float) -> None:
    a_delivery(session).enqueued_at = later(seconds)


def a_wanted_commitment(session: Session, seconds: float) -> None:
    delivery = a_delivery(session)
    delivery.state, delivery.commit_at = DeliveryState.SENT, later(seconds + HOUR)


def an_open_series(session: Session, seconds: float) -> None:
    receive(image(1), session=session, now=later(seconds))


ROWS: dict[str, tuple[Callable[[Session, float], None], type[Any], str, Any]] = {
    "leased job": (a_leased_job, Job, "lease_until", later(LEASE_S)),
    "waiting job": (a_waiting_job, Job, "next_attempt_at", NOW),
    "announced job": (an_announced_job, Job, "enqueued_at", None),
    "leased delivery": (a_leased_delivery, Delivery, "lease_until", later(LEASE_S)),
    "waiting delivery": (a_waiting_delivery, Delivery, "next_attempt_at", NOW),
    "announced delivery": (an_announced_delivery, Delivery, "enqueued_at", None),
    "wanted commitment": (a_wanted_commitment, Delivery, "commit_at", NOW),
    "open series": (an_open_series, Series, "last_received_at", NOW),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_lies_too_far_ahead_is_brought_back(maker: Maker, name: str) -> None:
    make, kind, column, expected = ROWS[name]
    with transaction(maker) as session:
        make(session, AHEAD)
    with transaction(maker) as session:
        assert sum(rewind(session).values()) == 1
        assert rewind(session) == {}
    with maker() as session:
        assert getattr(session.get_one(kind, 1), column) == expected


@pytest.mark.parametrize("name", ROWS)
def test_what_was_written_by_this_clock_stays(maker: Maker, name: str) -> None:
    make, kind, column, _ = ROWS[name]
    with transaction(maker) as session:
        make(session, 0)
    with maker() as session:
        before = getattr(session.get_one(kind, 1), column)
    with transaction(maker) as session:
        assert rewind(session) == {}
    with maker() as session:
        assert getattr(session.get_one(kind, 1), column) == before


def test_the_longest_pauses_are_not_cut_short(maker: Maker) -> None:
    with transaction(maker) as session:
        a_delivery(session).next_attempt_at = later(BACKOFF_CAP_S)
        assert rewind(session) == {}


@pytest.mark.parametrize("name", ("waiting job", "waiting delivery", "wanted commitment"))
def test_a_clock_that_was_seen_to_go_back_makes_what_waits_due(maker: Maker, name: str) -> None:
    make, kind, column, expected = ROWS[name]
    with transaction(maker) as session:
        make(session, 600)  # ten minutes back: no longer than a pause may be
    with transaction(maker) as session:
        assert rewind(session) == {}
        assert sum(rewind(session, went_back=True).values()) == 1
    with maker() as session:
        assert getattr(session.get_one(kind, 1), column) == expected


def test_a_closed_series_keeps_its_times(maker: Maker) -> None:
    with transaction(maker) as session:
        an_open_series(session, AHEAD)
        session.get_one(Series, 1).state = SeriesState.IGNORED
        assert rewind(session) == {}
        ahead = NOW + timedelta(seconds=AHEAD)
        assert session.get_one(Series, 1).last_received_at == ahead
