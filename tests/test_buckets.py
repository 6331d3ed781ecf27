"""Buckets: ranks within a group, the same for any order and sharding, and the best of a row's buckets decides."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from temper import buckets, ranks, records
from temper.buckets import Buckets, Groups, Scores
from temper.records import Row

finite = some.floats(-1e6, 1e6, width=32)


def bucketed(scores: list[float], groups: list[int] | None = None) -> list[int]:
    values = np.array(scores, dtype=np.float32)
    of = np.array(groups or [0] * len(scores), dtype=np.int32)
    return buckets.assigned(values, of, buckets.edges(values, of)).tolist()


def test_each_bucket_holds_a_twentieth() -> None:
    found = bucketed([float(value) for value in range(200)])
    assert found == [value // 10 for value in range(200)]


def test_equal_scores_are_in_the_middle_and_not_at_an_end() -> None:
    assert bucketed([3.0] * 7) == [10] * 7
    assert bucketed([0.0] + [1.0] * 98 + [2.0]) == [0] + [10] * 98 + [19]


def test_ranks_are_taken_within_a_group() -> None:
    low, high = [float(value) for value in range(40)], [float(value) for value in range(1000, 1040)]
    assert bucketed(low + high, [0] * 40 + [1] * 40) == bucketed(low) * 2


def test_a_few_rows_are_not_all_at_the_ends() -> None:
    assert bucketed([1.0]) == [10]
    assert bucketed([1.0, 2.0]) == [5, 15]
    assert bucketed([]) == []


@given(some.lists(some.tuples(finite, some.integers(0, 3)), min_size=1, max_size=120), some.randoms())
def test_buckets_rise_with_scores_and_do_not_depend_on_order(rows: list[tuple[float, int]], draw) -> None:  # type: ignore[no-untyped-def]
    scores, groups = [score for score, _ in rows], [group for _, group in rows]
    found = bucketed(scores, groups)
    order = list(range(len(rows)))
    draw.shuffle(order)
    assert bucketed([scores[one] for one in order], [groups[one] for one in order]) == [found[one] for one in order]
    ranked = sorted(zip(groups, scores, found, strict=True))
    for (group, _, before), (other, _, after) in pairwise(ranked):
        assert group != other or before <= after
    assert all(0 <= bucket < buckets.COUNT for bucket in found)


def test_shards_are_bucketed_by_the_edges_of_the_whole() -> None:
    draw = np.random.default_rng(1)
    scores: Scores = draw.normal(size=1000).astype(np.float32)
    groups: Groups = draw.integers(0, 3, size=1000).astype(np.int32)
    lowest = buckets.edges(scores, groups)
    whole = buckets.assigned(scores, groups, lowest)
    for count in (7, 64):
        parts = zip(np.array_split(scores, count), np.array_split(groups, count), strict=True)
        shards = [buckets.assigned(values, of, lowest) for values, of in parts]
        assert np.concatenate(shards).tolist() == whole.tolist()


def test_groups_too_small_to_rank_are_one_group_and_large_ones_keep_their_own() -> None:
    names = ["large"] * 20 + [f"own {number}" for number in range(40)] + ["small"] * 19
    shards = [{"groups": np.array(names[start::7])} for start in range(7)]
    found = ranks.numbered(shards)
    for start, groups in enumerate(found):
        assert groups.tolist() == [0 if name == "large" else 1 for name in names[start::7]]
    assert ranks.numbered([{"groups": np.array([], dtype=str)}])[0].tolist() == []


def test_rows_that_each_have_a_long_category_are_ranked_together_and_take_little_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    Path("params.yaml").write_text("executor: {kind: local, workers: 1}\n")
    rows = [{"id": str(number), "category": f"{'x' * 100_000}{number}", "text": str(number)} for number in range(40)]
    records.write(tmp_path / "judged/00000.jsonl", rows)
    counts = ranks.assign({"value": value}, "category", tmp_path)
    assert counts["value"] == [2] * buckets.COUNT
    assert (tmp_path / "scores/00000.npz").stat().st_size < 40 * 64 * 4 + 10_000


def value(rows: Iterable[Row]) -> Iterator[float]:
    return (float(row["id"]) for row in rows)


def test_the_best_bucket_decides_and_the_others_are_evidence() -> None:
    rows: list[Row] = [{"id": "a"}, {"id": "b", "reason": "refusal"}, {"id": "c"}]
    own: dict[str, Buckets] = {"one": np.array([0, 0], np.int8), "two": np.array([1, 2], np.int8)}
    scores: dict[str, Scores] = {"one": np.array([-1, -2], np.float32), "two": np.array([0.5, 0.25], np.float32)}
    graded = list(buckets.graded(iter(rows), scores, own, keep_from=2))
    assert [row["id"] for row in graded] == ["a", "b", "c"]
    assert [row.get("reason") for row in graded] == ["bucket", "refusal", None]
    assert graded[0]["evidence"] == {"buckets": {"one": 0, "two": 1}, "scores": {"one": -1.0, "two": 0.5}, "limit": 2}


@pytest.mark.parametrize("keep_from", [0, 19])
def test_without_scorers_every_row_stays(keep_from: int) -> None:
    rows: list[Row] = [{"id": "a"}, {"id": "b"}]
    assert list(buckets.graded(iter(rows), {}, {}, keep_from)) == rows
