"""Reports of images whose headers are in disorder: always written, always valid."""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from hipscore.domain import ArtifactKind, Channel, Findings, Masks, Side
from hipscore.pipeline import Analysis, analyse, report
from hipscore.reporting import uids
from hipscore.reporting.seg import build_seg
from hipscore.reporting.sr import build_sr, to_bytes
from tests import stacks
from tests.analytic import Oracle
from tests.contract.factories import (
    CARD,
    CONTEXT,
    TOO_FEW,
    Case,
    case,
    comments,
    content,
    dciodvfy,
    declined,
    every_item,
    groups,
    stripped,
)
from tests.unit.test_series import _DISORDER, _VRS, _everywhere, _raw

pytestmark = pytest.mark.computes

Fault = Callable[[Dataset], None]


def raw(keyword: str, value: bytes, vr: str = "") -> Fault:
    """The element as a file has it: bytes nobody has looked at."""
    return lambda image: _raw(image, keyword, value, vr or dictionary_VR(keyword))


def without(*keywords: str) -> Fault:
    def fault(image: Dataset) -> None:
        for keyword in keywords:
            image.pop(keyword, None)

    return fault


def both(*faults: Fault) -> Fault:
    def fault(image: Dataset) -> None:
        for each in faults:
            each(image)

    return fault


def with_item(keyword: str, **values: str) -> Fault:
    def fault(image: Dataset) -> None:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(image, keyword, [item])

    return fault


FAULTS: dict[str, Fault] = {
    "rows of one byte": raw("Rows", b"\x01"),
    "rows in words": raw("Rows", b"many", "LO"),
    "two numbers of rows": raw("Rows", b"\x10\x00\x20\x00"),
    "no study": without("StudyInstanceUID"),
    "an empty study": raw("StudyInstanceUID", b""),
    "a study that is no UID": raw("StudyInstanceUID", b"1.2.abc"),
    "two studies": raw("StudyInstanceUID", b"1.2.3\\1.2.4"),
    "a study too long": raw("StudyInstanceUID", b"1." + b"2" * 80),
    "a study as a number": raw("StudyInstanceUID", b"\x01\x02", "US"),
    "no series": without("SeriesInstanceUID", "FrameOfReferenceUID"),
    "a series that is no UID": raw("SeriesInstanceUID", b"series 5"),
    "a frame of reference that is no UID": raw("FrameOfReferenceUID", b"scanner"),
    "an unknown character set": both(
        raw("SpecificCharacterSet", b"KLINGON"), raw("PatientName", b"M\xfcller^J\xfcrgen")
    ),
    "a character set of bytes": raw("SpecificCharacterSet", b"\xff\x00\\\\", "OB"),
    "character sets that exclude each other": both(
        raw("SpecificCharacterSet", b"ISO_IR 100\\ISO_IR 192"),
        raw("PatientName", "Müller^Jürgen".encode()),
    ),
    "a character set that lies": both(
        raw("SpecificCharacterSet", b"ISO_IR 192"), raw("PatientName", b"M\xfcller^J\xfcrgen")
    ),
    "an escape to nowhere": both(
        raw("SpecificCharacterSet", b"\\ISO 2022 IR 87"), raw("PatientName", b"A\x1b$Bx\x1b^")
    ),
    "no character set for a name": both(
        without("SpecificCharacterSet"), raw("PatientName", b"M\xfcller^J\xfcrgen")
    ),
    "a name as numbers": raw("PatientName", b"\x01\x02", "US"),
    "a name without end": raw("PatientName", b"Doe^" + b"x" * 300),
    "a name of many parts": raw("PatientName", b"a^b^c^d^e^f^g=b=c=d"),
    "a name with control characters": raw("PatientName", b"Doe\r\n^Jane\x00"),
    "names of two patients": raw("PatientName", b"Doe^Jane\\Roe^Richard"),
    "an identity too long": raw("PatientID", b"7" * 65),
    "two identities": raw("PatientID", b"17\\18"),
    "an identity in a sequence": raw("PatientID", b"\xff\xff\xff", "SQ"),
    "dates that are none": both(
        raw("PatientBirthDate", b"19700230"),
        raw("StudyDate", b"yesterday"),
        raw("StudyTime", b"2561"),
        raw("PatientBirthTime", b"noon"),
    ),
    "a range of dates": raw("StudyDate", b"20240101-20240201"),
    "a date as a number": raw("StudyDate", b"\x00\x00\x80\x3f", "FL"),
    "a third sex": raw("PatientSex", b"X\\Y"),
    "an age, size and weight of nonsense": both(
        raw("PatientAge", b"old"), raw("PatientSize", b"tall"), raw("PatientWeight", b"1e400")
    ),
    "numbers too long": both(
        raw("AccessionNumber", b"A" * 40), raw("StudyID", b"S" * 40), raw("Manufacturer", b"M" * 99)
    ),
    "equipment of two makers": raw("Manufacturer", b"ACME\\Example"),
    "text where a sequence belongs": both(
        raw("RequestAttributesSequence", b"order 5", "LO"),
        raw("OtherPatientIDsSequence", b"\xfe\xff\x00\xe0\x08"),
        raw("ProcedureCodeSequence", b"abc", "UN"),
        raw("SharedFunctionalGroupsSequence", b"1", "IS"),
        raw("PerFrameFunctionalGroupsSequence", b"\x00" * 9),
    ),
    "half a code": with_item("ProcedureCodeSequence", CodeValue="1"),
    "half a reference": with_item("ReferencedStudySequence", ReferencedSOPClassUID="1.2.3"),
    "half another identity": with_item("OtherPatientIDsSequence", PatientID="5"),
    "an order of control characters": with_item(
        "RequestAttributesSequence", RequestedProcedureID="R\x1b7", ScheduledProcedureStepID="\t"
    ),
    "half a clinical trial": raw("ClinicalTrialSubjectID", b"S7"),
    "de-identified, nobody says how": raw("PatientIdentityRemoved", b"YES"),
    "lossy by an unknown factor": raw("LossyImageCompression", b"perhaps"),
    "a time zone of letters": raw("TimezoneOffsetFromUTC", b"CEST+"),
    "a time zone out of this world": raw("TimezoneOffsetFromUTC", b"+9959"),
    "a slice thickness twice": raw("SliceThickness", b"4\\5"),
    "a slice thickness below nothing": raw("SliceThickness", b"-4"),
    "a spacing too precise": raw("SpacingBetweenSlices", b"4.000000000000000000001"),
    "two modalities": raw("Modality", b"MR\\CT"),
    "no SOP class": without("SOPClassUID"),
    "a SOP class of one's own": raw("SOPClassUID", b"1.2.826.0.1.3680043.10.1.99"),
    "no file meta information": lambda image: delattr(image, "file_meta"),
}

