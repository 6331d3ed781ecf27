"""The mix: how often each row trains, by weight or temperature, and one file for each split."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scripts import mix
from temper import metrics, mixing, records


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], **settings: Any) -> Counter[str]:
    """Rows of data/mix/train.jsonl by source."""
    monkeypatch.chdir(tmp_path)
    section = {"groups": None, "temperature": 1.0, "rows": None, "seed": 1} | settings
    OmegaConf.save({"mix": section}, "params.yaml")
    rows = [
        {"id": f"{source}{number}", "source": source, "split": "train"}
        for source, size in sizes.items()
        for number in range(size)
    ]
    held_out = [{"id": f"{name}0", "source": "domain", "split": name} for name in mix.OTHERS]
    records.write("data/contamination/00000.jsonl", rows + held_out)
    mix.main()
    counts = metrics.read("reports/mix.json")
    assert counts["seen"] == counts["kept"] + counts["rejected_downsampled"] == len(rows) + len(held_out)
    return Counter(row["source"] for row in records.read("data/mix/train.jsonl"))


def test_by_default_every_row_trains_once_and_every_split_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, monkeypatch, {"domain": 8, "general": 4}) == {"domain": 8, "general": 4}
    for name in mix.OTHERS:
        assert [row["id"] for row in records.read(f"data/mix/{name}.jsonl")] == [f"{name}0"]


def test_weights_sample_one_group_up_and_another_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        "domain": {"sources": ["dom*"], "weight": 0.5, "copies": 1},
        "rest": {"sources": ["*"], "weight": 0.5, "copies": 1},
    }
    assert run(tmp_path, monkeypatch, {"domain": 30, "general": 90}, groups=groups) == {"domain": 60, "general": 60}
    counts = metrics.read("reports/mix.json")
    assert (counts["repeated"], counts["rejected_downsampled"], counts["rows_domain"]) == (30, 30, 60)
    assert {row["reason"] for row in records.read("data/rejected/mix.jsonl")} == {"downsampled"}


def test_temperature_evens_out_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {name: {"sources": [name], "weight": None, "copies": 1} for name in ("domain", "general")}
    sizes = {"domain": 10, "general": 90}
    assert run(tmp_path, monkeypatch, sizes, groups=groups, temperature=2.0) == {"domain": 25, "general": 75}


def test_a_group_trains_several_times_and_the_others_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"failures": {"sources": ["mined/failures*"], "weight": None, "copies": 3}}
    groups |= {"rest": {"sources": ["*"], "weight": None, "copies": 1}}
    sizes = {"mined/failures.jsonl": 7, "mined/positives.jsonl": 5, "domain": 20}
    found = run(tmp_path, monkeypatch, sizes, groups=groups)
    assert found == {"mined/failures.jsonl": 21, "mined/positives.jsonl": 5, "domain": 20}
    times = Counter(row["id"] for row in records.read("data/mix/train.jsonl") if row["source"].startswith("mined/f"))
    assert set(times.values()) == {3}


def test_a_row_of_no_group_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no group takes rows of 'general'"):
        run(
            tmp_path,
            monkeypatch,
            {"general": 1},
            groups={"domain": {"sources": ["domain"], "weight": 1.0, "copies": 1}},
        )


WEIGHTED = {"all": {"sources": ["*"], "weight": 1.0, "copies": 1}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, r"^mix\.rows is 0: choose 1 or more, or null"),
        ({"rows": -5}, r"^mix\.rows is -5: choose 1 or more, or null"),
        ({"groups": {"all": WEIGHTED["all"] | {"copies": 0}}}, r"^mix\.groups\.all\.copies: choose 1 or more"),
        ({"temperature": 0.5}, r"^mix\.temperature is 0\.5: choose 1 or more"),
        ({"temperature": 2.0}, r"^mix\.temperature is 2\.0, which only groups without weights take"),
        (
            {"temperature": 2.0, "groups": WEIGHTED},
            r"^mix\.temperature is 2\.0, which only groups without weights take",
        ),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        run(tmp_path, monkeypatch, {"domain": 4}, **wrong)
    assert "\n" not in str(error.value)
    assert not Path("data/mix").exists()


def test_a_row_that_no_file_takes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, {"domain": 4})
    records.write("data/contamination/00001.jsonl", [{"id": "lost", "source": "domain", "split": "tset"}])
    with pytest.raises(AssertionError, match="10 rows seen, 9 kept, 0 rejected"):
        mix.main()


@pytest.mark.parametrize(
    ("rows", "weights", "wanted"),
    [
        (1, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 0}),
        (5, {"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 3, "b": 2, "c": 0}),
        (10, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 7, "b": 2, "c": 1}),
        (3, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 2, "b": 1, "c": 0}),
    ],
)
def test_what_rounding_leaves_goes_to_the_largest_remainders(
    rows: int, weights: dict[str, float | None], wanted: dict[str, int]
) -> None:
    assert mixing.targets(dict.fromkeys(weights, 9), weights, 1.0, rows) == wanted


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 40), min_size=1), st.integers(1, 200), st.integers(0, 9))
def test_targets_are_met_exactly_and_copies_differ_by_one(sizes: dict[str, int], rows: int, seed: int) -> None:
    wanted = mixing.targets(sizes, dict.fromkeys(sizes), 1.0, rows)
    assert sum(wanted.values()) == rows
    ids = [(group, f"{group}{number}") for group, size in sizes.items() for number in range(size)]
    copies = mixing.copies(ids, wanted, seed)
    for group, size in sizes.items():
        of_group = [copies[f"{group}{number}"] for number in range(size)]
        assert sum(of_group) == wanted[group]
        assert max(of_group) - min(of_group) <= 1
    assert copies == mixing.copies(ids[::-1], wanted, seed)
