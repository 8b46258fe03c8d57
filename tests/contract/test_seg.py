"""The DICOM Segmentation: what the PACS and every viewer get."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hipscore.domain import RESEARCH_USE, BoolArray, Channel, Masks, Side, Volume
from hipscore.reporting import ReportContext
from hipscore.reporting.seg import build_seg
from hipscore.reporting.source import to_bytes
from tests.contract.factories import (
    CARD,
    CONTEXT,
    Case,
    case,
    dciodvfy,
    dcmqi,
    every_item,
    nrrd_count,
    segmentation,
    stripped,
    study,
)

WITH_SEGMENTS = [
    "scored",
    "one hip in view",
    "one hip of two scored",
    "clean",
    "one segment",
    "enhanced",
]
TOLERATED = ("Missing attribute or value that would be needed to build DICOMDIR - Study ID",)


def built(source: Case, context: ReportContext = CONTEXT) -> Dataset:
    seg = source.seg(context)
    assert seg is not None
    return seg


def read_back(seg: Dataset, volume: Volume) -> dict[str, BoolArray]:
    """Masks (Z, Y, X) by segment label, placed by the source image each frame names."""
    z_of = {(item.sop_instance_uid, item.frame_number): z for z, item in enumerate(volume.sources)}
    labels = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    found = {label: np.zeros(volume.grid.shape, dtype=bool) for label in labels.values()}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        numbered = group if "SegmentIdentificationSequence" in group else shared
        segment = numbered.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        key = (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))
        found[labels[segment]][z_of[key]] = frame.astype(bool)
    return found


@pytest.mark.parametrize("name", WITH_SEGMENTS)
def test_conforms_to_the_standard(name: str, tmp_path: Path) -> None:
    verdict = dciodvfy(to_bytes(segmentation(name)), tmp_path)
    assert verdict.errors == []
    assert [line for line in verdict.warnings if not line.endswith(TOLERATED)] == []


@pytest.mark.parametrize("name", WITH_SEGMENTS)
def test_every_voxel_comes_back_on_its_source_image(name: str) -> None:
    source = case(name)
    assert source.volume is not None
    seg = pydicom.dcmread(io.BytesIO(to_bytes(built(source))))
    found = read_back(seg, source.volume)
    nouns = {Channel.FEMORAL_HEAD: "femoral head", Channel.BME: "bone marrow edema"}
    expected = {
        f"{item.side.value.capitalize()} {nouns.get(channel, 'synovitis-effusion')}": item.voxels[
            channel
        ]
        for item in source.masks
        for channel in Channel
        if item.voxels[channel].any()
    }
    assert found.keys() == expected.keys()
    for label, mask in expected.items():
        assert np.array_equal(found[label], mask), label


def test_only_frames_that_carry_a_segment_are_stored() -> None:
    source, seg = case("scored"), segmentation("scored")
    assert seg.NumberOfFrames == sum(
        int(item.voxels[channel].any(axis=(1, 2)).sum())
        for item in source.masks
        for channel in Channel
    )


def test_dcmqi_reads_the_same_segments(tmp_path: Path) -> None:
    source = case("scored")
    out = dcmqi(
        "segimage2itkimage",
        to_bytes(built(source)),
        tmp_path,
        "--outputDirectory",
        "OUT",
        "--outputType",
        "nrrd",
    )
    meta = json.loads((out / "meta.json").read_text())
    labels = [item["SegmentLabel"] for group in meta["segmentAttributes"] for item in group]
    assert labels == [
        f"{side} {noun}"
        for side in ("Right", "Left")
        for noun in ("femoral head", "bone marrow edema", "synovitis-effusion")
    ]
    counts = [nrrd_count(out / f"{index}.nrrd") for index in range(1, 7)]
    assert counts == [int(item.voxels[c].sum()) for item in source.masks for c in Channel]


def test_each_frame_lies_where_its_source_image_lies() -> None:
    source, seg = case("scored"), segmentation("scored")
    places = {image.SOPInstanceUID: image.ImagePositionPatient for image in source.images}
    for group in seg.PerFrameFunctionalGroupsSequence:
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert place == places[image.ReferencedSOPInstanceUID]
    shared = seg.SharedFunctionalGroupsSequence[0]
    first = source.images[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert orientation == first.ImageOrientationPatient
    measures = shared.PixelMeasuresSequence[0]
    assert measures.PixelSpacing == first.PixelSpacing
    assert measures.SliceThickness == first.SliceThickness
    assert float(measures.SpacingBetweenSlices) == pytest.approx(5.0)
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [
        image.SOPInstanceUID for image in source.images
    ]


def test_enhanced_frames_lie_where_the_source_frames_lie() -> None:
    source, seg = case("enhanced"), segmentation("enhanced")
    frames = source.images[0].PerFrameFunctionalGroupsSequence
    for group in seg.PerFrameFunctionalGroupsSequence:
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.images[0].SOPInstanceUID
        own = frames[image.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(
            np.array(place, dtype=float), np.array(own.ImagePositionPatient, dtype=float)
        )


def test_segments_are_named_coded_sided_and_tracked() -> None:
    seg = segmentation("scored")
    codes = [
        (
            item.SegmentLabel,
            item.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue,
            item.AnatomicRegionSequence[0].CodeValue,
            item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeValue,
        )
        for item in seg.SegmentSequence
    ]
    assert codes == [
        ("Right femoral head", "91723000", "2812003", "2812003", "24028007"),
        ("Right bone marrow edema", "49755003", "79654002", "2812003", "24028007"),
        ("Right synovitis-effusion", "49755003", "409774005", "24136001", "24028007"),
        ("Left femoral head", "91723000", "2812003", "2812003", "7771000"),
        ("Left bone marrow edema", "49755003", "79654002", "2812003", "7771000"),
        ("Left synovitis-effusion", "49755003", "409774005", "24136001", "7771000"),
    ]
    assert len({item.TrackingUID for item in seg.SegmentSequence}) == 6
    for item in seg.SegmentSequence:
        assert item.TrackingID == item.SegmentLabel
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        [algorithm] = item.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == "hip-unet 1.2.3"
        assert CARD.sha256 in algorithm.AlgorithmParameters
        assert len(item.RecommendedDisplayCIELabValue) == 3


def test_is_binary_explicit_little_endian_and_marked_as_research() -> None:
    seg = segmentation("scored")
    assert seg.SegmentationType == "BINARY"
    assert seg.BitsAllocated == 1
    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert seg.SeriesDescription == "hipscore SEG (research) series 3 2024-01-02 13:30:15"
    assert seg.ContentDescription == RESEARCH_USE
    assert seg.SeriesNumber == 9001
    assert seg.Modality == "SEG"


def test_the_bits_after_the_last_pixel_are_zero() -> None:
    """One frame of 9 x 9 pixels is 81 bits: 11 bytes, and one more for an even length."""
    source = case("one segment")
    assert source.volume is not None
    images = [copy.deepcopy(image) for image in source.images]
    for image in images:
        image.Rows = image.Columns = 9
    pixels = source.volume.voxels[:, :9, :9].copy()
    grid = dataclasses.replace(source.volume.grid, shape=pixels.shape)
    volume = dataclasses.replace(source.volume, voxels=pixels, grid=grid)
    voxels = np.zeros((3, *grid.shape), dtype=bool)
    voxels[Channel.FEMORAL_HEAD, 0] = True
    seg = build_seg(images, volume, (Masks(side=Side.RIGHT, voxels=voxels),), CARD, CONTEXT)
    assert seg is not None
    assert seg.PixelData == b"\xff" * 10 + b"\x01\x00"


def test_belongs_to_the_patient_study_and_order_of_the_images() -> None:
    images = [copy.deepcopy(image) for image in case("scored").images]
    request = Dataset()
    request.RequestedProcedureID = "RP1"
    request.ScheduledProcedureStepID = "SPS1"
    for image in images:
        image.AccessionNumber = "A-17"
        image.StudyID = "S1"
        image.StudyDescription = "MR pelvis"
        image.IssuerOfPatientID = "HOSPITAL"
        image.RequestAttributesSequence = [request]
    seg = built(dataclasses.replace(case("scored"), images=tuple(images)))
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "IssuerOfPatientID",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "StudyDescription",
        "AccessionNumber",
        "ReferringPhysicianName",
        "FrameOfReferenceUID",
    ):
        assert seg[keyword].value == images[0][keyword].value, keyword
    assert seg.RequestAttributesSequence[0].RequestedProcedureID == "RP1"
    assert seg.SeriesInstanceUID != images[0].SeriesInstanceUID


@pytest.mark.computes
@pytest.mark.parametrize(
    ("character_set", "name"),
    (
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 101", "Wałęsa^Łucja"),
        ("ISO_IR 144", "Люкceмбypг^Анна"),
        ("ISO_IR 192", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ),
)
def test_names_keep_their_characters(character_set: str | list[str], name: str) -> None:
    images = [copy.deepcopy(image) for image in case("one segment").images]
    for image in images:
        image.SpecificCharacterSet = character_set
        image.PatientName = name
    source = dataclasses.replace(case("one segment"), images=tuple(images))
    for report in (built(source), source.sr()):
        again = pydicom.dcmread(io.BytesIO(to_bytes(report)))
        assert again.SpecificCharacterSet == images[0].SpecificCharacterSet
        assert again.PatientName == name


@pytest.mark.parametrize("name", ("scored", "enhanced"))
def test_built_twice_is_the_same_object_to_the_byte(name: str) -> None:
    assert to_bytes(built(case(name))) == to_bytes(segmentation(name))


def test_another_job_gets_other_uids() -> None:
    one = built(case("one segment"))
    other = built(case("one segment"), dataclasses.replace(CONTEXT, job_key="other"))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert one[keyword].value != other[keyword].value
    assert one.SegmentSequence[0].TrackingUID != other.SegmentSequence[0].TrackingUID


def test_no_moment_but_the_given_one_is_written() -> None:
    seg = segmentation("scored")
    for prefix in ("InstanceCreation", "Content", "Series"):
        assert seg[f"{prefix}Date"].value == "20240102"
        assert seg[f"{prefix}Time"].value == "133015.250000"
    today = datetime.now(UTC).strftime("%Y%m%d")
    dates = [
        str(element.value)
        for item in every_item(seg)
        for element in item
        if element.VR in {"DA", "DT"}
    ]
    assert not [date for date in dates if date.startswith(today)]


def test_times_follow_the_time_zone_of_the_images() -> None:
    images = [copy.deepcopy(image) for image in case("one segment").images]
    for image in images:
        image.TimezoneOffsetFromUTC = "-0500"
    moment = datetime(2024, 1, 2, 2, 0, tzinfo=timezone(timedelta(hours=1)))
    context = dataclasses.replace(CONTEXT, created_at=moment)
    seg = built(dataclasses.replace(case("one segment"), images=tuple(images)), context)
    assert seg.TimezoneOffsetFromUTC == "-0500"
    assert (seg.SeriesDate, seg.SeriesTime) == ("20240101", "200000.000000")


def test_nothing_segmented_makes_no_object() -> None:
    assert case("nothing segmented").seg() is None


def test_source_images_stay_as_they_were() -> None:
    source = study(enhanced=True)
    before = copy.deepcopy(list(source.images))
    for report in (built(source), source.sr()):
        report.PatientName = "Someone^Else"
    assert list(source.images) == before


def test_headers_without_type_2_attributes_are_no_obstacle(tmp_path: Path) -> None:
    images = stripped(
        case("one segment").images,
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "Manufacturer",
        "SpecificCharacterSet",
        "SliceThickness",
        "SpacingBetweenSlices",
    )
    source = dataclasses.replace(case("one segment"), images=tuple(images))
    for report in (built(source), source.sr()):
        assert dciodvfy(to_bytes(report), tmp_path).errors == []


def test_optional_attributes_that_are_not_valid_are_not_passed_on(tmp_path: Path) -> None:
    images = [copy.deepcopy(image) for image in case("one segment").images]
    for image in images:
        age = DataElement("PatientAge", "AS", "0Y", validation_mode=IGNORE)
        image.add(age)
        image.PatientWeight = 70
    source = dataclasses.replace(case("one segment"), images=tuple(images))
    for report in (built(source), source.sr()):
        assert "PatientAge" not in report
        assert report.PatientWeight == 70
        assert dciodvfy(to_bytes(report), tmp_path).errors == []


def test_a_lost_frame_of_reference_is_replaced_by_one_of_the_series(tmp_path: Path) -> None:
    images = stripped(case("one segment").images, "FrameOfReferenceUID")
    source = dataclasses.replace(case("one segment"), images=tuple(images))
    seg = built(source)
    assert seg.FrameOfReferenceUID.startswith("2.25.")
    assert seg.FrameOfReferenceUID == built(source).FrameOfReferenceUID
    assert dciodvfy(to_bytes(seg), tmp_path).errors == []


def test_a_name_of_one_component_raises_no_warning() -> None:
    """highdicom would print it; warnings are errors here."""
    images = [copy.deepcopy(image) for image in case("one segment").images]
    for image in images:
        image.PatientName = "ANON-1"
    source = dataclasses.replace(case("one segment"), images=tuple(images))
    assert built(source).PatientName == "ANON-1"
    assert source.sr().PatientName == "ANON-1"


def test_masks_off_the_grid_are_refused() -> None:
    source = case("one segment")
    assert source.volume is not None
    masks = (Masks(side=Side.RIGHT, voxels=np.ones((3, 2, 4, 4), dtype=bool)),)
    with pytest.raises(ValueError, match="source grid"):
        build_seg(source.images, source.volume, masks, CARD, CONTEXT)


def test_images_in_another_order_than_the_slices_are_refused() -> None:
    source = case("one segment")
    assert source.volume is not None
    with pytest.raises(ValueError, match="in its order"):
        build_seg(source.images[::-1], source.volume, source.masks, CARD, CONTEXT)
