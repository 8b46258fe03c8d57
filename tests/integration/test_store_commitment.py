"""Storage commitment in the database: what is asked for, once, and what each report does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import BACKOFF_CAP_S, DeliveryState
from hipscore.store import commitment, deliveries, ledger
from hipscore.store.commitment import Transaction
from hipscore.store.engine import transaction
from hipscore.store.tables import Delivery, Event
from tests.integration.store_steps import (
    ARCHIVE,
    PACS,
    SERIES,
    a_scored_job,
    artifact,
    at_once,
    last_event,
    later,
    moves,
    rows,
)

Maker = sessionmaker[Session]

LOST = (0x0112, "no such object instance")


@pytest.fixture
def ids(maker: Maker) -> tuple[int, int]:
    """A SEG and an SR that were sent to the PACS."""
    with transaction(maker) as session:
        seg, sr = a_scored_job(session=session)[1]
        for delivery_id in (seg, sr):
            send(delivery_id, session=session)
    return seg, sr


def send(delivery_id: int, *, session: Session, seconds: float = 0) -> None:
    now = later(seconds)
    until = now + timedelta(minutes=3)
    assert deliveries.claim(delivery_id, lease="x", lease_until=until, now=now, session=session)
    deliveries.sent(delivery_id, lease="x", status=0, commit=True, now=now, session=session)


def ask(
    *, session: Session, seconds: float = 1, destination: str = PACS
) -> commitment.Transaction | None:
    """Somebody begins to ask; for three minutes nobody else does."""
    now = later(seconds)
    return commitment.open_transaction(
        destination, held_until=now + timedelta(minutes=3), now=now, session=session
    )


def asked(*, session: Session, seconds: float = 1) -> Transaction:
    made = ask(session=session, seconds=seconds)
    assert made is not None
    return made


def report(
    uid: str,
    *,
    session: Session,
    succeeded: tuple[ArtifactKind, ...] = (),
    failed: dict[ArtifactKind, tuple[int, str]] | None = None,
    max_attempts: int = 60,
    seconds: float = 2,
    by: str | None = None,
) -> bool:
    return commitment.report(
        uid,
        succeeded=[artifact(kind).sop_instance_uid or "" for kind in succeeded],
        failed={artifact(k).sop_instance_uid or "": why for k, why in (failed or {}).items()},
        by=lambda destination: by is None or destination == by,
        max_attempts=max_attempts,
        now=later(seconds),
        session=session,
    )


def the(maker: Maker, delivery_id: int) -> Delivery:
    with maker() as session:
        return session.get_one(Delivery, delivery_id)


def pause(maker: Maker, delivery_id: int, since: datetime) -> float:
    at = the(maker, delivery_id).commit_at
    assert at is not None
    return (at - since).total_seconds()


def test_all_that_is_due_for_a_destination_is_asked_for_at_once(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        made = asked(session=session)
        assert made.destination == PACS
        assert made.objects == tuple(
            (str(artifact(kind).sop_class_uid), str(artifact(kind).sop_instance_uid))
            for kind in (ArtifactKind.SEG, ArtifactKind.SR)
        )
        assert ask(session=session, seconds=2) is None  # they are held
        assert ask(session=session, destination=ARCHIVE) is None
    seg = the(maker, ids[0])
    assert (seg.transaction_uid, seg.commit_attempts) == (made.uid, 1)
    assert pause(maker, ids[0], later(1)) == 180


def test_of_many_who_ask_one_gets_each_object(maker: Maker, ids: tuple[int, int]) -> None:
    made: list[Transaction] = []

    def worker() -> Callable[[], None]:
        def work() -> None:
            with transaction(maker) as session:
                each = ask(session=session)
            if each is not None:
                made.append(each)

        return work

    at_once([worker() for _ in range(6)])
    objects = [uid for each in made for uid in each.objects]
    assert len(objects) == len(set(objects)) == 2


def test_who_dies_while_asking_only_postpones_it(maker: Maker, ids: tuple[int, int]) -> None:
    with transaction(maker) as session:
        first = asked(session=session)
        assert ask(session=session, seconds=180) is None
        assert asked(session=session, seconds=181).uid != first.uid


def test_a_request_without_report_is_repeated_after_a_while(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        commitment.accepted(uid, wait_s=3600, now=later(2), session=session)
    assert pause(maker, ids[0], later(2)) == 3600
    with transaction(maker) as session:
        for n in range(2, 12):
            uid = asked(session=session, seconds=n * BACKOFF_CAP_S).uid
            now = later(n * BACKOFF_CAP_S)
            commitment.accepted(uid, wait_s=3600, now=now, session=session)
        lines = [event.what for event in ledger.of_series(SERIES, session=session)]
    assert pause(maker, ids[0], now) == 10 * 2**10  # the eleventh time
    assert the(maker, ids[0]).error == commitment.NO_REPORT
    assert lines.count("no_report") == 2  # once for each object


def test_what_is_committed_is_not_asked_for_again(maker: Maker, ids: tuple[int, int]) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        assert commitment.unanswered(uid, session=session)
        both = (ArtifactKind.SEG, ArtifactKind.SR)
        assert report(uid, session=session, succeeded=both)
        assert not commitment.unanswered(uid, session=session)
        assert commitment.due(later(10**9), session=session) == []
        told = ledger.of_series(SERIES, session=session)
    assert moves(each for each in told if each.delivery_id == ids[0]) == [
        "open >PENDING",
        "claim PENDING>SENDING",
        "sent SENDING>SENT",
        "commitment_asked >",
        "commit SENT>COMMITTED",
    ]


def test_a_report_that_comes_twice_or_is_about_others_changes_nothing(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        assert report(uid, session=session, succeeded=(ArtifactKind.SEG,))
        before = rows(Event, session=session)
        assert report(uid, session=session, succeeded=(ArtifactKind.SEG,))
        assert report(uid, session=session, failed={ArtifactKind.SEG: LOST})
        assert report(uid, session=session, succeeded=(ArtifactKind.OVERLAY,))
        assert not report("2.25.4711", session=session, failed={ArtifactKind.SR: LOST})
        assert rows(Event, session=session) == before
    assert the(maker, ids[0]).state is DeliveryState.COMMITTED
    assert the(maker, ids[1]).state is DeliveryState.SENT  # not mentioned: asked again later


def test_what_failed_is_sent_again_and_an_old_report_on_it_is_void(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        assert report(uid, session=session, failed={ArtifactKind.SEG: LOST})
        event = last_event(session=session)
        assert moves([event]) == ["decline SENT>PENDING"]
        assert event.detail["failure_reason"] == "0x0112"
    seg = the(maker, ids[0])
    assert seg.error == f"{PACS} does not keep it: no such object instance (0x0112)"
    assert (seg.status, seg.commit_at, seg.finished_at) == (0x0112, None, None)
    assert seg.next_attempt_at == later(2 + 10)
    with transaction(maker) as session:
        assert deliveries.due(later(12), session=session) == [ids[0]]
        send(ids[0], session=session, seconds=12)
        report(uid, session=session, failed={ArtifactKind.SEG: LOST}, seconds=13)
    seg = the(maker, ids[0])
    assert (seg.state, seg.attempts, seg.commit_at) == (DeliveryState.SENT, 2, later(12))


@pytest.mark.parametrize(
    ("why", "max_attempts", "state"),
    (
        ((0x0122, "referenced SOP class not supported"), 60, DeliveryState.REFUSED),
        (LOST, 1, DeliveryState.EXHAUSTED),
        (LOST, 2, DeliveryState.PENDING),
    ),
)
def test_the_end_of_what_failed(
    maker: Maker,
    ids: tuple[int, int],
    why: tuple[int, str],
    max_attempts: int,
    state: DeliveryState,
) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        report(uid, session=session, failed={ArtifactKind.SR: why}, max_attempts=max_attempts)
    assert the(maker, ids[1]).state is state


def test_a_failed_request_is_shown_and_repeated_without_end(
    maker: Maker, ids: tuple[int, int]
) -> None:
    at = later(1)
    for n in range(1, 8):
        with transaction(maker) as session:
            uid = commitment.open_transaction(PACS, held_until=at, now=at, session=session)
            assert uid is not None
            again = commitment.failed(
                uid.uid, error="nobody there", max_attempts=2, now=at, session=session
            )
        assert again is not None
        assert (again - at).total_seconds() == 10 * 2 ** (n - 1)
        at = again
    assert the(maker, ids[0]).error == "nobody there"
    with transaction(maker) as session:
        uid = commitment.open_transaction(PACS, held_until=at, now=at, session=session)
        assert uid is not None
        commitment.accepted(uid.uid, wait_s=60, now=at, session=session)
        lines = [event.what for event in ledger.of_series(SERIES, session=session)]
    assert the(maker, ids[0]).error is None
    assert lines.count("commitment_failed") == 2  # once for each object


def test_everything_that_is_due_there_waits_for_a_peer_that_is_down(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        uid = asked(session=session).uid
        late = a_scored_job(session=session, series=f"{SERIES}.8")[1][0]
        send(late, session=session, seconds=1)
        until = commitment.failed(uid, error="down", max_attempts=2, now=later(2), session=session)
    assert the(maker, late).commit_at == until
    assert the(maker, late).commit_attempts == 0


def test_a_peer_that_does_not_offer_it_is_asked_hourly_until_attempts_are_spent(
    maker: Maker, ids: tuple[int, int]
) -> None:
    until: list[datetime | None] = []
    with transaction(maker) as session:
        for n in range(1, 4):
            uid = asked(session=session, seconds=n * 7200).uid
            until.append(
                commitment.failed(
                    uid,
                    error="not here",
                    offered=False,
                    max_attempts=3,
                    now=later(n * 7200),
                    session=session,
                )
            )
    assert until == [later(7200 + 3600), later(2 * 7200 + 3600), None]
    sr = the(maker, ids[1])
    assert (sr.state, sr.commit_at, sr.error) == (DeliveryState.SENT, None, "not here")


def test_one_of_each_destination_is_announced_and_not_over_and_over(
    maker: Maker, ids: tuple[int, int]
) -> None:
    with transaction(maker) as session:
        there = (ARCHIVE,)
        others = a_scored_job(session=session, series=f"{SERIES}.8", destinations=there)[1]
        for delivery_id in others:
            send(delivery_id, session=session)
        assert commitment.due(later(-1), session=session) == []
        assert commitment.due(later(1), session=session) == [ids[0], others[0]]
        deliveries.enqueued([ids[0]], now=later(1), session=session)
        soon = commitment.due(later(2), session=session, enqueued_before=later(-60))
        assert soon == [others[0]]
        again = commitment.due(later(62), session=session, enqueued_before=later(2))
        assert again == [ids[0], others[0]]


def test_a_destination_that_is_spared_keeps_what_it_has(maker: Maker, ids: tuple[int, int]) -> None:
    with transaction(maker) as session:
        assert commitment.waive(PACS, session=session) == 2
        assert commitment.waive(PACS, session=session) == 0
        assert ask(session=session) is None
    assert the(maker, ids[0]).state is DeliveryState.SENT


def test_nobody_reports_on_what_another_was_sent(maker: Maker, ids: tuple[int, int]) -> None:
    with transaction(maker) as session:
        made = asked(session=session)
        both = (ArtifactKind.SEG, ArtifactKind.SR)
        assert not report(made.uid, session=session, succeeded=both, by=ARCHIVE)
    assert the(maker, ids[0]).state is DeliveryState.SENT
    with transaction(maker) as session:
        assert report(made.uid, session=session, succeeded=both, by=PACS)
    assert the(maker, ids[0]).state is DeliveryState.COMMITTED
