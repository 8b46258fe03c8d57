"""From the images of one series to one volume: order, geometry, protocol, pixels.

Everything is decided from geometry and acquisition attributes, never from file names or
instance numbers. What cannot become a volume raises
:class:`~hipscore.domain.Unsuitable` with the reason that is reported.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from hipscore.attributes import first_item, group, integer, items, numbers, text, texts
from hipscore.domain import (
    MIN_SLICES,
    DoubleArray,
    FloatArray,
    Grid,
    ReasonCode,
    SliceSource,
    Unsuitable,
    Volume,
)
from hipscore.pixels import check_grey, frames, rescaled
from hipscore.protocol import check_protocol

__all__ = ["MULTI_FRAME", "Series", "assemble", "check_protocol"]

MULTI_FRAME = frozenset({EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage})
_UID = re.compile(r"[0-9.]{1,64}")  # leading zeros, which PS3.5 9.1 forbids, are seen in use
#: a slice plane this far from coronal is none, degrees
MAX_TILT_DEG = 40.0
#: a gap this many times the usual one means that a slice is missing
MISSING_GAP = 1.5
#: largest accepted departure of one slice distance from the usual one
GAP_TOLERANCE = 0.1
#: direction cosines of one series agree within this
COSINE_TOLERANCE = 2e-3
#: pixel spacings of one series agree within this share
SPACING_TOLERANCE = 1e-3
#: slices may shift in their plane by this share of their distance, from one to the next
SHEAR_TOLERANCE = 0.1
#: pixels and slice distances outside this range are no image of a pelvis, mm
PIXEL_MM = (0.05, 10.0)
#: slices further apart than this cannot show five sections of a femoral head, mm
MAX_STEP_MM = 15.0
#: a position further from the origin is no position in a scanner, mm
FAR_MM = 1e5
#: a header may claim any size; a pelvis has no more voxels than this (40 slices of 1024×1024),
#: and an analysis of as many stays below 1.5 GB
MAX_VOXELS = 40 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The images in slice order (one Dataset if multi-frame) and their volume."""

    images: tuple[Dataset, ...]
    volume: Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """One slice before ordering."""

    image: int
    frame: int | None
    position: DoubleArray
    orientation: DoubleArray
    pixel_mm: tuple[float, float]
    slope: float
    intercept: float


def assemble(images: Sequence[Dataset], *, protocol_check: bool = True) -> Series:
    """Make one volume of the images of one series.

    Parameters
    ----------
    images
        Single-frame MR images in any order, or one Enhanced MR multi-frame image
        (PS3.3 A.4, A.36), with pixel data.
    protocol_check
        Decline what is not fat-suppressed.

    Raises
    ------
    Unsuitable
        ``not_mr``, ``mixed_geometry``, ``not_coronal``, ``not_fat_suppressed``,
        ``too_few_slices``, ``missing_slices`` or ``unsupported_pixel_data``. Nothing
        else, whatever the headers say.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that are judged here
        _check_mr(images)
        slices = _slices(images)
        rows, columns = _check_one_geometry(images, slices)
        _check_coronal(slices[0].orientation)
        if protocol_check:
            check_protocol(images)
        ordered = _ordered(slices)
        grid = _grid(ordered, rows, columns)
        voxels = _voxels(images, ordered, grid)
        sources = tuple(
            _source(images[item.image], item.frame, z) for z, item in enumerate(ordered)
        )
    in_order = images if len(images) == 1 else [images[item.image] for item in ordered]
    return Series(images=tuple(in_order), volume=Volume(voxels=voxels, grid=grid, sources=sources))


def _check_mr(images: Sequence[Dataset]) -> None:
    """Raise ``not_mr`` unless every image is an MR image with a UID of its own."""
    for image in images:
        modality, sop_class = text(image, "Modality"), text(image, "SOPClassUID")
        if modality != "MR":
            words = f"modality is {modality or 'not given'}, not MR"
            raise Unsuitable(ReasonCode.NOT_MR, words)
        if sop_class not in MULTI_FRAME | {MRImageStorage}:
            words = f"SOP class is {UID(sop_class).name or 'not given'}, not an MR image"
            raise Unsuitable(ReasonCode.NOT_MR, words)
        if [_UID.fullmatch(value) is None for value in texts(image, "SOPInstanceUID")] != [False]:
            raise Unsuitable(ReasonCode.NOT_MR, "an image has no valid SOP Instance UID")


def _slices(images: Sequence[Dataset]) -> list[_Slice]:
    """Read position, orientation, pixel spacing and rescale of every slice."""
    if not images:
        raise Unsuitable(ReasonCode.TOO_FEW_SLICES, "the series has no image")
    multi = [image for image in images if text(image, "SOPClassUID") in MULTI_FRAME]
    if multi and len(images) > 1:
        words = f"{len(multi)} multi-frame objects among {len(images)} images of one series"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    if multi:
        return list(_frames(images[0]))
    return [_single(image, index) for index, image in enumerate(images)]


def _single(image: Dataset, index: int) -> _Slice:
    """Read one single-frame image (Image Plane module, PS3.3 C.7.6.2)."""
    if "NumberOfFrames" in image and integer(image, "NumberOfFrames") not in {1, None}:
        words = f"a single-frame SOP class with {integer(image, 'NumberOfFrames')} frames"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    return _read(
        image=index, frame=None, position=image, orientation=image, measures=image, rescale=image
    )


def _frames(image: Dataset) -> Iterator[_Slice]:
    """Read every frame's functional groups (PS3.3 C.7.6.16)."""
    shared = first_item(image, "SharedFunctionalGroupsSequence")
    per_frame = items(image, "PerFrameFunctionalGroupsSequence")
    count = integer(image, "NumberOfFrames")
    if len(per_frame) != count:
        words = f"{len(per_frame)} functional groups for {count} frames"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    for number, own in enumerate(per_frame, start=1):
        yield _read(
            image=0,
            frame=number,
            position=group(shared, own, "PlanePositionSequence"),
            orientation=group(shared, own, "PlaneOrientationSequence"),
            measures=group(shared, own, "PixelMeasuresSequence"),
            rescale=group(shared, own, "PixelValueTransformationSequence"),
        )


