"""The note that retracts results: Key Object Selection as in IHE RAD IOCM (RAD-66 4.66.4.1.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodeContentItem, RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from hipscore.domain import RESEARCH_USE
from hipscore.reporting import ReportContext, SopReference, source, uids
from hipscore.reporting.header import TYPE_2, headers, silently
from hipscore.reporting.observer import device

_IMAGES = {SegmentationStorage, SecondaryCaptureImageStorage}


class Why(StrEnum):
    """Why an operator withdraws a result. These strings are stable."""

    QUALITY = "quality"
    SAFETY = "safety"
    WORKLIST = "worklist"


#: document titles (CID 7011 of IOCM)
TITLES: Mapping[Why, Code] = MappingProxyType(
    {
        Why.QUALITY: Code("113001", "DCM", "Rejected for Quality Reasons"),
        Why.SAFETY: Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
        Why.WORKLIST: Code("113038", "DCM", "Incorrect Modality Worklist Entry"),
    }
)
_MODIFIER = Code("113011", "DCM", "Document Title Modifier")
_OTHER_FAILURE = Code("111220", "DCM", "Other failure")  # CID 7012


@silently()
def build_rejection(
    whose: Dataset, rejected: Sequence[SopReference], why: Why, context: ReportContext
) -> Dataset:
    """Build the note.

    Parameters
    ----------
    whose
        A header of the study: one of our objects, or one made of what is known of it.
    rejected
        The objects that are retracted, all of this study.
    why
        The reason; there is no free text, which might name somebody.
    context
        Key of the job they were made by, and the time of the withdrawal.

    Raises
    ------
    ValueError
        If nothing is retracted.
    """
    (header,) = headers([whose], context)
    header.pop("SeriesNumber", None)
    evidence = [_stub(each) for each in rejected]
    content = KeyObjectSelection(
        document_title=TITLES[why],
        referenced_objects=evidence,
        observer_device_context=device(context),
        description=f"Result of hipscore, withdrawn by an operator. {RESEARCH_USE}",
    )
    if why is Why.QUALITY:  # TID 2010 wants to know which
        modifier = CodeContentItem(
            _MODIFIER, _OTHER_FAILURE, relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD
        )
        content[0].ContentSequence.insert(0, modifier)
    note: Dataset = KeyObjectSelectionDocument(
        evidence=evidence,
        content=content,
        series_instance_uid=uids.derive(context.job_key, "rejection", "series"),
        series_number=1,
        sop_instance_uid=uids.derive(context.job_key, "rejection", "instance"),
        instance_number=1,
        manufacturer=source.MANUFACTURER,
        requested_procedures=source.referenced_request(header) or None,
    )
    source.finish(note, header, context, "rejection")
    return note


def _stub(reference: SopReference) -> Dataset:
    """A stand-in for highdicom, which tells images by their size."""
    stub = Dataset()
    for keyword in TYPE_2:
        setattr(stub, keyword, "")
    stub.SOPClassUID = reference.sop_class_uid
    stub.SOPInstanceUID = reference.sop_instance_uid
    stub.SeriesInstanceUID = reference.series_instance_uid
    stub.StudyInstanceUID = reference.study_instance_uid
    if reference.sop_class_uid in _IMAGES:
        stub.Rows = stub.Columns = 1
    return stub
