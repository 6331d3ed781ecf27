"""Which texts are the same."""

import unicodedata


def exact(texts: list[str]) -> list[int]:
    """For each text the position of the first that is equal to it, apart from case, spacing and Unicode form."""
    first: dict[str, int] = {}
    return [first.setdefault(_normalised(text), position) for position, text in enumerate(texts)]


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
