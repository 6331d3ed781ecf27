"""Preference pairs out of what a verifier found right and wrong, or as a row has them; and which of them are to be learned from."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

from temper import intervals, lengths
from temper.records import Row

SIDES = ("chosen", "rejected")
GIVEN = "data"
REMEDIES = {
    "all_right": "raise preferences.temperature or preferences.samples where all are right",
    "all_wrong": "set preferences.gold_when_none_right where all are wrong",
    "not_sampled": "add verifier or judge to preferences.pairs",
    "not_asked_for": "add files to preferences.pairs",
    "not_verifiable": (
        "only rows with a gold call (the verifier tells their answers apart) and rows with chosen and rejected make pairs: "
        "add a source of either in conf/data, or let a judge compare answers (preferences=judge)"
    ),
    "one_answer": "raise preferences.temperature or preferences.samples where answers are alike",
    "cut": "raise preferences.max_tokens where answers are cut",
    "tie": "take a better judge or a clearer preferences.judge.rubric where it sees no difference",
    "invalid_verdict": (
        "take a judge that answers as asked (what it said: data/rejected/preferences.jsonl), or set "
        "preferences.judge.endpoint.extra.response_format to null where the endpoint refuses that field"
    ),
    "no_prompt": "text rows ask nothing, so add a source of prompts in conf/data",
    "unbalanced": "set preferences.balance to false",
    "length_bias": "raise preferences.length.max_share",
    "length_ratio": "raise preferences.length.max_ratio",
    "too_long": "raise dpo.max_length, which preferences.max_length follows",
}
Filter = Callable[[list[Row]], list[Row]]
Sizes = dict[int, int | None]
"""By the id() of a pair; None where the policy's chat template takes no such chat."""
"""From pairs to those of them that stay, in the same order."""


@dataclass
class Length:
    """Limits on a length bias, each null for none; lengths are in characters."""

    max_share: float | None
    """Of pairs with the longer answer chosen, or the shorter, whichever are more: 0.5 leaves as many of either. See `evened`."""
    max_ratio: float | None
    """Of a pair's longer answer to its shorter one."""


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

    def left(self) -> Row:
        """The row as one of which no pair was made."""
        return self.row | {"reason": self.outcome}


def verified(row: Row, answers: list[str], is_right: Callable[[str], bool]) -> Samples:
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
    return [
        pair(samples.row, number, good, bad, origin)
        for number, (good, bad) in enumerate(zip(cycle(chosen), rejected, strict=False))
    ]


def pair(row: Row, number: int, chosen: str, rejected: str, origin: str) -> Row:
    """The pair `number` of two answers to the prompt of a row, whose last turn is no part of it."""
    return {
        "id": f"{row['id']}-{number}",
        "prompt_id": row["id"],
        "category": row["category"],
        "prompt": row["messages"][:-1],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_from": origin,
    }


def given(row: Row) -> Row:
    """The pair that a preference row is."""
    return {
        "id": f"{row['id']}-0",
        "prompt_id": row["id"],
        "category": row["category"],
        "prompt": row["messages"],
        **{side: row[side] for side in SIDES},
        "chosen_from": GIVEN,
    }


def checked(length: Length) -> Length:
    """The limits, if they make sense; exits naming the one that does not."""
    if length.max_share is not None and not 0.5 <= length.max_share < 1:
        raise SystemExit(
            f"preferences.length.max_share is {length.max_share}: choose 0.5 or more and less than 1, or null"
        )
    if length.max_ratio is not None and length.max_ratio < 1:
        raise SystemExit(f"preferences.length.max_ratio is {length.max_ratio}: choose 1 or more, or null")
    return length


def sifted(made: list[Row], sizes: Sizes, limit: int, balance: bool, length: Length) -> tuple[list[Row], list[Row]]:
    """The pairs to learn from, and the others, each with its reason; those that leave first upset no balance.

    TRL would cut what has more than `limit` tokens.
    """
    filters: dict[str, Filter] = {
        "template": lambda found: [pair for pair in found if sizes[id(pair)] is not None],
        "too_long": lambda found: [pair for pair in found if (sizes[id(pair)] or 0) <= limit],
        "duplicate": distinct,
        "contradicted": uncontradicted,
    }
    if balance:
        filters["unbalanced"] = balanced
    if (most := length.max_ratio) is not None:
        filters["length_ratio"] = lambda found: [pair for pair in found if ratio(pair) <= most]
    if (share := length.max_share) is not None:
        filters["length_bias"] = lambda found: evened(found, share)
    dropped = []
    for reason, keep in filters.items():
        kept = keep(made)
        stay = {id(pair) for pair in kept}
        dropped += [pair | {"reason": reason} for pair in made if id(pair) not in stay]
        made = kept
    return made, dropped


def sized(made: list[Row], count: lengths.Count) -> Sizes:
    """Tokens of each pair's prompt with the longer answer."""
    chats = [{"messages": pair["prompt"]} | {side: pair[side] for side in SIDES} for pair in made]
    sizes = [size for batch in lengths.batches(chats) for size in count(batch)]
    return {id(pair): size for pair, size in zip(made, sizes, strict=True)}


def distinct(made: list[Row]) -> list[Row]:
    """The first of the pairs that have prompt and answers in common."""
    first: dict[str, Row] = {}
    for pair in made:
        first.setdefault(identity(pair, *SIDES), pair)
    return list(first.values())


def uncontradicted(made: list[Row]) -> list[Row]:
    """The pairs but those of which another has the same prompt and the same answers the other way round: a tie."""
    found = {identity(pair, *SIDES) for pair in made}
    return [pair for pair in made if identity(pair, "rejected", "chosen") not in found]


