"""From labelled structures to the masks of each hip: sides, plausibility, overlaps.

Arrays are ``(Z, Y, X)`` bool on the grid of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hipscore.domain import BoolArray, Channel, DoubleArray, Grid, Masks, Side
from hipscore.hips import MIN_SEPARATION_MM, RADIUS_MM
from hipscore.reporting.codes import STRUCTURES
from hiptrain.annotated import Problem

#: a lesion whose middle is further from the middle of its head is not of this hip, mm
_REACH_MM = 100.0
_TOUCHING = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One labelled structure, of one side where the label says so."""

    structure: Channel
    side: Side | None
    voxels: BoolArray
    layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """The hips of a case, the patient's right first, and what was changed on the way."""

    masks: tuple[Masks, ...]
    remarks: tuple[str, ...]


def hips_of(
    pieces: Sequence[Piece], grid: Grid, *, side: Side | None, head_includes_bme: bool | None = None
) -> Sorted:
    """Sort structures into hips.

    A head without a side is the right one when it lies further to the patient's right
    than another (as :func:`hipscore.hips.locate` decides); alone, it needs ``side``.
    Lesions without a side go to the nearer head.

    Parameters
    ----------
    pieces
        What was labelled.
    grid
        Grid of the image.
    side
        The side of the only annotated hip, where the table gives one.
    head_includes_bme
        Whether edema lies inside the outline of the head; if not, edema that touches
        the head becomes part of it. None: not where both are values of one layer, which
        cannot overlap.

    Raises
    ------
    Problem
        If there is no head, a head is none by its size or side, or a lesion has no head.
    """
    heads = _heads(pieces, grid, side)
    centres = {key: _centre(head, grid) for key, head in heads.items()}
    _check_heads(heads, centres, grid)
    voxels = {key: np.zeros((len(Channel), *grid.shape), dtype=np.bool_) for key in heads}
    for key, head in heads.items():
        voxels[key][Channel.FEMORAL_HEAD] = head
    for piece in pieces:
        if piece.structure is not Channel.FEMORAL_HEAD and piece.voxels.any():
            _add_lesion(voxels, piece, centres, grid)
    if head_includes_bme is None:
        head_includes_bme = not _one_layer(pieces)
    remarks: list[str] = []
    for key in heads:
        remarks += _untangle(voxels[key], key, grid, head_includes_bme=head_includes_bme)
    masks = tuple(Masks(side=key, voxels=voxels[key]) for key in Side if key in voxels)
    return Sorted(masks=masks, remarks=tuple(remarks))


def _one_layer(pieces: Sequence[Piece]) -> bool:
    """Whether edema and head of a hip are labels that exclude each other."""
    heads, edema = (
        {(piece.side, piece.layer) for piece in pieces if piece.structure is structure}
        for structure in (Channel.FEMORAL_HEAD, Channel.BME)
    )
    return bool(heads & edema)


def _heads(pieces: Sequence[Piece], grid: Grid, side: Side | None) -> dict[Side, BoolArray]:
    """The head of each side."""
    found: dict[Side, BoolArray] = {}
    without = np.zeros(grid.shape, dtype=np.bool_)
    for piece in pieces:
        if piece.structure is not Channel.FEMORAL_HEAD:
            continue
        if piece.side is None:
            without |= piece.voxels
        elif piece.voxels.any():
            found[piece.side] = found.get(piece.side, np.False_) | piece.voxels
    if without.any():
        if found:
            raise Problem("some femoral heads have a side and some have none; give all or none one")
        found = _by_position(without, grid, side)
    if not found:
        raise Problem("no femoral head is labelled; a hip needs the outline of its head")
    if side is not None and set(found) != {side}:
        there = " and ".join(key.value for key in Side if key in found)
        raise Problem(f"the table says {side.value} hip only, but the {there} head is labelled")
    return found


def _by_position(heads: BoolArray, grid: Grid, side: Side | None) -> dict[Side, BoolArray]:
    """Tell the sides of heads without one: the one with the smaller x is the right one."""
    labels, count = ndimage.label(heads, _TOUCHING)
    index = np.arange(1, count + 1)
    middles = np.array(ndimage.center_of_mass(heads, labels, index)).reshape(-1, 3)
    x = grid.to_mm(middles)[:, 0]
    order = np.argsort(x)
    gaps = np.diff(x[order])
    if not gaps.size or gaps.max() < MIN_SEPARATION_MM / 2:
        if side is None:
            raise Problem("one femoral head without a side: write right or left in the column side")
        return {side: heads}
    cut = int(np.argmax(gaps)) + 1
    right: BoolArray = np.isin(labels, index[order[:cut]])
    return {Side.RIGHT: right, Side.LEFT: heads & ~right}


