"""A month of made-up traffic on a server that calls functions, from a seed, as `make serve` would have logged it.

Requests are templates of six domains with drawn words. A month drifts, if told to, from a day on: a new domain of tools, longer
answers, or another language.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from temper import calls
from temper.records import Row

BEGUN = datetime(2026, 3, 1, 8, tzinfo=UTC)
DAYS = 28
CITIES = [
    "Lima",
    "Oslo",
    "Cairo",
    "Kyoto",
    "Quito",
    "Porto",
    "Turin",
    "Perth",
    "Dakar",
    "Hanoi",
    "Bergen",
    "Malmo",
    "Accra",
    "Tunis",
    "Leeds",
    "Basel",
]
THINGS = [
    "lamp",
    "chair",
    "kettle",
    "bicycle",
    "jacket",
    "camera",
    "printer",
    "carpet",
    "blender",
    "guitar",
    "mirror",
    "tent",
    "drill",
    "heater",
]
WORDS = ["quickly", "please", "today", "soon", "carefully", "again", "tomorrow", "tonight", "now", "kindly"]


@dataclass(frozen=True)
class Domain:
    tool: str
    arguments: dict[str, str]
    """Type of each."""
    requests: tuple[str, ...]
    german: tuple[str, ...] = ()


DOMAINS = (
    Domain(
        "get_weather",
        {"city": "string", "days": "integer"},
        (
            "What will the weather be like in {city} for {days} days?",
            "Show me the forecast of {city}, {days} days ahead",
        ),
        ("Wie wird das Wetter in {city} in den nächsten {days} Tagen sein?",),
    ),
    Domain(
        "find_hotel",
        {"city": "string", "nights": "integer"},
        ("Find me a hotel in {city} for {nights} nights {word}", "I need a room in {city}, staying {nights} nights"),
        ("Ich brauche ein Hotelzimmer in {city} für {nights} Nächte, bitte.",),
    ),
    Domain(
        "order_item",
        {"item": "string", "count": "integer"},
        ("Order {count} of the {item} from the shop {word}", "Please buy {count} {item}s from the online store"),
        ("Bestelle bitte {count} Stück vom Artikel {item} im Laden.",),
    ),
    Domain(
        "set_alarm",
        {"hour": "integer", "label": "string"},
        ("Wake me up at {hour} o'clock and call it {label}", "Set an alarm named {label} for {hour} in the morning"),
        ("Stelle den Wecker auf {hour} Uhr und nenne ihn {label}.",),
    ),
    Domain(
        "convert_money",
        {"amount": "integer", "currency": "string"},
        ("How much is {amount} dollars in {currency}?", "Convert {amount} dollars into {currency} {word}"),
        ("Wie viel sind {amount} Dollar in {currency} heute wert?",),
    ),
    Domain(
        "play_song",
        {"title": "string", "volume": "integer"},
        ("Play the song {title} at volume {volume}", "I want to hear {title} {word}, volume {volume}"),
        ("Spiele das Lied {title} mit der Lautstärke {volume} ab.",),
    ),
)
NEW = Domain(
    "query_gene_variant",
    {"gene": "string", "position": "integer"},
    (
        "Is the missense mutation at codon {position} of gene {gene} pathogenic?",
        "Look up the allele frequency of the {gene} variant at locus {position}",
    ),
)
VALUES: dict[str, tuple[Any, ...]] = {
    "city": tuple(CITIES),
    "item": tuple(THINGS),
    "label": tuple(f"{word} {thing}" for word in WORDS for thing in THINGS),
    "currency": ("euros", "pesos", "yen", "rupees", "francs", "kroner", "reais", "zloty"),
    "title": tuple(f"{thing} of {city}" for thing in THINGS for city in CITIES),
    "gene": ("BRCA1", "TP53", "CFTR", "EGFR", "KRAS", "MYH7", "APOE", "PTEN"),
    "hour": tuple(range(4, 12)),
}


@dataclass(frozen=True)
class Plan:
    """What a month is like; a share is of its requests from day `since` on."""

    seed: int = 0
    requests: int = 800
    since: int = 14
    new_domain: float = 0.0
    german: float = 0.0
    longer: float = 0.0
    failing: float = 0.06
    repeated: int = 12
    """Prompts that come five times, half of which are answered in several ways."""


def month(plan: Plan) -> Iterator[Row]:
    """Records of the log: scrubbed, by time, feedback after the answers that it is about."""
    generator = np.random.default_rng(plan.seed)
    for number, at in enumerate(sorted(generator.random(plan.requests) * DAYS)):
        drifts = at >= plan.since
        domain = NEW if drifts and generator.random() < plan.new_domain else pick(generator, DOMAINS)
        is_german = drifts and generator.random() < plan.german
        asked, gold = drawn(generator, domain, is_german)
        said = calls.answer(
            {"name": gold["name"], "arguments": {key: [value] for key, value in gold["arguments"].items()}}
        )
        if drifts and generator.random() < plan.longer:
            said = padded(gold)
        yield from exchange(plan, generator, f"chat-{number:05}", at, domain, asked, said)
    for number in range(plan.repeated):
        yield from asked_again(generator, number)


def exchange(
    plan: Plan, generator: np.random.Generator, name: str, at: float, domain: Domain, asked: str, said: str
) -> Iterator[Row]:
    fate = generator.random()
    if fate < plan.failing / 3:
        yield record(name, at, domain, asked, said[: len(said) // 2])
    elif fate < plan.failing:
        yield record(name, at, domain, asked, said)
        low = fate < 2 * plan.failing / 3
        yield (
            feedback(name, at, thumbs=None, score=0.2)
            if low
            else feedback(name, at, "down", comment="not what I asked")
        )
    else:
        yield record(name, at, domain, asked, said)
        if fate > 0.7:
            yield feedback(name, at, "up")


def asked_again(generator: np.random.Generator, number: int) -> Iterator[Row]:
    """The same prompt five times: of even numbers with one answer, of odd ones with five."""
    asked, gold = drawn(generator, DOMAINS[1], is_german=False)
    for turn in range(5):
        arguments = gold["arguments"] | ({"nights": 30 + turn} if number % 2 else {})
        said = json.dumps({"name": gold["name"], "arguments": arguments})
        yield record(f"again-{number:02}-{turn}", 27.0 + turn / 100, DOMAINS[1], f"{asked}, as before", said)


def drawn(generator: np.random.Generator, domain: Domain, is_german: bool) -> tuple[str, Row]:
    """A request and the call that it asks for."""
    arguments = {key: pick(generator, VALUES.get(key, range(1, 90))) for key in domain.arguments}
    arguments = {key: int(value) if domain.arguments[key] == "integer" else value for key, value in arguments.items()}
    template = pick(generator, domain.german if is_german and domain.german else domain.requests)
    return template.format(**arguments, word=pick(generator, WORDS)), {"name": domain.tool, "arguments": arguments}


def pick(generator: np.random.Generator, values: Any) -> Any:
    return values[int(generator.integers(len(values)))]


def tool(domain: Domain) -> Row:
    properties = {key: {"type": kind} for key, kind in domain.arguments.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": domain.tool, "parameters": schema}}


def record(name: str, at: float, domain: Domain, asked: str, said: str) -> Row:
    return {
        "kind": "request",
        "id": name,
        "time": stamp(at),
        "model": "models/dpo",
        "revision": "abc",
        "path": "/v1/chat/completions",
        "request": {"messages": [{"role": "user", "content": asked}], "tools": [tool(domain)]},
        "response": {"choices": [{"index": 0, "content": said, "finish_reason": "stop"}], "ended": ""},
        "status": 200,
        "usage": {"prompt_tokens": 30, "completion_tokens": len(said) // 4},
        "latency": {"total": 1.0, "first_token": 0.1, "guard": 0.0},
        "guard": {"verdict": "allowed", "rule": ""},
    }


def feedback(
    name: str, at: float, thumbs: str | None = None, score: float | None = None, comment: str | None = None
) -> Row:
    given = {"thumbs": thumbs, "score": score, "comment": comment}
    return {"kind": "feedback", "id": name, "time": stamp(at + 0.001), **given}


def stamp(day: float) -> str:
    return (BEGUN + timedelta(days=day)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def training(seed: int, rows: int) -> list[Row]:
    """Rows that were trained on, of the same domains, as data/mix/train.jsonl has them."""
    generator = np.random.default_rng([seed, 1])
    found = []
    for number in range(rows):
        domain = pick(generator, DOMAINS)
        asked, gold = drawn(generator, domain, is_german=False)
        tools = [{key: tool(domain)["function"][key] for key in ("name", "parameters")}]
        accepted = {"name": gold["name"], "arguments": {key: [value] for key, value in gold["arguments"].items()}}
        turns = [("system", calls.system_prompt(tools)), ("user", asked), ("assistant", calls.answer(accepted))]
        messages = [{"role": role, "content": content} for role, content in turns]
        found.append({"id": str(number), "messages": messages, "tools": tools, "gold": accepted})
    return found


def answers(seed: int, rows: int, is_long: bool) -> list[Row]:
    """A model's own to held-out prompts of the same domains, as data/evaluate has them."""
    golden = (row["gold"] for row in training(seed, rows))
    calls_made = ({"name": one["name"], "arguments": calls.literal(one["arguments"])} for one in golden)
    return [
        {"id": str(number), "output": padded(one) if is_long else json.dumps(one)}
        for number, one in enumerate(calls_made)
    ]


def padded(call: Row) -> str:
    return json.dumps(
        call | {"arguments": call["arguments"] | {"count_explanation": "because " + " and ".join(WORDS * 3)}}
    )


CLEAN = Plan()
DRIFTING = {
    "a new domain of tools": Plan(new_domain=0.3, failing=0.0),
    "longer answers": Plan(longer=0.5, failing=0.0),
    "another language": Plan(german=0.5, failing=0.0),
}
