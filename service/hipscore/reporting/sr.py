"""Findings as a structured report: TID 1500, in a Comprehensive 3D SR or Comprehensive SR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    FindingSite,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hipscore.change import Assessment, Change, model_name
from hipscore.domain import (
    RESEARCH_USE,
    Channel,
    Findings,
    HipFindings,
    Masks,
    ModelCard,
    Remark,
    Side,
    Volume,
)
from hipscore.reporting import (
    ReportContext,
    assessed,
    codes,
    comparison,
    document,
    library,
    source,
    stubs,
    uids,
)
from hipscore.reporting.comparison import evaluation
from hipscore.reporting.header import headers, silently
from hipscore.reporting.observer import device
from hipscore.reporting.seg import ALGORITHM, Segment, segments
from hipscore.reporting.source import to_bytes

__all__ = ["build_sr", "to_bytes"]

_Group: TypeAlias = (
    MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations
)

_COUNTS = "Totals over different slice counts are not comparable"
_NO_SEGMENT = "Nothing was segmented; there is no Segmentation object"


@silently()
def build_sr(  # noqa: PLR0917 - the positional ones are those of build_seg, and the findings
    images: Sequence[Dataset],
    volume: Volume | None,
    masks: Sequence[Masks],
    findings: Findings,
    card: ModelCard,
    context: ReportContext,
    *,
    seg: Dataset | None,
    comprehensive3d: bool = True,
    tidy: Sequence[Dataset] | None = None,
) -> Dataset:
    """Build the report of one series, scored or not.

    The tree: language, device observer (TID 1004), procedure, image library (TID 1600),
    then measurement groups: the patient's, each located hip's (TID 1501) and each
    segment's (TID 1411).

    Parameters
    ----------
    images
        Source images in slice order, or one Enhanced MR image. Any geometry, where the
        series is not scorable. Pixel data is not read.
    volume, masks
        As for :func:`hipscore.reporting.seg.build_seg`; None and empty where the series
        did not make a volume.
    findings
        What is reported.
    card
        The model.
    context
        Identity, time and predecessor.
    seg
        What ``build_seg`` made of the same arguments.
    comprehensive3d
        False for what :func:`hipscore.reporting.document.comprehensive` makes of it.
    tidy
        The headers of the images, where they are already known.

    Raises
    ------
    ValueError
        If there is no image, or the segmentation does not hold the segments of the masks.
    """
    found = segments(masks, context) if seg is not None else ()
    if seg is not None and len(seg.SegmentSequence) != len(found):
        msg = (
            f"the segmentation has {len(seg.SegmentSequence)} segments, "
            f"the masks {len(found)}; build both from the same masks"
        )
        raise ValueError(msg)
    tidy = headers(images, context) if tidy is None else tidy
    assessment = assessed(findings, card, context)
    algorithm = _algorithm(card, context)
    groups: list[_Group] = [
        _patient_group(findings, algorithm, context, assessment, clean=seg is None),
        *(
            _hip_group(hip, tidy, masks, algorithm, context, change=assessment.change)
            for hip in findings.hips
        ),
    ]
    if seg is not None and volume is not None:
        series_uid = str(tidy[0].SeriesInstanceUID)
        groups.extend(_segment_group(item, volume, algorithm, seg, series_uid) for item in found)
    evidence = [
        *stubs.of_images(tidy[:1]),
        *tidy[1:],
        *([stubs.evidence(seg)] if seg is not None else []),
        *comparison.evidence(assessment.change),
    ]
    made = document.build(_report(tidy, groups, context)[0], evidence, tidy[0], context)
    return made if comprehensive3d else document.comprehensive(made, context)


def _report(
    tidy: Sequence[Dataset], groups: Sequence[_Group], context: ReportContext
) -> MeasurementReport:
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=device(context)),
        procedure_reported=codes.MRI,
        imaging_measurements=groups,
        title=codes.MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            codes.concept(codes.ENGLISH)
        ),
    )
    # The library goes before the measurements (TID 1500 rows 5 and 6).
    content = report[0].ContentSequence
    content.insert(len(content) - 1, library.image_library(tidy))
    return report


def _patient_group(
    findings: Findings,
    algorithm: AlgorithmIdentification,
    context: ReportContext,
    assessment: Assessment,
    *,
    clean: bool,
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501 for the patient: the score, or the reason why there is none."""
    scored = [hip for hip in findings.hips if hip.scored]
    measurements = []
    if findings.unet_score is not None:
        measurements = [
            _measurement(codes.UNET_SCORE, findings.unet_score, codes.NO_UNITS),
            _measurement(codes.HIPS_SCORED, len(scored), codes.HIPS),
            _measurement(codes.SLICES_USED, sum(len(hip.slices) for hip in scored), codes.SLICES),
            *_measurements(comparison.of_patient(assessment.change)),
        ]
    sides = {hip.hip.side for hip in (scored or findings.hips)}
    if len(sides) == 2:
        laterality: Code | None = codes.RIGHT_AND_LEFT
    else:
        laterality = next((codes.LATERALITY[side] for side in sides), None)
    evaluations = [
        evaluation(codes.INTENDED_USE, codes.RESEARCH),
        *_status(findings.reason),
        *(evaluation(codes.QUALITY, codes.remark_code(it)) for it in findings.quality),
        *comparison.evaluations(assessment, context),
    ]
    comments = [RESEARCH_USE]
    if findings.reason is not None:
        comments.append(findings.reason.text)
    else:
        comments.append(_COUNTS)
    comments.extend(remark.text for remark in findings.quality)
    comments.extend(comparison.comments(assessment))
    if clean:
        comments.append(_NO_SEGMENT)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(context, "Patient"),
        method=codes.shared(codes.METHOD),
        algorithm_id=algorithm,
        finding_sites=[_site(codes.HIP_JOINT, laterality)],
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )
    _comment(group, comments)
    group[0].ContentSequence.extend(comparison.references(assessment.change))
    return group


