"""Attributes by the names that operators write, wherever in an image they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from hipscore.attributes import first_item, items, texts

#: attributes outside group 0010 that tell of whom, or of which order, an image is
_IDENTIFYING = frozenset(
    {"AccessionNumber", "StudyID", "RequestedProcedureID", "ScheduledProcedureStepID"}
)


def tag_of(name: str) -> BaseTag | None:
    """The tag that a keyword or ``(gggg,eeee)`` names; None if it names none."""
    if found := re.fullmatch(r"\(?([0-9A-Fa-f]{4}),([0-9A-Fa-f]{4})\)?", name.strip()):
        return Tag(int(found[1], 16), int(found[2], 16))
    tag = tag_for_keyword(name)
    return None if tag is None else Tag(tag)


def identifies(name: str) -> bool:
    """Whether the values of an attribute may tell of whom, or of which order, an image is."""
    tag = tag_of(name)
    if tag is None or tag.group == 0x0010 or keyword_for_tag(tag) in _IDENTIFYING:
        return True
    try:
        return dictionary_VR(tag) == "PN"
    except KeyError:  # private: whoever asks for it knows what it holds
        return False


def values(header: Dataset, path: Sequence[str]) -> list[str]:
    """Texts of an attribute; of a sequence, how many items it has. Empty where it is absent.

    ``path`` leads from the outermost sequence inwards. What is not at the top level is looked
    for in the functional groups of a multi-frame image.
    """
    found = (_at(holder, path) for holder in _holders(header))
    return next(filter(None, found), [])


def _holders(header: Dataset) -> Iterator[Dataset]:
    """The image, then its functional groups (PS3.3 C.7.6.16): the first frame's, the shared."""
    yield header
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = first_item(header, keyword)
        for tag in groups.keys():  # noqa: SIM118 - a data set iterates over elements, decoded
            if inner := keyword_for_tag(tag):
                yield from items(groups, inner)[:1]


def _at(dataset: Dataset, path: Sequence[str]) -> list[str]:
    tag = tag_of(path[0])
    if tag is None or tag not in dataset:
        return []
    keyword = keyword_for_tag(tag)
    if not keyword:
        return _private(dataset, tag)
    inner = items(dataset, keyword)
    if len(path) > 1:
        return [value for item in inner for value in _at(item, path[1:])]
    return [f"{len(inner)} items"] if inner else texts(dataset, keyword)


def _private(dataset: Dataset, tag: BaseTag) -> list[str]:
    """An attribute that the standard does not name; in Implicit VR its bytes, as text."""
    try:
        value = dataset[tag].value
    except Exception:  # noqa: BLE001 - as in attributes: a conversion raises what bytes provoke
        return []
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    several = value if isinstance(value, list | tuple) else [value]
    stripped = (str(each).strip(" \0") for each in several if each is not None)
    return [each for each in stripped if each]
