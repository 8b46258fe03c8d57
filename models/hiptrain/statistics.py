"""Statistics of agreement and association, in NumPy and SciPy alone.

Every function checks what it is given and raises ValueError with one clear line when there is too
little of it, when it holds NaN or infinity, or when a constant makes the figure undefined.
Intervals are 95 %.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

#: up to this many pairs every order is tried; 8! = 40 320
EXACT_PAIRS = 8
NORMAL_95 = 1.959963984540054

Floats = NDArray[np.float64]


class MeanSd(NamedTuple):
    """``sd`` has n - 1 below the line and is NaN for a single value."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Icc:
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlandAltman:
    """``low`` and ``high`` are the limits of agreement; ``sd`` is that of the differences."""

    bias: float
    low: float
    high: float
    sd: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """``n`` counts pairs, ``groups`` the independent units among them (patients)."""

    rho: float
    low: float
    high: float
    p: float
    n: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    difference: float
    t_p: float
    wilcoxon_p: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    value: float
    low: float
    high: float
    count: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kappa:
    value: float
    low: float
    high: float
    n: int


def mean_sd(values: ArrayLike) -> MeanSd:
    """Mean and sample standard deviation of at least one value."""
    held = _vector("values", values, at_least=1)
    return MeanSd(float(held.mean()), float(held.std(ddof=1)) if held.size > 1 else float("nan"))


