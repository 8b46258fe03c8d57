"""The nouns: grids, volumes and what they promise."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipscore import domain
from hipscore.domain import (
    Channel,
    Findings,
    Grid,
    Hip,
    HipFindings,
    Masks,
    ReasonCode,
    Remark,
    Side,
    SliceSource,
    StudyIdentity,
    Unsuitable,
    Volume,
)

#: coronal: slices to the back every 5 mm, rows to the feet, columns to the left
AFFINE = np.array(
    [[0.0, 0.0, 0.8, -100.0], [5.0, 0.0, 0.0, -40.0], [0.0, -0.9, 0.0, 90.0], [0.0, 0.0, 0.0, 1.0]]
)


def grid(shape: tuple[int, int, int] = (4, 3, 2)) -> Grid:
    return Grid(shape=shape, affine=AFFINE.copy())


def sources(count: int) -> tuple[SliceSource, ...]:
    return tuple(
        SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.{z}", instance_number=z)
        for z in range(count)
    )


def test_a_grid_knows_its_steps_and_its_voxels() -> None:
    assert grid().spacing_mm == pytest.approx((5.0, 0.9, 0.8))
    assert grid().pixel_mm2 == pytest.approx(0.72)
    assert grid().voxel_ml == pytest.approx(5 * 0.9 * 0.8 / 1000)
    assert all(type(value) is float for value in (*grid().spacing_mm, grid().voxel_ml))


def test_indices_are_z_y_x_and_positions_x_y_z() -> None:
    np.testing.assert_allclose(grid().to_mm([0, 0, 0]), [-100, -40, 90])
    np.testing.assert_allclose(grid().to_mm([2, 10, 5]), [-96, -30, 81])
    np.testing.assert_allclose(grid().to_index([-96, -30, 81]), [2, 10, 5], atol=1e-9)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=1, max_size=5))
def test_there_and_back(points: list[tuple[float, float, float]]) -> None:
    mm = grid().to_mm(np.array(points))
    assert mm.shape == (len(points), 3)
    np.testing.assert_allclose(grid().to_index(mm), points, atol=1e-6)


def test_arrays_are_read_only_inside() -> None:
    volume = Volume(voxels=np.zeros((4, 3, 2), dtype=np.float32), grid=grid(), sources=sources(4))
    masks = Masks(side=Side.LEFT, voxels=np.zeros((3, 4, 3, 2), dtype=bool))
    for array in (volume.voxels, volume.grid.affine, masks.voxels):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1


@pytest.mark.parametrize(
    ("shape", "count"), (((4, 3, 3), 4), ((3, 3, 2), 3), ((4, 3, 2), 3), ((4, 3, 2), 5))
)
def test_a_volume_agrees_with_its_grid_and_its_sources(
    shape: tuple[int, int, int], count: int
) -> None:
    with pytest.raises(ValueError, match="do not agree"):
        Volume(voxels=np.zeros(shape, dtype=np.float32), grid=grid(), sources=sources(count))


def test_nothing_changes_once_made() -> None:
    hip = Hip(side=Side.LEFT, centre_mm=(1.0, 2.0, 3.0), radius_mm=24.0, confidence=1.0)
    with pytest.raises(FrozenInstanceError):
        hip.radius_mm = 3.0  # type: ignore[misc]
    assert replace(hip, radius_mm=3.0).radius_mm == 3.0


def test_an_unsuitable_series_carries_code_and_text() -> None:
    error = Unsuitable(ReasonCode.NOT_CORONAL, "it is axial")
    assert (error.code, error.text) == (ReasonCode.NOT_CORONAL, "it is axial")
    assert str(error) == "not_coronal: it is axial"


def test_reason_codes_are_stable() -> None:
    assert {code.value for code in ReasonCode} == {
        "no_hip_found",
        "not_coronal",
        "too_few_slices",
        "missing_slices",
        "mixed_geometry",
        "not_fat_suppressed",
        "unsupported_pixel_data",
        "implausible_segmentation",
        "not_mr",
        "no_rule",
    }


def test_channels_are_in_the_order_of_the_networks_output() -> None:
    assert [channel.name for channel in Channel] == ["FEMORAL_HEAD", "BME", "SYNOVITIS"]
    assert list(Channel) == [0, 1, 2]


def test_a_score_or_a_reason() -> None:
    hip = Hip(side=Side.LEFT, centre_mm=(1.0, 2.0, 3.0), radius_mm=24.0, confidence=1.0)
    reason = Remark(code="too_few_slices", text="4 slices")
    assert not HipFindings(hip=hip, reason=reason).scored
    assert HipFindings(hip=hip, reason=None, unet_score=0.0).scored
    assert not Findings(hips=(), reason=reason, unet_score=None).scored
    assert Findings(hips=(), reason=None, unet_score=0.0).scored


def test_every_noun_is_frozen_slotted_and_named_in_full() -> None:
    nouns: list[Any] = [
        noun
        for noun in vars(domain).values()
        if isinstance(noun, type) and hasattr(noun, "__dataclass_fields__")
    ]
    assert len(nouns) > 10
    for noun in nouns:
        assert noun.__dataclass_params__.frozen, noun
        assert "__slots__" in vars(noun), noun
        assert all(field.kw_only for field in fields(noun)), noun


@pytest.mark.parametrize(
    "patient_id",
    (
        *("", "0", "000", "0-0", "ANON", "Anonymous", "anonymized", "UNKNOWN", "TEST", "NONE"),
        *("N/A", "n.a.", "-", "???", "XXX", "Unbekannt"),
    ),
)
def test_what_stands_for_no_patient_id_makes_no_key(patient_id: str) -> None:
    assert StudyIdentity(patient_id=patient_id, issuer_of_patient_id="A").patient_key is None


@pytest.mark.parametrize("patient_id", ("1", "0042", "ANON0042", "TEST-7", "P1", "山田"))
def test_a_pseudonym_is_a_patient_id(patient_id: str) -> None:
    assert StudyIdentity(patient_id=patient_id).patient_key is not None
