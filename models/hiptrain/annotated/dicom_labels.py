"""Labels of a DICOM Segmentation (PS3.3 A.51, C.8.20): BINARY, FRACTIONAL or LABELMAP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hipscore.attributes import first_item, group, integer, items, numbers, text
from hipscore.domain import Channel, DoubleArray, Grid, Side
from hipscore.reporting import codes
from hiptrain.annotated import Problem
from hiptrain.annotated.images import dicom_files
from hiptrain.annotated.labels import Label, LabelSet, Meaning

#: a frame lies on the stack when it is no further from it, in its plane (mm) and across it
#: (share of a step); the limits of hipscore.series, which accepted the image
_STRAY_MM = 1.0
_STRAY_STEP = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    number: int
    segment: int | None
    position: DoubleArray
    orientation: DoubleArray
    pixel_mm: DoubleArray


def read_seg(path: Path, image: Grid) -> LabelSet:
    """Read a SEG file (or the only SEG in a folder).

    A SEG leaves out empty frames: the distance of its slices is taken from the ``image``
    where its frames lie at such distances, else from its header.

    Raises
    ------
    Problem
        If it is no SEG, or its frames do not make a stack.
    """
    found = [item for item in dicom_files(path) if text(item, "Modality") == "SEG"]
    if len(found) != 1:
        raise Problem(f"{path} holds {len(found)} DICOM SEG objects, one is needed")
    seg = found[0]
    frames = list(_frames(seg))
    if not frames:
        raise Problem(f"{path.name} has no frame")
    pixels = _pixels(path, seg, len(frames))
    grid, places = _stack(path, seg, frames, image)
    labels = []
    labelmap = text(seg, "SegmentationType") == "LABELMAP"
    for item in items(seg, "SegmentSequence"):
        number = integer(item, "SegmentNumber") or 0
        if number == 0:  # the background of a LABELMAP
            continue
        voxels = np.zeros(grid.shape, dtype=np.bool_)
        for frame, place in zip(frames, places, strict=True):
            if frame.segment is None:  # LABELMAP: the values are the segments
                voxels[place] |= pixels[frame.number] == number
            elif frame.segment == number:
                voxels[place] |= pixels[frame.number] > 0
        name = text(item, "SegmentLabel")
        labels.append(
            Label(
                value=number,
                name=name,
                layer=0 if labelmap else number,
                voxels=voxels,
                coded=meaning_of(item),
            )
        )
    return LabelSet(
        grid=grid,
        labels=tuple(labels),
        frame_of_reference=text(seg, "FrameOfReferenceUID"),
    )


def _frames(seg: Dataset) -> Iterator[_Frame]:
    shared = first_item(seg, "SharedFunctionalGroupsSequence")
    labelmap = text(seg, "SegmentationType") == "LABELMAP"
    for number, own in enumerate(items(seg, "PerFrameFunctionalGroupsSequence")):
        plane = group(shared, own, "PlanePositionSequence")
        turned = group(shared, own, "PlaneOrientationSequence")
        measures = group(shared, own, "PixelMeasuresSequence")
        place = np.array(numbers(plane, "ImagePositionPatient"))
        cosines = np.array(numbers(turned, "ImageOrientationPatient"))
        spacing = np.array(numbers(measures, "PixelSpacing"))
        if place.shape != (3,) or cosines.shape != (6,) or spacing.shape != (2,):
            raise Problem(f"frame {number + 1} of the SEG has no position, orientation or spacing")
        segment = integer(
            group(shared, own, "SegmentIdentificationSequence"), "ReferencedSegmentNumber"
        )
        yield _Frame(
            number=number,
            segment=None if labelmap else segment or 0,
            position=place,
            orientation=cosines,
            pixel_mm=spacing,
        )


def _pixels(path: Path, seg: Dataset, count: int) -> NDArray[Any]:
    """Pixels ``(frames, Y, X)``; a fractional SEG is cut at half of its maximum."""
    try:
        pixels = np.asarray(seg.pixel_array)
    except Exception as error:
        raise Problem(f"{path.name}: pixels cannot be decoded ({type(error).__name__})") from error
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    if len(pixels) != count:
        raise Problem(f"{path.name} has {len(pixels)} frames and {count} positions")
    if text(seg, "SegmentationType") == "FRACTIONAL":
        largest = integer(seg, "MaximumFractionalValue") or 1
        return pixels >= largest / 2
    return pixels


def _stack(
    path: Path, seg: Dataset, frames: Sequence[_Frame], image: Grid
) -> tuple[Grid, list[int]]:
    """The grid that holds all frames, and the slice of each."""
    first = frames[0]
    for frame in frames:
        same = np.allclose(frame.orientation, first.orientation, atol=2e-3)
        if not same or not np.allclose(frame.pixel_mm, first.pixel_mm, rtol=1e-3):
            raise Problem(f"{path.name} has frames of different orientation or pixel size")
    positions = np.array([frame.position for frame in frames])
    for step in _steps(seg, first, positions, image):
        along = (positions - positions[0]) @ step / (step @ step)
        places = np.rint(along)
        stray = np.linalg.norm(positions - positions[0] - places[:, None] * step, axis=1)
        if np.abs(along - places).max() <= _STRAY_STEP and stray.max() <= max(
            _STRAY_MM, _STRAY_STEP * float(np.linalg.norm(step))
        ):
            break
    else:
        raise Problem(f"the frames of {path.name} do not lie at regular distances")
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.orientation[3:] * first.pixel_mm[0]
    affine[:3, 2] = first.orientation[:3] * first.pixel_mm[1]
    # the line through all frames: single positions are rounded
    affine[:3, 3] = (positions - (places - places.min())[:, None] * step).mean(axis=0)
    count = int(places.max() - places.min()) + 1
    rows, columns = integer(seg, "Rows") or 0, integer(seg, "Columns") or 0
    grid = Grid(shape=(count, rows, columns), affine=affine)
    return grid, [int(place) for place in places - places.min()]


def _steps(
    seg: Dataset, first: _Frame, positions: DoubleArray, image: Grid
) -> Iterator[DoubleArray]:
    """Vectors that may lead from slice to slice, the likeliest first."""
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    across = image.affine[:3, 0]
    if abs(float(normal @ across)) > 0.99 * float(np.linalg.norm(across)):
        yield across
    shared = first_item(seg, "SharedFunctionalGroupsSequence")
    measures = group(
        shared, first_item(seg, "PerFrameFunctionalGroupsSequence"), "PixelMeasuresSequence"
    )
    distances = np.unique(np.round(positions @ normal, 3))
    gaps = np.diff(distances)
    said = [
        *numbers(measures, "SpacingBetweenSlices"),
        *([float(gaps.min())] if gaps.size else []),
        *numbers(measures, "SliceThickness"),
    ]
    for distance in said:
        if distance > 0.01:
            yield normal * distance


def meaning_of(segment: Dataset) -> Meaning | None:
    """What the codes of an item of the Segment Sequence say; None for anything else.

    The property type as hipscore writes it (:data:`hipscore.reporting.codes.STRUCTURES`),
    in the femoral head or the hip joint where a region is named; the side from the
    modifier of the region or of the type (PS3.3 C.8.20.4).
    """
    kind = first_item(segment, "SegmentedPropertyTypeCodeSequence")
    region = first_item(segment, "AnatomicRegionSequence")
    structure = _structure(kind, region)
    if structure is None:
        return None
    modifiers = (
        first_item(region, "AnatomicRegionModifierSequence"),
        first_item(kind, "SegmentedPropertyTypeModifierCodeSequence"),
        first_item(segment, "SegmentedPropertyTypeModifierCodeSequence"),
    )
    for side in Side:
        if any(_is(modifier, codes.LATERALITY[side]) for modifier in modifiers):
            return Meaning(structure=structure, side=side)
    return Meaning(structure=structure)


def _structure(kind: Dataset, region: Dataset) -> Channel | None:
    elsewhere = "CodeValue" in region and not any(
        _is(region, place) for place in (codes.FEMORAL_HEAD, codes.HIP_JOINT)
    )
    if elsewhere:
        return None
    for channel, structure in codes.STRUCTURES.items():
        if _is(kind, structure.property_type):
            return channel
    return None


def _is(item: Dataset, code: Code) -> bool:
    same = text(item, "CodeValue") == code.value
    return same and text(item, "CodingSchemeDesignator") == code.scheme_designator
