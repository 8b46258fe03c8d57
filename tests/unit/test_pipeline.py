"""The way of one series: images in, findings and DICOM objects out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from hipscore import scoring
from hipscore.domain import ArtifactKind, FloatArray, ReasonCode, Side
from hipscore.phantom import Burden, Phantom, synthesise, to_datasets
from hipscore.pipeline import Analysis, Options, analyse, report, untimed
from hipscore.reporting import ReportContext
from tests.analytic import Oracle

pytestmark = pytest.mark.computes

CONTEXT = ReportContext(
    job_key="job", created_at=datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), software_version="0.0.0"
)


def small(
    *,
    seed: int = 3,
    burden: Burden = Burden.MODERATE,
    hips: tuple[Side, ...] = (Side.RIGHT, Side.LEFT),
    plane: str = "coronal",
    anatomy: str = "hip",
) -> Phantom:
    """A synthetic study that is quick to make."""
    return synthesise(
        seed=seed,
        burden=burden,
        hips=hips,
        plane="axial" if plane == "axial" else "coronal",
        anatomy="brain" if anatomy == "brain" else "hip",
        rows=160,
        slices=16,
        supersampling=1,
    )


def taught(phantom: Phantom) -> Oracle:
    """A segmenter that knows the truth of this study."""
    oracle = Oracle()
    oracle.learn(phantom, to_datasets(phantom))
    return oracle


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return small()


@pytest.fixture(scope="module")
def oracle(phantom: Phantom) -> Oracle:
    return taught(phantom)


@pytest.fixture(scope="module")
def analysis(phantom: Phantom, oracle: Oracle) -> Analysis:
    return analyse(to_datasets(phantom), oracle)


# --- scores ---------------------------------------------------------------------------------


def test_the_score_is_that_of_the_true_masks(phantom: Phantom, analysis: Analysis) -> None:
    truth = scoring.combine(
        [
            scoring.score_hip(phantom.volume, hip, masks)
            for hip, masks in zip(phantom.hips, phantom.masks, strict=True)
        ]
    )
    found = analysis.findings
    assert found.reason is None
    assert found.unet_score == pytest.approx(truth.unet_score, rel=0.03)
    assert [hip.hip.side for hip in found.hips] == [Side.RIGHT, Side.LEFT]
    for hip, expected in zip(found.hips, truth.hips, strict=True):
        assert hip.unet_score == pytest.approx(expected.unet_score, rel=0.05)
        assert hip.femoral_head_ml == pytest.approx(expected.femoral_head_ml, rel=0.02)
        assert [item.slice_index for item in hip.slices] == [
            item.slice_index for item in expected.slices
        ]
        assert math.dist(hip.hip.centre_mm, expected.hip.centre_mm) < 2.0
        assert hip.hip.radius_mm == pytest.approx(expected.hip.radius_mm, rel=0.05)


def test_the_masks_are_those_that_were_scored(analysis: Analysis) -> None:
    assert analysis.volume is not None
    for hip, masks in zip(analysis.findings.hips, analysis.masks, strict=True):
        assert masks.side is hip.hip.side
        assert scoring.score_hip(analysis.volume, hip.hip, masks) == hip


def test_more_inflammation_scores_higher() -> None:
    scores = []
    for burden in Burden:
        study = small(burden=burden, hips=(Side.RIGHT,))
        scores.append(analyse(to_datasets(study), taught(study)).findings.unet_score or 0.0)
    assert scores == sorted(scores)
    assert scores[-1] > 2 * scores[0] + 1


def test_the_same_images_give_the_same_analysis_in_any_order_and_encoding(
    phantom: Phantom, oracle: Oracle, analysis: Analysis
) -> None:
    for images in (
        to_datasets(phantom),
        to_datasets(phantom, order="shuffled"),
        to_datasets(phantom, transfer_syntax_uid=JPEGLSLossless),
    ):
        again = analyse(images, oracle)
        assert again.findings == analysis.findings
        for first, second in zip(again.masks, analysis.masks, strict=True):
            np.testing.assert_array_equal(first.voxels, second.voxels)
        assert [image.SOPInstanceUID for image in again.images] == [
            image.SOPInstanceUID for image in analysis.images
        ]


def test_a_multi_frame_image_scores_like_its_slices(
    phantom: Phantom, oracle: Oracle, analysis: Analysis
) -> None:
    again = analyse(to_datasets(phantom, enhanced=True), oracle)
    assert len(again.images) == 1
    assert again.findings.unet_score == analysis.findings.unet_score


@pytest.mark.parametrize("side", tuple(Side))
def test_one_hip_in_view_is_scored_alone(side: Side) -> None:
    study = small(hips=(side,))
    found = analyse(to_datasets(study), taught(study)).findings
    assert [hip.hip.side for hip in found.hips] == [side]
    assert found.scored
    assert [remark.code for remark in found.quality] == ["one_hip_only"]


# --- reasons --------------------------------------------------------------------------------


class Flood(Oracle):
    """A segmenter gone wrong: everything is femoral head."""

    def segment(self, crops: FloatArray) -> FloatArray:
        return np.ones_like(super().segment(crops))


def _cut(images: list[Dataset]) -> list[Dataset]:
    images[7].PixelData = images[7].PixelData[:-10]
    return images


def _ct(images: list[Dataset]) -> list[Dataset]:
    images[7].Modality = "CT"
    return images


def _flooded(phantom: Phantom) -> Analysis:
    flood = Flood()
    flood.learn(phantom, to_datasets(phantom))
    return analyse(to_datasets(phantom), flood)


#: how each reason comes about
DECLINED: dict[ReasonCode, Callable[[Phantom, Oracle], Analysis]] = {
    ReasonCode.NO_HIP_FOUND: lambda _, o: analyse(to_datasets(small(anatomy="brain")), o),
    ReasonCode.NOT_CORONAL: lambda _, o: analyse(to_datasets(small(plane="axial")), o),
    ReasonCode.TOO_FEW_SLICES: lambda p, o: analyse(to_datasets(p)[:4], o),
    ReasonCode.MISSING_SLICES: lambda p, o: analyse(to_datasets(p)[:7] + to_datasets(p)[8:], o),
    ReasonCode.MIXED_GEOMETRY: lambda p, o: analyse(to_datasets(p) + to_datasets(p)[7:8], o),
    ReasonCode.NOT_FAT_SUPPRESSED: lambda p, o: analyse(to_datasets(p, fat_suppressed=False), o),
    ReasonCode.UNSUPPORTED_PIXEL_DATA: lambda p, o: analyse(_cut(to_datasets(p)), o),
    ReasonCode.IMPLAUSIBLE_SEGMENTATION: lambda p, _: _flooded(p),
    ReasonCode.NOT_MR: lambda p, o: analyse(_ct(to_datasets(p)), o),
    ReasonCode.NO_RULE: lambda p, o: analyse(to_datasets(p), o, options=Options(wanted=False)),
}


@pytest.mark.parametrize("code", tuple(ReasonCode))
def test_what_cannot_be_scored_says_why(code: ReasonCode, phantom: Phantom, oracle: Oracle) -> None:
    found = DECLINED[code](phantom, oracle)
    assert found.findings.reason is not None
    assert found.findings.reason.code == code.value
    assert found.findings.reason.text
    assert found.findings.unet_score is None
    assert found.images
    hips_were_found = code is ReasonCode.IMPLAUSIBLE_SEGMENTATION
    assert bool(found.masks) is bool(found.findings.hips) is hips_were_found
    looked_at = {ReasonCode.NO_HIP_FOUND, ReasonCode.NO_RULE}
    assert (found.volume is not None) is (hips_were_found or code in looked_at)


def test_fat_suppression_can_be_taken_on_trust(phantom: Phantom, oracle: Oracle) -> None:
    images = to_datasets(phantom, fat_suppressed=False)
    assert analyse(images, oracle, options=Options(protocol_check=False)).findings.scored


def test_the_smallest_section_that_counts_is_the_operators_choice(
    phantom: Phantom, oracle: Oracle
) -> None:
    found = analyse(to_datasets(phantom), oracle, options=Options(min_head_area_mm2=1700.0))
    assert found.findings.reason is not None
    assert found.findings.reason.code == "too_few_slices"
    assert len(found.findings.hips) == len(found.masks) == 2


def test_a_fault_of_the_segmenter_is_no_reason(phantom: Phantom, oracle: Oracle) -> None:
    class Broken(Oracle):
        def localise(self, planes: FloatArray) -> FloatArray:
            raise MemoryError

    with pytest.raises(MemoryError):
        analyse(to_datasets(phantom), Broken())


# --- stages ---------------------------------------------------------------------------------


class Diary:
    """A stage hook that notes what begins and ends."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.lines.append(name)
        try:
            yield
        finally:
            self.lines.append(f"/{name}")


