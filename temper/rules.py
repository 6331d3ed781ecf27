"""Rules that a row must keep: one small function each, and the first that is broken gives the row's reason.

A rule looks at a row's request and response (`Said`) under its own limits and gives evidence or None. Limits of None switch a
rule off. Rules ask for strong evidence: what they let pass is left to the scorers. A rejected answer is meant to be bad, but is
trained on: it must be whole text of a length that fits, and may be of any worth.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from temper import defects, endings, language, record, repetition
from temper.records import Row

Evidence = dict[str, Any]
"""Where the rule was broken, what was found there, and for a measure its value and limit."""

WORD = re.compile(r"\w+(?:['’]\w+)*|[☀-➿\U0001f300-\U0001faff]")  # an emoji may be an answer
EXCERPT = 80  # characters of evidence
ANSWERS = ("response", "rejected")


@dataclass
class Length:
    """Bounds, inclusive. A word is a run of letters or digits; the request of a row without one (raw text) is not judged."""

    min_request_characters: int
    max_request_characters: int
    min_request_words: int
    max_request_words: int
    min_response_characters: int
    max_response_characters: int
    min_response_words: int
    max_response_words: int


@dataclass
class Language:
    allowed: list[str]
    """ISO 639 codes."""
    min_confidence: float
    """Of another language, in [0, 1], before a row is rejected."""
    min_letters: int
    max_symbols: float
    """Share of digits and signs above which a text is code, not prose."""


@dataclass
class Encoding:
    max_characters: int
    """Replacement, control, private-use characters and mis-decoded pairs that a row may have."""


@dataclass
class Repetition:
    """Of the response. Shares are of its characters, as in Gopher (Rae et al. 2021, table A1)."""

    min_words: int
    """Below it, the shares of lines and n-grams say nothing."""
    max_duplicate_sentences: float
    max_duplicate_lines: float
    max_top_2gram: float
    max_top_3gram: float
    max_top_4gram: float
    max_loops: int
    """Times that a phrase of up to eight words may follow itself."""
    max_run: int
    """Times that one letter or digit may follow itself."""


@dataclass
class Refusal:
    exempt: list[str]
    """Globs over a row's category and its source, where a refusal is the right answer."""


@dataclass
class Truncation:
    min_words: int
    """Of a response in prose whose last sentence must end."""


@dataclass
class Leak:
    """How long an answer must be before it counts: short ones are rightly found in the text that they were asked about."""

    min_words: int
    """Of an answer in prose."""
    min_characters: int
    """Of an answer in JSON, which no request has by chance."""


@dataclass
class Artefact:
    allowed: list[str]
    """Left-overs that belong in this data."""


@dataclass
class SystemPrompt:
    action: str
    """`reject` a row whose instruction is not its category's commonest, or only `report` how many there are."""


@dataclass
class Rules:
    """The limits of each rule; None switches it off."""

    encoding: Encoding | None
    artefact: Artefact | None
    length: Length | None
    language: Language | None
    repetition: Repetition | None
    refusal: Refusal | None
    truncation: Truncation | None
    leak: Leak | None
    system_prompt: SystemPrompt | None


@dataclass(frozen=True)
class Said:
    """A row as the rules see it."""

    row: Row
    request: str
    response: str
    prompts: Mapping[str, str]
    """The digest of each category's commonest instruction."""

    @property
    def turns(self) -> list[dict[str, str]]:
        """Those that are learnt: of a preference row, the chosen answer's."""
        return self.row.get("messages", []) + self.row.get("chosen", [])

    @property
    def rejected(self) -> str:
        """Of a preference row the other answer, of any other nothing."""
        return _joined(self.row.get("rejected", []))

    def places(self) -> list[tuple[str, str]]:
        """All of the row's text, by who said it."""
        system = _joined(turn for turn in self.turns if turn["role"] == "system")
        parts = {"system": system, "request": self.request, "response": self.response, "rejected": self.rejected}
        return list(parts.items())

    def answers(self) -> list[str]:
        """Each assistant turn, or the whole of a row without turns."""
        said = [turn["content"] for turn in self.turns if turn["role"] == "assistant"]
        return said or [self.response]


Rule = Callable[[Said, Any], Evidence | None]


def judge(row: Row, rules: Rules, prompts: Mapping[str, str]) -> Evidence | None:
    """`reason` and `evidence` of the first rule that `row` breaks. `prompts` is from `commonest_instructions`."""
    said = Said(row, record.request(row), record.response(row), prompts)
    for reason, rule in RULES.items():
        limits = getattr(rules, reason)
        if limits is not None and (evidence := rule(said, limits)):
            return {"reason": reason, "evidence": evidence}
    return None


def judged(rows: Iterable[Row], rules: Rules, prompts: Mapping[str, str]) -> Iterator[Row]:
    """Every row in its order, one that breaks a rule with its reason and evidence."""
    for row in rows:
        evidence = judge(row, rules, prompts)
        yield row | evidence if evidence else row


def encoding(said: Said, limits: Encoding) -> Evidence | None:
    for place, text in said.places():
        broken = defects.broken_characters(text)
        if len(broken) > limits.max_characters:
            return {
                "where": place,
                "found": ascii(broken[0])[1:-1],
                "value": len(broken),
                "limit": limits.max_characters,
            }
    return None


