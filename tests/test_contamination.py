"""Contamination: what counts as a benchmark item in a training row, and what the stage does about it."""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from scripts import contamination
from temper import benchmarks, containment, metrics, nearcopies, ngrams, params, paraphrase, records, shards, wheels
from temper.containment import Gate
from temper.ngrams import Index, Item
from temper.records import Row

QUESTION = (
    "Write a function that returns the sum of all even numbers in a list of integers, "
    "ignoring those that are larger than one thousand."
)
PASSAGE = "I moved to the coast some years ago, and since then I have kept bees behind the old lighthouse"
FILLING = "Before we start, here is some text about gardens. {} After that, more text about rivers and boats."
RULES = ngrams.Rules(ngram=13, coverage_ngram=8, max_coverage=0.5, max_items=None)
COPIES = nearcopies.Rules(shingle=2, min_words=13, bands=32, rows=3, min_jaccard=0.5)
APPLES = "Maria picks 48 apples and gives half of them to her 3 cousins in Bologna. How many apples does she keep?"
REWORDED = "Of the forty-eight apples that Maria has picked, half go to three cousins from Bologna. What is left of the apples?"
REWORDINGS = paraphrase.Rules(
    min_overlap=0.2,
    min_overlap_alone=0.3,
    min_numbers=0.6,
    min_cosine=0.75,
    min_cosine_alone=0.9,
    neighbours=10,
    window=60,
)


def hits(item: str, text: str, rules: ngrams.Rules = RULES) -> list[str]:
    return [hit.rule for hit in Index([Item("bench", "7", item)], rules).hits(text)]


def test_an_item_inside_a_longer_row_is_found() -> None:
    assert hits(QUESTION, FILLING.format(QUESTION)) == ["13-gram"]


def test_case_punctuation_and_layout_hide_nothing() -> None:
    assert hits(QUESTION, QUESTION.upper().replace(",", " --").replace(" ", "\n ")) == ["13-gram"]
    assert hits("Größe der Straße?", "die GRÖSSE — der STRASSE") == ["3-gram"]


@pytest.mark.parametrize(
    "item",
    [
        "下列关于河流的说法中,哪一项是正确的并请说明理由",
        "東京から大阪まで新幹線で何時間かかりますか",
        "กรุงเทพมหานครเป็นเมืองหลวงของประเทศอะไร",
    ],
)
def test_an_item_in_a_script_without_spaces_is_found_inside_a_sentence(item: str) -> None:
    assert hits(item, f"我在想{item}这个问题") == ["13-gram"]
    assert hits(item, f"我在想{item[:5]}这个问题") == []


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
    [hit] = Index([Item("bench", "7", QUESTION)], RULES).hits(f"xx {QUESTION} yy")
    assert (hit.matched.split()[0], hit.matched.split()[-1], hit.score) == ("write", "thousand", 1.0)


def test_a_rule_that_is_off_finds_nothing() -> None:
    words = QUESTION.split()
    words[10] = words[19] = "XX"
    edited = " ".join(words)
    assert hits(QUESTION, edited, ngrams.Rules(13, None, 0.5, None)) == []
    assert hits(QUESTION, edited, ngrams.Rules(None, 8, 0.5, None)) == ["coverage"]
    assert hits(QUESTION, QUESTION, ngrams.Rules(13, None, 0.5, None)) == ["13-gram"]
    assert hits(QUESTION, QUESTION, ngrams.Rules(None, None, 0.5, None)) == []


def test_a_run_of_many_items_is_boilerplate_until_it_covers_an_item() -> None:
    opening = "Choose the one option that best answers the question below and give its letter only"
    items = [Item("bench", str(n), f"{opening}: {' '.join(f'word{n}x{m}' for m in range(20))}") for n in range(4)]
    row = f"{opening}: what is the capital of France?"
    assert len(Index(items, RULES).hits(row)) == 4
    assert Index(items, ngrams.Rules(13, 8, 0.5, max_items=3)).hits(row) == []
    assert [hit.item.id for hit in Index(items, ngrams.Rules(13, 8, 0.5, max_items=3)).hits(items[2].text)] == ["2"]


