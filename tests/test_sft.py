"""Supervised fine-tuning: what Axolotl is told, what is refused before it starts, and the curve that comes out."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from commands.compose import composed
from scripts.sft import Sft
from temper import axolotl, curves, params, tracking


def settings(folder: Path, *overrides: str) -> Sft:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("sft", Sft, folder / "params.yaml")


def test_the_global_batch_is_kept_whatever_the_processes(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "sft.global_batch=16", "sft.micro_batch=2")
    for processes in (1, 2, 8):
        config = axolotl.render(cfg, processes)
        assert config["gradient_accumulation_steps"] * config["micro_batch_size"] * processes == 16


@pytest.mark.parametrize("times", [1, 2, 8])
def test_evaluations_and_saves_are_a_share_of_the_run(tmp_path: Path, times: int) -> None:
    config = axolotl.render(settings(tmp_path, f"sft.evals={times}", f"sft.saves={times}"), 1)
    # From 1.0 on the Trainer takes the number as a count of steps.
    assert 0 < config["eval_steps"] < 1
    assert round(1 / config["save_steps"]) == times


def test_only_answers_are_trained_on_and_only_in_the_models_own_template(tmp_path: Path) -> None:
    config = axolotl.render(settings(tmp_path), 1)
    for part in [*config["datasets"], *config["test_datasets"]]:
        assert part["roles_to_train"] == ["assistant"]
        assert part["type"] == "chat_template"
    assert config["chat_template"] == "tokenizer_default"


def test_what_is_saved_tells_nothing_of_the_machine_or_the_tracker(tmp_path: Path) -> None:
    axolotl.write(axolotl.render(settings(tmp_path, "tracking=wandb-offline"), 1), tmp_path / "out/axolotl.yaml")
    text = (tmp_path / "out/axolotl.yaml").read_text()
    assert not any(word in text for word in ("wandb", "output_dir", "prepared", str(Path.cwd()), str(tmp_path)))
    assert yaml.safe_load(text)["base_model"] == "models/base"


def test_deepspeed_is_rendered_and_a_wrong_stage_refused() -> None:
    assert axolotl.deepspeed("zero2")["zero_optimization"]["stage"] == 2
    assert axolotl.deepspeed("zero3")["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    with pytest.raises(SystemExit, match=r"'zero9', expected null, zero1, zero2 or zero3"):
        axolotl.deepspeed("zero9")


LOG = [
    {"step": 0, "eval_loss": 2.0, "eval_runtime": 1.25},
    {"step": 1, "loss": 1.5, "learning_rate": 1e-3, "grad_norm": 3.0, "epoch": 0.1},
    {"step": 2, "loss": 0.5, "learning_rate": 5e-4, "epoch": 0.2},
    {"step": 2, "eval_loss": 0.75, "epoch": 0.2},
    {"step": 2, "train_runtime": 12.5, "train_loss": 1.0},
]


def test_the_curve_has_one_row_a_step_and_no_time(tmp_path: Path) -> None:
    curves.write(tmp_path / "plots/sft.csv", LOG)
    with (tmp_path / "plots/sft.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[0].keys() == {"step", "loss", "eval_loss", "learning_rate"}
    assert rows[2] == {"step": "2", "loss": "0.5", "eval_loss": "0.75", "learning_rate": "0.0005"}
    assert "12.5" not in (tmp_path / "plots/sft.csv").read_text()


def test_a_run_is_summed_up_by_its_losses() -> None:
    assert curves.summary(LOG) == {"first_loss": 1.5, "train_loss": 0.5, "eval_loss": 0.75, "steps": 2}


def test_a_loss_that_is_not_a_number_is_one_line_with_its_step() -> None:
    broken = [*LOG, {"step": 3, "loss": float("nan")}]
    with pytest.raises(SystemExit, match=r"not finite at step 3: lower the learning rate"):
        curves.summary(broken)


def test_a_run_without_a_step_says_why() -> None:
    with pytest.raises(SystemExit, match="no step was logged"):
        curves.summary([{"step": 0, "eval_loss": 1.0}])


def test_tracking_online_without_a_key_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_SILENT", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.setenv(name, "")
    Path("params.yaml").write_text("tracking: wandb\n")
    with pytest.raises(SystemExit, match=r"WANDB_API_KEY.*wandb login.*wandb-offline"):
        tracking.trackers("sft")


def test_axolotl_reads_messages_alone(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "null"}]
    rows.write_text(json.dumps({"id": "1", "messages": messages, "gold": {"x": [1, "a"]}}) + "\n")
    (tmp_path / "scratch").mkdir()
    reduced = Path(axolotl._messages(str(rows), tmp_path / "scratch"))
    assert json.loads(reduced.read_text()) == {"messages": messages}
