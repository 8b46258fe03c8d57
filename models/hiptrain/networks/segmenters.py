"""The four segmenters that Zheng et al. 2023 compare (Front Physiol 14:1132214).

U-Net, UNet++ and Attention U-Net are MONAI's; the HRNet is :mod:`hiptrain.networks.hrnet`.
Each is cut in two: a body that turns pictures ``(B, C, H, W)`` into features
``(B, width, H, W)`` at full resolution, and the layer that turns these into logits: one
convolution, or point rendering, on whichever body.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hiptrain.networks.design import Design
from hiptrain.networks.hrnet import HRNetBody
from hiptrain.networks.pointrend import PointHead

#: batch normalisation makes the convolutions' own offset idle
_LAYERS: dict[str, Any] = {
    "spatial_dims": 2,
    "act": ("relu", {"inplace": True}),
    "norm": "batch",
    "bias": False,
    "upsample": "deconv",
}


class Segmenter(nn.Module):
    """A body and a last layer. Pictures ``(B, C, H, W)`` to logits ``(B, K, H, W)``.

    H and W are multiples of 16.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        self.body = make_body(design)
        self.head: nn.Module = nn.Conv2d(design.width, design.outputs, 1)
        if design.point_rend:
            self.head = PointHead(design.width, design.outputs, design.points)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures))


def make_body(design: Design) -> nn.Module:
    """All of a segmenter but its last layer."""
    makers = {
        "unet": _unet,
        "unetpp": _unetpp,
        "attention_unet": _attention_unet,
        "hrnet": HRNetBody,
    }
    return makers[design.kind](design)


def _features(design: Design) -> tuple[int, ...]:
    """MONAI's six numbers: five levels, and the end."""
    levels = [design.width * min(2**level, design.widest) for level in range(5)]
    return (*levels, design.width)


def _unet(design: Design) -> nn.Module:
    from monai.networks.nets.basic_unet import BasicUNet

    network: Any = BasicUNet(in_channels=design.inputs, features=_features(design), **_LAYERS)
    network.final_conv = nn.Identity()
    return network


class _Last(nn.Module):
    """The last of the pictures that a network returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)[-1]


def _unetpp(design: Design) -> nn.Module:
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    network: Any = BasicUNetPlusPlus(
        in_channels=design.inputs, features=_features(design), **_LAYERS
    )
    # without deep supervision the three early outputs are never asked for
    for node in range(1, 5):
        setattr(network, f"final_conv_0_{node}", nn.Identity())
    return _Last(network)


def _attention_unet(design: Design) -> nn.Module:
    from monai.networks.nets.attentionunet import AttentionUnet

    network: Any = AttentionUnet(
        spatial_dims=2,
        in_channels=design.inputs,
        out_channels=design.outputs,
        channels=design.channels(),
        strides=[2] * design.depth,
    )
    network.model[-1] = nn.Identity()
    return network
