"""From a volume to located and segmented hips.

The same sampling and normalising code serves training and inference, so that a
network sees in the hospital what it saw when it learned.

Shapes: Z slices, C context planes, H and W rows and columns of a network's
picture, K channels (:class:`~hipscore.domain.Channel`), N slices inside a crop stack.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hipscore.arrays import Box, bounding_box, median, percentile
from hipscore.domain import (
    BoolArray,
    Channel,
    DoubleArray,
    FloatArray,
    Grid,
    Hip,
    Masks,
    PlaneSpec,
    Segmenter,
    Side,
    Volume,
)
from hipscore.sampling import Sampling, lay

IndexArray: TypeAlias = NDArray[np.int64]

#: context planes are taken about this far apart, mm, whatever the slice distance
CONTEXT_MM = 4.0
#: a femoral head outside this range of radii is none (adult heads: 18 to 32 mm)
RADIUS_MM = (15.0, 40.0)
#: for a ball that is alone no partner vouches: it must have an adult head's size, mm, and
#: a confidence this share of the way from the bundle's limit to 1 (single balls in bladders,
#: knees and voids around metal have less of both, heads in narrow fields of view more)
LONE_RADIUS_MM = 17.5
LONE_CONFIDENCE_SHARE = 0.7
#: two heads are never closer than this, mm
MIN_SEPARATION_MM = 80.0
#: radius of the smaller head of a person over that of the larger one, at least
MIN_LIKENESS = 0.7
#: a segmented head farther from the located one than this is another structure, mm
SETTLE_MM = 6.0
#: and so is one of which the smaller radius is less than this share of the larger
SETTLE_LIKENESS = 0.93
#: lesion components below this are speckle, mL
MIN_LESION_ML = 0.03
_CEILING = 20.0
#: components looked at, heaviest first
_CANDIDATES = 8
_FACE = ndimage.generate_binary_structure(3, 1)
#: the same within a slice alone
_IN_PLANE = _FACE & (np.arange(3) == 1)[:, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFrame:
    """The crop stack of one hip: which slices, and how their pixels are sampled."""

    side: Side
    shape: tuple[int, int, int]
    slice_indices: tuple[int, ...]
    context: tuple[tuple[int, ...], ...]
    sampling: Sampling

    @property
    def box(self) -> Box:
        """Index box of the grid that the stack covers; empty where it has no slice."""
        indices = self.slice_indices
        slices = slice(indices[0], indices[-1] + 1) if indices else slice(0, 0)
        return slices, *self.sampling.window


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneStack:
    """Whole-series pictures for the localiser.

    ``planes`` is ``(Z, C, H, W)``, normalised. ``affine`` ``(4, 4)`` maps the picture
    index ``(z, h, w, 1)`` to LPS mm.
    """

    planes: FloatArray
    affine: DoubleArray
    sampling: Sampling


def _context(index: int, count: int, slices: int, slice_mm: float) -> tuple[int, ...]:
    """Slice indices of the ``count`` context planes of slice ``index``, clamped to the stack."""
    step = max(1, round(CONTEXT_MM / slice_mm))
    half = count // 2
    return tuple(
        int(np.clip(index + step * offset, 0, slices - 1)) for offset in range(-half, half + 1)
    )


def normalise(pictures: FloatArray, reference: float) -> FloatArray:
    """Compress intensities of any scale: log(1 + x / reference), clipped at 20 × reference.

    The fluid of a STIR image is 5 to 7 times the median tissue; the logarithm keeps it
    from drowning the marrow.
    """
    scaled = pictures / np.float32(max(reference, 1e-6))
    np.clip(scaled, 0.0, _CEILING, out=scaled)
    compressed: FloatArray = np.log1p(scaled, out=scaled)
    return compressed


def localiser_planes(volume: Volume, spec: PlaneSpec) -> PlaneStack:
    """Picture every slice around the middle of the series for the localiser.

    The reference intensity is the 75th percentile of the series: inside the body even
    when air fills half of the field of view.
    """
    slices, rows, columns = volume.grid.shape
    middle = np.array([0.0, (rows - 1) / 2, (columns - 1) / 2])
    sampling = lay(volume.grid, spec, middle, mirrored=False)
    pictures = sampling.pictures(volume.voxels)
    pictures = normalise(pictures, percentile(volume.voxels, 75))
    slice_mm = volume.grid.spacing_mm[0]
    chosen = [_context(index, spec.context, slices, slice_mm) for index in range(slices)]
    return PlaneStack(
        planes=np.ascontiguousarray(pictures[np.array(chosen)]),
        affine=_picture_affine(volume.grid, spec, middle, transposed=sampling.transposed),
        sampling=sampling,
    )


def _picture_affine(
    grid: Grid, spec: PlaneSpec, middle: DoubleArray, *, transposed: bool
) -> DoubleArray:
    """Affine ``(4, 4)`` from picture index (z, h, w) to LPS mm, for an unmirrored picture."""
    down, across = (
        (grid.affine[:3, 2], grid.affine[:3, 1])
        if transposed
        else (
            grid.affine[:3, 1],
            grid.affine[:3, 2],
        )
    )
    down = down / np.linalg.norm(down) * (-1.0 if down[2] > 0 else 1.0) * spec.pixel_mm
    across = across / np.linalg.norm(across) * (-1.0 if across[0] < 0 else 1.0) * spec.pixel_mm
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = grid.affine[:3, 0], down, across
    affine[:3, 3] = (
        grid.to_mm(middle) - down * (spec.rows - 1) / 2 - across * (spec.columns - 1) / 2
    )
    return affine


def locate(volume: Volume, segmenter: Segmenter) -> tuple[Hip, ...]:
    """Find the femoral heads of a series: 0, 1 or 2 hips, the patient's right first.

    Heads are balls in the probability that a voxel belongs to either head. Of two heads
    the right one is the one farther to the patient's right: a body is nearly its own mirror
    image, so positions decide the side, not the network. Only for a head that is alone does
    the network's side count.
    """
    card = segmenter.card
    stack = localiser_planes(volume, card.localiser)
    probability = segmenter.localise(stack.planes)
    balls = [
        ball
        for ball in _balls(probability, stack.affine, card.localiser_threshold)
        if ball.confidence >= card.min_confidence
    ]
    pairs = [pair for pair in combinations(balls, 2) if _a_pair(*pair)]
    if not pairs:
        certain = card.min_confidence + LONE_CONFIDENCE_SHARE * (1.0 - card.min_confidence)
        alone = [
            ball
            for ball in balls
            if ball.confidence >= certain and ball.radius_mm >= LONE_RADIUS_MM
        ]
        return tuple(alone[:1])
    # a pair is worth more than a heavier ball without a partner; of pairs, the likest
    best = max(pairs, key=lambda pair: _likeness(*pair) * pair[0].confidence * pair[1].confidence)
    right, left = sorted(best, key=lambda ball: ball.centre_mm[0])
    return (replace(right, side=Side.RIGHT), replace(left, side=Side.LEFT))


def _a_pair(one: Hip, other: Hip) -> bool:
    """Whether two balls can be the two heads of one person: far apart, of like size."""
    apart = abs(one.centre_mm[0] - other.centre_mm[0])
    return apart >= MIN_SEPARATION_MM and _likeness(one, other) >= MIN_LIKENESS


def _likeness(one: Hip, other: Hip) -> float:
    """Radius of the smaller ball over that of the larger one."""
    smaller, larger = sorted((one.radius_mm, other.radius_mm))
    return smaller / larger


def _balls(probability: FloatArray, affine: DoubleArray, threshold: float) -> list[Hip]:
    """Find head-sized components of the probability ``(Z, 2, H, W)``, heaviest first."""
    either = np.minimum(probability.sum(axis=1), 1.0)
    marked = either > threshold
    if not marked.any():
        return []
    box = bounding_box(marked)
    labels, count = ndimage.label(marked[box], _FACE)
    weight = np.bincount(labels.ravel(), either[box].ravel(), minlength=count + 1)[1:]
    heaviest = np.argsort(-weight, kind="stable")[:_CANDIDATES]
    pieces = ndimage.find_objects(labels)
    balls = []
    for number in heaviest:
        piece = pieces[number]
        index = np.argwhere(labels[piece] == number + 1) + _start(box) + _start(piece)
        if ball := _ball(probability, either, index, affine):
            balls.append(ball)
    return balls


def _ball(
    probability: FloatArray, either: FloatArray, index: IndexArray, affine: DoubleArray
) -> Hip | None:
    """Turn voxels ``(n, 3)`` of one component into a ball, or None where it has no head's size."""
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    radius = float((3 * len(index) * voxel_mm3 / (4 * np.pi)) ** (1 / 3))
    if not RADIUS_MM[0] <= radius <= RADIUS_MM[1]:
        return None
    z, h, w = index.T
    weights = either[z, h, w].astype(np.float64)
    positions = index @ affine[:3, :3].T + affine[:3, 3]
    centre = (positions * weights[:, None]).sum(axis=0) / weights.sum()
    # a head is a ball: what the network marks elsewhere lowers the confidence
    inside = np.linalg.norm(positions - centre, axis=1) <= 1.25 * radius
    right, left = (float(probability[z, channel, h, w].sum()) for channel in (0, 1))
    return Hip(
        side=Side.RIGHT if right >= left else Side.LEFT,
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        radius_mm=radius,
        confidence=float(weights.mean() * inside.mean()),
    )


