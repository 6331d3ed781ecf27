"""What ingest counts of its rows, and what becomes of the counts: shares, and lengths in tokens."""

from collections import Counter

from temper import record
from temper.records import Row

ON_THE_WAY = ("place", "tokens")
"""Keys that a row has between being read and being kept: where it was found, and its length."""
LENGTH = "tokens="
CATEGORY = "category_"
MAX_CATEGORIES = 100  # that are counted by name: other people's data may give each row its own
SHARES = {"null_share": ("null", "kind_call"), "unanswerable_share": ("unanswerable", "questions")}


def counted(row: Row) -> Row:
    """A kept row without ON_THE_WAY, with the names of what it adds to in `counts`; one that leaves as it is."""
    if "reason" in row:
        return row
    traits = {
        "null": record.kind(row) == "call" and row["gold"] is None,
        "unanswerable": row.get("answerable") is False,
        "questions": "answerable" in row,
        f"{LENGTH}{row.get('tokens')}": row.get("tokens") is not None,
    }
    names = [
        f"kind_{record.kind(row)}",
        f"{CATEGORY}{row['category']}",
        *(name for name, holds in traits.items() if holds),
    ]
    return {key: value for key, value in row.items() if key not in ON_THE_WAY} | {"counts": names}


def summary(counts: Counter[str]) -> dict[str, float]:
    """Counts, shares of what there is, and lengths in tokens where they were counted."""
    lengths = Counter({int(key.removeprefix(LENGTH)): n for key, n in counts.items() if key.startswith(LENGTH)})
    parts = {part for part, _ in SHARES.values()} | {"questions"}
    plain = {key: n for key, n in counts.items() if key not in parts and not key.startswith((LENGTH, CATEGORY))}
    plain |= categories({key: n for key, n in counts.items() if key.startswith(CATEGORY)})
    shares = {name: counts[part] / counts[whole] for name, (part, whole) in SHARES.items() if counts[whole]}
    return {"seen": 0, "kept": 0} | plain | shares | (_tokens(lengths) if lengths else {})


def categories(counts: dict[str, int]) -> dict[str, int]:
    """The largest categories by name, and the rest together."""
    largest = sorted(counts, key=lambda key: (-counts[key], key))[:MAX_CATEGORIES]
    rest = sum(counts.values()) - sum(counts[key] for key in largest)
    return {key: counts[key] for key in largest} | ({f"{CATEGORY}other": rest} if rest else {})


def _tokens(lengths: Counter[int]) -> dict[str, float]:
    return {
        "tokens": sum(length * count for length, count in lengths.items()),
        "tokens_median": percentile(lengths, 50),
        "tokens_p90": percentile(lengths, 90),
        "tokens_max": max(lengths),
    }


def percentile(lengths: Counter[int], percent: int) -> int:
    """The least length that at least `percent` in a hundred rows do not exceed (nearest rank)."""
    rank, passed = -(-percent * lengths.total() // 100), 0
    for length in sorted(lengths):
        passed += lengths[length]
        if passed >= rank:
            return length
    raise ValueError("no lengths")
