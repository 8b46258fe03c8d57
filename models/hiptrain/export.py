"""From checkpoints to a model bundle: ONNX files, reference, ``bundle.json``, ``CARD.md``.

``bundle.json`` is read by ``hipscore.inference``. Keys: ``format``, ``id``, ``version``,
``name``, ``trained_on``, ``files`` (SHA-256 by name), ``localiser`` and ``segmenter`` (the
pictures they take, and their thresholds), ``reference.tolerance``, ``normalisation`` and
``training`` (recipes and data, for the reader).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hipscore import hips, phantom
from hipscore.domain import FloatArray, PlaneSpec
from hiptrain.networks import Probability, restore_network
from hiptrain.origin import Origin, checkpoints, told
from hiptrain.specs import LOCALISER, MARGIN_MM, SEGMENTER

FORMAT = 1
FILES = {"localiser": "localiser.onnx", "segmenter": "model.onnx"}
#: opset every onnxruntime since 1.14 reads
_OPSET = 18
#: largest difference of probability between torch and the exported file
PARITY = 1e-4
#: reference inputs are rounded to this, so that they compress
_GRAIN = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a bundle says about itself."""

    id: str
    version: str
    name: str
    #: what was kept from every step and choice, to be measured on at the end
    unseen: Sequence[str] = ()
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5)
    localiser_threshold: float = 0.5
    min_confidence: float = 0.75
    tolerance: float = 0.02


def export(runs: Sequence[Path], out: Path, about: About) -> Path:
    """Write a bundle from the best localiser and the best segmenter of ``runs``.

    Raises
    ------
    FileNotFoundError
        If no run has a checkpoint of one of them.
    ValueError
        If an exported file does not answer like its network, or a network takes other
        pictures than :mod:`hiptrain.specs` describes.
    """
    saved = checkpoints(runs)
    out.mkdir(parents=True, exist_ok=True)
    pictures = reference_pictures()
    reference = {}
    for task, name in FILES.items():
        model = Probability(restore_network(saved[task])).eval()
        given = pictures[task]
        if saved[task]["design"]["inputs"] != given.shape[1]:
            raise ValueError(
                f"the {task} takes {saved[task]['design']['inputs']} neighbouring slices, this "
                f"version pictures {given.shape[1]}: train it anew"
            )
        write_onnx(model, given, out / name)
        check_parity(model, given, out / name)
        with torch.no_grad():
            answer = model(torch.from_numpy(given)).numpy()
        reference[f"{task}_input"] = given.astype(np.float16)
        reference[f"{task}_output"] = answer.astype(np.float16)
    np.savez_compressed(out / "reference.npz", allow_pickle=False, **reference)
    described = describe(out, about, told(saved))
    (out / "bundle.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return out


def write_onnx(model: Any, pictures: FloatArray, path: Path) -> None:
    """Export ``model`` as one file with a free batch size."""
    example = torch.from_numpy(np.repeat(pictures[:1], 2, axis=0))
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["pictures"],
        output_names=["probability"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        opset_version=_OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    _without_traces(path)


def _without_traces(path: Path) -> None:
    """Drop the exporter's stack traces: they name folders of the machine, and nobody needs them."""
    import onnx

    model = onnx.load(path)
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for weight in model.graph.initializer:
        del weight.metadata_props[:]
    onnx.save(model, path)


def check_parity(model: Any, pictures: FloatArray, path: Path) -> float:
    """Largest difference of probability between ``model`` and its file, for three batch sizes.

    The pictures are given as they are and with noise, which leaves a network in doubt.

    Raises
    ------
    ValueError
        If the difference exceeds :data:`PARITY`.
    """
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch in (1, 2, 5):
        given = np.repeat(pictures[:1], batch, axis=0)
        given[1:] += 0.3 * rng.standard_normal(given[1:].shape, dtype=np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(given)).numpy()
        (answer,) = session.run(None, {"pictures": given})
        worst = max(worst, float(np.abs(answer - expected).max()))
    if not worst <= PARITY:
        raise ValueError(
            f"{path.name} answers differently from its network: probabilities differ by up to "
            f"{worst:.1e}, at most {PARITY:g} is accepted; try another torch or onnx release"
        )
    return worst


def reference_pictures() -> dict[str, FloatArray]:
    """One picture for each network, of a phantom: anyone can make them again."""
    made = phantom.synthesise(seed=0, rows=256, slices=20, supersampling=1)
    middle = made.volume.grid.shape[0] // 2
    planes = hips.localiser_planes(made.volume, LOCALISER).planes[middle : middle + 1]
    crop = hips.frame(made.volume.grid, made.hips[0], SEGMENTER, MARGIN_MM)
    stack = hips.crops(made.volume, crop)
    return {
        "localiser": _rounded(planes),
        "segmenter": _rounded(stack[len(stack) // 2 : len(stack) // 2 + 1]),
    }


def _rounded(pictures: FloatArray) -> FloatArray:
    result: FloatArray = (np.rint(pictures * _GRAIN) / _GRAIN).astype(np.float32)
    return result


def describe(folder: Path, about: About, origin: Origin) -> dict[str, object]:
    """Contents of ``bundle.json`` for the files in ``folder``."""
    names = sorted([*FILES.values(), "reference.npz"])
    return {
        "format": FORMAT,
        "id": about.id,
        "version": about.version,
        "name": about.name,
        "trained_on": origin.trained_on,
        "normalisation": "log1p(x / reference), clipped at 20 x reference; see hipscore.hips",
        "localiser": _picture(LOCALISER)
        | {
            "outputs": ["right head", "left head"],
            "threshold": about.localiser_threshold,
            "min_confidence": about.min_confidence,
        },
        "segmenter": _picture(SEGMENTER)
        | {
            "outputs": ["femoral head", "bone marrow edema", "synovitis"],
            "thresholds": list(about.thresholds),
            "margin_mm": MARGIN_MM,
        },
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "reference": {"tolerance": about.tolerance},
        "training": {
            "training_series": list(origin.training),
            "held_out_series": list(origin.held_out),
            "unseen_series": list(about.unseen),
            "data": origin.data,
            "networks": origin.networks,
        },
    }


def _picture(spec: PlaneSpec) -> dict[str, object]:
    return asdict(spec)
