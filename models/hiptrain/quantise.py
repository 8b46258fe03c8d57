"""An int8 graph of a bundle's segmenter, for CPUs that multiply 8-bit numbers faster (VNNI).

The graph carries QuantizeLinear and DequantizeLinear pairs, which OpenVINO and onnxruntime's
CPU provider read. Tensors are unsigned with one scale, weights signed with a scale for every
output channel. What is done for accuracy, measured with ``hiptrain precision``:

- channels are scaled to more equal sizes first (:func:`hiptrain.rearrange.equalised`);
- ranges are the extremes over the calibration pictures: clipping costs more than coarse steps,
  where small lesions are the brightest there is;
- the mean error that rounded weights make in every channel is taken back in the biases (Nagel
  et al. 2019, arXiv:1906.04721, section 4.2);
- input and output stay float.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hipscore.domain import FloatArray
from hiptrain.dataset import CaseFile, list_cases, read_crops
from hiptrain.rearrange import (
    INPUT,
    Observed,
    drop_unused,
    equalised,
    folded,
    observe,
    producers,
    set_weights,
    weights,
)

#: the int8 graphs by network, as bundle.json names them
FILES = {"segmenter": "model.int8.onnx"}
#: largest difference of probability from the reference: runtimes with exact 8-bit products (VNNI)
#: differ by 0.001, those whose sums of two products saturate (AVX2, AVX-512 without VNNI) by 0.03
TOLERANCE = 0.02


def calibration(
    bundle: Path, data: Sequence[Path], *, pictures: int, seed: int
) -> NDArray[np.float32]:
    """Crops ``(N, C, H, W)`` of the bundle's training series and of phantoms, by lot.

    Raises
    ------
    ValueError
        If the data hold a series that chose or measures the networks, or no crop at all.
    """
    training = json.loads((bundle / "bundle.json").read_text("utf-8"))["training"]
    cases = list_cases(data)
    kept_back = {*training["held_out_series"], *training["unseen_series"]}
    wrong = sorted({case.patient for case in cases} & kept_back)
    if wrong:
        raise ValueError(
            f"the data hold {', '.join(wrong)}, which this bundle keeps from its training: "
            "calibrate on series that trained it"
        )
    known = [case for case in cases if _trains(case, training["training_series"])]
    if not known:
        raise ValueError("the data hold no series that trained this bundle, and no phantom")
    crops = read_crops(known).inputs
    lot = np.random.default_rng(seed).permutation(len(crops))[:pictures]
    return crops[np.sort(lot)].astype(np.float32)


def _trains(case: CaseFile, training: Sequence[str]) -> bool:
    return case.patient in training or case.kind == "phantom"


def quantise(model: onnx.ModelProto, pictures: FloatArray) -> onnx.ModelProto:
    """The int8 graph of an fp32 one, calibrated on ``pictures`` ``(N, C, H, W)``.

    Its input and output stay float. Takes networks of convolutions with ReLU, transposed
    convolutions, maximum pooling and concatenation, with one last convolution: the U-Net.

    Raises
    ------
    ValueError
        If the network has other layers.
    """
    _refuse_others(model)
    plain = equalised(folded(model), pictures)
    observed = observe(plain, pictures)
    made = _with_pairs(plain, _ranges(plain, observed))
    _correct(made, plain, observed)
    return made


_LAYERS = {"Conv", "ConvTranspose", "Relu", "MaxPool", "Concat", "Pad", "Sigmoid"}


def _refuse_others(model: onnx.ModelProto) -> None:
    others = sorted({node.op_type for node in model.graph.node} - _LAYERS)
    if others:
        raise ValueError(
            f"a network with {', '.join(others)} cannot be quantised here: only the U-Net can"
        )


def _ranges(
    model: onnx.ModelProto, observed: Mapping[str, Observed]
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value by tensor, so that as little as possible is scaled anew.

    Pooling keeps its input's range. What comes out of a concatenation has the range of all its
    inputs, and those below zero take it as well. The others come from a ReLU, which is nothing
    but their lower limit in int8: they keep 0 there.
    """
    ranges = {
        name: (min(0.0, float(each.low.min())), max(0.0, float(each.high.max())))
        for name, each in observed.items()
    }
    for node in model.graph.node:
        if node.op_type == "MaxPool":
            ranges[node.output[0]] = ranges[node.input[0]]
        if node.op_type == "Concat":
            common = ranges[node.output[0]]
            signed = [name for name in node.input if ranges[name][0] < 0.0]
            ranges |= dict.fromkeys(signed, common)
    return ranges


