"""How much a text repeats itself: lines, n-grams, phrases in a row, runs of one character."""

import re
from collections import Counter
from collections.abc import Iterator

WORD = re.compile(r"\w+(?:['’]\w+)*")
RUN = re.compile(r"([^\W_])\1{7,}")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")
SHORTEST_SENTENCE = 3  # words; closing brackets and "Yes." repeat in good text
LONGEST_PHRASE = 8  # words
WIDEST = 4000  # words looked at: a loop of a longer text shows in its end and its beginning


def measures(text: str, min_words: int) -> Iterator[tuple[str, float]]:
    """(measure, value), cheapest first: runs, loops, repeated sentences, and of at least `min_words` words Gopher's shares.

    A loop is how often a phrase that has a letter follows itself. Repeated sentences are their share of characters. Gopher (Rae
    et al. 2021, table A1) has duplicate lines, and the characters of the commonest n-gram for n of 2, 3 and 4.
    """
    yield "run", max((len(match.group()) for match in RUN.finditer(text)), default=0)
    words = WORD.findall(text.lower())
    if len(words) > WIDEST:
        words = words[: WIDEST // 2] + words[-WIDEST // 2 :]
    yield "loops", loops(words)
    sentences = [" ".join(part.split()) for part in SENTENCE.split(text) if len(part.split()) >= SHORTEST_SENTENCE]
    yield "duplicate_sentences", _repeated_share(sentences)
    if len(words) < min_words:
        return
    yield "duplicate_lines", _repeated_share([line for line in map(str.strip, text.splitlines()) if line])
    for n in (2, 3, 4):
        yield f"top_{n}gram", top_ngram(words, n)


def loops(words: list[str]) -> int:
    """The most times that a phrase of 1 to 8 words stands in a row, e.g. 3 for `no no no`; 1 without any repetition."""
    most = 1
    for period in range(1, min(LONGEST_PHRASE, len(words) // 2) + 1):
        run = 0
        for position in range(period, len(words)):
            run = run + 1 if words[position] == words[position - period] else 0
            if run and run // period + 1 > most and _has_letter(words[position - period : position]):
                most = run // period + 1
    return most


def top_ngram(words: list[str], n: int) -> float:
    """Characters of the commonest n-gram's occurrences over the characters of all words, in [0, n]; 0 when none repeats."""
    counts = Counter(zip(*(words[offset:] for offset in range(n)), strict=False))
    ngram, count = max(counts.items(), key=lambda item: (item[1], sum(map(len, item[0]))), default=((), 0))
    return count * sum(map(len, ngram)) / sum(map(len, words)) if count > 1 else 0.0


def _repeated_share(parts: list[str]) -> float:
    """Characters of the parts that an earlier one equals, over the characters of all, in [0, 1)."""
    seen: set[str] = set()
    repeated = 0
    for part in parts:
        repeated += len(part) if part in seen else 0
        seen.add(part)
    return repeated / max(1, sum(map(len, parts)))


def _has_letter(words: list[str]) -> bool:
    return any(character.isalpha() for word in words for character in word)
