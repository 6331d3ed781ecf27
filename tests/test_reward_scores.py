"""Rewards of answers: the reward model's, and the one that DPO leaves in a policy, held against transformers' own sums."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper import reward_scores
from temper.reward_scores import Scorer

# Two random policies and a random score over bytes, whose template ends a turn with <e> and a line break after it.
SCORES = """
import json, sys
from pathlib import Path

from temper import reward_model, reward_scores, training
from temper.reward_scores import Scorer

training.prepare()
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

root = Path(sys.argv[1])
letters = ["<s>", "<e>", "<p>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<e>", pad_token="<p>")
tokenizer.chat_template = (
    "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}<e>\\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
shape = LlamaConfig(
    vocab_size=len(letters), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2, bos_token_id=0, eos_token_id=1, pad_token_id=2, num_labels=1)
for number, name in enumerate(("dpo", "sft", "reward")):
    torch.manual_seed(number)
    (LlamaForSequenceClassification if name == "reward" else LlamaForCausalLM)(shape).save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)

chats = [
    [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    for text in ("Because.", "I do not know that, and nobody does.", "x" * 200)
]


def likelihood(name, chat):
    model = LlamaForCausalLM.from_pretrained(root / name, dtype=torch.float32).eval()
    before = tokenizer("user: Why?<e>\\nassistant: ", add_special_tokens=False)["input_ids"]
    answer = tokenizer(chat[-1]["content"] + "<e>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + answer])
    with torch.inference_mode():
        logs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    return float(logs[len(before) - 1 :].sum()), len(answer)


def scorer(folder, reference, beta, per_token=False):
    return Scorer(str(root / folder), reference and str(root / reference), beta, per_token, 100, 2)


model = LlamaForSequenceClassification.from_pretrained(root / "reward", dtype=torch.float32).eval()
whole = ["user: Why?<e>\\nassistant: " + chat[-1]["content"] + "<e>" for chat in chats]
read = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in whole]
with torch.inference_mode():
    rewards = [float(model(torch.tensor([ids])).logits[0, 0]) for ids in read]
own, other = ([likelihood(name, chat) for chat in chats[:2]] for name in ("dpo", "sft"))
print("FOUND", json.dumps({
    "implicit": reward_scores.scored(scorer("dpo", "sft", 0.5), chats),
    "expected": [0.5 * (mine - theirs) for (mine, _), (theirs, _) in zip(own, other)],
    "per_token": reward_scores.scored(scorer("dpo", "sft", 0.5, True), chats)[:2],
    "expected_per_token": [0.5 * (mine - theirs) / size for (mine, size), (theirs, _) in zip(own, other)],
    "free": reward_scores.scored(scorer("dpo", None, 2.0, True), chats)[:2],
    "expected_free": [2.0 * mine / size for mine, size in own],
    "rewards": reward_scores.scored(scorer("reward", None, None), chats),
    "expected_rewards": rewards[:2],
    "system": reward_scores.scored(scorer("reward", None, None), []),
}))
"""


@pytest.mark.engine
def test_rewards_are_those_that_transformers_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "temper.envs", "run", "train", "-c", SCORES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    assert found["implicit"][:2] == pytest.approx(found["expected"], abs=1e-3)
    assert found["per_token"] == pytest.approx(found["expected_per_token"], abs=1e-3)
    assert found["free"] == pytest.approx(found["expected_free"], abs=1e-3)
    assert found["rewards"][:2] == pytest.approx(found["expected_rewards"], abs=1e-3)
    assert (found["implicit"][2], found["rewards"][2]) == (None, None)  # longer than max_length
    assert found["system"] == []
    # From an environment without TRL, the same in a process of the one that has it.
    chats = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]]
    apart = reward_scores.scored(Scorer(str(tmp_path / "reward"), None, None, False, 100, 2), chats)
    assert apart == pytest.approx(found["rewards"][:1], abs=1e-3)


def trained(folder: Path, **run: Any) -> Path:
    settings = {"model": "models/sft", "settings": "trl:DPOConfig", "trainer": {"beta": 0.1, "loss_type": ["sigmoid"]}}
    (folder / "trl.yaml").write_text(json.dumps(settings | run))
    return folder


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, ("models/sft", 0.1, False)),
        ({"trainer": {"beta": 2.0, "loss_type": ["sigmoid_norm"]}}, ("models/sft", 2.0, True)),
        ({"trainer": {"beta": 2.0, "loss_type": ["ipo", "sft"]}}, ("models/sft", 2.0, True)),
        ({"trainer": {"beta": 0.3}}, ("models/sft", 0.3, False)),
        (
            {"settings": "trl.experimental.cpo:CPOConfig", "trainer": {"beta": 2.0, "loss_type": "simpo"}},
            (None, 2.0, True),
        ),
    ],
)
def test_an_implicit_reward_is_the_one_that_the_loss_trained(
    tmp_path: Path, run: dict[str, Any], expected: tuple[str | None, float, bool]
) -> None:
    found = reward_scores.implicit(trained(tmp_path, **run), 64, 4)
    assert (found.reference, found.beta, found.per_token) == expected
    assert found.is_implicit


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"trl\.yaml: no such file: an implicit reward is that of a policy which `dpo` trained$"
    ):
        reward_scores.implicit(tmp_path, 64, 4)
    with pytest.raises(SystemExit, match=r"no reward model: take a recipe that trains one \(recipe=sft-dpo-judged\)$"):
        reward_scores.reward(tmp_path, 64, 4)
