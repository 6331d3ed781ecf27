"""Requests in other words, under the same answers."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from temper.records import Row
from temper.rouge import Wordings
from temper.seeds import Seed
from temper.synthesis import Work, unusable, unwrapped
from temper.teacher import Reply


@dataclass
class Rephrase:
    styles: list[str]
    """A variant of each seed in each."""
    max_rouge_l: float
    """To the original: from there on it is the same wording."""
    max_length_ratio: float
    """Words of a variant over words of the original; longer ones answer or embroider."""


def rephrase(work: Work, options: Rephrase, seeds: list[Seed]) -> Iterator[Row]:
    """The request of each seed in other words, under the same answer."""
    made = work.client.in_order(_variants(work, options, seed) for seed in seeds)
    for rows in work.shown(made, len(seeds), "seeds"):
        yield from rows


async def _variants(work: Work, options: Rephrase, seed: Seed) -> list[Row]:
    if seed.answer is None:
        return [work.left("no_answer", [seed.id], seed.request, style=style) for style in options.styles]
    asked = [
        work.fill("rephrase", f"{seed.id}/{style}", instruction=seed.request, style=style) for style in options.styles
    ]
    rows: list[Row] = []
    wordings = Wordings(options.max_rouge_l)
    wordings.add(seed.request)
    for style, reply in zip(options.styles, await asyncio.gather(*asked), strict=True):
        text = unwrapped(reply.text)
        reason, evidence = _drift(reply, text, seed, options, wordings)
        if reason:
            rows.append(work.left(reason, [seed.id], text, seed.answer, style=style, **evidence))
        else:
            wordings.add(text)
            rows.append(_reworded(work, seed, text, style))
    return rows


def _reworded(work: Work, seed: Seed, text: str, style: str) -> Row:
    gold = {"gold": seed.gold} if seed.has_gold else {}
    return work.row(replace(seed, carried=seed.carried | gold), text, str(seed.answer), [seed.id], style=style)


def _drift(
    reply: Reply, text: str, seed: Seed, options: Rephrase, wordings: Wordings
) -> tuple[str | None, dict[str, Any]]:
    """Why a variant does not ask for the same in other words, with the evidence."""
    if reason := unusable(reply):
        return reason, {"detail": reply.detail}
    before, after = values(seed.request), values(text)
    lost = sorted({*(before - after), *(value for value in _given(seed) if value.lower() not in text.lower())})
    if lost:
        return "lost_value", {"lost": lost}
    if added := sorted(after - before):
        return "added_value", {"added": added}
    if len(text.split()) > options.max_length_ratio * len(seed.request.split()):
        return "too_long", {}
    if near := wordings.nearest(text):
        return "similar", {"rouge_l": near[0], "similar_to": near[1]}
    return None, {}


def values(text: str) -> Counter[str]:
    """What rewording must not touch, with how often it occurs: numbers, quoted text, addresses and URLs."""
    quoted = re.findall(r'"([^"]+)"|“([^”]+)”|`([^`]+)`|«([^»]+)»|(?<!\w)\'([^\']+)\'(?!\w)', text)
    addresses = [found.rstrip(".,;:!?)") for found in re.findall(r"https?://\S+|\b\S+@\S+\.\w+", text)]
    numbers = re.findall(r"\d+(?:[.,:/-]\d+)*", text)
    return Counter([*(part for parts in quoted for part in parts if part), *addresses, *numbers])


def _given(seed: Seed) -> list[str]:
    """Text in the gold call's arguments that the request names, which the variant must name too."""
    texts = _strings(seed.gold["arguments"]) if seed.gold else []
    return [text for text in texts if text.strip() and text.lower() in seed.request.lower()]


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []
