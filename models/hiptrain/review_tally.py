"""Experts' review sheets: sensitivity and specificity of the marks, agreement of the experts.

A picture is one slice of one hip. The expert says for each lesion whether it is present in the
image; the key says whether it was marked. As the paper does, a picture is then a true positive
(present, marked), false negative, false positive or true negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hipscore.domain import RESEARCH_USE
from hiptrain import statistics
from hiptrain.agreement_table import Row, read_table
from hiptrain.statistics import Kappa, Proportion

STRUCTURES = {"bme": "bone marrow edema", "synovitis": "synovitis-effusion"}
ANY = "any"
NAMES = {**STRUCTURES, ANY: "either lesion"}
PRESENCE = ("yes", "no", "unsure")
OUTLINES = ("good", "partly", "wrong")
_SHORT = {"y": "yes", "n": "no", "u": "unsure", "?": "unsure", "1": "yes", "0": "no"}
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One expert and one lesion. Proportions are None where nothing is below the line.

    ``elsewhere`` of the ``fn`` are pictures in which the lesion was marked, but the expert calls
    the outline wrong: the mark did not find it. The intervals ``..._by_case`` draw whole cases
    with all their pictures; Wilson's takes every picture as independent, which it is not.
    """

    expert: str
    structure: str
    tp: int
    fp: int
    fn: int
    tn: int
    elsewhere: int
    unsure: int
    blank: int
    sensitivity: Proportion | None
    specificity: Proportion | None
    sensitivity_by_case: tuple[float, float] | None
    specificity_by_case: tuple[float, float] | None
    good: int
    partly: int
    wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two experts and one lesion: pictures both judged yes or no, and their kappa."""

    experts: tuple[str, str]
    structure: str
    n: int
    agree: int
    unsure: int
    kappa: Kappa | None
    reason: str = ""


def columns(*, outlines: bool) -> list[str]:
    """Columns of the sheet that an expert fills in."""
    own = []
    for name in STRUCTURES:
        own.append(f"{name}_present")
        if outlines:
            own.append(f"{name}_outline")
    return ["expert", "picture", *own, "comment"]


def read_sheets(paths: Sequence[Path], key: Mapping[str, Row]) -> dict[str, dict[str, Row]]:
    """Expert to picture to row. An expert without a name is called after the file.

    Raises
    ------
    ValueError
        If a picture is unknown or judged twice by one expert, or a word is not of the list.
    """
    sheets: dict[str, dict[str, Row]] = {}
    for path in paths:
        for row in read_table(path):
            if "picture" not in row or not any(f"{name}_present" in row for name in STRUCTURES):
                raise ValueError(f"{path} is no review sheet; it has {', '.join(row)}")
            name, expert = row["picture"], row.get("expert") or path.stem
            if name not in key:
                raise ValueError(f"{path}: picture {name!r} is not in the key")
            if name in sheets.setdefault(expert, {}):
                raise ValueError(f"{path}: {expert} judged picture {name} twice")
            where = f"{path}, picture {name}"
            sheets[expert][name] = row | {
                column: _word(row[column], words, f"{where}, {column}")
                for lesion in STRUCTURES
                for column, words in (
                    (f"{lesion}_present", PRESENCE),
                    (f"{lesion}_outline", OUTLINES),
                )
                if column in row
            }
    return sheets


def _word(cell: str, words: Sequence[str], where: str) -> str:
    word = cell.strip().lower()
    word = _SHORT.get(word, word) if words is PRESENCE else word
    if word and word not in words:
        raise ValueError(f"{where}: {cell!r} is none of {', '.join(words)}")
    return word


def read_key(path: Path) -> dict[str, Row]:
    """Picture to row of the key.

    Raises
    ------
    ValueError
        If it is no key of ``hiptrain review make``.
    """
    rows = read_table(path)
    needed = {"picture", "case", *(f"{name}_mm2" for name in STRUCTURES)}
    if needed - set(rows[0]):
        raise ValueError(f"{path} is no key of 'hiptrain review make'; it has {', '.join(rows[0])}")
    return {row["picture"]: row for row in rows}


def tally(
    sheets: Mapping[str, Mapping[str, Row]],
    key: Mapping[str, Row],
    *,
    min_mm2: float = 0.0,
    seed: int = 0,
) -> tuple[list[Tally], list[Pair]]:
    """Count. A lesion is marked where its outline has an area above ``min_mm2``."""
    counted = [
        _count(expert, lesion, rows, key, min_mm2=min_mm2, seed=seed)
        for lesion in NAMES
        for expert, rows in sheets.items()
    ]
    pairs = [
        _pair((first, second), lesion, sheets[first], sheets[second])
        for lesion in NAMES
        for first, second in combinations(sheets, 2)
    ]
    return counted, pairs


def _present(row: Row, lesion: str) -> str:
    """yes, no, unsure or nothing; either lesion is present if one is, absent if both are."""
    if lesion != ANY:
        return row.get(f"{lesion}_present", "")
    words = [row.get(f"{name}_present", "") for name in STRUCTURES]
    if "yes" in words:
        return "yes"
    if "" in words:
        return ""
    return "unsure" if "unsure" in words else "no"


def _found(row: Row, marks: Row, lesion: str, min_mm2: float) -> tuple[bool, bool]:
    """Whether the lesion is marked, and whether the mark is wrong in the expert's eyes."""
    if lesion != ANY:
        marked = float(marks[f"{lesion}_mm2"]) > min_mm2
        return marked, marked and row.get(f"{lesion}_outline") == "wrong"
    each = {name: _found(row, marks, name, min_mm2) for name in STRUCTURES}
    marked = any(item[0] for item in each.values())
    if _present(row, ANY) != "yes":
        return marked, False
    # what is present must be found: a mark of the other lesion does not count for it
    right = [
        each[name][0] and not each[name][1]
        for name in STRUCTURES
        if row.get(f"{name}_present") == "yes"
    ]
    return marked, marked and not any(right)


