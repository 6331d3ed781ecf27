"""The model card and the HTML report: what they say, filled into temper/templates/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from temper import figures, graph
from temper.records import Row
from temper.results import VARIANTS, Results

TEMPLATES = Path(__file__).parent / "templates"
# Each measure of `evaluate` that is shown, its name for a reader, and the key of its sample size.
MEASURES = (
    ("exact", "exact (call or null)", "n"),
    ("call_exact", "exact, where a call is right", "call_n"),
    ("null_exact", "`null` where no tool fits", "null_n"),
    ("argument_f1", "argument F1", "n"),
    ("valid_json", "valid JSON", "n"),
)
CHARTED = ("exact", "call_exact", "null_exact", "valid_json")
SAMPLES = 12


def card(results: Results, cfg: Any) -> str:
    """The model card: Markdown with the front matter that the Hugging Face Hub parses."""
    return _render("model-card.md.j2", results, cfg)


def report(results: Results, cfg: Any, answers: dict[str, list[Row]]) -> str:
    """One self-contained HTML page; `answers` holds the rows of data/evaluate/<variant>.jsonl by variant."""
    charts = {
        "scores": figures.scores(
            {v: {label: results.interval(v, key) for key, label, _ in MEASURES if key in CHARTED} for v in VARIANTS}
        ),
        "curves": figures.curves({name.upper(): rows for name, rows in results.curves.items()}),
        "funnel": figures.funnel(results.funnel()),
        "speed": figures.bars({f"{n} at once": speed(results, n) for n in results.levels()}, "tokens/s"),
    }
    shown = {"figures": charts, "graph": _inline(graph.picture(graph.stages())), "samples": side_by_side(answers)}
    return _render("report.html.j2", results, cfg, tiles=_tiles(results), **shown)


def percent(interval: tuple[float, float, float]) -> str:
    """`31.2% (25.0–38.1)` from shares in 0..1."""
    value, low, high = (100 * part for part in interval)
    return f"{value:.1f}% ({low:.1f}–{high:.1f})"


def gguf_line(results: Results) -> str:
    """Size and true width of the quantized release in words."""
    values = results.stages["quantize/gguf"]
    width = f"{values['bits_per_weight']:.2f} bits a weight"
    return f"{values['type']}, {values['bytes'] / 1e6:.0f} MB of {values['bf16_bytes'] / 1e6:.0f} MB, {width}"


def speed(results: Results, concurrency: int) -> float:
    """Output tokens per second at a concurrency."""
    return float(results.stages["bench/bf16"][f"c{concurrency}_tokens_per_second"])


def categories(results: Results) -> list[tuple[str, int]]:
    """(category, test rows) that `evaluate` reports, by name."""
    values = results.stages[f"evaluate/{VARIANTS[-1]}"]
    return [(key.removeprefix("n_"), values[key]) for key in sorted(values) if key.startswith("n_")]


def side_by_side(answers: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """The same test rows answered by every variant, spread evenly over the test split."""
    by_id = {variant: {row["id"]: row for row in rows} for variant, rows in answers.items()}
    names: Sequence[str] = sorted(by_id[VARIANTS[-1]])
    chosen = names[:: max(1, len(names) // SAMPLES)][:SAMPLES]
    return [
        {
            "request": by_id[VARIANTS[-1]][name]["request"],
            "answers": [
                {"text": by_id[variant][name]["output"][:300], "exact": by_id[variant][name]["exact"]}
                for variant in VARIANTS
            ],
        }
        for name in chosen
    ]


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """(name, figure, note) for the top of the page."""
    exact = {variant: results.interval(variant, "exact")[0] for variant in VARIANTS}
    fastest = max(results.levels(), key=lambda level: speed(results, level))
    rows, ingested = results.stages["contamination"]["kept_train"], results.stages["ingest"]
    return [
        ("Exact answers", f"{exact['dpo']:.0%}", f"base {exact['base']:.0%}, SFT {exact['sft']:.0%}"),
        ("Rows trained on", f"{rows:,}", f"of {ingested['seen'] - ingested.get('category_mismatched', 0):,} read"),
        (
            "Release",
            f"{results.stages['quantize/gguf']['bytes'] / 1e6:.0f} MB",
            results.stages["quantize/gguf"]["type"],
        ),
        ("Speed", f"{speed(results, fastest):.0f} tokens/s", f"{fastest} requests at once"),
    ]


def _inline(svg: str) -> str:
    """An SVG file's text as an element of a page: without its XML declaration."""
    return svg[svg.index("<svg") :]


def _render(template: str, results: Results, cfg: Any, **more: Any) -> str:
    # Only the page is HTML; a card escaped as HTML would show entities.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=template.endswith(".html.j2"),
    )
    shared = {
        "variants": VARIANTS,
        "measures": [(key, label) for key, label, _ in MEASURES],
        "counts": {key: count for key, _, count in MEASURES},
        "categories": categories(results),
        "percent": percent,
        "gguf_line": gguf_line(results),
    }
    return environment.get_template(template).render(results=results, cfg=cfg, **shared, **more)
