"""Comparisons that people decided, which say what a judge is worth: chosen and rejected answers, and MT-Bench's votes.

Agreement is counted as MT-Bench does (Zheng et al. 2023, arXiv:2306.05685, section 4.2; lm-sys/FastChat,
llm_judge/compute_agreement.py): over single votes of people, with ties (setup S1: chance agrees on a third) and without those of
either side (S2: chance agrees on half).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from temper import intervals, published, spread
from temper.published import Published
from temper.records import Row

Chat = list[dict[str, str]]
TURN = re.compile(r"\n\n(Human|Assistant):")  # as Anthropic's hh-rlhf writes a dialogue
ROLES = {"Human": "user", "Assistant": "assistant"}
WINNERS = {"model_a": 1.0, "model_b": 0.0}
FIRST, SECOND, TIE = 1.0, 0.0, 0.5


@dataclass(frozen=True)
class Comparison:
    id: str
    opening: Chat
    """What both go on from; its last turn is the user's."""
    sides: tuple[Chat, Chat]
    """The turns that each adds, the last one the assistant's."""

    @property
    def excess(self) -> int:
        """Characters that the first side's last answer is longer."""
        first, second = (len(side[-1]["content"]) for side in self.sides)
        return first - second


@dataclass(frozen=True)
class Labelled:
    comparison: Comparison
    votes: tuple[float, ...]
    """Of people: 1 for the first side, 0 for the second, 0.5 for a tie."""
    cluster: str
    """What comparisons share that are not independent: their question."""


def pairs(labels: Published, limit: int | None) -> list[Labelled]:
    """Comparisons of `chosen` with `rejected`, spread over the file; what is none (one answer, another prompt) is left out."""
    found = [made for number, row in enumerate(published.rows(labels), start=1) if (made := _pair(row, str(number)))]
    if not found:
        raise SystemExit(
            f"conf/judge: '{labels.name}': {labels.file} has no pair of chosen and rejected dialogues: correct its name"
        )
    return spread.evenly(found, limit)


def votes(labels: Published, limit: int | None) -> list[Labelled]:
    """Comparisons of two models on one question up to one turn, each with all votes on it, spread over the file."""
    found: dict[tuple[str, ...], Labelled] = {}
    for number, row in enumerate(published.rows(labels), start=1):
        try:
            key, made = _voted(row)
        except (KeyError, TypeError, IndexError, AttributeError):
            raise SystemExit(
                f"conf/judge: '{labels.name}': row {number} of {labels.file} is none of MT-Bench's human judgments "
                "(question_id, model_a, model_b, winner, turn, conversation_a, conversation_b): correct its name"
            ) from None
        held = found.get(key)
        found[key] = Labelled(made.comparison, (*(held.votes if held else ()), *made.votes), made.cluster)
    return spread.evenly(list(found.values()), limit)


def accuracy(
    name: str, labelled: Sequence[Labelled], verdicts: Sequence[float | None], confidence: float
) -> dict[str, float]:
    """How often a judge is for the answer that people chose, of those that it decided, with Wilson's interval; and the others."""
    decided = [value == one.votes[0] for one, value in zip(labelled, verdicts, strict=True) if value in (FIRST, SECOND)]
    counts = {"pairs": len(labelled), "decided": len(decided), "undecided": verdicts.count(TIE)}
    return intervals.rate(f"{name}_accuracy", decided, confidence) | {
        f"{name}_{key}": count for key, count in counts.items()
    }


def agreement(
    name: str, labelled: Sequence[Labelled], verdicts: Sequence[float | None], confidence: float, seed: int
) -> dict[str, float]:
    """Agreement with single votes, without ties (`_agreement`) and with them, and on how many votes and questions it is.

    Intervals are by a bootstrap over questions; where all agree alike, of which no spread tells, Wilson's of as many questions.
    """
    values: dict[str, float] = {}
    for suffix, banned in (("agreement", {TIE}), ("agreement_with_ties", set[float]())):
        clusters: dict[str, tuple[int, int]] = {}
        for one, value in zip(labelled, verdicts, strict=True):
            cast = (
                [vote for vote in one.votes if vote not in banned] if value is not None and value not in banned else []
            )
            agreed, asked = clusters.get(one.cluster, (0, 0))
            clusters[one.cluster] = (agreed + cast.count(value or SECOND), asked + len(cast))
        counted = [part for part in clusters.values() if part[1]]
        values[f"{name}_{suffix}_votes"] = sum(asked for _, asked in counted)
        values[f"{name}_{suffix}_questions"] = len(counted)
        if counted:
            parts, sizes = zip(*counted, strict=True)
            found = intervals.ratio(f"{name}_{suffix}", parts, sizes, confidence, seed)
            value, low, high = found.values()
            if low == high:
                low, high = intervals.wilson(round(value * len(counted)), len(counted), confidence)
            values |= dict(zip(found, (value, low, high), strict=True))
    return values


def dialogue(text: str) -> Chat:
    """`\\n\\nHuman: …\\n\\nAssistant: …` as messages; [] where it does not begin so."""
    before, *parts = TURN.split(text)
    if before.strip():
        return []
    return [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _pair(row: Row, name: str) -> Labelled | None:
    chats = [_chat(row.get(side)) for side in ("chosen", "rejected")]
    (chosen, rejected) = chats
    is_pair = (
        len(chosen) > 1
        and chosen[:-1] == rejected[:-1]
        and chosen[-1] != rejected[-1]
        and [chat[-1]["role"] for chat in chats] == ["assistant"] * 2
        and chosen[-2]["role"] == "user"
        and all(turn["content"] for chat in chats for turn in chat)
    )
    if not is_pair:
        return None
    return Labelled(Comparison(name, chosen[:-1], (chosen[-1:], rejected[-1:])), (FIRST,), name)


def _chat(value: Any) -> Chat:
    """A dialogue as text, or as messages."""
    if isinstance(value, str):
        return dialogue(value)
    return [{"role": turn["role"], "content": turn["content"]} for turn in _turns(value)]


def _turns(value: Any) -> Iterator[dict[str, str]]:
    for turn in value if isinstance(value, list) else []:
        if isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str):
            yield turn


def _voted(row: Row) -> tuple[tuple[str, ...], Labelled]:
    turn, question = int(row["turn"]), str(row["question_id"])
    chats = [[{"role": one["role"], "content": one["content"]} for one in row[f"conversation_{side}"]] for side in "ab"]
    # One pair of models stands in either order.
    if row["model_a"] > row["model_b"]:
        chats.reverse()
    value = WINNERS.get(row["winner"], TIE)
    vote = 1 - value if row["model_a"] > row["model_b"] else value
    key = (question, *sorted((row["model_a"], row["model_b"])), str(turn))
    first, second = (chat[1 : 2 * turn] for chat in chats)
    comparison = Comparison("/".join(key), chats[0][:1], (first, second))
    if first[-1]["role"] != "assistant" or second[-1]["role"] != "assistant":
        raise KeyError("conversation")
    return key, Labelled(comparison, (vote,), question)
