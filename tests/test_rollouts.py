"""Rollouts: the weights that a sampler gets, its seeds, and how it fails; the engine itself runs in tests/test_grpo.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper import envs, rollouts

# What a merge must not do, and what it must: on a model of two layers whose adapter is no longer zero.
MERGE = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from temper import rollouts
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes)).eval()
names = set(base.state_dict())
model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **OPTIONS)).eval()
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.1)
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
weights = rollouts.merged(model, torch.float32)
assert weights.keys() == names - {"lm_head.weight"}, weights.keys() ^ names
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
ids = torch.arange(8)[None]
with torch.no_grad():
    expected = model(ids).logits
    with model.disable_adapter():
        assert (model(ids).logits - expected).abs().max() > 1e-3
    plain = LlamaForCausalLM(base.config)
    missing = plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    assert missing.unexpected_keys == [] and missing.missing_keys == ["lm_head.weight"], missing
    assert (plain.eval()(ids).logits - expected).abs().max() < 1e-5
assert rollouts.merged(model, torch.bfloat16)["model.norm.weight"].dtype == torch.bfloat16
print("merged")
"""


@pytest.mark.engine
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_merged_weights_are_the_policy_and_leave_it_as_it_is(options: dict[str, Any]) -> None:
    code = MERGE.replace("OPTIONS", repr(options))
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "merged", done.stderr[-2000:]


def test_an_answer_keeps_its_seed_in_a_resumed_run() -> None:
    seeds = [rollouts.seed(17, step, number) for step in range(20) for number in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [rollouts.seed(17, step, number) for step in range(20) for number in range(64)]
    assert rollouts.seed(18, 0, 0) != rollouts.seed(17, 0, 0)


def test_an_engine_that_dies_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM is not in the environment that runs this, so the engine ends at its import.
    monkeypatch.setattr(envs, "python", lambda _: Path(sys.executable))
    settings = {"model": str(tmp_path), "runtime": {"threads": 1, "serve_eager": True}}
    engine = rollouts.Engine(settings)
    with pytest.raises(SystemExit, match=r"^grpo: the vLLM engine ended with status 1: [\s\S]*No module named 'vllm'"):
        engine.sample([[1]], [0])
    engine.close()


def test_weights_that_memory_has_no_room_for_go_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "MEMORY", tmp_path)
    assert rollouts.memory_folder(1).parent == tmp_path
    elsewhere = rollouts.memory_folder(10**18)
    assert elsewhere.parent != tmp_path
    elsewhere.rmdir()
