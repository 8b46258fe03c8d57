"""HRNet: four resolutions side by side that exchange what they see.

After Wang et al. 2020 (Deep high-resolution representation learning for visual
recognition, arXiv:1908.07919), sized for crops: streams of ``width`` times 1, 2, 4 and 8
channels start one after the other, every stage ends with an exchange of each with each,
and the last stage's streams are joined at the finest resolution (HRNetV2). With a stem
that halves the picture, what the stem saw at full resolution is joined in again at the
end: a thin effusion is one or two pixels wide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiptrain.networks.design import Design

#: modules (blocks and an exchange) of the stages with 2, 3 and 4 streams
_MODULES = (1, 2, 2)
#: residual blocks of every stream between two exchanges
_BLOCKS = 2


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


def _active(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, outputs, size, stride), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions whose result is added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(_active(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.change(x))


class Exchange(nn.Module):
    """Every stream becomes the sum of all, brought to its resolution and channels.

    ``streams[i]`` is ``(B, channels[i], H / 2**i, W / 2**i)``, in and out.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.ModuleList(_way(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        mixed = []
        for target, ways in enumerate(self.ways):
            total = streams[target]
            for source, way in enumerate(ways):
                if source != target:
                    total = total + way(streams[source])
            mixed.append(F.relu(total))
        return mixed


def _way(channels: list[int], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:  # coarse to fine
        return nn.Sequential(
            _convolution(channels[source], channels[target], size=1),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps: list[nn.Module] = [
        _active(channels[source], channels[source], stride=2) for _ in range(target - source - 1)
    ]
    return nn.Sequential(*steps, _convolution(channels[source], channels[target], stride=2))


class Parallel(nn.Module):
    """Residual blocks on every stream, then an exchange."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.streams = nn.ModuleList(
            nn.Sequential(*[Residual(each) for _ in range(_BLOCKS)]) for each in channels
        )
        self.exchange = Exchange(channels)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        own = [blocks(x) for blocks, x in zip(self.streams, streams, strict=True)]
        return self.exchange(own)


class HRNetBody(nn.Module):
    """Pictures ``(B, C, H, W)`` to features ``(B, width, H, W)``; H, W multiples of 16."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        widths = [design.width * min(2**level, design.widest) for level in range(4)]
        first = widths[0]
        self.entry = nn.Sequential(_active(design.inputs, first), _active(first, first))
        self.shrink: nn.Module = nn.Identity()
        self.rise: nn.Module = nn.Identity()
        if design.step > 1:
            self.shrink = _active(first, first, stride=design.step)
            self.rise = nn.ConvTranspose2d(first, first, design.step, design.step)
        self.first = nn.Sequential(*[Residual(first) for _ in range(_BLOCKS)])
        self.begin = nn.ModuleList(
            _active(widths[level], widths[level + 1], stride=2) for level in range(3)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Parallel(widths[: level + 2]) for _ in range(count))
            for level, count in enumerate(_MODULES)
        )
        self.join = _active(sum(widths), first, size=1)
        self.last = _active(2 * first, first)

    def forward(self, pictures: Tensor) -> Tensor:
        fine = self.entry(pictures)
        streams = [self.first(self.shrink(fine))]
        for begin, stage in zip(self.begin, self.stages, strict=True):
            streams = [*streams, begin(streams[-1])]
            for module in stage:
                streams = module(streams)
        size = streams[0].shape[2:]
        whole = [F.interpolate(x, size=size, mode="bilinear") for x in streams[1:]]
        joined = self.rise(self.join(torch.cat([streams[0], *whole], dim=1)))
        return self.last(torch.cat([fine, joined], dim=1))
