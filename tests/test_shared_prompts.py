"""Answers after one computation of their prompt: DPO's losses, gradients and metrics are those of TRL's own trainer."""

import json
import subprocess
import sys

import pytest

LOSSES = """
import json, sys, tempfile
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from temper import shared_prompts
from temper.dpo_trainer import Trainer

letters = {letter: number for number, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bare = Tokenizer(models.BPE(letters, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<s>", pad_token="<s>")
# Two pairs of one prompt, and answers from one token to many.
pairs = Dataset.from_list([
    {"prompt": "2 and 2 is ", "chosen": "4", "rejected": "5, I should think"},
    {"prompt": "2 and 3 is what? ", "chosen": "that is 5", "rejected": "6"},
    {"prompt": "2 and 2 is ", "chosen": "four", "rejected": "3"},
    {"prompt": "Who? ", "chosen": "Nobody at all", "rejected": "Somebody"},
])
passes = []
called = LlamaForCausalLM.forward
def counted(self, *given, **named):
    passes.append(named["input_ids"].numel())
    return called(self, *given, **named)
LlamaForCausalLM.forward = counted

def found(kind, **changed):
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0))
    own = {"output_dir": tempfile.mkdtemp(), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": 64,
           "gradient_checkpointing": False, "per_device_train_batch_size": 4, "beta": 0.7}
    made = kind(model, args=DPOConfig(**own | changed), processing_class=tokenizer, train_dataset=pairs,
                peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    batch = made.data_collator([made.train_dataset[number] for number in range(4)])
    passes.clear()
    loss = made._compute_loss(made.model, batch, False)
    loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in made.model.parameters() if weight.requires_grad])
    metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
    assert made.model.config._attn_implementation == "sdpa"
    assert made.model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 257)
    return loss.item(), gradient, metrics, passes[0]

print(json.dumps({name: [
    abs(ours[0] - theirs[0]), (ours[1] - theirs[1]).abs().max().item(), theirs[1].abs().max().item(),
    max(abs(ours[2][key] - theirs[2][key]) for key in theirs[2]), sorted(ours[2]) == sorted(theirs[2]), ours[3], theirs[3],
] for name, changed in {
    "sigmoid": {}, "norm": {"loss_type": "sigmoid_norm"}, "ipo": {"loss_type": "ipo"}, "tail": {"ld_alpha": 0.3},
    "with_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
}.items() for ours, theirs in [(found(Trainer, **changed), found(DPOTrainer, **changed))]}))
"""


@pytest.mark.engine
def test_the_loss_of_pairs_that_share_a_prompt_is_that_of_trl() -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", LOSSES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert len(found) == 5
    for name, (loss, gradient, size, metrics, same_metrics, ours, theirs) in found.items():
        assert loss < 1e-5, name
        assert gradient < 1e-5, name
        assert size > 1e-3, name
        assert metrics < 1e-4, name
        assert same_metrics, name
        assert ours < 0.6 * theirs, f"{name}: {ours} tokens went through the model, {theirs} of TRL's"
