"""The split: shares by category, clusters whole, only genuine rows in the test, a golden set that stays."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scripts import split
from temper import duplicates, executors, metrics, mismatch, record, records, shards, splits
from temper.records import Row

LETTERS = str.maketrans("0123456789", "ghijklmnop")
SHARES = {"test": 0.2, "validation": 0.05, "preferences": 0.15}


def row(number: int, category: str = "calls", cluster: str | None = None) -> Row:
    made = category == mismatch.CATEGORY
    gold = None if made else {"name": "f", "arguments": {}}
    return {
        "id": f"{category}{number}",
        "category": category,
        "cluster": name_of(cluster or f"{category}{number}"),
        "gold": gold,
    }


def name_of(cluster: str) -> str:
    return hashlib.blake2b(cluster.encode(), digest_size=8).hexdigest()


def parts(rows: list[Row], shares: dict[str, float], seed: int, golden: float = 0.0) -> dict[str, list[Row]]:
    """Rows by split."""
    dealt = splits.deal(map(splits.member, rows), shares, golden, seed)
    names = [*shares, splits.REST, splits.GOLDEN]
    return {name: [one for one in rows if dealt[one["cluster"]] == name] for name in names}


def test_shares_hold_in_every_category() -> None:
    rows = [row(number, category) for category, count in (("a", 100), ("b", 40)) for number in range(count)]
    found = parts(rows, SHARES, seed=1)
    for category, count in (("a", 100), ("b", 40)):
        sizes = Counter(name for name, part in found.items() for one in part if one["category"] == category)
        assert sizes == {
            "test": 0.2 * count,
            "validation": 0.05 * count,
            "preferences": 0.15 * count,
            "train": 0.6 * count,
        }


def test_many_small_categories_still_fill_a_small_share() -> None:
    rows = [row(number, category) for category in "abcdefgh" for number in range(5)]
    found = parts(rows, SHARES, seed=1)
    assert {name: len(part) for name, part in found.items()} == {
        "test": 8,
        "validation": 2,
        "preferences": 6,
        "train": 24,
        "golden": 0,
    }


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9)), max_size=60), st.integers(0, 99))
def test_every_row_lands_once_and_no_cluster_is_cut(drawn: list[tuple[str, int]], seed: int) -> None:
    rows = [row(number, category, f"cluster{name}") for number, (category, name) in enumerate(drawn)]
    found = parts(rows, SHARES, seed)
    assert sorted(one["id"] for part in found.values() for one in part) == sorted(one["id"] for one in rows)
    homes = {(one["cluster"], name) for name, part in found.items() for one in part}
    assert len(homes) == len({cluster for cluster, _ in homes})


def test_the_seed_decides_and_input_order_of_clusters_does_not() -> None:
    rows = [row(number) for number in range(50)]
    first, again, other = (parts(rows, SHARES, seed)["test"] for seed in (1, 1, 2))
    backwards = parts(rows[::-1], SHARES, 1)["test"]
    assert first == again != other
    assert sorted(one["id"] for one in backwards) == sorted(one["id"] for one in first)


def asked(request: str, source: str) -> Row:
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": f"{source} says yes"}]
    return record.identified({"kind": "chat", "messages": turns, "tools": [], "source": source, "category": "c"})


def golden(rows: list[Row], folder: Path) -> set[str]:
    """What the rows of golden clusters ask, those that dedup drops too; their share of the clusters is 0.1."""
    records.write(folder / "in.jsonl", rows)
    settings = duplicates.Settings(ngram=5, bands=4, rows=2, threshold=0.8, seed=17)
    [verdicts] = duplicates.find([folder / "in.jsonl"], settings, folder / "work", executors.Local("local", 1))
    found = duplicates.marked(iter(rows), verdicts)
    return {record.request(one) for one in found if splits.is_golden(one["cluster"], 0.1)}


def test_no_row_leaves_the_golden_set_whatever_is_added_or_renamed(tmp_path: Path) -> None:
    # Letters, since requests are compared without their numbers.
    texts = [" ".join(name_of(f"{number}/{place}").translate(LETTERS) for place in range(30)) for number in range(200)]
    first = golden([asked(text, "a") for text in texts], tmp_path / "first")
    assert 8 <= len(first) <= 35
    assert golden([asked(text, "renamed") for text in texts], tmp_path / "renamed") == first
    near = [asked(f"{text} {source}", source) for text in texts for source in ("please", "now", "then")]
    new = [asked(text[::-1], "b") for text in texts]
    again = golden([*near, *new, *(asked(text, "a") for text in texts)], tmp_path / "again")
    assert first < again


def test_the_seed_moves_no_row_into_the_golden_set_or_out() -> None:
    rows = [row(number) for number in range(200)]
    one, other = ({row["id"] for row in parts(rows, SHARES, seed, golden=0.1)["golden"]} for seed in (1, 2))
    assert one == other
    assert 8 <= len(one) <= 35


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    return {**SHARES, "rl": 0.0, "golden": 0.0, "seed": 1}


def run(settings: dict[str, float], rows: list[Row], count: int = 1) -> list[Row]:
    """The stage over `count` shards; returns the rows that it labelled."""
    OmegaConf.save({"split": settings, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
    for number in range(count):
        records.write(f"data/pii/{number:05d}.jsonl", rows[number::count])
    split.main()
    return list(shards.read("data/split"))


def test_made_rows_leave_the_test_with_a_reason_and_do_not_train(settings: dict[str, float]) -> None:
    genuine = [row(number) for number in range(40)]
    twins = [row(number, mismatch.CATEGORY, f"calls{number}") for number in range(40)]
    kept = run(settings | {"golden": 0.1}, genuine + twins)
    rejected = list(records.read("data/rejected/split.jsonl"))
    held_out = [one for one in kept if one["split"] in ("test", "golden")]
    assert {one["split"] for one in held_out} == {"test", "golden"}
    assert {one["category"] for one in held_out} == {"calls"}
    assert {one["cluster"] for one in rejected} == {one["cluster"] for one in held_out}
    assert {one["reason"] for one in rejected} == {"made_row_in_test"}
    assert not {one["cluster"] for one in held_out} & {one["cluster"] for one in kept if one["split"] == "train"}
    counts = metrics.read("reports/split.json")
    assert counts["seen"] == 80 == counts["kept"] + counts["rejected_made_row_in_test"]


def test_the_number_of_shards_changes_no_row(settings: dict[str, float]) -> None:
    rows = [row(number, "ab"[number % 2], f"c{number // 3}") for number in range(90)]
    found = []
    for count in (1, 7, 64):
        shutil.rmtree("data", ignore_errors=True)
        found.append({one["id"]: one["split"] for one in run(settings | {"golden": 0.1}, rows, count)})
    assert found[0] == found[1] == found[2]


def test_shares_that_leave_nothing_to_train_on_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SystemExit, match=r"split: shares .* add up to below 1"):
        run(settings | {"test": 0.9}, [row(number) for number in range(10)])


def test_too_few_rows_for_a_split_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(SystemExit, match="no rows for test, validation, preferences"):
        run(settings, [row(1)])
    assert not Path("data/split").exists()
