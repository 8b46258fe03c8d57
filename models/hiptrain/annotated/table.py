"""The table of cases: which image and which labels belong together, and whose they are."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from hipscore.domain import Side
from hiptrain.annotated import Problem

REQUIRED = ("patient", "image", "labels")
OPTIONAL = ("name", "side")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; ``side`` is that of the only annotated hip, if given."""

    line: int
    name: str
    patient: str
    image: Path
    labels: Path
    side: Side | None = None


def read_table(path: Path) -> list[Row]:
    """Read ``cases.csv``; paths in it are relative to its folder.

    Raises
    ------
    Problem
        If a column or a cell is missing, a name cannot name a file or comes twice, or an
        image comes twice (two patients' pictures of one image would leak into the test).
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [[cell.strip() for cell in cells] for cells in csv.reader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path.name} is no CSV file in UTF-8: {error}") from error
    columns = lines[0] if lines else []
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise Problem(f"{path.name} has no column {', '.join(missing)}; it needs {_columns()}")
    unknown = [column for column in columns if column not in {*REQUIRED, *OPTIONAL}]
    if unknown:
        raise Problem(f"{path.name} has the column {', '.join(unknown)}; it may have {_columns()}")
    rows: list[Row] = []
    for number, cells in enumerate(lines[1:], start=2):
        if any(cells):
            rows.append(_row(path, number, dict(zip(columns, cells, strict=False)), rows))
    if not rows:
        raise Problem(f"{path.name} lists no case")
    return rows


def _columns() -> str:
    return f"{', '.join(REQUIRED)} and, if wanted, {', '.join(OPTIONAL)}"


def _row(path: Path, line: int, cells: dict[str, str], before: list[Row]) -> Row:
    where = f"{path.name} line {line}"
    for column in REQUIRED:
        if not cells.get(column):
            raise Problem(f"{where}: {column} is empty")
    names = {row.name for row in before}
    name = cells.get("name") or _free_name(cells["patient"], names)
    if not _NAME.fullmatch(name):
        raise Problem(f"{where}: the name {name!r} may have letters, digits, - and _ only")
    if name in names:
        raise Problem(f"{where}: the name {name} comes twice")
    side = cells.get("side", "").lower()
    if side not in {"", *(item.value for item in Side)}:
        raise Problem(f"{where}: side is {side!r}; write right, left or nothing")
    image = path.parent / cells["image"]
    for row in before:
        if row.image.resolve() == image.resolve():
            raise Problem(f"{where}: the image of line {row.line} once more")
    return Row(
        line=line,
        name=name,
        patient=cells["patient"],
        image=image,
        labels=path.parent / cells["labels"],
        side=Side(side) if side else None,
    )


def _free_name(patient: str, taken: set[str]) -> str:
    """A file name for a case of this patient: p07, p07-2, ..."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", patient).strip("-")[:56] or "case"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name
