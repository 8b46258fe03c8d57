"""What reports take over from the source images, and nothing else.

Builders work on stubs: small headers that hold what highdicom reads, with values it
accepts. Real headers lack type 2 attributes, break formats and carry names; the stubs
keep such headers from failing a report and names out of warnings. Identity (patient,
study, request) is then copied unchanged from the first image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from io import BytesIO
from types import MappingProxyType

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat, validate_value

from hipscore.domain import Volume
from hipscore.reporting import ReportContext, codes, uids

MANUFACTURER = "hipscore"
MODEL = "hipscore"

# type 2 in every report (PS3.3 C.7.1.1, C.7.2.1)
_TYPE_2 = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
]
# what archives match on: copied as it is, right or wrong
_IDENTITY = [
    *_TYPE_2,
    "StudyInstanceUID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "IssuerOfAccessionNumberSequence",
]
# optional attributes of the same patient and study (with C.7.2.2, C.7.1.3, C.7.2.3)
_DESCRIPTION = [
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
    "LongitudinalTemporalInformationModified",
]
# type 2 of the Request Attributes an SR repeats (PS3.3 C.17.2, Referenced Request Sequence)
_REQUEST = [
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
]
_EQUIPMENT = [
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "InstitutionName",
    "StationName",
]
_LOSSY = ["LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"]


def stubs(images: Sequence[Dataset], volume: Volume | None = None) -> list[Dataset]:
    """Headers of the source images in the given order, for highdicom.

    Parameters
    ----------
    images
        Single-frame images in slice order, or one multi-frame image.
    volume
        With it the stubs carry a geometry that highdicom accepts: one orientation, one
        pixel measure, the slice spacing of the grid; a multi-frame stub has one frame
        per slice of the volume, in that order. Without it only what identifies them.

    Returns
    -------
    list of Dataset
        As long as ``images``.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not images:
        msg = "a report needs at least one source image, got none"
        raise ValueError(msg)
    if volume is None:
        return [_identified(image) for image in images]
    if len(images) == 1 and volume.sources[0].frame_number is not None:
        return [_multi_frame(images[0], volume)]
    return _single_frames(images, volume)


def _identified(image: Dataset) -> Dataset:
    stub = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(stub, keyword, str(image[keyword].value))
    stub.Modality = "MR"
    for keyword in _TYPE_2:
        setattr(stub, keyword, "")
    copy_elements(image, stub, _EQUIPMENT)
    copy_elements(image, stub, _LOSSY)
    stub.FrameOfReferenceUID = frame_of_reference(image)
    stub.Rows, stub.Columns = int(image.get("Rows") or 0), int(image.get("Columns") or 0)
    return stub


def frame_of_reference(image: Dataset) -> str:
    """Frame of Reference UID of an image; one derived from its series where it has none.

    Some de-identification tools drop this type 1 attribute. A SEG cannot do without.
    """
    own = image.get("FrameOfReferenceUID")
    return str(own) if own else uids.derive(str(image.SeriesInstanceUID), "frame of reference")


def _single_frames(images: Sequence[Dataset], volume: Volume) -> list[Dataset]:
    first = _identified(images[0])
    result = []
    for image in images:
        stub = _identified(image)
        stub.FrameOfReferenceUID = first.FrameOfReferenceUID
        stub.ImageOrientationPatient = list(images[0].ImageOrientationPatient)
        stub.ImagePositionPatient = list(image.ImagePositionPatient)
        stub.update(_measures(images[0].get("SliceThickness"), volume))
        stub.PixelSpacing = list(images[0].PixelSpacing)
        result.append(stub)
    return result


def _multi_frame(image: Dataset, volume: Volume) -> Dataset:
    stub = _identified(image)
    stub.NumberOfFrames = len(volume.sources)
    step_row, step_column = volume.grid.affine[:3, 2], volume.grid.affine[:3, 1]
    _, dy, dx = volume.grid.spacing_mm
    orientation = Dataset()
    orientation.ImageOrientationPatient = _decimals((*(step_row / dx), *(step_column / dy)))
    shared = Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [_measures(thickness(image), volume)]
    stub.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(len(volume.sources)):
        position = Dataset()
        position.ImagePositionPatient = _decimals(volume.grid.to_mm((index, 0, 0)))
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    stub.PerFrameFunctionalGroupsSequence = frames
    return stub


def _measures(slice_thickness: object, volume: Volume) -> Dataset:
    dz, dy, dx = volume.grid.spacing_mm
    measures = Dataset()
    measures.PixelSpacing = _decimals((dy, dx))
    measures.SliceThickness = slice_thickness or _decimals((dz,))[0]
    measures.SpacingBetweenSlices = _decimals((dz,))[0]
    return measures


