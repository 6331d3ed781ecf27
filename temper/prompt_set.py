"""The prompts of reinforcement learning: the rows of the split that sections `grpo` and `ppo` name."""

from pathlib import Path

from temper import records

SPLITS = ("preferences", "rl")


def file(section: str, split: str) -> Path:
    """Where the rows of a split are; exits where `section` may not read it."""
    if split not in SPLITS:
        raise SystemExit(
            f"{section}.prompts is '{split}', expected {' or '.join(SPLITS)}: correct it in conf/{section}"
        )
    return Path("data/mix", f"{split}.jsonl")


def required(section: str, split: str) -> Path:
    """The file, which has rows."""
    found = file(section, split)
    if not any(records.read(found)):
        raise SystemExit(f"{found}: {nobody(section, split)}")
    return found


def nobody(section: str, split: str) -> str:
    """Why there is nothing to ask, and what to change."""
    other = next(name for name in SPLITS if name != split)
    return f"no prompts for {section}: set split.{split} above 0 in conf/split or {section}.prompts={other}"
