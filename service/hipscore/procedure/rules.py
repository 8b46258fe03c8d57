"""What a work item has to hold when it is created, changed and ended (PS3.4 table CC.2.5-3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hipscore.procedure.dataset import (
    Attributes,
    Malformed,
    code,
    data_set,
    stamp,
    tag,
    value,
    values,
    without,
)
from hipscore.procedure.states import State

#: Unified Procedure Step - Push: the class of every item (PS3.4 CC.3.1)
SOP_CLASS = "1.2.840.10008.5.1.4.34.6.1"
PRIORITIES = ("HIGH", "MEDIUM", "LOW")
READINESS = ("INCOMPLETE", "UNAVAILABLE", "READY")
PROGRESS = "ProcedureStepProgressInformationSequence"
PERFORMED = "UnifiedProcedureStepPerformedProcedureSequence"
#: CID 9300
UNSPECIFIED = code("110513", "DCM", "Discontinued for unspecified reason")
#: shown as the name of the list where the creator gives none (type 2/1)
WORKLIST = "hipscore"

#: type 1: the creator gives a value
_REQUIRED = (
    "ScheduledProcedureStepPriority",
    "ProcedureStepLabel",
    "ScheduledProcedureStepStartDateTime",
    "InputReadinessState",
    "ProcedureStepState",
)
#: type 2: there, though it may be empty; added where the creator leaves it out
_PRESENT = (
    "WorklistLabel",
    "ScheduledProcessingParametersSequence",
    "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence",
    "ScheduledWorkitemCodeSequence",
    "CommentsOnTheScheduledProcedureStep",
    "InputInformationSequence",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    PROGRESS,
    PERFORMED,
)
#: the creator leaves them empty
_EMPTY = ("TransactionUID", PROGRESS, PERFORMED)
#: nobody sets these once the item is there
_FIXED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ProcedureStepState",
    "ScheduledProcedureStepModificationDateTime",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate",
    "PatientSex",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    "ReplacedProcedureStepSequence",
)
#: final state code R, in every final state
_FINALLY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ScheduledProcedureStepPriority",
    "ScheduledProcedureStepModificationDateTime",
    "ScheduledProcedureStepStartDateTime",
    "InputReadinessState",
)
#: final state code P, in the item of the performed procedure
_PERFORMED = (
    "PerformedStationNameCodeSequence",
    "PerformedProcedureStepStartDateTime",
    "PerformedWorkitemCodeSequence",
    "PerformedProcedureStepEndDateTime",
)
_SINGLE = (PROGRESS, PERFORMED, "ScheduledWorkitemCodeSequence")


def created(given: Mapping[str, Any], uid: str, *, now: datetime) -> tuple[Attributes, bool]:
    """The item that is created from what its creator gave, and whether that had to be completed.

    Raises
    ------
    Malformed
        Naming what is missing or wrong (PS3.4 CC.2.5.3).
    """
    missing = [keyword for keyword in _REQUIRED if value(given, keyword) in {None, ""}]
    if missing:
        msg = f"a new work item needs {', '.join(missing)}"
        raise Malformed(msg)
    if value(given, "ProcedureStepState") != State.SCHEDULED:
        msg = f"a work item is created {State.SCHEDULED.value}"
        raise Malformed(msg)
    for keyword in _EMPTY:
        if values(given, keyword):
            msg = f"{keyword} of a new work item is empty"
            raise Malformed(msg)
    _check(given)
    absent = [keyword for keyword in _PRESENT if tag(keyword) not in given]
    label = value(given, "WorklistLabel") or WORKLIST
    item = (
        data_set(**dict.fromkeys(absent))
        | without(given, ("TransactionUID", "AffectedSOPInstanceUID", "AffectedSOPClassUID"))
        | _stamped(now)
        | data_set(SOPClassUID=SOP_CLASS, SOPInstanceUID=uid, WorklistLabel=label)
        | data_set(SpecificCharacterSet="ISO_IR 192")
    )
    return dict(sorted(item.items())), bool(absent)


def updated(current: Mapping[str, Any], changes: Mapping[str, Any], *, now: datetime) -> Attributes:
    """The item after a change; sequences are replaced as a whole (PS3.4 CC.2.6.2).

    Raises
    ------
    Malformed
        Naming what may not be changed, or what is wrong.
    """
    fixed = [keyword for keyword in _FIXED if tag(keyword) in changes]
    if fixed:
        msg = f"{', '.join(fixed)} cannot be changed"
        raise Malformed(msg)
    emptied = [
        keyword
        for keyword in _REQUIRED
        if tag(keyword) in changes and value(changes, keyword) in {None, ""}
    ]
    if emptied:
        msg = f"{', '.join(emptied)} cannot be empty"
        raise Malformed(msg)
    _check(changes)
    kept = without(changes, ("TransactionUID", "SpecificCharacterSet"))
    return dict(sorted({**current, **kept, **_stamped(now)}.items()))


def _stamped(now: datetime) -> Attributes:
    return data_set(ScheduledProcedureStepModificationDateTime=stamp(now))


def _check(given: Mapping[str, Any]) -> None:
    for keyword, allowed in (
        ("ScheduledProcedureStepPriority", PRIORITIES),
        ("InputReadinessState", READINESS),
    ):
        if value(given, keyword) not in {None, *allowed}:
            msg = f"{keyword} is one of {', '.join(allowed)}"
            raise Malformed(msg)
    for keyword in _SINGLE:
        if len(values(given, keyword)) > 1:
            msg = f"{keyword} has at most one item"
            raise Malformed(msg)
    if any(name < "00080000" for name in given if name not in _COMMAND):
        msg = "elements of the groups 0000 to 0007 do not belong into a work item"
        raise Malformed(msg)
    for keyword in _CODED:
        for item in values(given, keyword):
            coded = any(
                value(item, each) for each in ("CodeValue", "LongCodeValue", "URNCodeValue")
            )
            if not coded or not value(item, "CodeMeaning"):
                msg = f"an item of {keyword} has a code value and a meaning"
                raise Malformed(msg)


_COMMAND = frozenset({tag("AffectedSOPInstanceUID"), tag("AffectedSOPClassUID")})
_CODED = tuple(keyword for keyword in _PRESENT if keyword.endswith("CodeSequence"))


def unmet(attributes: Mapping[str, Any], state: State) -> list[str]:
    """Keywords of what an item still lacks to end in ``state`` (PS3.4 CC.2.5.1.1).

    What a CANCELED one lacks is filled in by :func:`canceled`.
    """
    lacking = [keyword for keyword in _FINALLY if not values(attributes, keyword)]
    if state is State.COMPLETED:
        performed = value(attributes, PERFORMED)
        if performed is None:
            return [*lacking, PERFORMED]
        lacking += [keyword for keyword in _PERFORMED if not values(performed, keyword)]
        if tag("OutputInformationSequence") not in performed:  # it may have no items
            lacking.append("OutputInformationSequence")
    return lacking


def ended(current: Mapping[str, Any], state: State, *, now: datetime) -> Attributes:
    """The item in a state."""
    item = {**current, **data_set(ProcedureStepState=state.value), **_stamped(now)}
    return dict(sorted(item.items()))


def canceled(
    current: Mapping[str, Any],
    *,
    why: Mapping[str, Any] | None = None,
    now: datetime,
) -> Attributes:
    """The item CANCELED, with when and why; ``why`` completes what is known already."""
    told = value(current, PROGRESS) or {}
    usual = data_set(
        ProcedureStepCancellationDateTime=stamp(now),
        ProcedureStepDiscontinuationReasonCodeSequence=[UNSPECIFIED],
    )
    progress = {
        **usual,
        **(why or {}),
        **{name: body for name, body in told.items() if body.get("Value")},
    }
    item = {**current, **data_set(**{PROGRESS: [dict(sorted(progress.items()))]})}
    return ended(item, State.CANCELED, now=now)


#: what a request to cancel may say (PS3.4 table CC.2.2-1)
REASONS: Sequence[str] = (
    "ReasonForCancellation",
    "ProcedureStepDiscontinuationReasonCodeSequence",
    "ContactURI",
    "ContactDisplayName",
)


def reasons(request: Mapping[str, Any]) -> Attributes:
    """What a request to cancel says of why, and whom to ask."""
    wanted = {tag(keyword) for keyword in REASONS}
    return {name: body for name, body in request.items() if name in wanted and body.get("Value")}
