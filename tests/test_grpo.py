"""GRPO: what TRL is told, what is refused before it starts, and runs with the real engines on a model of random weights."""

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from commands.compose import composed
from scripts import grpo as script
from scripts.grpo import Grpo
from temper import envs, grpo, hardware, params, records, sandbox, vllm
from temper.records import Row

ROOT = Path(__file__).resolve().parent.parent
START = Path("models/sft")
WEIGHTS = {"exact": 1.0, "format": 0.2}


def settings(folder: Path, *overrides: str) -> Grpo:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("grpo", Grpo, folder / "params.yaml")


def asked(question: str, reference: str) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reference}]
    return {"id": question, "kind": "chat", "messages": turns, "tools": []}


def refusal(cfg: Grpo) -> str:
    with pytest.raises(SystemExit) as error:
        grpo.render(cfg, START, 1, WEIGHTS)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_global_batch_is_kept_whatever_the_processes(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "grpo.global_batch=64", "grpo.micro_batch=4")
    for processes in (1, 2, 8):
        trainer = grpo.render(cfg, START, processes, WEIGHTS)["trainer"]
        assert trainer["gradient_accumulation_steps"] * trainer["per_device_train_batch_size"] * processes == 64


def test_a_micro_batch_holds_the_answers_to_one_prompt(tmp_path: Path) -> None:
    trainer = grpo.render(settings(tmp_path, "grpo.generations=4"), START, 1, WEIGHTS)["trainer"]
    assert trainer["per_device_train_batch_size"] == trainer["num_generations"] == 4


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("grpo.rollouts=vllm-remote", "grpo.rollouts is 'vllm-remote', expected one of transformers, vllm"),
        ("grpo.prompts=rls", "grpo.prompts is 'rls', expected preferences or rl: correct it in conf/grpo"),
        ("grpo.loss=ppo", "grpo.loss is 'ppo', expected one of grpo, dr_grpo, dapo"),
        ("grpo.scale_rewards=std", "grpo.scale_rewards is 'std', expected one of group"),
        ("grpo.global_batch=12", "grpo.global_batch is 12, not a multiple"),
    ],
)
def test_what_trl_does_not_know_is_refused_by_its_key(tmp_path: Path, override: str, named: str) -> None:
    assert refusal(settings(tmp_path, override)).startswith(named)


def test_what_is_saved_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    config = grpo.render(settings(tmp_path), START, 1, WEIGHTS)
    assert str(Path.cwd()) not in json.dumps(config)
    assert not {"output_dir", "report_to"} & config["trainer"].keys()
    assert config["trainer"]["reward_weights"] == [1.0, 0.2]


def test_prompts_that_nothing_verifies_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    records.write(file, [asked("Hello", "Hi")])
    with pytest.raises(SystemExit, match=r"preferences\.jsonl: none of 1 prompts can be verified by exact") as error:
        grpo.prompts(file, {"exact": 1.0})
    assert "\n" not in str(error.value)
    records.write(file, [asked("Hello", "Hi"), asked("1 + 1", "#### 2")])
    assert [row["id"] for row in grpo.prompts(file, {"arithmetic": 1.0})] == ["1 + 1"]


def test_the_sandbox_is_tried_before_a_run_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[sandbox.Limits] = []
    monkeypatch.setattr(sandbox, "require", tried.append)
    cfg = settings(tmp_path, "grpo.rollouts=transformers", "grpo.sandbox.seconds=9")
    script.require(cfg, {"exact": 1.0})
    assert tried == []
    script.require(cfg, {"code": 1.0})
    assert [limits.seconds for limits in tried] == [9]


def test_a_gpu_wants_vllm_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(vllm, "require_build", lambda: asked.append(None))
    monkeypatch.setattr(envs, "is_built", lambda env: True)
    script.require(settings(tmp_path, "grpo.rollouts=transformers"), WEIGHTS)
    assert not asked
    script.require(settings(tmp_path, "grpo.rollouts=vllm"), WEIGHTS)
    assert asked


