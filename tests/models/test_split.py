"""Patients train or test, never both, whatever the order of the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiptrain import split
from hiptrain.dataset import KINDS, CaseFile


def cases(kinds: Mapping[str, str]) -> list[CaseFile]:
    """One case for every kind of every patient: ``{"p1": "plain semireal"}``."""
    return [
        CaseFile(
            path=Path(f"{patient}-{kind}"), name=f"{patient}-{kind}", patient=patient, kind=kind
        )
        for patient, each in kinds.items()
        for kind in each.split()
    ]


REAL = {f"r{index}": "semireal plain" for index in range(10)}
PHANTOMS = {f"f{index}": "phantom" for index in range(5)}

anything = st.dictionaries(
    st.sampled_from([f"p{index}" for index in range(15)]),
    st.sets(st.sampled_from(KINDS), min_size=1).map(lambda kinds: " ".join(sorted(kinds))),
    min_size=2,
).map(cases)


def test_held_out_patients_do_not_train() -> None:
    parts = split.hold_out(cases(REAL), ["r3", "r7"])
    assert split.patients(parts.validation) == ["r3", "r7"]
    assert len(parts.validation) == 4
    assert len(parts.training) == 16


def test_an_unknown_patient_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no patient r10, r11 to hold out; the data has r0, r1"):
        split.hold_out(cases(REAL), ["r11", "r1", "r10"])


def test_somebody_must_train() -> None:
    with pytest.raises(ValueError, match="nobody is left to train on"):
        split.hold_out(cases(REAL), list(REAL))


def test_a_share_of_every_stratum_validates() -> None:
    parts = split.share_out(cases(REAL | PHANTOMS), 0.2, seed=3)
    validating = split.patients(parts.validation)
    assert [name[0] for name in validating] == ["f", "r", "r"]


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    drawn = [
        split.patients(split.share_out(cases(REAL), 0.3, seed).validation) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_files_order_does_not_matter() -> None:
    there, back = cases(REAL), cases(REAL)[::-1]
    assert split.folds(there, 5, 1) == split.folds(back, 5, 1)
    first, second = (split.share_out(each, 0.3, 1) for each in (there, back))
    assert split.patients(first.validation) == split.patients(second.validation)


def test_one_patient_of_a_kind_is_not_enough_to_share() -> None:
    with pytest.raises(ValueError, match="1 of annotated, 1 of phantom"):
        split.share_out(cases({"a": "annotated", "b": "phantom"}), 0.2, 1)


@given(anything, st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_split_leaks(found: list[CaseFile], share: float, seed: int) -> None:
    try:
        parts = split.share_out(found, share, seed)
    except ValueError:
        return
    sides = set(split.patients(parts.training)), set(split.patients(parts.validation))
    assert not sides[0] & sides[1]
    assert len(parts.training) + len(parts.validation) == len(found)
    split.refuse_leak(*sides)


def test_a_leak_is_named() -> None:
    with pytest.raises(ValueError, match=r"^b, c would both train and validate"):
        split.refuse_leak(["a", "b", "c"], ["c", "b", "d"])


@given(anything, st.integers(2, 6), st.integers(0, 9))
def test_every_testable_patient_is_in_one_fold(
    found: list[CaseFile], count: int, seed: int
) -> None:
    tested = {case.patient for case in found if case.kind in split.TESTABLE}
    if len(tested) < count:
        with pytest.raises(ValueError, match=f"{count} folds need at least {count} patients"):
            split.folds(found, count, seed)
        return
    dealt = split.folds(found, count, seed)
    assert sorted(name for fold in dealt for name in fold) == sorted(tested)
    sizes = [len(fold) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    for fold in dealt:
        parts = split.fold_split(found, fold)
        assert {case.kind for case in parts.validation} <= split.TESTABLE
        assert not set(fold) & set(split.patients(parts.training))


def test_phantoms_train_in_every_fold() -> None:
    found = cases(REAL | PHANTOMS)
    for fold in split.folds(found, 5, 1):
        assert len(fold) == 2
        assert set(PHANTOMS) <= set(split.patients(split.fold_split(found, fold).training))
