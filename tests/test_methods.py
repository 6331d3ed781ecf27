"""Every method that a CPU can train, for real: the whole stage on two random layers, and what a user would see of it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from temper import halves, metrics, records

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parent.parent

# Bytes for tokens and two random layers: what a method changes does not need a model that can speak.
BASE = """
import sys
from pathlib import Path
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from temper import base_model

alphabet = pre_tokenizers.ByteLevel.alphabet()
bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
bare.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>")
tokenizer.chat_template = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\\n{{ turn['content'] }}<|im_end|>\\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ids = dict(vocab_size=272, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
for name, rope in {"base": None, "stretched": base_model.Rope("yarn", 4.0)}.items():
    set_seed(17)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, max_position_embeddings=256, tie_word_embeddings=True))
    if rope:
        base_model.stretch(model, rope)
    base_model.save(model, tokenizer, Path("models", name))
"""

# Each case is a params.yaml, in whose place the stage runs; its outs are moved to a folder of its name.
STAGES = """
import contextlib, io, json, os, shutil, sys
from pathlib import Path

os.environ["TEMPER_SCRATCH"] = str(Path("scratch").resolve())
import tests.settings_once
from temper import health

watch = health.watch

def interrupted(trainer, stage):
    from transformers import TrainerCallback

    class Interruption(TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            if state.global_step == state.max_steps * 3 // 4:
                raise KeyboardInterrupt

    trainer.add_callback(Interruption())

def run(case):
    from scripts import sft

    shutil.copyfile(f"{case}.yaml", "params.yaml")
    rows = "rows/text" if case.startswith("cpt") else "rows/one" if case.startswith("one") else "rows/chat"
    shutil.copytree(rows, "data/audit", dirs_exist_ok=True)
    sys.argv = ["sft", "stretched" if case == "stretched" else "base"]
    sft.main()

def keep(case):
    for path in ("models/sft", "models/sft-adapter", "reports"):
        Path(case, path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, Path(case, path))

for case in sys.argv[1:]:
    if case.endswith("resumed"):
        health.watch = interrupted
        try:
            run(case)
        except KeyboardInterrupt:
            shutil.rmtree("models/sft")
        health.watch = watch
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run(case)
        keep(case)
        Path(case, "said.txt").write_text(said.getvalue())
    except SystemExit as error:
        Path(case, "refused.txt").parent.mkdir(parents=True, exist_ok=True)
        Path(case, "refused.txt").write_text(str(error))
        for path in ("models/sft", "models/sft-adapter"):
            shutil.rmtree(path, ignore_errors=True)
"""

SHORT: tuple[str, ...] = (
    "hardware.runtime.threads=1",
    "sft.global_batch=2",
    "sft.micro_batch=1",
    "sft.sequence_length=192",
)
SHORT += ("sft.learning_rate=5.0e-3", "sft.epochs=1", "sft.evals=1", "sft.saves=2", "sft.lora.rank=8")
UNPACKED = "sft.packing=false"
CASES = {
    "lora": ["sft=lora", "sft.epochs=4"],
    "lora-plus": ["sft=lora-plus", "sft.epochs=4"],
    "dora": ["sft=dora"],
    "rslora": ["sft=rslora"],
    "full": ["sft=full"],
    "hft": ["sft=hft", UNPACKED],
    "both-halves": ["sft=hft", UNPACKED, "sft.epochs=2"],
    "prefix": ["sft=prefix", "recipe=adapter", "sft.learning_rate=5.0e-2", "sft.epochs=2"],
    "prompt": ["sft=prompt", "recipe=adapter", "sft.learning_rate=5.0e-2", "sft.epochs=2"],
    "cpt": ["sft=cpt"],
    "cpt-unpacked": ["sft=cpt", UNPACKED],
    "stretched": ["sft=lora", "sft.sequence_length=512"],
    "best": [
        "sft=lora",
        "sft.patience=1",
        "sft.evals=16",
        "sft.epochs=8",
        "sft.learning_rate=0.3",
        "sft.schedule=constant",
    ],
    "one": ["sft=lora"],
    "one-unpacked": ["sft=lora", UNPACKED],
    "rex": ["sft=lora", "sft.epochs=4", "sft.schedule=rex"],
    "one_cycle": ["sft=lora", "sft.epochs=4", "sft.schedule=one_cycle"],
    "single": ["sft=lora", UNPACKED],
    "long": ["sft=lora", "sft.sequence_length=16"],
}


def chat(number: int) -> dict[str, Any]:
    turns = (("user", f"Add {number} and 1."), ("assistant", f"The sum is {number + 1}."))
    return {"id": str(number), "messages": [{"role": role, "content": text} for role, text in turns]}


def text(number: int) -> dict[str, Any]:
    return {"id": str(number), "kind": "text", "text": f"Chapter {number}. " + "It rained on the sea. " * 12}


def planted(root: Path) -> Path:
    """A tree with a base model and rows, in which the stage can run."""
    for name in ("temper", "scripts", "tests", "requirements", "dvc.yaml"):
        (root / name).symlink_to(ROOT / name)
    rows = {
        "chat": ([chat(number) for number in range(16)], [chat(number) for number in range(20, 24)]),
        "text": ([chat(1), chat(2), *(text(number) for number in range(6))], [text(7)]),
        "one": ([chat(1)], [chat(2)]),
    }
    for kind, (train, validation) in rows.items():
        records.write(root / f"rows/{kind}/train.jsonl", train)
        records.write(root / f"rows/{kind}/validation.jsonl", validation)
    in_env(root, "-c", BASE)
    return root


def ran(root: Path, cases: dict[str, list[str]]) -> None:
    """Have the stage run for `cases`, name → overrides, one after the other."""
    for case, overrides in cases.items():
        (root / f"{case}.yaml").write_text(composed([*overrides, *(one for one in SHORT if not given(one, overrides))]))
    in_env(root, "-c", STAGES, *cases)


def in_env(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "temper.envs", "run", "train", *arguments]
    # Axolotl prepares a few rows faster by itself than it starts processes for them.
    environment = os.environ | {"AXOLOTL_DATASET_NUM_PROC": "0"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage left in each of CASES."""
    root = planted(tmp_path_factory.mktemp("methods"))
    ran(root, CASES)
    return root


def given(setting: str, overrides: list[str]) -> bool:
    return any(one.partition("=")[0] == setting.partition("=")[0] for one in overrides)


def evals(run: Path) -> list[float]:
    with (run / "reports/plots/sft.csv").open() as file:
        return [float(row["eval_loss"]) for row in csv.DictReader(file) if row["eval_loss"]]


def header(folder: Path) -> dict[str, Any]:
    """What a folder's safetensors say of each tensor."""
    (file,) = folder.glob("*.safetensors")
    with file.open("rb") as content:
        found = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}


