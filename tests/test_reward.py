"""The reward model: which pairs judge it, how sure its accuracy is, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.compose import composed
from scripts.reward import Reward
from temper import params, reward_model
from temper.preference_trainers import Pair
from tests import test_trl
from tests.test_dpo import PAIR, SFT

PLACE = "data/preferences.jsonl"


def settings(folder: Path, *overrides: str) -> Reward:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("reward", Reward, folder / "params.yaml")


def asked(number: int) -> Pair:
    return PAIR | {"prompt": [{"role": "user", "content": f"Add {number} and 2"}]}


def test_a_prompt_trains_or_judges_but_not_both() -> None:
    pairs = [asked(number) for number in range(20) for _ in range(2)]
    trained, held_out = reward_model.divided(pairs, 0.1, 17, PLACE)
    assert (len(trained), len(held_out)) == (36, 4)
    sides = [{json.dumps(pair["prompt"]) for pair in side} for side in (trained, held_out)]
    assert not sides[0] & sides[1]
    assert reward_model.divided(pairs[::-1], 0.1, 17, PLACE)[1] == held_out[::-1]


def test_one_prompt_is_too_few_and_two_are_enough() -> None:
    trained, held_out = reward_model.divided([asked(1), asked(2)], 0.1, 17, PLACE)
    assert len(trained) == len(held_out) == 1
    with pytest.raises(
        SystemExit, match=r"^data/preferences\.jsonl: pairs of one prompt, .* raise preferences\.samples"
    ):
        reward_model.divided([asked(1), asked(1)], 0.1, 17, PLACE)


def test_the_adapter_is_a_choice(tmp_path: Path) -> None:
    assert reward_model.render(settings(tmp_path), SFT, 1)["lora"]["r"] == 16
    assert reward_model.render(settings(tmp_path, "reward=full"), SFT, 1)["lora"] is None
    with pytest.raises(SystemExit, match=r"^reward\.method is 'half', expected lora or full: .*conf/reward$"):
        reward_model.render(settings(tmp_path, "reward.method=half"), SFT, 1)


def test_accuracy_comes_with_its_interval() -> None:
    found = reward_model.measured([1.0, 2.0, 3.0, -1.0], [{"accuracy": 0.5, "margin": 0.1}], 0.95, 17)
    assert (found["accuracy"], found["margin"], found["held_out"]) == (0.75, 1.25, 4)
    assert 0 < found["accuracy_low"] < 0.75 < found["accuracy_high"] < 1
    assert found["margin_low"] < 1.25 < found["margin_high"]
    assert (found["train_accuracy"], found["train_margin"]) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("pad", "added", "end_of_turn", "expected"),
    [
        ("<pad>", {}, None, ("<end>", "<pad>")),
        ("<end>", {"<start>": 0, "<end>": 1, "<user>": 2, "<spare>": 3}, None, ("<end>", "<spare>")),
        (None, {"<spare>": 3, "<first>": 2}, "<turn>", ("<turn>", "<first>")),
    ],
)
def test_padding_is_no_end_of_turn(
    pad: str | None, added: dict[str, int], end_of_turn: str | None, expected: tuple[str, str]
) -> None:
    tokenizer = SimpleNamespace(eos_token="<end>", bos_token="<start>", pad_token=pad, chat_template="<user>")
    tokenizer.get_added_vocab = lambda: added
    made = reward_model.padded(tokenizer, end_of_turn)
    assert (made.eos_token, made.pad_token) == expected


def test_a_tokenizer_without_a_token_to_spare_is_refused() -> None:
    tokenizer = SimpleNamespace(eos_token="<end>", bos_token="<start>", pad_token="<end>", chat_template="")
    tokenizer.get_added_vocab = lambda: {"<end>": 1}
    with pytest.raises(SystemExit, match=r"^reward: the tokenizer has no special token .* add a pad_token$"):
        reward_model.padded(tokenizer, None)


FIGURES = {"merge_adapter_max": 4.0, "merge_sum_max": 0.001, "merge_bf16_max": 0.05}


def test_scores_may_differ_by_what_float32_and_bf16_explain() -> None:
    reward_model.require_merged(FIGURES, Path("models/reward"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"merge_sum_max": 0.04}, r"^models/reward: summed in float32, .* up to 0\.04, expected at most 0\.0045: "),
        ({"merge_sum_max": float("nan")}, "summed in float32"),
        (
            {"merge_bf16_max": 0.5},
            r"as written in bf16 its scores are up to 0\.5 .* most 0\.4: .*reward\.learning_rate$",
        ),
    ],
)
def test_scores_that_differ_by_more_are_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SystemExit, match=said) as error:
        reward_model.require_merged(FIGURES | changed, Path("models/reward"))
    assert "\n" not in str(error.value)


MERGE = (
    test_trl.HEAD
    + """
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from temper import adapters

save("sft"), save("shallow", layers=1), save("narrow", width=32)
set_seed(18)
config = configured("reward")
adapted = get_peft_model(reward_model.classifier("models/sft", torch.float32),
                         LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **config["lora"]))
adapted.save_pretrained("trained")
adapters.keep(Path("trained"), Path("adapter"))
pairs = [pair(number) for number in range(12)]

def write(model="sft"):
    return reward_model.write(config | {"model": f"models/{model}"}, Path("trained"), Path("adapter"), Path("merged"), pairs)

found = {"figures": [write(), write()]}
found["margins"] = reward_model.margins(Path("merged"), pairs[:1], 200, 2)
tokenizer = reward_model.padded(trl.tokenizer("models/sft"), None)
adapted.config.pad_token_id = tokenizer.pad_token_id
answers = reward_model.compared(pairs, tokenizer)
scores = reward_model.scores(adapted.eval(), answers)
found["trained"] = float(scores[0] - scores[1])
found["others"] = [refused(write, "shallow"), refused(write, "narrow")]
exact = Linear.get_delta_weight
Linear.get_delta_weight = lambda self, adapter: 1.01 * exact(self, adapter)
found["scaled"] = refused(write)
print("FOUND", json.dumps(found))
"""
)


@pytest.mark.engine
def test_merging_keeps_the_scores_and_refuses_what_was_made_for_another_model(tmp_path: Path) -> None:
    found = test_trl.run(MERGE, tmp_path)
    figures, again = found["figures"]
    assert figures == again, "the score that it began with is drawn from the seed"
    assert figures["merge_scores"] == 16, "both answers of eight pairs"
    assert figures["merge_adapter_max"] > 0.1, "the adapter does something"
    assert figures["merge_sum_max"] < 1e-4 < figures["merge_bf16_max"] < figures["merge_adapter_max"] / 2
    assert found["margins"] == pytest.approx([found["trained"]], abs=2 * figures["merge_bf16_max"])
    assert "merged: summed in float32, its scores differ" in found["scaled"]
    assert "adapter: made for another model than models/shallow: " in found["others"][0]
    assert "adapter: made for another model than models/narrow: " in found["others"][1]
    assert not any("\n" in text for text in (found["scaled"], *found["others"]))
