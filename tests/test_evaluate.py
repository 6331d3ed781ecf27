"""What `evaluate` asks, how it scores, and what it says about a few hundred rows."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import evaluate
from temper import calls, evaluation_figures, forgetting, harness, params, records, vllm
from temper.records import Row
from temper.task_metrics import Task

TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
OTHER = {"name": "sub", "parameters": {"properties": {}, "required": []}}
GOLD = {"name": "sub", "arguments": {}}


# A byte-level tokenizer and two random layers, in bytes of which the perplexity is known: that of transformers itself.
LIKELIHOODS = """
import json, sys
from pathlib import Path

from temper import harness, records, vllm

runtime = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True}
vllm.prepare(runtime)
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = Path(sys.argv[1]) / "model"
vocabulary = {letter: number for number, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bare = Tokenizer(models.BPE(vocabulary, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<s>", pad_token="<s>")
tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }};{% endfor %}assistant:"
torch.manual_seed(17)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=257, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.1, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)

def bits(before, text):
    ids = torch.tensor([before + tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        likelihood = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(-likelihood[len(before) - 1 :].sum() / torch.tensor(2.0).log())

rows = list(records.read(Path(sys.argv[1]) / "rows.jsonl"))
passages = [{"id": "1", "text": "A quiet text of thirty-six characters"[:36]}, {"id": "2", "text": "And one of twenty..."}]
chat = {"id": "c", "kind": "chat", "source": "own.jsonl", "messages": rows[0]["messages"][1:]}
asked = harness.Asked(rows, rows[:1], {"domain": rows[1:], "general": passages}, [chat])
found = harness.evaluate(folder, asked, "float32", 4, 0, 17, runtime)
def ids_of(row):
    return tokenizer(tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False))["input_ids"]

before = ids_of(rows[1])
print("FOUND", json.dumps({
    "asked": [one["id"] for one in found.samples],
    "golden": [one["output"] == found.samples[0]["output"] for one in found.golden],
    "said": [[one["id"], len(one["output"]) > 0] for one in found.answers],
    "choose": [one.get("choose") for one in found.samples],
    "tasks": [task["task"] for task in found.config["tasks"]],
    "abstain": [one["abstain"] for one in found.samples],
    "likelier": [bits(ids_of(one), "null") < bits(ids_of(one), '{"name":') for one in rows],
    "first": [bits(ids_of(rows[0]), '{"name": "sub"') < bits(ids_of(rows[0]), '{"name": "add"')],
    "found": [one["bits"] for one in found.likelihoods],
    "bytes": [one["bytes"] for one in found.likelihoods],
    "expected": [bits(before, "null"), *(bits([0], one["text"]) for one in passages)],
}))
"""


def row(name: str, gold: Row | None, tools: list[Row]) -> Row:
    turns = [("system", calls.system_prompt(tools)), ("user", "subtract"), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": "multiple", "messages": messages, "tools": tools, "gold": gold}


class Words(vllm.Tokenizer):
    """A tokenizer of words, whose template is the turns' texts."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))

    def render(self, chat: vllm.Chat) -> str:
        return " ".join(turn["content"] for turn in chat)


def sample(gold: Any, category: str = "simple_python", **changed: Any) -> Row:
    same = {"exact": True, "valid_json": True, "argument_f1": 1.0, "abstain": True}
    return {"id": "x", "category": category, "gold": gold} | same | changed


def test_a_choice_is_the_beginning_of_a_call_to_each_tool() -> None:
    asked = harness.question(row("a", GOLD, [TOOL, OTHER]), "PROMPT")
    assert asked["choices"] == ['{"name": "add"', '{"name": "sub"']
    assert asked["choices"][asked["choice"]] == '{"name": "sub"'
    assert calls.answer(GOLD).startswith(asked["choices"][asked["choice"]])
    assert all(choice.startswith(harness.CALL) for choice in asked["choices"])
    assert (asked["calls"], harness.question(row("b", None, [TOOL]), "PROMPT")["calls"]) == (1, 0)
    assert harness.question(row("b", None, [TOOL]), "PROMPT")["choice"] == -1


def asked_of(rows: list[Row], **more: Any) -> harness.Asked:
    return harness.Asked(rows, [], {"domain": rows[:1], "general": []}, **more)


def test_each_task_reads_the_rows_that_it_is_of(tmp_path: Path) -> None:
    rows = [row("both", GOLD, [TOOL, OTHER]), row("one", GOLD, [OTHER]), row("none", None, [TOOL, OTHER])]
    chat = {
        "id": "chat",
        "kind": "chat",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    }
    harness.written(asked_of(rows, chats=[chat]), Words(), 4, tmp_path)
    read = {
        task["task"]: [one["id"] for one in records.read(harness.source(task, tmp_path))]
        for task in harness.definitions(4)
    }
    assert read == {
        "call": ["both", "one", "none"],
        "choose": ["both"],  # several tools, of which one is right
        "abstain": ["both", "one", "none"],
        "domain": ["both"],
        "general": [],
        "answer": ["chat"],
        "golden": [],
    }


def test_the_two_choices_of_abstain_are_null_and_any_call() -> None:
    (abstain,) = (task for task in harness.definitions(4) if task["task"] == "abstain")
    assert abstain["doc_to_choice"] == ["null", harness.CALL]


@pytest.mark.parametrize(
    ("answer", "exact", "valid"), [('{"name": "sub", "arguments": {}}', 1.0, 1.0), ("null", 0.0, 1.0), ("{", 0.0, 0.0)]
)
def test_the_harness_scores_with_the_verifier(answer: str, exact: float, valid: float) -> None:
    asked = harness.question(row("a", GOLD, [OTHER]), "PROMPT")
    score = harness.scored(asked, [answer])
    assert (score["exact"], score["valid_json"]) == (exact, valid)


def test_every_kind_of_request_is_asked_and_the_length_is_ours() -> None:
    tasks = {task["task"]: task for task in harness.definitions(max_tokens=7)}
    assert {name: task["output_type"] for name, task in tasks.items()} == {
        "call": "generate_until",
        "choose": "multiple_choice",
        "abstain": "multiple_choice",
        "domain": "loglikelihood",
        "general": "loglikelihood_rolling",
        "answer": "generate_until",
        "golden": "generate_until",
    }
    assert {tasks[name]["generation_kwargs"]["max_gen_toks"] for name in ("call", "answer", "golden")} == {7}
    assert tasks["golden"] == tasks["call"] | {"task": "golden"}
    assert all("version" in task["metadata"] for task in tasks.values())


def test_a_likelihood_is_counted_in_bytes_of_the_reference() -> None:
    asked = harness.question(row("a", None, [OTHER]) | {"messages": [{"role": "assistant", "content": "é"}]}, "PROMPT")
    assert harness.likelihood(asked, [(-2.0, True)]) == {"bits_per_byte": (-2.0, 2)}


def test_the_saved_configuration_is_the_same_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.metadata, "version", lambda _name: "1")
    machines = [{"threads": size, "serve_memory_gb": size, "serve_eager": size == 1} for size in (1, 2)]
    engines = [{"engine": harness.anywhere(vllm.engine("bfloat16", 64, 17, machine))} for machine in machines]
    saved = [
        yaml.safe_dump(harness.config(Path("models/dpo"), harness.definitions(8), engine, 3, "TEMPLATE"))
        for engine in engines
    ]
    assert saved[0] == saved[1]
    assert str(Path.cwd()) not in saved[0]


