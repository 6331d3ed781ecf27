"""Attention within documents: packed rows give the loss and the gradients that each document gives by itself."""

import json
import subprocess
import sys

import pytest

MODELS = """
import json
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from types import SimpleNamespace
from temper import documents
from temper.axolotl_plugin import Plugin

small = dict(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0)
kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config),
         "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig)}

def gradients(model, **batch):
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=torch.tensor(30), use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

def padded(rows, value):
    return torch.tensor([row + [value] * (24 - len(row)) for row in rows])

def difference(one, other):
    return [abs(one[0] - other[0]), (one[1] - other[1]).abs().max().item()]

found = {}
for name, (kind, config) in kinds.items():
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(kind(config(**small)), lora)
    # Two rows of three and two documents, all labelled but for their first tokens, the second row with padding.
    sizes = [[9, 5, 10], [7, 12]]
    texts = [[torch.randint(1, 128, (size,)).tolist() for size in row] for row in sizes]
    ids = padded([sum(row, []) for row in texts], 0)
    labels = padded([sum(([-100, *text[1:]] for text in row), []) for row in texts], -100)
    places = padded([sum((list(range(len(text))) for text in row), []) for row in texts], 0)
    alone = [gradients(model, input_ids=torch.tensor([text]), labels=torch.tensor([[-100, *text[1:]]]))
             for row in texts for text in row]
    apart = sum(loss for loss, _ in alone), sum(gradient for _, gradient in alone)
    seen = gradients(model, input_ids=ids, labels=labels, position_ids=places, attention_mask=torch.ones_like(ids))
    text = torch.tensor([texts[0][0]])
    longer = padded([texts[0][0], texts[0][1]], 0)
    marks = padded([[-100, *one[1:]] for one in texts[0][:2]], -100)
    mask = (longer != 0).long()
    right = gradients(model, input_ids=longer, labels=marks, attention_mask=mask)
    left = gradients(model, input_ids=longer.flip(1), labels=marks.flip(1), attention_mask=mask.flip(1))
    before = model.config._attn_implementation
    # As stage `sft` has it done, logits of labelled tokens alone among it.
    Plugin().post_model_load(SimpleNamespace(attend_within_documents=True), model)
    packed = gradients(model, input_ids=ids, labels=labels, position_ids=places, attention_mask=torch.ones_like(ids))
    found[name] = {
        "attention": [before, model.config._attn_implementation],
        "apart": difference(packed, apart), "seen": difference(packed, seen),
        "right": difference(gradients(model, input_ids=longer, labels=marks, attention_mask=mask), right),
        "left": difference(gradients(model, input_ids=longer.flip(1), labels=marks.flip(1), attention_mask=mask.flip(1)), left),
    }
rows = [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 2], [5, 6, 0, 1], [0], [0, 1, 2], [0, 0, 1, 0, 0, 0, 1], [0, 1, 2, 3, 2, 3]]
found["spans"] = [documents.spans(torch.tensor(row)) for row in rows]
print(json.dumps(found))
"""


@pytest.mark.engine
def test_packed_documents_give_what_each_gives_by_itself() -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", MODELS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    for name in ("llama", "qwen3"):
        assert found[name]["attention"] == ["sdpa", "documents"], name
        for how in ("apart", "right", "left"):
            assert max(found[name][how]) < 1e-5, (name, how)
        assert max(found[name]["seen"]) > 1e-3, (
            f"{name}: documents that see each other give the same, so nothing was shown"
        )
    # Windows of its own: left to transformers.
    assert found["gemma3"]["attention"] == ["sdpa", "sdpa"]
    sizes = [[size for size, _ in spans] for spans in found["spans"]]
    assert sizes == [[3, 2], [2, 3], [2, 3], [2, 2], [1], [3], [1, 2, 2, 2], [4, 2]]
    assert [begin for *_, (_, begin) in found["spans"]] == [0, 0, 0, 0, 0, 0, 0, 2]
