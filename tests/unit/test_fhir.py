"""FHIR resources made of rows, checked by the models of fhir.resources.

Those models are of R4B (4.3.0). DiagnosticReport, Observation, ImagingStudy, Bundle,
OperationOutcome and CapabilityStatement have the same elements there as in R4 (4.0.1).
"""

from __future__ import annotations

import re
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from fhir.resources.R4B.imagingstudy import ImagingStudy
from fhir.resources.R4B.observation import Observation
from fhir.resources.R4B.operationoutcome import OperationOutcome

from hipscore.api.fhir import capability, datatypes, observations, outcome, resources
from hipscore.api.fhir.dates import days, instants
from hipscore.api.fhir.outcome import SearchError
from hipscore.domain import RESEARCH_USE, ArtifactKind, StudyIdentity
from hipscore.lifecycle import JobState, SeriesState
from hipscore.reporting import uids
from hipscore.store.clinical import Days, Image, Imaging, Record
from hipscore.store.tables import ArtifactRow, Job, Series, Study

STUDY = "1.2.826.0.1.3680043.8.498.7"
KEY = "0123456789abcdef" * 4
BASE = "http://127.0.0.1:8080"
DONE = datetime(2026, 3, 14, 9, 30, 5, 250_000, tzinfo=UTC)
MR = "1.2.840.10008.5.1.4.1.1.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")

RIGHT: dict[str, Any] = {
    "side": "right",
    "status": "scored",
    "reason": None,
    "unet_score": 1.9000000476837158,
    "bme_score": 0.7,
    "synovitis_score": 1.2,
    "mean_ratio": 0.17,
    "whole_volume_index": 0.11,
    "slices_used": 11,
    "slices": [],
    "femoral_head_ml": 45.1,
    "bme_ml": 0.0,
    "synovitis_ml": 2.3,
    "effusion_mm": 4.1,
}
LEFT = {**RIGHT, "side": "left", "unet_score": 1.31, "slices_used": 10}
RESULT: dict[str, Any] = {
    "unet_score": 3.21,
    "reason": None,
    "hips": [RIGHT, LEFT],
    "quality": [{"code": "noisy_image", "text": "The left hip is noisy: 2.1 times the noise"}],
}
TOO_FEW = {"code": "too_few_slices", "text": "only 4 slices show a femoral head"}


def study(**more: Any) -> Study:
    identity: dict[str, Any] = {
        "patient_id": "4711",
        "issuer_of_patient_id": "1.2.276.0.76",
        "patient_name": "Doe^Jane^Ann^Dr.^MD=山田^花子",
        "birth_date": "19800229",
        "sex": "F",
        "study_date": "20260314",
        "accession_number": "A-17",
        "referring_physician": "House^Gregory",
        **more,
    }
    identity.setdefault("patient_key", StudyIdentity(patient_id="4711").patient_key)
    known = dict.fromkeys(
        ("study_description", "requested_procedure_description", "priority_reason"), ""
    )
    defaults = {"status": "scored", "reason_code": None, "priority": False, "updated_at": DONE}
    return Study(id=1, study_instance_uid=STUDY, **{**known, **defaults, **identity})


def job(result: dict[str, Any] | None = None, **more: Any) -> Job:
    return Job(
        id=5,
        key=KEY,
        bundle_id="hips",
        bundle_version="1.2",
        bundle_sha256="b" * 64,
        state=JobState.ANALYSED,
        result=deepcopy(RESULT) if result is None else result,
        finished_at=DONE,
        **more,
    )


def record(row: Study | None = None, of: Job | None = None, **more: Any) -> Record:
    artifacts: tuple[ArtifactRow, ...] = more.pop("artifacts", ())
    return Record(
        study=row or study(),
        job=of or job(),
        arriving=more.pop("arriving", False),
        artifacts=artifacts,
        **more,
    )


