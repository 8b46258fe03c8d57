"""One bundle in several precisions and runtimes: what the rounding does to the result.

Every way goes over the same series through the code the service runs. The first way is the
one the others are compared with; the truth of the series says whether a difference matters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hipscore import pipeline
from hipscore.domain import Engine, Findings, FloatArray, Masks, ModelCard, Volume
from hipscore.inference import BundleError, open_bundle, runtimes
from hiptrain.evaluate import Case, Done, pair, structures_of
from hiptrain.figures import STRUCTURES, Summary, spread
from hiptrain.metrics import Overlap, dice, pooled_dice
from hiptrain.statistics import icc
from hiptrain.tables import NAMES, Table

Runtime: TypeAlias = Literal["onnxruntime", "openvino"]
Run: TypeAlias = Callable[[FloatArray], FloatArray]

#: pictures per call
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the networks are run. ``bf16`` is computed from fp32 files, ``int8`` has its own."""

    name: str
    runtime: Runtime
    bf16: bool
    localiser: Path
    segmenter: Path


class Running:
    """The networks of a bundle run one :class:`Way`; ``seconds`` counts their time."""

    def __init__(self, card: ModelCard, way: Way, *, threads: int) -> None:
        self.card = card
        precision = "int8" if way.segmenter.name.endswith(".int8.onnx") else "fp32"
        self.engine = Engine(
            provider="CPU",
            precision="bf16" if way.bf16 else precision,
            runtime=way.runtime,
            device="CPU",
        )
        self.seconds = 0.0
        self._localise = opened(way.localiser, way.runtime, bf16=way.bf16, threads=threads)
        self._segment = opened(way.segmenter, way.runtime, bf16=way.bf16, threads=threads)

    def localise(self, planes: FloatArray) -> FloatArray:
        return self._timed(self._localise, planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        return self._timed(self._segment, crops)

    def _timed(self, run: Run, pictures: FloatArray) -> FloatArray:
        begun = time.perf_counter()
        answer = run(pictures)
        self.seconds += time.perf_counter() - begun
        return answer


def ways(bundle: Path, int8: Mapping[str, str]) -> list[Way]:
    """Every way to run a bundle; ``int8`` names its int8 files by network, or is empty."""
    files = {"localiser": bundle / "localiser.onnx", "segmenter": bundle / "model.onnx"}
    small = files | {network: bundle / name for network, name in int8.items()}
    made = [
        Way(name="fp32, onnxruntime", runtime="onnxruntime", bf16=False, **files),
        Way(name="fp32, OpenVINO", runtime="openvino", bf16=False, **files),
        Way(name="bf16, OpenVINO", runtime="openvino", bf16=True, **files),
    ]
    if int8:
        made += [
            Way(name="int8, OpenVINO", runtime="openvino", bf16=False, **small),
            Way(name="int8, onnxruntime", runtime="onnxruntime", bf16=False, **small),
        ]
    return made


def start(bundle: Path, *, threads: int) -> dict[str, Running]:
    """Load a bundle in every way that this processor can run, by name.

    Raises
    ------
    ValueError
        If it is no bundle.
    """
    try:
        card = open_bundle(bundle).card
    except BundleError as error:
        raise ValueError(str(error)) from error
    described = json.loads((bundle / "bundle.json").read_text("utf-8"))
    int8 = described.get("variants", {}).get("int8", {}).get("files", {})
    return {
        way.name: Running(card, way, threads=threads)
        for way in ways(bundle, int8)
        if not way.bf16 or multiplies_bf16()
    }


def multiplies_bf16() -> bool:
    """Whether the processor does: elsewhere OpenVINO emulates it slowly, or not at all."""
    ov = runtimes.openvino()

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def opened(path: Path, runtime: Runtime, *, bf16: bool = False, threads: int = 1) -> Run:
    """A network as a function of pictures ``(N, C, H, W)``, on the CPU."""
    if runtime == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        return lambda given: _batched(lambda part: session.run(None, {"pictures": part})[0], given)
    ov = runtimes.openvino()

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda given: _batched(lambda part: request.infer({0: part})[0].copy(), given)


def _batched(run: Callable[[FloatArray], Any], pictures: FloatArray) -> FloatArray:
    parts = [
        run(np.ascontiguousarray(pictures[at : at + _BATCH]))
        for at in range(0, len(pictures), _BATCH)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class HipAnswer:
    """One true hip. ``likeness`` is the Dice with the masks of the first way."""

    found: bool
    score: float | None
    overlaps: Mapping[str, Overlap]
    likeness: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one way made of one series; ``told`` is what a reader is told beside the score."""

    hips: tuple[HipAnswer, ...]
    score: float | None
    told: tuple[object, ...]
    seconds: float


def compare(
    cases: Iterable[Case], running: Mapping[str, Running], *, done: Done = lambda _: None
) -> dict[str, list[Answer]]:
    """The answers of every way, by name, to the same series in the same order."""
    answers: dict[str, list[Answer]] = {name: [] for name in running}
    for case in cases:
        volume, truth = case.make()
        first: Sequence[Masks] | None = None
        for name, segmenter in running.items():
            before = segmenter.seconds
            masks, findings = pipeline.examine(volume, segmenter)
            found = _of_truth(volume, truth, masks, findings)
            first = first or [each for each, _ in found]
            answers[name].append(
                Answer(
                    hips=tuple(
                        _hip(volume, *rest) for rest in zip(truth, found, first, strict=True)
                    ),
                    score=findings.unet_score,
                    told=told(findings),
                    seconds=segmenter.seconds - before,
                )
            )
        done(1)
    return answers


def told(findings: Findings) -> tuple[object, ...]:
    """What is said beside the score: hips, reasons and remarks, by their codes."""
    return (
        tuple(hip.hip.side for hip in findings.hips),
        None if findings.reason is None else findings.reason.code,
        tuple(None if hip.reason is None else hip.reason.code for hip in findings.hips),
        tuple(remark.code for remark in findings.quality),
    )


_Found: TypeAlias = tuple[Masks, float | None]


def _of_truth(
    volume: Volume, truth: Sequence[Masks], masks: Sequence[Masks], findings: Findings
) -> list[_Found]:
    """For every true hip its masks (empty where it was not found) and its score."""
    located = [item.hip for item in findings.hips]
    made: list[_Found] = []
    for own, index in zip(truth, pair(volume, truth, located), strict=True):
        if index is None:
            made.append((Masks(side=own.side, voxels=np.zeros_like(own.voxels)), None))
        else:
            made.append((masks[index], findings.hips[index].unet_score))
    return made


def _hip(volume: Volume, truth: Masks, found: _Found, first: Masks) -> HipAnswer:
    masks, score = found
    ml = volume.grid.voxel_ml
    true, own, other = (structures_of(each.voxels) for each in (truth, masks, first))
    return HipAnswer(
        found=bool(masks.voxels.any()),
        score=score,
        overlaps={
            name: Overlap(
                truth_ml=float(true[name].sum() * ml),
                found_ml=float(own[name].sum() * ml),
                shared_ml=float((true[name] & own[name]).sum() * ml),
                dice=dice(true[name], own[name]) if true[name].any() else None,
                hd95_mm=None,
                surface_mm=None,
            )
            for name in STRUCTURES
        },
        likeness={name: dice(own[name], other[name]) for name in STRUCTURES},
    )


def summary(answers: Mapping[str, Sequence[Answer]]) -> Summary:
    """Figures by way, and their difference from the first one."""
    base = next(iter(answers.values()))
    return {name: _summary(own, base) for name, own in answers.items()}


def _summary(own: Sequence[Answer], base: Sequence[Answer]) -> Summary:
    hips = [hip for answer in own for hip in answer.hips]
    first = [hip for answer in base for hip in answer.hips]
    scores = np.array(
        [
            (one.score, other.score)
            for one, other in zip(hips, first, strict=True)
            if one.score is not None and other.score is not None
        ]
    ).reshape(-1, 2)
    apart = np.abs(scores[:, 0] - scores[:, 1])
    return {
        "series": len(own),
        "hips": len(hips),
        "hips_found": sum(hip.found for hip in hips),
        "told_alike": sum(a.told == b.told for a, b in zip(own, base, strict=True)),
        "dice": {name: spread(hip.overlaps[name].dice for hip in hips) for name in STRUCTURES},
        "pooled_dice": {
            name: pooled_dice([hip.overlaps[name] for hip in hips]) for name in STRUCTURES
        },
        "likeness": {name: spread(hip.likeness[name] for hip in hips) for name in STRUCTURES},
        "score": {
            "n": len(scores),
            "mean": float(scores[:, 1].mean()) if len(scores) else None,
            "difference": spread(apart),
            "relative": spread(apart / np.maximum(scores[:, 1], 1.0)),
            "icc": _icc(scores),
        },
        "seconds": spread(answer.seconds for answer in own),
    }


def _icc(scores: Any) -> float | None:
    try:
        return icc(scores).value
    except ValueError:
        return None


def refusals(
    series: Iterable[tuple[str, Volume]],
    running: Mapping[str, Running],
    *,
    done: Done = lambda _: None,
) -> dict[str, dict[str, int]]:
    """Series without hips, by way: all, those without a score, those told as the first way."""
    counts = {name: {"total": 0, "refused": 0, "alike": 0} for name in running}
    for _, volume in series:
        first = None
        for name, segmenter in running.items():
            _, findings = pipeline.examine(volume, segmenter)
            answer = (told(findings), findings.unet_score is None)
            first = first or answer
            counts[name]["total"] += 1
            counts[name]["refused"] += answer[1]
            counts[name]["alike"] += answer == first
        done(1)
    return counts


def tables(title: str, content: Summary) -> list[Table]:
    """What readers of the card see: accuracy, and the difference from the first way."""
    first = next(iter(content))
    accuracy, apart = [], []
    for name, each in content.items():
        base = content[first]
        accuracy.append(
            (
                name,
                f"{each['hips_found']} of {each['hips']}",
                *(_changed(each["dice"][part], base["dice"][part]) for part in STRUCTURES),
                *(f"{each['pooled_dice'][part]:.4f}" for part in STRUCTURES),
            )
        )
        score = each["score"]
        apart.append(
            (
                name,
                f"{each['told_alike']} of {each['series']}",
                *(f"{each['likeness'][part]['mean']:.4f}" for part in STRUCTURES),
                f"{score['difference']['mean']:.3f}, {score['difference']['max']:.3f}",
                f"{100 * score['relative']['mean']:.2f} %, {100 * score['relative']['max']:.2f} %",
                "–" if score["icc"] is None else f"{score['icc']:.6f}",
                f"{each['seconds']['median']:.2f}",
            )
        )
    names = [NAMES[part] for part in STRUCTURES]
    return [
        Table(
            title=f"{title}: precision and accuracy",
            header=(
                "networks",
                "hips found",
                *(f"{name}, Dice" for name in names),
                *(f"{name}, pooled" for name in names),
            ),
            rows=tuple(accuracy),
            note=f"Dice against the truth; in brackets the difference from {first}.",
        ),
        Table(
            title=f"{title}: difference from {first}",
            header=(
                "networks",
                "same hips, reasons and remarks",
                *(f"{name}, Dice" for name in names),
                "UNet-score of a hip: mean, largest difference",
                "relative",
                "ICC",
                "s per series",
            ),
            rows=tuple(apart),
            note=f"Dice with the masks of {first}. Relative to that score, or to 1 where it is "
            "less. Seconds: both networks, median.",
        ),
    ]


def _changed(own: Summary | None, base: Summary | None) -> str:
    if own is None or base is None:
        return "–"
    return f"{own['mean']:.4f} ({own['mean'] - base['mean']:+.4f})"


def refusal_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Series without hips, by way."""
    return Table(
        title="Series without hips: precision",
        header=("networks", "refused", "same answer"),
        rows=tuple(
            (name, f"{each['refused']} of {each['total']}", f"{each['alike']} of {each['total']}")
            for name, each in counts.items()
        ),
    )
