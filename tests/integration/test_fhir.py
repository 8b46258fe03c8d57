"""The FHIR API behind a real server, over both databases, checked by fhir.resources."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import pytest
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.operationoutcome import OperationOutcome
from sqlalchemy import Engine, event, update
from sqlalchemy.orm import Session, sessionmaker

from hipscore.api.fhir import observations
from hipscore.domain import ArtifactKind, StudyIdentity
from hipscore.lifecycle import JobState
from hipscore.settings import Settings
from hipscore.store import clinical, jobs, studies, summary
from hipscore.store import engine as database_engine
from hipscore.store.clinical import Order, Place, Wanted
from hipscore.store.engine import transaction
from hipscore.store.tables import Job
from tests.integration import store_steps as steps
from tests.integration.shell_steps import sqlite_only
from tests.integration.test_api import analysed, serving

HIP: dict[str, Any] = {
    "status": "scored",
    "reason": None,
    "bme_score": 0.7,
    "synovitis_score": 1.2,
    "mean_ratio": 0.17,
    "whole_volume_index": 0.11,
    "slices_used": 11,
    "slices": [],
    "femoral_head_ml": 45.1,
    "bme_ml": 1.0,
    "synovitis_ml": 2.3,
    "effusion_mm": 4.1,
}
FHIR = "application/fhir+json"


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


def scored(
    number: int,
    *,
    maker: sessionmaker[Session],
    patient: str = "4711",
    issuer: str = "",
    day: str = "20260314",
    sides: tuple[str, ...] = ("right", "left"),
    reason: str | None = None,
) -> str:
    """Study ``number`` of a patient is analysed; its UID."""
    uid = f"1.2.826.0.1.{number}"
    identity = StudyIdentity(
        patient_id=patient,
        issuer_of_patient_id=issuer,
        patient_name="Doe^Jane",
        study_date=day,
        accession_number=f"A{number}",
    )
    told = None if reason is None else {"code": reason, "text": "because"}
    hips = [{**HIP, "side": side, "unet_score": 1.5} for side in sides]
    with transaction(maker) as session:
        job = steps.a_job(session=session, series=f"{uid}.7", study=uid)
        studies.identify(job.series_id, identity, now=steps.NOW, session=session)
        assert steps.claim(job.id, session=session)
        jobs.finish(
            job.id,
            lease="lease-1",
            state=JobState.ANALYSED if reason is None else JobState.NOT_SCORABLE,
            result={
                "unet_score": 1.5 * len(sides) if reason is None else None,
                "reason": told,
                "hips": hips if reason is None else [],
                "quality": [],
            },
            artifacts=[steps.artifact(kind, job.id) for kind in steps.ALL_ARTIFACTS],
            destinations=(),
            timings={},
            now=steps.NOW,
            session=session,
        )
    return uid


def withdraw(uid: str, *, maker: sessionmaker[Session]) -> None:
    """An operator retracts the result of a study."""
    with transaction(maker) as session:
        row = studies.by_uid(uid, session=session)
        assert row is not None
        job = session.get_one(Job, row.job_id)
        session.execute(update(Job).where(Job.id == job.id).values(withdrawn_at=steps.NOW))
        session.expire_all()
        summary.refresh(job.series_id, now=steps.later(60), session=session)


def bundle(answer: httpx.Response) -> dict[str, Any]:
    """The Bundle of an answer that must be one, each of its resources checked."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == FHIR
    said: dict[str, Any] = answer.json()
    Bundle.model_validate(said)
    for entry in said.get("entry", []):
        get_fhir_model_class(entry["resource"]["resourceType"]).model_validate(entry["resource"])
    return said


def found(answer: httpx.Response, mode: str = "match") -> list[str]:
    """Ids of what a search found, in order."""
    entries = bundle(answer).get("entry", [])
    return [each["resource"]["id"] for each in entries if each["search"]["mode"] == mode]


