"""Annotated series as known truth, to measure a bundle on."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from hiptrain.annotated import Problem
from hiptrain.annotated.case import read_case
from hiptrain.annotated.naming import Naming, read_naming
from hiptrain.annotated.table import Row, read_table
from hiptrain.evaluate import Case, Scene


def annotated_cases(
    table: Path,
    labels: Path | None = None,
    *,
    patients: Collection[str] = (),
    resample: bool = False,
) -> list[Case]:
    """The cases of a table for :func:`hiptrain.evaluate.evaluate`, read when they are needed.

    Parameters
    ----------
    table, labels
        As of ``hiptrain annotated``.
    patients
        Only these, for example those that were held out of training; empty for all.
    resample
        Accept labels on another grid.

    Raises
    ------
    Problem
        If the table cannot be used or lacks a patient; later, when a case is made and
        cannot be used.
    """
    naming, rows = read_naming(labels), read_table(table)
    unknown = sorted(set(patients) - {row.patient for row in rows})
    if unknown:
        raise Problem(f"{table.name} has no patient {', '.join(unknown)}")
    return [
        Case(
            name=row.name,
            patient=row.patient,
            burden="annotated",
            make=partial(_scene, row, naming, resample=resample),
        )
        for row in rows
        if not patients or row.patient in patients
    ]


def _scene(row: Row, naming: Naming, *, resample: bool) -> Scene:
    try:
        case = read_case(row, naming, resample=resample)
    except Problem as problem:
        raise Problem(f"case {row.name} (line {row.line}): {problem}") from problem
    return case.volume, case.masks
