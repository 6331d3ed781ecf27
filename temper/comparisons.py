"""Whether one model is better than another on the same items: better, worse or no difference, corrected for how often it is asked.

One run of each: the exact test of McNemar (Psychometrika 12, 1947) where scores are right or wrong, its interval by Newcombe's
method 10 (Statistics in Medicine 17, 1998); else, and of figures that are no mean of scores, a paired bootstrap over items (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16). Several seeds: every seed is scored on the same items, and the
two-way random-effects model of temper.crossed takes the variance between seeds out of the evidence. To pool seeds by item first
would take it for none: of a model against itself under other seeds it finds "better" and "worse" far more often than it may. A
family of comparisons is corrected by Holm's method (Scandinavian Journal of Statistics 6, 1979).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from temper import crossed, intervals
from temper.crossed import Interval, Scores

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference"
RESAMPLES = 9999
BATCH = 200  # resamples at once: memory is this many times the items
Key = TypeVar("Key")
Parts = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Of two models' mean scores, paired."""

    interval: Interval
    """For itself alone."""
    items: int
    seeds: int
    p: float
    """Two-sided, for itself alone."""
    test: str


@dataclass(frozen=True)
class Verdict:
    difference: Difference
    p: float
    """Adjusted for the family; at most 1."""
    outcome: str


def told(verdict: Verdict) -> str:
    """`better: +12.3 (4.5 to 20.1), n = 167, p = 0.003`, in points; p is adjusted."""
    interval = verdict.difference.interval
    value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
    p = "p < 0.001" if verdict.p < 0.001 else f"p = {verdict.p:.3f}"
    return f"{verdict.outcome}: {value:+.1f} ({low:+.1f} to {high:+.1f}), n = {verdict.difference.items}, {p}"


def difference(scores: Scores, baseline: Scores, confidence: float, seed: int) -> Difference:
    """How far `scores` are above `baseline`: seeds × items each, items in the same order; `seed` is of the resamples.

    A model without a seed is one seed, and is compared with every seed of the other.
    """
    items, seeds = scores.shape[1], max(len(scores), len(baseline))
    if items != baseline.shape[1] or not items:
        raise ValueError(f"{items} items against {baseline.shape[1]}: the same ones are compared, one at least")
    if seeds > 1:
        interval, p = crossed.difference(scores, baseline, confidence), crossed.p_value(scores, baseline)
        return Difference(interval, items, seeds, p, "two-way random effects")
    if np.isin(scores, (0, 1)).all() and np.isin(baseline, (0, 1)).all():
        interval, p = _binary(scores[0] > 0, baseline[0] > 0, confidence)
        return Difference(interval, items, seeds, p, "exact McNemar")
    interval, p = _resampled(scores[0] - baseline[0], confidence, seed)
    return Difference(interval, items, seeds, p, "paired bootstrap")


def unpaired(outcomes: Sequence[bool], others: Sequence[bool], confidence: float) -> Difference:
    """How far a share is above that of other items, by Fisher's exact test (Journal of the Royal Statistical Society 98, 1935)."""
    shares = []
    for of in (outcomes, others):
        if not of:
            raise ValueError("shares of items are compared: one at least on either side")
        shares.append((sum(of) / len(of), *intervals.wilson(sum(of), len(of), confidence)))
    table = [[sum(of), len(of) - sum(of)] for of in (outcomes, others)]
    p = float(stats.fisher_exact(table).pvalue)
    return Difference(Interval(*intervals.difference(*shares)), len(outcomes) + len(others), 1, p, "Fisher's exact")


def of_sums(
    parts: Parts, baseline: Parts, figure: Callable[[Parts], Parts], confidence: float, seed: int
) -> Difference:
    """How far a figure of sums over items, such as an F1, is above the baseline's, by a paired bootstrap over items.

    `parts` and `baseline` are items × parts, items in the same order; `figure` takes draws × sums of parts, and gives one for each
    draw. p is as of the bootstrap of means.
    """
    items = len(parts)
    if items != len(baseline) or not items:
        raise ValueError(f"{items} items against {len(baseline)}: the same ones are compared, one at least")

    def apart(weights: Parts) -> Parts:
        return figure(weights @ parts) - figure(weights @ baseline)

    value = float(apart(np.ones((1, items)))[0])
    generator, left, drawn = np.random.default_rng(seed), RESAMPLES, []
    while left:
        count = min(BATCH, left)
        drawn.append(apart(_weights(items, count, generator)))
        left -= count
    found = np.concatenate(drawn)
    interval, p = _bootstrapped(found, value, confidence) if np.ptp(found) else _unspread(value, items)
    return Difference(interval, items, 1, p, "paired bootstrap")


