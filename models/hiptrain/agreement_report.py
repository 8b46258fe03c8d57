"""The figures of :mod:`hiptrain.agreement` as Markdown, JSON and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import stats

from hipscore.domain import RESEARCH_USE
from hiptrain.agreement import READERS, Agreement, Line, Readers, changes_of, columns_of
from hiptrain.agreement_table import Study
from hiptrain.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: draws into the axes it is given
Panel: TypeAlias = Callable[..., None]
_INK, _ACCENT = "#1f4e79", "#b3402a"
_PANEL = 3.3

_MEANING = """\
## What this shows, and what it does not

- A rank correlation says whether patients who rank higher in one column rank higher in the other.
  It does not say that the two agree, that one can stand in for the other, or that one causes the
  other. A high correlation goes along with a constant bias.
- It depends on who is in the table: a group from healthy to severe correlates better than a group
  of similar patients, with the same score.
- Clinical indices measure the whole disease, pain, or blood; a hip that is inflamed is one part
  of it. A low correlation with them is no proof against an imaging score.
- Read the interval, not the point: if it spans 0, the table does not tell the direction. p tests
  rho = 0, which is a low bar between two measures of one thing.
- Adjusted p-values (Benjamini–Hochberg) bound the expected share of false findings among the rows
  called significant, over all rows of one table. They do not make a small group larger.
- ICC(2,1) is absolute agreement of single ratings in one unit: a rater who scores 2 points higher
  throughout lowers it, and does not lower a rank correlation. It too rises with the spread of
  the group."""

_SCALE_NOTE = (
    "The automatic score and the readers' scores are in different units (a sum of ratios, a sum of "
    "points), so an ICC between them would measure the units. Ask for it with `--same-scale` where "
    "the readers' columns are UNet-scores from outlines drawn by hand."
)


def as_json(agreement: Agreement) -> dict[str, Any]:
    """Everything but the patients' values, ready for ``json.dumps``."""
    study = agreement.study
    return {
        "research_use": RESEARCH_USE,
        "rows": len(study.patients),
        "patients": len(set(study.patients)),
        "visits": list(agreement.order),
        "score": study.score,
        "readers": list(study.readers),
        "indices": list(study.indices),
        "resamples": agreement.resamples,
        "seed": agreement.seed,
        "correlations": [asdict(line) for line in agreement.correlations],
        "changes": [asdict(line) for line in agreement.changes],
        "agreement": [asdict(item) for item in agreement.readers],
        "remarks": list(study.remarks),
    }


def write(agreement: Agreement, out: Path) -> list[Path]:
    """Write ``agreement.md``, ``agreement.json`` and the pictures. Returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(agreement, out)
    text, data = out / "agreement.md", out / "agreement.json"
    text.write_text(markdown(agreement, [path.name for path in pictures]), encoding="utf-8")
    content = json.dumps(as_json(agreement), indent=1, allow_nan=False)
    data.write_text(content + "\n", encoding="utf-8")
    return [text, data, *pictures]


# --- text -----------------------------------------------------------------------------
def markdown(agreement: Agreement, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with the named pictures at its end."""
    study = agreement.study
    parts = [
        f"# Agreement of {study.score} with readers and clinical indices",
        f"**{RESEARCH_USE}.**",
    ]
    parts.append(
        f"{len(study.patients)} rows of {len(set(study.patients))} patients. Missing values are "
        "left out pair by pair; n is what remained."
    )
    parts += [f"Note: {remark}." for remark in study.remarks]
    parts += ["## Rank correlation", correlation_table(agreement.correlations), _method(agreement)]
    if agreement.changes:
        parts.append("## Change between visits")
        parts.append(
            "Last minus first of the visits at which both values are known, one pair per patient "
            f"(or hip). Order of visits: {', '.join(agreement.order)}."
        )
        parts.append(correlation_table(agreement.changes))
    if agreement.readers:
        parts += ["## Agreement in one unit", _reader_table(agreement.readers)]
        parts.append(
            "ICC(2,1), two-way random effects, absolute agreement, single rater. Bias is the mean "
            "difference first minus second; the limits of agreement hold 95 % of differences if "
            "these are normal."
            + (
                " The limits take visits of one patient as independent."
                if any(item.n > item.patients for item in agreement.readers)
                else ""
            )
        )
    if study.readers and not any(study.score in item.raters for item in agreement.readers):
        parts.append(_SCALE_NOTE)
    parts.append(_MEANING)
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def correlation_table(lines: Sequence[Line]) -> str:
    """Correlations as a Markdown table."""
    rows = [
        "| | with | n | patients | rho | 95 % CI | p | adjusted p |",
        "|---|---|--:|--:|--:|---|--:|--:|",
    ]
    for line in lines:
        found = line.figures
        shown = f"| {_cell(line.a)} | {_cell(line.b)} | {line.n} | {line.patients} | "
        if found is None or line.p_adjusted is None:
            rows.append(f"{shown}| {line.reason} | | |")
        else:
            rows.append(
                f"{shown}{found.rho:.2f} | {found.low:.2f} to {found.high:.2f} | "
                f"{_p(found.p)} | {_p(line.p_adjusted)} |"
            )
    return "\n".join(rows)