def places(image: Dataset) -> list[Dataset]:
    """Where attributes of the image plane may stand: the image, then shared functional groups."""
    found = [image]
    for shared in list(image.get("SharedFunctionalGroupsSequence") or [])[:1]:
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            found.extend(list(shared.get(keyword) or [])[:1])
    return found


def thickness(image: Dataset) -> float | None:
    """Slice thickness, mm, of a single-frame or multi-frame image; None if it has none."""
    groups = places(image)
    for frame in list(image.get("PerFrameFunctionalGroupsSequence") or [])[:1]:
        groups.extend(frame.get("PixelMeasuresSequence") or [])
    values = [group.get("SliceThickness") for group in groups]
    return next((float(value) for value in values if value), None)


def _decimals(values: Iterable[float]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters (PS3.5 table 6.2-1)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def copy_elements(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy the elements that ``source`` has; assigning to the copies leaves the source alone."""
    for keyword in keywords:
        if keyword in source:
            target[keyword] = copy.deepcopy(source[keyword])


def _valid(image: Dataset, keyword: str) -> bool:
    """Whether an element is present and its values are of the form its VR asks for (PS3.5 6.2)."""
    if keyword not in image:
        return False
    element = image[keyword]
    if element.VR == "SQ" or element.value is None:
        return True
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, str(value), pydicom.config.RAISE)
    except ValueError:
        return False
    return True


def referenced_request(image: Dataset) -> list[Dataset]:
    """Items of Referenced Request Sequence (0040,A370): the order the images were made for.

    Empty where the images name no order.
    """
    requests = list(image.get("RequestAttributesSequence") or [])
    if not requests and image.get("AccessionNumber"):
        requests = [Dataset()]
    items = []
    for request in requests:
        item = Dataset()
        item.StudyInstanceUID = str(image.StudyInstanceUID)
        item.ReferencedStudySequence = []
        item.RequestedProcedureCodeSequence = []
        for keyword in _REQUEST:
            setattr(item, keyword, "")
        copy_elements(image, item, ("AccessionNumber", "IssuerOfAccessionNumberSequence"))
        copy_elements(
            request, item, (*_REQUEST, "RequestedProcedureCodeSequence", "ReferencedStudySequence")
        )
        items.append(item)
    return items


_SERIES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "seg": (9001, "hipscore segmentation (research)"),
        "sr": (9002, "hipscore report (research)"),
    }
)


def finish(report: Dataset, image: Dataset, context: ReportContext, kind: str) -> None:
    """Give a built object its identity, its times and its origin, in place.

    Replaces everything highdicom took from the clock or drew at random, so that the same
    arguments give the same bytes.
    """
    # highdicom has copied some of them from the stubs, where they are empty
    for keyword in (*_IDENTITY, *_DESCRIPTION):
        if keyword in report:
            del report[keyword]
    copy_elements(image, report, _IDENTITY)
    copy_elements(image, report, [keyword for keyword in _DESCRIPTION if _valid(image, keyword)])
    for keyword in _TYPE_2:
        if keyword not in report:
            setattr(report, keyword, "")
    copy_elements(image, report, ("SpecificCharacterSet",))
    report.SeriesNumber, report.SeriesDescription = _SERIES[kind]
    _stamp(report, image, context)
    report.Manufacturer = MANUFACTURER
    report.ManufacturerModelName = MODEL
    report.SoftwareVersions = context.software_version
    report.DeviceSerialNumber = context.device_serial
    if context.institution_name:
        report.InstitutionName = codes.plain(context.institution_name)
    report.file_meta = _file_meta(report, context)


def _stamp(report: Dataset, image: Dataset, context: ReportContext) -> None:
    """Dates and times, in the time zone the images declare."""
    offset = str(image.get("TimezoneOffsetFromUTC") or "")
    created = context.created_at
    if len(offset) == 5:
        sign = -1 if offset[0] == "-" else 1
        delta = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
        created = created.astimezone(timezone(sign * delta))
        report.TimezoneOffsetFromUTC = offset
    date, time = _da(created), _tm(created)
    for prefix in ("InstanceCreation", "Content", "Series"):
        setattr(report, f"{prefix}Date", date)
        setattr(report, f"{prefix}Time", time)
    for item in report.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime


def _da(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _tm(moment: datetime) -> str:
    return moment.strftime("%H%M%S.%f")


def _file_meta(report: Dataset, context: ReportContext) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = report.SOPClassUID
    meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uids.IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = f"HIPSCORE_{context.software_version}"[:16]
    return meta


def to_bytes(report: Dataset) -> bytes:
    """The object as a Part 10 file (PS3.10 7.1), Explicit VR Little Endian."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, report, enforce_file_format=True)
    return buffer.getvalue()