def made(kind: ArtifactKind, **more: Any) -> ArtifactRow:
    usual: dict[str, Any] = {"purged_at": None, "media_type": "application/dicom"}
    return ArtifactRow(kind=kind, created_at=DONE, **{**usual, **more})


def not_scorable() -> Record:
    result: dict[str, Any] = {"unet_score": None, "reason": TOO_FEW, "hips": [], "quality": []}
    return record(study(status="not_scorable", reason_code="too_few_slices"), job(result))


def withdrawn() -> Record:
    return record(study(status="failed", reason_code="withdrawn"), job(withdrawn_at=DONE))


def report(of: Record) -> dict[str, Any]:
    made_of = resources.report(of, base=BASE)
    DiagnosticReport.model_validate(made_of)
    return made_of


def observed(of: Record, about: str) -> dict[str, Any]:
    made_of = observations.observation(of, about)
    Observation.model_validate(made_of)
    return made_of


def test_a_scored_study_has_a_final_report_with_three_observations() -> None:
    said = report(record())
    assert said["status"] == "final"
    assert said["id"] == STUDY
    assert said["effectiveDateTime"] == "2026-03-14"
    assert said["issued"] == "2026-03-14T09:30:05.250Z"
    assert [each["display"] for each in said["result"]] == [
        "UNet-score, sum of the hips",
        "UNet-score of the right hip",
        "UNet-score of the left hip",
    ]
    assert said["conclusion"] == (
        "UNet-score 3.21 (right 1.90 over 11 slices; left 1.31 over 10 slices). Totals over "
        "different slice counts are not comparable. The left hip is noisy: 2.1 times the noise. "
        "Made by software and not verified by anybody. For research, not for clinical decisions."
    )
    assert said["imagingStudy"] == [{"reference": f"ImagingStudy/{STUDY}"}]
    assert said["identifier"] == [
        {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"},
        {
            "type": {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
                        "code": "ACSN",
                        "display": "Accession ID",
                    }
                ]
            },
            "value": "A-17",
        },
    ]


@pytest.mark.parametrize(
    ("status", "arriving", "said"),
    (
        ("scored", True, "final"),
        ("queued", False, "registered"),
        ("analysing", False, "registered"),
        ("not_scorable", False, "final"),
        ("not_scorable", True, "registered"),
        ("failed", False, "cancelled"),
        ("failed", True, "registered"),
    ),
)
def test_the_status_of_a_report_follows_that_of_the_study(
    status: str, arriving: bool, said: str
) -> None:
    assert report(record(study(status=status), arriving=arriving))["status"] == said


@pytest.mark.parametrize(
    "of", (record(), not_scorable(), withdrawn(), record(study(status="failed"))), ids=str
)
def test_every_report_says_that_it_is_for_research(of: Record) -> None:
    said = report(of)
    assert RESEARCH_USE in said["conclusion"]
    assert RESEARCH_USE in said["text"]["div"]


def test_a_study_that_cannot_be_scored_says_why_in_a_final_report() -> None:
    of = not_scorable()
    assert report(of)["conclusion"].startswith("Not scorable: only 4 slices show a femoral head.")
    said = observed(of, "patient")
    assert said["status"] == "final"
    assert "valueQuantity" not in said
    absent = said["dataAbsentReason"]
    assert absent["text"] == TOO_FEW["text"]
    assert [each["code"] for each in absent["coding"]] == ["not-performed", "TOO_FEW_SLICES"]


def test_a_withdrawn_result_is_in_error_and_shows_no_number() -> None:
    of = withdrawn()
    said = report(of)
    assert said["status"] == "entered-in-error"
    assert said["conclusion"] == (
        "The result was withdrawn by an operator. For research, not for clinical decisions."
    )
    for about in observations.SUBJECTS:
        each = observed(of, about)
        assert each["status"] == "entered-in-error"
        assert not {"valueQuantity", "component", "interpretation"} & set(each)
    assert "1.9" not in str(observed(of, "right"))


