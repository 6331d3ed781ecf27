"""What the model card and the report say about safety, put into words and rows from reports/."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from temper.refusals import ABSTAINED, ANSWERED, REFUSED
from temper.results import Results

Percent = Callable[[tuple[float, float, float]], str]
Values = dict[str, Any]
GUARDS = {
    "lexical": "list of phrases",
    "offline": "offline guard",
    "both": "both together",
    "asked": "guard model behind an endpoint",
}
# Each measure of `safety`, for a reader.
LABELS = {
    "refusals": "harmful requests not answered",
    "harmful": "… asked directly",
    "jailbreak": "… inside a jailbreak",
    "privacy": "requests for private information not answered",
    "served": "benign requests not refused in words",
    "helped": "benign requests answered: neither refused nor `null`",
    "clean": "answers without an abusive word",
    "discreet": "answers without an identifier or secret of their own",
}
# Those that are drawn, in few words.
CHARTED = {
    "harmful": "harmful: not answered",
    "jailbreak": "jailbreak: not answered",
    "privacy": "private: not answered",
    "served": "benign: not refused",
    "clean": "all: no abuse",
}

PRONOUNS = {"he": "male", "she": "female", "they": "neutral"}
FORMAT = ", as the format of calls has it, which is all that this model was trained on: it is held against nothing"


@dataclass(frozen=True)
class Section:
    variants: list[str]
    """The base, and the release where it is another."""
    rates: list[tuple[str, int, list[str], str]]
    """(measure, n, a cell for each variant, the release's verdict against the base)."""
    kinds: list[tuple[str, int, list[str]]]
    """(set, n, the release's share refused in words, not answered, answered)."""
    said: list[str]
    """Sentences: false refusals, bias, leaks, the judge."""
    not_run: list[str]
    """Sets that no file was named for."""
    guards: list[tuple[str, list[str]]]
    """(guard, its recall, precision and false positives, each with of how many)."""
    guard_sets: list[tuple[str, str, int, list[str]]]
    """(set, what is counted in it, n, a cell for each of `guard_columns`)."""
    guard_columns: list[str]
    unseen: str
    """The share of benign prompts of other kinds than those that the offline guard was trained on that it blocks."""


def read(results: Results, percent: Percent) -> Section:
    """The section of a run whose release was asked."""
    variants = list(dict.fromkeys([results.variants[0], results.recipe.release]))
    found = [results.stages[f"safety/{variant}"] for variant in variants]
    release, guard = found[-1], results.stages["guard"]
    columns = [name for name in GUARDS if f"{name}_recall" in guard]
    return Section(
        variants,
        [row for name in LABELS if (row := _rate(name, found, percent))],
        [_kinds(name, release, percent) for name in _sets(release, "set_", "_n")],
        list(_sentences(release, percent)),
        [key.removeprefix("not_run_") for key in sorted(release) if key.startswith("not_run_")],
        [(_guard(name, guard), list(_summary(name, guard, percent))) for name in columns],
        [_guarded(name, guard, columns, percent) for name in _sets(guard, "n_", "")],
        [_guard(name, guard) for name in columns],
        f"{_cell(guard, 'offline_unseen_false_positives', percent)} of {_prompts(guard, 'false_positives')}",
    )


def charted(results: Results) -> dict[str, dict[str, tuple[float, float, float]]]:
    """(value, low, high) by measure, by variant, of what both were asked; nothing where that is nothing."""
    variants = dict.fromkeys([results.variants[0], results.recipe.release])
    values = {variant: results.stages[f"safety/{variant}"] for variant in variants}
    names = [name for name in CHARTED if all(name in found for found in values.values())]
    if not names:
        return {}
    return {variant: {CHARTED[name]: _interval(found, name) for name in names} for variant, found in values.items()}


def _rate(name: str, found: list[Values], percent: Percent) -> tuple[str, int, list[str], str] | None:
    if any(name not in values for values in found):
        return None
    cells = [_cell(values, name, percent) for values in found]
    return LABELS[name], found[-1][f"{name}_n"], cells, _told(found[-1], f"{name}_over_base")


def _told(values: Values, key: str) -> str:
    """`no difference: +1.2 (-3.0 to 5.1), p = 0.710`, in points; nothing where there is none, as of the base itself."""
    if key not in values:
        return ""
    value, low, high = (100 * part for part in _interval(values, key))
    p = "p < 0.001" if values[f"{key}_p"] < 0.001 else f"p = {values[f'{key}_p']:.3f}"
    return f"{values[f'{key}_verdict']}: {value:+.1f} ({low:+.1f} to {high:+.1f}), {p}"


def _kinds(name: str, values: Values, percent: Percent) -> tuple[str, int, list[str]]:
    cells = [_cell(values, f"set_{name}_{verdict}", percent) for verdict in (REFUSED, ABSTAINED, ANSWERED)]
    return name, values[f"set_{name}_n"], cells


def _guard(name: str, values: Values) -> str:
    """An endpoint is asked about a sample, of which the report has no more than the size."""
    return GUARDS[name] + (f" ({values[f'{name}_n']} prompts in all)" if f"{name}_n" in values else "")


def _summary(name: str, values: Values, percent: Percent) -> Iterator[str]:
    """Recall, precision and false positives of a guard over all sets."""
    for what in ("recall", "precision", "false_positives"):
        cell = _cell(values, f"{name}_{what}", percent)
        if what == "precision":
            yield f"{cell} of {values[f'{name}_blocked']}"
        else:
            yield cell if f"{name}_n" in values else f"{cell} of {_prompts(values, what)}"


def _prompts(values: Values, what: str) -> int:
    """Of the sets whose recall or false positives guards were measured by."""
    return sum(values[f"n_{name}"] for name in _sets(values, "n_", "") if f"offline_{name}_{what}" in values)


def _guarded(name: str, values: Values, columns: list[str], percent: Percent) -> tuple[str, str, int, list[str]]:
    what = "recall" if f"{columns[0]}_{name}_recall" in values else "false_positives"
    keys = [f"{column}_{name}_{what}" for column in columns]
    # An endpoint is asked about a sample, which may have nothing of a set.
    cells = [_cell(values, key, percent) if key in values else "" for key in keys]
    return name, what.replace("_", " "), values[f"n_{name}"], cells


def _sentences(values: Values, percent: Percent) -> Iterator[str]:
    if values["false_refusals_n"]:
        within = "within" if values["false_refusals"] <= values["false_refusals_most"] else "over"
        yield (
            f"Benign requests refused in words: {_cell(values, 'false_refusals', percent)} of {values['false_refusals_n']}, "
            f"{within} the target of {values['false_refusals_most']:.0%} at most."
        )
        yield (
            "Benign requests that got neither a refusal nor help (`null`, nothing, a call though no tool was on offer): "
            f"{_cell(values, 'benign_abstained', percent)} of {values['benign_n']}"
            f"{FORMAT if values.get('answers_in_words') == 0 else ''}."
        )
    if "strongreject" in values:
        score, low, high = _interval(values, "strongreject")
        yield (
            f"StrongREJECT's rubric by {values['judge_model']}: {score:.2f} ({low:.2f}–{high:.2f}) of 1 over "
            f"{values['strongreject_n']} answers; it agrees with the rules on {_cell(values, 'rules_agree', percent)}."
        )
    yield from _bias(values, percent)
    yield from _leaks(values, percent)


def _bias(values: Values, percent: Percent) -> Iterator[str]:
    if values["bbq_n"]:
        parts = [
            f"{_cell(values, f'bbq_{name}_accuracy', percent)} right and a bias score of {values[f'bbq_{name}_bias']:+.2f} "
            f"({values[f'bbq_{name}_bias_low']:+.2f} to {values[f'bbq_{name}_bias_high']:+.2f}) {where}, "
            f"n = {values[f'bbq_{name}_n']}"
            for name, where in (("ambiguous", "where the text does not say"), ("disambiguated", "where it does"))
        ]
        yield f"BBQ, {values['bbq_n']} questions, by the likeliest answer: {'; '.join(parts)}. Above 0 follows the stereotype."
    if values["winogender_n"]:
        by = [f"{word} {_cell(values, f'winogender_{gender}_accuracy', percent)}" for word, gender in PRONOUNS.items()]
        yield (
            f"Winogender, {values['winogender_n']} sentences, by the likelier referent: "
            f"{_cell(values, 'winogender_accuracy', percent)} right "
            f"({', '.join(by)}); he and she answered alike in "
            f"{_cell(values, 'winogender_parity', percent)} of {values['winogender_pairs']} pairs."
        )


def _leaks(values: Values, percent: Percent) -> Iterator[str]:
    if values["verbatim_trained_n"] and values["verbatim_held_out_n"]:
        yield (
            f"Rows continued word for word: {_cell(values, 'verbatim_trained', percent)} of {values['verbatim_trained_n']} trained "
            f"ones, {_cell(values, 'verbatim_held_out', percent)} of {values['verbatim_held_out_n']} held-out ones; "
            f"{_told(values, 'verbatim_more')} (Fisher's exact test)."
        )
    if values["canaries_n"]:
        yield (
            f"Canaries: {values['canaries_n']} planted, exposure {values['exposure_fitted_mean']:.1f} bits on average, "
            f"{values['exposure_fitted_most']:.1f} at most (about 1 where a secret is not known), without an interval."
        )
    else:
        yield "Canaries: none was planted (`make canaries`), so exposure was not measured."


def _sets(values: Values, before: str, after: str) -> list[str]:
    """What stands between `before` and `after` in keys, in order."""
    keys = (key for key in sorted(values) if key.startswith(before) and key.endswith(after))
    return [key.removeprefix(before).removesuffix(after) if after else key.removeprefix(before) for key in keys]


def _cell(values: Values, key: str, percent: Percent) -> str:
    return percent(_interval(values, key))


def _interval(values: Values, key: str) -> tuple[float, float, float]:
    return values[key], values[f"{key}_low"], values[f"{key}_high"]
