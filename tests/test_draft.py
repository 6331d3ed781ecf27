"""A draft head from a model's own answers: which prompts, what a killed run keeps, what the trainer said, and all for real."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.compose import composed
from scripts import draft as stage
from scripts.draft import Draft
from temper import draft, eagle3_trainer, model_shape, params, records
from temper.eagle3_shape import Head


@cache
def text() -> str:
    return composed([])


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draft:
    made = text()
    monkeypatch.chdir(tmp_path)
    Path("composed.yaml").write_text(made)
    return params.load("draft", Draft, Path("composed.yaml"))


def chat(name: str, words: int = 3) -> dict[str, Any]:
    turns = [{"role": "user", "content": " ".join(["word"] * words)}, {"role": "assistant", "content": "null"}]
    return {"id": name, "messages": turns, "tools": []}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer for which a word is a token."""
    monkeypatch.setattr(draft, "counter", lambda model: lambda chat: len(chat["messages"][0]["content"].split()))


def test_prompts_are_drawn_by_seed_without_answers_and_without_repeats(cfg: Draft, words: None) -> None:
    rows = [chat(f"r{number}") for number in range(40)]
    records.write("train.jsonl", [*rows, *rows, {"id": "t", "kind": "text", "text": "prose"}])
    chats, left = draft.prompts(Path("train.jsonl"), Path("model"), replace(cfg, rows=10))
    assert (len(chats), left) == (10, 0)
    assert all([turn["role"] for turn in one["messages"]] == ["user"] for one in chats)
    names = [one["id"] for one in chats]
    assert names == sorted(set(names), key=lambda name: int(name[1:]))  # in the order of the file
    again, _ = draft.prompts(Path("train.jsonl"), Path("model"), replace(cfg, rows=10))
    other, _ = draft.prompts(Path("train.jsonl"), Path("model"), replace(cfg, rows=10, seed=cfg.seed + 1))
    assert again == chats != other
    every, _ = draft.prompts(Path("train.jsonl"), Path("model"), replace(cfg, rows=1000))
    assert len(every) == 40


def test_a_prompt_that_leaves_no_room_for_its_answer_stays_out_and_is_counted(cfg: Draft, words: None) -> None:
    records.write("train.jsonl", [chat("a"), chat("b"), chat("long", words=50)])
    small = replace(cfg, sequence_length=64, max_tokens=20)
    chats, left = draft.prompts(Path("train.jsonl"), Path("model"), small)
    assert ([one["id"] for one in chats], left) == (["a", "b"], 1)
    with pytest.raises(SystemExit, match=r"^train\.jsonl: 0 of 3 prompts leave room for 62 tokens .*sequence_length"):
        draft.prompts(Path("train.jsonl"), Path("model"), replace(small, max_tokens=62))


def test_a_split_without_chats_is_named(cfg: Draft, words: None) -> None:
    records.write("rl.jsonl", [{"id": "t", "kind": "text", "text": "prose"}])
    with pytest.raises(SystemExit, match=r"^rl\.jsonl: no chats to answer: .*recipe\.draft=\[\]$"):
        draft.prompts(Path("rl.jsonl"), Path("model"), cfg)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompts": "test"}, "draft.prompts is 'test', expected train, preferences, rl"),
        ({"dtype": "float16"}, "draft.dtype is 'float16'"),
        ({"optimizer": "sgd"}, "draft.optimizer is 'sgd', expected adamw, muon"),
        ({"schedule": "step"}, "draft.schedule is 'step'"),
        ({"num_speculative_tokens": 0}, "draft.num_speculative_tokens is 0, expected 1 or more"),
        ({"epochs": 0}, "draft.epochs is 0"),
        ({"validation": 0.0}, "draft.validation is 0.0 of 384 rows"),
        ({"validation": 1.0}, "draft.validation is 1.0 of 384 rows, which leaves 0 to train on"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(cfg: Draft, changed: dict[str, Any], said: str) -> None:
    draft.require(cfg)
    with pytest.raises(SystemExit) as error:
        draft.require(replace(cfg, **changed))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_vocabulary_larger_than_the_models_is_refused(cfg: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text(text())
    write_shape(Path("model"), vocab_size=300)
    with pytest.raises(SystemExit, match=r"^draft\.vocabulary is 4096, and model knows 300 tokens"):
        stage.require(cfg, Path("model"), 1)
    stage.require(replace(cfg, vocabulary=None), Path("model"), 1)
    with pytest.raises(SystemExit, match=r"^draft: 2 processes, .* hardware\.runtime\.processes to 1$"):
        stage.require(replace(cfg, vocabulary=None), Path("model"), 2)
    with pytest.raises(SystemExit, match=r"^draft\.sequence_length is 4096, and model has 2048 positions"):
        stage.require(replace(cfg, sequence_length=4096), Path("model"), 1)


def write_shape(model: Path, **changed: int) -> None:
    config = {"num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152, "max_position_embeddings": 2048}
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config | changed))


def test_the_model_is_served_under_the_name_that_the_package_asks_for(cfg: Draft) -> None:
    write_shape(Path("model"))
    runtime = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True, "serve_port": None}
    flags = draft.Verifier(draft.Job(Path("model"), cfg, Path("scratch"), runtime), "--more").command
    given = dict(pairwise(flags))  # of a flag that is there twice the last one counts, as it does for vLLM
    assert (given["--served-model-name"], given["--max-model-len"]) == ("model", str(cfg.sequence_length))
    assert flags[-1] == "--more"


