"""The worklist (UPS-RS) behind a real server, and the analyses that are items of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

from hipscore import phantom, worker
from hipscore.domain import FloatArray
from hipscore.lifecycle import JobState, SeriesState
from hipscore.procedure import analysis
from hipscore.procedure.dataset import code, data_set, tag, value, values
from hipscore.procedure.rules import PERFORMED, PROGRESS
from hipscore.procedure.states import State, Status
from hipscore.reporting import uids
from hipscore.settings import Settings
from hipscore.store import engine, intake, jobs, procedures, workitems
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import ArtifactRow, Job, Series, WorkItem
from tests import servers
from tests.analytic import Oracle
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration import workitem_steps as ups
from tests.integration.delivery_steps import sent_to, study

TRANSACTION = "1.2.3"


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with ups.serving(settings) as client:
        yield client


def told(answer: httpx.Response, status: int, warning: str = "") -> None:
    """The answer has this status, and this text in its Warning header."""
    assert answer.status_code == status, answer.text
    assert warning in answer.headers.get("warning", ""), answer.headers
    assert bool(warning) == ("warning" in answer.headers), answer.headers
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]


# --- create, retrieve, update ------------------------------------------------------------


def test_a_created_item_is_retrieved_as_it_was_made(api: httpx.Client) -> None:
    given = ups.scheduled(PatientName="Mülleř^Änne=山田^太郎", PatientID="P-1")
    uid = ups.create(api, given)
    item = ups.retrieve(api, uid)
    kept = {name: body for name, body in item.items() if name in given}
    assert kept == {**given, **data_set(WorklistLabel="hipscore")}
    assert value(item, "SOPInstanceUID") == uid
    assert value(item, "SOPClassUID") == "1.2.840.10008.5.1.4.34.6.1"
    assert value(item, "ScheduledProcedureStepModificationDateTime").endswith("+0000")


@steps.sqlite_only
def test_a_uid_comes_in_the_query_in_the_body_or_from_us(api: httpx.Client) -> None:
    named, inside = ups.new_uid(), ups.new_uid()
    told(ups.send(api, "POST", f"/workitems?workitem={named}", ups.scheduled()), 201)
    told(ups.send(api, "POST", "/workitems", ups.scheduled(SOPInstanceUID=inside)), 201)
    ours = ups.send(api, "POST", "/workitems", [ups.scheduled()])
    told(ours, 201)
    made = ours.headers["location"].rpartition("/")[2]
    assert [ups.state(api, uid) for uid in (named, inside, made)] == ["SCHEDULED"] * 3
    other = ups.send(api, "POST", f"/workitems?{named}", ups.scheduled(SOPInstanceUID=inside))
    told(other, 400)


@steps.sqlite_only
def test_what_type_2_demands_is_added_with_a_warning(api: httpx.Client) -> None:
    given = ups.scheduled()
    del given[tag("AdmissionID")]
    answer = ups.send(api, "POST", "/workitems", given)
    told(answer, 201, "299 /dicomweb: The Workitem was created with modifications.")
    item = ups.retrieve(api, answer.headers["location"].rpartition("/")[2])
    assert item[tag("AdmissionID")] == {"vr": "LO"}


@steps.sqlite_only
@pytest.mark.parametrize(
    "keyword",
    (
        "ProcedureStepLabel",
        "ScheduledProcedureStepPriority",
        "ScheduledProcedureStepStartDateTime",
        "InputReadinessState",
        "ProcedureStepState",
    ),
)
def test_without_a_value_of_type_1_nothing_is_created(api: httpx.Client, keyword: str) -> None:
    empty: dict[str, Any] = {keyword: ""}
    answer = ups.send(api, "POST", "/workitems", ups.scheduled(**empty))
    told(answer, 400)
    assert keyword in answer.json()["detail"]


@steps.sqlite_only
@pytest.mark.parametrize(
    "body",
    (
        b"",
        b"no",
        b"[]",
        b"[{},{}]",
        b"7",
        b'{"00741000":7}',
        b'{"x":{"vr":"CS"}}',
        b'{"00741000":{"vr":"CS","Value":"SCHEDULED"}}',
        b'{"00741000":{"vr":"ZZ","Value":["SCHEDULED"]}}',
        b'{"00100010":{"vr":"PN","Value":[{"Alphabetic":"a\\u0000"}]}}',
        b'{"00100020":{"vr":"LO","Value":["\\ud800"]}}',
        b'{"00280010":{"vr":"US","Value":[1e999]}}',
        b'{"00404005":{"vr":"DT","Value":["yesterday"]}}',
        b'{"7FE00010":{"vr":"OW","InlineBinary":"AAAA"}}',
        b'{"00404021":{"vr":"SQ","Value":[3]}}',
        b'{"00404021":{"vr":"SQ","Value":[' * 40 + b"{}" + b"]}}" * 40,
        b"[" * 100_000,
        b"\xff\xfe",
    ),
)
def test_what_is_no_data_set_is_refused(api: httpx.Client, body: bytes) -> None:
    uid = ups.create(api)
    headers = {"Content-Type": ups.DICOM_JSON}
    for method, path in (
        ("POST", "/workitems"),
        ("POST", f"/workitems/{uid}"),
        ("PUT", f"/workitems/{uid}/state"),
        ("POST", f"/workitems/{uid}/cancelrequest"),
    ):
        told(api.request(method, path, content=body, headers=headers), 400)
    assert ups.state(api, uid) == "SCHEDULED"


@steps.sqlite_only
def test_other_media_types_and_sizes_are_refused(api: httpx.Client) -> None:
    uid = ups.create(api)
    told(api.post("/workitems", json=ups.scheduled()), 415)
    told(api.put(f"/workitems/{uid}/state", content=b"{}"), 415)
    told(api.get(f"/workitems/{uid}", headers={"Accept": "application/dicom+xml"}), 406)
    told(api.get("/workitems", headers={"Accept": "text/html"}), 406)
    assert api.get("/workitems", headers={"Accept": "text/html, */*;q=0.1"}).status_code == 200
    long = b'{"00404021":{"vr":"SQ","Value":[' + b"{}," * 400_000 + b"{}]}}"
    answer = api.post("/workitems", content=long, headers={"Content-Type": ups.DICOM_JSON})
    told(answer, 413)


@steps.sqlite_only
def test_uids_are_checked_and_unknown_ones_are_404(api: httpx.Client) -> None:
    for uid, status in (("1..2", 400), ("abc", 400), ("1." * 40 + "1", 400), ("1.2", 404)):
        told(api.get(f"/workitems/{uid}"), status)
        told(ups.send(api, "POST", f"/workitems/{uid}", {}), status)
        told(ups.to_state(api, uid, "IN PROGRESS"), status)
        told(api.post(f"/workitems/{uid}/cancelrequest"), status)
    told(api.get(f"/workitems/{ups.GLOBAL}"), 404)
    told(ups.send(api, "POST", f"/workitems?{ups.GLOBAL}", ups.scheduled()), 400)


def test_one_of_two_who_create_the_same_item_is_told_that_it_exists(api: httpx.Client) -> None:
    uid = ups.new_uid()
    answers: list[int] = []

    def create() -> None:
        answers.append(ups.send(api, "POST", f"/workitems?{uid}", ups.scheduled()).status_code)

    store_steps.at_once([create] * 4)
    assert sorted(answers) == [201, 409, 409, 409]


def test_a_plain_item_is_claimed_followed_and_completed(api: httpx.Client) -> None:
    uid = ups.create(api)
    label = data_set(ProcedureStepLabel="Look again")
    told(ups.send(api, "POST", f"/workitems/{uid}", label), 200)
    claimed = ups.send(api, "POST", f"/workitems/{uid}?{TRANSACTION}", label)
    told(claimed, 409, "did not reference a claimed Workitem")
    told(ups.to_state(api, uid, "COMPLETED"), 409, "inconsistent with the state")
    told(ups.to_state(api, uid, "IN PROGRESS", None), 400, "The Transaction UID is missing.")
    told(ups.to_state(api, uid, "IN PROGRESS"), 200)
    told(ups.to_state(api, uid, "IN PROGRESS"), 409, "inconsistent with the state")
    told(ups.to_state(api, uid, "IN PROGRESS", "9.9"), 400, "The Transaction UID is incorrect.")
    told(ups.to_state(api, uid, "SCHEDULED"), 400, "inconsistent with the state")

    told(ups.send(api, "POST", f"/workitems/{uid}", label), 400, "The Transaction UID is missing.")
    told(
        ups.send(api, "POST", f"/workitems/{uid}?transaction-uid=9.9", label),
        400,
        "The Transaction UID is incorrect.",
    )
    unmet = ups.to_state(api, uid, "COMPLETED")
    told(unmet, 409, "inconsistent with the state")
    assert PERFORMED in unmet.json()["detail"]
    update = f"/workitems/{uid}?transaction-uid={TRANSACTION}"
    told(ups.send(api, "POST", update, ups.performed()), 200)
    told(ups.to_state(api, uid, "COMPLETED"), 200)

    told(ups.to_state(api, uid, "COMPLETED"), 200, "already in the requested state of COMPLETED")
    told(ups.to_state(api, uid, "CANCELED"), 409, "inconsistent with the state")
    told(ups.send(api, "POST", update, label), 400, "inconsistent with the current state")
    told(api.post(f"/workitems/{uid}/cancelrequest"), 409, "inconsistent with the state")
    item = ups.retrieve(api, uid)
    assert value(item, "ProcedureStepState") == "COMPLETED"
    assert value(item, "ProcedureStepLabel") == "Look again"
    assert values(item, PERFORMED) == ups.performed()[tag(PERFORMED)]["Value"]


def test_a_claimed_item_is_canceled_by_its_performer_alone(api: httpx.Client) -> None:
    uid = ups.create(api)
    ups.to_state(api, uid, "IN PROGRESS")
    told(ups.to_state(api, uid, "CANCELED", "9.9"), 400, "The Transaction UID is incorrect.")
    told(api.post(f"/workitems/{uid}/cancelrequest"), 202)
    assert ups.state(api, uid) == "IN PROGRESS"
    told(ups.to_state(api, uid, "CANCELED"), 200)
    told(ups.to_state(api, uid, "CANCELED"), 200, "already in the requested state of CANCELED")
    told(api.post(f"/workitems/{uid}/cancelrequest"), 200, "requested state of CANCELED")
    (progress,) = values(ups.retrieve(api, uid), PROGRESS)
    (reason,) = values(progress, "ProcedureStepDiscontinuationReasonCodeSequence")
    assert value(reason, "CodeValue") == "110513"
    assert value(progress, "ProcedureStepCancellationDateTime")


@steps.sqlite_only
def test_what_nobody_claimed_is_canceled_on_request_with_its_reason(api: httpx.Client) -> None:
    uid = ups.create(api)
    why = data_set(ReasonForCancellation="ordered twice", ContactDisplayName="Front desk")
    told(ups.send(api, "POST", f"/workitems/{uid}/cancelrequest", why), 202)
    item = ups.retrieve(api, uid)
    assert value(item, "ProcedureStepState") == "CANCELED"
    (progress,) = values(item, PROGRESS)
    assert value(progress, "ReasonForCancellation") == "ordered twice"
    assert value(progress, "ContactDisplayName") == "Front desk"


@steps.sqlite_only
def test_identity_and_state_cannot_be_updated(api: httpx.Client) -> None:
    uid = ups.create(api)
    for change in (
        data_set(PatientID="other"),
        data_set(ProcedureStepState="COMPLETED"),
        data_set(SOPInstanceUID="1.2"),
        data_set(ScheduledProcedureStepPriority="SOON"),
        data_set(ProcedureStepLabel=""),
    ):
        told(ups.send(api, "POST", f"/workitems/{uid}", change), 400)


# --- races -------------------------------------------------------------------------------


def test_of_clients_that_race_for_an_item_exactly_one_gets_it(api: httpx.Client) -> None:
    rounds, racers = 25, 4
    for _ in range(rounds):
        uid = ups.create(api)
        won: list[str] = []
        lost: list[httpx.Response] = []

        store_steps.at_once(
            [partial(_race, api, uid, f"1.2.{n}", won, lost) for n in range(racers)]
        )
        assert len(won) == 1
        for answer in lost:
            told(answer, 400, "The Transaction UID is incorrect.")
        assert ups.to_state(api, uid, "CANCELED", won[0]).status_code == 200


def _race(
    api: httpx.Client, uid: str, own: str, won: list[str], lost: list[httpx.Response]
) -> None:
    answer = ups.to_state(api, uid, "IN PROGRESS", own)
    if answer.status_code == 200:
        won.append(own)
    else:
        lost.append(answer)


def test_a_claim_and_a_request_to_cancel_cannot_both_have_their_way(api: httpx.Client) -> None:
    for _ in range(20):
        uid = ups.create(api)
        claimed: list[int] = []

        def claim(uid: str = uid, claimed: list[int] = claimed) -> None:
            claimed.append(ups.to_state(api, uid, "IN PROGRESS").status_code)

        def cancel(uid: str = uid) -> None:
            assert api.post(f"/workitems/{uid}/cancelrequest").status_code == 202

        store_steps.at_once([claim, cancel])
        assert ups.state(api, uid) == ("IN PROGRESS" if claimed == [200] else "CANCELED")


def test_a_cancellation_and_a_result_cannot_both_have_their_way(
    maker: sessionmaker[Session],
) -> None:
    for number in range(20):
        with maker.begin() as session:
            job = store_steps.a_job(session=session, series=f"1.2.{number}", study=f"1.3.{number}")
            assert store_steps.claim(job.id, session=session)
        with maker() as session:
            uid = session.scalars(
                select(WorkItem.sop_instance_uid).where(WorkItem.job_id == job.id)
            ).one()
        said: list[Any] = []

        def finish(job_id: int = job.id, said: list[Any] = said) -> None:
            try:
                with engine.transaction(maker) as session:
                    store_steps.finish(job_id, session=session)
            except LeaseLost:
                said.append("lost")

        def cancel(uid: str = uid, said: list[Any] = said) -> None:
            with engine.transaction(maker) as session:
                answer = procedures.request_cancel(
                    uid, {}, requester="X", now=ups.now(), session=session
                )
            said.append(answer.status)

        store_steps.at_once([finish, cancel])
        with maker() as session:
            done, item = session.get_one(Job, job.id), workitems.find(uid, session=session)
            assert item is not None
            if done.state is JobState.ANALYSED:
                assert (item.state, said) == ("COMPLETED", [Status.COMPLETED_BEFORE])
            else:
                assert (item.state, done.reason_code) == ("CANCELED", "canceled")
                assert set(said) == {"lost", Status.SUCCESS}


# --- search ------------------------------------------------------------------------------


@pytest.fixture
def searchable(api: httpx.Client) -> dict[str, str]:
    """Four items by name."""
    station = code("WS1", "99TEST", "Workstation 1")
    given: dict[str, dict[str, Any]] = {
        "plain": {},
        "urgent": {"ScheduledProcedureStepPriority": "HIGH", "PatientID": "P-17"},
        "named": {
            "PatientName": "Doe^Jane",
            "ScheduledProcedureStepStartDateTime": "20260401120000+0200",
            "ProcedureStepLabel": "Second look",
        },
        "assigned": {
            "ScheduledStationNameCodeSequence": [station],
            "PatientBirthDate": "20100203",
            "ReferencedRequestSequence": [data_set(AccessionNumber="A1", StudyInstanceUID="1.7")],
        },
    }
    return {name: ups.create(api, ups.scheduled(**more)) for name, more in given.items()}


QUERIES: tuple[tuple[dict[str, str], set[str]], ...] = (
    ({}, {"plain", "urgent", "named", "assigned"}),
    ({"ScheduledProcedureStepPriority": "HIGH"}, {"urgent"}),
    ({"00741200": "HIGH"}, {"urgent"}),
    ({"PatientID": "P-1*"}, {"urgent"}),
    ({"PatientID": "P-1?"}, {"urgent"}),
    ({"PatientID": "P-1"}, set()),
    ({"PatientName": "doe*"}, {"named"}),
    ({"ProcedureStepLabel": "*look*"}, {"named"}),
    ({"ProcedureStepLabel": ""}, {"plain", "urgent", "named", "assigned"}),
    ({"ScheduledProcedureStepStartDateTime": "20260314-20260331"}, {"plain", "urgent", "assigned"}),
    ({"ScheduledProcedureStepStartDateTime": "20260401-"}, {"named"}),
    ({"ScheduledProcedureStepStartDateTime": "20260401100000+0000"}, {"named"}),
    ({"ScheduledProcedureStepStartDateTime": "202604"}, {"named"}),
    ({"PatientBirthDate": "-20101231"}, {"assigned"}),
    ({"ScheduledStationNameCodeSequence.CodeValue": "WS1"}, {"assigned"}),
    ({"00404025.00080100": "WS*"}, {"assigned"}),
    ({"ReferencedRequestSequence.StudyInstanceUID": "1.6,1.7"}, {"assigned"}),
    ({"ProcedureStepState": "COMPLETED"}, set()),
    ({"PatientID": "P-17", "ScheduledProcedureStepPriority": "LOW"}, set()),
)


def test_a_search_finds_what_matches_oldest_first(
    api: httpx.Client, searchable: dict[str, str]
) -> None:
    for query, wanted in QUERIES:
        found = ups.found(api, **query)
        assert found == [uid for name, uid in searchable.items() if name in wanted], query
    urgent = searchable["urgent"]
    assert ups.found(api, SOPInstanceUID=urgent) == [urgent]
    assert set(ups.found(api, SOPInstanceUID=f"{urgent},{searchable['plain']}")) == {
        urgent,
        searchable["plain"],
    }


@steps.sqlite_only
def test_a_search_is_paged_and_says_how_many_are_left(
    api: httpx.Client, searchable: dict[str, str]
) -> None:
    order = list(searchable.values())
    for query in ({}, {"PatientID": "", "ScheduledWorkitemCodeSequence.CodeValue": "11*"}):
        page = api.get("/workitems", params={**query, "limit": 1, "offset": 1})
        told(page, 200, "299 /dicomweb: There are 2 additional results that can be requested")
        assert [value(item, "SOPInstanceUID") for item in page.json()] == order[1:2]
        assert api.get("/workitems", params={**query, "offset": 4}).status_code == 204
        assert api.get("/workitems", params={**query, "limit": 0}).status_code == 204


@steps.sqlite_only
def test_a_search_shows_the_usual_attributes_and_those_asked_for(
    api: httpx.Client, searchable: dict[str, str]
) -> None:
    comments = tag("CommentsOnTheScheduledProcedureStep")
    usual = api.get("/workitems").json()[0]
    assert comments not in usual
    more = api.get("/workitems?includefield=CommentsOnTheScheduledProcedureStep").json()[0]
    assert set(more) - set(usual) == {comments}
    everything = api.get("/workitems?includefield=all&limit=1").json()[0]
    assert everything == ups.retrieve(api, searchable["plain"])
    fuzzy = api.get("/workitems?fuzzymatching=true")
    told(fuzzy, 200, "The fuzzymatching parameter is not supported.")


@steps.sqlite_only
@pytest.mark.parametrize(
    "query",
    (
        "Nonsense=1",
        "limit=-1",
        "limit=x",
        "offset=99999999999999999999",
        "fuzzymatching=perhaps",
        "PatientBirthDate=soon",
        "ScheduledWorkitemCodeSequence=110001",
        "PatientID=a&00100020=b",
        "PatientID=a%00b",
        "includefield=Nonsense",
        "ScheduledProcedureStepStartDateTime=20261301",
        "&".join(f"0010{n:04d}=1" for n in range(1000, 1040)),
    ),
)
def test_a_query_that_makes_no_sense_is_refused(api: httpx.Client, query: str) -> None:
    told(api.get(f"/workitems?{query}"), 400)


# --- analyses ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing(Oracle):
    """An Oracle whose segmentation fails."""

    error: Exception = field(default_factory=RuntimeError)

    def segment(self, crops: FloatArray) -> FloatArray:
        raise self.error


def test_an_analysis_is_an_item_from_its_opening_to_its_results(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = uids.derive(job.key, "ups")
    opened = ups.retrieve(api, uid)
    assert value(opened, "ProcedureStepState") == "SCHEDULED"
    assert value(opened, "ProcedureStepLabel") == "Hip inflammation score"
    assert value(opened, "ScheduledProcedureStepPriority") == "MEDIUM"
    assert value(opened, "InputReadinessState") == "READY"
    assert values(opened, "ScheduledWorkitemCodeSequence") == [analysis.HIP_SCORE]
    assert value(opened, "PatientID") == images[0].PatientID
    (given,) = values(opened, "InputInformationSequence")
    assert value(given, "SeriesInstanceUID") == images[0].SeriesInstanceUID
    assert len(values(given, "ReferencedSOPSequence")) == len(images)

    with steps.bench(sent_to(settings, "PACS@127.0.0.1:1"), steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    done = ups.retrieve(api, uid)
    assert value(done, "ProcedureStepState") == "COMPLETED"
    made = {
        row.sop_instance_uid: row.sop_class_uid
        for row in steps.rows(settings, ArtifactRow)
        if row.sop_instance_uid and row.kind != "sr_comprehensive"
    }
    assert ups.outputs(done) == made
    (performed,) = values(done, PERFORMED)
    for series in values(performed, "OutputInformationSequence"):
        (where,) = values(series, "DICOMRetrievalSequence")
        assert value(where, "RetrieveAETitle") == "PACS"
    assert "not for clinical decisions" in value(performed, "CommentsOnThePerformedProcedureStep")
    assert ups.found(api, ProcedureStepState="COMPLETED") == [uid]


def test_a_flagged_result_makes_its_item_urgent_and_nothing_else(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        job = store_steps.a_job(session=session)
        store_steps.claim(job.id, session=session)
        jobs.finish(
            job.id,
            lease="lease-1",
            state=JobState.ANALYSED,
            result={"unet_score": 9.0, "priority": {"flag": True, "reason": "high"}},
            artifacts=[],
            destinations=[],
            timings={},
            now=store_steps.later(1),
            session=session,
        )
        item = workitems.find(uids.derive(job.key, "ups"), session=session)
        assert item is not None
        assert (item.state, item.priority) == ("COMPLETED", "HIGH")


def test_an_item_waits_in_progress_while_its_job_is_tried_again(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        job = store_steps.a_job(session=session)
        store_steps.claim(job.id, session=session)
        item = workitems.find(uids.derive(job.key, "ups"), session=session)
        assert item is not None
        first = item.transaction_uid
        jobs.postpone(
            job.id,
            lease="lease-1",
            error="busy",
            next_attempt_at=store_steps.later(5),
            now=store_steps.later(1),
            session=session,
        )
        assert (item.state, item.transaction_uid) == ("IN PROGRESS", first)
        (progress,) = values(item.attributes, PROGRESS)
        assert "waits" in value(progress, "ProcedureStepProgressDescription")
        store_steps.claim(job.id, session=session, lease="lease-2", now=store_steps.later(9))
        assert item.state == "IN PROGRESS"
        assert item.transaction_uid not in {None, first}
        store_steps.finish(job.id, session=session, lease="lease-2")
        assert item.state == "COMPLETED"


def test_a_failed_analysis_is_a_canceled_item_and_its_retry_a_new_one(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    with steps.bench(settings, Failing(heads=known.heads, error=ValueError("no"))) as at:
        worker.analyse(job.id, at)
    first = uids.derive(job.key, "ups")
    failed = ups.retrieve(api, first)
    assert value(failed, "ProcedureStepState") == "CANCELED"
    (progress,) = values(failed, PROGRESS)
    assert value(progress, "ReasonForCancellation").startswith("ValueError at")
    assert values(progress, "ProcedureStepDiscontinuationReasonCodeSequence")

    root = str(api.base_url).removesuffix("/dicomweb/")
    assert httpx.post(f"{root}/jobs/{job.id}/retry", trust_env=False).status_code == 202
    second = uids.derive(job.key, "ups", "2")
    again = ups.retrieve(api, second)
    assert value(again, "ProcedureStepState") == "SCHEDULED"
    (replaced,) = values(again, "ReplacedProcedureStepSequence")
    assert value(replaced, "ReferencedSOPInstanceUID") == first
    with steps.bench(settings, known) as at:
        worker.analyse(job.id, at)
    assert (ups.state(api, first), ups.state(api, second)) == ("CANCELED", "COMPLETED")


def test_nobody_else_claims_changes_or_ends_what_hipscore_performs(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = uids.derive(job.key, "ups")
    told(ups.to_state(api, uid, "IN PROGRESS"), 409, "hipscore itself performs work item")
    another = data_set(InputInformationSequence=[])
    told(ups.send(api, "POST", f"/workitems/{uid}", another), 409, "hipscore itself performs")
    priority = data_set(ScheduledProcedureStepPriority="HIGH")
    told(ups.send(api, "POST", f"/workitems/{uid}", priority), 200)
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    told(ups.to_state(api, uid, "CANCELED"), 400, "The Transaction UID is incorrect.")
    told(api.post(f"/workitems/{uid}/cancelrequest"), 409, "inconsistent with the state")
    assert ups.state(api, uid) == "COMPLETED"


def test_a_request_cancels_an_analysis_that_is_queued(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = uids.derive(job.key, "ups")
    why = data_set(ReasonForCancellation="wrong patient: Doe^Jane")
    told(ups.send(api, "POST", f"/workitems/{uid}/cancelrequest", why), 202)
    (canceled,) = steps.rows(settings, Job)
    assert (canceled.state, canceled.reason_code) == (JobState.FAILED, "canceled")
    assert "Doe" not in canceled.error  # the reason is the item's alone
    item = ups.retrieve(api, uid)
    assert value(item, "ProcedureStepState") == "CANCELED"
    (progress,) = values(item, PROGRESS)
    assert value(progress, "ReasonForCancellation") == "wrong patient: Doe^Jane"
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    assert steps.rows(settings, Job)[0].state is JobState.FAILED


@dataclass(frozen=True)
class Slow(Oracle):
    """An Oracle that waits to be told to go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def segment(self, crops: FloatArray) -> FloatArray:
        self.reached.set()
        assert self.go_on.wait(30)
        return super().segment(crops)


