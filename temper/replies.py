"""An engine's reply on its way to the caller: read once, for the guard and the log, and passed on byte for byte."""

from collections import deque
from typing import Any

import orjson

from temper.guard import Finding, Lexical, Scan

DATA, DONE, END = b"data: ", b"data: [DONE]", b"\n\n"
FILTERED = "content_filter"
# What of a choice is text: of chats in `message` or `delta`, of completions beside it.
FIELDS = ("content", "reasoning_content", "reasoning", "refusal", "text")
Chunk = dict[str, Any]


def texts(choice: Chunk) -> list[tuple[str, str]]:
    """(field, text) of a choice: what it says, and the names and arguments of its calls."""
    said = choice.get("delta") or choice.get("message") or choice
    found = [(field, said[field]) for field in FIELDS if isinstance(said.get(field), str) and said[field]]
    for number, call in enumerate(said.get("tool_calls") or ()):
        function = call.get("function") or {}
        place = call.get("index", number)
        found += [(f"{key} {place}", function[key]) for key in ("name", "arguments") if function.get(key)]
    return found


class Reply:
    """What is common to a streamed and a whole reply."""

    def __init__(self, lexical: Lexical | None) -> None:
        self.lexical = lexical
        self.id = ""
        self.usage: Chunk | None = None
        self.reasons: dict[int, str] = {}
        self.said: dict[tuple[int, str], list[str]] = {}

    def choices(self) -> list[Chunk]:
        """What the log keeps: every choice's texts and why it ended."""
        found: dict[int, Chunk] = {}
        for (index, field), parts in self.said.items():
            found.setdefault(index, {"index": index})[field] = "".join(parts)
        for index, reason in self.reasons.items():
            found.setdefault(index, {"index": index})["finish_reason"] = reason
        return [found[index] for index in sorted(found)]

    def texts(self) -> list[str]:
        return ["".join(parts) for parts in self.said.values()]

    def _note(self, chunk: Chunk) -> None:
        self.id = self.id or str(chunk.get("id") or "")
        self.usage = chunk.get("usage") or self.usage


class Whole(Reply):
    """A reply that comes as one body."""

    def __init__(self, lexical: Lexical | None) -> None:
        super().__init__(lexical)
        self._parts: list[bytes] = []
        self._chunk: Chunk = {}

    def take(self, body: bytes) -> None:
        self._parts.append(body)

    def end(self) -> Finding | None:
        """What is blocked in it. A body that is no JSON object is nobody's answer."""
        try:
            chunk = orjson.loads(self.body)
        except ValueError:
            return None
        if not isinstance(chunk, dict):
            return None
        self._chunk = chunk
        self._note(chunk)
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            self.reasons[index] = choice.get("finish_reason") or ""
            for field, text in texts(choice):
                self.said.setdefault((index, field), []).append(text)
        found = (self.lexical.find(text) for text in self.texts()) if self.lexical else ()
        return next((one for one in found if one), None)

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def without_text(self) -> bytes:
        """The reply with nothing said, as OpenAI's services do when they filter one."""
        choices = []
        for index in sorted(self.reasons):
            empty: Chunk = (
                {"text": ""}
                if "text" in self._chunk["choices"][0]
                else {"message": {"role": "assistant", "content": ""}}
            )
            choices.append({"index": index, **empty, "logprobs": None, "finish_reason": FILTERED})
        return orjson.dumps({**self._chunk, "choices": choices})


class Streamed(Reply):
    """A reply that comes as server-sent events. An event is passed on once none of its text is held back."""

    def __init__(self, lexical: Lexical | None, shows_usage: bool, is_vetted: bool) -> None:
        super().__init__(lexical)
        self._shows_usage = shows_usage
        self._scans: dict[tuple[int, str], Scan] = {}
        self._lengths: dict[tuple[int, str], int] = {}
        self._vetted: dict[tuple[int, str], int] | None = {} if is_vetted else None
        self._waiting: deque[tuple[bytes, list[tuple[tuple[int, str], int]]]] = deque()
        self._rest = b""
        self._head: Chunk = {}

    def take(self, body: bytes) -> Finding | None:
        """Read a piece of the stream; what is blocked in the answer so far."""
        *events, self._rest = (self._rest + body).split(END) if self._rest else body.split(END)
        for event in events:
            if found := self._event(event):
                return found
        return None

    def end(self) -> Finding | None:
        """No more will come."""
        found = self.take(END) if self._rest else None
        return found or self._ended(None)

    def released(self) -> bytes:
        """The events that may be sent."""
        sent = []
        while self._waiting and all(self._safe(key) >= upto for key, upto in self._waiting[0][1]):
            sent += [self._waiting.popleft()[0], END]
        return b"".join(sent)

    def unvetted(self) -> int:
        """Characters that the guard model has not seen."""
        vetted = self._vetted
        return 0 if vetted is None else sum(n - vetted.get(key, 0) for key, n in self._lengths.items())

    def vet(self) -> None:
        if self._vetted is not None:
            self._vetted.update(self._lengths)

    def without_rest(self) -> bytes:
        """The end of a stream that is cut here because of what comes next."""
        self._waiting.clear()
        indices = sorted({index for index, _ in self.said} or {0})
        empty: Chunk = {"text": ""} if self._head.get("object") == "text_completion" else {"delta": {}}
        choices = [{"index": index, **empty, "finish_reason": FILTERED} for index in indices]
        return DATA + orjson.dumps({**self._head, "choices": choices}) + END + DONE + END

    def _event(self, event: bytes) -> Finding | None:
        texts_of: list[tuple[tuple[int, str], int]] = []
        found = None
        if event.startswith(b"data: {"):
            chunk = orjson.loads(event[len(DATA) :])
            self._note(chunk)
            choices = chunk.get("choices") or ()
            if choices and not self._head:
                self._head = {key: chunk[key] for key in ("id", "object", "created", "model") if key in chunk}
            if not choices and "usage" in chunk and not self._shows_usage:
                return None
            for choice in choices:
                index = choice.get("index", 0)
                for field, text in texts(choice):
                    key = (index, field)
                    found = found or self._text(key, text)
                    texts_of.append((key, self._lengths[key]))
                if choice.get("finish_reason"):
                    self.reasons[index] = choice["finish_reason"]
                    found = found or self._ended(index)
        self._waiting.append((event, texts_of))
        return found

    def _text(self, key: tuple[int, str], text: str) -> Finding | None:
        self.said.setdefault(key, []).append(text)
        self._lengths[key] = self._lengths.get(key, 0) + len(text)
        if not self.lexical:
            return None
        if key not in self._scans:
            self._scans[key] = Scan(self.lexical)
        return self._scans[key].feed(text)

    def _ended(self, index: int | None) -> Finding | None:
        scans = [scan for (of, _), scan in self._scans.items() if index in (None, of)]
        return next((found for scan in scans if (found := scan.end())), None)

    def _safe(self, key: tuple[int, str]) -> int:
        scan = self._scans.get(key)
        lexical = scan.safe if scan else self._lengths[key]
        return lexical if self._vetted is None else min(lexical, self._vetted.get(key, 0))