def test_a_pending_study_has_no_observation() -> None:
    of = record(study(status="queued"))
    assert "result" not in report(of)
    with pytest.raises(LookupError, match="has no observation about right"):
        observations.observation(of, "right")


def test_a_hip_is_a_quantity_with_components_in_ucum() -> None:
    said = observed(record(), "right")
    assert said["valueQuantity"] == {
        "value": 1.9,
        "unit": "1",
        "system": "http://unitsofmeasure.org",
        "code": "1",
    }
    values = {
        each["code"]["coding"][0]["code"]: (
            each["valueQuantity"]["value"],
            each["valueQuantity"]["code"],
        )
        for each in said["component"]
    }
    assert values == {
        "BME_SCORE": (0.7, "1"),
        "SYNOVITIS_SCORE": (1.2, "1"),
        "SLICES_USED": (11, "{slices}"),
        "MEAN_RATIO": (0.17, "{ratio}"),
        "VOLUME_INDEX": (0.11, "{ratio}"),
        "EFFUSION": (4.1, "mm"),
        "HEAD_VOLUME": (45.1, "mL"),
        "BME_VOLUME": (0.0, "mL"),
        "SYNOV_VOLUME": (2.3, "mL"),
    }
    assert said["bodySite"]["coding"] == [
        {"system": "http://snomed.info/sct", "code": "24136001:272741003=24028007"}
    ]
    assert said["derivedFrom"] == said["partOf"] == [{"reference": f"ImagingStudy/{STUDY}"}]
    tracking = uids.derive(KEY, "tracking", "Right hip")
    assert said["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{tracking}"}]


def test_a_remark_about_one_hip_is_not_said_of_the_other() -> None:
    noisy = {"text": RESULT["quality"][0]["text"]}
    assert noisy in observed(record(), "left")["note"]
    assert noisy in observed(record(), "patient")["note"]
    assert noisy not in observed(record(), "right")["note"]


def test_the_patients_observation_has_the_hips_as_members() -> None:
    said = observed(record(), "patient")
    assert said["valueQuantity"]["value"] == 3.21
    assert [each["reference"].rpartition("-")[2] for each in said["hasMember"]] == ["right", "left"]
    assert [each["valueQuantity"]["value"] for each in said["component"]] == [2, 21]
    assert said["bodySite"]["text"] == "Both hip joints"


def test_the_sum_of_a_single_hip_says_which() -> None:
    unscored = {**LEFT, "unet_score": None, "reason": TOO_FEW}
    of = record(of=job({**RESULT, "hips": [RIGHT, unscored]}))
    assert observed(of, "patient")["bodySite"]["text"] == "Right hip joint"
    assert "left not scored: only 4 slices" in report(of)["conclusion"]
    left = observed(of, "left")
    assert left["dataAbsentReason"]["text"] == TOO_FEW["text"]
    assert "component" not in left


def test_the_priority_flag_is_an_interpretation_with_its_reason() -> None:
    assert "interpretation" not in observed(record(), "patient")
    flagged = record(study(priority=True, priority_reason="the score is above 3"))
    (said,) = observed(flagged, "patient")["interpretation"]
    assert said["coding"][0]["code"] == "A"
    assert said["text"] == "the score is above 3"
    assert "interpretation" not in observed(flagged, "right")


def test_the_device_names_the_model_beyond_doubt() -> None:
    patient, device = observed(record(), "patient")["contained"]
    assert patient["resourceType"] == "Patient"
    assert "b" * 64 in [each["value"] for each in device["version"]]
    assert device["modelNumber"] == "hips"


