"""How long a chat is for the base model: its chat template and tokenizer, by transformers (no torch needed)."""

import os
from collections.abc import Callable
from pathlib import Path

Messages = list[dict[str, str]]


def counter(model: Path) -> Callable[[Messages], int]:
    """A function that counts the tokens of a chat as rendered by the template of the model in `model`; never online."""
    # Read at import: without it, transformers may ask the Hub; and it warns that there is no torch.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    from transformers import AutoTokenizer

    if not (model / "tokenizer_config.json").is_file():
        raise SystemExit(f"{model}: no tokenizer: run `make base`, which writes it")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)

    def tokens(messages: Messages) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return tokens