def frame(grid: Grid, hip: Hip, spec: PlaneSpec, margin_mm: float) -> CropFrame:
    """Lay the crop stack of ``hip``; a left hip is mirrored to look like a right one.

    The stack takes every slice within ``radius + margin_mm`` of the head's centre.
    """
    centre = grid.to_index(np.array(hip.centre_mm))
    slice_mm = grid.spacing_mm[0]
    reach = hip.radius_mm + margin_mm
    indices = tuple(
        index for index in range(grid.shape[0]) if abs(index - centre[0]) * slice_mm <= reach
    )
    return CropFrame(
        side=hip.side,
        shape=grid.shape,
        slice_indices=indices,
        context=tuple(_context(i, spec.context, grid.shape[0], slice_mm) for i in indices),
        sampling=lay(grid, spec, centre, mirrored=hip.side is Side.LEFT),
    )


def sample(voxels: FloatArray, crop: CropFrame) -> FloatArray:
    """Sample any array ``(Z, Y, X)`` (image or mask) as crops ``(N, H, W)``, linear."""
    return crop.sampling.pictures([voxels[index] for index in crop.slice_indices])


def crops(volume: Volume, crop: CropFrame) -> FloatArray:
    """Normalised crops ``(N, C, H, W)`` of one hip.

    The reference intensity is the median of the crop stack, which lies inside the body:
    it follows the coil's shading from hip to hip.
    """
    needed = sorted({index for context in crop.context for index in context})
    pictures = crop.sampling.pictures([volume.voxels[index] for index in needed])
    positive = pictures[pictures > 0]
    reference = median(positive) if positive.size else 1.0
    place = {index: position for position, index in enumerate(needed)}
    chosen = [[place[index] for index in context] for context in crop.context]
    return np.ascontiguousarray(normalise(pictures, reference)[np.array(chosen)])


