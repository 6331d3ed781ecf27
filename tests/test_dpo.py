"""Preference tuning: what TRL is told, and what is refused before it starts."""

import json
from pathlib import Path

import pytest

from commands.compose import composed
from scripts.dpo import Dpo
from temper import params, trl

PAIR = {
    "prompt": [{"role": "user", "content": "Add 1 and 2"}],
    "chosen": [{"role": "assistant", "content": "3"}],
    "rejected": [{"role": "assistant", "content": "4"}],
}


def settings(folder: Path, *overrides: str) -> Dpo:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("dpo", Dpo, folder / "params.yaml")


def test_the_global_batch_is_kept_whatever_the_processes(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "dpo.global_batch=16", "dpo.micro_batch=2")
    for processes in (1, 2, 8):
        trainer = trl.render(cfg, processes)["trainer"]
        assert trainer["gradient_accumulation_steps"] * trainer["per_device_train_batch_size"] * processes == 16


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "dpo.global_batch=8", "dpo.micro_batch=3")
    with pytest.raises(SystemExit, match=r"^dpo\.global_batch is 8, .* = 3: .*micro_batch") as error:
        trl.render(cfg, 1)
    assert "\n" not in str(error.value)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "dpo.precision=fp8")
    with pytest.raises(SystemExit, match=r"'fp8', expected fp32 or bf16"):
        trl.render(cfg, 1)


def test_what_is_saved_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    config = trl.render(settings(tmp_path), 1)
    trl.write(config, tmp_path / "out/trl.yaml")
    text = (tmp_path / "out/trl.yaml").read_text()
    assert "output_dir" not in text
    assert "report_to" not in text
    assert str(Path.cwd()) not in text
    shuffled = settings(tmp_path, "dpo.lora.targets=[v_proj,q_proj]")
    assert trl.render(shuffled, 1)["lora"]["target_modules"] == ["q_proj", "v_proj"]


def test_pairs_are_read_without_their_bookkeeping(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    file.write_text(json.dumps(PAIR | {"id": "a", "source": "policy"}) + "\n")
    assert trl.pairs(file) == [PAIR]


def test_no_pairs_is_one_line_that_says_what_to_change(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    file.touch()
    with pytest.raises(SystemExit, match=r"preferences\.jsonl: no pairs to train on: .*preferences\.samples") as error:
        trl.pairs(file)
    assert "\n" not in str(error.value)


def test_rewards_are_the_mean_of_the_last_tenth() -> None:
    log = [{"step": step, "rewards/margins": float(step), "rewards/accuracies": 0.5} for step in range(1, 21)]
    assert trl.rewards([*log, {"step": 20, "train_runtime": 1.0}]) == {"reward_margin": 19.5, "reward_accuracy": 0.5}
