"""A fastText-style classifier that is trained on the data itself: its rows against corruptions of them.

Hashed word and character n-grams into a linear model with logistic loss (Joulin et al. 2017, without the embedding layer), by
scikit-learn. Rows are scored by a model that was not trained on them (cross-fitting), or those it was trained on would rank first.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import record
from temper.records import Row

WIDTH = 2**18  # hashed features
TOKEN = re.compile(r"\w+|[^\w\s]")
LONGEST = 600  # tokens of a response that are looked at, half of them from its end
BATCH = 512  # rows vectorized at once
FOLDS = 4
BOILERPLATE = (
    "Please subscribe to our newsletter to read more. Share this on Facebook, Twitter or LinkedIn.",
    "Copyright © All rights reserved. Terms of Use | Privacy Policy | Cookie Settings | Contact us",
    "This content is for members only. Log in or create a free account to continue.",
    "Click here to learn more. Was this page helpful? Yes No. Leave a comment below.",
)

Pair = tuple[str, str]
"""Request and response; the request of raw text is empty."""


@dataclass(frozen=True)
class Classifier:
    weights: NDArray[np.float32]
    """(FOLDS, WIDTH)"""
    biases: NDArray[np.float32]
    """(FOLDS,)"""
    seed: int

    def scores(self, rows: Iterable[Row]) -> Iterator[float]:
        """The log-odds of each row to be one of the data set and no corruption, by the model that has not seen it."""
        stream = iter(rows)
        while batch := list(islice(stream, BATCH)):
            all_scores = _vectors([pair(row) for row in batch]) @ self.weights.T + self.biases
            for row, scores in zip(batch, all_scores, strict=True):
                yield float(scores[fold(row, self.seed)])


def train(rows: Sequence[Row], seed: int) -> Classifier:
    """A model per fold of `rows`, trained on the rows outside of it. Their order makes no difference.

    A fold with every row in it, as of a single one, leaves none to learn from: its model gives each row the same score.
    """
    from scipy.sparse import vstack

    rows = sorted(rows, key=lambda row: str(row["id"]))
    good = [pair(row) for row in rows]
    bad = list(corruptions(good, [str(row.get("category", "")) for row in rows], seed))
    vectors = vstack([_vectors(good), _vectors(bad)]).tocsr()
    labels = np.repeat([1, 0], len(rows))
    folds = np.tile([fold(row, seed) for row in rows], 2)
    fitted = [_fit(vectors[folds != one], labels[folds != one], seed) for one in range(FOLDS)]
    weights, biases = zip(*fitted, strict=True)
    return Classifier(np.array(weights, dtype=np.float32), np.array(biases, dtype=np.float32), seed)


def corruptions(pairs: Sequence[Pair], categories: Sequence[str], seed: int) -> Iterator[Pair]:
    """A corrupted twin for each pair, by corruptions that take turns; an answer is mismatched within its category."""
    peers: dict[str, list[str]] = {}
    for (_, response), category in zip(pairs, categories, strict=True):
        peers.setdefault(category, []).append(response)
    for position, ((request, response), category) in enumerate(zip(pairs, categories, strict=True)):
        draw = random.Random(f"{seed}:{position}")
        peer = draw.choice(peers[category])
        turns = CORRUPTIONS[position % len(CORRUPTIONS) :] + CORRUPTIONS
        tries = (corrupt(response, peer, draw) for corrupt in turns)
        yield request, next(text for text in tries if text != response)


def shuffled(text: str, peer: str, draw: random.Random) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def cut(text: str, peer: str, draw: random.Random) -> str:
    """The first 20% to 80% of a text's characters."""
    return text[: max(1, int(len(text) * draw.uniform(0.2, 0.8)))]


def repeated(text: str, peer: str, draw: random.Random) -> str:
    """A stretch of up to 12 words two to five times."""
    words = text.split()
    start = draw.randrange(max(1, len(words)))
    end = min(len(words), start + draw.randint(1, 12))
    return " ".join(words[:end] + words[start:end] * draw.randint(1, 4) + words[end:])


def mismatched(text: str, peer: str, draw: random.Random) -> str:
    """The answer to another request of the same category."""
    return peer


def with_boilerplate(text: str, peer: str, draw: random.Random) -> str:
    return f"{text}\n{draw.choice(BOILERPLATE)}"


CORRUPTIONS: tuple[Callable[[str, str, random.Random], str], ...] = (
    shuffled,
    cut,
    repeated,
    mismatched,
    with_boilerplate,
)


def pair(row: Row) -> Pair:
    return record.request(row), record.response(row)


def fold(row: Row, seed: int) -> int:
    return int(sha256(f"{seed}:{row['id']}".encode()).hexdigest()[:8], 16) % FOLDS


def tokens(of: Pair) -> list[str]:
    """Word uni- and bigrams and character trigrams of a response, and how it relates to its request."""
    request, response = of
    words = TOKEN.findall(response.lower())
    if len(words) > LONGEST:
        words = words[: LONGEST // 2] + words[-LONGEST // 2 :]
    text = f" {' '.join(words)} "
    trigrams = [text[start : start + 3] for start in range(len(text) - 2)]
    bigrams = [f"{first} {second}" for first, second in pairwise(words)]
    return words + bigrams + trigrams + relations(request, response, words)


def relations(request: str, response: str, words: list[str]) -> list[str]:
    """Relations as tokens, each three times, or n-grams would drown them: shares in tenths, lengths in powers of two."""
    asked = {word for word in TOKEN.findall(request.lower()) if len(word) > 3}
    said = {word for word in words if len(word) > 3}
    tail = response.rstrip()[-1:]
    found = {
        "overlap": round(10 * len(asked & said) / max(1, len(said))),
        "cover": round(10 * len(asked & said) / max(1, len(asked))),
        "unique": round(10 * len(set(words)) / max(1, len(words))),
        "words": len(words).bit_length(),
        "end": tail if not tail.isalnum() else "letter" if tail.isalpha() else "digit",
        "start": "upper" if response[:1].isupper() else "other",
    }
    return [f"\n{name} {value}" for name, value in found.items()] * 3


def _vectors(pairs: Sequence[Pair]) -> Any:
    """(pairs, WIDTH), sparse, of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer=tokens, n_features=WIDTH, alternate_sign=False).transform(pairs)


def _fit(vectors: Any, labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.float64], float]:
    from sklearn.linear_model import SGDClassifier

    if not len(labels):
        return np.zeros(WIDTH), 0.0
    model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=8, tol=None, average=True, random_state=seed)
    model.fit(vectors, labels)
    return model.coef_[0], float(model.intercept_[0])
