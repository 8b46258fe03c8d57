"""DiagnosticReport and ImagingStudy (FHIR R4) of a study, from the rows of the store.

Both have the Study Instance UID as their id: it is stable, says nothing about the patient,
and fits into the 64 characters that FHIR allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from hipscore import __version__
from hipscore.api.fhir import observations
from hipscore.api.fhir.datatypes import (
    DICOM,
    SNOMED,
    URI,
    Json,
    accession,
    concept,
    fhir_date,
    instant,
    line,
    patient,
    some,
    stamped,
    subject,
    term,
    uid_identifier,
)
from hipscore.domain import RESEARCH_USE, ArtifactKind
from hipscore.reporting import codes, uids
from hipscore.store.clinical import Image, Imaging, Record, Stage
from hipscore.store.tables import Job, Series, Study

REPORT_CODES = (codes.UNET_SCORE, codes.MEASUREMENT_REPORT)
CATEGORY_SYSTEM = "http://terminology.hl7.org/CodeSystem/v2-0074"
CATEGORY = "RAD"
STATUS = {
    Stage.PENDING: "registered",
    Stage.REPORTED: "final",
    Stage.FAILED: "cancelled",
    Stage.WITHDRAWN: "entered-in-error",
}
_TITLE = "Automatic hip inflammation score on MRI (UNet-score)"
#: what is accepted, and what is made, by kind of artifact
_RECEIVED = "MR"
_MADE = {
    ArtifactKind.SEG: ("SEG", "seg"),
    ArtifactKind.SR: ("SR", "sr"),
    ArtifactKind.SC: ("OT", "sc"),
    ArtifactKind.PDF: ("DOC", "pdf"),
}
_LARGEST = 2**31 - 1  # FHIR unsignedInt


def report(record: Record, *, base: str) -> Json:
    """DiagnosticReport of a study.

    ``final`` says that nothing more will come from here: with a score, or with the reason
    why there is none. Nobody has verified it, as its text says.

    Parameters
    ----------
    record
        The study and the job that speaks for it.
    base
        Where the application is mounted, for links to what is not FHIR.

    Raises
    ------
    LookupError
        If there is nothing to report on.
    """
    stage, job, study = record.stage, record.job, record.study
    if stage is None or job is None:
        msg = f"study {study.study_instance_uid} has no report"
        raise LookupError(msg)
    text = _conclusion(stage, job)
    ended = stage is not Stage.PENDING
    resource = {
        "resourceType": "DiagnosticReport",
        "id": study.study_instance_uid,
        **some(
            text=_narrative(text),
            identifier=[uid_identifier(study.study_instance_uid), *_order_number(study)],
            basedOn=_order(study),
            status=STATUS[stage],
            category=[term(CATEGORY_SYSTEM, CATEGORY, "Radiology")],
            code=concept(*REPORT_CODES, text=_TITLE),
            subject=subject(study),
            effectiveDateTime=fhir_date(study.study_date),
            issued=instant(job.finished_at) if ended and job.finished_at else None,
            performer=[{"display": _performer(job)}] if ended else [],
            result=observations.references(record),
            imagingStudy=[{"reference": f"ImagingStudy/{study.study_instance_uid}"}],
            conclusion=text,
            presentedForm=_forms(record, base),
        ),
    }
    return stamped(resource, study.updated_at, [patient(study)])


def imaging_study(found: Imaging) -> Json:
    """ImagingStudy: the series that were received, and those that were made of them."""
    study = found.record.study
    series = [
        *(_received(row, images) for row, images in found.series),
        *_made(found.record),
    ]
    modalities = dict.fromkeys(each["modality"]["code"] for each in series)
    resource = {
        "resourceType": "ImagingStudy",
        "id": study.study_instance_uid,
        **some(
            identifier=[uid_identifier(study.study_instance_uid), *_order_number(study)],
            status="available",
            modality=[_modality(each) for each in modalities],
            subject=subject(study),
            started=fhir_date(study.study_date),
            basedOn=_order(study),
            referrer=some(display=line(study.referring_physician.replace("^", " "))),
            numberOfSeries=len(series),
            numberOfInstances=sum(each["numberOfInstances"] for each in series),
            procedureCode=_procedure(study),
            description=line(study.study_description),
            series=series,
        ),
    }
    changed = max([study.updated_at, *(row.last_received_at for row, _ in found.series)])
    return stamped(resource, changed, [patient(study)])


def _order_number(study: Study) -> list[Json]:
    return accession(study.accession_number)


def _order(study: Study) -> list[Json]:
    """The order, known by its accession number alone."""
    return [
        {"type": "ServiceRequest", "identifier": each} for each in accession(study.accession_number)
    ]


def _procedure(study: Study) -> list[Json]:
    text = line(study.requested_procedure_description)
    return [{"text": text}] if text else []


def _performer(job: Job) -> str:
    # R4 lets no Device perform a report; the Observations name it in full
    return line(f"hipscore {__version__}, model {job.bundle_id} {job.bundle_version}")


def _conclusion(stage: Stage, job: Job) -> str:
    result: Mapping[str, Any] = job.result or {}
    reason = result.get("reason")
    if stage is Stage.PENDING:
        sentences = ["The images are being received or analysed"]
    elif stage is Stage.WITHDRAWN:
        sentences = [observations.WITHDRAWN]
    elif stage is Stage.FAILED:
        sentences = ["The analysis failed; there is no result"]
    elif reason is not None or result.get("unet_score") is None:
        sentences = [f"Not scorable: {reason['text']}" if reason else "Not scorable"]
    else:
        sentences = [_scores(result), observations.COUNTS]
    if stage is Stage.REPORTED:
        sentences.extend(each["text"] for each in result.get("quality", []))
        sentences.append("Made by software and not verified by anybody")
    return ". ".join(line(each).rstrip(".") for each in [*sentences, RESEARCH_USE]) + "."


def _scores(result: Mapping[str, Any]) -> str:
    hips = [
        f"{hip['side']} {hip['unet_score']:.2f} over {hip['slices_used']} slices"
        if hip.get("unet_score") is not None
        else f"{hip['side']} not scored: {line((hip.get('reason') or {}).get('text', ''))}"
        for hip in result.get("hips", [])
    ]
    each = f" ({'; '.join(hips)})" if hips else ""
    return f"UNet-score {result['unet_score']:.2f}{each}"


def _narrative(text: str) -> Json:
    div = f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{escape(text)}</p></div>'
    return {"status": "generated", "div": div}


def _forms(record: Record, base: str) -> list[Json]:
    """Link to the report for people, where it was made and is still there."""
    uid = record.study.study_instance_uid
    return [
        {
            "contentType": "application/pdf",
            "url": f"{base}/studies/{uid}/artifacts/{made.kind.value}",
            "title": RESEARCH_USE,
            "creation": instant(made.created_at),
        }
        for made in record.artifacts
        if made.kind is ArtifactKind.PDF
        and made.purged_at is None
        and record.stage is Stage.REPORTED
    ]


def _modality(code: str) -> Json:
    return {"system": DICOM, "code": code}


def _sop_class(uid: str) -> Json:
    return {"system": URI, "code": f"urn:oid:{uid}"}


def _received(row: Series, images: tuple[Image, ...]) -> Json:
    return {
        "uid": row.series_instance_uid,
        "modality": _modality(_RECEIVED),
        "numberOfInstances": len(images),
        **some(
            instance=[
                {
                    "uid": image.sop_instance_uid,
                    "sopClass": _sop_class(image.sop_class_uid),
                    **some(number=_unsigned(image.instance_number)),
                }
                for image in images
            ]
        ),
    }


def _made(record: Record) -> list[Json]:
    """The DICOM series of the job that speaks for the study; none of a withdrawn one."""
    if record.job is None or record.stage is not Stage.REPORTED:
        return []
    series: dict[str, Json] = {}
    for made in record.artifacts:
        if made.kind not in _MADE or not made.sop_instance_uid or not made.sop_class_uid:
            continue
        modality, role = _MADE[made.kind]
        uid = uids.derive(record.job.key, role, "series")
        entry = series.setdefault(
            uid,
            {
                "uid": uid,
                "modality": _modality(modality),
                "description": f"hipscore {modality}. {RESEARCH_USE}",
                "numberOfInstances": 0,
                "bodySite": {"system": SNOMED, "code": str(codes.HIP_JOINT.value)},
                "instance": [],
            },
        )
        entry["numberOfInstances"] += 1
        entry["instance"].append(
            {"uid": made.sop_instance_uid, "sopClass": _sop_class(made.sop_class_uid)}
        )
    return list(series.values())


def _unsigned(number: int | None) -> int | None:
    """An Instance Number, if FHIR can hold it: VR IS may be negative."""
    return number if number is not None and 0 <= number <= _LARGEST else None
