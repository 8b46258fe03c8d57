"""The networks of the shipped bundle on every runtime of this machine, side by side.

``python -m benchmarks.inference`` runs both networks over the pictures of one synthetic series
(24 planes for the localiser, the crops of both hips for the segmenter) on each runtime and
precision in turn, again and again, so that whatever else the machine does slows all alike.
onnxruntime's CPU provider in fp32 is what the others are compared with, and torch eager where
torch is installed. With ``--fast`` there are few rounds, with ``--keep`` the table goes to
docs/performance.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks import tables
from hipscore import hips, phantom
from hipscore.domain import BoolArray, Channel, FloatArray
from hipscore.inference import (
    Bundle,
    Choice,
    Precision,
    Provider,
    choices,
    load_segmenter,
    open_bundle,
)

PEER = Choice(provider=Provider.CPU, precision=Precision.FP32)
TORCH = "torch eager fp32"
_HEADER = (
    "runtime",
    "localiser ms",
    "segmenter ms",
    "segmenter, times onnxruntime fp32",
    "times torch eager",
    "both, times onnxruntime fp32",
    "segmenter GFLOP/s",
    "largest deviation",
    "Dice with fp32: head, edema, synovitis",
)


@dataclass(slots=True, kw_only=True)
class Way:
    """Two networks on one runtime, and the seconds they took."""

    name: str
    localise: Callable[[FloatArray], FloatArray]
    segment: Callable[[FloatArray], FloatArray]
    localiser: list[float] = field(default_factory=list)
    segmenter: list[float] = field(default_factory=list)

    @property
    def both(self) -> float:
        return tables.p50(self.localiser) + tables.p50(self.segmenter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What one series gives the networks: ``(Z, C, H, W)`` and ``(N, C, H, W)``."""

    planes: FloatArray
    crops: FloatArray


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fast", action="store_true", help="5 rounds")
    parser.add_argument("--keep", action="store_true", help=f"write the table to {tables.PAGE}")
    arguments = parser.parse_args()
    bundle = open_bundle()
    pictures = pictures_of(bundle)
    ways = {way.name: way for way in runtimes(bundle, arguments.threads)}
    if importlib.util.find_spec("torch") is not None:
        ways[TORCH] = eager(bundle, arguments.threads)
    turns(list(ways.values()), pictures, 5 if arguments.fast else arguments.rounds)
    packages = ["onnxruntime", "openvino", *(["torch"] if TORCH in ways else [])]
    text = (
        f"{tables.machine(*packages)}; {arguments.threads} threads, "
        f"{len(pictures.planes)} planes and {len(pictures.crops)} crops of one series, "
        f"medians of {len(ways[str(PEER)].segmenter)}. {automatic(bundle)}\n\n"
        f"{table(bundle, ways, pictures)}\n"
    )
    if TORCH in ways:
        text += f"\n{ceiling(arguments.threads)}\n"
    print(text)
    if arguments.keep:
        tables.keep("inference", text)


def pictures_of(bundle: Bundle) -> Pictures:
    """What a synthetic series gives the networks."""
    made = phantom.synthesise(seed=1, burden=phantom.Burden.MODERATE)
    card = bundle.card
    segmenter = load_segmenter(bundle.directory, provider="cpu", precision="fp32")
    found = hips.locate(made.volume, segmenter)
    frames = [hips.frame(made.volume.grid, hip, card.segmenter, card.margin_mm) for hip in found]
    return Pictures(
        planes=hips.localiser_planes(made.volume, card.localiser).planes,
        crops=np.concatenate([hips.crops(made.volume, each) for each in frames]),
    )


def runtimes(bundle: Bundle, threads: int) -> Iterator[Way]:
    """Everything that this machine can run the bundle on."""
    for precision in bundle.variants:
        for choice in choices(bundle, precision=precision.value):
            segmenter = load_segmenter(
                bundle.directory,
                threads,
                provider=choice.provider,
                precision=choice.precision,
            )
            yield Way(name=str(choice), localise=segmenter.localise, segment=segmenter.segment)


def eager(bundle: Bundle, threads: int) -> Way:
    """The same networks in torch, with other weights, which cost the same."""
    import torch  # noqa: PLC0415 - only where it is installed

    from hiptrain.networks import Design, Probability, build  # noqa: PLC0415

    torch.set_num_threads(threads)
    described = json.loads((bundle.directory / "bundle.json").read_text("utf-8"))
    designs = {
        task: Design(**entry["design"]) for task, entry in described["training"]["networks"].items()
    }

    def runner(design: Design) -> Callable[[FloatArray], FloatArray]:
        network = Probability(build(design).eval()).eval()

        def run(pictures: FloatArray) -> FloatArray:
            with torch.inference_mode():
                answer: FloatArray = network(torch.from_numpy(pictures)).numpy()
            return answer

        return run

    return Way(
        name=TORCH, localise=runner(designs["localiser"]), segment=runner(designs["segmenter"])
    )


