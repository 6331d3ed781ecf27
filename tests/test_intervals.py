"""Intervals against published and hand-computed values, and their behaviour at the edges."""

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper import intervals


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe(successes: int, trials: int, low: float, high: float) -> None:
    assert intervals.wilson(successes, trials, 0.95) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # 56/70 and 48/80, the example of his table II: +0.2000 (0.0524 to 0.3339).
    found = intervals.difference((0.8, 0.6920, 0.8767), (0.6, 0.4905, 0.7002))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-4)


@given(st.integers(1, 500).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_holds_the_share_and_stays_a_probability(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = intervals.wilson(successes, trials, 0.95)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high - low > 0


def test_without_rows_nothing_is_known() -> None:
    assert intervals.rate("exact", [], 0.95) == {"exact": 0.0, "exact_low": 0.0, "exact_high": 1.0}
    assert intervals.mean("f1", [], 0.95, seed=1)["f1_high"] == 1.0


def test_more_confidence_is_wider() -> None:
    narrow, wide = intervals.wilson(30, 100, 0.8), intervals.wilson(30, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_bootstrap_repeats_and_covers() -> None:
    draw = random.Random(0)
    samples = [[draw.random() for _ in range(50)] for _ in range(40)]
    found = [intervals.bootstrap(values, 0.95, seed=7) for values in samples]
    assert found[0] == intervals.bootstrap(samples[0], 0.95, seed=7)
    assert found[0] != intervals.bootstrap(samples[0], 0.95, seed=8)
    assert all(low < fmean(values) < high for values, (low, high) in zip(samples, found, strict=True))
    assert sum(low < 0.5 < high for low, high in found) >= 35


def test_a_ratio_weighs_by_size_and_holds_its_value() -> None:
    found = intervals.ratio("bits", [8.0, 90.0, 20.0], [10, 50, 20], 0.95, seed=3)
    assert found["bits"] == pytest.approx(118 / 80)
    assert 0.8 <= found["bits_low"] < found["bits"] < found["bits_high"] <= 1.8
    assert found == intervals.ratio("bits", [8.0, 90.0, 20.0], [10, 50, 20], 0.95, seed=3)
