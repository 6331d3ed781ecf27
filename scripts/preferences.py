"""Sample answers from the SFT model and pair right ones with wrong ones, as the task's verifier tells them apart.

Reads   models/sft, data/contamination/preferences.jsonl
Writes  data/preferences.jsonl, data/rejected/preferences.jsonl (prompts without a pair), reports/preferences.json
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from temper import calls, metrics, pairs, params, records, stage, vllm
from temper.pairs import Samples
from temper.records import Row

MODEL = Path("models/sft")
PROMPTS = Path("data/contamination/preferences.jsonl")


@dataclass
class Preferences:
    dtype: str
    samples: int
    """Answers a prompt."""
    temperature: float
    top_p: float
    max_tokens: int
    """Of an answer."""
    pairs_per_prompt: int
    gold_when_none_right: bool
    """Choose the reference answer where every sample is wrong."""
    limit: int | None
    """Prompts, for small runs; null for all."""
    seed: int


def main() -> None:
    cfg = params.load("preferences", Preferences)
    rows = list(records.read(PROMPTS))[: cfg.limit]
    if not rows:
        raise SystemExit(f"{PROMPTS}: no prompts to sample for: raise split.preferences or preferences.limit in conf/")

    every = [judged(row, answers) for row, answers in zip(rows, sampled(rows, cfg), strict=True)]
    made = {samples.row["id"]: paired(samples, cfg) for samples in every}
    kept = [pair for found in made.values() for pair in found]
    if not kept:
        raise SystemExit(nothing(every))

    dropped = [samples.row | {"reason": samples.outcome} for samples in every if not made[samples.row["id"]]]
    records.write("data/preferences.jsonl", kept)
    records.write("data/rejected/preferences.jsonl", dropped)
    metrics.write("reports/preferences.json", pairs.summary(every, kept) | funnel(rows, dropped))


def sampled(rows: list[Row], cfg: Preferences) -> list[list[str]]:
    runtime = params.runtime()
    vllm.prepare(runtime)
    tokenizer = vllm.Tokenizer(MODEL)
    prompts = [tokenizer.encode(tokenizer.render(row["messages"][:-1])) for row in rows]
    engine = vllm.engine(cfg.dtype, max(map(len, prompts)) + cfg.max_tokens, cfg.seed, runtime)
    sampling = vllm.Sampling(cfg.samples, cfg.temperature, cfg.top_p, cfg.max_tokens)
    return vllm.sample(MODEL, prompts, [seed(row["id"], cfg.seed) for row in rows], sampling, engine)


def seed(name: str, base: int) -> int:
    """A seed in [0, 2³¹) for one prompt, the same whatever other prompts there are."""
    return int.from_bytes(hashlib.sha256(f"{base}/{name}".encode()).digest()[:4]) // 2


def judged(row: Row, answers: list[str]) -> Samples:
    return pairs.judged(row, answers, lambda text: calls.score(text, row["tools"], row["gold"]).exact)


def paired(samples: Samples, cfg: Preferences) -> list[Row]:
    reference = samples.row["messages"][-1]["content"]
    return pairs.pairs(samples, reference, cfg.pairs_per_prompt, cfg.gold_when_none_right)


def nothing(every: list[Samples]) -> str:
    """The error for a run without a pair, which says what to change."""
    outcomes = Counter(samples.outcome for samples in every)
    found = ", ".join(f"{outcomes[name]} {name.replace('_', ' ')}" for name in sorted(outcomes))
    return (
        f"preferences: no pair out of {len(every)} prompts ({found}): raise preferences.temperature or preferences.samples "
        "where all are right, set preferences.gold_when_none_right where all are wrong"
    )


def funnel(rows: list[Row], dropped: list[Row]) -> dict[str, int]:
    """Prompts seen, kept (with a pair) and rejected by reason."""
    reasons = Counter(f"rejected_{row['reason']}" for row in dropped)
    return {"seen": len(rows), "kept": len(rows) - len(dropped), **reasons}


if __name__ == "__main__":
    stage.run(main, "preferences")
