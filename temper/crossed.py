"""Intervals of a mean over runs and rows: every seed is scored on the same test rows, so neither alone is the sample.

A score is mean + seed + row + rest, all but the mean random (the two-way random-effects model). With mean squares of seeds (A),
rows (B) and rest (E) of S seeds and R rows, the grand mean has the variance (A + B - E) / (S·R): Searle, Casella and McCulloch,
Variance Components (1992), chapter 4. Degrees of freedom are Satterthwaite's: Biometrics Bulletin 2 (1946).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from temper import intervals

Scores = NDArray[np.float64]
"""Seeds × rows. A model without a seed is one seed."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    @property
    def reversed(self) -> "Interval":
        """Of the same difference, seen from the other side."""
        return Interval(-self.value, -self.high, -self.low)


def rate(scores: Scores, confidence: float) -> Interval:
    """Mean of scores in [0, 1]; where all are equal, of which no spread tells, Wilson's interval of as many rows."""
    value = float(scores.mean())
    spread = _spread(scores, confidence)
    if not spread:
        rows = scores.shape[1]
        return Interval(value, *intervals.wilson(round(value * rows), rows, confidence))
    return Interval(value, max(0.0, value - spread), min(1.0, value + spread))


def difference(scores: Scores, baseline: Scores, confidence: float) -> Interval:
    """Mean of `scores` - `baseline`, seed by seed and row by row."""
    paired = scores - baseline
    value, spread = float(paired.mean()), _spread(paired, confidence)
    return Interval(value, value - spread, value + spread)


def p_value(scores: Scores, baseline: Scores) -> float:
    """Of a mean difference as large by chance, two-sided: Student's; where all differ by as much, the sign test over rows."""
    paired = scores - baseline
    value, (variance, freedom) = float(paired.mean()), _variance(paired)
    if variance:
        return float(2 * stats.t.sf(abs(value) / math.sqrt(variance), freedom))
    return float(stats.binomtest(paired.shape[1], paired.shape[1]).pvalue) if value else 1.0


def _spread(scores: Scores, confidence: float) -> float:
    """Half the width of Student's interval."""
    variance, freedom = _variance(scores)
    return float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance) if variance else 0.0


def _variance(scores: Scores) -> tuple[float, float]:
    """Of the grand mean, with its degrees of freedom. A component that comes out negative counts as zero."""
    seeds, rows = scores.shape
    of_seed, of_row = scores.mean(axis=1, keepdims=True), scores.mean(axis=0, keepdims=True)
    between_rows = seeds * float(of_row.var(ddof=1))
    if seeds == 1:
        return between_rows / rows, rows - 1
    between_seeds = rows * float(of_seed.var(ddof=1))
    free = (seeds - 1, rows - 1, (seeds - 1) * (rows - 1))
    rest = float(((scores - of_seed - of_row + scores.mean()) ** 2).sum()) / free[2]
    total = max(between_seeds + between_rows - rest, between_seeds, between_rows)
    if not total:
        return 0.0, free[1]
    parts = zip((between_seeds, between_rows, rest), free, strict=True)
    return total / (seeds * rows), total**2 / sum(part**2 / freedom for part, freedom in parts)
