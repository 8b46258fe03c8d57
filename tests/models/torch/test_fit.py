"""The training loop learns, resumes, stops; what it exports answers like the network."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from hipscore.inference import open_bundle
from hiptrain import export, fit
from hiptrain.dataset import Pictures
from hiptrain.losses import dice, dice_counts, segmentation_loss
from hiptrain.networks import LOCALISER_DESIGN, SEGMENTER_DESIGN, Design, Probability, UNet

SMALL = Design(inputs=3, outputs=3, width=8, depth=2)


def discs(count: int, seed: int = 0) -> Pictures:
    """Discs with a brighter core; the three structures are disc, core and nothing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:64, 0:64]
    inputs = np.zeros((count, 3, 64, 64), dtype=np.float16)
    truths = np.zeros((count, 3, 64, 64), dtype=np.uint8)
    for index in range(count):
        cy, cx, radius = rng.uniform(20, 44), rng.uniform(20, 44), rng.uniform(9, 15)
        disc = np.hypot(y - cy, x - cx) < radius
        core = np.hypot(y - cy, x - cx) < radius / 2
        inputs[index] = 0.3 + 0.5 * disc + 0.5 * core + rng.normal(0, 0.03, (3, 64, 64))
        truths[index, 0] = 255 * disc
        truths[index, 1] = 255 * core
    return Pictures(inputs=inputs, truths=truths)


def recipe(**changes: object) -> fit.Recipe:
    base = fit.Recipe(task="segmenter", steps_per_epoch=8, batch=8, epochs=2, threads=1, rate=5e-3)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_one_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    pictures, truth = fit.tensors(discs(4), slice(0, 4))
    state = fit.begin(recipe(), SMALL)
    state.network.train()
    for _ in range(80):
        loss = segmentation_loss(state.network(pictures), truth)
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step()
    figures = dice(dice_counts(state.network(pictures), truth))
    assert figures[0] > 0.97
    assert figures[1] > 0.93


def test_training_improves_on_unseen_pictures(tmp_path: Path) -> None:
    best = fit.fit(
        recipe(epochs=5, steps_per_epoch=24), discs(48), discs(12, seed=1), tmp_path, design=SMALL
    )
    saved = torch.load(best, weights_only=True)
    assert saved["best"] > 0.3
    with (tmp_path / "segmenter.log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_an_interrupted_training_continues(tmp_path: Path) -> None:
    """Two epochs, then two more from the checkpoint, are four: same weights, one log."""
    training, unseen = discs(16), discs(4, seed=1)
    fit.fit(recipe(epochs=4), training, unseen, tmp_path / "whole", design=SMALL)
    seen: list[str] = []

    class Interrupted(Exception):
        pass

    def stop(text: str) -> None:
        if "epoch 2" in text:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit.fit(recipe(epochs=4), training, unseen, tmp_path / "parts", design=SMALL, tell=stop)
    fit.fit(recipe(epochs=4), training, unseen, tmp_path / "parts", design=SMALL, tell=seen.append)
    assert seen[0] == "resuming after epoch 2"
    whole, parts = (
        torch.load(tmp_path / name / "segmenter.last.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert parts["epoch"] == whole["epoch"] == 4
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], weight, atol=0.05, rtol=0.05)
    rows = (tmp_path / "parts" / "segmenter.log.csv").read_text().splitlines()
    assert len(rows) == 5


def test_training_stops_without_progress_and_without_time() -> None:
    state = fit.begin(recipe(), SMALL)
    assert not fit.finished(recipe(), state)
    state.epoch, state.best_epoch = 9, 3
    assert fit.finished(recipe(patience=6), state)
    assert not fit.finished(recipe(patience=7), state)
    state.seconds = 61.0
    assert fit.finished(recipe(patience=7, minutes=1.0), state)


def test_the_rate_rises_then_falls() -> None:
    state = fit.begin(recipe(), SMALL)
    plan = recipe(steps_per_epoch=100, epochs=4, rate=1.0)
    first, warm = (fit.learning_rate(plan, state, step) for step in (0, 60))
    state.epoch = 3
    last = fit.learning_rate(plan, state, 99)
    assert first < 0.05
    assert warm > 0.9
    assert 0.02 <= last < 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of untrained networks of the real size."""
    folder = tmp_path_factory.mktemp("run")
    for task, design in (("localiser", LOCALISER_DESIGN), ("segmenter", SEGMENTER_DESIGN)):
        torch.manual_seed(1)
        state = fit.begin(recipe(), design)
        fit.save(state, recipe(task=task), folder / f"{task}.best.pt")
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.timeout(600)
def test_the_exported_bundle_answers_like_the_networks(run: Path, tmp_path: Path) -> None:
    about = export.About(id="try", version="0.0.1", name="a try", trained_on="nothing")
    export.export(run, tmp_path, about)
    bundle = open_bundle(tmp_path)
    assert bundle.card.id == "try"
    described = json.loads((tmp_path / "bundle.json").read_text())
    for name, digest in described["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    for task, design in (("localiser", LOCALISER_DESIGN), ("segmenter", SEGMENTER_DESIGN)):
        saved = torch.load(run / f"{task}.best.pt", weights_only=True)
        network = UNet(design)
        network.load_state_dict(saved["weights"])
        spec = bundle.card.localiser if task == "localiser" else bundle.card.segmenter
        session = ort.InferenceSession(
            tmp_path / export.FILES[task], providers=["CPUExecutionProvider"]
        )
        for batch in (1, 3):
            pictures = torch.rand(batch, spec.context, spec.rows, spec.columns)
            with torch.no_grad():
                expected = Probability(network).eval()(pictures).numpy()
            (answer,) = session.run(None, {"pictures": pictures.numpy()})
            np.testing.assert_allclose(answer, expected, atol=1e-4)
