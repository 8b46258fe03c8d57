"""Networks that remember what they were asked and what they answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from hipscore.domain import Engine, FloatArray, ModelCard, Segmenter


@dataclass(kw_only=True)
class Recorder:
    """Passes on to ``networks``; ``calls`` has the pictures and the answer of each call."""

    networks: Segmenter
    calls: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    _located: int = 0

    @property
    def card(self) -> ModelCard:
        return self.networks.card

    @property
    def engine(self) -> Engine:
        return self.networks.engine

    def localise(self, planes: FloatArray) -> FloatArray:
        """Ask and remember."""
        answer = self.networks.localise(planes)
        self.calls.insert(self._located, (planes, answer))
        self._located += 1
        return answer

    def segment(self, crops: FloatArray) -> FloatArray:
        """Ask and remember."""
        answer = self.networks.segment(crops)
        self.calls.append((crops, answer))
        return answer

    def again(self) -> None:
        """Ask the networks once more what they were asked before, and nothing around it."""
        for number, (given, _) in enumerate(self.calls):
            if number < self._located:
                self.networks.localise(given)
            else:
                self.networks.segment(given)
