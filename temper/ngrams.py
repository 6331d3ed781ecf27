"""Contamination by n-gram containment: which benchmark items stand, in whole or in large part, in a training text.

The two rules are those of GPT-3's appendix C (a shared 13-gram) and of coverage by shorter n-grams (Llama 2, A.6).

Runs of words are found by 64-bit polynomial hashes (Karp and Rabin 1987), rolled over many texts at once in numpy; what they
find is compared word by word before it is called a hit, so a collision of hashes costs time and never a wrong answer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from temper import minhash

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]
Gram = tuple[int, ...]
T = TypeVar("T")

BASE = 0x9E3779B97F4A7C15  # odd, so that a power of it loses no bit modulo 2^64
UNKNOWN = 0  # the id of every word that no item has, and of the border between two texts
SLACK_BITS = 2  # 4 to 8 slots a gram: of foreign grams, at most one look-up in four goes on to the binary search


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark: `text` is what must not be in training data."""

    benchmark: str
    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """An item found in a text, by `rule`: the text that matched, and how well in [0, 1] (see each rule)."""

    item: Item
    rule: str
    matched: str
    score: float


@dataclass(frozen=True)
class Rules:
    """What counts as a copy; None switches a rule off."""

    ngram: int | None
    """Words in a run that are too many to share with an item (all of its words, if it has fewer)."""
    coverage_ngram: int | None
    """Words in a run that counts as covered; no more than `ngram`."""
    max_coverage: float
    """How much of an item runs of `coverage_ngram` words may cover, in [0, 1]."""
    max_items: int | None
    """A run of `ngram` words in more items than this is boilerplate, which is no evidence that any of them leaked."""


