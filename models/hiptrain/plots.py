"""Plots of an evaluation, and pictures of the hips it got most wrong.

The plots need matplotlib; the pictures are drawn like the service's contact sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hipscore.domain import RESEARCH_USE, BoolArray, Segmenter
from hipscore.phantom import Burden
from hipscore.reporting import picture as drawing
from hiptrain.anatomy import sphere_of
from hiptrain.evaluate import Case, analyse, pair, structures_of
from hiptrain.figures import CaseFigures, HipFigures, agreement
from hiptrain.tables import NAMES

#: grey, then darker and redder as the burden grows
_BURDEN = dict(
    zip((item.value for item in Burden), ("#9a9a9a", "#f2b134", "#e0691f", "#8f1d1d"), strict=True)
)
_OTHER = "#4a5568"
#: outlines: (structure, of the truth, colour), drawn in this order
_OUTLINES = (
    ("head", True, (0, 200, 220)),
    ("head", False, (245, 245, 245)),
    ("lesion", True, (90, 220, 60)),
    ("lesion", False, (255, 70, 200)),
)
_SLICES = 6
_TILE = 240
_GAP = 6
_TOP = 64
#: false lesion that counts as a wrong outline, mL
_FALSE_ML = 0.3


def plots(cases: Sequence[CaseFigures], folder: Path) -> list[Path]:
    """Write the plots of a group of series as PNG; return their paths.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    drawn = {
        "score.png": _scatter,
        "bland-altman.png": _bland_altman,
        "dice.png": _boxes,
        "dice-by-volume.png": _by_volume,
    }
    paths = []
    for name, draw in drawn.items():
        figure = draw(cases)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8
            )
        figure.supxlabel(RESEARCH_USE, x=0.99, ha="right", fontsize=7, color=_OTHER)
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=150)
    return paths


