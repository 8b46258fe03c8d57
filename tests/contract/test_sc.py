"""Secondary captures: a summary page and every scored slice, without naming the patient."""

from __future__ import annotations

import dataclasses
import io
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from hipscore.domain import RESEARCH_USE, Channel, Side, StudyIdentity
from hipscore.reporting import ReportContext, captures, codes
from hipscore.reporting.sc import build_sc
from hipscore.reporting.source import to_bytes
from tests.contract.factories import CARD, CASES, CONTEXT, Case, case, dciodvfy
from tests.contract.test_change import earlier

#: what the tool says of every object without a Study ID, and of our wider pages
TOLERATED = ("Missing attribute or value that would be needed to build DICOMDIR - Study ID",)


def built(source: Case, context: ReportContext = CONTEXT) -> tuple[Dataset, ...]:
    return build_sc(source.images, source.volume, source.masks, source.findings, CARD, context)


@cache
def of(name: str) -> tuple[Dataset, ...]:
    return built(case(name))


def pixels(capture: Dataset) -> NDArray[np.int16]:
    picture: NDArray[np.int16] = capture.pixel_array.astype(np.int16)
    return picture


def coloured(picture: NDArray[np.int16], channel: Channel) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = (
        np.abs(picture - np.array(codes.STRUCTURES[channel].rgb)).sum(axis=-1) < 60
    )
    return near


@pytest.mark.computes
@pytest.mark.parametrize("name", list(CASES))
def test_every_capture_conforms_to_the_standard(name: str, tmp_path: Path) -> None:
    for capture in of(name)[:3]:
        verdict = dciodvfy(to_bytes(capture), tmp_path)
        assert verdict.errors == []
        assert [line for line in verdict.warnings if not line.endswith(TOLERATED)] == []


@pytest.mark.computes
@pytest.mark.parametrize("name", list(CASES))
def test_there_is_a_summary_and_one_capture_for_each_scored_slice(name: str) -> None:
    scored = {item.slice_index for hip in case(name).findings.hips for item in hip.slices}
    assert len(of(name)) == 1 + len(scored)
    assert [each.InstanceNumber for each in of(name)] == list(range(1, len(scored) + 2))
    assert len({each.SOPInstanceUID for each in of(name)}) == len(of(name))
    assert len({each.SeriesInstanceUID for each in of(name)}) == 1


def test_a_capture_is_a_derived_colour_image_of_the_study() -> None:
    source = case("scored")
    for capture in of("scored"):
        read = pydicom.dcmread(io.BytesIO(to_bytes(capture)))
        assert read.SOPClassUID == SecondaryCaptureImageStorage
        assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert list(read.ImageType) == ["DERIVED", "SECONDARY"]
        assert read.BurnedInAnnotation == "YES"
        assert RESEARCH_USE in read.DerivationDescription
        assert read.StudyInstanceUID == source.images[0].StudyInstanceUID
        assert read.SeriesDescription == "hipscore images (research) series 3 2024-01-02 13:30:15"
        assert read.SeriesNumber == 9003
        assert read.pixel_array.shape == (read.Rows, read.Columns, 3)
        assert read.Columns >= 512


def test_each_slice_names_its_source_image_and_the_summary_all_that_were_scored() -> None:
    source = case("scored")
    summary, *slices = of("scored")
    expected = [source.images[z].SOPInstanceUID for z in captures.scored_slices(source.findings)]
    named = [each.SourceImageSequence[0].ReferencedSOPInstanceUID for each in slices]
    assert named == expected
    assert [it.ReferencedSOPInstanceUID for it in summary.SourceImageSequence] == expected
    [series] = summary.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.images[0].SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == len(expected)


def test_of_an_enhanced_image_the_frame_is_named() -> None:
    source = case("enhanced")
    assert source.volume is not None
    frames = [
        source.volume.sources[z].frame_number for z in captures.scored_slices(source.findings)
    ]
    found = [each.SourceImageSequence[0].ReferencedFrameNumber for each in of("enhanced")[1:]]
    assert found == frames


