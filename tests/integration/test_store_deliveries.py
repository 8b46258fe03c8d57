"""A delivery is tried until the peer has it, refuses it, or an operator is asked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, IllegalMove
from hipscore.store import commitment, deliveries
from hipscore.store.engine import transaction
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import Delivery, Event
from tests.integration.store_steps import (
    NOW,
    PACS,
    a_scored_job,
    artifact,
    at_once,
    last_event,
    later,
    moves,
    rows,
)

Maker = sessionmaker[Session]


@pytest.fixture
def delivery_id(maker: Maker) -> int:
    """A PENDING delivery of a SEG."""
    with transaction(maker) as session:
        return a_scored_job(session=session)[1][0]


def the_delivery(maker: Maker, delivery_id: int) -> Delivery:
    with maker() as session:
        return session.get_one(Delivery, delivery_id)


def claim(
    delivery_id: int, *, session: Session, lease: str = "lease-1", seconds: float = 0
) -> deliveries.Parcel | None:
    now = later(seconds)
    return deliveries.claim(
        delivery_id,
        lease=lease,
        lease_until=now + timedelta(minutes=10),
        now=now,
        session=session,
    )


def send(delivery_id: int, *, session: Session, lease: str = "lease-1") -> None:
    deliveries.sent(
        delivery_id,
        lease=lease,
        status=0,
        commit=True,
        now=later(2),
        session=session,
    )


def test_a_claim_hands_over_what_is_to_be_sent(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        parcel = claim(delivery_id, session=session)
    assert parcel is not None
    assert (parcel.delivery.state, parcel.delivery.attempts) == (DeliveryState.SENDING, 1)
    assert parcel.delivery.destination == PACS
    assert parcel.artifact.spool_key == artifact(ArtifactKind.SEG).spool_key
    with maker() as session:
        event = last_event(session=session)
        assert moves([event]) == ["claim PENDING>SENDING"]
        assert (event.delivery_id, event.job_id) == (delivery_id, 1)


def test_of_many_claimers_exactly_one_wins(maker: Maker, delivery_id: int) -> None:
    won: list[str] = []

    def worker(lease: str) -> Callable[[], None]:
        def work() -> None:
            with transaction(maker) as session:
                if claim(delivery_id, session=session, lease=lease) is not None:
                    won.append(lease)

        return work

    at_once([worker(f"lease-{n}") for n in range(6)])
    assert won == [the_delivery(maker, delivery_id).lease]


def test_a_delivery_that_does_not_exist_is_named(maker: Maker) -> None:
    with maker() as session, pytest.raises(NotFound, match="there is no delivery 99"):
        claim(99, session=session)


def test_what_was_sent_wants_commitment_at_once(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        send(delivery_id, session=session)
    delivery = the_delivery(maker, delivery_id)
    assert (delivery.state, delivery.status, delivery.lease) == (DeliveryState.SENT, 0, None)
    assert (delivery.commit_at, delivery.commit_attempts) == (later(2), 0)
    assert delivery.form_id == delivery.artifact_id


def test_commitment_need_not_be_wanted(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        deliveries.sent(delivery_id, lease="lease-1", status=0xB000, now=NOW, session=session)
    delivery = the_delivery(maker, delivery_id)
    assert (delivery.commit_at, delivery.status) == (None, 0xB000)


def test_a_peer_that_is_down_is_tried_again_later(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        deliveries.postpone(
            delivery_id,
            lease="lease-1",
            error="connection refused",
            status=None,
            next_attempt_at=later(60),
            now=later(1),
            session=session,
        )
    with transaction(maker) as session:
        assert delivery_id not in deliveries.due(later(59), session=session)
        assert claim(delivery_id, session=session, seconds=59) is None
        assert delivery_id in deliveries.due(later(60), session=session)
        assert claim(delivery_id, session=session, seconds=60) is not None
    assert the_delivery(maker, delivery_id).attempts == 2


@pytest.mark.parametrize(
    ("end", "state"),
    ((deliveries.refuse, DeliveryState.REFUSED), (deliveries.exhaust, DeliveryState.EXHAUSTED)),
)
def test_the_end_keeps_the_answer_and_an_operator_can_retry(
    maker: Maker, delivery_id: int, end: Callable[..., None], state: DeliveryState
) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        end(
            delivery_id,
            lease="lease-1",
            error="SOP class not supported",
            status=0x0122,
            now=later(1),
            session=session,
        )
        assert last_event(session=session).detail["status"] == "0x0122"
    delivery = the_delivery(maker, delivery_id)
    assert (delivery.state, delivery.status) == (state, 0x0122)
    assert delivery.error == "SOP class not supported"
    with transaction(maker) as session:
        assert delivery_id not in deliveries.due(later(9999), session=session)
        again = deliveries.retry(delivery_id, now=later(2), session=session)
        assert (again.state, again.attempts) == (DeliveryState.PENDING, 0)
        assert delivery_id in deliveries.due(later(2), session=session)


def test_what_arrived_can_be_sent_again(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        send(delivery_id, session=session)
        assert commitment.open_transaction(
            PACS, held_until=later(600), now=later(3), session=session
        )
        again = deliveries.retry(delivery_id, now=later(4), session=session)
    assert again.state is DeliveryState.PENDING
    assert (again.form_id, again.commit_at, again.commit_attempts) == (None, None, 0)
    assert again.transaction_uid is None


def test_a_destination_is_busy_while_anything_is_on_its_way(maker: Maker) -> None:
    with transaction(maker) as session:
        seg, sr = a_scored_job(session=session)[1]
        assert deliveries.underway(PACS, NOW, session=session)
        for delivery_id in (seg, sr):
            claim(delivery_id, session=session)
            assert deliveries.underway(PACS, NOW, session=session)
            send(delivery_id, session=session)
        assert not deliveries.underway(PACS, NOW, session=session)
        assert not deliveries.underway("OTHER@10.0.0.1:104", NOW, session=session)


def test_what_is_being_sent_is_not_retried(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
        with pytest.raises(IllegalMove, match="'retry' is not possible in state SENDING"):
            deliveries.retry(delivery_id, now=NOW, session=session)


def test_an_expired_lease_frees_the_delivery_until_attempts_are_spent(
    maker: Maker, delivery_id: int
) -> None:
    with transaction(maker) as session:
        claim(delivery_id, session=session)
    with transaction(maker) as session:
        assert deliveries.expire_leases(now=later(600), max_attempts=2, session=session) == []
        freed = deliveries.expire_leases(now=later(601), max_attempts=2, session=session)
        assert freed == [delivery_id]
    with transaction(maker) as session:
        claim(delivery_id, session=session, seconds=700)
        assert deliveries.expire_leases(now=later(1301), max_attempts=2, session=session) == []
    delivery = the_delivery(maker, delivery_id)
    assert (delivery.state, delivery.attempts) == (DeliveryState.EXHAUSTED, 2)


WITH_LEASE: dict[str, Callable[[int, Session], None]] = {
    "sent": lambda delivery_id, session: send(delivery_id, session=session),
    "postpone": lambda delivery_id, session: deliveries.postpone(
        delivery_id,
        lease="lease-1",
        error="x",
        status=None,
        next_attempt_at=NOW,
        now=NOW,
        session=session,
    ),
    "refuse": lambda delivery_id, session: deliveries.refuse(
        delivery_id, lease="lease-1", error="x", status=None, now=NOW, session=session
    ),
    "exhaust": lambda delivery_id, session: deliveries.exhaust(
        delivery_id, lease="lease-1", error="x", status=None, now=NOW, session=session
    ),
}


@pytest.mark.parametrize("name", WITH_LEASE)
@pytest.mark.parametrize("holder", ("lease-2", None))
def test_without_the_lease_nothing_is_changed(
    maker: Maker, delivery_id: int, name: str, holder: str | None
) -> None:
    with transaction(maker) as session:
        if holder is not None:
            claim(delivery_id, session=session, lease=holder)
        events = rows(Event, session=session)
    before = the_delivery(maker, delivery_id)
    with (
        pytest.raises(LeaseLost, match=f"lease on delivery {delivery_id} is no longer in force"),
        transaction(maker) as session,
    ):
        WITH_LEASE[name](delivery_id, session)
    after = the_delivery(maker, delivery_id)
    for column in Delivery.__table__.columns:
        assert getattr(after, column.name) == getattr(before, column.name)
    with maker() as session:
        assert rows(Event, session=session) == events


def test_a_delivery_is_announced_again_only_after_a_while(maker: Maker, delivery_id: int) -> None:
    with transaction(maker) as session:
        deliveries.enqueued([delivery_id], now=NOW, session=session)
        fresh = deliveries.due(later(5), session=session, enqueued_before=NOW)
        stale = deliveries.due(later(65), session=session, enqueued_before=later(5))
    assert delivery_id not in fresh
    assert delivery_id in stale
