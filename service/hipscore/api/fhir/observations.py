"""Observation (FHIR R4): the score of the patient and of each hip of one analysis.

Their ids are made of the key of the job, which says what was analysed by which model: a new
analysis has new Observations, and a withdrawn one keeps its own, entered in error.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from pydicom.sr.coding import Code

from hipscore import __version__
from hipscore.api.fhir.datatypes import (
    DATA_ABSENT,
    INTERPRETATION,
    LOCAL,
    SNOMED,
    Json,
    concept,
    fhir_date,
    instant,
    line,
    patient,
    quantity,
    some,
    stamped,
    subject,
    term,
    uid_identifier,
)
from hipscore.domain import RESEARCH_USE, Remark, Side
from hipscore.reporting import codes, uids
from hipscore.store.clinical import Record, Stage
from hipscore.store.tables import Job

CATEGORY_SYSTEM = "http://terminology.hl7.org/CodeSystem/observation-category"
CATEGORY = "imaging"
CODE = codes.UNET_SCORE
PATIENT = "patient"
#: what an Observation is about, in the order in which a study's are listed
SUBJECTS = (PATIENT, Side.RIGHT.value, Side.LEFT.value)
STATUS = {Stage.REPORTED: "final", Stage.WITHDRAWN: "entered-in-error"}
COUNTS = "Totals over different slice counts are not comparable"
WITHDRAWN = "The result was withdrawn by an operator"

_HEAD_VOLUME = codes.private("HEAD_VOLUME", "Volume of the femoral head")
_BME_VOLUME = codes.private("BME_VOLUME", "Volume of bone marrow edema")
_SYNOVITIS_VOLUME = codes.private("SYNOV_VOLUME", "Volume of synovitis-effusion")
#: components of a hip: key of the result, code, UCUM unit
_HIP = (
    ("bme_score", codes.BME_SCORE, "1"),
    ("synovitis_score", codes.SYNOVITIS_SCORE, "1"),
    ("slices_used", codes.SLICES_USED, "{slices}"),
    ("mean_ratio", codes.MEAN_RATIO, "{ratio}"),
    ("whole_volume_index", codes.VOLUME_INDEX, "{ratio}"),
    ("effusion_mm", codes.EFFUSION, "mm"),
    ("femoral_head_ml", _HEAD_VOLUME, "mL"),
    ("bme_ml", _BME_VOLUME, "mL"),
    ("synovitis_ml", _SYNOVITIS_VOLUME, "mL"),
)
_TRACKING = {PATIENT: "Patient", "right": "Right hip", "left": "Left hip"}
_SITES = {
    PATIENT: (codes.RIGHT_AND_LEFT, "Both hip joints"),
    "right": (codes.RIGHT, "Right hip joint"),
    "left": (codes.LEFT, "Left hip joint"),
}
_LATERALITY = "272741003"  # SNOMED CT attribute
#: a SHA-256 in base 32: a hexadecimal one would leave no room in the 64 characters of an id
_ID = re.compile(rf"(?P<key>[a-z2-7]{{51}}[aq])-(?P<about>{'|'.join(SUBJECTS)})")
_PADDING = "===="


def observation_id(job_key: str, about: str) -> str:
    """Id of the Observation about the patient or one hip."""
    digits = base64.b32encode(bytes.fromhex(job_key)).decode().rstrip("=").lower()
    return f"{digits}-{about}"


def parse_id(text: str) -> tuple[str, str] | None:
    """Key of the job and what the Observation is about; None if this is no such id."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    return base64.b32decode(found["key"].upper() + _PADDING).hex(), found["about"]


def subjects(record: Record) -> list[str]:
    """What the Observations of a study are about; none before there is a result."""
    result = _result(record)
    if result is None:
        return []
    sides = {hip["side"] for hip in result.get("hips", [])}
    return [about for about in SUBJECTS if about == PATIENT or about in sides]


def references(record: Record) -> list[Json]:
    """References to the Observations of a study."""
    job = record.job
    return [] if job is None else [_reference(job, about) for about in subjects(record)]


def observation(record: Record, about: str) -> Json:
    """Observation of the patient or of one hip.

    A withdrawn one says whose and what it was, but not the number, which nobody shall read.

    Raises
    ------
    LookupError
        If the study has no such Observation.
    """
    job, result = record.job, _result(record)
    if job is None or result is None or about not in subjects(record):
        msg = f"study {record.study.study_instance_uid} has no observation about {about}"
        raise LookupError(msg)
    study = record.study
    images = {"reference": f"ImagingStudy/{study.study_instance_uid}"}
    resource = {
        "resourceType": "Observation",
        "id": observation_id(job.key, about),
        **some(
            identifier=[uid_identifier(uids.derive(job.key, "tracking", _TRACKING[about]))],
            partOf=[images],
            status=STATUS[Stage.WITHDRAWN if job.withdrawn_at else Stage.REPORTED],
            category=[term(CATEGORY_SYSTEM, CATEGORY, "Imaging")],
            code=concept(CODE, text=_name(about)),
            subject=subject(study),
            effectiveDateTime=fhir_date(study.study_date),
            issued=None if job.finished_at is None else instant(job.finished_at),
            bodySite=_site(about, result),
            method=concept(codes.METHOD),
            device={"reference": "#device"},
            derivedFrom=[images],
        ),
        **_content(record, job, result, about),
    }
    changed = max(filter(None, (study.updated_at, job.finished_at, job.withdrawn_at)))
    return stamped(resource, changed, [patient(study), device(job)])


