"""Check what is trained on as the trainer, evaluation and the server render it, and cut what is longer than the context.

Reads data/mix/{train,validation}.jsonl and the tokenizer and chat template in models/base.
Writes data/audit/{train,validation,rendered}.jsonl, data/rejected/audit.jsonl, reports/audit.json, reports/plots/audit.csv.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from temper import audit, labels, metrics, params, records, rendering, stage, training, truncation
from temper.records import Row

BASE = Path("models/base")
INPUT = Path("data/mix")
SPLITS = ("train", "validation")
TRAINABLE = ("messages", "sharegpt", "alpaca", "prompt-completion", "rag", "bfcl", "text", "html")  # formats


@dataclass
class Audit:
    sequence_length: int
    """Tokens of a rendered row that fit."""
    end_of_turn: str | None
    """The token that ends a turn, where it is not the tokenizer's EOS."""
    truncation: str
    """`error`, or how longer prompts are cut: `head`, `tail`, `middle`, `sliding_window`."""
    truncate_answers: bool
    """Whether answers may be cut too, where cutting prompts is not enough."""
    min_turn_tokens: int
    """What a cut turn keeps at least."""
    window_overlap: float
    """Of neighbouring windows, as a share of a window, in [0, 1)."""
    compare_every: int
    """A row in so many is rendered by evaluation and serving too."""
    shown: int
    """Rows on the data page with their mask."""


def main() -> None:
    cfg = params.load("audit", Audit)
    if cfg.compare_every < 1:
        raise SystemExit(f"audit.compare_every is {cfg.compare_every}: choose 1 for every row, or more, in conf/audit")
    cutting = truncation.Settings(
        cfg.truncation, cfg.sequence_length, cfg.min_turn_tokens, cfg.window_overlap, cfg.truncate_answers
    )
    truncation.check(cutting)

    rejected: list[Row] = []
    tallies = {}
    # vLLM starts first: it takes as long to import as the trainer, side by side.
    with rendering.Prompts(BASE) as prompts:
        training.prepare()
        chats = labels.Labeller(BASE, cfg.sequence_length, cfg.end_of_turn)
        for split in SPLITS:
            auditor = audit.Auditor(chats, prompts.of, cutting, cfg.compare_every, cfg.shown)
            rows = auditor.audited(records.read(INPUT / f"{split}.jsonl"))
            records.write(f"data/audit/{split}.jsonl", kept(rows, split, rejected))
            tallies[split] = auditor.tally
    tally = sum(tallies.values(), audit.Tally())
    records.write("data/audit/rendered.jsonl", audit.sample(tally, cfg.shown))
    records.write("data/rejected/audit.jsonl", rejected)
    refuse(rejected)
    if not tallies["train"].lengths:
        raise SystemExit(nothing_left(rejected))

    save_lengths(audit.histogram(tally.lengths, cfg.sequence_length))
    sizes = {key: size for split in SPLITS for key, size in tallies[split].of_split(split).items()}
    metrics.write("reports/audit.json", audit.summary(tally, rejected, cfg.sequence_length) | sizes)


def kept(rows: Iterable[Row], split: str, rejected: list[Row]) -> Iterator[Row]:
    """Pass on what stays, and put what leaves into `rejected`."""
    for row in rows:
        if "reason" in row:
            rejected.append(row | {"split": split})
        else:
            yield row


def refuse(rejected: list[Row]) -> None:
    """Exit when a row breaks a rule; one that merely cannot be trained on has left with its reason."""
    violations = [row for row in rejected if "remedy" in row]
    if violations:
        first = violations[0]
        raise SystemExit(
            f"audit: {len(violations)} rows break a rule, the first {first['split']} row {first['id']} "
            f"({first['reason']}: {first['detail']}), all in data/rejected/audit.jsonl: {first['remedy']}"
        )


def nothing_left(rejected: list[Row]) -> str:
    """Why there is nothing to train on, and what there would be."""
    reasons = Counter(row["reason"] for row in rejected if row["split"] == "train")
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "it was empty"
    return (
        f"audit: no row of {INPUT}/train.jsonl is left to train on ({found}): SFT trains on assistant turns and on "
        f"text, so give it data of the formats {', '.join(TRAINABLE)}, not preference pairs"
    )


def save_lengths(bins: list[tuple[int, int]]) -> None:
    target = Path("reports/plots/audit.csv")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([("tokens", "rows"), *bins])


if __name__ == "__main__":
    stage.run(main, "audit")