def _read(
    *,
    image: int,
    frame: int | None,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescale: Dataset,
) -> _Slice:
    """Read one slice from the data sets that hold its attributes, and check the numbers."""
    spacing = tuple(numbers(measures, "PixelSpacing"))
    if len(spacing) != 2 or not all(PIXEL_MM[0] <= mm <= PIXEL_MM[1] for mm in spacing):
        words = f"pixel spacing {_shown(spacing)} mm is not that of a pelvis"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    slope = _scale(rescale, "RescaleSlope", 1.0)
    if slope <= 0:
        raise Unsuitable(
            ReasonCode.UNSUPPORTED_PIXEL_DATA, f"rescale slope {slope:g} is not above 0"
        )
    return _Slice(
        image=image,
        frame=frame,
        position=_position(numbers(position, "ImagePositionPatient")),
        orientation=_cosines(numbers(orientation, "ImageOrientationPatient")),
        pixel_mm=(spacing[0], spacing[1]),
        slope=slope,
        intercept=_scale(rescale, "RescaleIntercept", 0.0),
    )


def _position(values: Sequence[float]) -> DoubleArray:
    """Position of the first pixel (x, y, z), LPS mm."""
    place = np.array(values)
    if place.shape != (3,) or not np.abs(place).max() <= FAR_MM:
        words = f"image position {_shown(values)} is not a position in mm"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    return place


def _cosines(values: Sequence[float]) -> DoubleArray:
    """Row and column cosines ``(6,)``, made exactly unit and orthogonal."""
    cosines = np.array(values)
    words = f"image orientation {_shown(values)} is not two orthogonal unit vectors"
    if cosines.shape != (6,) or not np.isfinite(cosines).all():
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    along, down = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(cosines.reshape(2, 3), axis=1)
    if np.abs(lengths - 1.0).max() > 1e-2 or abs(float(along @ down)) > 1e-2:
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    along = along / lengths[0]
    down = down - along * float(along @ down)
    return np.concatenate([along, down / np.linalg.norm(down)])


def _scale(dataset: Dataset, keyword: str, default: float) -> float:
    """Rescale slope or intercept; absent means ``default``, unreadable means unsuitable."""
    values = numbers(dataset, keyword)
    if not values:
        return default
    if len(values) != 1 or not np.isfinite(values[0]):
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, f"{keyword} is not one number")
    return values[0]


def _shown(values: Sequence[float]) -> str:
    return "\\".join(f"{value:g}" for value in values) or "(none)"


def _check_one_geometry(images: Sequence[Dataset], slices: Sequence[_Slice]) -> tuple[int, int]:
    """Rows and columns. Raise ``mixed_geometry`` unless all slices share one plane and matrix."""
    sizes = {(integer(image, "Rows") or 0, integer(image, "Columns") or 0) for image in images}
    if len(sizes) > 1:
        words = f"images of different sizes in one series: {sorted(sizes)}"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    rows, columns = next(iter(sizes))
    if min(rows, columns) < 1:
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, "rows or columns are missing")
    references = {text(image, "FrameOfReferenceUID") for image in images}
    if len(references) > 1:
        words = f"{len(references)} frames of reference in one series"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    first = slices[0]
    for item in slices[1:]:
        if np.abs(item.orientation - first.orientation).max() > COSINE_TOLERANCE:
            words = "slices of different orientation in one series"
            raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
        if any(
            not math.isclose(own, usual, rel_tol=SPACING_TOLERANCE)
            for own, usual in zip(item.pixel_mm, first.pixel_mm, strict=True)
        ):
            words = f"pixel spacings {first.pixel_mm} and {item.pixel_mm} mm in one series"
            raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    return rows, columns


def _normal(orientation: DoubleArray) -> DoubleArray:
    """Unit normal of the slice plane, pointing to the patient's back."""
    normal: DoubleArray = np.cross(orientation[:3], orientation[3:])
    return -normal if normal[1] < 0 else normal