#: no volume is made of images like these: there is nothing to segment
_NO_VOLUME = {"a SOP class of one's own"}


def damaged(fault: Fault, which: slice = slice(None)) -> Case:
    """One segment of one hip, the headers damaged after it was found."""
    source = case("one segment")
    images = [copy.deepcopy(image) for image in source.images]
    for image in images[which]:
        fault(image)
    return dataclasses.replace(source, images=tuple(images))


def built(source: Case) -> list[Dataset]:
    """The SEG and the SR of a case."""
    seg = source.seg()
    assert seg is not None
    return [seg, source.sr()]


def read(data: bytes) -> Dataset:
    """What a reader makes of the bytes; a value that is not valid is an error."""
    found = pydicom.dcmread(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")  # leading zeros
        for item in every_item(found):
            str(item)
    return found


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_damaged_header_costs_no_report(name: str, tmp_path: Path) -> None:
    source = damaged(FAULTS[name])
    documents = [declined(TOO_FEW, source.images).sr()] if name in _NO_VOLUME else built(source)
    for document in documents:
        data = to_bytes(document)
        assert dciodvfy(data, tmp_path).errors == []
        read(data)


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_series_declined_for_its_header_gets_a_report_that_says_why(
    name: str, tmp_path: Path
) -> None:
    """One of its images is damaged, as when a transfer broke."""
    images = damaged(FAULTS[name], slice(0, 1)).images[:2]
    data = [to_bytes(declined(TOO_FEW, images).sr()) for _ in range(2)]
    assert data[0] == data[1]
    assert dciodvfy(data[0], tmp_path).errors == []
    assert "4 slices show >= 100 mm2 of femoral head" in comments(groups(read(data[0]))["Patient"])


@pytest.mark.parametrize("name", list(FAULTS))
def test_nothing_about_the_patient_is_printed(
    name: str,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    images = damaged(FAULTS[name]).images[:2]
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("always")
        to_bytes(declined(TOO_FEW, images).sr())
    assert not recwarn.list
    printed = capfd.readouterr()
    for word in ("Doe", "Jane", "xxx", "M\xfcller", "777", "19700230", "yesterday", "noon"):
        assert word not in caplog.text + printed.out + printed.err


# --- what becomes of the values ---------------------------------------------------------


def patient(**values: bytes) -> Dataset:
    """The report of images with these values, as others read it."""
    source = damaged(both(*(raw(keyword, value) for keyword, value in values.items())))
    return read(to_bytes(declined(TOO_FEW, source.images).sr()))


def test_valid_identity_is_kept_to_the_letter() -> None:
    found = patient(
        PatientName=b" Doe^Jane^^Dr", PatientID=b" 00 17-a", StudyInstanceUID=b"1.2.840.5"
    )
    assert str(found.PatientName) == " Doe^Jane^^Dr"
    assert found.PatientID == " 00 17-a"
    assert found.StudyInstanceUID == "1.2.840.5"


def test_a_uid_with_leading_zeros_is_kept_so_that_the_report_joins_its_study() -> None:
    source = damaged(raw("StudyInstanceUID", b"1.2.03"))
    for document in built(source):
        assert document.StudyInstanceUID == "1.2.03"
    [study] = source.sr().CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == "1.2.03"


@pytest.mark.parametrize(
    "name", ("no study", "an empty study", "a study that is no UID", "two studies")
)
def test_a_study_nobody_names_is_derived_from_the_job(name: str) -> None:
    expected = uids.derive(CONTEXT.job_key, "study")
    for document in built(damaged(FAULTS[name])):
        assert document.StudyInstanceUID == expected
    [study] = damaged(FAULTS[name]).sr().CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == expected


def test_one_damaged_image_does_not_lose_the_study_or_the_patient() -> None:
    clean = case("one segment").images[1]
    fault = both(
        FAULTS["no study"], FAULTS["a series that is no UID"], FAULTS["an identity too long"]
    )
    for document in built(damaged(fault, slice(0, 1))):
        assert document.StudyInstanceUID == clean.StudyInstanceUID
        assert document.PatientID == clean.PatientID
        assert document.PatientName == clean.PatientName


@pytest.mark.parametrize(
    "charset",
    (b"KLINGON", b"ISO_IR 192", b"", b"ISO_IR 100\\ISO_IR 192"),
)
def test_a_name_that_cannot_be_read_as_declared_is_written_in_unicode(charset: bytes) -> None:
    found = patient(SpecificCharacterSet=charset, PatientName=b"M\xfcller^J\xfcrgen")
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.PatientName == "Müller^Jürgen"


@pytest.mark.parametrize("charset", (b"ISO-IR 100", b"ISO IR 100", b"iso_ir_100", b"ISO_IR 100\\"))
def test_a_misspelt_character_set_is_understood(charset: bytes) -> None:
    found = patient(SpecificCharacterSet=charset, PatientName=b"M\xfcller^J\xfcrgen")
    assert found.SpecificCharacterSet == "ISO_IR 100"
    assert found.PatientName == "Müller^Jürgen"


def test_values_are_repaired_where_their_meaning_is_clear_and_left_out_where_not() -> None:
    found = patient(
        PatientName=b"Doe\r\n^Jane" + b"x" * 80,
        PatientBirthDate=b"1970.02.28",
        StudyTime=b"12:30:15",
        StudyDate=b"20240230",
        PatientID=b"17\\18",
        PatientSex=b"W",
        PatientWeight=b"70 kg",
        StudyDescription=b"MR\\pelvis",
    )
    assert str(found.PatientName) == "Doe^Jane" + "x" * 56
    assert found.PatientBirthDate == "19700228"
    assert found.StudyTime == "123015"
    assert found.StudyDate == found.PatientID == found.PatientSex == ""
    assert "PatientWeight" not in found
    assert "StudyDescription" not in found


def test_an_image_that_does_not_say_who_it_is_gets_a_uid_of_the_job() -> None:
    images = stripped(case("one segment").images, "SOPInstanceUID", "SOPClassUID")
    for image in images:
        image.file_meta.clear()
    document = declined(TOO_FEW, images).sr()
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in content(document, "Source")
    ]
    assert listed == [uids.derive(CONTEXT.job_key, "image", str(i)) for i in range(len(images))]


def test_images_of_an_unknown_sop_class_are_referenced_as_what_they_are() -> None:
    private = "1.2.826.0.1.3680043.10.1.99"
    document = declined(TOO_FEW, damaged(FAULTS["a SOP class of one's own"]).images).sr()
    named = [item for item in every_item(document) if "ReferencedSOPClassUID" in item]
    assert {item.ReferencedSOPClassUID for item in named} == {private}


def test_half_a_clinical_trial_is_none_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    whole = {
        "ClinicalTrialSponsorName": b"Sponsor",
        "ClinicalTrialProtocolID": b"P1",
        "ClinicalTrialSubjectID": b"S7",
    }
    found = patient(**whole)
    assert found.ClinicalTrialSubjectID == "S7"
    assert found.ClinicalTrialSiteName == ""
    assert dciodvfy(to_bytes(found), tmp_path).errors == []
    del whole["ClinicalTrialProtocolID"]
    assert "ClinicalTrialSponsorName" not in patient(**whole)


# --- anything at all --------------------------------------------------------------------


def _named(images: Sequence[Dataset]) -> list[Dataset]:
    for image in images:
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName, image.PatientID, image.PatientSex = "Doe^Jane", "17", "F"
        image.PatientBirthDate, image.StudyDate, image.StudyTime = "19700101", "20240102", "1300"
        image.AccessionNumber, image.PatientWeight, image.PatientAge = "A1", "70", "054Y"
        image.Manufacturer, image.SliceThickness = "ACME", "4"
        image.TimezoneOffsetFromUTC = "+0100"
        code, request = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "MR hip"
        request.RequestedProcedureID, request.AccessionNumber = "R1", "A1"
        request.RequestedProcedureCodeSequence = [code]
        image.RequestAttributesSequence = [request]
    return list(images)


@settings(max_examples=60)
@given(data=st.data(), enhanced=st.booleans())
def test_whatever_a_header_says_there_is_a_report(data: st.DataObject, enhanced: bool) -> None:
    images = _named([stacks.multi_frame(5, 4, 4)] if enhanced else stacks.coronal(5, 4, 4))
    everywhere = [pair for index in (0, -1) for pair in _everywhere(images[index])]
    for holder, keyword in data.draw(st.lists(st.sampled_from(everywhere), min_size=1, max_size=4)):
        if data.draw(st.booleans()):
            vr = data.draw(st.one_of(st.just(dictionary_VR(keyword)), _VRS))
            _raw(holder, keyword, data.draw(_DISORDER), vr)
        else:
            holder.pop(keyword, None)
    oracle = Oracle()
    analysis = analyse(images, oracle)
    found = {item.kind: item for item in report(analysis, oracle.card, context=CONTEXT)}
    document = read(found[ArtifactKind.SR].data)
    assert document.SOPInstanceUID == found[ArtifactKind.SR].sop_instance_uid
    assert document.StudyInstanceUID
    assert len(content(document, "Source")) == len(images)
    if analysis.volume is not None:
        _segmented(analysis)


def _segmented(analysis: Analysis) -> None:
    """Whatever became a volume can be segmented."""
    assert analysis.volume is not None
    voxels = np.zeros((len(Channel), *analysis.volume.grid.shape), dtype=np.bool_)
    voxels[Channel.FEMORAL_HEAD, 1:3, 1:3, 1:3] = True
    masks = (Masks(side=Side.RIGHT, voxels=voxels),)
    findings = Findings(hips=(), reason=TOO_FEW, unet_score=None)
    seg = build_seg(analysis.images, analysis.volume, masks, CARD, CONTEXT)
    assert seg is not None
    sr = build_sr(analysis.images, analysis.volume, masks, findings, CARD, CONTEXT, seg=seg)
    assert read(to_bytes(seg)).StudyInstanceUID == read(to_bytes(sr)).StudyInstanceUID
