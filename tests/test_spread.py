"""A part stands for the whole: spread over it, in its order."""

from temper import spread


def test_a_part_is_spread_over_the_whole() -> None:
    assert spread.evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread.evenly(list(range(10)), 32) == list(range(10))
    assert spread.evenly([1, 2], None) == [1, 2]
    assert spread.evenly([], 3) == spread.evenly([1], 0) == []
