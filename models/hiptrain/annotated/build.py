"""A data set of all cases of a table: written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hipscore import __version__
from hipscore.domain import RESEARCH_USE
from hiptrain import dataset
from hiptrain.annotated import Problem
from hiptrain.annotated.case import arrays_of, figures_of, formats_of, read_case, sheet
from hiptrain.annotated.naming import Key, Naming, read_naming
from hiptrain.annotated.table import Row, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for. ``labels`` is the path of labels.toml."""

    labels: Path | None = None
    resample: bool = False
    keep_going: bool = False
    pictures: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of the table: figures per case, problems, and keys that nothing answered to."""

    cases: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]
    unused: tuple[str, ...]


def build(
    table: Path,
    out: Path,
    wishes: Wishes,
    *,
    begun: Callable[[int], object] = lambda _: None,
    done: Callable[[int], object] = lambda _: None,
) -> Built:
    """Make the data set ``out`` of the cases in ``table``.

    The set is written beside ``out`` and renamed when it is complete. With
    ``keep_going`` the cases that cannot be used are left out and told at the end.
    ``begun(n)`` is called with the number of cases, ``done(1)`` after each.

    Raises
    ------
    Problem
        If the table or labels.toml cannot be used, ``out`` exists, no case can be used,
        or, without ``keep_going``, one cannot. Then nothing is written.
    """
    out = out.resolve()
    naming, rows = read_naming(wishes.labels), read_table(table)
    if out.exists() and any(out.iterdir()):
        raise Problem(f"{out} is not empty; give a new folder")
    begun(len(rows))
    staging = out.with_name(f".{out.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        built = _write_cases(rows, naming, staging, wishes, done)
        if not built.cases:
            raise Problem("no case can be used: " + "; ".join(built.problems))
        about = _about(table, wishes, built)
        (staging / "set.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return built


def _write_cases(
    rows: Sequence[Row],
    naming: Naming,
    folder: Path,
    wishes: Wishes,
    done: Callable[[int], object],
) -> Built:
    cases, problems = [], []
    answered: set[Key] = set()
    for row in rows:
        try:
            case = read_case(row, naming, resample=wishes.resample)
        except Problem as problem:
            text = f"case {row.name} (line {row.line}): {problem}"
            if not wishes.keep_going:
                raise Problem(text) from problem
            problems.append(text)
        else:
            answered |= case.keys
            figures = figures_of(case)
            about = {"kind": "annotated", **figures}
            dataset.save_case(folder / f"{row.name}.npz", about, arrays_of(case, wishes.seed))
            if wishes.pictures:
                (folder / "pictures").mkdir(exist_ok=True)
                (folder / "pictures" / f"{row.name}.png").write_bytes(sheet(case))
            cases.append(figures)
        done(1)
    unused = [str(key) for key in naming.meanings if key not in answered]
    return Built(cases=tuple(cases), problems=tuple(problems), unused=tuple(unused))


def _about(table: Path, wishes: Wishes, built: Built) -> dict[str, object]:
    """What ``set.json`` says about the origin of the set: no names, no paths."""
    labels = wishes.labels
    return {
        "kind": "annotated",
        "made_by": f"hiptrain {__version__}",
        "remark": RESEARCH_USE,
        "table_sha256": _sha256(table),
        "labels_sha256": _sha256(labels) if labels is not None else None,
        "seed": wishes.seed,
        "resampled": wishes.resample,
        "cases": len(built.cases),
        "left_out": len(built.problems),
        "patients": len({case["patient"] for case in built.cases}),
        "formats": formats_of(built.cases),
        **totals(built.cases),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def totals(cases: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many hips there are, and how many with each lesion."""
    hips = [hip for case in cases for hip in case["hips"]]
    return {
        "hips": len(hips),
        "hips_with_bme": sum(hip["bme_ml"] > 0 for hip in hips),
        "hips_with_synovitis": sum(hip["synovitis_ml"] > 0 for hip in hips),
        "hips_without_lesion": sum(hip["bme_ml"] + hip["synovitis_ml"] == 0 for hip in hips),
    }