def _count(
    expert: str,
    lesion: str,
    rows: Mapping[str, Row],
    key: Mapping[str, Row],
    *,
    min_mm2: float,
    seed: int,
) -> Tally:
    cells = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    cases: dict[str, dict[str, int]] = {}
    elsewhere = unsure = blank = 0
    quality = dict.fromkeys(OUTLINES, 0)
    for name, marks in key.items():
        row = rows.get(name, {})
        word = _present(row, lesion)
        if word not in {"yes", "no"}:
            unsure += word == "unsure"
            blank += word == ""
            continue
        marked, wrong = _found(row, marks, lesion, min_mm2)
        elsewhere += word == "yes" and wrong
        cell = ("tp" if marked and not wrong else "fn") if word == "yes" else "tn"
        cell = "fp" if word == "no" and marked else cell
        cells[cell] += 1
        own = cases.setdefault(marks["case"], dict.fromkeys(cells, 0))
        own[cell] += 1
        outline = row.get(f"{lesion}_outline", "")
        if word == "yes" and marked and outline:
            quality[outline] += 1
    return Tally(
        expert=expert,
        structure=lesion,
        **cells,
        elsewhere=elsewhere,
        unsure=unsure,
        blank=blank,
        sensitivity=_share(cells["tp"], cells["fn"]),
        specificity=_share(cells["tn"], cells["fp"]),
        sensitivity_by_case=_by_case(list(cases.values()), "tp", "fn", seed),
        specificity_by_case=_by_case(list(cases.values()), "tn", "fp", seed),
        **quality,
    )


def _share(right: int, wrong: int) -> Proportion | None:
    return statistics.wilson(right, right + wrong) if right + wrong else None


