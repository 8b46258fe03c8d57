"""What reports take over from the tidy headers of the source images, and nothing else.

highdicom works on the stubs of :mod:`hipscore.reporting.stubs`. Identity (patient, study,
request) is then copied from the first tidy header.
"""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from io import BytesIO
from types import MappingProxyType

import pydicom
from pydicom import charset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.tag import ItemTag
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import AMBIGUOUS_VR

from hipscore.reporting import ReportContext, codes, uids
from hipscore.reporting.header import IDENTITY, TYPE_2

MANUFACTURER = "hipscore"
MODEL = "hipscore"

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
    report.file_meta = file_meta(report, context)


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


def file_meta(report: Dataset, context: ReportContext) -> FileMetaDataset:
    """File meta information (PS3.10 7.1) of a report that has its identity."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = report.SOPClassUID
    meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uids.IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = f"HIPSCORE_{context.software_version}"[:16]
    return meta


# --- encoding (PS3.5 7, Explicit VR Little Endian) --------------------------------------
def to_bytes(report: Dataset) -> bytes:
    """The object as a Part 10 file (PS3.10 7.1), Explicit VR Little Endian."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, _prepared(report), enforce_file_format=True)
    return buffer.getvalue()


def freeze(report: Dataset, keyword: str) -> None:
    """Encode a sequence of a finished report, in place, as if it had been read from a file.

    Whatever shares the element is then written without encoding it again. It is decoded
    where somebody looks at it.
    """
    element = report[keyword]
    if _is_plain(element, set()):
        encodings = charset.convert_encodings(report.get("SpecificCharacterSet"))
        report[keyword] = _encoded(element, encodings, {})
        _mark(report, _repertoire(report))


def _prepared(report: Dataset) -> Dataset:
    """The object with its sequences encoded, for pydicom to write.

    For each item pydicom looks through all that is in it for values whose VR depends on
    others, and it encodes an item wherever it stands: a code in each measurement, a plane in
    each segment. Where there is no such value, every item is encoded once.
    """
    elements = list(report.values())
    encoding = (*report.original_encoding, report.original_character_set)
    if any(it.is_raw for it in elements) and encoding != (False, True, _repertoire(report)):
        return report
    seen: set[int] = set()
    sequences = [it for it in elements if isinstance(it, DataElement) and it.VR == "SQ"]
    if not all(_is_plain(sequence, seen) for sequence in sequences):
        return report
    encodings = charset.convert_encodings(report.get("SpecificCharacterSet"))
    known: dict[int, bytes] = {}
    prepared = Dataset()
    for element in elements:
        prepared[element.tag] = correct_ambiguous_vr_element(element, report, is_little_endian=True)
    for sequence in sequences:
        prepared[sequence.tag] = _encoded(sequence, encodings, known)
    _mark(prepared, _repertoire(report))
    prepared.file_meta = report.file_meta
    return prepared


def _repertoire(report: Dataset) -> str | list[str]:
    """What pydicom compares to tell whether texts are still encoded as they were."""
    terms = report.get("SpecificCharacterSet")
    return charset.convert_encodings(terms) if terms else charset.default_encoding


def _mark(dataset: Dataset, repertoire: str | list[str]) -> None:
    """Say, in place, that elements which are encoded are so as they are to be written."""
    dataset.set_original_encoding(
        is_implicit_vr=False, is_little_endian=True, character_encoding=repertoire
    )


def _is_plain(sequence: DataElement, seen: set[int]) -> bool:
    """Whether items hold nothing but values that can be written one by one."""
    if sequence.is_undefined_length:
        return False
    for item in sequence.value:
        if id(item) in seen:
            continue
        seen.add(id(item))
        if item.is_undefined_length_sequence_item or "SpecificCharacterSet" in item:
            return False
        for element in item.values():
            if element.is_raw or element.VR in AMBIGUOUS_VR:
                return False
            if element.VR == "SQ" and not _is_plain(element, seen):
                return False
    return True


_ITEM = struct.Struct("<HHL")


def _encoded(
    sequence: DataElement, encodings: list[str], known: dict[int, bytes]
) -> RawDataElement:
    """A sequence as bytes; ``known`` are the items that were encoded, by identity."""
    value = b"".join(_item(item, encodings, known) for item in sequence.value)
    return RawDataElement(
        tag=sequence.tag,
        VR="SQ",
        length=len(value),
        value=value,
        value_tell=0,
        is_implicit_VR=False,
        is_little_endian=True,
    )


def _item(item: Dataset, encodings: list[str], known: dict[int, bytes]) -> bytes:
    """An item with its tag and length (PS3.5 table 7.5-1)."""
    if id(item) not in known:
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = False, True
        for tag in sorted(item.keys()):
            element = item[tag]
            ready = _encoded(element, encodings, known) if element.VR == "SQ" else element
            write_data_element(buffer, ready, encodings)
        value = buffer.getvalue()
        known[id(item)] = _ITEM.pack(ItemTag.group, ItemTag.element, len(value)) + value
    return known[id(item)]