def _figure(columns: int = 1) -> tuple[Any, Any]:
    """Make a figure outside of pyplot's global state, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 4.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#e5e5e5", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _pairs(cases: Sequence[CaseFigures]) -> dict[str, list[tuple[str, float, float]]]:
    """(burden, true score, found score) of hips and of patients that have both."""
    hips = [(case.burden, hip.score, hip.found_score) for case in cases for hip in case.hips]
    patients = [(case.burden, case.score, case.found_score) for case in cases]
    return {
        name: [(b, t, f) for b, t, f in items if t is not None and f is not None]
        for name, items in (("hip", hips), ("patient", patients))
    }


def _points(axes: Any, items: Sequence[tuple[str, float, float]]) -> None:
    """Scatter (burden, x, y), coloured by burden."""
    for burden in dict.fromkeys([*_BURDEN, *(item[0] for item in items)]):
        at = np.array([(x, y) for name, x, y in items if name == burden]).reshape(-1, 2)
        if len(at):
            colour = _BURDEN.get(burden, _OTHER)
            axes.scatter(*at.T, s=22, color=colour, edgecolor="white", linewidth=0.5, label=burden)


def _scatter(cases: Sequence[CaseFigures]) -> Any:
    figure, axes = _figure(2)
    for each, (unit, items) in zip(axes, _pairs(cases).items(), strict=True):
        top = 1.05 * max([1.0, *(max(t, f) for _, t, f in items)])
        each.plot([0, top], [0, top], color=_OTHER, linewidth=1)
        _points(each, items)
        icc = agreement([(t, f) for _, t, f in items])["icc"]
        found = "" if icc is None else f", ICC(2,1) {icc['value']:.3f}"
        each.set_title(f"UNet-score per {unit}{found}", fontsize=10)
        each.set(xlabel="of the true masks", ylabel="found", xlim=(0, top), ylim=(0, top))
        each.set_aspect("equal")
    return figure


def _bland_altman(cases: Sequence[CaseFigures]) -> Any:
    figure, axes = _figure(2)
    for each, (unit, items) in zip(axes, _pairs(cases).items(), strict=True):
        _points(each, [(b, (t + f) / 2, f - t) for b, t, f in items])
        limits = agreement([(t, f) for _, t, f in items])["bland_altman"]
        if limits is not None:
            for key, style in (("bias", "-"), ("low", "--"), ("high", "--")):
                each.axhline(limits[key], color=_OTHER, linewidth=1, linestyle=style)
                each.annotate(
                    f"{limits[key]:.2f}",
                    (1.0, limits[key]),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                    color=_OTHER,
                )
        each.set_title(f"UNet-score per {unit}: bias and limits of agreement", fontsize=10)
        each.set(xlabel="mean of true and found", ylabel="found − true")
    return figure


def _boxes(cases: Sequence[CaseFigures]) -> Any:
    figure, (axes,) = _figure()
    columns = {
        NAMES[name]: [
            overlap.dice
            for case in cases
            for hip in case.hips
            if (overlap := hip.structures.get(name)) is not None and overlap.dice is not None
        ]
        for name in NAMES
    }
    known = {name: values for name, values in columns.items() if values}
    if known:
        axes.boxplot(
            list(known.values()),
            tick_labels=[f"{name}\nn = {len(values)}" for name, values in known.items()],
            widths=0.5,
            medianprops={"color": _OTHER, "linewidth": 1.6},
            flierprops={"markersize": 4, "markeredgecolor": _OTHER},
        )
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title("Dice over hips that have the structure", fontsize=10)
    axes.set(ylabel="Dice", ylim=(0, 1.01))
    return figure


def _by_volume(cases: Sequence[CaseFigures]) -> Any:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (axes,) = _figure()
    _points(
        axes,
        [
            (case.burden, overlap.truth_ml, overlap.dice)
            for case in cases
            for hip in case.hips
            if (overlap := hip.structures.get("lesion")) is not None and overlap.dice is not None
        ],
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Lesion Dice by true lesion volume, one point a hip", fontsize=10)
    axes.set(xlabel="true lesion volume, mL", ylabel="Dice", ylim=(0, 1.01))
    return figure


def worst(cases: Sequence[CaseFigures], count: int) -> list[tuple[CaseFigures, HipFigures]]:
    """The hips outlined worst, worst first: by the smaller Dice of head and lesion.

    A hip without lesion counts as 0 where more than 0.3 mL of lesion were found in it.
    """
    ranked = [(case, hip) for case in cases for hip in case.hips if hip.structures]
    ranked.sort(key=lambda item: _goodness(item[1]))
    return ranked[:count]


def _goodness(hip: HipFigures) -> float:
    head, lesion = hip.structures["head"], hip.structures["lesion"]
    clean = 0.0 if lesion.found_ml > _FALSE_ML else 1.0
    return min(
        clean if lesion.dice is None else lesion.dice, 1.0 if head.dice is None else head.dice
    )


def picture(case: Case, hip: HipFigures, segmenter: Segmenter, folder: Path) -> Path:
    """Draw one hip's worst slices, plain above and with both outlines below, as PNG.

    The slices with most voxels in which truth and result differ, front to back. The case is
    made and analysed once more.
    """
    volume, masks = case.make()
    truth = next(item for item in masks if item.side.value == hip.side)
    analysed = analyse(volume, segmenter)
    (index,) = pair(volume, [truth], analysed.located)
    found = np.zeros_like(truth.voxels) if index is None else analysed.masks[index].voxels
    both = {True: structures_of(truth.voxels), False: structures_of(found)}
    wrong = sum(
        (both[True][name] ^ both[False][name]).sum(axis=(1, 2)) for name in ("head", "lesion")
    )
    chosen = sorted(int(z) for z in np.argsort(-np.asarray(wrong), kind="stable")[:_SLICES])
    sphere = sphere_of(truth, volume.grid)
    _, row, column = volume.grid.to_index(sphere.centre_mm)
    view, window = drawing.View.canonical(volume.grid), drawing.Window.of(volume.voxels)
    size = (len(chosen) * (_TILE + _GAP) + _GAP, _TOP + 2 * (_TILE + _GAP) + 20)
    sheet = Image.new("RGB", size, (12, 12, 14))
    for position, z in enumerate(chosen):
        outlines: dict[tuple[int, int, int], BoolArray] = {
            colour: both[real][name][z] for name, real, colour in _OUTLINES
        }
        for line, shown in enumerate(({}, outlines)):
            tile = drawing.draw(
                volume.voxels[z],
                shown.items(),
                view=view,
                window=window,
                centre=(float(row), float(column)),
                mm=4.4 * sphere.radius_mm / _TILE,
                size=(_TILE, _TILE),
            )
            sheet.paste(tile, (_GAP + position * (_TILE + _GAP), _TOP + line * (_TILE + _GAP)))
    _caption(sheet, case.name, hip, view.letters[0])
    path = folder / f"worst-{case.name}-{hip.side}.png"
    sheet.save(path)
    return path


def _caption(sheet: Image.Image, name: str, hip: HipFigures, letter: str) -> None:
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(14), ImageFont.load_default(20)
    head, lesion = hip.structures["head"], hip.structures["lesion"]
    parts = [f"{name}, {hip.side} hip"]
    parts.append(f"head Dice {head.dice:.3f}" if hip.found and head.dice else "not found")
    parts.append("no lesion" if lesion.dice is None else f"lesion Dice {lesion.dice:.3f}")
    parts.append(f"lesion {lesion.truth_ml:.1f} mL, found {lesion.found_ml:.1f} mL")
    draw.text((_GAP, 6), "   ".join(parts), (235, 235, 235), large)
    at = _GAP
    for structure, real, colour in _OUTLINES:
        text = f"{'true' if real else 'found'} {structure}"
        draw.text((at, 36), text, colour, small)
        at += int(draw.textlength(text, small)) + 24
    foot = f"{letter} is on the left. {RESEARCH_USE}."
    draw.text((_GAP, sheet.height - 20), foot, (255, 196, 64), small)
