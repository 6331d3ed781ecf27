"""What may be asked and answered: lists of phrases, patterns, and a guard model behind an OpenAI-compatible endpoint.

Text that is streamed waits only as long as it may be the beginning of something that is blocked.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import regex

from temper import phrases

ALLOWED, BLOCKED, FAILED = "allowed", "blocked", "failed"


@dataclass
class Endpoint:
    base_url: str
    model: str
    api_key_env: str | None
    """Name of the variable with its key."""
    timeout: float
    """Seconds."""
    asked: list[dict[str, Any]]
    """What is merged into each question about a request: one question an entry."""
    answered: list[dict[str, Any]]
    """The same about an answer."""
    unsafe: str
    """Pattern at the start of a reply by which the guard model says that it objects."""
    safe: str
    """The same where it does not; a reply that begins with neither (empty, cut, of another model) is no verdict."""
    window: int
    """Characters of a streamed answer between two questions; they are not sent before the guard has seen them."""
    on_failure: str
    """block or allow, when it gives no verdict."""


@dataclass
class Guard:
    input: bool
    output: bool
    phrases: list[str]
    """Whole words, whatever their case, accents and punctuation."""
    patterns: list[str]
    """Regular expressions, whatever the case."""
    look_behind: int
    """Characters: a pattern's match that is longer may have been sent in part before it is known."""
    endpoint: Endpoint | None
    classifier: str | None
    """A folder with a guard of temper.offline_guard, which reads requests; null for none."""

    def check(self) -> None:
        """Exit naming what is no phrase, no pattern or no policy."""
        if self.endpoint and self.endpoint.on_failure not in ("block", "allow"):
            raise SystemExit(f"serve.guard.endpoint.on_failure: '{self.endpoint.on_failure}': choose block or allow")
        if self.endpoint and self.endpoint.api_key_env and not os.environ.get(self.endpoint.api_key_env):
            raise SystemExit(f"serve.guard.endpoint.api_key_env: {self.endpoint.api_key_env} is not set: export it")
        Lexical(self)
        if self.classifier:
            # It imports this module.
            from temper import offline_guard

            offline_guard.load(Path(self.classifier))


class Finding(NamedTuple):
    verdict: str
    rule: str
    """The phrase, the pattern, or what the guard model replied."""


class Lexical:
    """The phrases and patterns of a guard; exits naming one that cannot be looked for."""

    def __init__(self, guard: Guard) -> None:
        self.look_behind = guard.look_behind
        try:
            self.phrases = phrases.Phrases(guard.phrases)
        except ValueError as error:
            raise SystemExit(f"serve.guard.phrases: {error}: correct it in conf/serve/guard") from None
        try:
            self.patterns = [regex.compile(pattern, regex.IGNORECASE) for pattern in guard.patterns]
        except regex.error as error:
            raise SystemExit(
                f"serve.guard.patterns: '{error.pattern}': {error}: correct it in conf/serve/guard"
            ) from None

    def find(self, text: str) -> Finding | None:
        """What is blocked in a whole text."""
        found = self.phrases.find(text) or next((one.pattern for one in self.patterns if one.search(text)), None)
        return Finding(BLOCKED, found) if found else None


class Scan:
    """A text as it arrives."""

    def __init__(self, lexical: Lexical) -> None:
        self._lexical = lexical
        self._phrases = phrases.Scan(lexical.phrases)
        self._tail = ""
        """The end of the text, in which a pattern may still find something."""
        self._held = 0
        """Characters at its end that a pattern waits for more of."""

    def feed(self, text: str) -> Finding | None:
        """What is blocked in the text so far; what ends with it only counts once something follows."""
        found = self._phrases.feed(text)
        return Finding(BLOCKED, found) if found else self._by_patterns(text, ended=False)

    def end(self) -> Finding | None:
        found = self._phrases.end()
        return Finding(BLOCKED, found) if found else self._by_patterns("", ended=True)

    @property
    def length(self) -> int:
        return self._phrases.length

    @property
    def safe(self) -> int:
        """How many characters may be sent."""
        return min(self._phrases.safe, self._phrases.length - self._held)

    def _by_patterns(self, text: str, ended: bool) -> Finding | None:
        if not self._lexical.patterns:
            return None
        self._tail += text
        self._held = 0
        for pattern in self._lexical.patterns:
            match = pattern.search(self._tail, partial=not ended)
            if match is None:
                continue
            # What ends where the text ends may go on otherwise: "kill" is the beginning of "killer".
            if not match.partial and (ended or match.end() < len(self._tail)):
                return Finding(BLOCKED, pattern.pattern)
            self._held = max(self._held, min(len(self._tail) - match.start(), self._lexical.look_behind))
        self._tail = self._tail[-self._lexical.look_behind :]
        return None


class Asked:
    """A guard model behind an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._unsafe, self._safe = regex.compile(endpoint.unsafe), regex.compile(endpoint.safe)

    async def find(self, chat: list[dict[str, str]]) -> Finding | None:
        """What it objects to in a request, or in the answer if that comes last; no verdict is a finding too."""
        import asyncio

        answered = chat[-1]["role"] == "assistant"
        extras = self.endpoint.answered if answered else self.endpoint.asked
        replies = await asyncio.gather(*(self._reply(chat, extra) for extra in extras))
        found = [one for one in replies if one]
        # One objection counts, whatever became of the other questions: where failures are allowed, they would hide it.
        return min(found, key=lambda one: one.verdict != BLOCKED, default=None)

    async def _reply(self, chat: list[dict[str, str]], extra: dict[str, Any]) -> Finding | None:
        import httpx

        question = {"model": self.endpoint.model, "messages": chat, "temperature": 0.0, "max_tokens": 32} | extra
        try:
            reply = await self._client.post("chat/completions", json=question)
            reply.raise_for_status()
            text = str(reply.json()["choices"][0]["message"]["content"] or "").strip()
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            return Finding(FAILED, f"the guard gave no verdict ({type(error).__name__})")
        said = " ".join(text.split())[:100]
        if self._unsafe.match(text):
            return Finding(BLOCKED, said)
        return None if self._safe.match(text) else Finding(FAILED, f"the guard gave no verdict ('{said}')")

    @cached_property
    def _client(self) -> Any:
        import httpx

        key = os.environ.get(self.endpoint.api_key_env or "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = self.endpoint.base_url.rstrip("/") + "/"
        return httpx.AsyncClient(base_url=base, headers=headers, timeout=self.endpoint.timeout)
