"""Statistics against published worked examples, SciPy, and what must hold for any data."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from hiptrain import statistics

# Shrout & Fleiss 1979, table 2: 6 targets in rows, 4 judges in columns
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)
# Bland & Altman 1986, table 1: peak flow by two meters, first readings, l/min
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
# Benjamini & Hochberg 1995, section 3.2
BENJAMINI_HOCHBERG = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000,
]  # fmt: skip

RATINGS = npst.arrays(
    np.float64,
    st.tuples(st.integers(3, 12), st.integers(2, 5)),
    elements=st.integers(0, 20).map(float),
).filter(lambda table: np.ptp(table) > 0)


def related(n: int, seed: int) -> tuple[Any, Any]:
    """Two related columns with ties."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n).round(1)
    return a, (a + rng.normal(size=n)).round(1)


# --- ICC ------------------------------------------------------------------------------
def test_icc_of_shrout_and_fleiss() -> None:
    found = statistics.icc(SHROUT_FLEISS)
    assert found.value == pytest.approx(0.29, abs=0.005)
    assert (found.low, found.high) == pytest.approx((0.019, 0.761), abs=0.0005)


@given(RATINGS, st.floats(0.01, 100), st.floats(-50, 50), st.randoms())
def test_icc_knows_no_unit_and_no_order(table: Any, scale: float, shift: float, rng: Any) -> None:
    found = statistics.icc(table)
    assert found.value <= 1 + 1e-9
    assert found.low - 1e-6 <= found.value <= found.high + 1e-6
    raters = rng.sample(range(table.shape[1]), table.shape[1])
    again = statistics.icc(table[::-1, raters] * scale + shift)
    assert again.value == pytest.approx(found.value, abs=1e-6)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-4)


def test_icc_of_raters_who_agree_is_one_and_a_bias_lowers_it() -> None:
    subjects = np.arange(8.0)
    same = statistics.icc(np.stack([subjects, subjects], axis=1))
    assert (same.value, same.low, same.high) == (1, 1, 1)
    biased = statistics.icc(np.stack([subjects, subjects + 2], axis=1))
    assert biased.value == pytest.approx(6 / (6 + 2))  # subjects' variance 6, raters' 2


def test_icc_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        made = rng.normal(size=(20, 1)) * 2 + rng.normal(size=(1, 3)) + rng.normal(size=(20, 3))
        found = statistics.icc(made)
        covered += found.low <= 4 / (4 + 1 + 1) <= found.high
    assert 0.9 <= covered / 400 <= 0.985


def test_rows_of_one_patient_do_not_narrow_the_interval_of_icc() -> None:
    rng = np.random.default_rng(1)
    subjects = rng.normal(size=(15, 1)) + rng.normal(size=(15, 2)) * 0.5
    once = statistics.icc(subjects)
    copied = np.repeat(subjects, 6, axis=0)
    naive = statistics.icc(copied)
    grouped = statistics.icc(copied, groups=np.repeat(np.arange(15), 6).tolist(), seed=1)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.4)


# --- Bland-Altman ---------------------------------------------------------------------
def test_limits_of_bland_and_altman() -> None:
    found = statistics.bland_altman(WRIGHT, MINI)
    assert found.n == 17
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert (found.low, found.high) == pytest.approx((-2.118 - 75.97, -2.118 + 75.97), abs=0.05)


# --- Spearman -------------------------------------------------------------------------
@pytest.mark.parametrize("n", (9, 40, 200))
def test_rho_and_p_are_scipys(n: int) -> None:
    a, b = related(n, n)
    found = statistics.spearman(a, b, resamples=200)
    known: Any = stats.spearmanr(a, b)
    assert found.rho == pytest.approx(known.statistic, abs=1e-12)
    assert found.p == pytest.approx(known.pvalue, rel=1e-9)
    assert found.n == found.groups == n


