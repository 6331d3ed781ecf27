"""Whether traffic is still what a model was trained on: two-sample tests between training rows and windows of a log.

Numbers (lengths) are compared by Kolmogorov and Smirnov's test, categories (languages, kinds of answer) by the population
stability index (PSI) with its own distribution under no drift, embeddings by the maximum mean discrepancy (Gretton et al., JMLR 13,
2012; Gaussian kernel of the median distance). One p each; Holm's method over all features and windows makes `alpha` the chance of
any alarm on traffic that did not drift.

PSI = Σ (a - e)·ln(a / e) over bins tells how large a shift is: under 0.1 small, over 0.25 major (Siddiqi, Credit Risk Scorecards,
2006). It grows as samples shrink, about (bins - 1)·(1/n + 1/m) without any drift (Yurdakul and Naranjo, Journal of Risk Model
Validation 14, 2020), so a band alone raises false alarms: an alarm needs the test too, and `chance` is what PSI stays under without
drift at these sizes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from temper import comparisons

SMALL, MAJOR = 0.1, 0.25
NONE, MODERATE, LARGE = "no drift", "moderate drift", "major drift"
DRAWS = 20_000  # of counts under no drift
CHANCE = 0.95
BATCH = 500  # permutations at once: memory is this many times the pooled rows
Vectors = NDArray[np.floating[Any]]
Numbers = NDArray[np.float64]


class Asked(NamedTuple):
    """A test of the family."""

    feature: str
    window: str


@dataclass
class Rules:
    alpha: float
    """Chance of an alarm in a report on traffic that did not drift."""
    bins: int
    """Of numbers, by quantiles of the training rows."""
    small: float
    """PSI under which a shift in numbers or categories is none to act on, however certain."""
    major: float
    permutations: int
    """Of embeddings. With F tests in a report, more than F / alpha, or no p can be small enough."""
    kernel_rows: int
    """Of either side that the kernel compares: time and memory are its square."""


@dataclass(frozen=True)
class Shift:
    """What one test found."""

    test: str
    p: float
    """For itself alone."""
    psi: float
    chance: float
    """Of PSI without drift, in 19 of 20 such samples at most."""
    rows: int
    """Of the window."""


@dataclass(frozen=True)
class Verdict:
    shift: Shift
    p: float
    """Adjusted for the family."""
    outcome: str


@dataclass(frozen=True)
class Sample:
    """One feature of rows, in the form that its test takes: numbers, categories, or vectors of unit length with distances.

    The distance of a row is to its nearest neighbour in training rows that are not in any sample.
    """

    numbers: Numbers | None = None
    categories: tuple[str, ...] | None = None
    vectors: Vectors | None = None
    distances: Numbers | None = None


Samples = Mapping[str, Sample]
"""By feature."""


def judged(training: Samples, windows: Mapping[str, Samples], rules: Rules, seed: int) -> dict[Asked, Verdict]:
    """Every feature of every window against the training rows."""
    family = {
        Asked(feature, window): shift(training[feature], sample, rules, np.random.default_rng([seed, place, number]))
        for place, (window, samples) in enumerate(windows.items())
        for number, (feature, sample) in enumerate(samples.items())
    }
    adjusted = comparisons.holm([one.p for one in family.values()])
    return {
        asked: Verdict(one, p, outcome(one, p, rules)) for (asked, one), p in zip(family.items(), adjusted, strict=True)
    }


def outcome(found: Shift, p: float, rules: Rules) -> str:
    """Of embeddings the test alone decides: a tenth of the rows in a domain of its own moves PSI by less than its bands."""
    if p > rules.alpha or (found.test != MMD and found.psi < rules.small):
        return NONE
    return LARGE if found.psi >= rules.major else MODERATE


def shift(training: Sample, window: Sample, rules: Rules, generator: np.random.Generator) -> Shift:
    if training.vectors is not None and window.vectors is not None:
        few, known = (drawn(one, rules.kernel_rows, generator) for one in (window.vectors, training.vectors))
        p = mmd_p(few, known, rules, generator)
        assert training.distances is not None and window.distances is not None
        psi, chance, _ = binned(training.distances, window.distances, rules.bins, generator)
        return Shift(MMD, p, psi, chance, len(window.vectors))
    if training.numbers is not None and window.numbers is not None:
        psi, chance, _ = binned(training.numbers, window.numbers, rules.bins, generator)
        p = float(stats.ks_2samp(window.numbers, training.numbers).pvalue)
        return Shift(KS, p, psi, chance, len(window.numbers))
    assert training.categories is not None and window.categories is not None
    names = sorted({*training.categories, *window.categories})
    expected, actual = (counted(names, one) for one in (training.categories, window.categories))
    psi, chance, p = calibrated(expected, actual, generator)
    return Shift(PSI, p, psi, chance, len(window.categories))


MMD, KS, PSI = "MMD", "Kolmogorov-Smirnov", "PSI"


def psi(expected: NDArray[Any], actual: NDArray[Any]) -> NDArray[np.float64]:
    """Of counts [..., bins]; half a row more in each bin keeps an empty one from being infinitely far."""
    before, after = ((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True) for counts in (expected, actual))
    return np.asarray(((after - before) * np.log(after / before)).sum(axis=-1))


def binned(training: Numbers, window: Numbers, bins: int, generator: np.random.Generator) -> tuple[float, float, float]:
    """As `calibrated`, with bins by the quantiles of the training rows; equal quantiles are one."""
    edges = np.unique(np.quantile(training, np.linspace(0, 1, bins + 1)[1:-1]))
    expected, actual = (
        np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1) for one in (training, window)
    )
    return calibrated(expected, actual, generator)


def calibrated(
    expected: NDArray[Any], actual: NDArray[Any], generator: np.random.Generator
) -> tuple[float, float, float]:
    """(PSI, what it stays under without drift, p): counts of a window drawn out of all rows together, without putting back."""
    found = float(psi(expected, actual))
    together = expected + actual
    drawn = generator.multivariate_hypergeometric(together, int(actual.sum()), size=DRAWS, method="marginals")
    chance = psi(together - drawn, drawn)
    p = (1 + int((chance >= found - 1e-12).sum())) / (DRAWS + 1)
    return found, float(np.quantile(chance, CHANCE)), p


def counted(names: Sequence[str], values: Sequence[str]) -> NDArray[np.int64]:
    counts = Counter(values)
    return np.array([counts[name] for name in names], dtype=np.int64)


def mmd_p(first: Vectors, second: Vectors, rules: Rules, generator: np.random.Generator) -> float:
    """Of the unbiased MMD² of two samples, by permutations of which row is whose."""
    pooled = np.concatenate([first, second]).astype(np.float64)
    kernel = gaussian(pooled)
    size = len(first)
    belongs = np.arange(len(pooled)) < size
    found = float(mmd(kernel, belongs[:, None].astype(np.float64))[0])
    beyond, left = 0, rules.permutations
    while left:
        count = min(BATCH, left)
        order = np.argsort(generator.random((len(pooled), count)), axis=0)
        beyond += int((mmd(kernel, (order < size).astype(np.float64)) >= found - 1e-12).sum())
        left -= count
    return (1 + beyond) / (rules.permutations + 1)


def gaussian(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel of all pairs, its width the median distance, with zeros on the diagonal, which the unbiased MMD² leaves out."""
    width = float(np.median(pdist(rows))) or 1.0
    kernel = np.exp(-cdist(rows, rows, "sqeuclidean") / (2 * width**2))
    np.fill_diagonal(kernel, 0)
    return kernel


def mmd(kernel: NDArray[np.float64], belongs: NDArray[np.float64]) -> NDArray[np.float64]:
    """MMD² for each column of `belongs` [rows, splits], which is 1 where a row is of the first sample."""
    size = belongs[:, 0].sum()
    others = len(kernel) - size
    to_first = kernel @ belongs
    inside = (belongs * to_first).sum(axis=0)
    across = to_first.sum(axis=0) - inside
    outside = kernel.sum() - inside - 2 * across
    return np.asarray(inside / (size * (size - 1)) + outside / (others * (others - 1)) - 2 * across / (size * others))


def drawn(rows: Vectors, most: int, generator: np.random.Generator) -> Vectors:
    """At most `most` rows, at random."""
    return rows if len(rows) <= most else rows[np.sort(generator.choice(len(rows), most, replace=False))]


def nearest(rows: Vectors, index: Vectors) -> Numbers:
    """Cosine distance of each of `rows` to the nearest of `index`, both of unit length."""
    if not len(rows):
        return np.zeros(0)
    return np.asarray(1 - np.max(rows @ index.T, axis=1), dtype=np.float64)
