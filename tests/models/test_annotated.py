"""Users' annotated series: every format comes in voxel by voxel, and what is wrong is named."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import click
import highdicom
import numpy as np
import pytest
import SimpleITK
from click.testing import CliRunner
from PIL import Image
from pydicom import dcmread

import hipscore.cli
import hiptrain.cli
from hipscore import phantom, pipeline
from hipscore.domain import ArtifactKind, BoolArray, Channel, Grid, Masks, Side, Volume
from hipscore.phantom import Burden
from hipscore.phantom.dicom import to_datasets
from hipscore.reporting import ReportContext, codes
from hiptrain import dataset
from hiptrain.annotated import Problem, geometry
from hiptrain.annotated.case import Case, read_case
from hiptrain.annotated.labels import Meaning
from hiptrain.annotated.naming import read_naming
from hiptrain.annotated.table import Row, read_table
from hiptrain.annotated.truth import annotated_cases
from hiptrain.cli.annotated import annotated
from tests.analytic import Oracle

itk: Any = SimpleITK
CONTEXT = ReportContext(
    job_key="annotated", created_at=datetime(2024, 1, 2, tzinfo=UTC), software_version="1"
)
#: head, edema and effusion as values of a label map without sides
THREE = "femoral_head = 1\nbme = 2\nsynovitis = 3\n"
NAMES = {
    (side, channel): f"{side.value} {name}"
    for side in Side
    for channel, name in zip(Channel, ("femoral head", "BME", "synovitis"), strict=True)
}


@cache
def made(
    sides: tuple[Side, ...] = tuple(Side),
    plane: Any = "coronal",
    tilt: tuple[float, float] = (0.0, 0.0),
    rows: int = 80,
) -> phantom.Phantom:
    return phantom.synthesise(
        seed=7,
        burden=Burden.SEVERE,
        hips=sides,
        rows=rows,
        slices=18,
        plane=plane,
        tilt_deg=tilt,
        supersampling=1,
    )


def dicom(folder: Path, **header: Any) -> Path:
    """A folder with the phantom's series."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(to_datasets(made(), **header)):
        image.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's series; not to be changed."""
    return dicom(tmp_path_factory.mktemp("series") / "images")


@cache
def analysed(*, enhanced: bool = False) -> pipeline.Analysis:
    """The phantom through the service's own pipeline, with networks that know the truth."""
    images = to_datasets(made(), enhanced=enhanced)
    oracle = Oracle()
    oracle.learn(made(), images)
    return pipeline.analyse(images, oracle)


@cache
def reported(*, enhanced: bool = False) -> bytes:
    artifacts = pipeline.report(analysed(enhanced=enhanced), Oracle().card, context=CONTEXT)
    [found] = [item for item in artifacts if item.kind is ArtifactKind.SEG]
    return found.data


def seg(path: Path, *, enhanced: bool = False) -> Path:
    """The SEG that the service makes of the phantom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reported(enhanced=enhanced))
    return path


def write(
    path: Path,
    array: Any,
    grid: Grid,
    *,
    axes: Sequence[int] = (0, 1, 2),
    flips: Sequence[bool] = (False, False, False),
    fields: dict[str, str] | None = None,
) -> Path:
    """Write ``(Z, Y, X)`` or ``(Z, Y, X, layers)`` with its axes in another order and flipped."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = array.transpose(*axes, *range(3, array.ndim))[steps]
    affine = grid.affine[:3, list(axes)] * np.where(flips, -1.0, 1.0)
    first = np.zeros(3)
    for axis, flip in zip(axes, flips, strict=True):
        first[axis] = grid.shape[axis] - 1 if flip else 0
    image = itk.GetImageFromArray(np.ascontiguousarray(turned), isVector=array.ndim == 4)
    spacing = np.linalg.norm(affine, axis=0)
    image.SetSpacing([float(value) for value in spacing[::-1]])
    image.SetDirection([float(value) for value in (affine / spacing)[:, ::-1].ravel()])
    image.SetOrigin([float(value) for value in grid.to_mm(first)])
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.WriteImage(image, str(path), useCompression=True)
    return path


def label_map(masks: Sequence[Masks]) -> Any:
    """One value a voxel: 1 head, 2 edema (cut out of the head), 3 effusion."""
    values = np.zeros(masks[0].voxels.shape[1:], dtype=np.uint8)
    for item in masks:
        for channel in Channel:
            values[item.voxels[channel]] = channel + 1
    return values


def row(image: Path, labels: Path, **other: Any) -> Row:
    return Row(line=2, name="a", patient="p1", image=image, labels=labels, **other)


