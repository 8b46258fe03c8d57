"""NIfTI and NRRD files (3D Slicer's segmentations among them), read by SimpleITK.

SimpleITK gives LPS whatever the file uses; what it cannot know it makes up, so files
that do not say where they lie in the patient are refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipscore.domain import Grid
from hiptrain.annotated import Problem
from hiptrain.annotated.labels import Label, LabelSet

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr")
_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|ID)")
#: more values than this are a picture, not labels
_MAX_VALUES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ItkFile:
    """``array`` is ``(K, J, I, layers)``; ``grid`` its first three axes in LPS."""

    array: NDArray[Any]
    grid: Grid
    fields: dict[str, str]


def is_itk(path: Path) -> bool:
    """Whether the name is that of a NIfTI or NRRD file."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path) -> ItkFile:
    """Read a NIfTI or NRRD file.

    Raises
    ------
    Problem
        If it cannot be read, is not three-dimensional, or does not say where it lies.
    """
    import SimpleITK

    itk: Any = SimpleITK  # its functions have no types
    try:
        image = itk.ReadImage(str(path))
    except RuntimeError as error:
        raise Problem(f"{path.name} cannot be read: {_last_line(error)}") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise Problem(f"{path.name} has {image.GetDimension()} dimensions, 3 are needed")
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    _check_oriented(path, fields)
    array = itk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = steps[:, ::-1]  # SimpleITK counts (i, j, k), its arrays (k, j, i)
    affine[:3, 3] = image.GetOrigin()
    k, j, i = array.shape[:3]
    return ItkFile(array=array, grid=Grid(shape=(k, j, i), affine=affine), fields=fields)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_oriented(path: Path, fields: dict[str, str]) -> None:
    """Raise unless the header says which way is left."""
    nifti = ".nii" in path.suffixes
    unknown = (
        {fields.get("qform_code", "0"), fields.get("sform_code", "0")} == {"0"}
        if nifti
        else "NRRD_space" not in fields
    )
    if unknown:
        missing = "qform and sform" if nifti else "the space field"
        raise Problem(
            f"{path.name} does not say which way is right and left ({missing} not set); "
            "convert it again from DICOM"
        )


def read_labels(path: Path) -> LabelSet:
    """Read a label map, or a segmentation of 3D Slicer (``Segment0_Name`` ... in its header).

    In a plain file every value but 0 is a label without a name. In Slicer's a segment is a
    value in a layer; segments that overlap lie in different layers.

    Raises
    ------
    Problem
        If the voxels are not whole numbers.
    """
    file = read(path)
    if not np.isfinite(file.array).all() or (file.array != np.rint(file.array)).any():
        raise Problem(f"{path.name} holds values that are no whole numbers: not a label map")
    segments = _segments(file)
    labels = []
    for layer in range(file.array.shape[3]):
        voxels = file.array[..., layer]
        values = [int(value) for value in np.unique(voxels) if value]
        if len(values) > _MAX_VALUES:
            raise Problem(f"{path.name} holds {len(values)} values: a picture, not a label map")
        named = {value: name for (at, value), name in segments.items() if at == layer}
        labels += [
            Label(
                value=value,
                name=named.get(value, ""),
                layer=layer,
                voxels=voxels == value,
            )
            for value in sorted({*values, *named})
        ]
    return LabelSet(grid=file.grid, labels=tuple(labels))


def _segments(file: ItkFile) -> dict[tuple[int, int], str]:
    """Names of the segments by (layer, value), from the header fields of 3D Slicer.

    Before Slicer 4.11 there are neither layers nor values in the header: the segments
    are the layers, each with value 1.
    """
    found: dict[int, dict[str, str]] = {}
    for key, text in file.fields.items():
        match = _SEGMENT.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = text.strip()
    layers = file.array.shape[3]
    result: dict[tuple[int, int], str] = {}
    for number, fields in found.items():
        layer = int(fields.get("Layer", number if layers > 1 else 0))
        value = int(fields.get("LabelValue", 1 if layers > 1 or len(found) == 1 else number + 1))
        result[layer, value] = fields.get("Name") or fields.get("ID", "")
    return result
