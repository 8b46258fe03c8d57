"""Pictures for an expert's review of the automatic outlines, one per slice and hip.

Two folders: ``experts`` (pictures, a page to read them on, an empty sheet) is handed out,
``key.csv`` stays. Nothing that is handed out names a patient, a file or a score.
"""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from hipscore.domain import RESEARCH_USE, BoolArray, Channel, Hip, Segmenter, Side, Volume
from hipscore.pipeline import Analysis, Options, analyse
from hipscore.reporting import codes, picture
from hiptrain.anatomy import read_images
from hiptrain.review_page import index_page
from hiptrain.review_tally import columns

_PANEL = 620
_MARGIN = 16
_TOP, _BOTTOM = 64, 84
_SCALE_MM = 20
_QUALITY = 92

_BACKGROUND = (12, 12, 14)
_TEXT = (235, 235, 235)
_DIM = (165, 165, 170)
_MARK = (255, 196, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The images of one series: files, or an archive."""

    name: str
    files: tuple[Path, ...]

    def read(self) -> list[Dataset]:
        """All images with their pixels."""
        if len(self.files) == 1 and tarfile.is_tarfile(self.files[0]):
            return read_images(self.files[0])
        return [dcmread(path) for path in self.files]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One slice of one hip, as the key remembers it. Areas in mm²."""

    case: str
    source: str
    series_instance_uid: str
    sop_instance_uid: str
    side: str
    slice_index: int
    instance_number: int
    scored: bool
    head_mm2: float
    bme_mm2: float
    synovitis_mm2: float
    picture: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One analysed series: its slices, or why there are none."""

    name: str
    source: str
    pictures: int
    reason: str = ""


# --- cases ----------------------------------------------------------------------------
def sources(paths: Sequence[Path]) -> list[Source]:
    """Series in files, folders (whatever lies below) and tar archives of one series each.

    Raises
    ------
    ValueError
        If there is no DICOM image.
    """
    found: dict[str, list[Path]] = {}
    archives = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            if ".tar" in file.suffixes or file.suffix == ".tgz":
                archives.append(Source(name=str(file), files=(file,)))
                continue
            uid = _series_uid(file)
            if uid:
                found.setdefault(uid, []).append(file)
    series = [Source(name=str(files[0].parent), files=tuple(files)) for files in found.values()]
    if not series and not archives:
        raise ValueError(f"no DICOM image in {', '.join(map(str, paths))}")
    return sorted(series + archives, key=lambda item: item.name)


def _series_uid(path: Path) -> str:
    try:
        wanted = ["SeriesInstanceUID", "Rows"]
        header = dcmread(path, stop_before_pixels=True, specific_tags=wanted)
    except (InvalidDicomError, OSError, ValueError):
        return ""
    return str(header.get("SeriesInstanceUID", "")) if "Rows" in header else ""


def make(
    series: Sequence[Source],
    segmenter: Segmenter,
    out: Path,
    *,
    blind: bool = False,
    everything: bool = False,
    protocol_check: bool = True,
    seed: int = 0,
    done: Callable[[int], object] = lambda _: None,
) -> list[Case]:
    """Analyse the series as the service does, and write pictures, page, sheet and key.

    Parameters
    ----------
    blind
        Pictures without outlines, in an order mixed over all cases: for an expert who judges
        whether there is a lesion without having seen what was marked.
    everything
        Every slice with a segmented head or lesion, not only those that were scored.
    seed
        Of the order of cases (and pictures). Keep it to yourself.
    done
        Called with 1 after each series.

    Returns
    -------
    list of Case
        In the order of ``series``.

    Raises
    ------
    ValueError
        If ``out`` holds pictures already.
    """
    experts = out / "experts"
    pictures = experts / "pictures"
    if pictures.exists() and any(pictures.iterdir()):
        raise ValueError(f"{pictures} holds pictures already; choose an empty folder")
    pictures.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(len(series)) + 1
    cases: list[Case] = []
    slices: list[Slice] = []
    for source, number in zip(series, numbers, strict=True):
        name = f"{number:03d}"
        reason, own = "", []
        try:
            analysis = _analysed(source, segmenter, protocol_check=protocol_check)
            own = _draw_case(analysis, source, name, pictures, blind=blind, everything=everything)
            reason = analysis.findings.reason.text if analysis.findings.reason else ""
        except ValueError as error:
            reason = str(error)
        cases.append(Case(name=name, source=source.name, pictures=len(own), reason=reason))
        slices += own
        done(1)
    named = _number(slices, pictures, rng if blind else None)
    _write_rows(out / "key.csv", [field.name for field in fields(Slice)], map(asdict, named))
    sheet = columns(outlines=not blind)
    empty = ({**dict.fromkeys(sheet, ""), "picture": item.picture} for item in named)
    _write_rows(experts / "review.csv", sheet, empty)
    page = index_page([item.picture for item in named], blind=blind)
    (experts / "index.html").write_text(page, encoding="utf-8")
    return cases


def _analysed(source: Source, segmenter: Segmenter, *, protocol_check: bool) -> Analysis:
    images = source.read()
    if any(str(image.get("BurnedInAnnotation", "")).upper() == "YES" for image in images):
        raise ValueError("the images have text burned in, which may name the patient")
    return analyse(images, segmenter, options=Options(protocol_check=protocol_check))


def _draw_case(
    analysis: Analysis, source: Source, case: str, out: Path, *, blind: bool, everything: bool
) -> list[Slice]:
    """Draw all slices of a case under provisional names; the order is mixed afterwards."""
    volume = analysis.volume
    if volume is None:
        return []
    masks = {item.side: item.voxels for item in analysis.masks}
    window, view = picture.Window.of(volume.voxels), picture.View.canonical(volume.grid)
    series_uid = str(analysis.images[0].get("SeriesInstanceUID", ""))
    made = []
    for hip in sorted(analysis.findings.hips, key=lambda item: list(Side).index(item.hip.side)):
        side = hip.hip.side
        scored = {item.slice_index for item in hip.slices}
        chosen = sorted(scored)
        if everything:
            chosen = np.flatnonzero(masks[side].any(axis=(0, 2, 3))).tolist()
        for place, z in enumerate(chosen, start=1):
            label = "" if blind else f"case {case}, slice {place} of {len(chosen)} front to back"
            image = slice_picture(
                volume,
                masks[side][:, z],
                hip.hip,
                z,
                view=view,
                window=window,
                label=label,
                outlines=not blind,
            )
            name = f"{case}-{side.value}-{z:03d}.part.jpg"
            image.save(out / name, format="JPEG", quality=_QUALITY, subsampling=0)
            areas = masks[side][:, z].sum(axis=(1, 2)) * volume.grid.pixel_mm2
            made.append(
                Slice(
                    case=case,
                    source=source.name,
                    series_instance_uid=series_uid,
                    sop_instance_uid=volume.sources[z].sop_instance_uid,
                    side=side.value,
                    slice_index=z,
                    instance_number=volume.sources[z].instance_number,
                    scored=z in scored,
                    head_mm2=round(float(areas[Channel.FEMORAL_HEAD]), 1),
                    bme_mm2=round(float(areas[Channel.BME]), 1),
                    synovitis_mm2=round(float(areas[Channel.SYNOVITIS]), 1),
                    picture=name,
                )
            )
    return made


def _number(slices: Sequence[Slice], out: Path, rng: np.random.Generator | None) -> list[Slice]:
    """Give the pictures their final names: by case, or mixed."""
    ordered = sorted(slices, key=lambda item: (item.case, item.side != "right", item.slice_index))
    if rng is not None:
        ordered = [ordered[place] for place in rng.permutation(len(ordered))]
    named = []
    for number, item in enumerate(ordered, start=1):
        name = f"p{number:04d}"
        (out / item.picture).rename(out / f"{name}.jpg")
        named.append(Slice(**{**asdict(item), "picture": name}))
    return named


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, header)
        writer.writeheader()
        writer.writerows(rows)


# --- pictures -------------------------------------------------------------------------
def slice_picture(
    volume: Volume,
    masks: BoolArray,
    hip: Hip,
    z: int,
    *,
    view: picture.View,
    window: picture.Window,
    label: str = "",
    outlines: bool = True,
) -> Image.Image:
    """One slice around one hip: as it is, and beside it with outlines.

    Parameters
    ----------
    masks
        ``(K, Y, X)`` bool, this slice's structures.
    label
        Written above; must not identify the patient.
    outlines
        False: the slice as it is, alone.
    """
    count = 2 if outlines else 1
    width = count * _PANEL + (count + 1) * _MARGIN
    sheet = Image.new("RGB", (width, _TOP + _PANEL + _BOTTOM), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), f"{hip.side.value.capitalize()} hip", _TEXT, _font(24))
    draw.text((width - _MARGIN, 14), codes.plain(label), _DIM, _font(18), anchor="ra")
    _, y, x = volume.grid.to_index(hip.centre_mm)
    mm = float(np.clip(2.1 * hip.radius_mm, 36.0, 60.0)) * 2 / _PANEL
    drawn = {codes.STRUCTURES[channel].rgb: masks[channel] for channel in Channel}
    for number, (title, shown) in enumerate((("image", {}), ("outlines", drawn))[:count]):
        left = _MARGIN + number * (_PANEL + _MARGIN)
        tile = picture.draw(
            volume.voxels[z],
            shown.items(),
            view=view,
            window=window,
            centre=(float(y), float(x)),
            mm=mm,
            size=(_PANEL, _PANEL),
        )
        sheet.paste(tile, (left, _TOP))
        draw.text((left, _TOP - 22), title if outlines else "", _DIM, _font(16))
        for letter, at, anchor in zip(
            view.letters, (left + 8, left + _PANEL - 8), ("lm", "rm"), strict=True
        ):
            place = (at, _TOP + _PANEL / 2)
            draw.text(
                place, letter, _MARK, _font(24), anchor, stroke_width=3, stroke_fill=(0, 0, 0)
            )
    _scale(draw, mm)
    if outlines:
        _legend(draw, masks, _MARGIN + _PANEL + _MARGIN)
    bottom = _TOP + _PANEL + _BOTTOM
    draw.text((_MARGIN, bottom - 28), f"{RESEARCH_USE}.", _MARK, _font(16))
    return sheet


def _scale(draw: ImageDraw.ImageDraw, mm: float) -> None:
    y, right = _TOP + _PANEL + 16, _MARGIN + _SCALE_MM / mm
    draw.line((_MARGIN, y, right, y), _TEXT, 3)
    draw.text((right + 10, y), f"{_SCALE_MM} mm", _TEXT, _font(16), anchor="lm")


def _legend(draw: ImageDraw.ImageDraw, masks: BoolArray, left: int) -> None:
    """What the colours are, and what is marked in this slice, so that no outline is missed."""
    y = _TOP + _PANEL + 8
    for channel in Channel:
        structure = codes.STRUCTURES[channel]
        marked = bool(masks[channel].any())
        draw.rectangle((left, y + 2, left + 20, y + 16), outline=structure.rgb, width=3)
        noun = structure.noun if marked else f"{structure.noun}: none marked"
        draw.text((left + 28, y), noun, _TEXT if marked else _DIM, _font(17))
        y += 24


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
