"""Chats that are longer than the model's context, cut in their prompts: the answer is what is trained on.

`head` keeps the head of a turn, `tail` its tail, `middle` both ends (Sun et al. 2019, How to Fine-Tune BERT for Text
Classification, section 5.3.1: head-only, tail-only, head+tail), `sliding_window` makes a row of every stretch of the
longest turn. System turns stay whole, for they say what the task is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from temper import record
from temper.records import Row

POLICIES = ("error", "head", "tail", "middle", "sliding_window")
GAP = "\n[…]\n"  # where `middle` took text out
Messages = list[dict[str, str]]
Span = tuple[int, int]


class TooLong(ValueError):
    """A row that cannot be cut to fit; the message says how long its parts are, in tokens."""


class Tokens(Protocol):
    """What cutting needs to know of a tokenizer and its chat template."""

    def length(self, messages: Messages) -> int:
        """Tokens of the rendered chat."""

    def spans(self, text: str) -> list[Span]:
        """Where each token of `text` begins and ends, in characters."""


@dataclass(frozen=True)
class Settings:
    policy: str
    limit: int
    """Tokens of a rendered row."""
    floor: int
    """Tokens that a cut turn keeps at least."""
    overlap: float
    """Of two neighbouring windows, as a share of a window, in [0, 1)."""
    truncate_answers: bool


def check(settings: Settings) -> None:
    """Exit naming the key of conf/audit that has no meaning."""
    if settings.policy not in POLICIES:
        raise SystemExit(
            f"audit.truncation is '{settings.policy}': choose {', '.join(POLICIES[:-1])} or {POLICIES[-1]} in conf/audit"
        )
    if not 0 <= settings.overlap < 1:
        raise SystemExit(f"audit.window_overlap is {settings.overlap}: choose a share in [0, 1) in conf/audit")
    if not 1 <= settings.floor < settings.limit:
        raise SystemExit(
            f"audit.min_turn_tokens is {settings.floor}: choose 1 to below audit.sequence_length ({settings.limit})"
        )


def fitted(row: Row, settings: Settings, tokens: Tokens) -> list[Row]:
    """The rows that take the place of an over-long one, each at most `limit` tokens; raises TooLong where none can."""
    cut = _windows if settings.policy == "sliding_window" else _cut
    chats = cut(row["messages"], settings, tokens)
    if chats is None and settings.truncate_answers:
        chats = _with_cut_answers(row["messages"], settings, tokens)
    if chats is None:
        raise TooLong(_parts(row["messages"], settings, tokens))
    return [_successor(row, chat, settings.policy) for chat in chats]


def shortened(text: str, keep: int, policy: str, spans: list[Span]) -> str:
    """`text` with at most `keep` of its tokens, which lie at `spans`; the gap of `middle` comes on top."""
    if len(spans) <= keep:
        return text
    if policy == "tail":
        return text[spans[-keep][0] :]
    if policy == "middle" and keep > 1:
        first, last = (keep + 1) // 2, keep // 2
        return text[: spans[first - 1][1]] + GAP + text[spans[-last][0] :]
    return text[: spans[keep - 1][1]]


def _cut(messages: Messages, settings: Settings, tokens: Tokens) -> list[Messages] | None:
    """The chat with every user turn cut to the same number of tokens, the largest that fits: long turns pay first."""

    def at(keep: int) -> Messages:
        return _capped(messages, "user", keep, settings.policy, tokens)

    keep = _largest(lambda keep: tokens.length(at(keep)) <= settings.limit, settings)
    return None if keep is None else [at(keep)]


def _with_cut_answers(messages: Messages, settings: Settings, tokens: Tokens) -> list[Messages] | None:
    """User turns at their floor and answers cut at their end."""
    policy = "head" if settings.policy == "sliding_window" else settings.policy
    prompts = _capped(messages, "user", settings.floor, policy, tokens)

    def at(keep: int) -> Messages:
        return _capped(prompts, "assistant", keep, "head", tokens)

    keep = _largest(lambda keep: tokens.length(at(keep)) <= settings.limit, settings)
    return None if keep is None else [at(keep)]


def _windows(messages: Messages, settings: Settings, tokens: Tokens) -> list[Messages] | None:
    """One chat a window over the longest user turn, which together hold all of it; None where the rest is too long already."""
    users = [index for index, turn in enumerate(messages) if turn["role"] == "user"]
    longest = max(users, key=lambda index: len(messages[index]["content"]))
    text = messages[longest]["content"]
    spans = tokens.spans(text)

    def at(width: int) -> list[Messages]:
        return [
            [turn | {"content": text[start:end]} if index == longest else turn for index, turn in enumerate(messages)]
            for start, end in _stretches(spans, width, settings.overlap)
        ]

    width = _largest(lambda width: all(tokens.length(chat) <= settings.limit for chat in at(width)), settings)
    return None if width is None else at(width)


def _stretches(spans: list[Span], width: int, overlap: float) -> list[Span]:
    """Characters of windows of `width` tokens; the last one ends with the text."""
    step = max(1, int(width * (1 - overlap)))
    last = max(0, len(spans) - width)
    starts = [*range(0, last, step), last]
    return [(spans[start][0], spans[min(start + width, len(spans)) - 1][1]) for start in starts]


def _capped(messages: Messages, role: str, keep: int, policy: str, tokens: Tokens) -> Messages:
    return [
        turn | {"content": shortened(turn["content"], keep, policy, tokens.spans(turn["content"]))}
        if turn["role"] == role
        else turn
        for turn in messages
    ]


def _largest(fits: Callable[[int], bool], settings: Settings) -> int | None:
    """The largest number of tokens from the floor up that fits, by bisection; None when the floor does not."""
    low, high = settings.floor, settings.limit
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _successor(row: Row, messages: Messages, policy: str) -> Row:
    """The cut row: new content, so a new id; `origin` is the id of what it was cut from."""
    return record.identified(row | {"messages": messages, "origin": row["id"], "truncation": policy})


def _parts(messages: Messages, settings: Settings, tokens: Tokens) -> str:
    answers = sum(len(tokens.spans(turn["content"])) for turn in messages if turn["role"] == "assistant")
    systems = sum(len(tokens.spans(turn["content"])) for turn in messages if turn["role"] == "system")
    return (
        f"{tokens.length(messages)} tokens, of which answers have {answers} and the system turn {systems}, where "
        f"{settings.limit} fit"
    )
