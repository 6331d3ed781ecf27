"""People and places: what a tagger of entities proposes, corrected by lists of names and by how names and addresses are written.

The lists are Faker's (MIT): first and last names, cities and countries of some eighty locales. They are examples, not
registers: a name that is in none of them is found by the tagger or by its context, or not at all.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from temper.recognizers import Span

Entity = tuple[int, int, str]
"""Start, end and label (OntoNotes' names, as spaCy's English models give them)."""

PERSON, LOCATION = "PERSON", "LOCATION"
CERTAIN, LIKELY, POSSIBLE = 0.85, 0.7, 0.5


class Lists(NamedTuple):
    first: frozenset[str]
    last: frozenset[str]
    cities: frozenset[str]
    countries: frozenset[str]
    words: frozenset[str]
    """Common English words in lower case, which are no evidence of a name."""


UPPER = r"[^\W\d_a-zà-öø-ÿ]"
WORD = rf"(?:(?:Mc|Mac|O'|D'|d'|l')?{UPPER}[^\W\d_]*(?:['’-]{UPPER}?[^\W\d_]+)*)"
JOIN = (
    r"(?:de|da|do|dos|das|del|della|di|du|des|la|le|les|van|von|der|den|ter|ten|of|the|u|nad|pod|z|y|i|e|am|an|im|upon)"
)
INITIAL = rf"(?:{UPPER}\.?(?!\w))"
NO_PART = r"(?!(?i:apt|suite|unit|flat|floor|room|box|psc|street|road|avenue|inc|ltd|llc)\b)"
NAME = rf"(?:{WORD}(?: {NO_PART}(?:{INITIAL}|{WORD}|(?:{JOIN} ){{1,2}}{WORD})){{0,3}})"
PLACE = rf"(?:{WORD}(?:[ -](?:{WORD}|(?:{JOIN}|[a-z]{{1,2}}'?)[ ']{WORD})){{0,3}})"
CAPITALISED = re.compile(rf"(?<![\w@/]){NAME}")

TITLE = r"(?:Mrs?|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Dame|Lord|Lady|Madam|Mister|Rev|Fr|Sgt|Capt|Lt|Col|Gen)"
TITLED = re.compile(rf"\b(?i:{TITLE})\.? ({NAME})")
INTRODUCED = re.compile(
    r"(?i:\bname(?:'s)?(?: is| was|:|\?)(?: user:)?|\bnames?:|\bnamed(?: him| her| them)?|\bcalled"
    r"|\bcalls? me|\bi am|\bi'm|\bthis is"
    r"|\bhi|\bhello|\bhey|\bdear|\b(?:directed|sung|written|painted|produced|arranged) by|\bstarring|\bproducer|\bauthor|\bsinger"
    rf"|\bsays|\bsaid|\bregards,|\bsincerely,|\bcheers,)\s+({NAME})"
)
LOWER_NAME = re.compile(
    r"(?i:\bmy (?:last |first |full )?name is|\bcalls? me|\bnamed (?:him|her)|\bname:|\bname\? (?:user:)?)[ \t]*"
    r"([^\W\d_]{2,}(?: [^\W\d_]+){0,2})(?=\W*$|\n| but )",
    re.MULTILINE,
)
ACTS = (
    r"(?:said|says|say|asked|asks|told|tells|shouted|replied|explained|wrote|writes|lives|lived|thinks|thought|believes|married"
    r"|flew|began|started|spent|worked|works|had given|has been|will be (?:talking|speaking)|speak|just has to|points out|leads?)"
)
ACTING = re.compile(rf"(?<![\w.])({NAME}) {ACTS}\b")
RELATED = re.compile(
    rf"(?<!\w)({NAME})(?:'s|s'|’s) (?:kid|son|daughter|child|children|wife|husband|mother|father|mum|mom|dad|sister|brother|friend"
    r"|address|account|email|phone|birthday|house|killers?|song|name)\b"
)
SPEAKER = re.compile(rf"^({NAME}): ?(?=[\"“A-Z])", re.MULTILINE)
ADDRESSED = re.compile(rf"^({WORD}), (?=can|could|would|will|please|may|I|you|are|is|do|did|thank)", re.MULTILINE)
LISTED = re.compile(rf"(?<!\w){NAME}(?:, {NAME}){{0,20}},? and {NAME}")
BY_CONTEXT = (
    (TITLED, CERTAIN),
    (INTRODUCED, LIKELY),
    (ACTING, LIKELY),
    (RELATED, LIKELY),
    (SPEAKER, LIKELY),
    (ADDRESSED, LIKELY),
)
COMPANY = re.compile(
    r"\b(?:Inc|Ltd|LLC|LLP|PLC|Corp|Co|GmbH|AG|Group|Bank|Company|University|Institute|Systems?|Technolog\w+|Orchestra|Research"
    r"|Partners|Capital|Data|Labs?|Media|Solutions|Services|Foundation|Agency|Press|Times|Weekly|TV|Code|Act|Union|Force)\b",
    re.IGNORECASE,
)
NOT_NAMES = frozenset(
    re.findall(
        r"\w+",
        "A An Any All Some January February March April May June July August September October November December"
        " Monday Tuesday Wednesday Thursday Friday Saturday Sunday English American British I The This That There"
        " These Those He She It We You They My Your His Her Our Their What When Where Why Who How Is Are Was Were"
        " Do Does Did Can Could Would Should Please Hi Hello Hey Dear Yes No Not And But Or If In On At To From For"
        " Of With By As So Thanks Thank Mr Mrs Ms Miss Dr Prof Sir Madam User Bot Human Assistant Question Answer"
        " Name Address Phone Email Website Date Note Sometimes",
    )
)

STRONG_PLACE = re.compile(
    r"(?i:\b(?:lives?|lived|living|resid\w+|grew up|raised|born|based|located|travell?ing|headquartered|stationed|home"
    r"|moved|originally|arriv\w+|return\w*|coming|go(?:ing)?|flew|fly|conference|university|city|town|village|am|i'm|we're"
    r"|welcome|trip|back) (?:here |back |there )?(?:in|from|to|at|of|near|outside)(?: the)?"
    rf"|\bwhere:|\bserving|\bstreet in|\bcity) (?:(?:Southern|Northern|Eastern|Western|Central) )?({PLACE})",
    re.MULTILINE,
)
WEAK_PLACE = re.compile(rf"(?<!\w)(?:in|from|to|at|near|outside|through|via|visit|visiting) (?:the )?({PLACE})")
PLACE_NOUN = re.compile(
    rf"(?<!\w)({PLACE}) (?:bridge|airport|station|harbou?r|country club|leader|county|province|valley|beach)\b"
)
POSTCODE = re.compile(
    r"(?i:\b(?:zip|postal|post)(?: ?code)?(?: is|:)? )((?=[\w -]*\d)[\w-]{2,9}(?: \d?[A-Z\d]{2,3}\b)?)"
)

STREET_WORD = (
    r"(?:(?i:street|st|stra(?:ss|ß)e|road|rd|avenue|ave|lane|boulevard|blvd|crescent|highway|turnpike|rue|rua|viale|vicolo|piazza|calle|paseo"
    r"|plaza|avenida|strada|ulica|út|utca|tér|chemin|allée)\b\.?|"
    r"(?:Drive|Ln|Av|Court|Square|Sq|Place|Pl|Way|Terrace|Close|Parkway|Row|Walk|Quay|Quai|Gardens|Mall|Cliffs?|Via|ul|u|C/)\b\.?|"
    r"[^\W\d_]{2,}(?:stra(?:ss|ß)e|gasse|weg|platz|straat|laan|hove|plein|vej|gade|gatan?|vägen|veien?|vegen?|stien?|katu|tie|kuja|polku|"
    r"vegur|gata|braut|põik|tänav|allé|ntie|skogstien)\b)"
)
UNIT = r"(?:(?i:apt|apartment|suite|ste|unit|flat|floor|room|p\.? ?o\.? box|box)\.? ?#?\d+[A-Za-z]?\b)"
HOUSE = r"(?<![\w.,:$€£#-])\d{1,5}[A-Za-z]?"
STEP = rf"(?:{WORD}\.?|{JOIN}|\d{{1,4}}[a-z]?\.?)"
MILITARY = r"(?i:(?:(?:psc|unit|cmr) \d+,? box \d+|u(?:ss|sns|snv|scgc|snumb)? [^\W\d_]+)\s+[afd]po a[aep] \d{5})"
# After a street: rows of a unit, a town, a region and a country, with a code.
GAP = r"(?:[ ,]*\n[ >?]*,? ?|, ?| )"
TAIL = rf"(?:{GAP}(?:{UNIT}|{PLACE}(?: \([^\W\d_]+\))?|\d{{1,6}}(?:-\d{{2,4}})?(?!\w)))"
DIGIT = re.compile(r"\d")  # every address below has one
ADDRESS = re.compile(
    rf"(?:{MILITARY}"
    rf"|(?:{HOUSE} )?(?:{HOUSE}[ ,]+)(?:{STEP} ){{0,4}}{STREET_WORD}(?: {STEP}){{0,3}}{TAIL}{{0,5}}"
    rf"|{HOUSE} {HOUSE} {WORD}(?: {STEP}){{0,4}}{TAIL}{{0,5}}"
    rf"|{HOUSE} {WORD}(?: (?:{WORD}|{JOIN})){{0,4}} \d{{1,4}}\b{TAIL}{{0,5}}"
    rf"|{UNIT}{TAIL}{{0,4}})"
)
STREET = re.compile(
    rf"(?:(?<!\w){PLACE} (?:\d{{1,4}} )?{STREET_WORD}(?: \d{{1,4}}\b)?|(?<!\w){STREET_WORD} {PLACE}(?: \d{{1,4}}\b)?"
    rf"|(?:\b(?:on|at|of|located|address:|address is|enter) ){PLACE} \d{{1,4}}\b)"
)
MONTH = re.compile(
    r"\b(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?"
    r"|Dec(?:ember)?)\b",
    re.IGNORECASE,
)


def find(text: str, entities: list[Entity]) -> list[Span]:
    """People and places in `text`, given what a tagger found there; spans may overlap."""
    return [*addresses(text), *places(text, entities), *people(text, entities)]


def addresses(text: str) -> Iterator[Span]:
    """Postal addresses and streets."""
    patterns = [(ADDRESS, CERTAIN + 0.01)] if DIGIT.search(text) else []
    for pattern, score in (*patterns, (STREET, LIKELY + 0.02)):
        for match in pattern.finditer(text):
            if not MONTH.search(match[0]):
                yield Span(match.start(), match.end(), LOCATION, score)


def places(text: str, entities: list[Entity]) -> Iterator[Span]:
    lists = load()
    for start, end, label in entities:
        if label in ("GPE", "LOC", "FAC") and not _is_person(text[start:end]):
            yield Span(start, end, LOCATION, LIKELY)
    for match in CAPITALISED.finditer(text):
        for start, end in _known(match, lists.countries):
            yield Span(start, end, LOCATION, CERTAIN)
    for match in STRONG_PLACE.finditer(text):
        if _is_name(match[1]) and not (_is_person(match[1]) and match[1] not in lists.cities):
            yield Span(match.start(1), match.end(1), LOCATION, LIKELY + 0.01)
    for match in (*WEAK_PLACE.finditer(text), *PLACE_NOUN.finditer(text)):
        if match[1] in lists.cities and match[1] not in lists.first and _is_name(match[1]):
            yield Span(match.start(1), match.end(1), LOCATION, POSSIBLE)
    for match in POSTCODE.finditer(text):
        yield Span(match.start(1), match.end(1), LOCATION, LIKELY)


def people(text: str, entities: list[Entity]) -> Iterator[Span]:
    for start, end, label in entities:
        said = text[start:end]
        if (label == PERSON and not COMPANY.search(said)) or (label != PERSON and _is_person(said)):
            yield Span(start, end, PERSON, LIKELY - 0.01 * (label != PERSON))
    for pattern, score in BY_CONTEXT:
        for match in pattern.finditer(text):
            start, end = _unaddressed(text, *match.span(1))
            if _is_name(text[start:end]) and not COMPANY.search(match[1]):
                yield Span(start, end, PERSON, score)
    for match in LISTED.finditer(text):
        listed = [*re.finditer(NAME, match[0])]
        if 2 * sum(_is_person(one[0]) for one in listed) >= len(listed):
            at = match.start()
            yield from (Span(at + one.start(), at + one.end(), PERSON, LIKELY + 0.02) for one in listed)
    for match in LOWER_NAME.finditer(text):
        yield Span(match.start(1), match.end(1), PERSON, POSSIBLE)
    for match in CAPITALISED.finditer(text):
        start, end = _unaddressed(text, *match.span())
        if _is_person(text[start:end]):
            # A first name and more: longer than what the tagger may have found of it.
            yield Span(start, end, PERSON, LIKELY + 0.01 if " " in text[start:end] else POSSIBLE)


def _unaddressed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the ordinary words that begin it: `Ask Maria` is Maria."""
    lists = load()
    while " " in text[start:end]:
        head = text[start:end].split(maxsplit=1)[0]
        if head in lists.first or not (head in NOT_NAMES or head.lower() in lists.words):
            break
        start += len(head) + 1
    return start, end


