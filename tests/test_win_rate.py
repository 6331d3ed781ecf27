"""A win rate counts ties, and what part of it is length is taken out of it."""

import random

import numpy as np
import pytest

from temper import win_rate
from temper.win_rate import Preference


def test_a_tie_is_half_a_win_and_the_verdict_needs_more_than_luck() -> None:
    found = [Preference(1.0, 0)] * 6 + [Preference(0.5, 0)] * 2 + [Preference(0.0, 0)] * 2
    values = win_rate.summary(found, 0.95, 17)
    assert (values["prompts"], values["wins"], values["ties"], values["losses"]) == (10, 6, 2, 2)
    assert values["win_rate"] == pytest.approx(0.7)
    assert values["length_controlled_win_rate"] == pytest.approx(0.7)  # all are of one length
    assert values["win_verdict"] == "no difference"  # 6 of 8: p = 0.29
    many = win_rate.summary(found * 10, 0.95, 17)
    assert many["win_verdict"] == "better"
    assert float(many["win_rate_low"]) > 0.5
    assert win_rate.summary([Preference(0.0, 3)] * 40, 0.95, 17)["win_verdict"] == "worse"


def judged(count: int, skill: float, weight: float) -> list[Preference]:
    """Preferences drawn from the model that is fitted, of answers that are mostly longer by half a standard deviation."""
    draw = random.Random(3)
    excess = [round(draw.gauss(50, 100)) for _ in range(count)]
    scale = float(np.std(excess, ddof=1))
    chances = [1 / (1 + np.exp(-(skill + weight * np.tanh(one / scale)))) for one in excess]
    return [Preference(float(draw.random() < chance), one) for chance, one in zip(chances, excess, strict=True)]


def test_what_length_alone_won_is_taken_out() -> None:
    values = win_rate.summary(judged(4000, 0.0, 3.0), 0.95, 17)
    assert float(values["win_rate"]) > 0.6
    assert values["length_controlled_win_rate"] == pytest.approx(0.5, abs=0.03)
    assert float(values["length_controlled_win_rate_low"]) < 0.5 < float(values["length_controlled_win_rate_high"])


def test_skill_stays_when_length_does_not_count() -> None:
    values = win_rate.summary(judged(4000, 1.0, 0.0), 0.95, 17)
    assert values["length_controlled_win_rate"] == pytest.approx(values["win_rate"], abs=0.02)
    assert values["length_controlled_win_rate"] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)


def test_it_is_the_logistic_regression_that_scikit_learn_fits() -> None:
    from sklearn.linear_model import LogisticRegression

    found = judged(500, 0.4, 1.2)
    values, excess = (np.array([getattr(one, key) for one in found], float) for key in ("value", "excess"))
    effects = np.tanh(excess / excess.std(ddof=1))
    fitted = LogisticRegression(C=win_rate.PRIOR**2, tol=1e-10).fit(
        effects[:, None], values
    )  # leaves the intercept free
    expected = 1 / (1 + np.exp(-fitted.intercept_[0]))
    assert win_rate.length_controlled(values, excess) == pytest.approx(expected, abs=1e-5)


def test_a_judge_that_only_sees_length_leaves_nothing() -> None:
    found = [Preference(float(excess > 0), excess) for excess in range(-50, 51) if excess]
    values = win_rate.summary(found, 0.95, 17)
    assert values["length_controlled_win_rate"] == pytest.approx(0.5, abs=0.01)


def test_one_outcome_and_no_outcome_end_without_a_warning() -> None:
    values = win_rate.summary([Preference(1.0, 5), Preference(1.0, -5)], 0.95, 17)
    assert values["length_controlled_win_rate"] == values["win_rate"] == 1.0
    assert (
        values["win_rate_low"] == values["length_controlled_win_rate_low"] == pytest.approx(0.342, abs=1e-3)
    )  # Wilson's
    assert win_rate.summary([], 0.95, 17) == {"prompts": 0, "wins": 0, "ties": 0, "losses": 0}


def test_the_same_seed_gives_the_same_intervals() -> None:
    found = judged(60, 0.2, 1.0)
    assert win_rate.summary(found, 0.95, 17) == win_rate.summary(found, 0.95, 17)
