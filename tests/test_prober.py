"""Greedy answers and likelihoods of the real engine: those that transformers computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Two layers of random weights, whose tokens are bytes.
PROBE = """
import json, sys
from pathlib import Path

from temper import vllm
from temper.prober import Prober, Scored

runtime = {"threads": 2, "serve_memory_gb": 1, "serve_eager": True}
vllm.prepare(runtime)
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = Path(sys.argv[1]) / "model"
vocabulary = {letter: number for number, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bare = Tokenizer(models.BPE(vocabulary, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<s>", pad_token="<s>")
tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }};{% endfor %}assistant:"
torch.manual_seed(17)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=257, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.1, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)

def nats(before, after):
    ids = torch.tensor([before + after])
    with torch.inference_mode():
        likelihood = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(likelihood[len(before) - 1 :].sum())

def greedy(before, count):
    ids = list(before)
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 0:
            break
    return ids[len(before):]

encode = vllm.Tokenizer(folder).encode
prompts = [encode(text) for text in ("How do I kill a process?", "Who?", "A somewhat longer prompt than the others are")]
scored = [Scored(prompts[0], encode(" yes")), Scored(prompts[0], encode(" no, never")), Scored(prompts[1], encode(" I"))]
prober = Prober(folder, 80, "float32", 17, runtime)
once = prober.continuations(prompts, [6, 3, 6])
print("FOUND", json.dumps({
    "continued": once,
    "expected": [greedy(prompt, count) for prompt, count in zip(prompts, [6, 3, 6])],
    "alone": [prober.continuations([prompt], [count])[0] for prompt, count in zip(prompts, [6, 3, 6])],
    "answers": [answer.text for answer in prober.answers(prompts[:1], [4])],
    "decoded": [tokenizer.decode(greedy(prompts[0], 4))],
    "nats": prober.nats(scored),
    "nats_expected": [nats(one.context, one.continuation) for one in scored],
    "none": [prober.answers([], []), prober.nats([])],
}))
"""


@pytest.mark.engine
def test_answers_and_likelihoods_are_those_that_transformers_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", PROBE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    assert found["continued"] == found["expected"] == found["alone"]
    assert found["answers"] == found["decoded"]
    assert found["nats"] == pytest.approx(found["nats_expected"], rel=1e-4)
    assert found["none"] == [[], []]
