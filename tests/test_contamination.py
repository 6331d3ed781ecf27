"""Contamination: what counts as a benchmark item in a training row, and what the stage does about it."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from scripts import contamination
from temper import metrics, records
from temper.ngrams import Index, Item
from temper.records import Row

QUESTION = (
    "Write a function that returns the sum of all even numbers in a list of integers, "
    "ignoring those that are larger than one thousand."
)
FILLING = "Before we start, here is some text about gardens. {} After that, more text about rivers and boats."


def hits(item: str, text: str) -> list[str]:
    found = Index([Item("bench", "7", item)], ngram=13, coverage_ngram=8, max_coverage=0.5).hits(text)
    return [hit.rule for hit in found]


def test_an_item_inside_a_longer_row_is_found() -> None:
    assert hits(QUESTION, FILLING.format(QUESTION)) == ["13-gram"]


def test_case_punctuation_and_layout_hide_nothing() -> None:
    assert hits(QUESTION, QUESTION.upper().replace(",", " --").replace(" ", "\n ")) == ["13-gram"]


def test_a_copy_with_a_changed_word_in_every_dozen_is_found_by_coverage() -> None:
    words = QUESTION.split()
    words[10] = words[19] = "XX"
    assert hits(QUESTION, " ".join(words)) == ["coverage"]


def test_less_than_half_of_an_item_is_no_hit() -> None:
    assert hits(QUESTION, " ".join(QUESTION.split()[:9])) == []


def test_a_short_item_must_match_whole() -> None:
    assert hits("Who wrote Hamlet?", "tell me, who wrote Hamlet") == ["3-gram"]
    assert hits("Who wrote Hamlet?", "who wrote Macbeth") == []
    assert hits("Who wrote Hamlet?", "who wrote") == []


def test_an_item_without_words_matches_nothing() -> None:
    assert hits("?!", "anything ?!") == []


def test_the_evidence_is_the_longest_matched_run() -> None:
    [hit] = Index([Item("bench", "7", QUESTION)], 13, 8, 0.5).hits(f"xx {QUESTION} yy")
    assert (hit.matched.split()[0], hit.matched.split()[-1], hit.coverage) == ("write", "thousand", 1.0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with one benchmark, of which QUESTION is an item, in a wheel that is already in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "bench-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bench/items.jsonl", json.dumps({"task_id": "bench/7", "prompt": QUESTION}))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    shelf = tmp_path / "cache" / "downloads" / sha256
    shelf.mkdir(parents=True)
    wheel.rename(shelf / wheel.name)
    benchmark = {"name": "bench", "id": "bench", "revision": "1.0", "sha256": sha256, "licence": "mit"}
    benchmark |= {"file": "bench/items.jsonl", "field": "prompt"}
    return {"ngram": 13, "coverage_ngram": 8, "max_coverage": 0.5, "policy": "drop", "benchmarks": [benchmark]}


def row(id: str, request: str) -> Row:
    turns = [("system", "Tools"), ("user", request), ("assistant", "null")]
    return {"id": id, "messages": [{"role": role, "content": content} for role, content in turns]}


def run(settings: dict[str, Any], **splits: list[Row]) -> None:
    OmegaConf.save({"contamination": settings}, "params.yaml")
    for name in ("train", "validation", "preferences", "test"):
        records.write(f"data/split/{name}.jsonl", splits.get(name, [row(name, f"a clean request of the {name} split")]))
    contamination.main()


def test_contaminated_training_rows_are_dropped_with_evidence(settings: dict[str, Any]) -> None:
    own = "Book a table for two at the harbour restaurant on Friday"
    train = [row("clean", "what is the weather"), row("public", FILLING.format(QUESTION)), row("own", f"please: {own}")]
    run(settings, train=train, preferences=[row("prompt", own)], test=[row("held", own)])
    assert [one["id"] for one in records.read("data/contamination/train.jsonl")] == ["clean"]
    assert list(records.read("data/contamination/preferences.jsonl")) == []
    evidence = {one["id"]: (one["reason"], one["item"]) for one in records.read("data/rejected/contamination.jsonl")}
    assert evidence == {"public": ("bench", "bench/7"), "own": ("test", "held"), "prompt": ("test", "held")}
    counts = metrics.read("reports/contamination.json")
    assert (counts["seen"], counts["kept"], counts["rejected_bench"], counts["rejected_test"]) == (5, 2, 1, 2)
    assert (counts["kept_train"], counts["kept_validation"], counts["kept_preferences"]) == (1, 1, 0)


def test_policy_fail_ends_the_run_with_the_first_hit(settings: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"1 rows overlap .* train row \(public\) with bench bench/7 .*policy=drop"):
        run(settings | {"policy": "fail"}, train=[row("public", QUESTION)])
    assert not Path("data/contamination").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_public_item_in_what_measures_ends_the_run_whatever_the_policy(settings: dict[str, Any], split: str) -> None:
    with pytest.raises(SystemExit, match=rf"first a {split} row .*remove them from the source$"):
        run(settings, **{split: [row("leak", QUESTION)]})


def test_an_unknown_policy_and_a_wrong_field_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="policy is 'ignore': choose drop or fail"):
        run(settings | {"policy": "ignore"})
    settings["benchmarks"][0]["field"] = "question"
    with pytest.raises(SystemExit, match="without the text field 'question': correct it in conf/contamination"):
        run(settings)
