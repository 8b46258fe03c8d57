"""Image library of the SR (TID 1600): which images were read, and their geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hipscore.reporting import codes, source

_CONTAINS = RelationshipTypeValues.CONTAINS
_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT

#: concept, value, unit; a UID has no unit
_Descriptor: TypeAlias = tuple[Code, float | str, Code | None]


def image_library(images: Sequence[Dataset]) -> ContainerContentItem:
    """Build the library of the images, in their order.

    What images share (TID 1602, TID 1604) stands once per group; each entry adds its
    position. Attributes an image lacks, or that are no numbers, are left out: a series
    that cannot be scored for its headers still gets its report.
    """
    groups: dict[tuple[_Descriptor, ...], list[Dataset]] = {}
    for image in images:
        groups.setdefault(tuple(_shared(image)), []).append(image)
    library = _container(codes.IMAGE_LIBRARY)
    for descriptors, members in groups.items():
        group = _container(codes.IMAGE_LIBRARY_GROUP)
        for image in members:
            if str(image.get("Modality")) == "MR":
                modality = Code("MR", "DCM", "Magnetic Resonance")
                group.ContentSequence.append(
                    CodeContentItem(codes.MODALITY, modality, relationship_type=_CONTEXT)
                )
                break
        group.ContentSequence.extend(_items(descriptors))
        group.ContentSequence.extend(_entry(image) for image in members)
        library.ContentSequence.append(group)
    return library


def _container(name: Code) -> ContainerContentItem:
    item = ContainerContentItem(name, relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence()
    return item


def _entry(image: Dataset) -> ImageContentItem:
    item = ImageContentItem(
        codes.SOURCE,
        referenced_sop_class_uid=str(image.SOPClassUID),
        referenced_sop_instance_uid=str(image.SOPInstanceUID),
        relationship_type=_CONTAINS,
    )
    position = _numbers(image, "ImagePositionPatient", len(codes.POSITION))
    if position:
        item.ContentSequence = ContentSequence(
            _items(
                [
                    (code, value, codes.MM)
                    for code, value in zip(codes.POSITION, position, strict=True)
                ]
            )
        )
    return item


def _shared(image: Dataset) -> Iterable[_Descriptor]:
    """Yield TID 1602 and TID 1604 descriptors of one image, whichever it has."""
    yield codes.FRAME_OF_REFERENCE, source.frame_of_reference(image), None
    for code, keyword in ((codes.ROWS, "Rows"), (codes.COLUMNS, "Columns")):
        for value in _numbers(image, keyword, 1):
            yield code, value, codes.PIXELS
    spacing = _numbers(image, "PixelSpacing", 2)
    if spacing:
        yield codes.HORIZONTAL_SPACING, spacing[1], codes.MM
        yield codes.VERTICAL_SPACING, spacing[0], codes.MM
    for code, keyword in (
        (codes.SLICE_THICKNESS, "SliceThickness"),
        (codes.SLICE_SPACING, "SpacingBetweenSlices"),
    ):
        for value in _numbers(image, keyword, 1):
            yield code, value, codes.MM
    orientation = _numbers(image, "ImageOrientationPatient", len(codes.ORIENTATION))
    for code, value in zip(codes.ORIENTATION, orientation, strict=False):
        yield code, value, codes.COSINE


def _items(descriptors: Iterable[_Descriptor]) -> list[ContentItem]:
    return [
        UIDRefContentItem(code, str(value), relationship_type=_CONTEXT)
        if unit is None
        else NumContentItem(code, float(value), unit, relationship_type=_CONTEXT)
        for code, value, unit in descriptors
    ]


def _numbers(image: Dataset, keyword: str, count: int) -> list[float]:
    """The finite numbers of an element, or nothing unless there are ``count`` of them."""
    for place in source.places(image):
        value = place.get(keyword)
        if value is None or value == "":
            continue
        try:
            values = [float(item) for item in (value if _is_many(value) else [value])]
        except (TypeError, ValueError):
            continue
        if len(values) == count and all(math.isfinite(item) for item in values):
            return values
    return []


def _is_many(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
