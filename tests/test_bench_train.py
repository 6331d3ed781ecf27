"""The arithmetic of `make bench-train`, and that what it compares is the same work."""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train
from temper import measured, metrics
from tests.test_ablation import stand_in_tree


def runs(**rates: list[float]) -> dict[str, list[dict[str, float]]]:
    return {
        name: [{"tokens_per_second": rate, "tokens": 1000.0, "peak_gb": 2.0 + rate / 100} for rate in of_name]
        for name, of_name in rates.items()
    }


def test_contenders_take_turns_and_none_is_always_first(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def contender(name: str) -> Any:
        def run() -> dict[str, dict[str, float]]:
            order.append(name)
            return {name: {"tokens_per_second": float(len(order))}}

        return run

    found = train.in_turn({name: contender(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert [run["tokens_per_second"] for run in found["a"]] == [1, 6, 8]
    assert "a: tokens_per_second 1" in capsys.readouterr().out


def test_a_rate_is_the_median_with_its_spread() -> None:
    values = train.spreads("sft", runs(ours=[300.0, 100.0, 290.0]))
    assert values["sft_ours_tokens_per_second"] == 290
    assert (values["sft_ours_tokens_per_second_least"], values["sft_ours_tokens_per_second_most"]) == (100, 300)
    assert values["sft_ours_peak_gb"] == 5.0


def test_other_tokens_are_other_work() -> None:
    found = runs(ours=[300.0], peer=[150.0])
    train.same_tokens(found)
    found["peer"][0]["tokens"] = 900.0
    with pytest.raises(SystemExit, match="tokens differ"):
        train.same_tokens(found)


def test_a_part_is_measured_once_and_kept_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def hand(arguments: Any) -> dict[str, Any]:
        calls.append(arguments.repeats)
        return {"hand_times": 1.01}

    monkeypatch.setattr(train, "OUT", tmp_path / "train.json")
    monkeypatch.setitem(train.PARTS, "hand", hand)
    metrics.write(tmp_path / "train.json", {"sft_times_peer": 2.5, "hand_old": 1})
    for repeats in ("3", "3", "1"):
        monkeypatch.setattr(sys, "argv", ["train", "--parts", "hand", "--repeats", repeats])
        train.main()
    values = metrics.read(tmp_path / "train.json")
    assert calls == [3, 1]
    assert "hand: measured already" in capsys.readouterr().out
    assert (values["sft_times_peer"], values["hand_times"], values["hand_times_target"]) == (2.5, 1.01, 0.98)
    assert "hand_old" not in values
    assert "--parts hand" in values["hand_command"]


def test_a_sweep_of_the_default_job_is_sft_once_and_five_times_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "REPOSITORY", tmp_path)
    for name, seconds in (
        ("training/sft", 800),
        ("training/preferences", 90),
        ("training/dpo", 400),
        ("evaluate/dpo", 100),
    ):
        metrics.write(tmp_path / f"reports/timing/{name}.json", {"seconds": seconds})
    assert train.default_stages() == 800 + 90 + 5 * 500


def test_the_readme_has_what_was_measured_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    assert measured.table(measured.TRAINING) == "Not measured yet."
    values = {
        "sft_times_peer": 2.1,
        "sft_times_random": 2.6,
        "sft_ours_tokens_per_second": 400.0,
        "sweep_times_stages": 1.013,
        "sweep_smoke_times_stages": 1.5,
        "sweep_extra_seconds_a_run": 6.0,
    }
    metrics.write(tmp_path / "train.json", values | {"machine": "a machine"})
    table = measured.table(measured.TRAINING)
    assert "| 2.10× its faster order, 2.60× random order (400 tokens/s) | 2× |" in table
    line = "measured on the smoke preset, over the default job's by `reports/timing` | +1.3% (6.0 s a run; of the smoke preset's"
    assert f"{line} stages +50.0%) | within 5% |" in table
    assert "Axolotl by hand" not in table
    assert "Measured on a machine" in table
    assert "fp32 as PyTorch starts" not in table


def test_every_lever_is_told_with_its_ratio_and_whether_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not help too."""
    rates = re.findall(r"^cpu_(\w+)_tokens_per_second$", "\n".join(metrics.read(train.OUT)), re.MULTILINE)
    assert {"default", *measured.LEVERS} >= {*train.LEVERS, *rates}
    assert {name for name, (_, trained) in measured.LEVERS.items() if "cpu" in trained} == {*train.KEPT}

    values: dict[str, Any] = {"machine": "a machine", "cpu_command": "the command"}
    for name, rate in {"default": 100.0, "eager": 90.0, "documents": 110.0}.items():
        each = runs(**{name: [rate - 9, rate, rate + 9]})
        values |= train.spreads("cpu", each) | {f"cpu_{name}_times_default": rate / 100}
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    metrics.write(tmp_path / "train.json", values)
    assert measured.table(measured.TRAINING).splitlines()[-4:] == [
        "| attention within documents | 1.10× | 110 (101–119) | as a part |",
        "| eager attention | 0.90× | 90 (81–99) | no |",
        "",
        "Medians, with the least and the most, by `the command`; fp32 as PyTorch starts: 100 (91–109).",
    ]


@pytest.mark.slow
def test_a_sweep_trains_sft_once_and_counts_what_dvc_adds(
    tmp_path: Path, clone_to: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins that say that each stage took a minute."""
    root, log = stand_in_tree(tmp_path, clone_to)
    monkeypatch.chdir(root)
    monkeypatch.setattr(train, "BETAS", (0.5, 1.0))
    monkeypatch.setattr(train, "default_stages", lambda: 1000.0)
    values = train.sweep(argparse.Namespace())
    ran = Counter(log.read_text().split())
    assert (values["sweep_sft_runs"], ran["sft@base"], ran["preferences@sft"]) == (1, 1, 1)
    assert (ran["dpo@sft"], ran["evaluate@dpo"]) == (2, 2)
    assert values["sweep_stages_seconds"] == 2 * 60 + 2 * (60 + 60)
    assert values["sweep_extra_seconds_a_run"] == pytest.approx((values["sweep_seconds"] - 360) / 2)
    assert values["sweep_times_stages"] == pytest.approx(1 + 2 * values["sweep_extra_seconds_a_run"] / 1000)


IN_THE_TRAINING_ENVIRONMENT = """
import json, sys
from types import SimpleNamespace
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers import Qwen3Config, Qwen3ForCausalLM
from benchmarks import train_step
from temper.axolotl_plugin import Plugin

small = dict(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0)
kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config),
         "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig)}

def passed(model, batch, items):
    model.zero_grad()
    out = model(**batch, num_items_in_batch=items)
    out.loss.backward()
    gradients = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    return out.loss.item(), gradients, out.logits.shape[1]

found = {}
for name, (kind, config) in kinds.items():
    torch.manual_seed(0)
    model = get_peft_model(kind(config(**small)), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"],
                                                          init_lora_weights=False))
    ids = torch.randint(1, 128, (2, 20))
    labels = ids.clone()
    labels[0, :15], labels[1, :12] = -100, -100
    batch = {"input_ids": ids, "labels": labels}
    whole, whole_gradients, _ = passed(model, batch, torch.tensor(13))
    Plugin().post_model_load(SimpleNamespace(attend_within_documents=None), model)
    narrow, gradients, kept = passed(model, batch, torch.tensor(13))
    unlabelled = model(input_ids=ids, labels=torch.full_like(ids, -100), num_items_in_batch=torch.tensor(1))
    found[name] = {
        "loss": abs(narrow - whole), "gradients": (gradients - whole_gradients).abs().max().item(), "kept": kept,
        "generates": model(input_ids=ids).logits.shape[1], "unlabelled": unlabelled.loss.item(),
    }

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**small)).eval()
rows = [(list(range(1, 9)), [-100] * 4 + list(range(5, 9))), (list(range(20, 28)), [-100] * 2 + list(range(22, 28)))]
batch = train_step.packed(rows, 16, 1)
apart = sum(model(input_ids=torch.tensor([ids]), labels=torch.tensor([marks]), num_items_in_batch=torch.tensor(10)).loss
            for ids, marks in rows)
together = model(**batch, num_items_in_batch=torch.tensor(10), use_cache=False).loss
found["packed"] = {"difference": abs(apart.item() - together.item()), "positions": batch["position_ids"][0].tolist()}
print(json.dumps(found))
"""


@pytest.mark.engine
def test_logits_of_labelled_tokens_alone_give_the_same_loss_and_gradients() -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", IN_THE_TRAINING_ENVIRONMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    for name in ("llama", "qwen3", "gemma3"):
        assert found[name]["loss"] < 1e-5, name
        assert found[name]["gradients"] < 1e-5, name
        assert (found[name]["kept"], found[name]["generates"]) == (8, 20), name
        assert found[name]["unlabelled"] == 0, name
    # A packed row sees nothing of the one before it, as in the stage.
    assert found["packed"]["difference"] < 1e-5
    assert found["packed"]["positions"] == [*range(8), *range(8)]
