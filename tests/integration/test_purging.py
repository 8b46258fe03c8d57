"""Purging over both databases and a real spool: what goes, what stays, what comes back."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import update

from hipscore import worker
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, IllegalMove, JobState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import deliveries, jobs, retention
from hipscore.store.tables import ArtifactRow, Delivery, Event, Instance, Job, Series
from hipscore.worker import purging
from tests import servers
from tests.integration import shell_steps as shell
from tests.integration import store_steps as steps
from tests.integration.store_steps import NOW, PACS, SERIES

DAY = timedelta(days=1)
MONTHS = NOW + 90 * DAY
YEARS = NOW + 1000 * DAY
MINUTE = 60.0


@pytest.fixture
def at(settings: Settings) -> Iterator[worker.Bench]:
    with shell.bench(settings) as made:
        yield made


def put(at: worker.Bench, data: bytes, *, age: timedelta = 2 * DAY, now: datetime = NOW) -> str:
    """Bytes in the spool, put so long before ``now``; their key."""
    key = at.spool.put(data).key
    put_at = (now - age).timestamp()
    os.utime(at.spool.path(key), (put_at, put_at))
    return key


def arrive(
    at: worker.Bench, number: int, *, series: str = SERIES, now: datetime = NOW, content: str = ""
) -> int:
    """An image arrives as the listener does it: file, then row. Id of its series."""
    data = f"{series} {number} {content}".encode() * 100
    instance = replace(
        steps.image(number, series=series), sha256=hashlib.sha256(data).hexdigest(), size=len(data)
    )
    put(at, data, age=timedelta(0), now=now)
    with at.sessions.begin() as session:
        return steps.receive(instance, session=session, now=now).series_id


def a_queued_job(at: worker.Bench, *, series: str = SERIES, images: int = 3) -> int:
    for number in range(images):
        series_id = arrive(at, number, series=series)
    with at.sessions.begin() as session:
        return steps.open_job(series_id, session=session).id


def a_scored_job(
    at: worker.Bench, *, series: str = SERIES, images: int = 3, to: tuple[str, ...] = (PACS,)
) -> tuple[int, list[int]]:
    """Ids of an analysed job with real files, and of its deliveries."""
    job_id = a_queued_job(at, series=series, images=images)
    made = []
    for kind in steps.ALL_ARTIFACTS:
        stored = at.spool.put(f"{series} {kind}".encode() * 50)
        os.utime(at.spool.path(stored.key), (NOW.timestamp(), NOW.timestamp()))
        made.append(
            replace(
                steps.artifact(kind, job_id),
                spool_key=stored.key,
                sha256=stored.sha256,
                size=stored.size,
            )
        )
    with at.sessions.begin() as session:
        assert steps.claim(job_id, session=session)
        return job_id, jobs.finish(
            job_id,
            lease="lease-1",
            state=JobState.ANALYSED,
            result={"unet_score": 3.21, "reason": None},
            artifacts=made,
            destinations=to,
            timings={},
            now=NOW,
            session=session,
        )


def settle(
    at: worker.Bench, ids: list[int], state: DeliveryState = DeliveryState.COMMITTED
) -> None:
    """The deliveries end in this state."""
    with at.sessions.begin() as session:
        for delivery_id in ids:
            row = session.get_one(Delivery, delivery_id)
            row.state, row.finished_at = state, NOW


def purge(at: worker.Bench, now: datetime, **by_hand: Any) -> purging.Gone:
    """What the beat does every hour, or an operator by hand, at that time."""
    rules = purging.by_hand(at.settings, now=now, **by_hand)
    gone = purging.Gone()
    for lot in purging.plan(rules, at):
        gone += purging.take(lot, rules, at, now=now)
    return gone + purging.sweep(rules, at, now=now)


def stored(at: worker.Bench, kind: type[Instance | ArtifactRow]) -> list[bool]:
    """For every row of the table: whether its file is here. It must be what the row says."""
    found = []
    for row in shell.rows(at.settings, kind):
        here = at.spool.path(row.spool_key).exists()
        assert here == (row.purged_at is None)
        found.append(here)
    return found


def lines(at: worker.Bench, what: str) -> list[dict[str, Any]]:
    return [row.detail for row in shell.rows(at.settings, Event) if row.what == what]


def test_images_of_a_delivered_series_go_after_their_time(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    assert purge(at, NOW + 29 * DAY) == purging.Gone()
    assert stored(at, Instance) == [True] * 3
    gone = purge(at, NOW + 31 * DAY)
    assert gone.files == 3
    assert stored(at, Instance) == [False] * 3
    assert stored(at, ArtifactRow) == [True] * 3
    (line,) = lines(at, "purge")
    assert line == {"what": "images", "files": 3, "bytes": gone.size, "why": "by hand"}
    assert purge(at, NOW + 32 * DAY) == purging.Gone()
    assert len(lines(at, "purge")) == 1


def test_results_go_later_and_what_was_never_sent_stays(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    a_scored_job(at, series="1.2.9", to=())
    settle(at, sent)
    purge(at, YEARS)
    kept = {
        (row.job_id, row.kind): row.purged_at is None
        for row in shell.rows(at.settings, ArtifactRow)
    }
    assert {key for key, here in kept.items() if not here} == {
        (1, ArtifactKind.SEG),
        (1, ArtifactKind.SR),
    }
    assert stored(at, ArtifactRow).count(False) == 2
    assert shell.rows(at.settings, Job)[0].result["unet_score"] == 3.21
    with pytest.raises(IllegalMove, match="purged on"), at.sessions.begin() as session:
        deliveries.retry(sent[0], now=YEARS, session=session)


@pytest.mark.parametrize(
    "state", sorted(set(DeliveryState) - {DeliveryState.COMMITTED, DeliveryState.SENT})
)
def test_what_is_undelivered_keeps_everything(at: worker.Bench, state: DeliveryState) -> None:
    _, (first, second) = a_scored_job(at)
    settle(at, [first])
    settle(at, [second], state)
    assert purge(at, YEARS, images_days=0, results_days=0, failed=True) == purging.Gone()
    assert all(stored(at, Instance) + stored(at, ArtifactRow))


def test_a_commitment_that_is_awaited_keeps_everything(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent, DeliveryState.SENT)
    with at.sessions.begin() as session:
        session.get_one(Delivery, sent[0]).commit_at = MONTHS
    assert purge(at, MONTHS) == purging.Gone()
    with at.sessions.begin() as session:
        session.get_one(Delivery, sent[0]).commit_at = None
    assert purge(at, MONTHS).files == 3


def test_zero_days_keep_for_ever(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    orphan = put(at, b"nobody's")
    keeping = replace(
        at,
        settings=at.settings.model_copy(
            update={"keep_images_days": 0.0, "keep_results_days": 0.0, "watermark_mb": 10**9}
        ),
    )
    assert purge(keeping, YEARS) == purging.Gone()
    assert not purging.relieve(keeping, now=YEARS)
    assert all(stored(at, Instance) + stored(at, ArtifactRow))
    assert at.spool.path(orphan).exists()


def test_failed_analyses_are_purged_by_hand_only(at: worker.Bench) -> None:
    job_id = a_queued_job(at)
    with at.sessions.begin() as session:
        steps.claim(job_id, session=session)
        jobs.fail(job_id, lease="lease-1", error="a defect", now=NOW, session=session)
    assert purge(at, YEARS) == purging.Gone()
    assert purge(at, YEARS, failed=True).files == 3


def test_the_same_bytes_of_two_rows_stay_as_long_as_one_needs_them(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    other = arrive(at, 0, series="1.2.9")
    with at.sessions.begin() as session:
        first, second = (
            session.query(Instance).filter_by(series_id=each).order_by(Instance.id).limit(1).one()
            for each in (1, other)
        )
        second.spool_key, second.sha256 = first.spool_key, first.sha256
        shared = first.spool_key
    assert purge(at, MONTHS).files == 3 - 1 + 1  # and the orphan this made of the other's own
    assert at.spool.path(shared).exists()


def test_a_crash_between_mark_and_delete_is_mended_by_the_next_purge(
    at: worker.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)

    def killed(*_: object, **__: object) -> bool:
        raise SystemExit

    monkeypatch.setattr(Spool, "discard", killed)
    with pytest.raises(SystemExit):
        purge(at, MONTHS)
    monkeypatch.undo()
    images = shell.rows(at.settings, Instance)
    assert all(row.purged_at is not None for row in images)
    assert all(at.spool.path(row.spool_key).exists() for row in images)
    assert purge(at, MONTHS + DAY).files == 3
    assert stored(at, Instance) == [False] * 3
    assert len(lines(at, "purge")) == 1


def test_files_that_no_row_refers_to_go_after_the_same_time(at: worker.Bench) -> None:
    a_queued_job(at)
    orphan = put(at, b"written, and then the power failed", age=timedelta(0))
    assert purge(at, NOW + 29 * DAY) == purging.Gone()
    rules = purging.by_age(at.settings, now=NOW + 31 * DAY)
    assert purging.sweep(rules, at, now=NOW + 31 * DAY, dry=True).files == 1
    assert at.spool.path(orphan).exists()
    assert purge(at, NOW + 31 * DAY).files == 1
    assert not at.spool.path(orphan).exists()
    assert all(stored(at, Instance))


def test_a_file_put_again_just_now_survives_the_purge(at: worker.Bench) -> None:
    """The listener has the file and not the row yet: the purge must not come in between."""
    _, sent = a_scored_job(at)
    settle(at, sent)
    image = shell.rows(at.settings, Instance)[0]
    again = at.spool.read(image.spool_key, image.sha256)
    put(at, again, age=timedelta(0), now=MONTHS)  # touches the file, as a put at that time does
    assert purge(at, MONTHS + timedelta(seconds=MINUTE)).files == 2
    assert at.spool.read(image.spool_key, image.sha256) == again
    arrive(at, 0, now=MONTHS + timedelta(seconds=MINUTE))  # its row is recorded now
    purge(at, MONTHS + 2 * DAY)
    assert at.spool.read(image.spool_key, image.sha256) == again


def test_an_image_that_comes_again_is_restored(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    purge(at, MONTHS)
    for number in range(3):
        arrive(at, number, now=MONTHS)
    assert stored(at, Instance) == [True] * 3
    assert len(lines(at, "restore")) == 1
    assert purge(at, MONTHS + DAY) == purging.Gone()  # their time begins anew
    assert purge(at, MONTHS + 31 * DAY).files == 3


def test_a_late_image_of_a_purged_series_fails_and_goes_on_when_all_are_back(
    at: worker.Bench,
) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    purge(at, MONTHS)
    series_id = arrive(at, 3, now=MONTHS)
    with at.sessions.begin() as session:
        job_id = steps.open_job(series_id, session=session, now=MONTHS).id
    worker.analyse(job_id, at)
    failed = shell.rows(at.settings, Job)[-1]
    assert (failed.state, failed.reason_code) == (JobState.FAILED, retention.IMAGES_PURGED)
    assert failed.error.startswith(f"the images were purged on {MONTHS:%Y-%m-%d} by the retention")
    for number in range(2):
        arrive(at, number, now=MONTHS)
    assert shell.rows(at.settings, Job)[-1].state is JobState.FAILED
    arrive(at, 2, now=MONTHS)
    again = shell.rows(at.settings, Job)[-1]
    assert (again.state, again.reason_code, again.attempts) == (JobState.QUEUED, None, 0)


@shell.sqlite_only
def test_a_report_that_was_purged_is_still_named_by_the_one_that_supersedes_it(
    settings: Settings, tmp_path: Path
) -> None:
    images = shell.unannounced(shell.images())
    first = shell.received(settings, images[:-1], tmp_path / "first")
    quick = settings.model_copy(update={"quiet_seconds": 0.001})
    with shell.bench(quick) as at:
        worker.analyse(first.id, at)
        earlier = next(r for r in shell.rows(settings, ArtifactRow) if r.kind is ArtifactKind.SR)
        there = dcmread(BytesIO(at.spool.read(earlier.spool_key, earlier.sha256)))
        with at.sessions.begin() as session:
            session.get_one(ArtifactRow, earlier.id).purged_at = NOW
        at.spool.path(earlier.spool_key).unlink()
        with shell.listening(settings) as port:
            late = shell.save(images[-1:], tmp_path / "late")
            assert shell.storescu(port, late).returncode == 0
        worker.reap(at)
        worker.analyse(shell.rows(settings, Job)[-1].id, at)
        later = [r for r in shell.rows(settings, ArtifactRow) if r.kind is ArtifactKind.SR][-1]
        report = dcmread(BytesIO(at.spool.read(later.spool_key, later.sha256)))
    (named,) = report.PredecessorDocumentsSequence
    (series,) = named.ReferencedSeriesSequence
    (document,) = series.ReferencedSOPSequence
    assert named.StudyInstanceUID == there.StudyInstanceUID
    assert series.SeriesInstanceUID == there.SeriesInstanceUID
    assert document.ReferencedSOPClassUID == there.SOPClassUID
    assert document.ReferencedSOPInstanceUID == there.SOPInstanceUID


# --- the disk fills up ---------------------------------------------------------------------


def below_watermark(at: worker.Bench, monkeypatch: pytest.MonkeyPatch, *, until: int) -> None:
    """A disk that is too full until so many images are left."""

    def free(self: Spool) -> int:
        left = sum(len(shard) for shard in self.shards())
        return 10**12 if left <= until else 0

    monkeypatch.setattr(Spool, "free_bytes", free)


def test_below_the_watermark_the_oldest_finished_images_go_first(
    at: worker.Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        _, sent = a_scored_job(at, series=f"1.2.{number}")
        if number != 1:
            settle(at, sent)
    with at.sessions.begin() as session:
        for delivery_id in sent:
            session.get_one(Delivery, delivery_id).finished_at = NOW - DAY
    below_watermark(at, monkeypatch, until=9 + 9 - 3)
    caplog.set_level(logging.INFO, logger="hipscore")
    assert purging.relieve(at, now=NOW + timedelta(hours=1))
    assert stored(at, Instance) == [False] * 3 + [True] * 6
    assert "images of 1 finished series" in caplog.text
    assert lines(at, "purge")[0]["why"] == "watermark"


def test_what_is_undelivered_stays_below_the_watermark_and_the_log_says_what_to_do(
    at: worker.Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a_scored_job(at)
    below_watermark(at, monkeypatch, until=0)
    stop = threading.Event()
    quick = replace(at, settings=at.settings.model_copy(update={"reap_seconds": 0.01}))
    thread = threading.Thread(target=purging.watch, args=(quick, stop))
    thread.start()
    try:
        servers.wait_until(
            lambda: "nothing more may be purged" in caplog.text, what="the log complains"
        )
    finally:
        stop.set()
        thread.join()
    assert caplog.text.count("nothing more may be purged") == 1
    assert "jobs --undelivered" in caplog.text
    assert all(stored(at, Instance) + stored(at, ArtifactRow))


@shell.sqlite_only  # it is the thread that is new here, not the statements
def test_the_beat_purges_by_age(at: worker.Bench) -> None:
    _, sent = a_scored_job(at)
    settle(at, sent)
    images = shell.rows(at.settings, Instance)
    ages_ago = datetime.now(UTC) - 2 * DAY
    with at.sessions.begin() as session:
        for kind, columns in (
            (Series, ("last_received_at", "closed_at")),
            (Job, ("finished_at",)),
            (Delivery, ("finished_at",)),
        ):
            session.execute(update(kind).values(dict.fromkeys(columns, ages_ago)))
    for image in images:
        os.utime(at.spool.path(image.spool_key), (ages_ago.timestamp(), ages_ago.timestamp()))
    brief = at.settings.model_copy(update={"keep_images_days": 1.0})
    stop = threading.Event()
    beat = threading.Thread(
        target=worker.run_beat, args=(brief,), kwargs={"stop": stop, "card": at.card}
    )
    beat.start()
    try:
        servers.wait_until(
            lambda: not any(at.spool.path(image.spool_key).exists() for image in images),
            what="the images are purged",
        )
    finally:
        stop.set()
        beat.join()
    assert stored(at, Instance) == [False] * 3
