"""ROUGE-L, and the texts so far that a new one is too much like."""

import re
from math import ceil

WORD = re.compile(r"[^\W_]+")


class Wordings:
    """Instructions so far, and which one a new text is nearest to in ROUGE-L F1 (Lin 2004) from `limit` on.

    F1 = 2·LCS / (m + n) ≥ limit for texts of m and n words needs a common subsequence, and so common words, of at least
    m·limit / (2 - limit). Any m + 1 - that many words of the new text hold one of them: only texts that contain one of its
    rarest words are compared, and none is missed.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._texts: list[str] = []
        self._words: list[list[str]] = []
        self._places: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        words = WORD.findall(text.lower())
        for word in set(words):
            self._places.setdefault(word, []).append(len(self._texts))
        self._texts.append(text)
        self._words.append(words)

    def nearest(self, text: str) -> tuple[float, str] | None:
        """The highest ROUGE-L at or above the limit and its text, the earlier one of two; None below."""
        words = WORD.findall(text.lower())
        needed = ceil(len(words) * self.limit / (2 - self.limit) - 1e-9)
        rarest = sorted(words, key=lambda word: len(self._places.get(word, ())))[: len(words) + 1 - max(1, needed)]
        places = sorted({place for word in rarest for place in self._places.get(word, ())})
        scores = [(rouge_l(words, self._words[place]), -place) for place in places]
        score, place = max(scores, default=(0.0, 0))
        return (round(score, 4), self._texts[-place]) if scores and score >= self.limit else None


def rouge_l(first: list[str], second: list[str]) -> float:
    """ROUGE-L F1 of two texts in words, in [0, 1]; the longest common subsequence in bit-vectors (Hyyrö 2004)."""
    masks: dict[str, int] = {}
    for place, word in enumerate(first):
        masks[word] = masks.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    state = full
    for word in second:
        common = state & masks.get(word, 0)
        state = ((state + common) | (state - common)) & full
    shared = len(first) - state.bit_count()
    return 2 * shared / (len(first) + len(second)) if shared else 0.0
