"""Text that is broken or was never meant for training: wrong characters, left-overs of templates, refusals."""

import re
from collections.abc import Iterator

# U+FFFD, control characters but tab and line ends, private use, noncharacters and halves of surrogate pairs.
BAD = "\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\U000f0000-\U0010ffff"
# Bytes 80–BF as Latin-1 and Windows-1252 show them: the second and later bytes of a character in UTF-8.
NEXT = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
# The same without quotes, dashes and spaces, which may well come after a letter.
ODD = "[\x80-\x9f¡-ª¬-¶¸-º¼-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]"
# UTF-8 read as Windows-1252. Leads that end no word of a language that uses them, or several such characters in a row.
MOJIBAKE = "|".join(
    (
        rf"[ÂÃ]{NEXT}",
        rf"â(?:€{NEXT}?|{ODD}{NEXT}|[‘’“”–—…]{ODD})",
        rf"[ÄÅÐÑ]{ODD}",
        rf"ðŸ{NEXT}{{2}}",
        "ï»¿|ï¿½",
        rf"(?:[ÐÑÎÏ×ØÙ]{NEXT}){{3,}}",
        rf"(?:[à-ï]{NEXT}{{2}}){{2,}}",
    )
)
BROKEN = re.compile(f"[{BAD}]|{MOJIBAKE}")

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
SPECIAL = re.compile(
    r"<\|[\w./ -]{1,40}\|>|<｜[^｜<>]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
# Marks short enough to be written about, or to be HTML.
MARK = re.compile(
    r"</?(?:bos|eos|pad|unk)>|\[(?:PAD|UNK|CLS|SEP|BOS|EOS)\]|(?:^|\s)<s>(?=\s|\[|$)|</s>\s*$",
)
ON_MARKS = re.compile(
    r"\btokeni[sz]\w*|\b(?:special|control|bos|eos|pad|padding|unknown|mask|cls|sep|start|end|beginning|classification)"
    r"(?:[- ]of[- ]\w+)? tokens?\b|\b(?:html|strikethrough|bert|sentencepiece)\b|[>\]] (?:tokens?|tags?|markers?)\b",
    re.IGNORECASE,
)
HEADER = re.compile(
    r"^#{2,4} ?(?:Instructions?|Response|Input|Output|Human|User|Assistant|System|Question|Answer|Context) ?:",
    re.MULTILINE,
)
# A field that a template was to fill. Code has braces of its own, so these are looked for outside of it, and where nothing
# said is about templates.
FIELD = re.compile(
    r"\{\{\s*[a-zA-Z_][\w. |-]{0,40}\}\}"
    r"|(?<![\w$}{#\\])\{(?:instruction|input|output|question|answer|context|prompt|query|response|user_input|text|document|name)\}"
)
ON_FIELDS = re.compile(
    r"\b(?:templates?|templating|jinja2?|vue(?:\.?js)?|angularjs|svelte|jsx|handlebars|mustache|django|twig|ansible|helm|"
    r"placeholders?|f-?strings?|format strings?|curly brac\w+)\b|\binterpolat\w*|\{%|</[a-z][\w-]*>|=>|\bprint\(|"
    r"\b(?:def|const|var) \w+ ?[(=]",
    re.IGNORECASE,
)
# The answer's own label, or the next turn that a model went on to write.
LABEL = re.compile(r"\A\s*(?:\*\*)?(?:AI )?(?:Assistant|ASSISTANT|ChatGPT|GPT-?[34]|Chatbot|Bot|AI)(?:\*\*)? ?:")
NEXT_TURN = re.compile(r"^(?:\*\*)?(?:Human|H|USER|HUMAN)(?:\*\*)?: ?\S", re.MULTILINE)

INTERJECTION = (
    r"(?:(?:oh|well|hi|hello|hmm|no|unfortunately|regrettably|respectfully|sadly|at this time)[,.!]? (?:but )?)?"
)
SORRY = (
    r"(?:(?:(?:i(?:'m| am) |we(?:'re| are) )?(?:(?:so|very|really|truly|terribly|deeply) )?(?:sorry|afraid)"
    r"|(?:i |we |please )?(?:sincerely )?(?:apologi[sz]e|accept my apologies)(?: for (?:the|any) \w+(?: \w+)?)?"
    r"|(?:my |our )?apologies|i appreciate (?:your|the) [\w ]{1,30}|thank you for [\w ]{1,30}|i understand [\w ']{1,60})"
    r"(?: that)?[,.;:!]? ?(?:-|–|—)? ?(?:but|however|that)?,? ?(?:unfortunately,? )?)"
)
OPENING = rf"{INTERJECTION}{SORRY}?"
AS_AI = (
    r"(?:as|being|since i(?:'m| am)|because i(?:'m| am)|i(?:'m| am)(?: just| only)?) an? "
    r"(?:responsible |helpful |ethical |text-based |artificial )?(?:ai|a\.i\.|intelligence|large language model|language model|"
    r"chatbot|virtual assistant|machine learning model)\b[\w -]{0,60}"
)
CANNOT = (
    r"(?:i|we)(?: am|'m| are|'re)? ?"
    r"(?:(?:just|really|simply|also|currently|respectfully|must|have to|will have to|going to have to|do) )*"
    r"(?:can(?:'t|not| not)|won't|will not|unable|not able|must decline|"
    r"decline|refuse|not (?:comfortable|allowed|permitted|programmed|designed|going)|don't feel comfortable|"
    r"do not feel comfortable|could not|couldn't)"
)
HELP = (
    r"(?: to)?(?: (?:be|in good conscience|ethically|legally|directly|actually|really|help|assist|ever|currently))*,? ?"
    r"(?:help|assist|assisting|helping|provid\w+|fulfill?\w*|comply\w*|answer\w*|do (?:that|this)|creat\w+|writ\w+|"
    r"generat\w+|support\w*|engag\w+|participat\w+|continu\w+|discuss\w*|offer\w*|produc\w+|respond\w*|complet\w+|"
    r"process\w*|access\w*|perform\w*|giv\w+|share|shar\w+|encourag\w+|condone|promot\w+|suggest\w*|browse|open|able|"
    r"disclos\w+|reveal\w*|tell(?: you)? (?:that|this|anything)|"
    r"you with|with (?:that|this|your|the)|that request|this request|your request|request)"
)
REFUSALS = re.compile(
    "|".join(
        (
            rf"{OPENING}(?:{AS_AI}[,.;:]? ?(?:and )?)?{CANNOT}{HELP}",
            rf"{OPENING}(?:as|being) an? (?:\w+ )?(?:ai|large language model|language model)\b",
            rf"{INTERJECTION}{SORRY}{AS_AI}",
            rf"{INTERJECTION}{SORRY}(?:i|we) (?:do not|don't) (?:have|possess|feel comfortable|support|condone|know how)",
            rf"{OPENING}it(?:'s| is| would)(?: be)? (?:not (?:be )?|un|in|il|against )[\w ]{{0,30}}"
            r"(?:for me to|to (?:provide|assist|help|create|generate|write|encourage|promote))",
            rf"{OPENING}(?:that|this)(?:'s| is) not something (?:that )?(?:i|we)(?:'m| am|'d| would)? "
            r"(?:can|could|will|able|allowed|comfortable|feel|like)\b",
            rf"{OPENING}it (?:isn't|wouldn't be) [\w ]{{0,30}}for me to",
            rf"{OPENING}(?:that|this|your|the) (?:request|question|prompt|task) (?:is|goes|violates|appears|would|cannot|can't|"
            r"asks|involves) [\w ,']{0,40}(?:against|inappropriate|unethical|illegal|harmful|violat|polic|cannot|not able)",
            r"(?:sorry|apologies),? (?:but )?(?:no|nope|not possible)\b[.!]?",
            rf"{OPENING}(?:i )?(?:must|have to|will|would like to|respectfully) (?:respectfully |politely )?(?:decline|refuse)\b",
            rf"{OPENING}i(?:'m| am) (?:just |only )?(?:an?|your) (?:ai|artificial intelligence|language model|"
            r"large language model)\b[\w ,'-]{0,80}(?:can't|cannot|don't|do not|unable|not able)",
            rf"{OPENING}i (?:do not|don't) have (?:the (?:ability|capability|capacity)|access|real-time|"
            r"personal (?:opinions|experiences|feelings|beliefs))",
        )
    )
)
LONGEST_OPENING = 400  # characters of an answer in which a refusal is looked for


def broken_characters(text: str) -> list[str]:
    """Every character, or group that was one before it was mis-decoded, that no text should have."""
    return [] if text.isascii() and text.isprintable() else BROKEN.findall(text)


def artefacts(text: str, *, is_response: bool, context: str = "") -> Iterator[str]:
    """Left-overs of chat templates and prompt templates; labels of turns only in a response.

    What `text` or its `context`, all else that the row says, is about is none.
    """
    prose = CODE.sub(" ", text) if "`" in text else text
    patterns = [(SPECIAL, text), (HEADER, prose)]
    if is_response:
        patterns += [(LABEL, text), (NEXT_TURN, prose)]
    for pattern, subject in ((MARK, ON_MARKS), (FIELD, ON_FIELDS)):
        if pattern.search(prose) and not (subject.search(text) or subject.search(context)):
            patterns.append((pattern, prose))
    for pattern, where in patterns:
        for match in pattern.finditer(where):
            yield match.group().strip()


def refusal(text: str) -> str | None:
    """The words with which an answer declines, at its very start; an answer may well be sorry, or say what one cannot do."""
    opening = " ".join(text[:LONGEST_OPENING].lower().replace("’", "'").split()).lstrip("\"'*_ ")
    found = REFUSALS.match(opening)
    return found.group().strip() if found else None
