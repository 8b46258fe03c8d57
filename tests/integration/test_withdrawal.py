"""A result is withdrawn: here, on its way, and wherever it went."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import hl7
import httpx
import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import text

from hipscore import routing, worker
from hipscore.cli import group
from hipscore.domain import ArtifactKind
from hipscore.keeping import withdrawal as keeping
from hipscore.lifecycle import DeliveryState, IllegalMove
from hipscore.reporting import oru
from hipscore.reporting.rejection import Why
from hipscore.settings import Settings
from hipscore.store import (
    account,
    deliveries,
    outbox,
    queries,
    retention,
    retracting,
    studies,
    why,
)
from hipscore.store import withdrawal as store
from hipscore.store.moves import NotFound
from hipscore.store.tables import ArtifactRow, AuditEvent, Delivery, Event, Job, Series
from tests import servers
from tests.hl7_receiver import receiving
from tests.integration import kinds_steps as kinds
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import NAME, refused_sockets, scored, sent_to, study
from tests.integration.test_api import problem, serving

ALL = frozenset({ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SC, ArtifactKind.PDF})


def take_back(job_id: int, at: worker.Bench, reason: Why = Why.QUALITY) -> list[int]:
    return keeping.withdraw(
        job_id,
        reason,
        sessions=at.sessions,
        spool=at.spool,
        device_name=at.settings.ae_title,
        now=store_steps.later(60),
    )


def deliver(at: worker.Bench) -> None:
    for row in steps.rows(at.settings, Delivery):
        worker.deliver(row.id, at)


def objects(orthanc: servers.Orthanc) -> dict[str, Dataset]:
    """Everything that lies in Orthanc, by SOP Instance UID."""
    found = [dcmread(BytesIO(orthanc.file(each))) for each in orthanc.get("/instances")]
    return {str(each.SOPInstanceUID): each for each in found}


def states(settings: Settings) -> dict[tuple[ArtifactKind, str], DeliveryState]:
    kinds = {row.id: row.kind for row in steps.rows(settings, ArtifactRow)}
    return {
        (kinds[row.artifact_id], row.destination): row.state
        for row in steps.rows(settings, Delivery)
    }


def told(settings: Settings, uid: str) -> str:
    """What ``why`` says."""
    with steps.opened(settings) as maker, maker() as session:
        (found,) = account.find(uid, session=session).accounts
        around = account.surroundings(quiet_seconds=5, now=store_steps.later(90), session=session)
        verdict = why.explain(found, around)
    return "\n".join((*verdict.sentences, *verdict.what_next))


def test_the_note_arrives_and_names_what_lies_in_the_pacs(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    rules = routing.Rules(artifacts={orthanc.peer: ALL})
    with steps.bench(sent_to(settings, orthanc.peer), steps.knowing((truth, images))) as plain:
        at = dataclasses.replace(plain, rules=rules)
        worker.analyse(job.id, at)
        deliver(at)
        before = objects(orthanc)
        assert {each.Modality for each in before.values()} == {"SEG", "SR", "OT", "DOC"}
        (delivery_id,) = take_back(job.id, at)
        worker.deliver(delivery_id, at)
    (note,) = [each for uid, each in objects(orthanc).items() if uid not in before]
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    assert note.StudyInstanceUID == images[0].StudyInstanceUID
    assert str(note.PatientName) == NAME
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    named = {
        str(item.ReferencedSOPInstanceUID): (
            str(item.ReferencedSOPClassUID),
            str(series.SeriesInstanceUID),
        )
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == {
        uid: (str(each.SOPClassUID), str(each.SeriesInstanceUID)) for uid, each in before.items()
    }


def test_the_result_is_withdrawn_everywhere_here(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = str(images[0].StudyInstanceUID)
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
        with at.sessions() as session:
            row = studies.by_uid(uid, session=session)
            assert row is not None
            score = row.score
        assert score is not None
        assert take_back(job.id, at, Why.SAFETY) == []  # there was no destination
        with at.sessions() as session:
            row = studies.by_uid(uid, session=session)
            assert row is not None
            assert (row.status, row.reason_code, row.score) == ("failed", "withdrawn", None)
    (event,) = [each for each in steps.rows(settings, Event) if each.what == "withdraw"]
    assert event.detail["reason"] == "safety"
    assert NAME not in json.dumps(event.detail)
    assert ArtifactKind.REJECTION not in {each.kind for each in steps.rows(settings, ArtifactRow)}
    said = told(settings, uid)
    assert "withdrawn by an operator at" in said
    assert "reason: safety" in said
    assert f"{score:.2f}" not in said  # nobody is to read it


@refused_sockets
def test_what_has_not_gone_yet_does_not_go_any_more(
    settings: Settings, storescp: servers.StoreScp
) -> None:
    with scored(sent_to(settings, storescp.peer, no_commitment=("*",))) as at:
        first, second = steps.rows(settings, Delivery)
        with at.sessions.begin() as session:  # not due yet, or it would follow the first
            later = datetime.now(UTC) + timedelta(minutes=1)
            session.get_one(Delivery, second.id).next_attempt_at = later
        worker.deliver(first.id, at)
        (job,) = steps.rows(settings, Job)
        (note,) = take_back(job.id, at)
        worker.deliver(second.id, at)
        worker.deliver(note, at)
        with at.sessions() as session:
            assert outbox.undelivered(session=session) == []
    assert states(settings) == {
        (ArtifactKind.SEG, storescp.peer): DeliveryState.SENT,
        (ArtifactKind.SR, storescp.peer): DeliveryState.REFUSED,
        (ArtifactKind.REJECTION, storescp.peer): DeliveryState.SENT,
    }
    (stopped,) = [row for row in steps.rows(settings, Delivery) if row.id == second.id]
    assert stopped.error == deliveries.WITHDRAWN
    assert stopped.attempts == 0
    assert len(storescp.received()) == 2  # SEG and the note
    note_there = next(each for each in map(dcmread, storescp.received()) if each.Modality == "KO")
    (series,) = note_there.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    (seg,) = [each for each in steps.rows(settings, ArtifactRow) if each.kind is ArtifactKind.SEG]
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == [
        seg.sop_instance_uid
    ]
    assert "SR not sent" in told(settings, store_steps.STUDY)


@refused_sockets
@steps.sqlite_only
def test_only_who_may_have_something_is_told(
    settings: Settings, storescp: servers.StoreScp
) -> None:
    never = "NEVER@127.0.0.1:104"
    with scored(sent_to(settings, storescp.peer, never)) as at:
        for row in steps.rows(settings, Delivery):
            if row.destination == storescp.peer:
                worker.deliver(row.id, at)
        (job,) = steps.rows(settings, Job)
        assert len(take_back(job.id, at)) == 1
    found = states(settings)
    assert found[ArtifactKind.REJECTION, storescp.peer] is DeliveryState.PENDING
    assert (ArtifactKind.REJECTION, never) not in found
    assert found[ArtifactKind.SR, never] is DeliveryState.REFUSED


@steps.sqlite_only
def test_a_transfer_that_nobody_heard_the_end_of_counts_as_arrived(settings: Settings) -> None:
    with scored(sent_to(settings, store_steps.PACS)) as at:
        first, second = steps.rows(settings, Delivery)
        with at.sessions.begin() as session:
            until = store_steps.later(600)
            assert deliveries.claim(
                first.id,
                lease="lost",
                lease_until=until,
                now=store_steps.later(1),
                session=session,
            )
        (job,) = steps.rows(settings, Job)
        (note,) = take_back(job.id, at)
        with at.sessions.begin() as session:  # the worker was killed, and another takes over
            now = store_steps.later(700)
            assert deliveries.expire_leases(now=now, max_attempts=9, session=session) == [first.id]
            for row in (first, second):
                again = deliveries.claim(
                    row.id, lease="other", lease_until=now, now=now, session=session
                )
                assert again is None
            assert deliveries.claim(note, lease="n", lease_until=now, now=now, session=session)
    found = states(settings)
    assert found[ArtifactKind.SEG, store_steps.PACS] is DeliveryState.REFUSED
    assert found[ArtifactKind.SR, store_steps.PACS] is DeliveryState.REFUSED


@steps.sqlite_only
def test_what_was_refused_has_not_arrived(settings: Settings) -> None:
    with scored(sent_to(settings, store_steps.PACS)) as at:
        with at.sessions.begin() as session:
            for row in steps.rows(settings, Delivery):
                now = store_steps.later(1)
                held: dict[str, Any] = {"lease": "one", "now": now, "session": session}
                assert deliveries.claim(row.id, lease_until=now, **held)
                deliveries.refuse(row.id, error="0x0122", status=0x0122, **held)
        (job,) = steps.rows(settings, Job)
        assert take_back(job.id, at) == []


def test_something_that_goes_in_the_middle_is_seen(settings: Settings) -> None:
    with scored(sent_to(settings, store_steps.PACS)) as at:
        (job,) = steps.rows(settings, Job)
        first, _ = steps.rows(settings, Delivery)
        with at.sessions.begin() as session:
            seen = store.abroad(job.id, session=session)
        assert seen.objects == ()
        with at.sessions.begin() as session:
            now = store_steps.later(1)
            assert deliveries.claim(
                first.id, lease="one", lease_until=now, now=now, session=session
            )
        with pytest.raises(store.Moved), at.sessions.begin() as session:
            store.withdraw(
                job.id,
                reason="quality",
                seen=seen,
                note=None,
                now=store_steps.later(2),
                session=session,
            )
        assert steps.rows(settings, Job)[0].withdrawn_at is None
        assert len(take_back(job.id, at)) == 1  # looks again
        assert steps.rows(settings, Job)[0].withdrawn_at is not None


@steps.sqlite_only
def test_a_withdrawn_result_is_not_sent_again_by_hand(settings: Settings) -> None:
    with scored(sent_to(settings, store_steps.PACS)) as at:
        (job,) = steps.rows(settings, Job)
        take_back(job.id, at)
        first, _ = steps.rows(settings, Delivery)
        with pytest.raises(IllegalMove, match="withdrawn"), at.sessions.begin() as session:
            deliveries.retry(first.id, now=store_steps.later(90), session=session)


@steps.sqlite_only
def test_there_is_something_to_withdraw_or_it_is_said(settings: Settings) -> None:
    with scored(settings) as at:
        (job,) = steps.rows(settings, Job)
        with at.sessions.begin() as session:
            unfinished = store_steps.a_job(session=session, series=f"{store_steps.SERIES}.9").id
        with pytest.raises(IllegalMove, match="QUEUED and has no result"):
            take_back(unfinished, at)
        with pytest.raises(NotFound):
            take_back(4711, at)
        take_back(job.id, at)
        with pytest.raises(IllegalMove, match="was withdrawn on"):
            take_back(job.id, at)


@steps.sqlite_only
def test_without_the_report_the_note_says_what_is_known_of_the_study(settings: Settings) -> None:
    with scored(sent_to(settings, store_steps.PACS)) as at:
        now = store_steps.later(1)
        with at.sessions.begin() as session:
            for row in steps.rows(settings, Delivery):
                held: dict[str, Any] = {"lease": "one", "now": now, "session": session}
                assert deliveries.claim(row.id, lease_until=now, **held)
                deliveries.sent(row.id, status=0, **held)
            for lot in retention.spare_results(before=store_steps.later(50), session=session):
                done = retention.mark(
                    lot, before=store_steps.later(50), why="by hand", now=now, session=session
                )
                assert len(done) == 3
        (job,) = steps.rows(settings, Job)
        assert len(take_back(job.id, at)) == 1
        (row,) = [r for r in steps.rows(settings, ArtifactRow) if r.kind is ArtifactKind.REJECTION]
        note = dcmread(BytesIO(at.spool.read(row.spool_key, row.sha256)))
    assert note.StudyInstanceUID == store_steps.STUDY
    assert note.PatientName == ""


@steps.sqlite_only
def test_an_earlier_result_does_not_come_back(settings: Settings) -> None:
    with scored(settings) as at:
        with at.sessions.begin() as session:
            late = store_steps.receive(store_steps.image(7), session=session)
            newer = store_steps.open_job(late.series_id, session=session).id
            assert store_steps.claim(newer, session=session)
            store_steps.finish(newer, session=session, destinations=())
        take_back(newer, at)
        with at.sessions() as session:
            speaking = queries.latest_job_of_study(store_steps.STUDY, session=session)
            assert speaking is not None
            assert speaking.job.id == newer
            row = studies.by_uid(store_steps.STUDY, session=session)
            assert row is not None
            assert (row.status, row.score) == ("failed", None)


# --- HL7 receivers ------------------------------------------------------------------------
def statuses(message: hl7.Message) -> set[str]:
    """Every OBX-11 of a message."""
    return {str(each(11)) for each in message.segments("OBX")}


def order_number(message: hl7.Message) -> str:
    return str(message.segment("OBR")(3))


def test_a_receiver_that_got_the_result_gets_it_once_more_as_wrong(settings: Settings) -> None:
    with (
        receiving() as ris,
        receiving() as other,
        kinds.scored(kinds.going_to(settings, ris.address, other.address)) as at,
    ):
        first, second = kinds.deliveries(at)
        worker.deliver(first.id, at)
        (job,) = steps.rows(settings, Job)
        (told_id,) = take_back(job.id, at, Why.SAFETY)
        worker.deliver(told_id, at)
        worker.deliver(second.id, at)
        worker.deliver(told_id, at)  # a second message of the broker
        with at.sessions() as session:
            assert outbox.undelivered(session=session) == []
        (row,) = [r for r in steps.rows(settings, ArtifactRow) if r.number == 1 and r.kind == "oru"]
        kept = at.spool.read(row.spool_key, row.sha256)
    assert other.got == []  # what waited was stopped, and nobody has to be told
    result, retraction = ris.got
    assert statuses(result) == {"F"}
    assert statuses(retraction) == {"W"}
    assert order_number(retraction) == order_number(result)
    assert len(set(ris.control_ids())) == 2
    assert b"3.21" not in kept
    states = {row.id: row.state for row in steps.rows(settings, Delivery)}
    assert states == {
        first.id: DeliveryState.SENT,
        second.id: DeliveryState.REFUSED,
        told_id: DeliveryState.SENT,
    }
    assert f"retraction SENT to {ris.address}" in told(settings, store_steps.STUDY)


@steps.sqlite_only
def test_a_retraction_that_was_given_up_can_be_sent_again(settings: Settings) -> None:
    with receiving() as ris, kinds.scored(kinds.going_to(settings, ris.address)) as at:
        kinds.deliver_all(at)
        (job,) = steps.rows(settings, Job)
        (told_id,) = take_back(job.id, at)
        with at.sessions.begin() as session:
            session.get_one(Delivery, told_id).state = DeliveryState.EXHAUSTED
        with at.sessions.begin() as session:
            assert outbox.exhausted(session=session) == [told_id]
            deliveries.retry(told_id, now=store_steps.later(90), session=session)
        worker.deliver(told_id, at)
    assert statuses(ris.got[-1]) == {"W"}


@steps.sqlite_only
def test_a_message_that_was_purged_is_taken_back_by_its_number(settings: Settings) -> None:
    with receiving() as ris, kinds.scored(kinds.going_to(settings, ris.address)) as at:
        kinds.deliver_all(at)
        with at.sessions.begin() as session:
            for row in session.query(ArtifactRow):
                row.purged_at = store_steps.later(2)
            (job,) = session.query(Job)
            job.result = {**(job.result or {}), "hips": [{"side": "left", "unet_score": 3.21}]}
        (told_id,) = take_back(job.id, at)
        worker.deliver(told_id, at)
    retraction = ris.got[-1]
    assert statuses(retraction) == {"W"}
    named = {str(each(3)(1)(1)) for each in retraction.segments("OBX")}
    assert {"UNET_SCORE", "UNET_SCORE-L", "SLICES_USED-L"} <= named
    assert "UNET_SCORE-R" not in named
    number = oru.filler_number(steps.rows(settings, Series)[0].series_instance_uid)
    assert order_number(retraction) == f"{number}^{settings.ae_title}"


def test_a_retraction_does_not_take_back_a_later_result(settings: Settings) -> None:
    with receiving() as ris, kinds.scored(kinds.going_to(settings, ris.address)) as at:
        kinds.deliver_all(at)
        (first,) = steps.rows(settings, Job)
        kinds.superseded(at)
        later = kinds.deliveries(at)[-1]
        (told_id,) = take_back(first.id, at)
        worker.deliver(later.id, at)
        worker.deliver(told_id, at)
        stopped = kinds.deliveries(at)[-1]
    assert (stopped.id, stopped.state) == (told_id, DeliveryState.REFUSED)
    assert stopped.error == worker.delivery.LATER
    assert len(ris.got) == 2
    assert "W" not in statuses(ris.got[0]) | statuses(ris.got[1])


@steps.sqlite_only
def test_a_later_result_that_never_went_keeps_no_retraction(settings: Settings) -> None:
    with receiving() as ris, kinds.scored(kinds.going_to(settings, ris.address)) as at:
        kinds.deliver_all(at)
        (first,) = steps.rows(settings, Job)
        later = kinds.superseded(at)
        assert take_back(later, at) == []  # stopped before it was sent
        (told_id,) = take_back(first.id, at)
        worker.deliver(told_id, at)
    assert [statuses(each) for each in ris.got] == [{"F"}, {"W"}]


@pytest.mark.parametrize("address", ("mllp://127.0.0.1:9", store_steps.PACS))
def test_a_retraction_waits_for_what_it_takes_back(settings: Settings, address: str) -> None:
    with kinds.scored(kinds.going_to(settings, address)) as at:
        first = kinds.deliveries(at)[0]
        now, until = store_steps.later(1), store_steps.later(600)
        with at.sessions.begin() as session:
            held: dict[str, Any] = {"lease": "one", "session": session}
            assert deliveries.claim(first.id, lease_until=until, now=now, **held)
        (job,) = steps.rows(settings, Job)
        (told_id,) = take_back(job.id, at)
        now = store_steps.later(61)
        again: dict[str, Any] = {"lease": "two", "lease_until": until}
        with at.sessions.begin() as session:
            deliveries.enqueued([told_id], now=now, session=session)
        with at.sessions.begin() as session:
            assert deliveries.claim(told_id, now=now, session=session, **again) is None
        (waits,) = [row for row in kinds.deliveries(at) if row.id == told_id]
        assert (waits.state, waits.attempts) == (DeliveryState.PENDING, 0)
        with at.sessions.begin() as session:
            assert told_id not in deliveries.due(now, session=session)
            soon = now + retracting.WAIT
            due = deliveries.due(soon, enqueued_before=store_steps.NOW, session=session)
            assert told_id in due  # the reaper announces it again
            deliveries.sent(first.id, status=None, now=soon, lease="one", session=session)
        with at.sessions.begin() as session:
            assert deliveries.claim(told_id, now=soon, session=session, **again)


# --- the two ways in --------------------------------------------------------------------
@steps.sqlite_only
def test_over_the_api(settings: Settings, storescp: servers.StoreScp) -> None:
    with scored(sent_to(settings, storescp.peer)) as at:
        deliver(at)
    (job,) = steps.rows(settings, Job)
    with serving(settings) as api:
        path = f"/jobs/{job.id}/withdraw"
        for wrong in ({}, {"reason": "because of Jane Doe"}, {"reason": "quality", "text": "x"}):
            problem(api.post(path, json=wrong), 422)
        answer = api.post(path, json={"reason": "worklist"})
        assert answer.status_code == 202
        assert answer.json()["reason"]["code"] == "withdrawn"
        assert answer.json()["withdrawn_at"] is not None
        assert answer.json()["unet_score"] is None
        problem(api.post(path, json={"reason": "worklist"}), 409)
        problem(api.post("/jobs/4711/withdraw", json={"reason": "worklist"}), 404)
        score = api.get(f"/studies/{store_steps.STUDY}/score")
        assert score.status_code == 200
        assert score.json()["status"] == "failed"
        assert score.json()["reason"]["code"] == "withdrawn"
        assert score.json()["unet_score"] is None
        assert score.json()["artifacts"] == {}
    (queued,) = steps.queued(settings, "delivery")[:1]
    assert queued
    (row,) = [r for r in steps.rows(settings, ArtifactRow) if r.kind is ArtifactKind.REJECTION]
    assert row.media_type == "application/dicom"


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpx.Response]:
    monkeypatch.setenv("HIPSCORE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("HIPSCORE_DATABASE_URL", settings.database)
    monkeypatch.setenv("HIPSCORE_BROKER_URL", settings.broker)

    def run(*arguments: str, answer: str | None = None) -> httpx.Response:
        result = CliRunner().invoke(group, ["withdraw", *arguments], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return httpx.Response(200 + result.exit_code, text=result.output)

    return run


@steps.sqlite_only
def test_on_the_command_line(settings: Settings, command: Callable[..., httpx.Response]) -> None:
    with scored(settings):
        (job,) = steps.rows(settings, Job)
        asked = command(store_steps.STUDY, "--reason", "quality", answer="n\n")
        assert asked.status_code == 201
        assert f"result of job {job.id}?" in asked.text
        assert steps.rows(settings, Job)[0].withdrawn_at is None
        done = command(store_steps.SERIES, "--reason", "quality", "--yes")
        assert done.status_code == 200
        assert f"the result of job {job.id} is withdrawn; it was sent nowhere" in done.text
        again = command(str(job.id), "--reason", "quality", "--yes")
        assert again.status_code == 201
        assert "was withdrawn on" in again.text
        gone = command(store_steps.STUDY, "--reason", "quality", "--yes")
        assert "there is no result to withdraw" in gone.text
        (noted,) = steps.rows(settings, AuditEvent)
        assert (noted.action, noted.study_instance_uid) == ("withdraw result", store_steps.STUDY)


@steps.sqlite_only
def test_a_withdrawal_that_cannot_be_noted_down_is_not_done(
    settings: Settings, command: Callable[..., httpx.Response]
) -> None:
    with scored(settings) as at:
        with at.sessions.begin() as session:
            session.execute(
                text(
                    "CREATE TRIGGER full BEFORE INSERT ON audit "
                    "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
                )
            )
        with pytest.raises(AssertionError, match="the disk is full"):
            command(store_steps.STUDY, "--reason", "quality", "--yes")
        assert steps.rows(settings, Job)[0].withdrawn_at is None
        assert [each for each in steps.rows(settings, Event) if each.what == "withdraw"] == []


@steps.sqlite_only
@pytest.mark.parametrize(
    "arguments",
    (
        ("1",),
        ("1", "--reason", "the name of the patient is Doe"),
        ("not a uid", "--reason", "quality"),
    ),
)
def test_a_wrong_call_is_refused(
    settings: Settings, command: Callable[..., httpx.Response], arguments: tuple[str, ...]
) -> None:
    assert command(*arguments).status_code == 202


@steps.sqlite_only
def test_a_study_with_two_results_asks_for_the_job(
    settings: Settings, command: Callable[..., httpx.Response]
) -> None:
    with scored(settings) as at, at.sessions.begin() as session:
        store_steps.a_scored_job(session=session, series=f"{store_steps.SERIES}.9")
    answer = command(store_steps.STUDY, "--reason", "safety", "--yes")
    assert answer.status_code == 202
    assert "several results" in answer.text
