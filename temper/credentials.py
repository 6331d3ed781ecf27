"""Secrets in text: private keys, API keys and tokens, and connection strings with a password.

Tokens of a known issuer are found by detect-secrets' plugins (its expressions are run over the whole text, since a text
is no file of lines); keys of several lines, connection strings, assigned passwords and newer tokens by patterns here.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise

from temper.recognizers import Span

SECRET, PRIVATE, CONNECTION = "SECRET_KEY", "PRIVATE_KEY", "CONNECTION_STRING"
KINDS = (SECRET, PRIVATE, CONNECTION)

# Issuers whose tokens have a shape of their own. Of detect-secrets' other plugins, entropy and keywords flag names and
# hashes in ordinary code, IP addresses are another entity's, and those of npm, OpenAI and JWT take time that grows as the square
# of a line (TOKENS has them).
PLUGINS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "mailchimp": "MailchimpDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
# The footer may be missing in a text that was cut: then the key ends with its last line of base64.
PEM = re.compile(
    r"-----BEGIN (?P<what>(?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:(?:(?!-----BEGIN )[\s\S]){0,20000}?-----END (?P=what)-----"
    r"|(?:(?:\s|\\n|\\r)+(?:[A-Z][\w-]+: [^\n\\]{1,100}|[A-Za-z0-9+/=]{16,20000})){0,400})"
)
PUTTY = re.compile(r"PuTTY-User-Key-File-[23]:[\s\S]{0,8000}?Private-MAC: ?[0-9a-f]+")
URI = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,30}://[^\s:/?#\[\]@\"'<>]{0,100}:(?P<secret>[^\s/@\"'<>]{1,200})@[^\s\"'`<>]{1,300}",
    re.IGNORECASE,
)
# ADO, ODBC, libpq and Azure: pairs of which one is a password.
PAIRS = re.compile(
    r"(?<![\w;])(?:(?i:data source|user id|initial catalog)|[A-Za-z]\w{1,30})=[^;\s\"'`][^;\"'`\n]{0,200};\s?"
    r"(?:[A-Za-z][\w ]{1,30}=[^;\s\"'`][^;\"'`\n]{0,200};\s?){0,12}[A-Za-z][\w ]{1,30}=[^;\s\"'`]{1,200};?"
)
LIBPQ = re.compile(
    r"(?<!\w)(?:(?:host|port|dbname|user|password|sslmode)=\S{1,100}\s){1,8}(?:host|port|dbname|user|password|sslmode)=[^\s\"'`]+"
)
PASSWORD_PAIR = re.compile(
    r"(?:password|pwd|accountkey|sharedaccesskey|sharedsecret)\s*=\s*(?P<secret>[^;\s]+)", re.IGNORECASE
)
TOKENS = re.compile(
    r"(?<![\w-])(?:sk-(?:proj-|ant-(?:api|admin)\d\d-|or-v1-|svcacct-)?[A-Za-z0-9_-]{20,200}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|hf_[A-Za-z0-9]{30,40}|AIza[\w-]{35}|ya29\.[\w-]{20,200}|xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{20,64}"
    r"|xox[abeoprs]-[\w-]{10,250}|npm_[A-Za-z0-9]{36}|dop_v1_[a-f0-9]{64}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,100}"
    r"|whsec_[A-Za-z0-9]{24,64}|shpat_[a-f0-9]{32}|r8_[A-Za-z0-9]{37}|gsk_[A-Za-z0-9]{40,60}|glpat-[\w-]{20,50}|dckr_pat_[\w-]{27}|dapi[a-f0-9]{32}"
    r"|eyJ[\w-]{8,2000}(?:\.{1,2}[\w-]{8,8000}){1,4})(?![\w-])"
)
NAMES = r"(?:password|passwd|pwd|passphrase|secret|(?:secret|access|api|account)[_-]?key|token|credentials?)"
ASSIGNED = re.compile(
    rf"{NAMES}[\"']?\s*(?::=|=>|[:=])\s*(?P<quote>[\"'])(?P<secret>[^\"'\s]{{8,200}})(?P=quote)", re.IGNORECASE
)
# Of .env, YAML and JSON's lines; what ends a sentence or a string is no part of it.
UNQUOTED = re.compile(
    rf"{NAMES}[ \t]*(?::=|=>|[:=])[ \t]*(?P<secret>[^\s\"'`=][^\s\"'`]{{7,199}}?)"
    r"(?=[\"'`]|\\[nrt]|[.,;:!?)\]}]*[ \t]+\S|[.,;]?\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
# What stands unquoted in code: `tokens.v2`, `S3_ACCESS_KEY_1`.
VARIABLE = re.compile(r"(?:(?:[A-Z]?[a-z]+|[A-Z]+)?\d*(?:[._/:-]|$))+")
NAMED = ("pass", "pwd", "secret", "token", "key", "credential")
BEARER = re.compile(
    r"(?i:authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+|_authtoken\s*=\s*)(?P<secret>[\w.~+/=-]{16,4000})"
)
# Written where a secret would be, to say that one belongs there.
STAND_IN = re.compile(
    r"[<{]|^[$%]|\*{3,}|\.\.\.|x{4,}|your|example|changeme|placeholder|redacted|dummy|sample|insert|replace|env\b|getenv"
    r"|process\.|^[a-z_][\w.]*[(\[]|^(?:none|null|true|false|password|secret|token)$",
    re.IGNORECASE,
)
SHORTEST = 20  # characters of the shortest token below and in detect-secrets
SCORE = 1.0  # no address or number within a secret may win over it


def find(text: str, kinds: Iterable[str]) -> Iterator[Span]:
    """Every secret of `kinds` in `text`; spans may overlap."""
    wanted = set(kinds)
    lowered = text.lower()
    for start, end, kind in (*_keys(text), *_connections(text, lowered), *_tokens(text), *_assigned(text, lowered)):
        if kind in wanted:
            yield Span(start, end, kind, SCORE)


def _keys(text: str) -> Iterator[tuple[int, int, str]]:
    if "PRIVATE KEY" in text:
        yield from ((match.start(), match.end(), PRIVATE) for match in PEM.finditer(text))
    if "PuTTY" in text:
        yield from ((match.start(), match.end(), PRIVATE) for match in PUTTY.finditer(text))


def _connections(text: str, lowered: str) -> Iterator[tuple[int, int, str]]:
    if "://" in text and "@" in text:
        for match in URI.finditer(text):
            if not STAND_IN.search(match["secret"]):
                yield match.start(), match.start() + len(match[0].rstrip(".,;:)")), CONNECTION
    if "=" in text and any(word in lowered for word in ("password", "pwd", "key", "secret")):
        for match in (*PAIRS.finditer(text), *LIBPQ.finditer(text)):
            password = PASSWORD_PAIR.search(match[0])
            if password and not STAND_IN.search(password["secret"]):
                yield match.start(), match.end(), CONNECTION


def _tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Tokens of a known shape; texts without a long word, which are most, are not looked at."""
    if max(map(len, text.split()), default=0) < SHORTEST:
        return
    for match in TOKENS.finditer(text):
        # Nothing else begins as the others do, and a token may be letters alone.
        if not match[0].startswith("sk-") or _mixed(match[0]):
            yield match.start(), match.end(), SECRET
    for pattern in _issuers():
        for match in pattern.finditer(text):
            group = 1 if match.lastindex and len(match[1] or "") >= SHORTEST else 0
            yield match.start(group), match.end(group), SECRET


def _assigned(text: str, lowered: str) -> Iterator[tuple[int, int, str]]:
    patterns = [ASSIGNED, UNQUOTED] if any(word in lowered for word in NAMED) else []
    patterns += [BEARER] if "auth" in lowered else []
    for pattern in patterns:
        for match in pattern.finditer(text):
            if STAND_IN.search(match["secret"]) or not _mixed(match["secret"]):
                continue
            if pattern is not UNQUOTED or not VARIABLE.fullmatch(match["secret"]):
                yield match.start("secret"), match.end("secret"), SECRET


def _mixed(secret: str) -> bool:
    """Whether letters and digits, or both cases, take turns as they do in what was drawn at random or is no word."""
    classes = [character.isdigit() + 2 * character.isupper() + 4 * (not character.isalnum()) for character in secret]
    return any(character.isdigit() for character in secret) and sum(a != b for a, b in pairwise(classes)) >= 3


@cache
def _issuers() -> tuple[re.Pattern[str], ...]:
    """detect-secrets' expressions of the issuers above."""
    from importlib import import_module

    found = []
    for module, name in PLUGINS.items():
        found.extend(getattr(import_module(f"detect_secrets.plugins.{module}"), name).denylist)
    return tuple(found)
