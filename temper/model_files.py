"""What lies in a model's folder beside its weights."""

import shutil
from pathlib import Path

CONFIG = "config.json"
TEXT = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""How it reads and ends text."""


def copy(model: Path, target: Path, *names: str) -> None:
    """Those of `names` that the model has, byte for byte."""
    for name in names:
        if (model / name).is_file():
            shutil.copyfile(model / name, target / name)
