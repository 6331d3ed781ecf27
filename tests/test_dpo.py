"""Preference tuning: what TRL is told, and what is refused before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from commands.compose import composed
from scripts.dpo import Dpo
from temper import params, preference_trainers, trl

PAIR = {
    "prompt": [{"role": "user", "content": "Add 1 and 2"}],
    "chosen": [{"role": "assistant", "content": "3"}],
    "rejected": [{"role": "assistant", "content": "4"}],
}
SFT = Path("models/sft")


def settings(folder: Path, *overrides: str) -> Dpo:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("dpo", Dpo, folder / "params.yaml")


def refusal(cfg: Dpo) -> str:
    with pytest.raises(SystemExit) as error:
        preference_trainers.render_dpo(cfg, SFT, 1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_global_batch_is_kept_whatever_the_processes(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "dpo.global_batch=16", "dpo.micro_batch=2")
    for processes in (1, 2, 8):
        trainer = preference_trainers.render_dpo(cfg, SFT, processes)["trainer"]
        assert trainer["gradient_accumulation_steps"] * trainer["per_device_train_batch_size"] * processes == 16


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers(tmp_path: Path) -> None:
    found = refusal(settings(tmp_path, "dpo.global_batch=8", "dpo.micro_batch=3"))
    assert found.startswith("dpo.global_batch is 8, ")
    assert " = 3: " in found
    assert "micro_batch" in found


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    assert "'fp8', expected fp32 or bf16" in refusal(settings(tmp_path, "dpo.precision=fp8"))


def test_what_is_saved_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    config = preference_trainers.render_dpo(settings(tmp_path), SFT, 1)
    trl.write(config, tmp_path / "out/trl.yaml")
    text = (tmp_path / "out/trl.yaml").read_text()
    assert "output_dir" not in text
    assert "report_to" not in text
    assert str(Path.cwd()) not in text
    shuffled = settings(tmp_path, "dpo.lora.targets=[v_proj,q_proj]")
    assert preference_trainers.render_dpo(shuffled, SFT, 1)["lora"]["target_modules"] == ["q_proj", "v_proj"]


def test_it_starts_from_the_model_that_the_recipe_names(tmp_path: Path) -> None:
    assert preference_trainers.render_dpo(settings(tmp_path), Path("models/base"), 1)["model"] == "models/base"


@pytest.mark.parametrize("loss", preference_trainers.DPO_LOSSES)
def test_every_loss_composes_and_is_rendered(tmp_path: Path, loss: str) -> None:
    smoothed = ["dpo.label_smoothing=0.001"] if loss == "exo_pair" else []
    trainer = preference_trainers.render_dpo(settings(tmp_path, f"dpo.loss={loss}", *smoothed), SFT, 1)["trainer"]
    assert trainer["loss_type"] == [loss]


def test_every_preset_is_rendered_and_simpo_compares_with_no_model(tmp_path: Path) -> None:
    presets = sorted(file.stem for file in Path("conf/dpo").glob("*.yaml"))
    configs = {name: preference_trainers.render_dpo(settings(tmp_path, f"dpo={name}"), SFT, 1) for name in presets}
    assert {name for name, config in configs.items() if config["settings"].endswith("CPOConfig")} == {"simpo"}
    assert configs["simpo"]["trainer"]["loss_type"] == "simpo"
    assert configs["ipo"]["trainer"]["loss_type"] == ["ipo"]


def test_chosen_answers_are_learnt_beside_the_preference_where_they_have_a_weight(tmp_path: Path) -> None:
    trainer = preference_trainers.render_dpo(settings(tmp_path, "dpo.sft_weight=0.5"), SFT, 1)["trainer"]
    assert trainer["loss_type"] == ["sigmoid", "sft"]
    assert trainer["loss_weights"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dpo.loss=dop"], ("dpo.loss is 'dop'", "sigmoid_norm", "conf/dpo")),
        (["dpo.loss=exo_pair"], ("dpo.label_smoothing is 0.0", "exo_pair wants more than 0", "conf/dpo")),
        (["dpo.loss=robust", "dpo.label_smoothing=0.5"], ("dpo.label_smoothing is 0.5", "0 to 0.5")),
        (["dpo=simpo", "dpo.loss=robust"], ("dpo.loss is 'robust'", "simpo", "conf/dpo")),
        (["dpo=simpo", "dpo.ld_alpha=0.5"], ("dpo.ld_alpha", "dpo.reference")),
    ],
)
def test_what_no_loss_takes_is_refused(tmp_path: Path, overrides: list[str], words: tuple[str, ...]) -> None:
    found = refusal(settings(tmp_path, *overrides))
    assert all(word in found for word in words)


def test_pairs_are_read_without_their_bookkeeping(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    file.write_text(json.dumps(PAIR | {"id": "a", "source": "policy"}) + "\n")
    assert preference_trainers.pairs(file, "dpo", 1) == [PAIR]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, r"preferences\.jsonl: no pairs to train on: .*preferences\.samples"),
        (
            1,
            r"preferences\.jsonl: 1 pairs, fewer than a step of dpo takes \(dpo\.global_batch is 8\): .*preferences\.samples",
        ),
    ],
)
def test_too_few_pairs_are_one_line_that_says_what_to_change(tmp_path: Path, count: int, said: str) -> None:
    file = tmp_path / "preferences.jsonl"
    file.write_text((json.dumps(PAIR) + "\n") * count)
    with pytest.raises(SystemExit, match=said) as error:
        preference_trainers.pairs(file, "dpo", 8)
    assert "\n" not in str(error.value)


def test_pairs_that_are_all_too_long_are_one_line_and_some_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert preference_trainers.fitting([(10, 300), (10, 321), (400, 9)], 320, "dpo") == [0]
    assert capsys.readouterr().out == (
        "dpo: 2 of 3 pairs are left out at dpo.max_length (320 tokens; the longest has 400)\n"
    )
    with pytest.raises(
        SystemExit, match=r"^dpo: all 2 pairs are longer than dpo\.max_length \(320 .* 321\): raise dpo\.max_length"
    ):
        preference_trainers.fitting([(10, 321), (400, 9)], 320, "dpo")


def letters(texts: list[str], **_: object) -> dict[str, list[list[int]]]:
    """A tokenizer of letters."""
    return {"input_ids": [list(map(ord, text)) for text in texts]}


def test_pairs_that_do_not_fit_are_no_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "tokenizer", lambda _: letters)
    monkeypatch.setattr(preference_trainers, "texts", lambda row, _: row)
    config = preference_trainers.render_dpo(settings(tmp_path, "dpo.max_length=10"), SFT, 1)
    rows = [{"prompt": "12345", "chosen": "6" * count, "rejected": ""} for count in (5, 6, 1, 9)]
    assert preference_trainers.leave_out(config, rows, 2) == [rows[0], rows[2]]
    assert config["left_out"] == [1, 3]
    with pytest.raises(SystemExit, match=r"^data/preferences.jsonl up to 10 tokens: 2 pairs, fewer than a step of dpo"):
        preference_trainers.leave_out(config, rows, 3)


def tokenizer(folder: Path, template: str) -> Any:
    """What trl makes of a tokenizer like Gemma's: the end of a turn is no end of text."""
    bare = Tokenizer(models.WordLevel({"This": 0, ".": 1, "?": 2}, unk_token="?"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<eos>", extra_special_tokens=["<end_of_turn>", "<start_of_turn>"]
    )
    made.chat_template = "{% for turn in messages %}" + template + "{% endfor %}"
    made.save_pretrained(folder)
    return trl.tokenizer(str(folder))


def test_what_ends_an_answer_is_what_the_template_writes_after_it(tmp_path: Path) -> None:
    gemma = tokenizer(tmp_path / "gemma", "<start_of_turn>{{ turn['content'] }}<end_of_turn>\n")
    assert (gemma.eos_token, gemma.pad_token) == ("<end_of_turn>", "<eos>")
    mistral = tokenizer(tmp_path / "mistral", "{{ turn['content'] }}<eos><end_of_turn>")
    assert mistral.eos_token == "<eos>"
    assert tokenizer(tmp_path / "words", "{{ turn['content'] }}\n###\n").eos_token == "<eos>"


def test_rewards_are_the_mean_of_the_last_tenth() -> None:
    log = [{"step": step, "rewards/margins": float(step), "rewards/accuracies": 0.5} for step in range(1, 21)]
    found = preference_trainers.rewards([*log, {"step": 20, "train_runtime": 1.0}])
    assert found == {"reward_margin": 19.5, "reward_accuracy": 0.5}
