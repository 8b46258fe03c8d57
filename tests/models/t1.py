"""A tiny synthetic T1 pelvis: fat around muscle, two femora of marrow in cortex."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from hipscore.domain import Grid, Hip, Side, SliceSource, Volume

CENTRES = {Side.RIGHT: (-85.0, 0.0, 0.0), Side.LEFT: (85.0, 4.0, 0.0)}
RADIUS = 22.0
FAT = 900.0


def t1_volume() -> Volume:
    """A T1 body of muscle in a coat of fat, with two femora of marrow in cortex."""
    shape, (dz, dy, dx) = (20, 110, 150), (5.0, 2.0, 2.0)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, dx], [dz, 0, 0], [0, -dy, 0]]
    affine[:3, 3] = [-(shape[2] - 1) / 2 * dx, -(shape[0] - 1) / 2 * dz, (shape[1] - 1) / 2 * dy]
    grid = Grid(shape=shape, affine=affine)
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    mm = grid.to_mm(np.stack([z, y, x], axis=-1))
    flat = np.hypot(mm[..., 0] / 140, mm[..., 2] / 100)
    t1 = np.where(flat < 1, FAT, 5.0)
    t1[flat < 0.88] = 0.28 * FAT
    for side, centre in CENTRES.items():
        sign = 1 if side is Side.LEFT else -1
        off = mm - np.array(centre)
        neck = np.array([sign * 0.7, 0.14, -0.7])
        along = np.clip(off @ neck, 0, 50)
        distance = np.minimum(
            np.linalg.norm(off, axis=-1) - RADIUS,
            np.linalg.norm(off - along[..., None] * neck, axis=-1) - 0.65 * RADIUS,
        )
        t1[distance < 2.5] = 10.0
        t1[distance < 0] = 0.65 * FAT
    sources = tuple(
        SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.2.{n}", instance_number=n)
        for n in range(1, shape[0] + 1)
    )
    return Volume(voxels=t1.astype(np.float32), grid=grid, sources=sources)


def hips() -> tuple[Hip, ...]:
    return tuple(
        Hip(side=side, centre_mm=centre, radius_mm=RADIUS, confidence=1.0)
        for side, centre in CENTRES.items()
    )


def headers(volume: Volume) -> list[Dataset]:
    """Images of a T1 series as a scanner writes them."""
    images = []
    for index, source in enumerate(volume.sources):
        image = Dataset()
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        image.SOPInstanceUID = source.sop_instance_uid
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        image.FrameOfReferenceUID = "1.2.3.5"
        image.Modality, image.SeriesDescription = "MR", "t1_tse_cor"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
        image.SeriesNumber, image.InstanceNumber = 4, index + 1
        image.ContrastBolusAgent = "some"
        image.RescaleSlope, image.RescaleIntercept = "2", "1"
        image.Rows, image.Columns = volume.grid.shape[1:]
        image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        image.ImagePositionPatient = [float(v) for v in volume.grid.to_mm((index, 0, 0))]
        image.PixelSpacing = list(volume.grid.spacing_mm[1:])
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        images.append(image)
    return images
