"""The way of one series, from images to findings to DICOM objects. Pure.

images -> assemble -> locate -> segment -> score -> quality -> SEG, SR, overlay, captures, PDF, HL7
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
    ReasonCode,
    Remark,
    Segmenter,
    Unsuitable,
    Volume,
)
from hipscore.reporting import (
    ReportContext,
    SopReference,
    document,
    header,
    oru,
    overlay,
    pdf,
    sc,
    seg,
    sr,
    wording,
)
from hipscore.series import assemble

#: called with a stage's name; its context is entered around the stage (timing, tracing)
Stage = Callable[[str], AbstractContextManager[object]]


def untimed(name: str) -> AbstractContextManager[object]:
    """Enter nothing: the stage hook of those who do not measure."""
    del name
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an operator may choose about the analysis.

    ``wanted`` is False for a series that no rule took, and that is looked at so that its
    study is told why: it never gets a score.
    """

    protocol_check: bool = True
    wanted: bool = True
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
    if findings.scored and not options.wanted:
        return Analysis(images=series.images, volume=series.volume, findings=_declined(_UNWANTED))
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


#: what is built unless something else is asked for
DEFAULT_KINDS = frozenset(
    {ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SR_FALLBACK, ArtifactKind.OVERLAY}
)


def report(
    analysis: Analysis,
    card: ModelCard,
    *,
    context: ReportContext,
    kinds: frozenset[ArtifactKind] = DEFAULT_KINDS,
    stage: Stage = untimed,
) -> tuple[Artifact, ...]:
    """Build the artifacts of one analysis, those in ``kinds`` and no other.

    SEG where anything was segmented; the SR as Comprehensive 3D SR and, for the peers that
    take nothing newer, as Comprehensive SR; the overlay; secondary captures, numbered from
    0; encapsulated PDF; the HL7 message, which names the DICOM objects.

    The same analysis, card and context give the same bytes.
    """
    artifacts: list[Artifact] = []
    objects: list[Dataset] = []
    with stage("seg"):
        with header.silently():
            tidy = header.headers(analysis.images, context)
        segmentation = None
        if analysis.volume is not None and analysis.findings.hips:
            # built in any case: the SR refers to it
            segmentation = seg.build_seg(
                analysis.images, analysis.volume, analysis.masks, card, context, tidy=tidy
            )
        if segmentation is not None and ArtifactKind.SEG in kinds:
            artifacts.append(_dicom(ArtifactKind.SEG, segmentation))
            objects.append(segmentation)
    with stage("sr"):
        if kinds & {ArtifactKind.SR, ArtifactKind.SR_FALLBACK}:
            found = sr.build_sr(*_found(analysis), card, context, seg=segmentation, tidy=tidy)
            if ArtifactKind.SR in kinds:
                artifacts.append(_dicom(ArtifactKind.SR, found))
                objects.append(found)
            if ArtifactKind.SR_FALLBACK in kinds:
                other = document.comprehensive(found, context)
                artifacts.append(_dicom(ArtifactKind.SR_FALLBACK, other))
                objects.append(other)
    if ArtifactKind.OVERLAY in kinds:
        with stage("overlay"):
            artifacts.append(_overlay(analysis, card, context))
    if ArtifactKind.SC in kinds:
        with stage("sc"):
            captures = sc.build_sc(*_found(analysis), card, context)
            artifacts += [_dicom(ArtifactKind.SC, it, n) for n, it in enumerate(captures)]
    if ArtifactKind.PDF in kinds:
        with stage("pdf"):
            artifacts.append(
                _dicom(ArtifactKind.PDF, pdf.build_pdf(*_found(analysis), card, context))
            )
    if ArtifactKind.ORU in kinds:
        with stage("oru"):
            references = [_reference(each) for each in objects]
            data = oru.build_oru(analysis.images, analysis.findings, card, context, references)
            message = Artifact(kind=ArtifactKind.ORU, media_type=oru.MEDIA_TYPE, data=data)
            artifacts.append(message)
    return tuple(artifacts)


def _found(
    analysis: Analysis,
) -> tuple[tuple[Dataset, ...], Volume | None, tuple[Masks, ...], Findings]:
    return analysis.images, analysis.volume, analysis.masks, analysis.findings


def _overlay(analysis: Analysis, card: ModelCard, context: ReportContext) -> Artifact:
    origin = wording.origin(header.headers(analysis.images[:1], context)[0])
    data = overlay.render(
        analysis.volume,
        analysis.masks,
        analysis.findings,
        subtitle=f"{origin}; {wording.provenance(card, context)}",
    )
    return Artifact(kind=ArtifactKind.OVERLAY, media_type="image/png", data=data)


def _reference(built: Dataset) -> SopReference:
    return SopReference(
        sop_class_uid=str(built.SOPClassUID),
        sop_instance_uid=str(built.SOPInstanceUID),
        series_instance_uid=str(built.SeriesInstanceUID),
        study_instance_uid=str(built.StudyInstanceUID),
    )


_UNWANTED = Unsuitable(
    ReasonCode.NO_RULE,
    "no rule of this site takes the series; hipscore rules test says which condition failed",
)


def _declined(unsuitable: Unsuitable) -> Findings:
    reason = Remark(code=unsuitable.code.value, text=unsuitable.text)
    return Findings(hips=(), reason=reason, unet_score=None)


def _dicom(kind: ArtifactKind, dataset: Dataset, number: int = 0) -> Artifact:
    return Artifact(
        kind=kind,
        media_type="application/dicom",
        data=sr.to_bytes(dataset),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        number=number,
    )
