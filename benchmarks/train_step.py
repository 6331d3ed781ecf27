"""Steps of training on a CPU, bare, with one thing changed at a time. Run by benchmarks.train with a file of settings.

    {"model": …, "rows": …, "length": …, "micro_batch": …, "steps": …, "lora": {…}, "levers": {name: {…}}}

A step is a forward and a backward pass over packed rows and AdamW on a LoRA adapter, of the size that stage `sft` has by default;
loss is on answers alone. The first step of a lever warms up and is not counted.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from temper import documents, labelled_logits, records

IGNORED = labelled_logits.IGNORED
Batch = dict[str, torch.Tensor]
# What a lever changes; a lever is some of these keys with other values.
DEFAULT: dict[str, Any] = {
    "threads": None,
    "precision": "fp32",
    "attention": "sdpa",
    "labelled": False,
    "documents": False,
    "optimizer": {},
    "matmul": "highest",
    "denormals": True,
    "micro_batch": None,
}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    rows = tokenized(settings)
    found = {name: measured(settings, DEFAULT | lever, rows) for name, lever in settings["levers"].items()}
    Path(sys.argv[2]).write_text(json.dumps(found))


def tokenized(settings: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each row, labels on the last turn."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(settings["model"])
    rows = []
    for row in records.read(settings["rows"]):
        turns = row["messages"]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        rows.append((whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
    return rows


def packed(rows: list[tuple[list[int], list[int]]], length: int, sequences: int) -> Batch:
    """So many sequences of `length`, filled with rows from the first on, each with positions of its own."""
    taken, parts = iter(rows), []
    for _ in range(sequences):
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        while len(ids) < length:
            tokens, marked = next(taken)
            ids, labels, positions = ids + tokens, labels + marked, positions + list(range(len(tokens)))
        parts.append((ids[:length], labels[:length], positions[:length]))
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.tensor([part[at] for part in parts]) for at, name in enumerate(names)}


def measured(
    settings: dict[str, Any], lever: dict[str, Any], rows: list[tuple[list[int], list[int]]]
) -> dict[str, float]:
    torch.set_num_threads(lever["threads"] or settings["threads"])
    torch.set_float32_matmul_precision(lever["matmul"])
    torch.set_flush_denormal(not lever["denormals"])
    model, optimizer = prepared(settings, lever)
    batch = packed(rows, settings["length"], settings["micro_batch"])
    losses, seconds = [], []
    # Of this lever alone: the kernel's high-water mark starts anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(1 + settings["steps"]):
        started = time.monotonic()
        losses.append(step(model, optimizer, batch, lever))
        seconds.append(time.monotonic() - started)
    tokens = batch["input_ids"].numel()
    return {
        "tokens_per_second": tokens * settings["steps"] / sum(seconds[1:]),
        "loss": losses[0],
        "peak_gb": high_water() * 1024 / 1e9,
    }


def high_water() -> int:
    """KiB of memory that this process had at most since its mark was cleared."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def prepared(settings: dict[str, Any], lever: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(settings["seed"])
    dtype = torch.bfloat16 if lever["precision"] == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, attn_implementation=lever["attention"])
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings["lora"]))
    if lever["documents"]:
        documents.isolate(model)
    if lever["labelled"]:
        labelled_logits.narrow(model)
    adapter = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-4, **lever["optimizer"])
    return model.train(), optimizer


def step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, lever: dict[str, Any]) -> float:
    """One optimizer step; the loss before it. With a smaller micro-batch, gradients of its parts add up."""
    sequences = len(batch["input_ids"])
    size, total = lever["micro_batch"] or sequences, 0.0
    labelled = (batch["labels"][:, 1:] != IGNORED).sum()
    for start in range(0, sequences, size):
        part = {name: values[start : start + size] for name, values in batch.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lever["precision"] == "bf16"):
            loss = model(**part, num_items_in_batch=labelled, use_cache=False).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


if __name__ == "__main__":
    main()