def read(image: Path, labels: Path, toml: str | None = None, **other: Any) -> Case:
    resample = other.pop("resample", False)
    path = labels.parent / "labels.toml"
    if toml is not None:
        path.write_text(toml)
    naming = read_naming(path if toml is not None else None)
    return read_case(row(image, labels, **other), naming, resample=resample)


def same(case: Case, volume: Volume, masks: Sequence[Masks]) -> None:
    """The case has this volume and these masks, voxel by voxel."""
    np.testing.assert_allclose(case.volume.grid.affine, volume.grid.affine, atol=1e-3)
    np.testing.assert_array_equal(case.volume.voxels, volume.voxels)
    assert [item.side for item in case.masks] == [item.side for item in masks]
    for mine, other in zip(case.masks, masks, strict=True):
        np.testing.assert_array_equal(mine.voxels, other.voxels)


# --- DICOM and DICOM SEG -----------------------------------------------------------------
@pytest.mark.parametrize("enhanced", (False, True))
def test_a_seg_of_the_service_comes_back_as_it_was(tmp_path: Path, *, enhanced: bool) -> None:
    case = read(
        dicom(tmp_path / "images", enhanced=enhanced),
        seg(tmp_path / "seg.dcm", enhanced=enhanced),
    )
    analysis = analysed(enhanced=enhanced)
    assert analysis.volume is not None
    assert all(item.voxels.any(axis=(1, 2, 3)).all() for item in analysis.masks)
    same(case, analysis.volume, analysis.masks)
    assert case.formats == "DICOM + DICOM SEG"
    assert case.whole
    assert case.remarks == ()


def test_a_seg_may_lie_beside_the_images(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    case = read(folder, seg(folder / "seg.dcm"))
    analysis = analysed()
    assert analysis.volume is not None
    same(case, analysis.volume, analysis.masks)


def changed_seg(tmp_path: Path, change: Any) -> Path:
    path = seg(tmp_path / "seg.dcm")
    found = dcmread(path)
    change(found)
    found.save_as(path)
    return path


def test_the_side_of_a_seg_comes_from_its_codes_not_its_labels(
    images: Path, tmp_path: Path
) -> None:
    def rename(found: Any) -> None:
        for number, item in enumerate(found.SegmentSequence):
            item.SegmentLabel = f"segment {number}"

    case = read(images, changed_seg(tmp_path, rename))
    same(case, made().volume, analysed().masks)


def test_labels_of_a_seg_may_be_named_where_the_codes_are_others(
    images: Path, tmp_path: Path
) -> None:
    def recode(found: Any) -> None:
        for item in found.SegmentSequence:
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"  # tissue
            item.SegmentLabel = item.SegmentLabel.replace("edema", "oedema").replace(
                "synovitis-effusion", "Gelenkerguss"
            )

    path = changed_seg(tmp_path, recode)
    with pytest.raises(Problem, match=r"'Right Gelenkerguss' is not known; say in labels\.toml"):
        read(images, path)
    toml = '[synovitis]\nright = "right gelenkerguss"\nleft = "Left_Gelenkerguss"\n'
    same(read(images, path, toml), made().volume, analysed().masks)


def test_codes_in_another_region_are_not_of_the_hip(images: Path, tmp_path: Path) -> None:
    def knee(found: Any) -> None:
        for item in found.SegmentSequence:
            item.AnatomicRegionSequence[0].CodeValue = "72696002"
            item.SegmentLabel = "finding"

    with pytest.raises(Problem, match="'finding' is not known"):
        read(images, changed_seg(tmp_path, knee))


def test_a_seg_of_another_examination_is_refused(tmp_path: Path) -> None:
    folder = dicom(tmp_path / "images", frame_of_reference_uid="2.25.99")
    with pytest.raises(Problem, match="another frame of reference"):
        read(folder, seg(tmp_path / "seg.dcm"))


def test_a_fractional_seg_is_cut_at_half(images: Path, tmp_path: Path) -> None:
    def fractional(found: Any) -> None:
        bits = found.pixel_array
        values = np.where(bits, 128, 127).astype(np.uint8)
        found.SegmentationType, found.MaximumFractionalValue = "FRACTIONAL", 255
        found.SegmentationFractionalType = "PROBABILITY"
        found.BitsAllocated = found.BitsStored = 8
        found.HighBit = 7
        found.PixelData = values.tobytes() + b"\0" * (values.size % 2)

    case = read(images, changed_seg(tmp_path, fractional))
    same(case, made().volume, analysed().masks)


def test_a_label_map_seg_is_read(images: Path, tmp_path: Path) -> None:
    """PS3.3 A.51 with one value a pixel: edema is cut out of the head, and put back."""
    binary = dcmread(seg(tmp_path / "binary.dcm"))
    sources = sorted(
        (dcmread(path) for path in images.iterdir()), key=lambda item: item.InstanceNumber
    )
    values = np.zeros(made().volume.grid.shape, dtype=np.uint8)
    numbers = {item.SegmentLabel: item.SegmentNumber for item in binary.SegmentSequence}
    for masks in analysed().masks:
        for channel in Channel:
            label = codes.segment_label(masks.side, channel)
            values[masks.voxels[channel]] = numbers[label]
    made_of_it = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=values,
        segmentation_type=highdicom.seg.SegmentationTypeValues.LABELMAP,
        segment_descriptions=[
            highdicom.seg.SegmentDescription.from_dataset(item) for item in binary.SegmentSequence
        ],
        series_instance_uid="2.25.1",
        series_number=1,
        sop_instance_uid="2.25.2",
        instance_number=1,
        manufacturer="a",
        manufacturer_model_name="b",
        software_versions="1",
        device_serial_number="1",
    )
    path = tmp_path / "labelmap.dcm"
    made_of_it.save_as(path)
    assert dcmread(path).SegmentationType == "LABELMAP"
    same(read(images, path), made().volume, analysed().masks)


