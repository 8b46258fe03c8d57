"""The networks of a model bundle, run by onnxruntime.

A bundle is a folder: ``localiser.onnx``, ``model.onnx`` (the segmenter),
``reference.npz`` (a small input and output of each), ``bundle.json`` and ``CARD.md``.
``bundle.json`` names every file with its SHA-256; a bundle that differs from its
digests, or a provider that does not reproduce the reference, is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hipscore.domain import FloatArray, ModelCard, PlaneSpec

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

FORMAT = 1
LOCALISER = "localiser.onnx"
SEGMENTER = "model.onnx"
REFERENCE = "reference.npz"
#: first choice first; what the installed onnxruntime lacks is left out
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
#: pictures per call: bounds memory, and stays in the cache of a CPU
_BATCH = 8


class BundleError(Exception):
    """A model bundle is missing, damaged or of another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle folder."""

    directory: Path
    card: ModelCard
    tolerance: float


def shipped_bundle() -> Path:
    """Find the bundle that ships with the package (or stands in the source tree).

    Raises
    ------
    BundleError
        If there is none, or several.
    """
    here = Path(__file__).resolve().parent
    for home in (here / "_bundles", here.parents[1] / "models" / "bundles"):
        found = sorted(path.parent for path in home.glob("*/bundle.json"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            msg = f"{home} holds several model bundles ({names}); set HIPSCORE_BUNDLE_DIR to one"
            raise BundleError(msg)
        if found:
            return found[0]
    msg = "no model bundle is installed; set HIPSCORE_BUNDLE_DIR to a bundle folder"
    raise BundleError(msg)


def _read(directory: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((directory / "bundle.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{directory} is not a model bundle: bundle.json cannot be read ({error})"
        raise BundleError(msg) from error
    if described.get("format") != FORMAT:
        msg = f"{directory}: bundle format {described.get('format')!r}, this version reads {FORMAT}"
        raise BundleError(msg)
    return described


def open_bundle(directory: Path | None = None) -> Bundle:
    """Read and verify a bundle, the shipped one by default.

    Raises
    ------
    BundleError
        If a file is missing or differs from its digest, or a key is missing.
    """
    directory = directory or shipped_bundle()
    described = _read(directory)
    try:
        for name, digest in described["files"].items():
            actual = hashlib.sha256((directory / name).read_bytes()).hexdigest()
            if actual != digest:
                msg = f"{directory / name} is damaged: SHA-256 {actual}, expected {digest}"
                raise BundleError(msg)
        missing = {LOCALISER, SEGMENTER, REFERENCE} - set(described["files"])
        if missing:
            msg = f"{directory}: bundle.json does not list {', '.join(sorted(missing))}"
            raise BundleError(msg)
        card = _card(described)
        tolerance = float(described["reference"]["tolerance"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{directory} is not a valid model bundle ({type(error).__name__}: {error})"
        raise BundleError(msg) from error
    return Bundle(directory=directory, card=card, tolerance=tolerance)


def _card(described: dict[str, Any]) -> ModelCard:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(described["files"].items()))
    localiser, segmenter = described["localiser"], described["segmenter"]
    head, bme, synovitis = (float(value) for value in segmenter["thresholds"])
    return ModelCard(
        id=str(described["id"]),
        version=str(described["version"]),
        name=str(described["name"]),
        trained_on=str(described["trained_on"]),
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        localiser=_plane(localiser),
        segmenter=_plane(segmenter),
        thresholds=(head, bme, synovitis),
        localiser_threshold=float(localiser["threshold"]),
        min_confidence=float(localiser["min_confidence"]),
        margin_mm=float(segmenter["margin_mm"]),
    )


def _plane(described: dict[str, Any]) -> PlaneSpec:
    return PlaneSpec(
        rows=int(described["rows"]),
        columns=int(described["columns"]),
        pixel_mm=float(described["pixel_mm"]),
        context=int(described["context"]),
    )


class OnnxSegmenter:
    """The networks of a bundle on one execution provider."""

    def __init__(self, bundle: Bundle, provider: str, threads: int) -> None:
        self._bundle = bundle
        self.provider = provider
        self._localiser = _session(bundle.directory / LOCALISER, provider, threads)
        self._segmenter = _session(bundle.directory / SEGMENTER, provider, threads)
        running = self._segmenter.get_providers()[0]
        if running != provider:
            msg = f"{provider} was asked for, onnxruntime runs {running}"
            raise BundleError(msg)

    @property
    def card(self) -> ModelCard:
        return self._bundle.card

    def localise(self, planes: FloatArray) -> FloatArray:
        """Head probability ``(N, 2, H, W)`` of planes ``(N, C, H, W)``."""
        return _run(self._localiser, planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        """Structure probability ``(N, K, H, W)`` of crops ``(N, C, H, W)``."""
        return _run(self._segmenter, crops)

    @cached_property
    def deviation(self) -> float:
        """Largest difference from the bundle's reference output. Also warms the sessions."""
        with np.load(self._bundle.directory / REFERENCE) as reference:
            pairs = (
                (self.localise, reference["localiser_input"], reference["localiser_output"]),
                (self.segment, reference["segmenter_input"], reference["segmenter_output"]),
            )
            return max(
                float(np.abs(run(given.astype(np.float32)) - expected).max())
                for run, given, expected in pairs
            )

    def check(self) -> None:
        """Raise :class:`BundleError` unless the reference output is reproduced."""
        if not self.deviation <= self._bundle.tolerance:
            msg = (
                f"{self.provider} deviates from the bundle's reference by {self.deviation:.4f}, "
                f"at most {self._bundle.tolerance:g} is accepted"
            )
            raise BundleError(msg)