def _is_person(text: str) -> bool:
    """Whether `text` begins with a first name, or is a last name, and has no word of a company."""
    lists = load()
    words = text.split()
    head = words[0].removesuffix("'s") if words else ""
    # Most words are in no list, which is sooner known than all else.
    if head not in lists.first and (len(words) > 1 or head not in lists.last):
        return False
    if head in NOT_NAMES or text in lists.countries or COMPANY.search(text) or any(map(str.isdigit, text)):
        return False
    return (
        words[1] not in lists.words if len(words) > 1 else head.lower() not in lists.words and head not in lists.cities
    )


def _is_name(text: str) -> bool:
    head = text.split(maxsplit=1)[0]
    return head not in NOT_NAMES and len(text) > 1


def _known(match: re.Match[str], names: frozenset[str]) -> Iterator[tuple[int, int]]:
    """The longest runs of words in `match` that are among `names`."""
    words = [(one.start() + match.start(), one.end() + match.start()) for one in re.finditer(r"\S+", match[0])]
    text, at = match.string, 0
    while at < len(words):
        ends = (end for end in range(len(words), at, -1) if text[words[at][0] : words[end - 1][1]] in names)
        if (end := next(ends, None)) is not None:
            yield words[at][0], words[end - 1][1]
        at = end or at + 1


