"""What a quant keeps of the model that it was made from, on held-out rows, and whether that is enough to release it.

Not by `evaluate`, which scores a quant by the engine that serves it: vLLM hands out no whole distributions without copying each to
Python, and runs int4 in 16 bits alone where the model is scored in 32. Here every format is asked the same as its model, in one
process.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from temper import calibration, calls, intervals, metrics
from temper.engines import Engine
from temper.records import Row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Limits:
    """What a quant must keep to be released; null: no limit."""

    perplexity: float | None
    """At most, as a multiple of the model's."""
    kl: float | None
    """At most, in nats."""
    kl_p99: float | None
    """At most, in nats."""
    unchanged: float | None
    """At least, of greedy answers."""
    exact: float | None
    """At least, as a share of the model's rate of exact answers."""


MEASURES = {
    "perplexity": "perplexity_ratio",
    "kl": "kl",
    "kl_p99": "kl_p99",
    "unchanged": "unchanged",
    "exact": "exact_kept",
}
"""The figure that each limit holds."""
AT_LEAST = ("unchanged", "exact")


@dataclass(frozen=True)
class Asked:
    texts: list[list[int]]
    """Whole rows, whose next tokens are predicted."""
    positions: int
    """Of each at most, its last ones."""
    prompts: list[list[int]]
    """Of `rows`, to be answered; none where the data has no chats."""
    rows: list[Row]
    max_tokens: int
    """Of an answer."""

    def longest(self) -> int:
        """Tokens that an engine must have room for."""
        return max(*map(len, self.texts), self.max_tokens + max(map(len, self.prompts), default=0))


@dataclass(frozen=True)
class Seen:
    log_probs: "list[Tensor]"
    """(positions, vocabulary) of each text."""
    answers: list[list[int]]


def asked(rows: list[Row], tokenizer: Any, texts: int, positions: int, answers: int, max_tokens: int) -> Asked:
    """What engines are asked about `rows`: `texts` of them whole and `answers` of the chats up to their answer, evenly spread."""
    whole = [calibration.encoded(calibration.text(row, tokenizer), tokenizer) for row in spread(rows, texts)]
    chosen = spread([row for row in rows if "messages" in row], answers)
    prompts = [
        tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        for row in chosen
    ]
    return Asked(whole, positions, [calibration.encoded(one, tokenizer) for one in prompts], chosen, max_tokens)


def seen(engine: Engine, asked: Asked) -> Seen:
    likelihoods = [engine.log_probs(ids, min(asked.positions, len(ids) - 1)) for ids in asked.texts]
    return Seen(likelihoods, engine.answers(asked.prompts, asked.max_tokens))


def figures(asked: Asked, model: Seen, quant: Seen, tokenizer: Any, confidence: float, seed: int) -> dict[str, Any]:
    """Every figure of a quant beside those of its model; `unjudged` names those of MEASURES that are not among them, and why."""
    return distributions(asked, model, quant) | answered(asked, model, quant, tokenizer, confidence, seed)


def distributions(asked: Asked, model: Seen, quant: Seen) -> dict[str, float]:
    """Perplexity of both; KL(model ‖ quant) of the next token in nats, its mean and its 99th percentile over positions, as
    llama.cpp's `llama-perplexity --kl-divergence` has it; the share of positions with the same likeliest token."""
    import torch

    targets = [torch.tensor(ids[-len(found) :]) for ids, found in zip(asked.texts, model.log_probs, strict=True)]
    pairs = list(zip(model.log_probs, quant.log_probs, strict=True))
    kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).clamp(min=0)
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in pairs])
    before, after = (perplexity(one.log_probs, targets) for one in (model, quant))
    return {
        "positions": len(kl),
        "perplexity": after,
        "perplexity_bf16": before,
        "perplexity_ratio": after / before,
        "kl": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
        "same_top": float(same.float().mean()),
    }