class Index:
    """Benchmark items by the hashes of their shortest telling runs of words. A hit's score is the share of the item covered."""

    def __init__(self, items: Sequence[Item], rules: Rules) -> None:
        self.rules = rules
        self.seed = rules.coverage_ngram or rules.ngram or 0
        self.items = [item for item in items if words(item.text)] if self.seed else []
        self.vocabulary: dict[str, int] = {}
        self.flat = np.fromiter(self._learned(), np.uint32)
        self.starts = np.append(0, np.flatnonzero(self.flat == UNKNOWN) + 1)
        self.owners = _owners(self.items)
        # Random word hashes, from a fixed seed: what is found does not depend on them, and how long it takes hardly does.
        draw = np.random.default_rng(0)
        self.word_hashes = draw.integers(0, 2**64, len(self.vocabulary) + 1, np.uint64)
        self.tables = self._tables()
        self.boilerplate = self._boilerplate()

    def hits(self, text: str) -> list[Hit]:
        """Every item found in `text`, in the items' order."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[Hit]]:
        """For each text every item found in it, in the items' order. A few thousand texts at once are fastest."""
        ids, starts = self._ids(texts)
        found: list[list[Hit]] = [[] for _ in texts]
        for row, items in self._candidates(ids, starts).items():
            text = tuple(ids[starts[row] : starts[row + 1] - 1].tolist())
            shared = {size: set(grams(text, size)) for size in self._sizes(items)}
            hits = (self._hit(number, shared) for number in items)
            found[row] = [hit for hit in hits if hit]
        return found

    def _learned(self) -> Iterator[int]:
        """The word ids of all items in a row, each item followed by a border."""
        for item in self.items:
            yield from (self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in words(item.text))
            yield UNKNOWN

    def _ids(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], Positions]:
        """The word ids of all texts in a row, each text followed by a border, and where each starts (and the last ends)."""
        tokens = [words(text) for text in texts]
        starts = np.cumsum([0, *(len(of) + 1 for of in tokens)])
        spaced = chain.from_iterable(chain(of, ("",)) for of in tokens)
        ids = np.fromiter(map(self.vocabulary.get, spaced, repeat(UNKNOWN)), np.uint32, count=int(starts[-1]))
        return ids, starts

    def _tables(self) -> dict[int, "Table"]:
        """Seed size → the places of the items' runs of that size. An item of fewer words than a seed is one seed."""
        hashes = rolled(self.word_hashes[self.flat], self.seed)
        return {size: Table(of, places) for size, of in hashes if len(places := self._places(size))}

    def _places(self, size: int) -> Positions:
        """Where runs of `size` words start: in each item that has as many, or only whole items if that is below a seed."""
        lengths = np.diff(self.starts) - 1
        chosen = lengths >= size if size >= self.seed else lengths == size
        counts = lengths[chosen] - size + 1
        firsts = np.repeat(self.starts[:-1][chosen] - (np.cumsum(counts) - counts), counts)
        return firsts + np.arange(len(firsts))

    def _boilerplate(self) -> set[Gram]:
        """Runs of `ngram` words that more than `max_items` items share."""
        size, most = self.rules.ngram, self.rules.max_items
        if size is None or most is None or not len(at := self._places(size)):
            return set()
        # All runs of all items are most of what is held while an index is built: one size at a time, and only what comes often.
        hashes = next(of for words, of in rolled(self.word_hashes[self.flat], size) if words == size)[at]
        values, times = np.unique(hashes, return_counts=True)
        often = values[times > most]
        kept, _ = Table(often, np.arange(len(often))).find(hashes)
        at, hashes = at[kept], hashes[kept]
        items = self.owners[self._item_of(at)]
        order = np.lexsort((items, hashes))
        at, hashes, items = at[order], hashes[order], items[order]
        # A run counts once an item, however often it stands there.
        fresh = np.ones(len(at), bool)
        fresh[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
        _, first, counts = np.unique(hashes[fresh], return_index=True, return_counts=True)
        return {tuple(self.flat[place : place + size].tolist()) for place in at[fresh][first[counts > most]]}

    def _words(self, number: int) -> Gram:
        return tuple(self.flat[self.starts[number] : self.starts[number + 1] - 1].tolist())

    def _candidates(self, ids: NDArray[np.uint32], starts: Positions) -> dict[int, list[int]]:
        """Text → the items of which it holds enough seeds that a rule may apply: sorted, and few."""
        pairs: dict[int, list[int]] = defaultdict(list)
        for size, hashes in rolled(self.word_hashes[ids], max(self.tables, default=0)):
            if size not in self.tables:
                continue
            at, places = self.tables[size].find(hashes)
            rows = np.searchsorted(starts, at, "right") - 1
            # A run that a text repeats, and each place of it in an item, counts once.
            flat = np.unique(rows * self.starts[-1] + places)
            keys = flat // self.starts[-1] * len(self.items) + self._item_of(flat % self.starts[-1])
            pair, seeds = np.unique(keys, return_counts=True)
            number = pair % max(1, len(self.items))
            for key in pair[seeds >= self._needed(number, size)].tolist():
                row, item = divmod(key, len(self.items))
                pairs[row].append(item)
        return {row: sorted(pairs[row]) for row in sorted(pairs)}

    def _item_of(self, places: Positions) -> Positions:
        return np.searchsorted(self.starts, places, "right") - 1

    def _needed(self, numbers: Positions, size: int) -> Positions:
        """The fewest places in each item at which a seed must stand for any rule to find it."""
        lengths = self.starts[numbers + 1] - self.starts[numbers] - 1
        needed = np.full(len(numbers), np.iinfo(np.int64).max)
        if self.rules.ngram:
            needed = np.minimum(lengths, self.rules.ngram) - size + 1
        if self.rules.coverage_ngram:
            # n runs of the coverage size hold at least n seeds, and cover at most n times their words.
            words_needed = np.floor(self.rules.max_coverage * lengths) + 1
            wide = np.minimum(lengths, self.rules.coverage_ngram)
            needed = np.minimum(needed, np.ceil(words_needed / wide).astype(np.int64))
        return needed

    def _sizes(self, items: list[int]) -> set[int]:
        """The sizes of runs that the rules look for in these items."""
        limits = [size for size in (self.rules.ngram, self.rules.coverage_ngram) if size]
        lengths = {int(self.starts[number + 1] - self.starts[number]) - 1 for number in items}
        return {min(limit, length) for length in lengths for limit in limits}

    def _hit(self, number: int, shared: dict[int, set[Gram]]) -> Hit | None:
        """The item's hit by the first rule that applies, decided on words; `shared` holds the text's runs by size."""
        item, item_words = self.items[number], self._words(number)
        size = min(self.seed, len(item_words))
        runs = list(_runs(item_words, shared[size], size))
        coverage = sum(end - start for start, end in runs) / len(item_words)
        if rule := self._rule(item_words, coverage, shared):
            start, end = max(runs, key=lambda run: run[1] - run[0])
            return Hit(item, rule, " ".join(words(item.text)[start:end]), coverage)
        return None

    def _rule(self, item_words: Gram, coverage: float, shared: dict[int, set[Gram]]) -> str | None:
        if self.rules.ngram:
            needed = min(self.rules.ngram, len(item_words))
            telling = set(grams(item_words, needed)) - self.boilerplate
            if not telling.isdisjoint(shared[needed]):
                return f"{needed}-gram"
        return "coverage" if self.rules.coverage_ngram and coverage > self.rules.max_coverage else None


class Table:
    """Hash → the places at which it stands, for arrays of hashes: a bit table before a binary search."""

    def __init__(self, hashes: Hashes, places: Positions) -> None:
        order = np.argsort(hashes[places], kind="stable")
        self.places = places[order]
        self.hashes = hashes[self.places]
        self.shift = np.uint64(64 - max(8, len(places).bit_length() + SLACK_BITS))
        self.occupied = np.zeros(1 << (64 - int(self.shift)), bool)
        self.occupied[self.hashes >> self.shift] = True

    def find(self, hashes: Hashes) -> tuple[Positions, Positions]:
        """(position in `hashes`, place of an equal hash in the table) of every match."""
        maybe = np.flatnonzero(self.occupied[hashes >> self.shift])
        wanted = hashes[maybe]
        low = np.searchsorted(self.hashes, wanted, "left")
        counts = np.searchsorted(self.hashes, wanted, "right") - low
        ends = np.cumsum(counts)
        steps = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return np.repeat(maybe, counts), self.places[np.repeat(low, counts) + steps]


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, single signs where a script spaces no words: punctuation and layout hide no copy."""
    return minhash.split(text)


def grams(of: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """The runs of `size` words; none where there are fewer, or where size is 0."""
    return (tuple(of[start : start + size]) for start in range(len(of) - size + 1)) if size else iter(())


def rolled(word_hashes: Hashes, largest: int) -> Iterator[tuple[int, Hashes]]:
    """(n, hashes of all runs of n words) for n from 1 to `largest`: H_n(i) = BASE · H_{n−1}(i) + h(i+n−1) modulo 2^64."""
    hashes = word_hashes
    for size in range(1, min(largest, len(word_hashes)) + 1):
        if size > 1:
            hashes = hashes[:-1] * np.uint64(BASE) + word_hashes[size - 1 :]
        yield size, hashes


def _owners(items: Sequence[Item]) -> Positions:
    """A number for each item; an item may stand here in several layouts, under one name."""
    names: dict[tuple[str, str], int] = {}
    return np.array([names.setdefault((item.benchmark, item.id), len(names)) for item in items], np.int64)


def _runs(item_words: Gram, shared: set[Gram], size: int) -> Iterator[tuple[int, int]]:
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
