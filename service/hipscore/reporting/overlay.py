"""A contact sheet of what was scored, as PNG: outlines on the source slices."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw

from hipscore.domain import (
    RESEARCH_USE,
    BoolArray,
    Channel,
    Findings,
    Group,
    HipFindings,
    Masks,
    Side,
    SliceScore,
    Volume,
)
from hipscore.reporting import codes, picture, png

TILES = 8
_TILE = 178
_GAP = 5
_MARGIN = 18
_OVERVIEW = 400
_HEADER = 82
_HEADING = 46
_CAPTION = 44
_STEP = _TILE + _CAPTION
_ROW = _HEADING + _STEP + 8
_FOOTER = 40
_LINE = 22
#: quality remarks written out; the report has them all
_REMARKS = 8
#: fewer columns leave no room for what is written above them
_COLUMNS = 6

_FRAME = (255, 255, 255)
_RIM = (0, 0, 0)

_LETTER = {Side.RIGHT: "R", Side.LEFT: "L"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One hip: its findings, its masks ``(K, Z, Y, X)`` if any, the slices shown."""

    hip: HipFindings
    masks: BoolArray | None
    slices: tuple[int, ...]

    @property
    def lines(self) -> int:
        """How many lines of tiles it takes."""
        return max(1, -(-len(self.slices) // TILES))

    @property
    def columns(self) -> int:
        """How many tiles a line has at most."""
        return -(-len(self.slices) // self.lines)

    @property
    def height(self) -> int:
        return _HEADING + self.lines * _STEP + 8


def render(
    volume: Volume | None,
    masks: Sequence[Masks],
    findings: Findings,
    *,
    title: str = "hipscore",
    subtitle: str = "",
) -> bytes:
    """Draw the sheet: an overview, and per hip one row of slices from front to back.

    The patient's right is on the left of every picture, whichever way the source images
    run; pixels are shown in their true aspect. Every scored slice is shown, the central one
    framed, those of one hip in two lines where they do not fit in one.

    Parameters
    ----------
    volume
        The series; None where none could be made. Then the sheet is text.
    masks
        One per located hip, ``(K, Z, Y, X)`` bool on the grid of ``volume``.
    findings
        What is written beside the pictures.
    title, subtitle
        Heading: what this is; of which series, when and by which model it was made. Must not
        identify the patient.

    Returns the PNG, RGB.
    """
    rows = [] if volume is None else _rows(volume, masks, findings)
    width = _width(rows)
    remarks = _remarks(findings, width)
    tops = list(accumulate((row.height for row in rows), initial=_HEADER))
    height = max(tops[-1], _HEADER + 2 * _ROW) + _FOOTER
    sheet = Image.new("RGB", (width, height + len(remarks) * _LINE), picture.BACKGROUND)
    _header(sheet, findings, title)
    lines = "\n".join(textwrap.wrap(codes.plain(subtitle), width=54)[:3])
    below = (_MARGIN, _HEADER + _OVERVIEW + 122)
    ImageDraw.Draw(sheet).multiline_text(below, lines, picture.DIM, picture.font(15), spacing=4)
    if volume is not None:
        view, window = picture.View.canonical(volume.grid), picture.Window.of(volume.voxels)
        radius = max((row.hip.hip.radius_mm for row in rows), default=24.0)
        mm = float(np.clip(2.1 * radius, 36.0, 60.0)) * 2 / _TILE
        _overview(sheet, volume, rows, view=view, window=window, crop_mm=mm * _TILE)
        for row, top in zip(rows, tops, strict=False):
            _hip_row(sheet, volume, row, top, view=view, window=window, mm=mm)
        if not rows:
            _middle_slices(sheet, volume, view=view, window=window)
    if findings.reason is not None and not rows:
        top = _HEADER + (_TILE + 40 if volume is not None else 0)
        _paragraph(
            sheet, (_left(), top), f"Not scored: {findings.reason.text}", picture.WARNING, 22
        )
    if rows:
        _legend(sheet, height)
    for number, line in enumerate(remarks):
        place = (_left(), height - 4 + number * _LINE)
        ImageDraw.Draw(sheet).text(place, line, picture.WARNING, picture.font(16))
    return png.encoded(sheet)


# --- what is shown --------------------------------------------------------------------
def _rows(volume: Volume, masks: Sequence[Masks], findings: Findings) -> list[_Row]:
    by_side = {item.side: item.voxels for item in masks}
    rows = []
    for side in Side:
        for hip in findings.hips:
            if hip.hip.side is side:
                voxels = by_side.get(side)
                rows.append(_Row(hip=hip, masks=voxels, slices=_chosen(volume, hip, voxels)))
    return rows


def _chosen(volume: Volume, hip: HipFindings, masks: BoolArray | None) -> tuple[int, ...]:
    """Slice indices to show, anterior first."""
    if hip.slices:
        return tuple(item.slice_index for item in hip.slices)  # 15 at most
    if masks is not None and masks[Channel.FEMORAL_HEAD].any():
        area = masks[Channel.FEMORAL_HEAD].sum(axis=(1, 2))
        return thinned([int(z) for z in np.flatnonzero(area)], [int(np.argmax(area))])
    count = len(volume.sources)
    middle = int(np.clip(round(volume.grid.to_index(hip.hip.centre_mm)[0]), 0, count - 1))
    return tuple(range(max(0, middle - 1), min(count, middle + 2)))


def thinned(wanted: Sequence[int], must: Sequence[int], limit: int = TILES) -> tuple[int, ...]:
    """At most ``limit`` of the wanted slices, evenly spread, with those that must be shown."""
    if len(wanted) <= limit:
        return tuple(wanted)
    keep = list(dict.fromkeys(must))
    spread = [wanted[round(step)] for step in np.linspace(0, len(wanted) - 1, limit)]
    while len(keep) < limit:
        # the evenly spread slice that is farthest from all that are kept
        rest = [z for z in spread if z not in keep]
        keep.append(max(rest, key=lambda z: min(abs(z - other) for other in keep)))
    return tuple(sorted(keep))


# --- drawing --------------------------------------------------------------------------
def _left() -> int:
    return _MARGIN + _OVERVIEW + 20


def _width(rows: Sequence[_Row]) -> int:
    """Of the sheet: no wider than its rows are."""
    columns = max([_COLUMNS, *(row.columns for row in rows)]) if rows else TILES
    return _left() + columns * (_TILE + _GAP) - _GAP + _MARGIN


def _header(sheet: Image.Image, findings: Findings, title: str) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 12), codes.plain(title), picture.TEXT, picture.font(28))
    scored = [hip for hip in findings.hips if hip.scored]
    if findings.unet_score is not None:
        text = f"UNet-score {findings.unet_score:.2f}"
        count = sum(len(hip.slices) for hip in scored)
        note = f"{len(scored)} hip{'s' if len(scored) > 1 else ''}, {count} slices"
    else:
        text, note = "Not scored", ""
    draw.text((_left(), 12), text, picture.TEXT, picture.font(28))
    draw.text((_left(), 46), note, picture.DIM, picture.font(16))
    draw.text(
        (sheet.width - _MARGIN, 18), RESEARCH_USE, picture.WARNING, picture.font(22), anchor="ra"
    )


def _overview(
    sheet: Image.Image,
    volume: Volume,
    rows: Sequence[_Row],
    *,
    view: picture.View,
    window: picture.Window,
    crop_mm: float,
) -> None:
    """Draw one whole slice through the hips, with the crops framed and the sides named."""
    z, centre, mm = _whole(volume, rows)
    outlines: dict[tuple[int, int, int], BoolArray] = {}
    for row in rows:
        for colour, mask in picture.outlines(row.masks, z).items():
            outlines[colour] = mask | outlines.get(colour, np.zeros_like(mask))
    size = (_OVERVIEW, _OVERVIEW)
    tile = picture.draw(
        volume.voxels[z],
        outlines.items(),
        view=view,
        window=window,
        centre=centre,
        mm=mm,
        size=size,
    )
    draw = ImageDraw.Draw(tile)
    axes = view.axes(centre, mm, size)
    for row in rows:
        _, y, x = volume.grid.to_index(row.hip.hip.centre_mm)
        across, down = (y, x) if view.swapped else (x, y)
        x, y = axes[0].place(across), axes[1].place(down)
        half = crop_mm / mm / 2
        draw.rectangle((x - half, y - half, x + half, y + half), outline=picture.TEXT)
    for letter, x, anchor in zip(view.letters, (8, _OVERVIEW - 8), ("lm", "rm"), strict=True):
        place, font = (x, _OVERVIEW / 2), picture.font(26)
        draw.text(place, letter, picture.WARNING, font, anchor, stroke_width=3, stroke_fill=_RIM)
    sheet.paste(tile, (_MARGIN, _HEADER))
    number = volume.sources[z].instance_number
    ImageDraw.Draw(sheet).text(
        (_MARGIN, _HEADER + _OVERVIEW + 6),
        f"slice {number}; {view.letters[0]} and {view.letters[1]} are the patient's sides",
        picture.DIM,
        picture.font(15),
    )


def _whole(volume: Volume, rows: Sequence[_Row]) -> tuple[int, tuple[float, float], float]:
    """Slice, centre (row, column) and mm per pixel of a whole slice through the hips."""
    count, height, width = volume.grid.shape
    _, dy, dx = volume.grid.spacing_mm
    middles = [volume.grid.to_index(row.hip.hip.centre_mm)[0] for row in rows]
    z = round(float(np.clip(np.mean(middles) if middles else count / 2, 0, count - 1)))
    return z, ((height - 1) / 2, (width - 1) / 2), max(height * dy, width * dx) / _OVERVIEW


def _hip_row(
    sheet: Image.Image,
    volume: Volume,
    row: _Row,
    top: int,
    *,
    view: picture.View,
    window: picture.Window,
    mm: float,
) -> None:
    _heading(sheet, row.hip, top)
    _, y, x = volume.grid.to_index(row.hip.hip.centre_mm)
    scores = {item.slice_index: item for item in row.hip.slices}
    areas = {z: item.head_mm2 for z, item in scores.items()}
    central = max(areas, key=lambda z: areas[z]) if areas else None
    draw = ImageDraw.Draw(sheet)
    heading = top + _HEADING
    for position, z in enumerate(row.slices):
        left = _left() + position % row.columns * (_TILE + _GAP)
        top = heading + position // row.columns * _STEP
        tile = picture.draw(
            volume.voxels[z],
            picture.outlines(row.masks, z).items(),
            view=view,
            window=window,
            centre=(float(y), float(x)),
            mm=mm,
            size=(_TILE, _TILE),
        )
        sheet.paste(tile, (left, top))
        if z == central:
            box = (left - 1, top - 1, left + _TILE, top + _TILE)
            draw.rectangle(box, outline=_FRAME, width=2)
        below = top + _TILE + 3
        name = f"slice {volume.sources[z].instance_number}"
        if z in scores:
            group = "central slice" if z == central else scores[z].group.value
            draw.text((left, below), f"{name}, {group}", picture.DIM, picture.font(15))
            _ratios(draw, (left, below + 18), scores[z])
        else:
            draw.text((left, below), name, picture.DIM, picture.font(15))


def _ratios(draw: ImageDraw.ImageDraw, at: tuple[float, float], score: SliceScore) -> None:
    """Write a slice's ratio, and what edema and synovitis have in it, in their colours."""
    parts = (
        (f"ratio {score.ratio:.3f}", picture.TEXT, 0),
        (f"{score.bme_ratio:.3f}", codes.STRUCTURES[Channel.BME].rgb, 88),
        (f"{score.synovitis_ratio:.3f}", codes.STRUCTURES[Channel.SYNOVITIS].rgb, 134),
    )
    for text, colour, offset in parts:
        draw.text((at[0] + offset, at[1]), text, colour, picture.font(15))


def _heading(sheet: Image.Image, hip: HipFindings, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    left = _left()
    side = hip.hip.side
    draw.text((left, top + 4), _LETTER[side], picture.WARNING, picture.font(32))
    draw.text(
        (left + 34, top + 2), f"{side.value.capitalize()} hip", picture.TEXT, picture.font(19)
    )
    if hip.unet_score is None:
        text = hip.reason.text if hip.reason is not None else "not scored"
        draw.text(
            (left + 34, top + 24),
            codes.plain(f"Not scored: {text}"),
            picture.WARNING,
            picture.font(16),
        )
        return
    counts = ", ".join(
        f"{number} {group.value}"
        for group in Group
        if (number := sum(item.group is group for item in hip.slices))
    )
    draw.text(
        (left + 150, top + 2),
        f"UNet-score {hip.unet_score:.2f}   (BME {hip.bme_score:.2f}, "
        f"synovitis {hip.synovitis_score:.2f})   {len(hip.slices)} slices: {counts}",
        picture.TEXT,
        picture.font(19),
    )
    draw.text(
        (left + 34, top + 26),
        f"femoral head {hip.femoral_head_ml:.1f} mL   BME {hip.bme_ml:.1f} mL   "
        f"synovitis-effusion {hip.synovitis_ml:.1f} mL   effusion {hip.effusion_mm:.1f} mm thick"
        f"   mean ratio {hip.mean_ratio:.3f}",
        picture.DIM,
        picture.font(15),
    )


def _middle_slices(
    sheet: Image.Image, volume: Volume, *, view: picture.View, window: picture.Window
) -> None:
    """Draw whole slices from front to back, where no hip was found."""
    count = volume.grid.shape[0]
    _, centre, mm = _whole(volume, ())
    draw = ImageDraw.Draw(sheet)
    wanted = sorted({round(step) for step in np.linspace(0, count - 1, TILES)})
    for position, z in enumerate(wanted):
        left = _left() + position * (_TILE + _GAP)
        tile = picture.draw(
            volume.voxels[z],
            (),
            view=view,
            window=window,
            centre=centre,
            mm=mm * _OVERVIEW / _TILE,
            size=(_TILE, _TILE),
        )
        sheet.paste(tile, (left, _HEADER))
        name = f"slice {volume.sources[z].instance_number}"
        draw.text((left, _HEADER + _TILE + 2), name, picture.DIM, picture.font(15))


def _paragraph(
    sheet: Image.Image, at: tuple[int, int], text: str, colour: tuple[int, int, int], size: int
) -> None:
    lines = textwrap.wrap(codes.plain(text), width=110)
    ImageDraw.Draw(sheet).multiline_text(
        at, "\n".join(lines), colour, picture.font(size), spacing=6
    )


def _remarks(findings: Findings, width: int) -> list[str]:
    """Lines of quality remarks that fit the width of the sheet."""
    remarks = findings.quality
    texts = [f"Quality: {remark.text}" for remark in remarks[:_REMARKS]]
    if len(remarks) > _REMARKS:
        texts.append(f"{len(remarks) - _REMARKS} more remarks are in the report")
    letters = (width - _left()) * 10 // 87
    return [line for text in texts for line in textwrap.wrap(codes.plain(text), width=letters)]


def _legend(sheet: Image.Image, height: int) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = _MARGIN, _HEADER + _OVERVIEW + 40
    for channel in Channel:
        structure = codes.STRUCTURES[channel]
        draw.rectangle((x, y + 3, x + 22, y + 17), outline=structure.rgb, width=3)
        draw.text((x + 32, y), structure.noun, picture.TEXT, picture.font(17))
        y += 26
    text = "Slices run from front to back. Totals over different slice counts do not compare."
    draw.text((_left(), height - 28), codes.plain(text), picture.DIM, picture.font(16))
