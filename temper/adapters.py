"""LoRA adapters (PEFT): merged into their base, and written so that equal weights are equal files."""

import json
import shutil
from pathlib import Path

from temper import base_model


def keep(trained: Path, target: Path) -> None:
    """Copy the adapter out of a trainer's folder, its settings in sorted order (PEFT writes sets as they come)."""
    target.mkdir(parents=True)
    shutil.copyfile(trained / "adapter_model.safetensors", target / "adapter_model.safetensors")
    settings = json.loads((trained / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["base_model_name_or_path"] = None
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write `base` + `adapter` as a bf16 Hugging Face folder, summed in float32.

    W' = W + (alpha / r)·B·A, Hu et al. 2021, section 4.1.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    base_model.save(merged, AutoTokenizer.from_pretrained(base), target)
