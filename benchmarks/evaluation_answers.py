"""A model's answers to the test rows under many seeds, each with its scores. Runs in the environment `serve`.

    python -m benchmarks.evaluation_answers MODEL SEEDS FILE

FILE gets a line a row: its id, its gold call, and for each seed exact, valid_json and argument_f1. Temperature is 1.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.evaluate import Evaluate
from temper import answers, calls, params, records
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
    scores = [calls.score(answer.text, row["tools"], row["gold"]) for answer in found]
    told = [{"exact": one.exact, "valid_json": one.valid_json, "argument_f1": 1.0 * one.argument_f1} for one in scores]
    return {"id": row["id"], "gold": row["gold"], "seeds": told}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
