"""Measure a draft in vLLM: accepted tokens by position on the domain and on general text, beside n-gram lookup; are answers kept?

Reads   models/<release>, models/draft, data/mix/test.jsonl, data/general.jsonl
Writes  reports/speculation/<method>.json
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from temper import greedy, metrics, params, progress, record, records, speculation, stage, vllm
from temper.vllm import Chat

TEST, GENERAL, HEAD = Path("data/mix/test.jsonl"), Path("data/general.jsonl"), Path("models/draft")
DOMAIN, GENERIC = "domain", "generic"


@dataclass
class Speculation:
    dtype: str
    domain: int
    """Rows of the test split; all where there are fewer."""
    generic: int
    """Passages of general text."""
    max_tokens: int
    """Of an answer."""
    num_speculative_tokens: int
    """That the head drafts at a time."""
    ngram: speculation.Ngram
    seed: int


def main() -> None:
    progress.quiet()
    method, release = sys.argv[1:]
    cfg, model = params.load("speculation", Speculation), Path("models", release)
    vllm.require_build()
    configs = {
        method: speculation.eagle3(HEAD, cfg.num_speculative_tokens),
        speculation.NGRAM: speculation.ngram(cfg.ngram),
    }
    sets = {DOMAIN: domain(cfg), GENERIC: generic(cfg)}

    def answered(config: dict[str, object] | None) -> dict[str, greedy.Answers]:
        return greedy.answers(model, sets, cfg.max_tokens, cfg.dtype, cfg.seed, config)

    plain = answered(None)
    found: dict[str, float] = {}
    for name, config in configs.items():
        for text, (made, counted) in answered(config).items():
            prefix, ids = f"{name}_{text}_", [answer.ids for answer in made]
            found |= speculation.acceptance(counted, prefix)
            found |= speculation.lossless(plain[text].greedy, ids, speculation.TIES[cfg.dtype], prefix)
        found |= speculation.contrast(found, name, DOMAIN, GENERIC)
        print(f"{name}: {found[f'{name}_{DOMAIN}_tokens_per_step']:.2f} tokens a step on the domain", flush=True)
    beaten = found[f"{method}_{DOMAIN}_tokens_per_step"] > found[f"{speculation.NGRAM}_{DOMAIN}_tokens_per_step"]
    metrics.write(f"reports/speculation/{method}.json", found | {"beats_ngram": beaten})


def domain(cfg: Speculation) -> list[Chat]:
    """Prompts like those that the model is for, which neither it nor the head was trained on."""
    rows = [row for row in records.read(TEST) if record.kind(row) in ("call", "chat")]
    return [row["messages"][:-1] for row in drawn(rows, cfg.domain, cfg.seed, TEST)]


def generic(cfg: Speculation) -> list[Chat]:
    """Passages of general text, each as what somebody says."""
    rows = drawn(list(records.read(GENERAL)), cfg.generic, cfg.seed, GENERAL)
    return [[{"role": "user", "content": row["text"]}] for row in rows]


def drawn(rows: list[records.Row], count: int, seed: int, place: Path) -> list[records.Row]:
    if not rows or count < 1:
        raise SystemExit(
            f"{place}: {len(rows)} rows of which to ask {count}: both must be 1 or more, see conf/speculation"
        )
    return random.Random(seed).sample(rows, min(count, len(rows)))


if __name__ == "__main__":
    stage.run(main, f"speculation/{sys.argv[1]}")
