"""Health checks: what a log must show for a run to be stopped, that healthy ones pass, and real runs made to fail."""

import csv
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands.compose import composed
from temper import params
from temper.health import Health, Monitor

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf/health/default.yaml"
Log = Sequence[dict[str, Any]]


def settings(**changed: Any) -> Health:
    tree = OmegaConf.create({"health": OmegaConf.load(CONF)})
    for key, value in changed.items():
        OmegaConf.update(tree, f"health.{key}", value)
    return params.fitted(tree, "health", Health, "conf/health")


def seen(
    log: Iterable[dict[str, Any]], stage: str = "sft", *, answer_tokens: float = 1.0, **changed: Any
) -> str | None:
    """What the monitor says first about a log whose entries are a step each."""
    monitor = Monitor(settings(**changed), stage, answer_tokens)
    found = (monitor.see(entry, step) for step, entry in enumerate(log, start=1))
    return next(filter(None, found), None)


def losses(*values: float) -> Log:
    return [{"loss": value} for value in values]


def noisy(count: int, level: float = 1.0) -> list[float]:
    draw = random.Random(1)
    return [level * draw.uniform(0.7, 1.3) for _ in range(count)]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_runs_on_record_pass(stage: str) -> None:
    with (ROOT / f"reports/plots/{stage}.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert len(rows) > 20
    assert seen(rows, stage) is None
    # The same run is stopped where it is held to what it does not reach.
    assert seen(rows, stage, first_steps=10, fall=0.99)


def test_a_loss_that_is_no_number_is_named_with_step_and_remedy() -> None:
    assert seen(losses(1.0, 0.9, math.nan)) == (
        "sft: step 3: loss is nan, expected a number: lower sft.learning_rate, use precision fp32, or, for a run that recovers by "
        "itself, set health.finite to null in conf/health"
    )
    assert seen([{"loss": 1.0, "grad_norm": math.inf}])
    assert seen([{"loss": 1.0}, {"eval_loss": math.nan}])
    assert seen([{"loss/policy_avg": math.nan}], "ppo")
    assert seen(losses(1.0, math.nan), finite=None) is None


def test_a_spike_that_stays_is_told_from_one_batch() -> None:
    calm = noisy(30)
    assert seen(losses(*calm, 40, 38, 1, 1)) is None
    found = seen(losses(*calm, 40, 38, 35))
    assert found
    assert found.startswith("sft: step 33: loss is 35, ")
    assert "times the lowest median of 20 steps, and over 5 times that for 3 steps: lower sft.learning_rate" in found
    assert found.endswith("or raise health.spike in conf/health")
    assert seen(losses(*calm, 40, 38, 35), spike=None, first_steps=None) is None
    # From the third step on, as by a learning rate that warms up from 0; and by and by.
    assert "step 6: loss is 35" in str(seen(losses(1.1, 2.4, 40, 38, 36, 35)))
    assert seen(losses(*noisy(5), *[1.5**step for step in range(30)]))


def test_a_hard_batch_of_a_run_that_has_learned_is_no_spike() -> None:
    learned = [2.0] * 10 + [0.5] * 10 + [0.001] * 40
    assert seen(losses(*learned, 0.4, 0.5, 0.6, 0.3)) is None


def test_losses_of_policy_gradients_are_no_spikes() -> None:
    assert seen(losses(*[0.001] * 30, 0.5, 0.5, 0.5), "grpo") is None


def test_a_loss_that_does_not_fall_after_warm_up() -> None:
    flat = losses(*[2.0] * 60)
    found = seen(flat)
    assert found
    assert found.startswith(
        "sft: step 50: loss is 2 over the last 25 steps and was 2 at the start, expected it to fall by 1%"
    )
    assert "raise sft.learning_rate" in found
    assert seen(flat, first_steps=None) is None
    assert seen(losses(*[2 - step / 100 for step in range(60)])) is None
    # While the learning rate rises there is no hurry: ten steps of warm-up put the check off to step 60.
    warmed = [{"loss": 2.0, "learning_rate": min(step, 10) / 10} for step in range(70)]
    assert str(seen(warmed)).startswith("sft: step 60: ")
    assert seen(warmed[:59]) is None


def test_a_validation_loss_that_never_was_below_the_untrained_one() -> None:
    falling = losses(*[2 - step / 100 for step in range(80)])
    log = [{"eval_loss": 2.0}, *falling[:60]]
    found = seen([*log, {"eval_loss": 2.0}])
    assert found
    assert "eval_loss is 2 and was 2 before the first step" in found
    assert seen([*log, {"eval_loss": 1.5}, *falling[60:], {"eval_loss": 2.5}]) is None
    # Too early to tell, or without an evaluation before the first step to compare with.
    assert seen([{"eval_loss": 2.0}, *falling[:20], {"eval_loss": 2.0}]) is None
    assert seen([*falling[:60], {"eval_loss": 1.0}, *falling[60:], {"eval_loss": 2.0}]) is None


def test_a_gradient_norm_far_over_the_largest() -> None:
    calm = [{"grad_norm": value} for value in [0.0, 0.0, *noisy(30)]]
    assert seen([*calm, *[{"grad_norm": 1e4}] * 2, *calm]) is None
    found = seen([*calm, *[{"grad_norm": 1e4}] * 3], "grpo")
    assert found
    assert "grad_norm is 1e+04" in found
    assert "times the largest of the last 20 steps" in found
    assert found.endswith("lower grpo.learning_rate or raise health.grad_norm in conf/health")
    assert seen([*calm, *[{"grad_norm": 1e4}] * 3], grad_norm=None) is None


@pytest.mark.parametrize("equal", [{"frac_reward_zero_std": 1.0, "reward_std": 0.3}, {"reward_std": 0.0}])
def test_rewards_that_are_all_equal_teach_nothing(equal: dict[str, float]) -> None:
    different = {"frac_reward_zero_std": 0.5, "reward_std": 0.3}
    assert seen([*[equal] * 19, different, *[equal] * 19], "grpo") is None
    found = seen([different, *[equal] * 20], "grpo")
    assert found
    assert found.startswith("grpo: step 21: ")
    assert "for 20 steps in a row: answers to the same prompt all get the same reward" in found
    assert seen([equal] * 30, "grpo", equal_rewards=None) is None
    assert seen([{"reward_std": None}] * 30, "grpo") is None


@pytest.mark.parametrize(("stage", "key"), [("grpo", "kl"), ("kto", "kl"), ("ppo", "objective/kl")])
def test_a_policy_that_has_left_where_it_started(stage: str, key: str) -> None:
    calm = [{key: 1.0}] * 5
    assert seen([*calm, {key: 1e4}, {key: math.inf}, *calm], stage) is None
    found = seen([*calm, *[{key: 1e4}] * 3], stage)
    assert found
    assert f"{key} is 1e+04, over " in found
    assert found.endswith(f"or raise health.kl.{stage} in conf/health")
    off: dict[str, Any] = {f"kl.{stage}": None}
    assert seen([{key: 1e4}] * 9, stage, **off) is None
    assert seen([{key: 1e4}] * 9, "dpo") is None


def test_preferred_answers_that_become_unlikely() -> None:
    # Sums over answers of 50 tokens: from one nat a token to under three.
    falling = [{"logps/chosen": -50.0 - 5 * step} for step in range(60)]
    found = seen(falling, "dpo", answer_tokens=50)
    assert found
    assert "nats a token, under -3." in found
    assert found.endswith("or raise health.chosen_fall in conf/health")
    assert seen(falling[:20], "dpo", answer_tokens=50) is None
    assert seen(falling, "dpo", answer_tokens=50, chosen_fall=None) is None


def test_answers_that_collapse_explode_or_never_end() -> None:
    usual = [{"completions/mean_length": value, "completions/clipped_ratio": 0.2} for value in noisy(40, 100)]
    assert seen(usual, "grpo") is None
    short, long = [{"completions/mean_length": 2.0}] * 20, [{"completions/mean_length": 900.0}] * 20
    assert "expected at least 10% of that" in str(seen([*usual, *short], "grpo"))
    assert "expected at most 5 times as many" in str(seen([*usual, *long], "grpo"))
    assert seen([*usual, *short, *long], "grpo", collapse=None, explosion=None) is None
    # Tenfold, but over hundreds of steps.
    slow = [{"completions/mean_length": 100 * 1.01**step} for step in range(240)]
    assert seen(slow, "grpo") is None
    endless = [{"completions/clipped_ratio": 1.0}] * 20
    assert "100% of the answers are cut" in str(seen(endless, "grpo"))
    assert seen(endless[:19], "grpo") is None
    assert seen(endless, "grpo", cut=None) is None


def test_thresholds_are_strict_and_say_where_they_are() -> None:
    with pytest.raises(SystemExit, match=r"conf/health: section 'health': .*spikes"):
        settings(spikes=3)
    with pytest.raises(SystemExit, match=r"section 'health'"):
        settings(spike="high")


# A byte-level tokenizer and two random layers, trained by TRL's own trainers as badly as it takes.
RUNS = """
import json, os, shutil, sys
from pathlib import Path

from scripts.ppo import Ppo
from temper import health, params, ppo, records, reward_model, training

os.chdir(sys.argv[1])
training.prepare()
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

letters = {letter: number for number, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bare = Tokenizer(models.BPE(letters, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<s>", pad_token="<s>")
before = OmegaConf.load("params.yaml")

set_seed(17)
LlamaForCausalLM(LlamaConfig(
    vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).save_pretrained("model")

def run(name, stage, trainer, settings, policy=None, resume=None, thresholds={}, **given):
    OmegaConf.save(OmegaConf.merge(before, {"health": thresholds}), "params.yaml")
    own = {"output_dir": f"out/{name}", "report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 1,
           "logging_nan_inf_filter": False, "gradient_checkpointing": False, "per_device_train_batch_size": 4,
           "save_strategy": "no", "lr_scheduler_type": "constant"}
    policy = policy or LlamaForCausalLM.from_pretrained("model")
    made = trainer(policy, args=settings(**own | given.pop("args")), processing_class=tokenizer, **given)
    train(name, stage, made, resume)
    return policy

def train(name, stage, made, *resume):
    health.watch(made, stage)
    shutil.rmtree("reports", ignore_errors=True)
    said = None
    try:
        made.train(*resume)
    except SystemExit as error:
        said = str(error)
    curve = Path(f"reports/plots/{stage}.csv")
    found[name] = {"said": said, "steps": made.state.global_step, "curve": curve.read_text() if curve.is_file() else None}

found = {}
texts = Dataset.from_list([{"prompt": f"{n} and 1 is ", "completion": f"{n + 1}, of course"} for n in range(8)])
pairs = Dataset.from_list([{"prompt": f"{n} and 1 is ", "chosen": f"{n + 1}.", "rejected": f"{n + 2}!"} for n in range(8)])
# KTO's trainer estimates its KL from other rows' answers: it grows where all get the same.
liked = Dataset.from_list([{"prompt": f"{n} and 1 is ", "completion": "known.", "label": True} for n in range(8)])
prompts = Dataset.from_list([{"prompt": f"{n} and 1 is "} for n in range(64)])
sft = {"stage": "sft", "trainer": SFTTrainer, "settings": SFTConfig, "train_dataset": texts}
dpo = {"stage": "dpo", "trainer": DPOTrainer, "settings": DPOConfig, "train_dataset": pairs}
kto = {"stage": "kto", "trainer": KTOTrainer, "settings": KTOConfig, "train_dataset": liked}
grpo = {"stage": "grpo", "trainer": GRPOTrainer, "settings": GRPOConfig, "train_dataset": prompts}
sampled = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 16, "beta": 0.0}

def constant(completions, **_):
    return [1.0] * len(completions)

def short(completions, **_):
    return [-float(len(one)) for one in completions]

def long(completions, **_):
    return [float(len(one)) for one in completions]

run("healthy", **sft, args={"learning_rate": 1e-3, "max_steps": 12}, thresholds={"first_steps": 8, "window": 2})
run("spike", **sft, args={"learning_rate": 1.0, "max_steps": 20, "lr_scheduler_type": "constant_with_warmup",
                          "warmup_steps": 4})
run("nan", **sft, args={"learning_rate": 1e30, "max_steps": 20})
run("steep", **sft, args={"learning_rate": 1.0, "max_steps": 20}, thresholds={"spike": None, "grad_norm": 2.0})
run("flat", **sft, args={"learning_rate": 0.0, "max_steps": 20, "per_device_train_batch_size": 8},
    thresholds={"first_steps": 6})
looks = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
run("validation", **sft, args=looks | {"learning_rate": 0.0, "max_steps": 20}, eval_dataset=texts,
    thresholds={"first_steps": 6, "fall": -1.0})
flat = {"learning_rate": 0.0, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
run("cut off", **dpo, args=flat | {"max_steps": 4}, thresholds={"first_steps": 6})
run("resumed", **dpo, args=flat | {"max_steps": 12}, resume="out/cut off/checkpoint-4", thresholds={"first_steps": 6})
run("chosen", **dpo, args={"learning_rate": 0.1, "max_steps": 30}, thresholds={"spike": None, "grad_norm": None})
run("kl of kto", **kto, args={"learning_rate": 0.1, "max_steps": 30}, thresholds={"kl": {"kto": 5.0}})
run("equal", **grpo, args=sampled | {"learning_rate": 1e-4, "max_steps": 9}, reward_funcs=constant,
    thresholds={"equal_rewards": 4})
run("cut", **grpo, args=sampled | {"learning_rate": 1e-4, "max_steps": 9}, reward_funcs=constant,
    thresholds={"cut": 0.5, "window": 3})
run("kl", **grpo, args=sampled | {"learning_rate": 0.05, "max_steps": 30, "beta": 0.1}, reward_funcs=short,
    thresholds={"kl": {"grpo": 0.5}, "grad_norm": None})
policy = run("collapse", **grpo, args=sampled | {"learning_rate": 0.01, "max_steps": 40}, reward_funcs=short,
    thresholds={"collapse": 0.5, "window": 3, "cut": None, "grad_norm": None})
run("explosion", **grpo, args=sampled | {"learning_rate": 0.003, "max_steps": 40}, reward_funcs=long, policy=policy,
    thresholds={"explosion": 1.5, "window": 3, "cut": None, "grad_norm": None})

# The trainer of PPO that the stage makes, which reads chats, and pads with a token of its own.
bare.add_special_tokens(["<pad>"])
chats = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<s>", pad_token="<pad>",
                                chat_template="{{ messages[-1].content }}")
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=257))
for folder in ("policy", "models/reward"):
    model.save_pretrained(folder)
    chats.save_pretrained(folder)
turns = [[{"role": "user", "content": f"{n} and 1 is "}, {"role": "assistant", "content": f"{n + 1}"}] for n in range(64)]
records.write(Path("data/mix/preferences.jsonl"), [{"messages": turn} for turn in turns])
OmegaConf.save(OmegaConf.merge(before, {"health": {"kl": {"ppo": 0.1}}}), "params.yaml")
config = ppo.render(params.load("ppo", Ppo), Path("policy"))
config["trainer"] |= {"output_dir": "out/ppo", "report_to": "none", "learning_rate": 0.1, "response_length": 16, "kl_coef": 0.0,
                      "lr_scheduler_type": "constant"}
train("kl of ppo", "ppo", ppo.trainer(config))
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "params.yaml").write_text(composed([]))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", RUNS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1].removeprefix("FOUND "))
    return found


REASONS = {
    "spike": "sft: step 8: loss is ",
    "nan": "sft: step 2: loss is nan, expected a number",
    "steep": "sft: step 4: grad_norm is ",
    "flat": "sft: step 6: loss is 5.55 over the last 3 steps and was 5.55 at the start",
    "validation": "sft: step 6: eval_loss is 5.55 and was 5.55 before the first step, expected it to fall",
    "chosen": "nats a token, under ",
    "kl of kto": "kl is ",
    "kl of ppo": "objective/kl is ",
    "equal": "grpo: step 4: frac_reward_zero_std is 1 for 4 steps in a row",
    "cut": "of the answers are cut at their longest length",
    "kl": "kl is ",
    "collapse": "at the start, expected at least 50% of that",
    "explosion": "in the 3 before, expected at most 1.5 times as many",
}


@pytest.mark.engine
@pytest.mark.parametrize("name", REASONS)
def test_a_real_run_made_to_fail_is_stopped(runs: dict[str, dict[str, Any]], name: str) -> None:
    said, steps, curve = (runs[name][key] for key in ("said", "steps", "curve"))
    assert REASONS[name] in said
    assert f": step {steps}: " in said
    assert "\n" not in said
    assert said.endswith(" in conf/health")
    # What was seen up to there is left for whoever looks.
    rows = list(csv.DictReader(curve.splitlines()))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, steps + 1))
    logged = {"loss", "learning_rate"} if name == "kl of ppo" else {"loss", "grad_norm", "learning_rate"}
    assert logged <= rows[0].keys()


@pytest.mark.engine
def test_a_real_run_that_learns_is_not(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["healthy"] == {"said": None, "steps": 12, "curve": None}


@pytest.mark.engine
def test_a_resumed_run_knows_what_was_logged_before(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["cut off"]["said"] is None
    # The first six steps, of which four were another process's.
    assert runs["resumed"]["said"].startswith("dpo: step 6: loss is 0.6931 over the last 3 steps and was 0.6931")
    assert runs["resumed"]["curve"].startswith("step,")
    assert len(runs["resumed"]["curve"].splitlines()) == 7