def test_samples_come_sorted_with_both_tasks_joined() -> None:
    rows = [row(name, GOLD, [OTHER]) for name in ("b", "a")]
    call: Row = {"filtered_resps": ["null"], "exact": 0.0, "valid_json": 1.0, "argument_f1": 0.0}
    abstain: Row = {"acc": 1.0}
    choose: Row = {"acc": 1.0, "acc_norm": 0.0}
    answered = {"call": dict.fromkeys("ab", call), "abstain": dict.fromkeys("ab", abstain), "choose": {"b": choose}}
    made = harness.samples(rows, answered)
    assert [one["id"] for one in made] == ["a", "b"]
    assert made[0]["request"] == "subtract"
    assert (made[0]["output"], made[0]["exact"], made[0]["abstain"]) == ("null", False, True)
    assert made[0]["reference"] == calls.answer(GOLD)
    assert "choose" not in made[0]
    assert (made[1]["choose"], made[1]["choose_norm"]) == (True, False)


def test_likelihoods_come_by_task_with_the_text_they_are_of() -> None:
    passages = [{"id": name, "text": "one two"} for name in ("b", "a")]
    said: Row = {"bits_per_byte": (-math.log(2) * 7, 7)}
    answered = {"domain": {"r": said}, "general": dict.fromkeys("ab", said)}
    found = harness.likelihoods({"domain": [row("r", None, [OTHER])], "general": passages}, answered, Words())
    assert [(one["task"], one["id"], one["text"]) for one in found] == [
        ("domain", "r", "null"),
        ("general", "a", "one two"),
        ("general", "b", "one two"),
    ]
    assert (found[1]["bits"], found[1]["bytes"], found[1]["tokens"]) == (7.0, 7, 2)
    assert harness.longest_passage(passages, Words()) == 4


