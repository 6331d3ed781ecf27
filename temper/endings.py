"""Whether an answer was cut off: an open code fence, JSON or bracket, or a last sentence that does not end."""

import json
import re

STARTS_JSON = re.compile(r'\s*(?:\{\s*(?:"|\}|\Z)|\[\s*(?:[\[{"\]\-\d]|true|false|null|\Z))')
PAIRS = {")": "(", "]": "[", "}": "{"}
FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
ENDS = ".!?…。！？؟।:;\"'”’»)]}>*_|~`#=-–—✓✔"
# Not after a number or a single letter: "1. First", "J. Smith".
SENTENCE_END = re.compile(r"(?<=[^\W\d_]{2})[.!?…][\"'”’)\]]*\s+(?=[\"'“(]?[A-ZÀ-ÞА-Я])")
ABBREVIATION = re.compile(
    r"\b(?:[Mm]rs?|[Mm]s|[Dd]r|[Ss]t|[Jj]r|[Ss]r|[Pp]rof|vs|etc|e\.g|i\.e|approx|[Nn]o|[Vv]ol|[Ff]ig|Inc|Ltd|Co)\.$"
)
# No sentence ends in one of these: articles, conjunctions, and prepositions that want their noun.
CONNECTIVES = (
    "a an the and or but nor because although though whereas unless of to for with from into onto upon between among "
    "during toward towards via per as than if when while which who whose whom is are was were be been being am has have had "
    "will would shall should can could may might must do does did my your his her its our their this these those very such "
    "each every also not"
)
DANGLING = frozenset(CONNECTIVES.split())
LAST_WORD = re.compile(r"(?<=\s)[A-Za-zÀ-ɏ'’-]+$")
# A sum that stops at its operator; GSM8K writes its results as <<6*7=42>>.
OPERATOR = re.compile(r"(?<=[\w)\]>] )[+×÷=<]$|<<[^<>]*>?$")
SIGNS = re.compile(r"[\\|$<>{}=_@^~/*#+]|(?<=\s)-\w")
SHORTEST = 3  # words of a sentence
LONGEST_CLOSING = 6  # words of a letter's last line: "Looking forward to seeing you,"
OTHER_SCRIPT = 0x530  # from Armenian on, sentences may end without a mark


def cut_off(text: str, min_words: int) -> str | None:
    """What shows that `text` ends too early: `fence`, `json`, `bracket`, `dangling` or `sentence`; None when nothing does.

    The last three look at prose of at least `min_words` words only.
    """
    text = text.strip()
    if len(FENCE.findall(text)) % 2:
        return "fence"
    if STARTS_JSON.match(text):
        return "json" if _is_unfinished_json(text) else None
    if FENCE.search(text) or len(WORD.findall(text)) < min_words:
        return None
    last = text.splitlines()[-1].strip()
    if OPERATOR.search(last):
        return "dangling"
    return _cut_line(text, last) if _is_prose(last) or _has_sentences(text) else None


def _cut_line(text: str, last: str) -> str | None:
    if _is_open(last):
        return "bracket"
    if last.endswith(",") and len(WORD.findall(last)) > LONGEST_CLOSING:
        return "dangling"
    if last[-1] in ENDS:
        return None
    word = LAST_WORD.search(last)
    if word and word.group().lower() in DANGLING:
        return "dangling"
    return "sentence" if _should_end(text, last) else None


def _should_end(text: str, last: str) -> bool:
    """Whether the text's own way of writing has sentences end: one before it in the line does, or every line before it."""
    ends = [
        end.end()
        for end in SENTENCE_END.finditer(last)
        if not ABBREVIATION.search(last[max(0, end.start() - 12) : end.start() + 1])
    ]
    if ends and len(WORD.findall(last[ends[-1] :])) > 1:
        return True
    return _has_sentences(text) and len(WORD.findall(last)) >= SHORTEST


def _has_sentences(text: str) -> bool:
    """Whether the lines before the last are sentences that end."""
    lines = [line for line in map(str.strip, text.splitlines()[:-1]) if len(WORD.findall(line)) >= SHORTEST]
    return len(lines) >= 2 and all(line[-1] in ".!?" for line in lines)


def _is_prose(line: str) -> bool:
    """A line of a few words and hardly a sign, in a script whose sentences end with a mark."""
    words = WORD.findall(line)
    is_plain = len(SIGNS.findall(line)) <= 0.02 * len(line)
    return len(words) >= SHORTEST and is_plain and ord(words[-1][-1]) < OTHER_SCRIPT


def _is_unfinished_json(text: str) -> bool:
    """Whether `text` is no JSON and leaves brackets or a string open: what is only malformed has no end missing."""
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return _open_brackets(text) is not False
    return False


def _open_brackets(text: str) -> list[str] | bool:
    """The brackets that stay open outside of strings, in their order; True inside a string, False when all are closed."""
    depth: list[str] = []
    is_string = is_escaped = False
    for character in text:
        if is_string:
            is_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            is_string = True
        elif character in "([{":
            depth.append(character)
        elif character in PAIRS and depth and depth[-1] == PAIRS[character]:
            depth.pop()
    return True if is_string else depth or False


def _is_open(line: str) -> bool:
    """Whether the line's last parenthesis stays open, but for a smiley."""
    return line.count("(") > line.count(")") and not re.search(r"[:;=]-?\($", line)