@pytest.mark.parametrize("n", (4, 5, 6))
def test_p_of_few_pairs_is_exact(n: int) -> None:
    a, b = related(n, 10 + n)
    seen = abs(stats.spearmanr(a, b).statistic)
    others = [abs(stats.spearmanr(order, b).statistic) for order in permutations(a)]
    assert statistics.spearman(a, b).p == pytest.approx(np.mean(np.array(others) > seen - 1e-9))


def test_a_perfect_order_of_few_pairs_is_no_proof() -> None:
    found = statistics.spearman([1, 2, 3, 4], [10, 20, 30, 40])
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 24)
    assert statistics.spearman(np.arange(9), np.arange(9)).p > 0


def test_interval_is_that_of_drawing_pairs_and_ranking_anew() -> None:
    a, b = related(25, 3)
    found = statistics.spearman(a, b, resamples=300, seed=1)
    draws = np.random.default_rng(1).multinomial(25, np.full(25, 1 / 25), size=300)
    rhos = [stats.spearmanr(np.repeat(a, times), np.repeat(b, times)).statistic for times in draws]
    assert (found.low, found.high) == pytest.approx(np.quantile(rhos, (0.025, 0.975)))
    assert statistics.spearman(a, b, resamples=300, seed=1) == found
    assert statistics.spearman(a, b, resamples=300, seed=2) != found


def test_visits_of_one_patient_are_drawn_together() -> None:
    a, b = related(20, 4)
    once = statistics.spearman(a, b)
    copies = [np.tile(values, 5) for values in (a, b)]
    naive = statistics.spearman(*copies)
    patients = [f"p{number % 20}" for number in range(100)]
    grouped = statistics.spearman(*copies, groups=patients)
    assert grouped.rho == pytest.approx(once.rho)
    assert (grouped.n, grouped.groups) == (100, 20)
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)
    assert naive.p < grouped.p


@settings(max_examples=50)
@given(
    npst.arrays(np.float64, st.integers(4, 12), elements=st.integers(0, 5).map(float)),
    st.randoms(use_true_random=False),
)
def test_rho_keeps_its_bounds_and_its_sign(a: Any, rng: Any) -> None:
    b = np.array(rng.sample(range(a.size), a.size), dtype=float)
    assume(np.ptp(a) > 0)
    try:
        found = statistics.spearman(a, b, resamples=100)
    except ValueError:  # one value differs: most resamples are without it
        assert np.sort(np.unique(a, return_counts=True)[1])[-1] == a.size - 1
        return
    assert -1 <= found.low <= found.high <= 1
    assert 0 < found.p <= 1
    turned = statistics.spearman(np.exp(-a), b, resamples=100)
    assert turned.rho == pytest.approx(-found.rho)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == pytest.approx(found.p)


# --- p-values, differences, proportions, kappa ----------------------------------------
def test_adjustment_of_benjamini_and_hochberg() -> None:
    adjusted = statistics.benjamini_hochberg(BENJAMINI_HOCHBERG)
    assert (adjusted <= 0.05).tolist() == [True] * 4 + [False] * 11
    assert statistics.benjamini_hochberg([]).size == 0


@given(npst.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_adjustment_is_scipys(p: Any) -> None:
    known = stats.false_discovery_control(p)
    np.testing.assert_allclose(statistics.benjamini_hochberg(p), known, rtol=1e-12, atol=0)


def test_paired_tests_are_scipys() -> None:
    a, b = related(12, 6)
    found = statistics.paired(a, b)
    assert found.difference == pytest.approx(float(np.mean(a - b)))
    assert found.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b).pvalue)


