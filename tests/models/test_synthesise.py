"""Semi-real STIR: a T1 anatomy gets another contrast, lesions and their truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hipscore import series
from hipscore.domain import Channel, Side
from hipscore.phantom import Burden
from hiptrain import anatomy, contrast, synthesise
from tests.models.t1 import FAT, RADIUS, headers, hips, t1_volume


@pytest.fixture(scope="module")
def studied() -> anatomy.Anatomy:
    return anatomy.study(t1_volume(), hips())


def test_the_scale_is_the_signal_of_fat() -> None:
    assert anatomy.fat_signal(t1_volume().voxels) == pytest.approx(FAT)


def test_the_neck_is_found_lateral_and_downwards(studied: anatomy.Anatomy) -> None:
    for hip, neck in zip(studied.hips, studied.necks, strict=True):
        sign = 1 if hip.side is Side.LEFT else -1
        truth = np.array([sign * 0.7, 0.14, -0.7])
        assert neck @ truth / np.linalg.norm(truth) > np.cos(np.deg2rad(15))


def test_the_head_mask_has_the_volume_of_its_sphere(studied: anatomy.Anatomy) -> None:
    sphere_ml = 4 / 3 * np.pi * RADIUS**3 / 1000
    for head in studied.heads:
        assert head.sum() * studied.volume.grid.voxel_ml == pytest.approx(sphere_ml, rel=0.08)


def test_fat_becomes_dark_and_muscle_the_measure(studied: anatomy.Anatomy) -> None:
    tissues = contrast.Tissues(fat=0.2, marrow=0.7, fluid=4.5, soft=(0.12, 0.28))
    voxels = contrast.stir(studied, tissues, np.random.default_rng(0))
    t1 = studied.volume.voxels
    head = studied.heads[0] & (t1 == np.float32(0.65 * FAT))
    assert np.median(voxels[t1 == FAT]) == pytest.approx(0.2, rel=0.1)
    assert np.median(voxels[t1 == np.float32(0.28 * FAT)]) == pytest.approx(1.0, rel=0.1)
    assert np.median(voxels[head]) == pytest.approx(0.7, rel=0.2)
    assert np.median(voxels[t1 < 6]) < 0.05


def test_the_border_of_cortex_and_fat_gets_no_rim() -> None:
    """Mixtures of black and fat have muscle's T1 signal, but are no muscle."""
    t1 = np.zeros((1, 20, 20), dtype=np.float32)
    t1[:, :, 10:] = 1.0
    t1[:, :, 9] = 0.3
    knots, levels = np.array([0.0, 0.3, 1.0]), np.array([0.0, 1.0, 0.2])
    assert contrast._mapped(t1, knots, levels).max() <= 0.2 + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_no_burden_means_no_lesion(studied: anatomy.Anatomy, seed: int) -> None:
    made = synthesise.semireal(
        studied, np.random.default_rng(seed), synthesise.Options(burden=Burden.NONE)
    )
    assert len(made.masks) == 2
    for masks in made.masks:
        assert masks.voxels[Channel.FEMORAL_HEAD].any()
        assert not masks.voxels[Channel.BME].any()
        assert not masks.voxels[Channel.SYNOVITIS].any()


@pytest.mark.parametrize("seed", range(4))
def test_severe_burden_is_bright_where_the_truth_says(studied: anatomy.Anatomy, seed: int) -> None:
    made = synthesise.semireal(
        studied, np.random.default_rng(seed), synthesise.Options(burden=Burden.SEVERE)
    )
    tissue = np.median(made.volume.voxels[studied.t1 > 0.2])
    for masks in made.masks:
        head, edema, effusion = masks.voxels
        assert edema.sum() * made.volume.grid.voxel_ml > 0.2
        assert not (edema & ~head).any()
        assert not (effusion & head).any()
        rest = np.median(made.volume.voxels[head & ~edema])
        assert made.volume.voxels[edema].mean() > 1.1 * rest
        assert np.median(made.volume.voxels[effusion]) > 2 * tissue


def test_the_same_seed_makes_the_same_series(studied: anatomy.Anatomy) -> None:
    options = synthesise.Options(bend=anatomy.Bend())
    first, second = (
        synthesise.semireal(studied, np.random.default_rng(5), options) for _ in range(2)
    )
    np.testing.assert_array_equal(first.volume.voxels, second.volume.voxels)
    assert first.burden is second.burden


def test_bending_moves_image_and_truth_alike() -> None:
    """The marrow of a bent image is where the bent mask says."""
    volume = t1_volume()
    studied = anatomy.study(volume, hips())
    made = synthesise.semireal(
        studied, np.random.default_rng(0), synthesise.Options(burden=Burden.NONE)
    )
    bend = anatomy.Bend()
    for seed in range(4):
        bent, masks = anatomy.deform(volume, made.masks, np.random.default_rng(seed), bend)
        for item in masks:
            inside = bent.voxels[item.voxels[Channel.FEMORAL_HEAD]]
            assert np.mean(np.abs(inside - 0.65 * FAT) < 0.1 * FAT) > 0.9
            x = anatomy.sphere_of(item, bent.grid).centre_mm[0]
            assert (x > 0) == (item.side is Side.LEFT)


def test_written_dicom_is_read_back_as_a_fat_suppressed_series(
    studied: anatomy.Anatomy, tmp_path: Path
) -> None:
    made = synthesise.semireal(
        studied, np.random.default_rng(1), synthesise.Options(burden=Burden.MODERATE)
    )
    images = headers(studied.volume)
    result = synthesise.write(images, made, tmp_path, key="k")
    read = series.assemble(anatomy.read_images(tmp_path))
    np.testing.assert_array_equal(read.volume.voxels, made.volume.voxels)
    first = read.images[0]
    assert first.StudyInstanceUID == "1.2.3"
    assert first.SeriesInstanceUID == result["series_instance_uid"]
    assert str(first.SeriesInstanceUID).startswith("2.25.")
    assert first.InversionTime == 150
    assert first.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "ContrastBolusAgent" not in first
    again = synthesise.to_datasets(images, made.volume.voxels, key="k", new_study=True)
    assert again[0].SOPInstanceUID == first.SOPInstanceUID
    assert again[0].StudyInstanceUID != "1.2.3"


def test_the_truth_is_written_beside_the_images(studied: anatomy.Anatomy, tmp_path: Path) -> None:
    made = synthesise.semireal(
        studied, np.random.default_rng(1), synthesise.Options(burden=Burden.SEVERE)
    )
    synthesise.write(headers(studied.volume), made, tmp_path, key="k", about=[("seed", 1)])
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["seed"] == 1
    assert truth["unet_score"] > 0
    assert [hip["side"] for hip in truth["hips"]] == ["right", "left"]
    with np.load(tmp_path / "truth.npz") as masks:
        for item in made.masks:
            np.testing.assert_array_equal(masks[item.side.value], item.voxels)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no DICOM image"):
        anatomy.read_images(tmp_path)
