"""Point rendering: a coarse answer, refined where it is unsure.

After Kirillov et al. 2020 (PointRend: Image segmentation as rendering, arXiv:1912.08193),
as Zheng et al. 2023 use it: logits at an eighth of the resolution, then three times: double
them, and predict the ``points`` most uncertain pixels anew with a small perceptron
that sees the fine features and the coarse logits at that place.

How unsure a pixel is: the smallest |logit| of its structures. One choice of points serves
all structures, because they share their borders (oedema lies in the head, effusion along
it), and because one gather and one pass of the perceptron answer all of them.

Shapes: features ``(B, F, H, W)``, coarse logits ``(B, K, H/8, W/8)``, points ``(B, P, 2)``
as (x, y) from 0 to 1 across the picture, values at points ``(B, F or K, P)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COARSE = 8
#: training draws this many candidates per point ...
_OVERSAMPLING = 3
#: ... and keeps the most uncertain for this share of the points, chance for the rest
_IMPORTANCE = 0.75
#: logits over which a new value fades in, at least (see :meth:`PointHead.subdivide`)
_FADE = 1.0


class PointHead(nn.Module):
    """Last layer of a segmenter; see the module's docstring."""

    def __init__(self, features: int, outputs: int, points: int) -> None:
        super().__init__()
        self.points = points
        hidden = 4 * features
        self.coarse_head = nn.Sequential(
            nn.Conv2d(features, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1),
        )
        # every layer sees the coarse logits again, as in the paper
        self.layers = nn.ModuleList(
            nn.Conv1d(inputs + outputs, hidden, 1) for inputs in (features, hidden, hidden)
        )
        self.last = nn.Conv1d(hidden + outputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Refined logits ``(B, K, H, W)`` of features ``(B, F, H, W)``."""
        coarse = self.coarse(features)
        logits = coarse
        while logits.shape[2:] != features.shape[2:]:
            logits = self.subdivide(logits, coarse, features)
        return logits

    def coarse(self, features: Tensor) -> Tensor:
        """Logits ``(B, K, H/8, W/8)``, float32."""
        return self.coarse_head(F.avg_pool2d(features, _COARSE)).float()

    def subdivide(self, logits: Tensor, coarse: Tensor, features: Tensor) -> Tensor:
        """Double ``logits`` (B, K, h, w) and look again where they are uncertain.

        The choice ends at a limit, the |logit| of the last pixel chosen. A pixel at the
        limit keeps its interpolated value, one below half of it takes the new value, and
        between them it fades over. Without this, two pixels with nearly equal uncertainty
        could change places between two runtimes that differ in the last digit, and the
        answer would jump; so it depends on the picture continuously. The slope of the
        fading, times the difference of the two values, is what rounding is amplified by:
        hence no less than one logit, and more where logits are large.
        """
        doubled = F.interpolate(logits, scale_factor=2.0, mode="bilinear")
        height, width = (2 * int(side) for side in logits.shape[2:])
        sure = doubled.abs().amin(dim=1).flatten(1)  # (B, h*w)
        count = min(self.points, height * width)
        unsure, chosen = torch.topk(-sure, count, dim=1)
        # pixel centres: sampling there is resizing, and picking then is a gather
        fine = _resized(features, height, width)
        known = _resized(coarse, height, width)
        new = self.predict(_picked(fine, chosen), _picked(known, chosen)).float()
        old = _picked(doubled, chosen)
        limit = -unsure[:, -1:]
        share = ((limit + unsure) / (limit / 2).clamp(min=_FADE)).clamp(max=1.0).unsqueeze(1)
        index = chosen.unsqueeze(1).expand_as(old)
        mixed = doubled.flatten(2).scatter(2, index, old + share * (new - old))
        return mixed.unflatten(2, (height, width))

    def predict(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Logits ``(B, K, P)`` from features ``(B, F, P)`` and coarse logits ``(B, K, P)``."""
        x = fine
        for layer in self.layers:
            x = F.relu(layer(torch.cat([x, coarse.to(x.dtype)], dim=1)))
        return self.last(torch.cat([x, coarse.to(x.dtype)], dim=1))

    def draw(self, coarse: Tensor) -> Tensor:
        """Points ``(B, P, 2)`` to learn from: most where ``coarse`` is uncertain, some anywhere.

        Drawn from torch's own generator.
        """
        batch, count = len(coarse), self.points
        important = int(_IMPORTANCE * count)
        many = torch.rand(batch, _OVERSAMPLING * count, 2, device=coarse.device)
        sure = sampled(coarse.detach(), many).abs().amin(dim=1)  # (B, 3P)
        chosen = torch.topk(-sure, important, dim=1).indices
        near = many.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
        anywhere = torch.rand(batch, count - important, 2, device=coarse.device)
        return torch.cat([near, anywhere], dim=1)

    def at(self, points: Tensor, coarse: Tensor, features: Tensor) -> Tensor:
        """Logits ``(B, K, P)`` at any points."""
        return self.predict(sampled(features, points), sampled(coarse, points)).float()


def sampled(values: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``(B, C, P)``, float32, of ``(B, C, H, W)`` at points ``(B, P, 2)``."""
    grid = (2.0 * points - 1.0).unsqueeze(2)
    found = F.grid_sample(values.float(), grid, padding_mode="border", align_corners=False)
    return found.squeeze(3)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    if values.shape[2:] == (height, width):
        return values
    return F.interpolate(values, size=(height, width), mode="bilinear")


def _picked(values: Tensor, chosen: Tensor) -> Tensor:
    """``(B, C, P)`` of ``(B, C, h, w)`` at flat pixel numbers ``(B, P)``."""
    flat = values.flatten(2)
    return flat.gather(2, chosen.unsqueeze(1).expand(-1, flat.shape[1], -1))
