"""The comparison of precisions, on answers whose difference is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hipscore import phantom
from hipscore.domain import Channel, FloatArray, Masks
from hipscore.inference import open_bundle, shipped_bundle
from hiptrain import evaluate, precision

BUNDLE = shipped_bundle()
FP32 = "fp32, onnxruntime"


@pytest.fixture(scope="module")
def case() -> evaluate.Case:
    made = phantom.synthesise(
        seed=5, rows=256, slices=20, supersampling=1, burden=phantom.Burden.SEVERE
    )
    return evaluate.Case(
        name="p", patient="p", burden="severe", make=lambda: (made.volume, made.masks)
    )


@pytest.fixture(scope="module")
def running() -> dict[str, precision.Running]:
    return precision.start(BUNDLE, threads=1)


@pytest.fixture(scope="module")
def answers(
    case: evaluate.Case, running: dict[str, precision.Running]
) -> dict[str, list[precision.Answer]]:
    return precision.compare([case], running)


class Bolder(precision.Running):
    """fp32 that sees more edema: its probability is raised everywhere."""

    def segment(self, crops: FloatArray) -> FloatArray:
        probability = super().segment(crops).copy()
        probability[:, Channel.BME] = np.minimum(probability[:, Channel.BME] + 0.2, 1.0)
        return probability


def test_the_first_way_differs_from_nothing(
    answers: dict[str, list[precision.Answer]],
) -> None:
    first = precision.summary(answers)[FP32]
    assert (first["hips_found"], first["hips"], first["told_alike"]) == (2, 2, 1)
    assert first["score"]["difference"]["max"] == 0
    assert all(each["min"] == 1 for each in first["likeness"].values())
    assert first["dice"]["head"]["mean"] > 0.9
    assert first["seconds"]["min"] > 0


def test_the_other_ways_find_the_same(answers: dict[str, list[precision.Answer]]) -> None:
    others = {"fp32, OpenVINO", "int8, OpenVINO", "int8, onnxruntime"}
    expected = {FP32} | others | ({"bf16, OpenVINO"} if precision.multiplies_bf16() else set())
    assert set(answers) == expected
    for each in precision.summary(answers).values():
        assert each["told_alike"] == 1
        assert each["likeness"]["head"]["min"] > 0.99
        assert each["score"]["relative"]["max"] < 0.02


def test_a_way_that_sees_more_is_caught(
    case: evaluate.Case, running: dict[str, precision.Running]
) -> None:
    way = replace(precision.ways(BUNDLE, {})[0], name="bolder")
    pair = {FP32: running[FP32], "bolder": Bolder(open_bundle().card, way, threads=1)}
    other = precision.summary(precision.compare([case], pair))["bolder"]
    assert other["likeness"]["bme"]["mean"] < 0.995
    assert other["likeness"]["head"]["min"] == 1
    assert other["score"]["difference"]["max"] > 0.05


def test_ways_of_a_bundle_with_int8_use_its_files(tmp_path: Path) -> None:
    made = precision.ways(tmp_path, {"segmenter": "model.int8.onnx"})
    int8 = [way for way in made if way.name.startswith("int8")]
    assert {way.runtime for way in int8} == {"onnxruntime", "openvino"}
    for way in int8:
        assert way.segmenter.name == "model.int8.onnx"
        assert way.localiser.name == "localiser.onnx"
    assert not any("int8" in way.name for way in precision.ways(tmp_path, {}))


def test_series_without_hips_are_counted(running: dict[str, precision.Running]) -> None:
    brain = phantom.synthesise(seed=321, anatomy="brain", rows=128, supersampling=1)
    hip = phantom.synthesise(seed=5, rows=256, slices=20, supersampling=1)
    series = [("brain-0", brain.volume), ("hip-1", hip.volume)]
    assert precision.refusals(series, {FP32: running[FP32]}) == {
        FP32: {"total": 2, "refused": 1, "alike": 2}
    }


def test_the_tables_say_what_was_measured(answers: dict[str, list[precision.Answer]]) -> None:
    accuracy, apart = precision.tables("phantom", precision.summary(answers))
    assert accuracy.rows[0][:2] == (FP32, "2 of 2")
    assert accuracy.rows[0][2].endswith("(+0.0000)")
    assert apart.rows[0][1] == "1 of 1"
    assert apart.title == f"phantom: difference from {FP32}"
    refused = precision.refusal_table({FP32: {"total": 3, "refused": 2, "alike": 3}})
    assert refused.rows == ((FP32, "2 of 3", "3 of 3"),)


def test_a_hip_that_is_not_found_has_a_dice_of_0(
    case: evaluate.Case, running: dict[str, precision.Running]
) -> None:
    volume, masks = case.make()
    far = [_elsewhere(each) for each in masks]
    moved = replace(case, make=lambda: (volume, tuple(far)))
    lost = precision.compare([moved], {FP32: running[FP32]})[FP32][0]
    assert [hip.found for hip in lost.hips] == [False, False]
    assert [hip.overlaps["head"].dice for hip in lost.hips] == [0.0, 0.0]
    assert [hip.score for hip in lost.hips] == [None, None]


def _elsewhere(masks: Masks) -> Masks:
    """The same truth at the other end of the slice."""
    shift: Sequence[int] = (masks.voxels.shape[2] // 3,)
    return replace(masks, voxels=np.roll(masks.voxels, shift, axis=(2,)))
