"""Reworded benchmark items in training text: shared rare words, then shared numbers, then sentence embeddings.

No n-gram survives a rewording; topic words, names and numbers do (Yang et al., Rethinking Benchmark and Contamination for
Language Models with Rephrased Samples, 2023). Word overlap weighted by rarity (TF-IDF) finds the few items that a text could
be a rewording of, so that embeddings, which cost a thousand times more, are made of few texts. Numbers then tell a rewording
from another exercise on the same pattern, which embeddings cannot: to them 12 apples are as good as 15.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from temper.ngrams import Hit, Item, words

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|$)", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[a-z]+")
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
UNITS = f"one two three four five six seven eight nine {TEENS}"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
MULTIPLES = {"twice": 2.0, "double": 2.0, "doubled": 2.0, "triple": 3.0, "tripled": 3.0, "half": 0.5, "dozen": 12.0}
SPELLED = (
    {word: float(value) for value, word in enumerate(UNITS.split(), start=1)}
    | {word: 10.0 * value for value, word in enumerate(TENS.split(), start=2)}
    | MULTIPLES
)
AT_ONCE = 2_000  # passages: with each, a product of thousands of items is held
SPANS = (1, 2, 3, 4, 6, 8, 12)  # sentences in a passage
TENS_WORDS = frozenset(TENS.split())
# Words in more than a tenth of the items (and in a hundred at least) are four fifths of the work and find one item in 100 more.
COMMON_SHARE, COMMON_ITEMS = 0.1, 100
UNTELLING = {0.0, 1.0}  # "one" is more often a pronoun than a number


@dataclass(unsafe_hash=True)
class Rules:
    """When a passage is a rewording of an item: by overlap, and cosine, and numbers if the item has any."""

    min_overlap: float
    """Cosine of TF-IDF vectors below which nothing is compared further."""
    min_overlap_alone: float
    """The same where the item has no numbers to agree with."""
    min_numbers: float
    """Numbers in both over numbers in either, where the item has numbers."""
    min_cosine: float
    """Of embeddings, where numbers agree."""
    min_cosine_alone: float
    """Of embeddings, where the item has no numbers to agree with."""
    neighbours: int
    """Items that a passage is compared with."""
    window: int
    """Words up to which a text is one passage; a longer one is also read in runs of sentences of no more words."""


@dataclass(frozen=True)
class Pair:
    """A passage of text number `row` that may reword item number `item`."""

    row: int
    passage: str
    item: int
    overlap: float
    numbers: float | None
    """Agreement in [0, 1], None where the item has no numbers."""


class Search:
    """Rewordings of `items`; a hit's score is the cosine of the embeddings."""

    def __init__(self, items: Sequence[Item], rules: Rules, embed: Embed) -> None:
        self.items, self.rules, self.embed = list(items), rules, embed
        self.overlap = Overlap([item.text for item in self.items])
        self.numbers = [numbers(item.text) for item in self.items]

    def batch(self, texts: Sequence[str]) -> list[list[Hit]]:
        """For each text every item that it rewords, in the items' order, by the passage that is closest."""
        pairs = list(self.pairs(texts))
        best: dict[tuple[int, int], tuple[float, float, str]] = {}
        for pair, cosine in zip(pairs, self.cosines(pairs), strict=True):
            if cosine >= self._needed(pair):
                candidate = (cosine, pair.overlap, pair.passage)
                best[pair.row, pair.item] = max(candidate, best.get((pair.row, pair.item), candidate))
        found: list[list[Hit]] = [[] for _ in texts]
        for row, item in sorted(best):
            cosine, _, passage = best[row, item]
            found[row].append(Hit(self.items[item], "paraphrase", passage, cosine))
        return found

    def pairs(self, texts: Sequence[str]) -> Iterator[Pair]:
        """What is left to embed: pairs with enough words in common, and numbers that agree."""
        split = ((row, passage) for row, text in enumerate(texts) for passage in passages(text, self.rules.window))
        while chunk := list(islice(split, AT_ONCE)):
            near = self.overlap.nearest([text for _, text in chunk], self.rules.neighbours, self.rules.min_overlap)
            for (row, passage), neighbours in zip(chunk, near, strict=True):
                yield from self._agreeing(row, passage, neighbours)

    def _agreeing(self, row: int, passage: str, neighbours: list[tuple[int, float]]) -> Iterator[Pair]:
        of_passage = numbers(passage) if neighbours else frozenset()
        for item, overlap in neighbours:
            agreed = agreement(of_passage, self.numbers[item])
            if overlap >= self.rules.min_overlap_alone if agreed is None else agreed >= self.rules.min_numbers:
                yield Pair(row, passage, item, overlap, agreed)

    def cosines(self, pairs: Sequence[Pair]) -> list[float]:
        """Of each pair's embeddings; every text is embedded once."""
        texts = dict.fromkeys(chain.from_iterable((pair.passage, self.items[pair.item].text) for pair in pairs))
        place = {text: number for number, text in enumerate(texts)}
        vectors = self.embed(list(texts))
        return [float(vectors[place[pair.passage]] @ vectors[place[self.items[pair.item].text]]) for pair in pairs]

    def _needed(self, pair: Pair) -> float:
        return self.rules.min_cosine_alone if pair.numbers is None else self.rules.min_cosine


