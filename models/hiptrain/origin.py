"""What made the networks of a run, told from their checkpoints: data, splits, recipes.

No torch here but in :func:`checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("localiser", "segmenter")
#: patients that ``hiptrain prepare`` invents
_INVENTED = ("phantom-", "stranger-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who trained and who chose, over both networks; ``data`` are the sets' own words."""

    trained_on: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    data: dict[str, Any]
    networks: dict[str, dict[str, Any]]


def checkpoints(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The best checkpoint of each network, from the first run that has it.

    Raises
    ------
    FileNotFoundError
        If no run has one of them.
    """
    import torch

    found = {}
    for task in TASKS:
        paths = [path for run in runs if (path := run / f"{task}.best.pt").exists()]
        if not paths:
            raise FileNotFoundError(2, "missing", str(runs[0] / f"{task}.best.pt"))
        found[task] = torch.load(paths[0], map_location="cpu", weights_only=True)
    return found


def told(saved: Mapping[str, Mapping[str, Any]]) -> Origin:
    """Gather what the checkpoints of both networks say about themselves."""
    training: set[str] = set()
    chose: set[str] = set()
    invented: dict[str, int] = dict.fromkeys(_INVENTED, 0)
    sets: dict[str, Any] = {}
    networks: dict[str, dict[str, Any]] = {}
    for task, each in saved.items():
        about = each.get("about", {})
        split = about.get("split", {})
        own = _patients(split, "training")
        training |= own
        for kind, most in invented.items():
            invented[kind] = max(most, sum(name.startswith(kind) for name in own))
        chose |= _patients(split, "validation")
        for entry in about.get("data", []):
            sets.setdefault(entry["name"], entry.get("set", {}))
        figure = each.get("best")
        networks[task] = dict(each["recipe"]) | {
            "design": each["design"],
            "best_epoch": each["best_epoch"],
            "validation_dice": None if figure is None else round(figure, 4),
            "parameters": about.get("parameters"),
            "precision": about.get("precision"),
            "versions": about.get("versions", {}),
        }
    real = tuple(sorted(name for name in training if not name.startswith(_INVENTED)))
    return Origin(
        trained_on=sentence(list(sets.values()), real, invented),
        training=real,
        held_out=tuple(sorted(name for name in chose - training if not name.startswith(_INVENTED))),
        data=dict(sorted(sets.items())),
        networks=networks,
    )


def _patients(split: Mapping[str, Any], side: str) -> set[str]:
    return set(split.get(side, {}).get("patients", []))


def sentence(
    sets: Sequence[Mapping[str, Any]], real: Sequence[str], invented: Mapping[str, int]
) -> str:
    """One sentence: what the networks were trained on."""
    annotated = [each for each in sets if each.get("kind") == "annotated"]
    prepared = [each for each in sets if "plan" in each]
    anatomies = {name for each in prepared for name in each.get("anatomies", [])} & set(real)
    parts = []
    if annotated:
        parts.append(f"annotated series of {len(set(real) - anatomies)} patients")
    if anatomies:
        parts.append(
            f"semi-real STIR made from {len(anatomies)} coronal T1 pelvis series "
            "(TCIA CPTAC-UCEC) with synthetic lesions"
        )
    for kind, words in (
        ("phantom-", "synthetic phantoms"),
        ("stranger-", "drawn series without hips"),
    ):
        if invented[kind]:
            parts.append(f"{invented[kind]} {words}")
    text = ", ".join(parts) or "data that the run does not describe"
    return text if annotated else f"{text}; no real STIR, no real lesion"
