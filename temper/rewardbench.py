"""RewardBench 2 and pairs in LLMBar's form: whether a reward puts the right answers before the wrong ones.

RewardBench 2 (Malik et al. 2025, arXiv:2506.01937) has six subsets. In five a prompt has one right answer and three wrong ones, and
counts where the right one has the highest reward, one over their number where several share it (allenai/reward-bench,
rewardbench/utils.py, reroll_and_score_dataset). In Ties a prompt has many right answers, or one ("tied:3" and "ref:3", the same
prompt but for the answer's being free), and the score is the subset's (process_single_model there), by the rewards of a
prompt's right answers r and of its wrong ones w:

    0.30 · share of tied prompts with min r > max w
  + 0.30 · the same share of the ref prompts
  + 0.20 · share of prompts whose margin min r − max w is larger than the spread max r − min r of the tied answers
  + 0.20 · the same, the margin being the smaller one of the tied and of the ref prompt
  + 0.01 · mean of tanh(that smaller margin / the spread − 1), not a number counting as 0

The benchmark's score is the mean over its subsets. LLMBar (Zeng et al. 2024, arXiv:2310.07641) has an instruction and two outputs,
of which one follows it; its adversarial pairs of kind Neighbor take the other from an instruction close by. `neighbours` makes such
pairs of held-out rows: the reference answer against that of the row which asks most alike and which is wrong here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from temper import calls, intervals, published, spread
from temper.human_labels import Chat
from temper.published import Published
from temper.records import Row

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
TIES = "Ties"
WORD = re.compile(r"\w+")
RESAMPLES = 1000
Margins = Mapping[str, tuple[bool, float, float]]
"""By prompt of Ties: whether every right answer comes before every wrong one, spread of the right, least right − best wrong."""


@dataclass
class Set:
    kind: str
    """rewardbench2, or llmbar."""
    items: Published
    limit: int | None
    """Items, spread over each subset, of Ties by whole prompts; null for all."""


@dataclass(frozen=True)
class Item:
    id: str
    subset: str
    prompt: Chat
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    def chats(self) -> list[Chat]:
        """The prompt with each answer, the right ones first."""
        return [[*self.prompt, {"role": "assistant", "content": text}] for text in (*self.right, *self.wrong)]


@dataclass(frozen=True)
class Scored:
    item: Item
    rewards: tuple[float, ...]
    """Of its chats."""

    @property
    def right(self) -> tuple[float, ...]:
        return self.rewards[: len(self.item.right)]

    @property
    def wrong(self) -> tuple[float, ...]:
        return self.rewards[len(self.item.right) :]

    @property
    def result(self) -> float:
        """1 where the right answer has the highest reward, 1/n where n answers share it, else 0."""
        best = max(self.rewards)
        return 1 / self.rewards.count(best) if self.rewards[0] == best else 0.0


def items(chosen: Set) -> list[Item]:
    """The items of a file; exits naming the row that is none."""
    readers = {"rewardbench2": _rewardbench2, "llmbar": _llmbar}
    if chosen.kind not in readers:
        raise SystemExit(f"conf/rewardbench: kind is '{chosen.kind}': choose {' or '.join(readers)}")
    found: dict[str, list[Item]] = {}
    for number, row in enumerate(published.rows(chosen.items), start=1):
        try:
            item = readers[chosen.kind](row, str(number), chosen.items.name)
        except (KeyError, TypeError, ValueError, IndexError):
            raise SystemExit(
                f"conf/rewardbench: '{chosen.items.name}': row {number} of {chosen.items.file} is none of {chosen.kind}: "
                "correct its kind or its name"
            ) from None
        found.setdefault(item.subset, []).append(item)
    return [item for subset, of in found.items() for item in _spread(subset, of, chosen.limit)]


def _spread(subset: str, of: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items; of Ties whole prompts, one at least, for the tied and the ref item of one are scored together."""
    if subset != TIES:
        return spread.evenly(of, limit)
    prompts: dict[str, list[Item]] = {}
    for item in of:
        prompts.setdefault(_prompt(item), []).append(item)
    count = limit and max(1, limit * len(prompts) // len(of))
    return [item for group in spread.evenly(list(prompts.values()), count) for item in group]


def _prompt(item: Item) -> str:
    """Of Ties: what `tied:3` and `ref:3` share."""
    return item.id.partition(":")[2]


def neighbours(rows: Sequence[Row], limit: int | None, name: str) -> list[Item]:
    """LLMBar-style pairs of rows that ask and answer: a row whose neighbours' answers are all right for it too has none."""
    chosen = spread.evenly(rows, limit)
    words = [set(WORD.findall(_asked(row).lower())) for row in chosen]
    found = []
    for place, row in enumerate(chosen):
        order = sorted(range(len(chosen)), key=lambda other: (-_alike(words[place], words[other]), other))
        others = (_answer(chosen[other]) for other in order if other != place)
        if wrong := next((text for text in others if _is_wrong(text, row)), None):
            found.append(Item(str(row["id"]), name, row["messages"][:-1], (_answer(row),), (wrong,)))
    return found


def summary(scored: Sequence[Scored], confidence: float, seed: int) -> dict[str, float]:
    """`<subset>` with its interval and `_n` of each subset; of RewardBench 2's six together `rewardbench2`, their mean."""
    subsets: dict[str, list[Scored]] = {}
    for one in scored:
        subsets.setdefault(one.item.subset, []).append(one)
    values: dict[str, float] = {}
    for subset, of in sorted(subsets.items()):
        name = key(subset)
        found = ties_summary(name, of, confidence, seed) if subset == TIES else _accuracy(name, of, confidence, seed)
        values |= found | {f"{name}_n": len(of)}
    if set(SUBSETS) <= subsets.keys():
        values["rewardbench2"] = fmean(values[key(subset)] for subset in SUBSETS)
    return values


def key(subset: str) -> str:
    """A subset as metrics name it: `precise_if`."""
    return re.sub(r"\W+", "_", subset.lower()).strip("_")


def ties(scored: Sequence[Scored]) -> float:
    """The score of Ties, by the rule above; 0 for parts that no prompt has."""
    return _ties(*_sides(scored))


def ties_summary(name: str, scored: Sequence[Scored], confidence: float, seed: int) -> dict[str, float]:
    """The score of Ties with its interval, by a bootstrap over prompts, tied and ref together."""
    tied, reference = _sides(scored)
    prompts = sorted(tied.keys() | reference.keys())
    draw, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        drawn = [prompts[place] for place in draw.integers(len(prompts), size=len(prompts))]
        again = [{str(number): of[one] for number, one in enumerate(drawn) if one in of} for of in (tied, reference)]
        found.append(_ties(*again))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail])
    return {name: _ties(tied, reference), f"{name}_low": float(low), f"{name}_high": float(high)}


