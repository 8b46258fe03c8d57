"""The worker: one job, one delivery, one reap at a time, then all of it in real processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SecurityWarning
from pydicom import dcmread

from hipscore import phantom, pipeline, worker
from hipscore.domain import ArtifactKind, FloatArray, Transient
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.settings import Peer, Settings
from hipscore.spool import Spool
from hipscore.store.tables import ArtifactRow, Delivery, Event, Job, Series
from tests import servers
from tests.analytic import CARD, Oracle
from tests.integration import shell_steps as steps

NAME = "Secret^Patient"

#: pynetdicom leaves a socket that was refused to the garbage collector
refused_sockets = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


@dataclass(frozen=True)
class Failing(Oracle):
    """An Oracle whose segmentation fails."""

    error: Exception = field(default_factory=RuntimeError)

    def segment(self, crops: FloatArray) -> FloatArray:
        raise self.error


def sent_to(settings: Settings, *peers: str, **more: Any) -> Settings:
    return settings.model_copy(
        update={"destinations": tuple(Peer.parse(peer) for peer in peers), **more}
    )


def artifacts(settings: Settings) -> dict[ArtifactKind, bytes]:
    spool = Spool(settings.data_dir / "spool")
    return {
        row.kind: spool.read(row.spool_key, row.sha256) for row in steps.rows(settings, ArtifactRow)
    }


def study(seed: int = 1, **more: Any) -> tuple[phantom.Phantom, list[Any]]:
    truth = steps.make_phantom(seed)
    return truth, phantom.to_datasets(truth, patient_name=NAME, **more)


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
        "read", "assemble", "locate", "segment", "score", "seg", "sr", "overlay", "store",
    }  # fmt: skip
    expected = pipeline.analyse(images, oracle).findings
    assert done.result["status"] == "scored"
    assert done.result["unet_score"] == pytest.approx(expected.unet_score)
    assert [hip["side"] for hip in done.result["hips"]] == ["right", "left"]
    assert done.result["model"] == {"id": CARD.id, "version": CARD.version, "sha256": CARD.sha256}

    made = artifacts(settings)
    assert set(made) == {ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.OVERLAY}
    for kind in (ArtifactKind.SEG, ArtifactKind.SR):
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
    assert len(steps.queued(settings, "delivery")) == 4


@steps.sqlite_only
def test_what_has_no_hip_is_reported_as_not_scorable(settings: Settings, tmp_path: Path) -> None:
    images = phantom.to_datasets(steps.make_phantom(anatomy="brain"))
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(sent_to(settings, "PACS@127.0.0.1:1")) as at:
        worker.analyse(job.id, at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.NOT_SCORABLE
    assert done.reason_code == "no_hip_found"
    assert done.result["status"] == "not_scorable"
    assert ArtifactKind.SEG not in artifacts(settings)
    assert steps.count(settings, Delivery) == 1  # the SR that says why


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
    truth, images = study(patient_id="MRN-4711", accession_number="ACC-4711")
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    stored = [str(vars(row)) for kind in (Series, Job, Event) for row in steps.rows(settings, kind)]
    for text in (caplog.text, *stored):
        assert NAME not in text
        assert "4711" not in text


def test_a_late_image_makes_a_report_that_names_its_predecessor(
    settings: Settings, tmp_path: Path
) -> None:
    _, images = study()
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


def test_a_job_for_another_bundle_is_replaced_by_one_for_this_bundle(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    newer = steps.knowing((truth, images), card=replace(CARD, version="2", sha256="f" * 64))
    with steps.bench(settings, newer) as at:
        worker.analyse(job.id, at)
        old, new = steps.rows(settings, Job)
        assert old.state is JobState.FAILED
        assert "analytic 1" in old.error
        assert "analytic 2" in old.error
        worker.analyse(new.id, at)
    done = steps.rows(settings, Job)[-1]
    assert done.state is JobState.ANALYSED
    assert done.result["model"]["version"] == "2"


# --- deliveries --------------------------------------------------------------------------


@contextlib.contextmanager
def analysed(settings: Settings, tmp_path: Path) -> Iterator[worker.Bench]:
    """A bench whose database holds one finished job with its deliveries pending."""
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
        yield at


def deliver_all(at: worker.Bench, settings: Settings) -> list[Delivery]:
    for row in steps.rows(settings, Delivery):
        worker.deliver(row.id, at)
    rows: list[Delivery] = steps.rows(settings, Delivery)
    return rows


@steps.sqlite_only
def test_the_stored_bytes_arrive_unchanged(
    settings: Settings, storescp: servers.StoreScp, tmp_path: Path
) -> None:
    with analysed(sent_to(settings, storescp.peer), tmp_path) as at:
        done = deliver_all(at, settings)
        assert [row.state for row in done] == [DeliveryState.SENT] * 2
        assert [row.status for row in done] == [0x0000] * 2
        worker.deliver(done[0].id, at)  # a second message for the same delivery
    made = artifacts(settings)
    arrived = [steps.data_set(path.read_bytes()) for path in storescp.received()]
    assert arrived == [
        steps.data_set(made[ArtifactKind.SEG]),
        steps.data_set(made[ArtifactKind.SR]),
    ]


@steps.sqlite_only
def test_orthanc_has_seg_and_sr_beside_the_images(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    with analysed(sent_to(settings, orthanc.peer), tmp_path) as at:
        done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.SENT] * 2
    uid = steps.rows(settings, Series)[0].study_instance_uid
    (found,) = orthanc.find("Study", StudyInstanceUID=uid)
    series = [orthanc.get(f"/series/{each}") for each in orthanc.get(f"/studies/{found}")["Series"]]
    assert {each["MainDicomTags"]["Modality"] for each in series} == {"SEG", "SR"}


@refused_sockets
def test_a_destination_that_is_down_is_served_when_it_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "later"
    root.mkdir()
    with servers.storescp(root) as running:
        peer = running.peer
        running.process.stop()
        with analysed(sent_to(settings, peer), tmp_path) as at:
            waiting = deliver_all(at, settings)
            assert [row.state for row in waiting] == [DeliveryState.PENDING] * 2
            assert all(row.next_attempt_at is not None for row in waiting)
            assert all("cannot be reached" in (row.error or "") for row in waiting)
            running.process.start()
            for row in waiting:
                wake(at, row.id)
            done = deliver_all(at, settings)
        assert [row.state for row in done] == [DeliveryState.SENT] * 2
        assert len(running.received()) == 2


def wake(at: worker.Bench, delivery_id: int) -> None:
    """Time passes: the next attempt is due."""
    with at.sessions.begin() as session:
        session.get_one(Delivery, delivery_id).next_attempt_at = None


@refused_sockets
def test_a_delivery_is_exhausted_after_its_last_attempt(settings: Settings, tmp_path: Path) -> None:
    nobody = f"NOBODY@127.0.0.1:{servers.free_port()}"
    with analysed(sent_to(settings, nobody, max_attempts=2), tmp_path) as at:
        deliver_all(at, settings)
        for row in steps.rows(settings, Delivery):
            wake(at, row.id)
        done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.EXHAUSTED] * 2
    assert [row.attempts for row in done] == [2, 2]


@steps.sqlite_only
def test_a_peer_that_takes_no_reports_refuses_for_good(settings: Settings, tmp_path: Path) -> None:
    own = f"HIPSCORE@127.0.0.1:{settings.dicom_port}"  # takes MR images only
    with analysed(sent_to(settings, own), tmp_path) as at, steps.listening(settings):
        done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.REFUSED] * 2
    assert "does not accept Comprehensive 3D SR Storage" in (done[1].error or "")


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
        for _ in range(3):
            with contextlib.suppress(SystemExit):
                worker.analyse(job.id, at)
            time.sleep(0.01)
            worker.reap(at)
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.FAILED
    assert done.attempts == 3


# --- real processes ----------------------------------------------------------------------


def _quietly(run: Callable[[], object]) -> None:
    """Celery warns those who are root, as the tests may be; here that would be an error."""
    warnings.simplefilter("ignore", SecurityWarning)
    run()


@contextlib.contextmanager
def processes(settings: Settings, oracle: Oracle, workers: int = 1) -> Iterator[list[Any]]:
    """Workers and beat as processes of their own."""
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(
            target=_quietly,
            args=(lambda: worker.run_worker(settings, 1, segmenter=lambda: oracle),),
        )
        for _ in range(workers)
    ]
    running.append(fork.Process(target=_quietly, args=(lambda: worker.run_beat(settings),)))
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


def test_a_sent_series_comes_back_to_the_pacs(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    truth, images = study()
    configured = sent_to(settings, orthanc.peer, reap_seconds=1.0)
    oracle = steps.knowing((truth, images))
    with processes(configured, oracle):
        steps.received(configured, images, tmp_path / "scanner")
        servers.wait_until(
            lambda: (
                [row.state for row in steps.rows(settings, Delivery)] == [DeliveryState.SENT] * 2
            ),
            what="SEG and SR are delivered",
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
    configured = settings.model_copy(update={"reap_seconds": 0.5, "lease_seconds": 2.0})
    steps.received(configured, images, tmp_path / "scanner")
    with processes(configured, slow) as (first, _):
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
