"""The model card of a bundle, in words (``CARD.md``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hipscore.domain import RESEARCH_USE
from hiptrain.evaluate import HipFigures, summary, table

_CITATION = (
    "National Cancer Institute Clinical Proteomic Tumor Analysis Consortium (CPTAC). "
    "The Clinical Proteomic Tumor Analysis Consortium Uterine Corpus Endometrial Carcinoma "
    "Collection (CPTAC-UCEC). The Cancer Imaging Archive. "
    "https://doi.org/10.7937/k9/tcia.2018.3r3juisw"
)


def trained_on(data: Mapping[str, Any]) -> str:
    """One sentence: what the networks were trained on."""
    return (
        f"semi-real STIR made from {len(data['training_series'])} coronal T1 pelvis series "
        f"(TCIA CPTAC-UCEC) with synthetic lesions, and {data['phantoms']} synthetic phantoms; "
        "no real STIR, no real lesion"
    )


def write(folder: Path, figures: Mapping[str, Any] | None) -> Path:
    """Write ``CARD.md`` from ``bundle.json`` and, if given, the JSON of an evaluation."""
    described = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    target = folder / "CARD.md"
    target.write_text(_text(described, figures), encoding="utf-8")
    return target


def _text(described: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    training = described["training"]
    localiser, segmenter = described["localiser"], described["segmenter"]
    networks = "\n".join(
        f"- {name}: U-Net of width {each['design']['width']}, {each['design']['depth']} levels "
        f"down; best epoch {each['best_epoch']}, seed {each['seed']}, "
        f"validation Dice {each['validation_dice']}"
        for name, each in training["networks"].items()
    )
    remark = training["data"].get("remark")
    if remark:
        networks += f"\n- Remark: {remark}."
    return f"""# {described["name"]}

`{described["id"]}` version {described["version"]}. {RESEARCH_USE}.

## What it does
Two small 2D U-Nets. The **localiser** marks the right and the left femoral head in pictures
of whole coronal slices ({localiser["rows"]} × {localiser["columns"]} at
{localiser["pixel_mm"]} mm). The **segmenter** marks femoral head, bone marrow edema and
synovitis/effusion in crops around one head ({segmenter["rows"]} × {segmenter["columns"]} at
{segmenter["pixel_mm"]} mm); left hips are mirrored. Both see a slice with its neighbours in
front and behind. Thresholds and specifications are in `bundle.json`.

## What it was trained on
{described["trained_on"][0].upper() + described["trained_on"][1:]}.

- Anatomy: {len(training["training_series"])} series
  ({", ".join(training["training_series"])}) of coronal T1 TSE at 1.5 T, Siemens Avanto,
  normal hips of women with endometrial carcinoma. Held out of training:
  {", ".join(training["held_out_series"])} (they chose the best
  epoch and were seen while tuning: the figures are somewhat optimistic).
- Contrast: the T1 signal mapped to a STIR-like one with random tissue signals, coil shading,
  blur and Rician noise; anatomies bent, scaled and mirrored. The localiser also saw the T1
  contrast itself, reversed contrast, small fields of view and brains.
- Lesions: synthetic. Edema 1.25 to 2.5 times the marrow's signal, effusion 3 to 8 times the
  median tissue, inside a modelled capsule.
{networks}

Source of the anatomy: {_CITATION}

## Measured
{_measured(figures)}

## Limits
- It has seen **no real STIR image and no real lesion**. The figures say how well it undoes
  its own kind of synthesis on anatomies it has not seen; how well it does on patients is
  unknown, and two experts agree on real outlines only with a Dice of 0.28 to 0.84.
- One scanner, one protocol, women of one disease group; no children, no prostheses, no
  dysplasia, no fracture, no metal. Other field strengths and vendors are simulated only by
  random contrast and noise.
- The femoral head is a sphere trimmed to the edge of the marrow; a deformed head is outlined
  less well. Edema outside the head (socket, neck) is not marked.
- Very faint (below 1.25 times marrow) and very small lesions are missed.
- The score follows the lesions' outlines: read it with the overlay, not alone.
"""


def _measured(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "Not measured."
    groups = {
        name: summary([HipFigures(**item) for item in group["hips"]])
        for name, group in figures.items()
    }
    return (
        "By `hiptrain evaluate`, through the code the service runs, on the held-out anatomies "
        "(semi-real in every burden; the T1 images as they are) and on phantoms of other "
        "seeds. Median (smallest to largest) over hips. Only the localiser is meant for T1: that "
        "column shows how well heads are found in a contrast that is not STIR.\n\n"
        f"```\n{table(groups)}\n```"
    )
