"""Preference pairs: of the policy's own answers, told apart by the task's verifier or by a judge, and as preference rows have them.

Reads   models/<policy>, data/mix/{preferences,train}.jsonl (of the second the preference rows: SFT leaves them), a judge's verdicts
Writes  data/preferences.jsonl, data/rejected/preferences.jsonl (what left), reports/training/preferences.json
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from temper import answers, calls, checkpoints, judge, lengths, metrics, pairs, params, record, records, stage, vllm
from temper.judge import Contest
from temper.pairs import Samples
from temper.records import Row

PROMPTS, TRAIN = Path("data/mix/preferences.jsonl"), Path("data/mix/train.jsonl")
REJECTED = Path("data/rejected/preferences.jsonl")
SOURCES = ("files", "verifier", "judge")
# Who may make pairs of a row, by its kind: the first of these that preferences.pairs lists. And the reason where none is listed.
TAKERS = {"preference": ["files"], "call": ["verifier", "judge"], "chat": ["judge"], "text": []}
UNTAKEN = {"preference": "not_asked_for", "call": "not_sampled", "chat": "not_verifiable", "text": "no_prompt"}


@dataclass
class Preferences:
    pairs: Any
    """One or a list of: files (the data's preference rows), verifier (of rows with a gold call), judge (of other prompts too)."""
    dtype: str
    samples: int
    """Answers a prompt."""
    temperature: float
    top_p: float
    max_tokens: int
    """Of an answer."""
    pairs_per_prompt: int
    """Of the verifier; the judge gives one."""
    gold_when_none_right: bool
    """Choose the reference answer where every sample is wrong."""
    balance: bool
    """Keep as many pairs that reject an answer as choose it, where other prompts do so: see pairs.balanced."""
    length: pairs.Length
    max_length: int
    """Tokens of prompt and answer, in the policy's, up to which a pair stays."""
    judge: judge.Judge | None
    confidence: float
    """Of the intervals."""
    limit: int | None
    """Prompts and preference rows, for small runs; null for all."""
    seed: int


def main() -> None:
    policy, cfg = Path("models") / sys.argv[1], checked(params.load("preferences", Preferences))
    rows = prompts(cfg.limit)
    if not rows:
        raise SystemExit(f"{PROMPTS}: no prompts to sample for: raise split.preferences or preferences.limit in conf/")

    taken = {name: [row for row in rows if taker(row, cfg) == name] for name in (*SOURCES, None)}
    every, contests, bill = compared(policy, taken["verifier"], taken["judge"], cfg)
    by_verifier = [paired(samples, cfg) for samples in every]
    made = [pair for of_prompt in by_verifier for pair in of_prompt]
    made += [pair for contest in contests if (pair := contest.pair())]
    made += [pairs.given(row) for row in taken["files"]]
    sizes = pairs.sized(made, lengths.counter(policy))
    kept, dropped = pairs.sifted(made, sizes, cfg.max_length, cfg.balance, cfg.length)

    left = [samples.left() for samples, of_prompt in zip(every, by_verifier, strict=True) if not of_prompt]
    left += [contest.left() for contest in contests if not contest.best]
    left += [row | {"reason": UNTAKEN[record.kind(row)]} for row in taken[None]]
    left += dropped
    records.write(REJECTED, left)
    if not kept:
        raise SystemExit(pairs.nothing(len(rows), left))
    records.write("data/preferences.jsonl", kept)
    counts = {"prompts": len(rows)} | pairs.funnel(kept, left) | pairs.summary(every) | bill
    rates = pairs.composition(kept, cfg.confidence) | (judge.summary(contests, cfg.confidence) if contests else {})
    metrics.write("reports/training/preferences.json", counts | rates)


def checked(cfg: Preferences) -> Preferences:
    """The settings with `pairs` as a list, before anything is sampled; exits naming the one that makes no sense."""
    sources = [cfg.pairs] if isinstance(cfg.pairs, str) else cfg.pairs
    if not isinstance(sources, list) or not sources or not set(map(str, sources)) <= {*SOURCES}:
        raise SystemExit(f"preferences.pairs is {cfg.pairs!r}: choose {', '.join(SOURCES)} or a list of them")
    pairs.checked(cfg.length)
    if "judge" in sources:
        if cfg.judge is None:
            raise SystemExit("preferences.pairs lists judge, and preferences.judge is null: choose preferences=judge")
        judge.reach(judge.checked(cfg.judge))
    return replace(cfg, pairs=sources)


def prompts(limit: int | None) -> list[Row]:
    """The prompts, and the preference rows that were dealt to training, of which a mix may hold one several times."""
    given = {row["id"]: row for row in records.read(TRAIN) if record.kind(row) == "preference"}
    return [*records.read(PROMPTS), *given.values()][:limit]


def taker(row: Row, cfg: Preferences) -> str | None:
    return next((name for name in TAKERS[record.kind(row)] if name in cfg.pairs), None)


def compared(
    policy: Path, verifiable: list[Row], judgeable: list[Row], cfg: Preferences
) -> tuple[list[Samples], list[Contest], Row]:
    """The policy's answers to the prompts, told apart, and what the judge took."""
    rows, runtime = verifiable + judgeable, params.runtime()
    if not rows:
        return [], [], {}
    vllm.require_build()
    sampling = vllm.Sampling(cfg.samples, cfg.temperature, cfg.top_p, cfg.max_tokens)
    others = {"ids": [row["id"] for row in rows], "dtype": cfg.dtype, "seed": cfg.seed, "threads": runtime["threads"]}
    # The samples outlive a judge that cannot go on.
    with checkpoints.scratch("preferences", sampling, checkpoints.deps("preferences"), **others) as scratch:
        found = answers.sampled(policy, rows, sampling, cfg.dtype, cfg.seed, scratch / "answers.jsonl")
        every = [verified(row, of_row) for row, of_row in zip(verifiable, found, strict=False)]
        if not cfg.judge or not judgeable:
            return every, [], {}
        return every, *judge.hold(cfg.judge, judgeable, found[len(verifiable) :], cfg.seed, runtime)


def verified(row: Row, found: list[vllm.Answer]) -> Samples:
    texts = [answer.text for answer in found]
    return pairs.verified(row, texts, lambda text: calls.score(text, row["tools"], row["gold"]).exact)


def paired(samples: Samples, cfg: Preferences) -> list[Row]:
    reference = samples.row["messages"][-1]["content"]
    return pairs.pairs(samples, reference, cfg.pairs_per_prompt, cfg.gold_when_none_right)


if __name__ == "__main__":
    stage.run(main, "training/preferences")
