"""A verdict is right: no model beats itself but by chance, as often as was allowed, and a gain that is there is found."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from temper import comparisons
from temper.comparisons import BETTER, NO_DIFFERENCE, WORSE
from temper.crossed import Scores

ROWS, DRAWS = 167, 200  # about as many rows as a test split on a laptop has
Draw = Callable[[int], Scores]


def model(
    generator: np.random.Generator,
    hard: Scores | None = None,
    spread: float = 0.0,
    gain: float = 0.0,
    graded: bool = False,
) -> Draw:
    """Runs of a model under seeds of their own: rows differ in how hard they are, seeds in how good a model came of them."""
    logits = gain + (difficulty(generator) if hard is None else hard)

    def runs(seeds: int) -> Scores:
        chance = 1 / (1 + np.exp(-logits - generator.normal(0, spread, (seeds, 1))))
        if graded:
            return generator.beta(4 * chance, 4 * (1 - chance))
        return (generator.random(chance.shape) < chance).astype(float)

    return runs


def difficulty(generator: np.random.Generator) -> Scores:
    return generator.normal(0, 1.5, (1, ROWS))


def outcome(after: Scores, before: Scores) -> str:
    return comparisons.judged({"": comparisons.difference(after, before, 0.95, 17)}, 0.95)[""].outcome


@pytest.mark.parametrize(
    ("seeds", "spread", "graded"),
    [(1, 0.0, False), (1, 0.0, True), (3, 0.0, False), (3, 0.2, False), (3, 0.4, False), (3, 0.4, True)],
)
def test_a_model_is_seldom_better_than_itself_under_another_seed(seeds: int, spread: float, graded: bool) -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        runs = model(generator, spread=spread, graded=graded)
        found.append(outcome(runs(seeds), runs(seeds)))
    assert found.count(BETTER) <= 0.05 * DRAWS
    assert found.count(WORSE) <= 0.05 * DRAWS


def test_seeds_pooled_by_row_would_not_be_honest() -> None:
    """Why several seeds are no paired test over rows: a training that comes out well or badly does so on all of them."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(DRAWS):
        runs = model(generator, spread=0.4)
        gains = runs(3).mean(axis=0) - runs(3).mean(axis=0)
        wrong += stats.ttest_1samp(gains, 0).pvalue < 0.05 and gains.mean() > 0
    assert wrong > 0.1 * DRAWS


def test_a_family_of_five_measures_is_seldom_wrong_in_any() -> None:
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(DRAWS):
        measures = [model(generator) for _ in range(5)]
        family = {place: comparisons.difference(runs(1), runs(1), 0.95, 17) for place, runs in enumerate(measures)}
        wrong += any(one.outcome == BETTER for one in comparisons.judged(family, 0.95).values())
    assert wrong <= 0.05 * DRAWS


def test_shares_of_different_items_are_compared_by_fishers_test() -> None:
    # Of the lady who tastes tea: 3 of 4 against 1 of 4.
    tasted = comparisons.unpaired([True] * 3 + [False], [True] + [False] * 3, 0.95)
    assert (tasted.p, tasted.items) == (pytest.approx(34 / 70), 8)
    found = comparisons.unpaired([True] * 56 + [False] * 14, [True] * 48 + [False] * 32, 0.95)
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=5e-5
    )
    assert found.p < 0.05
    assert comparisons.unpaired([True], [True, True], 0.95).p == 1
    with pytest.raises(ValueError, match="one at least on either side"):
        comparisons.unpaired([True], [], 0.95)


def share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums[:, 0] / sums[:, 1]


def test_a_figure_of_sums_is_seldom_better_than_itself_and_a_gain_is_found() -> None:
    """Of right parts over all parts of items, which is a mean of no scores."""
    generator, found = np.random.default_rng(3), []
    for gain in [0.0] * DRAWS + [0.2] * 20:
        sizes = generator.integers(1, 5, ROWS)
        after, before = (
            np.stack([generator.binomial(sizes, 0.5 + more), sizes], axis=1).astype(float) for more in (gain, 0)
        )
        one = comparisons.of_sums(after, before, share, 0.95, 17)
        found.append(comparisons.judged({"": one}, 0.95)[""].outcome)
    assert found[:DRAWS].count(BETTER) <= 0.05 * DRAWS
    assert found[DRAWS:].count(BETTER) == 20


