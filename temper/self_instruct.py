"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): new instructions from old ones, then their inputs and outputs."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from string import punctuation

from temper import licences
from temper.records import Row
from temper.rouge import WORD, Wordings
from temper.seeds import Seed, identity
from temper.synthesis import Work, answered, garbled, setting
from temper.teacher import Reply


@dataclass
class SelfInstruct:
    instructions: int
    """New ones to keep; the seeds are not among them."""
    examples: int
    """Instructions shown in a prompt, all kinds together."""
    generated_examples: int
    """How many of them are generated ones, as soon as there are any."""
    per_request: int
    """New instructions asked for at once."""
    batch: int
    """Requests drawn from the same pool; the result depends on it, and not on the concurrency."""
    max_requests: int
    max_rouge_l: float
    """A new instruction stays below it, in ROUGE-L F1 to every other one."""
    min_words: int
    max_words: int
    keywords: list[str]
    """Words of tasks that text alone cannot do; not looked for where the assistant has tools."""
    instances: int
    """Inputs with outputs asked for per instruction; 0 answers the bare instruction, as is done under a system turn."""
    classification: bool
    """Ask first whether the labels are finite, and if so for the label before its input."""


def self_instruct(work: Work, options: SelfInstruct, seeds: list[Seed]) -> Iterator[Row]:
    """New instructions from old ones, then their instances. Seeds with a system turn of their own are a group of their own."""
    tasks: list[Seed] = []
    grown = _instructions(work, options, _groups(seeds), seeds)
    for found in work.shown(grown, options.instructions, "instructions", lambda found: isinstance(found, Seed)):
        if isinstance(found, Seed):
            tasks.append(found)
        else:
            yield found
    made = work.client.in_order(_instances(work, options, task) for task in tasks)
    for rows in work.shown(made, len(tasks), "answers"):
        yield from rows


@dataclass
class Group:
    """Seeds under one system turn, and the instructions grown from them."""

    seeds: list[Seed]
    grown: list[Seed] = field(default_factory=list)


def _groups(seeds: list[Seed]) -> list[Group]:
    groups: dict[str, Group] = {}
    for seed in {seed.system + seed.instruction: seed for seed in seeds}.values():
        groups.setdefault(seed.system, Group([])).seeds.append(seed)
    return list(groups.values())


def _instructions(work: Work, options: SelfInstruct, groups: list[Group], seeds: list[Seed]) -> Iterator[Row | Seed]:
    """Rounds of requests until there are enough instructions; each round sees what the rounds before it kept."""
    pool = Wordings(options.max_rouge_l)
    for seed in seeds:
        pool.add(seed.instruction)
    kept = 0
    for start in range(0, options.max_requests, options.batch):
        if kept >= options.instructions:
            return
        numbers = range(start, min(start + options.batch, options.max_requests))
        draws = [_drawn(work, options, groups, number) for number in numbers]
        replies = work.client.in_order(
            _continued(work, options, draw, n) for draw, n in zip(draws, numbers, strict=True)
        )
        for (group, shown), reply in zip(draws, list(replies), strict=True):
            for found in _proposed(work, options, group, shown, reply, pool):
                if isinstance(found, Seed) and kept < options.instructions:
                    kept += 1
                    pool.add(found.instruction)
                    group.grown.append(found)
                    yield found
                elif isinstance(found, Seed):
                    yield work.left("surplus", found.parents, found.instruction)
                else:
                    yield found


def _drawn(work: Work, options: SelfInstruct, groups: list[Group], number: int) -> tuple[Group, list[Seed]]:
    """A group, weighted by its seeds, and the examples to show: generated ones, filled up with seeds."""
    chance = random.Random(f"{work.seed}/{work.method}/{number}")
    group = chance.choices(groups, [len(group.seeds) for group in groups])[0]
    grown = chance.sample(group.grown, min(options.generated_examples, len(group.grown)))
    shown = grown + chance.sample(group.seeds, min(options.examples - len(grown), len(group.seeds)))
    chance.shuffle(shown)
    return group, shown


async def _continued(work: Work, options: SelfInstruct, draw: tuple[Group, list[Seed]], number: int) -> Reply:
    group, shown = draw
    listed = "\n".join(f"Task {place}: {seed.instruction}" for place, seed in enumerate(shown, start=1))
    return await work.fill(
        "instructions",
        f"{number}",
        tasks=listed,
        count=options.per_request,
        next=len(shown) + 1,
        setting=setting(group.seeds[0]),
    )


def _proposed(
    work: Work, options: SelfInstruct, group: Group, shown: list[Seed], reply: Reply, pool: "Wordings"
) -> Iterator[Row | Seed]:
    """Each instruction in a reply, as a new seed or with the reason why it is none."""
    parents = tuple(seed.id for seed in shown)
    texts = listed(reply.text)
    if (reason := reply.failure or garbled(reply.text)) or not texts:
        yield work.left(reason or "no_instruction", parents, reply.text, detail=reply.detail)
        return
    has_tools = bool(group.seeds[0].tools)
    for place, text in enumerate(texts, start=1):
        reason = ill_formed(text, options, has_tools)
        if reply.truncated and place == len(texts):
            yield work.left("truncated", parents, text)
        elif reason:
            yield work.left(reason, parents, text)
        elif near := pool.nearest(text):
            yield work.left("similar", parents, text, rouge_l=near[0], similar_to=near[1])
        else:
            yield _task(group, text, parents)


