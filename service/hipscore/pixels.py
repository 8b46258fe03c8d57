"""Pixel data of one image, decoded and rescaled; what a stream claims is checked first."""

from __future__ import annotations

import math
import struct
import warnings
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, RLELossless

from hipscore.attributes import integer, text
from hipscore.domain import FloatArray, ReasonCode, Unsuitable

StoredArray: TypeAlias = NDArray[Any]

#: one rescaled value above this is no MR signal, and sums of them overflow
MAX_VALUE = 1e9
#: MR images have 16 (PS3.3 C.8.3.1.1.4); twice as many are borne with
MAX_BITS = 32
#: each tile of a JPEG 2000 stream costs a decoder kilobytes before it has read any
_MAX_TILES = 1024
#: first bytes of a stream that hold its size, whatever comments come before
_HEAD = 65536
#: start of codestream and the marker of its size, ITU-T T.800 A.4.1, A.5.1
_SIZ = b"\xff\x4f\xff\x51"


class Claim(NamedTuple):
    """What a compressed stream says it holds."""

    rows: int
    columns: int
    components: int
    tiles: int = 1


def check_grey(image: Dataset) -> None:
    """Raise ``unsupported_pixel_data`` for what is not one plane of grey values."""
    photometric = text(image, "PhotometricInterpretation")
    samples = integer(image, "SamplesPerPixel")
    if photometric != "MONOCHROME2" or samples != 1:
        words = (
            f"photometric interpretation {photometric or 'missing'} with {samples} samples per "
            "pixel; MONOCHROME2 with 1 is needed"
        )
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    bits = integer(image, "BitsAllocated")
    if bits is None or not 0 < bits <= MAX_BITS:
        words = f"{bits if bits is not None else 'no'} bits allocated for a pixel"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)


def frames(image: Dataset, count: int, rows: int, columns: int) -> list[StoredArray]:
    """Decode the first ``count`` frames of ``image``, each ``(Y, X)``, stored values.

    Raises
    ------
    Unsuitable
        ``unsupported_pixel_data`` where the pixel data is missing, cut short, of a
        transfer syntax that no decoder knows, or of another size than the header says.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd lengths and padding that pydicom copes with
            _check_claims(image, count, rows, columns)
            decoded = list(islice(iter_pixels(image), count))
    except (Unsuitable, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the RLE decoder, which is Rust, is no Exception
        words = f"{_transfer_syntax(image)} pixel data cannot be decoded ({type(error).__name__})"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words) from error
    if len(decoded) < count:
        words = f"pixel data of {len(decoded)} frames where {count} are claimed"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    return decoded


def rescaled(pixels: StoredArray, slope: float, intercept: float) -> FloatArray:
    """Stored values ``(Y, X)`` to float32 output values (PS3.3 C.11.1.1.2).

    Raises
    ------
    Unsuitable
        ``unsupported_pixel_data`` where a value is beyond :data:`MAX_VALUE` or not finite.
    """
    unscaled = slope == 1.0 and intercept == 0.0 and pixels.dtype.kind in "iu"
    values = pixels if unscaled else pixels * np.float64(slope)
    if not unscaled:
        values += np.float64(intercept)
    largest = max(float(values.max()), -float(values.min()))
    if not largest <= MAX_VALUE:
        words = f"pixel values reach {largest:g} after rescaling"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    return values.astype(np.float32)


def _transfer_syntax(image: Dataset) -> str:
    meta = getattr(image, "file_meta", None)
    return UID(text(meta, "TransferSyntaxUID")).name if meta else "unknown"


def _check_claims(image: Dataset, count: int, rows: int, columns: int) -> None:
    """Raise ``unsupported_pixel_data`` for a compressed frame that is more than its image.

    A decoder believes what the stream says and allocates it before anybody compares.
    """
    syntax = image.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    for stream in islice(generate_frames(image.PixelData, number_of_frames=count), count):
        # RLE streams have no size of their own: the image's is used (PS3.5 annex G)
        claim = None if syntax == RLELossless else claimed(stream[:_HEAD])
        if claim is None and syntax != RLELossless:
            raise Unsuitable(
                ReasonCode.UNSUPPORTED_PIXEL_DATA, f"a compressed frame is no {syntax.name} stream"
            )
        if claim is not None and (
            claim[:3] != (rows, columns, 1) or not 0 < claim.tiles <= _MAX_TILES
        ):
            words = (
                f"a compressed frame of {claim.rows}×{claim.columns} pixels with "
                f"{claim.components} components in {claim.tiles} tiles, in an image of "
                f"{rows}×{columns} pixels with 1"
            )
            raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)


def claimed(stream: bytes) -> Claim | None:
    """What a JPEG, JPEG-LS or JPEG 2000 stream claims to hold; None for other streams.

    ITU-T T.81 B.2.2 (frame header), T.87 C.2.2, T.800 A.5.1 (SIZ).
    """
    if stream.startswith(b"\xff\xd8"):
        return _jpeg_claim(stream)
    # some devices wrap the codestream in the boxes of a JP2 file
    boxed = stream.startswith(b"\x00\x00\x00\x0cjP  ")
    siz = stream.find(_SIZ) if boxed else 0
    if siz < 0 or not stream.startswith(_SIZ, siz) or len(stream) < siz + 42:
        return None
    right, bottom, left, top, wide, high, first, above = struct.unpack_from(">8L", stream, siz + 8)
    if not wide or not high:
        return None
    return Claim(
        bottom - top,
        right - left,
        int.from_bytes(stream[siz + 40 : siz + 42], "big"),
        math.ceil((right - first) / wide) * math.ceil((bottom - above) / high),
    )


def _jpeg_claim(stream: bytes) -> Claim | None:
    """Walk the marker segments up to the frame header (SOF0-15 but DHT, JPG, DAC; SOF55)."""
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            rows, columns, components = struct.unpack_from(">HHB", stream, at + 5)
            return Claim(rows, columns, components)
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
