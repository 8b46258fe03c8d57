"""The figures of merit of an evaluation: per hip, per series, and their summaries.

A summary is a plain dictionary that goes into JSON as it is. Numbers over hips come as
mean, standard deviation (n - 1), median, smallest, largest and count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from hipscore.phantom import Burden
from hiptrain.metrics import Overlap, pooled_dice
from hiptrain.statistics import bland_altman, icc

Summary: TypeAlias = dict[str, Any]

#: structures compared; the lesion is edema and synovitis together
STRUCTURES = ("head", "bme", "synovitis", "lesion")
#: hips with less lesion than this are lesion-free, mL
CLEAN_ML = 0.001
#: below this Dice of the head a series must carry a remark
HEAD_DICE = 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class HipFigures:
    """One true hip: how far the result is from it.

    ``side_right`` and ``centre_error_mm`` are None where the hip was not found,
    ``structures`` (by :data:`STRUCTURES`) is empty where segmenting was not measured; a
    hip that was not found is compared with empty masks. ``reason`` is the code for why a
    located hip was not scored.
    """

    side: str
    found: bool
    side_right: bool | None
    centre_error_mm: float | None
    structures: dict[str, Overlap] = field(default_factory=dict)
    score: float | None = None
    found_score: float | None = None
    reason: str | None = None

    @property
    def lesion_free(self) -> bool:
        lesion = self.structures.get("lesion")
        return lesion is not None and lesion.truth_ml <= CLEAN_ML


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """One series: its hips, the patient's score, and what the service says beside it.

    ``false_hips`` counts what was located where no hip is. ``reason`` is the code for why
    there is no score, ``remarks`` the codes of the quality remarks.
    """

    name: str
    patient: str
    burden: str
    hips: tuple[HipFigures, ...]
    false_hips: int
    score: float | None = None
    found_score: float | None = None
    reason: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def remarked(self) -> bool:
        """Whether a reader is warned: by a remark, or by a hip or series without a score."""
        reasons = [self.reason, *(hip.reason for hip in self.hips)]
        return bool(self.remarks) or any(reason is not None for reason in reasons)


def spread(values: Iterable[float | None]) -> Summary | None:
    """Mean, SD, median, min, max and n of what is not None; None where nothing is left."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return None
    return {
        "n": int(known.size),
        "mean": _round(known.mean()),
        "sd": _round(known.std(ddof=1)) if known.size > 1 else None,
        "median": _round(np.median(known)),
        "min": _round(known.min()),
        "max": _round(known.max()),
    }


def structure(overlaps: Sequence[Overlap]) -> Summary:
    """Summary of one structure over hips. Dice only of hips that have it, pooled of all."""
    pooled = pooled_dice(overlaps)
    present = [item for item in overlaps if item.truth_ml > CLEAN_ML]
    return {
        "dice": spread(item.dice for item in present),
        "pooled_dice": None if pooled is None else _round(pooled),
        "hd95_mm": spread(item.hd95_mm for item in present),
        "surface_mm": spread(item.surface_mm for item in present),
        "truth_ml": spread(item.truth_ml for item in present),
        "error_ml": spread(item.error_ml for item in present),
        "absolute_error_ml": spread(abs(item.error_ml) for item in present),
        "relative_error": spread(item.relative_error for item in present),
        "false_ml": spread(item.found_ml for item in overlaps if item.truth_ml <= CLEAN_ML),
    }


def agreement(pairs: Sequence[tuple[float | None, float | None]]) -> Summary:
    """ICC(2,1) and Bland-Altman (found minus truth) of pairs (truth, found).

    Pairs without both numbers are counted in ``left_out``. Where a figure is undefined
    (fewer than three pairs, or all the same) it is None.
    """
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64)
    known = known.reshape(-1, 2)
    difference = known[:, 1] - known[:, 0]
    return {
        "n": len(known),
        "left_out": len(pairs) - len(known),
        "icc": _defined(lambda: icc(known)),
        "bland_altman": _defined(lambda: bland_altman(known[:, 1], known[:, 0])),
        "truth": spread(known[:, 0]),
        "found": spread(known[:, 1]),
        "absolute_difference": spread(np.abs(difference)),
    }


def summary(cases: Sequence[CaseFigures]) -> Summary:
    """All figures of merit of some series together."""
    hips = [hip for case in cases for hip in case.hips]
    segmented = [hip for hip in hips if hip.structures]
    codes = Counter(code for case in cases for code in case.remarks)
    reasons = Counter(case.reason for case in cases if case.reason is not None)
    return {
        "series": len(cases),
        "patients": len({case.patient for case in cases}),
        "hips": len(hips),
        "hips_found": sum(hip.found for hip in hips),
        "sides_right": sum(hip.side_right is True for hip in hips),
        "false_hips": sum(case.false_hips for case in cases),
        "centre_error_mm": spread(hip.centre_error_mm for hip in hips),
        "structures": {
            name: structure([hip.structures[name] for hip in segmented])
            for name in (STRUCTURES if segmented else ())
        },
        "score_hip": agreement([(hip.score, hip.found_score) for hip in segmented]),
        "score_patient": agreement(
            [
                (case.score, case.found_score)
                for case in cases
                if any(h.structures for h in case.hips)
            ]
        ),
        "series_remarked": sum(case.remarked for case in cases),
        "remarks": dict(sorted(codes.items())),
        "not_scored": dict(sorted(reasons.items())),
    }


def by_burden(cases: Sequence[CaseFigures]) -> dict[str, Summary]:
    """A summary for every burden there is, lightest first."""
    parts = {item.value: [case for case in cases if case.burden == item.value] for item in Burden}
    return {name: summary(part) for name, part in parts.items() if part}


def unwarned(cases: Sequence[CaseFigures]) -> list[Summary]:
    """Hips whose head is outlined worse than :data:`HEAD_DICE` in a series without a remark.

    A hip that was not found counts with a Dice of 0.
    """
    return [
        {"case": case.name, "side": hip.side, "found": hip.found, "head_dice": _round(dice)}
        for case in cases
        if not case.remarked
        for hip in case.hips
        if "head" in hip.structures
        and (dice := hip.structures["head"].dice) is not None
        and dice < HEAD_DICE
    ]


def group(cases: Sequence[CaseFigures]) -> Summary:
    """Everything about a group of series: summary, by burden, single figures."""
    return {
        "summary": summary(cases),
        "by_burden": by_burden(cases),
        "unwarned": unwarned(cases),
        "cases": [asdict(case) for case in cases],
    }


def _defined(compute: Any) -> Summary | None:
    try:
        return {name: _round(value) for name, value in asdict(compute()).items()}
    except ValueError:
        return None


def _round(value: Any) -> float:
    return round(float(value), 4)