def device(job: Job) -> Json:
    """The software that measured, contained: which model, and which hipscore answers."""
    versions = (
        ("model", f"{job.bundle_id} {job.bundle_version}"),
        ("SHA-256 of the model", job.bundle_sha256),
        ("hipscore that gives this answer", __version__),
    )
    return {
        "resourceType": "Device",
        "id": "device",
        "manufacturer": "hipscore",
        "deviceName": [{"name": "hipscore", "type": "user-friendly-name"}],
        "modelNumber": line(job.bundle_id) or "unknown",
        "type": concept(codes.ARTIFICIAL_INTELLIGENCE),
        "version": [
            {"type": {"text": text}, "value": line(value)}
            for text, value in versions
            if line(value)
        ],
        "note": [{"text": RESEARCH_USE}],
    }


def _result(record: Record) -> Mapping[str, Any] | None:
    """The result JSON, if it is to be shown."""
    if record.job is None or record.stage not in STATUS:
        return None
    return record.job.result


def _reference(job: Job, about: str) -> Json:
    return {
        "reference": f"Observation/{observation_id(job.key, about)}",
        "display": _name(about),
    }


def _name(about: str) -> str:
    return "UNet-score, sum of the hips" if about == PATIENT else f"UNet-score of the {about} hip"


def _content(record: Record, job: Job, result: Mapping[str, Any], about: str) -> Json:
    if job.withdrawn_at is not None:
        return {
            "dataAbsentReason": term(DATA_ABSENT, "error", "Error", text=WITHDRAWN),
            "note": _notes(WITHDRAWN, RESEARCH_USE),
        }
    if about == PATIENT:
        return _of_patient(record, job, result)
    hip = next(each for each in result["hips"] if each["side"] == about)
    reason = hip.get("reason")
    quality = _about_side(result, about)
    return {
        **_value(hip.get("unet_score"), reason),
        "note": _notes(*quality, *([] if reason is None else [reason["text"]]), RESEARCH_USE),
        **some(component=[] if hip.get("unet_score") is None else _components(hip)),
    }


def _of_patient(record: Record, job: Job, result: Mapping[str, Any]) -> Json:
    scored = [hip for hip in result.get("hips", []) if hip.get("unet_score") is not None]
    components = []
    if scored:
        slices = sum(hip.get("slices_used", 0) for hip in scored)
        components = [
            _component(codes.HIPS_SCORED, len(scored), "{hips}"),
            _component(codes.SLICES_USED, slices, "{slices}"),
        ]
    reason = result.get("reason")
    texts = [each["text"] for each in result.get("quality", [])]
    texts.append(COUNTS if reason is None else reason["text"])
    flagged = record.current and record.study.priority
    return {
        **_value(result.get("unet_score"), reason),
        **some(
            interpretation=[
                term(INTERPRETATION, "A", "Abnormal", text=record.study.priority_reason)
            ]
            if flagged
            else [],
            note=_notes(*texts, RESEARCH_USE),
            hasMember=[_reference(job, each) for each in subjects(record) if each != PATIENT],
            component=components,
        ),
    }


def _value(score: float | None, reason: Mapping[str, str] | None) -> Json:
    if score is not None:
        return {"valueQuantity": quantity(score)}
    absent = term(DATA_ABSENT, "not-performed", "Not Performed")
    if reason is not None:
        code = codes.remark_code(Remark(code=reason["code"], text=reason["text"]))
        absent["coding"].extend(concept(code)["coding"])
        absent.update(some(text=line(reason["text"])))
    return {"dataAbsentReason": absent}


def _components(hip: Mapping[str, Any]) -> list[Json]:
    return [
        _component(code, hip[key], unit) for key, code, unit in _HIP if hip.get(key) is not None
    ]


def _component(code: Code, value: float, unit: str) -> Json:
    return {"code": concept(code), "valueQuantity": quantity(value, unit)}


def _about_side(result: Mapping[str, Any], side: str) -> list[str]:
    """Quality remarks that name this side, and those that name none."""
    other = "left" if side == "right" else "right"
    texts = [each["text"] for each in result.get("quality", [])]
    return [text for text in texts if side in text.lower() or other not in text.lower()]


def _notes(*texts: str) -> list[Json]:
    return [{"text": line(text)} for text in texts if line(text)]


def _site(about: str, result: Mapping[str, Any]) -> Json:
    """The joint with its side in one SNOMED CT expression: codings side by side are synonyms."""
    sides = [hip["side"] for hip in result.get("hips", []) if hip.get("unet_score") is not None]
    laterality, text = _SITES[sides[0] if about == PATIENT and len(sides) == 1 else about]
    code = f"{codes.HIP_JOINT.value}:{_LATERALITY}={laterality.value}"
    return term(SNOMED, code, text=text)


def tokens() -> set[tuple[str, str]]:
    """System and code of :data:`CODE`, as searches name it."""
    return {(LOCAL, str(CODE.value))}