def test_a_damaged_file_among_the_images_is_named(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "notes.txt").write_text("not DICOM, and no harm")
    path = folder / "005.dcm"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(Problem, match=r"^images: .*pixel data"):
        read(folder, seg(tmp_path / "seg.dcm"))


def test_a_folder_of_two_series_is_refused(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    [first, *_] = to_datasets(made(), series_uid="2.25.5")
    first.save_as(folder / "more.dcm", enforce_file_format=True)
    with pytest.raises(Problem, match="holds 2 series; give the folder of one"):
        read(folder, seg(tmp_path / "seg.dcm"))


def test_images_without_fat_suppression_are_remarked(tmp_path: Path) -> None:
    case = read(dicom(tmp_path / "images", fat_suppressed=False), seg(tmp_path / "seg.dcm"))
    assert "the service would decline the image" in case.remarks[0]


# --- NIfTI ---------------------------------------------------------------------------------
@pytest.mark.parametrize("axes", tuple(permutations(range(3))))
def test_nifti_comes_in_whatever_its_axes(tmp_path: Path, axes: tuple[int, ...]) -> None:
    """All orders of axes and all flips, image and labels in different ones."""
    truth = made(tilt=(6.0, -4.0))
    values = label_map(truth.masks)
    for number, flips in enumerate(product((False, True), repeat=3)):
        folder = tmp_path / str(number)
        image = write(
            folder / "image.nii", truth.volume.voxels, truth.volume.grid, axes=axes, flips=flips
        )
        labels = write(
            folder / "labels.nii.gz", values, truth.volume.grid, axes=axes[::-1], flips=flips[::-1]
        )
        case = read(image, labels, THREE)
        same(case, truth.volume, truth.masks)
        assert case.formats == "NIfTI + NIfTI"


def test_dicom_takes_labels_of_a_converted_image(images: Path, tmp_path: Path) -> None:
    """As dcm2niix leaves them: columns to the left, rows to the head, slices to the front."""
    labels = write(
        tmp_path / "labels.nii.gz",
        label_map(made().masks),
        made().volume.grid,
        flips=(True, True, False),
    )
    same(read(images, labels, THREE), made().volume, made().masks)


def part_of(array: Any, grid: Grid, box: tuple[slice, slice, slice]) -> tuple[Any, Grid]:
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_mm([piece.start for piece in box])
    cut = array[box]
    return cut, Grid(shape=cut.shape, affine=affine)


def box_around(mask: BoolArray) -> tuple[slice, slice, slice]:
    low, high = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0) + 1
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def test_labels_cropped_to_what_is_drawn_fit(images: Path, tmp_path: Path) -> None:
    values = label_map(made().masks)
    cut, grid = part_of(values, made().volume.grid, box_around(values > 0))
    assert cut.shape != values.shape
    labels = write(tmp_path / "labels.nii.gz", cut, grid, axes=(2, 0, 1))
    same(read(images, labels, THREE), made().volume, made().masks)


def test_labels_outside_the_image_are_refused(tmp_path: Path) -> None:
    truth = made()
    values = label_map(truth.masks)
    high = box_around(values > 0)[2].stop
    cut, grid = part_of(
        truth.volume.voxels,
        truth.volume.grid,
        (slice(0, 18), slice(0, 80), slice(0, high - 1)),
    )
    image = write(tmp_path / "image.nii.gz", cut, grid)
    labels = write(tmp_path / "labels.nii.gz", values, truth.volume.grid)
    with pytest.raises(Problem, match=r"\d+ labelled voxels lie outside the image"):
        read(image, labels, THREE)


