"""The data card and the data page: what the data stages did, from their metrics, their rejects and the rows that are left."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from temper import licences, metrics, record, records, sankey
from temper.licences import Verdict
from temper.records import Row
from temper.sankey import Step

STAGES = ("ingest", "dedup", "quality", "pii", "split", "contamination", "mix", "audit")
# Of rows that left before personal data was replaced no text is shown, only these of their evidence.
BEFORE_PII = STAGES[: STAGES.index("pii")]
MEASURED = ("measure", "value", "limit")
USES = ("supervised", "preference rows", "preference prompts", "RL prompts")
TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 280  # characters of an example
SOURCES = 25  # rows of the table by source
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


@dataclass(frozen=True)
class Example:
    text: str
    note: str
    """Why, in the stage's own words."""


@dataclass(frozen=True)
class Reason:
    stage: str
    name: str
    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Hit:
    """A benchmark item that was found in the data."""

    split: str
    item: str
    rule: str
    matched: str
    text: str


@dataclass(frozen=True)
class Findings:
    metrics: dict[str, dict[str, Any]]
    """By stage, in their order; only those that ran."""
    reasons: list[Reason]
    hits: dict[str, list[Hit]]
    """By benchmark; `hit_counts` has their numbers."""
    hit_counts: Counter[str]
    rows: Counter[tuple[str, str, str]]
    """Rows that are trained on, by (source, licence, one of USES)."""
    rendered: list[Row]
    quality: list[dict[str, str]]
    lengths: list[dict[str, str]]
    verdict: Verdict


def load(cfg: Any) -> Findings:
    """Everything that the data stages left; `cfg` is the section `datacard`."""
    found = {name: metrics.read(path) for name in STAGES if (path := Path(f"reports/{name}.json")).is_file()}
    rows = counted(trained())
    reasons = [reason for name in found for reason in left(name, found[name], cfg.examples)]
    hits, hit_counts = contaminated(_rejected("contamination"), cfg.examples)
    return Findings(
        metrics=found,
        reasons=reasons,
        hits=hits,
        hit_counts=hit_counts,
        rows=rows,
        rendered=list(records.read("data/audit/rendered.jsonl")),
        quality=_table(Path("reports/plots/quality.csv")),
        lengths=_table(Path("reports/plots/audit.csv")),
        verdict=licences.verdict(used(rows, cfg), cfg.licence),
    )


def card(found: Findings, cfg: Any) -> str:
    """Markdown with the front matter that the Hugging Face Hub parses for data sets."""
    return _render("data-card.md.j2", found, cfg)


def page(found: Findings, cfg: Any) -> str:
    """One self-contained HTML page."""
    figures = {
        "funnel": sankey.funnel(steps(found.metrics)),
        "quality": quality_pictures(found.quality),
        "lengths": lengths_picture(found.lengths, found.metrics.get("audit", {})),
    }
    return _render("data.html.j2", found, cfg, figures=figures, tiles=_tiles(found))


def trained() -> Iterator[tuple[str, Iterable[Row]]]:
    """(use, its rows) for each of USES: as training reads them, without validation, which is only evaluated."""
    pairs = {row["id"]: row for row in records.read("data/mix/train.jsonl") if record.kind(row) == "preference"}
    prompts = (records.read(f"data/mix/{split}.jsonl") for split in ("preferences", "rl"))
    return zip(USES, (records.read("data/audit/train.jsonl"), pairs.values(), *prompts), strict=True)


def counted(parts: Iterable[tuple[str, Iterable[Row]]]) -> Counter[tuple[str, str, str]]:
    return Counter(
        (str(row.get("source") or "unknown"), str(row.get("licence") or ""), use) for use, rows in parts for row in rows
    )


def used(rows: Mapping[tuple[str, str, str], int], cfg: Any) -> dict[str, list[str]]:
    """licence → who brings it: the sources of conf/data, those that rows are from, and the base model.

    A row's own licence counts beside that of its source: grown rows carry their teacher's.
    """
    users: dict[str, list[str]] = {cfg.base_licence: [f"{cfg.base} (base model)"]}
    titles = [_titled(source) for source in cfg.sources]
    declared = [(str(source.get("licence") or ""), title) for source, title in zip(cfg.sources, titles, strict=True)]
    carried = [(licence, next(filter(source.startswith, titles), source)) for source, licence, _ in rows]
    for licence, user in [*declared, *carried]:
        users.setdefault(licence, []).append(user)
    return users


