"""Tables of UNet-scores, readers' scores and clinical indices: from CSV to numbers.

One row is one visit of a patient, or one hip of it where there is a column ``side``.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hiptrain.statistics import Floats

Row: TypeAlias = dict[str, str]

READER_PREFIX = "reader_"
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "."}
_SIDES = {"r": "right", "right": "right", "l": "left", "left": "left"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_NOT_INDICES = ("patient", "visit", "side")
#: how the hips of a series make the patient's value, of the columns of ``hipscore score --csv``
_PER_HIP: Mapping[str, Callable[[list[float]], float]] = {
    "bme_score": math.fsum,
    "synovitis_score": math.fsum,
    "slices_used": math.fsum,
    "bme_ml": math.fsum,
    "synovitis_ml": math.fsum,
    "effusion_mm": max,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared. Each tuple and array has one entry per row; NaN is missing.

    ``units`` are what changes between visits: a patient, or one hip of a patient.
    """

    patients: tuple[str, ...]
    units: tuple[tuple[str, str], ...]
    visits: tuple[str, ...] | None
    score: str
    readers: tuple[str, ...]
    indices: tuple[str, ...]
    values: Mapping[str, Floats]
    remarks: tuple[str, ...] = ()


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV file with a header; separated by commas, semicolons or tabs.

    Between semicolons or tabs a decimal comma is understood.

    Raises
    ------
    ValueError
        If there is no row, a column has no name or a name of another, or a row has more cells
        than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save the table as 'CSV UTF-8'") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        if len(set(columns)) < len(columns) or "" in columns:
            raise ValueError(f"{path}: every column needs a name of its own, not {first.strip()!r}")
        reader.fieldnames = columns
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(f"{path}, line {reader.line_num}: more cells than columns")
            cells = {name: (cell or "").strip() for name, cell in row.items()}
            if delimiter != ",":
                cells = {name: _with_point(cell) for name, cell in cells.items()}
            if any(cells.values()):
                rows.append(cells)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def join(
    rows: Sequence[Row], scores: Sequence[Row], *, key: str = "series_instance_uid"
) -> tuple[list[Row], list[str]]:
    """Add the columns of ``hipscore score --csv`` to a table that has the series' UID.

    With a column ``side`` in the table each hip gets its own values, and its own UNet-score as
    ``unet_score``. Without, a row gets the patient's UNet-score, the sums over both hips of the
    parts, and the thickest effusion.

    Returns
    -------
    tuple
        The longer rows, and remarks on what did not match.

    Raises
    ------
    ValueError
        If a key column is missing, a column of the scores is in the table too, or no row matches.
    """
    for name, held in (("table", rows), ("scores", scores)):
        if key not in held[0]:
            raise ValueError(f"the {name} have no column {key!r}; they have {', '.join(held[0])}")
    twice = sorted({"unet_score", *_PER_HIP} & set(rows[0]))
    if twice:
        raise ValueError(f"{', '.join(twice)} is in the table already; rename it or leave it out")
    by_side = "side" in rows[0]
    found: dict[tuple[str, str], list[Row]] = {}
    for score in scores:
        side = _side(score.get("side", "")) if by_side else ""
        found.setdefault((score[key], side), []).append(score)
    matches = [found.get((row[key], _side(row["side"]) if by_side else ""), []) for row in rows]
    lost = [row[key] for row, hips in zip(rows, matches, strict=True) if not hips]
    if len(lost) == len(rows):
        raise ValueError(f"no row of the table has a {key} of the scores")
    make = _of_hip if by_side else _of_patient
    joined = [{**make(hips), **row} for row, hips in zip(rows, matches, strict=True)]
    return joined, _remarks_on(lost, matches, by_side=by_side)