def artefact(said: Said, limits: Artefact) -> Evidence | None:
    context = f"{said.request}\n{said.response}"
    for place, text in said.places():
        for found in defects.artefacts(text, is_response=place in ANSWERS, context=context):
            if found not in limits.allowed:
                return {"where": place, "found": found[:EXCERPT]}
    return None


def length(said: Said, limits: Length) -> Evidence | None:
    """A rejected answer may be as short as it is: that may be what is wrong with it."""
    others = {"request": said.request, "rejected": said.rejected}
    parts = {"response": said.response} | {place: text for place, text in others.items() if text}
    for place, text in parts.items():
        of = "response" if place in ANSWERS else place
        for unit, size in (("words", len(WORD.findall(text))), ("characters", len(text.strip()))):
            low, high = (getattr(limits, f"{bound}_{of}_{unit}") for bound in ("min", "max"))
            low = 0 if place == "rejected" else low
            if not low <= size <= high:
                limit = low if size < low else high
                return {"where": place, "measure": unit, "value": size, "limit": limit}
    return None


def other_language(said: Said, limits: Language) -> Evidence | None:
    """Request and response apart; a response may be in a language that the request names, as for a translation."""
    for place, text in (("request", said.request), ("response", said.response)):
        code, confidence = language.guess(text, limits.min_letters, limits.max_symbols) or ("", 0.0)
        if code in limits.allowed or confidence < limits.min_confidence:
            continue
        if place == "request" or not language.is_asked_for(code, said.request):
            return {"where": place, "found": code, "value": round(confidence, 3), "limit": limits.min_confidence}
    return None


def repeated(said: Said, limits: Repetition) -> Evidence | None:
    for measure, value in repetition.measures(said.response, limits.min_words):
        limit = getattr(limits, f"max_{measure}")
        if value > limit:
            return {"where": "response", "measure": measure, "value": round(value, 3), "limit": limit}
    return None


def refusal(said: Said, limits: Refusal) -> Evidence | None:
    """An assistant that will not answer; to say that a passage does not tell is right where it does not."""
    names = [said.row.get(key, "") for key in ("category", "source")]
    is_exempt = any(fnmatchcase(name, glob) for name in names for glob in limits.exempt)
    if is_exempt or said.row.get("answerable") is False:
        return None
    for turn in said.answers():
        if found := defects.refusal(turn):
            return {"where": "response", "found": found[:EXCERPT]}
    return None


def truncation(said: Said, limits: Truncation) -> Evidence | None:
    for turn in said.answers():
        if measure := endings.cut_off(turn, limits.min_words):
            return {"where": "response", "measure": measure, "found": turn.strip()[-EXCERPT:]}
    return None


def leak(said: Said, limits: Leak) -> Evidence | None:
    """An answer that stands verbatim, apart from case and spacing, in what was said before it."""
    before = ""
    for turn in said.turns:
        text = " ".join(turn["content"].lower().split())
        is_json = text.startswith(("{", "["))
        is_long = len(text) >= limits.min_characters if is_json else len(WORD.findall(text)) >= limits.min_words
        if turn["role"] == "assistant" and is_long and text in before:
            return {"where": "request", "found": turn["content"].strip()[:EXCERPT]}
        if turn["role"] != "assistant":
            before += f"\n{text}"
    return None


def system_prompt(said: Said, limits: SystemPrompt) -> Evidence | None:
    """Another instruction than the commonest of its category."""
    if limits.action == "reject" and differs(said.row, said.prompts):
        return {"where": "system", "found": instruction(said.row)[:EXCERPT]}
    return None


RULES: dict[str, Rule] = {
    "encoding": encoding,
    "artefact": artefact,
    "length": length,
    "language": other_language,
    "repetition": repeated,
    "refusal": refusal,
    "truncation": truncation,
    "leak": leak,
    "system_prompt": system_prompt,
}


def instruction(row: Row) -> str:
    """The system turn of a row, without what differs by row: from the first name of a tool on, it is no instruction."""
    text = _joined(turn for turn in row.get("messages", []) if turn["role"] == "system")
    starts = [text.find(tool["name"]) for tool in row.get("tools", [])]
    found = [start for start in starts if start >= 0]
    return text[: min(found)].rstrip() if found else text


def commonest_instructions(rows: Iterable[Row]) -> dict[str, str]:
    """category → digest of its commonest instruction; of equally common ones the first by digest, whatever the order of rows."""
    seen = Counter((row.get("category", ""), _digest(instruction(row))) for row in rows)
    ranked = sorted(seen, key=lambda key: (-seen[key], key))
    return dict(reversed(ranked))


def differs(row: Row, prompts: Mapping[str, str]) -> bool:
    """Whether a row's instruction is another than its category's commonest; a category that `prompts` lacks has none."""
    expected = prompts.get(row.get("category", ""))
    return expected is not None and _digest(instruction(row)) != expected


def _digest(text: str) -> str:
    return sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _joined(turns: Iterable[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in turns)
