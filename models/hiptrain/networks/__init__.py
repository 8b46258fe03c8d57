"""The networks: pictures ``(B, C, H, W)`` in, logits ``(B, K, H, W)`` out.

:func:`build` makes the network of a :class:`Design`. :class:`Probability` adds what
the exported graph carries: the answer as probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hiptrain.networks.design import (
    LOCALISER_DESIGN,
    SEGMENTER_DESIGN,
    SEGMENTERS,
    TITLES,
    Design,
    Kind,
)
from hiptrain.networks.localiser import UNet, per_side
from hiptrain.networks.segmenters import Segmenter

__all__ = [
    "LOCALISER_DESIGN",
    "SEGMENTERS",
    "SEGMENTER_DESIGN",
    "TITLES",
    "Design",
    "Kind",
    "Probability",
    "Segmenter",
    "UNet",
    "build",
    "per_side",
    "restore_network",
]


def build(design: Design) -> UNet | Segmenter:
    """A fresh network, its weights drawn from torch's own generator.

    Its attribute ``design`` is the argument. It returns logits ``(B, K, H, W)`` at full
    resolution in training and in evaluation.
    """
    return UNet(design) if design.kind == "localiser" else Segmenter(design)


def restore_network(saved: dict[str, Any]) -> UNet | Segmenter:
    """Build the network of a checkpoint (``design`` and ``weights``), in evaluation mode."""
    # checkpoints from before there was a choice hold the localiser's kind of U-Net
    network = build(Design(**{"kind": "localiser"} | saved["design"]))
    network.load_state_dict(saved["weights"])
    return network.eval()


class Probability(nn.Module):
    """A network whose output is probability: what is exported."""

    def __init__(self, network: UNet | Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        raw = self.network(pictures)
        if not self.network.design.sides:
            return torch.sigmoid(raw)
        head, right = torch.sigmoid(raw[:, :1]), torch.sigmoid(raw[:, 1:])
        return torch.cat([head * right, head * (1.0 - right)], dim=1)