def refusal(answer: httpx.Response, status: int, code: str) -> str:
    """What the OperationOutcome of a refused request says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == FHIR
    OperationOutcome.model_validate(answer.json())
    (issue,) = answer.json()["issue"]
    assert issue["code"] == code
    return str(issue["diagnostics"])


def following(said: dict[str, Any]) -> str | None:
    """URL of the next page."""
    links = {each["relation"]: each["url"] for each in said["link"]}
    return links.get("next")


@sqlite_only
def test_a_score_made_by_the_service_is_found_with_its_observations(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = analysed(settings, tmp_path)
    score = api.get(f"/studies/{uid}/score").json()
    answer = api.get("/fhir/DiagnosticReport", params={"_include": "DiagnosticReport:result"})
    assert found(answer) == [uid]
    parts = {
        each["resource"]["id"].rpartition("-")[2]: each["resource"]
        for each in bundle(answer)["entry"]
        if each["search"]["mode"] == "include"
    }
    assert set(parts) == {"patient", "right", "left"}
    values = {about: each["valueQuantity"]["value"] for about, each in parts.items()}
    expected = {hip["side"]: round(hip["unet_score"], 6) for hip in score["hips"]}
    assert values == {**expected, "patient": round(score["unet_score"], 6)}
    for reference in bundle(answer)["entry"][0]["resource"]["result"]:
        assert api.get(f"/fhir/{reference['reference']}").status_code == 200

    images = api.get(f"/fhir/ImagingStudy/{uid}").json()
    assert [each["code"] for each in images["modality"]][:1] == ["MR"]
    for kind in ("seg", "sr"):
        link = api.get(f"/studies/{uid}/score").json()["artifacts"][kind]
        assert api.get(link).status_code == 200
    assert {"SEG", "SR"} <= {each["modality"]["code"] for each in images["series"]}


@sqlite_only
def test_the_series_of_an_imaging_study_are_those_of_the_objects(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    from io import BytesIO

    from pydicom import dcmread

    uid = analysed(settings, tmp_path)
    series = api.get(f"/fhir/ImagingStudy/{uid}").json()["series"]
    listed = {
        image["uid"]: (each["uid"], each["modality"]["code"])
        for each in series
        for image in each["instance"]
    }
    for kind in ("seg", "sr"):
        made = dcmread(BytesIO(api.get(f"/studies/{uid}/artifacts/{kind}").content))
        assert listed[made.SOPInstanceUID] == (made.SeriesInstanceUID, made.Modality)


def test_a_patient_is_searched_by_the_opaque_key(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    mine, other = scored(1, maker=maker), scored(2, maker=maker, patient="4712")
    (patient,) = api.get(f"/fhir/DiagnosticReport/{mine}").json()["contained"]
    key = patient["identifier"][1]["value"]
    for name, value in (("patient", f"Patient/{key}"), ("subject", key), ("patient:Patient", key)):
        assert found(api.get("/fhir/DiagnosticReport", params={name: value})) == [mine]
    assert len(found(api.get("/fhir/Observation", params={"patient": key}))) == 3
    assert found(api.get("/fhir/ImagingStudy", params={"patient": f"Patient/{key}"})) == [mine]
    both = f"{key},{StudyIdentity(patient_id='4712').patient_key}"
    assert found(api.get("/fhir/DiagnosticReport", params={"patient": both})) == [other, mine]
    assert found(api.get("/fhir/DiagnosticReport", params={"patient": "Patient/4711"})) == []


def test_a_patients_own_identifier_is_taken_by_post_only(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    plain = scored(1, maker=maker)
    issued = scored(2, maker=maker, issuer="1.2.276.0.76")
    scored(3, maker=maker, patient="4712")
    for name in ("patient.identifier", "subject.identifier", "patient:identifier"):
        said = refusal(api.get("/fhir/DiagnosticReport", params={name: "4711"}), 400, "security")
        assert "POST" in said
        assert "4711" not in said
        sneaked = api.post("/fhir/DiagnosticReport/_search", params={name: "4711"})
        refusal(sneaked, 400, "security")

    def search(value: str, **more: str) -> httpx.Response:
        form = {"patient.identifier": value, **more}
        return api.post("/fhir/DiagnosticReport/_search", data=form)

    assert found(search("4711")) == [issued, plain]
    assert found(search("|4711")) == [plain]
    assert found(search("urn:oid:1.2.276.0.76|4711")) == [issued]
    assert found(search("http://hospital.example|4711")) == []
    assert found(search("4713")) == []

    first = bundle(search("4711", _count="1"))
    assert "4711" not in str(first["link"])
    url = following(first)
    assert url is not None
    assert found(api.get(url)) == [plain]


def test_what_is_posted_as_the_key_of_a_patient_by_mistake_is_not_repeated(
    api: httpx.Client,
) -> None:
    answer = api.post("/fhir/Observation/_search", data={"patient": "Doe^Jane"})
    assert found(answer) == []
    assert "Doe" not in answer.text


def test_a_study_is_searched_by_uid_or_accession_number(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    one, two = scored(1, maker=maker), scored(2, maker=maker)
    for kind in ("DiagnosticReport", "ImagingStudy"):
        for value, expected in (
            (f"urn:dicom:uid|urn:oid:{one}", [one]),
            (f"urn:oid:{one}", [one]),
            ("A2", [two]),
            ("|A2", [two]),
            (f"A1,urn:oid:{two}", [two, one]),
            ("http://hospital.example|A1", []),
            (f"http://hospital.example|urn:oid:{one}", []),
        ):
            assert found(api.get(f"/fhir/{kind}", params={"identifier": value})) == expected
    mine = api.get("/fhir/Observation", params={"derived-from": f"ImagingStudy/{one}"})
    assert len(found(mine)) == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    (
        ("date=2026-03-14", [1]),
        ("date=2026-03", [2, 1]),
        ("date=ge2026-03-15", [3, 2]),
        ("date=gt2026-03-15", [3]),
        ("date=le2026-03-14", [1]),
        ("date=lt2026-04&date=gt2026-03-14", [2]),
        ("date=2026-03-14,2026-04", [3, 1]),
        ("date=ne2026-03", [3]),
        ("date=sa2026-03", [3]),
        ("date=eb2026-03-15", [1]),
        ("date=2026-03-14T10:00:00Z", []),
        ("date=1999", []),
        ("_sort=date", [4, 1, 2, 3]),
        ("_sort=-date", [3, 2, 1, 4]),
        ("_lastUpdated=ge2026-03-14", [4, 3, 2, 1]),
        ("_lastUpdated=2026-03-14T09:30:00Z", [4, 3, 2, 1]),
        ("_lastUpdated=ne2026-03-14", []),
        ("_lastUpdated=lt2026-03-14,gt2026-03-14", []),
    ),
)
def test_studies_are_searched_by_date(
    maker: sessionmaker[Session], api: httpx.Client, query: str, expected: list[int]
) -> None:
    uids = {
        number: scored(number, maker=maker, day=day)
        for number, day in enumerate(("20260314", "20260315", "20260401", ""), start=1)
    }
    assert found(api.get(f"/fhir/DiagnosticReport?{query}")) == [uids[each] for each in expected]


def test_studies_are_searched_by_status(maker: sessionmaker[Session], api: httpx.Client) -> None:
    good = scored(1, maker=maker)
    refused = scored(2, maker=maker, reason="not_mr")
    retracted = scored(3, maker=maker)
    withdraw(retracted, maker=maker)
    with transaction(maker) as session:
        pending = steps.a_job(session=session, series="1.2.4.7", study="1.2.4")
        broken = steps.a_job(session=session, series="1.2.5.7", study="1.2.5")
        steps.claim(broken.id, session=session)
        jobs.fail(broken.id, lease="lease-1", error="x", now=steps.NOW, session=session)
        # it has no score, and another series of its study is on its way
        steps.receive(steps.image(1, series="1.2.9.1", study=scored_study_of(6)), session=session)
        steps.receive(steps.image(1, series="1.2.10.1", study="1.2.10"), session=session)
    assert pending.id
    waiting = scored(6, maker=maker, reason="not_mr")

    def reports(status: str) -> set[str]:
        return set(found(api.get("/fhir/DiagnosticReport", params={"status": status})))

    assert reports("final") == {good, refused}
    assert reports("registered") == {"1.2.4", waiting}
    assert reports("cancelled") == {"1.2.5"}
    assert reports("entered-in-error") == {retracted}
    assert reports("final,cancelled") == {good, refused, "1.2.5"}
    assert reports("http://hl7.org/fhir/diagnostic-report-status|final") == {good, refused}
    assert reports("amended") == set()
    # what the store finds for a status is what the resource then says
    for each in bundle(api.get("/fhir/DiagnosticReport"))["entry"]:
        assert each["resource"]["id"] in reports(each["resource"]["status"])
    observed = bundle(api.get("/fhir/Observation"))["entry"]
    assert len(observed) == 3 + 1 + 3
    in_error = found(api.get("/fhir/Observation", params={"status": "entered-in-error"}))
    assert len(in_error) == 3
    # a study without a job has images, but nothing to report on
    assert "1.2.10" in found(api.get("/fhir/ImagingStudy"))
    refusal(api.get("/fhir/DiagnosticReport/1.2.10"), 404, "not-found")


def scored_study_of(number: int) -> str:
    """The UID that :func:`scored` gives study ``number``."""
    return f"1.2.826.0.1.{number}"


def test_codes_are_searched_with_and_without_their_system(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    for value in (
        "UNET_SCORE",
        "urn:hipscore:99HIPSCORE|UNET_SCORE",
        "urn:hipscore:99HIPSCORE|",
        "x,126000",
    ):
        assert found(api.get("/fhir/DiagnosticReport", params={"code": value})) == [uid]
    for value in ("126000", "http://loinc.org|UNET_SCORE", "|UNET_SCORE"):
        assert found(api.get("/fhir/Observation", params={"code": value})) == []
    assert found(api.get("/fhir/DiagnosticReport", params={"category": "RAD"})) == [uid]
    assert found(api.get("/fhir/DiagnosticReport", params={"category": "LAB"})) == []


@pytest.mark.parametrize("kind", ("DiagnosticReport", "Observation", "ImagingStudy"))
@pytest.mark.parametrize("order", ("", "date", "-date"))
def test_pages_show_everything_once_in_the_order_of_one_page(
    maker: sessionmaker[Session], api: httpx.Client, kind: str, order: str
) -> None:
    for number, day in enumerate(("20260314", "20260101", "20260314", "", "20260314"), start=1):
        scored(number, maker=maker, day=day, sides=("right",) if number % 2 else ("right", "left"))
    sort = {"_sort": order.replace("date", "started") if kind == "ImagingStudy" else order}
    params = {name: value for name, value in sort.items() if value}
    whole = found(api.get(f"/fhir/{kind}", params={**params, "_count": "200"}))
    assert len(whole) == len(set(whole)) == (12 if kind == "Observation" else 5)
    seen: list[str] = []
    url: str | None = str(httpx.URL(f"{api.base_url}/fhir/{kind}", params={**params, "_count": 2}))
    while url is not None:
        page = api.get(url)
        assert len(found(page)) <= 2
        seen += found(page)
        url = following(bundle(page))
    assert seen == whole


def test_a_page_goes_on_where_its_study_has_gone(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uids = [scored(number, maker=maker) for number in (1, 2, 3)]
    url = following(bundle(api.get("/fhir/DiagnosticReport?status=final&_count=1")))
    assert url is not None
    withdraw(uids[1], maker=maker)
    assert found(api.get(url)) == [uids[0]]


def test_a_search_costs_the_same_statements_for_any_number_of_studies(
    database: Engine, maker: sessionmaker[Session]
) -> None:
    for number in range(1, 13):
        scored(number, maker=maker)
    statements: list[str] = []

    @event.listens_for(database, "before_cursor_execute")
    def _count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for limit in (1, 10):
        statements.clear()
        with database_engine.readers(database)() as session:
            records = clinical.records(Wanted(), limit=limit, session=session)
            assert len(clinical.imaging(records, session=session)) == limit
        assert sum(each.lstrip().startswith("SELECT") for each in statements) == 4


@pytest.mark.parametrize(
    "wanted",
    (
        Wanted(patients=frozenset({"x"})),
        Wanted(named=(frozenset({"1.2"}), frozenset({"A1"}))),
        Wanted(studies=frozenset({"1.2"})),
        Wanted(days=((clinical.Days(first="20260314", last="20260314"),),)),
    ),
    ids=("patient", "identifier", "id", "date"),
)
@sqlite_only
def test_searches_use_an_index(
    database: Engine, maker: sessionmaker[Session], wanted: Wanted
) -> None:
    for number in range(1, 4):
        scored(number, maker=maker)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(database, "before_cursor_execute")
    def _keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    with database_engine.readers(database)() as session:
        clinical.records(wanted, order=Order.NEWEST, start=Place("20260314", 2), session=session)
    statement, parameters = next(each for each in asked if "FROM studies" in each[0])
    with database.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    scans = [str(row[-1]) for row in plan if str(row[-1]).startswith("SCAN studies")]
    assert not [each for each in scans if "INDEX" not in each]


def test_totals_are_counted_where_they_are_asked_for(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    for number in (1, 2, 3):
        scored(number, maker=maker)
    for query in ("_count=0", "_summary=count"):
        said = bundle(api.get(f"/fhir/DiagnosticReport?{query}"))
        assert said["total"] == 3
        assert "entry" not in said
    assert "total" not in bundle(api.get("/fhir/DiagnosticReport"))
    refusal(api.get("/fhir/Observation?_count=0"), 400, "not-supported")


def test_observations_are_read_and_searched_by_their_ids(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    scored(1, maker=maker)
    scored(2, maker=maker)
    ids = found(api.get("/fhir/Observation"))
    assert len(ids) == 6
    two = f"{ids[0]},{ids[4]}"
    assert found(api.get("/fhir/Observation", params={"_id": two})) == [ids[0], ids[4]]
    for each in ids:
        assert api.get(f"/fhir/Observation/{each}").json()["id"] == each
    refusal(api.get(f"/fhir/Observation/{ids[0][:-7]}both"), 404, "not-found")
    refusal(api.get(f"/fhir/Observation/{'a' * 52}-left"), 404, "not-found")


def test_a_new_analysis_has_new_observations_and_the_old_ones_are_gone(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    before = found(api.get("/fhir/Observation"))
    with transaction(maker) as session:
        late = steps.receive(steps.image(9, series=f"{uid}.7", study=uid), session=session)
        newer = steps.open_job(late.series_id, session=session)
        assert steps.claim(newer.id, session=session)
        steps.finish(newer.id, session=session, kinds=(ArtifactKind.SR,), destinations=())
    after = found(api.get("/fhir/Observation"))
    assert not set(before) & set(after)
    said = refusal(api.get(f"/fhir/Observation/{before[0]}"), 410, "deleted")
    assert f"DiagnosticReport/{uid}" in said


def test_a_withdrawn_observation_can_still_be_read_as_an_error(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    first = found(api.get("/fhir/Observation"))[0]
    with transaction(maker) as session:
        steps.a_scored_job(session=session, series=f"{uid}.8", study=uid, destinations=())
    # another series speaks for the study now; withdrawn, the first is not gone but in error
    refusal(api.get(f"/fhir/Observation/{first}"), 410, "deleted")
    key, _ = observations.parse_id(first) or ("", "")
    with transaction(maker) as session:
        session.execute(update(Job).where(Job.key == key).values(withdrawn_at=steps.NOW))
    assert api.get(f"/fhir/Observation/{first}").json()["status"] == "entered-in-error"


def test_a_version_that_the_client_has_is_not_sent_again(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    url = f"/fhir/DiagnosticReport/{uid}"
    first = api.get(url)
    tag = first.headers["etag"]
    assert tag == f'W/"{first.json()["meta"]["versionId"]}"'
    for known in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        again = api.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    withdraw(uid, maker=maker)
    changed = api.get(url, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["status"] == "entered-in-error"


def test_images_that_arrive_change_the_version_of_an_imaging_study(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    before = api.get(f"/fhir/ImagingStudy/{uid}")
    with transaction(maker) as session:
        late = steps.image(9, series=f"{uid}.7", study=uid)
        steps.receive(late, session=session, now=steps.NOW + timedelta(hours=1))
    after = api.get(f"/fhir/ImagingStudy/{uid}", headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.json()["numberOfInstances"] == before.json()["numberOfInstances"] + 1
    assert after.json()["meta"]["lastUpdated"] > before.json()["meta"]["lastUpdated"]


@pytest.mark.parametrize(
    ("path", "code"),
    (
        ("DiagnosticReport?date=yesterday", "invalid"),
        ("DiagnosticReport?_lastUpdated=ge2026-02-30", "invalid"),
        ("ImagingStudy?started=20260314", "invalid"),
        ("DiagnosticReport?_count=-1", "invalid"),
        ("DiagnosticReport?_count=many", "invalid"),
        ("DiagnosticReport?_cursor=1", "invalid"),
        ("DiagnosticReport?_cursor=.99999999999999999999.0", "invalid"),
        ("DiagnosticReport?_sort=status", "not-supported"),
        ("DiagnosticReport?code:not=x", "not-supported"),
        ("DiagnosticReport?patient.name=Doe", "not-supported"),
        ("DiagnosticReport?identifier=a&identifier=b", "not-supported"),
        ("DiagnosticReport?identifier=a%00b", "invalid"),
        ("DiagnosticReport?identifier=" + ",".join("a" * 101), "too-costly"),
        ("Observation?_summary=count", "not-supported"),
    ),
)  # fmt: skip
@sqlite_only
def test_a_search_that_cannot_be_answered_is_refused(
    api: httpx.Client, path: str, code: str
) -> None:
    refusal(api.get(f"/fhir/{path}"), 400, code)


@sqlite_only
def test_unknown_parameters_are_ignored_unless_the_client_is_strict(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    url = "/fhir/DiagnosticReport?performer=x&_format=json"
    assert found(api.get(url)) == [uid]
    (own,) = bundle(api.get(url))["link"]
    assert "performer" not in own["url"]
    strict = {"Prefer": "respond-async, handling=strict"}
    assert "performer" in refusal(api.get(url, headers=strict), 400, "not-supported")
    included = "/fhir/DiagnosticReport?_include=DiagnosticReport:subject"
    assert found(api.get(included)) == [uid]
    refusal(api.get(included, headers=strict), 400, "not-supported")


@sqlite_only
def test_whatever_goes_wrong_below_fhir_is_an_operation_outcome(
    settings: Settings, api: httpx.Client
) -> None:
    refusal(api.get("/fhir/Patient/1"), 404, "not-found")
    refusal(api.get("/fhir/DiagnosticReport/1.2.404"), 404, "not-found")
    refusal(api.get("/fhir/DiagnosticReport/" + quote("../../x", safe="")), 404, "not-found")
    refusal(api.get("/fhir/ImagingStudy/" + "1" * 65), 404, "not-found")
    refusal(api.delete("/fhir/DiagnosticReport/1.2.3"), 405, "not-supported")
    refusal(api.get("/fhir/metadata", headers={"Accept": "application/xml"}), 406, "not-supported")
    refusal(api.get("/fhir/Observation?_format=xml"), 406, "not-supported")
    evil = {"Origin": "https://evil.example"}
    refusal(api.post("/fhir/Observation/_search", headers=evil), 403, "forbidden")
    refusal(api.get("/fhir/metadata", headers={"Host": "evil.example"}), 421, "security")
    posted = api.post("/fhir/Observation/_search", json={"date": "2026"})
    refusal(posted, 415, "not-supported")
    long = api.post("/fhir/Observation/_search", data={"_id": "x" * 70_000})
    refusal(long, 413, "too-long")
    database_engine.downgrade(settings.database)
    answer = api.get("/fhir/DiagnosticReport")
    assert answer.status_code in {500, 503}
    OperationOutcome.model_validate(answer.json())


@sqlite_only
def test_a_database_that_is_away_is_told_as_transient(settings: Settings) -> None:
    from pydantic import SecretStr

    away = settings.model_copy(
        update={"database_url": SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/x")}
    )
    with serving(away) as client:
        answer = client.get("/fhir/DiagnosticReport")
    refusal(answer, 503, "transient")
    assert int(answer.headers["retry-after"]) > 0


@sqlite_only
def test_a_search_without_parameters_may_be_posted_empty(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    uid = scored(1, maker=maker)
    assert found(api.post("/fhir/DiagnosticReport/_search")) == [uid]
    assert found(api.post("/fhir/DiagnosticReport/_search?status=final")) == [uid]


@sqlite_only
def test_every_parameter_of_the_statement_works(
    maker: sessionmaker[Session], api: httpx.Client
) -> None:
    """What the CapabilityStatement promises is taken by a strict search."""
    from fhir.resources.R4B.capabilitystatement import CapabilityStatement

    uid = scored(1, maker=maker)
    said = api.get("/fhir/metadata")
    assert said.headers["content-type"] == FHIR
    CapabilityStatement.model_validate(said.json())
    (rest,) = said.json()["rest"]
    values = {"date": "ge2026", "started": "ge2026", "_lastUpdated": "ge2026"}
    for resource in rest["resource"]:
        for parameter in resource["searchParam"]:
            query = {parameter["name"]: values.get(parameter["name"], uid)}
            answer = api.get(
                f"/fhir/{resource['type']}", params=query, headers={"Prefer": "handling=strict"}
            )
            bundle(answer)
            (link,) = bundle(answer)["link"]
            assert [name for name, _ in parse_qsl(urlsplit(link["url"]).query)] == list(query)


@sqlite_only
def test_no_url_names_a_patient(maker: sessionmaker[Session], api: httpx.Client) -> None:
    scored(1, maker=maker, patient="MRN4711")
    for kind in ("DiagnosticReport", "Observation", "ImagingStudy"):
        for each in bundle(api.get(f"/fhir/{kind}?_count=1"))["entry"]:
            text = json.dumps(each)
            urls = re.findall(r'"(?:fullUrl|url|reference)": "([^"]+)"', text)
            assert urls
            assert not [url for url in urls if "MRN4711" in url or "Doe" in url]
