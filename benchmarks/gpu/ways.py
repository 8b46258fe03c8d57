"""The segmenter on every runtime: each row made in turn, and what cannot be made says why."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hipscore.domain import FloatArray
from hipscore.inference import Bundle, Precision, gpu, hardware, runtimes

Run = Callable[[FloatArray], FloatArray]
EAGER = "torch eager fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to make a network for batches of a size. Torch's has other weights, of equal cost."""

    name: str
    make: Callable[[int], Run]
    precision: str = "fp32"
    of_torch: bool = False


def ways(bundle: Bundle, cache: Path, *, compile_too: bool) -> Iterator[Way]:
    """Those of this machine: its GPU's where it has one, else its processor's."""
    device = "cuda" if gpu.available("cuda") else "cpu"
    yield Way(name=EAGER, of_torch=True, make=lambda _: _torch(bundle, device))
    half = "fp16" if device == "cuda" else "bf16"
    for kind in dict.fromkeys((half, "bf16")):
        yield Way(
            name=f"torch eager {kind} channels_last",
            precision=kind,
            of_torch=True,
            make=functools.partial(lambda kind, _: _torch(bundle, device, kind), kind),
        )
    if compile_too:
        yield Way(
            name="torch.compile fp32",
            of_torch=True,
            make=lambda _: _torch(bundle, device, compiled=True),
        )
    path = bundle.variants[Precision.FP32].segmenter
    if device == "cpu":
        cores = hardware.cores()
        yield Way(
            name="onnxruntime CPU fp32",
            make=lambda _: runtimes.OnnxRuntime(path, "CPUExecutionProvider", threads=cores),
        )
        yield Way(
            name="OpenVINO fp32",
            make=lambda _: runtimes.OpenVino(path, precision=Precision.FP32, threads=cores),
        )
        return
    yield from _on_gpu(path, cache)


def _on_gpu(path: Path, cache: Path) -> Iterator[Way]:
    def cuda(batch: int) -> Run:
        gpu.preload("cuda")
        return runtimes.OnnxRuntime(
            path, "CUDAExecutionProvider", threads=1, options=gpu.cuda_options(), batch=batch
        )

    def bound(batch: int, **more: Any) -> Run:
        gpu.preload("cuda")
        providers = [("CUDAExecutionProvider", gpu.cuda_options() | more)]
        return gpu.BoundNetwork(path, providers, device="cuda", batch=batch)

    def tensorrt(precision: Precision, batch: int) -> Run:
        gpu.preload("tensorrt")
        providers = [
            ("TensorrtExecutionProvider", gpu.tensorrt_options(path, precision, cache)),
            ("CUDAExecutionProvider", gpu.cuda_options()),
        ]
        return gpu.BoundNetwork(path, providers, device="cuda", batch=batch)

    yield Way(name="onnxruntime CUDA fp32", make=cuda)
    yield Way(name="onnxruntime CUDA fp32, bound memory", make=bound)
    yield Way(
        name="onnxruntime CUDA fp32, bound memory, CUDA graph",
        make=functools.partial(bound, enable_cuda_graph="1"),
    )
    for precision in (Precision.FP32, Precision.FP16):
        yield Way(
            name=f"onnxruntime TensorRT {precision}",
            precision=precision.value,
            make=functools.partial(tensorrt, precision),
        )
        yield Way(
            name=f"TensorRT {precision}, no onnxruntime",
            precision=precision.value,
            make=functools.partial(_native, path, precision),
        )


def _torch(bundle: Bundle, device: str, kind: str = "fp32", *, compiled: bool = False) -> Run:
    import torch  # noqa: PLC0415 - only where it is installed

    from hiptrain.networks import Design, Probability, build  # noqa: PLC0415

    torch.set_num_threads(hardware.cores())
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(1)  # the same weights in every row
    described = json.loads((bundle.directory / "bundle.json").read_text("utf-8"))
    design = Design(**described["training"]["networks"]["segmenter"]["design"])
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    network: Any = Probability(build(design).eval()).eval().to(device, kinds[kind])
    layout = torch.contiguous_format if kind == "fp32" else torch.channels_last
    network = network.to(memory_format=layout)
    if compiled:
        network = torch.compile(network)

    def run(pictures: FloatArray) -> FloatArray:
        with torch.inference_mode():
            given = torch.from_numpy(pictures).to(device, kinds[kind], memory_format=layout)
            answer: FloatArray = network(given).float().cpu().numpy()
        return answer

    return run


def _native(path: Path, precision: Precision, batch: int) -> Run:
    """TensorRT's own Python package, its memory in torch tensors."""
    import tensorrt as trt  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    import torch  # noqa: PLC0415

    said = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(said)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, said)
    if not parser.parse(path.read_bytes()):
        raise RuntimeError(str(parser.get_error(0)))
    first, last = network.get_input(0), network.get_output(0)
    shape = (batch, *tuple(first.shape)[1:])
    profile = builder.create_optimization_profile()
    profile.set_shape(first.name, shape, shape, shape)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)
    if precision is Precision.FP16:
        config.set_flag(trt.BuilderFlag.FP16)
    built = builder.build_serialized_network(network, config)
    engine = trt.Runtime(said).deserialize_cuda_engine(built)
    context = engine.create_execution_context()
    given = torch.empty(shape, device="cuda")
    answer = torch.empty((batch, tuple(last.shape)[1], *shape[2:]), device="cuda")
    context.set_input_shape(first.name, shape)
    context.set_tensor_address(first.name, given.data_ptr())
    context.set_tensor_address(last.name, answer.data_ptr())
    stream = torch.cuda.Stream()

    def run(pictures: FloatArray) -> FloatArray:
        with torch.cuda.stream(stream):
            given.copy_(torch.from_numpy(np.ascontiguousarray(pictures)))
            context.execute_async_v3(stream.cuda_stream)
            copied: FloatArray = answer.cpu().numpy()
        assert engine is not None  # noqa: S101 - it must outlive the context
        return copied

    return run
