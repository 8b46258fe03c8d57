"""What comes over the wire in odd pieces, too slowly, from too many, or from strangers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, dsutils
from pynetdicom.association import Association
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session, sessionmaker

from hipscore import listener, pacs
from hipscore.addresses import Peer
from hipscore.keeping.recorder import Recorder
from hipscore.lifecycle import SeriesState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine
from hipscore.store.recording import Recorded, Verdict, record_all
from hipscore.store.tables import Event, Instance, Series
from tests import servers
from tests.analytic import CARD
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.test_listener import wait_for_state

Maker = sessionmaker[Session]

COMMAND, LAST = 1, 2


@contextlib.contextmanager
def association(settings: Settings) -> Iterator[Association]:
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    entity.dimse_timeout, entity.acse_timeout = 10, 1
    made = entity.associate(servers.LOOPBACK, settings.dicom_port, ae_title="HIPSCORE")
    assert made.is_established
    connection = made.dul.socket.socket if made.dul.socket is not None else None
    yield made
    if not (made.is_released or made.is_aborted):
        made.release()
    if connection is not None:
        connection.close()  # pynetdicom leaves it open when the other side was faster


def wire(made: Association) -> socket.socket:
    """The connection under an association whose own thread is told to leave it alone."""
    made._reactor_checkpoint.clear()
    servers.wait_until(lambda: bool(made._is_paused), what="the association is paused")
    connection: socket.socket | None = getattr(made.dul.socket, "socket", None)
    assert connection is not None
    return connection


def status(made: Association) -> int | None:
    """The next answer, or None when there is none."""
    _, message = made.dimse.get_msg(block=True)
    made._reactor_checkpoint.set()
    answer: int | None = getattr(message, "Status", None)
    return answer


def encoded(image: Dataset) -> bytes:
    data = dsutils.encode(image, is_implicit_vr=False, is_little_endian=True)
    assert data is not None
    return data


def command(image: Dataset, message_id: int = 1) -> bytes:
    """A C-STORE-RQ command set, in Implicit VR Little Endian (PS3.7 6.3.1)."""
    body = b""
    for element, value in (
        (0x0002, str(image.SOPClassUID).encode()),
        (0x0100, struct.pack("<H", 1)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 0)),
        (0x1000, str(image.SOPInstanceUID).encode()),
    ):
        padded = value + b"\0" * (len(value) % 2)
        body += struct.pack("<HHL", 0, element, len(padded)) + padded
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def item(fragment: bytes, control: int, context: int = 1) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context, control) + fragment


def pdu(*items: bytes) -> bytes:
    body = b"".join(items)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def in_one_pdu(image: Dataset) -> list[bytes]:
    return [pdu(item(command(image), COMMAND | LAST), item(encoded(image), LAST))]


def in_small_fragments(image: Dataset) -> list[bytes]:
    data = pieces(encoded(image), 777)
    items = [item(each, 0) for each in data[:-1]] + [item(data[-1], LAST)]
    start = pdu(item(command(image), COMMAND | LAST))
    return [start, *(pdu(*items[n : n + 3]) for n in range(0, len(items), 3))]


def with_empty_fragments(image: Dataset) -> list[bytes]:
    return [
        pdu(item(command(image), COMMAND | LAST)),
        pdu(item(b"", 0), item(encoded(image), 0)),
        pdu(item(b"", LAST)),
    ]


def with_a_command_in_pieces(image: Dataset) -> list[bytes]:
    first, *rest = pieces(command(image), 20)
    commands = [item(first, COMMAND), *(item(each, COMMAND) for each in rest[:-1])]
    return [pdu(*commands), pdu(item(rest[-1], COMMAND | LAST)), pdu(item(encoded(image), LAST))]


def byte_by_byte(image: Dataset) -> list[bytes]:
    whole = b"".join(in_one_pdu(image))
    return [whole[n : n + 1] for n in range(200)] + [whole[200:]]


FORMS: tuple[Callable[[Dataset], list[bytes]], ...] = (
    in_one_pdu,
    in_small_fragments,
    with_empty_fragments,
    with_a_command_in_pieces,
    byte_by_byte,
)


@steps.sqlite_only
def test_however_an_image_is_cut_up_it_is_the_same_image(settings: Settings) -> None:
    image = steps.images()[0]
    with steps.listening(settings), association(settings) as made:
        assert made.send_c_store(image).get("Status") == 0
        for form in FORMS:
            connection = wire(made)
            for part in form(image):
                connection.sendall(part)
            assert status(made) == 0, form.__name__
    (row,) = steps.rows(settings, Instance)
    kept = Spool(settings.data_dir / "spool").read(row.spool_key, row.sha256)
    assert steps.data_set(kept) == encoded(image)
    (series,) = steps.rows(settings, Series)
    assert series.state is SeriesState.RECEIVING
    assert all(each.what == "open" for each in steps.rows(settings, Event))


@steps.sqlite_only
@pytest.mark.parametrize("cut", (3, 9, 40, 250, 5000))
def test_a_connection_that_ends_in_mid_message_leaves_nothing(settings: Settings, cut: int) -> None:
    image = steps.images()[0]
    with steps.listening(settings):
        with association(settings) as made:
            connection = wire(made)
            connection.sendall(b"".join(in_one_pdu(image))[:cut])
            connection.shutdown(socket.SHUT_RDWR)
            made._reactor_checkpoint.set()
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_an_abort_in_mid_message_leaves_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = steps.images()[:2]
    with steps.listening(settings):
        with association(settings) as made:
            assert made.send_c_store(first).get("Status") == 0
            connection = wire(made)
            connection.sendall(pdu(item(command(second), COMMAND | LAST)))
            connection.sendall(pdu(item(encoded(second)[:100], 0)))
            connection.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))  # A-ABORT
            made._reactor_checkpoint.set()
            servers.wait_until(
                lambda: "without release after 1 images" in caplog.text,
                what="the listener notices the abort",
            )
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert steps.count(settings, Instance) == 1


@steps.sqlite_only
def test_an_abort_for_no_known_reason_ends_no_thread_with_a_trace(
    settings: Settings, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with steps.listening(settings):
        with association(settings) as made:
            connection = wire(made)
            connection.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 186, 77))  # A-ABORT
            made._reactor_checkpoint.set()
            servers.wait_until(
                lambda: "cannot be acted on" in caplog.text, what="the listener closes it"
            )
            servers.wait_until(lambda: not made.is_established, what="the sender notices")
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert not list(recwarn)  # a thread that ends by an exception would be one


@steps.sqlite_only
@pytest.mark.parametrize(
    "nonsense",
    (
        pytest.param(item(b"12", 0, context=3), id="another context"),
        pytest.param(item(b"12", COMMAND), id="a command"),
        pytest.param(struct.pack(">LBB", 1, 1, 0), id="an item too short for its header"),
        pytest.param(struct.pack(">LBB", 0xFFFFFFF0, 1, 0), id="an item longer than its PDU"),
        pytest.param(item(b"12", LAST) + item(b"34", 0), id="more after the last fragment"),
    ),
)
def test_what_is_no_continuation_ends_the_association(settings: Settings, nonsense: bytes) -> None:
    image = steps.images()[0]
    with steps.listening(settings):
        with association(settings) as made:
            connection = wire(made)
            connection.sendall(pdu(item(command(image), COMMAND | LAST)))
            connection.sendall(struct.pack(">BBL", 4, 0, len(nonsense)) + nonsense)
            made._reactor_checkpoint.set()
            servers.wait_until(lambda: made.is_aborted, what="the association is aborted")
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_a_request_without_a_uid_ends_the_association(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    image = steps.images()[0]
    data = encoded(image)
    image.SOPInstanceUID = ""
    with steps.listening(settings):
        with association(settings) as made:
            connection = wire(made)
            connection.sendall(pdu(item(command(image), COMMAND | LAST), item(data, LAST)))
            made._reactor_checkpoint.set()
            servers.wait_until(lambda: made.is_aborted, what="the association is aborted")
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert "half a request" in caplog.text
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_a_sender_that_falls_silent_in_mid_image_is_let_go(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    image = steps.images()[0]
    impatient = settings.model_copy(update={"idle_seconds": 1.0})
    with steps.listening(impatient), association(settings) as made:
        connection = wire(made)
        connection.sendall(b"".join(in_one_pdu(image))[:5000])
        made._reactor_checkpoint.set()
        servers.wait_until(lambda: not made.is_established, what="the listener hangs up")
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_a_connection_has_a_longest_life(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    image = steps.images()[0]
    short = settings.model_copy(update={"association_seconds": 1.0})
    with steps.listening(short), association(settings) as made:
        connection = wire(made)
        whole = b"".join(in_one_pdu(image))
        with contextlib.suppress(OSError):
            for place in range(100):  # drips, and is never idle
                connection.sendall(whole[place : place + 1])
                time.sleep(0.05)
        made._reactor_checkpoint.set()
        servers.wait_until(lambda: not made.is_established, what="the listener hangs up")
    assert "HIPSCORE_ASSOCIATION_SECONDS" in caplog.text
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_a_flood_of_connections_is_closed_and_the_listener_lives_on(settings: Settings) -> None:
    few = settings.model_copy(update={"max_associations": 2})
    with steps.listening(few) as port, contextlib.ExitStack() as held:
        flood = [
            held.enter_context(socket.create_connection((servers.LOOPBACK, port), timeout=5))
            for _ in range(40)
        ]
        closed = 0
        for each in flood:
            each.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                closed += each.recv(1) == b""
        assert closed >= 40 - 2 * 4 - 1
        held.close()
        servers.wait_until(
            lambda: pacs.echo(peer(settings), calling_aet="SCANNER").delivered,
            what="the listener answers",
        )


@steps.sqlite_only
def test_a_called_title_that_is_not_ours_is_rejected_with_the_reason(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    strict = settings.model_copy(update={"called_ae_titles": ("HIPSCORE",)})
    with steps.listening(strict) as port:
        echoscu = servers.program("echoscu", package="dcmtk")
        said = subprocess.run(
            [echoscu, "--call", "SOMEONE", servers.LOOPBACK, str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert said.returncode != 0
        assert "Called AE Title Not Recognized" in said.stderr
        assert pacs.echo(peer(settings), calling_aet="SCANNER").delivered
    assert "HIPSCORE_CALLED_AE_TITLES" in caplog.text


@steps.sqlite_only
def test_a_listener_without_peers_stays_on_this_machine(settings: Settings) -> None:
    everywhere = settings.model_copy(update={"dicom_host": "0.0.0.0"})  # noqa: S104 - refused
    with pytest.raises(listener.ListenerError, match="HIPSCORE_SENDERS") as refused:
        listener.serve(everywhere, stop=threading.Event(), card=CARD)
    assert "\n" not in str(refused.value)


@steps.sqlite_only
def test_several_processes_on_one_port_and_one_is_killed(
    settings: Settings, tmp_path: Path
) -> None:
    environment = {
        "HIPSCORE_DATA_DIR": str(settings.data_dir),
        "HIPSCORE_DATABASE_URL": settings.database,
        "HIPSCORE_BROKER_URL": settings.broker,
        "HIPSCORE_DICOM_PORT": str(settings.dicom_port),
        "HIPSCORE_RESERVE_MB": "1",
        "HIPSCORE_LISTENERS": "2",
    }
    assert os.environ.get("HIPSCORE_LISTENERS") is None
    with contextlib.ExitStack() as running:
        processes = []
        for number in range(2):
            log = tmp_path / f"listener-{number}.log"
            process = servers.Process(
                command=[
                    "/usr/bin/env",
                    *(f"{name}={value}" for name, value in environment.items()),
                    *(sys.executable, "-m", "hipscore", "listen"),
                ],
                log=log,
                ready=partial(says, log, "listening as"),
            )
            process.start()
            running.callback(process.kill)
            processes.append(process)
        studies = [steps.save(steps.images(seed), tmp_path / str(seed)) for seed in range(4)]
        senders = [
            threading.Thread(target=steps.storescu, args=(settings.dicom_port, study))
            for study in studies
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert steps.count(settings, Instance) == sum(map(len, studies))
        processes[0].kill()
        last = steps.save(steps.images(9), tmp_path / "last")
        assert steps.storescu(settings.dicom_port, last).returncode == 0
    assert steps.count(settings, Series) == 5


@steps.sqlite_only
def test_all_of_a_series_again_after_an_abort_proves_it_complete(
    settings: Settings, tmp_path: Path
) -> None:
    images = steps.images()
    with steps.listening(settings) as port:
        with association(settings) as made:
            for image in images[:5]:
                assert made.send_c_store(image).get("Status") == 0
            made.abort()
        assert steps.storescu(port, steps.save(images, tmp_path / "again")).returncode == 0
        wait_for_state(settings, SeriesState.MATCHED)
    (series,) = steps.rows(settings, Series)
    assert series.close_reason in {"expected_count", "association_released_contiguous"}


def says(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


def peer(settings: Settings) -> Peer:
    return Peer(ae_title="HIPSCORE", host=servers.LOOPBACK, port=settings.dicom_port)


# --- group commit ------------------------------------------------------------------------


def test_images_that_wait_together_share_a_transaction(maker: Maker) -> None:
    commits: list[object] = []
    bind = maker.kw["bind"]
    event.listen(bind, "commit", commits.append)
    recorder = Recorder(maker)
    answers: list[Recorded] = []
    gate = threading.Barrier(40)

    def arrive(number: int) -> None:
        gate.wait(30)
        answers.append(recorder.record(store_steps.arrival(store_steps.image(number))))

    threads = [threading.Thread(target=arrive, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.verdict for each in answers] == [Verdict.NEW] * 40
    assert len(commits) < 40
    with maker() as session:
        assert session.scalar(select(func.count()).select_from(Instance)) == 40


def test_one_image_that_cannot_be_recorded_harms_no_other(maker: Maker) -> None:
    recorder = Recorder(maker)
    good = [store_steps.arrival(store_steps.image(number)) for number in range(3)]
    impossible = store_steps.arrival(store_steps.image(7, number_of_frames="many"))
    outcomes: dict[int, object] = {}
    gate = threading.Barrier(4)

    def arrive(place: int) -> None:
        gate.wait(30)
        try:
            outcomes[place] = recorder.record([*good, impossible][place]).verdict
        except Exception as error:  # noqa: BLE001 - which one it is depends on the database
            outcomes[place] = error

    threads = [threading.Thread(target=arrive, args=(place,)) for place in range(4)]
    with recorder._turn:  # all of them wait for one turn, and so end up in one group
        for thread in threads:
            thread.start()
        servers.wait_until(lambda: len(recorder._waiting) == 4, what="all four wait")
    for thread in threads:
        thread.join(60)
    assert [outcomes[place] for place in range(3)] == [Verdict.NEW] * 3
    if maker.kw["bind"].dialect.name == "postgresql":  # SQLite keeps any text as it comes
        assert isinstance(outcomes[3], Exception)


def test_a_group_with_the_same_image_twice_and_one_in_another_study(
    maker: Maker,
) -> None:
    first = store_steps.image(1)
    changed = store_steps.image(1, content="other")
    stray = store_steps.image(2, study="1.2.9")
    with engine.transaction(maker) as session:
        answers = record_all(
            [store_steps.arrival(each) for each in (first, first, changed, stray)],
            now=datetime.now(UTC),
            session=session,
        )
    assert [each.verdict for each in answers] == [
        Verdict.NEW,
        Verdict.DUPLICATE,
        Verdict.CONFLICT,
        Verdict.MISPLACED,
    ]
    twin = store_steps.arrival(store_steps.image(3, study="1.2.9"))
    with engine.transaction(maker) as session:
        twins = record_all([twin, twin], now=datetime.now(UTC), session=session)
    assert [each.verdict for each in twins] == [Verdict.MISPLACED, Verdict.MISPLACED]


def test_other_bytes_for_a_purged_image_are_not_acknowledged(
    settings: Settings, tmp_path: Path
) -> None:
    image = steps.images()[0]
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save([image], tmp_path / "first")).returncode == 0
        connected = engine.connect(settings.database)
        with engine.transaction(engine.sessions(connected)) as session:
            session.scalars(select(Instance)).one().purged_at = datetime.now(UTC)
        connected.dispose()
        image.PatientName = "CORRECTED"
        again = steps.storescu(port, steps.save([image], tmp_path / "second"))
        assert steps.statuses(again)[0].startswith("Error")
    assert steps.rows(settings, Event)[-1].what == "changed"
