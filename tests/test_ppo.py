"""PPO: what its trainer is told, which prompts it gets, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.compose import composed
from scripts.ppo import Ppo
from temper import params, ppo
from tests.test_dpo import PAIR, SFT

ASKED = {"role": "user", "content": "Add 1 and 2"}
ANSWERED = {"role": "assistant", "content": "3"}


def settings(folder: Path, *overrides: str) -> Ppo:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("ppo", Ppo, folder / "params.yaml")


def test_its_batch_is_what_was_asked_on_any_hardware_and_its_length_too(tmp_path: Path) -> None:
    for hardware in ("cpu", "gpu1", "gpu8"):
        cfg = settings(tmp_path, f"hardware={hardware}", "ppo.max_steps=3")
        trainer = ppo.render(cfg, SFT)["trainer"]
        assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == cfg.global_batch
        assert trainer["total_episodes"] == 3 * cfg.global_batch
    assert ppo.render(settings(tmp_path), SFT)["trainer"]["total_episodes"] is None


def test_prompts_end_where_the_answer_begins_and_texts_have_none(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [ASKED, ANSWERED], "tools": [], "gold": None},
        {"kind": "preference", "messages": [ASKED], "chosen": PAIR["chosen"], "rejected": PAIR["rejected"]},
        {"kind": "text", "text": "A story."},
    ]
    file = tmp_path / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ppo.prompts(file, 2) == [[ASKED], [ASKED]]
    with pytest.raises(
        SystemExit,
        match=r"preferences\.jsonl: 2 prompts, fewer .*ppo\.global_batch is 8\): raise its share in conf/split",
    ) as error:
        ppo.prompts(file, 8)
    assert "\n" not in str(error.value)


def model(kind: str, size: int) -> Any:
    text = SimpleNamespace(vocab_size=size)
    return SimpleNamespace(config=SimpleNamespace(model_type=kind, get_text_config=lambda: text))


def test_a_reward_model_of_another_base_is_refused() -> None:
    run = {"reward_model": "models/reward", "model": "models/sft"}
    ppo.require_same_vocabulary(run, model("llama", 100), model("llama", 100))
    for other in (model("llama", 200), model("qwen3", 100)):
        with pytest.raises(
            SystemExit, match=r"^models/reward: made from another base than models/sft .*recipe\.reward"
        ):
            ppo.require_same_vocabulary(run, model("llama", 100), other)
