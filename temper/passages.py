"""A text as passages of prose, JSON and code, and how each is changed so that it stays what it is.

JSON is a whole text, a fenced block or an object or array in prose; code is a fenced block of anything else, a whole text
that is Python, and outside of fences what stands in backticks, shell commands, SQL and markup.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, NamedTuple


class Passage(NamedTuple):
    text: str
    form: str
    """`prose`, `json` or `code`."""
    language: str
    """What a fence says, in lower case; empty for what no fence names."""


class Pairs(tuple[tuple[str, Any], ...]):
    """An object of JSON with all its pairs, a key's first value too where the key comes again."""


Write = Callable[[str, str], str]
"""From an identifier and its stand-in to what is written."""
Rewrite = Callable[[str, Write], str]
"""Text to text with its identifiers written so."""
Number = Callable[[str], str | None]
"""What is written for a number that is an identifier; None if it is none."""

FENCE = re.compile(
    r"(?ms)^(?P<open>[ >]*(?P<mark>`{3,}|~{3,})(?P<language>[^\n`]*)\n)(?P<code>.*?)(?P<close>^[ >]*(?P=mark)|\Z)"
)
JSON_START = re.compile(r"\{\s*\"|\[\s*[\"{\[]")
JSON_TOKEN = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")(?P<colon>\s*:)?|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
HALF = re.compile("[\ud800-\udfff]")
ATTEMPTS = 50  # brackets of a text that may turn out not to open JSON: each costs a scan
LARGEST_CODE = 200_000  # characters that are parsed as Python

PYTHON = frozenset(("", "python", "py", "python3", "ipython"))
HASH_COMMENTS = frozenset(
    re.findall(
        r"\w+", "python py python3 ipython sh bash shell zsh console yaml yml toml ini ruby rb r perl make dockerfile"
    )
)
DASH_COMMENTS = frozenset(re.findall(r"\w+", "sql postgres postgresql mysql sqlite lua haskell"))
MARKUP = frozenset(re.findall(r"\w+", "html xml svg xhtml rss"))
SQL = frozenset(("sql", "postgres", "postgresql", "mysql", "sqlite"))
SHELL = frozenset(("sh", "bash", "shell", "zsh", "console"))
PLAIN = frozenset(re.findall(r"\w+", "text txt plain plaintext markdown md log email csv tsv"))
STRINGS = (
    r'"""(?:\\.|(?!""")[\s\S])*"""|\'\'\'(?:\\.|(?!\'\'\')[\s\S])*\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
)
BACKTICKS = r"|`(?:\\.|[^`\\])*`"  # a string as well, but where they hold a command
INLINE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")
# Code that no fence names. Prose that is taken for it has its stand-ins in quotes, and loses nothing.
COMMAND = (  # one that is known, or a line in small letters with an option, a pipe, a redirection, a variable or a path
    r"[ \t]*(?:[$#>%] )?(?:sudo )?(?:#!|\w+=\S|(?:ssh|scp|sftp|curl|wget|telnet|nslookup|traceroute|echo|export)\s"
    r"|(?:awk|basename|cat|chmod|chown|cp|crontab|date|df|dig|du|find|git|grep|head|host|ifconfig|ls|mail|mkdir|mv|nc|nl|ping|ps"
    r"|rm|sed|sort|tail|tar|touch|which|whois)(?:[ \t]+\S+){1,4}[ \t]*$"
    r"|[a-z_./~([{][^\n]*?(?:\s--?\w|[|<>]|&&|;\s*\w|\$[\w({]|\s[~.]*/\w))"
)
COMMAND_LINE = re.compile(rf"(?m)^(?={COMMAND}).*\n?")
UNFENCED = {
    "sql": re.compile(
        r"(?is)\s*(?:select\b.+\bfrom\b|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|with\s+\w+\s+as\s*\("
        r"|(?:create|alter|drop)\s+(?:table|view|index|database|user)\b)"
    ),
    "html": re.compile(r"(?s)\s*<.+</[\w:-]+>\s*\Z"),
    "sh": re.compile(rf"(?m)\s*{COMMAND}"),
}
PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters that Unicode leaves without a meaning
WORDED_NUMBER = re.compile(r"(?<![\w.])\d{7,}(?![\w.])")