def identity(pair: Row, *sides: str) -> str:
    return json.dumps([pair["prompt"], *(answer(pair, side) for side in sides)])


def balanced(made: list[Row]) -> list[Row]:
    """The pairs, of which an answer chosen for some prompts and rejected for others is in as many of either kind.

    Such an answer (`null`, a label, "I don't know") would otherwise be learned or unlearned whatever the prompt is. Of the
    commoner kind the first pairs stay. Pairs of the data are neither counted nor dropped.
    """
    own = [pair for pair in made if pair["chosen_from"] != GIVEN]
    counts = {side: Counter(answer(pair, side) for pair in own) for side in SIDES}
    shared = counts["chosen"].keys() & counts["rejected"].keys()
    room = {side: {text: min(counts[side][text] for side in SIDES) for text in shared} for side in SIDES}
    kept = []
    for pair in made:
        taken = [(side, answer(pair, side)) for side in SIDES if answer(pair, side) in shared]
        if pair["chosen_from"] == GIVEN:
            kept.append(pair)
        elif all(room[side][text] for side, text in taken):
            kept.append(pair)
            for side, text in taken:
                room[side][text] -= 1
    # A pair of two such answers leaves for one of them and is missing for the other.
    return kept if len(kept) == len(made) else balanced(kept)


def evened(made: list[Row], most: float) -> list[Row]:
    """The pairs, of which at most the share `most` has the longer answer chosen, and at most that share the shorter.

    That holds within each octave of the difference in length (1, 2 or 3, 4 to 7, … characters), so that neither which answer is
    the longer one nor by how much tells which is chosen. Of the commoner direction the pairs stay whose ids, which are hashes,
    come first.
    """
    counts = Counter((octave(pair), excess(pair) > 0) for pair in made)
    room = {
        # Without the addend 0.6 / 0.4 × 2 would be less than 3.
        (size, is_longer): math.floor(counts[size, not is_longer] * most / (1 - most) + 1e-9)
        for size, is_longer in counts
    }
    stay = set()
    for pair in sorted(made, key=lambda pair: str(pair["id"])):
        of = (octave(pair), excess(pair) > 0)
        if not excess(pair) or room[of]:
            stay.add(id(pair))
            room[of] -= 1
    return [pair for pair in made if id(pair) in stay]


def octave(pair: Row) -> int:
    """⌊log₂⌋ of the difference in length plus 1; 0 for answers of one length."""
    return abs(excess(pair)).bit_length()


def excess(pair: Row) -> int:
    """Characters that the chosen answer has more than the rejected one."""
    return len(answer(pair, "chosen")) - len(answer(pair, "rejected"))


def ratio(pair: Row) -> float:
    """Of the longer answer to the shorter one, in characters; an empty one counts as one character."""
    shorter, longer = sorted(max(1, len(answer(pair, side))) for side in SIDES)
    return longer / shorter


def answer(pair: Row, side: str) -> str:
    return str(pair[side][0]["content"])


def by_frequency(texts: tuple[str, ...]) -> list[str]:
    """Distinct texts, the most frequent first, ties in order of the text."""
    counts = Counter(texts)
    return sorted(counts, key=lambda text: (-counts[text], text))


def nothing(prompts: int, dropped: list[Row]) -> str:
    """The error for a run without a pair: what became of the prompts, and what to change."""
    reasons = Counter(row["reason"] for row in dropped)
    found = ", ".join(f"{reasons[name]} {name.replace('_', ' ')}" for name in sorted(reasons))
    remedies = (
        "; ".join(remedy for reason, remedy in REMEDIES.items() if reason in reasons) or "add sources in conf/data"
    )
    said = next((f" ({row['detail']})" for row in dropped if row.get("detail")), "")
    return f"preferences: no pair out of {prompts} prompts ({found}): {remedies}{said}"


def funnel(kept: list[Row], dropped: list[Row]) -> dict[str, int]:
    """Pairs made and prompts of which none was made: seen, kept, and rejected by reason."""
    reasons = Counter(f"rejected_{row['reason']}" for row in dropped)
    prompts = len({pair["prompt_id"] for pair in kept})
    return {"seen": len(kept) + len(dropped), "kept": len(kept), "prompts_with_pairs": prompts, **reasons}


def summary(every: list[Samples]) -> dict[str, float]:
    """Counts of verified prompts by outcome, and the pass rate over samples."""
    outcomes = Counter(samples.outcome for samples in every)
    answers = sum(len(samples.right) + len(samples.wrong) for samples in every)
    distinct = sum(len({*samples.right, *samples.wrong}) for samples in every)
    return {
        **{name: outcomes[name] for name in ("mixed", "all_right", "all_wrong")},
        "samples": answers,
        "duplicates": answers - distinct,
        "pass_rate": sum(len(samples.right) for samples in every) / max(1, answers),
    }


def composition(made: list[Row], confidence: float) -> dict[str, float]:
    """Pairs by origin, mean lengths in characters, and how often the longer answer is the chosen one, where one is longer."""
    lengths = {side: [len(answer(pair, side)) for pair in made] for side in SIDES}
    unequal = [excess(pair) > 0 for pair in made if excess(pair)]
    return {
        "pairs": len(made),
        "pairs_given": sum(pair["chosen_from"] == GIVEN for pair in made),
        "pairs_with_reference": sum(pair["chosen_from"] == "reference" for pair in made),
        "pairs_judged": sum(pair["chosen_from"] == "judge" for pair in made),
        "pairs_of_equal_length": len(made) - len(unequal),
        **{f"mean_characters_{side}": fmean(values) if values else 0.0 for side, values in lengths.items()},
        **intervals.rate("longer_chosen", unequal, confidence),
    }