class Overlap:
    """Cosine of TF-IDF vectors (1 + log of the count, times the item set's smoothed inverse document frequency).

    The commonest words count in the length of a vector and not in the product of two.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.vocabulary: dict[str, int] = {}
        tokens = [words(text) for text in texts]
        for word in chain.from_iterable(tokens):
            self.vocabulary.setdefault(word, len(self.vocabulary))
        counts = self._counts(tokens)
        frequency = np.bincount(counts.indices, minlength=len(self.vocabulary) + 1)
        # The last column is for all words that no item has: as rare as can be, and in no item.
        self.idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
        items = self._weighted(counts)
        common = np.flatnonzero(frequency > max(COMMON_ITEMS, COMMON_SHARE * len(texts)))
        items.data[np.isin(items.indices, common)] = 0
        items.eliminate_zeros()
        self.items = items.T.tocsr()

    def nearest(self, texts: Sequence[str], most: int, least: float) -> list[list[tuple[int, float]]]:
        """For each text up to `most` items of an overlap of `least` or more, nearest first."""
        overlaps = (self._weighted(self._counts([words(text) for text in texts])) @ self.items).tocsr()
        found = []
        for start, end in zip(overlaps.indptr[:-1], overlaps.indptr[1:], strict=True):
            values, items = overlaps.data[start:end], overlaps.indices[start:end]
            enough = np.flatnonzero(values >= least)
            order = enough[np.lexsort((items[enough], -values[enough]))][:most]
            found.append([(int(items[place]), float(values[place])) for place in order])
        return found

    def _counts(self, tokens: Sequence[Sequence[str]]) -> sparse.csr_matrix:
        """float32 [texts, words + 1]: how often each word stands in each text."""
        ends = np.cumsum([0, *map(len, tokens)])
        columns = map(self.vocabulary.get, chain.from_iterable(tokens), repeat(len(self.vocabulary)))
        indices = np.fromiter(columns, np.int32, count=int(ends[-1]))
        shape = (len(tokens), len(self.vocabulary) + 1)
        counts = sparse.csr_matrix((np.ones(len(indices), np.float32), indices, ends), shape)
        counts.sum_duplicates()
        return counts

    def _weighted(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """TF-IDF with rows of unit length."""
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        counts.data /= np.repeat(np.maximum(lengths, 1e-9), np.diff(counts.indptr)).astype(np.float32)
        return counts


def passages(text: str, window: int) -> Iterator[str]:
    """The text, and if it has more than `window` words, also its runs of sentences of up to as many."""
    yield text
    if len(words(text)) <= window:
        return
    sentences = [(match.start(), match.end(), len(words(match[0]))) for match in SENTENCE.finditer(text)]
    for first in range(len(sentences)):
        for count in SPANS:
            run = sentences[first : first + count]
            if len(run) < count or (count > 1 and sum(length for _, _, length in run) > window):
                break
            yield text[run[0][0] : run[-1][1]]


def numbers(text: str) -> frozenset[float]:
    """The numbers of a text, in figures or words ("1,200", "twenty-five", "half"), without 0 and 1."""
    found: set[float] = set()
    tens = 0.0
    for token in NUMBER.findall(text.lower()):
        value = float(token.replace(",", "")) if token[0].isdecimal() else SPELLED.get(token, 0.0)
        if tens and 0 < value < 10:
            found.discard(tens)
            value += tens
        found.add(value)
        tens = value if token in TENS_WORDS else 0.0
    return frozenset(found - UNTELLING)


def agreement(of_text: frozenset[float], of_item: frozenset[float]) -> float | None:
    """Numbers in both over numbers in either (Jaccard), None where the item has none."""
    return len(of_text & of_item) / len(of_text | of_item) if of_item else None