def test_the_summary_separates_calls_from_null_and_counts_each_category() -> None:
    chose: Row = {"choose": True, "choose_norm": False}
    wrong = sample(GOLD, exact=False, argument_f1=0.5, abstain=False, **chose)
    samples = [sample(GOLD), wrong, sample(None, "irrelevance", exact=False)]
    values = evaluation_figures.summary(samples, 0.95, seed=1)
    assert (values["n"], values["call_n"], values["null_n"]) == (3, 2, 1)
    assert values["exact"] == pytest.approx(1 / 3)
    assert (values["call_exact"], values["null_exact"]) == (0.5, 0.0)
    assert (values["n_in_simple_python"], values["n_in_irrelevance"]) == (2, 1)
    assert (values["abstain"], values["null_abstain"], values["call_abstain"]) == (pytest.approx(2 / 3), 1.0, 0.5)
    assert (values["choose_n"], values["choose"], values["choose_norm"]) == (1, 1.0, 0.0)
    assert (values["exact_in_simple_python"], values["exact_in_irrelevance"]) == (0.5, 0.0)
    assert values["exact_low_in_simple_python"] < 0.5 < values["exact_high_in_simple_python"]
    assert values["argument_f1"] == pytest.approx(2.5 / 3)
    for name in (
        "exact",
        "call_exact",
        "null_exact",
        "argument_f1",
        "valid_json",
        "abstain",
        "choose",
    ):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]


def test_no_category_s_name_takes_the_place_of_another_figure() -> None:
    whole = [sample(GOLD, "x"), sample(GOLD, "x", exact=False)]
    named = [sample(GOLD, name, exact=False) for name in ("low", "high", "x_low", "in_x", "low_in_x", "_low")]
    before, after = (evaluation_figures.summary(samples, 0.95, seed=1) for samples in (whole, [*whole, *named]))
    assert after["exact_low"] < after["exact"] < after["exact_high"] < 1
    assert {key: after[key] for key in before if key.endswith("_in_x")} == {
        key: before[key] for key in before if key.endswith("_in_x")
    }
    assert sum(key.startswith("n_in_") for key in after) == 7
    assert sum(after[key] for key in after if key.startswith("n_in_")) == after["n"]
    parts = ("exact_in_", "exact_low_in_", "exact_high_in_")
    assert sum(key.startswith(parts) for key in after) == 3 * 7


def test_a_task_that_would_take_the_place_of_another_figure_is_named() -> None:
    with pytest.raises(SystemExit, match=r"^evaluate: two metrics are named call_n: rename the task"):
        evaluation_figures.joined([{"call_n": 1, "n": 2}, {"call_n": 3}])


def test_arguments_that_are_all_wrong_are_known_no_better_than_answers_that_are() -> None:
    values = evaluation_figures.summary([sample(GOLD, exact=False, argument_f1=0.0)] * 20, 0.95, seed=1)
    assert values["argument_f1"] == values["argument_f1_low"] == 0
    assert values["argument_f1_high"] == values["exact_high"] > 0.1


def test_golden_rows_have_figures_of_their_own_and_may_be_none() -> None:
    values = evaluation_figures.frozen([sample(GOLD), sample(None, exact=False)], 0.95, seed=1)
    assert (values["golden_n"], values["golden_exact"], values["golden_valid_json"]) == (2, 0.5, 1.0)
    assert evaluation_figures.frozen([], 0.95, seed=1)["golden_n"] == 0


def likelihoods(*bits: float) -> list[Row]:
    sizes: Row = {"task": "general", "bytes": 10, "tokens": 4}
    return [{"id": str(number), "bits": one} | sizes for number, one in enumerate(bits)]


def test_perplexity_is_by_the_token_and_bits_by_the_byte() -> None:
    values = evaluation_figures.perplexity("general", [*likelihoods(8, 16, 12), {"task": "domain"}], 0.95, seed=1)
    assert values["general_n"] == 3
    assert values["general_perplexity"] == pytest.approx(2**3)
    assert values["general_bits_per_byte"] == pytest.approx(1.2)
    for name in ("general_perplexity", "general_bits_per_byte"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]