def perplexity(log_probs: "list[Tensor]", targets: "list[Tensor]") -> float:
    """exp of the mean negative log-likelihood of the `targets`."""
    import torch

    nats = [-found.gather(1, ids.unsqueeze(1)) for found, ids in zip(log_probs, targets, strict=True)]
    return math.exp(float(torch.cat(nats).mean()))


def answered(asked: Asked, model: Seen, quant: Seen, tokenizer: Any, confidence: float, seed: int) -> dict[str, Any]:
    """The share of answers that are the same text, and the task's figures of those to rows with a gold call."""
    if not asked.rows:
        return {"answers": 0, "unjudged": "unchanged and exact_kept: no row is a chat"}
    before, after = (
        [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in one.answers] for one in (model, quant)
    )
    same = [a == b for a, b in zip(before, after, strict=True)]
    graded = [place for place, row in enumerate(asked.rows) if "gold" in row]
    rows = [asked.rows[place] for place in graded]
    old, new = ([texts[place] for place in graded] for texts in (before, after))
    found = {"answers": len(after)} | intervals.rate("unchanged", same, confidence)
    return found | task(scored(old, rows), scored(new, rows), confidence, seed)


def task(old: list[calls.Score], new: list[calls.Score], confidence: float, seed: int) -> dict[str, Any]:
    """Exact answers and argument F1 of a model and its quant by the verifier of `evaluate`, and `exact_kept`: the quant's exact
    answers as a share of the model's, which is not there where the model had none to lose. `exact_change`, of the rate, has an
    interval over rows, which a ratio of few answers has not."""
    if not old:
        return {"unjudged": "exact_kept: no answered row has a gold call"}
    kept, had = (sum(one.exact for one in scores) for scores in (new, old))
    changes = [float(b.exact) - float(a.exact) for a, b in zip(old, new, strict=True)]
    found: dict[str, Any] = intervals.mean("exact_change", changes, confidence, seed)
    for name, scores in (("", new), ("_bf16", old)):
        found |= {f"exact{name}": fmean(one.exact for one in scores)}
        found |= {f"argument_f1{name}": fmean(one.argument_f1 for one in scores)}
    none = f"exact_kept: the model answers none of {len(old)} rows right"
    return found | ({"exact_kept": kept / had, "unjudged": ""} if had else {"unjudged": none})


def scored(texts: list[str], rows: list[Row]) -> list[calls.Score]:
    return [calls.score(text, row["tools"], row["gold"]) for text, row in zip(texts, rows, strict=True)]


def verdict(found: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """`released`, and `withheld` with every figure that is beyond its limit: `exact_kept 0.91 < 0.97`.

    A figure that could not be judged is beyond none; a quant of which none could be is withheld.
    """
    set_ = {field.name: getattr(limits, field.name) for field in fields(limits)}
    held = {name: limit for name, limit in set_.items() if limit is not None}
    judged = {name: limit for name, limit in held.items() if MEASURES[name] in found}
    lines = [beyond(name, found[MEASURES[name]], limit) for name, limit in judged.items()]
    lines += [f"not judged ({found['unjudged']})"] if held and not judged else []
    withheld = ", ".join(filter(None, lines))
    return {"released": not withheld, "withheld": withheld}


def beyond(name: str, value: float, limit: float) -> str:
    """`exact_kept 0.91 < 0.97` where a figure is beyond its limit, or is no number; else nothing."""
    least = name in AT_LEAST
    if value >= limit if least else value <= limit:
        return ""
    return f"{MEASURES[name]} {value:.3g} {'<' if least else '>'} {limit:g}"


def require_released(name: str, folder: Path = Path("reports/retention")) -> None:
    """Exit unless the quant `name` was measured and may be released."""
    found = metrics.read(folder / f"{name}.json")
    if not found["released"]:
        raise SystemExit(
            f"models/{name} is not released ({found['withheld']}): take another of recipe.formats, quantize it wider or with more "
            "calibration rows, or change retention.limits in conf/retention"
        )


def spread(rows: list[Row], count: int) -> list[Row]:
    """At most `count` of `rows`, evenly."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
