"""Images arrive once, twice, late, changed and all at the same time; a series becomes a job."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from hipscore.lifecycle import IllegalMove, JobState, SeriesState
from hipscore.store import engine, intake, jobs, ledger
from hipscore.store.engine import transaction
from hipscore.store.moves import NotFound
from hipscore.store.recording import Recorded, Verdict
from hipscore.store.tables import Event, Instance, Job, Series
from tests.integration.store_steps import (
    BUNDLE,
    NOW,
    SERIES,
    STUDY,
    a_job,
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


def the_series(session: Session) -> Series:
    return session.scalars(select(Series)).one()


def test_a_new_image_opens_its_series(maker: Maker) -> None:
    with transaction(maker) as session:
        recorded = receive(image(1), session=session)
    with maker() as session:
        series = the_series(session)
        assert (series.id, series.state) == (recorded.series_id, SeriesState.RECEIVING)
        assert (series.study_instance_uid, series.series_instance_uid) == (STUDY, SERIES)
        assert (series.calling_aet, series.called_aet) == ("SCANNER", "HIPSCORE")
        assert series.first_received_at == series.last_received_at == NOW
        assert moves(ledger.of_series(SERIES, session=session)) == ["open >RECEIVING"]
    assert (recorded.verdict, recorded.late) == (Verdict.NEW, False)


def test_what_is_recorded_comes_back_as_evidence(maker: Maker) -> None:
    first = image(1)
    bare = image(
        2,
        number_of_frames=24,
        instance_number=None,
        images_in_acquisition=None,
        position_mm=None,
        orientation=None,
        image_type=(),
    )
    with transaction(maker) as session:
        series_id = receive(first, session=session).series_id
        receive(bare, session=session, association_id="association-2")
    with maker() as session:
        evidence = intake.evidence(series_id, session=session)
    assert evidence == (first, bare)


def test_a_header_with_nonsense_is_recorded_without_it(maker: Maker) -> None:
    odd = image(1, position_mm=(math.nan, 0.0, 0.0), image_type=("ORIGINAL\0", "PRIMARY"))
    with transaction(maker) as session:
        series_id = receive(odd, session=session).series_id
    with maker() as session:
        (instance,) = intake.evidence(series_id, session=session)
    assert instance == replace(odd, position_mm=None, image_type=("ORIGINAL", "PRIMARY"))


def test_times_are_utc_whatever_zone_they_come_in(maker: Maker) -> None:
    berlin = datetime(2026, 3, 14, 10, 30, tzinfo=timezone(timedelta(hours=1)))
    with transaction(maker) as session:
        receive(image(1), session=session, now=berlin)
    with maker() as session:
        stored = the_series(session).last_received_at
    assert stored == NOW
    assert stored.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused(maker: Maker) -> None:
    with pytest.raises(Exception, match="has no time zone"), transaction(maker) as session:
        receive(image(1), session=session, now=NOW.replace(tzinfo=None))


def test_the_same_bytes_again_are_a_no_op(maker: Maker) -> None:
    with transaction(maker) as session:
        first = receive(image(1), session=session)
    with transaction(maker) as session:
        again = receive(image(1), session=session, now=later(5))
    assert again == Recorded(series_id=first.series_id, verdict=Verdict.DUPLICATE)
    with maker() as session:
        assert rows(Instance, session=session) == 1
        assert rows(Event, session=session) == 1
        assert the_series(session).last_received_at == later(5), "the sender is still busy"


def test_the_same_bytes_again_leave_a_closed_series_closed(maker: Maker) -> None:
    with transaction(maker) as session:
        a_job(session=session)
    with transaction(maker) as session:
        again = receive(image(1), session=session, now=later(5))
    assert (again.verdict, again.late) == (Verdict.DUPLICATE, False)
    with maker() as session:
        assert the_series(session).state is SeriesState.MATCHED
        assert the_series(session).last_received_at == NOW


def test_other_bytes_under_the_same_uid_keep_the_first_and_are_recorded(maker: Maker) -> None:
    with transaction(maker) as session:
        receive(image(1), session=session)
    changed = image(1, content="changed")
    with transaction(maker) as session:
        assert receive(changed, session=session).verdict is Verdict.CONFLICT
    with maker() as session:
        assert session.scalars(select(Instance.sha256)).one() == image(1).sha256
        event = last_event(session=session)
        assert event.what == "conflict"
        assert event.detail["sha256"] == changed.sha256
        assert event.detail["kept_sha256"] == image(1).sha256
        assert event.detail["sop_instance_uid"] == changed.sop_instance_uid


def test_an_image_that_puts_its_series_into_another_study_is_not_kept(maker: Maker) -> None:
    with transaction(maker) as session:
        receive(image(1), session=session)
    with transaction(maker) as session:
        stray = receive(image(2, study="1.2.826.0.1.2"), session=session)
    assert stray.verdict is Verdict.MISPLACED
    with maker() as session:
        assert rows(Series, session=session) == 1
        assert rows(Instance, session=session) == 1
        assert last_event(session=session).what == "misplaced"
        assert last_event(session=session).detail["kept_study"] == STUDY


def test_an_image_uid_of_another_series_is_a_conflict_and_opens_no_series(maker: Maker) -> None:
    stray = replace(image(1), series_instance_uid="1.2.826.0.1.1.8", sha256="0" * 64)
    with transaction(maker) as session:
        receive(image(1), session=session)
    with transaction(maker) as session:
        assert receive(stray, session=session).verdict is Verdict.CONFLICT
    with maker() as session:
        assert rows(Series, session=session) == 1


# --- closing -----------------------------------------------------------------------------


def test_a_series_closes_once_and_remembers_why(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(1), session=session).series_id
        assert intake.close(series_id, "expected_count", now=later(1), session=session)
    with transaction(maker) as session:
        assert not intake.close(series_id, "quiet_period", now=later(2), session=session)
    with maker() as session:
        series = the_series(session)
        assert (series.state, series.close_reason) == (SeriesState.COMPLETE, "expected_count")
        assert series.closed_at == later(1)
        assert last_event(session=session).detail == {"reason": "expected_count", "images": 1}


def test_quiet_finds_open_series_without_a_recent_image(maker: Maker) -> None:
    with transaction(maker) as session:
        silent = receive(image(1, series="1.1"), session=session).series_id
        receive(image(1, series="1.2"), session=session, now=later(25))
        closed = receive(image(1, series="1.3"), session=session).series_id
        intake.close(closed, "expected_count", now=NOW, session=session)
    with maker() as session:
        assert intake.quiet(before=later(20), session=session) == [silent]


def test_an_image_that_arrives_in_the_last_moment_keeps_the_series_open(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(1), session=session).series_id
    with transaction(maker) as session:
        receive(image(2), session=session, now=later(30))
    with transaction(maker) as session:
        closed = intake.close(
            series_id, "quiet_period", quiet_before=later(20), now=later(31), session=session
        )
    assert not closed


def test_a_series_that_does_not_match_is_ignored_by_rule(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(1), session=session).series_id
        intake.close(series_id, "quiet_period", now=NOW, session=session)
        assert intake.match(series_id, matched=False, rule="localizer", now=NOW, session=session)
    with maker() as session:
        assert the_series(session).state is SeriesState.IGNORED
        assert the_series(session).match_rule == "localizer"
        with pytest.raises(IllegalMove, match="only a MATCHED one"):
            intake.open_job(series_id, **BUNDLE, now=NOW, session=session)


def test_an_open_series_cannot_be_matched(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(1), session=session).series_id
        with pytest.raises(IllegalMove, match="'match' is not possible in state RECEIVING"):
            intake.match(series_id, matched=True, rule="any", now=NOW, session=session)


@pytest.mark.parametrize(
    "act",
    (
        lambda session: intake.close(99, "quiet_period", now=NOW, session=session),
        lambda session: intake.evidence(99, session=session),
        lambda session: intake.match(99, matched=True, rule="any", now=NOW, session=session),
        lambda session: intake.open_job(99, **BUNDLE, now=NOW, session=session),
    ),
)
def test_an_unknown_series_is_named(maker: Maker, act: Callable[[Session], object]) -> None:
    with maker() as session, pytest.raises(NotFound, match="there is no series 99"):
        act(session)


# --- opening jobs ------------------------------------------------------------------------


def test_a_matched_series_gets_one_job(maker: Maker) -> None:
    with transaction(maker) as session:
        job = a_job(session=session, images=3)
        assert (job.state, job.attempts, job.supersedes_id) == (JobState.QUEUED, 0, None)
        again = intake.open_job(job.series_id, **BUNDLE, now=later(1), session=session)
        assert again.id == job.id
    with maker() as session:
        assert rows(Job, session=session) == 1
        images = jobs.instances(job.id, session=session)
    assert [each.sop_instance_uid for each in images] == [f"{SERIES}.{n}" for n in range(3)]
    assert images[0].sha256 == image(0).sha256
    assert images[0].spool_key.replace("/", "") == image(0).sha256


def test_another_bundle_makes_another_job_that_supersedes(maker: Maker) -> None:
    with transaction(maker) as session:
        first = a_job(session=session)
        other = {**BUNDLE, "bundle_sha256": "c" * 64}
        second = intake.open_job(first.series_id, **other, now=NOW, session=session)
        assert second.id != first.id
        assert second.key != first.key
        assert second.supersedes_id == first.id


def test_a_late_image_makes_a_job_that_supersedes_the_earlier_one(maker: Maker) -> None:
    with transaction(maker) as session:
        first = a_job(session=session, images=3)
    with transaction(maker) as session:
        recorded = receive(image(3), session=session, now=later(100))
    assert (recorded.verdict, recorded.late) == (Verdict.NEW, True)
    with transaction(maker) as session:
        series = the_series(session)
        assert (series.state, series.close_reason) == (SeriesState.RECEIVING, None)
        assert series.last_received_at == later(100)
        second = open_job(series.id, session=session, now=later(130))
    assert second.supersedes_id == first.id
    assert second.key != first.key
    with maker() as session:
        assert len(jobs.instances(first.id, session=session)) == 3, "as it was opened"
        assert len(jobs.instances(second.id, session=session)) == 4
        assert moves(ledger.of_series(SERIES, session=session)) == [
            "open >RECEIVING",
            "close RECEIVING>COMPLETE",
            "match COMPLETE>MATCHED",
            "open >QUEUED",
            "image MATCHED>RECEIVING",
            "close RECEIVING>COMPLETE",
            "match COMPLETE>MATCHED",
            "open >QUEUED",
        ]


def test_the_predecessor_is_the_nearest_earlier_report(maker: Maker) -> None:
    with transaction(maker) as session:
        first = a_job(session=session)
        claim(first.id, session=session)
        finish(first.id, session=session)
        for number, wait in ((3, 100), (4, 200)):
            receive(image(number), session=session, now=later(wait))
            newest = open_job(first.series_id, session=session, now=later(wait + 1))
        # the job between has no report: it failed
        between = newest.supersedes_id
        assert between is not None
        claim(between, session=session, now=later(300))
        jobs.fail(between, lease="lease-1", error="bug", now=later(301), session=session)
        assert jobs.predecessor(first.id, session=session) is None
        report = jobs.predecessor(newest.id, session=session)
    assert report is not None
    assert (report.job_id, report.kind.value) == (first.id, "sr")


# --- at the same time --------------------------------------------------------------------


def test_one_series_over_many_associations_at_once(maker: Maker) -> None:
    verdicts: list[Verdict] = []

    def association(name: str, numbers: list[int]) -> Callable[[], None]:
        def send() -> None:
            for number in numbers:
                with transaction(maker) as session:
                    recorded = receive(image(number), session=session, association_id=name)
                verdicts.append(recorded.verdict)

        return send

    # 1 and 2 send the same images, in opposite order
    at_once(
        [
            association("1", list(range(10))),
            association("2", list(range(9, -1, -1))),
            association("3", list(range(10, 20))),
            association("4", list(range(20, 30))),
        ]
    )
    assert verdicts.count(Verdict.NEW) == 30
    assert verdicts.count(Verdict.DUPLICATE) == 10
    with maker() as session:
        assert rows(Series, session=session) == 1
        assert rows(Instance, session=session) == 30
        assert rows(Event, session=session) == 1


def test_an_image_racing_with_the_close_is_in_the_job_or_late(maker: Maker) -> None:
    """Whoever is first: no image is ever left outside every job of its series unnoticed."""
    for round_ in range(5):
        series = f"1.2.826.0.2.{round_}"
        with transaction(maker) as session:
            series_id = receive(image(0, series=series), session=session).series_id
        late: list[bool] = []

        def send(series: str = series, late: list[bool] = late) -> None:
            with transaction(maker) as session:
                late.append(receive(image(1, series=series), session=session).late)

        def close(series_id: int = series_id) -> None:
            with transaction(maker) as session:
                open_job(series_id, session=session)

        at_once([send, close])
        with maker() as session:
            job = session.scalars(select(Job).where(Job.series_id == series_id)).one()
            analysed = len(jobs.instances(job.id, session=session))
            state = session.get_one(Series, series_id).state
        assert (late, analysed, state) in (
            ([True], 1, SeriesState.RECEIVING),
            ([False], 2, SeriesState.MATCHED),
        )


def test_two_reapers_open_one_job(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(0), session=session).series_id
    opened: list[bool] = []

    def reap() -> None:
        with transaction(maker) as session:
            closed = intake.close(series_id, "quiet_period", now=NOW, session=session)
            if closed:
                intake.match(series_id, matched=True, rule="any", now=NOW, session=session)
                intake.open_job(series_id, **BUNDLE, now=NOW, session=session)
            opened.append(closed)

    at_once([reap, reap, reap])
    assert sorted(opened) == [False, False, True]
    with maker() as session:
        assert rows(Job, session=session) == 1


def while_another_writes(
    maker: Maker, first: Callable[[Session], object], second: Callable[[Session], object]
) -> object:
    """What ``second`` gives when it starts while ``first`` is done but not yet committed."""
    answers: list[object] = []

    def start() -> None:
        with transaction(maker) as session:
            answers.append(second(session))

    waiting = threading.Thread(target=start)
    with transaction(maker) as session:
        first(session)
        waiting.start()
        waiting.join(0.3)
        assert answers == [], "it waits for the other"
    waiting.join()
    return answers[0]


def test_a_close_waits_for_an_image_that_is_being_recorded(maker: Maker) -> None:
    with transaction(maker) as session:
        series_id = receive(image(1), session=session).series_id

    def close(session: Session) -> bool:
        return intake.close(
            series_id, "quiet_period", quiet_before=later(20), now=later(31), session=session
        )

    def arrive(session: Session) -> None:
        receive(image(2), session=session, now=later(30))

    assert while_another_writes(maker, arrive, close) is False


def test_one_image_uid_in_two_series_at_once_opens_one_series(maker: Maker) -> None:
    stray = replace(image(1), series_instance_uid="1.2.826.0.1.1.8", sha256="0" * 64)

    def arrive(session: Session) -> None:
        receive(image(1), session=session)

    def collide(session: Session) -> Verdict:
        return receive(stray, session=session).verdict

    assert while_another_writes(maker, arrive, collide) is Verdict.CONFLICT
    with maker() as session:
        assert the_series(session).series_instance_uid == SERIES
        assert rows(Event, session=session) == 2


def test_a_worker_does_not_wait_for_an_image_of_its_series(postgres_url: str) -> None:
    """PostgreSQL locks rows: recording an image must not hold up the job of its series."""
    engine.upgrade(postgres_url)
    connected = engine.connect(postgres_url)
    maker = engine.sessions(connected)
    with transaction(maker) as session:
        job_id = a_job(session=session).id
    with transaction(maker) as recording:
        receive(image(9), session=recording)
        with transaction(maker) as working:
            working.execute(text("SET LOCAL lock_timeout = '1s'"))
            assert claim(job_id, session=working) is not None
            finish(job_id, session=working)
    connected.dispose()