def test_a_request_cancels_an_analysis_at_work_and_its_result_is_dropped(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = uids.derive(job.key, "ups")
    slow = Slow(heads=steps.knowing((truth, images)).heads)
    with steps.bench(settings, slow) as at:
        analysing = threading.Thread(target=worker.analyse, args=(job.id, at))
        analysing.start()
        assert slow.reached.wait(30)
        assert ups.state(api, uid) == "IN PROGRESS"
        told(api.post(f"/workitems/{uid}/cancelrequest"), 202)
        slow.go_on.set()
        analysing.join()
    assert ups.state(api, uid) == "CANCELED"
    assert steps.rows(settings, Job)[0].reason_code == "canceled"
    assert steps.count(settings, ArtifactRow) == 0


# --- orders ------------------------------------------------------------------------------


def test_an_order_for_images_to_come_becomes_the_item_of_their_analysis(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    uid = ups.create(api, ups.order(images))
    told(ups.to_state(api, uid, "IN PROGRESS"), 409, "hipscore itself performs")
    job = steps.received(settings, images, tmp_path / "scanner")
    assert [value(i, "SOPInstanceUID") for i in ups.of_study(api, images[0].StudyInstanceUID)] == [
        uid
    ]
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    done = ups.retrieve(api, uid)
    assert value(done, "ProcedureStepState") == "COMPLETED"
    assert len(ups.outputs(done)) >= 2


def test_an_order_for_a_queued_analysis_follows_it_beside_its_own_item(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    uid = ups.create(api, ups.order(images, series=False))
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    assert ups.state(api, uid) == ups.state(api, uids.derive(job.key, "ups")) == "COMPLETED"


def test_an_order_for_what_is_done_gets_the_results_at_once(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    with steps.bench(sent_to(settings, "PACS@127.0.0.1:1"), steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    uid = ups.create(api, ups.order(images))
    done = ups.retrieve(api, uid)
    assert value(done, "ProcedureStepState") == "COMPLETED"
    assert ups.outputs(done) == ups.outputs(ups.retrieve(api, uids.derive(job.key, "ups")))


@steps.sqlite_only
def test_an_order_for_what_no_rule_takes_is_analysed_all_the_same(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = phantom.to_datasets(steps.make_phantom())
    for image in images:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with steps.listening(settings) as port:
        assert steps.storescu(port, steps.save(images, tmp_path)).returncode == 0
        servers.wait_until(
            lambda: [row.state for row in steps.rows(settings, Series)] == [SeriesState.IGNORED],
            what="the series is ignored",
        )
    uid = ups.create(api, ups.order(images))
    assert ups.state(api, uid) == "SCHEDULED"
    with steps.bench(settings) as at:
        worker.reap(at)
        (job,) = steps.rows(settings, Job)
        worker.analyse(job.id, at)
    assert ups.state(api, uid) == "COMPLETED"
    assert len(ups.of_study(api, images[0].StudyInstanceUID)) == 1


def test_an_order_tries_a_failed_analysis_again(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    job = steps.received(settings, images, tmp_path / "scanner")
    known = steps.knowing((truth, images))
    with steps.bench(settings, Failing(heads=known.heads, error=ValueError("no"))) as at:
        worker.analyse(job.id, at)
    uid = ups.create(api, ups.order(images))
    assert steps.rows(settings, Job)[0].state is JobState.QUEUED
    with steps.bench(settings, known) as at:
        worker.analyse(job.id, at)
    assert ups.state(api, uid) == "COMPLETED"
    assert len(ups.of_study(api, images[0].StudyInstanceUID)) == 2  # the failed one, and this


def test_an_order_does_not_get_what_a_withdrawn_result_had_replaced(
    maker: sessionmaker[Session],
) -> None:
    uid = ups.new_uid()
    with maker.begin() as session:
        first, _ = store_steps.a_scored_job(session=session)
        late = store_steps.receive(store_steps.image(7), session=session)
        second = store_steps.open_job(late.series_id, session=session)
        assert store_steps.claim(second.id, session=session)
        store_steps.finish(second.id, session=session)
        assert second.supersedes_id == first
        session.get_one(Job, second.id).withdrawn_at = store_steps.NOW
    with maker.begin() as session:
        order = ordered(store_steps.STUDY)
        procedures.create(uid, order, now=store_steps.NOW, session=session)
    with maker.begin() as session:
        assert procedures.waiting(session=session) == []
        assert procedures.take(uid, now=store_steps.NOW, session=session) == []
        item = workitems.find(uid, session=session)
        assert item is not None
        assert (item.state, item.job_id) == ("SCHEDULED", None)


def ordered(study_uid: str, *series: str) -> Any:
    """The attributes of an order of a study, or of series of it."""
    named = [{"SeriesInstanceUID": each} for each in series] or [{}]
    inputs = [
        data_set(StudyInstanceUID=study_uid, TypeOfInstances="DICOM", **each) for each in named
    ]
    return ups.scheduled(what=analysis.HIP_SCORE, InputInformationSequence=inputs)


def test_orders_for_what_never_came_do_not_hold_up_younger_ones(
    maker: sessionmaker[Session],
) -> None:
    def order(*series: str) -> str:
        uid = ups.new_uid()
        attributes = ordered(store_steps.STUDY, *series)
        assert workitems.add(uid, attributes, now=store_steps.NOW, session=session)
        return uid

    there, ignored = store_steps.SERIES, f"{store_steps.SERIES}.8"
    with maker.begin() as session:
        store_steps.a_scored_job(session=session)
        scout = store_steps.receive(store_steps.image(8, series=ignored), session=session)
        assert intake.close(scout.series_id, "quiet_period", now=store_steps.NOW, session=session)
        assert intake.match(
            scout.series_id, matched=False, rule="localizer", now=store_steps.NOW, session=session
        )
        for number in range(3):
            order(f"2.25.{number}")  # nobody has sent these
        possible = [order(there), order(), order(ignored), order("2.25.9", there)]
    with maker.begin() as session:
        assert procedures.waiting(session=session, limit=2) == possible[:2]
        assert procedures.waiting(session=session) == possible
        for uid in possible[:2]:
            assert procedures.take(uid, now=store_steps.NOW, session=session) == []
        assert procedures.take(possible[2], now=store_steps.NOW, session=session) == [
            scout.series_id
        ]
    with maker.begin() as session:
        assert procedures.waiting(session=session, limit=2) == possible[2:]


@steps.sqlite_only
def test_an_order_that_waits_can_be_canceled(api: httpx.Client) -> None:
    _, images = study()
    uid = ups.create(api, ups.order(images))
    told(api.post(f"/workitems/{uid}/cancelrequest"), 202)
    assert ups.state(api, uid) == "CANCELED"


def test_an_item_of_somebody_else_with_our_uid_does_no_harm(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session:
        twin = store_steps.a_job(session=session)
        taken = uids.derive(twin.key, "ups")
        session.rollback()
    with maker.begin() as session:
        now = ups.now()
        procedures.create(taken, ups.scheduled(SOPInstanceUID=taken), now=now, session=session)
    with maker.begin() as session:
        job = store_steps.a_job(session=session)
        own = session.scalars(select(WorkItem).where(WorkItem.job_id == job.id)).one()
        assert own.sop_instance_uid != taken


def test_a_move_costs_few_statements(maker: sessionmaker[Session]) -> None:
    told: list[str] = []

    def note(*given: Any) -> None:
        if "workitem" in given[2] or "subscriptions" in given[2]:
            told.append(given[2].split()[0])

    database = maker.kw["bind"]
    spent: dict[str, list[str]] = {}
    event.listen(database, "before_cursor_execute", note)
    try:
        for name, move in (
            ("open", lambda session: store_steps.a_job(session=session)),
            ("claim", lambda session: store_steps.claim(1, session=session)),
            ("finish", lambda session: store_steps.finish(1, session=session)),
        ):
            with maker.begin() as session:
                move(session)
            spent[name], told = told, []
    finally:
        event.remove(database, "before_cursor_execute", note)
    assert {name: len(each) for name, each in spent.items()} == {
        "open": 4,  # orders that wait, the item, filters, its events
        "claim": 3,  # the item, its change, its event
        "finish": 3,
    }


def test_an_unknown_item_is_not_found(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session, pytest.raises(NotFound):
        procedures.change_state(
            "1.2", State.IN_PROGRESS, transaction_uid="1", now=ups.now(), session=session
        )
