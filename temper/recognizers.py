"""Identifiers with a shape (e-mail, phone, card, IBAN, IP, SSN, URL): a cheap cue, a pattern, and a check of what it matched.

Scores are confidences in [0, 1], as Presidio's are: 1 for what a checksum or a registry confirms, 0.3 for what has the
shape only. A cue is a test that rejects most texts before a pattern runs.
"""

import ipaddress
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

# Countries' lengths of an IBAN, SWIFT's IBAN registry, release 99.
IBAN_LENGTHS = {
    country: int(length)
    for length, countries in re.findall(
        r"(\d+):([A-Z,]+)",
        "15:NO 16:BE 18:DK,FI,FO,GL,NL,SD,FK 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,XK,MN 21:CH,CR,HR,LI,LV"
        " 22:BG,BH,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST"
        " 26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE"
        " 31:MT,SC 32:LC 33:RU",
    )
    for country in countries.split(",")
}
# Leading digits (ISO/IEC 7812) and lengths of the card networks.
CARDS = (
    (re.compile(r"4"), {13, 16, 19}),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), {16}),
    (re.compile(r"3[47]"), {15}),
    (re.compile(r"30[0-5]|3[689]"), {14, 16}),
    (re.compile(r"6011|64[4-9]|65|62"), {16, 17, 18, 19}),
    (re.compile(r"35(?:2[89]|[3-8])"), {16, 17, 18, 19}),
    (re.compile(r"2131|1800"), {15}),
    (re.compile(r"50|5[6-8]|6"), set(range(12, 20))),
)
SHORT_CARD = 13  # digits up to which a number needs a word like "card" nearby: one number in ten passes the checksum

EMAIL = re.compile(r"(?<![\w.%+-])[\w][\w.%+'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+([^\W\d_]{2,24})(?![\w-])")
CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){11,18}(?![\w-]|\.\d)")
CARD_CONTEXT = re.compile(r"card|\bcc\b|credit|debit|visa|master|maestro|amex|payment", re.IGNORECASE)
IBAN = re.compile(r"(?<![\w-])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
QUAD = r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)"
IPV4 = re.compile(rf"(?<![\w.-])(?P<first>{QUAD})(?:-(?P<last>{QUAD}))?(?![\w-]|\.\d)")  # or a range of them
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
VERSION = re.compile(r"(?:\bv|version|release|section|chapter|build)\W{0,3}$", re.IGNORECASE)
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
BARE_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}(?!00)\d{2}(?!0000)\d{4}(?![\w-])")
SSN_CONTEXT = re.compile(r"\bssn\b|social.?security|\bss ?(?:#|number|no\b)", re.IGNORECASE)
URL = re.compile(r"(?<![\w@])(?:(?:https?|ftp|wss?)://|www\d?\.(?=\w))[^\s<>\"'`{}|\\^\[\]]+", re.IGNORECASE)
# Without a scheme only what is a web address in any text: code is full of dotted names.
DOMAIN = re.compile(
    r"(?<![\w@./-])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?:com|org|net|edu|gov)(?:/[\w./?=&%#-]*)?(?![\w@(-])"
)

PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d,)(?:\+|00)?\(?\d(?:[ .()/-]{0,3}\d){6,14}(?: ?(?:x|ext\.?|extension) ?\d{1,6})?(?![\w]|[.-]\d)"
)
# Not to call: decimals, dates with or without a time, round numbers, book numbers, rows of decimals,
# what is written like a social security number.
NO_PHONE = re.compile(
    r"\d+\.\d+|[12]\d{3}([-/.])\d{1,2}\1\d{1,2}(?: \d.*)?|\d{1,2}([-/.])\d{1,2}\2[12]\d{3}|\d{1,3}(?: \d{3})* 000"
    r"|97[89][- ]?\d[- \d]{9,12}|(?=[^ -]*\.\d+[ -]|[^.]*[ -]+\d+\.)\d[\d .-]+|(?:\d{1,3}\.){3}\d{1,3}"
    r"|\d{3}-\d{2}-\d{4}|\d+000|\d{4} ?[-/] ?\d{4}|\d{1,3}(?:\.\d{3}){2,}"
)
CALLING = re.compile(
    r"phone|\bcall|mobile|\bcell|\btel\b|\bfax|\bdesk\b|\boffice\b|contact|\breach|\bdial|\btext|\bsms\b|messag|whatsapp"
    r"|answering|\bring\b|hotline|\bnumber is",
    re.IGNORECASE,
)
CALLED = re.compile(r"\W{0,3}(?:office|fax|mobile|home|work|cell|desk)\b", re.IGNORECASE)
COUNTED = re.compile(
    r"(?:\b(?:id|isbn|order|invoice|account|ticket|ref|reference|serial|zip|model|case|licen[cs]e|passport|tracking)"
    r"\W{0,3}(?:no\b\W*|number\W*)?(?:is\W*)?|[$€£#=*/^])$",
    re.IGNORECASE,
)
STREET, NEXT_NAME = re.compile(r"\d{1,5} \d{1,4}"), re.compile(r" [^\W\d_a-z]")  # 17031 2202 Main St: house numbers
NANP = re.compile(r"(?:\+?1[-. ]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])\d{3}[-. ]\d{4}(?: ?(?:x|ext).*)?")
# Where a number that is written without its country may be from: the regions with the most speakers of English online
# and the most phones.
REGIONS = tuple(
    re.findall(
        r"\w+", "US GB DE FR IT ES NL BE CH AT SE NO DK FI IE PT PL CZ HU RO GR AU NZ ZA IN BR MX JP KR TR IL SI HR CY"
    )
)
BEFORE, AFTER = 45, 12  # characters of context: about five words before, as Presidio takes, and a label after


