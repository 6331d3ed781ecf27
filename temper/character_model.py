"""How likely an answer's characters are after its request, by a language model of character n-grams counted on the data itself.

CCNet (Wenzek et al. 2020) filters by the perplexity of such a model of words; characters need no vocabulary, and a few thousand
rows are enough. What the request says is counted in, as in a cache model (Kuhn and De Mori 1990), so that an answer to another
request is unlikely. A row is scored without its own counts (leave one out), or those counted would rank first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from temper.classifier import Pair, pair
from temper.records import Row

ORDER = 6  # characters of the longest n-gram
WIDTH = 2**20  # hashed counts of each order
PRIOR = 4.0  # counts that the shorter context's estimate is worth (Dirichlet smoothing)
CACHE = 4.0  # counts that an n-gram of the request is worth
UNIFORM = 1 / 200  # of any character, without a context
LONGEST = 4000  # characters of a response, half of them from its end, and of a request, from its end
PRIME = np.uint64(0x100000001B3)

Hashes = NDArray[np.int64]


@dataclass(frozen=True)
class CharacterModel:
    counts: NDArray[np.int32]
    """(ORDER, WIDTH): how often each n-gram was seen, by its length less one and its hash."""
    characters: int
    """Counted in all."""
    learnt: frozenset[str]
    """Ids of the rows that were counted."""

    def scores(self, rows: Iterable[Row]) -> Iterator[float]:
        """The mean log-likelihood of a character of each row's response, in nats."""
        for row in rows:
            yield self.likelihood(pair(row), is_learnt=str(row["id"]) in self.learnt)

    def likelihood(self, of: Pair, *, is_learnt: bool) -> float:
        request, response = _trimmed(of)
        if not response:
            return float(np.log(UNIFORM))
        said, asked = _hashes(f"\n{response}"), _hashes(f"\n{request}")
        size = len(said[0]) - 1
        estimate = np.full(size, UNIFORM)
        context = np.full(size, self.characters - (size + 1) * is_learnt + CACHE * len(asked[0]))
        for order in range(ORDER):
            seen = self.counts[order][said[order]] + CACHE * _occurrences(said[order], asked[order])
            seen = seen - _occurrences(said[order], said[order]) * is_learnt
            # The characters that have so long a context: all of them for the first two orders, then one less with each.
            last = slice(size - len(context), None)
            estimate[last] = (seen[len(seen) - len(context) :] + PRIOR * estimate[last]) / (context + PRIOR)
            context = seen[:-1]
        return float(np.log(np.maximum(estimate, 1e-9)).mean())


def train(rows: Sequence[Row]) -> CharacterModel:
    counts = np.zeros((ORDER, WIDTH), dtype=np.int32)
    for row in rows:
        for order, hashes in enumerate(_hashes(f"\n{_trimmed(pair(row))[1]}")):
            np.add.at(counts[order], hashes, 1)
    return CharacterModel(counts, int(counts[0].sum()), frozenset(str(row["id"]) for row in rows))


def _trimmed(of: Pair) -> Pair:
    request, response = of
    if len(response) > LONGEST:
        response = response[: LONGEST // 2] + response[-LONGEST // 2 :]
    return request[-LONGEST:], response


def _hashes(text: str) -> list[Hashes]:
    """For each order, a number below WIDTH for every n-gram of `text` (FNV-1a over code points), in lower case."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", errors="replace"), dtype=np.uint32).astype(np.uint64)
    value = np.full(len(codes), 0xCBF29CE484222325, dtype=np.uint64)
    found = []
    for order in range(ORDER):
        value = (value[: max(0, len(codes) - order)] ^ codes[order:]) * PRIME
        found.append(((value ^ (value >> np.uint64(32))) % np.uint64(WIDTH)).astype(np.int64))
    return found


def _occurrences(hashes: Hashes, among: Hashes) -> NDArray[np.float64]:
    """How often each of `hashes` is in `among`."""
    others = np.sort(among)
    return (np.searchsorted(others, hashes, "right") - np.searchsorted(others, hashes, "left")).astype(np.float64)
