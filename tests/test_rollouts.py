"""Rollouts: the weights that a sampler gets, its seeds, and how it fails; the engine itself runs in tests/test_grpo.py."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from temper import envs, health, rollouts

# What a merge must not do, and what it must: on a model of two layers whose adapter is no longer zero.
MERGE = """
import os
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from temper import rollout_engine, rollouts
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
file, digest = rollouts.offered(model, "float32")
taken = torch.load(f"/proc/{os.getpid()}/fd/{file.fileno()}", mmap=True)
assert rollout_engine.digest(taken) == rollout_engine.digest(weights) == digest
others = {}
for changed in ("names", "shapes", "bytes"):
    name, tensor = next((name, tensor.clone()) for name, tensor in weights.items() if tensor.dim() == 2)
    left = {other: kept for other, kept in weights.items() if other != name}
    if changed == "bytes":
        tensor.view(torch.uint8)[0, 0] ^= 1
    renamed = name + "x" if changed == "names" else name
    others[changed] = rollout_engine.digest(left | {renamed: tensor.T if changed == "shapes" else tensor})
assert len({digest, *others.values()}) == 4, others
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
    for size, in_memory in ((1, True), (10**18, False)):
        with rollouts.unnamed(size) as file:
            assert (tmp_path in Path(f"/proc/self/fd/{file.fileno()}").readlink().parents) == in_memory


def test_weights_have_no_name_that_a_killed_run_could_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "MEMORY", tmp_path)
    with rollouts.unnamed(1) as file:
        file.write(b"weights")
        file.flush()
        assert not list(tmp_path.iterdir())
        offered = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        assert subprocess.run(["cat", offered], capture_output=True, check=True).stdout == b"weights"


@pytest.mark.parametrize(
    ("listed", "own"), [(None, "1"), ("4,5", "5"), ("GPU-a,GPU-b", "GPU-b"), ("4", ""), ("", "")], ids=str
)
def test_an_engine_gets_the_device_of_its_process_and_nothing_of_torchrun(listed: str | None, own: str) -> None:
    of_torchrun = dict.fromkeys(
        (
            *("RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "GROUP_WORLD_SIZE"),
            *("ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"),
        ),
        "1",
    )
    visible = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    environment = of_torchrun | visible | {"LOCAL_RANK": "1", "HOME": "/", "PARANK": "2"}
    assert rollouts.alone(environment) == {"HOME": "/", "PARANK": "2", "CUDA_VISIBLE_DEVICES": own}


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_of_other_weights_than_were_handed_over_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rollouts.Rollouts, "sync", lambda self, _: setattr(self, "digest", "new"))
    held = ["new"]
    engine: Any = SimpleNamespace(sample=lambda *_: {"completion_ids": [[1]], "logprobs": [[0.0]], "digest": held[-1]})
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=4),
        accelerator=SimpleNamespace(process_index=0, num_processes=processes),
        _tokenize_prompts=lambda prompts: (prompts,),
    )
    found = rollouts.Rollouts(engine, "float32", 1e-3, 17)([[7]], trainer)
    assert found == {"prompt_ids": [[7]], "completion_ids": [[1]], "logprobs": [[0.0]]}
    held.append("old")
    expected = "grpo: step 5: the sampler's weights are not the policy's: their SHA-256 is old, not new: resume from "
    with pytest.raises(SystemExit) as error:
        rollouts.Rollouts(engine, "float32", 1e-3, 17)([[7]], trainer)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)
    # Which torchrun's own words would drown.
    assert health.reason() == (str(error.value) if processes > 1 else None)
