"""One graph on one runtime: onnxruntime with an execution provider, or OpenVINO.

Runtimes are imported when they are used: reading a bundle's card must not cost the listener
their memory.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hipscore.domain import FloatArray
from hipscore.inference.bundle import BundleError, Precision

if TYPE_CHECKING:
    import openvino as ov

#: pictures per call of onnxruntime: bounds memory, and stays in the cache of a CPU
CPU_BATCH = 4
_OPENVINO_HINTS = {Precision.BF16: "bf16", Precision.FP16: "f16"}


class Network(Protocol):
    """One loaded graph."""

    @property
    def device(self) -> str:
        """What it runs on, in words."""
        ...

    def __call__(self, pictures: FloatArray) -> FloatArray:
        """Probability ``(N, K, H, W)`` of pictures ``(N, C, H, W)``; N may be 0."""
        ...


def onnxruntime_version() -> str:
    """Name and version of the installed onnxruntime, whichever of its packages it is."""
    import onnxruntime as ort  # noqa: PLC0415

    return f"onnxruntime {ort.__version__}"


def openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report every import to its makers.

    A DICOM service calls nobody it was not told to. Where its telemetry cannot be imported,
    OpenVINO goes without.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # "cannot be imported"
    import openvino as module  # noqa: PLC0415

    return module


def openvino_version() -> str | None:
    """Name and version of OpenVINO; None where it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return None
    return f"openvino {metadata.version('openvino')}"


class OnnxRuntime:
    """A graph in an onnxruntime session on one execution provider.

    Raises
    ------
    BundleError
        If onnxruntime quietly took another provider.
    """

    def __init__(
        self,
        path: Path,
        provider: str,
        *,
        threads: int,
        options: Mapping[str, Any] | None = None,
        batch: int = CPU_BATCH,
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # an idle worker must not spin on the cores the other processes need
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            path, sess_options=settings, providers=[(provider, dict(options or {}))]
        )
        running = self._session.get_providers()[0]
        if running != provider:
            msg = f"{provider} was asked for, onnxruntime runs {running}"
            raise BundleError(msg)
        self._batch = batch
        self._output = self._session.get_outputs()[0]
        self._input = self._session.get_inputs()[0].name
        self.device = provider.removesuffix("ExecutionProvider")

    def __call__(self, pictures: FloatArray) -> FloatArray:
        """Run ``(N, C, H, W)`` in batches."""
        result = _room(pictures, int(self._output.shape[1]))
        for at in range(0, len(pictures), self._batch):
            part = np.ascontiguousarray(pictures[at : at + self._batch])
            result[at : at + self._batch] = self._session.run(
                [self._output.name], {self._input: part}
            )[0]
        return result


class OpenVino:
    """A graph on OpenVINO's CPU device, one picture at a time on each of ``threads`` streams.

    A stream per core needs no barrier between the layers, and a picture's result does not
    depend on what else is in the series, nor on the number of cores.
    """

    def __init__(self, path: Path, *, precision: Precision, threads: int) -> None:
        ov = openvino()

        model = ov.Core().read_model(path)
        shape = [dimension.get_length() for dimension in list(model.input(0).partial_shape)[1:]]
        model.reshape([1, *shape])
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                # the graph of int8 says itself what is quantised; the rest of it is fp32
                "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS.get(precision, "f32"),
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": threads,
                # other processes share the cores: the system places the threads
                "ENABLE_CPU_PINNING": False,
            },
        )
        # one more waits for each stream, which is so never without work
        self._queue = ov.AsyncInferQueue(compiled, 2 * threads)
        self._channels = int(compiled.output(0).shape[1])
        self.device = str(compiled.get_property("EXECUTION_DEVICES")[0])

    def __call__(self, pictures: FloatArray) -> FloatArray:
        """Run ``(N, C, H, W)`` picture by picture, several at once."""
        result = _room(pictures, self._channels)
        given = np.ascontiguousarray(pictures)  # shared with the requests: kept until they end

        failed: list[Exception] = []

        def take(request: ov.InferRequest, at: int) -> None:
            try:
                result[at] = request.get_output_tensor(0).data[0]
            except Exception as error:  # noqa: BLE001 - OpenVINO raises it twice, which aborts
                failed.append(error)

        self._queue.set_callback(take)
        try:
            for at in range(len(given)):
                self._queue.start_async({0: given[at : at + 1]}, at, share_inputs=True)
        finally:  # requests read ``given`` and write ``result``; what failed in one is raised here
            self._queue.wait_all()
        if failed:
            raise failed[0]
        return result


def _room(pictures: FloatArray, channels: int) -> FloatArray:
    """A result to be filled for these pictures; what is not filled is not a number."""
    count, _, rows, columns = pictures.shape
    return np.full((count, channels, rows, columns), np.nan, dtype=np.float32)
