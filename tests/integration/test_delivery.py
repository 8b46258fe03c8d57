"""The worker's deliveries, one at a time, to real peers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from sqlalchemy import text

from hipscore import pacs, worker
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.routing import Receiver
from hipscore.settings import Settings
from hipscore.store import account, deliveries, outbox, rehearsal, retention, why
from hipscore.store.tables import ArtifactRow, Delivery, Event
from hipscore.worker.bench import warm
from tests import servers
from tests.hl7_receiver import receiving
from tests.integration import kinds_steps as kinds
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import (
    NAME,
    artifacts,
    deliver_all,
    refused_sockets,
    scored,
    sent_to,
    states,
    wake,
)

#: address of a peer, and the SOP classes of what it got
Taker: TypeAlias = tuple[str, list[str]]
PICTURES = (SecondaryCaptureImageStorage, EncapsulatedPDFStorage)


@steps.sqlite_only
def test_the_stored_bytes_arrive_unchanged(settings: Settings, storescp: servers.StoreScp) -> None:
    with scored(sent_to(settings, storescp.peer)) as at:
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
    settings: Settings, orthanc: servers.Orthanc
) -> None:
    with scored(sent_to(settings, orthanc.peer)) as at:
        done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.SENT] * 2
    (found,) = orthanc.get("/studies")
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
        with scored(sent_to(settings, peer)) as at:
            waiting = deliver_all(at, settings)
            assert [row.state for row in waiting] == [DeliveryState.PENDING] * 2
            assert len({row.next_attempt_at for row in waiting} - {None}) == 1
            # one timeout for all that waits for this peer
            assert [row.attempts for row in waiting] == [1, 0]
            postponed = [e for e in steps.rows(settings, Event) if e.what == "postpone"]
            assert [event.detail["also_waiting"] for event in postponed] == [1]
            assert all("cannot be reached" in (row.error or "") for row in waiting)
            running.process.start()
            wake(at, waiting[0].id)  # the other is due as soon as this one has arrived
            done = deliver_all(at, settings)
        assert [row.state for row in done] == [DeliveryState.SENT] * 2
        assert len(running.received()) == 2


@refused_sockets
def test_a_delivery_is_exhausted_after_its_last_attempt(settings: Settings) -> None:
    nobody = f"NOBODY@127.0.0.1:{servers.free_port()}"
    with scored(sent_to(settings, nobody, max_attempts=2)) as at:
        for _ in range(4):  # each finds out for both
            for row in steps.rows(settings, Delivery):
                wake(at, row.id)
            done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.EXHAUSTED] * 2
    assert [row.attempts for row in done] == [2, 2]


@refused_sockets
@steps.sqlite_only
def test_a_destination_that_is_down_holds_up_no_other(
    settings: Settings, storescp: servers.StoreScp
) -> None:
    nobody = f"NOBODY@127.0.0.1:{servers.free_port()}"
    with scored(sent_to(settings, nobody, storescp.peer)) as at:
        done = deliver_all(at, settings)
    states = {(row.destination, row.state) for row in done}
    assert states == {
        (nobody, DeliveryState.PENDING),
        (storescp.peer, DeliveryState.SENT),
    }


@steps.sqlite_only
def test_a_peer_without_comprehensive_3d_sr_gets_the_comprehensive_sr(settings: Settings) -> None:
    got: list[tuple[str, str]] = []

    def keep(event: evt.Event) -> int:
        got.append((event.dataset.SOPClassUID, event.dataset.SOPInstanceUID))
        return 0x0000

    entity = AE(ae_title="OLD")
    for sop_class in (SegmentationStorage, ComprehensiveSRStorage):
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    server = entity.start_server(
        (servers.LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    assert server is not None
    try:
        peer = f"OLD@{servers.LOOPBACK}:{server.server_address[1]}"
        with scored(sent_to(settings, peer)) as at:
            done = deliver_all(at, settings)
    finally:
        server.shutdown()
    assert [row.state for row in done] == [DeliveryState.SENT] * 2
    by_kind = {row.kind: row for row in steps.rows(settings, ArtifactRow)}
    fallback = by_kind[ArtifactKind.SR_FALLBACK]
    assert got[1] == (ComprehensiveSRStorage, fallback.sop_instance_uid)
    sent = [
        event.detail["artifact"] for event in steps.rows(settings, Event) if event.what == "sent"
    ]
    assert sent == ["seg", "sr_comprehensive"]


@contextlib.contextmanager
def taking(*sop_classes: UID | str, meeting: threading.Barrier | None = None) -> Iterator[Taker]:
    """A peer that accepts these SOP classes and nothing else.

    With ``meeting``, it answers requests for an association only when so many have come.
    """
    got: list[str] = []

    def keep(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPClassUID))
        return 0x0000

    def wait(event: evt.Event) -> None:
        del event
        if meeting is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(10)

    entity = AE(ae_title="TAKES")
    for sop_class in sop_classes:
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    handlers: list[Any] = [(evt.EVT_C_STORE, keep), (evt.EVT_REQUESTED, wait)]
    server = entity.start_server((servers.LOOPBACK, 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield f"TAKES@{servers.LOOPBACK}:{server.server_address[1]}", got
    finally:
        server.shutdown()


@steps.sqlite_only
def test_a_peer_that_takes_no_reports_refuses_for_good(settings: Settings) -> None:
    with taking(MRImageStorage) as (peer, _), scored(sent_to(settings, peer)) as at:
        done = deliver_all(at, settings)
    assert [row.state for row in done] == [DeliveryState.REFUSED] * 2
    assert "does not accept Comprehensive 3D SR Storage" in (done[1].error or "")


def test_a_peer_that_is_auto_and_takes_no_seg_or_sr_gets_pictures_instead(
    settings: Settings,
) -> None:
    with taking(*PICTURES) as (peer, got):
        auto = Receiver(address=peer, auto=True)
        with kinds.scored(kinds.going_to(settings, peer, no_commitment=("*",)), auto) as at:
            done = kinds.deliver_all(at)
            for row in done[:2]:  # an operator tries again: nothing is opened twice
                with at.sessions.begin() as session:
                    deliveries.retry(row.id, now=datetime.now(UTC), session=session)
            done = kinds.deliver_all(at)
            carried = kinds.kinds(at, done)
            with at.sessions() as session:
                assert outbox.undelivered(session=session) == []
                (told,) = account.find(store_steps.STUDY, session=session).accounts
                around = account.surroundings(
                    quiet_seconds=30, now=datetime.now(UTC), session=session
                )
            verdict = why.explain(told, around)
    assert carried == [
        ArtifactKind.SEG,
        ArtifactKind.SR,
        ArtifactKind.SC,
        ArtifactKind.SC,
        ArtifactKind.PDF,
    ]
    assert [row.state for row in done] == [DeliveryState.REFUSED] * 2 + [DeliveryState.SENT] * 3
    assert sorted(got) == sorted([PICTURES[0], PICTURES[0], PICTURES[1]])
    opened = [
        event.detail
        for event in steps.rows(settings, Event)
        if event.what == "open" and event.detail.get("instead_of")
    ]
    assert len(opened) == 3
    assert {each["why"] for each in opened} == {
        "the destination takes no objects of that SOP class"
    }
    said = " ".join(verdict.sentences)
    assert "secondary captures and PDF go there instead" in said
    assert not any("retry" in each for each in verdict.what_next)


def test_seg_and_sr_that_are_refused_at_the_same_time_are_replaced_once(
    settings: Settings,
) -> None:
    with taking(*PICTURES, meeting=threading.Barrier(2)) as (peer, _):
        auto = Receiver(address=peer, auto=True)
        with kinds.scored(kinds.going_to(settings, peer), auto) as at:
            first = [row.id for row in kinds.deliveries(at)]
            store_steps.at_once([partial(worker.deliver, each, at) for each in first])
            rows = kinds.deliveries(at)
    assert [row.state for row in rows[:2]] == [DeliveryState.REFUSED] * 2
    assert [row.state for row in rows[2:]] == [DeliveryState.PENDING] * 3


@steps.sqlite_only
def test_a_peer_that_is_auto_and_takes_seg_and_sr_gets_nothing_else(settings: Settings) -> None:
    with taking(SegmentationStorage, ComprehensiveSRStorage, *PICTURES) as (peer, got):
        auto = Receiver(address=peer, auto=True)
        with kinds.scored(kinds.going_to(settings, peer), auto) as at:
            done = kinds.deliver_all(at)
    assert [row.state for row in done] == [DeliveryState.SENT] * 2
    assert got == [SegmentationStorage, ComprehensiveSRStorage]


@steps.sqlite_only
def test_the_images_of_a_study_that_went_as_pictures_may_be_purged(settings: Settings) -> None:
    with taking(*PICTURES) as (peer, _):
        auto = Receiver(address=peer, auto=True)
        with kinds.scored(kinds.going_to(settings, peer, no_commitment=("*",)), auto) as at:
            kinds.deliver_all(at)
            later = datetime.now(UTC) + timedelta(days=1)
            with at.sessions() as session:
                assert retention.spare_images(before=later, session=session)
                assert retention.spare_results(before=later, session=session)


@steps.sqlite_only
def test_every_destination_gets_what_its_kind_takes_and_one_that_is_down_holds_up_none(
    settings: Settings, storescp: servers.StoreScp
) -> None:
    nobody = f"http://{servers.LOOPBACK}:{servers.free_port()}/web"
    with receiving() as receiver:
        where = kinds.going_to(settings, nobody, storescp.peer, receiver.address)
        with kinds.scored(where) as at:
            done = kinds.deliver_all(at)
            found = {
                (row.destination, kind.value, row.state, row.commit_at is not None)
                for row, kind in zip(done, kinds.kinds(at, done), strict=True)
            }
    assert found == {
        (nobody, "seg", DeliveryState.PENDING, False),
        (nobody, "sr", DeliveryState.PENDING, False),
        (storescp.peer, "seg", DeliveryState.SENT, True),
        (storescp.peer, "sr", DeliveryState.SENT, True),
        (receiver.address, "oru", DeliveryState.SENT, False),
    }
    shown = [e.detail["status"] for e in steps.rows(settings, Event) if e.what == "sent"]
    assert sorted(shown, key=str) == ["0x0000", "0x0000", None]


@steps.sqlite_only
@pytest.mark.parametrize(
    ("said", "spared", "asked"),
    ((None, (), True), (None, ("*",), False), (False, (), False), (True, ("*",), True)),
)
def test_the_rules_file_decides_before_the_settings_who_is_asked_for_commitment(
    settings: Settings,
    storescp: servers.StoreScp,
    said: bool | None,
    spared: tuple[str, ...],
    asked: bool,
) -> None:
    described = Receiver(address=storescp.peer, commitment=said)
    where = kinds.going_to(settings, storescp.peer, no_commitment=spared)
    with kinds.scored(where, described) as at:
        done = kinds.deliver_all(at)
    assert {row.commit_at is not None for row in done} == {asked}


@steps.sqlite_only
def test_a_peer_that_falls_silent_keeps_the_others_waiting_and_tries_them_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    got: list[str] = []

    def choke(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPClassUID))
        if event.request.AffectedSOPClassUID == SegmentationStorage:
            release.wait(20)
        return 0x0000

    quick = partial(pacs.Carrier, timeouts=pacs.Timeouts(dimse=0.5))
    monkeypatch.setattr(pacs, "Carrier", quick)
    entity = AE(ae_title="CHOKES")
    for sop_class in (SegmentationStorage, Comprehensive3DSRStorage):
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    handlers: list[Any] = [(evt.EVT_C_STORE, choke)]
    server = entity.start_server((servers.LOOPBACK, 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        peer = f"CHOKES@{servers.LOOPBACK}:{server.server_address[1]}"
        with scored(sent_to(settings, peer)) as at:
            seg, sr = deliver_all(at, settings)
            assert got == [SegmentationStorage]
            assert [row.attempts for row in (seg, sr)] == [1, 0]
            assert seg.next_attempt_at is not None
            assert sr.next_attempt_at is not None
            assert seg.next_attempt_at > sr.next_attempt_at
            assert "did not answer within 0.5 s" in (sr.error or "")
            wake(at, sr.id)
            worker.deliver(sr.id, at)
    finally:
        release.set()
        server.shutdown()
    assert states(settings) == [DeliveryState.PENDING, DeliveryState.SENT]


class _Associations:
    """A peer that takes all kinds, remembers what came on which association, and has moods."""

    def __init__(self, *, refuses: str = "", drops: str = "") -> None:
        self.on: list[list[str]] = []
        self._refuses, self._drops = refuses, drops
        entity = AE(ae_title="TAKES")
        for sop_class in (SegmentationStorage, Comprehensive3DSRStorage, *PICTURES):
            entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._keep), (evt.EVT_ACCEPTED, self._made)]
        server = entity.start_server((servers.LOOPBACK, 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.server = server
        self.peer = f"TAKES@{servers.LOOPBACK}:{server.server_address[1]}"

    def _made(self, event: evt.Event) -> None:
        del event
        self.on.append([])

    def _keep(self, event: evt.Event) -> int:
        sop_class = str(event.request.AffectedSOPClassUID)
        self.on[-1].append(sop_class)
        if sop_class == self._drops:
            event.assoc.abort(block=False)
        return 0xC000 if sop_class == self._refuses else 0x0000


@contextlib.contextmanager
def counting(**moods: str) -> Iterator[_Associations]:
    made = _Associations(**moods)
    try:
        yield made
    finally:
        made.server.shutdown()


EVERYTHING = frozenset({ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SC, ArtifactKind.PDF})
IN_ORDER = [SegmentationStorage, Comprehensive3DSRStorage, PICTURES[0], PICTURES[0], PICTURES[1]]


def test_all_objects_of_a_job_go_over_one_association_segmentation_and_report_first(
    settings: Settings,
) -> None:
    with counting() as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            rows = kinds.deliveries(at)
            worker.deliver(rows[-1].id, at)
            worker.deliver(rows[0].id, at)
            done = kinds.deliveries(at)
            worker.deliver(rows[1].id, at)  # a message for what has gone
    assert [row.state for row in done] == [DeliveryState.SENT] * 5
    assert [row.attempts for row in done] == [1] * 5
    assert pacs_.on == [[PICTURES[1], *IN_ORDER[:-1]]]
    claimed = [e.delivery_id for e in steps.rows(settings, Event) if e.what == "sent"]
    assert len(set(claimed)) == 5


def test_an_object_that_is_refused_keeps_none_of_the_others_back(settings: Settings) -> None:
    with counting(refuses=SegmentationStorage) as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            worker.deliver(kinds.deliveries(at)[0].id, at)
            done = kinds.deliveries(at)
    assert [row.state for row in done] == [DeliveryState.REFUSED] + [DeliveryState.SENT] * 4
    assert pacs_.on == [IN_ORDER]


def test_an_association_that_breaks_postpones_one_object_and_the_rest_get_another(
    settings: Settings,
) -> None:
    with counting(drops=Comprehensive3DSRStorage) as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            worker.deliver(kinds.deliveries(at)[0].id, at)
            done = kinds.deliveries(at)
    assert [row.state for row in done] == [
        DeliveryState.SENT,
        DeliveryState.PENDING,
        *[DeliveryState.SENT] * 3,
    ]
    assert done[1].next_attempt_at is not None
    assert pacs_.on == [IN_ORDER[:2], IN_ORDER[2:]]


@steps.sqlite_only
def test_what_another_worker_has_taken_is_left_to_it(settings: Settings) -> None:
    with counting() as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            rows = kinds.deliveries(at)
            now = datetime.now(UTC)
            with at.sessions.begin() as session:
                held = {"lease_until": now + timedelta(minutes=3), "now": now}
                assert deliveries.claim(rows[1].id, lease="other", session=session, **held)
            worker.deliver(rows[0].id, at)
            done = kinds.deliveries(at)
    assert [row.state for row in done] == [
        DeliveryState.SENT,
        DeliveryState.SENDING,
        *[DeliveryState.SENT] * 3,
    ]
    assert Comprehensive3DSRStorage not in pacs_.on[0]


@steps.sqlite_only
def test_what_has_gone_out_is_recorded_though_the_next_cannot_be_claimed(
    settings: Settings,
) -> None:
    with counting() as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            first, second, *_ = kinds.deliveries(at)
            with at.sessions.begin() as session:
                session.execute(
                    text(
                        "CREATE TRIGGER unclaimed BEFORE UPDATE OF state ON deliveries "
                        f"WHEN NEW.state = 'SENDING' AND NEW.id = {second.id} "
                        "BEGIN SELECT RAISE(ABORT, 'not now'); END"
                    )
                )
            worker.deliver(first.id, at)
            done = kinds.deliveries(at)
    assert [row.state for row in done] == [DeliveryState.SENT] + [DeliveryState.PENDING] * 4
    assert pacs_.on == [[SegmentationStorage]]


def test_the_reaper_announces_nothing_that_a_worker_is_on_its_way_with(settings: Settings) -> None:
    seen: list[list[int]] = []
    with counting() as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:

            def look(event: evt.Event) -> None:
                del event
                now = datetime.now(UTC)
                lost = now - timedelta(seconds=10)
                with at.sessions.begin() as session:
                    seen.append(deliveries.due(now, session=session, enqueued_before=lost))

            pacs_.server.bind(evt.EVT_ACCEPTED, look)
            worker.deliver(kinds.deliveries(at)[0].id, at)
            done = kinds.deliveries(at)
    assert seen == [[]]
    assert [row.state for row in done] == [DeliveryState.SENT] * 5


def test_two_workers_that_begin_with_different_objects_send_each_once(settings: Settings) -> None:
    with counting() as pacs_:
        where = kinds.going_to(settings, pacs_.peer, no_commitment=("*",))
        with kinds.scored(where, artifacts={pacs_.peer: EVERYTHING}) as at:
            ids = [row.id for row in kinds.deliveries(at)]
            store_steps.at_once([partial(worker.deliver, each, at) for each in (ids[0], ids[-1])])
            done = kinds.deliveries(at)
    assert [row.state for row in done] == [DeliveryState.SENT] * 5
    assert [row.attempts for row in done] == [1] * 5


@steps.sqlite_only
def test_a_rehearsal_that_fails_keeps_no_worker_from_starting(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(**_: object) -> None:
        raise ValueError(NAME)

    monkeypatch.setattr(rehearsal, "play", spoiled)
    with steps.bench(settings) as at:
        warm(at)
    assert "the first task will be slower: ValueError" in caplog.text
    assert NAME not in caplog.text
