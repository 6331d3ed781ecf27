"""Near copies of whole benchmark items: edited too often for a long run of words to survive, and still the same text.

MinHash (Broder 1997) with banding finds pairs of a text and an item that are probably alike; the Jaccard similarity of their
shingles, computed exactly, decides.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from temper.ngrams import BASE, Hashes, Hit, Item, Table, grams, rolled, words


@dataclass(unsafe_hash=True)
class Rules:
    shingle: int
    """Words in a shingle."""
    min_words: int
    """Of an item; a word more or less makes another question of a shorter one, which the n-grams look for as a whole."""
    bands: int
    rows: int
    """Hashes in a band: texts of similarity s meet with probability 1 − (1 − s^rows)^bands."""
    min_jaccard: float


class Copies:
    """Items by the bands of their MinHash signatures. A hit's score is the Jaccard similarity of shingle sets."""

    def __init__(self, items: Sequence[Item], rules: Rules) -> None:
        self.items = [item for item in items if len(words(item.text)) >= max(rules.min_words, rules.shingle)]
        self.rules = rules
        # Odd factors from a fixed seed: which pairs meet, and so what is found, is the same in every run.
        draw = np.random.default_rng(0)
        self.factors = draw.integers(0, 2**63, rules.bands * rules.rows, np.uint64) * np.uint64(2) + np.uint64(1)
        self.numbers, keys = self._bands([item.text for item in self.items])
        self.tables = [Table(of, np.arange(len(of))) for of in keys]

    def batch(self, texts: Sequence[str]) -> list[list[Hit]]:
        """For each text every item that it nearly copies, in the items' order."""
        rows, keys = self._bands(texts)
        meeting: dict[int, set[int]] = defaultdict(set)
        for table, of in zip(self.tables, keys, strict=True):
            at, places = table.find(of)
            for row, item in zip(rows[at].tolist(), self.numbers[places].tolist(), strict=True):
                meeting[row].add(item)
        found: list[list[Hit]] = [[] for _ in texts]
        for row, numbers in meeting.items():
            shingles = self._shingles(texts[row])
            hits = (self._hit(number, shingles, texts[row]) for number in sorted(numbers))
            found[row] = [hit for hit in hits if hit]
        return found

    def _hit(self, number: int, shingles: set[tuple[str, ...]], text: str) -> Hit | None:
        of_item = self._shingles(self.items[number].text)
        jaccard = len(shingles & of_item) / len(shingles | of_item)
        return Hit(self.items[number], "minhash", text, jaccard) if jaccard >= self.rules.min_jaccard else None

    def _shingles(self, text: str) -> set[tuple[str, ...]]:
        return set(grams(words(text), self.rules.shingle))

    def _bands(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], list[Hashes]]:
        """(numbers of the texts that have shingles, for each band one key of each of those texts)."""
        shingles, counts = _shingle_hashes(texts, self.rules.shingle)
        numbers = np.flatnonzero(counts)
        starts = np.cumsum(counts[numbers]) - counts[numbers]
        keys = []
        for band in self.factors.reshape(self.rules.bands, self.rules.rows):
            key = np.zeros(len(numbers), np.uint64)
            for factor in band if len(numbers) else ():
                key = key * np.uint64(BASE) + np.minimum.reduceat(_mixed(shingles * factor), starts)
            keys.append(key)
        return numbers, keys


def _shingle_hashes(texts: Sequence[str], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """(the hashes of all shingles, text by text; how many each text has)."""
    tokens = [words(text) for text in texts]
    lengths = np.array([len(of) for of in tokens], np.int64)
    hashes = np.fromiter(map(_word_hash, chain.from_iterable(tokens)), np.uint64, count=int(lengths.sum()))
    counts = np.maximum(lengths - size + 1, 0)
    if not counts.any():
        return np.zeros(0, np.uint64), counts
    *_, (_, runs) = rolled(hashes, size)
    # The runs that begin in the last words of a text end in the next one.
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(hashes))
    return runs[left[: len(runs)] >= size], counts


def _mixed(hashes: Hashes) -> Hashes:
    """High bits into low ones (the first step of MurmurHash3's finalizer), so that order depends on all of them."""
    return (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)


@lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())
