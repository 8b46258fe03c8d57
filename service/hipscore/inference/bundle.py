"""A model bundle: the networks, what they answer to a reference input, and what they are.

A bundle is a folder: ``localiser.onnx``, ``model.onnx`` (the segmenter),
``reference.npz`` (a small input and output of each), ``bundle.json`` and ``CARD.md``.
``bundle.json`` names every file with its SHA-256; a bundle that differs from its
digests is not used.

A bundle is made in fp32. Under ``variants`` it lists the other precisions it was evaluated
in, and no other is ever used: each with the largest deviation from the reference that is
accepted, and, where the networks themselves differ (int8), the graphs and the reference
outputs of their own (``int8_segmenter_output``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from hipscore.domain import FloatArray, ModelCard, PlaneSpec

FORMAT = 1
LOCALISER = "localiser.onnx"
SEGMENTER = "model.onnx"
REFERENCE = "reference.npz"


class Precision(StrEnum):
    """In which numbers a network computes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class BundleError(Exception):
    """A model bundle is missing, damaged or of another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A small input ``(N, C, H, W)`` of a network and its output ``(N, K, H, W)``."""

    input: FloatArray
    output: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The networks in one precision.

    ``tolerance`` is the largest difference from the reference output that is accepted, as
    probability. ``prefix`` names the reference outputs of graphs that are not the fp32 ones.
    """

    localiser: Path
    segmenter: Path
    tolerance: float
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle folder."""

    directory: Path
    card: ModelCard
    variants: Mapping[Precision, Variant]

    def reference(self, network: str, precision: Precision) -> Reference:
        """Read what ``localiser`` or ``segmenter`` was given and answered."""
        prefix = self.variants[precision].prefix
        with np.load(self.directory / REFERENCE) as arrays:
            own = f"{prefix}{network}_output"
            return Reference(
                input=arrays[f"{network}_input"].astype(np.float32),
                output=arrays[own if own in arrays else f"{network}_output"].astype(np.float32),
            )


def shipped_bundle() -> Path:
    """Find the bundle that ships with the package (or stands in the source tree).

    Raises
    ------
    BundleError
        If there is none, or several.
    """
    here = Path(__file__).resolve().parents[1]
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
        variants = _variants(directory, described)
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{directory} is not a valid model bundle ({type(error).__name__}: {error})"
        raise BundleError(msg) from error
    return Bundle(directory=directory, card=card, variants=variants)


def _variants(directory: Path, described: dict[str, Any]) -> dict[Precision, Variant]:
    """Of every precision this version knows: a bundle may list more."""
    plain = Variant(
        localiser=directory / LOCALISER,
        segmenter=directory / SEGMENTER,
        tolerance=float(described["reference"]["tolerance"]),
    )
    found = {Precision.FP32: plain}
    known = set(Precision) - {Precision.FP32}
    for name, variant in described.get("variants", {}).items():
        if name not in known:
            continue
        files = variant.get("files", {})
        unlisted = sorted(set(files.values()) - set(described["files"]))
        if unlisted:
            msg = f"{directory}: bundle.json does not list {', '.join(unlisted)} of {name}"
            raise BundleError(msg)
        found[Precision(name)] = Variant(
            localiser=directory / files.get("localiser", LOCALISER),
            segmenter=directory / files.get("segmenter", SEGMENTER),
            tolerance=float(variant["tolerance"]),
            prefix=f"{name}_" if files else "",
        )
    return found


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