def _hip_group(
    hip: HipFindings,
    tidy: Sequence[Dataset],
    masks: Sequence[Masks],
    algorithm: AlgorithmIdentification,
    context: ReportContext,
    *,
    change: Change | None,
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501 for one hip, with the slices it was scored on as its source images."""
    side = hip.hip.side
    values: list[comparison.Value] = [
        (codes.UNET_SCORE, hip.unet_score, codes.NO_UNITS),
        (codes.BME_SCORE, hip.bme_score, codes.NO_UNITS),
        (codes.SYNOVITIS_SCORE, hip.synovitis_score, codes.NO_UNITS),
        (codes.SLICES_USED, len(hip.slices) if hip.scored else None, codes.SLICES),
        (codes.MEAN_RATIO, hip.mean_ratio, codes.RATIO),
        (codes.VOLUME_INDEX, hip.whole_volume_index, codes.RATIO),
        (codes.EFFUSION, hip.effusion_mm if hip.scored else None, codes.MM),
        *comparison.of_hip(change, side),
    ]
    evaluations = [*_status(hip.reason), *_presence(side, masks)]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(context, f"{side.value.capitalize()} hip"),
        method=codes.shared(codes.METHOD),
        algorithm_id=algorithm,
        finding_sites=[_site(codes.HIP_JOINT, codes.LATERALITY[side])],
        measurements=_measurements(values),
        qualitative_evaluations=evaluations,
        source_images=_slices(hip, tidy),
    )
    if hip.reason is not None:
        _comment(group, [hip.reason.text])
    return group


def _segment_group(
    segment: Segment,
    volume: Volume,
    algorithm: AlgorithmIdentification,
    segmentation: Dataset,
    series_uid: str,
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411 for one segment: what it is, where it is and how large."""
    structure = codes.STRUCTURES[segment.channel]
    millilitres = np.count_nonzero(segment.voxels) * volume.grid.voxel_ml
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(segment.tracking_uid, segment.tracking_id),
        # Not ReferencedSegment.from_segmentation: it fails where there is one segment only.
        referenced_segment=ReferencedSegment(
            sop_class_uid=str(segmentation.SOPClassUID),
            sop_instance_uid=str(segmentation.SOPInstanceUID),
            segment_number=segment.number,
            source_series=SourceSeriesForSegmentation(series_uid),
        ),
        finding_category=codes.shared(structure.category),
        finding_type=codes.shared(structure.property_type),
        algorithm_id=algorithm,
        finding_sites=[_site(structure.region, codes.LATERALITY[segment.side])],
        measurements=[
            _measurement(codes.VOLUME, millilitres, codes.ML, method=codes.SEGMENTED_VOXELS)
        ],
    )


