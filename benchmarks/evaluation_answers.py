"""A model's answers to the test rows under many seeds, each with its scores. Runs in the environment `serve`.

    python -m benchmarks.evaluation_answers MODEL SEEDS FILE

FILE gets a line a row: its id, its gold call, and for each seed exact, valid_json and argument_f1. Temperature is 1.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.evaluate import Evaluate
from temper import answers, harness, params, records
from temper.records import Row
from temper.vllm import Answer, Sampling

TEST = Path("data/mix/test.jsonl")


def main(model: Path, seeds: int, file: Path) -> None:
    cfg = params.load("evaluate", Evaluate)
    rows = [row for row in records.read(TEST) if "gold" in row][: cfg.limit]
    sampling = Sampling(seeds, temperature=1.0, top_p=1.0, max_tokens=cfg.max_tokens)
    with TemporaryDirectory() as scratch:
        found = answers.sampled(model, rows, sampling, cfg.dtype, cfg.seed, Path(scratch) / "answers.jsonl")
    records.write(file, (scored(row, of_row) for row, of_row in zip(rows, found, strict=True)))


def scored(row: Row, found: list[Answer]) -> Row:
    """By the scorer of stage `evaluate`."""
    question = {"row": json.dumps(row)}
    return {"id": row["id"], "gold": row["gold"], "seeds": [harness.scored(question, [one.text]) for one in found]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
