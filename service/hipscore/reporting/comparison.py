"""The change since an earlier score, and the priority flag, as items of the SR."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from highdicom.sr import (
    CompositeContentItem,
    ContentItem,
    DateContentItem,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hipscore.change import Assessment, Change
from hipscore.domain import EarlierScore, Side
from hipscore.reporting import ReportContext, codes, repair

_CONTAINS = RelationshipTypeValues.CONTAINS

#: concept, value, unit
Value = tuple[Code, float | int | None, Code]


def of_patient(change: Change | None) -> list[Value]:
    """Measurements of the patient's group."""
    if change is None:
        return []
    return [
        (codes.EARLIER_SCORE, change.earlier.unet_score, codes.NO_UNITS),
        (codes.SCORE_CHANGE, change.unet_score, codes.NO_UNITS),
    ]


def of_hip(change: Change | None, side: Side) -> list[Value]:
    """Measurements of the group of one hip; none where it was not scored both times."""
    hips = change.hips if change is not None else ()
    return [
        value
        for hip in hips
        if hip.side is side
        for value in (
            (codes.SCORE_CHANGE, hip.unet_score, codes.NO_UNITS),
            (codes.RATIO_CHANGE, hip.mean_ratio, codes.RATIO),
            (codes.INDEX_CHANGE, hip.whole_volume_index, codes.RATIO),
            (codes.EARLIER_SLICES, hip.slices_then, codes.SLICES),
        )
    ]


def evaluation(name: Code, value: Code) -> QualitativeEvaluation:
    """One answer to one question (TID 1501 row 10)."""
    return QualitativeEvaluation(codes.shared(name), codes.shared(value))


def evaluations(assessment: Assessment, context: ReportContext) -> list[QualitativeEvaluation]:
    """Whether the two compare, why not, and the priority where the site has limits for it."""
    found = []
    change = assessment.change
    if change is not None:
        found.append(evaluation(codes.COMPARABLE, codes.YES if change.comparable else codes.NO))
        remarks = dict.fromkeys(codes.remark_code(remark) for remark in change.remarks)
        found += [evaluation(codes.CHANGE_REMARK, remark) for remark in remarks]
    if context.priority_score is not None or context.priority_rise is not None:
        flag = codes.FLAGGED if assessment.priority.flag else codes.NOT_FLAGGED
        found.append(evaluation(codes.PRIORITY, flag))
    return found


def comments(assessment: Assessment) -> list[str]:
    """The same in words."""
    change, reason = assessment.change, assessment.priority.reason
    return [
        *([f"Flagged: {reason}"] if reason else []),
        *(remark.text for remark in (change.remarks if change is not None else ())),
    ]


def references(change: Change | None) -> Iterator[ContentItem]:
    """Yield which report of which day the change is since."""
    if change is None:
        return
    earlier = change.earlier
    if earlier.study_date:
        day = date.fromisoformat(earlier.study_date)
        yield DateContentItem(codes.shared(codes.STUDY_DATE), day, relationship_type=_CONTAINS)
    if _addressed(earlier):
        yield CompositeContentItem(
            codes.shared(codes.PRIOR_REPORT),
            referenced_sop_class_uid=earlier.sr_class_uid,
            referenced_sop_instance_uid=earlier.sr_instance_uid,
            relationship_type=_CONTAINS,
        )
    else:  # evidence needs the series too (PS3.3 C.17.2.3): without it, a name must do
        yield TextContentItem(
            codes.shared(codes.PRIOR_REPORT), earlier.sr_instance_uid, relationship_type=_CONTAINS
        )


def evidence(change: Change | None) -> list[Dataset]:
    """Stand-in of the earlier report for Pertinent Other Evidence (PS3.3 C.17.2)."""
    if change is None or not _addressed(change.earlier):
        return []
    item = Dataset()
    item.SOPClassUID = change.earlier.sr_class_uid
    item.SOPInstanceUID = change.earlier.sr_instance_uid
    item.SeriesInstanceUID = change.earlier.sr_series_uid
    item.StudyInstanceUID = change.earlier.study_instance_uid
    return [item]


def _addressed(earlier: EarlierScore) -> bool:
    item = Dataset()
    item.SOPClassUID, item.SeriesInstanceUID = earlier.sr_class_uid, earlier.sr_series_uid
    return bool(repair.uid(item, "SOPClassUID") and repair.uid(item, "SeriesInstanceUID"))
