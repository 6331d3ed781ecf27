"""The data card and page say what the stages counted, show why rows left without showing personal data, and load nothing."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from scripts import datacard as stage
from scripts.datacard import Datacard
from temper import datacard, licences, metrics, params, records, sankey, sources
from temper.sankey import Step
from temper.sources import Source

QUALITY = ("length", "language", "encoding", "repetition", "refusal", "truncated_answer", "answer_in_prompt", "bucket")
MAIL = "ada@example.com"
SOURCE = {"kind": "wheel", "id": "bfcl-eval", "revision": "1.0", "licence": "apache-2.0"}


def settings(**changes: Any) -> Datacard:
    values = {"name": "caller", "licence": "apache-2.0", "base": "SmolLM2", "base_licence": "apache-2.0"}
    more = {"language": ["en"], "sources": [SOURCE], "licence_policy": "fail", "examples": 2}
    return Datacard(**(values | more | changes))  # type: ignore[arg-type]


def chat(request: str, answer: str = "null", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": "1", "messages": messages, "source": "bfcl-eval 1.0/simple", "licence": "apache-2.0"} | more


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the data stages leave, with 17 reasons in all."""
    monkeypatch.chdir(tmp_path)
    stages: dict[str, dict[str, Any]] = {
        "ingest": {"seen": 1000, "kept": 900, "rejected_too_long": 60, "rejected_malformed": 40},
        "dedup": {"seen": 900, "kept": 860, "rejected_exact": 25, "rejected_near": 15},
        "quality": {"seen": 860, "kept": 780, **{f"rejected_{name}": 10 for name in QUALITY}},
        "pii": {"seen": 780, "kept": 780, "found_EMAIL_ADDRESS": 31, "found_IBAN_CODE": 0},
        "split": {"seen": 780, "kept": 775, "rejected_made_row_in_test": 5, "kept_test": 100, "kept_preferences": 75},
        "contamination": {"seen": 675, "kept": 668, "rejected_gsm8k": 4, "rejected_test": 3, "kept_preferences": 75},
        "mix": {"seen": 593, "kept": 500, "rejected_downsampled": 93},
        "audit": {"seen": 500, "kept": 499, "rejected_too_long": 1, "written": 499, "tokens": 50000, "tokens_max": 250},
    }
    stages["audit"] |= {f"tokens_p{share}": 2 * share for share in (50, 90, 95, 99)}
    stages["audit"] |= {"tokens_trained": 7000, "sequence_length": 256, "over_long": 1, "truncated": 0, "compared": 499}
    stages["audit"] |= {"system_prompts": 3, "system_prompt_most_rows": 200}
    stages["audit"] |= {"rows_train": 450, "rows_validation": 49, "tokens_train": 45000, "tokens_trained_train": 6300}
    stages["contamination"] |= {"benchmark_gsm8k": 1319, "benchmark_humaneval": 164, "benchmark_test": 100}
    stages["contamination"] |= {"pass_coverage": 1, "pass_ngram": 1, "pass_paraphrase": 0, "items_too_short": 2}
    for name, values in stages.items():
        metrics.write(f"reports/{name}.json", values)
    Path("reports/plots").mkdir()
    Path("reports/plots/audit.csv").write_text("tokens,rows\n128,300\n256,199\n")
    records.write(
        "data/rejected/ingest.jsonl", [{"place": "raw/a.jsonl:7", "reason": "too_long", "detail": "900 tokens"}]
    )
    records.write("data/rejected/quality.jsonl", [chat(MAIL, reason="repetition", evidence={"near": MAIL})])
    hit = {"benchmark": "gsm8k", "item": "gsm8k/12", "rule": "13-gram", "matched": "sold clips to 48 of her friends"}
    records.write(
        "data/rejected/contamination.jsonl", [chat("Natalia <sold> clips", reason="gsm8k", split="train", **hit)] * 4
    )
    records.write("data/audit/train.jsonl", [chat("a")] * 3)
    records.write("data/audit/validation.jsonl", [chat("b")])
    pair: dict[str, Any] = {
        "kind": "preference",
        "messages": [{"role": "user", "content": "d"}],
        "chosen": [],
        "rejected": [],
    }
    given = [chat("d", **pair) | {"id": name} for name in "xyy"]  # the mix holds one twice
    records.write("data/mix/train.jsonl", [chat("a")] * 3 + given)
    records.write("data/mix/preferences.jsonl", [chat("c")] * 2)
    records.write("data/mix/rl.jsonl", [chat("e")] * 5)
    segments = [{"text": "user asks <b>", "trained": False}, {"text": "null<|im_end|>", "trained": True}]
    rendered = {"id": "00ff", "category": "simple", "tokens": 9, "segments": segments}
    records.write("data/audit/rendered.jsonl", [rendered])
    return tmp_path


