"""Evol-Instruct (Xu et al. 2023, arXiv 2304.12244): instructions rewritten into harder or rarer ones, and answered."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from temper.records import Row
from temper.rouge import WORD
from temper.seeds import Seed
from temper.synthesis import PROMPTS, Work, answered, setting, unusable, unwrapped
from temper.teacher import Reply

# Evol-Instruct's fourth rule: words of the evolving prompt in its result.
COPIED = ("given prompt", "rewritten prompt", "created prompt", "#rewritten", "#created", "#given")


@dataclass
class EvolInstruct:
    generations: int
    operations: list[str]
    """Of temper/prompts/evolve-*.txt, drawn uniformly."""
    judge_gain: bool
    """Let the teacher compare each evolved instruction with its parent, and drop an equal one."""


def evol_instruct(work: Work, options: EvolInstruct, seeds: list[Seed]) -> Iterator[Row]:
    for operation in options.operations:
        if not (PROMPTS / f"evolve-{operation}.txt").is_file():
            known = ", ".join(sorted(path.stem.removeprefix("evolve-") for path in PROMPTS.glob("evolve-*.txt")))
            raise SystemExit(f"synthesize.options.operations: no '{operation}': choose among {known}")
    lines = work.client.in_order(_line(work, options, seed) for seed in seeds)
    for rows in work.shown(lines, len(seeds), "seeds"):
        yield from rows


async def _line(work: Work, options: EvolInstruct, seed: Seed) -> list[Row]:
    """A seed's evolutions, each from the one before it; after a failed one, the same instruction tries again."""
    rows: list[Row] = []
    for generation in range(1, options.generations + 1):
        chance = random.Random(f"{work.seed}/{seed.id}/{generation}")
        row = await _evolution(work, options, seed, generation, chance.choice(options.operations))
        rows.append(row)
        if "reason" not in row:
            request = row["messages"][-2]["content"]
            seed = replace(seed, id=row["id"], request=request, instruction=request)
    return rows


async def _evolution(work: Work, options: EvolInstruct, seed: Seed, generation: int, operation: str) -> Row:
    step: Row = {"operation": operation, "generation": generation}
    name = f"{seed.id}/{generation}"
    reply = await work.fill(f"evolve-{operation}", name, instruction=seed.request, setting=setting(seed))
    text = unwrapped(reply.text)
    if reason := unusable(reply) or failed(text, seed.request):
        return work.left(reason, [seed.id], text, detail=reply.detail, **step)
    if options.judge_gain:
        verdict = await work.judge("equal", first=seed.request, second=text)
        if reason := no_gain(verdict):
            return work.left(reason, [seed.id], text, detail=verdict.detail or verdict.text, **step)
    reply = await work.ask([*seed.head, {"role": "user", "content": text}], f"{name}/answer")
    return answered(work, seed, text, reply, [seed.id], **step)


def failed(text: str, original: str) -> str | None:
    """What needs no judge: words of the evolving prompt that the original does not have (rule 4), or no change at all."""
    if any(words in text.lower() and words not in original.lower() for words in COPIED):
        return "copied_prompt"
    return "no_gain" if WORD.findall(text.lower()) == WORD.findall(original.lower()) else None


def no_gain(verdict: Reply) -> str | None:
    """Rule 1: the teacher finds the evolved instruction equal to the original."""
    if verdict.failure:
        return verdict.failure
    found = re.findall(r"\b(not equal|unequal|equal)\b", verdict.text.lower())
    if not found:
        return "unjudged"
    return "no_gain" if found[-1] == "equal" else None
