"""What pages for people say of a result, the same on the summary image and in the PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from pydicom.dataset import Dataset

from hipscore.change import Change, model_name
from hipscore.domain import Findings, HipFindings, ModelCard, Side, SliceScore
from hipscore.reporting import ReportContext

LETTER: Mapping[Side, str] = MappingProxyType({Side.RIGHT: "R", Side.LEFT: "L"})

MEANING = (
    "The UNet-score of a hip (Zheng et al. 2023) is the sum over its slices of the grey values "
    "inside bone marrow edema and synovitis-effusion over those of the whole femoral head; the "
    "patient's is the sum of both hips. It was computed without a reader and checked by nobody. It "
    "is no HIMRISS score and no diagnosis, and has no known normal range. Totals over different "
    "slice counts do not compare: then read the mean ratio per slice."
)
REPEATABILITY = "How much two scans of an unchanged hip differ is not known."
NOTHING = "-"


class Row(NamedTuple):
    """One line of the table of scores."""

    label: str
    right: str
    left: str
    patient: str


def day(date: str) -> str:
    """A DICOM date as people read it; what is none as it is."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdigit() else date


def moment(report: ReportContext) -> str:
    """When the analysis was made, to the minute."""
    return f"{report.created_at:%Y-%m-%d %H:%M}"


def origin(header: Dataset) -> str:
    """Study date and series number: which series this is, without saying whose."""
    date = day(str(header.get("StudyDate", "") or ""))
    parts = [f"Study of {date}" if date else "Study without a date"]
    if "SeriesNumber" in header:
        parts.append(f"series {header.SeriesNumber}")
    return ", ".join(parts)


def provenance(card: ModelCard, context: ReportContext) -> str:
    """Which program and model made this, and when."""
    return (
        f"analysed {moment(context)} by hipscore {context.software_version}, "
        f"model {model_name(card)}"
    )


def headline(findings: Findings) -> tuple[str, str]:
    """The score and what it is the sum of."""
    if findings.unet_score is None:
        return "Not scored", ""
    scored = [hip for hip in findings.hips if hip.scored]
    count = sum(len(hip.slices) for hip in scored)
    hips = "both hips" if len(scored) == 2 else f"the {scored[0].hip.side.value} hip alone"
    return f"UNet-score {findings.unet_score:.2f}", f"sum over {count} slices of {hips}"


def scores(findings: Findings) -> list[Row]:
    """Table of scores, the patient's right first; empty where nothing was located."""
    by_side = {hip.hip.side: hip for hip in findings.hips}
    if not by_side:
        return []
    right, left = (by_side.get(side) for side in Side)
    both = [hip for hip in (right, left) if hip is not None and hip.scored]

    def row(label: str, read: Callable[[HipFindings], float | None], form: str) -> Row:
        total = NOTHING
        if both and label in _SUMMED:
            total = form.format(sum(read(hip) or 0 for hip in both))
        return Row(label, _cell(right, read, form), _cell(left, read, form), total)

    rows = [row(label, read, form) for label, read, form in _ROWS]
    if not findings.scored:
        rows = [item._replace(patient=NOTHING) for item in rows]
    first = [_first(hip) for hip in (right, left)]
    rows[0] = rows[0]._replace(right=first[0], left=first[1])
    return rows


_ROWS: tuple[tuple[str, Callable[[HipFindings], float | None], str], ...] = (
    ("UNet-score", lambda hip: hip.unet_score, "{:.2f}"),
    ("  of edema alone", lambda hip: hip.bme_score, "{:.2f}"),
    ("  of synovitis-effusion alone", lambda hip: hip.synovitis_score, "{:.2f}"),
    ("slices summed", lambda hip: len(hip.slices), "{:d}"),
    ("mean ratio per slice", lambda hip: hip.mean_ratio, "{:.3f}"),
    ("whole-volume index", lambda hip: hip.whole_volume_index, "{:.3f}"),
    ("femoral head, mL", lambda hip: hip.femoral_head_ml, "{:.1f}"),
    ("bone marrow edema, mL", lambda hip: hip.bme_ml, "{:.1f}"),
    ("synovitis-effusion, mL", lambda hip: hip.synovitis_ml, "{:.1f}"),
    ("effusion, mm thick", lambda hip: hip.effusion_mm, "{:.1f}"),
)
_SUMMED = {label for label, _, _ in _ROWS[:4]} | {"bone marrow edema, mL", "synovitis-effusion, mL"}


def _cell(hip: HipFindings | None, read: Callable[[HipFindings], float | None], form: str) -> str:
    value = read(hip) if hip is not None and hip.scored else None
    return NOTHING if value is None else form.format(value)


def _first(hip: HipFindings | None) -> str:
    if hip is None:
        return "not found"
    return "not scored" if hip.unet_score is None else f"{hip.unet_score:.2f}"


def unscored(findings: Findings) -> list[str]:
    """Why there is no score, of the series or of one hip."""
    texts = [f"Not scored: {findings.reason.text}"] if findings.reason is not None else []
    return texts + [
        f"{hip.hip.side.value.capitalize()} hip not scored: {hip.reason.text}"
        for hip in findings.hips
        if hip.reason is not None and hip.reason != findings.reason
    ]


def changes(change: Change) -> list[str]:
    """The change since the earlier score, a sentence each."""
    then = day(change.earlier.study_date) or "an earlier study"
    text = f"Since {then}: UNet-score {change.earlier.unet_score:.2f} then"
    if change.unet_score is not None:
        now = change.earlier.unet_score + change.unet_score
        text += f", {now:.2f} now ({_signed(change.unet_score, 2)})"
    found = [f"{text}."]
    for hip in change.hips:
        parts = [f"{hip.side.value.capitalize()} hip {_signed(hip.unet_score, 2)}"]
        if hip.mean_ratio is not None:
            parts.append(f"mean ratio per slice {_signed(hip.mean_ratio, 3)}")
        if hip.whole_volume_index is not None:
            parts.append(f"whole-volume index {_signed(hip.whole_volume_index, 3)}")
        found.append(f"{', '.join(parts)}.")
    return [*found, REPEATABILITY]


def caveats(change: Change) -> list[str]:
    """Why the two scores do not compare, a sentence each."""
    return [f"Not comparable as it stands: {remark.text}." for remark in change.remarks]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"


def worst(hip: HipFindings, count: int) -> list[SliceScore]:
    """The slices with the highest ratios, highest first; of equal ones the anterior."""
    return sorted(hip.slices, key=lambda item: (-item.ratio, item.slice_index))[:count]