def _with_pairs(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """Insert the pairs: tensors unsigned, weights signed and by output channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    told = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantiser = QDQQuantizer(
        save_and_reload_model_with_shape_infer(copy),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, told),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv", "ConvTranspose", "Relu", "MaxPool", "Concat"],
        extra_options={"WeightSymmetric": True},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    made: onnx.ModelProto = quantiser.model.model
    _plain_output(made)
    drop_unused(made)
    onnx.checker.check_model(made)
    return made


def _plain_output(model: onnx.ModelProto) -> None:
    """Take the pair off what enters the last Sigmoid: logits need more than 256 values."""
    (last,) = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    producer = producers(model)
    back = producer[last.input[0]]
    there = producer[back.input[0]]
    last.input[0] = there.input[0]
    model.graph.node.remove(back)
    model.graph.node.remove(there)


def _correct(
    made: onnx.ModelProto, plain: onnx.ModelProto, observed: Mapping[str, Observed]
) -> None:
    """Take the mean error of rounded weights back in the biases of the int8 graph."""
    known, exact = weights(made), weights(plain)
    scaled = {node.output[0]: node for node in made.graph.node}
    float_nodes = {node.name: node for node in plain.graph.node}
    for node in made.graph.node:
        if node.op_type not in {"Conv", "ConvTranspose"}:
            continue
        own = float_nodes[node.name]
        axis = 0 if node.op_type == "Conv" else 1
        kernel, scale = (known[name] for name in scaled[node.input[1]].input[:2])
        steps = np.expand_dims(
            scale.astype(np.float64), [each for each in range(4) if each != axis]
        )
        error = np.moveaxis(kernel * steps - exact[own.input[1]], axis, 0)
        wrong = np.einsum("okij,k->o", error, observed[own.input[0]].mean)
        if axis:
            # with a stride of its own size every output pixel sees one tap
            wrong /= error.shape[2] * error.shape[3]
        bias, step = (scaled[node.input[2]].input[each] for each in (0, 1))
        new = np.rint(known[bias] - wrong / known[step].astype(np.float64))
        set_weights(made, bias, new.astype(np.int32))


def write(bundle: Path, out: Path, pictures: FloatArray, about: Mapping[str, object]) -> Path:
    """Write a copy of ``bundle`` with the int8 graph as a variant.

    ``bundle.json`` gets ``variants.int8`` and what the calibration was (``about``),
    ``reference.npz`` the int8 graph's own answers (``int8_segmenter_output``).

    Raises
    ------
    ValueError
        If ``out`` is the bundle itself, or its network cannot be quantised.
    """
    if out.resolve() == bundle.resolve():
        raise ValueError(f"{out} is the bundle itself: choose another folder")
    made = quantise(onnx.load(bundle / "model.onnx"), pictures)
    shutil.copytree(bundle, out, dirs_exist_ok=True)
    onnx.save(made, out / FILES["segmenter"])
    with np.load(bundle / "reference.npz") as arrays:
        reference = {name: arrays[name] for name in arrays.files}
    given = reference["segmenter_input"].astype(np.float32)
    own = answer(out / FILES["segmenter"], given)
    # rounded so that it compresses: the tolerance is much wider
    reference["int8_segmenter_output"] = (np.rint(own * 1024) / 1024).astype(np.float16)
    reference.pop("allow_pickle", None)
    np.savez_compressed(out / "reference.npz", allow_pickle=False, **reference)
    described = json.loads((out / "bundle.json").read_text("utf-8"))
    names = sorted({*described["files"], *FILES.values()})
    described["files"] = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names
    }
    described.setdefault("variants", {})["int8"] = {"files": dict(FILES), "tolerance": TOLERANCE}
    described["training"]["int8"] = dict(about)
    (out / "bundle.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return out


def answer(path: Path, pictures: FloatArray) -> FloatArray:
    """What onnxruntime's CPU provider answers."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, {INPUT: pictures})[0]
    return result