@pytest.mark.parametrize(
    ("change", "words"),
    (
        (np.diag([2.0, 1.0, 1.0]), "voxels of .* mm, the image's are"),
        (None, "a grid shifted by parts of a voxel"),
        (
            np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]]),
            "a rotated grid",
        ),
    ),
)
def test_labels_on_another_grid_are_refused(
    images: Path, tmp_path: Path, change: Any, words: str
) -> None:
    grid = made().volume.grid
    affine = grid.affine.copy()
    if change is None:
        affine[:3, 3] += affine[:3, 1] * 0.4
    else:
        affine[:3, :3] = change @ affine[:3, :3]
    other = Grid(shape=grid.shape, affine=affine)
    labels = write(tmp_path / "labels.nii.gz", label_map(made().masks), other)
    with pytest.raises(Problem, match=words):
        read(images, labels, THREE)


def test_labels_of_a_finer_grid_may_be_resampled(images: Path, tmp_path: Path) -> None:
    """Voxels halved in every direction hold the same volume, and nearest finds it again."""
    grid = made().volume.grid
    fine = label_map(made().masks).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = grid.affine.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] = grid.to_mm([-0.25, -0.25, -0.25])
    labels = write(
        tmp_path / "labels.nii.gz", fine, Grid(shape=fine.shape, affine=affine), axes=(1, 2, 0)
    )
    with pytest.raises(Problem, match="--resample"):
        read(images, labels, THREE)
    case = read(images, labels, THREE, resample=True)
    same(case, made().volume, made().masks)
    assert case.remarks == ()


def test_resampling_that_changes_volumes_is_remarked(images: Path, tmp_path: Path) -> None:
    """Labels on every second slice only, on a grid of that spacing shifted by 0.45 slices."""
    values = label_map(made().masks)[::2]
    grid = made().volume.grid
    affine = grid.affine.copy()
    affine[:3, 0] *= 2
    affine[:3, 3] += 0.9 * grid.affine[:3, 0]
    other = Grid(shape=values.shape, affine=affine)
    labels = write(tmp_path / "labels.nii.gz", values, other)
    case = read(images, labels, THREE, resample=True)
    resampled = geometry.nearest(values == 1, other, grid)
    assert resampled.any()
    drift = abs(resampled.sum() * grid.voxel_ml / ((values == 1).sum() * other.voxel_ml) - 1)
    assert any("label 1 " in remark for remark in case.remarks) == (drift > 0.1)


def test_axial_nifti_is_refused(tmp_path: Path) -> None:
    axial = made(plane="axial", rows=160).volume
    image = write(tmp_path / "image.nii.gz", axial.voxels, axial.grid)
    with pytest.raises(Problem, match=r"acquired in axial slices of 5\.0 mm, not coronal"):
        read(image, image, THREE)


def test_axial_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(to_datasets(made(plane="axial"))):
        image.save_as(tmp_path / "images" / f"{number}.dcm", enforce_file_format=True)
    with pytest.raises(Problem, match="tilted 90° from coronal"):
        read(tmp_path / "images", seg(tmp_path / "seg.dcm"))


