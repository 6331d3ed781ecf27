"""TRL's trainers in earnest: every stage and every loss on two random layers, killed, resumed, repeated, and given bad input."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from temper import preference_trainers, reward_model
from tests.test_methods import dtypes

pytestmark = pytest.mark.engine

STAGES = ("dpo", "kto", "orpo", "reward", "ppo")
STARTS = {"recipe.dpo": "sft", "recipe.kto": "sft", "recipe.orpo": "base", "recipe.reward": "sft", "recipe.ppo": "sft"}
STEPS = {"global_batch": 4, "micro_batch": 2, "epochs": 1, "max_steps": 4, "max_length": 200}
# A byte-level tokenizer, whose end of turn is its padding too, as SmolLM2's, and random layers: these run in milliseconds.
HEAD = """
import contextlib, hashlib, importlib, io, json, os, re, shutil, sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
os.chdir(sys.argv[1])
os.environ["TEMPER_SCRATCH"] = "scratch"
from temper import base_model, checkpoints, params, ppo, preference_trainers, records, reward_model, training, trl

training.prepare()
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

SPECIAL = ["<|start|>", "<|end|>", "<|spare|>"]
TEMPLATE = ("{% for turn in messages %}<|start|>{{ turn['role'] }}: {{ turn['content'] }}<|end|>\\n{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant: {% endif %}")

def save(name, width=64, spare=0, layers=2):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + [f"spare{number}" for number in range(spare)]
    bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    tokenizer.add_special_tokens({"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|end|>",
                                  "additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = TEMPLATE
    set_seed(17)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=128, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=257,
                         bos_token_id=256, eos_token_id=257)
    base_model.save(LlamaForCausalLM(config), tokenizer, Path("models", name))

turn = lambda role, text: [{"role": role, "content": text}]
answer = lambda text: turn("assistant", text)
pair = lambda number: {"prompt": turn("user", f"Add {number} and 2"), "chosen": answer(f"It is {number + 2}"),
                       "rejected": answer(f"{number} and 2, I do not know")}
RENDER = {"dpo": preference_trainers.render_dpo, "kto": preference_trainers.render_kto,
          "orpo": preference_trainers.render_orpo, "reward": reward_model.render, "ppo": ppo.render}

def configured(stage, **changes):
    # A rendered run of `stage` on one process, with other values for keys of its section.
    cfg = params.load(stage, getattr(importlib.import_module(f"scripts.{stage}"), stage.capitalize()))
    vars(cfg).update(changes)
    given = {"ppo": [], "kto": [1, preference_trainers.unpaired([pair(1)], 1)]}.get(stage, [1])
    return RENDER[stage](cfg, Path("models/sft"), *given)

def refused(function, *arguments):
    try:
        function(*arguments)
    except SystemExit as error:
        return str(error)
"""
RUN = (
    HEAD
    + """
def main(stage, policy):
    # The stage as DVC starts it: its outs wiped before; returns what it says.
    for out in (f"models/{stage}", f"models/{stage}-adapter"):
        shutil.rmtree(out, ignore_errors=True)
    sys.argv = [stage, policy]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        importlib.import_module(f"scripts.{stage}").main()
    return said.getvalue()

class Killed(BaseException): pass

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **more):
        if state.global_step == 3:
            raise Killed

def killed(stage, policy):
    quiet = training.quiet_callbacks
    training.quiet_callbacks = lambda trainer: (quiet(trainer), trainer.add_callback(Kill()))
    with contextlib.suppress(Killed):
        main(stage, policy)
        raise AssertionError(f"{stage} was not killed")
    training.quiet_callbacks = quiet

def weights(stage):
    return hashlib.sha256(Path(f"models/{stage}-adapter/adapter_model.safetensors").read_bytes()).hexdigest()

save("base"), save("sft")
records.write("data/preferences.jsonl", map(pair, [*range(20), int("1" * 90)]))  # the last is too long
records.write("data/mix/preferences.jsonl", ({"messages": turn("user", f"Add {number} and 2") + answer("3"), "tools": [],
                                              "gold": None} for number in range(12)))