def test_the_outlines_of_the_right_hip_are_on_the_left_of_the_picture() -> None:
    source = case("scored")
    assert source.volume is not None
    z = captures.scored_slices(source.findings)[len(of("scored")) // 2]
    picture = pixels(of("scored")[1 + captures.scored_slices(source.findings).index(z)])
    inside = coloured(picture[70:560], Channel.FEMORAL_HEAD)
    columns = np.flatnonzero(inside.any(axis=0))
    centre = picture.shape[1] / 2
    for item in source.masks:
        shown = columns[columns < centre] if item.side is Side.RIGHT else columns[columns > centre]
        assert (shown.size > 40) == bool(item.voxels[Channel.FEMORAL_HEAD, z].any())


def test_a_head_is_as_wide_as_it_is_high() -> None:
    source = case("one hip in view")
    [hip] = source.findings.hips
    assert source.volume is not None
    areas = {item.slice_index: item.head_mm2 for item in hip.slices}
    widest = max(areas, key=lambda z: areas[z])
    number = captures.scored_slices(source.findings).index(widest)
    picture = pixels(of("one hip in view")[1 + number])[70:560]
    edge = coloured(picture, Channel.FEMORAL_HEAD)
    mask = source.masks[0].voxels[Channel.FEMORAL_HEAD, widest]
    _, dy, dx = source.volume.grid.spacing_mm
    high, wide = (
        np.ptp(np.flatnonzero(mask.any(axis=1))) + 1,
        np.ptp(np.flatnonzero(mask.any(axis=0))) + 1,
    )
    seen_high = np.ptp(np.flatnonzero(edge.any(axis=1))) + 1
    seen_wide = np.ptp(np.flatnonzero(edge.any(axis=0))) + 1
    assert seen_high / seen_wide == pytest.approx(high * dy / (wide * dx), rel=0.05)


@pytest.mark.computes
def test_outlines_leave_the_lesion_visible() -> None:
    for capture in of("scored")[1:]:
        picture = pixels(capture)[70:560]
        lines = sum(int(coloured(picture, channel).sum()) for channel in Channel)
        assert 0 < lines < 0.03 * picture.shape[0] * picture.shape[1]


def test_the_summary_has_more_to_say_when_there_is_an_earlier_score() -> None:
    alone = of("scored")[0]
    beside = built(case("scored"), dataclasses.replace(CONTEXT, earlier=(earlier(),)))[0]
    assert not np.array_equal(pixels(alone)[110:330], pixels(beside)[110:330])


def test_what_is_not_scorable_gets_the_summary_that_says_why() -> None:
    [page] = of("not scorable")
    warning = np.abs(pixels(page)[100:] - np.array((255, 196, 64))).sum(axis=-1) < 60
    assert warning.sum() > 100
    assert page.Columns >= 512


def test_no_picture_depends_on_whose_it_is() -> None:
    import copy

    images = [copy.deepcopy(image) for image in case("scored").images]
    for image in images:
        image.PatientName = "Completely^Different"
        image.PatientID = "OTHER-ID"
        image.PatientBirthDate = "19990101"
        image.AccessionNumber = "OTHER-ACC"
    other = built(dataclasses.replace(case("scored"), images=tuple(images)))
    for mine, theirs in zip(of("scored"), other, strict=True):
        assert mine.PixelData == theirs.PixelData
        assert theirs.PatientName == "Completely^Different"


def test_the_order_is_filled_in() -> None:
    context = dataclasses.replace(
        CONTEXT,
        identity=StudyIdentity(accession_number="A-9", requested_procedure_id="RP-9"),
    )
    for capture in built(case("not scorable"), context):
        assert capture.AccessionNumber == "A-9"
        assert capture.RequestAttributesSequence[0].RequestedProcedureID == "RP-9"


@pytest.mark.parametrize("name", ("scored", "not scorable"))
def test_built_twice_is_the_same_to_the_byte(name: str) -> None:
    assert [to_bytes(it) for it in built(case(name))] == [to_bytes(it) for it in of(name)]