def load_segmenter(directory: Path | None = None, threads: int = 0) -> OnnxSegmenter:
    """Open a bundle on the best provider that reproduces its reference.

    Parameters
    ----------
    directory
        Bundle folder; default: the shipped bundle.
    threads
        Inference threads; 0: one per core this process may use.

    Raises
    ------
    BundleError
        If the bundle is not usable, or no provider reproduces its reference.
    """
    # reading a bundle's card must not cost the listener the runtime's memory
    import onnxruntime as ort  # noqa: PLC0415

    bundle = open_bundle(directory)
    available = [name for name in PROVIDERS if name in ort.get_available_providers()]
    complaint = "onnxruntime has no known execution provider"
    for provider in available:
        try:
            segmenter = OnnxSegmenter(bundle, provider, threads or len(os.sched_getaffinity(0)))
            segmenter.check()
        except Exception as error:  # noqa: BLE001 - onnxruntime raises its own family of errors
            complaint = f"{provider} is not usable: {error}"
            log.warning(complaint)
            continue
        log.info("bundle %s %s runs on %s", bundle.card.id, bundle.card.version, provider)
        return segmenter
    raise BundleError(complaint)


def _session(path: Path, provider: str, threads: int) -> ort.InferenceSession:
    import onnxruntime as ort  # noqa: PLC0415 - see load_segmenter

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # an idle worker must not spin on the cores the other processes need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, sess_options=options, providers=[provider])


def _run(session: ort.InferenceSession, pictures: FloatArray) -> FloatArray:
    """Run ``(N, C, H, W)`` in batches; N may be 0."""
    outputs = session.get_outputs()[0]
    name = session.get_inputs()[0].name
    parts = [
        session.run([outputs.name], {name: np.ascontiguousarray(pictures[at : at + _BATCH])})[0]
        for at in range(0, len(pictures), _BATCH)
    ]
    if not parts:
        return np.zeros((0, int(outputs.shape[1]), *pictures.shape[2:]), dtype=np.float32)
    return np.concatenate(parts).astype(np.float32, copy=False)