def words(svg: str) -> list[tuple[float, float, str]]:
    """(x, y, text) of every label of a picture."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [(float(one.attrib["x"]), float(one.attrib["y"]), str(one.text)) for one in found]


def test_card_and_page_have_every_reason_with_its_rows(run: Path) -> None:
    found = datacard.load(settings())
    card, page = datacard.card(found, settings()), datacard.page(found, settings())
    assert len(found.reasons) == 17
    for reason in found.reasons:
        assert f"{reason.rows} {reason.name.replace('_', ' ')}" in card
        assert f"<b>{reason.name.replace('_', ' ')}</b>" in page


def test_rows_are_counted_by_what_they_are_for_and_validation_is_not_trained_on(run: Path) -> None:
    found = datacard.load(settings())
    card, page = datacard.card(found, settings()), datacard.page(found, settings())
    assert "| bfcl-eval 1.0/simple | apache-2.0 | 3 | 2 | 2 | 5 |" in card
    assert '<td class="n">3</td><td class="n">2</td><td class="n">2</td><td class="n">5</td>' in page
    assert "Of 450 rows with 45000 tokens, 6300 tokens are trained on" in card
    assert "49 more rows are for validation: evaluated, not trained on" in card
    assert "45,000 tokens, 6,300 in answers; 2 preference rows; 2 preference prompts; 5 RL prompts" in page
    assert all("RL prompts are set aside" in text for text in (card, page))
    records.write("data/mix/rl.jsonl", [])
    found = datacard.load(settings())
    assert "RL prompts are set aside" not in datacard.card(found, settings()) + datacard.page(found, settings())


def test_the_funnel_gives_every_branch_a_line_of_its_own(run: Path) -> None:
    found = datacard.load(settings())
    labels = words(sankey.funnel(datacard.steps(found.metrics)))
    right = [(y, text) for x, y, text in labels if x == sankey.LABEL]
    assert len(right) == 17 + 2
    assert {"100 → test", "75 → preferences"} <= {text for _, text in right}
    heights = sorted(y for y, _ in right)
    assert all(later - earlier >= 13 for earlier, later in pairwise(heights))
    assert (sankey.TRUNK, "499 rows") in [(x, text) for x, _, text in labels]


def test_what_a_stage_makes_or_loses_without_a_reason_is_said() -> None:
    steps = [Step("a", 10, 10, ()), Step("b", 14, 14, ()), Step("c", 9, 9, ())]
    said = [text for _, _, text in words(sankey.funnel(steps))]
    assert "+4 added" in said
    assert "−5 not passed on" in said


def test_a_funnel_that_does_not_add_up_is_marked(run: Path) -> None:
    assert "seen ≠ kept + rejected" not in datacard.page(datacard.load(settings()), settings())
    metrics.write("reports/dedup.json", {"seen": 900, "kept": 860, "rejected_exact": 25})
    assert "seen ≠ kept + rejected" in datacard.page(datacard.load(settings()), settings())


@pytest.mark.parametrize(
    "text",
    [
        "my password is hun" + "ter2",
        "Authorization: Bearer abc" + "123def",
        "From: Grace Hopper",
        "12 Elm St",
        "the code is 4711",
        f"mail {MAIL} now",
    ],
)
@pytest.mark.parametrize("name", ["ingest", "dedup", "quality"])
def test_no_text_of_a_row_that_left_before_pii_is_shown(run: Path, name: str, text: str) -> None:
    measured = {"where": text, "found": text, "measure": "words", "value": 3.25, "limit": 40}
    reason = next(one.name for one in datacard.load(settings()).reasons if one.stage == name)
    more = {"reason": reason, "evidence": measured, "detail": text, "kept": "00aa", "matched": text}
    left = chat(text, text, text=text, id="77bb", **more)
    records.write(f"data/rejected/{name}.jsonl", [left])
    page = datacard.page(datacard.load(settings()), settings())
    assert text not in page
    assert "<p>77bb<br>" in page
    assert "measure words, value 3.25, limit 40, like 00aa, which stays" in page


def test_places_are_shown_before_pii_and_texts_after_it(run: Path) -> None:
    page = datacard.page(datacard.load(settings()), settings())
    assert "<p>a.jsonl:7" in page
    assert "Natalia &lt;sold&gt; clips" in page


def test_both_say_where_rows_lie_that_are_not_scrubbed(run: Path) -> None:
    found = datacard.load(settings())
    for text in (datacard.card(found, settings()), datacard.page(found, settings())):
        said = re.sub("<code>|</code>|`", "", text)
        for name in ("ingest", "dedup", "quality"):
            assert f"data/{name} and data/rejected/{name}.jsonl" in said
        assert "data/rejected/pii.jsonl" not in said
        assert "DVC's cache" in said


def test_contamination_is_shown_by_benchmark_with_its_evidence(run: Path) -> None:
    found = datacard.load(settings())
    assert found.hit_counts == {"gsm8k": 4}
    assert len(found.hits["gsm8k"]) == 2
    assert "<mark>sold clips to 48 of her friends</mark>" in datacard.page(found, settings())


def test_every_benchmark_is_named_with_its_items_and_so_is_what_was_not_looked_for(run: Path) -> None:
    found = datacard.load(settings())
    card, page = datacard.card(found, settings()), datacard.page(found, settings())
    assert "| humaneval | 164 | 0 |" in card
    assert "| gsm8k | 1319 | 4 |" in card
    assert '<td>humaneval</td><td class="n">164</td><td class="n">0</td>' in page
    for text in (card, page):
        assert "Looked for by coverage, ngram; switched off: paraphrase; 2 of our own held-out requests are too" in text
    Path("reports/contamination.json").unlink()
    assert "Not looked for." in datacard.card(datacard.load(settings()), settings())


def test_trained_tokens_are_bold_and_masked_ones_are_not(run: Path) -> None:
    page = datacard.page(datacard.load(settings()), settings())
    assert "<pre>user asks &lt;b&gt;<b>null&lt;|im_end|&gt;</b></pre>" in page


def test_quality_is_shown_where_it_was_measured(run: Path) -> None:
    assert "Quality buckets" not in datacard.page(datacard.load(settings()), settings())
    buckets = "".join(f"{number},{number},5\n" for number in range(20))
    Path("reports/plots/quality.csv").write_text(f"bucket,perplexity,maximum\n{buckets}")
    page = datacard.page(datacard.load(settings()), settings())
    assert all(f"<h3>{name}</h3>" in page for name in ("perplexity", "maximum"))


def test_the_page_is_one_file_that_loads_nothing_and_depends_on_its_inputs_alone(run: Path) -> None:
    page = datacard.page(datacard.load(settings()), settings())
    assert not re.search(r'(src|href)="', page)
    assert "prefers-color-scheme: dark" in page
    assert page == datacard.page(datacard.load(settings()), settings())
    assert str(run) not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_card_has_front_matter_for_the_hub_and_whole_tables(run: Path) -> None:
    card = datacard.card(datacard.load(settings(name="a: b")), settings(name="a: b"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == ["apache-2.0"]
    assert front["size_categories"] == ["n<1K"]
    assert front["pretty_name"] == "a: b data"
    lines = card.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            assert lines[number - 1].count("|") == line.count("|") == lines[number + 1].count("|"), lines[number - 1]
    assert not re.search(r"\{\{|\{%|Undefined", card)


@pytest.mark.parametrize(("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_000_000, "1M<n<10M")])
def test_sizes_are_named_as_the_hub_does(rows: int, size: str) -> None:
    assert datacard.size_category(rows) == size


def test_a_row_with_another_licence_than_its_source_counts(run: Path) -> None:
    records.write("data/audit/train.jsonl", [chat("a", licence="apache-2.0 AND openai-terms")])
    found = datacard.load(settings())
    assert found.verdict.outcome == licences.INCOMPATIBLE
    assert "bar training other models" in datacard.page(found, settings())


def test_a_teacher_s_terms_reach_the_verdict_whatever_the_preset_says_of_its_file(run: Path) -> None:
    """What `make synthesize` writes, read by a glob over raw/ that states a licence for all of it."""
    stated = {"kind": "file", "id": "raw/*.jsonl", "revision": None, "licence": "cc-by-4.0"}
    source = Source(**stated, sha256=None, format="auto", files=[], columns={})  # type: ignore[arg-type]
    rules = sources.Rules(bad_rows="fail", max_bytes=1000, refusal="")
    for taught, outcome in (("openai-terms", licences.INCOMPATIBLE), ("mit", licences.PERMITTED)):
        grown = {"prompt": "Why?", "completion": "So.", "provenance": {"teacher_licence": taught}}
        records.write("raw/synthetic-distil.jsonl", [grown])
        [unit] = sources.units([source], rules)
        records.write("data/audit/train.jsonl", sources.read(unit, rules))
        assert datacard.load(settings(sources=[stated])).verdict.outcome == outcome


def test_licences_that_exclude_the_release_fail_the_run_or_warn(capsys: pytest.CaptureFixture[str]) -> None:
    bad = licences.verdict({"cc-by-nc-4.0": ["acme/chats"]}, "apache-2.0")
    with pytest.raises(SystemExit, match=r"incompatible.*licence_policy=warn") as error:
        stage.judge(bad, "fail")
    assert "\n" not in str(error.value)
    stage.judge(bad, "warn")
    assert "incompatible" in capsys.readouterr().out
    stage.judge(licences.verdict({"unheard-of": ["x"]}, "apache-2.0"), "fail")
    assert "needs review" in capsys.readouterr().out


def test_the_stage_writes_both_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "load", lambda *_: settings())
    stage.main()
    assert (run / "reports/data-card.md").read_text().startswith("---\n")
    assert (run / "reports/data.html").read_text().startswith("<!doctype html>")
