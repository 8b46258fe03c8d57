"""Places of the marks of the two charts, in pixels of their SVG. Nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

from hipscore.api import models
from hipscore.api.pages import words
from hipscore.domain import Side

_WIDTH = 720.0
_LEFT, _RIGHT = 46.0, 14.0
_PLOT, _STRIP, _GAP = 92.0, 16.0, 30.0
_TOP, _FOOT = 24.0, 26.0
_TICKS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a bar. ``kind``: what it is of, or the group of its slice for the whole."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The ratio of one slice of one hip, from the bottom up."""

    x: float
    width: float
    parts: tuple[Part, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The slices of one group of one hip, beneath its bars; ``name`` as far as there is room."""

    group: str
    name: str
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HipRow:
    """The bars of one hip between ``top`` and ``base``."""

    side: str
    title: str
    top: float
    base: float
    strip: float
    bars: tuple[Bar, ...]
    bands: tuple[Band, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One slice on the axis: what is clicked, and where the mark of the shown slice goes."""

    key: str
    number: str
    x: float
    middle: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Ratio by slice, anterior to posterior, one row for each hip on the same axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    rows: tuple[HipRow, ...]
    slots: tuple[Slot, ...]
    named: tuple[Slot, ...]


def key(item: Mapping[str, Any]) -> str:
    """Which slice it is, the same in the page and in ``slices.json``."""
    return f"{item['sop_instance_uid']}#{item.get('frame_number') or ''}"


def ratios(hips: Sequence[Mapping[str, Any]], order: Sequence[str]) -> Ratios | None:
    """The chart of the scored slices; None without any.

    Parameters
    ----------
    hips
        Those of the result.
    order
        SOP Instance UIDs of all slices, anterior first; where empty, the scored slices in
        the order of their instance or frame numbers are the axis.
    """
    scored = [hip for side in Side for hip in hips if hip["side"] == side.value and hip["slices"]]
    if not scored:
        return None
    numbers = {key(item): _number(item) for hip in scored for item in hip["slices"]}
    axis = [f"{uid}#" for uid in order]
    if not set(numbers) <= set(axis):
        axis = _by_number(scored, numbers)
    step = (_WIDTH - _LEFT - _RIGHT) / len(axis)
    place = {each: _LEFT + index * step for index, each in enumerate(axis)}
    ceiling = nice(max(item["ratio"] for hip in scored for item in hip["slices"]))
    rows = tuple(
        _row(hip, place, step, ceiling, _TOP + index * (_PLOT + _STRIP + _GAP))
        for index, hip in enumerate(scored)
    )
    slots = tuple(
        Slot(
            key=each,
            number=str(numbers.get(each, "")),
            x=place[each],
            middle=place[each] + step / 2,
            width=step,
        )
        for each in axis
    )
    every = max(1, math.ceil(30 / step))  # a number needs so many pixels
    return Ratios(
        width=_WIDTH,
        height=rows[-1].strip + _STRIP + _FOOT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=rows[-1].strip + _STRIP,
        rows=rows,
        slots=slots,
        named=tuple(slot for index, slot in enumerate(slots) if slot.number and not index % every),
    )


def _row(
    hip: Mapping[str, Any], place: Mapping[str, float], step: float, ceiling: float, top: float
) -> HipRow:
    base = top + _PLOT
    name = f"{hip['side'].capitalize()} hip"
    bars, spans = [], dict[str, tuple[float, float]]()
    for item in hip["slices"]:
        x = place[key(item)]
        group = item["group"]
        low, high = spans.get(group, (x, x))
        spans[group] = (min(low, x), max(high, x))
        bars.append(
            Bar(
                x=x + step * 0.12,
                width=step * 0.76,
                parts=_parts(item, base, _PLOT / ceiling),
                text=f"{name}, slice {_number(item)}, {group}: ratio {item['ratio']:.2f}",
            )
        )
    count = words.plural(hip["slices_used"], "slice")
    return HipRow(
        side=hip["side"],
        title=f"{name}: UNet-score {words.score(hip['unet_score'])} over {count}",
        top=top,
        base=base,
        strip=base + 3,
        bars=tuple(bars),
        bands=tuple(
            Band(
                group=group,
                name=group if high - low + step > 58 else group[:1].upper(),
                x=low,
                width=high - low + step,
            )
            for group, (low, high) in spans.items()
        ),
        ticks=tuple((base - _PLOT * share, _tick(ceiling * share)) for share in (0.0, 0.5, 1.0)),
    )


def _parts(item: Mapping[str, Any], base: float, scale: float) -> tuple[Part, ...]:
    """Edema, and upon it what synovitis adds, where a result has both; else the whole."""
    whole = item["ratio"] * scale
    if "bme_ratio" not in item or "synovitis_ratio" not in item:
        return (Part(kind=item["group"], y=base - whole, height=whole),)
    edema = item["bme_ratio"] * scale  # what is both counts once in the ratio
    return (
        Part(kind="bme", y=base - edema, height=edema),
        Part(kind="synovitis", y=base - whole, height=whole - edema),
    )


def _number(item: Mapping[str, Any]) -> int:
    number: int = item.get("frame_number") or item["instance_number"]
    return number


def _by_number(hips: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> list[str]:
    """The slices by number, in the direction in which those of a hip run."""
    longest = max(hips, key=lambda hip: len(hip["slices"]))["slices"]
    falling = _number(longest[0]) > _number(longest[-1])
    return sorted(numbers, key=lambda each: numbers[each], reverse=falling)


def nice(value: float) -> float:
    """The next round number, for the end of an axis."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _TICKS if step * power >= value * 0.999)


def _tick(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


# --- trend ---------------------------------------------------------------------------------

_TREND_HEIGHT, _TREND_TOP, _TREND_FOOT = 300.0, 16.0, 40.0
_SERIES = ("total", "right", "left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One score of one study. ``hollow``: not comparable with this study."""

    x: float
    y: float
    hollow: bool
    text: str
    study: str
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A line between two marks; ``dashed`` where one of them is not comparable."""

    x1: float
    y1: float
    x2: float
    y2: float
    dashed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The scores of one hip, or of the patient."""

    name: str
    marks: tuple[Mark, ...]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Scores over study date."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    curves: tuple[Curve, ...]
    ticks: tuple[tuple[float, str], ...]
    dates: tuple[tuple[float, str], ...]


def trend(points: Sequence[models.TrendPoint], study_uid: str) -> Trend | None:
    """The chart of the points whose date is known; None without any."""
    dated = [(moment, each) for each in points if (moment := _date(each.study_date)) is not None]
    if not dated:
        return None
    first, last = dated[0][0].toordinal(), dated[-1][0].toordinal()
    left, right = _LEFT, _WIDTH - 24
    bottom = _TREND_HEIGHT - _TREND_FOOT
    step = nice(max(each.unet_score for _, each in dated) * 1.05 / 4)
    ceiling = 4 * step

    def across(moment: date) -> float:
        share = (moment.toordinal() - first) / (last - first) if last > first else 0.5
        return left + 16 + (right - left - 32) * share

    def up(value: float) -> float:
        return bottom - (bottom - _TREND_TOP) * value / ceiling

    curves = []
    for name in _SERIES:
        marks = tuple(
            Mark(
                x=across(moment),
                y=up(value),
                hollow=not comparable,
                text=f"{words.day(each.study_date)}, {name}: {value:.2f}"
                + ("" if comparable else ", not comparable with this study"),
                study=each.study_instance_uid,
                here=each.study_instance_uid == study_uid,
            )
            for moment, each in dated
            for value, comparable in _values(each, name)
        )
        stretches = tuple(
            Stretch(x1=a.x, y1=a.y, x2=b.x, y2=b.y, dashed=a.hollow or b.hollow)
            for a, b in pairwise(marks)
        )
        curves.append(Curve(name=name, marks=marks, stretches=stretches))
    return Trend(
        width=_WIDTH,
        height=_TREND_HEIGHT,
        left=left,
        right=right,
        top=_TREND_TOP,
        bottom=bottom,
        curves=tuple(curves),
        ticks=tuple((up(step * count), _tick(step * count)) for count in range(5)),
        dates=tuple(
            _spread([(across(moment), words.day(each.study_date)) for moment, each in dated])
        ),
    )


def _values(point: models.TrendPoint, name: str) -> list[tuple[float, bool]]:
    if name == "total":
        return [(point.unet_score, point.comparable)]
    hip = point.hips.get(Side(name))
    return [] if hip is None else [(hip.unet_score, hip.comparable)]


def _spread(dates: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Dates that have room beside each other."""
    kept: list[tuple[float, str]] = []
    for x, text in dates:
        if not kept or x - kept[-1][0] >= 84:
            kept.append((x, text))
    return kept


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(words.day(text))
    except ValueError:
        return None
