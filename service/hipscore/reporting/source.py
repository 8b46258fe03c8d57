"""What reports take over from the tidy headers of the source images, and nothing else.

highdicom works on stubs: small headers that hold what it reads, with values it accepts
and without names, which it would print. Identity (patient, study, request) is then copied
from the first tidy header.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from io import BytesIO
from types import MappingProxyType

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from hipscore.domain import Volume
from hipscore.reporting import ReportContext, SopReference, codes, uids
from hipscore.reporting.header import EQUIPMENT, IDENTITY, LOSSY, TYPE_2, decimals

MANUFACTURER = "hipscore"
MODEL = "hipscore"

_UIDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)")
#: PS3.3 C.12.1.1.8
_OFFSETS = (timedelta(hours=-12), timedelta(hours=14))

# type 2 of the Request Attributes an SR repeats (PS3.3 C.17.2, Referenced Request Sequence)
_REQUEST = [
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
]


def stubs(headers: Sequence[Dataset], volume: Volume | None = None) -> list[Dataset]:
    """Stand-ins for the source images, for highdicom.

    Parameters
    ----------
    headers
        Tidy headers of single-frame images in slice order, or of one multi-frame image.
    volume
        With it the stubs are of one series and carry a geometry that highdicom accepts:
        one orientation, one pixel measure, the slice spacing of the grid; a multi-frame
        stub has one frame per slice of the volume, in that order. Without it only what
        identifies them.

    Returns
    -------
    list of Dataset
        As long as ``headers``.
    """
    if volume is None:
        return [_identified(header) for header in headers]
    if len(headers) == 1 and volume.sources[0].frame_number is not None:
        return [_multi_frame(headers[0], volume)]
    return _single_frames(headers, volume)


def _identified(header: Dataset) -> Dataset:
    stub = Dataset()
    for keyword in TYPE_2:
        setattr(stub, keyword, "")
    stub.Modality = "MR"
    copy_elements(header, stub, (*_UIDS, *EQUIPMENT, *LOSSY))
    stub.Rows, stub.Columns = header.get("Rows", 0), header.get("Columns", 0)
    return stub


def _single_frames(headers: Sequence[Dataset], volume: Volume) -> list[Dataset]:
    first, result = headers[0], []
    for header in headers:
        stub = _identified(header)
        copy_elements(first, stub, ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"))
        stub.Rows, stub.Columns = volume.grid.shape[1:]
        stub.ImageOrientationPatient = list(first.ImageOrientationPatient)
        stub.ImagePositionPatient = list(header.ImagePositionPatient)
        stub.update(_measures(first, volume))
        stub.PixelSpacing = list(first.PixelSpacing)
        result.append(stub)
    return result


def _multi_frame(header: Dataset, volume: Volume) -> Dataset:
    stub = _identified(header)
    stub.NumberOfFrames = len(volume.sources)
    stub.Rows, stub.Columns = volume.grid.shape[1:]
    step_row, step_column = volume.grid.affine[:3, 2], volume.grid.affine[:3, 1]
    _, dy, dx = volume.grid.spacing_mm
    orientation = Dataset()
    orientation.ImageOrientationPatient = decimals((*(step_row / dx), *(step_column / dy)))
    shared = Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [_measures(header, volume)]
    stub.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(len(volume.sources)):
        position = Dataset()
        position.ImagePositionPatient = decimals(volume.grid.to_mm((index, 0, 0)))
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    stub.PerFrameFunctionalGroupsSequence = frames
    return stub


def _measures(header: Dataset, volume: Volume) -> Dataset:
    dz, dy, dx = volume.grid.spacing_mm
    measures = Dataset()
    measures.PixelSpacing = decimals((dy, dx))
    thickness = header.get("SliceThickness", 0.0)
    measures.SliceThickness = thickness if thickness > 0 else decimals((dz,))[0]
    measures.SpacingBetweenSlices = decimals((dz,))[0]
    return measures


def copy_elements(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy the elements that ``source`` has; assigning to the copies leaves the source alone."""
    for keyword in keywords:
        if keyword in source:
            target[keyword] = copy.deepcopy(source[keyword])


