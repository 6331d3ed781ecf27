"""Preference pairs out of sampled answers: a right one chosen, a wrong one rejected, most frequent first."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

from temper.records import Row


@dataclass(frozen=True)
class Samples:
    """The answers sampled for one row, told apart by the verifier; a text may occur several times."""

    row: Row
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """`all_right` and `all_wrong` hold no contrast of the policy's own; `mixed` does."""
        return "all_wrong" if not self.right else "all_right" if not self.wrong else "mixed"


def judged(row: Row, answers: list[str], is_right: Callable[[str], bool]) -> Samples:
    verdicts = [(text, is_right(text)) for text in answers]
    right, wrong = (tuple(text for text, ok in verdicts if ok is wanted) for wanted in (True, False))
    return Samples(row, right, wrong)


def pairs(samples: Samples, reference: str, limit: int, gold_when_none_right: bool) -> list[Row]:
    """Up to `limit` pairs with distinct rejected answers.

    The policy's most frequent mistake comes first (it has the most probability to give up), ties in order of the text.
    Right answers take turns as the chosen one; where there is none the reference stands in, if it may.
    """
    chosen = by_frequency(samples.right) or ([reference] if gold_when_none_right else [])
    rejected = by_frequency(samples.wrong)[:limit]
    origin = "sample" if samples.right else "reference"
    prompt, name = samples.row["messages"][:-1], samples.row["id"]
    return [
        {
            "id": f"{name}-{number}",
            "category": samples.row["category"],
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
            "chosen_from": origin,
        }
        for number, (good, bad) in enumerate(zip(cycle(chosen), rejected, strict=False))
    ]


def by_frequency(texts: tuple[str, ...]) -> list[str]:
    """Distinct texts, the most frequent first, ties in order of the text."""
    counts = Counter(texts)
    return sorted(counts, key=lambda text: (-counts[text], text))


def summary(every: list[Samples], made: list[Row]) -> dict[str, float]:
    """Counts of prompts by outcome, the pass rate over samples, and mean lengths in characters (a length bias shows there)."""
    outcomes = Counter(samples.outcome for samples in every)
    answers = sum(len(samples.right) + len(samples.wrong) for samples in every)
    distinct = sum(len({*samples.right, *samples.wrong}) for samples in every)
    lengths = {side: [len(pair[side][0]["content"]) for pair in made] for side in ("chosen", "rejected")}
    return {
        **{name: outcomes[name] for name in ("mixed", "all_right", "all_wrong")},
        "samples": answers,
        "duplicates": answers - distinct,
        "pass_rate": sum(len(samples.right) for samples in every) / max(1, answers),
        "pairs": len(made),
        "pairs_with_reference": sum(pair["chosen_from"] == "reference" for pair in made),
        **{f"{side}_mean_characters": fmean(values) if values else 0.0 for side, values in lengths.items()},
    }
