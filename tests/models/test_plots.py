"""The plots of an evaluation are drawn, whatever there is to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hipscore.phantom import Burden
from hiptrain import plots
from hiptrain.figures import STRUCTURES, CaseFigures, HipFigures
from hiptrain.metrics import Overlap


def figures(seed: int, burden: Burden) -> CaseFigures:
    rng = np.random.default_rng(seed)
    hips = []
    for side in ("right", "left"):
        ml = float(rng.uniform(0.5, 20)) * burden.level
        overlaps = {
            name: Overlap(
                truth_ml=ml,
                found_ml=ml,
                shared_ml=0.9 * ml,
                dice=float(rng.uniform(0.7, 0.99)) if ml or name == "head" else None,
                hd95_mm=2.0,
                surface_mm=0.5,
            )
            for name in STRUCTURES
        }
        score = float(rng.uniform(0, 3)) * burden.level
        found = score + float(rng.normal(0, 0.3)) if score else 0.0
        hips.append(
            HipFigures(
                side=side,
                found=True,
                side_right=True,
                centre_error_mm=1.0,
                structures=overlaps,
                score=score,
                found_score=found,
            )
        )
    return CaseFigures(
        name=f"case-{seed}",
        patient=f"p{seed}",
        burden=burden.value,
        hips=tuple(hips),
        false_hips=0,
        score=sum(hip.score or 0.0 for hip in hips),
        found_score=sum(hip.found_score or 0.0 for hip in hips),
    )


@pytest.mark.parametrize("count", (8, 1, 0))
def test_every_plot_is_drawn_for_many_cases_and_for_none(count: int, tmp_path: Path) -> None:
    cases = [figures(seed, list(Burden)[seed % 4]) for seed in range(count)]
    paths = plots.plots(cases, tmp_path)
    assert [path.name for path in paths] == [
        "score.png",
        "bland-altman.png",
        "dice.png",
        "dice-by-volume.png",
    ]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(10**6) or ()) > 10
