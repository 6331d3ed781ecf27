"""What TRL's trainers hold of their logits at a time: as temper/plan.py counts it, and as PyTorch's profiler sees it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts.dpo import Dpo
from scripts.kto import Kto
from scripts.orpo import Orpo
from temper import memory, model_shape, params, plan, preference_trainers
from temper.memory import Job
from tests.test_dpo import PAIR

# One narrow layer under a wide vocabulary, so that all but a hundredth of what is allocated is logits.
SMALL = {"model_type": "llama", "vocab_size": 16384, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
IN_TRL = """
import importlib, json, sys
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

small, runs = json.loads(sys.argv[1])
letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bare = Tokenizer(models.BPE(letters, []))
bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bare.add_special_tokens([AddedToken("<|im_end|>", special=True)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>")
tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}<|im_end|>{% endfor %}"
tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
tokenizer.save_pretrained("model")
AutoModelForCausalLM.from_config(AutoConfig.for_model(**small)).save_pretrained("model")

def most(run):
    # (positions with logits of the policy, bytes that a forward and a backward pass hold at most)
    module, _, name = run["builder"].partition(":")
    trainer = getattr(importlib.import_module(module), name)(run)
    # DPO's computes a pair's prompt once.
    assert type(trainer).__module__.startswith("temper.") == (name == "dpo"), type(trainer)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    positions = []
    trainer.model.register_forward_hook(lambda model, given, output: positions.append(output.logits[..., 0].numel()))
    with torch.profiler.profile(profile_memory=True) as seen:
        trainer.compute_loss(trainer.model, batch).backward()
    held, peak = 0, 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, held)
    return max(positions), peak

print(json.dumps({name: most(run) for name, run in runs.items()}))
"""


@dataclass(frozen=True)
class Case:
    section: str
    settings: type
    render: Callable[..., Any]
    counted: Callable[[Job], Job]
    overrides: tuple[str, ...] = ()


def both(job: Job) -> Job:
    return plan.compared(plan.with_cross_entropy(job))


def render_kto(cfg: Kto, start: Path, processes: int) -> Any:
    return preference_trainers.render_kto(cfg, start, processes, [{"label": True}, {"label": False}])


CASES = {
    "dpo": Case("dpo", Dpo, preference_trainers.render_dpo, plan.compared),
    "dpo, sft_weight": Case("dpo", Dpo, preference_trainers.render_dpo, both, ("dpo.sft_weight=1.0",)),
    "simpo": Case("dpo", Dpo, preference_trainers.render_dpo, lambda job: job, ("dpo=simpo",)),
    "simpo, sft_weight": Case(
        "dpo", Dpo, preference_trainers.render_dpo, plan.with_cross_entropy, ("dpo=simpo", "dpo.sft_weight=1.0")
    ),
    "kto": Case("kto", Kto, render_kto, plan.compared),
    "orpo": Case("orpo", Orpo, preference_trainers.render_orpo, plan.with_cross_entropy),
}


@pytest.mark.engine
def test_trl_holds_as_many_copies_of_the_logits_as_are_counted(tmp_path: Path) -> None:
    pairs = [PAIR | {side: [{"role": "assistant", "content": side[0] * 96}] for side in ("chosen", "rejected")}] * 8
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(pair | {"id": str(n)}) + "\n" for n, pair in enumerate(pairs))
    )
    runs = {name: rendered(case, tmp_path) for name, case in CASES.items()}
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", IN_TRL, json.dumps([SMALL, runs])]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    shape = model_shape.of(SMALL, "small")
    for name, (positions, most) in json.loads(result.stdout.splitlines()[-1]).items():
        job = Job(shape, rows=1, length=positions, stored=4, width=4, trainable=0)
        assert memory.logits(CASES[name].counted(job)) == pytest.approx(most, rel=0.05), name


def rendered(case: Case, folder: Path) -> dict[str, Any]:
    (folder / "params.yaml").write_text(composed(["hardware.micro_batch=4", *case.overrides]))
    cfg: Any = params.load(case.section, case.settings, folder / "params.yaml")
    run: dict[str, Any] = case.render(cfg, Path("model"), 1)
    own = {"output_dir": "out", "report_to": "none"}
    return run | {"preferences": "pairs.jsonl", "trainer": run["trainer"] | own}