def left(stage: str, values: Mapping[str, Any], keep: int) -> list[Reason]:
    """A stage's reasons by their number of rows, each with its first examples."""
    examples: dict[str, list[Example]] = {}
    for row in _rejected(stage):
        of_reason = examples.setdefault(str(row.get("reason", "")), [])
        if len(of_reason) < keep:
            of_reason.append(example(row, stage))
    counts = {key.removeprefix("rejected_"): n for key, n in values.items() if key.startswith("rejected_") and n}
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return [Reason(stage, name, counts[name], tuple(examples.get(name, ()))) for name in ordered]


def example(row: Row, stage: str) -> Example:
    """What the page shows of a rejected row: its place and what was measured before pii, its text from pii on, shortened."""
    if stage in BEFORE_PII:
        return Example(_place(row), _measured(row))
    return Example(_cut(_said(row), SHOWN) or _place(row), _cut(_note(row), SHOWN))


def contaminated(rows: Iterable[Row], keep: int) -> tuple[dict[str, list[Hit]], Counter[str]]:
    """(the first hits of each benchmark, how many rows hit it)."""
    hits: dict[str, list[Hit]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        benchmark = str(row.get("benchmark", row.get("reason", "")))
        counts[benchmark] += 1
        if counts[benchmark] <= keep:
            split, item, rule, matched = (
                _cut(str(row.get(key, "")), SHOWN) for key in ("split", "item", "rule", "matched")
            )
            hits.setdefault(benchmark, []).append(Hit(split, item, rule, matched, _cut(_said(row), SHOWN)))
    return dict(sorted(hits.items())), counts


def steps(found: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """The stages as the picture of the funnel takes them."""
    names = list(found)
    following = [found[name]["seen"] for name in names[1:]]
    return [
        Step(
            name=name,
            seen=found[name]["seen"],
            kept=found[name]["kept"],
            left=tuple((reason.name, reason.rows) for reason in left(name, found[name], 0)),
            aside=aside(found[name], after),
        )
        for name, after in zip(names, [*following, None], strict=True)
    ]


def aside(values: Mapping[str, Any], following: int | None) -> tuple[tuple[str, int], ...]:
    """The splits (`kept_<name>`) that add up to what a stage keeps and the next does not see."""
    parts = [(key.removeprefix("kept_"), n) for key, n in sorted(values.items()) if key.startswith("kept_") and n]
    missing = values["kept"] - following if following is not None else 0
    if missing <= 0:
        return ()
    subsets = (some for size in range(1, len(parts) + 1) for some in combinations(parts, size))
    return next((some for some in subsets if sum(n for _, n in some) == missing), ())


def quality_pictures(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(column, histogram over the 20 buckets), the maximum last."""
    columns = [name for name in (rows[0] if rows else {}) if name != "bucket"]
    return [
        (
            name,
            sankey.histogram(
                [(row["bucket"], float(row[name])) for row in rows],
                width=340,
                colour=sankey.SERIES[place % len(sankey.SERIES)],
                title=f"Rows by bucket: {name}",
            ),
        )
        for place, name in enumerate(columns)
    ]


def lengths_picture(rows: list[dict[str, str]], values: Mapping[str, Any]) -> str:
    """Rows by their tokens, up to the context length, with the percentiles."""
    if not rows:
        return ""
    limit = float(rows[-1]["tokens"])
    marks = [(values[key] / limit, f"{name} {values[key]:,}") for key, name in _percentiles(values)]
    return sankey.histogram(
        [(row["tokens"], float(row["rows"])) for row in rows], marks, title="Rows by tokens", width=460
    )


def funnel_holds(values: Mapping[str, Any]) -> bool:
    """seen == kept + Σ rejected."""
    return bool(values["seen"] == values["kept"] + sum(n for key, n in values.items() if key.startswith("rejected_")))


def size_category(rows: int) -> str:
    """The Hugging Face Hub's word for a number of rows."""
    return SIZES[min(max(0, len(str(max(rows, 1))) - 3), len(SIZES) - 1)]


def _percentiles(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [("tokens_p50", "median"), ("tokens_p99", "p99")]
    return [(key, name) for key, name in names if key in values]


def _rejected(stage: str) -> Iterator[Row]:
    path = Path(f"data/rejected/{stage}.jsonl")
    return records.read(path) if path.is_file() else iter(())


def _said(row: Row) -> str:
    """A row's content in a line, whatever its kind: its last request and its answer, or its text."""
    turns = [*(row.get("messages") or []), *(row.get("chosen") or [])]
    said = {turn.get("role"): str(turn.get("content", "")) for turn in turns if isinstance(turn, dict)}
    parts = [said.get("user", ""), said.get("assistant", ""), str(row.get("text") or "")]
    return " → ".join(" ".join(part.split()) for part in parts if part)


def _place(row: Row) -> str:
    """Which row it was: the file's own name and the line, or the row's id."""
    return str(row.get("place") or row.get("id") or "").rpartition("/")[2]


def _measured(row: Row) -> str:
    """The evidence that a row left with, as far as none of it can be the row's words."""
    evidence = row.get("evidence") or {}
    parts = [f"{key} {evidence[key]}" for key in MEASURED if key in evidence]
    return ", ".join([*parts, *([_kept(row)] if row.get("kept") else [])])


def _note(row: Row) -> str:
    """The evidence that a row left with."""
    if row.get("detail"):
        return str(row["detail"])
    if row.get("evidence"):
        return json.dumps(row["evidence"], sort_keys=True, ensure_ascii=False)
    return _kept(row) if row.get("kept") else str(row.get("matched") or "")


def _kept(row: Row) -> str:
    return f"like {row['kept']}, which stays"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _titled(source: Mapping[str, Any]) -> str:
    return f"{source['id']} {version(source)}".strip()


def version(source: Mapping[str, Any]) -> str:
    """A source's revision, of a commit the first twelve digits; empty without one."""
    revision = str(source.get("revision") or "")
    return revision[:12] if re.fullmatch("[0-9a-f]{40}", revision) else revision


def _tiles(found: Findings) -> list[tuple[str, str, str]]:
    """(name, figure, note) for the top of the page."""
    values = list(found.metrics.values())
    last = found.metrics.get("audit", {})
    rows = Counter(use for _, _, use in found.rows.elements())
    tokens = f"{last.get('tokens_train', 0):,} tokens, {last.get('tokens_trained_train', 0):,} in answers"
    others = (f"{rows[use]:,} {use}" for use in USES[1:] if rows[use])
    reasons = f"{len(found.reasons)} reasons to leave"
    return [
        ("Rows read", f"{values[0]['seen']:,}" if values else "0", reasons),
        ("Rows trained on", f"{rows[USES[0]]:,}", "; ".join([tokens, *others])),
        ("Longest row", f"{last.get('tokens_max', 0):,} tokens", f"{last.get('sequence_length', 0):,} fit"),
        ("Release", found.verdict.outcome, f"under {found.verdict.release}"),
    ]


def _by_source(found: Findings) -> list[tuple[str, str, list[int]]]:
    """(source, licence, rows for each of USES), most rows first, the rest in one line."""
    pairs = {(source, licence) for source, licence, _ in found.rows}
    table = [(source, licence, [found.rows[source, licence, use] for use in USES]) for source, licence in sorted(pairs)]
    table.sort(key=lambda line: -sum(line[2]))
    if len(table) <= SOURCES:
        return table
    rest = [rows for _, _, rows in table[SOURCES:]]
    return [*table[:SOURCES], (f"{len(rest)} more", "", [sum(of_use) for of_use in zip(*rest, strict=True)])]


def _searched(values: Mapping[str, Any]) -> str:
    """How benchmark items were looked for, and what could not be."""
    passes = _prefixed(values, "pass_")
    on, off = (", ".join(name for name, runs in passes if runs == wanted) for wanted in (1, 0))
    parts = [f"Looked for by {on}", f"switched off: {off or 'nothing'}"]
    if alone := values.get("items_verbatim_only"):
        parts.append(f"{alone:,} items of our own by runs of words alone")
    if short := values.get("items_too_short"):
        parts.append(f"{short:,} of our own held-out requests are too short to be looked for")
    return "; ".join(parts) + "."


def _prefixed(values: Mapping[str, Any], prefix: str) -> list[tuple[str, int]]:
    return [(key.removeprefix(prefix), n) for key, n in values.items() if key.startswith(prefix)]


def _render(template: str, found: Findings, cfg: Any, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=template.endswith(".html.j2"),
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    ids = sorted({licences.identified(licence) or "unknown" for _, licence, _ in found.rows})
    shared = {
        "stages": [(name, values, funnel_holds(values)) for name, values in found.metrics.items()],
        "sources": _by_source(found),
        "uses": USES,
        "licence_ids": [name if name in licences.LICENCES else "other" for name in ids],
        "size": size_category(sum(found.rows.values())),
        "entities": [(name, n) for name, n in _prefixed(found.metrics.get("pii", {}), "found_") if n],
        "benchmarks": _prefixed(found.metrics.get("contamination", {}), "benchmark_"),
        "searched": _searched(found.metrics.get("contamination", {})),
        "audit": found.metrics.get("audit", {}),
        "unscrubbed": BEFORE_PII,
        "version": version,
    }
    return environment.get_template(template).render(found=found, cfg=cfg, **shared, **more)