def turns(ways: list[Way], pictures: Pictures, rounds: int) -> None:
    """Let each compute the series in turn; the first turn warms up."""
    for turn in range(rounds + 1):
        for way in ways:
            begun = time.perf_counter()
            way.localise(pictures.planes)
            between = time.perf_counter()
            way.segment(pictures.crops)
            if turn:
                way.localiser.append(between - begun)
                way.segmenter.append(time.perf_counter() - between)


def table(bundle: Bundle, ways: dict[str, Way], pictures: Pictures) -> str:
    """One line per runtime, the fastest last."""
    plain = ways[str(PEER)]
    wanted = plain.segment(pictures.crops)
    torch = ways.get(TORCH)
    work = len(pictures.crops) * gflop(bundle)
    rows = []
    for way in sorted(ways.values(), key=lambda each: -each.both):
        seconds = tables.p50(way.segmenter)
        trained = way is not torch
        answer = way.segment(pictures.crops) if trained else wanted
        agreement = ", ".join(f"{each:.4f}" for each in dice(bundle, answer, wanted))
        rows.append(
            (
                way.name,
                f"{1000 * tables.p50(way.localiser):.0f}",
                f"{1000 * seconds:.0f}",
                f"{tables.p50(plain.segmenter) / seconds:.2f}",
                f"{tables.p50(torch.segmenter) / seconds:.2f}" if torch else "",
                f"{plain.both / way.both:.2f}",
                f"{work / seconds:.0f}",
                f"{np.abs(answer - wanted).max():.4f}" if trained else "",
                agreement if trained else "",
            )
        )
    return tables.table(_HEADER, rows)


def dice(bundle: Bundle, one: FloatArray, other: FloatArray) -> list[float]:
    """Dice of the masks of two answers ``(N, K, H, W)``, per structure, over all crops."""
    limits = np.array(bundle.card.thresholds, dtype=np.float32)[:, None, None]

    def overlap(a: BoolArray, b: BoolArray) -> float:
        return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))

    return [overlap((one > limits)[:, k], (other > limits)[:, k]) for k in Channel]


@functools.cache
def _onnx_gflop(path: str) -> float:
    import onnx  # noqa: PLC0415 - comes with torch, for training

    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shapes = {
        value.name: [each.dim_value for each in value.type.tensor_type.shape.dim]
        for graph in (onnx.shape_inference.infer_shapes(model).graph,)
        for value in (*graph.value_info, *graph.output)
    }
    weights = {each.name: list(each.dims) for each in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        if node.op_type in {"Conv", "ConvTranspose"}:
            _, _, rows, columns = shapes[node.output[0]]
            # a transposed convolution of stride 2 meets each output pixel with a quarter
            share = 1.0 if node.op_type == "Conv" else 0.25
            total += 2 * float(np.prod(weights[node.input[1]])) * rows * columns * share
    return total / 1e9


def gflop(bundle: Bundle) -> float:
    """10⁹ multiplications and additions of the segmenter per crop; NaN without onnx."""
    if importlib.util.find_spec("onnx") is None:
        return float("nan")
    return _onnx_gflop(str(bundle.variants[Precision.FP32].segmenter))


def automatic(bundle: Bundle) -> str:
    """What HIPSCORE_PROVIDER=auto takes here."""
    chosen = load_segmenter(bundle.directory).engine
    return f"Taken by itself: {chosen.provider} {chosen.precision}."


def ceiling(threads: int, size: int = 2048, rounds: int = 15) -> str:
    """What a matrix product reaches here: no network computes faster."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    reached = []
    for kind in (torch.float32, torch.bfloat16):
        a = torch.rand(size, size).to(kind)
        seconds = []
        for _ in range(rounds):
            begun = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - begun)
        reached.append(2 * size**3 / statistics.median(seconds[1:]) / 1e9)
    return (
        f"Ceiling: a product of two {size} x {size} matrices in torch reaches "
        f"{reached[0]:.0f} GFLOP/s in fp32 and {reached[1]:.0f} in bf16."
    )


if __name__ == "__main__":
    main()
