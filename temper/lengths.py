"""How many tokens rows are for the base model: its chat template and tokenizer, by transformers (no torch needed), in batches."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from temper import record
from temper.records import Row

Count = Callable[[list[Row]], list[int | None]]
"""Tokens of each row; None for a chat that the model's template refuses."""
BATCH = 256  # rows
BATCH_TEXT = 4_000_000  # characters, so that a batch of very long rows is a short one


def counter(model: Path) -> Count:
    """A function that counts rows as the model in `model` would see them; never online.

    A chat is rendered by the chat template, a text row counts as it is, a preference row with the longer of its answers.
    """
    # Read at import: without it, transformers may ask the Hub; and it warns that there is no torch.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    from transformers import AutoTokenizer

    if not (model / "tokenizer_config.json").is_file():
        raise SystemExit(f"{model}: no tokenizer: run `make base`, which writes it")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)

    def tokens(rows: list[Row]) -> list[int | None]:
        texts = [_rendered(row, tokenizer) for row in rows]
        flat = [text for versions in texts for text in versions or []]
        ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
        return [max(len(next(ids)) for _ in versions) if versions else None for versions in texts]

    return tokens


def fitting(rows: Iterable[Row], max_tokens: int | None, counter: Callable[[], Count]) -> Iterator[Row]:
    """Each row with its length as `tokens`, or its reason to leave; as it is when there is no limit."""
    if max_tokens is None:
        yield from rows
        return
    for batch in batches(rows):
        found = iter(counter()([row for row in batch if "reason" not in row]))
        yield from (row if "reason" in row else _measured(row, next(found), max_tokens) for row in batch)


def _measured(row: Row, tokens: int | None, max_tokens: int) -> Row:
    if tokens is not None and tokens <= max_tokens:
        return row | {"tokens": tokens}
    refused = "the base model's chat template takes no such chat (a system turn, perhaps)"
    why = ("template", refused) if tokens is None else ("too_long", f"{tokens} tokens")
    return {"place": row.get("place"), "reason": why[0], "detail": why[1]}


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in order, some hundred at a time."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.get("text", "")) + sum(len(turn["content"]) for turn in record.every_turn(row))
        if len(batch) == BATCH or size > BATCH_TEXT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rendered(row: Row, tokenizer: Any) -> list[str] | None:
    from jinja2 import TemplateError

    if "text" in row:
        return [row["text"]]
    chats = [row["messages"] + row[side] for side in ("chosen", "rejected") if side in row] or [row["messages"]]
    try:
        return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    except TemplateError:
        return None