def _centre(mask: BoolArray, grid: Grid) -> DoubleArray:
    return grid.to_mm(np.argwhere(mask).mean(axis=0))


def _check_heads(
    heads: Mapping[Side, BoolArray], centres: Mapping[Side, DoubleArray], grid: Grid
) -> None:
    for side, head in heads.items():
        radius = float((3 * head.sum() * grid.voxel_ml * 1000 / (4 * np.pi)) ** (1 / 3))
        if not RADIUS_MM[0] <= radius <= RADIUS_MM[1]:
            raise Problem(
                f"the {side.value} femoral head has {head.sum() * grid.voxel_ml:.1f} mL, a ball of "
                f"radius {radius:.0f} mm; heads have {RADIUS_MM[0]:.0f} to {RADIUS_MM[1]:.0f} mm "
                "(every slice that shows the head must be outlined)"
            )
    if len(heads) == 2:
        apart = float(centres[Side.LEFT][0] - centres[Side.RIGHT][0])
        if apart < 0:
            raise Problem(
                "the right femoral head lies to the left of the left one: the labels' sides are "
                "swapped, or the image is mirrored"
            )
        if apart < MIN_SEPARATION_MM:
            raise Problem(
                f"the femoral heads are {apart:.0f} mm apart, at least {MIN_SEPARATION_MM:.0f} mm "
                "are expected"
            )


def _add_lesion(
    voxels: Mapping[Side, BoolArray],
    piece: Piece,
    centres: Mapping[Side, DoubleArray],
    grid: Grid,
) -> None:
    """Add a lesion to its hip; without a side, each of its connected parts to the nearer head."""
    noun = STRUCTURES[piece.structure].noun
    if piece.side is not None:
        if piece.side not in voxels:
            raise Problem(
                f"{noun} is labelled in the {piece.side.value} hip, but no "
                f"{piece.side.value} femoral head"
            )
        voxels[piece.side][piece.structure] |= piece.voxels
        return
    labels, count = ndimage.label(piece.voxels, _TOUCHING)
    middles = np.array(
        ndimage.center_of_mass(piece.voxels, labels, np.arange(1, count + 1))
    ).reshape(-1, 3)
    for number, middle in enumerate(grid.to_mm(middles), start=1):
        distances = {
            side: float(np.linalg.norm(middle - centre)) for side, centre in centres.items()
        }
        nearer = min(distances, key=lambda side: distances[side])
        if distances[nearer] > _REACH_MM:
            raise Problem(
                f"{noun} lies {distances[nearer]:.0f} mm from the nearest labelled femoral head; "
                "outline the head it belongs to, or give it a label of its own to ignore"
            )
        voxels[nearer][piece.structure] |= labels == number


def _untangle(voxels: BoolArray, side: Side, grid: Grid, *, head_includes_bme: bool) -> list[str]:
    """Make ``voxels`` (K, Z, Y, X) what the service means: edema in the head, effusion outside.

    Changes in place; returns what was left out (see :func:`hipscore.hips.tidy`).
    """
    head, edema = voxels[Channel.FEMORAL_HEAD], voxels[Channel.BME]
    if not head_includes_bme:
        labels, _ = ndimage.label(head | edema, _TOUCHING)
        touching = np.unique(labels[head])
        head |= edema & np.isin(labels, touching[touching > 0])
    elif edema.any() and not (edema & head).any():
        raise Problem(
            f"edema and femoral head of the {side.value} hip share no voxel; if edema was cut "
            "out of the head's outline, write head_includes_bme = false in labels.toml"
        )
    remarks = []
    outside, inside = edema & ~head, voxels[Channel.SYNOVITIS] & head
    voxels[Channel.BME] &= head
    voxels[Channel.SYNOVITIS] &= ~head
    if outside.any():
        remarks.append(f"{_ml(outside, grid)} of edema outside the {side.value} head left out")
    if inside.any():
        remarks.append(f"{_ml(inside, grid)} of synovitis inside the {side.value} head left out")
    return remarks


def _ml(mask: NDArray[np.bool_], grid: Grid) -> str:
    return f"{float(mask.sum()) * grid.voxel_ml:.2f} mL"