def _ties(tied: Margins, reference: Margins) -> float:
    score = 0.30 * _share(one[0] for one in tied.values()) + 0.30 * _share(one[0] for one in reference.values())
    both = sorted(tied.keys() & reference.keys())
    if not both:
        return score
    widths, margins = (np.array([tied[name][place] for name in both]) for place in (1, 2))
    least = np.minimum(margins, [reference[name][2] for name in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.nan_to_num(np.tanh(least / widths - 1), nan=0.0)
    shares = 0.20 * (margins > widths).mean() + 0.20 * (least > widths).mean()
    return float(score + shares + 0.01 * gaps.mean())


def _sides(scored: Sequence[Scored]) -> tuple[Margins, Margins]:
    """Margins of the tied and of the ref prompts, by prompt."""
    sides: dict[str, dict[str, tuple[bool, float, float]]] = {"tied": {}, "ref": {}}
    for one in scored:
        kind = "ref" if one.item.id.startswith("ref:") else "tied"
        margin = min(one.right) - max(one.wrong)
        sides[kind][_prompt(one.item)] = (margin > 0, max(one.right) - min(one.right), margin)
    return sides["tied"], sides["ref"]


def _share(outcomes: Iterator[bool]) -> float:
    found = list(outcomes)
    return sum(found) / max(1, len(found))


def _accuracy(name: str, scored: Sequence[Scored], confidence: float, seed: int) -> dict[str, float]:
    results = [one.result for one in scored]
    if set(results) <= {0.0, 1.0}:
        return intervals.rate(name, [result == 1 for result in results], confidence)
    return intervals.mean(name, results, confidence, seed)


def _rewardbench2(row: Row, number: str, name: str) -> Item:
    right, wrong = tuple(map(str, row["chosen"])), tuple(map(str, row["rejected"]))
    if not right or not wrong or isinstance(row["chosen"], str) or row["subset"] not in SUBSETS:
        raise ValueError(number)
    if row["subset"] == TIES and str(row["id"]).partition(":")[0] not in ("ref", "tied"):
        raise ValueError(number)
    return Item(str(row["id"]), row["subset"], [{"role": "user", "content": row["prompt"]}], right, wrong)


def _llmbar(row: Row, number: str, name: str) -> Item:
    outputs, label = [str(row["output_1"]), str(row["output_2"])], int(row["label"])
    right, wrong = outputs if label == 1 else outputs[::-1]
    if label not in (1, 2):
        raise ValueError(number)
    return Item(number, name, [{"role": "user", "content": str(row["input"])}], (right,), (wrong,))


def _asked(row: Row) -> str:
    return str(row["messages"][-2]["content"])


def _answer(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def _is_wrong(text: str, row: Row) -> bool:
    """Whether another row's answer is wrong here: by the verifier where there is a gold call, else by being another text."""
    if "gold" in row:
        return not calls.score(text, row["tools"], row["gold"]).exact
    return text.strip() != _answer(row).strip()


def _alike(one: set[str], other: set[str]) -> float:
    """Jaccard's similarity of two sets of words."""
    return len(one & other) / max(1, len(one | other))
