"""Attributes of images that anybody may have written: a value, or nothing; never an error.

Pydicom converts an attribute when it is first looked at, and raises whatever its bytes
provoke. The core decides about a series by reading through this module, so that a
header in disorder becomes a reason and not a crash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import PersonName

#: PS3.5 table 6.2-1, VR IS: no integer of the standard is larger
_MAX_INTEGER = 2**31 - 1


def _values(dataset: Dataset, keyword: str) -> list[object] | None:
    """All values of an attribute; empty where absent or empty, None where unreadable."""
    try:
        value = dataset.get(keyword)
    except Exception:  # noqa: BLE001 - a conversion raises what the bytes provoke
        return None
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Dataset | PersonName):
        return list(value)
    return [value]


def texts(dataset: Dataset, keyword: str) -> list[str]:
    """All values of a text attribute, without padding; empty where absent or unreadable."""
    values = (str(value).strip(" \0") for value in _values(dataset, keyword) or [])
    return [value for value in values if value]


def text(dataset: Dataset, keyword: str) -> str:
    """First value of a text attribute; empty where absent or unreadable."""
    return next(iter(texts(dataset, keyword)), "")


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """All values of a numeric attribute; empty where absent, NaN for what is no number."""
    values = _values(dataset, keyword)
    return [math.nan] if values is None else [_number(value) for value in values]


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Only value of an integer attribute; None where absent, several or not an integer."""
    values = numbers(dataset, keyword)
    if len(values) != 1 or not values[0].is_integer() or abs(values[0]) > _MAX_INTEGER:
        return None
    return int(values[0])


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; empty where it is absent, unreadable or no sequence."""
    try:
        value = dataset.get(keyword)
        return list(value) if isinstance(value, DicomSequence) else []
    except Exception:  # noqa: BLE001 - as in _values: a nested data set may be cut short
        return []


def first_item(dataset: Dataset, keyword: str) -> Dataset:
    """First item of a sequence, or an empty data set."""
    return next(iter(items(dataset, keyword)), Dataset())


def group(shared: Dataset, own: Dataset, keyword: str) -> Dataset:
    """A functional group (PS3.3 C.7.6.16): the frame's own, else the shared one, else empty."""
    return first_item(own if keyword in own else shared, keyword)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # what cannot be converted is NaN
    except (TypeError, ValueError, OverflowError):
        return math.nan