def generation(name: str, turn: int = 0) -> dict[str, Any]:
    """A line of speculators' answers."""
    return {
        "id": f"{name}_gen{turn}",
        "primary_id": name,
        "input_ids": [1, 2, 7, 8],
        "loss_mask": [0, 0, 1, 1],
        "text": "…",
        "metadata": {"endpoint": "http://127.0.0.1:40000", "usage": {}},
    }


def test_answers_lie_in_the_order_of_their_prompts_and_say_nothing_of_the_run() -> None:
    chats = [{"id": "b"}, {"id": "a"}]
    done = [generation("a"), generation("gone"), generation("b", 1), generation("b", 0)]
    found = list(draft.ordered(chats, done))
    assert [row["id"] for row in found] == ["b_gen0", "b_gen1", "a_gen0"]
    assert {key for row in found for key in row} == {"id", "input_ids", "loss_mask"}


def test_a_line_that_was_cut_short_is_neither_read_nor_written_behind(tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    assert (draft.whole(file), draft.lines_of(file)) == ([], 0)
    draft.mend(file)
    assert not file.exists()
    file.write_text('{"primary_id": "a"}\n{"primary_id": "b", "input_')
    assert draft.whole(file) == [{"primary_id": "a"}]
    draft.mend(file)
    assert file.read_text() == '{"primary_id": "a"}\n'


def test_all_answers_of_an_earlier_try_start_no_server(cfg: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(draft, "Verifier", refuse)
    scratch = Path("scratch")
    records.write(scratch / "raw.jsonl", [generation("b"), generation("a")])
    job = draft.Job(Path("model"), cfg, scratch, {})
    found = draft.answers(job, [{"id": "a"}, {"id": "b"}])
    assert [row["id"] for row in found] == ["a_gen0", "b_gen0"]
    assert draft.answers(job, []) == found  # sorted already


def test_empty_answers_are_left_out_and_other_failures_end_the_run(tmp_path: Path) -> None:
    file = tmp_path / "errors.jsonl"
    draft.refuse_failed(file)
    empty = {"id": "a", "metadata": {"error": "ValueError('empty assistant generation (sample 0)')"}}
    records.write(file, [empty])
    draft.refuse_failed(file)
    records.write(file, [empty, {"id": "b", "metadata": {"error": "RuntimeError('HTTP 500 from http://…')"}}])
    with pytest.raises(
        SystemExit, match=r"^draft: 1 prompts were not answered, the first with RuntimeError\('HTTP 500"
    ):
        draft.refuse_failed(file)


def test_hidden_states_that_do_not_fit_on_the_disk_are_refused(cfg: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shape(Path("model"))
    Path("scratch/hidden").mkdir(parents=True)
    monkeypatch.setattr(draft.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    job = draft.Job(Path("model"), replace(cfg, dtype="bfloat16"), Path("scratch"), {})
    draft.require_space(job, 200)  # × 4 states × 576 numbers × 2 bytes
    with pytest.raises(SystemExit, match=r"^draft: hidden states of 300 tokens take 0\.0 GB, .*TEMPER_SCRATCH"):
        draft.require_space(job, 300)
    Path("scratch/hidden/hs_0.safetensors").write_bytes(bytes(500_000))
    draft.require_space(job, 300)


def test_a_checkpoint_that_was_cut_short_is_deleted(tmp_path: Path) -> None:
    for epoch, files in (("0", ("model.safetensors", "training_state.json")), ("1", ("model.safetensors",))):
        for name in files:
            (tmp_path / epoch).mkdir(exist_ok=True)
            (tmp_path / epoch / name).touch()
    (tmp_path / "checkpoint_best").symlink_to("0")
    draft.drop_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "checkpoint_best"]
    draft.drop_unfinished(tmp_path / "none")


def line(step: int, epoch: int, loss: float, rate: Any = 1e-3) -> dict[str, Any]:
    values = {"loss": loss, "full_acc_0": 0.5, "full_acc_1": 0.25, "cond_acc_0": 0.5, "cond_acc_1": 0.5, "loss_0": 1.0}
    return {"step": step, "epoch": epoch, "train": values, "lr": rate, "global_step": step}


def validation(step: int, epoch: int, loss: float) -> dict[str, Any]:
    values = line(step, epoch, loss)["train"]
    return {"step": step, "epoch": epoch, "val": {f"{key}_epoch": value for key, value in values.items()}}


LINES = [
    line(0, 0, 9.0),
    line(1, 0, 7.0),
    validation(2, 0, 6.0),
    line(2, 1, 99.0),  # killed here, and resumed from epoch 0
    line(2, 1, 5.0, {"Muon": 2e-2, "AdamW": 5e-4}),
    line(3, 1, 4.0),
    validation(4, 1, 6.5),
]


def test_the_trainers_lines_are_a_curve_and_the_kept_epoch_is_summed_up(cfg: Draft) -> None:
    cfg = replace(cfg, num_speculative_tokens=2, vocabulary=1)
    log = draft.log(LINES)
    assert [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in log] == [
        (1, 9.0, None),
        (2, 7.0, None),
        (2, None, 6.0),
        (3, 5.0, None),
        (4, 4.0, None),
        (4, None, 6.5),
    ]
    assert log[3]["learning_rate"] == 5e-4
    rows = [{"input_ids": [1, 2, 7, 7, 8], "loss_mask": [0, 0, 1, 1, 1]}] * 2
    found = draft.summary(cfg, rows, log, epoch=0)
    assert found == pytest.approx(
        {
            "first_loss": 9.0,
            "train_loss": 4.0,
            "eval_loss": 6.0,
            "steps": 4,
            "epochs": 1,
            "validation_acceptance_0": 0.5,
            "validation_acceptance_1": 0.25,
            "validation_conditional_0": 0.5,
            "validation_conditional_1": 0.5,
            "validation_acceptance_length": 1.75,
            "answers": 2,
            "tokens": 10,
            "tokens_answered": 6,
            "vocabulary_coverage": 2 / 3,
        }
    )
    assert draft.columns(cfg) == ["acceptance_0", "acceptance_1", "eval_acceptance_0", "eval_acceptance_1"]


def test_the_epoch_of_the_lowest_validation_loss_is_kept_as_vllm_takes_it(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints/1"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"weights")
    config = {"eagle_aux_hidden_state_layer_ids": [1], "transformer_layer_config": {"vocab_size": 9}}
    (best / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"^draft: no checkpoint has a validation loss"):
        draft.keep(tmp_path, tmp_path / "draft")
    (tmp_path / "checkpoints/checkpoint_best").symlink_to("1")
    assert draft.keep(tmp_path, tmp_path / "draft") == 1
    assert (tmp_path / "draft/model.safetensors").read_bytes() == b"weights"
    kept = json.loads((tmp_path / "draft/config.json").read_text())
    assert kept["transformer_layer_config"] == {"vocab_size": 9, "num_aux_hidden_states": 1}


def test_every_figure_of_the_trainer_becomes_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = eagle3_trainer.Lines(tmp_path / "metrics.jsonl", epochs=3)
    lines.said -= 100
    for name, said in (("speculators.metrics", LINES[0]), ("speculators.metrics", "text"), ("other", LINES[1])):
        record = logging.LogRecord(name, logging.INFO, "", 0, said, None, None)
        record.step = 7
        lines.emit(record)
    (written,) = draft.whole(tmp_path / "metrics.jsonl")
    assert written == LINES[0]
    assert capsys.readouterr().out.startswith("draft: epoch 1/3, step 7, ")


def test_a_command_that_fails_is_one_line_with_its_last_words(cfg: Draft) -> None:
    Path("scratch").mkdir()
    job = draft.Job(Path("model"), cfg, Path("scratch"), {})
    draft.follow(job, [sys.executable, "-c", "print('done')"], lambda: 2, 2, "answers")
    with pytest.raises(SystemExit) as error:
        draft.follow(
            job,
            [sys.executable, "-c", "print('first'); exit('│ no such file │\\n╰───╯')"],
            lambda: 0,
            2,
            "hidden states",
        )
    assert "ended with status 1: no such file (all of it: scratch/hidden-states.log)" in str(error.value)
    assert "\n" not in str(error.value)


# Two layers of random weights and a tokenizer of single bytes.
MODEL = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
torch.manual_seed(0)
vocabulary = {letter: number for number, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
wrapped.save_pretrained(sys.argv[1])
sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
ends = dict(eos_token_id=0, bos_token_id=None, tie_word_embeddings=True)
LlamaForCausalLM(LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=512, **sizes, **ends)).save_pretrained(sys.argv[1])
"""


def tensors(file: Path) -> dict[str, list[int]]:
    """The shapes in a safetensors file, by name, from its header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


IN_SERVE = [sys.executable, "-m", "temper.envs", "run", "serve"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Path:
    """A tree in which a head was trained for a model of two layers."""
    root = clone_to(tmp_path_factory.mktemp("draft") / "tree")
    overrides = ["experiment=smoke", "draft.rows=24", "draft.epochs=2", "draft.vocabulary=128"]
    load = ["concurrency=[1,2]", "requests=[2,2]", "arrivals=2", "repeats=1", "warmup=0"]
    overrides += ["bench=default", "bench.bf16.dtype=float32", *(f"bench.gptq.load.{one}" for one in load)]
    overrides += ["bench.ngram.speculation.checked=4", "bench.ngram.speculation.max_tokens=8"]
    subprocess.run([sys.executable, "-m", "commands.compose", *overrides], cwd=root, check=True)
    subprocess.run([*IN_SERVE, "-c", MODEL, "models/dpo"], cwd=root, check=True, timeout=300)
    for split, count in (("train", 30), ("test", 4)):
        rows = [chat(f"{split}{number}", words=2 + number % 5) for number in range(count)]
        records.write(root / f"data/mix/{split}.jsonl", rows)
    records.write(root / "data/general.jsonl", [{"id": name, "text": f"Passage {name} of text."} for name in "ab"])
    train(root)
    return root


def train(root: Path) -> None:
    subprocess.run([*IN_SERVE, "-m", "scripts.draft", "eagle3", "dpo"], cwd=root, check=True, timeout=900)


@pytest.mark.engine
@pytest.mark.exhaustive
def test_a_head_trained_again_is_the_same(trained: Path) -> None:
    head = trained / "models/draft/model.safetensors"
    first = head.read_bytes()
    train(trained)
    assert head.read_bytes() == first


@pytest.mark.engine
def test_a_trained_head_changes_no_greedy_answer(trained: Path) -> None:
    root = trained
    learnt = json.loads((root / "reports/draft/eagle3.json").read_text())
    assert learnt["answers"] == learnt["prompts"] == 24
    assert learnt["train_loss"] < learnt["first_loss"]
    assert 0 <= learnt["validation_acceptance_1"] <= learnt["validation_acceptance_0"] <= 1
    assert "eval_acceptance_2" in (root / "reports/plots/draft.csv").read_text().splitlines()[0]
    assert not any((root / "models/draft").glob("*.txt"))
    told = "".join(file.read_text() for file in (root / "models/draft").glob("*.[jy]*"))
    assert str(root) not in told

    config = json.loads((root / "models/dpo/config.json").read_text())
    head = Head(model_shape.of(config | {"head_dim": 64}, ""), 1, 128, read=1, steps=3, length=512, on_cpu=True)
    sizes = {name: prod(shape) for name, shape in tensors(root / "models/draft/model.safetensors").items()}
    assert sum(size for name, size in sizes.items() if name == "fc.weight" or "_proj" in name) == head.trained()

    for name, folder in (("eagle3", "draft"), ("ngram", "dpo")):
        subprocess.run([*IN_SERVE, "-m", "scripts.bench", name, folder, "dpo"], cwd=root, check=True, timeout=900)
    head, lookup = (json.loads((root / f"reports/bench/{name}.json").read_text()) for name in ("eagle3", "ngram"))
    for found in (head, lookup):
        assert found["lossless"] == 1
        # Random weights have no two tokens as likely as each other but for the last bits of float32.
        assert found["lossless_gap"] < 1e-3
        assert 0 < found["lossless_tokens"] <= 6 * 8
        gap = found["domain_tokens_per_step"] - found["generic_tokens_per_step"]
        assert found["gap_tokens_per_step"] == pytest.approx(gap, abs=1e-4)
    for text in ("domain", "generic"):
        assert head[f"{text}_drafts"] > 0
        assert 0 <= head[f"{text}_acceptance_at_2"] <= head[f"{text}_acceptance_at_0"] <= 1
    assert head["c2_tokens_per_second"] > 0