found = {}
for stage, policy in json.loads(sys.argv[2]).items():
    main(stage, policy)
    first = weights(stage)
    metrics = json.loads(Path(f"reports/training/{stage}.json").read_text())
    curve = Path(f"reports/plots/{stage}.csv").read_text().splitlines()
    merged = (Path(f"models/{stage}/model.safetensors").stat().st_size, Path(f"models/{stage}/trl.yaml").is_file())
    if stage == "ppo":
        main(stage, policy)
        said = ""
    else:
        killed(stage, policy)
        said = main(stage, policy)
    found[stage] = {"metrics": metrics, "curve": curve, "merged": merged, "same": weights(stage) == first, "said": said,
                    "left": sorted(path.name for path in Path("scratch").iterdir())}
    if stage == "dpo":
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(re.sub(r"\\n  seed: 17", "\\n  seed: 18", text))
        main(stage, policy)
        Path("params.yaml").write_text(text)
        found["other"] = weights(stage) != first
print("FOUND", json.dumps(found))
"""
)
LOSSES = (
    HEAD
    + """
import inspect
from trl import DPOTrainer, KTOTrainer

def step(stage, number, **changes):
    # One step; its loss.
    config = configured(stage, max_steps=1, **changes)
    trl.check(config)
    scratch = Path("scratch", f"{stage}{number}")
    scratch.mkdir(parents=True)
    return trl.train(config, scratch, None, [], 1)[0]["loss"]

save("sft"), save("bare"), save("wide", spare=7), save("gemma")
settings = Path("models/gemma/tokenizer_config.json")
settings.write_text(settings.read_text().replace('"eos_token": "<|end|>"', '"eos_token": "<|spare|>"'))
Path("models/bare/chat_template.jinja").unlink()
records.write("data/preferences.jsonl", map(pair, range(6)))
records.write("data/mix/preferences.jsonl", ({"messages": turn("user", f"Add {number} and 2") + answer("3"), "tools": [],
                                              "gold": None} for number in range(6)))
found = {"installed": {name: re.findall(r'loss_type == "(\\w+)"', inspect.getsource(trainer._compute_loss))
                       for name, trainer in {"dpo": DPOTrainer, "kto": KTOTrainer}.items()}, "losses": {}}
for number, loss in enumerate(preference_trainers.DPO_LOSSES):
    smoothing = 0.001 if loss == "exo_pair" else 0.1 if loss == "robust" else 0.0
    found["losses"][loss] = step("dpo", number, loss=loss, beta=0.1, label_smoothing=smoothing)
for number, loss in enumerate(preference_trainers.REFERENCE_FREE_LOSSES, start=50):
    found["losses"][f"free {loss}"] = step("dpo", number, loss=loss, reference=False)
found["losses"]["ld"] = step("dpo", 60, loss="sigmoid", ld_alpha=0.0)
found["losses"]["rpo"] = step("dpo", 61, loss="sigmoid", sft_weight=1.0)
found["losses"]["apo_zero_unpaired"] = step("kto", 62, loss="apo_zero_unpaired")

config = configured("reward", method="full", max_steps=1)
Path("scratch/full").mkdir()
trl.train(config, Path("scratch/full"), None, [], 1)
reward_model.write(config, Path("scratch/full/out"), Path("nowhere"), Path("models/reward"), [])
found["margins"] = reward_model.margins(Path("models/reward"), [pair(number) for number in range(5)], 200, 2)

def trained(stage, changes={}, rendered={}):
    return refused(trl.train, configured(stage, **changes) | rendered, Path("scratch/bad"), None, [], 1)

def ends(name):
    # What an answer ends with, as the ORPO trainer has it, which appends the EOS to any that has none.
    config = configured("orpo") | {"model": f"models/{name}"}
    config["trainer"] |= {"output_dir": "scratch/ends", "report_to": "none"}
    made = preference_trainers.orpo(config)
    return made.processing_class.convert_ids_to_tokens(made.train_dataset[0]["chosen_input_ids"][-2:])

