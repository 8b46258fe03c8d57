"""HL7 messages over MLLP to a real receiver: accepted, refused, silent, wrong, dead, and back."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import hl7
import pytest

from hipscore import mllp, worker
from hipscore.addresses import Mllp, destination
from hipscore.domain import ArtifactKind, Outcome
from hipscore.lifecycle import DeliveryState
from hipscore.routing import Receiver as Described
from hipscore.settings import Settings
from hipscore.store import deliveries, outbox
from hipscore.store.tables import ArtifactRow, Event
from tests import servers
from tests.hl7_receiver import Answer, acknowledge, receiving, silent
from tests.integration import kinds_steps as kinds
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import wake

QUICK = mllp.Timeouts(connection=1.0, answer=0.5)


def message() -> bytes:
    return next(each.data for each in kinds.made() if each.kind is ArtifactKind.ORU)


def send(address: str, *, attempt: int = 1, timeouts: mllp.Timeouts = QUICK) -> Outcome:
    receiver = destination(address)
    assert isinstance(receiver, Mllp)
    return mllp.send(receiver, message(), attempt=attempt, timeouts=timeouts)


def test_a_message_that_is_accepted_has_arrived(settings: Settings) -> None:
    with receiving() as receiver:
        described = Described(
            address=receiver.address, receiving_application="RIS", receiving_facility="A|B"
        )
        with kinds.scored(kinds.going_to(settings, receiver.address), described) as at:
            done = kinds.deliver_all(at)
            assert kinds.kinds(at, done) == [ArtifactKind.ORU]
            worker.deliver(done[0].id, at)  # a second message of the broker
            with at.sessions() as session:
                assert outbox.undelivered(session=session) == []
    assert [row.state for row in done] == [DeliveryState.SENT]
    assert (done[0].status, done[0].commit_at) == (None, None)
    (got,) = receiver.got
    header = got.segment("MSH")
    assert [got.unescape(str(header(place))) for place in (5, 6)] == ["RIS", "A|B"]
    expected = hl7.parse(message().decode())
    assert [str(each) for each in got[1:]] == [str(each) for each in expected[1:]]
    (sent,) = [event for event in steps.rows(settings, Event) if event.what == "sent"]
    assert sent.detail == {"status": None, "artifact": "oru"}


@pytest.mark.parametrize(
    ("answer", "attempt", "delivered", "retry", "words"),
    (
        (acknowledge("AA"), 1, True, False, "accepted (AA)"),
        (acknowledge("CA"), 1, True, False, "accepted (CA)"),
        (acknowledge("AR"), 1, False, True, "cannot take it now, AR"),
        (acknowledge("AR", error="207"), 1, False, True, "207 (application internal error)"),
        (acknowledge("AR", error="203"), 1, False, False, "203 (unsupported version id)"),
        (acknowledge("AE"), 1, False, True, "cannot take it now, AE"),
        (acknowledge("AE"), mllp.FEW, False, False, "refused, AE"),
        (acknowledge("AE", error="206"), mllp.FEW, False, True, "206 (application record locked)"),
        (acknowledge("AE", error="101"), 1, False, False, "101 (required field missing)"),
        (acknowledge("CE"), 1, False, True, "cannot take it now, CE"),
        (acknowledge("CR"), 1, False, False, "refused, CR"),
        (acknowledge("AA", control_id="ANOTHER"), 1, False, True, "another message than ours"),
        (acknowledge("AA", control_id=""), 1, False, True, "another message than ours"),
        (acknowledge("ZZ"), 1, False, True, "no answer that can be read"),
        (lambda _: b"MSH|^~\\&|A\r", 1, False, True, "no answer that can be read"),
        (lambda _: b"\xff\xfe\x00", 1, False, True, "no answer that can be read"),
        (lambda _: b"", 1, False, True, "no answer that can be read"),
        (lambda _: b"MSA|AA\r" * 20_000, 1, False, True, "no answer that can be read"),
    ),
)
def test_an_acknowledgment_is_read_by_its_meaning(
    answer: Answer, attempt: int, delivered: bool, retry: bool, words: str
) -> None:
    with receiving() as receiver:
        receiver.answer = answer
        outcome = send(receiver.address, attempt=attempt)
    assert (outcome.delivered, outcome.retry, outcome.unreachable) == (delivered, retry, False)
    assert words in outcome.text or "gave an answer that cannot be read" in outcome.text
    assert "Secret" not in outcome.text + outcome.comment


def test_a_silent_receiver_is_left_in_time_and_keeps_the_others_waiting() -> None:
    with receiving() as receiver:
        receiver.answer = silent
        began = time.monotonic()
        outcome = send(receiver.address)
    assert time.monotonic() - began < 3.0
    assert (outcome.retry, outcome.silent, outcome.unreachable) == (True, True, True)


def test_a_receiver_that_hangs_up_or_does_not_read_is_tried_again() -> None:
    with socket.create_server((servers.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        outcome = send(f"mllp://{servers.LOOPBACK}:{port}")
        thread.join()
    assert (outcome.retry, outcome.unreachable) == (True, False)
    assert "ended the connection" in outcome.text


def test_nobody_there_is_told_in_the_words_of_the_system() -> None:
    outcome = send(f"mllp://{servers.LOOPBACK}:{servers.free_port()}")
    assert (outcome.retry, outcome.unreachable, outcome.silent) == (True, True, False)
    assert outcome.text.endswith("cannot be reached: Connection refused")


def test_a_receiver_that_refuses_at_first_gets_the_same_message_again(settings: Settings) -> None:
    with receiving() as receiver:
        receiver.first = [
            acknowledge("AR", error="207"),
            acknowledge("AA", control_id="ANOTHER"),
            acknowledge("AE"),
        ]
        with kinds.scored(kinds.going_to(settings, receiver.address)) as at:
            for _ in range(4):
                (row,) = kinds.deliveries(at)
                wake(at, row.id)
                worker.deliver(row.id, at)
            (done,) = kinds.deliveries(at)
    assert (done.state, done.attempts) == (DeliveryState.SENT, 4)
    assert len(receiver.got) == 4
    assert len(set(receiver.control_ids())) == 1  # it can tell that it is one message
    assert len({str(each) for each in receiver.got}) == 1


@steps.sqlite_only
def test_what_a_receiver_refuses_is_refused_and_its_words_are_kept_nowhere(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as receiver:
        receiver.answer = acknowledge("AE", error="102")
        with kinds.scored(kinds.going_to(settings, receiver.address)) as at:
            (done,) = kinds.deliver_all(at)
    assert done.state is DeliveryState.REFUSED
    assert done.error == f"{receiver.address} refused, AE 102 (data type error)"
    told = "".join(str(event.detail) for event in steps.rows(settings, Event))
    assert "Secret" not in told + (done.error or "") + caplog.text


def test_a_receiver_that_is_down_is_served_when_it_is_back_and_gets_nothing_twice(
    settings: Settings,
) -> None:
    port = servers.free_port()
    address = f"mllp://{servers.LOOPBACK}:{port}"
    with kinds.scored(kinds.going_to(settings, address), jobs=3) as at:
        waiting = kinds.deliver_all(at)
        assert {row.state for row in waiting} == {DeliveryState.PENDING}
        assert [row.attempts for row in waiting] == [1, 0, 0]  # one finds out for all
        with receiving(port) as receiver:
            wake(at, waiting[0].id)
            kinds.deliver_all(at)
            done = kinds.deliver_all(at)
            kinds.deliver_all(at)
        assert {row.state for row in done} == {DeliveryState.SENT}
        assert len(receiver.got) == 3


@steps.sqlite_only
def test_workers_that_race_send_every_message_once(settings: Settings) -> None:
    with (
        receiving() as receiver,
        kinds.scored(kinds.going_to(settings, receiver.address), jobs=4) as at,
    ):
        ids = [row.id for row in kinds.deliveries(at)]
        store_steps.at_once([partial(worker.deliver, each, at) for each in ids for _ in range(3)])
        done = kinds.deliveries(at)
    assert {row.state for row in done} == {DeliveryState.SENT}
    assert len(receiver.got) == len(ids)


def test_a_result_that_was_held_up_does_not_follow_a_later_one(settings: Settings) -> None:
    with receiving() as receiver:
        receiver.first = [acknowledge("AR")]
        with kinds.scored(kinds.going_to(settings, receiver.address)) as at:
            (held_up,) = kinds.deliver_all(at)
            kinds.superseded(at)
            later = kinds.deliveries(at)[-1]
            worker.deliver(later.id, at)
            wake(at, held_up.id)
            worker.deliver(held_up.id, at)
            first, second = kinds.deliveries(at)
            with at.sessions() as session:
                assert outbox.undelivered(session=session) == []
    assert (first.state, second.state) == (DeliveryState.REFUSED, DeliveryState.SENT)
    assert first.error == "a later result of the series goes there instead"
    assert first.form_id == second.artifact_id
    assert len(receiver.got) == 2  # the refused one, and the later


def test_a_later_result_waits_while_the_earlier_is_being_sent(settings: Settings) -> None:
    with receiving() as receiver, kinds.scored(kinds.going_to(settings, receiver.address)) as at:
        (earlier,) = kinds.deliveries(at)
        with at.sessions.begin() as session:
            until = datetime.now(UTC) + timedelta(minutes=1)
            now = datetime.now(UTC)
            assert deliveries.claim(
                earlier.id, lease="other", lease_until=until, now=now, session=session
            )
        kinds.superseded(at)
        later = kinds.deliveries(at)[-1]
        worker.deliver(later.id, at)
        assert kinds.deliveries(at)[-1].state is DeliveryState.PENDING
        with at.sessions.begin() as session:
            now = datetime.now(UTC)
            deliveries.sent(earlier.id, lease="other", status=None, now=now, session=session)
        wake(at, later.id)
        worker.deliver(later.id, at)
        assert [row.state for row in kinds.deliveries(at)] == [DeliveryState.SENT] * 2


@steps.sqlite_only
def test_what_is_no_message_is_a_defect_and_not_lost(settings: Settings) -> None:
    with receiving() as receiver:
        with kinds.scored(kinds.going_to(settings, receiver.address)) as at:
            spool = at.spool.put(b"no message")
            with at.sessions.begin() as session:
                row = session.query(ArtifactRow).filter_by(kind=ArtifactKind.ORU).one()
                row.spool_key, row.sha256 = spool.key, spool.sha256
            (done,) = kinds.deliver_all(at)
        assert receiver.got == []
    assert done.state is DeliveryState.PENDING
    assert "not an HL7 message" in (done.error or "") or "ValueError" in (done.error or "")
