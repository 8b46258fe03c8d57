"""The structured report: what is said about the series, and that others can read it."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from hipscore.domain import RESEARCH_USE, Engine, Findings, ReasonCode, Remark, Side
from hipscore.reporting import SopReference, codes
from hipscore.reporting.sr import build_sr, to_bytes
from tests.contract.factories import (
    CARD,
    CASES,
    CONTEXT,
    TOO_FEW,
    Case,
    case,
    coded,
    comments,
    content,
    dciodvfy,
    dcmqi,
    declined,
    dsrdump,
    every_item,
    groups,
    number,
    report,
    segmentation,
    stripped,
)

pytestmark = pytest.mark.computes

TOLERATED = (
    "Missing attribute or value that would be needed to build DICOMDIR - Study ID",
    # every private coding scheme is unknown to the tool
    "Unrecognized defined term <99HIPSCORE> for value 1 of attribute <Coding Scheme Designator>",
)
RIGHT, LEFT = "24028007", "7771000"


@pytest.mark.parametrize("comprehensive3d", (True, False))
@pytest.mark.parametrize("name", list(CASES))
def test_conforms_to_the_standard(name: str, comprehensive3d: bool, tmp_path: Path) -> None:
    document = report(name, comprehensive3d=comprehensive3d)
    verdict = dciodvfy(to_bytes(document), tmp_path)
    assert verdict.errors == []
    assert [line for line in verdict.warnings if not line.endswith(TOLERATED)] == []


@pytest.mark.parametrize("comprehensive3d", (True, False))
@pytest.mark.parametrize("name", list(CASES))
def test_dcmtk_reads_the_tree(name: str, comprehensive3d: bool, tmp_path: Path) -> None:
    tree = dsrdump(to_bytes(report(name, comprehensive3d=comprehensive3d)), tmp_path)
    assert "Imaging Measurement Report" in tree
    assert RESEARCH_USE in tree
    assert ("(SCORED,99HIPSCORE" in tree) == case(name).findings.scored


@pytest.mark.parametrize("name", list(CASES))
def test_dcmqi_reads_the_measurements(name: str, tmp_path: Path) -> None:
    source = case(name)
    out = dcmqi("tid1500reader", to_bytes(report(name)), tmp_path, "--outputMetadata", "OUT/t.json")
    read = {
        group["TrackingIdentifier"]: {
            item["quantity"]["CodeMeaning"]: float(item["value"])
            for item in group.get("measurementItems", [])
        }
        for group in json.loads((out / "t.json").read_text())["Measurements"]
    }
    assert read["Patient"].get("UNet-score") == pytest.approx(source.findings.unet_score, abs=1e-6)
    for hip in source.findings.hips:
        side = hip.hip.side.value.capitalize()
        assert read[f"{side} hip"].get("UNet-score") == pytest.approx(hip.unet_score, abs=1e-6)
        for noun, volume in (
            ("femoral head", hip.femoral_head_ml),
            ("bone marrow edema", hip.bme_ml),
            ("synovitis-effusion", hip.synovitis_ml),
        ):
            if volume > 0:
                assert read[f"{side} {noun}"]["Volume"] == pytest.approx(volume, abs=1e-5)
            else:
                assert f"{side} {noun}" not in read


def test_the_patient_group_comes_first_and_holds_the_score() -> None:
    source = case("scored")
    found = groups(report("scored"))
    assert list(found)[:3] == ["Patient", "Right hip", "Left hip"]
    patient = found["Patient"]
    score, unit = number(patient, "UNet-score")
    assert score == pytest.approx(source.findings.unet_score, abs=1e-6)
    assert unit == "1"
    assert number(patient, "Number of hips summed in the score") == (2, "{hips}")
    used = sum(len(hip.slices) for hip in source.findings.hips)
    assert number(patient, "Number of slices summed in the score") == (used, "{slices}")
    [count] = content(patient, "Number of slices summed in the score")
    assert count.MeasuredValueSequence[0].NumericValue == used
    assert "." not in str(count.MeasuredValueSequence[0].NumericValue)
    assert coded(patient, "Intended use") == ["RESEARCH"]
    assert coded(patient, "Scoring status") == ["SCORED"]
    assert coded(patient, "Laterality") == ["51440002"]
    assert comments(patient)[0] == RESEARCH_USE


@pytest.mark.parametrize(("index", "side"), ((0, RIGHT), (1, LEFT)))
def test_each_hip_has_its_scores_its_side_and_its_slices(index: int, side: str) -> None:
    source = case("scored")
    hip = source.findings.hips[index]
    group = groups(report("scored"))[f"{hip.hip.side.value.capitalize()} hip"]
    expected = {
        "UNet-score": (hip.unet_score, "1"),
        "UNet-score, bone marrow edema only": (hip.bme_score, "1"),
        "UNet-score, synovitis-effusion only": (hip.synovitis_score, "1"),
        "Number of slices summed in the score": (len(hip.slices), "{slices}"),
        "Mean lesion to femoral head ratio per slice": (hip.mean_ratio, "{ratio}"),
        "Whole-volume lesion to femoral head ratio": (hip.whole_volume_index, "{ratio}"),
        "Maximal effusion thickness in plane": (hip.effusion_mm, "mm"),
    }
    for meaning, (value, unit) in expected.items():
        measured = number(group, meaning)
        assert measured[0] == pytest.approx(value, abs=1e-6), meaning
        assert measured[1] == unit, meaning
    assert coded(group, "Laterality") == [side]
    assert coded(group, "Finding Site") == ["24136001"]
    images = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in content(group, "Source of Measurement")
    ]
    assert images == [item.source.sop_instance_uid for item in hip.slices]


def test_slices_of_an_enhanced_image_are_named_by_frame() -> None:
    source = case("enhanced")
    group = groups(report("enhanced"))["Right hip"]
    [image] = content(group, "Source of Measurement")
    [reference] = image.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == source.images[0].SOPInstanceUID
    frames = {item.source.frame_number for item in source.findings.hips[0].slices}
    assert list(reference.ReferencedFrameNumber) == sorted(filter(None, frames))


@pytest.mark.parametrize("name", ("scored", "one segment", "enhanced"))
def test_each_segment_has_a_volumetric_group_with_the_tracking_uid_of_the_seg(name: str) -> None:
    source, seg = case(name), segmentation(name)
    found = groups(report(name))
    for segment in seg.SegmentSequence:
        group = found[segment.TrackingID]
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1411"
        assert segment.TrackingUID == content(group, "Tracking Unique Identifier")[0].UID
        [reference] = content(group, "Referenced Segment")[0].ReferencedSOPSequence
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == segment.SegmentNumber
        assert coded(group, "Finding") == [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue]
        [series] = content(group, "Source Series for Segmentation")
        assert source.images[0].SeriesInstanceUID == series.UID
        assert number(group, "Volume")[1] == "mL"
    assert len([it for it in found.values() if content(it, "Referenced Segment")]) == len(
        seg.SegmentSequence
    )


def test_the_algorithm_is_identified_in_every_group() -> None:
    for label, group in groups(report("scored")).items():
        assert content(group, "Algorithm Name")[0].TextValue == "hipscore", label
        assert content(group, "Algorithm Version")[0].TextValue == "hip-unet 1.2.3"
        assert CARD.sha256 in content(group, "Algorithm Parameters")[0].TextValue


def test_the_engine_is_named_beside_the_algorithm() -> None:
    engine = Engine(provider="openvino", precision="int8", runtime="openvino 1.2", device="a CPU")
    document = case("scored").sr(dataclasses.replace(CONTEXT, engine=engine))
    for group in groups(document).values():
        named = [each.TextValue for each in content(group, "Algorithm Parameters")]
        assert named == [f"model_sha256={CARD.sha256}", "engine=openvino int8 (openvino 1.2)"]


def test_the_device_observes_in_english_and_nobody_has_verified() -> None:
    document = report("scored")
    assert coded(document, "Observer Type") == ["121007"]
    assert content(document, "Device Observer Name")[0].TextValue == "HIPSCORE"
    assert coded(document, "Language of Content Item and Descendants") == ["en"]
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.CompletionFlag == "COMPLETE"
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert document.SeriesDescription == "hipscore report (research) series 3 2024-01-02 13:30:15"
    assert document.SeriesNumber == 9002


@pytest.mark.parametrize("name", list(CASES))
def test_the_library_lists_every_image_and_the_evidence_everything_referenced(name: str) -> None:
    source, document = case(name), report(name)
    [library] = content(document, "Image Library")
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in content(library, "Source")
    ]
    assert listed == [image.SOPInstanceUID for image in source.images]
    evidence = {
        item.ReferencedSOPInstanceUID: series.SeriesInstanceUID
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    seg = source.seg()
    expected = {image.SOPInstanceUID: image.SeriesInstanceUID for image in source.images}
    if seg is not None:
        expected[seg.SOPInstanceUID] = seg.SeriesInstanceUID
    assert evidence == expected


def test_the_tree_has_the_order_of_its_template() -> None:
    """TID 1500: language, observer, procedure, image library, measurements."""
    children = report("scored").ContentSequence
    meanings = [item.ConceptNameCodeSequence[0].CodeMeaning for item in children]
    assert meanings == [
        "Language of Content Item and Descendants",
        "Observer Type",
        "Device Observer UID",
        "Device Observer Name",
        "Device Observer Manufacturer",
        "Device Observer Model Name",
        "Device Observer Serial Number",
        "Procedure reported",
        "Image Library",
        "Imaging Measurements",
    ]


def test_the_library_says_what_images_share_once() -> None:
    source = case("scored")
    [library] = content(report("scored"), "Image Library")
    assert len(content(library, "Image Library Group")) == 1
    assert number(library, "Pixel Data Rows") == (112, "{pixels}")
    assert number(library, "Spacing between slices") == (5.0, "mm")
    assert coded(library, "Modality") == ["MR"]
    positions = content(library, "Image Position (Patient) Y")
    assert [float(item.MeasuredValueSequence[0].NumericValue) for item in positions] == [
        pytest.approx(float(image.ImagePositionPatient[1])) for image in source.images
    ]


def test_private_codes_are_declared_and_short() -> None:
    document = report("one hip of two scored")
    [scheme] = document.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99HIPSCORE"
    assert scheme.CodingSchemeResponsibleOrganization
    used = [item for item in every_item(document) if "CodingSchemeDesignator" in item]
    assert {item.CodingSchemeDesignator for item in used} <= {
        "99HIPSCORE",
        "DCM",
        "SCT",
        "UCUM",
        "LN",
        "RFC5646",
    }
    for item in used:
        assert "LongCodeValue" not in item
        assert len(item.get("CodeValue", "")) <= 16


def test_every_reason_has_its_own_private_code() -> None:
    values = [codes.REMARKS[reason.value].value for reason in ReasonCode]
    assert len(set(values)) == len(ReasonCode)


@pytest.mark.parametrize("reason", list(ReasonCode))
def test_a_series_that_is_not_scorable_gets_a_report_that_says_why(
    reason: ReasonCode, tmp_path: Path
) -> None:
    source = declined(Remark(code=reason.value, text="6 of 24 slices, 4–5 mm² missing"))
    document = source.sr()
    found = groups(document)
    assert list(found) == ["Patient"]
    assert coded(found["Patient"], "Scoring status") == ["NOT_SCORED"]
    assert coded(found["Patient"], "Reason for not scoring") == [codes.REMARKS[reason].value]
    assert "6 of 24 slices, 4-5 mm2 missing" in comments(found["Patient"])
    assert content(document, "UNet-score") == []
    assert dciodvfy(to_bytes(document), tmp_path).errors == []


def test_a_reason_that_has_no_code_yet_is_told_in_words() -> None:
    document = declined(Remark(code="metal_artefact", text="a prosthesis hides the hip")).sr()
    patient = groups(document)["Patient"]
    assert coded(patient, "Reason for not scoring") == ["OTHER"]
    assert "a prosthesis hides the hip" in comments(patient)


def test_a_hip_that_was_not_scored_says_why_and_keeps_its_segments() -> None:
    found = groups(report("one hip of two scored"))
    left = found["Left hip"]
    assert coded(left, "Scoring status") == ["NOT_SCORED"]
    assert coded(left, "Reason for not scoring") == ["TOO_FEW_SLICES"]
    assert content(left, "UNet-score") == []
    assert "Left femoral head" in found
    patient = found["Patient"]
    assert coded(patient, "Scoring status") == ["SCORED"]
    assert coded(patient, "Quality remark") == ["ONE_HIP_ONLY"]
    assert coded(patient, "Laterality") == [RIGHT]
    assert number(patient, "Number of hips summed in the score")[0] == 1


def test_a_clean_hip_says_that_no_lesion_was_segmented() -> None:
    found = groups(report("clean"))
    for side in Side:
        group = found[f"{side.value.capitalize()} hip"]
        assert coded(group, "Bone marrow edema segmented") == ["272519000"]
        assert number(group, "UNet-score, bone marrow edema only")[0] == 0
    assert "Right bone marrow edema" not in found
    diseased = groups(report("scored"))["Right hip"]
    assert coded(diseased, "Bone marrow edema segmented") == ["52101004"]


def test_without_a_segmentation_the_report_says_so() -> None:
    patient = groups(report("nothing segmented"))["Patient"]
    assert any("no Segmentation object" in text for text in comments(patient))
    scored = groups(report("scored"))["Patient"]
    assert not any("no Segmentation object" in text for text in comments(scored))


def _mixed() -> list[Dataset]:
    images = [copy.deepcopy(image) for image in case("scored").images]
    images[0].Rows, images[0].PixelSpacing = 96, [2.0, 2.0]
    images[1].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    images[2].FrameOfReferenceUID = "1.2.3"
    return images


def _garbage() -> list[Dataset]:
    images = stripped(case("scored").images, "ImagePositionPatient")
    for image in images:
        image.SliceThickness = None
        image.PixelSpacing = [1.0]
    return images


def _without_geometry() -> list[Dataset]:
    return stripped(
        case("scored").images,
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "FrameOfReferenceUID",
        "Rows",
        "Columns",
    )


def _computed_tomography() -> list[Dataset]:
    images = [copy.deepcopy(image) for image in case("scored").images]
    for image in images:
        image.Modality, image.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
    return images


BROKEN: dict[str, Callable[[], list[Dataset]]] = {
    "mixed geometry": _mixed,
    "garbage": _garbage,
    "no geometry": _without_geometry,
    "another modality": _computed_tomography,
    "single image": lambda: list(case("scored").images[:1]),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_whatever_the_headers_are_there_is_a_valid_report(fault: str, tmp_path: Path) -> None:
    source = declined(TOO_FEW, BROKEN[fault]())
    document = source.sr()
    assert dciodvfy(to_bytes(document), tmp_path).errors == []
    assert len(content(document, "Source")) == len(source.images)


def test_images_of_another_geometry_form_a_library_group_of_their_own() -> None:
    document = declined(TOO_FEW, _mixed()).sr()
    assert len(content(document, "Image Library Group")) == 4


def test_a_later_report_names_the_one_it_supersedes(tmp_path: Path) -> None:
    source, first = case("scored"), report("scored")
    reference = SopReference(
        sop_class_uid=str(first.SOPClassUID),
        sop_instance_uid=str(first.SOPInstanceUID),
        series_instance_uid=str(first.SeriesInstanceUID),
        study_instance_uid=str(first.StudyInstanceUID),
    )
    later = dataclasses.replace(CONTEXT, job_key="with a late image", predecessor=reference)
    second = source.sr(later)
    [item] = second.PredecessorDocumentsSequence
    [series] = item.ReferencedSeriesSequence
    assert item.StudyInstanceUID == first.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in first
    assert dciodvfy(to_bytes(second), tmp_path).errors == []


def test_the_order_the_images_were_made_for_is_repeated(tmp_path: Path) -> None:
    images = [copy.deepcopy(image) for image in case("scored").images]
    request = Dataset()
    request.RequestedProcedureID = "RP1"
    request.RequestedProcedureDescription = "MRI of both hips"
    request.AccessionNumber = "A-17"
    for image in images:
        image.AccessionNumber = "A-17"
        image.RequestAttributesSequence = [request]
    document = dataclasses.replace(case("scored"), images=tuple(images)).sr()
    [item] = document.ReferencedRequestSequence
    assert item.AccessionNumber == "A-17"
    assert item.RequestedProcedureID == "RP1"
    assert item.RequestedProcedureDescription == "MRI of both hips"
    assert item.StudyInstanceUID == images[0].StudyInstanceUID
    assert dciodvfy(to_bytes(document), tmp_path).errors == []


def test_an_accession_number_alone_is_an_order_and_none_is_none() -> None:
    images = [copy.deepcopy(image) for image in case("scored").images]
    for image in images:
        image.AccessionNumber = "A-18"
    [item] = (
        dataclasses.replace(case("scored"), images=tuple(images)).sr().ReferencedRequestSequence
    )
    assert item.AccessionNumber == "A-18"
    assert "ReferencedRequestSequence" not in report("scored")


def test_the_fallback_differs_in_sop_class_and_uid_only() -> None:
    full, fallback = report("scored"), report("scored", comprehensive3d=False)
    assert full.SOPClassUID == Comprehensive3DSRStorage
    assert fallback.SOPClassUID == ComprehensiveSRStorage
    assert full.SOPInstanceUID != fallback.SOPInstanceUID
    assert full.SeriesInstanceUID == fallback.SeriesInstanceUID
    assert full.ContentSequence == fallback.ContentSequence


@pytest.mark.parametrize("name", list(CASES))
def test_built_twice_is_the_same_document_to_the_byte(name: str) -> None:
    assert to_bytes(case(name).sr()) == to_bytes(report(name))


def test_text_is_written_in_the_default_repertoire() -> None:
    document = pydicom.dcmread(io.BytesIO(to_bytes(report("one hip of two scored"))))
    for item in every_item(document):
        if item is not document:
            for element in item:
                if element.VR in {"UT", "LO", "SH"}:
                    assert str(element.value).isascii(), element


def test_an_object_of_other_masks_is_refused() -> None:
    source, other = case("scored"), case("one segment")
    with pytest.raises(ValueError, match="same masks"):
        build_sr(
            source.images,
            source.volume,
            source.masks,
            source.findings,
            CARD,
            CONTEXT,
            seg=other.seg(),
        )


def test_a_report_without_an_image_is_refused() -> None:
    empty = Case(
        images=(),
        volume=None,
        masks=(),
        hips=(),
        findings=Findings(hips=(), reason=TOO_FEW, unet_score=None),
    )
    with pytest.raises(ValueError, match="at least one source image"):
        empty.sr()
