"""The pictures of the secondary captures: a summary page, and one per scored slice.

They hold no name and no identifier of the patient: those stand in the header.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from hipscore.domain import (
    RESEARCH_USE,
    Channel,
    Findings,
    HipFindings,
    Masks,
    ModelCard,
    Side,
    SliceScore,
    Volume,
)
from hipscore.reporting import ReportContext, assessed, codes, picture, wording

_Colour = tuple[int, int, int]

WIDTH = 768
_PICTURE = 512
_HEAD = 62
_FOOT = 84
_MARGIN = 14
#: below the picture: where the text begins, and where that of each hip
_TOP = _HEAD + _PICTURE + 8
_COLUMNS = ((Side.RIGHT, _MARGIN), (Side.LEFT, WIDTH // 2 + _MARGIN))

PAGE = 1024
_TILE = 240
_COLUMN = 470
_LINE = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all pictures of one series share. ``header`` is a tidy one."""

    volume: Volume | None
    masks: tuple[Masks, ...]
    findings: Findings
    card: ModelCard
    context: ReportContext
    header: Dataset

    def hip(self, side: Side) -> HipFindings | None:
        """What was found on this side."""
        return next((each for each in self.findings.hips if each.hip.side is side), None)


# --- one slice -------------------------------------------------------------------------
def scored_slices(findings: Findings) -> list[int]:
    """Indices of the slices on which a hip was scored, front to back."""
    return sorted({item.slice_index for hip in findings.hips for item in hip.slices})


def slices(scene: Scene) -> Iterator[tuple[int, Image.Image]]:
    """Yield the index and the picture of each scored slice, RGB, front to back."""
    wanted = scored_slices(scene.findings)
    if scene.volume is None or not wanted:
        return
    view = picture.View.canonical(scene.volume.grid)
    window = picture.Window.of(scene.volume.voxels)
    centre, mm = _region(scene.volume, scene.findings)
    marks, empty = _marks(view, 30), _empty(scene)
    for position, z in enumerate(wanted):
        tile = _slice(scene.volume, scene.masks, z, view, window, centre=centre, mm=mm)
        _mark(tile, marks)
        page = empty.copy()
        page.paste(tile, (0, _HEAD))
        _title(page, scene.volume, z, f"{position + 1} of {len(wanted)}")
        _ratios(page, scene.findings, z)
        yield z, page


def _empty(scene: Scene) -> Image.Image:
    """A page with what is the same on all of them."""
    page = Image.new("RGB", (WIDTH, _HEAD + _PICTURE + _FOOT), picture.BACKGROUND)
    write = _Pen(page)
    write.text((WIDTH - _MARGIN, 8), RESEARCH_USE, 18, picture.WARNING, anchor="ra")
    where = f"{wording.origin(scene.header)}, slices from front to back"
    write.text((_MARGIN, 38), where, 15, picture.DIM)
    model = f"hipscore {scene.context.software_version}, {scene.card.id} {scene.card.version}"
    write.text((WIDTH - _MARGIN, 38), model[:60], 15, picture.DIM, anchor="ra")
    for side, left in _COLUMNS:
        write.text((left, _TOP - 2), wording.LETTER[side], 26, picture.WARNING)
    _legend(write, (_MARGIN, _TOP + 50))
    return page


def _region(volume: Volume, findings: Findings) -> tuple[tuple[float, float], float]:
    """Centre (row, column) and mm per pixel of a picture that shows the located hips."""
    centres = [volume.grid.to_index(hip.hip.centre_mm)[1:] for hip in findings.hips]
    across = np.ptp([hip.hip.centre_mm[0] for hip in findings.hips])
    row, column = np.mean(centres, axis=0)
    return (float(row), float(column)), (float(across) + 150.0) / WIDTH


def _slice(
    volume: Volume,
    masks: Sequence[Masks],
    z: int,
    view: picture.View,
    window: picture.Window,
    *,
    centre: tuple[float, float],
    mm: float,
) -> Image.Image:
    return picture.draw(
        volume.voxels[z],
        [pair for item in masks for pair in picture.outlines(item.voxels, z).items()],
        view=view,
        window=window,
        centre=centre,
        mm=mm,
        size=(WIDTH, _PICTURE),
        line=picture.THIN,
    )


#: of the letters on a picture, pixels
_EDGE, _STRIP = 8, 48
_Mark = tuple[Image.Image, Image.Image]


