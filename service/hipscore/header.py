"""The header of a received object, read without decoding it: identity and geometry.

Only the elements named here are taken, as the bytes they are, up to Number of Frames
(0028,0008); pixel data and everything behind are never touched.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from hipscore.domain import Point, ReceivedInstance

# PS3.5 9.1. Components with a leading zero are not allowed there, but real devices send
# them, and refusing the images of such a device helps nobody.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64

_TRANSFER_SYNTAX = Tag(0x0002, 0x0010)
_IMAGE_TYPE = Tag(0x0008, 0x0008)
_SOP_CLASS = Tag(0x0008, 0x0016)
_SOP_INSTANCE = Tag(0x0008, 0x0018)
_STUDY = Tag(0x0020, 0x000D)
_SERIES = Tag(0x0020, 0x000E)
_NUMBER = Tag(0x0020, 0x0013)
_POSITION = Tag(0x0020, 0x0032)
_ORIENTATION = Tag(0x0020, 0x0037)
_IN_ACQUISITION = Tag(0x0020, 0x1002)
_FRAMES = Tag(0x0028, 0x0008)
_WANTED: list[BaseTag | int] = [
    _IMAGE_TYPE,
    _SOP_CLASS,
    _SOP_INSTANCE,
    _STUDY,
    _SERIES,
    _NUMBER,
    _POSITION,
    _ORIENTATION,
    _IN_ACQUISITION,
    _FRAMES,
]

_GROUP_PIXELS = Tag(0x7FE0, 0x0000)

_MAX_INTEGER = 2**31 - 1  # PS3.5 table 6.2-1, VR IS


class Unreadable(Exception):
    """The object cannot be kept: its header does not say what it is or where it belongs."""


def is_uid(text: str) -> bool:
    """Whether this is a UID: digits in components separated by dots, at most 64 characters."""
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None


def read_header(data: bytes | bytearray) -> ReceivedInstance:
    """Read identity and geometry of one Part 10 object.

    Parameters
    ----------
    data
        The whole object in the DICOM File Format (PS3.10 7.1).

    Returns
    -------
    ReceivedInstance
        With the SHA-256 of ``data``. Geometry that is absent or malformed is None: it is
        only evidence for completeness, and the analysis judges it with its own words.

    Raises
    ------
    Unreadable
        If the data set cannot be parsed up to (0028,0008), or has no valid Study, Series
        or SOP Instance UID, SOP Class UID or Transfer Syntax UID.
    """
    try:
        dataset = read_partial(BytesIO(data), stop_when=_behind_frames, specific_tags=_WANTED)
    except Exception as error:
        # A hostile or broken header can fail anywhere inside the parser; whatever it
        # raises means the same to the sender.
        msg = f"the data set cannot be parsed: {type(error).__name__}"
        raise Unreadable(msg) from error
    frames = _integer(dataset, _FRAMES)
    return ReceivedInstance(
        study_instance_uid=_uid(dataset, _STUDY, "Study Instance UID (0020,000D)"),
        series_instance_uid=_uid(dataset, _SERIES, "Series Instance UID (0020,000E)"),
        sop_class_uid=_uid(dataset, _SOP_CLASS, "SOP Class UID (0008,0016)"),
        sop_instance_uid=_uid(dataset, _SOP_INSTANCE, "SOP Instance UID (0008,0018)"),
        transfer_syntax_uid=_uid(
            dataset.file_meta, _TRANSFER_SYNTAX, "Transfer Syntax UID (0002,0010)"
        ),
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        instance_number=_integer(dataset, _NUMBER),
        number_of_frames=frames if frames is not None and frames > 0 else 1,
        images_in_acquisition=_integer(dataset, _IN_ACQUISITION),
        position_mm=_position(dataset),
        orientation=_decimals(dataset, _ORIENTATION, 6),
        image_type=tuple(_strings(dataset, _IMAGE_TYPE)),
    )


def read_image(data: bytes) -> Dataset:
    """Read the whole of one Part 10 object, as far as it can be parsed.

    Parameters
    ----------
    data
        The object in the DICOM File Format, with a header that :func:`read_header` takes.

    Returns
    -------
    Dataset
        All elements; where one in the middle cannot be parsed, those in front of it. What
        is missing then is judged like anything that is missing.

    Raises
    ------
    Unreadable
        If there is no File Meta Information.
    """
    seen = 0

    def count(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal seen
        del tag, vr, length
        seen += 1
        return False

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        return not count(tag, vr, length) and seen >= damaged

    try:
        whole = _read(data, count)
    except Exception:  # noqa: BLE001 - as in read_header: whatever the bytes provoke
        whole = None
    # pydicom keeps no element at all where the data end inside one
    if whole is not None and (len(whole) or not seen):
        return whole
    damaged, seen = seen, 0
    try:
        return _read(data, stop)
    except Exception as error:
        msg = f"the object cannot be parsed: {type(error).__name__}"
        raise Unreadable(msg) from error


def read_leading(data: bytes) -> Dataset:
    """Read what stands before the pixel data of one Part 10 object, as far as it can be parsed.

    Raises
    ------
    Unreadable
        If not even its beginning can be parsed.
    """
    try:
        return _read(data, _pixels)
    except Exception:  # noqa: BLE001 - as in read_header: whatever the bytes provoke
        whole = read_image(data)  # that much of it as can be parsed
        return whole[:_GROUP_PIXELS]


def _pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    del vr, length
    return bool(tag >= _GROUP_PIXELS)


def _read(data: bytes, stop_when: Callable[[BaseTag, str | None, int], bool]) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is judged here and later
        return read_partial(BytesIO(data), stop_when=stop_when)


def _behind_frames(tag: BaseTag, vr: str | None, length: int) -> bool:
    del vr, length
    return bool(tag > _FRAMES)


def _strings(dataset: Dataset, tag: BaseTag) -> list[str]:
    """Return the values of a text element, from its raw bytes; empty if absent or not ASCII."""
    if tag not in dataset:
        return []
    value = dataset.get_item(tag).value
    try:
        # pydicom has decoded elements of the file meta that it needed itself
        text = value if isinstance(value, str) else bytes(value).decode("ascii")
    except (TypeError, UnicodeDecodeError):
        return []
    return [part.strip(" \0") for part in text.split("\\")] if text.strip(" \0") else []


def _uid(dataset: Dataset, tag: BaseTag, name: str) -> str:
    values = _strings(dataset, tag)
    if not values:
        msg = f"{name} is missing"
        raise Unreadable(msg)
    if len(values) > 1 or not is_uid(values[0]):
        # what stands there instead may be anything, a name too: it is not repeated
        msg = f"{name} is not a UID"
        raise Unreadable(msg)
    return values[0]


def _integer(dataset: Dataset, tag: BaseTag) -> int | None:
    values = _strings(dataset, tag)
    if len(values) != 1 or re.fullmatch(r"[+-]?[0-9]{1,11}", values[0]) is None:
        return None
    number = int(values[0])
    return number if abs(number) <= _MAX_INTEGER else None


def _decimals(dataset: Dataset, tag: BaseTag, count: int) -> tuple[float, ...] | None:
    values = _strings(dataset, tag)
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        return None
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        return None
    return numbers


def _position(dataset: Dataset) -> Point | None:
    numbers = _decimals(dataset, _POSITION, 3)
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])
