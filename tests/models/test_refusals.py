"""What is no hip is refused by the shipped bundle: a reason, and no number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hipscore import hips, phantom
from hipscore.domain import Findings, ReasonCode, Segmenter, Side, Volume
from hipscore.inference import load_segmenter, shipped_bundle
from hipscore.scoring import combine, score_hip
from hiptrain import anatomy, strangers
from tests import real_scans

DRAWN = tuple(kind for kind in strangers.KINDS if kind not in strangers.REAL_KINDS)
#: training draws its seeds far below
SEED = 900_000


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter(threads=1)


@pytest.fixture(scope="module")
def unseen() -> list[anatomy.Anatomy]:
    """The real pelves that the bundle says it was not trained on."""
    described = json.loads((shipped_bundle() / "bundle.json").read_text())
    heads = anatomy.read_heads(real_scans.HEADS)
    names = described["training"]["unseen_series"]
    return [anatomy.load(real_scans.PELVES / f"{name}.tar.xz", heads)[1] for name in names]


def findings(volume: Volume, segmenter: Segmenter) -> Findings:
    """What the pipeline finds in a volume, protocol and headers aside."""
    return combine(
        [
            score_hip(volume, hip, hips.segment(volume, hip, segmenter))
            for hip in hips.locate(volume, segmenter)
        ]
    )


def check_refused(volume: Volume, segmenter: Segmenter) -> None:
    found = findings(volume, segmenter)
    places = [(item.hip.centre_mm, item.hip.confidence) for item in found.hips]
    assert found.hips == (), f"heads found: {places}"
    assert found.reason is not None
    assert found.reason.code == ReasonCode.NO_HIP_FOUND
    assert found.unet_score is None


@pytest.mark.parametrize(
    ("kind", "number"),
    [(kind, n) for kind in DRAWN for n in range(1 if kind.startswith("phantom") else 2)],
)
def test_a_drawn_stranger_is_refused(segmenter: Segmenter, kind: str, number: int) -> None:
    rng = np.random.default_rng([SEED, DRAWN.index(kind), number])
    check_refused(strangers.make(kind, rng), segmenter)


def test_a_hip_under_the_same_conditions_is_not(segmenter: Segmenter) -> None:
    """A field of view as small as a knee's or a shoulder's, around one hip."""
    made = phantom.synthesise(seed=SEED, hips=(Side.LEFT,), rows=208, supersampling=1)
    found = findings(made.volume, segmenter)
    assert [item.hip.side for item in found.hips] == [Side.LEFT]
    assert found.unet_score is not None


@pytest.mark.real_scans(real_scans.PELVES)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", strangers.REAL_KINDS)
def test_a_part_of_an_unseen_pelvis_without_hips_is_refused(
    segmenter: Segmenter, unseen: list[anatomy.Anatomy], kind: str
) -> None:
    for number, pelvis in enumerate(unseen):
        rng = np.random.default_rng([SEED, strangers.KINDS.index(kind), number])
        check_refused(strangers.make(kind, rng, anatomy=pelvis), segmenter)
