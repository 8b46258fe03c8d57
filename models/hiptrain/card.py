"""The model card of a bundle, in words (``CARD.md``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hipscore.domain import RESEARCH_USE
from hiptrain import tables

_CITATION = (
    "National Cancer Institute Clinical Proteomic Tumor Analysis Consortium (CPTAC). "
    "The Clinical Proteomic Tumor Analysis Consortium Uterine Corpus Endometrial Carcinoma "
    "Collection (CPTAC-UCEC). The Cancer Imaging Archive. "
    "https://doi.org/10.7937/k9/tcia.2018.3r3juisw"
)
_KINDS = {
    "unet": "U-Net",
    "unetpp": "UNet++",
    "attention_unet": "Attention U-Net",
    "hrnet": "HRNet",
    "localiser": "U-Net with a view of the whole picture",
}


def write(folder: Path, figures: Mapping[str, Any] | None) -> Path:
    """Write ``CARD.md`` from ``bundle.json`` and, if given, the JSON of an evaluation."""
    described = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    target = folder / "CARD.md"
    target.write_text(_text(described, figures), encoding="utf-8")
    return target


def network(design: Mapping[str, Any]) -> str:
    """A network in words: its kind, its width, what refines it."""
    kind = str(design.get("kind", "unet"))
    words = f"{_KINDS.get(kind, kind)} of width {design['width']}"
    return f"{words} with point rendering" if design.get("point_rend") else words


def _text(described: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    training = described["training"]
    localiser, segmenter = described["localiser"], described["segmenter"]
    networks = "\n".join(
        f"- {name}: {network(each['design'])}; best epoch {each['best_epoch']}, seed "
        f"{each['seed']}, validation Dice {each['validation_dice']}"
        for name, each in training["networks"].items()
    )
    return f"""# {described["name"]}

`{described["id"]}` version {described["version"]}. {RESEARCH_USE}.

## What it does
Two small 2D networks. The **localiser** marks the right and the left femoral head in pictures
of whole coronal slices ({localiser["rows"]} × {localiser["columns"]} at
{localiser["pixel_mm"]} mm). The **segmenter** marks femoral head, bone marrow edema and
synovitis/effusion in crops around one head ({segmenter["rows"]} × {segmenter["columns"]} at
{segmenter["pixel_mm"]} mm); left hips are mirrored. Both see a slice with its neighbours in
front and behind. Thresholds and specifications are in `bundle.json`.

## What it was trained on
{described["trained_on"][0].upper() + described["trained_on"][1:]}.

{_data(training)}
{networks}

## Measured
{_measured(training, figures)}

## Limits
{_limits(training)}
"""


def _semireal(training: Mapping[str, Any]) -> bool:
    return any("plan" in each for each in training["data"].values())


def _annotated(training: Mapping[str, Any]) -> bool:
    return any(each.get("kind") == "annotated" for each in training["data"].values())


_SEMIREAL_DATA = """\
- Anatomy: {count} series of coronal T1 TSE at 1.5 T, Siemens Avanto, normal hips of women with
  endometrial carcinoma ({names}).
  Source: {citation}
- Contrast: the T1 signal mapped to a STIR-like one with random tissue signals, coil shading,
  blur, ghosts and Rician noise; slice distance, matrix and field of view vary; anatomies bent,
  scaled and mirrored. The localiser also saw the T1 contrast itself and series without hips.
- Lesions: synthetic. Edema 1.25 to 2.5 times the marrow's signal, effusion 3 to 8 times the
  median tissue, inside a modelled capsule."""
_ANNOTATED_DATA = """\
- Annotated series: who drew them, on which scanners, and of whom, only their owner can say.
  Write it here."""
_UNREAL_LIMITS = """\
- It has seen **no real STIR image and no real lesion**. The figures say how well it undoes its
  own kind of synthesis on anatomies it has not seen; how well it does on patients is unknown,
  and two experts agree on real outlines only with a Dice of 0.28 to 0.84."""
_SEMIREAL_LIMITS = """\
- One scanner, one protocol, women of one disease group; no children, no dysplasia, no fracture.
  Other field strengths and vendors are simulated only by random contrast, noise and grids;
  metal only as a void.
- The truth of the heads is the edge of the marrow in the T1 image, star-shaped, not a reader's
  outline; a collapsed head is outlined less well. Edema outside the head (socket, neck) is not
  marked.
- Very faint (below 1.25 times marrow) and very small lesions are missed.
- Corruptions are simulated one at a time; real images have several at once."""
_ANNOTATED_LIMITS = """\
- A network trained on one group's outlines has learned that group's habits."""
_ALWAYS = """\
- The score follows the lesions' outlines: read it with the overlay, not alone."""


def _data(training: Mapping[str, Any]) -> str:
    """What is known of the data, by its kinds."""
    prepared = [each.get("anatomies") for each in training["data"].values() if "plan" in each]
    known = {name for each in prepared for name in each or training["training_series"]}
    names = [name for name in training["training_series"] if name in known]
    held = ", ".join(training["held_out_series"]) or "none"
    unseen = ", ".join(training.get("unseen_series", ())) or "none"
    parts = [
        f"- Kept from training, but they chose the best epoch: {held}.",
        f"- Kept from every step and choice: {unseen}.",
    ]
    if _semireal(training):
        parts.append(
            _SEMIREAL_DATA.format(count=len(names), names=", ".join(names), citation=_CITATION)
        )
    if _annotated(training):
        parts.append(_ANNOTATED_DATA)
    return "\n".join(parts)


def _limits(training: Mapping[str, Any]) -> str:
    """What the figures do not say, by the kinds of data."""
    wanted = {
        _UNREAL_LIMITS: not _annotated(training),
        _SEMIREAL_LIMITS: _semireal(training),
        _ANNOTATED_LIMITS: _annotated(training),
        _ALWAYS: True,
    }
    return "\n".join(text for text, applies in wanted.items() if applies)


def _measured(training: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "Not measured."
    return (
        "By `hiptrain evaluate`, through the code the service runs, on semi-real series of every "
        "burden, on the T1 images they were made from (only where hips are found: a contrast it is "
        "not meant for) and on phantoms of other seeds.\n\n"
        f"{_seen(training, figures['series'])}\n\n{tables.markdown(figures).rstrip()}"
    )


def _seen(training: Mapping[str, Any], measured: Sequence[str]) -> str:
    """Which of the measured anatomies the networks knew, as a list."""
    chose, trained = set(training["held_out_series"]), set(training["training_series"])
    parts = {
        "Unseen by any step of the training": set(measured) - chose - trained,
        "Chose the best epoch, so the figures on it are somewhat optimistic": chose,
        "Seen in training, so the figures on it flatter": trained,
    }
    return "\n".join(
        f"- {text}: {', '.join(own)}."
        for text, names in parts.items()
        if (own := sorted(names & set(measured)))
    )