def test_vllm_without_its_environment_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^grpo\.rollouts is 'vllm': run `make env-serve`"):
        script.require(settings(tmp_path, "grpo.rollouts=vllm"), WEIGHTS)


@pytest.mark.parametrize("mode", ["vllm-colocate", "vllm-server"])
def test_vllm_of_trl_is_refused_where_the_trainer_has_none(tmp_path: Path, mode: str) -> None:
    own = f"grpo.rollouts={mode}", "grpo.server_url=http://127.0.0.1:8000"
    with pytest.raises(
        SystemExit,
        match=rf"^grpo\.rollouts is '{mode}', which wants vLLM in the environment `train`.* choose 'vllm' in conf/grpo$",
    ):
        script.require(settings(tmp_path, *own), WEIGHTS)


def test_a_server_without_its_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    sys.modules["vllm"].__spec__ = ModuleSpec("vllm", None)
    with pytest.raises(
        SystemExit, match=r"^grpo\.rollouts is 'vllm-server' and grpo\.server_url is null: set it in conf/grpo"
    ):
        script.require(settings(tmp_path, "grpo.rollouts=vllm-server"), WEIGHTS)


def test_each_epoch_has_an_order_of_its_own_and_steps_are_whole() -> None:
    numbers = grpo.order(10, 3, None, 4, 17)
    assert len(numbers) == 28
    assert sorted(numbers[:10]) == sorted(numbers[10:20]) == list(range(10))
    assert numbers[:10] != numbers[10:20]
    assert numbers == grpo.order(10, 3, None, 4, 17) != grpo.order(10, 3, None, 4, 18)
    assert grpo.order(10, 3, 2, 4, 17) == numbers[:8]
    # A longer run begins as a shorter one does.
    assert grpo.order(10, 9, None, 4, 17)[:28] == numbers
    with pytest.raises(SystemExit, match=r"^grpo: 3 prompts in all, fewer than the 4 of one step .*global_batch"):
        grpo.order(3, 1, None, 4, 17)


def test_a_summary_compares_the_last_tenth_with_the_first() -> None:
    log: list[dict[str, Any]] = [
        {
            "step": step,
            "reward": step / 10,
            "frac_reward_zero_std": 0.25,
            "completions/mean_length": 30.0 - step,
            "completions/clipped_ratio": 0.0,
            "rewards/exact/mean": step / 20,
            "rewards/exact/std": 0.1,
            "kl": 0.01 * step,
            "sync/logp_difference/mean": 1e-5,
            "sync/logp_difference/max": 1e-4 * step,
            "step_time": float(step),
        }
        for step in range(1, 21)
    ]
    found = grpo.summary([*log, {"step": 20, "train_runtime": 1.0}])
    assert found == pytest.approx(
        {
            "reward_first": 0.15,
            "reward_last": 1.95,
            "reward_exact": 0.975,
            "zero_std_share": 0.25,
            "completion_length": 10.5,
            "completions_cut": 0.0,
            "kl": 0.195,
            "sync_mean": 1e-5,
            "sync_max": 2e-3,
        }
    )
    assert grpo.seconds_per_step(log) == {"seconds_per_step": 11.0}


