"""A job is held by one worker at a time, and everything it yields comes in one transaction."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial

import pytest
from sqlalchemy import select
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import JOB, DeliveryState, IllegalMove, JobEvent, JobState
from hipscore.store import jobs, ledger
from hipscore.store.engine import transaction
from hipscore.store.moves import LeaseLost, NotFound, advance
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series
from tests.integration.store_steps import (
    ALL_ARTIFACTS,
    ARCHIVE,
    NOW,
    PACS,
    SERIES,
    a_job,
    a_scored_job,
    at_once,
    claim,
    finish,
    image,
    last_event,
    later,
    moves,
    open_job,
    receive,
    rows,
)

Maker = sessionmaker[Session]


@pytest.fixture
def job_id(maker: Maker) -> int:
    """A QUEUED job."""
    with transaction(maker) as session:
        return a_job(session=session).id


def the_job(maker: Maker, job_id: int) -> Job:
    with maker() as session:
        return session.get_one(Job, job_id)


def columns(job: Job) -> dict[str, object]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.columns}


# --- claim -------------------------------------------------------------------------------


def test_a_claim_takes_the_lease_and_counts_the_attempt(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        job = claim(job_id, session=session)
    assert job is not None
    assert (job.state, job.attempts, job.lease) == (JobState.ANALYSING, 1, "lease-1")
    assert job.lease_until == later(600)
    with maker() as session:
        assert moves([last_event(session=session)]) == ["claim QUEUED>ANALYSING"]


def test_a_claimed_job_cannot_be_claimed(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
    with transaction(maker) as session:
        assert claim(job_id, session=session, lease="lease-2") is None
    job = the_job(maker, job_id)
    assert (job.lease, job.attempts) == ("lease-1", 1)


def test_a_job_that_does_not_exist_is_named(maker: Maker) -> None:
    with maker() as session, pytest.raises(NotFound, match="there is no job 99"):
        claim(99, session=session)


def test_of_many_claimers_exactly_one_wins(maker: Maker, job_id: int) -> None:
    won: list[str] = []

    def worker(lease: str) -> Callable[[], None]:
        def work() -> None:
            with transaction(maker) as session:
                if claim(job_id, session=session, lease=lease) is not None:
                    won.append(lease)

        return work

    at_once([worker(f"lease-{n}") for n in range(6)])
    job = the_job(maker, job_id)
    assert won == [job.lease]
    assert job.attempts == 1
    with maker() as session:
        events = ledger.of_series(SERIES, session=session)
    assert moves(events).count("claim QUEUED>ANALYSING") == 1


def test_a_claimer_that_read_before_another_won_gets_nothing(maker: Maker, job_id: int) -> None:
    """The compare-and-swap itself, without the help of a race: a stale row cannot move."""
    with maker() as stale:
        seen = stale.get_one(Job, job_id)
        stale.commit()  # ends the read, keeps the row as it was seen
        with transaction(maker) as session:
            claim(job_id, session=session)
        assert seen.state is JobState.QUEUED
        moved = advance(
            seen,
            JOB,
            JobEvent.CLAIM,
            subject=ledger.Subject(series_id=seen.series_id, job_id=job_id),
            values={"lease": "thief"},
            now=NOW,
            session=stale,
        )
        stale.commit()
    assert not moved
    assert the_job(maker, job_id).lease == "lease-1"


# --- finish ------------------------------------------------------------------------------


def test_finish_stores_result_artifacts_and_deliveries_together(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
    with transaction(maker) as session:
        deliveries = finish(
            job_id, session=session, destinations=(PACS, ARCHIVE, PACS), now=later(9)
        )
    job = the_job(maker, job_id)
    assert (job.state, job.lease, job.lease_until) == (JobState.ANALYSED, None, None)
    assert job.result == {"unet_score": 3.21, "reason": None}
    assert job.timings == {"segment": 1.5}
    assert job.finished_at == later(9)
    with maker() as session:
        artifacts = session.scalars(select(ArtifactRow).order_by(ArtifactRow.id)).all()
        assert tuple(each.kind for each in artifacts) == ALL_ARTIFACTS
        sent = session.scalars(select(Delivery).order_by(Delivery.id)).all()
        assert [each.id for each in sent] == deliveries
        # only DICOM objects travel, to every destination once
        assert [(each.artifact_id, each.destination) for each in sent] == [
            (artifacts[0].id, PACS),
            (artifacts[0].id, ARCHIVE),
            (artifacts[1].id, PACS),
            (artifacts[1].id, ARCHIVE),
        ]
        assert {each.state for each in sent} == {DeliveryState.PENDING}


def test_a_series_without_score_finishes_with_its_reason(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        finish(job_id, session=session, reason="no_hip_found", kinds=(ArtifactKind.SR,))
    job = the_job(maker, job_id)
    assert (job.state, job.reason_code) == (JobState.NOT_SCORABLE, "no_hip_found")


def test_without_destinations_nothing_is_delivered(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        assert finish(job_id, session=session, destinations=()) == []


def test_a_finish_that_breaks_half_way_leaves_no_trace(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
    twice = (ArtifactKind.SEG, ArtifactKind.SEG)  # the second violates uniqueness
    with pytest.raises(Exception, match=r"(?i)unique"), transaction(maker) as session:
        finish(job_id, session=session, kinds=twice)
    job = the_job(maker, job_id)
    assert (job.state, job.lease, job.result) == (JobState.ANALYSING, "lease-1", None)
    with maker() as session:
        assert rows(ArtifactRow, session=session) == rows(Delivery, session=session) == 0
        assert moves([last_event(session=session)]) == ["claim QUEUED>ANALYSING"]


def test_a_result_that_is_not_json_is_refused(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
    with (
        pytest.raises((StatementError, ValueError), match="not JSON compliant"),
        transaction(maker) as session,
    ):
        jobs.finish(
            job_id,
            lease="lease-1",
            state=JobState.ANALYSED,
            result={"unet_score": math.nan},
            artifacts=[],
            destinations=[],
            timings={},
            now=NOW,
            session=session,
        )
    assert the_job(maker, job_id).state is JobState.ANALYSING


def test_any_error_text_can_be_stored(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.fail(job_id, lease="lease-1", error="odd\0" * 9999, now=NOW, session=session)
    assert the_job(maker, job_id).error == ("odd" * 9999)[:2000]


# --- a lost lease ------------------------------------------------------------------------

WITH_LEASE: dict[str, Callable[[int, str, Session], object]] = {
    "finish": lambda job_id, lease, session: finish(job_id, lease=lease, session=session),
    "postpone": lambda job_id, lease, session: jobs.postpone(
        job_id, lease=lease, error="x", next_attempt_at=NOW, now=NOW, session=session
    ),
    "fail": lambda job_id, lease, session: jobs.fail(
        job_id, lease=lease, error="x", now=NOW, session=session
    ),
    "renew": lambda job_id, lease, session: jobs.renew(
        job_id, lease=lease, lease_until=later(9999), session=session
    ),
}


@pytest.mark.parametrize("name", WITH_LEASE)
@pytest.mark.parametrize("state", ("claimed by another", "queued again", "finished"))
def test_without_the_lease_nothing_is_changed(
    maker: Maker, job_id: int, name: str, state: str
) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session, lease="lease-2")
        if state == "queued again":
            jobs.expire_leases(now=later(601), max_attempts=3, session=session)
        elif state == "finished":
            finish(job_id, session=session, lease="lease-2")
    with maker() as session:
        before = columns(session.get_one(Job, job_id))
        events = rows(Event, session=session)
    with (
        pytest.raises(LeaseLost, match=r"lease on job .* is no longer in force"),
        transaction(maker) as session,
    ):
        WITH_LEASE[name](job_id, "lease-1", session)
    with maker() as session:
        after = columns(session.get_one(Job, job_id))
        assert after == before
        assert rows(Event, session=session) == events


def test_a_renewed_lease_does_not_expire(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.renew(job_id, lease="lease-1", lease_until=later(1200), session=session)
    with transaction(maker) as session:
        assert jobs.expire_leases(now=later(601), max_attempts=3, session=session) == []
    assert the_job(maker, job_id).state is JobState.ANALYSING


# --- trying again ------------------------------------------------------------------------


def test_a_postponed_job_waits_and_is_due_again(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.postpone(
            job_id,
            lease="lease-1",
            error="disk full",
            next_attempt_at=later(60),
            now=later(1),
            session=session,
        )
    job = the_job(maker, job_id)
    assert (job.state, job.lease, job.error) == (JobState.QUEUED, None, "disk full")
    with transaction(maker) as session:
        assert jobs.due(later(59), session=session) == []
        assert claim(job_id, session=session, now=later(59)) is None
        assert jobs.due(later(60), session=session) == [job_id]
        again = claim(job_id, session=session, now=later(60), lease="lease-2")
        assert again is not None
        assert (again.attempts, again.next_attempt_at) == (2, None)
        finish(job_id, session=session, lease="lease-2")
    assert the_job(maker, job_id).error is None


def test_the_job_of_a_dead_holder_is_free_at_once(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        assert claim(job_id, session=session, lease="of the dead") is not None
        alive = jobs.expire_leases(
            now=later(1), max_attempts=3, died=lambda lease: lease == "another", session=session
        )
        assert alive == []
        freed = jobs.expire_leases(
            now=later(1), max_attempts=3, died=lambda lease: lease == "of the dead", session=session
        )
        assert freed == [job_id]
        assert "died, attempt 1" in str(session.get_one(Job, job_id).error)
        # who comes back from the dead has nothing to say any more
        with pytest.raises(LeaseLost):
            jobs.renew(job_id, lease="of the dead", lease_until=later(600), session=session)


def test_an_expired_lease_frees_the_job_until_attempts_are_spent(maker: Maker, job_id: int) -> None:
    for attempt in (1, 2):
        with transaction(maker) as session:
            assert claim(job_id, session=session, now=later(1000 * attempt))
        with transaction(maker) as session:
            due = later(1000 * attempt + 600)
            assert jobs.expire_leases(now=due, max_attempts=3, session=session) == []
            freed = jobs.expire_leases(
                now=later(1000 * attempt + 601), max_attempts=3, session=session
            )
            assert freed == [job_id]
    with transaction(maker) as session:
        claim(job_id, session=session, now=later(3000))
        assert jobs.expire_leases(now=later(3601), max_attempts=3, session=session) == []
    job = the_job(maker, job_id)
    assert (job.state, job.attempts, job.lease) == (JobState.FAILED, 3, None)
    assert job.error is not None
    assert "no sign of life" in job.error


def test_an_operator_retries_a_failed_job(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.fail(job_id, lease="lease-1", error="a defect", now=NOW, session=session)
        assert jobs.due(later(9999), session=session) == []
    with transaction(maker) as session:
        job = jobs.retry(job_id, now=later(1), session=session)
    assert (job.state, job.attempts, job.finished_at) == (JobState.QUEUED, 0, None)
    with maker() as session:
        assert jobs.due(later(1), session=session) == [job_id]


def test_an_operator_cuts_the_waiting_short(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.postpone(
            job_id,
            lease="lease-1",
            error="disk full",
            next_attempt_at=later(9999),
            now=NOW,
            session=session,
        )
        jobs.retry(job_id, now=later(1), session=session)
        assert jobs.due(later(1), session=session) == [job_id]


@pytest.mark.parametrize("reason", (None, "no_hip_found"))
def test_a_job_with_a_result_is_not_retried(maker: Maker, reason: str | None) -> None:
    with transaction(maker) as session:
        done, _ = a_scored_job(session=session, reason=reason)
        with pytest.raises(IllegalMove, match="this state is final"):
            jobs.retry(done, now=NOW, session=session)


def test_a_superseded_job_is_not_retried(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        claim(job_id, session=session)
        jobs.fail(job_id, lease="lease-1", error="bug", now=NOW, session=session)
        series_id = receive(image(9), session=session, now=later(10)).series_id
        newer = open_job(series_id, session=session, now=later(11))
        with pytest.raises(IllegalMove, match=f"superseded by job {newer.id}"):
            jobs.retry(job_id, now=later(12), session=session)


# --- order of reports --------------------------------------------------------------------


def test_a_job_waits_for_the_one_it_supersedes(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        series_id = receive(image(9), session=session, now=later(10)).series_id
        newer = open_job(series_id, session=session, now=later(11)).id
        assert jobs.due(later(12), session=session) == [job_id]
        assert claim(newer, session=session, now=later(12)) is None
    with transaction(maker) as session:
        claim(job_id, session=session, now=later(12))
        assert claim(newer, session=session, now=later(13)) is None
        finish(job_id, session=session)
    with transaction(maker) as session:
        assert jobs.due(later(14), session=session) == [newer]
        assert claim(newer, session=session, now=later(14)) is not None


# --- announcing --------------------------------------------------------------------------


def test_a_job_is_announced_again_only_after_a_while(maker: Maker, job_id: int) -> None:
    with transaction(maker) as session:
        assert jobs.due(NOW, session=session, enqueued_before=NOW) == [job_id]
        jobs.enqueued([job_id], now=NOW, session=session)
    with transaction(maker) as session:
        assert jobs.due(later(5), session=session, enqueued_before=NOW) == []
        assert jobs.due(later(65), session=session, enqueued_before=later(5)) == [job_id]
        claim(job_id, session=session)
        jobs.expire_leases(now=later(601), max_attempts=3, session=session)
        # what falls back into the queue is announced at once
        assert jobs.due(later(601), session=session, enqueued_before=NOW) == [job_id]


def test_due_lists_the_oldest_first_up_to_a_limit(maker: Maker) -> None:
    with transaction(maker) as session:
        made = [a_job(session=session, series=f"1.2.{n}").id for n in range(4)]
        assert jobs.due(NOW, session=session, limit=3) == made[:3]


# --- many workers, any order of events ---------------------------------------------------


class Clock:
    """Every look at it moves it on by a third of a lease; shared by all threads."""

    def __init__(self) -> None:
        self._ticks = iter(range(1_000_000))
        self._one_at_a_time = threading.Lock()

    def now(self) -> datetime:
        with self._one_at_a_time:
            return later(next(self._ticks) * 200.0)


def work_once(maker: Maker, clock: Clock, *, lease: str, dies: bool) -> None:
    """Take a job; be killed with it in hand, or hand in a result, perhaps too late."""
    now = clock.now()
    with transaction(maker) as session:
        waiting = jobs.due(now, session=session)
        job = claim(waiting[0], session=session, lease=lease, now=now) if waiting else None
    if job is None or dies:
        return
    with suppress(LeaseLost), transaction(maker) as session:
        finish(job.id, session=session, lease=lease, now=clock.now())


def test_workers_that_die_or_are_late_make_no_twin_and_lose_nothing(maker: Maker) -> None:
    with transaction(maker) as session:
        made = [a_job(session=session, series=f"1.2.{n}").id for n in range(6)]
    clock = Clock()

    def worker(name: str) -> None:
        for turn in range(40):
            work_once(maker, clock, lease=f"{name}-{turn}", dies=turn % 3 == 0)

    def reaper() -> None:
        for _ in range(40):
            with transaction(maker) as session:
                jobs.expire_leases(now=clock.now(), max_attempts=1000, session=session)

    at_once([partial(worker, "a"), partial(worker, "b"), partial(worker, "c"), reaper])
    with transaction(maker) as session:  # whoever still holds one was killed
        jobs.expire_leases(now=later(1e7), max_attempts=1000, session=session)
        for job_id in jobs.due(later(1e7), session=session):
            claim(job_id, session=session, now=later(1e7))
            finish(job_id, session=session)
    with maker() as session:
        states = set(session.scalars(select(Job.state).where(Job.id.in_(made))))
        assert states == {JobState.ANALYSED}
        assert rows(ArtifactRow, session=session) == 6 * len(ALL_ARTIFACTS)
        assert rows(Delivery, session=session) == 6 * 2
        for series in session.scalars(select(Series)):
            told = moves(ledger.of_series(series.series_instance_uid, session=session))
            assert told.count("analysed ANALYSING>ANALYSED") == 1
            claims = told.count("claim QUEUED>ANALYSING")
            assert claims == told.count("expire ANALYSING>QUEUED") + 1