def shapes(folder: Path) -> dict[str, Any]:
    return {name: tensor["shape"] for name, tensor in header(folder).items()}


def dtypes(folder: Path) -> set[str]:
    return {tensor["dtype"] for tensor in header(folder).values()}


def tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor."""
    (file,) = folder.glob("*.safetensors")
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        body = content.read()
    return {name: body[slice(*one["data_offsets"])] for name, one in header.items() if name != "__metadata__"}


def changed(runs: Path, case: str) -> set[str]:
    """The weights of the base that are others after the run."""
    before, after = tensors(runs / "models/base"), tensors(runs / case / "models/sft")
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


MATRICES = {
    f"model.layers.{layer}.{module}.weight"
    for layer in range(2)
    for module in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
}


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("one", "one-unpacked", "best", "long")])
def test_every_method_lowers_the_validation_loss(runs: Path, case: str) -> None:
    losses = evals(runs / case)
    assert losses[-1] < losses[0] - 0.05, losses
    found = metrics.read(runs / case / "reports/training/sft.json")
    assert found["eval_loss"] == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("case", ["lora", "lora-plus", "dora", "rslora"])
def test_an_adapter_changes_the_matrices_that_it_was_put_on(runs: Path, case: str) -> None:
    assert changed(runs, case) == MATRICES


def test_each_kind_of_adapter_is_the_one_asked_for(runs: Path) -> None:
    settings = {
        case: json.loads((runs / case / "models/sft-adapter/adapter_config.json").read_text())
        for case in ("lora", "dora", "rslora")
    }
    assert [settings[case]["use_dora"] for case in settings] == [False, True, False]
    assert [settings[case]["use_rslora"] for case in settings] == [False, False, True]
    magnitudes = [name for name in shapes(runs / "dora/models/sft-adapter") if "magnitude" in name]
    assert len(magnitudes) == len(MATRICES)


def test_lora_plus_moves_b_further(runs: Path) -> None:
    code = (
        "import sys; from safetensors.torch import load_file\n"
        "for case in ('lora', 'lora-plus'):\n"
        "    weights = load_file(f'{case}/models/sft-adapter/adapter_model.safetensors')\n"
        "    print(sum(value.norm().item() for name, value in weights.items() if 'lora_B' in name))"
    )
    plain, plus = map(float, in_env(runs, "-c", code).split())
    assert plus > 2 * plain


def test_full_fine_tuning_changes_every_weight_and_leaves_no_adapter(runs: Path) -> None:
    assert changed(runs, "full") == set(tensors(runs / "models/base"))
    assert list((runs / "full/models/sft-adapter").iterdir()) == []
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        assert (runs / f"full/models/sft/{name}").read_text() == (runs / f"models/base/{name}").read_text()


def test_half_fine_tuning_freezes_half_and_then_the_other(runs: Path) -> None:
    names = sorted(tensors(runs / "models/base"))
    assert changed(runs, "hft") == halves.trained(names, 17, 0)
    assert changed(runs, "both-halves") == set(names)


@pytest.mark.parametrize(("case", "width"), [("prefix", 2 * 2 * 64), ("prompt", 128)])
def test_virtual_tokens_are_a_peft_folder_that_is_no_model(runs: Path, case: str, width: int) -> None:
    folder = runs / case / "models/sft"
    assert shapes(folder) == {"prompt_embeddings": [20, width]}
    assert not (folder / "config.json").exists()
    code = (
        "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('models/base', dtype=torch.float32)\n"
        "ids = torch.tensor([[9, 8, 7]]); before = model(ids).logits\n"
        "after = PeftModel.from_pretrained(model, sys.argv[1])(input_ids=ids).logits[:, -3:]\n"
        "print((after - before).abs().max().item())"
    )
    assert float(in_env(runs, "-c", code, str(folder))) > 0.1


def test_text_is_trained_on_as_a_whole_beside_the_answers_of_chats(runs: Path) -> None:
    config = (runs / "cpt/models/sft/axolotl.yaml").read_text()
    assert "type: completion" in config and "type: chat_template" in config
    code = (
        "from pathlib import Path; from temper import labels\n"
        "made = labels.Labeller(Path('models/base'), 192).text('It rained. ' * 40)\n"
        "print(made.ids == made.labels == made.text_ids, len(made.ids))"
    )
    assert in_env(runs, "-c", code).split()[-2:] == ["True", "441"]


def test_stretched_positions_reach_the_merged_model(runs: Path) -> None:
    config = json.loads((runs / "stretched/models/sft/config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["max_position_embeddings"] == 1024


def test_a_run_that_gets_worse_ends_and_its_best_checkpoint_is_kept(runs: Path) -> None:
    losses, found = evals(runs / "best"), metrics.read(runs / "best/reports/training/sft.json")
    assert found["eval_loss"] == pytest.approx(min(losses[1:]), rel=1e-4)
    assert losses[-1] > losses[-2] >= min(losses[1:])
    assert len(losses) < 17


@pytest.mark.parametrize("case", ["one", "one-unpacked"])
def test_one_row_is_trained_on_or_refused_in_a_line(runs: Path, case: str) -> None:
    refused = runs / case / "refused.txt"
    if refused.exists():
        assert "\n" not in refused.read_text()
        assert "rows" in refused.read_text()
    else:
        assert metrics.read(runs / case / "reports/training/sft.json")["steps"] == 1


def test_rows_that_audit_let_through_and_do_not_fit_are_refused_in_a_line(runs: Path) -> None:
    said = (runs / "long/refused.txt").read_text()
    assert said.startswith("sft: Axolotl refuses the rows: ")
    assert said.endswith(": lower data.max_tokens or raise sft.sequence_length")
    assert "\n" not in said


def test_zero3_on_two_processes_is_the_run_on_one(runs: Path) -> None:
    ran(runs, {"zero3": [*CASES["single"], "hardware.runtime.processes=2", "hardware.deepspeed=zero3"]})
    with (runs / "single/reports/plots/sft.csv").open() as one, (runs / "zero3/reports/plots/sft.csv").open() as two:
        first, *rest = csv.DictReader(one)
        # ZeRO-3 cannot evaluate before its first step.
        assert (first["step"], first["loss"]) == ("0", "")
        pairs = list(zip(rest, csv.DictReader(two), strict=True))
    assert len(pairs) == 8
    for one_row, two_row in pairs:
        for key in ("loss", "eval_loss"):
            if one_row[key]:
                assert float(two_row[key]) == pytest.approx(float(one_row[key]), abs=2e-4)
    assert json.loads((runs / "zero3/models/sft/zero3.json").read_text())["zero_optimization"]["stage"] == 3
