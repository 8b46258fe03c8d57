"""The worklist in the database: both orders, every filter, what a line says; the trend."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ArtifactKind, StudyIdentity
from hipscore.lifecycle import DeliveryState
from hipscore.store import engine, intake, jobs, studies, summary, trend, worklist
from hipscore.store.engine import transaction
from hipscore.store.tables import Delivery, Job, Series
from hipscore.store.worklist import Wanted
from tests.integration.store_steps import (
    NOW,
    a_job,
    a_scored_job,
    claim,
    image,
    later,
    open_job,
    receive,
)

Maker = sessionmaker[Session]
Page = Callable[..., worklist.Page]


@pytest.fixture
def page(database: Engine) -> Page:
    readers = engine.readers(database)

    def ask(wanted: Wanted = worklist.ALL, **how: Any) -> worklist.Page:
        with readers() as session:
            return worklist.page(wanted, session=session, **how)

    return ask


def named(page: worklist.Page) -> list[str]:
    return [line.study.study_instance_uid for line in page.lines]


def scored(
    number: int,
    score: float | None,
    *,
    session: Session,
    study: str | None = None,
    flag: str | None = None,
    identity: StudyIdentity | None = None,
) -> int:
    """A study with this score, or one that cannot be scored; the id of its job."""
    uid = study or f"1.2.{number}"
    reason = "no_hip_found" if score is None else None
    job_id, _ = a_scored_job(
        session=session, series=f"1.3.{number}", study=uid, reason=reason, now=later(number)
    )
    row = session.get_one(Job, job_id)
    session.get_one(Series, row.series_id).first_received_at = later(number)
    if score is not None:
        row.result = {
            "unet_score": score,
            "reason": None,
            "quality": [{"code": "noisy_image", "text": "noisy"}],
            "priority": {"flag": flag is not None, "reason": flag},
            "hips": [
                {"side": "left", "unet_score": score, "slices_used": 12, "mean_ratio": 0.1},
                {"side": "right", "unet_score": None, "slices_used": 3, "mean_ratio": None},
            ],
        }
        session.flush()
    summary.refresh(row.series_id, now=NOW, session=session)
    if identity is not None:
        studies.complete(uid, identity, now=NOW, session=session)
    return job_id


def followed(page: Page, wanted: Wanted = worklist.ALL, *, limit: int, highest: bool) -> list[str]:
    """Every page after the other."""
    seen: list[str] = []
    after, below = None, None
    while True:
        one = page(wanted, highest=highest, after=after, below=below, limit=limit)
        seen += named(one)
        if not one.more:
            return seen
        assert len(one.lines) == limit
        last = one.lines[-1].study
        after, below = last.newest_series_id, last.score if highest else None


@pytest.mark.parametrize("limit", (1, 2, 3, 50))
def test_both_orders_over_all_pages(maker: Maker, page: Page, limit: int) -> None:
    scores = [1.5, None, 0.1 + 0.2, 40.0, 1.5, 0.0, None]
    with transaction(maker) as session:
        for number, score in enumerate(scores):
            scored(number, score, session=session)
        # what does not speak for its study does not count: it is superseded
        late = receive(image(9, series="1.3.3", study="1.2.3"), session=session)
        open_job(late.series_id, session=session)
        # a new series brings an old study to the top
        a_job(session=session, series="1.4", study="1.2.0")
    by_score = ["1.2.0", "1.2.4", "1.2.2", "1.2.5", "1.2.6", "1.2.3", "1.2.1"]
    assert followed(page, limit=limit, highest=True) == by_score
    newest = ["1.2.0", "1.2.6", "1.2.5", "1.2.4", "1.2.3", "1.2.2", "1.2.1"]
    assert followed(page, limit=limit, highest=False) == newest


def test_a_line_says_what_is_read_at_a_glance(maker: Maker, page: Page) -> None:
    whose = StudyIdentity(patient_id="P1", patient_name="Doe^Jane", accession_number="A1")
    with transaction(maker) as session:
        scored(1, 7.25, session=session, flag="high", identity=whose)
    (line,) = page().lines
    row = line.study
    assert (row.score, row.score_left, row.score_right) == (7.25, 7.25, None)
    assert (row.patient_name, row.accession_number) == ("Doe^Jane", "A1")
    assert (row.priority, row.priority_reason) == (True, "high")
    assert line.told.slices == {"left": 12}  # the other hip was not scored
    assert [each["code"] for each in line.told.quality] == ["noisy_image"]
    assert (line.status, line.series, line.images) == ("scored", 1, 3)
    assert (line.sending.waiting, line.sending.word) == (2, "waiting")


@pytest.mark.parametrize("highest", (True, False))
def test_every_filter(maker: Maker, page: Page, highest: bool) -> None:
    with transaction(maker) as session:
        for number, (name, date) in enumerate(
            (("DOE^JANE", "20240101"), ("Doe^John", "20250101"), ("Doering^Ute", "20260101"))
        ):
            identity = StudyIdentity(
                patient_id=f"P{number}",
                patient_name=name,
                study_date=date,
                accession_number=f"A{number}",
            )
            flag = "high" if number == 2 else None
            scored(number, float(number), session=session, flag=flag, identity=identity)
        scored(7, None, session=session)

    def found(**wanted: Any) -> set[str]:
        return {uid.rpartition(".")[2] for uid in named(page(Wanted(**wanted), highest=highest))}

    assert found(status="scored") == {"0", "1", "2"}
    assert found(status="not_scorable") == {"7"}
    assert found(status="failed") == set()
    assert found(priority=True) == {"2"}
    assert found(priority=False) == {"0", "1", "7"}
    assert found(min_score=1.0) == {"1", "2"}
    assert found(min_score=0.5, max_score=1.0) == {"1"}
    assert found(study_from="20250101") == {"1", "2"}
    assert found(study_to="20250101") == {"0", "1"}  # an unknown date is before nothing
    assert found(study_from="20250101", study_to="20251231") == {"1"}
    assert found(number="A2") == {"2"}
    assert found(number="1.2.7") == {"7"}
    assert found(number="A") == set()
    assert found(patient_id="P1") == {"1"}
    assert found(patient_name="doe") == {"0", "1", "2"}
    assert found(patient_name="Doe, J") == {"0", "1"}
    assert found(patient_name="doe jane") == {"0"}
    assert found(patient_name="D%E") == set()
    assert found(since=later(2)) == {"2", "7"}
    assert found(since=later(100)) == set()
    assert found(status="scored", min_score=1.0, patient_name="doe") == {"1", "2"}


def test_queued_are_those_that_wait_and_those_that_still_arrive(maker: Maker, page: Page) -> None:
    with transaction(maker) as session:
        a_job(session=session, series="1.3.1", study="waits")
        receive(image(1, series="1.3.2", study="arrives"), session=session)
        scored(3, None, session=session, study="another series arrives")
        receive(image(1, series="1.3.4", study="another series arrives"), session=session)
        scored(5, 1.0, session=session, study="has a score")
        receive(image(1, series="1.3.6", study="has a score"), session=session)
        scout = receive(image(1, series="1.3.7", study="scouts"), session=session).series_id
        intake.close(scout, "quiet_period", now=NOW, session=session)
        intake.match(scout, matched=False, rule="localizer", now=NOW, session=session)
        running = a_job(session=session, series="1.3.8", study="runs")
        claim(running.id, session=session)
    queued = ["another series arrives", "arrives", "waits"]
    assert followed(page, Wanted(status="queued"), limit=1, highest=False) == queued
    assert followed(page, Wanted(status="queued"), limit=1, highest=True) == queued
    assert named(page(Wanted(status="not_scorable"))) == []
    assert {line.study.study_instance_uid: line.status for line in page().lines} == {
        "waits": "queued",
        "arrives": "queued",
        "another series arrives": "queued",
        "has a score": "scored",
        "scouts": None,
        "runs": "analysing",
    }


@pytest.mark.parametrize(
    ("states", "word"),
    (
        ([DeliveryState.COMMITTED, DeliveryState.COMMITTED], "committed"),
        ([DeliveryState.COMMITTED, DeliveryState.SENT], "arrived"),
        ([DeliveryState.SENT, DeliveryState.SENDING], "waiting"),
        ([DeliveryState.PENDING, DeliveryState.REFUSED], "needs_you"),
        ([DeliveryState.COMMITTED, DeliveryState.EXHAUSTED], "needs_you"),
    ),
)
def test_the_worst_destination_counts(
    maker: Maker, page: Page, states: list[DeliveryState], word: str
) -> None:
    with transaction(maker) as session:
        _, ids = a_scored_job(session=session)
        for delivery_id, state in zip(ids, states, strict=True):
            session.get_one(Delivery, delivery_id).state = state
    assert page().lines[0].sending.word == word


def test_what_still_asks_for_commitment_has_not_arrived(maker: Maker, page: Page) -> None:
    with transaction(maker) as session:
        _, ids = a_scored_job(session=session, kinds=(ArtifactKind.SR,))
        row = session.get_one(Delivery, ids[0])
        row.state, row.commit_at = DeliveryState.SENT, later(60)
    assert page().lines[0].sending.word == "unconfirmed"


def test_a_page_takes_a_fixed_number_of_statements(
    maker: Maker, page: Page, database: Engine
) -> None:
    with transaction(maker) as session:
        for number in range(6):
            scored(number, float(number), session=session)
    statements: list[str] = []
    event.listen(
        database, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    for limit in (1, 5):
        statements.clear()
        assert len(page(limit=limit).lines) == limit
        assert len(statements) <= 5


def test_a_failed_study_says_why(maker: Maker, page: Page) -> None:
    with transaction(maker) as session:
        job = a_job(session=session)
        claim(job.id, session=session)
        jobs.fail(job.id, lease="lease-1", error="a defect", now=NOW, session=session)
    (line,) = page(Wanted(status="failed")).lines
    assert line.told.error == "a defect"


# --- trend ---------------------------------------------------------------------------------


def test_the_trend_has_the_scored_studies_of_one_patient_in_order(
    maker: Maker, database: Engine
) -> None:
    jane = {"patient_id": "P1", "patient_name": "Doe^Jane"}
    with transaction(maker) as session:
        for number, date in ((1, "20260101"), (2, "20240101"), (3, "20250101")):
            identity = StudyIdentity(**jane, study_date=date, accession_number=f"A{number}")
            scored(number, float(number), session=session, identity=identity)
        scored(4, None, session=session, identity=StudyIdentity(**jane, study_date="20230101"))
        scored(5, 9.0, session=session, identity=StudyIdentity(patient_id="P2"))
        # the same ID from elsewhere is another patient
        elsewhere = StudyIdentity(patient_id="P1", issuer_of_patient_id="OTHER")
        scored(6, 9.0, session=session, identity=elsewhere)
    key = StudyIdentity(**jane).patient_key
    assert key is not None
    with engine.readers(database)() as session:
        found = trend.of_patient(key, session=session)
    assert [(each.study_date, each.unet_score) for each in found] == [
        ("20240101", 2.0),
        ("20250101", 3.0),
        ("20260101", 1.0),
    ]
    assert all(each.ours and each.slices_used == {"left": 12} for each in found)
    assert found[0].model == "hips 1.0"


def test_a_time_in_another_zone_is_the_same_moment(maker: Maker, page: Page) -> None:
    with transaction(maker) as session:
        scored(1, 1.0, session=session)
    moment = datetime.fromisoformat("2026-03-14T10:30:01+01:00")
    assert moment == later(1).astimezone(UTC)
    assert named(page(Wanted(since=moment))) == ["1.2.1"]
    assert named(page(Wanted(since=later(2).astimezone(moment.tzinfo)))) == []