def test_an_index_of_many_items_stays_small_while_it_is_built() -> None:
    draw = random.Random(0)
    items = [
        Item("test", str(number), " ".join(f"w{draw.randrange(5000)}" for _ in range(60))) for number in range(1000)
    ]
    tracemalloc.start()
    try:
        Index(items, ngrams.Rules(ngram=13, coverage_ngram=8, max_coverage=0.5, max_items=10))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / 60_000 < 100, "bytes a word"


def naive(items: list[Item], text: str) -> list[tuple[str, str]]:
    """(id, rule) of every hit, read off the definition of the rules."""
    text_words = ngrams.words(text)
    found = []
    for item in items:
        words = ngrams.words(item.text)
        needed, wide = min(13, len(words)), min(8, len(words))
        runs = set(ngrams.grams(text_words, wide))
        covered = {at + n for at, gram in enumerate(ngrams.grams(words, wide)) if gram in runs for n in range(wide)}
        if not set(ngrams.grams(words, needed)).isdisjoint(ngrams.grams(text_words, needed)):
            found.append((item.id, f"{needed}-gram"))
        elif len(covered) / len(words) > 0.5:
            found.append((item.id, "coverage"))
    return found


def test_many_rows_at_once_are_found_as_the_rules_define_it() -> None:
    draw = random.Random(3)
    vocabulary = ["a", "b", "c", "d"]  # few words, so that runs repeat within and between items

    def text(length: int) -> str:
        return " ".join(draw.choices(vocabulary, k=length))

    items = [Item("bench", str(number), text(draw.randint(1, 30))) for number in range(60)]
    rows = [f"zz {text(draw.randint(0, 20))} {draw.choice(items).text[:24]} {text(9)}" for _ in range(400)] + [""]
    expected = [naive(items, row) for row in rows]
    assert [[(hit.item.id, hit.rule) for hit in of] for of in Index(items, RULES).batch(rows)] == expected
    assert sum("coverage" in {rule for _, rule in of} for of in expected) > 10


def test_words_of_two_rows_are_no_run() -> None:
    words = QUESTION.split()
    halves = [" ".join(words[:12]), " ".join(words[12:])]
    assert Index([Item("bench", "7", QUESTION)], RULES).batch(halves) == [[], []]


def test_a_copy_that_is_edited_everywhere_is_found_by_minhash_only() -> None:
    words = [f"w{number}" for number in range(60)]
    item = Item("bench", "7", " ".join(words))
    edited = " ".join("edit" if number % 7 == 6 else word for number, word in enumerate(words))
    assert Index([item], RULES).hits(edited) == []
    copies = nearcopies.Copies([item, Item("bench", "8", "short")], COPIES)
    [[hit], *others] = copies.batch([edited, f"{edited} {' '.join(f'x{n}' for n in range(60))}", "short", ""])
    assert (hit.item.id, hit.rule) == ("7", "minhash")
    assert 0.5 <= hit.score < 0.6
    assert others == [[], [], []]


