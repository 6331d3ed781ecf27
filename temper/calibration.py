"""Calibration: the rows that a quantizer sees, drawn from those that training read and rendered as it rendered them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import records
from temper.records import Row


@dataclass
class Calibration:
    rows: int
    tokens: int
    """Of a row at most, its first ones."""
    seed: int


def token_ids(path: Path, tokenizer: Any, settings: Calibration, place: str) -> list[list[int]]:
    """`settings.rows` rows of `path` (all of them where there are fewer), drawn by seed, in the order of the file.

    `place` is the section that an error names.
    """
    if settings.rows < 1 or settings.tokens < 2:
        found = f"{settings.rows} rows of {settings.tokens} tokens"
        raise SystemExit(f"{place}.calibration: {found}, expected 1 or more of 2 or more: correct conf/quantize")
    total = sum(1 for _ in records.read(path))
    if not total:
        raise SystemExit(f"{path}: no rows to calibrate on: see data/rejected/ for why each left")
    drawn = set(random.Random(settings.seed).sample(range(total), min(settings.rows, total)))
    texts = [text(row, tokenizer) for number, row in enumerate(records.read(path)) if number in drawn]
    return [encoded(one, tokenizer)[: settings.tokens] for one in texts]


def tokenizer(model: Path) -> Any:
    """The tokenizer of the model in `model`; exits where there is none."""
    if not (model / "config.json").is_file():
        raise SystemExit(f"{model}: no model: run `make {model.name}`, which writes it")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def text(row: Row, tokenizer: Any) -> str:
    """A row as training renders it: plain text as it is, a chat by the model's template."""
    return str(row["text"] if "text" in row else tokenizer.apply_chat_template(row["messages"], tokenize=False))


def encoded(text: str, tokenizer: Any) -> list[int]:
    """Token ids; special tokens only where the text names them, so a template's own BOS is not doubled."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