def _by_case(
    cases: Sequence[Mapping[str, int]], right: str, wrong: str, seed: int
) -> tuple[float, float] | None:
    """Percentile bootstrap of whole cases; None with fewer than 5 that count."""
    counts = np.array([(case[right], case[right] + case[wrong]) for case in cases])
    counts = counts[counts[:, 1] > 0] if counts.size else counts
    if len(counts) < 5:
        return None
    rng = np.random.default_rng(seed)
    drawn = counts[rng.integers(0, len(counts), (_RESAMPLES, len(counts)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(low), float(high)


def _pair(
    experts: tuple[str, str], lesion: str, first: Mapping[str, Row], second: Mapping[str, Row]
) -> Pair:
    words = [
        (_present(row, lesion), _present(second[name], lesion))
        for name, row in first.items()
        if name in second
    ]
    judged = [pair for pair in words if set(pair) <= {"yes", "no"}]
    kappa, reason = None, ""
    try:
        kappa = statistics.cohen_kappa([a for a, _ in judged], [b for _, b in judged])
    except ValueError as error:
        reason = str(error)
    return Pair(
        experts=experts,
        structure=lesion,
        n=len(judged),
        agree=sum(a == b for a, b in judged),
        unsure=sum("unsure" in pair for pair in words),
        kappa=kappa,
        reason=reason,
    )


# --- text -----------------------------------------------------------------------------
def as_json(counted: Sequence[Tally], pairs: Sequence[Pair], cases: int) -> dict[str, Any]:
    """All figures, ready for ``json.dumps``."""
    return {
        "research_use": RESEARCH_USE,
        "cases": cases,
        "experts": [asdict(item) for item in counted],
        "pairs": [asdict(item) for item in pairs],
    }


def markdown(counted: Sequence[Tally], pairs: Sequence[Pair], cases: int) -> str:
    """The tables, and what they mean."""
    lines = [
        "| lesion | expert | TP | FN | FP | TN | unsure | not judged | sensitivity | specificity |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    lines += [
        f"| {NAMES[item.structure]} | {item.expert} | {item.tp} | {item.fn} | {item.fp} | "
        f"{item.tn} | {item.unsure} | {item.blank} | "
        f"{_proportion(item.sensitivity, item.sensitivity_by_case)} | "
        f"{_proportion(item.specificity, item.specificity_by_case)} |"
        for item in counted
    ]
    parts = ["\n".join(lines)]
    if any(item.good + item.partly + item.wrong for item in counted):
        lines = ["| outlines of | expert | good | partly | wrong |", "|---|---|--:|--:|--:|"]
        lines += [
            f"| {NAMES[item.structure]} | {item.expert} | {item.good} | {item.partly} | "
            f"{item.wrong} |"
            for item in counted
            if item.structure != ANY
        ]
        parts.append("\n".join(lines))
    if pairs:
        lines = ["| lesion | experts | both judged | agree | kappa | 95 % CI |"]
        lines.append("|---|---|--:|--:|--:|---|")
        for pair in pairs:
            found = pair.kappa
            figures = (
                f"{found.value:.2f} | {found.low:.2f} to {found.high:.2f}"
                if found
                else f"| {pair.reason}"
            )
            lines.append(
                f"| {NAMES[pair.structure]} | {' and '.join(pair.experts)} | {pair.n} | "
                f"{pair.agree} | {figures} |"
            )
        parts.append("\n".join(lines))
    parts.append(
        f"A picture is one slice of one hip; {cases} cases. Intervals are 95 %: Wilson's, and in "
        "brackets by resampling whole cases, which is the one to quote: slices of a hip are not "
        "independent. Unsure and unjudged pictures are left out. A lesion whose outline the expert "
        "calls wrong counts as missed. The expert is the reference here, not the truth; an expert "
        "who saw the outlines tends to agree with them, which 'review make --blind' avoids."
    )
    parts.append(f"{RESEARCH_USE}.")
    return "\n\n".join(parts) + "\n"


def _proportion(item: Proportion | None, by_case: tuple[float, float] | None) -> str:
    if item is None:
        return "–"
    text = f"{item.value:.2f} ({item.low:.2f} to {item.high:.2f})"
    return text + (f" [{by_case[0]:.2f} to {by_case[1]:.2f}]" if by_case else "")