def test_an_oblique_nifti_is_refused_as_the_service_does(tmp_path: Path) -> None:
    grid = made().volume.grid
    for degrees, accepted in ((35.0, True), (44.0, False)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        affine = grid.affine.copy()
        turn = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
        affine[:3, :3] = turn @ affine[:3, :3]
        other = Grid(shape=grid.shape, affine=affine)
        if accepted:
            assert geometry.coronal_turn(other).axes == (0, 1, 2)
        else:
            with pytest.raises(Problem, match="tilted 44° from coronal, at most 40°"):
                geometry.coronal_turn(other)


def test_a_nifti_without_orientation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii", made().volume.voxels, made().volume.grid)
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code, sform_code
    path.write_bytes(content)
    with pytest.raises(Problem, match="does not say which way is right and left"):
        read(path, path, THREE)


def test_probabilities_are_no_labels(images: Path, tmp_path: Path) -> None:
    grid = made().volume.grid
    share = label_map(made().masks) * np.float32(0.3)
    labels = write(tmp_path / "labels.nii.gz", share, grid)
    with pytest.raises(Problem, match="no whole numbers"):
        read(images, labels, THREE)


def test_a_broken_file_is_named(images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.nii.gz"
    labels.write_bytes(b"not a NIfTI file")
    with pytest.raises(Problem, match=r"labels\.nii\.gz cannot be read"):
        read(images, labels, THREE)


# --- 3D Slicer -----------------------------------------------------------------------------
def slicer(path: Path, masks: Sequence[Masks], **how: Any) -> Path:
    """A segmentation as 3D Slicer writes it: heads in layer 0, lesions over them in layer 1."""
    layers = np.zeros((*masks[0].voxels.shape[1:], 2), dtype=np.uint8)
    fields: dict[str, str] = {}
    number = 0
    for item in masks:
        for channel in Channel:
            layer, value = int(channel is not Channel.FEMORAL_HEAD), number + 1
            layers[item.voxels[channel], layer] = value
            fields |= {
                f"Segment{number}_ID": f"Segment_{number}",
                f"Segment{number}_Name": NAMES[item.side, channel],
                f"Segment{number}_LabelValue": str(value),
                f"Segment{number}_Layer": str(layer),
            }
            number += 1
    return write(path, layers, made().volume.grid, fields=fields, **how)


@pytest.mark.parametrize("axes", ((0, 1, 2), (2, 1, 0), (1, 0, 2)))
def test_segments_of_slicer_overlap_in_layers(
    images: Path, tmp_path: Path, axes: tuple[int, ...]
) -> None:
    truth = made()
    labels = slicer(tmp_path / "s.seg.nrrd", truth.masks, axes=axes, flips=(True, False, True))
    same(read(images, labels), truth.volume, truth.masks)
    image = write(tmp_path / "image.nrrd", truth.volume.voxels, truth.volume.grid, axes=(1, 0, 2))
    case = read(image, labels)
    same(case, truth.volume, truth.masks)
    assert case.formats == "NRRD + NRRD"
    image = write(tmp_path / "image.nii.gz", truth.volume.voxels, truth.volume.grid)
    same(read(image, labels), truth.volume, truth.masks)


def test_segments_of_old_slicer_are_layers(images: Path, tmp_path: Path) -> None:
    """Before Slicer 4.11: one layer a segment, no values in the header."""
    truth = made()
    layers = np.stack([plane for item in truth.masks for plane in item.voxels], axis=-1)
    fields = {f"Segment{number}_Name": name for number, name in enumerate(NAMES.values())}
    labels = write(
        tmp_path / "s.seg.nrrd", layers.astype(np.uint8), truth.volume.grid, fields=fields
    )
    same(read(images, labels), truth.volume, truth.masks)


def test_an_nrrd_without_space_is_refused(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.nrrd"
    path.write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n" + bytes(8)
    )
    with pytest.raises(Problem, match="the space field not set"):
        read(images, path, THREE)


# --- what labels mean ----------------------------------------------------------------------
def nifti_labels(path: Path, values: Any) -> Path:
    return write(path, values, made().volume.grid)


def test_an_unknown_label_is_named(images: Path, tmp_path: Path) -> None:
    values = label_map(made().masks)
    values[0, 0, 0] = 9
    labels = nifti_labels(tmp_path / "labels.nii.gz", values)
    with pytest.raises(Problem, match="label 9 is not known"):
        read(images, labels, THREE)
    same(read(images, labels, "ignore = [9]\n" + THREE), made().volume, made().masks)


def test_values_without_names_need_a_naming(images: Path, tmp_path: Path) -> None:
    labels = nifti_labels(tmp_path / "labels.nii.gz", label_map(made().masks))
    with pytest.raises(Problem, match=r"label 1 is not known; say in labels\.toml"):
        read(images, labels)


def test_labels_may_be_of_one_side(images: Path, tmp_path: Path) -> None:
    values = np.zeros(made().volume.grid.shape, dtype=np.uint8)
    for item, base in zip(made().masks, (10, 20), strict=True):
        for channel in Channel:
            values[item.voxels[channel]] = base + channel
    toml = "[femoral_head]\nright = 10\nleft = 20\n[bme]\nright = 11\nleft = 21\n"
    toml += "[synovitis]\nright = [12]\nleft = [22]\n"
    labels = nifti_labels(tmp_path / "labels.nii.gz", values)
    same(read(images, labels, toml), made().volume, made().masks)
    swapped = toml.replace("right", "tmp").replace("left", "right").replace("tmp", "left")
    with pytest.raises(Problem, match="sides are swapped, or the image is mirrored"):
        read(images, labels, swapped)


def test_a_head_is_needed(images: Path, tmp_path: Path) -> None:
    values = label_map(made().masks)
    values[values == 1] = 0
    labels = nifti_labels(tmp_path / "labels.nii.gz", values)
    with pytest.raises(Problem, match="no femoral head is labelled"):
        read(images, labels, THREE)
    with pytest.raises(Problem, match="labels no structure"):
        read(images, nifti_labels(labels, np.zeros_like(values)), THREE)


def test_a_lesion_needs_the_head_of_its_hip(images: Path, tmp_path: Path) -> None:
    truth = made()
    left = truth.masks[1].voxels.copy()
    left[Channel.FEMORAL_HEAD] = False
    masks = (truth.masks[0], Masks(side=Side.LEFT, voxels=left))
    labels = slicer(tmp_path / "s.seg.nrrd", masks)
    with pytest.raises(Problem, match="labelled in the left hip, but no left femoral head"):
        read(images, labels)
    unsided = nifti_labels(tmp_path / "labels.nii.gz", label_map(masks))
    with pytest.raises(Problem, match="mm from the nearest labelled femoral head"):
        read(
            images,
            unsided,
            THREE + "head_includes_bme = true\n",
            side=Side.RIGHT,
        )


def test_hips_without_lesions_are_cases(images: Path, tmp_path: Path) -> None:
    values = np.any([item.voxels[Channel.FEMORAL_HEAD] for item in made().masks], axis=0)
    labels = nifti_labels(tmp_path / "labels.nii.gz", values.astype(np.uint8))
    case = read(images, labels, THREE)
    assert [item.voxels.any(axis=(1, 2, 3)).tolist() for item in case.masks] == [
        [True, False, False]
    ] * 2


def one_hip(tmp_path: Path) -> Path:
    """Labels of the right hip alone, without a side."""
    return nifti_labels(tmp_path / "labels.nii.gz", label_map(made().masks[:1]))


def test_a_single_head_needs_a_side(images: Path, tmp_path: Path) -> None:
    labels = one_hip(tmp_path)
    with pytest.raises(Problem, match="write right or left in the column side"):
        read(images, labels, THREE)
    case = read(images, labels, THREE, side=Side.RIGHT)
    same(case, made().volume, made().masks[:1])
    both = nifti_labels(tmp_path / "both.nii.gz", label_map(made().masks))
    with pytest.raises(Problem, match="left hip only, but the right and left head is labelled"):
        read(images, both, THREE, side=Side.LEFT)


def test_an_unlabelled_head_in_view_is_not_taught_to_the_localiser(
    images: Path, tmp_path: Path
) -> None:
    labels = one_hip(tmp_path)
    case = read(images, labels, THREE, side=Side.RIGHT)
    assert not case.whole
    assert "not used for the localiser" in case.remarks[0]
    small = made((Side.LEFT,))
    image = write(tmp_path / "image.nii.gz", small.volume.voxels, small.volume.grid)
    labels = write(tmp_path / "one.nii.gz", label_map(small.masks), small.volume.grid)
    case = read(image, labels, THREE, side=Side.LEFT)
    same(case, small.volume, small.masks)
    assert case.whole


def test_a_sparsely_outlined_head_is_refused(images: Path, tmp_path: Path) -> None:
    """A few rows of one slice: less than the smallest head has."""
    values = (label_map(made().masks) == 1).astype(np.uint8)
    z = np.argwhere(values)[:, 0]
    values[z.min() + 1 :] = 0
    assert 0 < values.sum() * made().volume.grid.voxel_ml / 2 < 4 / 3 * np.pi * 1.2**3
    labels = nifti_labels(tmp_path / "labels.nii.gz", values)
    with pytest.raises(Problem, match="every slice that shows the head must be outlined"):
        read(images, labels, THREE, side=Side.RIGHT)


def test_edema_outside_the_head_is_left_out_and_said(images: Path, tmp_path: Path) -> None:
    truth = made()
    masks = []
    for item in truth.masks:
        voxels = item.voxels.copy()
        voxels[Channel.BME, :, :4, :4] = True
        masks.append(Masks(side=item.side, voxels=voxels))
    case = read(images, slicer(tmp_path / "s.seg.nrrd", masks[:1]))
    np.testing.assert_array_equal(case.masks[0].voxels, truth.masks[0].voxels)
    stray = 18 * 16 * truth.volume.grid.voxel_ml
    assert f"{stray:.2f} mL of edema outside the right head left out" in case.remarks


def test_edema_cut_out_of_an_overlapping_head_is_asked_about(images: Path, tmp_path: Path) -> None:
    truth = made()
    masks = []
    for item in truth.masks:
        voxels = item.voxels.copy()
        voxels[Channel.FEMORAL_HEAD] &= ~voxels[Channel.BME]
        masks.append(Masks(side=item.side, voxels=voxels))
    labels = slicer(tmp_path / "s.seg.nrrd", masks)
    with pytest.raises(Problem, match="head_includes_bme = false"):
        read(images, labels)
    same(read(images, labels, "head_includes_bme = false\n"), truth.volume, truth.masks)


def test_numbers_are_for_labels_without_a_name(images: Path, tmp_path: Path) -> None:
    """One labels.toml for label maps and for files whose labels have names."""
    same(
        read(images, seg(tmp_path / "seg.dcm"), THREE),
        made().volume,
        analysed().masks,
    )


@pytest.mark.parametrize(
    ("toml", "words"),
    (
        ("femoral_head = [1, 1]", "names the label 1 twice"),
        ('head = "x"', "has the key 'head'; it may have femoral_head, bme, synovitis"),
        ("[bme]\nmiddle = 3", "bme.middle is neither right, left nor both"),
        ("bme = 1.5", "lists 1.5; a label is a number or a name"),
        ("head_includes_bme = 1", "write true or false"),
        ("bme = ", "is no TOML"),
    ),
)
def test_a_wrong_naming_is_named(tmp_path: Path, toml: str, words: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(toml)
    with pytest.raises(Problem, match=words):
        read_naming(path)


# --- the table -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "words"),
    (
        (["patient,image"], "no column labels"),
        (["patient,image,labels,age"], "has the column age"),
        (["patient,image,labels"], "lists no case"),
        (["patient,image,labels", "p1,a"], "line 2: labels is empty"),
        (["patient,image,labels", "p1,a,b", "p2,./a,c"], "line 3: the image of line 2 once more"),
        (["patient,image,labels,name", "p,a,b,../x"], "the name '../x' may have letters"),
        (["patient,image,labels,name", "p,a,b,x", "p,c,d,x"], "the name x comes twice"),
        (["patient,image,labels,side", "p,a,b,R"], "side is 'r'; write right, left or nothing"),
    ),
)
def test_a_wrong_table_is_named(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(Problem, match=words):
        read_table(path)


def test_names_are_made_of_patients(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("patient, image, labels\n\np 1,a,x\np 1,b,y\n\nq,c,z\n")
    assert [item.name for item in read_table(path)] == ["p-1", "p-1-2", "q"]
    assert read_table(path)[0].image == tmp_path / "a"


# --- the command -----------------------------------------------------------------------------
@pytest.fixture
def table(images: Path, tmp_path: Path) -> Path:
    """Three cases of two patients, in three formats; the second has edema without a head."""
    truth = made()
    shutil.copytree(images, tmp_path / "a" / "images")
    seg(tmp_path / "a" / "seg.dcm")
    write(tmp_path / "b" / "image.nii.gz", truth.volume.voxels, truth.volume.grid)
    bad = label_map(truth.masks)
    bad[bad == 1] = 0
    write(tmp_path / "b" / "labels.nii.gz", bad, truth.volume.grid)
    write(tmp_path / "c" / "image.nii.gz", truth.volume.voxels, truth.volume.grid)
    slicer(tmp_path / "c" / "s.seg.nrrd", truth.masks)
    with (tmp_path / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient", "image", "labels", "name"])
        writer.writerow(["p1", "a/images", "a/seg.dcm", "first"])
        writer.writerow(["p1", "b/image.nii.gz", "b/labels.nii.gz", "second"])
        writer.writerow(["DOE^JANE", "c/image.nii.gz", "c/s.seg.nrrd", "third"])
    (tmp_path / "labels.toml").write_text(THREE + 'ignore = ["acetabulum"]\n')
    return tmp_path / "cases.csv"


def run(table: Path, *more: str) -> Any:
    arguments = ["--table", str(table), "--out", str(table.parent / "set"), *more]
    return CliRunner().invoke(annotated, arguments)


def test_one_bad_case_stops_and_nothing_is_written(table: Path) -> None:
    before = sorted(table.parent.iterdir())
    result = run(table, "--labels", str(table.parent / "labels.toml"))
    assert result.exit_code == 1
    assert "Error: case second (line 3): no femoral head is labelled" in result.output
    assert sorted(table.parent.iterdir()) == before


def test_keep_going_writes_the_others_and_lists_the_problems(table: Path) -> None:
    labels = str(table.parent / "labels.toml")
    result = run(table, "--labels", labels, "--keep-going", "--pictures")
    assert result.exit_code == 1
    assert "1 cases were left out:\n  case second (line 3): no femoral head" in result.output
    assert "case third: the column patient looks like a DICOM patient name" in result.output
    assert "labels.toml: no case has the label 1, 2, 3, acetabulum" in result.output
    assert "2 cases of 2 patients; 4 hips with a femoral head, 4 with BME" in result.output
    folder = table.parent / "set"
    cases = dataset.list_cases([folder])
    assert [(case.name, case.patient, case.kind) for case in cases] == [
        ("first", "p1", "annotated"),
        ("third", "DOE^JANE", "annotated"),
    ]
    about = json.loads((folder / "set.json").read_text())
    assert about["left_out"] == 1
    assert about["formats"] == {"DICOM + DICOM SEG": 1, "NIfTI + NRRD": 1}
    assert "DOE" not in json.dumps(about)
    assert len(about["table_sha256"]) == 64
    picture = np.asarray(Image.open(folder / "pictures" / "third.png").convert("RGB"))
    # outlines of the heads in their colour
    assert (np.abs(picture.astype(int) - (0, 200, 220)).max(axis=2) < 12).sum() > 500


def good(table: Path) -> Path:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1], lines[3].replace("DOE^JANE", "p2")]) + "\n")
    return table


def test_the_set_holds_what_the_networks_read(table: Path) -> None:
    result = run(good(table), "--json")
    assert result.exit_code == 0, result.output
    cases = dataset.list_cases([table.parent / "set"])
    crops, planes = dataset.read_crops(cases), dataset.read_planes(cases)
    assert sorted(set(crops.patients)) == ["p1", "p2"]
    assert sorted(set(crops.hips)) == [0, 1, 2, 3]
    assert len(planes) == 2 * 18
    inside = crops.truths > 127
    assert inside.any(axis=(0, 2, 3)).all()
    head, edema = inside[:, Channel.FEMORAL_HEAD], inside[:, Channel.BME]
    assert (edema & ~head).sum() < 0.02 * edema.sum()
    figures = json.loads(result.stdout)
    assert figures["hips"] == 4
    truth = made()
    for hip, masks in zip(figures["cases"][1]["hips"], truth.masks, strict=True):
        head = masks.voxels[Channel.FEMORAL_HEAD].sum() * truth.volume.grid.voxel_ml
        assert hip["head_ml"] == pytest.approx(head, abs=1e-3)
        assert hip["side"] == masks.side.value


def test_the_same_table_makes_the_same_set(table: Path) -> None:
    good(table)
    for name in ("one", "two"):
        arguments = ["--table", str(table), "--out", str(table.parent / name)]
        assert CliRunner().invoke(annotated, arguments).exit_code == 0
    for name in ("first.npz", "third.npz"):
        with (
            np.load(table.parent / "one" / name) as one,
            np.load(table.parent / "two" / name) as two,
        ):
            assert one.files == two.files
            for key in one.files:
                np.testing.assert_array_equal(one[key], two[key])


def test_an_old_set_is_not_overwritten(table: Path) -> None:
    out = table.parent / "set"
    out.mkdir()
    (out / "old.npz").write_bytes(b"old")
    result = run(good(table))
    assert result.exit_code == 1
    assert "is not empty; give a new folder" in result.output
    assert [item.name for item in out.iterdir()] == ["old.npz"]


def test_nothing_usable_leaves_nothing(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[2]]) + "\n")
    result = run(table, "--keep-going")
    assert result.exit_code == 1
    assert "no case can be used: case second (line 2): label 2 is not known" in result.output
    assert not (table.parent / "set").exists()


