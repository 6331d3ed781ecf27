"""Contamination by n-gram containment: which benchmark items stand, in whole or in large part, in a training text.

The two rules are those of GPT-3's appendix C (a shared 13-gram) and of coverage by shorter n-grams (Llama 2, A.6).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

Words = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One item of a benchmark: `text` is what must not be in training data."""

    benchmark: str
    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """An item found in a text: the longest matched run of words, and the share of the item's words that matched."""

    item: Item
    rule: str
    matched: str
    coverage: float


class Index:
    """Benchmark items by their n-grams.

    An item is found by a shared run of `ngram` words (all of them, if it has fewer), or when runs of `coverage_ngram`
    words cover more than `max_coverage` of it.
    """

    def __init__(self, items: list[Item], ngram: int, coverage_ngram: int, max_coverage: float) -> None:
        self.ngram, self.coverage_ngram, self.max_coverage = ngram, coverage_ngram, max_coverage
        self.items = [(item, words(item.text)) for item in items if words(item.text)]
        self.found_in: dict[Words, set[int]] = defaultdict(set)
        for number, (_, item_words) in enumerate(self.items):
            for gram in grams(item_words, min(coverage_ngram, len(item_words))):
                self.found_in[gram].add(number)
        self.sizes = sorted({len(gram) for gram in self.found_in})

    def hits(self, text: str) -> list[Hit]:
        """Every item found in `text`, in the items' order."""
        text_words = words(text)
        shared: dict[int, set[Words]] = defaultdict(set)
        for gram in (gram for size in self.sizes for gram in grams(text_words, size)):
            for number in self.found_in.get(gram, ()):
                shared[number].add(gram)
        found = (self._hit(number, shared[number], text_words) for number in sorted(shared))
        return [hit for hit in found if hit]

    def _hit(self, number: int, shared: set[Words], text_words: Words) -> Hit | None:
        item, item_words = self.items[number]
        size = min(self.coverage_ngram, len(item_words))
        runs = list(_runs(item_words, shared, size))
        coverage = sum(end - start for start, end in runs) / len(item_words)
        start, end = max(runs, key=lambda run: run[1] - run[0])
        needed = min(self.ngram, len(item_words))
        if not set(grams(item_words, needed)).isdisjoint(grams(text_words, needed)):
            return Hit(item, f"{needed}-gram", " ".join(item_words[start:end]), coverage)
        if coverage > self.max_coverage:
            return Hit(item, "coverage", " ".join(item_words[start:end]), coverage)
        return None


def words(text: str) -> Words:
    """Lower-case runs of letters and digits: punctuation and layout hide no copy."""
    return tuple(re.findall(r"\w+", text.casefold()))


def grams(of: Words, size: int) -> Iterator[Words]:
    """The runs of `size` words; none where there are fewer, or where size is 0."""
    return (of[start : start + size] for start in range(len(of) - size + 1)) if size else iter(())


def _runs(item_words: Words, shared: set[Words], size: int) -> Iterator[tuple[int, int]]:
    """Maximal stretches [start, end) of an item that shared n-grams cover."""
    start = end = -1
    for number, gram in enumerate(grams(item_words, size)):
        if gram not in shared:
            continue
        if number > end:
            if end > start:
                yield start, end
            start = number
        end = number + size
    if end > start:
        yield start, end
