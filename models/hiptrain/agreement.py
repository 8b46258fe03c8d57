"""UNet-scores beside readers' scores and clinical indices: the figures.

The tables are those of Zheng et al., Front Physiol 2023;14:1132214: rank correlation of the
automatic score with readers and indices, agreement between readers, and correlation of changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from hiptrain import statistics
from hiptrain.agreement_table import Study
from hiptrain.statistics import BlandAltman, Correlation, Floats, Icc

READERS = "mean of readers"
_NUMBERED = re.compile(r"(\D*)(\d+(?:\.\d+)?)(\D*)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the correlation table. Without figures where ``reason`` says why."""

    a: str
    b: str
    n: int
    patients: int
    figures: Correlation | None
    p_adjusted: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Agreement of raters in one unit: all together, or two of them with their differences."""

    raters: tuple[str, ...]
    n: int
    patients: int
    icc: Icc | None
    differences: BlandAltman | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Everything ``hiptrain agreement`` reports."""

    study: Study
    correlations: tuple[Line, ...]
    readers: tuple[Readers, ...]
    changes: tuple[Line, ...]
    #: visits in the order that changes were taken in
    order: tuple[str, ...]
    resamples: int
    seed: int


def compare(
    study: Study,
    *,
    resamples: int = 2000,
    seed: int = 0,
    same_scale: bool = False,
    done: Callable[[int], object] = lambda _: None,
) -> Agreement:
    """Make all tables. Pairwise complete rows; bootstrap by patient; ``done(1)`` per line.

    ``same_scale``: also ICC and differences of the automatic score against each reader, which
    mean something only where both are in one unit.
    """
    values = columns_of(study)
    pairs = _pairs_of(study)
    correlations, changes = [], []
    for a, b in pairs:
        line = _line((a, b), values[a], values[b], study.patients, resamples=resamples, seed=seed)
        correlations.append(line)
        done(1)
    if study.visits is not None:
        for a, b in pairs:
            first, second, owners = changes_of(study, values[a], values[b])
            line = _line((a, b), first, second, owners, resamples=resamples, seed=seed)
            changes.append(line)
            done(1)
    raters = [study.readers] if len(study.readers) > 2 else []
    raters += list(combinations(study.readers, 2))
    if same_scale:
        raters += [(study.score, name) for name in study.readers]
    readers = []
    for each in raters:
        readers.append(_readers(each, values, study.patients, resamples, seed))
        done(1)
    return Agreement(
        study=study,
        correlations=_adjusted(correlations),
        changes=_adjusted(changes),
        readers=tuple(readers),
        order=tuple(visit_order(study.visits or ())),
        resamples=resamples,
        seed=seed,
    )


def columns_of(study: Study) -> dict[str, Floats]:
    """The study's columns, and the mean of the readers where there are several."""
    values = dict(study.values)
    if len(study.readers) > 1:
        values[READERS] = np.mean([values[name] for name in study.readers], axis=0)
    return values


def _pairs_of(study: Study) -> list[tuple[str, str]]:
    """The score with everything, then the readers with the indices, for comparison."""
    reader = (READERS,) if len(study.readers) > 1 else study.readers
    pairs = [(study.score, name) for name in study.readers]
    if len(study.readers) > 1:
        pairs.append((study.score, READERS))
    pairs += [(study.score, name) for name in study.indices]
    return pairs + [(each, name) for each in reader for name in study.indices]


def steps(study: Study, *, same_scale: bool) -> int:
    """How often ``done`` is called by :func:`compare`."""
    pairs = len(_pairs_of(study)) * (1 if study.visits is None else 2)
    count = len(study.readers)
    return pairs + math.comb(count, 2) + (count > 2) + (count if same_scale else 0)


def _line(
    names: tuple[str, str],
    first: Floats,
    second: Floats,
    owners: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Line:
    a, b = names
    both = np.isfinite(first) & np.isfinite(second)
    groups = [owner for owner, kept in zip(owners, both, strict=True) if kept]
    n, patients = len(groups), len(set(groups))
    try:
        figures = statistics.spearman(
            first[both], second[both], resamples=resamples, seed=seed, groups=groups
        )
    except ValueError as error:
        still = [name for name, values in ((a, first), (b, second)) if len(set(values[both])) == 1]
        reason = f"no spread in {' and '.join(still)}" if still and n > 3 else str(error)
        return Line(a=a, b=b, n=n, patients=patients, figures=None, reason=reason)
    return Line(a=a, b=b, n=n, patients=patients, figures=figures)


def _adjusted(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with p adjusted over all of them that have one."""
    known = [line.figures.p for line in lines if line.figures is not None]
    adjusted = iter(statistics.benjamini_hochberg(known))
    return tuple(
        line if line.figures is None else replace(line, p_adjusted=float(next(adjusted)))
        for line in lines
    )


def visit_order(visits: Sequence[str]) -> list[str]:
    """Visits in time: dates and numbered names (``2``, ``month 12``) sorted, else as they come."""
    known = list(dict.fromkeys(visits))
    if all(_DATE.fullmatch(name) for name in known):
        return sorted(known)
    parts = [_NUMBERED.fullmatch(name) for name in known]
    alike = {(part[1], part[3]) if part else None for part in parts}
    if len(alike) == 1 and None not in alike:
        return sorted(known, key=lambda name: float(re.findall(r"\d+(?:\.\d+)?", name)[0]))
    return known


def changes_of(study: Study, first: Floats, second: Floats) -> tuple[Floats, Floats, list[str]]:
    """Last minus first of each unit's visits at which both values are known; and the patients."""
    visits = study.visits or ()
    place = {name: number for number, name in enumerate(visit_order(visits))}
    both = np.isfinite(first) & np.isfinite(second)
    rows: dict[tuple[str, str], list[int]] = {}
    for row in sorted(np.flatnonzero(both).tolist(), key=lambda row: place[visits[row]]):
        rows.setdefault(study.units[row], []).append(row)
    ends = [(own[0], own[-1]) for own in rows.values() if len(own) > 1]
    before, after = [row for row, _ in ends], [row for _, row in ends]
    owners = [study.patients[row] for row in before]
    return first[after] - first[before], second[after] - second[before], owners


def _readers(
    raters: Sequence[str],
    values: Mapping[str, Floats],
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> Readers:
    table = np.stack([values[name] for name in raters], axis=1)
    complete = np.isfinite(table.sum(axis=1))
    groups = [owner for owner, kept in zip(patients, complete, strict=True) if kept]
    about: dict[str, Any] = {
        "raters": tuple(raters),
        "n": len(groups),
        "patients": len(set(groups)),
    }
    try:
        icc = statistics.icc(table[complete], groups=groups, resamples=resamples, seed=seed)
        differences = statistics.bland_altman(*table[complete].T) if len(raters) == 2 else None
    except ValueError as error:
        return Readers(**about, icc=None, reason=str(error))
    return Readers(**about, icc=icc, differences=differences)
