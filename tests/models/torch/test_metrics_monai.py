"""The same surface distances as MONAI's, an implementation of other people."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

from hiptrain import metrics

SPACING = (5.2, 0.91, 0.91)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_monai_measures_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rough = ndimage.gaussian_filter(rng.normal(size=(2, 12, 60, 60)), (0, 1.5, 6, 6))
    first, second = (field > np.quantile(field, 0.85) for field in rough)
    one, other = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (first, second))
    farthest = compute_hausdorff_distance(
        one, other, include_background=True, percentile=95, spacing=SPACING
    )
    there, back = (
        compute_average_surface_distance(*pair, include_background=True, spacing=SPACING)
        for pair in ((one, other), (other, one))
    )
    got = metrics.surface_distances(first, second, SPACING)
    assert got is not None
    assert got.hd95_mm == pytest.approx(float(farthest), rel=1e-5)
    assert got.mean_mm == pytest.approx((float(there) + float(back)) / 2, rel=1e-5)
