"""LoRA adapters (PEFT): merged into their base, and written so that equal weights are equal files."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import base_model, merging


@dataclass
class Lora:
    """The `lora` part of a training section."""

    rank: int
    alpha: int
    """The adapter's sum is scaled by alpha / rank."""
    dropout: float
    targets: list[str]
    """Names of the linear layers that get an adapter."""


def keep(trained: Path, target: Path) -> None:
    """Copy the adapter out of a trainer's folder, its settings in sorted order (PEFT writes sets as they come)."""
    target.mkdir(parents=True)
    shutil.copyfile(trained / "adapter_model.safetensors", target / "adapter_model.safetensors")
    settings = json.loads((trained / "adapter_config.json").read_text())
    if "target_modules" in settings:
        settings["target_modules"] = sorted(settings["target_modules"])
    settings["base_model_name_or_path"] = None
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def merge(
    base: Path, adapter: Path, target: Path, rows: Path, four_bit: dict[str, Any] | None = None
) -> dict[str, float]:
    """Write `base` + `adapter` as a bf16 Hugging Face folder, summed in float32; exits if that is not what was trained.

    W' = W + (alpha / r)·B·A, Hu et al. 2021, section 4.1. Returns the figures of merging.Check over the first of `rows`; where
    the base was held in `four_bit` while the adapter learned, in bitsandbytes' words, also what leaving that behind costs.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    adapted = attached(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter, base)
    check = merging.Check(adapted, merging.prompts(rows, tokenizer))
    merged = adapted.merge_and_unload()
    check.compare("sum", merged)
    base_model.save(merged, tokenizer, target)
    del adapted, merged  # the float32 weights of one model at a time
    written = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    check.compare("bf16", written)
    if four_bit:
        held = BitsAndBytesConfig(load_in_4bit=True, **four_bit)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=held)
        check.compare("nf4", written, attached(model, adapter, base))
    return check.passed(target)


def attached(model: Any, adapter: Path, base: Path) -> Any:
    """`model`, whose weights are those in `base`, with `adapter` beside them; exits if the adapter was made for another model."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        adapted = PeftModel.from_pretrained(model, adapter)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            # PEFT leaves what has no place in the model, and lets layers without weights start anew, with no more than a warning.
            odd = sorted(set(file.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False)))
        if odd:
            raise ValueError(f"{len(odd)} weights have no place or no value, the first {odd[0]}")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n\t")[:2])[:300]
        raise SystemExit(
            f"{adapter}: made for another model than {base}: {reason}: train it from that model, or name the one it was made for"
        ) from None
    return adapted
