"""How often a model's answers are preferred to a baseline's: with ties, and as it would be if both were equally long.

Judges, people among them, prefer the longer answer. The length-controlled win rate is that of Dubois, Galambosi, Liang and
Hashimoto 2024 (arXiv:2404.04475, equation 2; tatsu-lab/alpaca_eval, metrics/glm_winrate.py), a logistic regression

    logit P(the model's answer is preferred) = θ + φ · tanh(d / s)

with d the characters that its answer is longer, s the standard deviation of d over the prompts, and a tie as half a win: what it
predicts at d = 0 is the win rate, 1 / (1 + exp(-θ)). Left out is their third term, the difficulty of each instruction, which is
fitted to the judgements of dozens of models and which one pair of models cannot tell. In the place of their L1 penalty, whose
weight is cross-validated, φ has a normal prior of the scale that Gelman et al. recommend (Annals of Applied Statistics 2, 2008),
so that it stays finite where the longer answer wins every time; θ has none, which would move the win rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from temper import comparisons, intervals

PRIOR = 2.5  # standard deviation of φ
STEPS, TOLERANCE = 50, 1e-10  # of Newton's method
BOUND = 30.0  # of |θ|: beyond it the win rate is 0 or 1 to thirteen digits
RESAMPLES = 1000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Preference:
    value: float
    """1 where the model's answer is preferred, 0 where the baseline's is, 0.5 for a tie."""
    excess: int
    """Characters that the model's answer is longer."""


def summary(found: Sequence[Preference], confidence: float, seed: int) -> dict[str, float | str]:
    """Wins, ties and losses; win rate, plain and length-controlled, with intervals; and a verdict.

    Intervals are by a bootstrap over prompts; where all have one outcome, of which no spread tells, Wilson's. `win_verdict` is by
    the exact sign test over the prompts that one of the two wins.
    """
    values = np.array([one.value for one in found])
    excess = np.array([float(one.excess) for one in found])
    counts = {
        "wins": int((values > 0.5).sum()),
        "ties": int((values == 0.5).sum()),
        "losses": int((values < 0.5).sum()),
    }
    if not found:
        return {"prompts": 0, **counts}
    plain = intervals.mean("win_rate", list(values), confidence, seed)
    low, high = _resampled(values, excess, confidence, seed)
    if not np.ptp(values):
        low, high = intervals.wilson(round(float(values.sum())), len(values), confidence)
        plain |= {"win_rate_low": low, "win_rate_high": high}
    # Won and lost prompts as the scores of two models, for which McNemar's exact test is the sign test.
    wins, losses = (np.array([side.astype(float)]) for side in (values > 0.5, values < 0.5))
    verdict = comparisons.judged({"": comparisons.difference(wins, losses, confidence, seed)}, confidence)[""]
    return {
        "prompts": len(found),
        **counts,
        **plain,
        "length_controlled_win_rate": length_controlled(values, excess),
        "length_controlled_win_rate_low": low,
        "length_controlled_win_rate_high": high,
        "longer_by": fmean(one.excess for one in found),
        "win_p": verdict.p,
        "win_verdict": verdict.outcome,
    }


def length_controlled(values: Values, excess: Values) -> float:
    """The win rate at equal length; the plain one where all answers are, or where every prompt has one outcome."""
    if not excess.std() or not np.ptp(values):
        return float(values.mean())
    effects = np.tanh(excess / excess.std(ddof=1))
    return _logistic(_fitted(values, effects)[0])


def _fitted(values: Values, effects: Values) -> tuple[float, float]:
    """(θ, φ) of most likelihood under the prior, by Newton's method, halving steps that would go astray."""
    place = np.zeros(2)
    features = np.stack([np.ones_like(effects), effects])
    precision = np.diag([0.0, PRIOR**-2])
    for _ in range(STEPS):
        chances = 1 / (1 + np.exp(-place @ features))
        gradient = features @ (values - chances) - precision @ place
        curvature = (features * chances * (1 - chances)) @ features.T + precision
        # Where a resample is all but separable, θ wanders off on a plain.
        step = np.linalg.solve(curvature + TOLERANCE * np.eye(2), gradient)
        place = np.clip(place + step / max(1.0, float(np.abs(step).max()) / 4), -BOUND, BOUND)
        if float(np.abs(step).max()) < TOLERANCE:
            break
    return float(place[0]), float(place[1])


def _resampled(values: Values, excess: Values, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile interval of the length-controlled win rate over resamples of the prompts."""
    draw = np.random.default_rng(seed)
    drawn = (draw.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    found = [length_controlled(values[places], excess[places]) for places in drawn]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
