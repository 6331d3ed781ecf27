"""Fake values in place of identifiers: of a valid shape, in ranges reserved for examples, the same one for the same identifier.

Which value is drawn depends on a keyed hash (HMAC-SHA256) of the identifier, so that it is the same in every row, shard
and run of a seed. Who knows the seed can test a guess of an identifier against its fake: where that matters, take placeholders.
"""

import hmac
import random
import re
import string
from collections.abc import Callable

from temper import masking, names, recognizers

# Reserved for examples: RFC 2606 (names), RFC 5737 and 3849 (addresses), NANP's 555-0100 to 0199, Ofcom's 07700 900000
# to 900999, US social security numbers from 900 on (never given out). 400000 begins the test cards of payment providers.
DOMAINS = ("example.com", "example.org", "example.net")
NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
AREAS = re.findall(
    r"\d+",
    "201 202 203 212 213 214 215 216 301 303 305 310 312 313 314 315 404 405 406 407 408 412 414 415 502 503 504",
)
CARD_PREFIX = "400000"
COUNTRIES = (
    "Argentina",
    "Canada",
    "Denmark",
    "Ghana",
    "India",
    "Japan",
    "Kenya",
    "Norway",
    "Peru",
    "Portugal",
    "Thailand",
)


def fake(identifier: str, kind: str, seed: int) -> str:
    """A value of the same kind; a placeholder for kinds that no fake value is worth having of, such as secrets."""
    makers: dict[str, Callable[[str, int], str]] = {
        "EMAIL_ADDRESS": _email,
        "PHONE_NUMBER": _phone,
        "CREDIT_CARD": _card,
        "IBAN_CODE": _iban,
        "IP_ADDRESS": _ip,
        "US_SSN": _ssn,
        "URL": _url,
        "PERSON": _person,
        "LOCATION": _location,
    }
    return makers[kind](identifier, seed) if kind in makers else masking.placeholder(identifier, kind)


def _drawn(identifier: str, role: str, seed: int) -> random.Random:
    """A source of draws that depends on the identifier whatever its case and punctuation."""
    message = f"{role}:{masking.bare(identifier)}".encode()
    return random.Random(hmac.digest(str(seed).encode(), message, "sha256"))


def _email(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "email", seed)
    return f"{_word(draw, 'first')}.{_word(draw, 'last')}{draw.randint(10, 99)}@{draw.choice(DOMAINS)}".lower()


def _phone(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "phone", seed)
    if identifier.startswith(("+44", "0044")):
        return f"+44 7700 900{draw.randint(0, 999):03}"
    digits = f"{draw.choice(AREAS)}55501{draw.randint(0, 99):02}"
    if recognizers.NANP.fullmatch(identifier):
        shape = re.sub(r"\s?(?:x|ext).*", "", identifier)
        return _filled(shape, digits if sum(map(str.isdigit, shape)) == 10 else "1" + digits)
    return digits if identifier.isdigit() else f"+1 {digits[:3]}-{digits[3:6]}-{digits[6:]}"


def _card(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "card", seed)
    count = sum(map(str.isdigit, identifier))
    body = CARD_PREFIX + "".join(draw.choices(string.digits, k=count - len(CARD_PREFIX) - 1))
    check = next(digit for digit in string.digits if recognizers.luhn(body + digit))
    return _filled(identifier, body + check)


def _iban(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "iban", seed)
    plain = re.sub(r"[^A-Za-z0-9]", "", identifier).upper()
    rest = "".join(draw.choice(string.digits if one.isdigit() else string.ascii_uppercase) for one in plain[4:])
    check = 98 - recognizers.iban_remainder(f"{plain[:2]}00{rest}")
    return f"{plain[:2]}{check:02}{rest}"


def _ip(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "ip", seed)
    if ":" in identifier:
        return f"2001:db8::{draw.getrandbits(16):x}:{draw.getrandbits(16):x}"
    return f"{draw.choice(NETWORKS)}.{draw.randint(1, 254)}"


def _ssn(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "ssn", seed)
    digits = f"{draw.randint(900, 999)}{draw.randint(1, 49):02}{draw.randint(1, 9999):04}"
    return _filled(identifier, digits)


def _url(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "url", seed)
    scheme = re.match(r"\w+://", identifier)
    return f"{scheme[0] if scheme else ''}www.{draw.choice(DOMAINS)}/{draw.getrandbits(32):08x}"


def _person(identifier: str, seed: int) -> str:
    """Word for word, so that `Jane Roe` and `Jane` keep the same first name."""
    words = identifier.split()
    lists = names.load()
    lone_last = len(words) == 1 and words[0] in lists.last and words[0] not in lists.first
    roles = ["last" if lone_last else "first", *["last"] * (len(words) - 1)]
    return " ".join(_renamed(word, role, seed) for word, role in zip(words, roles, strict=True))


def _renamed(word: str, role: str, seed: int) -> str:
    draw = _drawn(word, role, seed)
    if len(word.rstrip(".")) == 1:
        return draw.choice(string.ascii_uppercase) + word[1:]
    new = _word(draw, role)
    return new.upper() if word.isupper() else new.lower() if word.islower() else new


def _location(identifier: str, seed: int) -> str:
    draw = _drawn(identifier, "location", seed)
    city = f"{_word(draw, 'last')}{draw.choice(('ville', 'ton', 'burg', ' Falls', 'port'))}"
    if identifier in names.load().countries:
        return str(draw.choice(COUNTRIES))
    if not any(character.isdigit() for character in identifier):
        return city
    return f"{draw.randint(1, 999)} {_word(draw, 'last')} {draw.choice(('Street', 'Road', 'Avenue', 'Lane'))}, {city}"


def _filled(shape: str, digits: str) -> str:
    """`shape` with its digits replaced by `digits`, in their order."""
    remaining = iter(digits)
    return "".join(next(remaining) if character.isdigit() else character for character in shape)


def _word(draw: random.Random, role: str) -> str:
    """A first or last name of Faker's American list; plain letters only, so that it fits into quotes and addresses."""
    return draw.choice(names.american()[role])
