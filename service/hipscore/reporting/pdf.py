"""The report as Encapsulated PDF (PS3.3 A.45.1), for viewers that show documents."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from hipscore.domain import RESEARCH_USE, Findings, Masks, ModelCard, Volume
from hipscore.reporting import ReportContext, captures, codes, pages, source, uids
from hipscore.reporting.header import headers, silently

TITLE = f"hipscore report. {RESEARCH_USE}"


@silently()
def build_pdf(  # noqa: PLR0917 - those of build_sr
    images: Sequence[Dataset],
    volume: Volume | None,
    masks: Sequence[Masks],
    findings: Findings,
    card: ModelCard,
    context: ReportContext,
) -> Dataset:
    """Build the document of one series, scored or not.

    It names the patient, as a document of the study does. Arguments as for
    :func:`hipscore.reporting.sc.build_sc`.
    """
    tidy = headers(images, context)
    scene = captures.Scene(
        volume=volume,
        masks=tuple(masks),
        findings=findings,
        card=card,
        context=context,
        header=tidy[0],
    )
    data = pages.render(scene, title=TITLE)
    document = Dataset()
    document.SOPClassUID = EncapsulatedPDFStorage
    document.SOPInstanceUID = uids.derive(context.job_key, "pdf", "instance")
    document.SeriesInstanceUID = uids.derive(context.job_key, "pdf", "series")
    document.Modality = "DOC"
    document.ConversionType = "WSD"
    document.InstanceNumber = 1
    document.AcquisitionDateTime = ""
    document.BurnedInAnnotation = "YES"
    document.VerificationFlag = "UNVERIFIED"
    document.DocumentTitle = TITLE
    document.ConceptNameCodeSequence = [codes.concept(codes.MEASUREMENT_REPORT)]
    document.SourceInstanceSequence = [source.reference(header) for header in tidy]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = data + b"\x00" * (len(data) % 2)
    document.EncapsulatedDocumentLength = len(data)
    source.finish(document, tidy[0], context, "pdf")
    source.copy_elements(tidy[0], document, ("RequestAttributesSequence",))
    return document
