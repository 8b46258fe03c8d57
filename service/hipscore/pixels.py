"""Pixel data of one image, decoded and rescaled; what a stream claims is checked first."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from hipscore.attributes import integer, text
from hipscore.domain import FloatArray, ReasonCode, Unsuitable

StoredArray: TypeAlias = NDArray[Any]

#: one rescaled value above this is no MR signal, and sums of them overflow
MAX_VALUE = 1e9
#: first bytes of a stream that hold its size, whatever comments come before
_HEAD = 65536
#: start of codestream and the marker of its size, ITU-T T.800 A.4.1, A.5.1
_SIZ = b"\xff\x4f\xff\x51"


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
    except Unsuitable:
        raise
    except Exception as error:
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
    values = pixels * np.float64(slope) + np.float64(intercept)
    if not np.abs(values).max() <= MAX_VALUE:
        words = f"pixel values reach {np.abs(values).max():g} after rescaling"
        raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)
    return values.astype(np.float32)


def _transfer_syntax(image: Dataset) -> str:
    meta = getattr(image, "file_meta", None)
    return UID(text(meta, "TransferSyntaxUID")).name if meta else "unknown"


def _check_claims(image: Dataset, count: int, rows: int, columns: int) -> None:
    """Raise ``unsupported_pixel_data`` for a compressed frame larger than its image.

    A decoder believes the size in the stream and allocates it before anybody compares.
    """
    if not image.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    for stream in islice(generate_frames(image.PixelData, number_of_frames=count), count):
        claimed = claimed_size(stream[:_HEAD])
        if claimed is not None and claimed != (rows, columns):
            words = f"a compressed frame of {claimed} pixels in an image of {(rows, columns)}"
            raise Unsuitable(ReasonCode.UNSUPPORTED_PIXEL_DATA, words)


def claimed_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) a JPEG, JPEG-LS or JPEG 2000 stream claims; None for other streams.

    ITU-T T.81 B.2.2 (frame header), T.87 C.2.2, T.800 A.5.1 (SIZ).
    """
    if stream.startswith(b"\xff\xd8"):
        return _jpeg_size(stream)
    # some devices wrap the codestream in the boxes of a JP2 file
    boxed = stream.startswith(b"\x00\x00\x00\x0cjP  ")
    siz = stream.find(_SIZ) if boxed else 0
    if siz < 0 or not stream.startswith(_SIZ, siz) or len(stream) < siz + 24:
        return None
    right, bottom, left, top = (
        int.from_bytes(stream[siz + at : siz + at + 4], "big") for at in (8, 12, 16, 20)
    )
    return bottom - top, right - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Walk the marker segments up to the frame header (SOF0-15 but DHT, JPG, DAC; SOF55)."""
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            rows = int.from_bytes(stream[at + 5 : at + 7], "big")
            return rows, int.from_bytes(stream[at + 7 : at + 9], "big")
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
