"""The size of a network as data: it travels with every checkpoint and bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from hiptrain.specs import LOCALISER, SEGMENTER

Kind = Literal["unet", "unetpp", "attention_unet", "hrnet", "localiser"]
#: the four networks that Zheng et al. 2023 compare
SEGMENTERS: tuple[Kind, ...] = ("unet", "unetpp", "attention_unet", "hrnet")
TITLES: dict[Kind, str] = {
    "unet": "U-Net",
    "unetpp": "UNet++",
    "attention_unet": "Attention U-Net",
    "hrnet": "HRNet",
    "localiser": "Localiser U-Net",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Which network, and how large. Level ``k`` has ``width * min(2**k, widest)`` channels.

    ``depth`` counts the halvings of the localiser and of the Attention U-Net; the other
    networks always have four levels below (U-Net, UNet++) or four streams (HRNet).

    ``stem`` 2 halves the picture before the first level and doubles the result; it is
    heard by the localiser and the HRNet. None leaves it to the kind: 2 for the HRNet,
    whose four streams at full resolution would cost four times as much, else 1.

    ``across`` and ``sides`` belong to the localiser. ``across`` tells the network, at its
    entry, its bottom and its end, the position from left (-1) to right (1): a body is
    nearly its own mirror image, and sides must not be confused. ``sides`` makes the two
    raw outputs mean "head" and "right one"; see :func:`hiptrain.networks.per_side`.

    ``point_rend`` replaces the segmenter's last layer by point rendering, which looks
    again at ``points`` pixels per step; see :mod:`hiptrain.networks.pointrend`.

    Raises
    ------
    ValueError
        If the kind is unknown, or the localiser is to render points.
    """

    kind: Kind = "unet"
    inputs: int = SEGMENTER.context
    outputs: int = 3
    width: int = 16
    depth: int = 4
    widest: int = 8
    stem: int | None = None
    across: bool = False
    sides: bool = False
    point_rend: bool = False
    points: int = 2048

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise ValueError(f"unknown network {self.kind!r}: choose one of {', '.join(kinds)}")
        if self.kind == "localiser" and self.point_rend:
            raise ValueError("point rendering is for segmenters, not for the localiser")

    @property
    def step(self) -> int:
        """Pixels of the picture per pixel of the first level."""
        return self.stem or (2 if self.kind == "hrnet" else 1)

    @property
    def title(self) -> str:
        """The network's name for people."""
        return TITLES[self.kind] + (" + PointRend" if self.point_rend else "")

    def channels(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.width * min(2**level, self.widest) for level in range(self.depth + 1)]

    def as_dict(self) -> dict[str, int | bool | str | None]:
        return asdict(self)


LOCALISER_DESIGN = Design(
    kind="localiser",
    inputs=LOCALISER.context,
    outputs=2,
    width=16,
    depth=4,
    widest=4,
    stem=2,
    across=True,
    sides=True,
)
SEGMENTER_DESIGN = Design(kind="unet", width=16)
