"""The graph of a network arranged anew so that int8 loses less.

In fp32 every function here keeps the answers up to rounding. Networks are those that
:mod:`hiptrain.quantise` takes: convolutions with ReLU, transposed convolutions, maximum
pooling, concatenation of two tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hipscore.domain import DoubleArray, FloatArray

INPUT = "pictures"
#: how much of the difference between the channels of a tensor is moved into the weights: all
#: of it would cost them more than the tensor gains
_EQUALISED = 0.75
#: and no channel is scaled by more than this
_MOST = 4.0
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Smallest, largest and mean value of a tensor by channel, ``(C,)`` each."""

    low: DoubleArray
    high: DoubleArray
    mean: DoubleArray


def weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The constants of a graph, by name."""
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without pads of zero width.

    Raises
    ------
    ValueError
        If a pad has a width.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = weights(made)
    for node in [each for each in made.graph.node if each.op_type == "Pad"]:
        if known[node.input[1]].any():
            raise ValueError(f"{node.name} pads by {known[node.input[1]].tolist()}")
        made.graph.node.remove(node)
        _reconnect(made, node.output[0], node.input[0])
    drop_unused(made)
    return made


def equalised(model: onnx.ModelProto, pictures: FloatArray) -> onnx.ModelProto:
    """The same graph with channels of more equal size in every tensor.

    ReLU and pooling let a positive factor through: a channel is divided by it where it is made
    and multiplied by it where it is used (Nagel et al. 2019, arXiv:1906.04721, section 4.1).
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = {name: values.astype(np.float64) for name, values in weights(made).items()}
    observed = observe(made, pictures)
    for node in made.graph.node:
        used = _uses(made, node.output[0], 0, observed) if node.op_type in _CONVOLUTIONS else []
        if not used:
            continue
        size = np.maximum(_reach(made, node, observed), 1e-3)
        scale = (size / np.exp(np.log(size).mean())) ** _EQUALISED
        scale = np.clip(scale, 1.0 / _MOST, _MOST)
        outputs = 0 if node.op_type == "Conv" else 1
        known[node.input[1]] = known[node.input[1]] / _along(scale, outputs)
        known[node.input[2]] = known[node.input[2]] / scale
        for user, first in used:
            inputs = 1 if user.op_type == "Conv" else 0
            factor = np.ones(known[user.input[1]].shape[inputs])
            factor[first : first + len(scale)] = scale
            known[user.input[1]] = known[user.input[1]] * _along(factor, inputs)
    for name, values in known.items():
        set_weights(made, name, values)
    return made


_CONVOLUTIONS = {"Conv", "ConvTranspose"}


def _uses(
    model: onnx.ModelProto, tensor: str, first: int, observed: dict[str, Observed]
) -> list[tuple[onnx.NodeProto, int]]:
    """The convolutions that take a tensor, and which of their input channels it begins at.

    Empty where it goes anywhere else: its size is not ours to change then.
    """
    found: list[tuple[onnx.NodeProto, int]] = []
    for node in consumers(model, tensor):
        if node.op_type in _CONVOLUTIONS:
            found.append((node, first))
            continue
        if node.op_type not in {"Relu", "MaxPool", "Concat"}:
            return []
        before = node.input[: list(node.input).index(tensor)]
        begins = first + sum(len(observed[name].high) for name in before)
        further = _uses(model, node.output[0], begins, observed)
        if not further:
            return []
        found += further
    return found


def _reach(
    model: onnx.ModelProto, node: onnx.NodeProto, observed: dict[str, Observed]
) -> DoubleArray:
    """How far the channels of a convolution's result reach, after its ReLU if it has one."""
    after = [each.output[0] for each in consumers(model, node.output[0]) if each.op_type == "Relu"]
    seen = observed[after[0] if after else node.output[0]]
    reach: DoubleArray = seen.high - np.minimum(seen.low, 0.0)
    return reach


def _along(values: DoubleArray, axis: int) -> DoubleArray:
    """Shaped to multiply a kernel of 4 axes."""
    shape = [1] * 4
    shape[axis] = len(values)
    return values.reshape(shape)


def observe(model: onnx.ModelProto, pictures: FloatArray) -> dict[str, Observed]:
    """Every tensor of an fp32 graph over the pictures."""
    names = [name for node in model.graph.node for name in node.output]
    low: dict[str, DoubleArray] = {}
    high: dict[str, DoubleArray] = {}
    total: dict[str, DoubleArray] = {}
    for answers in _all_tensors(model, names, pictures):
        for name, values in answers.items():
            axes = (0, 2, 3)
            own = (values.min(axis=axes), values.max(axis=axes), values.mean(axis=axes))
            low[name] = np.minimum(low.get(name, np.inf), own[0])
            high[name] = np.maximum(high.get(name, -np.inf), own[1])
            total[name] = total.get(name, 0.0) + own[2].astype(np.float64) * len(values)
    return {
        name: Observed(low=low[name], high=high[name], mean=total[name] / len(pictures))
        for name in total
    }


def _all_tensors(
    model: onnx.ModelProto, names: Sequence[str], pictures: FloatArray
) -> Iterator[dict[str, FloatArray]]:
    import onnxruntime as ort

    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
    for at in range(0, len(pictures), _BATCH):
        given = pictures[at : at + _BATCH]
        answers = session.run(list(names), {INPUT: given})
        yield {INPUT: given, **dict(zip(names, answers, strict=True))}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor, by the tensor's name."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that take a tensor."""
    return [node for node in model.graph.node if tensor in node.input]


def _reconnect(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def set_weights(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Replace a constant; floating ones become float32."""
    kind = np.float32 if np.issubdtype(values.dtype, np.floating) else values.dtype
    for each in model.graph.initializer:
        if each.name == name:
            each.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), name))


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants and shapes that no node takes any longer."""
    used = {name for node in model.graph.node for name in node.input}
    for each in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(each)
    for info in [each for each in model.graph.value_info if each.name not in used]:
        model.graph.value_info.remove(info)
