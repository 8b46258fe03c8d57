"""What the API and the command line read: the score of a study, lists, details, counts."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.store import engine, intake, jobs, ledger, queries
from hipscore.store.engine import transaction
from hipscore.store.tables import Delivery
from tests.integration.store_steps import (
    NOW,
    PACS,
    SERIES,
    STUDY,
    a_job,
    a_scored_job,
    claim,
    finish,
    image,
    later,
    open_job,
    receive,
)

Maker = sessionmaker[Session]


@pytest.fixture
def readers(database: Engine) -> Maker:
    return engine.readers(database)


def make(kind: str, series: str, *, study: str = STUDY, session: Session) -> int:
    """Id of a job of the study in the given condition."""
    if kind in {"scored", "not_scorable"}:
        reason = "no_hip_found" if kind == "not_scorable" else None
        return a_scored_job(session=session, series=series, study=study, reason=reason)[0]
    job = a_job(session=session, series=series, study=study)
    if kind != "queued":
        claim(job.id, session=session)
    if kind == "failed":
        jobs.fail(job.id, lease="lease-1", error="a defect", now=NOW, session=session)
    return job.id


# --- which job speaks --------------------------------------------------------------------


def test_an_unknown_study_has_nothing(readers: Maker) -> None:
    with readers() as session:
        assert queries.latest_job_of_study(STUDY, session=session) is None
        assert queries.study(STUDY, session=session) is None
        assert list(queries.series_of_study(STUDY, session=session)) == []
        assert queries.job(1, session=session) is None


def test_a_study_that_is_still_arriving_is_known_but_has_no_job(
    maker: Maker, readers: Maker
) -> None:
    with transaction(maker) as session:
        receive(image(1), session=session)
    with readers() as session:
        assert queries.latest_job_of_study(STUDY, session=session) is None
        (series,) = queries.series_of_study(STUDY, session=session)
    assert series.state is SeriesState.RECEIVING


@pytest.mark.parametrize(
    ("better", "worse"),
    (
        ("scored", "queued"),
        ("scored", "analysing"),
        ("scored", "not_scorable"),
        ("scored", "failed"),
        ("queued", "not_scorable"),
        ("analysing", "not_scorable"),
        ("queued", "failed"),
        ("not_scorable", "failed"),
    ),
)
def test_of_several_series_the_better_speaks(
    maker: Maker, readers: Maker, better: str, worse: str
) -> None:
    with transaction(maker) as session:
        make(worse, "1.2.1", session=session)
        expected = make(better, "1.2.2", session=session)
        make(worse, "1.2.3", session=session)
    with readers() as session:
        speaking = queries.latest_job_of_study(STUDY, session=session)
    assert speaking is not None
    assert speaking.job.id == expected


def test_of_equals_the_newest_speaks(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        make("scored", "1.2.1", session=session)
        newest = make("scored", "1.2.2", session=session)
    with readers() as session:
        speaking = queries.latest_job_of_study(STUDY, session=session)
    assert speaking is not None
    assert speaking.job.id == newest


def test_a_superseded_score_does_not_speak(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        make("scored", SERIES, session=session)
        series_id = receive(image(9), session=session, now=later(10)).series_id
        newer = open_job(series_id, session=session, now=later(11)).id
    with readers() as session:
        speaking = queries.latest_job_of_study(STUDY, session=session)
        assert speaking is not None
        assert (speaking.job.id, speaking.job.state) == (newer, JobState.QUEUED)
        assert speaking.artifacts == ()


def test_an_artifact_is_always_of_the_job_that_speaks(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        a_scored_job(session=session, series="1.2.1")
        # the newer one found clean hips: it has no SEG, and the older one's must not show
        newer = a_job(session=session, series="1.2.2").id
        claim(newer, session=session)
        finish(newer, session=session, kinds=(ArtifactKind.SR,))
    with readers() as session:
        speaking = queries.latest_job_of_study(STUDY, session=session)
        assert speaking is not None
        assert [(each.kind, each.job_id) for each in speaking.artifacts] == [
            (ArtifactKind.SR, newer)
        ]


# --- details -----------------------------------------------------------------------------


def test_a_study_with_everything_that_hangs_on_it(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        job_id, delivery_ids = a_scored_job(session=session)
        scout = receive(image(1, series="1.2.9"), session=session).series_id
        intake.close(scout, "quiet_period", now=NOW, session=session)
        intake.match(scout, matched=False, rule="localizer", now=NOW, session=session)
        a_scored_job(session=session, series="1.3", study="another")
    with readers() as session:
        study = queries.study(STUDY, session=session)
    # read after the session is gone: nothing loads lazily
    assert study is not None
    first, second = study.series
    assert (first.series.series_instance_uid, first.images) == (SERIES, 3)
    assert (second.series.state, second.images, second.jobs) == (SeriesState.IGNORED, 1, ())
    (detail,) = first.jobs
    assert detail.job.id == job_id
    assert [each.kind.value for each in detail.artifacts] == ["seg", "sr", "overlay"]
    assert [each.id for each in detail.deliveries] == delivery_ids
    assert {each.destination for each in detail.deliveries} == {PACS}
    assert study.job is not None
    assert study.job.job.result == {"unet_score": 3.21, "reason": None}


def test_a_series_lists_its_jobs_newest_first(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        first = make("scored", SERIES, session=session)
        series_id = receive(image(9), session=session).series_id
        second = open_job(series_id, session=session).id
    with readers() as session:
        study = queries.study(STUDY, session=session)
        detail = queries.job(second, session=session)
    assert study is not None
    assert [each.job.id for each in study.series[0].jobs] == [second, first]
    assert detail is not None
    assert (detail.job.supersedes_id, detail.series.id) == (first, series_id)


# --- lists -------------------------------------------------------------------------------


def test_studies_page_by_page_newest_first(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        for number in range(5):
            a_job(session=session, series=f"1.2.{number}", study=f"study-{number}")
        # a new series brings an old study to the top
        a_scored_job(session=session, series="1.2.9", study="study-0")
    pages: list[list[queries.StudySummary]] = []
    after = None
    with readers() as session:
        while page := queries.studies(session=session, after=after, limit=2):
            pages.append(page)
            after = page[-1].cursor
    assert [len(page) for page in pages] == [2, 2, 1]
    seen = [each.study_instance_uid for page in pages for each in page]
    top = pages[0][0]
    assert seen == ["study-0", "study-4", "study-3", "study-2", "study-1"]
    assert [each.series_instance_uid for each in top.series] == ["1.2.0", "1.2.9"]
    assert top.images == 6
    assert top.last_received_at == NOW
    assert top.job is not None
    assert top.job.job.state is JobState.ANALYSED


def test_jobs_page_by_page_and_by_state(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        made = [a_job(session=session, series=f"1.2.{number}").id for number in range(5)]
        claim(made[1], session=session)
    with readers() as session:
        first = queries.jobs(session=session, limit=3)
        rest = queries.jobs(session=session, after=first[-1].job.id, limit=3)
        analysing = queries.jobs(session=session, state=JobState.ANALYSING)
    assert [each.job.id for each in (*first, *rest)] == made[::-1]
    assert [each.job.id for each in analysing] == [made[1]]
    assert first[0].series.series_instance_uid == "1.2.4"


def test_a_page_of_studies_takes_a_fixed_number_of_statements(
    maker: Maker, readers: Maker, database: Engine
) -> None:
    statements: list[str] = []

    def count(limit: int) -> int:
        statements.clear()
        with readers() as session:
            assert len(queries.studies(session=session, limit=limit)) == limit
        return len(statements)

    with transaction(maker) as session:
        for number in range(6):
            a_scored_job(session=session, series=f"1.2.{number}", study=f"study-{number}")
    event.listen(
        database, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    assert count(1) == count(6) <= 7


# --- ledger ------------------------------------------------------------------------------


def test_the_ledger_by_study_series_and_image(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        a_job(session=session, series="1.2.1", study="study-1")
        a_job(session=session, series="1.2.2", study="study-1")
        a_job(session=session, series="1.2.3", study="study-2")
    with readers() as session:
        of_series = ledger.of_series("1.2.1", session=session)
        of_study = ledger.of_study("study-1", session=session)
        assert len(of_series) == 4
        assert len(of_study) == 8
        assert [each.id for each in of_study] == sorted(each.id for each in of_study)


# --- counts ------------------------------------------------------------------------------


def test_counts_have_every_state(maker: Maker, readers: Maker) -> None:
    with readers() as session:
        nothing = queries.counts(session=session)
    assert set(nothing.series) == set(SeriesState)
    assert set(nothing.jobs) == set(JobState)
    assert set(nothing.deliveries) == set(DeliveryState)
    assert {*nothing.series.values(), *nothing.jobs.values(), *nothing.deliveries.values()} == {0}
    assert (nothing.queue_depth, nothing.oldest_queued_at) == (0, None)
    assert (nothing.oldest_undelivered_at, nothing.oldest_uncommitted_at) == (None, None)
    assert nothing.uncommitted == 0


def test_counts_by_state(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        a_job(session=session, series="1.2.1")
        a_job(session=session, series="1.2.2")
        a_scored_job(session=session, series="1.2.3")
        receive(image(1, series="1.2.4"), session=session)
    with readers() as session:
        counts = queries.counts(session=session)
    assert counts.series[SeriesState.MATCHED] == 3
    assert counts.series[SeriesState.RECEIVING] == 1
    assert counts.jobs[JobState.ANALYSED] == 1
    assert counts.queue_depth == 2
    assert counts.deliveries[DeliveryState.PENDING] == 2
    assert counts.oldest_queued_at == NOW


def test_counts_tell_how_long_a_destination_owes_something(maker: Maker, readers: Maker) -> None:
    with transaction(maker) as session:
        for n, state in enumerate(DeliveryState):
            made = a_scored_job(session=session, series=f"1.2.{n}", kinds=(ArtifactKind.SR,))[1]
            delivery = session.get_one(Delivery, made[0])
            delivery.state = state
            delivery.created_at = later(-n)
            delivery.finished_at = later(-10 * n)
        # one that is SENT waits for commitment, the other does not any more
        session.get_one(Delivery, 3).commit_at = later(60)
        made = a_scored_job(session=session, series="1.2.9", kinds=(ArtifactKind.SR,))[1]
        session.get_one(Delivery, made[0]).state = DeliveryState.SENT
    with readers() as session:
        counts = queries.counts(session=session)
    states = list(DeliveryState)
    assert states[2] is DeliveryState.SENT
    assert counts.oldest_undelivered_at == later(-states.index(DeliveryState.EXHAUSTED))
    assert (counts.uncommitted, counts.oldest_uncommitted_at) == (1, later(-20))