def _check_coronal(orientation: DoubleArray) -> None:
    """Raise ``not_coronal`` unless the plane is within :data:`MAX_TILT_DEG` of coronal."""
    tilt = float(np.degrees(np.arccos(np.clip(_normal(orientation)[1], -1.0, 1.0))))
    if tilt > MAX_TILT_DEG:
        words = f"slices are tilted {tilt:.0f}° from coronal, at most {MAX_TILT_DEG:.0f}° are read"
        raise Unsuitable(ReasonCode.NOT_CORONAL, words)


def _ordered(slices: Sequence[_Slice]) -> list[_Slice]:
    """Sort anterior to posterior and check that the stack is regular and complete."""
    if len(slices) < MIN_SLICES:
        words = f"{len(slices)} slices, {MIN_SLICES} are needed"
        raise Unsuitable(ReasonCode.TOO_FEW_SLICES, words)
    normal = _normal(slices[0].orientation)
    ordered = sorted(slices, key=lambda item: float(item.position @ normal))
    positions = np.array([item.position for item in ordered])
    _check_gaps(np.diff(positions @ normal))
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    distance = float(step @ normal)
    shear = float(np.linalg.norm(step - distance * normal)) / distance
    if shear > SHEAR_TOLERANCE:
        words = f"slices are stacked at {np.degrees(np.arctan(shear)):.0f}° from their normal"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    line = positions[0] + np.arange(len(ordered))[:, None] * step
    stray = float(np.linalg.norm(positions - line, axis=1).max())
    if stray > 1.0:
        words = f"a slice lies {stray:.1f} mm off the line of the stack"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    return ordered


def _check_gaps(gaps: DoubleArray) -> None:
    """Judge the distances between neighbouring slices, mm, in order."""
    usual = float(np.median(gaps))
    smallest, largest = float(gaps.min()), float(gaps.max())
    if smallest < PIXEL_MM[0] or smallest < 0.2 * usual:
        words = "several images at the same position (echoes, phases or a repeated acquisition)"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    # where slices are missing, the other distances are multiples of the smallest
    counts = np.rint(gaps / smallest)
    if largest > MISSING_GAP * smallest and np.allclose(
        gaps / counts, smallest, rtol=GAP_TOLERANCE, atol=0
    ):
        missing = int(counts.sum()) - len(gaps)
        words = f"{missing} of {int(counts.sum()) + 1} slices are missing inside the stack"
        raise Unsuitable(ReasonCode.MISSING_SLICES, words)
    if np.abs(gaps - usual).max() > GAP_TOLERANCE * usual:
        words = f"slice distances vary from {smallest:.2f} to {largest:.2f} mm"
        raise Unsuitable(ReasonCode.MIXED_GEOMETRY, words)
    if usual > MAX_STEP_MM:
        words = f"slices {usual:.1f} mm apart cannot show {MIN_SLICES} sections of a femoral head"
        raise Unsuitable(ReasonCode.TOO_FEW_SLICES, words)


def _grid(ordered: Sequence[_Slice], rows: int, columns: int) -> Grid:
    """Grid of an ordered stack (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1)."""
    if len(ordered) * rows * columns > MAX_VOXELS:
        words = f"{len(ordered)}×{rows}×{columns} voxels are claimed, {MAX_VOXELS} are the limit"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    first, last = ordered[0], ordered[-1]
    row_mm, column_mm = first.pixel_mm
    affine = np.eye(4)
    affine[:3, 0] = (last.position - first.position) / (len(ordered) - 1)
    affine[:3, 1] = first.orientation[3:] * row_mm
    affine[:3, 2] = first.orientation[:3] * column_mm
    affine[:3, 3] = first.position
    return Grid(shape=(len(ordered), rows, columns), affine=affine)


def _voxels(images: Sequence[Dataset], ordered: Sequence[_Slice], grid: Grid) -> FloatArray:
    """Decode and rescale the pixels: ``(Z, Y, X)`` float32."""
    count, rows, columns = grid.shape
    for image in images:
        check_grey(image)
    voxels = np.empty(grid.shape, dtype=np.float32)
    stack = frames(images[0], count, rows, columns) if len(images) == 1 else []
    for z, item in enumerate(ordered):
        if item.frame is None:
            (stored,) = frames(images[item.image], 1, rows, columns)
        else:
            stored = stack[item.frame - 1]
        voxels[z] = rescaled(stored, item.slope, item.intercept)
    return voxels


def _source(image: Dataset, frame: int | None, z: int) -> SliceSource:
    """Say which instance slice ``z`` is; an unnumbered instance counts from the front."""
    number = frame if frame is not None else integer(image, "InstanceNumber")
    return SliceSource(
        sop_class_uid=text(image, "SOPClassUID"),
        sop_instance_uid=text(image, "SOPInstanceUID"),
        instance_number=number if number is not None else z + 1,
        frame_number=frame,
    )
