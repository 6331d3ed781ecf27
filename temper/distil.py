"""The best of a teacher's answers to a prompt, by the task's verifier or by the teacher as a judge."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from temper import calls
from temper.records import Row
from temper.seeds import Seed
from temper.synthesis import Work, conversation, flaw


@dataclass
class Distil:
    samples: int
    """Answers to choose from."""
    judge: str
    """`absolute`, `pairwise` or `none`, for rows without a gold call; with one, the task's verifier decides."""
    min_score: float
    """1 to 10."""


def distil(work: Work, options: Distil, seeds: list[Seed]) -> Iterator[Row]:
    """The best of the teacher's answers to each prompt, by the task's verifier or by the teacher as a judge."""
    if options.judge not in ("absolute", "pairwise", "none"):
        raise SystemExit(f"synthesize.options.judge is '{options.judge}': choose absolute, pairwise or none")
    made = work.client.in_order(_distilled(work, options, seed) for seed in seeds)
    yield from work.shown(made, len(seeds), "prompts")


async def _distilled(work: Work, options: Distil, seed: Seed) -> Row:
    asked = [work.ask(seed.chat, f"{seed.id}/answer/{number}") for number in range(options.samples)]
    replies = await asyncio.gather(*asked)
    found = [flaw(reply, seed.tools) for reply in replies]
    sound = list(dict.fromkeys(reply.text for reply, reason in zip(replies, found, strict=True) if reason is None))
    if not sound:
        reason = Counter(filter(None, found)).most_common(1)[0][0]
        return work.left(reason, [seed.id], seed.request, replies[0].text, detail=replies[0].detail)
    if seed.has_gold:
        return _verified(work, options, seed, sound)
    if options.judge == "none":
        return work.row(seed, seed.request, sound[0], [seed.id], samples=options.samples)
    best = _champion if options.judge == "pairwise" and len(sound) > 1 else _highest
    answer, points = await best(work, seed, sound)
    if points is None or points < options.min_score:
        return work.left("unjudged" if points is None else "low_score", [seed.id], seed.request, answer, score=points)
    return work.row(seed, seed.request, answer, [seed.id], samples=options.samples, score=points, judge=options.judge)


def _verified(work: Work, options: Distil, seed: Seed, answers: list[str]) -> Row:
    right = [text for text in answers if calls.score(text, seed.tools, seed.gold).exact]
    if not right:
        return work.left("none_right", [seed.id], seed.request, answers[0])
    checked = replace(seed, carried=seed.carried | {"gold": seed.gold})
    return work.row(checked, seed.request, right[0], [seed.id], samples=options.samples, judge="verifier")


async def _highest(work: Work, seed: Seed, answers: list[str]) -> tuple[str, float | None]:
    """The answer with the highest score, the earlier one of two; None where no verdict can be read."""
    asked = [work.judge("score", request=conversation(seed), answer=answer) for answer in answers]
    points = [score(reply.text) for reply in await asyncio.gather(*asked)]
    judged = [(value, -place) for place, value in enumerate(points) if value is not None]
    if not judged:
        return answers[0], None
    value, place = max(judged)
    return answers[-place], value


async def _champion(work: Work, seed: Seed, answers: list[str]) -> tuple[str, float | None]:
    """The answer that beats the others one after another, each pair scored in both orders, and its score in its last pair."""
    best, points = answers[0], None
    for other in answers[1:]:
        pairs = [(best, other), (other, best)]
        request = conversation(seed)
        asked = [work.judge("compare", request=request, first=first, second=second) for first, second in pairs]
        forth, back = [scores(reply.text) for reply in await asyncio.gather(*asked)]
        if forth is None or back is None:
            continue
        holder, challenger = fmean([forth[0], back[1]]), fmean([forth[1], back[0]])
        best, points = (other, challenger) if challenger > holder else (best, holder)
    return best, points


def score(text: str) -> float | None:
    """The last `Score: n` of a verdict, 1 to 10; None if there is none."""
    found = re.findall(r"score\W*(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    return _in_range(found[-1]) if found else None


def scores(text: str) -> tuple[float, float] | None:
    """The last `Scores: m n` of a verdict, 1 to 10 each; None if there is none."""
    found = re.findall(r"scores\W*(\d+(?:\.\d+)?)[\s,;/*]+(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    first, second = map(_in_range, found[-1]) if found else (None, None)
    return None if first is None or second is None else (first, second)


def _in_range(number: str) -> float | None:
    return float(number) if 1 <= float(number) <= 10 else None