# A model of bytes whose random answers hold a digit, which the reward `format` asks for here, about every second time.
MODEL = """
import json, shutil, sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
torch.manual_seed(0)
vocabulary = {letter: number for number, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
wrapped.save_pretrained("models/sft")
sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
ends = dict(eos_token_id=0, bos_token_id=None)
LlamaForCausalLM(LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=512, tie_word_embeddings=True, **sizes, **ends)
    ).save_pretrained("models/sft")
"""
PREPARE = """
from temper import checkpoints, rollouts, training, trl
training.prepare()
config = json.loads(Path("config.json").read_text())
trl.check(config)
def run(name, checkpoint=None, **changed):
    scratch = Path(name)
    scratch.mkdir()
    return trl.train(config | changed, scratch, checkpoint, [], 1)
def same(*names):
    return len({(Path(name) / "out/adapter_model.safetensors").read_bytes() for name in names}) == 1
"""
# TRL's own computation of log-probabilities, gradients included, against the shared one.
SHARED = """
from types import SimpleNamespace
from temper import grpo, grpo_trainer
from trl import GRPOTrainer
settings = config["trainer"] | {"output_dir": "plain", "report_to": "none"}
made = grpo.trainer(config | {"rollouts": "transformers", "trainer": settings})
made.model.train()
torch.manual_seed(1)
ids, mask = torch.randint(1, 200, (6, 20)), torch.ones(6, 20, dtype=torch.long)
ids[1:3, :12] = ids[0, :12]
ids[3:5, :12] = ids[3, :12]
mask[3:5, :4], mask[1, 15:], mask[4, 19:] = 0, 0, 0
with torch.no_grad():
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
found = []
for method in (grpo_trainer.Trainer, GRPOTrainer):
    made.model.zero_grad()
    logps, entropies, _ = method._get_per_token_logps_and_entropies(made, made.model, ids, mask, 8, compute_entropy=True)
    kept = mask[:, -8:]
    (logps * kept).sum().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in made.model.parameters() if parameter.requires_grad])
    found.append((logps * kept, entropies * kept, gradient))
made.sampler, made.policy_logps = SimpleNamespace(tolerance=1e-3), found[0][0].detach()
made.verify(made.policy_logps + 5e-4, kept.bool())
made.verify(made.policy_logps + 9, kept.bool() & False)
try:
    made.verify(made.policy_logps + 5e-3, kept.bool())
except SystemExit as error:
    assert str(error).startswith("grpo: step 1: the sampler's weights are not the policy's: its log-probabilities"), error
else:
    raise AssertionError("a sampler that computes with other weights went unseen")
difference = [float((ours - theirs).detach().abs().max()) for ours, theirs in zip(*found, strict=True)]
assert found[0][2].abs().max() > 0.1 and max(difference) < 1e-4, difference
"""
RUNS = """
log = run("whole")
steps = [entry for entry in log if "reward" in entry]
assert len(steps) == 4, log
assert all(entry["sync/logp_difference/mean"] < 1e-4 for entry in steps), steps
assert any(entry["frac_reward_zero_std"] < 1 for entry in steps) and any(entry["grad_norm"] for entry in steps), steps
run("resumed", Path("whole/out/checkpoint-2"))
assert same("whole", "resumed")
load, loaded = rollouts.Engine.load, []
def deaf(engine, weights):
    if not loaded:
        load(engine, weights)
    loaded.append(weights)
rollouts.Engine.load = deaf
try:
    run("stale")
except SystemExit as error:
    print(error)
else:
    raise AssertionError("a sampler with old weights went unseen")
"""
# What each process of a run was answered, by whom.
NOTED = """
import json, sys
from pathlib import Path
from temper import rollouts, stage, training, trl
answered, scratch = rollouts.Rollouts.__call__, Path(sys.argv[-1])
def noted(self, prompts, trainer):
    answers = answered(self, prompts, trainer)
    with (scratch / f"{trainer.accelerator.process_index}.jsonl").open("a") as file:
        file.write(json.dumps({"digest": self.digest, "prompts": prompts, "answers": answers["completion_ids"]}) + "\\n")
    return answers
rollouts.Rollouts.__call__ = noted
if __name__ == "__main__":
    stage.bind_to_parent()
    training.prepare()
    trl._run(scratch)
"""
RANKS = """
from temper import launcher
Path("noted.py").write_text(NOTED)
runtime = launcher.params.runtime()
for processes in (1, 2):
    scratch = Path(f"on{processes}")
    scratch.mkdir()
    own = dict(gradient_accumulation_steps=2 // processes, output_dir=str(scratch / "out"), report_to="none")
    changed = {"trainer": config["trainer"] | own, "checkpoint": None, "epochs": 1}
    (scratch / "run.json").write_text(json.dumps(config | changed))
sys.argv.append("on1")
import noted
trl._run(noted.scratch)
launcher.params.runtime = lambda: runtime | {"processes": 2}
launcher.run(["noted.py", "on2"], "grpo")
"""
IN_PROCESS = """
config["rollouts"] = "transformers"
log = run("here")
assert not any(key.startswith("sync") for entry in log for key in entry)
run("again")
assert same("here", "again")
"""

