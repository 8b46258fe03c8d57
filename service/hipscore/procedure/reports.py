"""Event reports of work items (PS3.4 table CC.2.4-1), as PS3.18 11.13 sends them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from hipscore.procedure.dataset import Attributes, data_set, tag, values
from hipscore.procedure.rules import PROGRESS, SOP_CLASS

#: well-known instances (PS3.6 table A-1): all items, and those that match a filter
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
_ASSIGNED = ("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence")


class Kind(IntEnum):
    """Event Type ID."""

    STATE = 1
    CANCEL_REQUESTED = 2
    PROGRESS = 3
    SCP_STATUS = 4
    ASSIGNED = 5


class Report(NamedTuple):
    """One report: its type, and its attributes without those that name item and type."""

    kind: Kind
    attributes: Attributes


def state(attributes: Mapping[str, Any]) -> Report:
    """The state of an item, and whether its input is ready."""
    told = _of(attributes, ("ProcedureStepState", "InputReadinessState"))
    why: Mapping[str, Any] = next(iter(values(attributes, PROGRESS)), {})
    reasons = _of(why, ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence"))
    return Report(Kind.STATE, {**told, **reasons})


def progress(attributes: Mapping[str, Any]) -> Report:
    """How far an item is."""
    return Report(Kind.PROGRESS, _of(attributes, (PROGRESS,)))


def assigned(attributes: Mapping[str, Any]) -> Report:
    """Whom an item is assigned to."""
    told = _of(attributes, ("ScheduledStationNameCodeSequence",))
    for human in values(attributes, "ScheduledHumanPerformersSequence")[:1]:
        told |= _of(human, ("HumanPerformerCodeSequence", "HumanPerformerOrganization"))
    return Report(Kind.ASSIGNED, told)


def cancel_requested(reasons: Mapping[str, Any], *, requester: str) -> Report:
    """Somebody wants an item canceled."""
    return Report(Kind.CANCEL_REQUESTED, {**data_set(RequestingAE=requester), **reasons})


def restarted() -> Report:
    """The worklist is up again, with all its items and subscriptions."""
    told = data_set(
        SCPStatus="RESTARTED",
        SubscriptionListStatus="WARM START",
        UnifiedProcedureStepListStatus="WARM START",
    )
    return Report(Kind.SCP_STATUS, told)


def at_creation(attributes: Mapping[str, Any]) -> list[Report]:
    """What is to be told of a new item."""
    assigned_to = any(values(attributes, keyword) for keyword in _ASSIGNED)
    return [state(attributes), *([assigned(attributes)] if assigned_to else [])]


def of_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Report]:
    """What is to be told of a change that leaves the state as it is."""

    def differs(*keywords: str) -> bool:
        return any(values(before, each) != values(after, each) for each in keywords)

    reports = [state(after)] if differs("InputReadinessState") else []
    reports += [progress(after)] if differs(PROGRESS) else []
    return reports + ([assigned(after)] if differs(*_ASSIGNED) else [])


def message(report_id: int, workitem_uid: str, kind: int, body: Mapping[str, Any]) -> Attributes:
    """What is sent: the report, with the elements that a DIMSE command would have.

    Message ID (0000,0110) counts the reports, modulo what fits.
    """
    command = data_set(
        AffectedSOPClassUID=SOP_CLASS,
        MessageID=report_id % 2**16,
        AffectedSOPInstanceUID=workitem_uid,
        EventTypeID=kind,
    )
    return {**command, **body}


def _of(attributes: Mapping[str, Any], keywords: tuple[str, ...]) -> Attributes:
    wanted = (tag(keyword) for keyword in keywords)
    return {name: attributes[name] for name in wanted if name in attributes}