def _measurements(values: Sequence[comparison.Value]) -> list[Measurement]:
    return [_measurement(code, value, unit) for code, value, unit in values if value is not None]


def _measurement(
    name: Code, value: float, unit: Code, *, method: Code | None = None
) -> Measurement:
    # Six decimals: far beyond the precision of the method, and short decimal strings.
    number = value if isinstance(value, int) else round(float(value), 6)
    measurement = Measurement(
        name=codes.shared(name),
        value=number,
        unit=codes.shared(unit),
        method=codes.shared(method) if method is not None else None,
    )
    if isinstance(number, int):
        measurement[0].MeasuredValueSequence[0].NumericValue = str(number)  # 16, not 16.0
    return measurement


def _status(reason: Remark | None) -> list[QualitativeEvaluation]:
    if reason is None:
        return [evaluation(codes.STATUS, codes.SCORED)]
    return [
        evaluation(codes.STATUS, codes.NOT_SCORED),
        evaluation(codes.REASON, codes.remark_code(reason)),
    ]


def _presence(side: Side, masks: Sequence[Masks]) -> list[QualitativeEvaluation]:
    """Whether lesions were segmented: a clean structure has no segment that could say so."""
    return [
        evaluation(name, codes.PRESENT if item.voxels[channel].any() else codes.ABSENT)
        for item in masks
        if item.side is side
        for name, channel in (
            (codes.BME_PRESENCE, Channel.BME),
            (codes.SYNOVITIS_PRESENCE, Channel.SYNOVITIS),
        )
    ]


def _slices(
    hip: HipFindings, tidy: Sequence[Dataset]
) -> list[SourceImageForMeasurementGroup] | None:
    if not hip.slices:
        return None
    frames: dict[tuple[str, str], list[int]] = {}
    for item in hip.slices:
        header = tidy[0 if item.source.frame_number is not None else item.slice_index]
        numbers = frames.setdefault((str(header.SOPClassUID), str(header.SOPInstanceUID)), [])
        if item.source.frame_number is not None:
            numbers.append(item.source.frame_number)
    return [
        SourceImageForMeasurementGroup(class_uid, instance_uid, sorted(numbers) or None)
        for (class_uid, instance_uid), numbers in frames.items()
    ]


def _algorithm(card: ModelCard, context: ReportContext) -> AlgorithmIdentification:
    """TID 4019; the digest names the model beyond doubt, the engine what computed it."""
    parameters = [f"model_sha256={card.sha256}"]
    if context.engine is not None:
        engine = context.engine
        parameters.append(f"engine={engine.provider} {engine.precision} ({engine.runtime})")
    return AlgorithmIdentification(
        name=ALGORITHM,
        version=codes.plain(model_name(card)),
        parameters=parameters,
        family=codes.shared(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=source.MANUFACTURER,
    )


def _site(region: Code, laterality: Code | None) -> FindingSite:
    return FindingSite(
        codes.shared(region), codes.shared(laterality) if laterality is not None else None
    )


def _tracking(context: ReportContext, label: str) -> TrackingIdentifier:
    return TrackingIdentifier(uids.derive(context.job_key, "tracking", label), label)


def _comment(group: MeasurementsAndQualitativeEvaluations, texts: Sequence[str]) -> None:
    """Add free text to a TID 1501 group; highdicom takes coded evaluations only."""
    name = codes.shared(codes.COMMENT)
    for text in texts:
        group[0].ContentSequence.append(
            TextContentItem(
                name, codes.plain(text), relationship_type=RelationshipTypeValues.CONTAINS
            )
        )