class Span(NamedTuple):
    """An identifier in a text, `text[start:end]`, with Presidio's name for its kind."""

    start: int
    end: int
    kind: str
    score: float


def find(text: str, kinds: Iterable[str]) -> Iterator[Span]:
    """Every span of `kinds` with a shape in `text`; they may overlap. Kinds that have no pattern here are passed over."""
    for kind in kinds:
        if kind in PATTERNS:
            cue, matches = PATTERNS[kind]
            if cue(text):
                yield from matches(text)


def strongest(spans: Iterable[Span]) -> list[Span]:
    """Of overlapping spans the one with the higher score, then the longer one; in the text's order."""
    taken: list[Span] = []  # in the text's order
    for span in sorted(spans, key=lambda one: (-one.score, one.start - one.end, one.start, one.kind)):
        at = bisect(taken, span)
        if all(span.end <= other.start or span.start >= other.end for other in taken[max(0, at - 1) : at + 1]):
            taken.insert(at, span)
    return taken


def beside(shaped: list[Span], named: Iterable[Span]) -> list[Span]:
    """Spans with a shape, in order and apart, and the names and places around: an address ends where a phone number begins."""
    shaped_ends = [one.end for one in shaped]
    clear = []
    for span in named:
        first = bisect(shaped_ends, span.start)
        clear.append(span._replace(end=min([span.end, *(one.start for one in shaped[first : first + 1])])))
    return sorted([*shaped, *strongest(span for span in clear if span.end - span.start > 1)])


def emails(text: str) -> Iterator[Span]:
    for match in EMAIL.finditer(text):
        if match[1].lower() in _suffixes():
            yield Span(match.start(), match.end(), "EMAIL_ADDRESS", 1.0)


def cards(text: str) -> Iterator[Span]:
    """Numbers that pass Luhn's check and are of a card network's shape, or near a word that speaks of cards."""
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if len(set(digits)) == 1 or not luhn(digits):
            continue
        if (len(digits) > SHORT_CARD and _issued(digits)) or _near(CARD_CONTEXT, text, match):
            yield Span(match.start(), match.end(), "CREDIT_CARD", 1.0)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * (1 + position % 2) for position, digit in enumerate(reversed(digits)))
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def ibans(text: str) -> Iterator[Span]:
    """Account numbers of their country's length whose remainder is 1 (ISO 13616)."""
    for match in IBAN.finditer(text):
        end = _after(match[0], IBAN_LENGTHS.get(match[0][:2].upper(), 0))
        follows = text[match.start() + end : match.start() + end + 1]
        if end and not (follows.isalnum()) and iban_remainder(re.sub(r"[ -]", "", match[0][:end])) == 1:
            yield Span(match.start(), match.start() + end, "IBAN_CODE", 1.0)


