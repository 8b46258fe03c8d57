"""Labels as they come from a file, before anybody knows what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from hipscore.domain import BoolArray, Channel, Grid, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """A structure, and the hip it belongs to where the label says so."""

    structure: Channel
    side: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label of a file: its value (of a DICOM SEG: the segment's number) and its name.

    ``voxels`` is bool on the grid of the labels. ``coded`` is what the codes of a DICOM
    SEG say. Labels of one ``layer`` exclude each other: a voxel has one value there.
    """

    value: int
    name: str
    voxels: BoolArray
    layer: int = 0
    coded: Meaning | None = None

    @property
    def title(self) -> str:
        return f"{self.value} '{self.name}'" if self.name else str(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """The labels of one file, on its own grid."""

    grid: Grid
    labels: tuple[Label, ...]
    frame_of_reference: str = ""
