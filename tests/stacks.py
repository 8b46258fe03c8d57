"""Small MR series whose pixel values follow from where the pixels lie in the patient.

Whatever a test does to the order, the orientation or the encoding of the images: a volume
is right when each voxel holds the value of its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

Vector = NDArray[np.float64]

#: rows to the patient's left, columns to the feet: a coronal image as it is usually shown
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
#: distinct slopes and no symmetry: a flip, a swap or a wrong side cannot go unnoticed
_GRADIENT = np.array([7.0, 5.0, 3.0])


def value_at(mm: Vector) -> NDArray[np.int64]:
    """Value of the pixels at the places ``(..., 3)``, LPS mm."""
    values: NDArray[np.int64] = np.rint(2000.0 + mm @ _GRADIENT).astype(np.int64)
    return values


def normal_of(orientation: Sequence[float]) -> Vector:
    """Unit normal of the slices, pointing to the patient's back."""
    normal: Vector = np.cross(orientation[:3], orientation[3:])
    return normal if normal[1] >= 0 else -normal


def places(
    slices: int,
    rows: int,
    columns: int,
    *,
    orientation: Sequence[float] = CORONAL,
    pixel_mm: tuple[float, float] = (1.25, 1.5),
    step_mm: float = 4.0,
    middle: Sequence[float] = (10.0, -20.0, 30.0),
) -> Vector:
    """Where the pixels of a stack lie: ``(Z, Y, X, 3)``, LPS mm, anterior slice first."""
    along, down = np.array(orientation[:3]), np.array(orientation[3:])
    z, y, x = np.meshgrid(
        np.arange(slices) - (slices - 1) / 2,
        np.arange(rows) - (rows - 1) / 2,
        np.arange(columns) - (columns - 1) / 2,
        indexing="ij",
    )
    mm: Vector = (
        np.array(middle)
        + z[..., None] * step_mm * normal_of(orientation)
        + y[..., None] * pixel_mm[0] * down
        + x[..., None] * pixel_mm[1] * along
    )
    return mm


def series_of(
    mm: Vector,
    *,
    orientation: Sequence[float] = CORONAL,
    pixel_mm: tuple[float, float] = (1.25, 1.5),
) -> list[Dataset]:
    """Single-frame STIR images of the places ``mm`` ``(Z, Y, X, 3)``, anterior first."""
    images = []
    for number, plane in enumerate(mm, start=1):
        image = _image(plane[None], MRImageStorage, number)
        image.InstanceNumber = number
        image.InversionTime = "150"
        image.ImagePositionPatient = _decimals(plane[0, 0])
        image.ImageOrientationPatient = _decimals(np.array(orientation))
        image.PixelSpacing = list(pixel_mm)
        images.append(image)
    return images


def coronal(slices: int = 8, rows: int = 12, columns: int = 10) -> list[Dataset]:
    """An ordinary series."""
    return series_of(places(slices, rows, columns))


def multi_frame(slices: int = 8, rows: int = 12, columns: int = 10) -> Dataset:
    """The same series as one Enhanced MR image, its frames posterior first."""
    mm = places(slices, rows, columns)[::-1]
    image = _image(mm, EnhancedMRImageStorage, 1)
    image.NumberOfFrames = slices
    image.InstanceNumber = 1
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[1.25, 1.5])]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=list(CORONAL))]
    shared.MRModifierSequence = [_item(InversionTimes=150.0)]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=_decimals(plane[0, 0]))])
        for plane in mm
    ]
    return image


def _image(mm: Vector, sop_class_uid: str, number: int) -> Dataset:
    """What every image has, with the pixels of the places ``(F, Y, X, 3)``."""
    image = Dataset()
    image.SOPClassUID = sop_class_uid
    image.SOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{number}"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    image.FrameOfReferenceUID = "1.2.3.4.6"
    image.Modality = "MR"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = mm.shape[1:3]
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.PixelData = value_at(mm).astype("<u2").tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _decimals(values: Vector) -> list[float]:
    """Numbers within the 16 characters of VR DS."""
    return [round(float(value), 8) for value in values]