def test_stages_are_entered_and_left_in_order(phantom: Phantom, oracle: Oracle) -> None:
    diary = Diary()
    found = analyse(to_datasets(phantom), oracle, stage=diary.stage)
    report(found, oracle.card, context=CONTEXT, stage=diary.stage)
    names = ["assemble", "locate", "segment", "score", "quality", "seg", "sr", "overlay"]
    assert diary.lines == [line for name in names for line in (name, f"/{name}")]


def test_a_declined_series_ends_with_its_first_stage(oracle: Oracle) -> None:
    diary = Diary()
    analyse([], oracle, stage=diary.stage)
    assert diary.lines == ["assemble", "/assemble"]


def test_nobody_has_to_measure() -> None:
    with untimed("anything"):
        pass


# --- reports --------------------------------------------------------------------------------


def test_a_score_is_reported_as_seg_sr_and_picture(analysis: Analysis, oracle: Oracle) -> None:
    artifacts = {item.kind: item for item in report(analysis, oracle.card, context=CONTEXT)}
    assert set(artifacts) >= {ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.OVERLAY}
    for kind, modality in ((ArtifactKind.SEG, "SEG"), (ArtifactKind.SR, "SR")):
        artifact = artifacts[kind]
        dataset = dcmread(BytesIO(artifact.data))
        assert artifact.media_type == "application/dicom"
        assert dataset.Modality == modality
        assert dataset.SOPClassUID == artifact.sop_class_uid
        assert dataset.SOPInstanceUID == artifact.sop_instance_uid
        assert dataset.StudyInstanceUID == analysis.images[0].StudyInstanceUID
    assert artifacts[ArtifactKind.OVERLAY].media_type == "image/png"
    assert artifacts[ArtifactKind.OVERLAY].data.startswith(b"\x89PNG")


def test_a_report_built_again_is_the_same_bytes(
    phantom: Phantom, analysis: Analysis, oracle: Oracle
) -> None:
    first = report(analysis, oracle.card, context=CONTEXT)
    again = analyse(to_datasets(phantom, order="reversed"), oracle)
    fresh = analyse(to_datasets(phantom), oracle)
    assert report(analysis, oracle.card, context=CONTEXT) == first
    assert report(fresh, oracle.card, context=CONTEXT) == first
    assert again.findings.unet_score == analysis.findings.unet_score
    other = report(analysis, oracle.card, context=replace(CONTEXT, job_key="other"))
    assert {item.sop_instance_uid for item in other if item.sop_instance_uid}.isdisjoint(
        item.sop_instance_uid for item in first
    )


def test_a_series_without_a_score_is_reported_without_seg(oracle: Oracle, phantom: Phantom) -> None:
    for images in (to_datasets(phantom)[:4], to_datasets(small(anatomy="brain"))):
        found = analyse(images, oracle)
        kinds = [item.kind for item in report(found, oracle.card, context=CONTEXT)]
        assert ArtifactKind.SEG not in kinds
        assert ArtifactKind.SR in kinds
        assert ArtifactKind.OVERLAY in kinds