KNOWN = """
import inspect, json, sys
from pathlib import Path
from temper import grpo, trl
from trl import GRPOTrainer
for config in json.loads(Path(sys.argv[1]).read_text()):
    trl.check(config)
source = inspect.getsource(GRPOTrainer._compute_loss)
assert all(f'"{loss}"' in source for loss in grpo.LOSSES)
print("known")
"""


def in_train(folder: Path, code: str, *overrides: str) -> str:
    """What `code` prints at last, run in the train environment in `folder`, where the run's configuration lies."""
    small = [
        "generations=4",
        "global_batch=8",
        "max_tokens=16",
        "epochs=2",
        "learning_rate=1e-2",
        "saves=2",
        "overlong=4",
        "warmup_ratio=0",
    ]
    own = [f"grpo.{one}" for one in (*small, "lora.rank=4", "pattern='(?s).*[0-9].*'", "beta=0.05")]
    cfg = settings(folder, *overrides, *own)
    config = grpo.render(cfg, START, 1, {"arithmetic": 1.0, "format": 1.0, "length": 0.1})
    (folder / "config.json").write_text(json.dumps(config))
    records.write(folder / config["prompts"], [asked(f"{n} and {n}?", f"#### {2 * n}") for n in range(4)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", MODEL + PREPARE + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.engine
def test_the_sampler_follows_the_policy_and_one_that_does_not_is_found_out(tmp_path: Path) -> None:
    said = in_train(tmp_path, RUNS)
    assert said.startswith("grpo: step 2: the sampler's weights are not the policy's: their SHA-256 is ")


@pytest.mark.engine
def test_two_processes_sample_and_learn_what_one_does(tmp_path: Path) -> None:
    in_train(tmp_path, f"NOTED = {NOTED!r}{RANKS}", "hardware.runtime.threads=1")
    noted = [list(records.read(tmp_path / name)) for name in ("on1/0.jsonl", "on2/0.jsonl", "on2/1.jsonl")]
    assert len(noted[0]) == 2
    for alone, first, second in zip(*noted, strict=True):
        assert first["digest"] == second["digest"]
        for key in ("prompts", "answers"):
            assert alone[key] == first[key] + second[key]
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("on1", "on2")]
    for key in ("loss", "reward", "grad_norm"):
        figures = [[entry[key] for entry in log if key in entry] for log in logs]
        assert figures[1] == pytest.approx(figures[0], rel=1e-3, abs=1e-5), key


@pytest.mark.gpu
@pytest.mark.skipif(not hardware.found().gpus, reason="no GPU on this machine")
@pytest.mark.skipif(
    "\nvllm-cpu==" in Path("requirements/serve.txt").read_text(), reason="requirements/serve.txt locks vLLM's CPU build"
)
def test_the_sampler_follows_the_policy_on_a_gpu(tmp_path: Path) -> None:
    said = in_train(tmp_path, RUNS, "hardware=gpu1", "hardware.precision=fp32", "hardware.dtype=float32")
    assert said.startswith("grpo: step 2: the sampler's weights are not the policy's: ")


@pytest.mark.engine
def test_shared_prompts_change_no_number_and_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    in_train(tmp_path, SHARED + IN_PROCESS)


@pytest.mark.engine
def test_every_loss_and_every_mode_is_one_that_trl_knows(tmp_path: Path) -> None:
    configs = []
    for mode in grpo.ROLLOUTS:
        for machine in ("cpu", "gpu1"):
            own = [f"hardware={machine}", f"grpo.rollouts={mode}", "grpo.server_url=http://127.0.0.1:8000"]
            configs.append(grpo.render(settings(tmp_path, *own), START, 1, WEIGHTS))
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", KNOWN, str(tmp_path / "configs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("known"), done.stderr[-2000:]
