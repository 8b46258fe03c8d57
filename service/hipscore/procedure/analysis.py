"""The work item of an analysis of ours: what it says when it is opened, works, and has ended.

Its Scheduled Workitem Code is a private one, because those of CID 9231 ("Computer Aided
Detection") say of no two algorithms which is meant, and by this code an order reaches us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from hipscore.domain import StudyIdentity
from hipscore.procedure.dataset import Attributes, code, data_set, stamp, tag, value, values
from hipscore.procedure.rules import PERFORMED, PROGRESS, SOP_CLASS, UNSPECIFIED, created

SCHEME = "99HIPSCORE"
#: Scheduled Workitem Code: who orders an analysis, orders this
HIP_SCORE = code("HIP_SCORE", SCHEME, "Hip inflammation score")
#: Scheduled and Performed Station Name Code
STATION = code("HIPSCORE", SCHEME, "hipscore")
LABEL = "Hip inflammation score"
#: CID 9300
_RESOURCE = code("110527", "DCM", "Resource inadequate")
_INCOMPLETE = code("110523", "DCM", "Object Set incomplete")
_REASONS = {"images_purged": _INCOMPLETE, "canceled": UNSPECIFIED}


class Image(NamedTuple):
    """One instance of a series."""

    sop_class_uid: str
    sop_instance_uid: str


class Output(NamedTuple):
    """One object that was made, and its series."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def opened(
    uid: str,
    *,
    study_uid: str,
    series_uid: str,
    images: Sequence[Image],
    identity: StudyIdentity,
    replaces: str | None = None,
    now: datetime,
) -> Attributes:
    """The SCHEDULED item of an analysis of a series."""
    given = data_set(
        ProcedureStepState="SCHEDULED",
        ProcedureStepLabel=LABEL,
        ScheduledProcedureStepPriority="MEDIUM",
        ScheduledProcedureStepStartDateTime=stamp(now),
        ScheduledWorkitemCodeSequence=[HIP_SCORE],
        ScheduledStationNameCodeSequence=[STATION],
        InputReadinessState="READY",
        InputInformationSequence=[_instances(study_uid, series_uid, images)],
        StudyInstanceUID=study_uid,
        PatientName=identity.patient_name,
        PatientID=identity.patient_id,
        IssuerOfPatientID=identity.issuer_of_patient_id,
        PatientBirthDate=identity.birth_date,
        PatientSex=identity.sex,
        ReferencedRequestSequence=requests(study_uid, identity),
    )
    if replaces is not None:
        reference = data_set(ReferencedSOPClassUID=SOP_CLASS, ReferencedSOPInstanceUID=replaces)
        given |= data_set(ReplacedProcedureStepSequence=[reference])
    return created(given, uid, now=now)[0]


def requests(study_uid: str, identity: StudyIdentity) -> list[Attributes]:
    """The order (Referenced Request Sequence), if anything of it is known."""
    if not (identity.accession_number or identity.requested_procedure_id):
        return []
    return [
        data_set(
            StudyInstanceUID=study_uid,
            AccessionNumber=identity.accession_number,
            RequestedProcedureID=identity.requested_procedure_id,
            RequestedProcedureDescription=identity.requested_procedure_description,
            ReferringPhysicianName=identity.referring_physician,
        )
    ]


def _instances(study_uid: str, series_uid: str, images: Iterable[Image]) -> Attributes:
    """Referenced Instances and Access (PS3.4 table CC.2.5-2c) within one series."""
    return data_set(
        TypeOfInstances="DICOM",
        StudyInstanceUID=study_uid,
        SeriesInstanceUID=series_uid,
        ReferencedSOPSequence=[
            data_set(
                ReferencedSOPClassUID=each.sop_class_uid,
                ReferencedSOPInstanceUID=each.sop_instance_uid,
            )
            for each in images
        ],
    )


