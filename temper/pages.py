"""The model card and the HTML report: what they say, filled into temper/templates/."""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from temper import comparisons, cost, evaluation_matrix, figures, forgetting, gate, safety_section, speculation
from temper.comparisons import Verdict
from temper.cost import Cost
from temper.evaluation_matrix import Asked, Matrix
from temper.recipe import FORMATS
from temper.recipe import MODELS as METHODS
from temper.records import Row
from temper.results import Results

TEMPLATES = Path(__file__).parent / "templates"
# Each measure of `evaluate` that is shown, its name for a reader, and the key of its sample size.
MEASURES = (
    ("exact", "exact (call or null)", "n"),
    ("call_exact", "exact, where a call is right", "call_n"),
    ("null_exact", "`null` where no tool fits", "null_n"),
    ("argument_f1", "argument F1", "n"),
    ("valid_json", "valid JSON", "n"),
)
# Of what else `evaluate` measures, what a reader may not know by its key.
OTHERS = (
    ("abstain", "`null` likelier than any call where it is right, a call elsewhere", "n"),
    ("null_abstain", "`null` likelier than any call, where no tool fits", "null_n"),
    ("choose", "the right tool likeliest among several", "choose_n"),
)
# And what stands elsewhere, or is said by one of the others.
ELSEWHERE = (
    "exact_in_",
    "exact_low_in_",
    "exact_high_in_",
    "golden_",
    "domain_",
    "general_",
    "choose_norm",
    "call_abstain",
)
# Whose likelihood `evaluate` measures.
TEXTS = (("domain", "reference answers to test rows"), ("general", "general text"))
CHARTED = ("exact", "call_exact", "null_exact", "valid_json")
SAMPLES = 20
SHORT = 0.1  # minutes
COLOURS = {comparisons.BETTER: "#10b981", comparisons.WORSE: "#ef4444", comparisons.NO_DIFFERENCE: "#94a3b8"}
CODE = re.compile(r"`([^`]+)`")
HEADING, CONTENTS = re.compile(r"<h2>(.*?)</h2>"), "<!-- contents -->"


def card(
    results: Results,
    cfg: Any,
    costs: Cost,
    matrix: Matrix,
    openness: dict[str, Any],
    gated: gate.Values,
    runs: Mapping[str, Row],
    hashes: Mapping[str, str],
    devices: int,
) -> str:
    """The model card: Markdown with the front matter that the Hugging Face Hub parses; `openness` is reports/mof.yml, `gated`
    reports/gate.json, `runs` data/evaluate/<variant>.yaml by variant, `hashes` are SHA-256 by path, `devices` how many trained."""
    more: dict[str, Any] = {"trail": trail(results), "openness": openness, "gated": gated, "checks": gate.table(gated)}
    more |= {"speeds": speeds(results, costs), "apis": apis(results, costs), "costs": costs}
    more |= {"spent": spent(results, costs, devices), "hashes": hashes, "asked": asked(runs)}
    release = results.stages["bench/bf16"]
    more |= {"tokens": (cost.prompt_tokens(release), cost.answer_tokens(release))}
    return _render("model-card.md.j2", results, cfg, matrix, **more)


def report(
    results: Results,
    cfg: Any,
    matrix: Matrix,
    openness: dict[str, Any],
    answers: dict[str, list[Row]],
    likelihoods: dict[str, list[Row]],
    runs: Mapping[str, Row],
    graph: str,
) -> str:
    """One self-contained HTML page; `answers` and `likelihoods` hold the rows of data/evaluate/<variant>.jsonl and
    <variant>-likelihoods.jsonl by variant, `runs` <variant>.yaml, `graph` an SVG."""
    charts = {
        "scores": figures.scores(
            {
                v: {plain(label): results.interval(v, key) for key, label, _ in MEASURES if key in CHARTED}
                for v in results.variants
            }
        ),
        "funnel": figures.funnel(results.funnel()),
        "speed": figures.bars({f"{n} at once": speed(results, n) for n in results.levels()}, "tokens/s"),
        "safety": figures.scores(safe) if (safe := safety_section.charted(results)) else "",
    }
    charts |= {
        "forest": differences(matrix),
        **speed_quality(results),
        "cost": figures.spans(costs(results), "minutes"),
    }
    curves = {name_of(name): figures.curve(rows) for name, rows in results.curves.items()}
    shown: dict[str, Any] = {
        "figures": charts,
        "graph": _inline(graph),
        "samples": side_by_side(answers),
        "trail": trail(results),
    }
    shown |= {"curves": curves, "peak": peak(results), "asked": asked(runs)}
    release = results.stages[f"evaluate/{results.recipe.release}"]
    texts = [(label, release[f"{task}_n"], likelihood(results, task, likelihoods)) for task, label in TEXTS]
    page = _render(
        "report.html.j2", results, cfg, matrix, tiles=_tiles(results), texts=texts, openness=openness, **shown
    )
    return _with_contents(page)


