"""The shipped bundle: complete, reproducible, and it finds hips."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from hipscore import hips, phantom
from hipscore.domain import Channel, Side
from hipscore.inference import BundleSegmenter, load_segmenter, open_bundle, shipped_bundle
from hipscore.phantom import Burden
from hipscore.scoring import score_hip
from hiptrain import anatomy, evaluate, specs
from tests import real_scans

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def segmenter() -> BundleSegmenter:
    return load_segmenter(threads=1)


def test_the_bundle_is_what_it_says_it_is() -> None:
    bundle = open_bundle()
    assert bundle.card.localiser == specs.LOCALISER
    assert bundle.card.segmenter == specs.SEGMENTER
    assert bundle.card.id == shipped_bundle().name
    described = json.loads((shipped_bundle() / "bundle.json").read_text())
    training = described["training"]
    parts = [training[f"{part}_series"] for part in ("training", "held_out", "unseen")]
    assert len({name for part in parts for name in part}) == sum(map(len, parts))
    assert len(training["unseen_series"]) >= 3


def test_the_bundle_is_small_enough_to_ship() -> None:
    sizes = {path.name: path.stat().st_size for path in shipped_bundle().iterdir()}
    assert sum(sizes.values()) < 20 * MEGABYTE
    assert sizes["reference.npz"] < 0.3 * MEGABYTE
    assert "CARD.md" in sizes


def test_the_bundle_reproduces_its_reference(segmenter: BundleSegmenter) -> None:
    assert segmenter.deviation < 2e-3


def test_the_batch_size_does_not_change_the_answer(segmenter: BundleSegmenter) -> None:
    pictures = np.random.default_rng(0).random(
        (5, specs.SEGMENTER.context, 160, 128), dtype=np.float32
    )
    together = segmenter.segment(pictures)
    alone = np.concatenate([segmenter.segment(picture[None]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("seed", (301, 302, 303))
def test_both_hips_of_a_phantom_are_found(segmenter: BundleSegmenter, seed: int) -> None:
    made = phantom.synthesise(seed=seed, burden=Burden.MODERATE)
    found = hips.locate(made.volume, segmenter)
    assert [hip.side for hip in found] == [Side.RIGHT, Side.LEFT]
    truth = {hip.side: hip for hip in made.hips}
    for hip in found:
        error = np.linalg.norm(np.subtract(hip.centre_mm, truth[hip.side].centre_mm))
        assert error < 8.0


@pytest.mark.parametrize("side", list(Side))
def test_a_single_hip_is_found_on_its_side(segmenter: BundleSegmenter, side: Side) -> None:
    made = phantom.synthesise(seed=311, hips=(side,))
    assert [hip.side for hip in hips.locate(made.volume, segmenter)] == [side]


@pytest.mark.parametrize("seed", (321, 322))
def test_a_brain_has_no_hip(segmenter: BundleSegmenter, seed: int) -> None:
    made = phantom.synthesise(seed=seed, anatomy="brain")
    assert hips.locate(made.volume, segmenter) == ()


def test_noise_has_no_hip(segmenter: BundleSegmenter) -> None:
    made = phantom.synthesise(seed=330, supersampling=1)
    noise = np.random.default_rng(0).rayleigh(20.0, made.volume.grid.shape).astype(np.float32)
    volume = made.volume.__class__(voxels=noise, grid=made.volume.grid, sources=made.volume.sources)
    assert hips.locate(volume, segmenter) == ()


@pytest.mark.parametrize("burden", list(Burden))
def test_a_phantoms_structures_are_outlined(segmenter: BundleSegmenter, burden: Burden) -> None:
    made = phantom.synthesise(seed=340, burden=burden)
    found = {hip.side: hip for hip in hips.locate(made.volume, segmenter)}
    for truth in made.masks:
        masks = hips.segment(made.volume, found[truth.side], segmenter)
        got, wanted = (score_hip(made.volume, found[truth.side], each) for each in (masks, truth))
        overlap = evaluate.overlap_of(
            truth.voxels[Channel.FEMORAL_HEAD], masks.voxels[Channel.FEMORAL_HEAD]
        )
        assert overlap > 0.88
        assert got.bme_ml == pytest.approx(wanted.bme_ml, rel=0.35, abs=0.5)
        assert got.synovitis_ml == pytest.approx(wanted.synovitis_ml, rel=0.25, abs=0.5)
        # the small sections at both ends of the head have the largest ratios
        assert got.unet_score == pytest.approx(wanted.unet_score, rel=0.5, abs=0.5)


@pytest.mark.real_scans(real_scans.PELVES)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("patients", (4, pytest.param(14, marks=pytest.mark.long)))
def test_the_heads_of_real_anatomy_are_found(segmenter: BundleSegmenter, patients: int) -> None:
    """In a contrast the service would decline: anatomy must do."""
    spheres = anatomy.read_heads(real_scans.HEADS)
    with real_scans.HEADS.open(newline="") as stream:
        names = sorted({row["series"] for row in csv.DictReader(stream)})
    errors = []
    for name in names[:patients]:
        _, studied = anatomy.load(real_scans.PELVES / f"{name}.tar.xz", spheres)
        found = {hip.side: hip for hip in hips.locate(studied.volume, segmenter)}
        for hip in studied.hips:
            assert hip.side in found, f"{name}: no {hip.side.value} hip"
            errors.append(
                float(np.linalg.norm(np.subtract(found[hip.side].centre_mm, hip.centre_mm)))
            )
    assert len(errors) == 2 * patients
    assert max(errors) < 8.0
    assert np.median(errors) < 3.0