def judged(family: Mapping[Key, Difference], confidence: float) -> dict[Key, Verdict]:
    """Verdicts of which, where no model differs from another, one or more is wrong in 1 - `confidence` of families at most."""
    adjusted = holm([one.p for one in family.values()])
    return {
        key: Verdict(one, p, _outcome(one.interval.value, p, confidence))
        for (key, one), p in zip(family.items(), adjusted, strict=True)
    }


def holm(values: Sequence[float]) -> list[float]:
    """p adjusted for the whole family, in the order given."""
    found, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        found[place] = least
    return found


def _outcome(value: float, p: float, confidence: float) -> str:
    if p > 1 - confidence or not value:
        return NO_DIFFERENCE
    return BETTER if value > 0 else WORSE


def _binary(right: np.ndarray, before: np.ndarray, confidence: float) -> tuple[Interval, float]:
    """From the items that one of the two alone gets right: as many on either side, but for chance, where none is better."""
    gained, lost = int((right & ~before).sum()), int((~right & before).sum())
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return newcombe(int((right & before).sum()), gained, lost, len(right), confidence), float(p)


def newcombe(both: int, gained: int, lost: int, items: int, confidence: float) -> Interval:
    """Of the difference of paired proportions (both + gained) / items and (both + lost) / items, in [-1, 1]."""
    first, second, neither = both + gained, both + lost, items - both - gained - lost
    (low, high), (low_before, high_before) = (intervals.wilson(part, items, confidence) for part in (first, second))
    now, before = first / items, second / items
    spread = math.sqrt(first * (items - first) * second * (items - second))
    agreement = both * neither - gained * lost
    # Newcombe's correction for continuity where the two agree more often than by chance.
    correlated = (max(agreement - items / 2, 0) if agreement > 0 else agreement) / spread if spread else 0.0
    down, down_before = now - low, high_before - before
    up, up_before = high - now, before - low_before
    below = math.sqrt(max(0.0, down**2 - 2 * correlated * down * down_before + down_before**2))
    above = math.sqrt(max(0.0, up**2 - 2 * correlated * up * up_before + up_before**2))
    return Interval(now - before, now - before - below, now - before + above)


def _resampled(gains: np.ndarray, confidence: float, seed: int) -> tuple[Interval, float]:
    """p is how often resamples of the gains, moved to a mean of zero, are as far from it as the gains are."""
    value = float(gains.mean())
    if not np.ptp(gains):  # each moved by as much
        return _unspread(value, len(gains))
    generator = np.random.default_rng(seed)
    found = stats.bootstrap(
        (gains,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=confidence,
        method="percentile",
        rng=generator,
    )
    return _bootstrapped(found.bootstrap_distribution, value, confidence)


def _weights(items: int, count: int, generator: np.random.Generator) -> Parts:
    """How often each of the items is in each of `count` resamples: draws × items."""
    places = generator.integers(items, size=(count, items)) + items * np.arange(count)[:, None]
    return np.bincount(places.ravel(), minlength=count * items).reshape(count, items).astype(np.float64)


def _bootstrapped(drawn: Parts, value: float, confidence: float) -> tuple[Interval, float]:
    beyond = int((np.abs(drawn - value) >= abs(value)).sum())
    tail = (1 - confidence) / 2
    low, high = map(float, np.percentile(drawn, [100 * tail, 100 * (1 - tail)]))
    return Interval(value, low, high), (beyond + 1) / (len(drawn) + 1)


def _unspread(value: float, items: int) -> tuple[Interval, float]:
    """Where no resample differs from another, a sign test is what is left."""
    p = stats.binomtest(items, items).pvalue if value else 1.0
    return Interval(value, value, value), float(p)
