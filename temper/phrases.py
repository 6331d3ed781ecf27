"""Phrases in a text as it arrives: whole words, whatever their case, accents and punctuation (Aho and Corasick 1975).

A character costs one look-up however many phrases there are. At any time it is known from where on the text may be the
beginning of a phrase, so that only that much has to wait for what follows.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterable
from functools import lru_cache

GAP = " "  # any run of what is neither letter nor digit, and both ends of a text
NO_WORD = re.compile(r"[^a-z0-9]+")
# Scripts without spaces between words: each character is a word.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@lru_cache(maxsize=4096)
def folded(character: str) -> str:
    """Its letters without case, accents and width; GAP for what separates words, nothing for what is not seen."""
    if any(low <= ord(character) <= high for low, high in UNSPACED):
        return f"{GAP}{character}{GAP}"
    letters = "".join(
        one
        for one in unicodedata.normalize("NFKD", character).casefold()
        if unicodedata.category(one) not in ("Mn", "Cf")
    )
    return "".join(one if one.isalnum() else GAP for one in letters)


def flat(text: str) -> str:
    """A whole text folded, with one GAP between two words and at both ends."""
    if text.isascii():
        return f"{GAP}{NO_WORD.sub(GAP, text.lower()).strip(GAP)}{GAP}"
    return f"{GAP}{GAP.join(''.join(map(folded, text)).split())}{GAP}"


class Phrases:
    """An automaton; a phrase without a letter or digit is refused with ValueError."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.fail = [0]
        self.depth = [0]
        self.found: list[str | None] = [None]
        self._flat: dict[str, str] = {}
        for phrase in phrases:
            self._add(phrase)
        self._link()
        self.longest = max(self.depth)

    def find(self, text: str) -> str | None:
        """The first listed phrase of a whole text, faster than letter by letter."""
        whole = flat(text)
        return next((phrase for words, phrase in self._flat.items() if words in whole), None)

    def step(self, state: int, character: str) -> int:
        while state and character not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(character, 0)

    def _add(self, phrase: str) -> None:
        words = flat(phrase)
        if not words.strip(GAP):
            raise ValueError(f"'{phrase}' has no letter or digit")
        self._flat[words] = phrase
        state = 0
        for character in words:
            if character not in self.next[state]:
                self.next[state][character] = len(self.next)
                self.next.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = self.next[state][character]
        self.found[state] = phrase

    def _link(self) -> None:
        """Where a state goes on when no phrase continues it: its longest end that begins a phrase."""
        waiting = deque(self.next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, after in self.next[state].items():
                self.fail[after] = self.step(self.fail[state], character)
                self.found[after] = self.found[after] or self.found[self.fail[after]]
                waiting.append(after)


class Scan:
    """One text as it arrives."""

    def __init__(self, phrases: Phrases) -> None:
        self.phrases = phrases
        self.length = 0
        """Characters so far."""
        self._state = phrases.step(0, GAP)
        self._in_gap = True
        self._places: deque[int] = deque([0], maxlen=max(1, phrases.longest))

    def feed(self, text: str) -> str | None:
        """The first phrase that ends in `text`."""
        for character in text:
            for one in folded(character):
                if (found := self._take(one)) is not None:
                    return found
            self.length += 1
        return None

    def end(self) -> str | None:
        """The phrase that ends with the text."""
        found = self._take(GAP)
        self._state = 0  # nothing follows, so nothing becomes a phrase any more
        return found

    @property
    def safe(self) -> int:
        """How many characters are not part of what may become a phrase."""
        letters = self.phrases.depth[self._state] - 1  # the gap before the first word may be sent
        return self._places[-letters] if letters > 0 else self.length

    def _take(self, character: str) -> str | None:
        if character == GAP and self._in_gap:
            return None
        self._in_gap = character == GAP
        self._places.append(self.length)
        self._state = self.phrases.step(self._state, character)
        return self.phrases.found[self._state]