def test_the_patient_is_contained_with_every_form_of_the_name() -> None:
    (patient,) = report(record())["contained"]
    number, key = patient["identifier"]
    assert (number["system"], number["value"]) == ("urn:oid:1.2.276.0.76", "4711")
    assert key["system"] == "urn:hipscore:patient-key"
    western, ideographic = patient["name"]
    assert western["family"] == "Doe"
    assert western["given"] == ["Jane", "Ann"]
    assert (western["prefix"], western["suffix"]) == (["Dr."], ["MD"])
    assert ideographic["family"] == "山田"
    assert ideographic["extension"][0]["valueCode"] == "IDE"
    assert (patient["gender"], patient["birthDate"]) == ("female", "1980-02-29")


def test_what_the_images_do_not_say_or_say_wrongly_is_left_out() -> None:
    bare = study(
        patient_id="",
        patient_key=None,
        issuer_of_patient_id="",
        patient_name="^^=",
        birth_date="19801399",
        sex="",
        study_date="00000000",
        accession_number="  ",
        referring_physician="",
    )
    said = report(record(bare))
    assert said["contained"] == [{"resourceType": "Patient", "id": "patient"}]
    assert said["subject"] == {"reference": "#patient"}
    assert not {"effectiveDateTime", "basedOn"} & set(said)
    for about in observations.SUBJECTS:
        observed(record(bare), about)


@pytest.mark.parametrize("issuer", ("", "1.2.276.0.76", "Hospital A", "Klinik^Süd&x"))
def test_the_system_of_a_patient_id_leads_back_to_its_issuer(issuer: str) -> None:
    system = datatypes.issuer_system(issuer)
    assert datatypes.issuer_of(system or "") == issuer


def test_the_system_of_somebody_else_leads_to_no_issuer() -> None:
    assert datatypes.issuer_of("http://hospital.example/mrn") is None


def test_ids_are_valid_name_no_patient_and_lead_back_to_the_job() -> None:
    for about in observations.SUBJECTS:
        made_id = observations.observation_id(KEY, about)
        assert _ID.fullmatch(made_id)
        assert observations.parse_id(made_id) == (KEY, about)
    assert _ID.fullmatch(report(record())["id"])


@pytest.mark.parametrize(
    "text", ("", "patient", "-right", "b" * 52 + "-right", "a" * 52 + "-both", "ä" * 52 + "-left")
)
def test_other_ids_lead_nowhere(text: str) -> None:
    assert observations.parse_id(text) is None


def test_another_content_is_another_version_of_the_same_id() -> None:
    one, other = report(record()), report(record(study(accession_number="A-18")))
    assert one["id"] == other["id"]
    assert one["meta"]["lastUpdated"] == other["meta"]["lastUpdated"]
    assert one["meta"]["versionId"] != other["meta"]["versionId"]
    assert report(record())["meta"]["versionId"] == one["meta"]["versionId"]
    assert _ID.fullmatch(one["meta"]["versionId"])


def test_a_pdf_is_presented_as_long_as_it_is_there() -> None:
    there = record(artifacts=(made(ArtifactKind.SR), made(ArtifactKind.PDF)))
    (form,) = report(there)["presentedForm"]
    assert form["contentType"] == "application/pdf"
    assert form["url"] == f"{BASE}/studies/{STUDY}/artifacts/pdf"
    gone = record(artifacts=(made(ArtifactKind.PDF, purged_at=DONE),))
    assert "presentedForm" not in report(gone)


def test_an_imaging_study_counts_what_came_and_what_was_made() -> None:
    series = Series(series_instance_uid="1.2.3", state=SeriesState.MATCHED, last_received_at=DONE)
    images = (Image("1.2.3.1", MR, 1), Image("1.2.3.2", MR, -7), Image("1.2.3.3", MR, None))
    of = record(
        artifacts=(
            made(ArtifactKind.SR, sop_class_uid=SR, sop_instance_uid="2.25.1"),
            made(ArtifactKind.OVERLAY),
        )
    )
    said = resources.imaging_study(Imaging(record=of, series=((series, images),)))
    ImagingStudy.model_validate(said)
    assert [each["code"] for each in said["modality"]] == ["MR", "SR"]
    assert (said["numberOfSeries"], said["numberOfInstances"]) == (2, 4)
    received, reported = said["series"]
    assert received["uid"] == "1.2.3"
    assert [each.get("number") for each in received["instance"]] == [1, None, None]
    assert received["instance"][0]["sopClass"] == {
        "system": "urn:ietf:rfc:3986",
        "code": f"urn:oid:{MR}",
    }
    assert reported["uid"] == uids.derive(KEY, "sr", "series")
    assert reported["numberOfInstances"] == 1
    assert said["started"] == "2026-03-14"
    assert said["referrer"] == {"display": "House Gregory"}


