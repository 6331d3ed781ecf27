"""A small guard that needs no other model: whether a request is harmful, by its words and pairs of words.

Logistic regression over hashed features, trained on labelled prompts by the stage `guard` (temper/guard_training.py). To read with
it takes numpy alone, which every environment that serves has. It knows the words of the prompts that it was trained on, and no
meaning: its errors by source are on the model card.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from temper.guard import BLOCKED, Finding

WIDTH = 2**18  # hashed features
STEM = 5  # letters of a word that its forms share: kill, kills, killing
WORD = re.compile(r"\w+|[^\w\s]")
WEIGHTS, SETTINGS = "weights.npy", "guard.json"


@dataclass(frozen=True)
class OfflineGuard:
    weights: NDArray[np.float32]
    """(WIDTH,)"""
    bias: float
    threshold: float
    """Probability from which on a request is blocked."""

    def score(self, text: str) -> float:
        """How likely a request is harmful, in (0, 1)."""
        found = features(text)
        logit = self.bias + float(self.weights[found].sum()) / math.sqrt(max(1, len(found)))
        return 1 / (1 + math.exp(-min(50.0, max(-50.0, logit))))

    def find(self, text: str) -> Finding | None:
        score = self.score(text)
        return Finding(BLOCKED, f"offline guard, {score:.2f}") if score >= self.threshold else None


def features(text: str) -> NDArray[np.int64]:
    """The hashed words, pairs of words and beginnings of words in a text, each once, in order."""
    words = WORD.findall(text.casefold())
    pairs = (f"{one} {two}" for one, two in pairwise(words))
    stems = (f"{word[:STEM]}*" for word in words if len(word) > STEM)
    return np.array(sorted({crc32(one.encode()) % WIDTH for of in (words, pairs, stems) for one in of}), dtype=np.int64)


def write(folder: Path, guard: OfflineGuard, about: Mapping[str, Any]) -> None:
    """The guard in a folder: weights, and a bias, a threshold and what it was trained on as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / WEIGHTS, guard.weights)
    settings = {"bias": guard.bias, "threshold": guard.threshold, **about}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


@cache
def load(folder: Path) -> OfflineGuard:
    """The guard in a folder; exits naming the stage that writes it."""
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        weights = np.load(folder / WEIGHTS, allow_pickle=False)
        return OfflineGuard(weights, float(settings["bias"]), float(settings["threshold"]))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{folder}: no guard ({error}): run `make guard`, which writes it") from None
