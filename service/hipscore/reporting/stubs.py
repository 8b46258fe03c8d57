"""Stand-ins for images and reports, for highdicom.

Small headers that hold what it reads, with values it accepts and without names, which it
would print.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from hipscore.domain import Volume
from hipscore.reporting import SopReference
from hipscore.reporting.header import EQUIPMENT, LOSSY, TYPE_2, decimals
from hipscore.reporting.source import copy_elements

_UIDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)
#: what tells the images of a series apart
_OF_ONE = ("SOPClassUID", "SOPInstanceUID", "ImagePositionPatient")


def of_images(headers: Sequence[Dataset], volume: Volume | None = None) -> list[Dataset]:
    """Stand-ins for the source images, for highdicom.

    Parameters
    ----------
    headers
        Tidy headers of single-frame images in slice order, or of one multi-frame image.
    volume
        With it the stubs are of one series and carry a geometry that highdicom accepts:
        one orientation, one pixel measure, the slice spacing of the grid; a multi-frame
        stub has one frame per slice of the volume, in that order. Without it only what
        identifies them.

    Returns
    -------
    list of Dataset
        As long as ``headers``.
    """
    if volume is None:
        return [_identified(header) for header in headers]
    if len(headers) == 1 and volume.sources[0].frame_number is not None:
        return [_multi_frame(headers[0], volume)]
    return _single_frames(headers, volume)


def _identified(header: Dataset) -> Dataset:
    stub = Dataset()
    for keyword in TYPE_2:
        setattr(stub, keyword, "")
    stub.Modality = "MR"
    copy_elements(header, stub, (*_UIDS, *EQUIPMENT, *LOSSY))
    stub.Rows, stub.Columns = header.get("Rows", 0), header.get("Columns", 0)
    return stub


def _single_frames(headers: Sequence[Dataset], volume: Volume) -> list[Dataset]:
    first = headers[0]
    common = _identified(first)
    common.Rows, common.Columns = volume.grid.shape[1:]
    common.ImageOrientationPatient = list(first.ImageOrientationPatient)
    common.update(_measures(first, volume))
    common.PixelSpacing = list(first.PixelSpacing)
    result = []
    for header in headers:
        # the stubs share elements, which are only read: copies take ten times as long
        stub = Dataset(dict(common.items()))
        for keyword in _OF_ONE:
            stub[keyword] = header[keyword]
        result.append(stub)
    return result


def _multi_frame(header: Dataset, volume: Volume) -> Dataset:
    stub = _identified(header)
    stub.NumberOfFrames = len(volume.sources)
    stub.Rows, stub.Columns = volume.grid.shape[1:]
    step_row, step_column = volume.grid.affine[:3, 2], volume.grid.affine[:3, 1]
    _, dy, dx = volume.grid.spacing_mm
    orientation = Dataset()
    orientation.ImageOrientationPatient = decimals((*(step_row / dx), *(step_column / dy)))
    shared = Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [_measures(header, volume)]
    stub.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(len(volume.sources)):
        position = Dataset()
        position.ImagePositionPatient = decimals(volume.grid.to_mm((index, 0, 0)))
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    stub.PerFrameFunctionalGroupsSequence = frames
    return stub


def _measures(header: Dataset, volume: Volume) -> Dataset:
    dz, dy, dx = volume.grid.spacing_mm
    measures = Dataset()
    measures.PixelSpacing = decimals((dy, dx))
    thickness = header.get("SliceThickness", 0.0)
    measures.SliceThickness = thickness if thickness > 0 else decimals((dz,))[0]
    measures.SpacingBetweenSlices = decimals((dz,))[0]
    return measures


def evidence(segmentation: Dataset) -> Dataset:
    """Stand-in of our SEG, for highdicom: what names it."""
    item = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(item, keyword, str(segmentation[keyword].value))
    return item


def predecessors(reference: SopReference | None) -> list[Dataset] | None:
    """What highdicom makes Predecessor Documents Sequence of."""
    if reference is None:
        return None
    item = Dataset()
    item.SOPClassUID = reference.sop_class_uid
    item.SOPInstanceUID = reference.sop_instance_uid
    item.SeriesInstanceUID = reference.series_instance_uid
    item.StudyInstanceUID = reference.study_instance_uid
    return [item]
