"""The worker: one job, one delivery, one reap at a time, then all of it in real processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SecurityWarning
from pydantic import SecretStr
from pydicom import dcmread
from sqlalchemy import select

from hipscore import phantom, pipeline, queue, worker
from hipscore.cli import supervise
from hipscore.domain import ArtifactKind, Engine, FloatArray, Transient
from hipscore.keeping import Closing
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import jobs
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series
from hipscore.worker import process as worker_process
from hipscore.worker import reaping
from hipscore.worker.bench import now_utc
from tests import servers
from tests.analytic import CARD, Oracle
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import NAME, artifacts, sent_to, study


@dataclass(frozen=True)
class Failing(Oracle):
    """An Oracle whose segmentation fails."""

    error: Exception = field(default_factory=RuntimeError)

    def segment(self, crops: FloatArray) -> FloatArray:
        raise self.error


def test_a_job_becomes_a_score_with_seg_sr_and_overlay(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    oracle = steps.knowing((truth, images))
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(settings, oracle) as at:
        worker.analyse(job.id, at)

    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.ANALYSED
    assert done.lease is None
    assert set(done.timings) == {
        "read", "assemble", "locate", "segment", "score",
        "quality", "orders", "seg", "sr", "overlay", "pdf", "store",
    }  # fmt: skip
    expected = pipeline.analyse(images, oracle).findings
    assert done.result["status"] == "scored"
    assert done.result["unet_score"] == pytest.approx(expected.unet_score)
    assert [hip["side"] for hip in done.result["hips"]] == ["right", "left"]
    assert done.result["model"] == {"id": CARD.id, "version": CARD.version, "sha256": CARD.sha256}

    made = artifacts(settings)
    assert set(made) >= {
        ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SR_FALLBACK, ArtifactKind.OVERLAY,
    }  # fmt: skip
    for kind in (ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SR_FALLBACK):
        document = dcmread(BytesIO(made[kind]))
        assert document.StudyInstanceUID == images[0].StudyInstanceUID
        assert str(document.PatientName) == NAME
    assert made[ArtifactKind.OVERLAY].startswith(b"\x89PNG")


def test_only_seg_and_sr_are_sent_once_to_every_destination(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    configured = sent_to(settings, "PACS@127.0.0.1:1", "ARCHIVE@127.0.0.1:2")
    with steps.bench(configured, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
        worker.analyse(job.id, at)  # a second message for the same job
    kinds = {row.id: row.kind for row in steps.rows(settings, ArtifactRow)}
    deliveries = steps.rows(settings, Delivery)
    assert sorted((kinds[row.artifact_id].value, row.destination) for row in deliveries) == [
        ("seg", "ARCHIVE@127.0.0.1:2"),
        ("seg", "PACS@127.0.0.1:1"),
        ("sr", "ARCHIVE@127.0.0.1:2"),
        ("sr", "PACS@127.0.0.1:1"),
    ]
    assert len(steps.queued(settings, "delivery")) == 2  # one message for each destination


@steps.sqlite_only
def test_what_has_no_hip_is_reported_as_not_scorable(settings: Settings, tmp_path: Path) -> None:
    images = phantom.to_datasets(steps.make_phantom(anatomy="brain"))
    for each in images:
        each.BodyPartExamined = "PELVIS"  # as it happens
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(sent_to(settings, "PACS@127.0.0.1:1")) as at:
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.NOT_SCORABLE
    assert done.reason_code == "no_hip_found"
    assert done.result["status"] == "not_scorable"
    assert ArtifactKind.SEG not in artifacts(settings)
    assert steps.count(settings, Delivery) == 1  # the SR that says why


class Unasked(Oracle):
    """Networks that nobody shall ask."""

    @property
    def engine(self) -> Engine:
        raise AssertionError("no network was asked")


@steps.sqlite_only
def test_a_series_declined_before_any_network_names_no_engine(
    settings: Settings, tmp_path: Path
) -> None:
    _, images = study()
    images[3].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(settings, Unasked()) as at:
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.NOT_SCORABLE
    assert done.result["engine"] is None
    assert done.engine is None
    assert b"engine=" not in artifacts(settings)[ArtifactKind.SR]


def test_an_analysis_repeated_after_a_crash_makes_no_twin(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    made: list[set[str]] = []
    real = pipeline.report

    def remember(*given: Any, **named: Any) -> Any:
        built = real(*given, **named)
        made.append({each.sop_instance_uid for each in built if each.sop_instance_uid})
        return built

    monkeypatch.setattr(pipeline, "report", remember)
    impatient = settings.model_copy(update={"lease_seconds": 0.001})
    with steps.bench(impatient, steps.knowing((truth, images))) as at:
        real_put = Spool.put
        monkeypatch.setattr(Spool, "put", _killed)
        with pytest.raises(SystemExit):
            worker.analyse(job.id, at)
        assert steps.rows(settings, Job)[0].state is JobState.ANALYSING
        monkeypatch.setattr(Spool, "put", real_put)
        worker.reap(at)
        assert steps.rows(settings, Job)[0].state is JobState.QUEUED
        worker.analyse(job.id, at)
    assert steps.rows(settings, Job)[0].state is JobState.ANALYSED
    assert made[0] == made[1]
    assert {row.sop_instance_uid for row in steps.rows(settings, ArtifactRow)} - {None} == made[0]


def _killed(*_: object) -> None:
    raise SystemExit


@steps.sqlite_only
def test_a_damaged_image_fails_the_job_and_says_which(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    victim = next(
        path
        for path in sorted((settings.data_dir / "spool").rglob("*"))
        if path.is_file() and path.stat().st_size > 1000
    )
    victim.chmod(0o600)
    victim.write_bytes(b"rot")
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.FAILED
    assert done.error.startswith("Corrupt: ")
    assert done.lease is None


def test_something_transient_is_tried_again_later(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    busy = Failing(heads=known.heads, error=Transient("the accelerator is busy"))
    with steps.bench(settings, busy) as at:
        worker.analyse(job.id, at)
        (waiting,) = steps.rows(settings, Job)
        assert waiting.state is JobState.QUEUED
        assert waiting.next_attempt_at is not None
        assert "the accelerator is busy" in waiting.error
        worker.analyse(job.id, at)  # too early
    assert steps.rows(settings, Job)[0].attempts == 1


@steps.sqlite_only
def test_a_defect_fails_one_job_and_tells_nothing_about_the_patient(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="hipscore")
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    broken = Failing(heads=known.heads, error=ValueError(f"cannot convert {NAME}"))
    with steps.bench(settings, broken) as at:
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.FAILED
    assert done.error.startswith("ValueError at test_worker.py:")
    assert "in segment" in caplog.text  # the stack is there
    assert NAME not in caplog.text
    assert not any(NAME in str(event.detail) for event in steps.rows(settings, Event))


def test_no_name_or_id_of_the_patient_is_logged_or_stored(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    truth, images = study(patient_id="MRN-KQZW", accession_number="ACC-KQZW")
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    stored = [str(vars(row)) for kind in (Series, Job, Event) for row in steps.rows(settings, kind)]
    for text in (caplog.text, *stored):
        assert NAME not in text
        assert "KQZW" not in text  # letters that are in no UID, digest or number


def test_a_late_image_makes_a_report_that_names_its_predecessor(
    settings: Settings, tmp_path: Path
) -> None:
    _, images = study()
    images = steps.unannounced(images)
    first = steps.received(settings, images[:-1], tmp_path / "first")
    with steps.bench(settings.model_copy(update={"quiet_seconds": 0.001})) as at:
        worker.analyse(first.id, at)
        with steps.listening(settings) as port:
            paths = steps.save(images[-1:], tmp_path / "late")
            assert steps.storescu(port, paths).returncode == 0
        worker.reap(at)
        second = steps.rows(settings, Job)[-1]
        assert second.supersedes_id == first.id
        worker.analyse(second.id, at)
    reports = [
        dcmread(BytesIO(Spool(settings.data_dir / "spool").read(row.spool_key, row.sha256)))
        for row in steps.rows(settings, ArtifactRow)
        if row.kind is ArtifactKind.SR
    ]
    assert len(reports) == 2
    ((earlier,),) = (
        item.ReferencedSeriesSequence[0].ReferencedSOPSequence
        for item in reports[1].PredecessorDocumentsSequence
    )
    assert earlier.ReferencedSOPInstanceUID == reports[0].SOPInstanceUID
    result = steps.rows(settings, Job)[-1].result
    assert result["supersedes"] == reports[0].SOPInstanceUID


def test_a_job_follows_the_bundle_forth_and_back_until_it_has_a_result(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    newer = replace(CARD, version="2", sha256="f" * 64)
    heads = steps.knowing((truth, images)).heads
    busy = Failing(heads=heads, card=newer, error=Transient("the accelerator is busy"))
    with steps.bench(settings, busy) as at:
        worker.analyse(job.id, at)
        (waiting,) = steps.rows(settings, Job)
        assert (waiting.state, waiting.bundle_version) == (JobState.QUEUED, "2")
        assert waiting.key != job.key
        with at.sessions.begin() as session:  # time passes
            session.get_one(Job, job.id).next_attempt_at = None
    with steps.bench(settings, steps.knowing((truth, images))) as at:  # the update is taken back
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.ANALYSED
    assert done.result["model"]["version"] == CARD.version
    assert done.key == job.key
    moved = [event.detail for event in steps.rows(settings, Event) if event.what == "rebind"]
    assert moved == [
        {"from": "analytic 1", "to": "analytic 2"},
        {"from": "analytic 2", "to": "analytic 1"},
    ]


@dataclass(frozen=True)
class Lengthy(Oracle):
    """An Oracle that takes longer than the lease in two stages; the reaper looks meanwhile."""

    looks: list[Callable[[], None]] = field(default_factory=list)

    def localise(self, planes: FloatArray) -> FloatArray:
        time.sleep(1.2)
        return super().localise(planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        if self.looks:
            time.sleep(3.2)
            self.looks.pop()()
        return super().segment(crops)


@steps.sqlite_only
def test_a_long_analysis_keeps_its_lease_from_stage_to_stage(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    slow = Lengthy(heads=known.heads, structures=known.structures)
    with steps.bench(settings.model_copy(update={"lease_seconds": 6.0}), slow) as at:
        slow.looks.append(lambda: worker.reap(at))
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert (done.state, done.attempts) == (JobState.ANALYSED, 1)


# --- reaper ------------------------------------------------------------------------------


def test_the_reaper_closes_what_is_quiet_and_announces_it(
    settings: Settings, tmp_path: Path
) -> None:
    images = steps.images()
    del images[7]  # a gap: no proof of completeness
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save(images, tmp_path / "scanner")).returncode == 0
    with steps.bench(settings) as at:
        worker.reap(at)
    assert steps.rows(settings, Series)[0].state is SeriesState.RECEIVING
    with steps.bench(settings.model_copy(update={"quiet_seconds": 0.001})) as at:
        worker.reap(at)
        worker.reap(at)
    (series,) = steps.rows(settings, Series)
    assert series.state is SeriesState.MATCHED
    assert series.close_reason == "quiet_period"
    assert steps.count(settings, Job) == 1
    assert len(steps.queued(settings, "analysis")) == 1


@steps.sqlite_only
def test_an_empty_broker_has_lost_what_was_announced(
    settings: Settings, redis: servers.Redis, tmp_path: Path
) -> None:
    steps.received(settings, steps.images(), tmp_path / "scanner")
    with steps.bench(settings) as at:

        def announced(seconds: float) -> int:
            with at.sessions.begin() as session:
                job = session.scalars(select(Job)).one()
                job.enqueued_at = now_utc() - timedelta(seconds=seconds)
            worker.reap(at)
            return len(steps.queued(settings, "analysis"))

        assert queue.waiting(at.broker, "analysis") == announced(20) == 1
        redis.clear()
        assert queue.waiting(at.broker, "analysis") == announced(2) == 0
        assert announced(20) == 1


def test_the_reaper_announces_again_what_the_broker_lost(
    settings: Settings, redis: servers.Redis, tmp_path: Path
) -> None:
    steps.received(settings, steps.images(), tmp_path / "scanner")
    redis.clear()
    with steps.bench(settings) as at:
        with at.sessions.begin() as session:  # announced long ago
            session.get_one(Job, 1).enqueued_at = None
        worker.reap(at)
    assert len(steps.queued(settings, "analysis")) == 1


@steps.sqlite_only
def test_a_job_that_kills_every_worker_is_given_up(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    deadly = Failing(heads=known.heads)
    object.__setattr__(deadly, "error", SystemExit())
    impatient = settings.model_copy(update={"lease_seconds": 0.001})
    with steps.bench(impatient, deadly) as at:
        for _ in range(5):
            with contextlib.suppress(SystemExit):
                worker.analyse(job.id, at)
            time.sleep(0.01)
            worker.reap(at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.FAILED
    assert done.attempts == 5


@steps.sqlite_only
def test_a_series_that_cannot_be_closed_holds_up_nothing_else(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with steps.listening(settings) as port:
        for seed in (1, 2):
            images = steps.images(seed)
            del images[7]  # a gap: no proof of completeness
            assert steps.storescu(port, steps.save(images, tmp_path / str(seed))).returncode == 0
    real = Closing.close

    def close(self: Closing, series_id: int, *given: Any, **named: Any) -> Job | None:
        if series_id == 1:
            raise ValueError(NAME)
        return real(self, series_id, *given, **named)

    def broken(**_: Any) -> list[int]:
        raise KeyError(NAME)

    monkeypatch.setattr(Closing, "close", close)
    monkeypatch.setattr(jobs, "expire_leases", broken)
    with steps.bench(settings.model_copy(update={"quiet_seconds": 0.001})) as at:
        worker.reap(at)
    states = [series.state for series in steps.rows(settings, Series)]
    assert states == [SeriesState.RECEIVING, SeriesState.MATCHED]
    assert len(steps.queued(settings, "analysis")) == 1


@steps.sqlite_only
def test_series_that_cannot_be_closed_leave_room_for_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def close(self: Closing, series_id: int, *_: Any, **__: Any) -> None:
        tried.append(series_id)
        raise ValueError(NAME)

    monkeypatch.setattr(Closing, "close", close)
    monkeypatch.setattr(reaping, "REAP_BATCH", 2)
    with steps.bench(settings) as at:
        with at.sessions.begin() as session:
            for number in range(5):
                series = f"{store_steps.SERIES}.{number}"
                store_steps.receive(store_steps.image(1, series=series), session=session)
        for _ in range(4):
            worker.reap(at)
    assert sorted(tried) == [1, 2, 3, 4, 5]


@steps.sqlite_only
def test_a_clock_that_goes_back_puts_nothing_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with steps.bench(settings) as at:
        worker.reap(at)
        with at.sessions.begin() as session:
            job = store_steps.a_job(session=session)
            job.next_attempt_at = now_utc() + timedelta(seconds=20)
        monkeypatch.setattr(reaping, "now_utc", lambda: now_utc() - timedelta(hours=2))
        worker.reap(at)
        assert "the clock went back; brought back as well: 1 attempts" in caplog.text
        assert len(steps.queued(settings, "analysis")) == 1


@steps.sqlite_only
def test_beat_reaps_while_the_broker_is_down(settings: Settings, tmp_path: Path) -> None:
    images = steps.images()
    del images[7]
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save(images, tmp_path / "scanner")).returncode == 0
    alone = settings.model_copy(
        update={
            "broker_url": SecretStr(f"redis+socket://{tmp_path}/no.sock"),
            "quiet_seconds": 0.1,
            "reap_seconds": 0.1,
        }
    )
    with steps.beating(alone), steps.beating(alone):  # two do no harm
        servers.wait_until(
            lambda: steps.rows(settings, Series)[0].state is SeriesState.MATCHED,
            what="the quiet series is closed",
        )
    assert steps.count(settings, Job) == 1


@steps.sqlite_only
def test_beat_stops_while_a_reap_hangs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, release = threading.Event(), threading.Event()

    def hang(_: worker.Bench) -> None:
        hanging.set()
        release.wait(30)

    monkeypatch.setattr(worker_process, "reap", hang)
    with steps.beating(settings):
        assert hanging.wait(30)
    release.set()


@steps.sqlite_only
def test_hipscore_beat_obeys_sigterm(settings: Settings) -> None:
    environment = {**os.environ, **supervise.environment(settings)}
    command = supervise.service("beat")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as beat:
        assert beat.stderr is not None
        assert any("reaping every" in line for line in beat.stderr)
        beat.send_signal(signal.SIGTERM)
        assert beat.wait(30) == 0


# --- real processes ----------------------------------------------------------------------


def _quietly(run: Callable[[], object]) -> None:
    """Celery warns those who are root, as the tests may be; here that would be an error."""
    warnings.simplefilter("ignore", SecurityWarning)
    run()


def _no_networks() -> Oracle:
    raise AssertionError("a worker that only delivers loads no networks")


@contextlib.contextmanager
def processes(settings: Settings, oracle: Oracle, workers: int = 1) -> Iterator[list[Any]]:
    """Workers, one for each queue, and beat as processes of their own."""
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(
            target=_quietly,
            args=(
                partial(
                    worker.run_worker, settings, queues=("analysis",), segmenter=lambda: oracle
                ),
            ),
        )
        for _ in range(workers)
    ]
    delivery = partial(worker.run_worker, settings, queues=("delivery",), segmenter=_no_networks)
    beat = partial(worker.run_beat, settings, stop=threading.Event(), card=oracle.card)
    running += [fork.Process(target=_quietly, args=(each,)) for each in (delivery, beat)]
    for process in running:
        process.start()
    try:
        yield running
    finally:
        for process in running:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGTERM)
        for process in running:
            process.join(30)
            if process.is_alive():
                process.kill()


def test_a_sent_series_comes_back_to_the_pacs_which_commits_to_it(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    truth, images = study()
    orthanc.add_modality("hipscore", ae_title="HIPSCORE", port=settings.dicom_port)
    configured = sent_to(settings, orthanc.peer, reap_seconds=1.0)
    oracle = steps.knowing((truth, images))
    with processes(configured, oracle), steps.listening(configured, card=oracle.card) as port:
        assert steps.storescu(port, steps.save(images, tmp_path / "scanner")).returncode == 0
        servers.wait_until(
            lambda: (
                [row.state for row in steps.rows(settings, Delivery)]
                == [DeliveryState.COMMITTED] * 2
            ),
            what="SEG and SR are delivered and committed",
            seconds=60,
        )
    (study_id,) = orthanc.find("Study", StudyInstanceUID=str(images[0].StudyInstanceUID))
    assert len(orthanc.get(f"/studies/{study_id}")["Series"]) == 2


@dataclass(frozen=True)
class Slow(Oracle):
    """An Oracle that takes its time until a file appears."""

    until: Path = Path()

    def segment(self, crops: FloatArray) -> FloatArray:
        self.until.with_suffix(".started").touch()
        while not self.until.exists():
            time.sleep(0.05)
        return super().segment(crops)


def test_a_worker_killed_in_the_middle_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    known = steps.knowing((truth, images))
    slow = Slow(heads=known.heads, structures=known.structures, until=tmp_path / "go")
    # the lease would hold for minutes: that its holder is dead is seen
    configured = settings.model_copy(update={"reap_seconds": 0.5, "lease_seconds": 600.0})
    steps.received(configured, images, tmp_path / "scanner")
    with processes(configured, slow) as (first, *_):
        servers.wait_until((tmp_path / "go.started").exists, what="the analysis runs")
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        for pid in [*map(int, children), first.pid]:
            os.kill(pid, signal.SIGKILL)
        first.join(10)
    assert steps.rows(settings, Job)[0].state is JobState.ANALYSING
    (tmp_path / "go").touch()
    with processes(configured, slow):
        servers.wait_until(
            lambda: steps.rows(settings, Job)[0].state is JobState.ANALYSED,
            what="another worker finishes the job",
            seconds=60,
        )
    (job,) = steps.rows(settings, Job)
    assert job.attempts == 2