found["ends"] = [ends("sft"), ends("gemma")]
rows = preference_trainers.pairs(Path("data/preferences.jsonl"), "dpo", 1)
long = [*rows[:2], pair(int("1" * 40)), *rows[2:]]
config = configured("dpo", max_length=110)
kept = preference_trainers.leave_out(config, long, 1)
records.write("long.jsonl", long)
config["trainer"] |= {"output_dir": "scratch/long", "report_to": "none"}
data = preference_trainers.dpo(config | {"preferences": "long.jsonl"}).train_dataset
found["left_out"] = [config["left_out"], kept == rows, len(data)]

Path("scratch/bad").mkdir()
found["refused"] = {
    **{f"{stage} long": refused(preference_trainers.leave_out, configured(stage, max_length=30), given, 1)
       for stage, given in {"dpo": rows, "orpo": rows, "kto": preference_trainers.unpaired(rows, 1)}.items()},
    "reward long": trained("reward", {"max_length": 30}),
    "ppo long": trained("ppo", {"max_length": 40, "max_tokens": 20}),
    **{f"{stage} bare": trained(stage, {}, {"model": "models/bare"}) for stage in ("dpo", "reward")},
    "ppo wide": trained("ppo", {}, {"model": "models/wide"}),
    "unknown key": refused(trl.check, configured("dpo") | {"trainer": {"betta": 1.0}}),
}
print("FOUND", json.dumps(found))
"""
)


def run(code: str, folder: Path, *arguments: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `code` finds in a tree with nothing but dvc.yaml and params.yaml, each stage being four steps."""
    steps = [f"{stage}.{key}={value}" for stage in STAGES for key, value in STEPS.items()]
    saves = [f"{stage}.saves=2" for stage in STAGES if stage != "ppo"]
    starts = [f"{stage}=[{policy}]" for stage, policy in STARTS.items()]
    short = ["ppo.max_tokens=20", "ppo.rollout_batch=4", "ppo.epochs_a_batch=2", "reward.held_out=0.2"]
    (folder / "params.yaml").write_text(composed([*overrides, *steps, *saves, *starts, *short]))
    (folder / "dvc.yaml").write_text(Path("dvc.yaml").read_text())
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", code, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    return found


