"""The phantom: the same study from the same seed, with truth that geometry can check."""

from __future__ import annotations

import io
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage

from hipscore.domain import BoolArray, Channel, DoubleArray, Hip, Masks, Side
from hipscore.phantom import Burden, Phantom, synthesise, to_datasets
from hipscore.scoring import score_hip
from hipscore.series import assemble

pytestmark = pytest.mark.computes

SEEDS = (11, 12, 13)
BOX_3, BOX_5, BOX_9 = (np.ones((1, n, n), dtype=np.bool_) for n in (3, 5, 9))


@cache
def study(seed: int, burden: Burden = Burden.MODERATE, side: Side | None = None) -> Phantom:
    """A study on a smaller matrix than a scanner's, made once per test run."""
    hips = (side,) if side else (Side.RIGHT, Side.LEFT)
    return synthesise(seed=seed, burden=burden, hips=hips, rows=192, supersampling=2)


@cache
def small(**options: object) -> Phantom:
    """A study whose pictures do not matter."""
    return synthesise(**{"seed": 5, "rows": 64, "slices": 8, "supersampling": 1} | options)  # type: ignore[arg-type]


def head_ml(hip: Hip) -> float:
    """Volume of the sphere the head was made from."""
    return 4.0 / 3.0 * np.pi * hip.radius_mm**3 / 1000.0


def volume_ml(phantom: Phantom, masks: Masks, *channels: Channel) -> float:
    """Volume of the union of some structures of one hip."""
    voxels = np.logical_or.reduce([masks.voxels[channel] for channel in channels])
    return float(voxels.sum() * phantom.volume.grid.voxel_ml)


def positions(phantom: Phantom, masks: Masks, channel: Channel) -> DoubleArray:
    """Voxel centres of a structure, (N, 3) LPS mm."""
    return phantom.volume.grid.to_mm(np.argwhere(masks.voxels[channel]).astype(np.float64))


def normal_marrow(phantom: Phantom, masks: Masks) -> float:
    """Median signal of the head away from its edema and its cortex."""
    head, edema = masks.voxels[Channel.FEMORAL_HEAD], masks.voxels[Channel.BME]
    plain = head & ~ndimage.binary_dilation(edema, BOX_9)
    return float(np.median(phantom.volume.voxels[ndimage.binary_erosion(plain, BOX_5)]))


def median_tissue(phantom: Phantom) -> float:
    """Median signal of the body."""
    smooth = ndimage.uniform_filter(phantom.volume.voxels, (1, 7, 7))
    return float(np.median(phantom.volume.voxels[smooth > 0.2 * np.percentile(smooth, 75)]))


def core(mask: BoolArray) -> BoolArray:
    """The mask without the pixels of its outline, which are only partly filled."""
    inner: BoolArray = ndimage.binary_erosion(mask, BOX_3)
    return inner


# one study


def test_the_same_seed_gives_the_same_study() -> None:
    options = {"seed": 3, "rows": 64, "slices": 10, "supersampling": 1}
    first, second = synthesise(**options), synthesise(**options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.volume.voxels, second.volume.voxels)
    np.testing.assert_array_equal(first.volume.grid.affine, second.volume.grid.affine)
    assert first.hips == second.hips
    assert first.volume.sources == second.volume.sources
    for one, other in zip(first.masks, second.masks, strict=True):
        np.testing.assert_array_equal(one.voxels, other.voxels)


def test_another_seed_gives_another_person() -> None:
    assert small(seed=5).hips != small(seed=6).hips
    assert not np.array_equal(small(seed=5).volume.voxels, small(seed=6).volume.voxels)


def test_another_burden_is_the_same_person_in_another_study() -> None:
    healthy, ill = small(burden=Burden.NONE), small(burden=Burden.SEVERE)
    assert healthy.hips == ill.hips
    np.testing.assert_array_equal(healthy.volume.grid.affine, ill.volume.grid.affine)
    uids = [{source.sop_instance_uid for source in p.volume.sources} for p in (healthy, ill)]
    assert uids[0].isdisjoint(uids[1])


def test_values_are_twelve_bit_integers() -> None:
    voxels = study(11).volume.voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, np.rint(voxels))
    assert voxels.min() >= 0
    assert 500 < voxels.max() <= 4095


