"""The tables of an evaluation, from its JSON, for the screen and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: names of the structures, as they are read
NAMES = {
    "head": "femoral head",
    "bme": "BME",
    "synovitis": "synovitis-effusion",
    "lesion": "lesion (either)",
}
_NOTHING = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """``rows`` of as many cells as ``header``; ``note`` is a sentence below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self) -> str:
        """Columns of equal width, for a screen."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        shown = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *shown, *([self.note] if self.note else [])])

    def markdown(self) -> str:
        """A table for GitHub, the title in bold above it."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        shown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", shown, *([self.note] if self.note else [])])


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All tables of the JSON of ``hiptrain evaluate``."""
    made = [_finding(report["groups"])] if report["groups"] else []
    for name, group in report["groups"].items():
        if group["summary"]["structures"]:
            made += [
                _structures(name, group["summary"]),
                _scores(name, group["summary"]),
                _burdens(name, group["by_burden"]),
            ]
    if report.get("corruptions"):
        made.append(_corruptions(report["corruptions"]))
    if report.get("refusals"):
        made.append(_refusals(report["refusals"]))
    return made


def _finding(groups: Mapping[str, Any]) -> Table:
    rows = []
    for name, group in groups.items():
        each = group["summary"]
        rows.append(
            (
                name,
                f"{each['series']} ({each['patients']})",
                f"{each['hips_found']} of {each['hips']}",
                f"{each['sides_right']} of {each['hips_found']}",
                str(each["false_hips"]),
                _range(each["centre_error_mm"], 2),
                f"{each['series_remarked']}",
            )
        )
    return Table(
        title="Hips found",
        header=(
            "series",
            "series (persons)",
            "hips found",
            "sides right",
            "false hips",
            "centre error, mm: median (min to max)",
            "series with a remark",
        ),
        rows=tuple(rows),
        note="A hip is found if a located centre lies within its head's radius.",
    )


def _structures(name: str, summary: Mapping[str, Any]) -> Table:
    rows = []
    for structure, each in summary["structures"].items():
        dice = each["dice"]
        rows.append(
            (
                NAMES[structure],
                str(dice["n"]) if dice else "0",
                _mean(dice, 3),
                _range(dice, 3),
                _number(each["pooled_dice"], 3),
                _mean(each["hd95_mm"], 2),
                _mean(each["surface_mm"], 2),
                _mean(each["error_ml"], 2),
                _percent(each["relative_error"]),
                _false(each["false_ml"]),
            )
        )
    return Table(
        title=f"{name}: structures",
        header=(
            "structure",
            "hips",
            "Dice: mean ± SD",
            "median (min to max)",
            "pooled Dice",
            "HD95, mm",
            "mean surface distance, mm",
            "volume error, mL",
            "relative error, median",
            "false volume where there is none, mL: mean, max (hips)",
        ),
        rows=tuple(rows),
        note=(
            "Mean ± SD over hips that have the structure; a hip that was not found has Dice 0. "
            "Pooled: all voxels of all hips, false lesions included. Errors are found minus truth."
        ),
    )


def _scores(name: str, summary: Mapping[str, Any]) -> Table:
    rows = []
    for unit in ("hip", "patient"):
        each = summary[f"score_{unit}"]
        rows.append((f"per {unit}", *_agreement(each)))
    return Table(
        title=f"{name}: UNet-score against the score of the true masks",
        header=(
            "",
            "n (left out)",
            "ICC(2,1) (95 % interval)",
            "bias",
            "limits of agreement",
            "absolute difference: median (min to max)",
            "true score: median (min to max)",
        ),
        rows=tuple(rows),
        note=(
            "Left out: one of the two scores is missing. The intervals take hips as independent; "
            "several series of one anatomy are not."
        ),
    )


def _agreement(each: Mapping[str, Any]) -> tuple[str, ...]:
    limits = each["bland_altman"]
    return (
        f"{each['n']} ({each['left_out']})",
        _icc(each["icc"]),
        _number(limits and limits["bias"], 2),
        f"{limits['low']:.2f} to {limits['high']:.2f}" if limits else _NOTHING,
        _range(each["absolute_difference"], 2),
        _range(each["truth"], 2),
    )


def _burdens(name: str, burdens: Mapping[str, Any]) -> Table:
    rows = []
    for burden, each in burdens.items():
        head, lesion = each["structures"]["head"], each["structures"]["lesion"]
        rows.append(
            (
                burden,
                str(each["hips"]),
                _range(lesion["truth_ml"], 1),
                _mean(head["dice"], 3),
                _mean(lesion["dice"], 3),
                _number(lesion["pooled_dice"], 3),
                _false(lesion["false_ml"]),
                _icc(each["score_hip"]["icc"]),
                _range(each["score_hip"]["absolute_difference"], 2),
            )
        )
    return Table(
        title=f"{name}: by burden",
        header=(
            "burden",
            "hips",
            "lesion, mL: median (min to max)",
            "head Dice",
            "lesion Dice",
            "pooled",
            "false lesion, mL: mean, max (hips)",
            "ICC(2,1)",
            "absolute score difference",
        ),
        rows=tuple(rows),
        note="Within one burden scores differ little, which lowers the ICC whatever the error.",
    )


def _corruptions(corruptions: Mapping[str, Any]) -> Table:
    rows = []
    for name, group in corruptions.items():
        each = group["summary"]
        head, lesion = (each["structures"].get(key, {}) for key in ("head", "lesion"))
        dice = head.get("dice")
        rows.append(
            (
                name,
                str(each["series"]),
                f"{each['hips_found']} of {each['hips']}",
                _mean(dice, 3),
                _number(dice and dice["min"], 3),
                _mean(lesion.get("dice"), 3),
                _icc(each["score_hip"]["icc"]),
                f"{each['series_remarked']} of {each['series']}",
                str(len(group["unwarned"])),
            )
        )
    return Table(
        title="Corruptions",
        header=(
            "corruption",
            "series",
            "hips found",
            "head Dice: mean ± SD",
            "min",
            "lesion Dice: mean ± SD",
            "ICC(2,1) of the UNet-score",
            "series with a remark",
            "hips below 0.90 without a remark",
        ),
        rows=tuple(rows),
        note="The truth's score is that of the true masks on the corrupted image.",
    )


def _refusals(refusals: Mapping[str, Any]) -> Table:
    rows = [
        (kind, f"{each['refused']} of {each['total']}") for kind, each in refusals["kinds"].items()
    ]
    rows.append(("all", f"{refusals['refused']} of {refusals['total']}"))
    return Table(
        title="Series without hips",
        header=("kind", "refused"),
        rows=tuple(rows),
        note="By the pixels alone: the check of the protocol, which comes first, is left out.",
    )


def unwarned(report: Mapping[str, Any]) -> list[str]:
    """One line for every hip below a head Dice of 0.90 in a series without a remark."""
    parts: dict[str, Any] = {**report["groups"], **report.get("corruptions", {})}
    return [
        f"{name}: {item['case']}, {item['side']} hip, "
        + (f"head Dice {item['head_dice']:.3f}" if item["found"] else "not found")
        for name, group in parts.items()
        for item in group["unwarned"]
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """All tables in Markdown, and the hips that break the rule on remarks."""
    parts = [table.markdown() for table in tables(report)]
    lines = unwarned(report)
    if report.get("corruptions"):
        listed = "\n".join(f"- {line}" for line in lines) if lines else "None."
        parts.append(f"**Hips below a head Dice of 0.90 without a remark**\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _mean(spread: Mapping[str, Any] | None, digits: int) -> str:
    if not spread:
        return _NOTHING
    mean = f"{spread['mean']:.{digits}f}"
    return mean if spread["sd"] is None else f"{mean} ± {spread['sd']:.{digits}f}"


def _range(spread: Mapping[str, Any] | None, digits: int) -> str:
    if not spread:
        return _NOTHING
    median, low, high = (f"{spread[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _percent(spread: Mapping[str, Any] | None) -> str:
    return f"{100 * spread['median']:.0f} %" if spread else _NOTHING


def _false(spread: Mapping[str, Any] | None) -> str:
    if not spread:
        return _NOTHING
    return f"{spread['mean']:.2f}, {spread['max']:.2f} ({spread['n']})"


def _icc(icc: Mapping[str, float] | None) -> str:
    if icc is None:
        return _NOTHING
    return f"{icc['value']:.3f} ({icc['low']:.3f} to {icc['high']:.3f})"
