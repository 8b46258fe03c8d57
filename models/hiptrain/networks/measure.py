"""What a network costs: parameters, arithmetic, file size and latency, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hipscore.domain import FloatArray
from hiptrain.networks import SEGMENTERS, Design, Probability, build
from hiptrain.specs import SEGMENTER

#: every segmenter without and with point rendering
ALL: tuple[Design, ...] = tuple(
    Design(kind=kind, point_rend=point_rend) for kind in SEGMENTERS for point_rend in (False, True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one network costs.

    ``gflop`` counts 10⁹ multiplications and additions of the layers for one crop,
    ``latency_ms`` is the median time of one batch in onnxruntime on the CPU.
    """

    name: str
    width: int
    parameters: int
    gflop: float
    megabytes: float
    latency_ms: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def table(
    designs: Sequence[Design] = ALL, *, batch: int = 8, threads: int = 2, rounds: int = 15
) -> list[Cost]:
    """Measure networks of these designs (untrained: the weights cost nothing).

    Parameters
    ----------
    designs
        Segmenters.
    batch, threads
        Crops per call, and threads of onnxruntime.
    rounds
        Times that every network is run.
    """
    from hiptrain.export import write_onnx

    crops = np.random.default_rng(0).random(
        (batch, SEGMENTER.context, SEGMENTER.rows, SEGMENTER.columns), dtype=np.float32
    )
    with TemporaryDirectory() as folder:
        files, networks = {}, {}
        for number, design in enumerate(designs):
            networks[number] = build(design).eval()
            files[number] = Path(folder) / f"{number}.onnx"
            write_onnx(Probability(networks[number]).eval(), crops, files[number])
        median = latencies(files, crops, threads=threads, rounds=rounds)
        return [
            Cost(
                name=design.title,
                width=design.width,
                parameters=sum(weight.numel() for weight in networks[number].parameters()),
                gflop=round(flops(networks[number], crops[:1]) / 1e9, 3),
                megabytes=round(files[number].stat().st_size / 1e6, 2),
                latency_ms=round(median[number], 1),
            )
            for number, design in enumerate(designs)
        ]


def flops(network: Any, pictures: FloatArray) -> int:
    """Multiplications and additions of the layers for these pictures ``(B, C, H, W)``."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.from_numpy(pictures))
    return int(counter.get_total_flops())


def latencies(
    files: Mapping[int, Path], pictures: FloatArray, *, threads: int, rounds: int
) -> dict[int, float]:
    """Median ms of one call with ``pictures`` for each ONNX file.

    The files take turns, so that whatever else the machine does slows all alike.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    sessions = {
        key: ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
        for key, path in files.items()
    }
    times: dict[int, list[float]] = {key: [] for key in files}
    for turn in range(rounds + 1):
        for key, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"pictures": pictures})
            if turn:  # the first only warms up
                times[key].append(time.perf_counter() - started)
    return {key: 1000 * float(np.median(each)) for key, each in times.items()}


def text(costs: Sequence[Cost]) -> str:
    """A Markdown table."""
    lines = [
        "| network | width | parameters | GFLOP per crop | MB | ms per batch |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {cost.name} | {cost.width} | {cost.parameters:,} | {cost.gflop:.2f} "
        f"| {cost.megabytes:.2f} | {cost.latency_ms:.1f} |"
        for cost in costs
    ]
    return "\n".join(lines)
