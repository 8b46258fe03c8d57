"""Networks and losses: shapes, numbers against analytic truth, torch against ONNX."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn.functional import interpolate

from hiptrain import augment, export, losses, specs
from hiptrain.networks import (
    LOCALISER_DESIGN,
    SEGMENTERS,
    Design,
    Probability,
    UNet,
    build,
    measure,
    per_side,
    restore_network,
)
from hiptrain.networks.pointrend import PointHead, sampled

SMALL = [
    Design(kind=kind, width=8, point_rend=point_rend, points=64)
    for kind in SEGMENTERS
    for point_rend in (False, True)
]
TITLES = [design.title for design in SMALL]


@pytest.mark.parametrize("design", SMALL, ids=TITLES)
def test_logits_have_the_crops_size(design: Design) -> None:
    spec = specs.SEGMENTER
    network = build(design).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, spec.context, spec.rows, spec.columns))
    assert network.design == design
    assert logits.shape == (2, 3, spec.rows, spec.columns)


def test_the_localiser_answers_at_the_planes_size() -> None:
    spec = specs.LOCALISER
    network = build(LOCALISER_DESIGN).eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, spec.context, spec.rows, spec.columns))
    assert logits.shape == (1, 2, spec.rows, spec.columns)


@pytest.mark.parametrize("stem", (1, 2))
def test_the_hrnet_keeps_full_or_half_resolution(stem: int) -> None:
    network = build(Design(kind="hrnet", width=8, stem=stem)).eval()
    finest: list[torch.Size] = []
    network.body.first.register_forward_hook(lambda *given: finest.append(given[2].shape))
    with torch.no_grad():
        logits = network(torch.zeros(1, network.design.inputs, 64, 32))
    assert finest == [(1, 8, 64 // stem, 32 // stem)]
    assert logits.shape == (1, 3, 64, 32)


def test_a_design_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet': choose one of unet"):
        Design(kind="resnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not for the localiser"):
        Design(kind="localiser", point_rend=True)


@pytest.mark.parametrize("design", (*SMALL, LOCALISER_DESIGN), ids=lambda design: design.title)
def test_the_same_seed_makes_the_same_network_and_the_same_step(design: Design) -> None:
    after = []
    for _ in range(2):
        torch.manual_seed(4)
        network = build(design)
        pictures, truth = rings(design, 2, seed=1)
        loss = losses.loss_of(network, pictures, truth)
        loss.backward()
        assert all(weight.grad is not None for weight in network.parameters())
        after.append((loss.detach(), *(weight.grad for weight in network.parameters())))
    for first, second in zip(*after, strict=True):
        assert torch.equal(first, second)


def rings(
    design: Design, count: int, *, seed: int, rows: int = 32, columns: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy discs with a bright part and a thin ring: pictures and truths of a design."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    middle = 0.35 + 0.3 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 0.28 * min(rows, columns)
    far = torch.hypot(y - rows * middle[:, 0], x - columns * middle[:, 1])
    head = far < radius
    truth = torch.stack([head, head & (x < columns * middle[:, 1]), (far - radius).abs() < 1], 1)
    brightness = torch.tensor([0.4, 0.8, 1.2]).view(1, 3, 1, 1)
    picture = (truth * brightness).sum(dim=1, keepdim=True).repeat(1, design.inputs, 1, 1)
    noise = 0.1 * torch.randn(picture.shape, generator=generator)
    return picture + noise, truth[:, : design.outputs].float()


@cache
def learned(design: Design) -> tuple[torch.nn.Module, list[float]]:
    """A network after a hundred quick steps, and the loss of each step."""
    torch.manual_seed(2)
    network = build(design)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3, fused=True)
    course = []
    for step in range(100):
        pictures, truth = rings(design, 4, seed=step)
        loss = losses.loss_of(network, pictures, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        course.append(float(loss.detach()))
    return network.eval(), course


@pytest.mark.parametrize("design", SMALL, ids=TITLES)
def test_a_hundred_steps_lower_the_loss(design: Design) -> None:
    network, course = learned(design)
    assert np.mean(course[-5:]) < 0.6 * np.mean(course[:5])
    pictures, truth = rings(design, 16, seed=1000)
    with torch.no_grad():
        logits = network(pictures)
        loss = losses.loss_of(network, pictures, truth)
    head, part, ring = losses.dice(losses.dice_counts(logits, truth))
    assert head > 0.85, (head, part, ring)
    torch.testing.assert_close(loss, losses.segmentation_loss(logits, truth))


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("design", (*SMALL, LOCALISER_DESIGN), ids=lambda design: design.title)
def test_onnx_answers_like_torch(design: Design, tmp_path: Path) -> None:
    network = learned(design)[0] if design in SMALL else restarted(design)
    model = Probability(network).eval()
    example, _ = rings(design, 1, seed=0, rows=96, columns=64)
    export.write_onnx(model, example.numpy(), tmp_path / "model.onnx")
    export.check_parity(model, example.numpy(), tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        pictures, _ = rings(design, batch, seed=batch, rows=96, columns=64)
        with torch.no_grad():
            expected = model(pictures).numpy()
        (answer,) = session.run(None, {"pictures": pictures.numpy()})
        assert answer.shape == (batch, design.outputs, 96, 64)
        np.testing.assert_allclose(answer, expected, atol=1e-4, rtol=0)
        assert expected.max() - expected.min() > 0.5


def restarted(design: Design) -> torch.nn.Module:
    """An untrained network whose last layer is made large, so that it is sure of itself."""
    torch.manual_seed(2)
    network = build(design)
    network.head.weight.data *= 100
    return network.eval()


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_file_of_another_network_is_found_out(tmp_path: Path) -> None:
    design = Design(kind="localiser", inputs=1, outputs=1, width=4, depth=1)
    one, other = (Probability(build(design).eval()).eval() for _ in range(2))
    example = torch.rand(1, 1, 32, 32).numpy()
    export.write_onnx(one, example, tmp_path / "model.onnx")
    assert export.check_parity(one, example, tmp_path / "model.onnx") <= 1e-5
    with pytest.raises(ValueError, match=r"model\.onnx answers differently from its network"):
        export.check_parity(other, example, tmp_path / "model.onnx")


def test_point_rendering_changes_the_uncertain_pixels_and_no_others() -> None:
    torch.manual_seed(0)
    head = PointHead(features=4, outputs=3, points=50).eval()
    features, logits = torch.randn(2, 4, 32, 32), 60 * torch.randn(2, 3, 8, 8)
    coarse = 4 * torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        refined = head.subdivide(logits, coarse, features)
    doubled = interpolate(logits, scale_factor=2, mode="bilinear")
    assert refined.shape == doubled.shape == (2, 3, 16, 16)
    sure = doubled.abs().amin(dim=1)
    changed = (refined != doubled).any(dim=1)
    for each in range(2):
        limit = sure[each].flatten().sort().values[49]
        assert torch.equal(changed[each], sure[each] < limit)
        assert int(changed[each].sum()) == 49  # the fiftieth is the limit itself
        # well inside the choice, the perceptron's answer stands alone
        y, x = divmod(int(sure[each].argmin()), 16)
        place = torch.tensor([[[(x + 0.5) / 16, (y + 0.5) / 16]]])
        assert limit > 2
        assert sure[each].min() < limit / 2
        with torch.no_grad():
            new = head.at(place, coarse[each : each + 1], features[each : each + 1])
        torch.testing.assert_close(refined[each, :, y, x], new[0, :, 0], atol=1e-5, rtol=1e-5)


def test_equal_uncertainty_cannot_make_two_runtimes_disagree() -> None:
    """Pixels that differ in the last digit may be chosen in any order: the answer stays."""
    torch.manual_seed(0)
    head = PointHead(features=4, outputs=2, points=40).eval()
    head.last.bias.data.fill_(20.0)  # a new value is far from the old one
    features, coarse = torch.randn(1, 4, 32, 32), torch.randn(1, 2, 4, 4)
    logits = (torch.rand(1, 2, 8, 8) * 4).round() / 2  # many equal values
    with torch.no_grad():
        plain = head.subdivide(logits, coarse, features)
        noisy = head.subdivide(logits + 1e-6 * torch.randn(logits.shape), coarse, features)
    assert float((plain - interpolate(logits, scale_factor=2, mode="bilinear")).max()) > 5
    assert float((plain - noisy).abs().max()) < 1e-4


def test_three_steps_lead_from_an_eighth_to_full_resolution() -> None:
    head = PointHead(features=4, outputs=3, points=20).eval()
    taken: list[torch.Size] = []
    head.last.register_forward_hook(lambda *given: taken.append(given[2].shape))
    with torch.no_grad():
        features = torch.randn(1, 4, 64, 32)
        assert head.coarse(features).shape == (1, 3, 8, 4)
        assert head(features).shape == (1, 3, 64, 32)
    assert taken == [(1, 3, 20)] * 3


def test_values_at_pixel_centres_are_the_pixels() -> None:
    values = torch.randn(2, 3, 6, 8)
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8, indexing="ij")
    centres = torch.stack([x, y], dim=-1).view(1, 48, 2).expand(2, -1, -1)
    torch.testing.assert_close(sampled(values, centres), values.flatten(2), atol=1e-5, rtol=1e-5)


def test_training_points_lie_mostly_where_the_coarse_answer_is_uncertain() -> None:
    torch.manual_seed(0)
    head = PointHead(features=4, outputs=2, points=2000)
    columns = (torch.arange(16.0) + 0.5) / 16 - 0.25  # zero at a quarter of the width
    coarse = torch.stack([20 * columns, torch.full((16,), 9.0)]).view(1, 2, 1, 16)
    points = head.draw(coarse.expand(3, -1, 20, -1))
    assert points.shape == (3, 2000, 2)
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    near = (points[..., 0] - 0.25).abs() < 0.126
    # three quarters are the best quarter of 6000 candidates; a quarter falls there by chance
    assert float(near.float().mean()) == pytest.approx(0.75 + 0.25 * 0.25, abs=0.03)


def test_a_checkpoint_from_before_there_was_a_choice_still_loads() -> None:
    """Its design names no kind, its weights are called as they were."""
    conv = ("weight",)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    block = {f"{at}.{part}" for at in (0, 3) for part in conv}
    block |= {f"{at}.{part}" for at in (1, 4) for part in norm}
    layers = {
        f"{name}.{part}" for name in ("stem", "rise", "up.0", "head") for part in ("weight", "bias")
    }
    expected = layers | {f"{at}.{part}" for at in ("down.0", "down.1", "merge.0") for part in block}
    design: dict[str, Any] = {
        "inputs": 3,
        "outputs": 2,
        "width": 4,
        "depth": 1,
        "widest": 4,
        "stem": 2,
    }
    torch.manual_seed(0)
    weights = UNet(Design(kind="localiser", **design)).state_dict()
    assert set(weights) == expected
    network = restore_network({"design": design, "weights": weights})
    assert network.design.kind == "localiser"
    assert not network.training
    picture = torch.rand(1, 3, 16, 16)
    assert network(picture).shape == (1, 2, 16, 16)


def test_costs_are_counted() -> None:
    """A localiser without levels worth mentioning: arithmetic that can be done by hand."""
    network = build(Design(kind="localiser", inputs=1, outputs=1, width=2, depth=0)).eval()
    pixels = 8 * 8
    macs = pixels * (1 * 2 * 9 + 2 * 2 * 9 + 2 * 1)
    assert measure.flops(network, np.zeros((1, 1, 8, 8), np.float32)) == 2 * macs
    row = measure.Cost(
        name="U-Net", width=8, parameters=1234, gflop=0.5, megabytes=1.25, latency_ms=3.21
    )
    assert "| U-Net | 8 | 1,234 | 0.50 | 1.25 | 3.2 |" in measure.text([row])


def test_position_lets_a_network_tell_left_from_right() -> None:
    torch.manual_seed(0)
    network = build(
        Design(kind="localiser", inputs=1, outputs=1, width=4, depth=1, across=True)
    ).eval()
    flat = torch.ones(1, 1, 16, 16)
    logits = network(flat)
    assert not torch.allclose(logits, logits.flip(-1), atol=1e-4)


@pytest.mark.parametrize("design", (*SMALL, LOCALISER_DESIGN), ids=lambda design: design.title)
def test_a_checkpoint_restores_the_network(design: Design) -> None:
    torch.manual_seed(0)
    network = build(design).eval()
    saved = {"design": design.as_dict(), "weights": network.state_dict()}
    picture = torch.randn(1, design.inputs, 32, 32)
    restored = restore_network(saved)
    assert restored.design == design
    with torch.no_grad():
        assert torch.equal(restored(picture), network(picture))


def test_a_perfect_answer_costs_nothing_and_a_wrong_one_much() -> None:
    truth = torch.zeros(2, 3, 8, 8)
    truth[:, :, 2:6, 2:6] = 1.0
    right = torch.where(truth > 0, 30.0, -30.0)
    assert float(losses.segmentation_loss(right, truth)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.segmentation_loss(-right, truth)) > 10


def test_sides_are_shares_of_the_head() -> None:
    head, right = torch.tensor([2.0, -3.0, 0.5]), torch.tensor([1.0, 4.0, -2.0])
    raw = torch.stack([head, right]).view(1, 2, 1, 3)
    found = torch.sigmoid(per_side(raw)).view(2, 3)
    torch.testing.assert_close(found.sum(dim=0), torch.sigmoid(head))
    torch.testing.assert_close(found[0], torch.sigmoid(head) * torch.sigmoid(right))


def test_the_wrong_side_costs_even_where_the_head_is_right() -> None:
    truth = torch.zeros(1, 2, 8, 8)
    truth[:, 0, :, :4], truth[:, 1, :, 4:] = 1.0, 1.0
    raw = torch.full((1, 2, 8, 8), 20.0)
    raw[:, 1, :, 4:] = -20.0
    assert float(losses.sided_loss(raw, truth)) < 0.01
    raw[:, 1] *= -1
    assert float(losses.sided_loss(raw, truth)) > 5


def test_dice_of_half_overlapping_squares() -> None:
    truth, logits = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), -1.0)
    truth[..., 0:4, 0:4] = 1.0
    logits[..., 0:4, 2:6] = 1.0
    assert losses.dice(losses.dice_counts(logits, truth)) == [0.5]


def test_nothing_found_where_nothing_is_counts_as_right() -> None:
    nothing = torch.full((1, 2, 8, 8), -1.0)
    assert all(map(math.isnan, losses.dice(losses.dice_counts(nothing, torch.zeros(1, 2, 8, 8)))))


def test_picture_and_truth_change_alike() -> None:
    """A bright disc stays under its mask whatever is done to it; sides are swapped with it."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    right = ((y - 48) ** 2 + (x - 30) ** 2 < 144).float()
    left = ((y - 48) ** 2 + (x - 66) ** 2 < 144).float()
    truth = torch.stack([right, left]).repeat(16, 1, 1, 1)
    pictures = truth.sum(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    changes = augment.Changes(
        turn=14, scale=(0.8, 1.2), shift=0.05, elastic=0.01, gamma=(1, 1), noise=0.0, mirror=True
    )
    generator = torch.Generator().manual_seed(0)
    new, masks = augment.changed(pictures.clone(), truth.clone(), changes, generator)
    assert not torch.allclose(new, pictures)
    covered = masks.sum(dim=1) > 0.5
    assert float(((new[:, 1] > 0.45) == covered).float().mean()) > 0.99
    columns = torch.arange(96.0)
    middle = (masks.sum(dim=2) * columns).sum(dim=-1) / masks.sum(dim=(2, 3))
    assert bool((middle[:, 0] < middle[:, 1]).all())  # the right hip stays on the picture's left


def test_a_window_blackens_picture_and_truth() -> None:
    ones = torch.ones(8, 2, 64, 64)
    changes = augment.Changes(
        turn=0, scale=(1, 1), shift=0, elastic=0, gamma=(1, 1), noise=0.0, window=1.0
    )
    new, masks = augment.changed(
        ones.clone(), ones.clone(), changes, torch.Generator().manual_seed(3)
    )
    assert bool(((new[:, 0] > 0) == (masks[:, 0] > 0)).all())
    assert 0.1 < float((masks > 0).float().mean()) < 0.9
