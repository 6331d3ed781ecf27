"""Supervised fine-tuning: what Axolotl is told, what is refused before it starts, and the curve that comes out."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from commands.compose import composed
from scripts import sft
from scripts.sft import Sft
from temper import axolotl, base_model, curves, halves, params, records, sharding, tracking


def settings(folder: Path, *overrides: str) -> Sft:
    (folder / "params.yaml").write_text(composed(list(overrides)))
    return params.load("sft", Sft, folder / "params.yaml")


def test_the_global_batch_is_kept_whatever_the_processes(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "sft.global_batch=16", "sft.micro_batch=2")
    for processes in (1, 2, 8):
        config = axolotl.render(cfg, processes)
        assert config["gradient_accumulation_steps"] * config["micro_batch_size"] * processes == 16


def test_packs_on_a_cpu_are_attended_to_a_document_at_a_time(tmp_path: Path) -> None:
    keys = {"attend_within_documents": True, "multipack_real_batches": False}
    assert keys.items() <= axolotl.render(settings(tmp_path), 1).items()
    for override in ("sft.packing=false", "hardware.attention=eager", "hardware=gpu1"):
        assert not keys.keys() & axolotl.render(settings(tmp_path, override), 1).keys()


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


def test_the_best_checkpoint_can_be_kept_since_it_is_saved_whenever_it_is_evaluated(tmp_path: Path) -> None:
    for override in ("sft.keep_best=true", "sft.patience=3"):
        config = axolotl.render(settings(tmp_path, override), 1)
        assert config["load_best_model_at_end"]
        assert config["save_steps"] == config["eval_steps"] == 0.25
    assert config["early_stopping_patience"] == 3
    config = axolotl.render(settings(tmp_path), 1)
    assert "early_stopping_patience" not in config
    assert (config["load_best_model_at_end"], config["save_steps"]) == (False, 0.125)


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "lora_r": 16},
    "qlora": {
        "adapter": "qlora",
        "load_in_4bit": True,
        "bnb_config_kwargs": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    },
    "dora": {"adapter": "lora", "peft_use_dora": True},
    "rslora": {"adapter": "lora", "peft_use_rslora": True, "lora_r": 64},
    "lora-plus": {"adapter": "lora", "loraplus_lr_ratio": 16.0},
    "full": {"adapter": None, "half_fine_tuning": None},
    "cpt": {"adapter": None},
    "hft": {"adapter": None, "half_fine_tuning": True},
    "prefix": {"adapter": "prefix", "virtual_tokens": 20, "gradient_checkpointing": False},
    "prompt": {"adapter": "prompt", "virtual_tokens": 20, "gradient_checkpointing": True},
    "unsloth": {
        **{"adapter": "qlora", "load_in_4bit": True, "activation_offloading": True, "optimizer": "adamw_8bit"},
        **dict.fromkeys(axolotl.KERNELS, True),
    },
    "full-fp8": {"fp8": True, "bf16": True, "torch_compile": True},
}


@pytest.mark.parametrize("preset", METHODS)
def test_a_method_is_said_in_axolotls_words(tmp_path: Path, preset: str) -> None:
    config = axolotl.render(settings(tmp_path, f"sft={preset}", "hardware=gpu1"), 1)
    assert {key: config.get(key) for key in METHODS[preset]} == METHODS[preset]


def test_every_preset_is_among_these() -> None:
    assert METHODS.keys() == {file.stem for file in Path("conf/sft").glob("*.yaml")}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"method": "lor"}, r"sft\.method is 'lor', expected lora, qlora, .*prompt: correct it in conf/"),
    ("lora", {"schedule": "cosin"}, r"sft\.schedule is 'cosin', expected cosine, "),
    ("lora", {"precision": "int8"}, r"hardware\.precision is 'int8', expected fp32, bf16, fp8"),
    ("lora", {"deepspeed": "zero9"}, r"hardware\.deepspeed is 'zero9', expected null, zero1, .*zero3-offload"),
    ("lora", {"fsdp": "full"}, r"hardware\.fsdp is 'full', expected null, shard, offload"),
    ("lora", {"deepspeed": "zero2", "fsdp": "shard"}, r"deepspeed is zero2 and hardware\.fsdp is shard: .* to null"),
    ("lora", {"method": "qlora"}, r"sft\.method=qlora .*choose hardware=gpu1"),
    ("lora", {"kernels": True}, r"sft\.kernels is Triton code for GPUs: set it to null"),
    ("full", {"kernels": True, "hardware": "gpu1"}, r"sft\.kernels are of LoRA, and sft\.method=full has none"),
    ("lora", {"kernels": True, "hardware": "gpu8", "deepspeed": "zero3"}, r"zero3 has in pieces: set it to null"),
    ("lora", {"optimizer": "adamw_8bit"}, r"sft\.optimizer=adamw_8bit is CUDA code"),
    ("lora", {"offload_activations": True}, r"sft\.offload_activations .*set it to false"),
    ("prompt", {"packing": True}, r"sft\.method=prompt .*set sft\.packing=false"),
    ("hft", {"deepspeed": "zero3"}, r"sft\.method=hft cannot freeze what zero3 shards"),
    ("lora", {"precision": "fp8"}, r"sft\.precision=fp8 is for all weights: choose sft=full-fp8"),
    ("full-fp8", {"deepspeed": "zero2"}, r"sft\.precision=fp8 excludes zero2: choose hardware=gpu8-fsdp2"),
    ("lora", {"global_batch": 3}, r"^sft\.global_batch is 3, not a multiple of micro_batch × processes = 2"),
]


def test_what_has_no_meaning_is_refused_in_one_line_with_the_remedy(tmp_path: Path) -> None:
    presets = {name: settings(tmp_path, f"sft={name}") for name in ("lora", "full", "prompt", "hft", "full-fp8")}
    for preset, changes, said in REFUSED:
        with pytest.raises(SystemExit, match=said) as error:
            axolotl.render(replace(presets[preset], **changes), 1)
        assert "\n" not in str(error.value)


def test_zero_is_rendered_with_all_that_each_stage_needs() -> None:
    assert [sharding.zero(name)["zero_optimization"]["stage"] for name in sharding.ZERO] == [1, 2, 3, 2, 3]
    assert sharding.zero("zero3")["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    offloaded = sharding.zero("zero3-offload")["zero_optimization"]
    assert offloaded["offload_optimizer"]["device"] == offloaded["offload_param"]["device"] == "cpu"
    assert "offload_param" not in sharding.zero("zero2-offload")["zero_optimization"]


def test_a_gpu_preset_says_how_the_model_is_sharded(tmp_path: Path) -> None:
    by_zero = axolotl.render(settings(tmp_path, "hardware=gpu8", "hardware.deepspeed=zero3"), 8)
    assert by_zero["deepspeed"] == "models/sft/zero3.json"
    assert by_zero["lora_mlp_kernel"] is False  # it would read weights that ZeRO-3 has in pieces
    by_fsdp = axolotl.render(settings(tmp_path, "hardware=gpu8-fsdp2"), 8)
    assert (by_fsdp["fsdp_version"], by_fsdp["fsdp_config"]["activation_checkpointing"]) == (2, True)
    assert not by_fsdp.keys() & {"deepspeed", "gradient_checkpointing", "lora_mlp_kernel"}
    quantized = axolotl.render(settings(tmp_path, "hardware=gpu8-fsdp2", "sft=qlora", "hardware.fsdp=offload"), 8)
    assert quantized["fsdp_config"]["offload_params"]
    assert not quantized["fsdp_config"]["cpu_ram_efficient_loading"]


WEIGHTS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] + [
    f"model.layers.{layer}.{module}.{part}"
    for layer in range(4)
    for module, parts in {
        **{f"self_attn.{name}_proj": ("weight", "bias") for name in "qkv"},
        **dict.fromkeys(("self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm"), ("weight",)),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ("weight",)),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), ("weight",)),
    }.items()
    for part in parts
]


def test_an_epoch_trains_half_of_each_kind_and_the_next_the_other_half() -> None:
    first, second = (halves.trained(WEIGHTS, 17, epoch) for epoch in (0, 1))
    assert first | second == set(WEIGHTS)
    assert first & second == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for half in (first, second):
        for layer in range(4):
            of_layer = [name for name in half if f".{layer}." in name and name.endswith("weight")]
            assert sum("norm" in name for name in of_layer) == 2
            assert sum("self_attn" in name and "norm" not in name for name in of_layer) == 2
            assert all(name.replace("weight", "bias") in half for name in of_layer if re.search(r"[qkv]_proj", name))
        assert sum(".mlp." in name for name in half) == 6


def test_halves_are_drawn_by_lot_from_the_seed() -> None:
    drawn = {frozenset(halves.trained(WEIGHTS, seed, epoch)) for seed in (1, 2) for epoch in (0, 2, 4)}
    assert len(drawn) == 6
    assert halves.trained(WEIGHTS, 1, 4) == halves.trained(WEIGHTS[::-1], 1, 4)


def refusal(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str, positions: int = 8192) -> str:
    """What the stage exits with before it imports anything heavy."""
    cfg = settings(folder, *overrides)
    monkeypatch.chdir(folder)
    for rows in sft.ROWS.values():
        records.write(rows, [{"messages": []}])
    if positions:
        Path("models/base").mkdir(parents=True, exist_ok=True)
        Path("models/base/config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    with pytest.raises(SystemExit) as error:
        sft.require(cfg, Path("models/base"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_longer_than_the_models_context_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refusal(monkeypatch, tmp_path, "sft.sequence_length=1024", positions=512)
    assert found == "sft.sequence_length is 1024, and models/base has 512 positions: lower it, or set model.rope"


def test_a_folder_without_weights_is_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "models/base: no model (config.json)" in refusal(monkeypatch, tmp_path, positions=0)


def test_nothing_may_follow_what_cannot_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refusal(monkeypatch, tmp_path, "sft=prefix", "recipe=sft")
    assert found == (
        "sft.method=prefix leaves no weights of its own, which recipe.variants wants: choose recipe=adapter"
    )
    monkeypatch.undo()
    alone = settings(tmp_path, "sft=prefix", "recipe=adapter")
    monkeypatch.chdir(tmp_path)
    sft.require(alone, Path("models/base"))


def test_a_gpu_preset_on_a_machine_without_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hardware=gpu8 needs a GPU for each" in refusal(monkeypatch, tmp_path, "hardware=gpu8-fsdp2")


def test_attention_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "flash_attention_2 is CUDA" in refusal(monkeypatch, tmp_path, "hardware.attention=flash_attention_2")


def model(positions: int, **rope: Any) -> Any:
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=positions)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))


def test_positions_are_stretched_in_the_layers_that_attend_to_everything() -> None:
    rope = base_model.Rope("yarn", 4.0)
    llama = model(8192, rope_type="default", rope_theta=1e5)
    base_model.stretch(llama, rope)
    found = llama.config.get_text_config()
    assert found.max_position_embeddings == 32768
    assert found.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 1e5,
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    gemma = model(1024, full_attention={"rope_type": "default"}, sliding_attention={"rope_type": "default"})
    base_model.stretch(gemma, rope)
    kinds = gemma.config.get_text_config().rope_parameters
    assert {kind: rope["rope_type"] for kind, rope in kinds.items()} == {
        "full_attention": "yarn",
        "sliding_attention": "default",
    }
    with pytest.raises(SystemExit, match=r"base\.rope: .*scaled already \(llama3\): set model\.rope to null"):
        base_model.stretch(model(131072, rope_type="llama3"), rope)


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
    with pytest.raises(SystemExit, match=r"not finite at step 3 of 3, and has not recovered: lower the learning rate"):
        curves.summary(broken)


def test_what_a_run_without_that_check_recovers_from_is_counted() -> None:
    losses = [float("nan"), 2.0, float("inf"), *[1.0] * 17]
    found = curves.summary([{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)])
    assert found == {"first_loss": 2.0, "train_loss": 1.0, "steps": 20, "steps_not_finite": 2}


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


def test_axolotl_reads_messages_and_text_alone_each_in_a_file_of_its_own(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "null"}]
    rows: list[dict[str, Any]] = [
        {"id": "1", "messages": messages, "gold": {"x": [1, "a"]}},
        {"id": "2", "kind": "text", "text": "prose"},
    ]
    file = tmp_path / "train.jsonl"
    records.write(file, rows)
    (tmp_path / "scratch").mkdir()
    assert axolotl.kinds(file) == ("chat", "text")
    found = [
        list(records.read(axolotl._rows({"path": str(file), **form}, tmp_path / "scratch")))
        for form in (axolotl.CHATS, axolotl.TEXTS)
    ]
    assert found == [[{"messages": messages}], [{"text": "prose"}]]


def test_text_is_read_beside_chats_and_only_where_there_is_some(tmp_path: Path) -> None:
    kinds: axolotl.Kinds = {"train": ("chat", "text"), "validation": ("text",)}
    config = axolotl.render(settings(tmp_path), 1, "base", kinds)
    assert [part["type"] for part in config["datasets"]] == ["chat_template", "completion"]
    assert [part["type"] for part in config["test_datasets"]] == ["completion"]
    assert axolotl.render(settings(tmp_path), 1, "dpo")["base_model"] == "models/dpo"