def test_a_figure_of_sums_that_is_a_mean_is_compared_as_one() -> None:
    generator = np.random.default_rng(4)
    after, before = (generator.random((1, ROWS)) for _ in range(2))
    of_after, of_before = (np.stack([one[0], np.ones(ROWS)], axis=1) for one in (after, before))
    mean = comparisons.difference(after, before, 0.95, 17)
    sums = comparisons.of_sums(of_after, of_before, share, 0.95, 17)
    assert sums.interval.value == pytest.approx(mean.interval.value)
    assert (sums.interval.low, sums.interval.high) == pytest.approx((mean.interval.low, mean.interval.high), abs=0.005)
    assert sums.p == pytest.approx(mean.p, abs=0.02)
    same = comparisons.of_sums(of_after, of_after, share, 0.95, 17)
    assert (same.interval.value, same.p) == (0, 1)
    with pytest.raises(ValueError, match="the same ones are compared"):
        comparisons.of_sums(of_after, of_before[1:], share, 0.95, 17)


@pytest.mark.parametrize(("gain", "least"), [(1.2, 40), (2.0, 50)])
@pytest.mark.parametrize(("seeds", "spread", "graded"), [(1, 0.0, False), (1, 0.0, True), (3, 0.1, False)])
def test_a_planted_gain_is_found_and_told_from_a_loss(
    seeds: int, spread: float, graded: bool, gain: float, least: int
) -> None:
    """Of 20 and 31 points on average; three seeds leave two degrees of freedom for what differs between them."""
    found = []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        hard = difficulty(generator)
        before, after = (model(generator, hard, spread, more, graded)(seeds) for more in (0.0, gain))
        found.append((outcome(after, before), outcome(before, after)))
    assert found.count((BETTER, WORSE)) >= least
    assert set(found) <= {(BETTER, WORSE), (NO_DIFFERENCE, NO_DIFFERENCE)}


def binary(both: int, gained: int, lost: int, neither: int) -> tuple[Scores, Scores]:
    after = [1.0] * (both + gained) + [0.0] * (lost + neither)
    before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    return np.array([after]), np.array([before])


def test_right_and_wrong_answers_take_the_exact_test_of_mcnemar() -> None:
    """The table of Bentur et al. (2009) in Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013)."""
    found = comparisons.difference(*binary(1, 1, 7, 12), 0.95, 17)
    assert (found.test, found.items, found.seeds) == ("exact McNemar", 21, 1)
    assert found.p == pytest.approx(2 * (1 + 8) / 2**8)


def test_the_interval_of_paired_proportions_is_newcombe_s() -> None:
    """The table of Cavo et al. (2012) and its interval by the R package contingencytables 3.1."""
    found = comparisons.newcombe(59, 6, 16, 161, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


def test_where_no_answer_changes_nothing_is_claimed_and_nothing_is_certain() -> None:
    found = comparisons.difference(*binary(20, 0, 0, 20), 0.95, 17)
    assert (found.interval.value, found.p) == (0.0, 1.0)
    assert found.interval.low < 0 < found.interval.high


def test_newcombe_s_interval_covers_the_difference() -> None:
    generator = np.random.default_rng(2)
    shares, rows = [0.45, 0.15, 0.05, 0.35], 60
    covered = 0
    for _ in range(2000):
        both, gained, lost, _ = (int(one) for one in generator.multinomial(rows, shares))
        found = comparisons.newcombe(both, gained, lost, rows, 0.95)
        covered += found.low <= 0.1 <= found.high
    assert 0.94 <= covered / 2000 <= 0.98


def test_other_scores_are_resampled_in_pairs_from_the_seed_given() -> None:
    generator = np.random.default_rng(3)
    before: NDArray[np.float64] = generator.random((1, 80))
    after = before + generator.normal(0.02, 0.1, (1, 80))
    found, again = (comparisons.difference(after, before, 0.95, 17) for _ in range(2))
    assert found == again
    assert found.test == "paired bootstrap"
    student = stats.ttest_rel(after[0], before[0])
    assert found.p == pytest.approx(student.pvalue, abs=0.02)
    interval = student.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), abs=0.004)


def test_gains_that_are_all_the_same_are_counted() -> None:
    same = comparisons.difference(np.full((1, 12), 0.75), np.full((1, 12), 0.5), 0.95, 17)
    assert (same.interval.value, same.p) == (0.25, 2 * 0.5**12)
    assert outcome(np.full((1, 3), 0.75), np.full((1, 3), 0.5)) == NO_DIFFERENCE
    assert outcome(np.ones((3, 12)), np.zeros((1, 12))) == BETTER
    assert outcome(np.ones((3, 12)), np.ones((1, 12))) == NO_DIFFERENCE


def test_holm_s_correction_takes_the_least_p_first_and_never_turns_the_order() -> None:
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03, 4 * 0.005])
    assert comparisons.holm([0.6, 0.7]) == [1.0, 1.0]
    assert comparisons.holm([]) == []


def test_models_of_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 items against 2"):
        comparisons.difference(np.ones((1, 3)), np.ones((1, 2)), 0.95, 17)