def plainly(identifier: str, stand_in: str) -> str:
    """The stand-in as it is."""
    return stand_in


def searchable(text: str) -> Iterator[str]:
    """`text` as a reader sees it: of JSON in it a line for each value, after its key, with its escapes read."""
    if "{" not in text and "[" not in text:
        yield text
        return
    for passage in split(text, whole="prose"):
        if passage.form == "json":
            yield readable(json.loads(passage.text, object_pairs_hook=Pairs))
        else:
            yield passage.text


def readable(value: Any, numbers: bool = True) -> str:
    """A line for each string of `value` after its key, and for each number, true, false and null if `numbers`."""
    # An escape may stand for half of a character, which no tagger takes.
    return HALF.sub("\ufffd", "\n".join(_lines(value, "", numbers)))


def split(text: str, whole: str = "code") -> Iterator[Passage]:
    """The passages of `text`; joined, they are the text. What is code without a fence has the form `whole`."""
    if _is_json(text):
        yield Passage(text, "json", "")
        return
    at = 0
    if "```" in text or "~~~" in text:
        for match in FENCE.finditer(text):
            yield from _unfenced(text[at : match.start("code")], whole)
            language = match["language"].strip().lower().split(" ")[0].removeprefix("{.").rstrip("}")
            yield Passage(match["code"], "json" if _is_json(match["code"]) else "code", language)
            at = match.end("code")
    if whole == "code" and not at and _is_python(text):
        yield Passage(text, "code", "python")
    else:
        yield from _unfenced(text[at:], whole)


def json_with(text: str, rewrite: Rewrite, number: Number) -> str:
    """JSON with its strings and numbers rewritten; its layout stays, and keys that become the same are numbered."""
    keys: set[str] = set()

    def written(match: re.Match[str]) -> str:
        if match["number"]:
            new = number(match["number"])
            return match[0] if new is None else _json_number(new)
        old = json.loads(match["string"], strict=False)
        new = rewrite(old, plainly)
        if match["colon"] and new != old:
            new = _unused(new, keys)
        changed = json.dumps(new, ensure_ascii=match["string"].isascii()) if new != old else match["string"]
        return changed + (match["colon"] or "")

    return JSON_TOKEN.sub(written, text)


def code_with(passage: Passage, rewrite: Rewrite, number: Number) -> str:
    """Code with its identifiers rewritten: as they are in strings and comments, quoted elsewhere.

    Where Python would no longer parse, each is written as zeros and x's of its own shape instead.
    """
    if passage.language in PLAIN:
        return rewrite(passage.text, plainly)
    if passage.language in MARKUP:
        return rewrite(passage.text, _escaped)
    code = _outside_strings(passage, rewrite, number)
    python = passage.language in PYTHON and code != passage.text and _parsed(passage.text)
    if python and not _parsed(code):
        return rewrite(passage.text, _in_shape)
    return code


def _outside_strings(passage: Passage, rewrite: Rewrite, number: Number) -> str:
    """Identifiers are found in the whole, since one may hold what begins a string or comment, and written by where they stand."""
    mark = next(one for one in map(chr, PRIVATE_USE) if one not in passage.text)
    found: list[tuple[str, str]] = []

    def noted(identifier: str, stand_in: str) -> str:
        found.append((identifier, stand_in))
        return mark

    text = rewrite(passage.text, noted)
    if text == mark:
        return found[0][1]
    identifiers = iter(found)
    quoted = _quoted_once if passage.language in SQL else _quoted
    strings = STRINGS if passage.language in SHELL else STRINGS + BACKTICKS

    def filled(part: str, write: Write) -> str:
        return re.sub(mark, lambda _: write(*next(identifiers)), part)

    def bare(part: str) -> str:
        part = WORDED_NUMBER.sub(lambda one: one[0] if (new := number(one[0])) is None else quoted(one[0], new), part)
        return filled(part, quoted)

    parts, at = [], 0
    for match in re.finditer(f"{strings}|{_comments(passage.language)}", text):
        parts += [bare(text[at : match.start()]), filled(match[0], plainly)]
        at = match.end()
    return "".join([*parts, bare(text[at:])])