def coded(text: str) -> Markup:
    """A card's Markdown as HTML, as far as it goes: what stands in backticks is code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


def plain(text: str) -> str:
    """The same for a picture."""
    return text.replace("`", "")


def percent(interval: tuple[float, float, float]) -> str:
    """`31.2% (25.0–38.1)` from shares in 0..1."""
    value, low, high = (100 * part for part in interval)
    return f"{value:.1f}% ({low:.1f}–{high:.1f})"


def asked(runs: Mapping[str, Row]) -> str:
    """`lm-eval 0.4.13: base, sft by vllm 0.32.0 in float32, …`: by what each variant was scored, as data/evaluate/<variant>.yaml,
    here by variant, has it."""
    by: dict[tuple[str, str], list[str]] = {}
    for variant, run in runs.items():
        dtype = run["engine"].get("dtype")
        by.setdefault((run["harness"], run["backend"] + (f" in {dtype}" if dtype else "")), []).append(variant)
    found = ", ".join(f"{', '.join(of)} by {backend}" for (_, backend), of in by.items())
    harness = ", ".join(dict.fromkeys(harness for harness, _ in by))
    last = list(runs.values())[-1]
    tasks = ", ".join(f"{task['task']} {task['metadata']['version']:g}" for task in last["tasks"])
    template = f"chat template sha256 {last['chat_template_sha256'][:12]}"
    return f"{harness}: {found}; tasks {tasks}; {template}; all of it in data/evaluate/<variant>.yaml"


def verdicts(matrix: Matrix, pairs: list[tuple[str, str]]) -> list[tuple[str, list[Verdict | None]]]:
    """(measure, its verdict for each of `pairs`), for the measures that were compared."""
    measures = dict.fromkeys(asked.measure for asked in matrix)
    labels = {key: label for key, label, _ in (*MEASURES, *OTHERS)}
    return [(labels.get(key, key), [matrix.get(Asked(key, *pair)) for pair in pairs]) for key in measures]


def about(cfg: Any) -> list[Any]:
    """What conf/card says of the sources that this run has, each once."""
    return [cfg.about[id] for id in dict.fromkeys(source["id"] for source in cfg.sources) if id in cfg.about]


def parameters(results: Results) -> str:
    """`135 million` or `8.0 billion`, as the base model was counted."""
    millions = results.stages["base"]["parameters"] / 1e6
    return f"{millions:.0f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"


def quant_line(results: Results, name: str) -> str:
    """Size, true width and loss of a quant in words."""
    made, kept = results.stages[f"quantize/{name}"], results.stages[f"retention/{name}"]
    size = f"{made['bytes'] / 1e6:.0f} MB of {made['bf16_bytes'] / 1e6:.0f} MB, {made['bits_per_weight']:.2f} bits a weight"
    unjudged = f" (not judged: {kept['unjudged']})" if kept.get("unjudged") else ""
    return f"{made.get('type', 'int4')}, {size}; {', '.join(losses(kept))}{unjudged}"


def losses(kept: dict[str, Any]) -> Iterator[str]:
    """What a quant keeps, each figure with its interval and of how many it is."""
    if "unchanged" in kept:
        yield f"{percent(_interval(kept, 'unchanged'))} of {kept['answers']} answers unchanged"
    if "exact_kept" in kept:
        yield f"{exact_kept(kept)} of the exact ones among them kept"
    yield f"KL {kept['kl']:.2g} over {kept['positions']:,} tokens, without an interval"


def exact_kept(kept: dict[str, Any]) -> str:
    """`103% (+1.5 points, -1.5 to +4.5)`: a ratio of few answers has no interval, the change of their rate has one."""
    value, low, high = (100 * part for part in _interval(kept, "exact_change"))
    return f"{kept['exact_kept']:.0%} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"


def quants(results: Results) -> dict[str, str]:
    """The quants that are released, each in words, by the file or folder that is offered."""
    file = {"gguf": "models/gguf/model.gguf"}
    return {file.get(name, f"models/{name}"): quant_line(results, name) for name in results.released}


def quantized(results: Results) -> str:
    """Every quant in one sentence each: what it is, or why it is not released."""
    offered = [f"{where}: {line}" for where, line in quants(results).items()]
    return ". ".join(offered + [f"Not released: {name} ({why})" for name, why in results.withheld().items()]) or "none"


def unmeasured(results: Results) -> str:
    """In a sentence, which figures are of the release and not of the quants that are offered beside it; "" where none is."""
    asked = {"safety": results.recipe.safety, "`evaluate`": results.variants}
    lacking = {what: [name for name in results.released if name not in of] for what, of in asked.items()}
    told = " and of ".join(f"{what} ({', '.join(names)})" for what, names in lacking.items() if names)
    weights = f"the bf16 weights (`models/{results.recipe.release}`), not of the quants in parentheses"
    return f"Figures of {told} are those of {weights}." if told else ""


def others(results: Results) -> list[tuple[str, int, list[str]]]:
    """(measure, n, its rate for each variant) of what `evaluate` measures besides MEASURES: choices, benchmarks, own tasks."""
    values = results.stages[f"evaluate/{results.recipe.release}"]
    shown = {key for key, _, _ in MEASURES}
    keys = [
        key for key in sorted(values) if f"{key}_low" in values and key not in shown and not key.startswith(ELSEWHERE)
    ]
    labels = {key: label for key, label, _ in OTHERS}
    return [
        (
            labels.get(key, key),
            count_of(values, key),
            [percent(results.interval(variant, key)) for variant in results.variants],
        )
        for key in keys
    ]


def count_of(values: dict[str, Any], key: str) -> int:
    """Of how many a measure of OTHERS is; of a task's or a benchmark's what `<name>_n` says, by the longest name that fits."""
    counts = {key: count for key, _, count in OTHERS}
    named = [name for name in values if name.endswith("_n") and key.startswith(name.removesuffix("n"))]
    return int(values[counts.get(key) or max(named, key=len)])


def judged(results: Results) -> list[str]:
    """What a judge says of each variant against the base, with what it is worth; or that it is worth nothing."""
    return [judged_line(variant, results.stages[f"judge/{variant}"]) for variant in results.recipe.judged]


def judged_line(variant: str, values: dict[str, Any]) -> str:
    worth = [
        f"{label} {percent(_interval(values, key))}, n = {values[count]}"
        for label, key, count in (
            ("it is for the answer that people chose in", "human_pairs_accuracy", "human_pairs_decided"),
            ("it agrees with votes of people in", "human_votes_agreement", "human_votes_agreement_votes"),
        )
        if key in values
    ]
    judge = f"by {values['judge']} ({'; '.join(worth) or 'agreement with people not measured'})"
    if not values["usable"]:
        return f"{name_of(variant)} is not judged: {values['judge']} is unusable ({values['unusable_because']})"
    rates = [
        f"{label} {percent(_interval(values, key))}"
        for label, key in (("win rate", "win_rate"), ("at equal length", "length_controlled_win_rate"))
        if key in values
    ]
    scores = [
        f"MT-Bench of {name_of(name)} {{:.2f}} ({{:.2f}}–{{:.2f}})".format(*_interval(values, f"mt_bench_{name}"))
        + f", n = {values[f'mt_bench_{name}_questions']}"
        for name in (variant, "base")
        if f"mt_bench_{name}" in values
    ]
    found = "; ".join(
        [
            *rates,
            f"ties {values['ties']} of {values['prompts']} prompts",
            str(values.get("win_verdict", "no verdict")),
            *scores,
        ]
    )
    return f"{name_of(variant)} against the base, {judge}: {found}"


def rewards(results: Results) -> list[str]:
    """How well each reward tells right answers from wrong ones, by subset."""
    return [rewards_line(name, results.stages[f"rewardbench/{name}"]) for name in results.recipe.scored]


def rewards_line(name: str, values: dict[str, Any]) -> str:
    subsets = [key for key in sorted(values) if f"{key}_low" in values]
    found = [f"{key} {percent(_interval(values, key))}, n = {values[f'{key}_n']}" for key in subsets]
    mean = "the mean of its subsets here, without an interval of its own"
    whole = [f"RewardBench 2 {100 * values['rewardbench2']:.1f}, {mean}"] if "rewardbench2" in values else []
    label = "The reward model" if values["reward"] == "model" else f"The reward that is implicit in {name_of(name)}"
    return f"{label} puts right answers before wrong ones: {'; '.join([*whole, *found])}"


def _interval(values: dict[str, Any], key: str) -> tuple[float, float, float]:
    return values[key], values[f"{key}_low"], values[f"{key}_high"]


def name_of(model: str) -> str:
    """`sft` as readers know it: SFT."""
    return model.upper() if model in (*METHODS, *FORMATS) else model


def commands(stages: Iterable[str]) -> str:
    """`make sft`, `make dpo` make these: the commands behind figures."""
    named = [f"`make {stage}`" for stage in stages]
    return f"{', '.join(named)} make{'s' if len(named) == 1 else ''} these"


def trail(results: Results) -> str:
    """`SFT → DPO`, the trainings that lead from the base to the release."""
    return " → ".join(name_of(model) for model in results.recipe.chain()[1:])


def spent(results: Results, costs: Cost, devices: int) -> dict[str, tuple[float, float]]:
    """(kWh, dollars) of each stage of training, the sampling of pairs included."""
    seconds = {name: float(results.timing[f"training/{name}"]["seconds"]) for name in results.recipe.stages()}
    return {name: (cost.energy(one, devices, costs), cost.paid(one, devices, costs)) for name, one in seconds.items()}


@dataclass(frozen=True)
class Speed:
    variant: str
    concurrency: int
    report: dict[str, Any]
    costs: Cost

    def __getitem__(self, key: str) -> float:
        return float(self.report[f"c{self.concurrency}_{key}"])

    @property
    def dollars(self) -> float:
        """For a million output tokens."""
        return cost.served(self.report, self.concurrency, self.costs)


def speeds(results: Results, costs: Cost) -> list[Speed]:
    """Of each variant, at each concurrency."""
    return [
        Speed(name, level, results.stages[f"bench/{name}"], costs)
        for name in results.served
        for level in cost.levels(results.stages[f"bench/{name}"])
    ]


def apis(results: Results, costs: Cost) -> dict[str, float]:
    """Dollars that each API would take for a million output tokens of the same requests."""
    return {name: cost.asked(api, results.stages["bench/bf16"]) for name, api in costs.apis.items()}


def speed(results: Results, concurrency: int) -> float:
    """Output tokens per second at a concurrency."""
    return float(results.stages["bench/bf16"][f"c{concurrency}_tokens_per_second"])


def drafted(results: Results) -> dict[str, list[str]]:
    """By variant that drafts: what it gains on the domain, on general text, the difference, how many tokens were ties, and its
    speed against none by concurrent requests."""
    found, plain = {}, speculation.speeds(results.stages[f"bench/{speculation.PLAIN}"])
    for name, report in drafting(results).items():
        texts = [gain(report, f"{text}_") for text in (speculation.DOMAIN, speculation.GENERIC)]
        ties = f"{report['lossless_ties']} of {report['lossless_tokens']:,}"
        told = speculation.told(speculation.verdicts(plain, speculation.speeds(report)))
        found[name] = [*texts, f"{report[f'gap_{speculation.STEPS}']:+.2f}", ties, told]
    return found


def drafting(results: Results) -> dict[str, dict[str, Any]]:
    """The reports of `bench` on variants that draft."""
    reports = {name: results.stages[f"bench/{name}"] for name in results.served}
    return {name: report for name, report in reports.items() if "lossless_tokens" in report}


def gain(values: dict[str, Any], prefix: str) -> str:
    """`1.62 (1.74: 0.43, 0.21, 0.10; n = 430)`: tokens a step; of steps with a draft, its acceptance by place, the drafts."""
    drafts = values[f"{prefix}drafts"]
    if not drafts:
        return f"{values[f'{prefix}{speculation.STEPS}']:.2f} (no draft was made)"
    by_place: list[str] = []
    while (key := f"{prefix}acceptance_at_{len(by_place)}") in values:
        by_place.append(f"{values[key]:.2f}")
    steps, length = (values[f"{prefix}{name}"] for name in (speculation.STEPS, "acceptance_length"))
    return f"{steps:.2f} ({length:.2f}: {', '.join(by_place)}; n = {drafts:.0f})"


def beaten(results: Results) -> str:
    """`eagle3 yields more tokens a step on the domain than n-gram lookup, which needs no training, and serves 0.87× as fast at 1.`;
    empty without both."""
    reports = drafting(results)
    if speculation.NGRAM not in reports:
        return ""
    baseline = reports.pop(speculation.NGRAM)
    lines = []
    for name, report in reports.items():
        more = "more" if speculation.beats(report, baseline) else "no more"
        pairs = speculation.verdicts(speculation.speeds(baseline), speculation.speeds(report))
        fast = ", ".join(f"{pair.speedup:.2f}× as fast at {pair.concurrency}" for pair in pairs)
        told = f"{name} yields {more} tokens a step on the domain than n-gram lookup, which needs no training, and serves {fast}."
        lines.append(told)
    return " ".join(lines)


def categories(results: Results) -> list[tuple[str, int, list[str]]]:
    """(category, test rows, exact answers of each variant) as `evaluate` reports them, by name."""
    by_variant = [results.stages[f"evaluate/{variant}"] for variant in results.variants]
    release = results.stages[f"evaluate/{results.recipe.release}"]
    names = [key.removeprefix("n_in_") for key in sorted(release) if key.startswith("n_in_")]
    return [(name, release[f"n_in_{name}"], [_of_category(values, name) for values in by_variant]) for name in names]


def _of_category(values: dict[str, Any], category: str) -> str:
    value, low, high = (values[f"{key}_in_{category}"] for key in ("exact", "exact_low", "exact_high"))
    return percent((value, low, high))


def likelihood(results: Results, task: str, likelihoods: dict[str, list[Row]]) -> list[str]:
    """`12.3 (0.812, +0.004: +0.001 to +0.007)` for each variant: perplexity, bits a byte, and their change from the first."""
    rows = {variant: [row for row in of if row["task"] == task] for variant, of in likelihoods.items()}
    cells, first = [], rows[results.variants[0]]
    for variant in results.variants:
        values = results.stages[f"evaluate/{variant}"]
        change = "{:+.3f}: {:+.3f} to {:+.3f}".format(*forgetting.change(first, rows[variant]))
        bits = f"{values[f'{task}_bits_per_byte']:.3f}" + (f", {change}" if rows[variant] is not first else "")
        cells.append(f"{values[f'{task}_perplexity']:.3g} ({bits})")
    return cells


def side_by_side(answers: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """The same test rows answered by every variant of `answers`, spread evenly over the test split."""
    by_id = {variant: {row["id"]: row for row in rows} for variant, rows in answers.items()}
    last = list(by_id.values())[-1]
    names, shown = sorted(last), min(len(last), SAMPLES)
    chosen = [names[place * len(names) // shown] for place in range(shown)]
    return [
        {
            "request": last[name]["request"],
            "reference": last[name]["reference"],
            "answers": {
                variant: {"text": of[name]["output"][:300], "exact": of[name]["exact"]} for variant, of in by_id.items()
            },
        }
        for name in chosen
    ]


def differences(matrix: Matrix) -> str:
    """A picture of every comparison with its interval, by the colour of its verdict; "" where nothing is compared."""
    names = {key: plain(label) for key, label, _ in MEASURES}
    rows = []
    for asked, verdict in matrix.items():
        interval = verdict.difference.interval
        told = f"{names.get(asked.measure, asked.measure)}: {asked.variant} − {asked.against}"
        points = 100 * interval.value, 100 * interval.low, 100 * interval.high
        rows.append((told, *points, COLOURS[verdict.outcome]))
    return figures.forest(rows, "points") if rows else ""


def speed_quality(results: Results) -> dict[str, str]:
    """Pictures of quality over speed, of what `bench` measured, and over size, of the release and its quants."""
    speeds = {
        name.removeprefix("bench/"): values for name, values in results.stages.items() if name.startswith("bench/")
    }
    level = results.levels()[0]
    key = f"c{level}_tokens_per_second"
    fast = points(results, {name: values[key] for name, values in speeds.items() if key in values})
    made = {name: results.stages[f"quantize/{name}"] for name in results.recipe.formats}
    sizes = {name: values["bytes"] / 1e6 for name, values in made.items()}
    if made:
        sizes = {"bf16": next(iter(made.values()))["bf16_bytes"] / 1e6} | sizes
    small = points(results, sizes)
    exact = "exact answers, %"
    return {
        "speed_quality": figures.scatter(fast, f"tokens/s, {level} at a time", exact),
        "size_quality": figures.scatter(small, "MB", exact) if small else "",
    }


def points(results: Results, places: dict[str, float]) -> list[figures.Point]:
    """Each name at its place with its quality, if that is known."""
    known = {name: found for name in places if (found := quality(results, name))}
    return [figures.Point(name, places[name], *found) for name, found in known.items()]


def quality(results: Results, name: str) -> tuple[tuple[float, float, float], bool] | None:
    """Exact answers with their interval, and whether it is released: of a quant what `evaluate` measured, where it was asked, else
    as many as it keeps of the release's, None where that could not be judged; what else is served, such as with a draft model,
    answers as the release does."""
    whole = results.interval(results.recipe.release, "exact")
    kept = results.stages.get(f"retention/{name}")
    if kept is None:
        return whole, True
    if "exact_kept" not in kept:
        return None
    value, low, high = (min(1.0, part * kept["exact_kept"]) for part in whole)
    measured = results.interval(name, "exact") if name in results.variants else (value, low, high)
    return measured, bool(kept["released"])


def costs(results: Results) -> dict[str, float]:
    """Minutes of each stage; of those under a tenth of a minute together."""
    minutes = {name: values["seconds"] / 60 for name, values in results.timing.items()}
    small = [name for name, value in minutes.items() if value < SHORT]
    rest = {f"{len(small)} others": sum(minutes[name] for name in small)} if small else {}
    return {name: value for name, value in minutes.items() if name not in small} | rest


def peak(results: Results) -> float:
    """Of memory, GB, of the stage that took most."""
    return max(float(values["peak_memory_gb"]) for values in results.timing.values())


def _with_contents(page: str) -> str:
    """The page with an anchor at each heading, and links to all of them where it asks for its contents."""
    titles = [html.unescape(title) for title in HEADING.findall(page)]
    links = "".join(f'<a href="#{_anchor(title)}">{html.escape(title)}</a>' for title in titles)
    anchored = HEADING.sub(lambda match: f'<h2 id="{_anchor(html.unescape(match[1]))}">{match[1]}</h2>', page)
    return anchored.replace(CONTENTS, f'<nav aria-label="Contents">{links}</nav>')


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """(name, figure, note) for the top of the page."""
    exact = {variant: results.interval(variant, "exact")[0] for variant in results.variants}
    others = [
        f"{name_of(variant)} {value:.0%}" for variant, value in exact.items() if variant != results.recipe.release
    ]
    fastest = max(results.levels(), key=lambda level: speed(results, level))
    rows, ingested = results.stages["mix"]["kept_train"], results.stages["ingest"]
    return [
        ("Exact answers", f"{exact[results.recipe.release]:.0%}", ", ".join(others)),
        ("Rows trained on", f"{rows:,}", f"of {ingested['seen'] - ingested.get('category_mismatched', 0):,} read"),
        *([_smallest(results)] if results.released else []),
        ("Speed", f"{speed(results, fastest):.0f} tokens/s", f"{fastest} requests at once"),
    ]


def _smallest(results: Results) -> tuple[str, str, str]:
    """The tile of the smallest quant that is released."""
    sizes = {name: results.stages[f"quantize/{name}"]["bytes"] for name in results.released}
    name = min(sizes, key=lambda one: sizes[one])
    return "Smallest release", f"{sizes[name] / 1e6:.0f} MB", name.upper()


def _inline(svg: str) -> str:
    """An SVG file's text as an element of a page: without its XML declaration."""
    return svg[svg.index("<svg") :]


