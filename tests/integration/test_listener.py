"""The listener over real sockets: what is acknowledged, what is refused, and what is kept."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, dsutils
from sqlalchemy import Engine

from hipscore import listener, pacs
from hipscore.addresses import Peer
from hipscore.lifecycle import JobState, SeriesState
from hipscore.reporting import uids
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine
from hipscore.store.tables import Event, Instance, Job, Series
from tests import servers
from tests.analytic import CARD
from tests.integration import shell_steps as steps


def states(settings: Settings) -> list[SeriesState]:
    return [series.state for series in steps.rows(settings, Series)]


def wait_for_state(settings: Settings, state: SeriesState) -> None:
    servers.wait_until(lambda: states(settings) == [state], what=f"the series is {state}")


def own_peer(settings: Settings) -> Peer:
    return Peer(ae_title="HIPSCORE", host=servers.LOOPBACK, port=settings.dicom_port)


@steps.sqlite_only
def test_answers_c_echo(settings: Settings) -> None:
    with steps.listening(settings) as port:
        command = [servers.program("echoscu", package="dcmtk"), "--call", "HIPSCORE"]
        subprocess.run([*command, servers.LOOPBACK, str(port)], check=True, timeout=30)


def test_a_released_series_is_kept_bit_for_bit_closed_and_queued(
    settings: Settings, tmp_path: Path
) -> None:
    paths = steps.save(steps.images(), tmp_path / "scanner")
    with steps.listening(settings) as port:
        sent = steps.storescu(port, paths)
        assert sent.returncode == 0
        assert statuses_are(sent, "Success", len(paths))
        wait_for_state(settings, SeriesState.MATCHED)
        servers.wait_until(
            lambda: bool(steps.queued(settings, "analysis")), what="the job is announced"
        )

    (series,) = steps.rows(settings, Series)
    assert series.close_reason in {"expected_count", "association_released_contiguous"}
    spool = Spool(settings.data_dir / "spool")
    kept = {
        steps.data_set(spool.read(row.spool_key, row.sha256))
        for row in steps.rows(settings, Instance)
    }
    assert kept == {steps.data_set(path.read_bytes()) for path in paths}

    (job,) = steps.rows(settings, Job)
    assert job.state is JobState.QUEUED
    (message,) = steps.queued(settings, "analysis")
    assert message["headers"]["task"] == "hipscore.analyse"
    arguments = json.loads(base64.b64decode(message["body"]))[0]
    assert arguments == [job.id]


def statuses_are(sent: subprocess.CompletedProcess[str], status: str, count: int) -> bool:
    return [each.partition(":")[0] for each in steps.statuses(sent)] == [status] * count


@steps.sqlite_only
@pytest.mark.parametrize(
    ("syntax", "option"),
    (
        (ImplicitVRLittleEndian, "--propose-implicit"),
        (RLELossless, "--propose-rle"),
        (JPEGLSLossless, "--propose-jls-lossless"),
        (JPEG2000Lossless, "--propose-j2k-lossless"),
    ),
    ids=lambda value: getattr(value, "name", None),
)
def test_keeps_the_transfer_syntax_of_the_sender(
    settings: Settings, tmp_path: Path, syntax: str, option: str
) -> None:
    made = syntax if syntax != JPEG2000Lossless else ExplicitVRLittleEndian
    paths = steps.save(steps.images(transfer_syntax_uid=made), tmp_path / "scanner")
    if syntax == JPEG2000Lossless:  # pydicom itself has no encoder for it
        gdcmconv = Path(sys.executable).with_name("gdcmconv")
        for path in paths:
            subprocess.run([gdcmconv, "--j2k", path, path], check=True, timeout=30)
    with steps.listening(settings) as port:
        sent = steps.storescu(port, paths, option)
        assert statuses_are(sent, "Success", len(paths)), sent.stderr
        wait_for_state(settings, SeriesState.MATCHED)
    kept = steps.rows(settings, Instance)
    assert {row.transfer_syntax_uid for row in kept} == {syntax}


@steps.sqlite_only
def test_an_enhanced_multi_frame_object_is_complete_at_once(
    settings: Settings, tmp_path: Path
) -> None:
    paths = steps.save(steps.images(enhanced=True), tmp_path / "scanner")
    assert len(paths) == 1
    with steps.listening(settings) as port:
        assert steps.storescu(port, paths).returncode == 0
        wait_for_state(settings, SeriesState.MATCHED)
    assert steps.rows(settings, Series)[0].close_reason == "multi_frame"


def test_offers_only_transfer_syntaxes_it_can_decode() -> None:
    offered = set(listener.transfer_syntaxes())
    assert {ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless} <= offered
    assert "1.2.840.10008.1.2.4.57" in offered
    assert "1.2.840.10008.1.2.4.70" in offered
    assert "1.2.840.10008.1.2.4.100" not in offered  # MPEG-2
    assert "1.2.840.10008.1.2.1.99" not in offered  # deflated


@steps.sqlite_only
def test_refuses_other_sop_classes_at_negotiation(settings: Settings, tmp_path: Path) -> None:
    datasets = steps.images()[:1]
    datasets[0].SOPClassUID = CTImageStorage
    datasets[0].file_meta.MediaStorageSOPClassUID = CTImageStorage
    with steps.listening(settings) as port:
        sent = steps.storescu(port, steps.save(datasets, tmp_path / "scanner"))
    assert sent.returncode != 0
    assert "No valid Presentation Context ID" in sent.stdout + sent.stderr
    assert steps.count(settings, Instance) == 0


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def setting(keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


@steps.sqlite_only
@pytest.mark.parametrize(
    ("damage", "complaint"),
    (
        (without("StudyInstanceUID"), "Study Instance UID (0020,000D) is missing"),
        (setting("StudyInstanceUID", ""), "Study Instance UID (0020,000D) is missing"),
        (without("SeriesInstanceUID"), "Series Instance UID (0020,000E) is missing"),
        (setting("SOPInstanceUID", "1.2.3.4"), "SOP Instance UID differs from the command's"),
    ),
    ids=("no study", "empty study", "no series", "another instance"),
)
def test_what_does_not_say_what_it_is_gets_0xc210(
    settings: Settings,
    tmp_path: Path,
    damage: Callable[[Dataset], None],
    complaint: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    datasets = steps.images()[:3]
    damage(datasets[1])
    paths = steps.save(datasets, tmp_path / "scanner", meta_as_is=True)
    # the file meta still names the instance the command names, whatever the data set says
    with steps.listening(settings):
        outcomes = [
            outcome
            for _, outcome in pacs.send_files(own_peer(settings), paths, calling_aet="SCANNER")
        ]
    assert [outcome.status for outcome in outcomes] == [0x0000, 0xC210, 0x0000]
    assert complaint[:64] in outcomes[1].comment
    assert complaint in caplog.text
    assert "PHANTOM" not in caplog.text
    assert steps.count(settings, Instance) == 2


@steps.sqlite_only
def test_an_unparsable_data_set_gets_0xc210(settings: Settings, tmp_path: Path) -> None:
    (path,) = steps.save(steps.images()[:1], tmp_path / "scanner")
    data = path.read_bytes()
    start = len(data) - len(steps.data_set(data))
    path.write_bytes(data[: start + 100] + b"\xff" * 64 + data[start + 164 :])
    with steps.listening(settings):
        ((_, outcome),) = pacs.send_files(own_peer(settings), [path], calling_aet="SCANNER")
    assert outcome.status == 0xC210
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_a_full_disk_gets_0xa700_and_keeps_nothing(settings: Settings, tmp_path: Path) -> None:
    paths = steps.save(steps.images()[:2], tmp_path / "scanner")
    full = settings.model_copy(update={"reserve_mb": 2**40})
    with steps.listening(full) as port:
        sent = steps.storescu(port, paths)
    assert "0xA700" in sent.stdout + sent.stderr or statuses_are(sent, "Refused", 1), sent.stderr
    assert steps.count(settings, Instance) == 0


def test_a_database_that_is_down_gets_0xa700_until_it_is_back(
    settings: Settings, database: Engine, tmp_path: Path
) -> None:
    paths = steps.save(steps.images(), tmp_path / "scanner")
    engine.downgrade(settings.database)
    with steps.listening(settings):
        peer = own_peer(settings)
        refused = [out for _, out in pacs.send_files(peer, paths[:2], calling_aet="SCANNER")]
        engine.upgrade(settings.database)
        accepted = [out for _, out in pacs.send_files(peer, paths, calling_aet="SCANNER")]
        wait_for_state(settings, SeriesState.MATCHED)
    assert [out.status for out in refused] == [0xA700, 0xA700]
    assert all(out.retry for out in refused)
    assert [out.status for out in accepted] == [0x0000] * len(paths)


@steps.sqlite_only
def test_a_broker_that_is_down_delays_nothing_but_the_announcement(
    settings: Settings, tmp_path: Path
) -> None:
    paths = steps.save(steps.images(), tmp_path / "scanner")
    alone = settings.model_copy(
        update={"broker_url": SecretStr(f"redis+socket://{tmp_path}/no.sock")}
    )
    with steps.listening(alone) as port:
        started = time.monotonic()
        assert steps.storescu(port, paths).returncode == 0
        wait_for_state(settings, SeriesState.MATCHED)
        assert time.monotonic() - started < 10
    (job,) = steps.rows(settings, Job)
    assert job.state is JobState.QUEUED
    assert job.enqueued_at is None  # so the reaper announces it


@steps.sqlite_only
def test_an_abort_proves_nothing(settings: Settings, tmp_path: Path) -> None:
    datasets = steps.images()
    with steps.listening(settings) as port:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        association = entity.associate(servers.LOOPBACK, port, ae_title="HIPSCORE")
        assert association.is_established
        for dataset in datasets:
            assert association.send_c_store(dataset).Status == 0x0000
        association.abort()
        time.sleep(0.5)
    assert states(settings) == [SeriesState.RECEIVING]
    assert steps.count(settings, Instance) == len(datasets)


@steps.sqlite_only
def test_a_series_with_a_gap_stays_open(settings: Settings, tmp_path: Path) -> None:
    datasets = steps.images()
    del datasets[7]
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save(datasets, tmp_path / "scanner")).returncode == 0
    assert states(settings) == [SeriesState.RECEIVING]
    assert steps.count(settings, Job) == 0


@steps.sqlite_only
def test_half_a_series_per_association_is_not_taken_for_the_whole(
    settings: Settings, tmp_path: Path
) -> None:
    datasets = steps.images()
    for dataset in datasets:  # no count to expect
        if "ImagesInAcquisition" in dataset:
            del dataset.ImagesInAcquisition
    paths = steps.save(datasets, tmp_path / "scanner")
    with steps.listening(settings) as port:
        assert steps.storescu(port, paths[::2]).returncode == 0
        assert steps.storescu(port, paths[1::2]).returncode == 0
    assert states(settings) == [SeriesState.RECEIVING]
    assert steps.count(settings, Instance) == len(paths)


def test_the_same_series_again_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    paths = steps.save(steps.images(), tmp_path / "scanner")
    with steps.listening(settings) as port:
        assert steps.storescu(port, paths).returncode == 0
        wait_for_state(settings, SeriesState.MATCHED)
        events = steps.count(settings, Event)
        again = steps.storescu(port, paths)
        assert statuses_are(again, "Success", len(paths))
    assert states(settings) == [SeriesState.MATCHED]
    assert steps.count(settings, Job) == 1
    assert steps.count(settings, Event) == events


def test_other_bytes_under_a_known_uid_keep_the_first(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = steps.images()
    paths = steps.save(datasets, tmp_path / "scanner")
    datasets[0].SeriesDescription = "edited"
    edited = steps.save(datasets[:1], tmp_path / "edited")
    with steps.listening(settings) as port:
        assert steps.storescu(port, paths).returncode == 0
        wait_for_state(settings, SeriesState.MATCHED)
        assert steps.storescu(port, edited).returncode == 0
    assert steps.count(settings, Job) == 1
    assert [event.what for event in steps.rows(settings, Event)].count("conflict") == 1
    assert "the first is kept" in caplog.text


@steps.sqlite_only
def test_an_image_that_puts_its_series_into_another_study_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    datasets = steps.images()[:2]
    datasets[1].StudyInstanceUID = "1.2.3.4"
    paths = steps.save(datasets, tmp_path / "scanner")
    with steps.listening(settings):
        outcomes = [
            outcome
            for _, outcome in pacs.send_files(own_peer(settings), paths, calling_aet="SCANNER")
        ]
    assert [(out.status, out.delivered) for out in outcomes] == [(0x0000, True), (0xC211, False)]
    assert steps.count(settings, Instance) == 1
    misplaced = [event for event in steps.rows(settings, Event) if event.what == "misplaced"]
    assert [event.detail["study_instance_uid"] for event in misplaced] == ["1.2.3.4"]


@steps.sqlite_only
def test_the_same_image_is_the_same_to_another_version_of_the_library(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = steps.save(steps.images()[:1], tmp_path / "scanner")
    with steps.listening(settings) as port:
        assert steps.storescu(port, [path]).returncode == 0
        newer = {"implementation_version": "PYNETDICOM_999", "implementation_uid": "1.2.999"}
        monkeypatch.setattr(
            "pynetdicom.events.create_file_meta",
            lambda **given: dsutils.create_file_meta(**{**given, **newer}),
        )
        assert steps.storescu(port, [path]).returncode == 0
    (kept,) = steps.rows(settings, Instance)
    assert "conflict" not in [event.what for event in steps.rows(settings, Event)]
    stored = dcmread(Spool(settings.data_dir / "spool").path(kept.spool_key))
    assert stored.file_meta.ImplementationClassUID == uids.IMPLEMENTATION_CLASS
    assert stored.file_meta.ImplementationVersionName == "HIPSCORE"
    assert stored.file_meta.MediaStorageSOPInstanceUID == stored.SOPInstanceUID


def test_a_late_image_opens_a_job_that_supersedes_the_first(
    settings: Settings, tmp_path: Path
) -> None:
    paths = steps.save(steps.unannounced(steps.images()), tmp_path / "scanner")
    with steps.listening(settings) as port:
        assert steps.storescu(port, paths[:-1]).returncode == 0
        servers.wait_until(lambda: steps.count(settings, Job) == 1, what="the first job")
        assert steps.storescu(port, paths).returncode == 0
        servers.wait_until(
            lambda: steps.count(settings, Job) == 2 or states(settings) == [SeriesState.RECEIVING],
            what="the late image is recorded",
        )
    late = [event for event in steps.rows(settings, Event) if event.what == "image"]
    assert len(late) == 1
    assert late[0].detail["late"] is True


@steps.sqlite_only
def test_a_scout_is_ignored(settings: Settings, tmp_path: Path) -> None:
    datasets = steps.images()
    for dataset in datasets:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save(datasets, tmp_path / "scanner")).returncode == 0
        wait_for_state(settings, SeriesState.IGNORED)
    assert steps.rows(settings, Series)[0].match_rule == "localizer"
    assert steps.count(settings, Job) == 0


@steps.sqlite_only
def test_an_object_that_is_too_large_is_cut_off_and_the_listener_lives_on(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = steps.images()[:2]
    datasets[0].PixelData = bytes(4 * 1024 * 1024)
    paths = steps.save(datasets, tmp_path / "scanner")
    with steps.listening(settings.model_copy(update={"max_object_mb": 1})) as port:
        assert steps.storescu(port, paths[:1]).returncode != 0
        assert "HIPSCORE_MAX_OBJECT_MB" in caplog.text
        assert steps.storescu(port, paths[1:]).returncode == 0
    assert steps.count(settings, Instance) == 1


@steps.sqlite_only
@pytest.mark.parametrize(
    "noise",
    (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x01\x00\xff\xff\xff\xff" + bytes(1000),  # A-ASSOCIATE-RQ of 4 GB
        b"\x01\x00\x00\x00\x00\x44" + bytes(68),  # A-ASSOCIATE-RQ of zeros
        b"\x04\x00\x00\x00\x00\x06" + bytes(6),  # P-DATA-TF before any association
        bytes(range(256)) * 100,
    ),
    ids=("nothing", "HTTP", "4 GB", "zeros", "data first", "everything"),
)
def test_noise_on_its_port_does_not_harm_it(settings: Settings, noise: bytes) -> None:
    with steps.listening(settings) as port:
        with socket.create_connection((servers.LOOPBACK, port), timeout=5) as connection:
            connection.sendall(noise)
        with socket.create_connection((servers.LOOPBACK, port), timeout=5) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(noise)
            assert pacs.echo(own_peer(settings), calling_aet="SCANNER").delivered


@steps.sqlite_only
def test_a_pdu_that_claims_4_gb_is_cut_off_at_once(settings: Settings) -> None:
    with (
        steps.listening(settings) as port,
        socket.create_connection((servers.LOOPBACK, port), timeout=5) as connection,
    ):
        connection.sendall(b"\x01\x00\xff\xff\xff\xff")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""


@steps.sqlite_only
def test_probes_of_its_port_use_up_no_associations(settings: Settings) -> None:
    with steps.listening(settings.model_copy(update={"max_associations": 2})):
        for _ in range(10):
            with socket.create_connection((servers.LOOPBACK, settings.dicom_port), timeout=5):
                pass
        time.sleep(0.5)
        assert pacs.echo(own_peer(settings), calling_aet="SCANNER").delivered


@steps.sqlite_only
def test_serves_no_more_associations_than_set(settings: Settings) -> None:
    with steps.listening(settings.model_copy(update={"max_associations": 1})) as port:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(MRImageStorage)
        first = entity.associate(servers.LOOPBACK, port, ae_title="HIPSCORE")
        second = entity.associate(servers.LOOPBACK, port, ae_title="HIPSCORE")
        assert first.is_established
        assert second.is_rejected
        first.release()


@steps.sqlite_only
def test_says_in_one_line_that_its_port_is_taken(settings: Settings) -> None:
    with steps.listening(settings) as port, pytest.raises(listener.ListenerError) as taken:
        listener.serve(settings, stop=threading.Event(), card=CARD)
    assert str(port) in str(taken.value)
    assert "HIPSCORE_DICOM_PORT" in str(taken.value)
    assert "\n" not in str(taken.value)


@steps.sqlite_only
def test_lets_an_open_association_finish_when_it_stops(settings: Settings) -> None:
    datasets = steps.images()
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    answers = []

    def send() -> None:
        for dataset in datasets:
            answers.append(association.send_c_store(dataset).get("Status"))
            time.sleep(0.02)
        association.release()

    with steps.listening(settings) as port:
        association = entity.associate(servers.LOOPBACK, port, ae_title="HIPSCORE")
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(0.1)
    sender.join(30)
    assert answers == [0x0000] * len(datasets)
    assert states(settings) == [SeriesState.MATCHED]


def test_takes_several_associations_at_once(settings: Settings, tmp_path: Path) -> None:
    studies = [steps.save(steps.images(seed), tmp_path / str(seed)) for seed in range(4)]
    results: list[int] = []
    with steps.listening(settings) as port:
        senders = [
            threading.Thread(
                target=lambda paths=paths: results.append(steps.storescu(port, paths).returncode)
            )
            for paths in studies
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        servers.wait_until(
            lambda: states(settings) == [SeriesState.MATCHED] * 4, what="all series are matched"
        )
    assert results == [0, 0, 0, 0]
    assert steps.count(settings, Instance) == sum(map(len, studies))


def test_what_was_acknowledged_survives_a_kill(settings: Settings, tmp_path: Path) -> None:
    script = (
        "import os, threading\n"
        "from hipscore import listener\n"
        "from hipscore.settings import Settings\n"
        "from tests.analytic import CARD\n"
        "listener.serve(Settings(), stop=threading.Event(), card=CARD)\n"
    )
    own = {
        "HIPSCORE_DATA_DIR": str(settings.data_dir),
        "HIPSCORE_DATABASE_URL": settings.database,
        "HIPSCORE_BROKER_URL": settings.broker,
        "HIPSCORE_DICOM_PORT": str(settings.dicom_port),
        "HIPSCORE_RESERVE_MB": "1",
    }
    paths = [
        path for seed in range(5) for path in steps.save(steps.images(seed), tmp_path / str(seed))
    ]
    with (tmp_path / "listener.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **own}, stdout=log, stderr=log
        )
        try:
            servers.wait_until(
                lambda: servers.listens(settings.dicom_port), what="the listener is up"
            )
            sender = subprocess.Popen(
                [
                    servers.program("storescu", package="dcmtk"),
                    "--verbose",
                    "--call",
                    "HIPSCORE",
                    servers.LOOPBACK,
                    str(settings.dicom_port),
                    *map(str, paths),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            servers.wait_until(
                lambda: steps.count(settings, Instance) >= 10, what="some images are in"
            )
            process.send_signal(signal.SIGKILL)
            said, _ = sender.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    acknowledged = said.count("Received Store Response (Success)")
    kept = steps.rows(settings, Instance)
    assert 0 < acknowledged <= len(kept) <= acknowledged + 1
    spool = Spool(settings.data_dir / "spool")
    for row in kept:
        spool.read(row.spool_key, row.sha256)
