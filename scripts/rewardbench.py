"""How well a reward tells right answers from wrong ones: the reward model's, or the one that DPO left implicit in its policy.

Reads   models/<scorer>, models/<rewardbench.reference> (what DPO started from), data/mix/test.jsonl, files of rewardbench.sets
Writes  data/rewardbench/<scorer>.jsonl (items with their rewards), reports/rewardbench/<scorer>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import metrics, params, published, record, records, reward_scores, rewardbench, stage, training
from temper.records import Row
from temper.reward_scores import Scorer
from temper.rewardbench import Item, Scored, Set

TEST = Path("data/mix/test.jsonl")
NEIGHBOURS = "neighbours"


@dataclass
class Rewardbench:
    sets: list[Set]
    neighbours: int | None
    """Rows of the test split that make LLMBar-style pairs; null for all, 0 for none."""
    reference: str
    """The model that DPO started from, whose likelihoods its implicit reward is measured against."""
    max_length: int
    """Tokens of prompt and answer; an item with a longer one is left out."""
    micro_batch: int
    confidence: float
    seed: int


def main() -> None:
    name, cfg = sys.argv[1], params.load("rewardbench", Rewardbench)
    training.prepare()
    scorer = scorer_of(name, cfg)
    found, values = asked(cfg)

    chats = [item.chats() for item in found]
    rewards = iter(reward_scores.scored(scorer, [chat for of in chats for chat in of]))
    each = [(item, [next(rewards) for _ in of]) for item, of in zip(found, chats, strict=True)]
    whole = [Scored(item, tuple(of)) for item, of in each if None not in of]  # type: ignore[arg-type]

    records.write(f"data/rewardbench/{name}.jsonl", map(shown, whole))
    values |= {"reward": "implicit" if scorer.is_implicit else "model", "too_long": len(found) - len(whole)}
    values |= rewardbench.summary(whole, cfg.confidence, cfg.seed)
    metrics.write(f"reports/rewardbench/{name}.json", values)


def scorer_of(name: str, cfg: Rewardbench) -> Scorer:
    folder = Path("models") / name
    if name == "reward":
        return reward_scores.reward(folder, cfg.max_length, cfg.micro_batch)
    scorer = reward_scores.implicit(folder, cfg.max_length, cfg.micro_batch)
    if scorer.reference not in (None, f"models/{cfg.reference}"):
        raise SystemExit(
            f"rewardbench.reference is '{cfg.reference}', and {folder} was trained from {scorer.reference}: correct it in "
            "conf/rewardbench, or DVC would not see that model change"
        )
    return scorer


def asked(cfg: Rewardbench) -> tuple[list[Item], Row]:
    """The items of all sets, and which set is measured on what."""
    found: list[Item] = []
    values: Row = {}
    if cfg.neighbours != 0:
        rows = [row for row in records.read(TEST) if record.kind(row) in ("call", "chat")]
        found += rewardbench.neighbours(rows, cfg.neighbours, NEIGHBOURS)
    for one in cfg.sets:
        why = published.missing(one.items)
        values[f"set_{one.items.name}"] = why or one.items.file
        found += [] if why else rewardbench.items(one)
    if not found:
        raise SystemExit(
            f"rewardbench: nothing to score: {TEST} has no two rows with different answers, and no file of rewardbench.sets is "
            "there: raise split.test, or download one (conf/rewardbench)"
        )
    return found, values


def shown(one: Scored) -> Row:
    item = one.item
    answers = {"right": list(item.right), "wrong": list(item.wrong)}
    return {"id": item.id, "subset": item.subset, "prompt": item.prompt, **answers, "rewards": list(one.rewards)}


if __name__ == "__main__":
    stage.run(main, f"rewardbench/{sys.argv[1]}")
