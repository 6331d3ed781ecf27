"""The card and the report say what reports/ holds, figure by figure."""

import re
from dataclasses import replace
from typing import Any

import pytest

from scripts.card import About, Card
from temper import pages
from temper.recipe import Recipe
from temper.results import DATA_STAGES, Results

VARIANTS = ["base", "sft", "dpo"]
RECIPE = Recipe(["base"], ["sft"], ["sft"], [], [], [], [], [], VARIANTS, "dpo")
GRAPH = '<?xml version="1.0"?><svg><text>ingest</text></svg>'
CARD = Card(
    name="caller",
    base="SmolLM2",
    licence="apache-2.0",
    sources=[{"id": "bfcl-eval", "revision": "1.0", "licence": "apache-2.0"}],
    language=["en"],
    about={"bfcl-eval": About("call functions", ["function-calling"], "A demonstration.", ["One call an answer."])},
)


@pytest.fixture
def results() -> Results:
    evaluated = {
        variant: {"n": 90, "call_n": 60, "null_n": 30, "n_live": 90}
        | {f"{name}{end}": share for name in (*MEASURES, "exact_live") for end, share in interval(place).items()}
        | {"domain_perplexity": 3.25, "domain_bits_per_byte": 0.5}
        | {"general_perplexity": 20.0 + place, "general_bits_per_byte": 1.0 + place / 10}
        for place, variant in enumerate(VARIANTS)
    }
    stages: dict[str, dict[str, Any]] = {name: {"seen": 100, "kept": 93, "rejected_near": 7} for name in DATA_STAGES}
    stages["mix"] |= {"kept_train": 71}
    stages |= {f"evaluate/{variant}": values for variant, values in evaluated.items()}
    stages["general"] = {"passages": 48}
    stages["base"] = {"parameters": 134_515_008}
    stages["training/sft"] = {"train_loss": 0.2345, "eval_loss": 0.3456, "steps": 12}
    stages["training/dpo"] = {"train_loss": 0.6543, "steps": 5}
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
    return Results(RECIPE, stages, timing, {"sft": curve, "dpo": curve})


MEASURES = [key for key, _, _ in pages.MEASURES]


def interval(place: int) -> dict[str, float]:
    value = 0.25 * place
    return {"": value, "_low": max(0.0, value - 0.0625), "_high": value + 0.0625}


def answers() -> dict[str, list[dict[str, Any]]]:
    row = {"id": "1", "request": "weather in <Paris>?", "output": '{"name": "weather"}', "reference": "null"}
    return {variant: [row | {"exact": variant == "dpo"}] for variant in VARIANTS}


def likelihoods() -> dict[str, list[dict[str, Any]]]:
    domain = {"task": "domain", "id": "1", "bits": 8, "bytes": 16}
    return {
        variant: [domain, *({"task": "general", "id": name, "bits": 100 + 10 * place, "bytes": 100} for name in "ab")]
        for place, variant in enumerate(VARIANTS)
    }


def test_the_card_has_front_matter_and_every_figure(results: Results) -> None:
    card = pages.card(results, CARD)
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: SmolLM2\n")
    wanted = (
        "50.0% (43.8–56.2)",
        "0.2345",
        "0.3456",
        "0.6543",
        "Q4_K_M, 105 MB of 270 MB, 6.21 bits",
        "| 8 | 48 | 31 / 41 |",
        "- 135 million parameters.\n- One call an answer.\n",
        "(SFT → DPO) to call functions.\nA demonstration.\n\nMade",
        "tags: [function-calling, sft, dpo, gguf]\n",
    )
    for figure in wanted:
        assert figure in card, figure
    assert "7 near (dedup)" in card
    assert not re.search(r"\{\{|\{%|Undefined", card)


def test_a_model_that_was_trained_and_not_evaluated_is_named(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "trained and not evaluated" not in pages.card(results, CARD)
    monkeypatch.setattr(results.recipe, "variants", ["base", "dpo"])
    for text in (pages.card(results, CARD), pages.report(results, CARD, answers(), likelihoods(), GRAPH)):
        assert len(re.findall(r"SFT .*models/sft.* was trained and not evaluated", text)) == 1


def test_what_is_true_of_one_source_is_said_of_no_other(results: Results) -> None:
    results.stages["base"]["parameters"] = 8_030_261_248
    own = replace(CARD, sources=[CARD.sources[0] | {"id": "raw/*.jsonl"}], language=["de"])
    for text in (pages.card(results, own), pages.report(results, own, answers(), likelihoods(), GRAPH)):
        assert "demonstration" not in text
        assert "function" not in text
        assert "One call" not in text
    card = pages.card(results, own)
    assert "language: [de]" in card
    assert "- 8.0 billion parameters.\n- Its safety" in card
    assert "(SFT → DPO).\n\nMade by" in card


def test_tables_of_the_card_are_tables(results: Results) -> None:
    lines = pages.card(results, CARD).splitlines()
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
    page = pages.report(results, CARD, answers(), likelihoods(), GRAPH)
    assert page.count("<svg") == 5
    assert "ingest</text>" in page
    assert "<?xml" not in page
    assert not re.search(r'(src|href)="https?:', page)
    assert "prefers-color-scheme: dark" in page
    assert "weather in &lt;Paris&gt;?</td><td><code>null</code></td>" in page


def test_the_report_tells_what_was_forgotten(results: Results) -> None:
    page = pages.report(results, CARD, answers(), likelihoods(), GRAPH)
    assert "<td>general text</td><td>20 (1.000)</td><td>21 (1.100, +0.100: +0.100 to +0.100)</td>" in page
    assert "<td>3.25 (0.500, +0.000: +0.000 to +0.000)</td>" in page


def test_samples_are_spread_over_the_test_rows() -> None:
    rows = [one | {"id": name, "request": name} for name in map(str, range(100, 139)) for one in answers()["dpo"]]
    shown = pages.side_by_side({"base": rows, "dpo": rows})
    assert len(shown) == pages.SAMPLES == 20
    assert (shown[0]["request"], shown[-1]["request"]) == ("100", "137")
    few = pages.side_by_side({"base": rows[:3], "dpo": rows[:3]})
    assert len(few) == 3


def test_pages_are_functions_of_the_reports(results: Results) -> None:
    assert pages.report(results, CARD, answers(), likelihoods(), GRAPH) == pages.report(
        results, CARD, answers(), likelihoods(), GRAPH
    )
    assert pages.card(results, CARD) == pages.card(results, CARD)