def is_ours(attributes: Mapping[str, Any]) -> bool:
    """Whether an item orders what we do."""
    wanted = ("CodeValue", "CodingSchemeDesignator")
    return any(
        all(value(item, keyword) == value(HIP_SCORE, keyword) for keyword in wanted)
        for item in values(attributes, "ScheduledWorkitemCodeSequence")
    )


def study_of(attributes: Mapping[str, Any]) -> str | None:
    """The study an item is about: of its input, else as it says itself."""
    inputs = values(attributes, "InputInformationSequence")
    named = [value(item, "StudyInstanceUID") for item in inputs]
    found = next((uid for uid in named if uid), None) or value(attributes, "StudyInstanceUID")
    return str(found) if found else None


def series_of(attributes: Mapping[str, Any]) -> list[str]:
    """The series that an item names as its input."""
    named = [
        value(item, "SeriesInstanceUID") for item in values(attributes, "InputInformationSequence")
    ]
    return [str(uid) for uid in named if uid]


def begun(current: Mapping[str, Any], *, now: datetime) -> Attributes:
    """The item while we are at it: since when, and who."""
    performed = data_set(
        PerformedStationNameCodeSequence=[STATION],
        PerformedWorkitemCodeSequence=[HIP_SCORE],
        PerformedProcedureStepStartDateTime=stamp(now),
        OutputInformationSequence=[],
    )
    return {**current, **data_set(**{PERFORMED: [performed]})}


def waits(current: Mapping[str, Any], text: str, *, now: datetime) -> Attributes:
    """The item while the next attempt is waited for, or goes on; ``text`` names no patient."""
    told = data_set(ProcedureStepProgressDescription=text[:1024])
    item = {**current, **data_set(**{PROGRESS: [told]})}
    return {**item, **data_set(ScheduledProcedureStepModificationDateTime=stamp(now))}


def performed(
    current: Mapping[str, Any],
    *,
    study_uid: str,
    outputs: Sequence[Output],
    retrieve_from: Sequence[str],
    remark: str,
    urgent: bool,
    now: datetime,
) -> Attributes:
    """The item as it has to be to be COMPLETED: what was made, and where it is.

    Parameters
    ----------
    outputs
        DICOM objects that were made.
    retrieve_from
        AE titles that they go to.
    remark
        One line about the result, for people.
    urgent
        The result is flagged: the item's priority becomes HIGH.
    """
    by_series: dict[str, list[Image]] = {}
    for each in outputs:
        image = Image(each.sop_class_uid, each.sop_instance_uid)
        by_series.setdefault(each.series_instance_uid, []).append(image)
    titles = [data_set(RetrieveAETitle=title) for title in retrieve_from]
    where = data_set(DICOMRetrievalSequence=titles) if titles else {}
    made = [
        dict(sorted({**_instances(study_uid, series, images), **where}.items()))
        for series, images in by_series.items()
    ]
    so_far = value(current, PERFORMED) or value(begun({}, now=now), PERFORMED)
    done = {
        **so_far,
        **data_set(
            PerformedProcedureStepEndDateTime=stamp(now),
            OutputInformationSequence=made,
            CommentsOnThePerformedProcedureStep=remark,
        ),
    }
    item = {**current, **data_set(**{PERFORMED: [dict(sorted(done.items()))]})}
    return {**item, **(data_set(ScheduledProcedureStepPriority="HIGH") if urgent else {})}


def ordered(current: Mapping[str, Any], identity: StudyIdentity, study_uid: str) -> Attributes:
    """The item with the order, where that became known after it was opened."""
    if values(current, "ReferencedRequestSequence"):
        return dict(current)
    return {**current, **data_set(ReferencedRequestSequence=requests(study_uid, identity))}


def why_failed(reason_code: str | None, error: str | None) -> Attributes:
    """Why an analysis of ours ended without a result."""
    return data_set(
        ReasonForCancellation=(error or reason_code or "failed")[:1024],
        ProcedureStepDiscontinuationReasonCodeSequence=[_REASONS.get(reason_code or "", _RESOURCE)],
    )


CODE_PATH = (tag("ScheduledWorkitemCodeSequence"), tag("CodeValue"))
