"""Networks on an NVIDIA GPU, by onnxruntime's CUDA and TensorRT providers.

Batches always have ``GPU_BATCH`` pictures, the last one filled up with empty ones: cuDNN and
TensorRT choose their kernels by the shape, so that a picture's result would otherwise depend
on how many others came with it. It also lets the memory be bound once.

Options: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and
TensorRT-ExecutionProvider.html beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hipscore.domain import FloatArray
from hipscore.inference.bundle import BundleError, Precision

_NAMES = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
#: pictures per call: the crops of both hips of a series
GPU_BATCH = 32
#: smallest, usual and largest batch that a TensorRT engine is built for
PROFILE = (1, GPU_BATCH, 64)
#: TensorRT's libraries in the order of their needs: pip installs them where no loader looks
_TENSORRT = ("libnvinfer.so.*", "libnvinfer_plugin.so.*", "libnvonnxparser.so.*")
_QUIET, _WARNINGS = 4, 2

Options = Mapping[str, Any]


@functools.cache
def _driver() -> ctypes.CDLL | None:
    """The driver's library, loaded and not initialised: a process that did could not fork."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def available(provider: str) -> bool:
    """Whether driver, libraries and onnxruntime have the provider. The device may still fail."""
    if _driver() is None or os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    if provider == "tensorrt" and not _tensorrt_installed():
        return False
    import onnxruntime as ort  # noqa: PLC0415

    return _NAMES[provider] in ort.get_available_providers()


def _tensorrt_folder() -> Path | None:
    """Where pip put TensorRT's libraries."""
    spec = importlib.util.find_spec("tensorrt_libs")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _tensorrt_installed() -> bool:
    if _tensorrt_folder() is not None:
        return True
    with contextlib.suppress(OSError):
        ctypes.CDLL("libnvinfer.so.10")
        return True
    return False


def device_name() -> str:
    """Name of the first GPU that CUDA shows this process, which must have loaded a network."""
    driver = _driver()
    number, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    if (
        driver is None
        or driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(number), 0)
        or driver.cuDeviceGetName(name, len(name), number)
    ):
        return "unknown GPU"
    return name.value.decode("utf-8", "replace")


def cuda_options() -> dict[str, Any]:
    """Options of the CUDA provider."""
    return {
        "device_id": 0,
        # fp32 means fp32: TF32 keeps 10 of 23 bits of the mantissa
        "use_tf32": "0",
        # EXHAUSTIVE times the kernels and may take another one at every start
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt_options(path: Path, precision: Precision, cache: Path | None) -> dict[str, Any]:
    """Options of the TensorRT provider for a graph.

    The provider finds a built engine by the names in its graph and not by its weights: each
    graph, by its digest, gets a folder of its own.
    """
    import onnxruntime as ort  # noqa: PLC0415

    # the provider has no option for TF32, the libraries heed this when they are loaded
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    graph = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
    shape = "x".join(str(each) for each in graph.shape[1:])
    options: dict[str, Any] = {
        "device_id": 0,
        "trt_fp16_enable": precision is Precision.FP16,
        **{
            f"trt_profile_{name}_shapes": f"{graph.name}:{count}x{shape}"
            for name, count in zip(("min", "opt", "max"), PROFILE, strict=True)
        },
    }
    if cache is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        folder = cache / f"{digest}-{precision.value}-onnxruntime-{ort.__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            # kernels are chosen by stopwatch: remembered, the choice stays
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder),
        }
    return options


def load(path: Path, provider: str, precision: Precision, *, cache: Path | None) -> BoundNetwork:
    """Load a graph on the first GPU.

    Raises
    ------
    BundleError
        If onnxruntime does not get the provider to work; says what onnxruntime said.
    """
    providers: list[tuple[str, Options]] = [(_NAMES["cuda"], cuda_options())]
    with _heard() as complaints:
        preload(provider)
        if provider == "tensorrt":  # CUDA beside it, for what TensorRT does not take
            providers.insert(0, (_NAMES[provider], tensorrt_options(path, precision, cache)))
        try:
            network = BoundNetwork(path, providers, device="cuda", batch=GPU_BATCH)
        except Exception as error:
            said = "; ".join([*complaints(), " ".join(str(error).split())])
            raise BundleError(said) from error
    network.device = device_name()
    return network


def preload(provider: str) -> None:
    """Load the CUDA, cuDNN and TensorRT libraries that pip installed."""
    import onnxruntime as ort  # noqa: PLC0415

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    folder = _tensorrt_folder()
    if provider != "tensorrt" or folder is None:
        return
    for pattern in _TENSORRT:
        for library in folder.glob(pattern):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@contextlib.contextmanager
def _heard() -> Iterator[Any]:
    """Keep what onnxruntime prints by itself while inside; gives what it was, in lines."""
    import onnxruntime as ort  # noqa: PLC0415

    printed = io.StringIO()
    ort.set_default_logger_severity(_QUIET)
    try:
        with contextlib.redirect_stdout(printed):
            yield lambda: [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    finally:
        ort.set_default_logger_severity(_WARNINGS)


class BoundNetwork:
    """A graph in an onnxruntime session whose input and output stay bound to device memory.

    Parameters
    ----------
    path
        The graph, free in the batch size.
    providers
        Execution providers with their options, first choice first.
    device
        Where the memory is: ``cuda``, or ``cpu``.
    batch
        Pictures per call; fewer are filled up.

    Raises
    ------
    BundleError
        If onnxruntime took another provider than the first.
    """

    def __init__(
        self, path: Path, providers: Sequence[tuple[str, Options]], *, device: str, batch: int
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = _QUIET  # what goes wrong is raised as well
        self._session = ort.InferenceSession(
            path, sess_options=settings, providers=list(providers), enable_fallback=0
        )
        wanted, running = providers[0][0], self._session.get_providers()[0]
        if running != wanted:
            msg = f"{wanted} was asked for, onnxruntime runs {running}"
            raise BundleError(msg)
        self._batch = batch
        self._filled = self._bind(device)
        self.device = device

    def _bind(self, device: str) -> FloatArray:
        """Reserve the memory of one batch on host and device; returns that of the host."""
        import onnxruntime as ort  # noqa: PLC0415

        first, last = self._session.get_inputs()[0], self._session.get_outputs()[0]
        shape = (self._batch, *first.shape[1:])
        # the networks answer a picture of the size of their input
        answer = (self._batch, last.shape[1], *first.shape[2:])
        reserve = ort.OrtValue.ortvalue_from_shape_and_type
        self._given = reserve(shape, np.float32, device, 0)
        self._answer = reserve(answer, np.float32, device, 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(first.name, self._given)
        self._binding.bind_ortvalue_output(last.name, self._answer)
        self._shape = answer[1:]
        return np.zeros(shape, dtype=np.float32)

    def __call__(self, pictures: FloatArray) -> FloatArray:
        """Run ``(N, C, H, W)`` in batches: one copy to the device, one back, for each."""
        result = np.full((len(pictures), *self._shape), np.nan, dtype=np.float32)
        for at in range(0, len(pictures), self._batch):
            part = pictures[at : at + self._batch]
            self._filled[: len(part)] = part
            self._filled[len(part) :] = 0.0
            self._given.update_inplace(self._filled)
            self._session.run_with_iobinding(self._binding)
            result[at : at + self._batch] = self._answer.numpy()[: len(part)]
        return result
