"""Loss and figure of merit of overlapping structures."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiptrain.networks.pointrend import sampled


def loss_of(network: Any, pictures: Tensor, truth: Tensor) -> Tensor:
    """Run a network and measure its answer; the caller enters autocast if it wants it.

    Parameters
    ----------
    network
        From :func:`hiptrain.networks.build`.
    pictures
        ``(B, C, H, W)``.
    truth
        ``(B, K, H, W)`` share of each pixel inside each structure, 0 to 1.

    Returns
    -------
    Tensor
        Scalar, float32. A network that renders points learns from its coarse answer and
        from random points; in evaluation mode its refined answer is measured like any
        other network's, so that the figure is without chance and comparable.
    """
    if network.design.point_rend and network.training:
        return point_loss(network, pictures, truth)
    return loss_of_answer(network, network(pictures), truth)


def loss_of_answer(network: Any, raw: Tensor, truth: Tensor) -> Tensor:
    """The loss of raw outputs ``(B, K, H, W)``, by what they mean in this network."""
    return (sided_loss if network.design.sides else segmentation_loss)(raw, truth)


def point_loss(network: Any, pictures: Tensor, truth: Tensor) -> Tensor:
    """Loss of the coarse answer plus that of points drawn where it is uncertain.

    After Kirillov et al. 2020, section 3.3; arguments as in :func:`loss_of`.
    """
    features = network.body(pictures)
    coarse = network.head.coarse(features)
    doubtful = network.head.draw(coarse)
    found = network.head.at(doubtful, coarse, features)
    # what is not looked at again is interpolated: that is what the coarse answer must be good for
    whole = F.interpolate(coarse, size=truth.shape[2:], mode="bilinear")
    there = sampled(truth, doubtful)
    return segmentation_loss(whole, truth) + segmentation_loss(
        found.unsqueeze(3), there.unsqueeze(3)
    )


def segmentation_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, each channel on its own.

    Parameters
    ----------
    logits
        ``(B, K, H, W)``.
    truth
        ``(B, K, H, W)`` share of each pixel inside the structure, 0 to 1.

    Returns
    -------
    Tensor
        Scalar, float32. The Dice term runs over the whole batch, so that a picture
        without a structure does not dominate.
    """
    logits, truth = logits.float(), truth.float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth)
    inside = torch.sigmoid(logits)
    overlap = (inside * truth).sum(dim=(0, 2, 3))
    size = inside.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    dice = (2 * overlap + 10.0) / (size + 10.0)
    return entropy + 0.5 * (1.0 - dice).mean()


def sided_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """Loss of a network that says "head" and "right one" apart.

    Learning two channels "right head" and "left head" directly stalls at "every head is
    both": a body is nearly its own mirror image. Here the question of the side has a
    gradient of its own, on the pixels of heads.

    Parameters
    ----------
    raw
        ``(B, 2, H, W)`` logits: it is a head; a head here is the right one.
    truth
        ``(B, 2, H, W)`` share of each pixel inside the right and the left head.
    """
    heads = truth.sum(dim=1, keepdim=True).clamp(0.0, 1.0)
    right = truth[:, :1] / truth.sum(dim=1, keepdim=True).clamp(min=1e-3)
    doubt = F.binary_cross_entropy_with_logits(raw[:, 1:].float(), right, reduction="none")
    side = (doubt * heads).sum() / (heads.sum() + 10.0)
    return segmentation_loss(raw[:, :1], heads) + 0.5 * side


def dice_counts(logits: Tensor, truth: Tensor) -> Tensor:
    """``(3, K)``: pixels in both, in the prediction, in the truth (at one half)."""
    found, real = logits > 0, truth > 0.5
    axes = (0, 2, 3)
    return torch.stack(
        [(found & real).sum(dim=axes), found.sum(dim=axes), real.sum(dim=axes)]
    ).double()


def dice(counts: Tensor) -> list[float]:
    """Dice of each channel from :func:`dice_counts` sums; NaN where there is no such structure.

    With nothing to find there is nothing to measure: a 1 for finding nothing would make
    the network that never finds it the best one.
    """
    both, found, real = counts
    return [
        float(2 * b / (f + r)) if float(r) > 0 else math.nan
        for b, f, r in zip(both, found, real, strict=True)
    ]