def icc(
    ratings: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Icc:
    """ICC(2,1): two-way random effects, absolute agreement, single rater.

    Parameters
    ----------
    ratings
        (n, k): n >= 3 subjects in rows, k >= 2 raters in columns, same unit.
    groups
        (n,): whom each row belongs to, where one patient has several rows. Then the interval is
        a percentile bootstrap of whole groups, as the formula supposes independent rows.

    Notes
    -----
    Shrout & Fleiss, Psychol Bull 1979;86:420; the interval as in McGraw & Wong, Psychol Methods
    1996;1:30 (case A,1), by Satterthwaite's degrees of freedom.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 3 or table.shape[1] < 2:
        raise ValueError(f"ICC needs at least 3 subjects × 2 raters, not {table.shape}")
    _finite("ratings", table)
    if table.min() == table.max():
        raise ValueError("ICC is undefined: all ratings are the same")
    table = (table - table.mean()) / np.ptp(table)  # a ratio of variances: no unit, no overflow
    n, k = table.shape
    between, raters, error = _mean_squares(table)
    value = _icc_value(between, raters, error, n, k)
    if max(raters, error) < 1e-24:  # rounding only; the interval would be 0 / 0
        return Icc(value=1.0, low=1.0, high=1.0)
    if groups is not None and len(set(groups)) < n:
        low, high = _icc_bootstrap(table, _numbers(groups, n), resamples, seed)
        return Icc(value=value, low=low, high=high)
    # The published a and b times n (1 - ICC), which cancels below and may be 0 here.
    a, b = k * value * raters, (n * (1 - value) + k * value * (n - 1)) * error
    freedom = (a + b) ** 2 / (a**2 / (k - 1) + b**2 / ((n - 1) * (k - 1)))
    freedom = max(freedom, 1.0)  # Satterthwaite's fails below: a and b cancel if ICC < 0
    lower = float(stats.f.ppf(0.975, n - 1, freedom))
    upper = float(stats.f.ppf(0.975, freedom, n - 1))
    noise = k * raters + (k * n - k - n) * error
    return Icc(
        value=value,
        low=n * (between - lower * error) / (lower * noise + n * between),
        high=n * (upper * between - error) / (noise + n * upper * between),
    )


def _mean_squares(table: Floats) -> tuple[float, float, float]:
    """Of subjects, raters and the rest, of a table (n, k) of ratings."""
    n, k = table.shape
    table = table - table.mean()
    of_subject, of_rater = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_subject[:, None] - of_rater[None, :]
    between = k * float(np.square(of_subject).sum()) / (n - 1)
    raters = n * float(np.square(of_rater).sum()) / (k - 1)
    return between, raters, float(np.square(rest).sum()) / ((n - 1) * (k - 1))


def _icc_value(between: float, raters: float, error: float, n: int, k: int) -> float:
    total = between + (k - 1) * error + k * (raters - error) / n
    return (between - error) / total if total > 0 else float("nan")


def _icc_bootstrap(
    table: Floats, owner: NDArray[np.intp], resamples: int, seed: int
) -> tuple[float, float]:
    count = int(owner.max()) + 1
    if count < 4:
        raise ValueError(f"an interval needs at least 4 independent patients, not {count}")
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(owner == number) for number in range(count)]
    values = []
    for _ in range(resamples):
        drawn = table[np.concatenate([rows[each] for each in rng.integers(0, count, count)])]
        values.append(_icc_value(*_mean_squares(drawn), *drawn.shape))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def bland_altman(a: ArrayLike, b: ArrayLike) -> BlandAltman:
    """Bias (mean of a - b) and 95 % limits of agreement of at least 3 pairs.

    Bland & Altman, Lancet 1986;327:307. The limits suppose normal differences.
    """
    first, second = _pairs(a, b, at_least=3)
    differences = first - second
    bias, sd = mean_sd(differences)
    reach = NORMAL_95 * sd
    return BlandAltman(bias=bias, low=bias - reach, high=bias + reach, sd=sd, n=first.size)


def spearman(
    a: ArrayLike,
    b: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Correlation:
    """Spearman's rank correlation with a percentile bootstrap interval.

    Parameters
    ----------
    a, b
        (n,): at least 4 pairs; a pair is always drawn together.
    groups
        (n,): whom each pair belongs to, for example the patient. Whole groups are drawn, because
        repeated measurements of one patient are not independent. None: every pair is its own.

    Notes
    -----
    p is two-sided against rho = 0. Independent pairs: exact over all orders up to 8 pairs, else
    by the t approximation, never below what the number of orders allows. Groups of several
    pairs: from the same bootstrap (twice the smaller share of resamples on either side of 0), as
    both other ways suppose independence; its smallest value is 2 / (resamples + 1).
    """
    first, second = _pairs(a, b, at_least=4)
    for name, values in (("first", first), ("second", second)):
        if values.min() == values.max():
            raise ValueError(f"rank correlation is undefined: the {name} variable is constant")
    if resamples < 100:
        raise ValueError(f"{resamples} resamples are too few for an interval; take 100 or more")
    owner = np.arange(first.size) if groups is None else _numbers(groups, first.size)
    count = int(owner.max()) + 1
    if count < 4:
        raise ValueError(f"rank correlation needs at least 4 independent patients, not {count}")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    rhos = _weighted_rho(first, second, drawn[:, owner].astype(np.float64))
    rhos = rhos[np.isfinite(rhos)]  # a resample may hold one value only
    if rhos.size < resamples / 2:
        raise ValueError("no interval: most resamples are constant, so few values differ")
    rho = float(_weighted_rho(first, second, np.ones((1, first.size)))[0])
    p = _p_independent(first, second, rho) if count == first.size else _p_bootstrap(rhos)
    low, high = (float(item) for item in np.quantile(rhos, (0.025, 0.975)))
    return Correlation(rho=rho, low=low, high=high, p=p, n=first.size, groups=count)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Adjusted p-values (false discovery rate) in the order given; (m,) to (m,).

    Benjamini & Hochberg, J R Stat Soc B 1995;57:289.
    """
    held = _vector("p-values", p, at_least=0)
    if held.size and (held.min() < 0 or held.max() > 1):
        raise ValueError("p-values lie between 0 and 1")
    order = np.argsort(held)[::-1]
    scaled = held[order] * held.size / np.arange(held.size, 0, -1)
    adjusted = np.empty_like(held)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Mean of a - b, with the paired t-test and Wilcoxon's signed-rank test.

    At least 2 pairs. No difference anywhere gives p = 1 in both; the same difference everywhere
    gives the t-test its limit 0, which says little.
    """
    first, second = _pairs(a, b, at_least=2)
    differences = first - second
    mean, sd = mean_sd(differences)
    scale = float(np.abs(np.concatenate([first, second])).max())
    if float(np.abs(differences).max()) <= 1e-12 * scale:
        return Paired(difference=mean, t_p=1.0, wilcoxon_p=1.0, n=first.size)
    if sd <= 1e-12 * scale:
        t_p = 0.0
    else:
        t = mean / (sd / sqrt(first.size))
        t_p = float(2 * stats.t.sf(abs(t), first.size - 1))
    wilcoxon: Any = stats.wilcoxon(differences)
    return Paired(difference=mean, t_p=t_p, wilcoxon_p=float(wilcoxon.pvalue), n=first.size)


def wilson(count: int, n: int) -> Proportion:
    """Share of ``count`` in ``n`` with Wilson's score interval (J Am Stat Assoc 1927;22:209)."""
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"no proportion: {count} of {n}")
    share, z2 = count / n, NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = NORMAL_95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    low = 0.0 if count == 0 else middle - reach
    high = 1.0 if count == n else middle + reach
    return Proportion(value=share, low=low, high=high, count=count, n=n)


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> Kappa:
    """Cohen's kappa of two raters' categories for the same n >= 2 things, unweighted.

    Interval by the large-sample standard error of Fleiss, Cohen & Everitt, Psychol Bull
    1969;72:323, cut to -1..1. Undefined (ValueError) if both gave one category throughout.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"kappa needs at least 2 pairs of ratings, not {len(a)} and {len(b)}")
    n = len(a)
    numbers = _numbers([*a, *b], 2 * n)
    size = int(numbers.max()) + 1
    if size == 1:
        raise ValueError("kappa is undefined: both raters gave one and the same category")
    table = np.zeros((size, size))
    np.add.at(table, (numbers[:n], numbers[n:]), 1 / n)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    observed, chance = float(np.trace(table)), float(rows @ columns)
    kappa = min((observed - chance) / (1 - chance), 1.0)
    margins = columns[:, None] + rows[None, :]  # of cell (i, j): p(.i) + p(j.)
    agree = float(np.diag(table) @ np.square(1 - np.diag(margins) * (1 - kappa)))
    off = table * ~np.eye(size, dtype=bool)
    differ = (1 - kappa) ** 2 * float((off * np.square(margins)).sum())
    inside = agree + differ - (kappa - chance * (1 - kappa)) ** 2
    reach = NORMAL_95 * sqrt(max(inside, 0.0) / n) / (1 - chance)
    return Kappa(value=kappa, low=max(kappa - reach, -1.0), high=min(kappa + reach, 1.0), n=n)


def _vector(name: str, values: ArrayLike, *, at_least: int) -> Floats:
    held = np.asarray(values, dtype=np.float64)
    if held.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {held.shape}")
    if held.size < at_least:
        raise ValueError(f"at least {at_least} {name} are needed, not {held.size}")
    _finite(name, held)
    return held


def _pairs(a: ArrayLike, b: ArrayLike, *, at_least: int) -> tuple[Floats, Floats]:
    first = _vector("pairs", a, at_least=at_least)
    second = _vector("pairs", b, at_least=at_least)
    if first.size != second.size:
        raise ValueError(f"pairs need equal lengths, not {first.size} and {second.size}")
    return first, second


def _finite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold NaN or infinity; leave incomplete rows out first")


def _numbers(labels: Sequence[Hashable], n: int) -> NDArray[np.intp]:
    """Labels as 0, 1, 2 ... in the order of their first appearance."""
    if len(labels) != n:
        raise ValueError(f"{n} pairs need {n} groups, not {len(labels)}")
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.intp)


def _weighted_rho(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Spearman's rho of (n,) pairs, pair i taken weights[r, i] times; (R,), NaN if constant."""
    ranks_a, ranks_b = _weighted_ranks(a, weights), _weighted_ranks(b, weights)
    total = weights.sum(axis=1, keepdims=True)
    ranks_a -= (weights * ranks_a).sum(axis=1, keepdims=True) / total
    ranks_b -= (weights * ranks_b).sum(axis=1, keepdims=True) / total
    product = (weights * ranks_a * ranks_b).sum(axis=1)
    spread_a = (weights * ranks_a**2).sum(axis=1)
    spread_b = (weights * ranks_b**2).sum(axis=1)
    varies = np.minimum(spread_a, spread_b) > 1e-9  # ranks are whole or half numbers
    root = np.sqrt(spread_a * spread_b, where=varies, out=np.ones_like(product))
    return np.where(varies, np.clip(product / root, -1.0, 1.0), np.nan)


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Mean ranks of (n,) values within each resample; (R, n)."""
    different, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(different.size))
    ties = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = (np.cumsum(ties, axis=1) - ties / 2 + 0.5)[:, place]
    return ranks


def _p_independent(a: Floats, b: Floats, rho: float) -> float:
    n = a.size
    if n <= EXACT_PAIRS:
        ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
        orders = np.array(list(permutations(range(n))))
        centred = ranks_a - ranks_a.mean()
        products = np.abs(ranks_b[orders] @ centred)
        seen = abs(float(ranks_b @ centred))
        return float(np.mean(products >= seen - 1e-9))
    t = rho * sqrt((n - 2) / max((1 - rho) * (1 + rho), 1e-300))
    return max(float(2 * stats.t.sf(abs(t), n - 2)), 2 / factorial(min(n, 170)))


def _p_bootstrap(rhos: Floats) -> float:
    side = min(int((rhos <= 0).sum()), int((rhos >= 0).sum()))
    return min(2 * (side + 1) / (rhos.size + 1), 1.0)
