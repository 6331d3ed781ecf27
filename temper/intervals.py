"""Intervals: what a score on a few hundred rows says about the rate behind it."""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean

RESAMPLES = 2000
Estimate = tuple[float, float, float]
"""Value, low, high."""


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Score interval of a binomial proportion, (low, high) in [0, 1]; (0, 1) without trials.

    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). Unlike the normal
    approximation it stays inside [0, 1] and does not collapse at 0 of n.
    """
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and at n of n the bound is exact, which rounding would miss by 1e-17.
    low = (centre - spread) / scale if successes else 0.0
    high = (centre + spread) / scale if successes < trials else 1.0
    return low, high


def difference(one: Estimate, other: Estimate) -> Estimate:
    """`one` less `other`, shares of other items, by their intervals: method 10 of Newcombe (Statistics in Medicine 17, 1998)."""
    (p, p_low, p_high), (q, q_low, q_high) = one, other
    value = p - q
    return value, value - math.hypot(p - p_low, q_high - q), value + math.hypot(p_high - p, q - q_low)


def bootstrap(values: Sequence[float], confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), 2,000 resamples drawn from `seed`."""
    if not values:
        return 0.0, 1.0
    draw = random.Random(seed)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    return means[math.floor(tail * RESAMPLES)], means[math.ceil((1 - tail) * RESAMPLES) - 1]


def rate(name: str, outcomes: Sequence[bool], confidence: float) -> dict[str, float]:
    """Metrics of a proportion under `name`: its value (0 without outcomes), `_low` and `_high`."""
    low, high = wilson(sum(outcomes), len(outcomes), confidence)
    return {name: sum(outcomes) / max(1, len(outcomes)), f"{name}_low": low, f"{name}_high": high}


def mean(name: str, values: Sequence[float], confidence: float, seed: int) -> dict[str, float]:
    """Metrics of a mean under `name`: its value (0 without values), `_low` and `_high`."""
    low, high = bootstrap(values, confidence, seed)
    return {name: fmean(values) if values else 0.0, f"{name}_low": low, f"{name}_high": high}


def ratio(name: str, parts: Sequence[float], sizes: Sequence[float], confidence: float, seed: int) -> dict[str, float]:
    """Metrics of the sum of `parts` over the sum of `sizes` under `name`: its value, `_low` and `_high` (bootstrap over pairs)."""
    pairs = list(zip(parts, sizes, strict=True))
    draw = random.Random(seed)
    found = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    low, high = found[math.floor(tail * RESAMPLES)], found[math.ceil((1 - tail) * RESAMPLES) - 1]
    return {name: _ratio(pairs), f"{name}_low": low, f"{name}_high": high}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(part for part, _ in pairs) / sum(size for _, size in pairs)
