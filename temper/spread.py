"""A part of a list that stands for the whole of it."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly(rows: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of `rows`, evenly; null for all."""
    kept = len(rows) if count is None else min(count, len(rows))
    return [rows[place * len(rows) // kept] for place in range(kept)]
