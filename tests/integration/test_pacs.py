"""Sending to real peers: what arrives, and how each answer is understood."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.pacs import association
from tests import servers
from tests.integration import shell_steps as steps

ME = "HIPSCORE"
QUICK = pacs.Timeouts(connection=2.0, acse=2.0, dimse=2.0)

#: pynetdicom leaves a socket that was refused to the garbage collector
refused_sockets = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


def bytes_of(datasets: list[Dataset], folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in steps.save(datasets, folder)]


@contextlib.contextmanager
def peer_that(
    answers: Any, *, syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,)
) -> Iterator[Peer]:
    """A Storage SCP that answers every C-STORE as told."""
    entity = AE(ae_title="PEER")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), list(syntaxes))
    with running(entity, [(evt.EVT_C_STORE, answers)]) as port:
        yield Peer(ae_title="PEER", host=servers.LOOPBACK, port=port)


@contextlib.contextmanager
def running(entity: AE, handlers: list[evt.EventHandlerType] | None = None) -> Iterator[int]:
    """Run an application entity; yields its port."""
    port = servers.free_port()
    server = entity.start_server((servers.LOOPBACK, port), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield port
    finally:
        server.shutdown()


@pytest.mark.parametrize("syntax", (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless))
def test_bytes_arrive_unchanged(storescp: servers.StoreScp, tmp_path: Path, syntax: str) -> None:
    sent = bytes_of(steps.images(transfer_syntax_uid=syntax), tmp_path / "made")
    outcome = pacs.send(Peer.parse(storescp.peer), sent, calling_aet=ME)
    assert outcome.delivered
    assert outcome.status == 0x0000
    arrived = [path.read_bytes() for path in storescp.received()]
    assert [steps.data_set(each) for each in arrived] == [steps.data_set(each) for each in sent]
    assert {dcmread(path).file_meta.TransferSyntaxUID for path in storescp.received()} == {syntax}


def test_a_peer_that_takes_only_implicit_vr_gets_the_same_elements(tmp_path: Path) -> None:
    got: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        got.append(event.dataset)
        return 0x0000

    sent = bytes_of(steps.images()[:1], tmp_path / "made")
    with peer_that(keep, syntaxes=(ImplicitVRLittleEndian,)) as peer:
        assert pacs.send(peer, sent, calling_aet=ME).delivered
    assert got == [dcmread(tmp_path / "made" / "0000.dcm")]


@pytest.mark.parametrize(
    ("status", "delivered", "retry"),
    (
        (0x0000, True, False),
        (0xB000, True, False),  # coercion of data elements
        (0xB007, True, False),  # data set does not match SOP class
        (0xA700, False, True),  # out of resources
        (0xA701, False, True),
        (0x0110, False, True),  # processing failure
        (0x0213, False, True),  # resource limitation
        (0xA900, False, False),  # data set does not match SOP class
        (0xC000, False, False),  # cannot understand
        (0xC210, False, False),
        (0x0122, False, False),  # SOP class not supported
        (0x0124, False, False),  # not authorised
    ),
)
def test_each_status_is_understood(
    tmp_path: Path, status: int, delivered: bool, retry: bool
) -> None:
    with peer_that(lambda _: status) as peer:
        outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert (outcome.delivered, outcome.retry, outcome.status) == (delivered, retry, status)
    assert str(peer) in outcome.text
    assert not outcome.unreachable


def test_stops_at_the_first_object_that_is_not_taken(tmp_path: Path) -> None:
    statuses = iter((0x0000, 0xC000, 0x0000))
    with peer_that(lambda _: next(statuses)) as peer:
        outcome = pacs.send(peer, bytes_of(steps.images()[:3], tmp_path), calling_aet=ME)
    assert outcome.status == 0xC000
    assert next(statuses) == 0x0000  # the third was never sent


def test_the_peers_own_words_stay_out_of_the_text_that_is_stored(tmp_path: Path) -> None:
    answer = Dataset()
    answer.Status = 0xA700
    answer.ErrorComment = "no room for Secret^Patient"
    with peer_that(lambda _: answer) as peer:
        outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert outcome.text == f"{peer} cannot take it now, 0xA700 (out of resources)"
    assert outcome.comment == "no room for Secret^Patient"


def test_an_abort_in_the_middle_is_tried_again(tmp_path: Path) -> None:
    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    with peer_that(abort) as peer:
        paths = steps.save(steps.images()[:3], tmp_path)
        outcomes = [outcome for _, outcome in pacs.send_files(peer, paths, calling_aet=ME)]
    assert [(each.delivered, each.retry, each.status) for each in outcomes] == [
        (False, True, None)
    ] * 3


@refused_sockets
def test_nobody_there_is_tried_again(tmp_path: Path) -> None:
    peer = Peer(ae_title="PEER", host=servers.LOOPBACK, port=servers.free_port())
    outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert (outcome.delivered, outcome.retry, outcome.status) == (False, True, None)
    assert outcome.unreachable
    assert "cannot be reached" in outcome.text


@refused_sockets
def test_a_host_that_does_not_exist_is_tried_again(tmp_path: Path) -> None:
    peer = Peer(ae_title="PEER", host="no-such-host.invalid", port=104)
    outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert (outcome.delivered, outcome.retry, outcome.status) == (False, True, None)


def test_a_peer_that_accepts_connections_but_says_nothing_is_given_up_in_time(
    tmp_path: Path,
) -> None:
    with socket.create_server((servers.LOOPBACK, 0)) as silent:
        peer = Peer(ae_title="PEER", host=servers.LOOPBACK, port=silent.getsockname()[1])
        outcome = pacs.send(
            peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME, timeouts=QUICK
        )
    assert (outcome.delivered, outcome.retry, outcome.unreachable) == (False, True, True)


def test_a_peer_that_never_answers_a_store_is_given_up_in_time(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(event: evt.Event) -> int:
        release.wait(20)
        return 0x0000

    with peer_that(hang) as peer:
        outcome = pacs.send(
            peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME, timeouts=QUICK
        )
        release.set()
    assert (outcome.delivered, outcome.retry, outcome.status) == (False, True, None)
    # whatever it is sent, it does not answer; but it may be this object that it chokes on
    assert (outcome.unreachable, outcome.silent) == (True, True)


def answer_with(change: Callable[[Dataset], None]) -> Callable[[evt.Event], int]:
    """A handler that answers C-STORE with a command set as no toolkit would write it."""

    def handler(event: evt.Event) -> int:
        request = cast("C_STORE", event.request)
        response = C_STORE()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
        response.Status = 0x0000
        message = C_STORE_RSP()
        message.primitive_to_message(response)
        change(message.command_set)
        for pdata in message.encode_msg(event.context.context_id, 16384):
            event.assoc.dul.send_pdu(pdata)
        # the proper answer stays unsent
        event.assoc.dimse.send_msg = lambda *_: None  # type: ignore[method-assign]
        return 0x0000

    return handler


def empty_status(command: Dataset) -> None:
    command["Status"].value = None


def no_status(command: Dataset) -> None:
    del command.Status


def no_command_field(command: Dataset) -> None:
    del command.CommandField


# pynetdicom's reading thread does not survive the last of them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("change", (empty_status, no_status, no_command_field))
def test_an_answer_that_cannot_be_read_is_no_success_and_tried_again(
    tmp_path: Path, change: Callable[[Dataset], None]
) -> None:
    with peer_that(answer_with(change)) as peer:
        paths = steps.save(steps.images()[:2], tmp_path)
        sending = pacs.send_files(peer, paths, calling_aet=ME, timeouts=QUICK)
        outcomes = [outcome for _, outcome in sending]
    assert [(each.delivered, each.retry, each.status) for each in outcomes] == [
        (False, True, None)
    ] * 2


def test_a_rejected_association_says_why(tmp_path: Path) -> None:
    entity = AE(ae_title="PEER")
    entity.add_supported_context(MRImageStorage)
    entity.require_called_aet = True
    with running(entity) as port:
        peer = Peer(ae_title="OTHER", host=servers.LOOPBACK, port=port)
        outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert outcome.text == f"{peer} rejected the association: Called AE title not recognised"


def test_a_sop_class_the_peer_does_not_take_is_refused_for_good(tmp_path: Path) -> None:
    entity = AE(ae_title="PEER")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2")  # CT
    with running(entity) as port:
        peer = Peer(ae_title="PEER", host=servers.LOOPBACK, port=port)
        outcome = pacs.send(peer, bytes_of(steps.images()[:1], tmp_path), calling_aet=ME)
    assert (outcome.delivered, outcome.retry) == (False, False)
    assert outcome.text == f"{peer} does not accept MR Image Storage"


@pytest.mark.parametrize("chosen", (0, 1))
def test_of_two_forms_the_first_that_is_accepted_is_sent(tmp_path: Path, chosen: int) -> None:
    got: list[str] = []

    def keep(event: evt.Event) -> int:
        got.append(event.dataset.SOPClassUID)
        return 0x0000

    forms = steps.images()[:2]
    forms[0].SOPClassUID = forms[0].file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    entity = AE(ae_title="PEER")
    for form in forms[chosen:]:
        entity.add_supported_context(form.SOPClassUID, ExplicitVRLittleEndian)
    with running(entity, [(evt.EVT_C_STORE, keep)]) as port:
        peer = Peer(ae_title="PEER", host=servers.LOOPBACK, port=port)
        data = bytes_of(forms, tmp_path)
        outcome, sent = pacs.send_one_of(peer, data, calling_aet=ME)
    assert (outcome.delivered, sent) == (True, chosen)
    assert got == [forms[chosen].SOPClassUID]


def test_what_is_not_dicom_is_not_sent(tmp_path: Path) -> None:
    peer = Peer(ae_title="PEER", host=servers.LOOPBACK, port=1)
    with pytest.raises(ValueError, match="is not a DICOM file"):
        pacs.send(peer, [b"not DICOM"], calling_aet=ME)
    with pytest.raises(ValueError, match="nothing to send"):
        pacs.send(peer, [], calling_aet=ME)


def test_sends_a_mixed_folder_over_one_association(
    orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    paths = steps.save(steps.images(1), tmp_path / "a")
    paths += steps.save(steps.images(2, transfer_syntax_uid=RLELossless), tmp_path / "b")
    paths += steps.save(steps.images(3, enhanced=True), tmp_path / "c")
    done = list(pacs.send_files(Peer.parse(orthanc.peer), paths, calling_aet=ME))
    assert [path for path, _ in done] == paths
    assert all(outcome.delivered for _, outcome in done)
    assert len(orthanc.get("/instances")) == len(paths)


@refused_sockets
def test_echo(orthanc: servers.Orthanc) -> None:
    answered = pacs.echo(Peer.parse(orthanc.peer), calling_aet=ME)
    assert answered.delivered
    nobody = Peer(ae_title="PEER", host=servers.LOOPBACK, port=servers.free_port())
    assert not pacs.echo(nobody, calling_aet=ME).delivered


def test_the_thread_that_serves_requests_takes_no_answer_to_ours(orthanc: servers.Orthanc) -> None:
    """On a busy machine it may run once more between our request and the answer to it."""
    contexts = [build_context(MRImageStorage)]
    made = association.associate(Peer.parse(orthanc.peer), contexts, ME, QUICK)
    assert isinstance(made, Association)
    try:
        answer, request = C_STORE(), C_STORE()
        answer.MessageIDBeingRespondedTo, answer.Status = 1, 0x0000
        request.MessageID = 1
        made._reactor_checkpoint.clear()
        servers.wait_until(lambda: made._is_paused, what="the thread waits")
        made.dimse.msg_queue.put((1, answer))
        assert made.dimse.get_msg(block=False) == (None, None)
        assert made.dimse.get_msg(block=True) == (1, answer)
        made.dimse.msg_queue.put((1, request))
        assert made.dimse.get_msg(block=False) == (1, request)
        assert made.dimse.get_msg(block=False) == (None, None)
    finally:
        made._reactor_checkpoint.set()
        association.leave(made)