def restore(probability: FloatArray, crop: CropFrame) -> FloatArray:
    """Bring crops ``(N, K, H, W)`` back to the source grid ``(K, Z, Y, X)``, 0 elsewhere."""
    result = np.zeros((probability.shape[1], *crop.shape), dtype=np.float32)
    for channel, part in zip(result, probability.swapaxes(0, 1), strict=True):
        channel[crop.box] = crop.sampling.slices(part)
    return result


def segment(volume: Volume, hip: Hip, segmenter: Segmenter) -> Masks:
    """Segment one hip: masks ``(K, Z, Y, X)`` on the source grid."""
    card = segmenter.card
    crop = frame(volume.grid, hip, card.segmenter, card.margin_mm)
    probability = segmenter.segment(crops(volume, crop))
    # nothing lies outside of the crop: all is done in the box that it covers
    marked = [
        crop.sampling.slices(probability[:, channel]) > np.float32(threshold)
        for channel, threshold in enumerate(card.thresholds)
    ]
    voxels = np.zeros((len(marked), *crop.shape), dtype=np.bool_)
    voxels[:, *crop.box] = tidy(np.stack(marked), _part(volume.grid, crop.box), hip)
    return Masks(side=hip.side, voxels=voxels)


def settled(hip: Hip, masks: Masks, grid: Grid) -> Hip:
    """The hip where its segmented head lies: centre and radius of the mask, not of the search.

    The localiser sees 2 mm pixels, the segmenter finer ones. A mask that is cut, or not
    quite what was located (:data:`SETTLE_MM`, :data:`SETTLE_LIKENESS`), changes nothing: in
    another contrast than STIR the localiser is the better one.
    """
    head = masks.voxels[Channel.FEMORAL_HEAD]
    box = bounding_box(head)
    index = np.argwhere(head[box]) + _start(box)
    if not len(index) or index[:, 0].min() == 0 or index[:, 0].max() == grid.shape[0] - 1:
        return hip
    centre = grid.to_mm(index.mean(axis=0))
    radius = float((3000.0 * len(index) * grid.voxel_ml / (4 * np.pi)) ** (1 / 3))
    smaller, larger = sorted((radius, hip.radius_mm))
    if np.linalg.norm(centre - hip.centre_mm) > SETTLE_MM or smaller < SETTLE_LIKENESS * larger:
        return hip
    x, y, z = centre
    return replace(hip, centre_mm=(float(x), float(y), float(z)), radius_mm=radius)