def iban_remainder(iban: str) -> int:
    """The remainder by 97 with the first four characters last and letters as 10 to 35: 1 for a valid IBAN."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def addresses(text: str) -> Iterator[Span]:
    """IP addresses, version 4 and 6; not the numbers of versions and sections."""
    if "." in text:
        for match in IPV4.finditer(text):
            if not VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield from (Span(*match.span(end), "IP_ADDRESS", 0.9) for end in ("first", "last") if match[end])
    if ":" in text:
        for match in IPV6.finditer(text):
            if sum(character.isalnum() for character in match[0]) >= 3 and _is_ip(match[0]):
                yield Span(match.start(), match.end(), "IP_ADDRESS", 0.9)


def ssns(text: str) -> Iterator[Span]:
    """US social security numbers of areas and groups that are issued; without dashes only where the text speaks of one."""
    for match in SSN.finditer(text):
        spoken = match[1] == "-" or _near(SSN_CONTEXT, text, match)
        yield Span(match.start(), match.end(), "US_SSN", 0.85 if spoken else 0.3)
    if SSN_CONTEXT.search(text):
        for match in BARE_SSN.finditer(text):
            yield Span(match.start(), match.end(), "US_SSN", 0.8 if _near(SSN_CONTEXT, text, match) else 0.3)


def urls(text: str) -> Iterator[Span]:
    for match in URL.finditer(text):
        url = match[0].rstrip(".,;:!?*_'")
        if url.endswith(")") and url.count("(") < url.count(")"):
            url = url.rstrip(").,")
        if len(url) > len("http://"):
            yield Span(match.start(), match.start() + len(url), "URL", 0.8)
    if ".com" in text or ".org" in text or ".net" in text or ".edu" in text or ".gov" in text:
        for match in DOMAIN.finditer(text):
            yield Span(match.start(), match.start() + len(match[0].rstrip("./")), "URL", 0.6)


def phones(text: str) -> Iterator[Span]:
    """Numbers to call, at a confidence that depends on how they are written and on the words around."""
    for match in PHONE.finditer(text):
        if not NO_PHONE.fullmatch(match[0]):
            score = _phone_score(match[0], text, match)
            yield Span(match.start() + (match[0].count("(") > match[0].count(")")), match.end(), "PHONE_NUMBER", score)


def _phone_score(number: str, text: str, match: re.Match[str]) -> float:
    digits = re.sub(r"\D", "", number.partition("x")[0])
    before = text[max(0, match.start() - BEFORE) : match.start()]
    called = CALLING.search(before) or CALLED.match(text, match.end())
    written_alone = number.startswith(("0", "(0")) and not number.isdigit()
    in_street = STREET.fullmatch(number) and NEXT_NAME.match(text, match.end())
    score = 0.3
    if len(set(digits)) == 1:
        score = 0.0
    elif number.startswith(("+", "00")) and _callable(number, ("US", "ZZ")):
        score = 0.9
    elif NANP.fullmatch(number):
        score = 0.6
    elif COUNTED.search(before) or in_street:
        score = 0.1
    elif called:
        score = 0.75 if len(digits) >= 9 or not number.isdigit() else 0.5
    elif written_alone and _callable(number, REGIONS):
        score = 0.5
    return score


def _callable(number: str, regions: tuple[str, ...]) -> bool:
    """Whether `number` could be dialled in one of `regions`, by the phonenumbers library's length and prefix tables."""
    import phonenumbers

    for region in regions:
        try:
            if phonenumbers.is_possible_number(phonenumbers.parse(number, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False


@cache
def _suffixes() -> frozenset[str]:
    """Top-level domains, of tldextract's own copy of the public suffix list: it never looks online."""
    from tldextract import TLDExtract

    extract = TLDExtract(suffix_list_urls=(), cache_dir=None)
    return frozenset(suffix.rpartition(".")[2] for suffix in extract.tlds)


def _issued(digits: str) -> bool:
    return any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in CARDS)


def _near(context: re.Pattern[str], text: str, match: re.Match[str]) -> bool:
    return bool(context.search(text, max(0, match.start() - BEFORE), match.end() + AFTER))


def _after(text: str, count: int) -> int:
    """The offset just after the first `count` letters and digits; 0 if there are fewer."""
    for offset, character in enumerate(text):
        count -= character.isalnum()
        if not count:
            return offset + 1
    return 0


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _has_digits(count: int) -> Callable[[str], bool]:
    """A cue: `count` digits with at most three other characters between two of them."""
    pattern = re.compile(rf"\d(?:\D{{0,3}}\d){{{count - 1}}}")
    return lambda text: pattern.search(text) is not None


PATTERNS: dict[str, tuple[Callable[[str], bool], Callable[[str], Iterator[Span]]]] = {
    "EMAIL_ADDRESS": (lambda text: "@" in text, emails),
    "PHONE_NUMBER": (_has_digits(7), phones),
    "CREDIT_CARD": (_has_digits(12), cards),
    "IBAN_CODE": (_has_digits(2), ibans),
    "IP_ADDRESS": (lambda text: ":" in text or text.count(".") >= 3, addresses),
    "US_SSN": (_has_digits(9), ssns),
    "URL": (lambda text: "." in text, urls),
}