def listed(text: str) -> list[str]:
    """The items of a numbered list, each on one line; what precedes its first number is chatter."""
    parts = re.split(r"^[\s*#]*(?:Task\s*)?\d+\s*[.:)]", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    return [part for part in (" ".join(part.split()).strip('*" ') for part in parts) if part]


def ill_formed(text: str, options: SelfInstruct, has_tools: bool) -> str | None:
    """Self-Instruct's filters on an instruction: its length, its keywords, punctuation at its beginning."""
    words = text.split()
    if not options.min_words <= len(words) <= options.max_words:
        return "too_short" if len(words) < options.min_words else "too_long"
    if text[0] in punctuation:
        return "punctuation"
    plain = f" {' '.join(WORD.findall(text.lower()))} "
    return "keyword" if not has_tools and any(f" {word} " in plain for word in options.keywords) else None


def _task(group: Group, text: str, parents: tuple[str, ...]) -> Seed:
    origin = group.seeds[0]
    head = origin.head[:1] if origin.system else []
    categories = {seed.carried.get("category") for seed in group.seeds}
    shared = {
        "licence": licences.together(seed.carried.get("licence") for seed in group.seeds),
        "category": categories.pop() if len(categories) == 1 else None,
    }
    carried = {key: value for key, value in (origin.carried | shared).items() if value}
    return Seed(identity(head, text), head, text, text, None, carried, parents=parents)


async def _instances(work: Work, options: SelfInstruct, task: Seed) -> list[Row]:
    if task.head or options.instances == 0:
        reply = await work.ask(task.chat, f"{task.id}/answer")
        return [answered(work, task, task.request, reply, task.parents, task=task.id)]
    is_label = options.classification and await _is_classification(work, task)
    template = "labels" if is_label else "instances"
    reply = await work.fill(template, task.id, count=options.instances, instruction=task.instruction)
    found = instances(reply.text, is_label)
    if (reason := reply.failure or garbled(reply.text)) or not found:
        reason = reason or ("truncated" if reply.truncated else "no_instance")
        return [work.left(reason, task.parents, task.instruction, reply.text, detail=reply.detail)]
    return [
        _instance(
            work, task, inputs, output, flawed or (reply.truncated and place == len(found) and "truncated") or None
        )
        for place, ((inputs, output), flawed) in enumerate(zip(found, flaws(found), strict=True), start=1)
    ]


def _instance(work: Work, task: Seed, inputs: str, output: str, reason: str | None) -> Row:
    request = f"{task.instruction}\n\n{inputs}" if inputs else task.instruction
    if reason:
        return work.left(reason, task.parents, request, output)
    return work.row(task, request, output, task.parents, task=task.id)


async def _is_classification(work: Work, task: Seed) -> bool:
    reply = await work.judge("classification", instruction=task.instruction)
    return reply.text.lower().lstrip('*" ').startswith("yes")


def instances(text: str, is_label: bool) -> list[tuple[str, str]]:
    """(input, output) pairs of a reply in the form that its prompt asked for; "" for an instance without input."""
    first, second = ("class label", "input") if is_label else ("input", "output")
    form = rf"^\W*{first}\W*?:[\s*]*(.*?)^\W*{second}\W*?:[\s*]*(.*?)(?=^\W*{first}\W*?:|^\W*example \d+|\Z)"
    pairs = [(a.strip(), b.strip()) for a, b in re.findall(form, text, re.MULTILINE | re.DOTALL | re.IGNORECASE)]
    ordered = [(second, first) for first, second in pairs] if is_label else pairs
    return [("" if _is_nothing(inputs) else inputs, output) for inputs, output in ordered]


def flaws(pairs: list[tuple[str, str]]) -> list[str | None]:
    """Self-Instruct's filters on the instances of one instruction, in their order; None for a good one."""
    outputs: dict[str, set[str]] = {}
    for inputs, output in pairs:
        outputs.setdefault(inputs, set()).add(output)
    found: list[str | None] = []
    for place, (inputs, output) in enumerate(pairs):
        if not output:
            found.append("empty")
        elif inputs == output:
            found.append("repeats_input")
        elif output.endswith(":") or inputs.endswith(":"):
            found.append("cut_off")
        elif len(outputs[inputs]) > 1:
            found.append("contradictory")
        else:
            found.append("duplicate" if (inputs, output) in pairs[:place] else None)
    return found


def _is_nothing(text: str) -> bool:
    return text.strip("<>()*. ").lower() in ("", "none", "n/a", "noinput", "no input")
