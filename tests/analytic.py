"""A second implementation of the Segmenter port that knows the truth of phantoms.

It recognises the pictures of the phantoms it was given by their content and answers with
their true masks, sampled like a perfect network's output. Pictures of anything else have
no hip for it. What runs around it (assembly, geometry, scores, reports) is the real thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset

from hipscore import hips, series
from hipscore.domain import Channel, Engine, FloatArray, Masks, ModelCard, PlaneSpec, Side, Volume
from hipscore.phantom import Phantom

ENGINE = Engine(provider="analytic", precision="fp32", runtime="numpy", device="cpu")
CARD = ModelCard(
    id="analytic",
    version="1",
    sha256=hashlib.sha256(b"analytic").hexdigest(),
    localiser=PlaneSpec(rows=128, columns=160, pixel_mm=3.0, context=1),
    segmenter=PlaneSpec(rows=96, columns=96, pixel_mm=1.0, context=1),
    name="truth of the phantoms",
    trained_on="nothing",
)


@dataclass(frozen=True)
class Oracle:
    """Answers for the phantoms it was told about with :meth:`learn`."""

    card: ModelCard = CARD
    heads: dict[bytes, FloatArray] = field(default_factory=dict)
    structures: dict[bytes, FloatArray] = field(default_factory=dict)

    def learn(self, phantom: Phantom, images: Sequence[Dataset]) -> None:
        """Remember the truth for the pictures made of these images."""
        volume = series.assemble(images).volume
        stack = hips.localiser_planes(volume, self.card.localiser)
        truth = np.zeros((len(stack.planes), 2, *stack.planes.shape[2:]), dtype=np.float32)
        for masks in phantom.masks:
            head = masks.voxels[Channel.FEMORAL_HEAD].astype(np.float32)
            truth[:, (Side.RIGHT, Side.LEFT).index(masks.side)] = stack.sampling.pictures(head)
        for picture, answer in zip(stack.planes, truth, strict=True):
            self.heads[_digest(picture)] = answer
        by_side = {masks.side: masks for masks in phantom.masks}
        for hip in hips.locate(volume, self):
            self._learn_crops(
                volume,
                hips.frame(volume.grid, hip, self.card.segmenter, self.card.margin_mm),
                by_side[hip.side],
            )

    def _learn_crops(self, volume: Volume, crop: hips.CropFrame, masks: Masks) -> None:
        channels = [hips.sample(each.astype(np.float32), crop) for each in masks.voxels]
        for picture, answer in zip(
            hips.crops(volume, crop), np.stack(channels, axis=1), strict=True
        ):
            self.structures[_digest(picture)] = answer

    @property
    def engine(self) -> Engine:
        return ENGINE

    def localise(self, planes: FloatArray) -> FloatArray:
        nothing = np.zeros((2, *planes.shape[2:]), dtype=np.float32)
        return np.stack([self.heads.get(_digest(picture), nothing) for picture in planes])

    def segment(self, crops: FloatArray) -> FloatArray:
        nothing = np.zeros((len(Channel), *crops.shape[2:]), dtype=np.float32)
        return np.stack([self.structures.get(_digest(picture), nothing) for picture in crops])


def _digest(picture: FloatArray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest()
