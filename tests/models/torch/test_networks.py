"""Networks, losses and augmentation: shapes, numbers against analytic truth."""

from __future__ import annotations

import pytest
import torch

from hipscore.domain import PlaneSpec
from hiptrain import augment, losses, specs
from hiptrain.networks import (
    LOCALISER_DESIGN,
    SEGMENTER_DESIGN,
    Design,
    UNet,
    per_side,
    restore_network,
)


@pytest.mark.parametrize(
    ("design", "spec"), ((LOCALISER_DESIGN, specs.LOCALISER), (SEGMENTER_DESIGN, specs.SEGMENTER))
)
def test_logits_have_the_pictures_size(design: Design, spec: PlaneSpec) -> None:
    network = UNet(design).eval()
    logits = network(torch.zeros(2, spec.context, spec.rows, spec.columns))
    assert logits.shape == (2, design.outputs, spec.rows, spec.columns)


def test_position_lets_a_network_tell_left_from_right() -> None:
    torch.manual_seed(0)
    network = UNet(Design(inputs=1, outputs=1, width=4, depth=1, across=True)).eval()
    flat = torch.ones(1, 1, 16, 16)
    logits = network(flat)
    assert not torch.allclose(logits, logits.flip(-1), atol=1e-4)


def test_a_checkpoint_restores_the_network() -> None:
    network = UNet(Design(inputs=3, outputs=2, width=4, depth=2, stem=2)).eval()
    saved = {"design": network.design.as_dict(), "weights": network.state_dict()}
    picture = torch.randn(1, 3, 32, 32)
    assert torch.equal(restore_network(saved)(picture), network(picture))


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
    assert losses.dice(losses.dice_counts(nothing, torch.zeros(1, 2, 8, 8))) == [1.0, 1.0]


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