def test_forgetting_is_paired() -> None:
    hard_and_easy = [float(bits) for bits in range(10, 60)]
    before, after = likelihoods(*hard_and_easy), likelihoods(*(bits + 1 for bits in hard_and_easy))
    assert forgetting.change(before, after[::-1]) == pytest.approx((0.1, 0.1, 0.1))
    unpaired = evaluation_figures.perplexity("general", before, 0.95, seed=1)
    assert unpaired["general_bits_per_byte_high"] - unpaired["general_bits_per_byte_low"] > 0.5
    with pytest.raises(SystemExit, match="dvc repro evaluate"):
        forgetting.change(before, after[1:])


@pytest.mark.engine
def test_likelihoods_are_those_that_transformers_computes(tmp_path: Path) -> None:
    records.write(tmp_path / "rows.jsonl", [row("a", GOLD, [OTHER, TOOL]), row("b", None, [OTHER])])
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", LIKELIHOODS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    assert found["expected"] == pytest.approx(found["found"], rel=1e-4)
    assert found["bytes"] == [4, 36, 20]
    assert found["asked"] == ["a", "b"]
    assert found["golden"] == [True]  # asked apart, answered alike
    assert found["said"] == [["c", True]]
    assert found["tasks"] == ["call", "choose", "abstain", "domain", "general", "answer", "golden"]
    right = [not found["likelier"][0], found["likelier"][1]]
    assert found["abstain"] == right
    assert found["choose"] == [found["first"][0], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate", "dpo"])
    evaluate.TEST.parent.mkdir(parents=True)
    evaluate.GOLDEN.touch()


def settings(domain: int, *tasks: Task) -> evaluate.Evaluate:
    return evaluate.Evaluate("bfloat16", "bfloat16", 8, 0.95, None, domain, list(tasks), [], 64, 1)


@pytest.mark.usefixtures("here")
def test_an_empty_test_split_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "load", lambda _section, _schema: settings(domain=32))
    evaluate.TEST.touch()
    with pytest.raises(SystemExit, match=r"data/mix/test\.jsonl: no rows .*split\.test"):
        evaluate.main()


@pytest.mark.usefixtures("here")
def test_no_rows_of_the_domain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "load", lambda _section, _schema: settings(domain=0))
    records.write(evaluate.TEST, [row("a", None, [OTHER])])
    with pytest.raises(SystemExit, match=r"evaluate\.domain is 0: .*conf/evaluate"):
        evaluate.main()


def chat(name: str, source: str, answer: str) -> Row:
    turns = [{"role": "user", "content": name}, {"role": "assistant", "content": answer}]
    return {"id": name, "kind": "chat", "source": source, "category": "chat", "messages": turns, "tools": []}


INTENT = Task("intent", "intents*.jsonl", ["accuracy", "macro_f1"], None, None)


@pytest.mark.usefixtures("here")
def test_tasks_of_ones_own_are_enough_and_measured_of_the_answers() -> None:
    rows = [chat("a", "intents.jsonl", "card"), chat("b", "intents-2.jsonl", "loan"), chat("c", "talk.jsonl", "Hello!")]
    records.write(evaluate.TEST, rows)
    records.write(evaluate.GENERAL, [])
    cfg = settings(1, INTENT)
    asked, chosen = evaluate.prepared(cfg)
    assert [one["id"] for one in asked.chats] == ["a", "b"]
    assert (asked.rows, [one["id"] for one in asked.texts["domain"]]) == ([], ["a"])
    answers = [{"id": name, "reference": label, "output": "Card."} for name, label in (("a", "card"), ("b", "loan"))]
    likely = [{"task": task, "id": "a", "bits": 1.0, "bytes": 1, "tokens": 1} for task in ("domain", "general")]
    values = evaluate.measured(harness.Evaluation([], likely, [], answers, [], {}), asked, chosen, cfg)
    assert (values["intent_accuracy"], values["intent_n"], values["n"]) == (0.5, 2, 0)


@pytest.mark.usefixtures("here")
def test_a_task_without_rows_names_the_sources_that_there_are() -> None:
    records.write(evaluate.TEST, [chat("c", "talk.jsonl", "Hello!")])
    with pytest.raises(SystemExit, match=r"'intent': no chat row .* is of intents\*\.jsonl \(there are: talk\.jsonl\)"):
        evaluate.prepared(settings(1, INTENT))
