"""Rows of old studies: which go, which stay, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DBAPIError

from hipscore import worker
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.settings import Settings
from hipscore.store import audit, forgetting, intake, queries
from hipscore.store import engine as database
from hipscore.store.retention import What
from hipscore.store.tables import (
    ArtifactRow,
    AuditEvent,
    Base,
    Delivery,
    Event,
    Instance,
    Job,
    Series,
    Study,
    Subscription,
    WorkItem,
)
from hipscore.worker import purging
from tests.integration import shell_steps as shell
from tests.integration import store_steps as steps
from tests.integration.store_steps import NOW, SERIES, STUDY
from tests.integration.test_purging import a_queued_job, a_scored_job, arrive, settle

DAY = timedelta(days=1)
OLD = NOW + 2000 * DAY
#: rows that stay
KEPT = {"audit", "tallies", "access_keys", "access_sessions"}


@pytest.fixture
def at(settings: Settings) -> Iterator[worker.Bench]:
    keeping = settings.model_copy(update={"keep_rows_days": 1000.0})
    with shell.bench(keeping) as made:
        yield made


def purge(at: worker.Bench, *, days: int = 2000) -> list[What]:
    """What the beat does, twice: rows go in the purge after that of their files."""
    now = NOW + days * DAY
    rules = purging.by_age(at.settings, now=now)
    taken = []
    for _ in range(2):
        for lot in purging.plan(rules, at):
            purging.take(lot, rules, at, now=now)
            taken.append(lot.what)
    return taken


def delivered(at: worker.Bench, series: str = SERIES) -> int:
    """Id of an analysed job whose results have arrived."""
    job_id, sent = a_scored_job(at, series=series)
    settle(at, sent)
    return job_id


def rows(at: worker.Bench) -> dict[str, int]:
    """Rows by table, of those in which there are any."""
    with database.transaction(database.readers(at.sessions.kw["bind"])) as session:
        found = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }
    return {name: number for name, number in found.items() if number and name not in KEPT}


def set_all(at: worker.Bench, kind: type[Base], **values: object) -> None:
    with at.sessions.begin() as session:
        session.execute(update(kind).values(**values))


def test_by_default_rows_stay_for_ever(settings: Settings) -> None:
    with shell.bench(settings) as at:
        delivered(at)
        assert What.ROWS not in purge(at, days=40_000)
        assert rows(at)["events"] > 5


def test_everything_of_an_old_study_goes(at: worker.Bench) -> None:
    delivered(at)
    before = rows(at)
    assert {"series", "instances", "jobs", "job_instances", "artifacts", "deliveries"} < set(before)
    assert {"events", "studies", "workitems", "workitem_events"} < set(before)
    assert purge(at) == [What.IMAGES, What.RESULTS, What.ROWS]
    assert rows(at) == {}
    assert [len(shard) for shard in at.spool.shards() if len(shard)] == []
    with at.sessions() as session:
        assert {*queries.counts(session=session).jobs.values()} == {0}


def test_the_audit_log_says_what_went_and_stays(at: worker.Bench) -> None:
    delivered(at)
    with at.sessions.begin() as session:
        me = audit.Actor(who="me", role="viewer")
        audit.append(me, "look", study=STUDY, now=NOW, session=session)
    lines = rows(at)["events"] + 2  # and those of the two purges
    purge(at)
    with at.sessions() as session:
        looked, went = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
    assert looked.action == "look"
    assert (went.who, went.action, went.study_instance_uid) == ("retention", "delete rows", STUDY)
    assert went.detail == {"series": 1, "analyses": 1, "ledger": lines, "why": "age"}


def test_a_study_goes_when_nothing_happened_for_so_long(at: worker.Bench) -> None:
    delivered(at)
    assert What.ROWS not in purge(at, days=999)
    assert purge(at, days=1001) == [What.ROWS]


def test_other_studies_stay(at: worker.Bench) -> None:
    delivered(at)
    with at.sessions.begin() as session:
        steps.receive(steps.image(1, series="1.9.1", study="1.9"), session=session, now=OLD)
    assert What.ROWS in purge(at)
    with at.sessions() as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.9"]
    assert rows(at)["series"] == rows(at)["instances"] == 1


def test_files_that_are_kept_keep_the_rows(at: worker.Bench) -> None:
    delivered(at)
    keeping = at.settings.model_copy(update={"keep_results_days": 0.0})
    rules = purging.by_age(keeping, now=OLD)
    for _ in range(2):
        for lot in purging.plan(rules, at):
            assert lot.what is What.IMAGES
            purging.take(lot, rules, at, now=OLD)
    assert rows(at)["jobs"] == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    (
        (Series, {"state": SeriesState.RECEIVING}),
        (Series, {"last_received_at": OLD}),
        (Job, {"state": JobState.QUEUED, "finished_at": None}),
        (Job, {"finished_at": OLD}),
        (Delivery, {"state": DeliveryState.EXHAUSTED}),
        (Delivery, {"state": DeliveryState.REFUSED}),
        (Delivery, {"state": DeliveryState.SENT, "commit_at": OLD}),
        (Delivery, {"finished_at": OLD}),
        (Study, {"updated_at": OLD}),
        (Instance, {"purged_at": None}),
        (ArtifactRow, {"purged_at": None}),
        (WorkItem, {"state": "SCHEDULED"}),
        (WorkItem, {"updated_at": OLD}),
    ),
)
def test_what_is_open_or_young_keeps_the_study(
    at: worker.Bench, kind: type[Base], values: dict[str, object]
) -> None:
    delivered(at)
    set_all(at, Instance, purged_at=NOW)
    set_all(at, ArtifactRow, purged_at=NOW)
    with at.sessions() as session:
        before = OLD - 1000 * DAY
        assert len(forgetting.spare_rows(before=before, session=session)) == 1
    set_all(at, kind, **values)
    with at.sessions() as session:
        assert forgetting.spare_rows(before=before, session=session) == []


def test_one_open_series_keeps_the_whole_study(at: worker.Bench) -> None:
    delivered(at)
    a_queued_job(at, series=f"{SERIES}.2")
    assert What.ROWS not in purge(at)
    assert rows(at)["series"] == 2


def test_a_deletion_lock_keeps_the_study(at: worker.Bench) -> None:
    delivered(at)
    with at.sessions.begin() as session:
        uid = session.scalars(select(WorkItem.sop_instance_uid)).one()
        locked = {"subscriber": "OTHER", "workitem_uid": uid, "deletion_lock": True}
        session.add(Subscription(**locked, created_at=NOW))
    assert What.ROWS not in purge(at)
    set_all(at, Subscription, deletion_lock=False)
    assert What.ROWS in purge(at)
    assert rows(at) == {}


def test_a_study_that_changed_since_the_plan_stays(at: worker.Bench) -> None:
    delivered(at)
    set_all(at, Instance, purged_at=NOW)
    set_all(at, ArtifactRow, purged_at=NOW)
    rules = purging.by_age(at.settings, now=OLD)
    (lot,) = purging.plan(rules, at)
    assert lot.what is What.ROWS
    arrive(at, 7, now=OLD)
    before = rows(at)
    assert purging.take(lot, rules, at, now=OLD) == purging.Gone()
    assert rows(at) == before


def test_two_purges_at_once_delete_it_once(at: worker.Bench) -> None:
    delivered(at)
    set_all(at, Instance, purged_at=NOW)
    set_all(at, ArtifactRow, purged_at=NOW)
    rules = purging.by_age(at.settings, now=OLD)
    (lot,) = purging.plan(rules, at)
    steps.at_once([lambda: purging.take(lot, rules, at, now=OLD)] * 2)
    assert rows(at) == {}
    with at.sessions() as session:
        assert len(session.scalars(select(AuditEvent)).all()) == 1


def test_a_late_image_supersedes_and_both_analyses_go(at: worker.Bench) -> None:
    first = delivered(at)
    series_id = arrive(at, 9)
    with at.sessions.begin() as session:
        assert intake.close(series_id, "quiet_period", now=NOW, session=session)
        intake.match(series_id, matched=True, rule="any", now=NOW, session=session)
        job = intake.open_job(series_id, **steps.BUNDLE, now=NOW, session=session)
        assert job.supersedes_id == first
        steps.claim(job.id, session=session)
        sent = steps.finish(job.id, session=session)
    settle(at, sent)
    assert What.ROWS in purge(at)
    assert rows(at) == {}


def test_the_ledger_of_others_cannot_be_deleted_meanwhile(at: worker.Bench) -> None:
    delivered(at)
    with at.sessions.begin() as session:
        steps.receive(steps.image(1, series="1.9.1", study="1.9"), session=session)
    with pytest.raises(DBAPIError, match="append-only"), at.sessions.begin() as session:
        session.execute(delete(Event))


def test_a_study_that_comes_again_begins_anew(at: worker.Bench) -> None:
    delivered(at)
    purge(at)
    arrive(at, 0, now=OLD)
    assert rows(at)["series"] == rows(at)["studies"] == 1
    with at.sessions() as session:
        assert queries.latest_job_of_study(STUDY, session=session) is None


def test_one_purge_takes_so_many(at: worker.Bench) -> None:
    for number in range(3):
        with at.sessions.begin() as session:
            uid, study = f"1.9.{number}.1", f"1.9.{number}"
            made = steps.a_scored_job(session=session, series=uid, study=study)
        settle(at, made[1])
    set_all(at, Instance, purged_at=NOW)
    set_all(at, ArtifactRow, purged_at=NOW)
    with at.sessions() as session:
        lots = forgetting.spare_rows(before=OLD, limit=2, session=session)
    assert [lot.series_instance_uid for lot in lots] == ["1.9.0.1", "1.9.1.1"]


@pytest.mark.parametrize("study", (None, "1.9"))
def test_an_order_that_names_no_study_keeps_what_it_is_bound_to(
    at: worker.Bench, study: str | None
) -> None:
    delivered(at)
    set_all(at, WorkItem, study_instance_uid=study, state="SCHEDULED")
    assert What.ROWS not in purge(at)
    set_all(at, WorkItem, state="COMPLETED")
    assert What.ROWS in purge(at)
    assert rows(at) == {}


def test_what_is_made_anew_has_other_uids(at: worker.Bench) -> None:
    keys = []
    for times in range(3):
        delivered(at)
        with at.sessions() as session:
            job = session.scalars(select(Job)).one()
            keys.append(job.key)
            again = intake.open_job(job.series_id, **steps.BUNDLE, now=NOW, session=session)
            assert again.id == job.id
        assert What.ROWS in purge(at), times
    assert len(set(keys)) == 3


def test_a_series_that_arrives_meanwhile_keeps_the_study(at: worker.Bench) -> None:
    """Its transaction is open while the purge begins; it is waited for."""
    delivered(at)
    set_all(at, Instance, purged_at=NOW)
    set_all(at, ArtifactRow, purged_at=NOW)
    rules = purging.by_age(at.settings, now=OLD)
    (lot,) = purging.plan(rules, at)
    with ThreadPoolExecutor(1) as other:
        with at.sessions.begin() as session:
            steps.receive(steps.image(50, series=f"{SERIES}.2"), session=session, now=OLD)
            purge_ = other.submit(purging.take, lot, rules, at, now=OLD)
            with pytest.raises(TimeoutError):
                purge_.result(timeout=0.5)
        assert purge_.result(timeout=10) == purging.Gone()
    assert rows(at)["studies"] == 1
    assert rows(at)["series"] == 2
