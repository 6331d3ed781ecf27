"""How often a variant's answers are preferred to the base's, by a judge whose own agreement with people is measured first.

Reads   models/<variant>, models/base, judge.weights (the reward model, or the folder that an endpoint serves), data/mix/test.jsonl,
        labels of people and MT-Bench's files (judge.labels, judge.mt_bench), an endpoint's verdicts
Writes  data/judge/<variant>.jsonl (answers and verdicts; none where the judge is unusable), reports/judge/<variant>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import (
    checkpoints,
    conversations,
    metrics,
    mt_bench,
    params,
    published,
    record,
    records,
    referee,
    spread,
    stage,
    vllm,
    win_rate,
)
from temper.conversations import Conversation
from temper.mt_bench import Files, Question
from temper.records import Row
from temper.referee import Labels, Settings
from temper.win_rate import Preference

TEST, BASE = Path("data/mix/test.jsonl"), "base"
ANSWERABLE = ("call", "chat")


@dataclass
class Judge(Settings):
    labels: Labels
    mt_bench: Files | None
    """Its questions are rated by an endpoint only; null for none."""
    prompts: int | None
    """Rows of the test split, spread over it; null for all."""
    dtype: str
    """Of the sampling."""
    max_tokens: int
    """Of an answer."""
    confidence: float


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("judge", Judge)
    referee.checked(cfg)
    rows, questions = held_out(cfg.prompts), rated(cfg)
    vllm.require_build()

    with referee.seated(cfg, params.runtime()) as judge:
        standing = referee.standing(judge, cfg.labels, cfg.confidence, cfg.seed)
        values = {"judge": judge.name, "kind": cfg.kind, **standing.values, **judge.bill()}
    values |= {"usable": int(standing.is_usable), "unusable_because": standing.reason}
    verdicts: list[Row] = []
    if standing.is_usable:
        found, verdicts = judged(variant, rows, questions, cfg)
        values |= found

    records.write(f"data/judge/{variant}.jsonl", verdicts)
    metrics.write(f"reports/judge/{variant}.json", values)
    print("; ".join(referee.told(values)), flush=True)


def held_out(count: int | None) -> list[Row]:
    rows = [row for row in records.read(TEST) if record.kind(row) in ANSWERABLE]
    if not rows:
        raise SystemExit(f"{TEST}: no rows that ask for an answer: raise split.test, or add such a source in conf/data")
    return spread.evenly(rows, count)


def rated(cfg: Judge) -> list[Question]:
    """The questions of MT-Bench, where an endpoint can rate the answers and the files are there."""
    if cfg.kind != "endpoint" or cfg.mt_bench is None or published.missing(cfg.mt_bench.questions):
        return []
    return mt_bench.questions(cfg.mt_bench)


def judged(variant: str, rows: list[Row], questions: list[Question], cfg: Judge) -> tuple[Row, list[Row]]:
    """Metrics of the variant against the base, and each verdict; the answers are kept until the judge has read them all."""
    asked = [Conversation(row["id"], row["messages"][:-1], [], 0.0) for row in rows]
    asked += [one.conversation() for one in questions]
    models = [Path("models") / name for name in (BASE, variant)]
    with checkpoints.scratch("judge", cfg, [TEST, *models]) as scratch:
        answers = {
            model.name: conversations.answered(
                model, asked, cfg.max_tokens, cfg.dtype, cfg.seed, scratch / f"{model.name}.jsonl"
            )
            for model in models
        }
        own, base = answers[variant], answers[BASE]
        compared = [referee.contest(*one) for one in zip(rows, own, base, strict=False)]
        with referee.seated(cfg, params.runtime()) as judge:
            rulings = judge.rulings(compared)
            bill = {f"win_{key}": value for key, value in judge.bill().items()}
        ratings = mt_bench_scores(questions, {name: of[len(rows) :] for name, of in answers.items()}, cfg)
    preferences = [
        Preference(ruling.value, one.excess)
        for one, ruling in zip(compared, rulings, strict=True)
        if ruling.value is not None
    ]
    values = win_rate.summary(preferences, cfg.confidence, cfg.seed) | referee.order_bias(
        "win", rulings, cfg.confidence
    )
    return values | bill | ratings, [referee.shown(*one) for one in zip(compared, rulings, strict=True)]


def mt_bench_scores(questions: list[Question], answers: dict[str, list[list[str]]], cfg: Judge) -> Row:
    """`mt_bench_<model>` with their intervals, by the endpoint."""
    if not questions or cfg.mt_bench is None:
        return {"mt_bench": "not measured: an endpoint rates it (judge=endpoint), and its files must be there"}
    values: Row = {"mt_bench": cfg.mt_bench.questions.name}
    known = mt_bench.prompts(cfg.mt_bench)
    with referee.asked(cfg, params.runtime(), referee.RATINGS, {}) as judge:
        for name, of in answers.items():
            found = judge.ratings(questions, of, known)
            values |= mt_bench.summary(f"mt_bench_{name}", found, cfg.confidence, cfg.seed)
        return values | {f"mt_bench_{key}": value for key, value in judge.bill().items()}


if __name__ == "__main__":
    stage.run(main, f"judge/{sys.argv[1]}")
