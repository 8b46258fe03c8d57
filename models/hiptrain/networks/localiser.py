"""The localiser's network: a plain U-Net that may know left from right.

Shapes: ``(B, C, H, W)`` pictures in, ``(B, K, H, W)`` logits out, H and W multiples of
``stem * 2 ** depth``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiptrain.networks.design import Design


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """U-Net with batch normalisation and transposed convolutions; returns raw logits."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        channels = design.channels()
        extra = int(design.across)
        inputs = entry = design.inputs + extra
        self.stem: nn.Module = nn.Identity()
        self.rise: nn.Module = nn.Identity()
        if design.step > 1:
            entry = design.width
            self.stem = nn.Conv2d(inputs, entry, 2 * design.step - 1, design.step, 1)
            self.rise = nn.ConvTranspose2d(channels[0], channels[0], design.step, design.step)
        sizes = [*pairwise([entry, *channels])]
        sizes[-1] = (sizes[-1][0] + extra, sizes[-1][1])
        self.down = nn.ModuleList(_block(a, b) for a, b in sizes)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(channels))
        self.merge = nn.ModuleList(
            _block(2 * a + (extra if level == 0 else 0), a) for level, a in enumerate(channels[:-1])
        )
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(channels[0], design.outputs, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` of pictures ``(B, C, H, W)``."""
        x = self.stem(self._placed(pictures))
        passed = []
        for level, block in enumerate(self.down):
            if level:
                x = self.pool(x)
            if level == len(self.down) - 1:
                x = self._placed(x)
            x = block(x)
            passed.append(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([passed[level], self.up[level](x)], dim=1)
            x = self.merge[level](x if level else self._placed(x))
        return self.head(self.rise(x))

    def _placed(self, x: Tensor) -> Tensor:
        """Add the channel of positions, where the design asks for it."""
        if not self.design.across:
            return x
        position = torch.linspace(-1.0, 1.0, x.shape[3], dtype=x.dtype, device=x.device)
        return torch.cat([x, position.expand_as(x[:, :1])], dim=1)


def per_side(raw: Tensor) -> Tensor:
    """Logits of "right head" and "left head" from logits of "head" and "right one".

    ``(B, 2, H, W)`` both; the probability of a side is the product of two.
    """
    raw = raw.float()
    head = F.logsigmoid(raw[:, :1])
    both = torch.cat([raw[:, 1:], -raw[:, 1:]], dim=1)
    log_share = (head + F.logsigmoid(both)).clamp(max=-1e-6)
    return log_share - torch.log(-torch.expm1(log_share))
