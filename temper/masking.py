"""Identifiers out of a row: a typed placeholder wherever one stands, so that the answer still follows from the request."""

import re
from typing import Any

from temper import calls
from temper.records import Row


def masked(row: Row, kinds: dict[str, str]) -> Row:
    """The row with each identifier of `kinds` (text → kind) as `<KIND>` in turns, tools and gold; its id stays."""
    if not kinds:
        return row
    gold = replaced(row["gold"], kinds)
    *turns, last = replaced(row["messages"], kinds)
    if row["gold"] and row["messages"][-1]["content"] == calls.answer(row["gold"]):
        # Written anew, not replaced in: a number that became a placeholder needs its quotes.
        last = last | {"content": calls.answer(gold)}
    return row | {"messages": [*turns, last], "tools": replaced(row["tools"], kinds), "gold": gold}


def replaced(value: Any, kinds: dict[str, str]) -> Any:
    """`value` with the identifiers in its strings replaced, and what is one as a whole in another spelling. Keys stay."""
    if isinstance(value, dict):
        return {key: replaced(one, kinds) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, kinds) for one in value]
    if isinstance(value, bool | None):
        return value
    # A call may write (415) 555-2671 as 4155552671, or as a number.
    respelled = {_bare(text): kind for text, kind in kinds.items()}
    if (bare := _bare(str(value))) in respelled:
        return f"<{respelled[bare]}>"
    return _in_text(value, kinds) if isinstance(value, str) else value


def _bare(text: str) -> str:
    return re.sub(r"[^\w@.]", "", text).casefold()


def _in_text(text: str, kinds: dict[str, str]) -> str:
    """Longest first, so that an identifier inside another does not cut it; whole words only."""
    longest_first = sorted(kinds, key=lambda one: (-len(one), one))
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    return re.sub(pattern, lambda match: f"<{kinds[match[0]]}>", text)
