"""What the segmenter's graph costs at least, and what the device can give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inference.__main__ import gflop
from hipscore.inference import Bundle, Precision

#: what every runtime computes on the fly with the layer before
_FUSED = frozenset({"Relu", "Sigmoid", "BatchNormalization", "Add", "Mul", "Clip", "Identity"})
_COPY = "copy"
_MATRIX = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one picture: 10⁹ operations, and bytes read and written in fp32; bytes of the weights."""

    gflop: float
    moved: float
    weights: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What was reached on it: operations and bytes per second. NaN: could not be measured."""

    name: str
    flop_s: dict[str, float]
    bytes_s: float

    def bound(self, work: Work, batch: int, precision: str) -> float:
        """Seconds below which no batch can be computed (the roofline)."""
        size = 1.0 if precision == "fp32" else 0.5
        moved = size * (work.weights + batch * work.moved) / self.bytes_s
        flop_s = self.flop_s.get(precision, float("nan"))
        return max(moved, 1e9 * work.gflop * batch / flop_s)


def work(bundle: Bundle) -> Work:
    """Count the segmenter; NaN without onnx."""
    try:
        import onnx  # noqa: PLC0415 - comes with torch, for training
    except ImportError:
        return Work(gflop=float("nan"), moved=float("nan"), weights=float("nan"))
    path: Path = bundle.variants[Precision.FP32].segmenter
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: 4.0 * np.prod([each.dim_value for each in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    weights = {each.name: 4.0 * np.prod(each.dims) for each in model.graph.initializer}
    moved = sum(
        sizes.get(name, 0.0)
        for node in graph.node
        if node.op_type not in _FUSED
        for name in (*node.input, *node.output)
        if name not in weights
    )
    return Work(gflop=gflop(bundle), moved=float(moved), weights=float(sum(weights.values())))


class Probe:
    """A large matrix product and a large copy, again and again between what is compared.

    The best of all turns counts: what else runs on the machine slows a product as well, and a
    ceiling that was measured at a bad moment would be none. torch alone multiplies: a second
    library would bring threads of its own, which may disturb what is compared.
    """

    def __init__(self, where: str) -> None:
        self._flop = 2.0 * _MATRIX[where] ** 3
        self._bytes = 2.0 * _COPY_BYTES[where]
        self._best: dict[str, float] = {}
        self._runs = list(_runs(where))

    def turn(self) -> None:
        """Run each once."""
        for kind, run in self._runs:
            begun = time.perf_counter()
            run()
            seconds = time.perf_counter() - begun
            self._best[kind] = min(seconds, self._best.get(kind, seconds))

    def device(self, name: str) -> Device:
        """What was reached so far."""
        best = dict(self._best)
        copied = best.pop(_COPY, float("nan"))
        flop_s = {kind: self._flop / seconds for kind, seconds in best.items()}
        return Device(name=name, flop_s=flop_s, bytes_s=self._bytes / copied)


def _runs(where: str) -> Iterator[tuple[str, Callable[[], object]]]:
    side, size = _MATRIX[where], _COPY_BYTES[where] // 4
    try:
        import torch  # noqa: PLC0415 - only where it is installed
    except ImportError:
        return
    if where == "cuda" and not torch.cuda.is_available():
        return
    torch.backends.cuda.matmul.allow_tf32 = False

    def finished(run: Callable[[], object]) -> Callable[[], object]:
        def both() -> None:
            run()
            if where == "cuda":
                torch.cuda.synchronize()

        return both

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for precision in ("fp32", "bf16", *(("fp16",) if where == "cuda" else ())):
        b = torch.rand(side, side, device=where).to(kinds[precision])
        yield precision, finished(lambda b=b: b @ b)  # type: ignore[misc]
    given = torch.ones(size, device=where)
    taken = torch.empty_like(given)
    yield _COPY, finished(lambda: taken.copy_(given))