def alike(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings under which everything is the same, so that what differs is left to words and numbers."""
    return np.ones((len(texts), 1), np.float32)


def search(rules: paraphrase.Rules = REWORDINGS, embed: paraphrase.Embed = alike) -> paraphrase.Search:
    others = [Item("bench", str(n), f"What is the boiling point of metal number {n} in kelvin?") for n in range(2, 9)]
    return paraphrase.Search([Item("bench", "apples", APPLES), *others], rules, embed)


def test_a_rewording_is_found_by_its_words_and_numbers() -> None:
    [hit] = search().batch([REWORDED])[0]
    assert (hit.item.id, hit.rule, hit.matched) == ("apples", "paraphrase", REWORDED)


def test_other_numbers_make_it_another_exercise() -> None:
    assert search().batch([REWORDED.replace("forty-eight", "fifty").replace("three", "5")]) == [[]]


def test_other_words_are_never_embedded() -> None:
    def refuse(texts: Sequence[str]) -> NDArray[np.float32]:
        assert not texts
        return np.zeros((0, 1), np.float32)

    assert search(embed=refuse).batch(["Paint 48 fences blue within half of 3 weeks.", ""]) == [[], []]


def test_a_rewording_within_a_long_row_is_found_with_its_own_words_as_evidence() -> None:
    long = " ".join(
        f"Chapter {n} tells of kings, of castles and of the long wars that they fought." for n in range(20, 40)
    )
    [hit] = search().batch([f"{long} {REWORDED} {long}"])[0]
    assert REWORDED in hit.matched
    assert len(hit.matched) < 3 * len(REWORDED)


def test_an_item_without_numbers_needs_the_higher_cosine() -> None:
    question = "Why does the moon always show the same face to observers on earth?"
    reworded = "Why do observers on earth always see the same face of the moon?"

    def close(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1.0, 0.0] if text == question else [0.8, 0.6] for text in texts], np.float32)

    assert paraphrase.Search([Item("bench", "1", question)], REWORDINGS, alike).batch([reworded])[0]
    assert paraphrase.Search([Item("bench", "1", question)], REWORDINGS, close).batch([reworded]) == [[]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,200 apples at $2.50", {1200.0, 2.5}),
        ("twenty-five dozen", {25.0, 12.0}),
        ("twenty boys and one girl, half of them", {20.0, 0.5}),
        ("one of 0 and 1", set()),
    ],
)
def test_numbers_are_read_in_figures_and_words(text: str, expected: set[float]) -> None:
    assert paraphrase.numbers(text) == expected


def test_options_are_found_with_and_without_letters(tmp_path: Path) -> None:
    question, choices = "Which is a noble gas?", ["iron", "argon", "sulfur", "chlorine", "zinc"]
    content = json.dumps({"question_id": 5, "question": question, "options": choices}).encode()
    items = benchmarks.items(local(tmp_path / "mc.jsonl", content, ["question", "options"]))
    assert {item.id for item in items} == {"5"}
    index = Index(items, RULES)
    for layout in ("{1}\n{2}", "{0}. {1}\n", "({0}) {1} "):
        options = "".join(layout.format("ABCDE"[n], choice, "") for n, choice in enumerate(choices))
        assert index.hits(f"Answer this: {question} {options} Thanks"), layout
    assert not index.hits("Which is a noble gas? A. neon B. xenon C. lead D. gold E. tin")


def local(path: Path, content: bytes, fields: list[str]) -> benchmarks.Benchmark:
    path.write_bytes(content)
    return benchmarks.Benchmark("bench", "file", None, None, wheels.digest(path), str(path), fields, "mit")


def as_csv(rows: list[Row]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        ("a.json", lambda rows: json.dumps(rows).encode()),
        ("a.csv", as_csv),
        ("a.jsonl.gz", lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    ],
)
def test_local_benchmarks_are_read_in_every_format(
    tmp_path: Path, name: str, write: Callable[[list[Row]], bytes]
) -> None:
    rows = [{"question": QUESTION, "topic": "code"}, {"question": "Who wrote Hamlet?", "topic": "plays"}]
    items = benchmarks.items(local(tmp_path / name, write(rows), ["topic", "question"]))
    assert [(item.id, item.text) for item in items] == [("1", f"code\n{QUESTION}"), ("2", "plays\nWho wrote Hamlet?")]


def test_a_benchmark_that_is_not_what_conf_says_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = local(tmp_path / "a.jsonl", json.dumps({"question": QUESTION}).encode(), ["question"])
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "other"}))
    with pytest.raises(SystemExit, match=r"benchmark 'bench': sha256 of .*a.jsonl is [0-9a-f]{64}, not"):
        benchmarks.items(benchmark)
    benchmark.kind, benchmark.id = "hubb", "openai/gsm8k"
    with pytest.raises(SystemExit, match="kind is 'hubb': choose one of wheel, file, hub"):
        benchmarks.items(benchmark)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    benchmark.kind, benchmark.revision, benchmark.file = "hub", "main", "main/test.parquet"
    with pytest.raises(SystemExit, match="benchmark 'bench': revision is 'main': pin a commit"):
        benchmarks.items(benchmark)
    benchmark.revision = "0" * 40
    with pytest.raises(
        SystemExit, match=r"the Hub did not give .* of openai/gsm8k .*or state a local copy as kind: file"
    ):
        benchmarks.items(benchmark)
    for malformed in ("openai/gsm8k/main", "openai//gsm8k", "gsm 8k"):
        benchmark.id = malformed
        with pytest.raises(
            SystemExit, match=rf"benchmark 'bench': {malformed}: no such data set, .*: correct it"
        ) as error:
            benchmarks.items(benchmark)
        assert "\n" not in str(error.value)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with one benchmark, of which QUESTION is an item, in a wheel that is already in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    wheel = tmp_path / "bench-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bench/items.jsonl", json.dumps({"task_id": "bench/7", "prompt": QUESTION}))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    shelf = tmp_path / "cache" / "downloads" / sha256
    shelf.mkdir(parents=True)
    wheel.rename(shelf / wheel.name)
    benchmark: dict[str, Any] = {
        "name": "bench",
        "kind": "wheel",
        "id": "bench",
        "revision": "1.0",
        "sha256": sha256,
        "licence": "mit",
    }
    benchmark |= {"file": "bench/items.jsonl", "fields": ["prompt"]}
    return {
        "ngram": 13,
        "max_items": 10,
        "coverage_ngram": 8,
        "max_coverage": 0.5,
        "minhash": {"shingle": 2, "min_words": 13, "bands": 32, "rows": 3, "min_jaccard": 0.5},
        "paraphrase": None,
        "max_own": 10000,
        "policy": "drop",
        "benchmarks": [benchmark],
    }


def row(id: str, request: str) -> Row:
    turns = [("system", "Tools"), ("user", request), ("assistant", "null")]
    return {"id": id, "messages": [{"role": role, "content": content} for role, content in turns]}


def run(settings: dict[str, Any], **splits: list[Row]) -> None:
    OmegaConf.save({"contamination": settings, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
    names = ("train", "validation", "preferences", "test")
    rows = [
        one | {"split": name}
        for name in (*names, "golden")
        for one in splits.get(name, [row(name, f"a clean request of the {name} split")] if name in names else [])
    ]
    # Two shards, as a larger set has.
    records.write("data/split/00000.jsonl", rows[::2])
    records.write("data/split/00001.jsonl", rows[1::2])
    records.write(contamination.PASSAGES, [{"id": "essay/1", "text": PASSAGE}])
    contamination.main()


def kept(split: str) -> list[str]:
    return [one["id"] for one in shards.read("data/contamination") if one["split"] == split]


def test_contaminated_training_rows_are_dropped_with_evidence(settings: dict[str, Any]) -> None:
    own = "Book a table for two at the harbour restaurant on Friday at eight in the evening"
    frozen = "Sing a song about a duck"
    train = [row("clean", "what is the weather"), row("public", FILLING.format(QUESTION)), row("own", f"please: {own}")]
    run(
        settings,
        train=[*train, row("gold", frozen), row("read", FILLING.format(PASSAGE)), row("calm", "what is the time")],
        preferences=[row("prompt", own)],
        test=[row("held", own)],
        golden=[row("frozen", frozen), row("like a test row", own)],
    )
    assert kept("train") == ["clean", "calm"]
    assert kept("preferences") == []
    # What is held out may hold what is held out.
    assert sorted(kept("test") + kept("golden")) == ["frozen", "held", "like a test row"]
    evidence = {one["id"]: one for one in records.read("data/rejected/contamination.jsonl")}
    found = {id: (one["split"], one["reason"], one["item"], one["rule"]) for id, one in evidence.items()}
    assert found == {
        "public": ("train", "bench", "bench/7", "13-gram"),
        "own": ("train", "test", "held", "13-gram"),
        "gold": ("train", "golden", "frozen", "6-gram"),
        "read": ("train", "general", "essay/1", "13-gram"),
        "prompt": ("preferences", "test", "held", "13-gram"),
    }
    assert evidence["own"]["item_text"] == own
    assert evidence["own"]["matched"] == own.lower()
    assert {(hit["item"], hit["rule"]) for hit in evidence["prompt"]["other_hits"]} == {
        ("held", "minhash"),
        ("like a test row", "13-gram"),
        ("like a test row", "minhash"),
    }
    counts = metrics.read("reports/contamination.json")
    assert (counts["seen"], counts["kept"]) == (11, 6)
    assert (counts["rejected_bench"], counts["rejected_test"], counts["rejected_golden"]) == (1, 2, 1)
    assert counts["rejected_general"] == 1
    assert (counts["kept_train"], counts["kept_validation"], counts["kept_test"]) == (2, 1, 1)
    assert (counts["found_ngram"], counts["items"]) == (5, 5)
    assert (counts["benchmark_bench"], counts["benchmark_test"], counts["benchmark_golden"]) == (1, 1, 2)
    assert [counts[f"pass_{name}"] for name in contamination.PASSES] == [1, 1, 1, 0]


def edited(text: str) -> str:
    return " ".join("edit" if number % 7 == 6 else word for number, word in enumerate(text.split()))


@pytest.mark.parametrize(("most", "left"), [(1, []), (0, ["copy"])])
def test_near_copies_of_our_own_rows_are_looked_for_while_they_are_few(
    settings: dict[str, Any], most: int, left: list[str]
) -> None:
    own = " ".join(f"word{number}" for number in range(60))
    run(
        settings | {"max_own": most},
        train=[row("copy", edited(own)), row("public", edited(QUESTION))],
        test=[row("held", own)],
    )
    assert kept("train") == left
    found = {one["id"]: one["rule"] for one in records.read("data/rejected/contamination.jsonl")}
    assert found["public"] == "minhash"
    assert metrics.read("reports/contamination.json")["items_verbatim_only"] == len(left)


def chat(id: str, request: str, answer: str, **extra: Any) -> Row:
    return {"id": id, "kind": "chat", "messages": [turn("user", request), turn("assistant", answer)], **extra}


def test_the_answer_of_a_held_out_row_is_looked_for_if_it_tells(settings: dict[str, Any]) -> None:
    long = " ".join(f"answer{number}" for number in range(100))
    short = "Yes, of course I can help you with that one"
    standard = "The passage that you gave does not say anything at all about what you would like to know"
    run(
        settings,
        train=[
            chat("copy", "what else", f"Sure. {long}"),
            chat("short", "what now", short),
            chat("standard", "what of rivers", standard),
            chat("call", "what of trees", long.replace("answer", "argument")),
        ],
        test=[
            chat("held", "tell me of the garden and its hedges", long),
            chat("polite", "please help me to water the roses", short),
            *(chat(f"unknown {number}", f"how old is the {number}th of these oaks", standard) for number in "45"),
            chat("a call", "please prune all of the trees", long.replace("answer", "argument"), kind="call"),
        ],
    )
    assert sorted(kept("train")) == ["call", "short", "standard"]
    [evidence] = records.read("data/rejected/contamination.jsonl")
    assert (evidence["id"], evidence["item"], evidence["rule"]) == ("copy", "held", "13-gram")
    assert evidence["item_text"] == long


def test_a_gate_finds_the_same_where_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item("bench", "7", QUESTION), Item("bench", "8", " ".join(f"word{number}" for number in range(60)))]
    rows = [chat("a", QUESTION, "ok", split="train"), chat("b", edited(items[1].text), "ok", split="train")]
    gate = Gate(items, RULES, COPIES, None, verbatim=[Item("test", "9", "a clean request of ours to find")])
    containment.save(gate, tmp_path / "gate.pickle")
    assert containment.load(tmp_path / "gate.pickle") is gate
    expected = list(containment.checked(gate, (), iter(rows)))
    monkeypatch.setattr(containment, "_loaded", {})
    assert list(containment.checked_by(tmp_path / "gate.pickle", (), iter(rows))) == expected
    assert [one["rule"] for one in expected] == ["13-gram", "minhash"]


def test_policy_fail_ends_the_run_with_the_first_hit(settings: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"1 rows overlap .* train row \(public\) with bench bench/7 .*policy=drop"):
        run(settings | {"policy": "fail"}, train=[row("public", QUESTION)])
    assert [one["id"] for one in records.read("data/rejected/contamination.jsonl")] == ["public"]
    assert not Path("reports/contamination.json").exists()


@pytest.mark.parametrize("split", ["validation", "test", "golden"])
def test_a_public_item_in_what_measures_ends_the_run_whatever_the_policy(settings: dict[str, Any], split: str) -> None:
    with pytest.raises(SystemExit, match=rf"first a {split} row .*remove them from the source$"):
        run(settings, **{split: [row("leak", QUESTION)]})


def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="policy is 'ignore': choose drop or fail"):
        run(settings | {"policy": "ignore"})
    with pytest.raises(SystemExit, match=r"coverage_ngram is 20, above ngram \(13\)"):
        run(settings | {"coverage_ngram": 20})
    with pytest.raises(SystemExit, match="every pass is off"):
        run(settings | {"ngram": None, "coverage_ngram": None, "minhash": None})
    with pytest.raises(
        SystemExit, match=r"1 items of our own, above max_own \(0\), and ngram and coverage_ngram are off"
    ):
        run(settings | {"ngram": None, "coverage_ngram": None, "max_own": 0})
    for name in ("test", "golden", "general"):
        with pytest.raises(
            SystemExit, match=rf"two benchmarks are named '{name}' \(test, golden and general are our own\)"
        ):
            run(settings | {"benchmarks": [settings["benchmarks"][0] | {"name": name}]})
    with pytest.raises(SystemExit, match="two benchmarks are named 'bench'"):
        run(settings | {"benchmarks": settings["benchmarks"] * 2})
    settings["benchmarks"][0]["fields"] = ["question"]
    with pytest.raises(SystemExit, match=r"field 'question' of .*items.jsonl is no such field"):
        run(settings)


def test_every_preset_is_a_setting_of_the_stage(tmp_path: Path) -> None:
    from commands.compose import composed

    presets = sorted(file.stem for file in Path("conf/contamination").glob("*.yaml"))
    assert presets == ["default", "files", "hub", "ngram"]
    for preset in presets:
        file = tmp_path / f"{preset}.yaml"
        file.write_text(composed([f"contamination={preset}"]))
        loaded = contamination.checked(params.load("contamination", contamination.Contamination, file))
        assert (loaded.paraphrase is None) == (preset == "ngram")
        for benchmark in loaded.benchmarks:
            pinned = benchmark.revision if benchmark.kind == "hub" else benchmark.sha256
            assert pinned is not None
            assert len(pinned) == (40 if benchmark.kind == "hub" else 64)


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "found",
    [
        {"kind": "text", "text": FILLING.format(QUESTION)},
        {"kind": "chat", "tools": [], "messages": [turn("user", "go on"), turn("assistant", FILLING.format(QUESTION))]},
        {
            "kind": "system",
            "tools": [],
            "messages": [turn("system", FILLING.format(QUESTION)), turn("user", "go on"), turn("assistant", "ok")],
        },
        {
            "kind": "preference",
            "tools": [],
            "messages": [turn("user", "go on")],
            "chosen": [turn("assistant", "no")],
            "rejected": [turn("assistant", QUESTION)],
        },
    ],
    ids=lambda found: found["kind"],
)
def test_every_kind_of_row_is_checked_wherever_an_item_stands(found: Row) -> None:
    gate = Gate((Item("bench", "7", QUESTION),), RULES, COPIES, None)
    clean = {"id": "b", "split": "train", "kind": "text", "text": "gardens"}
    checked = list(containment.checked(gate, (), iter([{"id": "a", "split": "train", **found}, clean])))
    assert checked[0]["reason"] == "bench"
    assert checked[0]["rule"] == "13-gram"
    assert checked[1] == clean


def test_a_system_turn_that_nearly_copies_an_item_is_found() -> None:
    item = {
        "id": "a",
        "split": "train",
        "messages": [turn("system", edited(QUESTION)), turn("user", f"go on {FILLING}")],
    }
    gate = Gate((Item("bench", "7", QUESTION),), ngrams.Rules(13, None, 0.5, None), COPIES, None)
    [found] = containment.checked(gate, (), iter([item]))
    assert found["rule"] == "minhash"


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("Why?", False),
        ("Tell me a joke", False),
        ("Tell me a short joke", True),
        ("为什么", False),
        ("请用三句话概括这篇关于河流的文章", True),
    ],
)
def test_a_text_of_few_words_tells_nothing_of_where_it_is_from(text: str, telling: bool) -> None:
    assert containment.is_telling(text) == telling


def test_short_rows_of_our_own_test_split_are_counted_and_drop_nothing(settings: dict[str, Any]) -> None:
    train = [row("chat", "I do not know why. Tell me a joke")]
    run(settings, train=train, test=[row("one", "Why?"), row("two", "Tell me a joke")], golden=[row("three", "why")])
    assert kept("train") == ["chat"]
    assert sorted(kept("test")) == ["one", "two"]
    counts = metrics.read("reports/contamination.json")
    # The other item is the passage.
    assert (counts["items_too_short"], counts["items"]) == (3, 2)


def test_a_validation_row_that_hits_our_own_test_is_dropped(settings: dict[str, Any]) -> None:
    own = "Book a table for two at the harbour restaurant on Friday at eight in the evening"
    run(settings, validation=[row("copy", own)], test=[row("held", own)])
    assert kept("validation") == []
    [evidence] = records.read("data/rejected/contamination.jsonl")
    assert (evidence["split"], evidence["reason"]) == ("validation", "test")


def test_rows_stream_through_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "CHUNK", 2)
    gate = Gate((Item("bench", "7", QUESTION),), RULES, None, None)
    pulled = []

    def rows() -> Iterator[Row]:
        for number in range(6):
            pulled.append(number)
            yield {"id": str(number), "split": "train", "kind": "text", "text": QUESTION if number == 3 else "clean"}

    stream = containment.checked(gate, (), rows())
    assert next(stream)["id"] == "0"
    assert pulled == [0, 1]
    assert [(one["id"], "reason" in one) for one in stream] == [(str(n), n == 3) for n in range(1, 6)]


@pytest.fixture
def data() -> Path:
    if "TEMPER_TEST_DATA" not in os.environ:
        pytest.skip("TEMPER_TEST_DATA is not set: real benchmarks are not at hand")
    return Path(os.environ["TEMPER_TEST_DATA"])


def test_real_items_are_found_in_longer_rows_and_real_clean_rows_pass(data: Path) -> None:
    def items(file: str, fields: list[str]) -> list[Item]:
        return benchmarks.items(local_copy(data / file, fields))

    leaks = items("gsm8k/test.jsonl", ["question"])[:300] + items("ifeval/input_data.jsonl", ["prompt"])[:200]
    leaks += items("mt_bench/question.jsonl", ["turns"]) + items("humaneval/HumanEval.jsonl.gz", ["prompt"])
    clean = (data / "nl2bash/all.nl").read_text().splitlines()
    index = Index(leaks, ngrams.Rules(13, 8, 0.5, 10))
    rows = [f"{before} {item.text} {after}" for before, item, after in zip(clean, leaks, clean[1000:], strict=False)]
    found = [{hit.item.id for hit in of} for of in index.batch(rows)]
    assert all(item.id in ids for item, ids in zip(leaks, found, strict=True))
    assert not any(index.batch(clean[:3000]))


def local_copy(path: Path, fields: list[str]) -> benchmarks.Benchmark:
    return benchmarks.Benchmark("bench", "file", None, None, wheels.digest(path), str(path), fields, "mit")