def test_air_is_dark_and_tissue_is_not() -> None:
    phantom = study(11)
    corner = phantom.volume.voxels[:, :6, :6]
    assert np.median(corner) < 0.15 * median_tissue(phantom)


@pytest.mark.parametrize(
    ("options", "text"),
    (
        ({"hips": ()}, "hips is empty"),
        ({"rows": 0, "columns": 64}, "0 x 64"),
        ({"slices": 0}, "0 slices"),
        ({"slice_mm": 0.0}, "0 mm thick"),
        ({"gap_mm": -1.0}, "-1 mm gaps"),
    ),
)
def test_impossible_scans_are_refused_with_the_value(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        synthesise(seed=1, **options)  # type: ignore[arg-type]


# geometry


@pytest.mark.parametrize("seed", SEEDS)
def test_hips_are_of_human_size(seed: int) -> None:
    right, left = study(seed).hips
    assert (right.side, left.side) == (Side.RIGHT, Side.LEFT)
    for hip in (right, left):
        assert 20.0 <= hip.radius_mm <= 27.0
        assert hip.confidence == 1.0
    assert 158.0 <= np.linalg.norm(np.subtract(left.centre_mm, right.centre_mm)) <= 202.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_hip_lies_on_the_patients_right(seed: int) -> None:
    right, left = study(seed).hips
    assert right.centre_mm[0] < left.centre_mm[0]
    columns = [np.argwhere(masks.voxels[0])[:, 2].mean() for masks in study(seed).masks]
    assert columns[0] < columns[1]  # radiological view: the patient's right is on the left


def test_slices_run_from_the_front_to_the_back_in_radiological_view() -> None:
    affine = study(11).volume.grid.affine
    np.testing.assert_allclose(affine[:3, 0], [0.0, 5.0, 0.0], atol=1e-9)
    assert affine[2, 1] < 0
    assert affine[0, 2] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_of_the_head_lies_where_the_hip_is_said_to_be(seed: int) -> None:
    phantom = study(seed)
    for hip, masks in zip(phantom.hips, phantom.masks, strict=True):
        assert masks.side is hip.side
        centre = positions(phantom, masks, Channel.FEMORAL_HEAD).mean(axis=0)
        assert np.linalg.norm(centre - hip.centre_mm) < 1.0


@pytest.mark.parametrize("tilt_deg", ((12.0, 0.0), (0.0, -10.0), (8.0, 15.0)))
def test_an_oblique_stack_shows_the_same_heads(tilt_deg: tuple[float, float]) -> None:
    phantom = synthesise(seed=11, rows=192, slices=26, supersampling=2, tilt_deg=tilt_deg)
    affine = phantom.volume.grid.affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    tilt = np.degrees(np.arccos(axes[1, 0]))
    expected = np.degrees(np.arccos(np.prod(np.cos(np.radians(tilt_deg)))))
    assert tilt == pytest.approx(expected, abs=1e-6)
    assert phantom.hips == study(11).hips
    for hip, masks in zip(phantom.hips, phantom.masks, strict=True):
        centre = positions(phantom, masks, Channel.FEMORAL_HEAD).mean(axis=0)
        assert np.linalg.norm(centre - hip.centre_mm) < 1.0


@pytest.mark.parametrize("side", list(Side))
def test_a_small_field_of_view_shows_one_hip(side: Side) -> None:
    phantom = study(12, side=side)
    assert [hip.side for hip in phantom.hips] == [side]
    assert [masks.side for masks in phantom.masks] == [side]
    field = phantom.volume.grid.spacing_mm[2] * phantom.volume.grid.shape[2]
    assert 180.0 <= field <= 220.0
    assert volume_ml(phantom, phantom.masks[0], Channel.FEMORAL_HEAD) == pytest.approx(
        head_ml(phantom.hips[0]), rel=0.05
    )


def test_both_hips_need_a_large_field_of_view() -> None:
    grid = study(11).volume.grid
    assert 350.0 <= grid.spacing_mm[2] * grid.shape[2] <= 400.0


def test_a_given_matrix_and_spacing_are_kept() -> None:
    phantom = small(rows=48, columns=64, pixel_mm=5.0, slice_mm=3.0, gap_mm=0.5, slices=7)
    assert phantom.volume.voxels.shape == (7, 48, 64)
    assert phantom.volume.grid.spacing_mm == pytest.approx((3.5, 5.0, 5.0))


def test_an_axial_study_is_axial_and_has_the_hips() -> None:
    phantom = small(plane="axial", rows=96, slices=30)
    assert abs(phantom.volume.grid.affine[2, 0]) == pytest.approx(5.0)
    assert all(volume_ml(phantom, masks, Channel.FEMORAL_HEAD) > 20.0 for masks in phantom.masks)


def test_a_brain_has_no_hips() -> None:
    phantom = small(anatomy="brain")
    assert (phantom.hips, phantom.masks, phantom.burdens) == ((), (), ())
    assert np.median(phantom.volume.voxels[4, 24:40, 24:40]) > 50.0


# truth


@pytest.mark.parametrize("seed", SEEDS)
def test_the_head_has_the_volume_of_its_sphere(seed: int) -> None:
    phantom = study(seed)
    for hip, masks in zip(phantom.hips, phantom.masks, strict=True):
        volume = volume_ml(phantom, masks, Channel.FEMORAL_HEAD)
        assert volume == pytest.approx(head_ml(hip), rel=0.03)


@pytest.mark.parametrize("burden", list(Burden))
def test_edema_lies_in_the_head_and_effusion_outside(burden: Burden) -> None:
    for masks in study(13, burden).masks:
        head, edema, effusion = masks.voxels
        assert not (edema & ~head).any()
        assert not (effusion & head).any()
        assert edema.any() == effusion.any() == (burden is not Burden.NONE)


@pytest.mark.parametrize("seed", SEEDS)
def test_effusion_lies_around_the_joint(seed: int) -> None:
    phantom = study(seed, Burden.SEVERE)
    for hip, masks in zip(phantom.hips, phantom.masks, strict=True):
        fluid = positions(phantom, masks, Channel.SYNOVITIS)
        distance = np.linalg.norm(fluid - hip.centre_mm, axis=1)
        assert distance.min() > hip.radius_mm - 3.0
        assert distance.max() < hip.radius_mm + 45.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_higher_burden_is_a_larger_lesion_and_a_higher_score(seed: int) -> None:
    for index in range(2):
        volumes, scores = [], []
        for burden in Burden:
            phantom = study(seed, burden)
            hip, masks = phantom.hips[index], phantom.masks[index]
            volumes.append(
                [volume_ml(phantom, masks, kind) for kind in (Channel.BME, Channel.SYNOVITIS)]
            )
            scores.append(score_hip(phantom.volume, hip, masks).unet_score)
        assert volumes[0] == [0.0, 0.0]
        assert scores[0] == 0.0
        assert (np.diff(volumes, axis=0) > 0).all()
        assert (np.diff(np.array(scores, dtype=np.float64)) > 0).all()


def test_lesion_volumes_are_those_of_patients() -> None:
    mild = [study(seed, Burden.MILD) for seed in SEEDS]
    severe = [study(seed, Burden.SEVERE) for seed in SEEDS]
    kinds = (Channel.BME, Channel.SYNOVITIS)
    for phantoms, low, high in ((mild, 0.2, 16.0), (severe, 16.0, 100.0)):
        for phantom in phantoms:
            for masks in phantom.masks:
                assert low < volume_ml(phantom, masks, *kinds) < high


def test_each_hip_can_have_its_own_burden() -> None:
    phantom = small(rows=128, burden=_Burdens({Side.LEFT: Burden.SEVERE}), slices=20)
    assert phantom.burdens == (Burden.NONE, Burden.SEVERE)
    right, left = (volume_ml(phantom, masks, Channel.SYNOVITIS) for masks in phantom.masks)
    assert right == 0.0
    assert left > 5.0


class _Burdens(dict[Side, Burden]):
    """A mapping that :func:`small` can keep as a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


@pytest.mark.parametrize("kind", (Channel.BME, Channel.SYNOVITIS))
def test_one_kind_of_lesion_can_be_asked_for_alone(kind: Channel) -> None:
    phantom = small(rows=128, slices=20, kinds=(kind,), burden=Burden.SEVERE)
    for masks in phantom.masks:
        found = {c for c in (Channel.BME, Channel.SYNOVITIS) if masks.voxels[c].any()}
        assert found == {kind}


# signal, against measurements on real STIR (1.5 T, spondyloarthritis)


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_marrow_is_0_6_to_1_5_times_the_median_tissue(seed: int) -> None:
    phantom = study(seed)
    for masks in phantom.masks:
        assert 0.6 <= normal_marrow(phantom, masks) / median_tissue(phantom) <= 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_edema_is_1_1_to_2_5_times_normal_marrow(seed: int) -> None:
    phantom = study(seed)
    for masks in phantom.masks:
        edema = phantom.volume.voxels[masks.voxels[Channel.BME]]
        assert 1.1 <= edema.mean() / normal_marrow(phantom, masks) <= 2.5


def test_edema_is_as_uneven_as_in_patients() -> None:
    spread = []
    for seed in SEEDS:
        phantom = study(seed, Burden.SEVERE)
        for masks in phantom.masks:
            edema = phantom.volume.voxels[masks.voxels[Channel.BME]]
            spread.append(edema.std() / edema.mean())
    assert 0.25 <= np.median(spread) <= 0.45  # about 35 % in patients


@pytest.mark.parametrize("seed", SEEDS)
def test_free_fluid_is_5_to_7_times_the_median_tissue(seed: int) -> None:
    phantom = study(seed, Burden.SEVERE)
    fluid = np.concatenate(
        [phantom.volume.voxels[core(masks.voxels[Channel.SYNOVITIS])] for masks in phantom.masks]
    )
    # coil shading and noise blur the bounds
    assert 4.5 <= np.median(fluid) / median_tissue(phantom) <= 7.5


def test_noise_is_rician_in_air() -> None:
    air = small(anatomy="brain").volume.voxels[:, :10, :10]
    # a Rayleigh distribution has mean / SD = sqrt(pi / (4 - pi)) = 1.913
    assert air.mean() / air.std() == pytest.approx(1.913, abs=0.15)


# DICOM


def validated(image: Dataset, folder: Path) -> list[str]:
    """Write the image and return the errors that dciodvfy finds."""
    path = folder / "image.dcm"
    image.save_as(path, enforce_file_format=True)
    run = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert any("MRImage" in line for line in lines), lines
    return [line for line in lines if line.startswith("Error")]


def reread(image: Dataset) -> Dataset:
    """The image after a round through a Part 10 file."""
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@pytest.mark.parametrize("enhanced", (False, True))
@pytest.mark.parametrize("fat_suppressed", (True, False))
@pytest.mark.parametrize(
    "options",
    ({}, {"hips": (Side.LEFT,)}, {"anatomy": "brain"}, {"plane": "axial"}),
    ids=["both hips", "one hip", "brain", "axial"],
)
def test_dciodvfy_finds_no_error(
    options: dict[str, object], enhanced: bool, fat_suppressed: bool, tmp_path: Path
) -> None:
    images = to_datasets(small(**options), enhanced=enhanced, fat_suppressed=fat_suppressed)
    assert validated(images[0], tmp_path) == []


def test_one_instance_per_slice_that_says_what_it_is() -> None:
    phantom = small()
    images = to_datasets(phantom)
    assert len(images) == 8
    for z, image in enumerate(images):
        assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
        assert image.SOPInstanceUID == phantom.volume.sources[z].sop_instance_uid
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert image.InstanceNumber == z + 1 == phantom.volume.sources[z].instance_number
        assert image.ImagesInAcquisition == 8
        assert image.BodyPartExamined == "PELVIS"
        assert image.SeriesDescription == "COR STIR"
        assert list(image.ScanningSequence) == ["SE", "IR"]
        assert (image.InversionTime, image.RepetitionTime, image.EchoTime) == (150, 4500, 40)
        assert (image.SliceThickness, image.SpacingBetweenSlices) == (4.0, 5.0)
        assert list(image.ImageType[:3]) == ["ORIGINAL", "PRIMARY", "M"]
        assert (image.BitsAllocated, image.BitsStored, image.PixelRepresentation) == (16, 12, 0)
    assert str(images[0].PatientName) == "HIPSCORE^PHANTOM"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        uids = {image[keyword].value for image in images}
        assert len(uids) == 1
        assert next(iter(uids)).startswith("2.25.")
        assert len(next(iter(uids))) <= 64


def test_the_header_can_hide_the_fat_suppression() -> None:
    for image in to_datasets(small(), fat_suppressed=False):
        assert "InversionTime" not in image
        assert image.ScanningSequence == "SE"
        assert "STIR" not in image.SeriesDescription


def test_identity_and_time_are_arguments() -> None:
    image = to_datasets(
        small(),
        study_uid="1.2.3",
        series_uid="1.2.4",
        frame_of_reference_uid="1.2.5",
        patient_name="Müller^Ursula",
        patient_id="X1",
        accession_number="A7",
        study_date="20260131",
        study_time="081500",
        series_number=9,
        series_description="TIRM hips",
        character_set="ISO_IR 100",
    )[0]
    image = reread(image)
    assert (image.StudyInstanceUID, image.SeriesInstanceUID) == ("1.2.3", "1.2.4")
    assert image.FrameOfReferenceUID == "1.2.5"
    assert image.PatientName == "Müller^Ursula"
    assert (image.PatientID, image.AccessionNumber) == ("X1", "A7")
    assert (image.StudyDate, image.SeriesTime) == ("20260131", "081500")
    assert (image.SeriesNumber, image.SeriesDescription) == (9, "TIRM hips")


def test_two_series_of_one_phantom_share_no_instance() -> None:
    first, second = to_datasets(small()), to_datasets(small(), series_uid="1.2.4")
    uids = [{image.SOPInstanceUID for image in images} for images in (first, second)]
    assert uids[0].isdisjoint(uids[1])


def test_writing_twice_gives_the_same_bytes() -> None:
    for enhanced in (False, True):
        once, twice = (to_datasets(small(), enhanced=enhanced)[0] for _ in range(2))
        buffers = io.BytesIO(), io.BytesIO()
        once.save_as(buffers[0], enforce_file_format=True)
        twice.save_as(buffers[1], enforce_file_format=True)
        assert buffers[0].getvalue() == buffers[1].getvalue()


def test_reversed_instances_are_numbered_from_the_back() -> None:
    images = to_datasets(small(), order="reversed")
    positions = [image.ImagePositionPatient[1] for image in images]
    assert positions == sorted(positions, reverse=True)
    assert [image.InstanceNumber for image in images] == list(range(1, 9))


def test_shuffled_instances_keep_their_numbers() -> None:
    images = to_datasets(small(), order="shuffled")
    numbers = [int(image.InstanceNumber) for image in images]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == list(range(1, 9))
    images.sort(key=lambda image: int(image.InstanceNumber))
    positions = [image.ImagePositionPatient[1] for image in images]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    "syntax",
    (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
    ),
    ids=["explicit", "implicit", "RLE", "JPEG-LS"],
)
@pytest.mark.parametrize("enhanced", (False, True))
def test_pixels_survive_the_round_trip(syntax: str, enhanced: bool) -> None:
    phantom = small()
    images = to_datasets(phantom, enhanced=enhanced, transfer_syntax_uid=syntax)
    back = [reread(image) for image in images]
    assert {image.file_meta.TransferSyntaxUID for image in back} == {syntax}
    pixels = back[0].pixel_array if enhanced else np.stack([image.pixel_array for image in back])
    np.testing.assert_array_equal(pixels, phantom.volume.voxels)


@pytest.mark.parametrize("enhanced", (False, True))
@pytest.mark.parametrize("tilt_deg", ((0.0, 0.0), (9.0, -6.0)))
def test_the_service_reads_back_the_volume(enhanced: bool, tilt_deg: tuple[float, float]) -> None:
    phantom = small(tilt_deg=tilt_deg)
    images = to_datasets(phantom, enhanced=enhanced, order="shuffled")
    volume = assemble([reread(image) for image in images]).volume
    np.testing.assert_array_equal(volume.voxels, phantom.volume.voxels)
    np.testing.assert_allclose(volume.grid.affine, phantom.volume.grid.affine, atol=1e-4)
    if not enhanced:
        assert volume.sources == phantom.volume.sources
