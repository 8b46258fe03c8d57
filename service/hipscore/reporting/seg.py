"""Masks as a DICOM Segmentation (PS3.3 A.51): BINARY, on the grid of the source images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hipscore.attributes import text
from hipscore.domain import RESEARCH_USE, BoolArray, Channel, Masks, ModelCard, Side, Volume
from hipscore.reporting import ReportContext, codes, source, stubs, uids
from hipscore.reporting.header import SERIES, headers, silently

ALGORITHM = "hipscore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment of the SEG: a structure of one side that has at least one voxel.

    ``voxels`` is ``(Z, Y, X)`` bool. The tracking pair is the same in SEG and SR.
    """

    number: int
    side: Side
    channel: Channel
    tracking_id: str
    tracking_uid: str
    voxels: BoolArray


def segments(masks: Sequence[Masks], context: ReportContext) -> tuple[Segment, ...]:
    """The structures that have a voxel, right side first, channels in order, numbered from 1."""
    found: list[Segment] = []
    for side, channel, voxels in _structures(masks):
        if voxels.any():
            label = codes.segment_label(side, channel)
            found.append(
                Segment(
                    number=len(found) + 1,
                    side=side,
                    channel=channel,
                    tracking_id=label,
                    tracking_uid=uids.derive(context.job_key, "tracking", label),
                    voxels=voxels,
                )
            )
    return tuple(found)


def _structures(masks: Sequence[Masks]) -> Iterator[tuple[Side, Channel, BoolArray]]:
    for side in Side:
        for item in masks:
            if item.side is side:
                for channel in Channel:
                    yield side, channel, item.voxels[channel]


@silently()
def build_seg(
    images: Sequence[Dataset],
    volume: Volume,
    masks: Sequence[Masks],
    card: ModelCard,
    context: ReportContext,
    *,
    tidy: Sequence[Dataset] | None = None,
) -> Dataset | None:
    """Build the SEG of one series.

    Parameters
    ----------
    images
        Source images in slice order, or one Enhanced MR image. Pixel data is not read.
    volume
        The series as a volume; its slices are in the order of ``images``.
    masks
        One per located hip, ``(K, Z, Y, X)`` bool on the grid of ``volume``.
    card
        The model that made them.
    context
        Identity and time of the analysis.
    tidy
        The headers of the images, where they are already known.

    Returns
    -------
    Dataset or None
        None when no voxel is set: an empty Segmentation says nothing.

    Raises
    ------
    ValueError
        If a mask is not on the grid of the volume, or the images are not its slices.
    """
    found = segments(masks, context)
    if not found:
        return None
    _check(images, volume, masks)
    tidy = headers(images, context) if tidy is None else tidy
    # (Z, Y, X, S) for highdicom, but S slowest in memory: it walks segment by segment
    pixels: NDArray[np.uint8] = np.moveaxis(
        np.stack([item.voxels for item in found]).view(np.uint8), 0, -1
    )
    seg = Segmentation(
        source_images=stubs.of_images(tidy, volume),
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(item, card) for item in found],
        series_instance_uid=uids.derive(context.job_key, "seg", "series"),
        series_number=1,
        sop_instance_uid=uids.derive(context.job_key, "seg", "instance"),
        instance_number=1,
        manufacturer=source.MANUFACTURER,
        manufacturer_model_name=source.MODEL,
        software_versions=context.software_version,
        device_serial_number=context.device_serial,
        content_label="HIPSCORE",
        content_description=RESEARCH_USE,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    source.finish(seg, tidy[0], context, "seg")
    source.copy_elements(tidy[0], seg, SERIES)
    _name_dimensions(seg, context)
    _pad(seg)
    if volume.sources[0].frame_number is not None:
        _name_frames(seg, volume)
    return seg


def _check(images: Sequence[Dataset], volume: Volume, masks: Sequence[Masks]) -> None:
    for item in masks:
        if item.voxels.shape != (len(Channel), *volume.grid.shape):
            msg = (
                f"mask of the {item.side.value} hip has shape {item.voxels.shape}, "
                f"the volume {volume.grid.shape}; masks belong on the source grid"
            )
            raise ValueError(msg)
    named = [item.sop_instance_uid for item in volume.sources]
    given = [text(image, "SOPInstanceUID") for image in images]
    if named != given and set(named) != set(given[:1]):
        msg = f"{len(given)} images are not the {len(named)} slices of the volume, in its order"
        raise ValueError(msg)


def _description(segment: Segment, card: ModelCard) -> SegmentDescription:
    structure = codes.STRUCTURES[segment.channel]
    laterality = codes.LATERALITY[segment.side]
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=codes.segment_label(segment.side, segment.channel),
        segmented_property_category=structure.category,
        segmented_property_type=structure.property_type,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=ALGORITHM,
            family=codes.ARTIFICIAL_INTELLIGENCE,
            version=codes.plain(f"{card.id} {card.version}")[:64],
            source=source.MANUFACTURER,
            parameters={
                "model_sha256": card.sha256,
                "threshold": f"{card.thresholds[segment.channel]:g}",
            },
        ),
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.tracking_id,
        anatomic_regions=[structure.region],
        display_color=CIELabColor.from_rgb(*structure.rgb),
    )
    # Viewers read the side from either place.
    modifier = codes.concept(laterality)
    description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [modifier]
    description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
        codes.concept(laterality)
    ]
    return description


def _name_dimensions(seg: Dataset, context: ReportContext) -> None:
    """Replace the random dimension organization UID (PS3.3 C.7.6.17) by a derived one."""
    uid = uids.derive(context.job_key, "seg", "dimensions")
    for sequence in (seg.DimensionOrganizationSequence, seg.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = uid


def _pad(seg: Dataset) -> None:
    """Fill the bits after the last pixel with zeros (PS3.5 8.1.1); highdicom writes a digit."""
    bits = seg.NumberOfFrames * seg.Rows * seg.Columns
    size = (bits + 7) // 8
    seg.PixelData = seg.PixelData[:size] + b"\x00" * (size % 2)


def _name_frames(seg: Dataset, volume: Volume) -> None:
    """Turn slice numbers into the frame numbers of the multi-frame source image."""
    # highdicom hangs one item into the frames of several segments: each is turned once
    items = {
        id(item): item
        for frame in seg.PerFrameFunctionalGroupsSequence
        for derivation in frame.DerivationImageSequence
        for item in derivation.SourceImageSequence
    }
    for item in items.values():
        item.ReferencedFrameNumber = volume.sources[
            int(item.ReferencedFrameNumber) - 1
        ].frame_number
