"""Tidy headers: of each source image what reports take over, in valid values.

Builders read these and never the images. Real headers lack type 2 attributes, break
formats and carry names; whatever an image says, its tidy header can be written.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import DSfloat

from hipscore import attributes
from hipscore.domain import StudyIdentity
from hipscore.reporting import ReportContext, repair, uids

#: type 2 in every report (PS3.3 C.7.1.1, C.7.2.1)
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_CLINICAL_TRIAL = (
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
#: attributes of the same patient and study (with C.7.2.2, C.7.1.3, C.7.2.3)
IDENTITY = (
    *TYPE_2,
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "IssuerOfAccessionNumberSequence",
    "TypeOfPatientID",
    "PatientBirthTime",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "QualityControlSubject",
    "ReferringPhysicianIdentificationSequence",
    "StudyDescription",
    "PhysiciansOfRecord",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    *_CLINICAL_TRIAL,
    "LongitudinalTemporalInformationModified",
)
EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "InstitutionName",
    "StationName",
)
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
#: of the series: what a SEG repeats, and what both need to know
SERIES = ("RequestAttributesSequence", "BodyPartExamined", "PatientPosition")
_MOMENT = ("TimezoneOffsetFromUTC",)

#: how many numbers describe the image plane (PS3.3 C.7.6.2)
_PLANE = {
    "PixelSpacing": 2,
    "SpacingBetweenSlices": 1,
    "SliceThickness": 1,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}


@contextmanager
def silently() -> Iterator[None]:
    """Keep pydicom from printing values; what it would object to is judged here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def headers(images: Sequence[Dataset], context: ReportContext) -> tuple[Dataset, ...]:
    """Tidy headers of the images of one series, in their order.

    Every one has valid UIDs, and the same patient, study and order: those of the first
    image, or of the first that says whose it is where the first one's identity is
    damaged. What they do not say of the order, ``context.identity`` fills in. Study and
    Series Instance UID that are no UIDs are those of another image, and where none has any,
    they are derived from the job. A UID is kept although its components have leading zeros.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not images:
        msg = "a report needs at least one source image, got none"
        raise ValueError(msg)
    shared = _shared(next((image for image in images if _identified(image)), images[0]))
    _order(shared, context.identity)
    study = _first_uid(images, "StudyInstanceUID") or uids.derive(context.job_key, "study")
    series = _first_uid(images, "SeriesInstanceUID") or uids.derive(context.job_key, "source")
    found = []
    for index, image in enumerate(images):
        header = Dataset(dict(shared.items()))
        header.StudyInstanceUID = repair.uid(image, "StudyInstanceUID") or study
        header.SeriesInstanceUID = repair.uid(image, "SeriesInstanceUID") or series
        header.SOPClassUID = _sop(image, "SOPClassUID") or MRImageStorage
        header.SOPInstanceUID = _sop(image, "SOPInstanceUID") or uids.derive(
            context.job_key, "image", str(index)
        )
        # Some de-identification tools drop this type 1 attribute. A SEG cannot do without.
        header.FrameOfReferenceUID = repair.uid(image, "FrameOfReferenceUID") or uids.derive(
            header.SeriesInstanceUID, "frame of reference"
        )
        if attributes.text(image, "Modality") == "MR":
            header.Modality = "MR"
        _describe_plane(image, header)
        found.append(header)
    return tuple(found)


def decimals(values: Iterable[float]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters (PS3.5 table 6.2-1)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _shared(image: Dataset) -> Dataset:
    """Patient, study, order and equipment, with nothing that needs what is not there."""
    header = repair.elements(image, (*IDENTITY, *EQUIPMENT, *LOSSY, *SERIES, *_MOMENT))
    method = "DeidentificationMethod"
    if not header.get(method) and f"{method}CodeSequence" not in header:
        _drop(header, "PatientIdentityRemoved")
    subject = header.get("ClinicalTrialSubjectID") or header.get("ClinicalTrialSubjectReadingID")
    if not (
        subject and header.get("ClinicalTrialSponsorName") and header.get("ClinicalTrialProtocolID")
    ):
        _drop(header, *_CLINICAL_TRIAL)
    # type 1 or 1C wherever they stand: an empty one is worse than none
    for keyword in (*_CLINICAL_TRIAL, *LOSSY, *_MOMENT, *IDENTITY):
        if keyword not in TYPE_2 and keyword in header and header[keyword].is_empty:
            _drop(header, keyword)
    if not header.get("ClinicalTrialProtocolEthicsCommitteeName"):
        _drop(header, "ClinicalTrialProtocolEthicsCommitteeApprovalNumber")
    if "ClinicalTrialSponsorName" in header:
        for keyword in _CLINICAL_TRIAL[2:5]:  # type 2
            header.setdefault(keyword, "")
    if not all(header.get(keyword) for keyword in LOSSY[1:]):
        _drop(header, *LOSSY[1:])
    return header


def _order(header: Dataset, known: StudyIdentity) -> None:
    """Fill in, in place, who ordered the study and as what, where the images do not say."""
    given = Dataset()
    given.SpecificCharacterSet = repair.UTF_8
    given.AccessionNumber = known.accession_number
    given.ReferringPhysicianName = known.referring_physician
    request = Dataset()
    request.RequestedProcedureID = known.requested_procedure_id
    request.RequestedProcedureDescription = known.requested_procedure_description
    if known.requested_procedure_id:
        given.RequestAttributesSequence = [request]
    filled = repair.elements(
        given, ("AccessionNumber", "ReferringPhysicianName", "RequestAttributesSequence")
    )
    missing = [each for each in filled if not header.get(each.keyword)]
    for element in missing:
        if element.keyword != "SpecificCharacterSet" and not element.is_empty:
            header[element.tag] = element
    repair.settle(header)


def _drop(header: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        header.pop(keyword, None)


def _identified(image: Dataset) -> bool:
    """Whether patient and study are not damaged; a patient who is not named is not damaged."""
    wanted = ("PatientName", "PatientID")
    whole = repair.elements(image, wanted)
    return bool(repair.uid(image, "StudyInstanceUID")) and all(
        keyword in whole for keyword in wanted if keyword in image
    )


def _first_uid(images: Iterable[Dataset], keyword: str) -> str:
    found = (repair.uid(image, keyword) for image in images)
    return next((value for value in found if value), "")


def _sop(image: Dataset, keyword: str) -> str:
    """SOP class or instance of an image; that of its file meta information if it has none."""
    meta = getattr(image, "file_meta", None) or Dataset()
    return repair.uid(image, keyword) or repair.uid(meta, f"MediaStorage{keyword}")


def _describe_plane(image: Dataset, header: Dataset) -> None:
    """Copy size and geometry, where they are numbers and as many as there must be."""
    for keyword in ("Rows", "Columns"):
        size = attributes.integer(image, keyword)
        if size is not None and 0 < size < 2**16:
            setattr(header, keyword, size)
    number = attributes.integer(image, "SeriesNumber")
    if number is not None and abs(number) < 2**31:
        header.SeriesNumber = number
    shared = attributes.first_item(image, "SharedFunctionalGroupsSequence")
    of_all = ("PixelMeasuresSequence", "PlaneOrientationSequence")
    groups = [image, *(attributes.first_item(shared, keyword) for keyword in of_all)]
    frame = attributes.first_item(image, "PerFrameFunctionalGroupsSequence")
    measures = attributes.first_item(frame, "PixelMeasuresSequence")
    for keyword, count in _PLANE.items():
        for place in [*groups, measures] if keyword == "SliceThickness" else groups:
            values = attributes.numbers(place, keyword)
            if len(values) == count and all(map(math.isfinite, values)):
                setattr(header, keyword, decimals(values) if count > 1 else decimals(values)[0])
                break
