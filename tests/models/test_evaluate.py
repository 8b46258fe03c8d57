"""The figures of merit, on answers whose error is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hipscore import phantom, series
from hiptrain import evaluate
from tests.analytic import Oracle


def test_dice_of_known_overlaps() -> None:
    first, second = np.zeros((2, 4, 4), dtype=bool), np.zeros((2, 4, 4), dtype=bool)
    assert evaluate.overlap_of(first, second) == 1.0
    first[0, :, :2] = True
    assert evaluate.overlap_of(first, second) == 0.0
    second[0, :2, :2] = True
    assert evaluate.overlap_of(first, second) == pytest.approx(2 * 4 / (8 + 4))


def test_a_perfect_segmenter_has_perfect_figures(tmp_path: Path) -> None:
    made = phantom.synthesise(seed=5, rows=256, supersampling=1)
    images = phantom.to_datasets(made)
    oracle = Oracle()
    oracle.learn(made, images)
    volume = series.assemble(images).volume
    case = evaluate.Case(name="p", volume=volume, masks=made.masks)
    figures = evaluate.evaluate([case], oracle)
    total = evaluate.summary(figures)
    assert total["hips"] == 2
    assert total["hips_not_found"] == 0
    assert all(item.centre_error_mm is not None and item.centre_error_mm < 2 for item in figures)
    assert all(item.head_dice is not None and item.head_dice > 0.95 for item in figures)
    shown = evaluate.table({"phantom": total})
    assert "head dice" in shown
    evaluate.write_json({"phantom": figures}, tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["phantom"]["summary"] == total


def test_a_blind_segmenter_misses_both_hips() -> None:
    made = phantom.synthesise(seed=5, rows=256, supersampling=1)
    case = evaluate.Case(name="p", volume=made.volume, masks=made.masks)
    total = evaluate.summary(evaluate.evaluate([case], Oracle()))
    assert total["hips_not_found"] == 2
    assert total["head_dice"] is None
