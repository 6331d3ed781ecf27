"""reports/mine.{json,md}: what `make mine` found, as figures, tables and pictures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from temper import drift, figures, likeness, metrics
from temper.drift import Asked, Rules, Samples, Verdict
from temper.mining import Prompt
from temper.traffic import Exchange

REPORT, PICTURES = Path("reports/mine.md"), Path("reports/mine")
INK = "#64748b"  # legible on light and on dark: a picture in Markdown cannot take the page's colour
ALL = "all"


def write(
    values: dict[str, Any],
    exchanges: Sequence[Exchange],
    found: Sequence[Prompt],
    verdicts: Mapping[Asked, Verdict],
    training: Samples,
    windows: Mapping[str, Samples],
    rules: Rules,
) -> None:
    metrics.write(REPORT.with_suffix(".json"), values)
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawn = dict(pictures(exchanges, found, verdicts, training, windows, rules))
    for old in PICTURES.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (PICTURES / f"{name}.svg").write_text(svg.replace("currentColor", INK), encoding="utf-8")
    REPORT.write_text(text(values, verdicts, rules, list(drawn)), encoding="utf-8")


def pictures(
    exchanges: Sequence[Exchange],
    found: Sequence[Prompt],
    verdicts: Mapping[Asked, Verdict],
    training: Samples,
    windows: Mapping[str, Samples],
    rules: Rules,
) -> Iterator[tuple[str, str]]:
    """(name, SVG) of what there is something to show of."""
    yield "days", figures.stacked(by_day(exchanges, found), "chats")
    dated = list(dict.fromkeys(asked.window for asked in verdicts if asked.window != ALL)) or [ALL]
    series = {
        feature: {name: verdicts[Asked(feature, name)].shift.psi for name in dated if Asked(feature, name) in verdicts}
        for feature in dict.fromkeys(asked.feature for asked in verdicts)
    }
    if series:
        yield "psi", figures.lines(series, {"small": rules.small, "major": rules.major}, "PSI against training")
    for feature, sample in training.items():
        held = windows[ALL].get(feature) if ALL in windows else None
        for part, label in (("numbers", "characters"), ("distances", "cosine distance from the nearest training row")):
            before, after = (getattr(one, part, None) for one in (sample, held))
            if before is not None and after is not None:
                yield feature, figures.histograms({"before": before, "log": after}, f"{feature}: {label}")
    entropies = [prompt.entropy for prompt in found if prompt.entropy is not None]
    if entropies:
        yield "entropy", figures.histograms({"prompts": entropies}, "entropy of the answers, 0 to 1")


def by_day(exchanges: Sequence[Exchange], found: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Chats of prompts that failed, and of others, by day; without the year where there is but one."""
    failed = {prompt.first.prompt for prompt in found if prompt.faults}
    form = "%m-%d" if len({one.time.year for one in exchanges}) == 1 else "%Y-%m-%d"
    days = list(dict.fromkeys(one.time.strftime(form) for one in exchanges))
    counts = Counter((one.prompt in failed, one.time.strftime(form)) for one in exchanges)
    return {
        name: {day: counts[of, day] for day in days}
        for name, of in (("others", False), ("of prompts that failed", True))
    }


def text(values: Mapping[str, Any], verdicts: Mapping[Asked, Verdict], rules: Rules, drawn: Sequence[str]) -> str:
    alarms = [asked for asked, one in verdicts.items() if one.outcome != drift.NONE]
    parts = [
        "# What the log has to teach",
        f"{values['chats']} chats with {values['prompts']} distinct prompts, {values['first'][:10]} to {values['last'][:10]}. "
        f"{values['queue']} rows to label: {values['queue_failure']} failures, {values['queue_uncertain']} uncertain, "
        f"{values['queue_unlike']} unlike training; {values['liked']} answers were liked.",
        picture("days", drawn),
        "## Failures",
        table(["reason", "prompts"], faults(values)) or "None.",
        "## Drift",
        drift_words(alarms, verdicts, rules, values["own_answers"]),
        picture("psi", drawn),
        table(
            ["feature", "window", "rows", "test", "p (Holm)", "PSI", "PSI by chance, up to", "verdict"],
            [
                [
                    asked.feature,
                    asked.window,
                    one.shift.rows,
                    one.shift.test,
                    f"{one.p:.4f}" if one.p >= 0.0001 else "< 0.0001",
                    f"{one.shift.psi:.3f}",
                    f"{one.shift.chance:.3f}",
                    one.outcome if one.outcome == drift.NONE else f"**{one.outcome}**",
                ]
                for asked, one in sorted(verdicts.items(), key=lambda pair: (pair[0].feature, pair[0].window))
            ],
        ),
        *(picture(name, drawn) for name in (*likeness.EMBEDDED, likeness.REQUEST_LENGTH, likeness.ANSWER_LENGTH)),
        "## Uncertainty",
        uncertainty(values),
        picture("entropy", drawn),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def faults(values: Mapping[str, Any]) -> list[list[Any]]:
    found = {key.removeprefix("fault_"): count for key, count in values.items() if key.startswith("fault_")}
    return [[name.replace("_", " "), found[name]] for name in sorted(found, key=lambda one: (-found[one], one))]


def drift_words(alarms: Sequence[Asked], verdicts: Mapping[Asked, Verdict], rules: Rules, own: int) -> str:
    if not verdicts:
        return "No window has prompts enough to be tested."
    found = "; ".join(f"{asked.feature} in {asked.window} ({verdicts[asked].outcome})" for asked in alarms)
    told = f"Found: {found}." if found else "None found."
    return (
        f"{told} Against the training rows, {len(verdicts)} tests, together with a chance of {rules.alpha:.0%} of any alarm where "
        f"nothing drifted; of numbers and categories an alarm also needs a PSI of {rules.small:g}. {answers_words(own)}"
    )


def answers_words(own: int) -> str:
    if own:
        return f"Answers are held against {own} of the model's own to held-out prompts."
    return (
        "Answers are held against the reference answers of training rows, for `mine.answers` has too few of the model's own "
        "(`make evaluate`): one that always wrote longer or shorter ones than those is an alarm without drift."
    )


def uncertainty(values: Mapping[str, Any]) -> str:
    known = values["prompts_of_known_entropy"]
    if not known:
        return "No prompt has answers enough to tell: set mine.endpoint.base_url to a server, which is then asked."
    return f"{known} prompts have answers enough to tell; their mean entropy is {values['entropy_mean']:.2f}."


def picture(name: str, drawn: Sequence[str]) -> str:
    return f"![{name}]({PICTURES.name}/{name}.svg)" if name in drawn else ""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; "" without rows."""
    if not rows:
        return ""
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
