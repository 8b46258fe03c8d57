"""What a training remembers: its state, averaged weights, and where everything came from."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hipscore
from hiptrain.dataset import Pictures

#: what may differ between the runs of one training: how fast it is, not what comes of it
_FREE = frozenset({"minutes", "threads", "device"})
_PACKAGES = ("torch", "monai", "numpy", "scipy")


@dataclass(slots=True, kw_only=True)
class State:
    """All that changes during a training, and all that a resumed one needs.

    ``average`` is a network of its own: an exponential moving average of the weights, and
    of the statistics of batch normalisation, of ``network``.
    """

    network: Any
    average: Any
    optimiser: Any
    scaler: Any
    epoch: int = 0
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0


def averaged(network: Any) -> Any:
    """A copy of a network to keep the average in; it is never trained itself."""
    return copy.deepcopy(network).requires_grad_(requires_grad=False).eval()


@torch.no_grad()
def follow(average: Any, network: Any, decay: float, step: int) -> None:
    """Move the average a little towards the network, after optimiser step ``step`` (from 0).

    The decay rises to ``decay`` as (1 + n) / (10 + n), so that the random weights of the
    start are soon forgotten.
    """
    pace = 1.0 - min(decay, (1 + step) / (10 + step))
    for kept, now in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(now, pace)
    for kept, now in zip(average.buffers(), network.buffers(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, pace)
        else:
            kept.copy_(now)


def save(state: State, path: Path, about: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    ``weights`` are the averaged ones, for use; ``raw``, ``optimiser`` and ``scaler`` are for
    resuming. ``about`` holds ``design``, ``recipe`` and ``about`` (data, split, versions).
    """
    partial = path.with_suffix(".part")
    torch.save(
        {
            **about,
            "weights": state.average.state_dict(),
            "raw": state.network.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "scaler": state.scaler.state_dict(),
            "epoch": state.epoch,
            "best": state.best,
            "best_epoch": state.best_epoch,
            "seconds": state.seconds,
        },
        partial,
    )
    partial.rename(path)


def resume(state: State, path: Path, about: Mapping[str, Any]) -> None:
    """Continue where a checkpoint ended.

    Raises
    ------
    ValueError
        If it was made by another recipe, of another network, or with other data.
    """
    saved = torch.load(path, weights_only=True, map_location="cpu")
    _refuse_other(path, saved, about)
    state.network.load_state_dict(saved["raw"])
    state.average.load_state_dict(saved["weights"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.scaler.load_state_dict(saved["scaler"])
    state.epoch, state.seconds = saved["epoch"], saved["seconds"]
    state.best, state.best_epoch = saved["best"], saved["best_epoch"]


def _refuse_other(path: Path, saved: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    differences = [
        f"{key} {saved.get(part, {}).get(key)} instead of {wanted}"
        for part in ("recipe", "design")
        for key, wanted in about[part].items()
        if key not in _FREE and saved.get(part, {}).get(key) != wanted
    ]
    if saved.get("about", {}).get("pictures") != about["about"]["pictures"]:
        differences.append("other data")
    if differences:
        raise ValueError(
            f"{path} was made with {', '.join(differences)}: "
            "resume it with its own recipe and data, or take another --run"
        )


def described(pictures: Pictures | None) -> dict[str, object] | None:
    """Patients, number and SHA-256 of pictures: enough to know them again."""
    if pictures is None:
        return None
    digest = hashlib.sha256()
    for array in (pictures.inputs, pictures.truths):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return {
        "count": len(pictures),
        "patients": sorted({str(name) for name in pictures.patients}),
        "sha256": digest.hexdigest(),
    }


def versions() -> dict[str, str]:
    """Versions of what a training depends on."""
    found = {"python": platform.python_version(), "hipscore": hipscore.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def record(folder: Path, task: str, entry: Mapping[str, Any]) -> None:
    """Write the entry of one network into ``run.json``, beside those of others."""
    path = folder / "run.json"
    whole: dict[str, Any] = {"format": 1, "networks": {}}
    if path.exists():
        whole = json.loads(path.read_text(encoding="utf-8"))
    whole["networks"][task] = dict(entry)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
