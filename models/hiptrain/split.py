"""Who trains and who tests: splits by patient, never by picture. No torch here.

A patient's *stratum* is the set of kinds of data there are of them, for example
``plain+semireal``; splits are drawn within each stratum, so that every kind is on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hiptrain.dataset import CaseFile

#: kinds of data that stand for a patient's hips; the others only ever train
TESTABLE = frozenset({"semireal", "annotated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Cases to train on, and cases to measure on."""

    training: tuple[CaseFile, ...]
    validation: tuple[CaseFile, ...]

    def as_dict(self) -> dict[str, object]:
        """Patients and number of cases of each side, for the record of a run."""
        return {
            name: {"patients": patients(cases), "cases": len(cases)}
            for name, cases in (("training", self.training), ("validation", self.validation))
        }


def patients(cases: Iterable[CaseFile]) -> list[str]:
    """Names of the patients, sorted, each once."""
    return sorted({case.patient for case in cases})


def hold_out(cases: Sequence[CaseFile], names: Collection[str]) -> Split:
    """Keep the named patients out of training.

    Raises
    ------
    ValueError
        If there is no such patient, or nobody is left to train on.
    """
    known = patients(cases)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"no patient {', '.join(unknown)} to hold out; the data has {_shown(known)}"
        )
    return _parted(cases, set(names))


def share_out(cases: Sequence[CaseFile], share: float, seed: int) -> Split:
    """Keep a share of the patients of every stratum out of training, at least one in all.

    A stratum of one patient trains. The same seed, share and patients give the same split.

    Raises
    ------
    ValueError
        If no stratum has two patients.
    """
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    sizes = {}
    for stratum, members in _strata(cases).items():
        order = [members[index] for index in rng.permutation(len(members))]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.update(order[:count])
        sizes[stratum] = len(members)
    if not chosen:
        told = ", ".join(f"{count} of {stratum}" for stratum, count in sizes.items())
        raise ValueError(
            f"too few patients to keep some out of training ({told or 'none'}); two of a kind "
            "are needed, or --final, which trains on all of them"
        )
    return _parted(cases, chosen)


def refuse_leak(training: Iterable[str], validation: Iterable[str]) -> None:
    """Refuse data in which a patient is on both sides of a split.

    Raises
    ------
    ValueError
        It names the patients.
    """
    both = sorted(set(training) & set(validation))
    if both:
        raise ValueError(f"{_shown(both)} would both train and validate: split by patient")


def folds(cases: Sequence[CaseFile], count: int, seed: int) -> list[tuple[str, ...]]:
    """Patients of each test fold, for cross-validation.

    Only patients with data of a kind in :data:`TESTABLE` are dealt out, each into one fold;
    everyone else trains in every fold.

    Raises
    ------
    ValueError
        If there are fewer patients than folds.
    """
    rng = np.random.default_rng(seed)
    tested = {case.patient for case in cases if case.kind in TESTABLE}
    order = [
        members[index]
        for members in _strata([case for case in cases if case.patient in tested]).values()
        for index in rng.permutation(len(members))
    ]
    if count < 2 or len(order) < count:
        raise ValueError(
            f"{count} folds need at least {max(count, 2)} patients of the kinds "
            f"{' or '.join(sorted(TESTABLE))}; the data has {len(order)}"
        )
    return [tuple(sorted(order[number::count])) for number in range(count)]


def fold_split(cases: Sequence[CaseFile], tested: Collection[str]) -> Split:
    """Split of one fold: of the tested patients only the kinds in :data:`TESTABLE`."""
    whole = _parted(cases, set(tested))
    return Split(
        training=whole.training,
        validation=tuple(case for case in whole.validation if case.kind in TESTABLE),
    )


def _strata(cases: Iterable[CaseFile]) -> dict[str, list[str]]:
    """Patients by stratum, all sorted, so that a draw does not depend on the files' order."""
    kinds = defaultdict(set)
    for case in cases:
        kinds[case.patient].add(case.kind)
    strata = defaultdict(list)
    for patient in sorted(kinds):
        strata["+".join(sorted(kinds[patient]))].append(patient)
    return dict(sorted(strata.items()))


def _parted(cases: Sequence[CaseFile], out: set[str]) -> Split:
    split = Split(
        training=tuple(case for case in cases if case.patient not in out),
        validation=tuple(case for case in cases if case.patient in out),
    )
    if not split.training:
        raise ValueError("every patient is held out: nobody is left to train on")
    return split


def _shown(names: Sequence[str]) -> str:
    """Names for a message, the first dozen of them."""
    more = len(names) - 12
    return ", ".join(names[:12]) + (f" and {more} more" if more > 0 else "")