def reference(header: Dataset) -> Dataset:
    """An item that names a SOP instance (PS3.3 table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def referenced_series(headers: Sequence[Dataset]) -> list[Dataset]:
    """Items of Referenced Series Sequence (PS3.3 table C.12-8): instances of this study."""
    items: dict[str, Dataset] = {}
    for header in headers:
        uid = str(header.SeriesInstanceUID)
        if uid not in items:
            items[uid] = Dataset()
            items[uid].SeriesInstanceUID = uid
            items[uid].ReferencedInstanceSequence = []
        items[uid].ReferencedInstanceSequence.append(reference(header))
    return list(items.values())


def referenced_request(header: Dataset) -> list[Dataset]:
    """Items of Referenced Request Sequence (0040,A370): the order the images were made for.

    Empty where the images name no order.
    """
    requests = list(header.get("RequestAttributesSequence", []))
    if not requests and header.get("AccessionNumber"):
        requests = [Dataset()]
    items = []
    for request in requests:
        item = Dataset()
        item.StudyInstanceUID = header.StudyInstanceUID
        item.ReferencedStudySequence = []
        item.RequestedProcedureCodeSequence = []
        for keyword in _REQUEST:
            setattr(item, keyword, "")
        copy_elements(header, item, ("AccessionNumber", "IssuerOfAccessionNumberSequence"))
        copy_elements(
            request, item, (*_REQUEST, "RequestedProcedureCodeSequence", "ReferencedStudySequence")
        )
        items.append(item)
    return items


def evidence(segmentation: Dataset, like: Dataset) -> Dataset:
    """Stand-in of our SEG, for highdicom: a stub with its own identity."""
    item = copy.deepcopy(like)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        setattr(item, keyword, str(segmentation[keyword].value))
    return item


def predecessors(reference: SopReference | None) -> list[Dataset] | None:
    """What highdicom makes Predecessor Documents Sequence of."""
    if reference is None:
        return None
    item = Dataset()
    item.SOPClassUID = reference.sop_class_uid
    item.SOPInstanceUID = reference.sop_instance_uid
    item.SeriesInstanceUID = reference.series_instance_uid
    item.StudyInstanceUID = reference.study_instance_uid
    return [item]


#: Series Number, and what the series holds
_SERIES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "seg": (9001, "SEG"),
        "sr": (9002, "report"),
        "sc": (9003, "images"),
        "pdf": (9004, "PDF"),
        "rejection": (9005, "withdrawal"),
    }
)


def finish(report: Dataset, header: Dataset, context: ReportContext, kind: str) -> None:
    """Give a built object its identity, its times and its origin, in place.

    Replaces everything highdicom took from the clock or drew at random, so that the same
    arguments give the same bytes.
    """
    # highdicom has copied some of them from the stubs, where they are empty
    for keyword in IDENTITY:
        if keyword in report:
            del report[keyword]
    for keyword in TYPE_2:
        setattr(report, keyword, "")
    copy_elements(header, report, ("SpecificCharacterSet", "StudyInstanceUID", *IDENTITY))
    created = _stamp(report, header, context)
    report.SeriesNumber, noun = _SERIES[kind]
    report.SeriesDescription = _described(noun, header, context, created)
    report.Manufacturer = MANUFACTURER
    report.ManufacturerModelName = MODEL
    report.SoftwareVersions = context.software_version
    report.DeviceSerialNumber = context.device_serial
    if context.institution_name:
        report.InstitutionName = codes.plain(context.institution_name)
    report.file_meta = _file_meta(report, context)


def _described(noun: str, header: Dataset, context: ReportContext, created: datetime) -> str:
    """Series Description: tells apart what is made of one study, and of one series again."""
    parts = [f"hipscore {noun} (research)"]
    if "SeriesNumber" in header:
        parts.append(f"series {header.SeriesNumber}")
    parts.append(f"{created:%Y-%m-%d %H:%M:%S}")
    if context.predecessor is not None:
        parts.append("update")
    text = " ".join(parts)
    return text if len(text) <= 64 else " ".join([parts[0], *parts[2:]])


def _stamp(report: Dataset, header: Dataset, context: ReportContext) -> datetime:
    """Dates and times, in the time zone the images declare. Returns the moment in that."""
    created = context.created_at
    match = _OFFSET.fullmatch(header.get("TimezoneOffsetFromUTC", ""))
    if match is not None:
        delta = timedelta(hours=int(match[2]), minutes=int(match[3]))
        delta = -delta if match[1] == "-" else delta
        if _OFFSETS[0] <= delta <= _OFFSETS[1]:
            created = created.astimezone(timezone(delta))
            report.TimezoneOffsetFromUTC = match[0]
    date, time = _da(created), _tm(created)
    for prefix in ("InstanceCreation", "Content", "Series"):
        setattr(report, f"{prefix}Date", date)
        setattr(report, f"{prefix}Time", time)
    for item in report.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    return created


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
