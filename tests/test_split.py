"""The split: shares by category, clusters whole, only genuine rows in the test."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scripts import split
from temper import metrics, mismatch, records, splits
from temper.records import Row

SHARES = {"test": 0.2, "validation": 0.05, "preferences": 0.15}


def row(number: int, category: str = "calls", cluster: str | None = None) -> Row:
    made = category == mismatch.CATEGORY
    gold = None if made else {"name": "f", "arguments": {}}
    return {
        "id": f"{category}{number}",
        "category": category,
        "cluster": cluster or f"{category}{number}",
        "gold": gold,
    }


def test_shares_hold_in_every_category() -> None:
    rows = [row(number, category) for category, count in (("a", 100), ("b", 40)) for number in range(count)]
    parts = splits.parts(rows, SHARES, seed=1)
    for category, count in (("a", 100), ("b", 40)):
        sizes = Counter(name for name, part in parts.items() for one in part if one["category"] == category)
        assert sizes == {
            "test": 0.2 * count,
            "validation": 0.05 * count,
            "preferences": 0.15 * count,
            "train": 0.6 * count,
        }


def test_many_small_categories_still_fill_a_small_share() -> None:
    rows = [row(number, category) for category in "abcdefgh" for number in range(5)]
    parts = splits.parts(rows, SHARES, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {
        "test": 8,
        "validation": 2,
        "preferences": 6,
        "train": 24,
    }


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9)), max_size=60), st.integers(0, 99))
def test_every_row_lands_once_and_no_cluster_is_cut(drawn: list[tuple[str, int]], seed: int) -> None:
    rows = [row(number, category, f"cluster{name}") for number, (category, name) in enumerate(drawn)]
    parts = splits.parts(rows, SHARES, seed)
    assert sorted(one["id"] for part in parts.values() for one in part) == sorted(one["id"] for one in rows)
    homes = {(one["cluster"], name) for name, part in parts.items() for one in part}
    assert len(homes) == len({cluster for cluster, _ in homes})


def test_the_seed_decides_and_input_order_of_clusters_does_not() -> None:
    rows = [row(number) for number in range(50)]
    first, again, other = (splits.parts(rows, SHARES, seed)["test"] for seed in (1, 1, 2))
    backwards = splits.parts(rows[::-1], SHARES, 1)["test"]
    assert first == again != other
    assert sorted(one["id"] for one in backwards) == sorted(one["id"] for one in first)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.chdir(tmp_path)
    return {**SHARES, "seed": 1}


def run(settings: dict[str, float], rows: list[Row]) -> None:
    OmegaConf.save({"split": settings}, "params.yaml")
    records.write("data/pii.jsonl", rows)
    split.main()


def test_made_rows_leave_the_test_with_a_reason_and_do_not_train(settings: dict[str, float]) -> None:
    genuine = [row(number) for number in range(40)]
    twins = [row(number, mismatch.CATEGORY, f"calls{number}") for number in range(40)]
    run(settings, genuine + twins)
    test, train, rejected = (
        list(records.read(path))
        for path in ("data/split/test.jsonl", "data/split/train.jsonl", "data/rejected/split.jsonl")
    )
    assert {one["category"] for one in test} == {"calls"}
    assert {one["cluster"] for one in rejected} == {one["cluster"] for one in test}
    assert {one["reason"] for one in rejected} == {"made_row_in_test"}
    assert not {one["cluster"] for one in test} & {one["cluster"] for one in train}
    counts = metrics.read("reports/split.json")
    assert counts["seen"] == 80 == counts["kept"] + counts["rejected_made_row_in_test"]


def test_shares_that_leave_nothing_to_train_on_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SystemExit, match=r"split: shares .* add up to below 1"):
        run(settings | {"test": 0.9}, [row(number) for number in range(10)])


def test_too_few_rows_for_a_split_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(SystemExit, match="no rows for test, validation, preferences"):
        run(settings, [row(1)])
    assert not Path("data/split").exists()