def _render(template: str, results: Results, cfg: Any, matrix: Matrix, **more: Any) -> str:
    # Only the page is HTML; a card escaped as HTML would show entities.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=template.endswith(".html.j2"),
    )
    # JSON is YAML, whatever stands in a string.
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["code"] = coded
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
    pairs = evaluation_matrix.pairs(results.recipe)
    shared = {
        "verdicts": verdicts(matrix, pairs),
        "pairs": pairs,
        "comparisons": len(matrix),
        "told": comparisons.told,
        "confidence": f"{cfg.confidence:.0%}",
        "variants": results.variants,
        "release": results.recipe.release,
        "name_of": name_of,
        "measures": [(key, label) for key, label, _ in MEASURES],
        "counts": {key: count for key, _, count in MEASURES},
        "categories": categories(results),
        "about": about(cfg),
        "parameters": parameters(results),
        "percent": percent,
        "withheld": results.withheld(),
        "quants": quants(results),
        "unmeasured": unmeasured(results),
        "exact_kept": exact_kept,
        "commands": commands,
        "drafted": drafted(results),
        "beaten": beaten(results),
        "others": others(results),
        "judged": judged(results),
        "rewards": rewards(results),
        "safety": safety_section.read(results, percent),
    }
    return environment.get_template(template).render(results=results, cfg=cfg, **shared, **more)
