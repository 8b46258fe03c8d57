"""The image of a case as hipscore's Volume: a DICOM series, a NIfTI or a NRRD file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from hipscore.attributes import text
from hipscore.domain import SliceSource, Unsuitable, Volume
from hipscore.series import assemble, check_protocol
from hiptrain.annotated import Problem, geometry, itk


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """An image and what was noticed while reading it.

    ``frame_of_reference`` and ``patient_name`` are empty where the format has none.
    """

    volume: Volume
    format: str
    frame_of_reference: str = ""
    patient_name: str = ""
    remarks: tuple[str, ...] = ()


def read_image(path: Path) -> Scan:
    """Read an image: a folder with one DICOM series, an Enhanced MR file, NIfTI or NRRD.

    Slices run anterior to posterior. NIfTI and NRRD axes are permuted and flipped, never
    interpolated; DICOM rows and columns stay as they are, as in the service.

    Raises
    ------
    Problem
        If there is no such image, or none of coronal slices.
    """
    if not path.exists():
        raise Problem(f"there is no {path}")
    if itk.is_itk(path):
        return _from_itk(path)
    return _from_dicom(path)


def _from_itk(path: Path) -> Scan:
    file = itk.read(path)
    if file.array.shape[3] != 1:
        raise Problem(f"{path.name} has {file.array.shape[3]} values per voxel: not an image")
    turn = geometry.coronal_turn(file.grid)
    voxels = turn.voxels(file.array[..., 0].astype(np.float32))
    if not np.isfinite(voxels).all():
        raise Problem(f"{path.name} holds voxels that are not finite")
    if voxels.min() == voxels.max():
        raise Problem(f"{path.name} is the same everywhere: not an image")
    grid = turn.grid(file.grid)
    sources = tuple(
        SliceSource(sop_class_uid="", sop_instance_uid="", instance_number=number)
        for number in range(1, grid.shape[0] + 1)
    )
    volume = Volume(voxels=voxels, grid=grid, sources=sources)
    return Scan(volume=volume, format="NRRD" if "NRRD_space" in file.fields else "NIfTI")


def _from_dicom(path: Path) -> Scan:
    images = _one_series(path)
    try:
        series = assemble(images, protocol_check=False)
    except Unsuitable as unsuitable:
        raise Problem(f"{path.name}: {unsuitable.text}") from unsuitable
    remarks: tuple[str, ...] = ()
    try:
        check_protocol(images)
    except Unsuitable as unsuitable:
        remarks = (f"the service would decline the image: {unsuitable.text}",)
    first = series.images[0]
    return Scan(
        volume=series.volume,
        format="DICOM",
        frame_of_reference=text(first, "FrameOfReferenceUID"),
        patient_name=text(first, "PatientName"),
        remarks=remarks,
    )


def _one_series(path: Path) -> list[Dataset]:
    """The images below ``path``, which are of one series; each SOP instance once."""
    images: dict[str, Dataset] = {}
    for found in dicom_files(path):
        if text(found, "Modality") != "SEG" and "PixelData" in found:
            images.setdefault(text(found, "SOPInstanceUID"), found)
    if not images:
        raise Problem(f"{path} holds no DICOM image")
    series = {text(image, "SeriesInstanceUID") for image in images.values()}
    if len(series) > 1:
        raise Problem(f"{path} holds {len(series)} series; give the folder of one")
    return list(images.values())


def dicom_files(path: Path) -> Iterator[Dataset]:
    """All DICOM objects in a file or below a folder, in order of name."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    for file in files:
        try:
            found = dcmread(file)
        except InvalidDicomError as error:
            if path.is_file():
                raise Problem(f"{path.name} is neither DICOM, NIfTI nor NRRD") from error
            continue
        except Exception as error:  # whatever damaged bytes provoke
            raise Problem(f"{file.name} cannot be read ({type(error).__name__})") from error
        if "SOPInstanceUID" in found:  # not a DICOMDIR
            yield found
