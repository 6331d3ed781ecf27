"""Train a draft head for the release, for vLLM to speculate with: EAGLE-3 by speculators, on the model's own answers.

Reads   models/<release>, data/mix/<prompts>.jsonl
Writes  models/draft (with speculators.yaml), reports/draft/<method>.json, reports/plots/draft.csv
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import checkpoints, curves, draft, launcher, metrics, params, progress, speculators, stage, training, vllm

OUT = Path("models/draft")


@dataclass
class Draft:
    prompts: str
    """The split that they are of: train, preferences or rl."""
    rows: int
    """Of them, drawn by seed; all where there are fewer."""
    max_tokens: int
    """Of an answer."""
    temperature: float
    dtype: str
    """Of answers, hidden states and the trainer's sums."""
    concurrency: int
    """Requests that the server has at a time."""
    layers: int
    """Of the head."""
    vocabulary: int | None
    """Tokens that the head can draft, the most frequent of the answers; null for all of the model's."""
    num_speculative_tokens: int
    """That it learns to draft one after the other, and is served with."""
    sequence_length: int
    """Tokens of rows that are packed into a step; a prompt and its answer must fit."""
    epochs: int
    learning_rate: float
    optimizer: str
    schedule: str
    warmup_ratio: float
    validation: float
    """Share of the rows that are held out."""
    hardware: str
    seed: int


def main() -> None:
    progress.quiet()
    method, release = sys.argv[1:]
    cfg, model, runtime = params.load("draft", Draft), Path("models", release), params.runtime()
    source, processes = Path("data/mix", f"{cfg.prompts}.jsonl"), launcher.processes()
    require(cfg, model, processes)

    chats, left = draft.prompts(source, model, cfg)
    config = speculators.render(cfg, model, draft.shape(model)["num_hidden_layers"])
    speculators.write(config, OUT / "speculators.yaml")

    inputs, threads = [*checkpoints.deps("draft"), OUT / "speculators.yaml"], runtime["threads"]
    with checkpoints.scratch("draft", cfg, inputs, threads=threads, processes=processes) as scratch:
        job = draft.Job(model, cfg, scratch, runtime)
        with draft.timed("answers"):
            rows = draft.answers(job, chats)
        with draft.timed("hidden_states"):
            data = draft.prepared(job)
            hidden = draft.hidden_states(job, data, rows)
        with draft.timed("training"):
            log = draft.train(job, OUT / "speculators.yaml", data, hidden, processes)
        epoch = draft.keep(scratch, OUT)
        curves.write("reports/plots/draft.csv", log, draft.columns(cfg))
        found = draft.summary(cfg, rows, log, epoch) | {"prompts": len(chats), "prompts_too_long": left}
        metrics.write(f"reports/draft/{method}.json", found)


def require(cfg: Draft, model: Path, processes: int) -> None:
    """Refuse what would only fail after minutes of sampling."""
    draft.require(cfg)
    vllm.require_build()
    training.require_context("draft.sequence_length", cfg.sequence_length, model)
    known = draft.shape(model)["vocab_size"]
    if cfg.vocabulary and not 0 < cfg.vocabulary <= known:
        raise SystemExit(
            f"draft.vocabulary is {cfg.vocabulary}, and {model} knows {known} tokens: lower it, or set it to null"
        )
    if cfg.hardware != "cpu":
        training.require_gpu(cfg.hardware)
    elif processes > 1:
        raise SystemExit(
            f"draft: {processes} processes, and speculators trains on one CPU: set hardware.runtime.processes to 1"
        )


if __name__ == "__main__":
    stage.run(main, f"draft/{sys.argv[1]}")
