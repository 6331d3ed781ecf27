"""A plain TRL script for SFT: rows padded to the longest of their batch. Run by benchmarks.train with a file of settings.

    {"model": …, "rows": …, "attention": …, "bf16": …, "threads": …, "seed": …, "lora": {…}, "variants": {name: {…}}}

Every variant is a training of its own, with arguments of SFTConfig. Loss is on answers alone (by TRL's default without the logits
of prompts), and gradient checkpointing, which TRL switches on, is off: it pays with time for memory that is not short here.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.train_clock import CLOCK, Clock
from temper import records


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(settings["threads"])
    rows = [row["messages"] for row in records.read(settings["rows"])]
    found: dict[str, Any] = {}
    for name, arguments in settings["variants"].items():
        os.environ[CLOCK] = f"{name}.clock.json"
        train(settings, arguments, rows)
        found[name] = json.loads(Path(os.environ[CLOCK]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(found))


def train(settings: dict[str, Any], arguments: dict[str, Any], rows: list[list[dict[str, str]]]) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(settings["seed"])
    dtype = torch.bfloat16 if settings["bf16"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=dtype, attn_implementation=settings["attention"]
    )
    config = SFTConfig(
        output_dir="peer",
        num_train_epochs=1,
        bf16=settings["bf16"],
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        learning_rate=1e-4,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings["seed"],
        **arguments,
    )
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    lora = LoraConfig(task_type="CAUSAL_LM", **settings["lora"])
    SFTTrainer(model, args=config, train_dataset=data, peft_config=lora, callbacks=[Clock()]).train()


if __name__ == "__main__":
    main()
