"""What the samples of stage `evaluate` amount to: rates with their intervals, by name."""

from collections import Counter
from collections.abc import Sequence

from temper import intervals
from temper.records import Row


def joined(parts: Sequence[Row]) -> Row:
    """All of them; exits naming a metric that two of them have, such as `call_n` of a task named call."""
    values: Row = {}
    for part in parts:
        if shared := sorted(values.keys() & part.keys()):
            raise SystemExit(
                f"evaluate: two metrics are named {shared[0]}: rename the task or the benchmark that has it (conf/evaluate)"
            )
        values |= part
    return values


def summary(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Every rate with its interval: overall, where a call is right, where `null` is, among several tools, and by category.

    A category's name, which is the user's, stands last (`exact_in_low`, `exact_low_in_low`), so that none takes another's place.
    """
    call = [one for one in samples if one["gold"] is not None]
    null = [one for one in samples if one["gold"] is None]
    values: dict[str, float] = {"n": len(samples), "call_n": len(call), "null_n": len(null)}
    several = [one for one in samples if "choose" in one]
    for name in ("exact", "valid_json", "abstain"):
        values |= rate(name, samples, name, confidence)
    values |= rate("call_exact", call, "exact", confidence) | rate("call_abstain", call, "abstain", confidence)
    values |= rate("null_exact", null, "exact", confidence) | rate("null_abstain", null, "abstain", confidence)
    # Of no rows a rate would be 0, which reads as if none were right.
    for name in ("choose", "choose_norm") if several else ():
        values |= {"choose_n": len(several)} | rate(name, several, name, confidence)
    values |= share("argument_f1", samples, "argument_f1", confidence, seed)
    for category, count in Counter(one["category"] for one in samples).items():
        members = [one for one in samples if one["category"] == category]
        found = rate("exact", members, "exact", confidence)
        values |= {f"{name}_in_{category}": value for name, value in ({"n": count} | found).items()}
    return values


def frozen(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """`golden_…`: what the gate compares with the last release."""
    values: dict[str, float] = {"golden_n": len(samples)}
    for name in ("exact", "valid_json"):
        values |= rate(f"golden_{name}", samples, name, confidence)
    return values | share("golden_argument_f1", samples, "argument_f1", confidence, seed)


def perplexity(task: str, likelihoods: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Bits a byte, which compare across tokenizers, and perplexity a token: 2 to the power of its bits (Jelinek et al. 1977)."""
    found = [one for one in likelihoods if one["task"] == task]
    bits, size, tokens = ([one[key] for one in found] for key in ("bits", "bytes", "tokens"))
    values = intervals.ratio(f"{task}_perplexity", bits, tokens, confidence, seed)
    values = {key: 2**value for key, value in values.items()} | {f"{task}_n": len(found)}
    return values | intervals.ratio(f"{task}_bits_per_byte", bits, size, confidence, seed)


def rate(name: str, samples: list[Row], measure: str, confidence: float) -> dict[str, float]:
    return intervals.rate(name, [one[measure] for one in samples], confidence)


def share(name: str, samples: list[Row], measure: str, confidence: float, seed: int) -> dict[str, float]:
    """The mean of scores in [0, 1]: of all or nothing Wilson's interval, for where all are alike a bootstrap finds no spread."""
    scores = [float(one[measure]) for one in samples]
    if set(scores) <= {0.0, 1.0}:
        return intervals.rate(name, [score == 1 for score in scores], confidence)
    return intervals.mean(name, scores, confidence, seed)