def test_held_out_patients_are_truth_to_measure_on(table: Path) -> None:
    good(table)
    [case] = annotated_cases(table, patients=["p2"])
    assert (case.name, case.patient) == ("third", "p2")
    volume, masks = case.make()
    np.testing.assert_array_equal(volume.voxels, made().volume.voxels)
    for mine, other in zip(masks, made().masks, strict=True):
        np.testing.assert_array_equal(mine.voxels, other.voxels)
    assert len(annotated_cases(table)) == 2
    with pytest.raises(Problem, match=r"cases\.csv has no patient p9"):
        annotated_cases(table, patients=["p2", "p9"])


# --- what the guide says ---------------------------------------------------------------------
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_labels_toml_of_the_guide_is_read(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "labels.toml"
    path.write_text(example)
    naming = read_naming(path)
    assert naming.meanings["caput links"] == Meaning(structure=Channel.FEMORAL_HEAD, side=Side.LEFT)
    assert naming.meanings[3] == Meaning(structure=Channel.BME)
    assert naming.meanings["acetabulum"] is None


def commands_of_the_guide() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words and words[0] in {"hiptrain", "hipscore"}]


@pytest.mark.parametrize("words", commands_of_the_guide(), ids=" ".join)
def test_the_commands_of_the_guide_exist_as_written(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Click itself judges command, options and values; nothing is run."""
    scripts = {"hipscore": hipscore.cli.group, "hiptrain": hiptrain.cli.main}
    command: Any = scripts[words[0]]
    context, arguments = click.Context(command), words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"{shlex.join(words)}: there is no {arguments[0]}"
        command, arguments = found, arguments[1:]
    for option in command.params:
        if isinstance(option.type, click.Path):
            monkeypatch.setattr(option, "type", click.STRING)  # its files are not there
    with command.make_context(words[1], arguments):
        pass


def test_every_command_is_in_the_guide() -> None:
    shown = {words[1] for words in commands_of_the_guide() if words[0] == "hiptrain"}
    assert shown == set(hiptrain.cli.main.commands)