def _marks(view: picture.View, size: int) -> tuple[_Mark, _Mark]:
    """Which sides of the patient the left and right border are: opacity of rim and letter."""

    def written(letter: str, x: int, anchor: str, rim: int) -> Image.Image:
        strip = Image.new("L", (_STRIP, _STRIP))
        place, font = (x, _STRIP / 2), picture.font(size)
        ImageDraw.Draw(strip).text(place, letter, 255, font, anchor, stroke_width=rim)
        return strip

    left, right = view.letters
    return (
        (written(left, _EDGE, "lm", 2), written(left, _EDGE, "lm", 0)),
        (written(right, _STRIP - _EDGE, "rm", 2), written(right, _STRIP - _EDGE, "rm", 0)),
    )


def _mark(tile: Image.Image, marks: tuple[_Mark, _Mark]) -> None:
    """Write the sides on a picture."""
    for (rim, letter), left in zip(marks, (0, tile.width - _STRIP), strict=True):
        place = (left, (tile.height - _STRIP) // 2)
        tile.paste((0, 0, 0), place, rim)
        tile.paste(picture.WARNING, place, letter)


def _title(page: Image.Image, volume: Volume, z: int, position: str) -> None:
    source = volume.sources[z]
    frame = f", frame {source.frame_number}" if source.frame_number is not None else ""
    text = f"Image {source.instance_number}{frame}: scored slice {position}"
    _Pen(page).text((_MARGIN, 6), text, 22)


def _ratios(page: Image.Image, findings: Findings, z: int) -> None:
    """Write what each hip has on this slice, on its side of the picture."""
    write, top = _Pen(page), _TOP
    for side, left in _COLUMNS:
        hip = next((each for each in findings.hips if each.hip.side is side), None)
        score = next((it for it in hip.slices if it.slice_index == z), None) if hip else None
        if score is None:
            text = "no hip found" if hip is None else "not among its scored slices"
            if hip is not None and not hip.scored:
                text = "hip not scored"
            write.text((left + 30, top + 4), text, 17, picture.DIM)
            continue
        write.text((left + 30, top), f"ratio {score.ratio:.3f}, {score.group.value}", 18)
        x: float = left + 30
        for channel, ratio in _parts(score):
            words = f"{_SHORT[channel]} {ratio:.3f}"
            x = write.along((x, top + 24), words, 15, codes.STRUCTURES[channel].rgb) + 14


_SHORT: Mapping[Channel, str] = {Channel.BME: "edema", Channel.SYNOVITIS: "synovitis"}


def _parts(score: SliceScore) -> tuple[tuple[Channel, float], ...]:
    return ((Channel.BME, score.bme_ratio), (Channel.SYNOVITIS, score.synovitis_ratio))


def _legend(write: _Pen, at: tuple[int, int]) -> None:
    x, y = float(at[0]), at[1]
    for channel in Channel:
        structure = codes.STRUCTURES[channel]
        write.draw.rectangle((x, y + 3, x + 16, y + 13), outline=structure.rgb, width=2)
        x = write.along((x + 24, y), structure.noun, 15, picture.DIM) + 24


# --- the summary -----------------------------------------------------------------------
def summary(scene: Scene) -> Image.Image:
    """The first page: score or reason, table, change, remarks, and the worst slices."""
    left, right = _left_lines(scene), _right_lines(scene)
    height = max(_height(left), _height(right))
    small = tiles(scene)
    end = 112 + height + (_TILE + 62 if small else 0)
    meaning = _wrapped(wording.MEANING, 128)
    page = Image.new("RGB", (PAGE, end + 18 * len(meaning) + 24), picture.BACKGROUND)
    write = _Pen(page)
    score, note = wording.headline(scene.findings)
    x = write.along((_MARGIN, 10), score, 32)
    write.text((x + 16, 22), note, 17, picture.DIM)
    write.text((PAGE - _MARGIN, 14), RESEARCH_USE, 22, picture.WARNING, anchor="ra")
    write.text((_MARGIN, 54), f"hipscore summary. {wording.origin(scene.header)}", 16, picture.DIM)
    made = wording.provenance(scene.card, scene.context)
    write.text((_MARGIN, 76), made[:1].upper() + made[1:], 16, picture.DIM)
    write.lines((_MARGIN, 108), left)
    write.lines((_COLUMN + 3 * _MARGIN, 108), right)
    for number, (tile, caption) in enumerate(small):
        place = (_MARGIN + number * (_TILE + 12), 112 + height)
        page.paste(tile, (place[0], place[1] + 26))
        write.text(place, caption, 16)
    if small and scene.findings.hips:
        _legend(write, (_MARGIN, end - 26))
    write.lines((_MARGIN, end + 8), [(line, picture.DIM) for line in meaning], 15, 18)
    return page


_Line = tuple[str | wording.Row, _Colour]


def _left_lines(scene: Scene) -> list[_Line]:
    table = wording.scores(scene.findings)
    lines: list[_Line] = []
    if table:
        lines.append((wording.Row("", "right hip", "left hip", "patient"), picture.DIM))
        lines += [(row, picture.TEXT) for row in table]
    for text in wording.unscored(scene.findings):
        lines += [(line, picture.WARNING) for line in _wrapped(text, 56)]
    return lines


def _right_lines(scene: Scene) -> list[_Line]:
    assessment = assessed(scene.findings, scene.card, scene.context)
    lines: list[_Line] = []

    def say(texts: Iterable[str], colour: _Colour) -> None:
        lines.extend((line, colour) for text in texts for line in _wrapped(text, 58))

    if assessment.priority.reason is not None:
        say([f"Flagged: {assessment.priority.reason}."], picture.WARNING)
    if assessment.change is not None:
        say(wording.changes(assessment.change), picture.TEXT)
        say(wording.caveats(assessment.change), picture.WARNING)
    elif scene.findings.scored:
        say(["No earlier score of this patient is known here."], picture.DIM)
    say((f"Quality: {remark.text}" for remark in scene.findings.quality), picture.WARNING)
    if scene.findings.scored and not scene.findings.quality:
        say(["No quality remarks."], picture.DIM)
    return lines


def tiles(scene: Scene, size: int = _TILE) -> list[tuple[Image.Image, str]]:
    """Four small pictures: of each hip the two worst slices, or slices of the whole."""
    volume = scene.volume
    if volume is None:
        return []
    view, window = picture.View.canonical(volume.grid), picture.Window.of(volume.voxels)
    scored = [hip for hip in scene.findings.hips if hip.scored]
    if not scored:
        return _overview(volume, view, window, size)
    found = []
    by_side = {item.side: item.voxels for item in scene.masks}
    for hip in scored:
        _, row, column = volume.grid.to_index(hip.hip.centre_mm)
        side = hip.hip.side
        for score in wording.worst(hip, 2 if len(scored) == 2 else 4):
            z = score.slice_index
            tile = picture.draw(
                volume.voxels[z],
                picture.outlines(by_side.get(side), z).items(),
                view=view,
                window=window,
                centre=(float(row), float(column)),
                mm=110.0 / size,
                size=(size, size),
                line=picture.THIN,
            )
            number = volume.sources[z].instance_number
            text = f"{wording.LETTER[side]}  image {number}, ratio {score.ratio:.3f}"
            found.append((tile, text))
    return found


def _overview(
    volume: Volume, view: picture.View, window: picture.Window, size: int
) -> list[tuple[Image.Image, str]]:
    count, height, width = volume.grid.shape
    _, dy, dx = volume.grid.spacing_mm
    mm = max(height * dy, width * dx) / size
    marks = _marks(view, 18)
    found = []
    for z in sorted({round(step) for step in np.linspace(0, count - 1, 6)[1:-1]}):
        tile = picture.draw(
            volume.voxels[z],
            (),
            view=view,
            window=window,
            centre=((height - 1) / 2, (width - 1) / 2),
            mm=mm,
            size=(size, size),
        )
        _mark(tile, marks)
        found.append((tile, f"image {volume.sources[z].instance_number}"))
    return found


def _height(lines: Sequence[_Line]) -> int:
    return _LINE * max(len(lines), 3) + 14


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(codes.plain(text), width)


class _Pen:
    """Writes on a picture, in the default repertoire."""

    def __init__(self, page: Image.Image) -> None:
        self.draw = ImageDraw.Draw(page)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        colour: _Colour = picture.TEXT,
        *,
        anchor: str = "la",
    ) -> None:
        """Write one line."""
        self.draw.text(at, codes.plain(text), colour, picture.font(size), anchor)

    def along(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        colour: _Colour = picture.TEXT,
    ) -> float:
        """Write something in a line; returns where it ends."""
        self.text(at, text, size, colour)
        return at[0] + self.draw.textlength(codes.plain(text), picture.font(size))

    def lines(
        self, at: tuple[int, int], lines: Sequence[_Line], size: int = 17, step: int = _LINE
    ) -> None:
        """Write lines below each other; rows of the table in columns."""
        for number, (line, colour) in enumerate(lines):
            place = (at[0], at[1] + number * step)
            if isinstance(line, str):
                self.text(place, line, size, colour)
                continue
            self.text(
                (place[0] + 12 * line.label.startswith(" "), place[1]),
                line.label.strip(),
                size,
                colour,
            )
            for offset, cell in zip((290, 380, 470), line[1:], strict=True):
                self.text((place[0] + offset, place[1]), cell, size, colour, anchor="ra")
