"""A content tree as a Comprehensive 3D SR, and the same content as a Comprehensive SR."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import Comprehensive3DSR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, MRImageStorage

from hipscore.reporting import ReportContext, codes, source, stubs, uids


def build(
    root: Dataset, evidence: Sequence[Dataset], header: Dataset, context: ReportContext
) -> Dataset:
    """Put a content tree into a Comprehensive 3D SR (PS3.3 A.35.13)."""
    # highdicom copies the content and searches it three times over, a third of a second, for
    # references without evidence. It gets the root alone; the tests search the whole tree.
    outline = Dataset()
    outline.update(root)
    outline["ContentSequence"] = DataElement("ContentSequence", "SQ", [])
    evidence[0].SOPClassUID = MRImageStorage  # highdicom fails where it does not know the class
    document: Dataset = Comprehensive3DSR(
        evidence=evidence,
        content=outline,
        series_instance_uid=uids.derive(context.job_key, "sr", "series"),
        series_number=1,
        sop_instance_uid=uids.derive(context.job_key, "sr", "instance"),
        instance_number=1,
        manufacturer=source.MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=source.referenced_request(header) or None,
        previous_versions=stubs.predecessors(context.predecessor),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=codes.SCHEME,
                name=codes.SCHEME_NAME,
                version="1",
                responsible_organization=codes.SCHEME_ORGANIZATION,
            )
        ],
    )
    document["ContentSequence"] = root["ContentSequence"]
    _classify(document, header)
    source.finish(document, header, context, "sr")
    source.freeze(document, "ContentSequence")
    return document


def comprehensive(report: Dataset, context: ReportContext) -> Dataset:
    """Make a Comprehensive SR (PS3.3 A.35.3) of a report, for peers without A.35.13.

    It has the same content, which it shares, and another SOP Instance UID. Nothing in the
    content is reserved for Comprehensive 3D SR.
    """
    document = Dataset()
    document.update(report)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "InstanceNumber"):
        del document[keyword]  # not assigned to: the element belongs to the report
    document.SOPClassUID = ComprehensiveSRStorage
    document.SOPInstanceUID = uids.derive(context.job_key, "sr", "comprehensive")
    document.InstanceNumber = 2
    implicit, little = report.original_encoding
    document.set_original_encoding(implicit, little, report.original_character_set)
    document.file_meta = source.file_meta(document, context)
    return document


def _classify(document: Dataset, header: Dataset) -> None:
    """Name the first image in the evidence by its own SOP class, in place."""
    for study in document.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                if item.ReferencedSOPInstanceUID == header.SOPInstanceUID:
                    item.ReferencedSOPClassUID = header.SOPClassUID
