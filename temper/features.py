"""Rules as features: how far a row's surface is from what is usual in its group, as one score, higher is better.

Each measure has a side on which it is suspicious. Its distance from the group's median is taken in robust deviations (1.4826 times
the median absolute deviation), cut at 4, and the score is minus the weighted mean. So the measures need no thresholds of their
own: what is usual in prose is not usual in calls or in code.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from temper.classifier import Pair, pair
from temper.records import Row

WORD = re.compile(r"\w+")
LONGEST = 20_000  # characters looked at
FARTHEST = 4.0  # deviations
LONGEST_NAME = 64  # characters of a group, which all names are padded to
SMALLEST_GROUP = 20  # rows; below it, the whole sample says what is usual
FUNCTION_WORDS = (
    "a an and are as at be been but by can do for from had has have he her his i if in is it its me my no not of on or our she so "
    "that the their them then there they this to was we were what when which who will with would you your"
)
STOP = frozenset(FUNCTION_WORDS.split())
# measure → (weight, side on which it is suspicious: -1 low, 1 high, 0 both)
MEASURES: dict[str, tuple[float, int]] = {
    "symbols": (1.0, 0),
    "digits": (0.5, 0),
    "capitals": (0.5, 0),
    "word_length": (1.0, 0),
    "stop_words": (1.0, 0),
    "distinct_words": (1.0, -1),
    "compressed": (1.5, 0),
    "from_request": (1.5, -1),
    "of_request": (1.0, -1),
    "length": (0.5, 0),
    "ended_lines": (1.0, -1),
    "lines": (0.5, 1),
}
WEIGHTS = np.array([weight for weight, _ in MEASURES.values()])
SIDES = np.array([side for _, side in MEASURES.values()])


@dataclass(frozen=True)
class Usual:
    """What is usual in each group: (median, deviation), each (measures,). The group `None` is the whole sample."""

    groups: dict[str | None, tuple[NDArray[np.float64], NDArray[np.float64]]]
    within: str | None

    def scores(self, rows: Iterable[Row]) -> Iterator[float]:
        for row in rows:
            median, deviation = self.groups.get(group(row, self.within), self.groups[None])
            distance = (vector(pair(row)) - median) / deviation
            suspicious = np.where(SIDES == 0, np.abs(distance), np.maximum(0, distance * SIDES))
            yield -float(np.minimum(suspicious, FARTHEST) @ WEIGHTS / WEIGHTS.sum())


def fit(rows: Sequence[Row], within: str | None) -> Usual:
    """What is usual in `rows`, apart for each value of the field `within` that enough rows share."""
    vectors = np.array([vector(pair(row)) for row in rows])
    names = np.array([group(row, within) for row in rows])
    floor = np.maximum(0.1 * vectors.std(axis=0), 1e-3)
    known, sizes = np.unique(names, return_counts=True)
    large = known[sizes >= SMALLEST_GROUP].tolist()
    groups: dict[str | None, tuple[NDArray[np.float64], NDArray[np.float64]]] = {None: _usual(vectors, floor)}
    return Usual(groups | {name: _usual(vectors[names == name], floor) for name in large}, within)


def group(row: Row, within: str | None) -> str:
    """The value of the field that percentiles are taken within, a long one as its hash; one group when there is no field."""
    name = str(row.get(within, "")) if within else ""
    return name if len(name) <= LONGEST_NAME else sha256(name.encode(errors="replace")).hexdigest()


def vector(of: Pair) -> NDArray[np.float64]:
    """(measures,) of a response and its request, in the order of MEASURES."""
    request, response = of[0][:LONGEST], of[1][:LONGEST].strip()
    words = WORD.findall(response.lower())
    content = {word for word in words if word not in STOP}
    asked = {word for word in WORD.findall(request.lower()) if word not in STOP}
    lines = [line.rstrip() for line in response.splitlines() if line.strip()] or [""]
    size, letters = max(1, len(response)), max(1, sum(map(str.isalpha, response)))
    raw = response.encode(errors="replace")
    return np.array(
        [
            sum(not (one.isalnum() or one.isspace()) for one in response) / size,
            sum(map(str.isdigit, response)) / size,
            sum(map(str.isupper, response)) / letters,
            sum(map(len, words)) / max(1, len(words)),
            sum(word in STOP for word in words) / max(1, len(words)),
            len(set(words)) / max(1, len(words)) ** 0.75,
            len(zlib.compress(raw)) / (len(raw) + 12),
            len(content & asked) / max(1, len(content)),
            len(content & asked) / max(1, len(asked)),
            math.log(size),
            sum(line[-1:] in ".!?:;)]}\"'”’`" for line in lines) / len(lines),
            math.log(len(lines)),
        ]
    )


def _usual(vectors: NDArray[np.float64], floor: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    median = np.median(vectors, axis=0)
    return median, np.maximum(1.4826 * np.median(np.abs(vectors - median), axis=0), floor)