def _comments(language: str) -> str:
    if language in HASH_COMMENTS:
        return r"(?<!\S)\#[^\n]*"
    return r"--[^\n]*|/\*[\s\S]*?\*/" if language in DASH_COMMENTS else r"//[^\n]*|/\*[\s\S]*?\*/"


def _in_shape(identifier: str, stand_in: str) -> str:
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", identifier))


def _quoted(identifier: str, stand_in: str) -> str:
    return json.dumps(stand_in, ensure_ascii=False)


def _quoted_once(identifier: str, stand_in: str) -> str:
    return "'" + stand_in.replace("'", "''") + "'"


def _escaped(identifier: str, stand_in: str) -> str:
    return escape(stand_in)


def _json_number(text: str) -> str:
    """A stand-in for a number: itself if it is one, quoted if not."""
    return text if re.fullmatch(r"[1-9]\d{0,17}", text) else json.dumps(text)


def _unused(key: str, keys: set[str]) -> str:
    tried, count = key, 1
    while tried in keys:
        count += 1
        tried = f"{key}_{count}"
    keys.add(tried)
    return tried


def _lines(value: Any, key: str, numbers: bool) -> Iterator[str]:
    if isinstance(value, dict | Pairs):
        for name, inner in value.items() if isinstance(value, dict) else value:
            yield from (name,) if isinstance(inner, dict | list | Pairs) else ()
            yield from _lines(inner, name, numbers)
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, key, numbers)
    elif numbers or isinstance(value, str):
        yield f"{key}: {value}" if key else str(value)


def _unfenced(text: str, whole: str) -> Iterator[Passage]:
    """What stands outside of fences; where `whole` is not `code`, JSON is all that is told from prose."""
    if whole != "code":
        yield from _prose(text)
    elif language := _language(text):
        yield Passage(text, "code", language)
    else:
        for passage in _prose(text):
            yield from _commands(passage.text) if passage.form == "prose" else (passage,)


def _commands(text: str) -> Iterator[Passage]:
    """Prose with lines of shell and code in backticks."""
    at = 0
    for match in COMMAND_LINE.finditer(text):
        yield from _inline(text[at : match.start()])
        yield Passage(match[0], "code", "sh")
        at = match.end()
    yield from _inline(text[at:])


def _inline(text: str) -> Iterator[Passage]:
    """Prose with code in backticks."""
    at = 0
    for match in INLINE.finditer(text):
        yield Passage(text[at : match.start("code")], "prose", "")
        code = match["code"]
        language = _language(code) or ("python" if _is_python(code) else "sh")
        yield Passage(code, "json" if _is_json(code) else "code", language)
        at = match.end("code")
    if at < len(text):
        yield Passage(text[at:], "prose", "")


def _language(text: str) -> str:
    """Of code without a fence; empty for prose, and for what may be either."""
    return next((language for language, pattern in UNFENCED.items() if pattern.match(text)), "")


def _prose(text: str) -> Iterator[Passage]:
    """Prose, and the objects and arrays of JSON in it."""
    at, attempts, decode = 0, 0, json.JSONDecoder().raw_decode
    start = JSON_START.search(text)
    while start and attempts < ATTEMPTS:
        try:
            _, end = decode(text, start.start())
        except (ValueError, RecursionError):
            attempts += 1
            start = JSON_START.search(text, start.start() + 1)
            continue
        yield Passage(text[at : start.start()], "prose", "")
        yield Passage(text[start.start() : end], "json", "")
        at, start = end, JSON_START.search(text, end)
    if at < len(text):
        yield Passage(text[at:], "prose", "")


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_python(text: str) -> bool:
    """Whether a whole text is Python that does something: words, lists and sums of them may be prose as well."""
    if "=" not in text and "(" not in text and "import" not in text:
        return False
    tree = _parsed(text)
    return any(not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call) for statement in tree)


def _parsed(code: str) -> list[ast.stmt]:
    """The statements of Python code; none if it is no Python."""
    if len(code) > LARGEST_CODE:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