def every_stage(folder: Path, *overrides: str) -> dict[str, Any]:
    """Each stage run, killed after three of four steps and resumed, and DPO with another seed."""
    policies = {stage.partition(".")[2]: policy for stage, policy in STARTS.items()}
    return run(RUN, folder, json.dumps(policies), overrides=overrides)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return every_stage(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One step of every loss, a full reward model, and what bad input ends in."""
    return run(LOSSES, tmp_path_factory.mktemp("losses"), overrides=["dpo=sigmoid"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_merges_and_reports(stages: dict[str, Any], stage: str) -> None:
    metrics, curve = stages[stage]["metrics"], stages[stage]["curve"]
    assert metrics["steps"] == 4
    assert len(curve) == 5
    assert all(len(line.split(",")) == len(curve[0].split(",")) for line in curve)
    size, settings = stages[stage]["merged"]
    assert size > 100_000
    assert settings, "its settings lie beside the weights"
    assert stages[stage]["left"] == [], "no checkpoint is left of a run that succeeded"


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_seed_gives_the_same_weights_killed_or_not(stages: dict[str, Any], stage: str) -> None:
    assert stages[stage]["same"]
    if stage != "ppo":  # which cannot resume
        assert "resuming from step 2" in stages[stage]["said"]


def test_dpo_in_bf16_on_a_cpu_is_that_in_float32_but_for_its_rounding(stages: dict[str, Any], tmp_path: Path) -> None:
    overrides = ["hardware=cpu-bf16", "dpo.learning_rate=5.0e-3", "dpo.schedule=constant", "dpo.warmup_ratio=0"]
    found = run(RUN, tmp_path, json.dumps({"dpo": "sft"}), overrides=overrides)["dpo"]
    assert found["metrics"]["train_loss"] < found["metrics"]["first_loss"] - 0.05
    assert found["same"], "resumed, it ends in the same weights"
    assert dtypes(tmp_path / "models/dpo") == {"BF16"}
    assert dtypes(tmp_path / "models/dpo-adapter") == {"F32"}
    # Before the first update both are the same model.
    rounded, exact = (float(next(csv.DictReader(one["curve"]))["logps/chosen"]) for one in (found, stages["dpo"]))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


def test_another_seed_gives_other_weights(stages: dict[str, Any]) -> None:
    assert stages["other"]


def test_metrics_say_what_each_stage_is_for(stages: dict[str, Any]) -> None:
    found = {stage: stages[stage]["metrics"] for stage in STAGES}
    for stage in ("dpo", "orpo"):
        assert {"reward_margin", "reward_accuracy", "chosen_logp", "rejected_logp"} <= found[stage].keys()
        assert (found[stage]["pairs"], found[stage]["pairs_too_long"]) == (20, 1)
    assert (found["kto"]["desirable"], found["kto"]["undesirable"], found["kto"]["answers_too_long"]) == (20, 20, 2)
    assert {"reward_margin", "kl"} <= found["kto"].keys()
    assert 0 <= found["reward"]["accuracy_low"] <= found["reward"]["accuracy"] <= found["reward"]["accuracy_high"] <= 1
    assert found["reward"]["held_out"] + found["reward"]["pairs"] == 20
    assert 0 < found["reward"]["merge_bf16_max"] < reward_model.ROUNDING
    assert {"score", "first_score", "kl", "entropy"} <= found["ppo"].keys()
    assert found["ppo"]["prompts"] == 12


def test_every_loss_of_the_installed_trl_is_offered_and_runs(losses: dict[str, Any]) -> None:
    assert set(losses["installed"]["dpo"]) == set(preference_trainers.DPO_LOSSES)
    assert set(losses["installed"]["kto"]) == set(preference_trainers.KTO_LOSSES)
    assert set(preference_trainers.DPO_LOSSES) < losses["losses"].keys()
    # At the first step the policy is its own reference.
    assert losses["losses"]["sigmoid"] == pytest.approx(0.693147, abs=1e-4)
    assert losses["losses"]["hinge"] == pytest.approx(1.0, abs=1e-4)
    assert losses["losses"]["ipo"] == pytest.approx(25.0, abs=1e-2)
    assert losses["losses"]["rpo"] > losses["losses"]["sigmoid"] + 1
    assert all(map(math.isfinite, losses["losses"].values()))


def test_a_full_reward_model_scores_what_it_is_given(losses: dict[str, Any]) -> None:
    assert len(losses["margins"]) == 5
    assert all(losses["margins"]), "both answers do not score the same"


def test_an_answer_ends_where_its_turn_does_whatever_the_tokenizer_calls_the_end(losses: dict[str, Any]) -> None:
    for last, end in losses["ends"]:
        assert end == "<|end|>"
        assert last != "<|end|>"


def test_a_pair_that_does_not_fit_is_left_out_and_no_other_is_cut(losses: dict[str, Any]) -> None:
    assert losses["left_out"] == [[2], True, 6]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("dpo long", ("dpo: all 6 pairs are longer than dpo.max_length (30 tokens", "conf/dpo")),
        ("kto long", ("kto: all 12 answers", "conf/dpo")),
        ("orpo long", ("orpo: all 6 pairs", "conf/dpo")),
        ("reward long", ("reward: all ", "conf/dpo")),
        ("ppo long", ("0 prompts, fewer than a batch", "ppo.max_length")),
        ("dpo bare", ("models/bare: no chat template", "instruction-tuned")),
        ("reward bare", ("models/bare: no chat template",)),
        ("ppo wide", ("models/reward: made from another base than models/wide", "recipe.reward")),
        ("unknown key", ("trl refuses the configuration of dpo", "betta")),
    ],
)
def test_bad_input_is_one_line(losses: dict[str, Any], case: str, words: tuple[str, ...]) -> None:
    said = losses["refused"][case]
    assert said is not None
    assert all(word in said for word in words)
    assert "\n" not in said