def _method(agreement: Agreement) -> str:
    repeated = any(line.n > line.patients for line in agreement.correlations)
    text = (
        f"Spearman's rho; percentile bootstrap with {agreement.resamples} resamples of whole "
        f"patients (seed {agreement.seed}); p adjusted by Benjamini–Hochberg over this table."
    )
    if repeated:
        text += (
            " Several rows of one patient are not independent: p is then from the same bootstrap, "
            f"and its smallest value is {2 / (agreement.resamples + 1):.1g}."
        )
    return text


def _reader_table(items: Sequence[Readers]) -> str:
    rows = [
        "| raters | n | patients | ICC(2,1) | 95 % CI | bias | limits of agreement |",
        "|---|--:|--:|--:|---|--:|---|",
    ]
    for item in items:
        shown = f"| {_cell(', '.join(item.raters))} | {item.n} | {item.patients} | "
        if item.icc is None:
            rows.append(f"{shown}| {item.reason} | | |")
            continue
        pair = item.differences
        differences = f"{pair.bias:.3g} | {pair.low:.3g} to {pair.high:.3g} |" if pair else " | |"
        found = item.icc
        rows.append(
            f"{shown}{found.value:.2f} | {found.low:.2f} to {found.high:.2f} | {differences}"
        )
    return "\n".join(rows)


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


# --- pictures -------------------------------------------------------------------------
def draw(agreement: Agreement, out: Path) -> list[Path]:
    """Draw what there is to draw, as PNG. Returns the files."""
    study, values = agreement.study, columns_of(agreement.study)
    names = _order(study, values)[1:]
    lines = {(line.a, line.b): line for line in agreement.correlations}
    panels: list[Panel] = [
        partial(
            _scatter,
            x=values[study.score],
            y=values[name],
            labels=(study.score, name),
            line=lines[study.score, name],
        )
        for name in names
    ]
    files = [_panels(panels, out / "scatter.png")]
    if agreement.changes:
        panels = []
        for line in agreement.changes:
            if line.a == study.score:
                x, y, _ = changes_of(study, values[line.a], values[line.b])
                labels = (f"change of {line.a}", f"change of {line.b}")
                panels.append(partial(_scatter, x=x, y=y, labels=labels, line=line, zero=True))
        files.append(_panels(panels, out / "changes.png"))
    pairs = [item for item in agreement.readers if item.differences is not None]
    if pairs:
        panels = [partial(_bland_altman, values=values, item=item) for item in pairs]
        files.append(_panels(panels, out / "bland_altman.png"))
    files.append(_heat_map(study, values, out / "correlations.png"))
    return files


def _panels(panels: Sequence[Panel], path: Path) -> Path:
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_PANEL * columns, _PANEL * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, place in enumerate(axes):
        if number < len(panels):
            panels[number](place)
        else:
            place.set_axis_off()
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.supxlabel(RESEARCH_USE, fontsize=7, color="#666666")
    figure.savefig(path, dpi=120)
    return path


def _scatter(
    axes: Axes, *, x: Floats, y: Floats, labels: tuple[str, str], line: Line, zero: bool = False
) -> None:
    if zero:
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.axvline(0, color="#bbbbbb", linewidth=0.8)
    axes.scatter(x, y, s=16, color=_INK, alpha=0.65, linewidths=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    found = line.figures
    title = (
        f"rho {found.rho:.2f} ({found.low:.2f} to {found.high:.2f}), n {line.n}"
        if found is not None
        else f"n {line.n}: no rho"
    )
    axes.set_title(title, fontsize=9)


def _bland_altman(axes: Axes, *, values: Mapping[str, Floats], item: Readers) -> None:
    a, b = (values[name] for name in item.raters)
    axes.scatter((a + b) / 2, a - b, s=16, color=_INK, alpha=0.65, linewidths=0)
    limits = item.differences
    if limits is not None:
        axes.axhline(limits.bias, color=_ACCENT, linewidth=1.2)
        for level in (limits.low, limits.high):
            axes.axhline(level, color=_ACCENT, linewidth=1, linestyle="--")
        title = f"bias {limits.bias:.3g}, limits {limits.low:.3g} to {limits.high:.3g}"
        axes.set_title(title, fontsize=9)
    axes.set_xlabel(f"mean of {item.raters[0]} and {item.raters[1]}", fontsize=8)
    axes.set_ylabel(f"{item.raters[0]} − {item.raters[1]}", fontsize=8)


def _heat_map(study: Study, values: Mapping[str, Floats], path: Path) -> Path:
    """Every column with every other, pairwise complete; the number is rho."""
    from matplotlib.figure import Figure

    names = _order(study, values)
    rho = np.full((len(names), len(names)), np.nan)
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            rho[row, column] = _plain_rho(values[first], values[second])
    side = 1.6 + 0.62 * len(names)
    figure = Figure(figsize=(side + 1.2, side + 0.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(rho, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(picture, ax=axes, label="Spearman's rho", shrink=0.8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(rho):
        known = math.isfinite(value)
        colour = "white" if known and abs(value) > 0.6 else "black"
        text = f"{round(value, 2) + 0.0:.2f}" if known else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return _save(figure, path)


def _order(study: Study, values: Mapping[str, Floats]) -> list[str]:
    mean = [READERS] if READERS in values else []
    return [study.score, *study.readers, *mean, *study.indices]


def _plain_rho(a: Floats, b: Floats) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 4 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return math.nan
    return float(np.corrcoef(stats.rankdata(a[both]), stats.rankdata(b[both]))[0, 1])
