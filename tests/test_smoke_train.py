"""The smoke training: what it draws, what it foretells, and that it leaves the repository as it was."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from commands import smoke_train as smoke
from commands.compose import composed
from temper import curves, metrics, records

COST = {"tokens": 1000, "tokens_per_second": 100.0, "peak_memory_gb": 8.3, "seconds": 60.0}
SETTINGS = {"epochs": 2, "max_steps": None, "global_batch": 4}
WHOLE = smoke.Drawn(10, 100)


def test_a_share_of_the_rows_is_drawn_in_their_order(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    records.write(source, ({"n": number} for number in range(100)))
    assert smoke.draw(source, tmp_path / "a/rows.jsonl", 0.1, 4) == smoke.Drawn(10, 100)
    drawn = [row["n"] for row in records.read(tmp_path / "a/rows.jsonl")]
    assert len(drawn) == 10
    assert drawn == sorted(drawn)
    # A few steps' worth where the share gives less, and no more than there is.
    assert smoke.draw(source, tmp_path / "b/rows.jsonl", 0.1, 16) == smoke.Drawn(16, 100)
    assert smoke.draw(source, tmp_path / "c/rows.jsonl", 0.1, 160) == smoke.Drawn(100, 100)
    assert (tmp_path / "c/rows.jsonl").read_bytes() == source.read_bytes()
    with pytest.raises(SystemExit, match=r"none\.jsonl is missing: run the stage that writes it"):
        smoke.draw(tmp_path / "none.jsonl", tmp_path / "d", 0.1, 1)


def test_the_real_run_is_foretold_from_the_drawn_rows() -> None:
    settings = OmegaConf.create(SETTINGS)
    # Both epochs over a tenth of the rows took 10 s.
    told = smoke.projected("sft", COST, {"steps": 5, "epochs": 2.0}, settings, WHOLE)
    assert told == "about 50 steps in 1.7 min, loading and merging not counted"
    # Stopped by --steps in the first quarter of the first epoch.
    assert smoke.projected("sft", COST, {"steps": 5, "epochs": 0.25}, settings, WHOLE).startswith(
        "about 400 steps in 13.3 "
    )
    # Never more than max_steps.
    settings.max_steps = 20
    assert smoke.projected("sft", COST, {"steps": 5, "epochs": 2.0}, settings, WHOLE).startswith(
        "about 20 steps in 0.7 "
    )
    # GRPO: 64 answers a step are 8 prompts; no tokens are counted.
    grpo = OmegaConf.create(SETTINGS | {"epochs": 3, "global_batch": 64, "generations": 8})
    cost = {"seconds": 60.0}
    assert smoke.projected("grpo", cost, {"steps": 4, "epochs": 1.0}, grpo, smoke.Drawn(32, 320)).startswith(
        "about 120 steps in 30.0 "
    )


def test_few_rows_are_gone_through_again_and_it_says_so(tmp_path: Path) -> None:
    settings = OmegaConf.create(SETTINGS)
    metrics.write(tmp_path / "reports/timing/training/sft.json", COST)
    metrics.write(tmp_path / "reports/training/sft.json", {"steps": 20, "epochs": 8.0})
    told = list(smoke.told("sft", tmp_path, settings, WHOLE))
    assert told[0] == "passes       8.0 over so few rows, to make 20 steps; 2 in the real run"
    assert told[-1] == "real run     about 50 steps in 0.4 min, loading and merging not counted"
    metrics.write(tmp_path / "reports/training/sft.json", {"steps": 20, "epochs": 2.0})
    assert [line.split()[0] for line in smoke.told("sft", tmp_path, settings, WHOLE)] == ["speed", "peak", "real"]


def test_the_loss_is_judged_by_the_steps_after_warm_up(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("health: {first_steps: 4}\n")
    rates = [0.0, 0.1, 0.2, 0.2, 0.1, 0.0]  # four at the peak or after it
    curve = [{"step": step, "loss": 1.0, "learning_rate": rate} for step, rate in enumerate(rates, start=1)]
    curves.write(tmp_path / "reports/plots/sft.csv", curve)
    assert smoke.verdict(tmp_path, 0, "sft") == "healthy"
    assert smoke.verdict(tmp_path, 1, "sft").startswith("not healthy")
    for name in ("sft", "grpo"):
        curves.write(tmp_path / f"reports/plots/{name}.csv", curve[:5])
    assert smoke.verdict(tmp_path, 0, "sft") == (
        "nothing unhealthy, but 3 steps after warm-up are too few to see whether the loss falls (health.first_steps is 4): "
        "raise --steps"
    )
    assert smoke.verdict(tmp_path, 0, "grpo") == "healthy"  # whose loss is none that falls


def test_rows_that_fill_a_step() -> None:
    settings = OmegaConf.create(SETTINGS | {"generations": 2})
    assert [smoke.rows_a_step(name, settings) for name in ("sft", "dpo", "kto", "grpo")] == [4, 4, 2, 2]


def test_arguments_out_of_range_say_so() -> None:
    with pytest.raises(SystemExit, match=r"--share is 2\.0: choose a share"):
        smoke.parsed(["--share", "2"])
    with pytest.raises(SystemExit, match=r"--steps is 0: choose 1 or more"):
        smoke.parsed(["--steps", "0"])
    assert smoke.parsed(["--stages", "sft,dpo", "model=tiny"]).stages == ["sft", "dpo"]


@pytest.mark.parametrize(
    ("recipe", "named", "trained"),
    [("sft-dpo", None, ["sft"]), ("sft-dpo", ["sft", "dpo"], ["sft", "dpo"]), ("orpo", None, ["orpo"])],
)
def test_the_recipe_says_what_trains(tmp_path: Path, recipe: str, named: list[str] | None, trained: list[str]) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"recipe={recipe}"]))
    (tmp_path / "dvc.yaml").symlink_to(Path("dvc.yaml").absolute())
    assert [stage.script for stage in smoke.asked(named, tmp_path)] == trained
    with pytest.raises(SystemExit, match=r"--stages: grpo is no training of this recipe: choose of "):
        smoke.asked(["grpo"], tmp_path)
    with pytest.raises(SystemExit, match="preferences is no training"):
        smoke.asked(["preferences"], tmp_path)


def test_a_model_that_is_missing_says_which_stage_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"models/sft is missing: run `make sft`, or put sft first in --stages"):
        smoke.provide(Path("models/sft"), tmp_path / "scratch")


# A byte-level tokenizer and two random layers.
BASE = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

letters = ["<s>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<end>", pad_token="<s>")
tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<end>"]})
tokenizer.chat_template = (
    "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
set_seed(17)
model = LlamaForCausalLM(LlamaConfig(vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=0))
model.save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""


def chat(number: int) -> dict[str, object]:
    turns = [("user", f"What is {number} and 1?"), ("assistant", f"It is {number + 1}.")]
    return {"id": str(number), "messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.engine
def test_a_healthy_and_an_unhealthy_run_leave_the_tree_as_it_was(
    tmp_path: Path, clone_to: Callable[[Path], Path]
) -> None:
    root = clone_to(tmp_path / "tree")
    for split, count in (("train", 400), ("validation", 20)):
        records.write(root / f"data/audit/{split}.jsonl", map(chat, range(count)))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", BASE, str(root / "models/base")]
    subprocess.run(command, check=True, capture_output=True)

    healthy = run(root, "sft.learning_rate=1e-3", "health.first_steps=8")
    assert healthy.returncode == 0, healthy.stdout[-2000:] + healthy.stderr[-2000:]
    lines = healthy.stdout.splitlines()
    assert lines[-7] == "sft@base on 16 of 400 rows"
    assert lines[-6].endswith(" in 20 steps")
    assert lines[-5] == "  passes       2.5 over so few rows, to make 20 steps; 2 in the real run"
    assert [line.split()[0] for line in lines[-4:]] == ["speed", "peak", "real", "verdict"]
    assert lines[-1] == "  verdict      healthy"

    unhealthy = run(root, "sft.learning_rate=1e6")
    assert unhealthy.returncode == 1
    assert "sft: step " in unhealthy.stderr.splitlines()[-1]
    assert "lower sft.learning_rate" in unhealthy.stderr.splitlines()[-1]
    assert unhealthy.stdout.splitlines()[-1] == "  verdict      not healthy: the reason is above"

    left = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    assert left.stdout == ""
    assert sorted(path.name for path in (root / "models").iterdir()) == ["base"]


def run(root: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """Twenty steps, where 16 rows, one on each of two processes, make eight."""
    settings = ["sft.packing=false", "sft.sequence_length=64", "sft.evals=1", "sft.saves=1", "sft.micro_batch=1"]
    settings += ["hardware.runtime.processes=2"]
    command = [sys.executable, "-m", "commands.smoke_train", "--steps", "20", "--share", "0.04", *settings, *overrides]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
