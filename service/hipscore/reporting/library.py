"""Image library of the SR (TID 1600): which images were read, and their geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hipscore.reporting import codes

_CONTAINS = RelationshipTypeValues.CONTAINS
_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT

_MAGNETIC_RESONANCE = Code("MR", "DCM", "Magnetic Resonance")

#: concept, value, unit; a UID has no unit
_Descriptor: TypeAlias = tuple[Code, float | str, Code | None]


def image_library(headers: Sequence[Dataset]) -> ContainerContentItem:
    """Build the library of the images with these tidy headers, in their order.

    What images share (TID 1602, TID 1604) stands once per group; each entry adds its
    position. Attributes an image lacks are left out: a series that cannot be scored for
    its headers still gets its report.
    """
    groups: dict[tuple[_Descriptor, ...], list[Dataset]] = {}
    for header in headers:
        groups.setdefault(tuple(_shared(header)), []).append(header)
    found: list[ContentItem] = []
    for descriptors, members in groups.items():
        content: list[ContentItem] = []
        if any("Modality" in header for header in members):
            content.append(
                CodeContentItem(
                    codes.shared(codes.MODALITY),
                    codes.shared(_MAGNETIC_RESONANCE),
                    relationship_type=_CONTEXT,
                )
            )
        content += _items(descriptors)
        content += [_entry(header) for header in members]
        found.append(_container(codes.IMAGE_LIBRARY_GROUP, content))
    return _container(codes.IMAGE_LIBRARY, found)


def _container(name: Code, content: Sequence[ContentItem]) -> ContainerContentItem:
    item = ContainerContentItem(codes.shared(name), relationship_type=_CONTAINS)
    item.ContentSequence = content  # type: ignore[assignment]  # becomes a ContentSequence
    return item


def _entry(header: Dataset) -> ImageContentItem:
    item = ImageContentItem(
        codes.shared(codes.SOURCE),
        referenced_sop_class_uid=str(header.SOPClassUID),
        referenced_sop_instance_uid=str(header.SOPInstanceUID),
        relationship_type=_CONTAINS,
    )
    position = _numbers(header, "ImagePositionPatient")
    if position:
        item.ContentSequence = _items(  # type: ignore[assignment]  # as above
            [(code, value, codes.MM) for code, value in zip(codes.POSITION, position, strict=True)]
        )
    return item


def _shared(header: Dataset) -> Iterable[_Descriptor]:
    """Yield TID 1602 and TID 1604 descriptors of one image, whichever it has."""
    yield codes.FRAME_OF_REFERENCE, str(header.FrameOfReferenceUID), None
    for code, keyword in ((codes.ROWS, "Rows"), (codes.COLUMNS, "Columns")):
        for value in _numbers(header, keyword):
            yield code, value, codes.PIXELS
    spacing = _numbers(header, "PixelSpacing")
    if spacing:
        yield codes.HORIZONTAL_SPACING, spacing[1], codes.MM
        yield codes.VERTICAL_SPACING, spacing[0], codes.MM
    for code, keyword in (
        (codes.SLICE_THICKNESS, "SliceThickness"),
        (codes.SLICE_SPACING, "SpacingBetweenSlices"),
    ):
        for value in _numbers(header, keyword):
            yield code, value, codes.MM
    orientation = _numbers(header, "ImageOrientationPatient")
    for code, value in zip(codes.ORIENTATION, orientation, strict=False):
        yield code, value, codes.COSINE


def _items(descriptors: Iterable[_Descriptor]) -> list[ContentItem]:
    return [
        UIDRefContentItem(codes.shared(code), str(value), relationship_type=_CONTEXT)
        if unit is None
        else NumContentItem(
            codes.shared(code), float(value), codes.shared(unit), relationship_type=_CONTEXT
        )
        for code, value, unit in descriptors
    ]


def _numbers(header: Dataset, keyword: str) -> list[float]:
    """The numbers of an element, none where there is none; a tidy header has all or none."""
    value = header.get(keyword, [])
    return [float(item) for item in (value if isinstance(value, Sequence) else [value])]
