"""The way of one series, from images to findings to DICOM objects. Pure.

images -> assemble -> locate -> segment -> score -> quality -> SEG, SR, overlay
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from pydicom.dataset import Dataset

from hipscore import artefacts, hips, quality, scoring
from hipscore.domain import (
    Artifact,
    ArtifactKind,
    Findings,
    Masks,
    ModelCard,
    Remark,
    Segmenter,
    Unsuitable,
    Volume,
)
from hipscore.reporting import ReportContext, overlay, seg, sr
from hipscore.series import assemble

#: called with a stage's name; its context is entered around the stage (timing, tracing)
Stage = Callable[[str], AbstractContextManager[object]]


def untimed(name: str) -> AbstractContextManager[object]:
    """Enter nothing: the stage hook of those who do not measure."""
    del name
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an operator may choose about the analysis."""

    protocol_check: bool = True
    min_head_area_mm2: float = scoring.MIN_HEAD_AREA_MM2


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Everything the reports are made of.

    ``images`` are in slice order where ``volume`` is known, else as they came. ``masks``
    has one entry per located hip.
    """

    images: tuple[Dataset, ...]
    findings: Findings
    volume: Volume | None = None
    masks: tuple[Masks, ...] = field(default=())


def analyse(
    images: Sequence[Dataset],
    segmenter: Segmenter,
    *,
    options: Options = DEFAULT_OPTIONS,
    stage: Stage = untimed,
) -> Analysis:
    """Score one series. A series that cannot be scored gives findings that say why.

    Parameters
    ----------
    images
        All images of the series, with pixel data, in any order.
    segmenter
        The networks.
    options
        The operator's choices.
    stage
        Entered around ``assemble``, ``locate``, ``segment``, ``score`` and ``quality``.
    """
    try:
        with stage("assemble"):
            series = assemble(images, protocol_check=options.protocol_check)
    except Unsuitable as unsuitable:
        return Analysis(images=tuple(images), findings=_declined(unsuitable))
    masks, findings = examine(series.volume, segmenter, options=options, stage=stage)
    return Analysis(images=series.images, volume=series.volume, masks=masks, findings=findings)


def examine(
    volume: Volume,
    segmenter: Segmenter,
    *,
    options: Options = DEFAULT_OPTIONS,
    stage: Stage = untimed,
) -> tuple[tuple[Masks, ...], Findings]:
    """Locate, segment, score and judge the hips of a volume.

    Returns
    -------
    masks
        One per located hip, the patient's right first.
    findings
        With quality remarks; hips in the order of the masks.
    """
    with stage("locate"):
        located = hips.locate(volume, segmenter)
    with stage("segment"):
        masks = tuple(hips.segment(volume, hip, segmenter) for hip in located)
    with stage("score"):
        scored = [
            scoring.score_hip(volume, hip, own, min_head_area_mm2=options.min_head_area_mm2)
            for hip, own in zip(located, masks, strict=True)
        ]
    with stage("quality"):
        around = artefacts.survey(volume, located)
        checked = quality.checked(volume, scored, masks, around)
        findings = scoring.combine(checked)
        remarks = quality.remarks(volume, checked, masks, segmenter.card, around)
    # last: what was judged above are the crops around the hips as they were located
    settled = tuple(
        replace(item, hip=hips.settled(item.hip, own, volume.grid))
        for item, own in zip(findings.hips, masks, strict=True)
    )
    return masks, replace(findings, hips=settled, quality=(*findings.quality, *remarks))


def report(
    analysis: Analysis, card: ModelCard, *, context: ReportContext, stage: Stage = untimed
) -> tuple[Artifact, ...]:
    """Build the artifacts of one analysis: SEG (where anything was segmented), SR, overlay.

    The SR comes twice: as Comprehensive 3D SR, and as Comprehensive SR for the peers that
    take nothing newer.

    The same analysis, card and context give the same bytes.
    """
    artifacts: list[Artifact] = []
    with stage("seg"):
        segmentation = None
        if analysis.volume is not None and analysis.findings.hips:
            segmentation = seg.build_seg(
                analysis.images, analysis.volume, analysis.masks, card, context
            )
        if segmentation is not None:
            artifacts.append(_dicom(ArtifactKind.SEG, segmentation))
    with stage("sr"):
        for kind in (ArtifactKind.SR, ArtifactKind.SR_FALLBACK):
            document = sr.build_sr(
                analysis.images,
                analysis.volume,
                analysis.masks,
                analysis.findings,
                card,
                context,
                seg=segmentation,
                comprehensive3d=kind is ArtifactKind.SR,
            )
            artifacts.append(_dicom(kind, document))
    with stage("overlay"):
        picture = overlay.render(analysis.volume, analysis.masks, analysis.findings)
        artifacts.append(Artifact(kind=ArtifactKind.OVERLAY, media_type="image/png", data=picture))
    return tuple(artifacts)


def _declined(unsuitable: Unsuitable) -> Findings:
    reason = Remark(code=unsuitable.code.value, text=unsuitable.text)
    return Findings(hips=(), reason=reason, unet_score=None)


def _dicom(kind: ArtifactKind, dataset: Dataset) -> Artifact:
    return Artifact(
        kind=kind,
        media_type="application/dicom",
        data=sr.to_bytes(dataset),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
    )
