"""Random changes of pictures during training, on whole batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How far pictures are changed. Angles in degrees; shares and probabilities of 1."""

    turn: float
    scale: tuple[float, float]
    shift: float
    elastic: float
    gamma: tuple[float, float]
    noise: float
    #: mirror left and right (the two channels of the truth change places)
    mirror: bool = False
    #: probability of a reversed contrast
    reverse: float = 0.0
    #: probability of a smaller field of view: a random rectangle alone
    window: float = 0.0


SEGMENTER_CHANGES = Changes(
    turn=18, scale=(0.86, 1.16), shift=0.04, elastic=0.012, gamma=(0.8, 1.25), noise=0.05
)
LOCALISER_CHANGES = Changes(
    turn=18,
    scale=(0.72, 1.3),
    shift=0.15,
    elastic=0.012,
    gamma=(0.6, 1.6),
    noise=0.08,
    mirror=True,
    reverse=0.12,
    window=0.4,
)


def changed(
    pictures: Tensor, truth: Tensor, changes: Changes, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change pictures ``(B, C, H, W)`` and their truth ``(B, K, H, W)`` alike.

    Same displacement for all channels of a picture; the intensities of the pictures
    change besides.
    """
    grid = _grid(pictures, changes, generator)
    pictures = F.grid_sample(pictures, grid, align_corners=False)
    truth = F.grid_sample(truth, grid, align_corners=False)
    if changes.mirror:
        flip = torch.rand(len(pictures), generator=generator) < 0.5
        pictures[flip] = pictures[flip].flip(-1)
        truth[flip] = truth[flip].flip(-1).flip(1)
    pictures = _contrast(pictures, changes, generator)
    for index in range(len(pictures)):
        if changes.window and float(torch.rand(1, generator=generator)) < changes.window:
            rows, columns = _window(pictures.shape[2], pictures.shape[3], generator)
            pictures[index] = _centred(pictures[index], rows, columns)
            truth[index] = _centred(truth[index], rows, columns)
    return pictures, truth


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _grid(pictures: Tensor, changes: Changes, generator: torch.Generator) -> Tensor:
    """Sampling grid ``(B, H, W, 2)``: rotation, scale, shift and a smooth displacement."""
    count, _, height, width = pictures.shape
    angle = _uniform(-changes.turn, changes.turn, count, generator) * math.pi / 180
    scale = 1 / _uniform(*changes.scale, count, generator)
    stretch = torch.sqrt(_uniform(0.92, 1.08, count, generator))
    sine, cosine = torch.sin(angle), torch.cos(angle)
    ratio = height / width
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * scale * stretch, -sine * scale * ratio
    theta[:, 1, 0], theta[:, 1, 1] = sine * scale / ratio, cosine * scale / stretch
    theta[:, :, 2] = _uniform(-changes.shift, changes.shift, count * 2, generator).view(count, 2)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    coarse = torch.randn(count, 2, 6, 6, generator=generator) * changes.elastic
    waves = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return grid + waves.permute(0, 2, 3, 1)


def _contrast(pictures: Tensor, changes: Changes, generator: torch.Generator) -> Tensor:
    """Gain, gamma, reversal and noise of normalised (logarithmic) intensities."""
    count = len(pictures)

    def each(low: float, high: float) -> Tensor:
        return _uniform(low, high, count, generator).view(-1, 1, 1, 1)

    linear = torch.expm1(pictures)
    linear = linear * torch.exp(each(-0.2, 0.2))
    level = linear + each(0.0, changes.noise) * torch.randn(linear.shape, generator=generator)
    result = torch.log1p(level.abs()) ** each(*changes.gamma)
    if changes.reverse:
        top = result.flatten(1).quantile(0.98, dim=1).view(-1, 1, 1, 1)
        body = (result > 0.15 * top).float()
        other = (top - result).clamp(min=0) * body
        pick = (torch.rand(count, generator=generator) < changes.reverse).view(-1, 1, 1, 1)
        result = torch.where(pick, other, result)
    return result


def _window(height: int, width: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random rectangle of at least 40 % of each side."""
    spans = []
    for size in (height, width):
        share, place = torch.rand(2, generator=generator).tolist()
        length = int(size * (0.4 + 0.6 * share))
        start = int((size - length) * place)
        spans.append(slice(start, start + length))
    return spans[0], spans[1]


def _centred(picture: Tensor, rows: slice, columns: slice) -> Tensor:
    """The rectangle of a picture ``(C, H, W)`` moved to its middle, black around it.

    As the service pictures a series of a small field of view: around its middle.
    """
    part = picture[:, rows, columns]
    result = torch.zeros_like(picture)
    top = (picture.shape[1] - part.shape[1]) // 2
    left = (picture.shape[2] - part.shape[2]) // 2
    result[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return result