def _remarks_on(
    lost: Sequence[str], matches: Sequence[Sequence[Row]], *, by_side: bool
) -> list[str]:
    remarks = []
    if lost:
        shown = ", ".join(lost[:3]) + (" and others" if len(lost) > 3 else "")
        remarks.append(f"{len(lost)} rows have no score ({shown})")
    if by_side:
        remarks.append("unet_score is that of each hip, as the table has one row per hip")
        return remarks
    single = [sum(bool(hip.get("hip_unet_score")) for hip in hips) for hips in matches].count(1)
    if single:
        remarks.append(
            f"in {single} rows one hip alone was scored: their total is that hip's, which is not "
            "comparable with the total of two hips"
        )
    return remarks


def _of_hip(hips: Sequence[Row]) -> Row:
    if len(hips) > 1:
        raise ValueError(f"the scores have {len(hips)} rows for one side of one series")
    added = {name: hips[0].get(name, "") if hips else "" for name in _PER_HIP}
    return {"unet_score": hips[0].get("hip_unet_score", "") if hips else "", **added}


def _of_patient(hips: Sequence[Row]) -> Row:
    added = {"unet_score": hips[0].get("unet_score", "") if hips else ""}
    for name, make in _PER_HIP.items():
        known = [_number(hip.get(name, "")) for hip in hips]
        known = [value for value in known if not math.isnan(value)]
        added[name] = repr(make(known)) if known else ""
    return added


def study_of(
    rows: Sequence[Row],
    *,
    score: str = "unet_score",
    readers: Sequence[str] = (),
    indices: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> Study:
    """Take the wanted columns of a table as numbers.

    ``readers`` default to the columns named ``reader_...``, ``indices`` to every other column
    that holds numbers only.

    Raises
    ------
    ValueError
        If a column is missing or holds text, a visit appears twice, or there is nothing to
        compare the score with.
    """
    columns = list(rows[0])
    for name in ("patient", score, *readers, *indices):
        if name not in columns:
            raise ValueError(f"no column {name!r}; the table has {', '.join(columns)}")
    if not all(row["patient"] for row in rows):
        raise ValueError("every row needs a patient; one has none")
    readers = tuple(readers) or tuple(c for c in columns if c.startswith(READER_PREFIX))
    taken = {score, *readers, *_NOT_INDICES, *_PER_HIP, "unet_score", "hip_unet_score"}
    indices = tuple(indices) or tuple(c for c in columns if c not in taken and _numeric(rows, c))
    if not readers and not indices:
        raise ValueError(
            f"nothing to compare {score} with: no column named {READER_PREFIX}... and no other "
            "column of numbers; name them with --reader and --index"
        )
    units = tuple((row["patient"], _side(row["side"]) if "side" in row else "") for row in rows)
    visits = tuple(row["visit"] for row in rows) if "visit" in columns else None
    if visits is not None:
        seen: set[tuple[tuple[str, str], str]] = set()
        for unit, visit in zip(units, visits, strict=True):
            if not visit or (unit, visit) in seen:
                what = "appears twice" if visit else "has no name"
                raise ValueError(f"visit {visit!r} of patient {unit[0]} {unit[1]} {what}")
            seen.add((unit, visit))
    return Study(
        patients=tuple(unit[0] for unit in units),
        units=units,
        visits=visits,
        score=score,
        readers=readers,
        indices=indices,
        values={name: _column(rows, name) for name in (score, *readers, *indices)},
        remarks=tuple(remarks),
    )


def _side(text: str) -> str:
    side = _SIDES.get(text.strip().lower())
    if side is None and text.strip():
        raise ValueError(f"side is right or left, not {text!r}")
    return side or ""


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def _number(text: str) -> float:
    """A cell as number; a missing value is NaN."""
    if text.strip().lower() in _MISSING:
        return math.nan
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _numeric(rows: Sequence[Row], column: str) -> bool:
    try:
        return any(not math.isnan(_number(row[column])) for row in rows)
    except ValueError:
        return False


def _column(rows: Sequence[Row], column: str) -> Floats:
    values = []
    for place, row in enumerate(rows, start=1):
        try:
            values.append(_number(row[column]))
        except ValueError as error:
            raise ValueError(
                f"column {column!r}, row {place} holds {row[column]!r}, which is no number"
            ) from error
    return np.array(values)