def tidy(voxels: BoolArray, grid: Grid, hip: Hip) -> BoolArray:
    """Make masks ``(K, Z, Y, X)`` anatomically consistent.

    One head, in one piece, without holes; edema inside the head, synovitis outside of
    it; no speckle.
    """
    result = np.zeros(voxels.shape, dtype=np.bool_)
    box = bounding_box(voxels[Channel.FEMORAL_HEAD])
    head = _filled(_head_component(voxels[Channel.FEMORAL_HEAD][box], _part(grid, box), hip))
    if not head.any():
        return result
    result[Channel.FEMORAL_HEAD][box] = head
    result[Channel.BME][box] = _without_speckle(voxels[Channel.BME][box] & head, grid)
    synovitis = result[Channel.SYNOVITIS]
    np.greater(voxels[Channel.SYNOVITIS], result[Channel.FEMORAL_HEAD], out=synovitis)
    box = bounding_box(synovitis)
    synovitis[box] = _without_speckle(synovitis[box], grid)
    return result


def _head_component(head: BoolArray, grid: Grid, hip: Hip) -> BoolArray:
    """Keep the connected piece of the head with most voxels near the located ball."""
    labels, _ = ndimage.label(head, _FACE)
    near = np.bincount(labels[_near(grid, hip, 1.5) & head])
    kept: BoolArray = labels == np.argmax(near) if near.any() else np.zeros_like(head)
    return kept


def _near(grid: Grid, hip: Hip, radii: float) -> BoolArray:
    """Voxels ``(Z, Y, X)`` within so many radii of a hip's centre."""
    z, y, x = (np.arange(size) for size in grid.shape)
    origin = grid.affine[:3, 3] - hip.centre_mm
    squares = (
        ((along[0] * z + start)[:, None, None] + (along[1] * y)[:, None] + along[2] * x) ** 2
        for along, start in zip(grid.affine[:3, :3], origin, strict=True)
    )
    near: BoolArray = sum(squares) <= (radii * hip.radius_mm) ** 2
    return near


def _filled(mask: BoolArray) -> BoolArray:
    """A mask ``(Z, Y, X)`` without the holes of its sections."""
    background = np.pad(~mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    labels, _ = ndimage.label(background, _IN_PLANE)
    # what is not connected with the corner of its slice is mask, or a hole
    filled: BoolArray = (labels != labels[:, :1, :1])[:, 1:-1, 1:-1]
    return filled


def _without_speckle(mask: BoolArray, grid: Grid) -> BoolArray:
    """Drop connected components smaller than :data:`MIN_LESION_ML`."""
    labels, count = ndimage.label(mask, _FACE)
    if count == 0:
        return mask
    keep = np.bincount(labels.ravel()) * grid.voxel_ml >= MIN_LESION_ML
    keep[0] = False
    kept: BoolArray = keep[labels]
    return kept


def _start(box: Box) -> IndexArray:
    """First index (z, y, x) of a box."""
    return np.array([piece.start for piece in box])


def _part(grid: Grid, box: Box) -> Grid:
    """The grid of the voxels of an index box."""
    shape = tuple(piece.stop - piece.start for piece in box)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_mm(_start(box).astype(np.float64))
    return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
