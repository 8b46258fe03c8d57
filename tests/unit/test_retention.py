"""Which files may go: every state that keeps them, and from when on nothing does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.store.retention import (
    DeliveryFacts,
    JobFacts,
    SeriesFacts,
    images_needed_until,
    results_needed_until,
)

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)


def after(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def series(state: SeriesState = SeriesState.MATCHED) -> SeriesFacts:
    return SeriesFacts(1, "1.2.3", state, NOW, after(1))


def job(
    state: JobState = JobState.ANALYSED, *, number: int = 1, supersedes: int | None = None
) -> JobFacts:
    ended = None if state in {JobState.QUEUED, JobState.ANALYSING} else after(2)
    return JobFacts(number, 1, state, supersedes, after(1), ended)


def delivery(
    state: DeliveryState = DeliveryState.COMMITTED, *, commit_at: datetime | None = None
) -> DeliveryFacts:
    return DeliveryFacts(1, state, commit_at, after(2), after(3))


def test_images_are_needed_until_the_last_delivery_has_arrived() -> None:
    assert images_needed_until(series(), [job()], [delivery()]) == after(3)
    assert images_needed_until(series(), [job()], []) == after(2)


@pytest.mark.parametrize("state", list(SeriesState))
def test_images_of_a_series_that_is_open_are_needed(state: SeriesState) -> None:
    until = images_needed_until(series(state), [job()], [delivery()])
    assert (until is None) == (state in {SeriesState.RECEIVING, SeriesState.COMPLETE})


def test_images_of_an_ignored_series_are_needed_until_it_closed() -> None:
    assert images_needed_until(series(SeriesState.IGNORED), [], []) == after(1)


def test_a_matched_series_without_its_job_is_not_done() -> None:
    assert images_needed_until(series(), [], []) is None


@pytest.mark.parametrize("state", list(JobState))
def test_images_of_an_analysis_that_may_run_again_are_needed(state: JobState) -> None:
    until = images_needed_until(series(), [job(state)], [])
    assert (until is None) == (state in {JobState.QUEUED, JobState.ANALYSING, JobState.FAILED})


def test_failed_analyses_can_be_given_up_by_hand() -> None:
    assert images_needed_until(series(), [job(JobState.FAILED)], [], failed=True) == after(2)
    assert images_needed_until(series(), [job(JobState.QUEUED)], [], failed=True) is None


def test_a_failed_analysis_that_was_superseded_keeps_nothing() -> None:
    both = [job(JobState.FAILED), job(number=2, supersedes=1)]
    assert images_needed_until(series(), both, []) == after(2)
    both = [job(), job(JobState.FAILED, number=2, supersedes=1)]
    assert images_needed_until(series(), both, []) is None


@pytest.mark.parametrize("state", list(DeliveryState))
@pytest.mark.parametrize("asked", (False, True))
def test_one_delivery_that_has_not_arrived_keeps_everything(
    state: DeliveryState, *, asked: bool
) -> None:
    waiting = delivery(state, commit_at=after(60) if asked else None)
    arrived = state is DeliveryState.COMMITTED or (state is DeliveryState.SENT and not asked)
    for until in (
        images_needed_until(series(), [job()], [delivery(), waiting]),
        results_needed_until([delivery(), waiting]),
    ):
        assert (until == after(3)) == arrived
        assert (until is None) != arrived


def test_results_that_were_never_sent_stay() -> None:
    assert results_needed_until([]) is None
