"""Storage commitment with real peers: asked, reported both ways, declined, not offered, late."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hipscore import pacs, worker
from hipscore.addresses import Peer
from hipscore.lifecycle import BACKOFF_CAP_S, DeliveryState
from hipscore.settings import Settings
from hipscore.store import commitment
from hipscore.store.tables import Delivery, Event
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration.delivery_steps import (
    deliver_all,
    refused_sockets,
    scored,
    sent_to,
    states,
)

SENT, COMMITTED = DeliveryState.SENT, DeliveryState.COMMITTED


@dataclass
class Keeper:
    """A PACS that answers for what it has, over the association on which it is asked."""

    #: Failure Reason of the next reports on these objects, used up one by one
    fails: dict[str, list[int]] = field(default_factory=dict)
    #: reports "before" the answer to the N-ACTION, "after" it, or not at all
    reports: str | None = "after"
    action_status: int = 0x0000
    title: str = "KEEPER"
    port: int = 0
    stored: list[str] = field(default_factory=list)
    asked: list[Dataset] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @property
    def peer(self) -> str:
        return f"{self.title}@{servers.LOOPBACK}:{self.port}"

    def on_store(self, event: evt.Event) -> int:
        self.stored.append(str(event.dataset.SOPInstanceUID))
        return 0x0000

    def on_action(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.reports == "before":
            self.report(event)
        elif self.reports == "after":
            threading.Timer(0.05, self.report, [event]).start()
        return self.action_status, None

    def report(self, event: evt.Event) -> None:
        kind, information = self.information(self.asked[-1])
        answer, _ = event.assoc.send_n_event_report(
            information, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.answers.append(answer.Status)

    def information(self, asked: Dataset) -> tuple[int, Dataset]:
        """Event Type ID and Event Information (PS3.4 table J.3-2)."""
        kept, lost = [], []
        for item in asked.ReferencedSOPSequence:
            reasons = self.fails.get(str(item.ReferencedSOPInstanceUID))
            if reasons:
                item.FailureReason = reasons.pop(0)
                lost.append(item)
            else:
                kept.append(item)
        information = Dataset()
        information.TransactionUID = asked.TransactionUID
        information.ReferencedSOPSequence = kept
        if lost:
            information.FailedSOPSequence = lost
        return (2 if lost else 1), information


@contextlib.contextmanager
def running(keeper: Keeper, *, offers: bool = True) -> Iterator[Keeper]:
    entity = AE(ae_title=keeper.title)
    for sop_class in (SegmentationStorage, Comprehensive3DSRStorage):
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    if offers:
        entity.add_supported_context(StorageCommitmentPushModel)
    handlers: list[Any] = [
        (evt.EVT_C_STORE, keeper.on_store),
        (evt.EVT_N_ACTION, keeper.on_action),
    ]
    server = entity.start_server(
        (servers.LOOPBACK, keeper.port), block=False, evt_handlers=handlers
    )
    assert server is not None
    keeper.port = int(server.server_address[1])
    try:
        yield keeper
    finally:
        server.shutdown()


def deliveries(settings: Settings) -> list[Delivery]:
    rows: list[Delivery] = steps.rows(settings, Delivery)
    return rows


def told(settings: Settings, *what: str) -> list[str]:
    return [each.what for each in steps.rows(settings, Event) if each.what in what]


def ask_again(at: worker.Bench) -> None:
    """Time passes: commitment is due again, and so is what has to be sent again."""
    with at.sessions.begin() as session:
        for row in session.query(Delivery):
            row.next_attempt_at = None
            if row.commit_at is not None:
                row.commit_at = datetime.now(UTC) - timedelta(seconds=1)
    worker.commit(1, at)


@pytest.mark.parametrize("reports", ("before", "after"))
def test_a_report_on_the_same_association_commits(settings: Settings, reports: str) -> None:
    with (
        running(Keeper(reports=reports)) as keeper,
        scored(sent_to(settings, keeper.peer)) as at,
    ):
        assert [row.state for row in deliver_all(at, settings)] == [SENT, SENT]
        worker.commit(1, at)
    assert states(settings) == [COMMITTED, COMMITTED]
    (asked,) = keeper.asked  # one request for both
    assert [item.ReferencedSOPInstanceUID for item in asked.ReferencedSOPSequence] == keeper.stored
    assert keeper.answers == [0x0000]
    assert all(row.commit_at is None and row.error is None for row in deliveries(settings))
    assert told(settings, "commitment_asked", "commit") == [
        "commitment_asked", "commitment_asked", "commit", "commit",
    ]  # fmt: skip


@steps.sqlite_only
def test_the_message_goes_out_once_for_what_is_sent_together(settings: Settings) -> None:
    with running(Keeper()) as keeper, scored(sent_to(settings, keeper.peer)) as at:
        deliver_all(at, settings)
    tasks = [message["headers"]["task"] for message in steps.queued(settings, "delivery")]
    assert tasks == ["hipscore.commit"]


def test_orthanc_reports_to_our_listener(settings: Settings, orthanc: servers.Orthanc) -> None:
    orthanc.add_modality("hipscore", ae_title="HIPSCORE", port=settings.dicom_port)
    configured = sent_to(settings, orthanc.peer)
    with scored(configured) as at, steps.listening(configured):
        deliver_all(at, configured)
        worker.commit(1, at)
        servers.wait_until(
            lambda: states(configured) == [COMMITTED, COMMITTED], what="Orthanc has reported"
        )
    assert len(orthanc.get("/instances")) == 2


def test_what_orthanc_lost_is_sent_again(settings: Settings, orthanc: servers.Orthanc) -> None:
    orthanc.add_modality("hipscore", ae_title="HIPSCORE", port=settings.dicom_port)
    configured = sent_to(settings, orthanc.peer)
    with scored(configured) as at, steps.listening(configured):
        deliver_all(at, configured)
        orthanc.clear()
        orthanc.add_modality("hipscore", ae_title="HIPSCORE", port=settings.dicom_port)
        worker.commit(1, at)
        servers.wait_until(
            lambda: states(configured) == [DeliveryState.PENDING] * 2, what="Orthanc has reported"
        )
        assert "no such object instance (0x0112)" in (deliveries(configured)[0].error or "")
        ask_again(at)
        deliver_all(at, configured)
        worker.commit(1, at)
        servers.wait_until(
            lambda: states(configured) == [COMMITTED, COMMITTED], what="Orthanc has reported"
        )


def test_one_failed_object_is_sent_again_and_then_committed(settings: Settings) -> None:
    with running(Keeper()) as keeper, scored(sent_to(settings, keeper.peer)) as at:
        deliver_all(at, settings)
        seg, sr = keeper.stored
        keeper.fails = {seg: [0x0112]}
        worker.commit(1, at)
        first, second = deliveries(settings)
        assert (first.state, second.state) == (DeliveryState.PENDING, COMMITTED)
        assert first.next_attempt_at is not None
        assert first.error == f"{keeper.peer} does not keep it: no such object instance (0x0112)"
        ask_again(at)
        deliver_all(at, settings)
        worker.commit(1, at)
    assert states(settings) == [COMMITTED, COMMITTED]
    assert keeper.stored == [seg, sr, seg]
    declined = [each for each in steps.rows(settings, Event) if each.what == "decline"]
    assert [each.detail["failure_reason"] for each in declined] == ["0x0112"]


def test_what_the_peer_never_will_keep_is_refused(settings: Settings) -> None:
    with running(Keeper()) as keeper, scored(sent_to(settings, keeper.peer)) as at:
        deliver_all(at, settings)
        keeper.fails = {keeper.stored[1]: [0x0122]}
        worker.commit(1, at)
    assert states(settings) == [COMMITTED, DeliveryState.REFUSED]


@steps.sqlite_only
def test_a_peer_without_storage_commitment_is_asked_hourly_and_then_no_more(
    settings: Settings,
) -> None:
    with (
        running(Keeper(), offers=False) as keeper,
        scored(sent_to(settings, keeper.peer, max_attempts=3)) as at,
    ):
        deliver_all(at, settings)
        worker.commit(1, at)
        waiting = deliveries(settings)[0].commit_at
        assert waiting is not None
        assert waiting > datetime.now(UTC) + timedelta(minutes=59)
        ask_again(at)
        ask_again(at)
    rows = deliveries(settings)
    assert [(row.state, row.commit_at, row.commit_attempts) for row in rows] == [
        (SENT, None, 3)
    ] * 2
    assert "name it in HIPSCORE_NO_COMMITMENT (KEEPER)" in (rows[0].error or "")
    # three asks, one line for each delivery
    assert told(settings, "no_commitment_offered") == ["no_commitment_offered"] * 2


@steps.sqlite_only
@pytest.mark.parametrize("spared", ("STORESCP", "*"))
def test_a_destination_named_in_no_commitment_ends_at_sent(
    settings: Settings, storescp: servers.StoreScp, spared: str
) -> None:
    with scored(sent_to(settings, storescp.peer, no_commitment=(spared,))) as at:
        rows = deliver_all(at, settings)
        worker.reap(at)
    assert [(row.state, row.commit_at) for row in rows] == [(SENT, None)] * 2
    assert steps.queued(settings, "delivery") == []


@steps.sqlite_only
@pytest.mark.parametrize("who", ("the worker", "the reaper"))
def test_a_destination_that_is_named_later_is_left_alone(
    settings: Settings, storescp: servers.StoreScp, who: str
) -> None:
    with scored(sent_to(settings, storescp.peer)) as at:
        deliver_all(at, settings)
        worker.commit(1, at)
        assert "does not offer storage commitment" in (deliveries(settings)[0].error or "")
    spared = sent_to(settings, storescp.peer, no_commitment=("STORESCP",))
    with steps.bench(spared) as at:
        if who == "the worker":
            ask_again(at)
        else:
            worker.reap(at)
    rows = deliveries(settings)
    assert [(row.state, row.commit_at, row.error) for row in rows] == [(SENT, None, None)] * 2


@steps.sqlite_only
def test_a_peer_that_never_reports_is_asked_again_under_another_uid(settings: Settings) -> None:
    slow = Keeper(reports=None)
    hourly = settings.model_copy(update={"commitment_seconds": 3600.0})
    with running(slow), scored(sent_to(hourly, slow.peer)) as at:
        deliver_all(at, hourly)
        worker.commit(1, at)
        worker.commit(1, at)  # too early
        assert len(slow.asked) == 1
        waiting = deliveries(hourly)[0].commit_at
        assert waiting is not None
        assert waiting > datetime.now(UTC) + timedelta(minutes=59)
        ask_again(at)
        ask_again(at)
    uids = [asked.TransactionUID for asked in slow.asked]
    assert len(set(uids)) == 3
    rows = deliveries(hourly)
    assert [(row.state, row.error) for row in rows] == [(SENT, commitment.NO_REPORT)] * 2
    assert told(hourly, "no_report", "commitment_asked") == [
        "commitment_asked", "commitment_asked", "no_report", "no_report",
    ]  # fmt: skip
    with steps.listening(hourly):
        # on the second request, which the third replaced, and then on that
        assert report(hourly, slow, slow.asked[1]) == 0x0115
        assert states(hourly) == [SENT, SENT]
        assert report(hourly, slow, slow.asked[2]) == 0x0000
        assert report(hourly, slow, slow.asked[2]) == 0x0000  # twice does no harm
    assert states(hourly) == [COMMITTED, COMMITTED]
    assert told(hourly, "commit") == ["commit"] * 2


def report(
    settings: Settings,
    keeper: Keeper,
    asked: Dataset,
    change: Callable[[Dataset], object] = lambda _: None,
    *,
    kind: int | None = None,
    role: bool = True,
) -> int:
    """The PACS opens an association to the listener and reports; what it is answered."""
    fitting, information = keeper.information(asked)
    change(information)
    entity = AE(ae_title=keeper.title)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate(
        servers.LOOPBACK,
        settings.dicom_port,
        ae_title="HIPSCORE",
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)] if role else None,
    )
    assert association.is_established
    try:
        answer, _ = association.send_n_event_report(
            information,
            fitting if kind is None else kind,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
    finally:
        association.release()
    return int(answer.Status)


def a_request(*uids: str) -> Dataset:
    """A request, as if we had made it."""
    asked = Dataset()
    asked.TransactionUID = "2.25.1"
    asked.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = SegmentationStorage
        item.ReferencedSOPInstanceUID = uid
        asked.ReferencedSOPSequence.append(item)
    return asked


@steps.sqlite_only
def test_reports_that_make_no_sense_are_answered_as_such(settings: Settings) -> None:
    def without_uid(information: Dataset) -> None:
        del information.TransactionUID

    with steps.listening(settings):
        assert report(settings, Keeper(), a_request("1.2.3"), without_uid) == 0x0115
        assert report(settings, Keeper(), a_request("1.2.3")) == 0x0115  # nobody asked
        assert report(settings, Keeper(), a_request("1.2.3"), role=False) == 0x0115
        assert report(settings, Keeper(), a_request("1.2.3"), kind=3) == 0x0113


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
@steps.sqlite_only
def test_a_report_with_an_invalid_uid_is_refused(settings: Settings) -> None:
    with steps.listening(settings):
        assert report(settings, Keeper(), a_request("../../etc/passwd")) == 0x0115


@steps.sqlite_only
def test_a_report_that_cannot_be_recorded_is_answered_with_a_failure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with steps.listening(settings.model_copy(update={"database_url": down})):
        assert report(settings, Keeper(), a_request("1.2.3")) == 0x0110


@refused_sockets
def test_a_peer_that_is_down_is_asked_again_soon_and_for_ever(settings: Settings) -> None:
    with running(Keeper()) as keeper, scored(sent_to(settings, keeper.peer, max_attempts=2)) as at:
        deliver_all(at, settings)
        keeper_port = keeper.port
    with steps.bench(sent_to(settings, keeper.peer, max_attempts=2)) as at:
        worker.commit(1, at)
        first = deliveries(settings)[0]
        assert first.commit_at is not None
        assert first.commit_at < datetime.now(UTC) + timedelta(seconds=11)
        assert "cannot be reached" in (first.error or "")
        for _ in range(3):
            ask_again(at)
        assert told(settings, "commitment_failed") == ["commitment_failed"] * 2
        with running(Keeper(port=keeper_port)):
            ask_again(at)
    rows = deliveries(settings)
    assert [(row.state, row.error) for row in rows] == [(COMMITTED, None)] * 2


@steps.sqlite_only
def test_a_refused_request_is_repeated(settings: Settings) -> None:
    busy = Keeper(reports=None, action_status=0x0110)
    with running(busy), scored(sent_to(settings, busy.peer)) as at:
        deliver_all(at, settings)
        worker.commit(1, at)
        first = deliveries(settings)[0]
        assert "0x0110 (processing failure)" in (first.error or "")
        assert first.commit_at is not None
        assert first.commit_at < datetime.now(UTC) + timedelta(seconds=BACKOFF_CAP_S)
        busy.action_status, busy.reports = 0x0000, "after"
        ask_again(at)
    assert states(settings) == [COMMITTED, COMMITTED]


@steps.sqlite_only
def test_the_reaper_announces_commitment_once_for_each_destination(settings: Settings) -> None:
    with running(Keeper()) as keeper, scored(sent_to(settings, keeper.peer)) as at:
        deliver_all(at, settings)
        with at.sessions.begin() as session:  # the message was lost, long ago
            session.query(Delivery).update({"enqueued_at": None})
        before = len(steps.queued(settings, "delivery"))
        worker.reap(at)
        worker.reap(at)
        assert len(steps.queued(settings, "delivery")) == before + 1


def test_the_wait_for_a_report_ends_when_it_came_another_way() -> None:
    looks = iter((True, True, False))
    with running(Keeper(reports=None)) as keeper:
        started = datetime.now(UTC)
        outcome = pacs.request_commitment(
            Peer.parse(keeper.peer),
            [pacs.Reference(SegmentationStorage, "1.2.3")],
            transaction_uid="2.25.1",
            calling_aet="HIPSCORE",
            on_report=lambda _: True,
            still_wanted=lambda: next(looks),
            grace=60.0,
        )
    assert outcome.delivered
    assert datetime.now(UTC) - started < timedelta(seconds=30)