def test_paired_tests_of_constant_differences() -> None:
    same = statistics.paired([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (same.difference, same.t_p, same.wilcoxon_p) == (0, 1, 1)
    shifted = statistics.paired([0.3, 0.4, 0.5, 0.6, 0.7], [0.2, 0.3, 0.4, 0.5, 0.6])
    assert shifted.t_p == 0
    assert shifted.wilcoxon_p == pytest.approx(2 / 2**5)  # the least that 5 pairs can give


def test_mean_and_deviation() -> None:
    mean, sd = statistics.mean_sd([1, 2, 3, 4])
    assert (mean, sd) == pytest.approx((2.5, np.sqrt(5 / 3)))
    assert np.isnan(statistics.mean_sd([3.0]).sd)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(pair: tuple[int, int]) -> None:
    found = statistics.wilson(*pair)
    known = stats.binomtest(*pair).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_wilsons_interval_of_newcombe() -> None:  # Stat Med 1998;17:857, table I: 81 of 263
    found = statistics.wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=0.00005)


def _kappa_of(p: Any) -> float:
    chance = float(p.sum(axis=1) @ p.sum(axis=0))
    return (float(np.trace(p)) - chance) / (1 - chance)


def test_kappa_and_its_interval_by_the_delta_method() -> None:
    counts = np.array([[20, 5, 2], [10, 15, 4], [1, 3, 12]])
    first = np.repeat([0, 1, 2], counts.sum(axis=1)).tolist()
    second = np.concatenate([np.repeat([0, 1, 2], row) for row in counts]).tolist()
    n, p = counts.sum(), counts / counts.sum()
    found = statistics.cohen_kappa(first, second)
    assert found.value == pytest.approx(_kappa_of(p))
    gradient = np.zeros((3, 3))
    for place in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[place] = 1e-6
        gradient[place] = (_kappa_of(p + step) - _kappa_of(p - step)) / 2e-6
    variance = (float((p * gradient**2).sum()) - float((p * gradient).sum()) ** 2) / n
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-4)


def test_kappa_of_two_by_two() -> None:
    first, second = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10
    assert statistics.cohen_kappa(first, [*second, *["no"] * 15]).value == pytest.approx(0.4)
    assert statistics.cohen_kappa(first, first).value == 1


# --- refusals -------------------------------------------------------------------------
NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "text"),
    (
        (lambda: statistics.icc([[1, 2], [3, 4]]), "at least 3 subjects"),
        (lambda: statistics.icc([[1], [3], [4]]), "2 raters"),
        (lambda: statistics.icc([[1, 1], [1, 1], [1, 1]]), "undefined"),
        (lambda: statistics.icc([[1.0, 2.0], [3.0, NAN], [4.0, 5.0]]), "NaN"),
        (
            lambda: statistics.icc(np.arange(8).reshape(4, 2) ** 2, groups=["a", "a", "b", "c"]),
            "4 independent patients",
        ),
        (lambda: statistics.bland_altman([1, 2], [1, 2]), "at least 3"),
        (lambda: statistics.bland_altman([1, 2, 3], [1, 2, 3, 4]), "equal lengths"),
        (lambda: statistics.spearman([1, 2, 3], [1, 2, 3]), "at least 4"),
        (lambda: statistics.spearman([1, 1, 1, 1], [1, 2, 3, 4]), "first variable is constant"),
        (lambda: statistics.spearman([1, 2, 3, 4], [1, NAN, 3, 4]), "NaN"),
        (lambda: statistics.spearman([1, 2, 3, 4], [1, 2, 3, 5], resamples=10), "too few"),
        (lambda: statistics.spearman([1, 2, 3, 4], [1, 2, 4, 3], groups="aabc"), "4 independent"),
        (lambda: statistics.spearman([1, 2, 3, 4], [1, 2, 4, 3], groups="abc"), "4 groups"),
        (lambda: statistics.benjamini_hochberg([0.1, 1.2]), "between 0 and 1"),
        (lambda: statistics.benjamini_hochberg([0.1, NAN]), "NaN"),
        (lambda: statistics.paired([1], [2]), "at least 2"),
        (lambda: statistics.mean_sd([]), "at least 1"),
        (lambda: statistics.mean_sd([[1, 2]]), "one-dimensional"),
        (lambda: statistics.wilson(3, 2), "3 of 2"),
        (lambda: statistics.wilson(0, 0), "0 of 0"),
        (lambda: statistics.cohen_kappa("yy", "yy"), "undefined"),
        (lambda: statistics.cohen_kappa("yn", "y"), "2 pairs"),
    ),
)
def test_what_cannot_be_computed_is_refused_with_a_reason(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