def test_a_withdrawn_report_is_no_series_of_the_study() -> None:
    of = withdrawn()
    kept = made(ArtifactKind.SR, sop_class_uid=SR, sop_instance_uid="2.25.1")
    of = record(of.study, of.job, artifacts=(kept,))
    assert "series" not in resources.imaging_study(Imaging(record=of, series=()))


@pytest.mark.parametrize(
    ("text", "meant"),
    (
        ("2026-03-14", Days(first="20260314", last="20260314")),
        ("eq2026-02", Days(first="20260201", last="20260228")),
        ("2026", Days(first="20260101", last="20261231")),
        ("2026-12", Days(first="20261201", last="20261231")),
        ("ne2026-03-14", Days(first="20260314", last="20260314", outside=True)),
        ("ge2026-03-14", Days(first="20260314")),
        ("gt2026-03-14", Days(first="20260315")),
        ("le2026-03", Days(last="20260331")),
        ("lt2026-03", Days(last="20260228")),
        ("sa2026", Days(first="20270101")),
        ("eb2026", Days(last="20251231")),
        ("ge2026-03-14T10:00:00Z", Days(first="20260314")),
        ("gt2026-03-14T10:00Z", Days(first="20260314")),
        ("gt2026-03-14T23:59Z", Days(first="20260315")),
        ("lt2026-03-14T10:00:00.5+01:00", Days(last="20260314")),
        ("lt2026-03-14T00:00:00Z", Days(last="20260313")),
        ("2026-03-14T10:00Z", Days(first="20260314", last="0")),
        ("ne2026-03-14T10:00Z", Days()),
    ),
)
def test_a_date_of_a_search_means_these_days(text: str, meant: Days) -> None:
    assert days(text, "date") == meant


def test_a_time_of_a_search_is_taken_in_its_zone() -> None:
    found = instants("2026-03-14T10:00:00+02:00", "_lastUpdated")
    assert found.since == datetime(2026, 3, 14, 8, tzinfo=UTC)
    assert found.before == datetime(2026, 3, 14, 8, 0, 1, tzinfo=UTC)
    assert instants("gt2026-03-14", "_lastUpdated").since == datetime(2026, 3, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    (
        "", "today", "20260314", "2026-13", "2026-02-30", "ap2026", "xx2026", "2026-3-1",
        "0000", "9999", "0001-01-01", "2026-03-14T25:00", "2026-03-14T10", "ge", "2026-03-14 ",
        "2026-03-14T10:00:00+99:99",
    ),
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(SearchError):
        days(text, "date")
    with pytest.raises(SearchError):
        instants(text, "_lastUpdated")


def test_the_statement_of_capabilities_is_one() -> None:
    said = capability.statement(BASE)
    CapabilityStatement.model_validate(said)
    assert said["fhirVersion"] == "4.0.1"
    types = {each["type"] for each in said["rest"][0]["resource"]}
    assert types == {"DiagnosticReport", "Observation", "ImagingStudy"}


def test_a_refusal_is_an_operation_outcome() -> None:
    answer = outcome.refusal(400, " date: \n wrong ")
    assert answer.media_type == "application/fhir+json"
    OperationOutcome.model_validate_json(bytes(answer.body))
    assert b'"date: wrong"' in bytes(answer.body)
