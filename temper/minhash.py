"""Texts as sets of word n-grams, their MinHash signatures, and their exact likeness: arrays throughout, no file, no vendor.

A word's hash is a polynomial of its bytes, an n-gram's a polynomial of its words' hashes, each computed for a whole batch of
texts at a time; so are the minima. That is where the speed over one text and one n-gram at a time comes from.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Scripts that put no space between words count a character as a word: kana, Han and Hangul syllables stay apart from
# what \w+ would swallow whole, and so do Thai, Lao, Burmese and Khmer.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
WORD = re.compile(rf"[^\W{UNSPACED}]+|[{UNSPACED}]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# For ASCII text the same as case-folding and WORD, several times as fast: what is no word becomes a space.
ASCII = "".join(chr(code).lower() if chr(code).isalnum() or chr(code) == "_" else " " for code in range(128))
# The same of bytes, where those of other characters stay as they are: such a text comes as its words, with spaces between.
ASCII_BYTES = ASCII.encode() + bytes(range(128, 256))
SPACE = ord(" ")
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: it has an inverse, and no word's hash is lost in the product
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
NO_WORD = BASE
"""Fills a text up that is shorter than an n-gram."""

Hashes = NDArray[np.uint64]
Shingles = NDArray[np.uint32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    ngram: int
    """Words in a shingle. A shorter text is one shingle, a text without words none: it is like no other."""
    bands: int
    rows: int
    """Minima in a band: two texts of Jaccard similarity s meet with probability 1 − (1 − s^rows)^bands."""
    seed: int
    numbers: bool = True
    """Whether numbers tell texts apart; else each counts as the same word."""


@dataclass(frozen=True)
class Signed:
    """A batch of n texts."""

    keys: Hashes
    """Shape [bands, n]: texts with an equal key meet in that band."""
    sets: Hashes
    """Shape [n]: equal for equal sets of shingles."""
    shingles: Shingles
    """Of all texts, one after the other, ascending within each text and without repeats."""
    counts: Counts
    """Shape [n]: how many of `shingles` belong to each text."""


def sign(texts: Sequence[str], settings: Settings) -> Signed:
    shingles, counts = shingled(texts, settings)
    filled = counts > 0
    starts = _starts(counts)[filled]
    keys = np.zeros((settings.bands, len(texts)), dtype=np.uint64)
    sets = np.zeros(len(texts), dtype=np.uint64)
    if len(starts):
        keys[:, filled] = band_keys(shingles, starts, settings)
        sets[filled] = np.add.reduceat(mixed(shingles.astype(np.uint64)), starts)
    return Signed(keys, sets, shingles, counts)


def shingled(texts: Sequence[str], settings: Settings) -> tuple[Shingles, Counts]:
    """(shingles, counts) as in Signed: 32-bit hashes of each text's n-grams."""
    words, lengths = _words(texts, settings)
    ends = np.cumsum(lengths)
    grams = np.maximum(lengths - settings.ngram + 1, 0)
    if not grams.any():
        return np.empty(0, np.uint32), grams
    hashes = _polynomials(words, settings.ngram)
    is_whole = np.ones(len(words), dtype=bool)
    for back in range(1, settings.ngram):
        is_whole[ends[lengths > 0] - back] = False  # an n-gram that starts here runs into the next text
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), grams)
    found = np.sort((owners << np.uint64(32)) | (hashes[is_whole[: len(hashes)]] >> np.uint64(32)))
    found = found[np.concatenate(([True], found[1:] != found[:-1]))]
    counts = np.bincount((found >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return found.astype(np.uint32), counts


def split(text: str) -> list[str]:
    """The words of a text without their case and Unicode form: \\w+, or single characters where a script does not space words."""
    if text.isascii():
        return text.translate(ASCII).split()
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def jaccard(left: Shingles, left_counts: Counts, right: Shingles, right_counts: Counts) -> NDArray[np.float64]:
    """The likeness of the nth text on the left with the nth on the right: |A ∩ B| / |A ∪ B| of their shingles, exactly."""
    pairs = len(left_counts)
    both = np.sort(np.concatenate((_owned(left, left_counts), _owned(right, right_counts))))
    common = both[1:][both[1:] == both[:-1]] >> np.uint64(32)
    shared = np.bincount(common.astype(np.int64), minlength=pairs)
    return shared / np.maximum(left_counts + right_counts - shared, 1)


def ragged(starts: Counts, counts: Counts) -> Counts:
    """The positions of runs that start at `starts` and are `counts` long, one after the other."""
    return np.repeat(starts - _starts(counts), counts) + np.arange(counts.sum())


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a bijection in which each bit depends on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def digest(content: bytes, size: int = 8) -> bytes:
    """The first bytes of the BLAKE2b hash, the same on every machine."""
    return hashlib.blake2b(content, digest_size=size).digest()


def _words(texts: Sequence[str], settings: Settings) -> tuple[Hashes, Counts]:
    """The hashes of all words and how many each text has; a short text is filled up to one n-gram."""
    encoded = [_spaced(text if settings.numbers else NUMBER.sub("0", text)) for text in texts]
    hashes, starts = word_hashes(b" ".join(encoded))
    ends = np.cumsum([len(text) + 1 for text in encoded])
    lengths = np.diff(np.searchsorted(starts, ends), prepend=0)
    missing = np.where(lengths > 0, np.maximum(settings.ngram - lengths, 0), 0)
    return np.insert(hashes, np.repeat(np.cumsum(lengths), missing), NO_WORD), lengths + missing


def _spaced(text: str) -> bytes:
    """A text in UTF-8 whose words are what is no space in it."""
    return text.encode().translate(ASCII_BYTES) if text.isascii() else " ".join(split(text)).encode()


def word_hashes(spaced: bytes) -> tuple[Hashes, Counts]:
    """(hash, first byte) of each word of a text whose words are apart by spaces.

    Of the word's bytes cᵢ it is Σ cᵢ·BASEⁱ mod 2⁶⁴, mixed. All words have it from one running sum over the text, as BASE has an
    inverse (Karp and Rabin 1987).
    """
    characters = np.frombuffer(spaced, np.uint8)
    is_word = np.concatenate(([False], characters != SPACE, [False]))
    edges = np.flatnonzero(is_word[1:] != is_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    sums = np.append(np.uint64(0), np.cumsum(characters * _powers(BASE, len(characters))))
    return mixed((sums[ends] - sums[starts]) * _powers(INVERSE, len(characters))[starts]), starts


def _powers(base: np.uint64, count: int) -> Hashes:
    """baseⁱ mod 2⁶⁴ for i from 0, shape [count], from as many as any batch needed so far."""
    if len(_POWERS[base]) < count:
        _POWERS[base] = np.cumprod(np.append(np.uint64(1), np.full(count - 1, base)), dtype=np.uint64)
    return _POWERS[base][:count]


_POWERS: dict[np.uint64, Hashes] = {base: np.empty(0, np.uint64) for base in (BASE, INVERSE)}


def _polynomials(words: Hashes, ngram: int) -> Hashes:
    """The hash of the n-gram that starts at each word, shape [words − n + 1]."""
    count = len(words) - ngram + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(ngram):
        hashes = hashes * BASE + words[offset : offset + count]
    return mixed(hashes)


def band_keys(shingles: Shingles, starts: Counts, settings: Settings) -> Hashes:
    """Shape [bands, texts]: the minima of x·a + b mod 2³² over each text's shingles, `rows` of them hashed to one key."""
    seeds = np.arange(2 * settings.bands * settings.rows, dtype=np.uint64) + (np.uint64(settings.seed) << np.uint64(32))
    factors, terms = (mixed(seeds) >> np.uint64(32)).astype(np.uint32).reshape(2, settings.bands, settings.rows)
    hashes = np.empty_like(shingles)
    keys = np.zeros((settings.bands, len(starts)), dtype=np.uint64)
    for band in range(settings.bands):
        for factor, term in zip(factors[band], terms[band], strict=True):
            np.multiply(shingles, factor | np.uint32(1), out=hashes)
            np.add(hashes, term, out=hashes)
            keys[band] = mixed(keys[band] * BASE + np.minimum.reduceat(hashes, starts))
    return keys


def _owned(shingles: Shingles, counts: Counts) -> Hashes:
    return (np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(32)) | shingles


def _starts(counts: Counts) -> Counts:
    return np.cumsum(counts) - counts
