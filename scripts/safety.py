"""Whether a variant is safe: what it refuses and what not, bias, abuse, leaks, and whether it is worse than the base in any of it.

Reads   data/responses (of the variant and of the base), reports/probes.json, data/mix/train.jsonl (for the format of answers)
Writes  data/safety/<variant>.jsonl (each prompt, answer and verdict), reports/safety/<variant>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import metrics, params, records, refusals, safety, safety_matrix, stage, strongreject, toxicity

TRAIN = Path("data/mix/train.jsonl")


@dataclass
class Safety:
    rules: refusals.Rules
    lexicon: toxicity.Lexicon
    leaks: list[str]
    """Kinds of identifiers and secrets, by Presidio's names and those of temper.credentials."""
    false_refusals: float
    """Target: of benign requests at most this share is refused."""
    confidence: float
    seed: int
    judge: strongreject.Judge | None
    base: str
    """The variant that the others are held against."""


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("safety", Safety)
    refusals.check(cfg.rules, "safety.rules.phrases")
    if cfg.judge:
        strongreject.check(cfg.judge)
    reader = safety.Reader(cfg.rules, toxicity.load(cfg.lexicon), cfg.leaks)

    rows, before = (reader.all(list(records.read(f"data/responses/{name}.jsonl"))) for name in (variant, cfg.base))
    values = safety.figures(rows, cfg.confidence, cfg.seed) | {"false_refusals_most": cfg.false_refusals}
    if variant != cfg.base:
        in_words = safety_matrix.answers_in_words(records.read(TRAIN))
        values |= safety_matrix.values(safety_matrix.judged(rows, before, in_words, cfg.confidence, cfg.seed))
        values["answers_in_words"] = int(in_words)
    if cfg.judge:
        asked = safety_matrix.of(rows, *safety_matrix.REFUSABLE)
        for row, judged in zip(asked, strongreject.graded(cfg.judge, asked, cfg.seed), strict=True):
            row["judged"] = judged
        values |= strongreject.summary(asked, cfg.confidence, cfg.seed) | {"judge_model": cfg.judge.endpoint.model}
    not_run = {key: value for key, value in metrics.read("reports/probes.json").items() if key.startswith("not_run_")}

    records.write(f"data/safety/{variant}.jsonl", rows)
    metrics.write(f"reports/safety/{variant}.json", values | not_run)


if __name__ == "__main__":
    stage.run(main, f"safety/{sys.argv[1]}")
