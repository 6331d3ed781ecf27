"""Adapters merged into their base: the same model by float32, nearly so by bf16, and what is wrong is caught."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper import merging

FIGURES = {"merge_adapter_max": 4.0, "merge_sum_max": 0.001, "merge_bf16_kl": 0.001}
# A byte-level tokenizer and two random layers: the algebra does not need a model that can speak.
MERGE = """
import json, os, sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from temper import adapters, axolotl, base_model, records

os.chdir(sys.argv[1])
alphabet = pre_tokenizers.ByteLevel.alphabet()
bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\\n{% endfor %}"

def base(name, layers=2, width=64):
    set_seed(17)
    config = LlamaConfig(vocab_size=256, hidden_size=width, intermediate_size=128, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1)
    base_model.save(LlamaForCausalLM(config), tokenizer, Path(name))

def adapter(name, **options):
    model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False,
                        task_type="CAUSAL_LM", **options)
    get_peft_model(model, config).save_pretrained(f"trained-{name}")
    adapters.keep(Path(f"trained-{name}"), Path(name))

def refused(base, adapter):
    try:
        adapters.merge(Path(base), Path(adapter), Path(f"from-{base}"), rows)
    except SystemExit as error:
        return str(error)

rows = Path("rows.jsonl")
turn = lambda role, text: {"role": role, "content": text}
records.write(rows, [
    {"messages": [turn("user", "Add 1 and 2."), turn("assistant", "3")]},
    {"prompt": [turn("user", "Name a colour, please, and say why.")], "chosen": [turn("assistant", "Blue, as the sea.")]},
    {"text": "A long time ago there was a model that did not forget."},
])
base("base"), base("shallow", layers=1), base("narrow", width=32)
found = {}
for name, options in {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}.items():
    adapter(name, **options)
    found[name] = adapters.merge(Path("base"), Path(name), Path(f"merged-{name}"), rows)
found["nf4"] = adapters.merge(Path("base"), Path("lora"), Path("merged-nf4"), rows, axolotl.NF4)
found["others"] = [refused("shallow", "lora"), refused("narrow", "lora")]
exact = Linear.get_delta_weight
Linear.get_delta_weight = lambda self, adapter: 1.01 * exact(self, adapter)
found["scaled"] = refused("base", "lora")
print("FOUND", json.dumps(found))
"""


@pytest.mark.engine
def test_merging_is_exact_whatever_the_adapter_and_a_wrong_scale_is_caught(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", MERGE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    for name in ("lora", "dora", "rslora"):
        figures = found[name]
        assert figures["merge_positions"] > 64, "every row is compared"
        assert figures["merge_adapter_max"] > 0.5, "the adapter does something"
        assert figures["merge_sum_max"] < 1e-4
        assert figures["merge_sum_greedy"] == 1.0
        assert figures["merge_sum_max"] < figures["merge_bf16_max"] < figures["merge_adapter_max"] / 10
        assert 0 < figures["merge_bf16_kl"] < merging.ROUNDING
        assert (tmp_path / f"merged-{name}/model.safetensors").is_file()
    nf4 = found["nf4"]
    assert {key: nf4[key] for key in found["lora"]} == found["lora"], "the sum is of the 16-bit base"
    assert nf4["merge_bf16_kl"] < nf4["merge_nf4_kl"], (
        "4 bits lose more than 16, which only the base that was trained on shows"
    )
    assert nf4["merge_nf4_max"] > 10 * nf4["merge_sum_max"]
    assert "base: summed in float32" in found["scaled"]
    assert "lora: made for another model than shallow: " in found["others"][0]
    assert "lora: made for another model than narrow: " in found["others"][1]
    assert not any("\n" in text for text in (found["scaled"], *found["others"]))


def test_what_float32_and_bf16_explain_passes() -> None:
    merging.require(FIGURES, Path("models/sft"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"merge_sum_max": 0.04}, r"models/sft: summed in float32, .* up to 0\.04 nats, expected at most 0\.0045: "),
        ({"merge_sum_max": float("nan")}, "summed in float32"),
        ({"merge_bf16_kl": 0.5}, r"models/sft: as written in bf16 it is 0\.5 nats a token .* at most 0\.02: "),
    ],
)
def test_what_they_do_not_explain_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SystemExit, match=said) as error:
        merging.require(FIGURES | changed, Path("models/sft"))
    assert "\n" not in str(error.value)