@cache
def load() -> Lists:
    """Faker's lists, read once."""
    first, last = _listed("person", ("first_names",)), _listed("person", ("last_names",))
    cities = _listed("address", ("cities", "city_names", "towns", "municipalities"))
    countries = _listed("address", ("countries",)) | {
        "Czech Republic",
        "UK",
        "USA",
        "U.S.",
        "U.K.",
        "England",
        "Scotland",
        "Wales",
    }
    english = importlib.import_module("faker.providers.lorem.en_US").Provider
    words = frozenset(word.lower() for word in english.word_list)
    return Lists(first, last, cities, countries, words)


@cache
def american() -> dict[str, list[str]]:
    """`first` and `last` names of plain letters, in order, from Faker's list for the United States."""
    provider = importlib.import_module("faker.providers.person.en_US").Provider
    lists = {"first": provider.first_names, "last": provider.last_names}
    return {role: sorted(name for name in values if name.isalpha()) for role, values in lists.items()}


def _listed(provider: str, prefixes: tuple[str, ...]) -> frozenset[str]:
    package = importlib.import_module(f"faker.providers.{provider}")
    found: set[str] = set()
    for locale in pkgutil.iter_modules(package.__path__):
        values: dict[str, Any] = vars(importlib.import_module(f"{package.__name__}.{locale.name}").Provider)
        for key, value in values.items():
            if key.startswith(prefixes) and isinstance(value, list | tuple | dict):
                found.update(one for one in value if isinstance(one, str) and len(one) > 1 and one[0].isupper())
    return frozenset(found)
