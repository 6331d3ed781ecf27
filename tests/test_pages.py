"""The card and the report say what reports/ holds, figure by figure."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from temper import pages
from temper.results import DATA_STAGES, VARIANTS, Results


@dataclass
class Source:
    id: str = "bfcl-eval"
    revision: str = "1.0"
    licence: str = "apache-2.0"


@dataclass
class Card:
    name: str = "caller"
    base: str = "SmolLM2"
    licence: str = "apache-2.0"
    sources: list[Source] = field(default_factory=lambda: [Source()])


@pytest.fixture
def results() -> Results:
    evaluated = {
        variant: {"n": 90, "call_n": 60, "null_n": 30, "n_live": 90}
        | {f"{name}{end}": share for name in (*MEASURES, "exact_live") for end, share in interval(place).items()}
        for place, variant in enumerate(VARIANTS)
    }
    stages: dict[str, dict[str, Any]] = {name: {"seen": 100, "kept": 93, "rejected_near": 7} for name in DATA_STAGES}
    stages["contamination"] |= {"kept_train": 71}
    stages |= {f"evaluate/{variant}": values for variant, values in evaluated.items()}
    stages["sft"] = {"train_loss": 0.2345, "eval_loss": 0.3456, "steps": 12}
    stages["dpo"] = {"train_loss": 0.6543, "steps": 5}
    stages["quantize/gguf"] = {"type": "Q4_K_M", "bytes": 105e6, "bf16_bytes": 270e6, "bits_per_weight": 6.21}
    parts = {
        "tokens_per_second": 48.0,
        "ttft_p50_ms": 31.0,
        "ttft_p99_ms": 41.0,
        "itl_p50_ms": 20.5,
        "itl_p99_ms": 29.5,
    }
    stages["bench/bf16"] = {f"c8_{name}": value for name, value in parts.items()}
    timing = {name: {"seconds": 60.0, "peak_memory_gb": 1.5, "hardware": "a quiet machine"} for name in stages}
    curve = [{"step": "1", "loss": "2.5", "eval_loss": ""}, {"step": "2", "loss": "1.5", "eval_loss": "1.75"}]
    return Results(stages, timing, {"sft": curve, "dpo": curve})


MEASURES = [key for key, _, _ in pages.MEASURES]


def interval(place: int) -> dict[str, float]:
    value = 0.25 * place
    return {"": value, "_low": max(0.0, value - 0.0625), "_high": value + 0.0625}


def answers() -> dict[str, list[dict[str, Any]]]:
    row = {"id": "1", "request": "weather in <Paris>?", "output": '{"name": "weather"}'}
    return {variant: [row | {"exact": variant == "dpo"}] for variant in VARIANTS}


def test_the_card_has_front_matter_and_every_figure(results: Results) -> None:
    card = pages.card(results, Card())
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: SmolLM2\n")
    wanted = (
        "50.0% (43.8–56.2)",
        "0.2345",
        "0.3456",
        "0.6543",
        "Q4_K_M, 105 MB of 270 MB, 6.21 bits",
        "| 8 | 48 | 31 / 41 |",
    )
    for figure in wanted:
        assert figure in card, figure
    assert "7 near (dedup)" in card
    assert not re.search(r"\{\{|\{%|Undefined", card)


def test_tables_of_the_card_are_tables(results: Results) -> None:
    lines = pages.card(results, Card()).splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            columns = line.count("|")
            body = [lines[number - 1]]
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                body.append(row)
            assert len(body) > 1, lines[number - 1]
            assert all(row.count("|") == columns for row in body), body


def test_the_report_is_one_file_that_loads_nothing(results: Results) -> None:
    page = pages.report(results, Card(), answers())
    assert page.count("<svg") == 5
    assert not re.search(r'(src|href)="https?:', page)
    assert "prefers-color-scheme: dark" in page
    assert "weather in &lt;Paris&gt;?" in page


def test_pages_are_functions_of_the_reports(results: Results) -> None:
    assert pages.report(results, Card(), answers()) == pages.report(results, Card(), answers())
    assert pages.card(results, Card()) == pages.card(results, Card())
