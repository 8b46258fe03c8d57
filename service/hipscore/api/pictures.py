"""The slices of a study as PNG, with outlines as transparent pictures to lay over them.

Slices are those of the volume that was scored, numbered from 1, anterior to posterior, turned
as a radiologist looks at them (:class:`hipscore.reporting.picture.View`). Pixels are not
resampled: a slice has as many as its image; the page stretches them to their true aspect.

Shape legend as in :mod:`hipscore.domain`; here ``Y`` and ``X`` are rows and columns on screen.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from hipscore.domain import (
    BoolArray,
    Channel,
    FloatArray,
    Grid,
    Side,
    SliceSource,
    Unsuitable,
)
from hipscore.header import read_image
from hipscore.reporting import codes
from hipscore.reporting.picture import View, Window
from hipscore.series import assemble
from hipscore.spool import Spool
from hipscore.store.slices import Sources

#: decoded studies are kept as long as they are not more than these, bytes and studies
MOST_BYTES = 256 * 1024 * 1024
MOST_STUDIES = 8
#: outlines are drawn at least so wide, pixels: smooth lines on a large screen
_OVERLAY_PIXELS = 768
_LINE = 2
#: opacity of the fill, of 255, ordered as Channel: the head must not veil what lies in it
_FILL = (38, 96, 96)
_BITS = {
    (side, channel): 1 << index
    for index, (side, channel) in enumerate((side, channel) for side in Side for channel in Channel)
}
_SEGMENTS = {codes.segment_label(side, channel): bit for (side, channel), bit in _BITS.items()}


class Style(StrEnum):
    """How structures are shown."""

    CONTOUR = "contour"
    FILLED = "filled"


class NoPicture(Exception):
    """There are images, but no stack of slices can be made of them; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The slices of one job, ready to be shown.

    ``voxels`` are ``(Z, Y, X)`` float32; ``labels`` ``(Z, Y, X)`` uint8 with a bit for each
    structure of each hip, or None without a SEG. ``pixel_mm`` are the height and the width
    of a pixel, ``letters`` the patient's sides at the left and right border.
    """

    voxels: FloatArray
    labels: NDArray[np.uint8] | None
    sources: tuple[SliceSource, ...]
    window: Window
    lowest: float
    highest: float
    letters: tuple[str, str]
    pixel_mm: tuple[float, float]

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return self.voxels.nbytes + (0 if self.labels is None else self.labels.nbytes)

    def grey(self, index: int, window: Window | None = None) -> bytes:
        """Slice ``index`` (from 0) as PNG of 256 greys."""
        return _png(Image.fromarray((window or self.window).apply(self.voxels[index])))

    def outlined(self, index: int) -> bool:
        """Whether anything was segmented in this slice."""
        return self.labels is not None and bool(self.labels[index].any())

    def overlay(self, index: int, style: Style) -> bytes:
        """Outlines (and fills) of the structures in slice ``index``, transparent elsewhere."""
        _, rows, columns = self.voxels.shape
        scale = max(1, -(-_OVERLAY_PIXELS // max(rows, columns)))
        drawn = np.zeros((rows * scale, columns * scale), dtype=np.uint8)
        if self.labels is not None:
            for channel in Channel:
                for side in Side:
                    mask = (self.labels[index] & _BITS[side, channel]) != 0
                    if mask.any():
                        _draw(drawn, mask, scale, channel, filled=style is Style.FILLED)
        picture = Image.fromarray(drawn)
        palette, opacity = _palette()
        picture.putpalette(palette)
        return _png(picture, transparency=opacity)


class Gallery:
    """Decodes studies and keeps the last few. Thread safe; one decodes, the others wait."""

    def __init__(
        self, spool: Spool, *, most_bytes: int = MOST_BYTES, most_studies: int = MOST_STUDIES
    ) -> None:
        self._spool = spool
        self._most_bytes = most_bytes
        self._most_studies = most_studies
        self._kept: OrderedDict[int, Stack] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[int, threading.Lock] = {}

    def stack(self, sources: Sources) -> Stack:
        """The slices of a job.

        Raises
        ------
        NoPicture
            If no stack can be made of the images.
        hipscore.spool.Corrupt, hipscore.domain.Transient
            If they cannot be read.
        """
        job_id = sources.job_id
        with self._lock:
            busy = self._busy.setdefault(job_id, threading.Lock())
        with busy:
            found = self._get(job_id)
            if found is None:
                found = self._decoded(sources)
                self._keep(job_id, found)
        with self._lock:
            self._busy.pop(job_id, None)
        return found

    def _get(self, job_id: int) -> Stack | None:
        with self._lock:
            found = self._kept.get(job_id)
            if found is not None:
                self._kept.move_to_end(job_id)
            return found

    def _keep(self, job_id: int, stack: Stack) -> None:
        with self._lock:
            self._kept[job_id] = stack
            while len(self._kept) > 1 and (
                len(self._kept) > self._most_studies
                or sum(each.size for each in self._kept.values()) > self._most_bytes
            ):
                self._kept.popitem(last=False)

    def _decoded(self, sources: Sources) -> Stack:
        images = [self._image(each.spool_key, each.sha256) for each in sources.images]
        seg = sources.seg
        made = None if seg is None else self._image(seg.spool_key, seg.sha256)
        return build(images, made)

    def _image(self, key: str, sha256: str) -> Dataset:
        return read_image(self._spool.read(key, sha256))


def build(images: list[Dataset], seg: Dataset | None) -> Stack:
    """Make the stack of the images of a series and its SEG.

    Raises
    ------
    NoPicture
        If the images are no regular stack that can be decoded.
    """
    try:
        # what is not fat-suppressed has no score, but can be looked at
        volume = assemble(images, protocol_check=False).volume
    except Unsuitable as error:
        raise NoPicture(error.text) from error
    view = View.canonical(volume.grid)
    labels = None if seg is None else _labels(seg, volume.grid, volume.sources)
    voxels: FloatArray = _turned(volume.voxels, view)
    sample = voxels[:, ::4, ::4]
    dy, dx = view.pixel_mm
    return Stack(
        voxels=voxels,
        labels=None if labels is None else _turned(labels, view),
        sources=volume.sources,
        window=Window.of(volume.voxels),
        lowest=float(sample.min()),
        highest=float(max(np.percentile(sample, 99.9), sample.min() + 1.0)),
        letters=view.letters,
        pixel_mm=(dx, dy) if view.swapped else (dy, dx),
    )


def _turned(stack: NDArray[Any], view: View) -> NDArray[Any]:
    """``(Z, Y, X)`` of the source as it is shown."""
    rows = slice(None) if view.rows_forward else slice(None, None, -1)
    columns = slice(None) if view.columns_forward else slice(None, None, -1)
    if view.swapped:
        # the view's columns run along the source rows
        return np.ascontiguousarray(stack.transpose(0, 2, 1)[:, rows, columns])
    return np.ascontiguousarray(stack[:, rows, columns])


def _labels(seg: Dataset, grid: Grid, sources: tuple[SliceSource, ...]) -> NDArray[np.uint8]:
    """Bits of the structures ``(Z, Y, X)`` of a SEG of :mod:`hipscore.reporting.seg`."""
    places = {(source.sop_instance_uid, source.frame_number): z for z, source in enumerate(sources)}
    bits = {
        int(item.SegmentNumber): _SEGMENTS.get(str(item.SegmentLabel), 0)
        for item in seg.SegmentSequence
    }
    frames = seg.pixel_array
    if frames.ndim == 2:
        frames = frames[np.newaxis]
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        number = source.get("ReferencedFrameNumber")
        uid = str(source.ReferencedSOPInstanceUID)
        z = places[uid, None if number is None else int(number)]
        bit = bits[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        labels[z] |= np.where(frame != 0, np.uint8(bit), np.uint8(0))
    return labels


def _draw(
    drawn: NDArray[np.uint8], mask: BoolArray, scale: int, channel: Channel, *, filled: bool
) -> None:
    """Write a structure into a picture of palette indices."""
    rows, columns = mask.shape
    source = Image.fromarray(mask.astype(np.uint8) * 255)
    size = (columns * scale, rows * scale)
    inside = np.asarray(source.resize(size, Image.Resampling.BILINEAR)) >= 128
    core = inside
    for _ in range(_LINE):
        core = _eroded(core)
    if filled:
        drawn[inside] = 1 + len(Channel) + channel
    drawn[inside & ~core] = 1 + channel


def _eroded(mask: BoolArray) -> BoolArray:
    """The pixels all four neighbours of which are set; beyond the picture none is."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _palette() -> tuple[list[int], bytes]:
    """Colours and opacities: nothing, the lines, the fills."""
    colours = [codes.STRUCTURES[channel].rgb for channel in Channel]
    palette = [value for rgb in ((0, 0, 0), *colours, *colours) for value in rgb]
    return palette, bytes([0, *(255 for _ in Channel), *_FILL])


def _png(picture: Image.Image, **more: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=1, **more)
    return buffer.getvalue()
