"""What both networks look at. Changing a number here means training anew."""

from __future__ import annotations

from hipscore.domain import PlaneSpec

LOCALISER = PlaneSpec(rows=224, columns=224, pixel_mm=2.0, context=3)
SEGMENTER = PlaneSpec(rows=160, columns=128, pixel_mm=0.75, context=5)
#: the crop stack reaches this far beyond the head, in front and behind, mm
MARGIN_MM = 12.0
