"""Bands of ranks: against SciPy's tests with Holm's procedure written out, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from app.boards.rank_bands import bands_of

N = 360


def p_value(first: np.ndarray, second: np.ndarray, *, paired: bool) -> float:
    """As SciPy has it: the exact binomial test of the points that differ, or the chi-squared test of two shares."""
    if paired:
        only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
        differ = only_first + only_second
        return 1.0 if differ == 0 else float(stats.binomtest(only_first, differ).pvalue)
    table = [[each.sum(), len(each) - each.sum()] for each in (first, second)]
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def written_out(networks: list[np.ndarray], known: list[bool]) -> list[tuple[int, int]]:
    bands = []
    for i, own in enumerate(networks):
        others = [j for j in range(len(networks)) if j != i]
        p_values = [(p_value(own, networks[j], paired=known[i] and known[j]), j) for j in others]
        apart = set()
        for k, (p, j) in enumerate(sorted(p_values)):
            if p > 0.05 / (len(others) - k):
                break
            apart.add(j)
        better = sum(j < i for j in apart)
        bands.append((better + 1, len(networks) - (len(apart) - better)))
    return bands


def drawn(shares: list[float], rng: np.random.Generator, n: int = N) -> list[np.ndarray]:
    """Networks that fail on much the same points; the most robust first."""
    hardness = rng.normal(size=n)
    networks = [stats.norm.cdf(hardness + 0.6 * rng.normal(size=n)) < share for share in shares]
    return sorted(networks, key=lambda each: -each.sum())


@pytest.mark.parametrize("known", ["all", "none", "some"])
def test_bands_are_those_of_holms_procedure(known: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        networks = drawn(rng.uniform(0.3, 0.6, size=12).tolist(), rng)
        are_known = [known == "all" or (known == "some" and bool(rng.random() < 0.5)) for _ in networks]
        figures = [(float(each.mean()), N) for each in networks]
        points = [each if is_known else None for each, is_known in zip(networks, are_known, strict=True)]
        assert bands_of(figures, points) == written_out(networks, are_known)


def test_many_differing_points_give_what_the_exact_test_gives() -> None:
    rng = np.random.default_rng(1)
    networks = drawn([0.3, 0.4, 0.42, 0.43, 0.44, 0.5, 0.6], rng, 10_000)
    figures = [(float(each.mean()), len(each)) for each in networks]
    assert bands_of(figures, list(networks)) == written_out(networks, [True] * len(networks))


def test_points_make_bands_narrower_than_figures() -> None:
    networks = drawn([0.40, 0.42, 0.44, 0.46, 0.48, 0.50], np.random.default_rng(2), 5000)
    figures = [(float(each.mean()), len(each)) for each in networks]
    width = [
        sum(last - first for first, last in bands_of(figures, points))
        for points in (list(networks), [None] * len(networks))
    ]
    assert width[0] < width[1]


def test_the_true_rank_is_in_the_band_as_often_as_is_said() -> None:
    """95 of 100 times at least, also where several are equally good: then for every one of their ranks."""
    shares = [0.60, 0.52, 0.52, 0.50, 0.45, 0.45, 0.30]
    rng, rounds = np.random.default_rng(3), 600
    missed = np.zeros(len(shares))
    for _ in range(rounds):
        hardness = rng.normal(size=N)
        networks = [stats.norm.cdf((hardness + 0.6 * rng.normal(size=N)) / np.sqrt(1.36)) < share for share in shares]
        order = sorted(range(len(shares)), key=lambda i: -networks[i].sum())
        bands = bands_of([(float(networks[i].mean()), N) for i in order], [networks[i] for i in order])
        for i, (first, last) in zip(order, bands, strict=True):
            best = 1 + sum(other > shares[i] for other in shares)
            worst = len(shares) - sum(other < shares[i] for other in shares)
            missed[i] += first > best or last < worst
    # Three standard errors above 5 %.
    assert (missed / rounds).max() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert missed.sum() > 0, "bands that are never wrong are too wide to be of use"


def test_equal_networks_share_a_band_and_one_that_fails_everywhere_is_last() -> None:
    same = np.arange(N) % 2 == 0
    nothing = np.zeros(N, dtype=bool)
    figures = [(0.5, N), (0.5, N), (0.0, N)]
    assert bands_of(figures, [same, same, nothing]) == [(1, 2), (1, 2), (3, 3)]
    assert bands_of(figures, [None, None, None]) == [(1, 2), (1, 2), (3, 3)]
