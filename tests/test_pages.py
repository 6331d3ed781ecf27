"""The card and the report say what reports/ holds, figure by figure."""

import hashlib
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from scripts import card as stage
from scripts.card import About, Card
from temper import evaluation_matrix, graph, hub, metrics, mof, pages, params, records, safety_section
from temper.cost import Api, Cost, Power, Price
from temper.evaluation_matrix import Evaluated
from temper.recipe import Recipe
from temper.results import DATA_STAGES, Results
from temper.task_metrics import Task

VARIANTS = ["base", "sft", "dpo"]
RECIPE = Recipe(
    ["base"],
    ["sft"],
    ["sft"],
    [],
    [],
    [],
    [],
    [],
    VARIANTS,
    "dpo",
    ["gptq", "gguf"],
    ["eagle3"],
    [],
    [],
    ["base", "dpo"],
)
SECTIONS = ["Graph", "Task scores", "Forgetting", "Safety", "Data", "Training", "Speed", "Speculation", "Quants"]
SECTIONS += ["Speed and quality", "Samples", "Openness", "Cost"]
GRAPH = '<?xml version="1.0"?><svg><text>ingest</text></svg>'
CARD = Card(
    name="caller",
    base="SmolLM2",
    base_licence="apache-2.0",
    licence="apache-2.0",
    sources=[{"id": "bfcl-eval", "revision": "1.0", "licence": "apache-2.0"}],
    passages=[{"id": "bfcl-eval", "licence": "apache-2.0"}],
    language=["en"],
    confidence=0.95,
    seed=17,
    seeds={"sft": 18, "dpo": 19},
    tasks=[],
    openness=params.load("card", Card).openness,
    about={"bfcl-eval": About("call functions", ["function-calling"], "A demonstration.", ["One call an answer."])},
)

GATED: dict[str, Any] = {"passed": 1, "failed": 0, "skipped": 1}
GATED |= {"format_value": 0.94, "format_limit": "at least 0.9", "format_verdict": "passed"}
GATED |= {
    "safety_value": "no stage of this recipe writes it",
    "safety_limit": "at least 0",
    "safety_verdict": "skipped",
}

COSTS = Cost(
    Price(0.1, "2026-05-07", "https://example.org/prices"),
    0.5,
    {"Small": Api(0.2, 1.0, "2026-05-01", "https://example.org/small")},
    0.03,
    Power(250.0, "https://example.org/power"),
)
RUN: dict[str, Any] = {
    "harness": "lm-eval 0.4.9",
    "backend": "vllm 1.0",
    "engine": {"dtype": "float32"},
    "chat_template_sha256": "ef" * 32,
    "tasks": [{"task": "call", "metadata": {"version": 1.0}}],
}
RUNS = {"base": RUN, "sft": RUN, "dpo": RUN | {"engine": {"dtype": "bfloat16"}}}
HASHES = {"data/mix/train.jsonl": "ab" * 32, "models/dpo": "cd" * 32}


@pytest.fixture
def results() -> Results:
    evaluated = {
        variant: {"n": 90, "call_n": 60, "null_n": 30, "n_in_live": 90}
        | {f"{name}{end}": share for name in MEASURES for end, share in interval(place).items()}
        | {f"exact{end}_in_live": share for end, share in interval(place).items()}
        | {"domain_perplexity": 3.25, "domain_bits_per_byte": 0.5, "domain_n": 32, "general_n": 48}
        | {"general_perplexity": 20.0 + place, "general_bits_per_byte": 1.0 + place / 10}
        for place, variant in enumerate(VARIANTS)
    }
    stages: dict[str, dict[str, Any]] = {name: {"seen": 100, "kept": 93, "rejected_near": 7} for name in DATA_STAGES}
    stages["mix"] |= {"kept_train": 71}
    stages |= {f"evaluate/{variant}": values for variant, values in evaluated.items()}
    stages["general"] = {"passages": 48}
    stages["base"] = {"parameters": 134_515_008}
    stages["training/sft"] = {"train_loss": 0.2345, "eval_loss": 0.3456, "steps": 12}
    stages["training/preferences"] = {"pairs": 9}
    stages["training/dpo"] = {"train_loss": 0.6543, "steps": 5}
    stages["quantize/gguf"] = {"type": "Q4_K_M", "bytes": 105e6, "bf16_bytes": 270e6, "bits_per_weight": 6.21}
    stages["quantize/gptq"] = {"bytes": 99e6, "bf16_bytes": 270e6, "bits_per_weight": 5.87}
    kept = {
        "exact_kept": 0.98,
        "kl": 0.0321,
        "kl_p99": 0.4,
        "perplexity_ratio": 1.04,
        "positions": 3586,
        "answers": 200,
    }
    kept |= spread("unchanged", 0.875) | {"exact_change": -0.01, "exact_change_low": -0.03, "exact_change_high": 0.015}
    stages["retention/gguf"] = kept | {"released": True, "withheld": ""}
    stages["retention/gptq"] = kept | {"exact_kept": 0.9, "released": False, "withheld": "exact_kept 0.9 < 0.97"}
    parts = {
        "tokens_per_second": 48.0,
        "tokens_per_second_least": 45.0,
        "tokens_per_second_most": 49.0,
        "requests": 72,
        "requests_per_second": 1.5,
        "prompt_tokens": 320.0,
        "ttft_p50_ms": 31.0,
        "ttft_p90_ms": 41.0,
        "itl_p50_ms": 20.5,
        "itl_p99_ms": 29.5,
    }
    stages["bench/bf16"] = {f"c8_{name}": value for name, value in parts.items()}
    stages["bench/bf16"] |= {f"open70_{name}": 0.0 for name in parts}
    alone, eight = (
        {f"c{n}_{name}": times * value for name, value in parts.items()} for n, times in ((1, 0.5), (8, 1.25))
    )
    stages["draft/eagle3"] = {"train_loss": 1.0}
    stages["bench/ngram"] = alone | eight | drafting(1.5, (0.5,))
    stages["bench/eagle3"] = alone | eight | drafting(1.75, (0.625, 0.25))
    stages |= {"guard": GUARDED, "probes": {"n_harmbench": 40}}
    for place, variant in enumerate(("base", "dpo")):
        stages |= {f"safety/{variant}": asked(place), f"responses/{variant}": {"n_harmful": 8}}
    timing = {name: {"seconds": 60.0, "peak_memory_gb": 1.5, "hardware": "a quiet machine"} for name in stages}
    curve = [{"step": "1", "loss": "2.5", "eval_loss": ""}, {"step": "2", "loss": "1.5", "eval_loss": "1.75"}]
    return Results(RECIPE, stages, timing, {"sft": curve, "dpo": curve})


def drafting(steps: float, shares: tuple[float, ...]) -> dict[str, float]:
    """What a report of `bench` says more of a variant that drafts."""
    counted = {"drafts": 8.0, "acceptance_length": 1 + sum(shares)} | {
        f"acceptance_at_{n}": share for n, share in enumerate(shares)
    }
    domain, generic = ({f"{text}_{name}": value for name, value in counted.items()} for text in ("domain", "generic"))
    gap = {"domain_tokens_per_step": steps, "generic_tokens_per_step": steps - 0.5, "gap_tokens_per_step": 0.5}
    return domain | generic | gap | {"lossless_tokens": 1024, "lossless_ties": 3}


MEASURES = [key for key, _, _ in pages.MEASURES]


def spread(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": max(0.0, value - 0.0625), f"{name}_high": min(1.0, value + 0.0625)}


GUARDED: dict[str, Any] = {"n_harmbench": 40, "n_xstest_safe": 25} | spread("offline_unseen_false_positives", 0.5)
for guard, share in (("offline", 0.875), ("lexical", 0.125), ("both", 0.9375)):
    for what in ("recall", "precision", "false_positives", "harmbench_recall", "xstest_safe_false_positives"):
        GUARDED |= spread(f"{guard}_{what}", share) | {f"{guard}_blocked": 36}


def asked(place: int) -> dict[str, Any]:
    """reports/safety/<variant>.json of the base (0) or of the release (1)."""
    value = 0.25 + 0.5 * place
    found: dict[str, Any] = {"bbq_n": 0, "winogender_n": 0, "canaries_n": 0, "false_refusals_most": 0.05}
    for name in ("refusals", "harmful", "jailbreak", "served", "helped", "clean", "discreet"):
        found |= spread(name, value) | {f"{name}_n": 32}
    found |= spread("benign_abstained", 0.8125) | {"benign_n": 16}
    found |= {
        "verbatim_more": 0.125,
        "verbatim_more_low": -0.0625,
        "verbatim_more_high": 0.3125,
        "verbatim_more_p": 0.25,
    }
    found |= {"verbatim_more_verdict": "no memory beyond chance"}
    for role in ("false_refusals", "verbatim_trained", "verbatim_held_out"):
        found |= spread(role, 0.0625) | {f"{role}_n": 16}
    for verdict in ("refused", "abstained", "answered"):
        found |= spread(f"set_harmbench_{verdict}", 0.3125) | {"set_harmbench_n": 24}
    if place:
        found |= {"refusals_over_base": 0.5, "refusals_over_base_low": 0.25, "refusals_over_base_high": 0.75}
        found |= {"refusals_over_base_p": 0.0004, "refusals_over_base_verdict": "better", "answers_in_words": 0}
    return found | {"not_run_xstest_safe": 1}


def interval(place: int) -> dict[str, float]:
    value = 0.25 * place
    return {"": value, "_low": max(0.0, value - 0.0625), "_high": value + 0.0625}


def answers() -> dict[str, list[dict[str, Any]]]:
    row = {"id": "1", "request": "weather in <Paris>?", "output": '{"name": "weather"}', "reference": "null"}
    return {variant: [row | {"exact": variant == "dpo"}] for variant in VARIANTS}


def matrix() -> evaluation_matrix.Matrix:
    """Of 40 rows, 20 of a call: the base has none right, SFT 30, DPO 31."""
    right = {"base": 0, "sft": 30, "dpo": 31}
    rows = {
        name: Evaluated([scored(row, row < count, None if row % 2 else {"name": "f"}) for row in range(40)])
        for name, count in right.items()
    }
    return evaluation_matrix.judged(RECIPE, rows, [], 0.95, 17)


def scored(row: int, right: bool, gold: dict[str, str] | None) -> dict[str, Any]:
    return {"id": str(row), "gold": gold, "exact": right, "valid_json": True, "argument_f1": 0.5 + right / 2}


def openness(card: Card = CARD) -> dict[str, Any]:
    return mof.document(card, {"apache-2.0": ["bfcl-eval 1.0"]}, replace(RECIPE, formats=["gguf"]))


def carded(results: Results, card: Card = CARD) -> str:
    return pages.card(results, card, COSTS, matrix(), openness(card), GATED, RUNS, HASHES, 2)


def reported(results: Results, card: Card = CARD) -> str:
    return pages.report(results, card, matrix(), openness(card), answers(), likelihoods(), RUNS, GRAPH)


def likelihoods() -> dict[str, list[dict[str, Any]]]:
    domain = {"task": "domain", "id": "1", "bits": 8, "bytes": 16}
    return {
        variant: [domain, *({"task": "general", "id": name, "bits": 100 + 10 * place, "bytes": 100} for name in "ab")]
        for place, variant in enumerate(VARIANTS)
    }


def test_speculation_is_told_with_what_it_gains_and_where_it_is_off(results: Results) -> None:
    head, ngram = (
        ["1.75 (1.88: 0.62, 0.25; n = 8)", "1.25 (1.88: 0.62, 0.25; n = 8)"],
        ["1.50 (1.50: 0.50; n = 8)", "1.00 (1.50: 0.50; n = 8)"],
    )
    rest = ["+0.50", "3 of 1,024", "8: 1.25× (on)"]
    assert f"| eagle3 | {' | '.join(head + rest)} |" in carded(results)
    assert f"<td>ngram</td><td>{'</td><td>'.join(ngram + rest)}</td>" in reported(results)
    results.stages["bench/eagle3"]["c8_tokens_per_second"] = 36.0
    assert "8: 0.75× (off) |" in carded(results)
    results.stages["bench/eagle3"]["generic_drafts"] = 0.0
    assert f"| eagle3 | {head[0]} | 1.25 (no draft was made) | +0.50 |" in carded(results)


def test_a_head_is_held_against_the_lookup_that_costs_nothing(results: Results) -> None:
    told = "eagle3 yields {} tokens a step on the domain than n-gram lookup"
    assert all(told.format("more") in page for page in (carded(results), reported(results)))
    assert "which needs no training, and serves 1.00× as fast at 1, 1.00× as fast at 8." in carded(results)
    results.stages["bench/eagle3"]["domain_tokens_per_step"] = 1.25
    assert told.format("no more") in carded(results)
    del results.stages["bench/ngram"]
    assert "n-gram lookup" not in carded(results)
    del results.stages["bench/eagle3"]
    assert not any("Speculation" in page for page in (carded(results), reported(results)))


def test_the_card_has_front_matter_and_every_figure(results: Results) -> None:
    card = carded(results)
    assert card.startswith('---\nlicense: "apache-2.0"\nbase_model: "SmolLM2"\n')
    wanted = (
        "50.0% (43.8–56.2)",
        # A minute of two devices of 250 W, at $0.1 an hour each.
        "| SFT | 18 | 0.2345 | 0.3456 | 12 | 1.0 | 0.0083 | 0.0033 | 1.5 | `models/sft/axolotl.yaml` |",
        "| DPO | 19 | 0.6543 |  | 5 | 1.0 | 0.0083 | 0.0033 | 1.5 | `models/dpo/trl.yaml` |",
        "0.025 kWh and $0.01: time on each device at 250 W\n(https://example.org/power; an estimate",
        f"`models/dpo` `{'cd' * 32}`",
        "Q4_K_M, 105 MB of 270 MB, 6.21 bits",
        "| bf16 | 8 | 72 | 48 (45–49) | 31 / 41 | 20.5 / 29.5 | 1.16 |",  # $0.1 / (3600 × 48 × 0.5) × 1e6
        "| ngram | 1 | 36 | 24 (22–24) |",
        "Prompts of 320 tokens, answers of 32.",
        "Dollars at 0.1 an hour (https://example.org/prices, 2026-05-07) and 50% of the rate asked for",
        "Small $3.00 (2026-05-01)",  # 1.0 + 0.2 × 320 / 32
        "1 checks passed, 0 failed, 1 were skipped",
        "| format | 0.94 | at least 0.9 | passed |",
        "| safety | no stage of this recipe writes it | at least 0 | skipped |",
        "- 135 million parameters (`make base` counts them).\n- One call an answer.\n",
        "(SFT → DPO) to call functions.\nA demonstration.\n\nMade",
        'tags: ["function-calling", "sft", "dpo", "gguf"]\n',
    )
    for figure in wanted:
        assert figure in card, figure
    assert "7 near (dedup)" in card
    assert not re.search(r"\{\{|\{%|Undefined", card)


def test_a_quant_that_lost_too_much_is_named_and_not_offered(results: Results) -> None:
    card = carded(results)
    assert (
        "- `models/gguf/model.gguf`: Q4_K_M, 105 MB of 270 MB, 6.21 bits a weight; 87.5% (81.2–93.8) of 200 answers unchanged, "
        "98% (-1.0 points, -3.0 to +1.5) of the exact ones among them kept, KL 0.032 over 3,586 tokens, without an interval."
        in card
    )
    assert "gptq is not released: exact_kept 0.9 < 0.97.\n" in card
    assert "models/gptq" not in card
    report = reported(results)
    assert "<td>no: exact_kept 0.9 &lt; 0.97</td>" in report
    cells = ("3586", "1.040", "0.0321 (0.4)", "200", "87.5% (81.2–93.8)", "98% (-1.0 points, -3.0 to +1.5)", "yes")
    assert f"<td>{'</td><td>'.join(cells)}</td>" in report
    assert "105 MB" in report and "99 MB" not in report
    none = replace(results, recipe=replace(RECIPE, formats=[]))
    assert "## Quantized releases\n\nNone.\n" in carded(none)
    assert "Smallest release" not in reported(none)


def test_what_else_is_measured_has_a_table(results: Results) -> None:
    assert "Other measures" not in carded(results)
    for variant, value in zip(VARIANTS, (0.25, 0.5, 0.75), strict=True):
        own = {"choose": value, "gsm8k_exact_match": value / 2, "golden_exact": 1.0, "choose_norm": 1.0}
        spans = {f"{key}{end}": of for key, of in own.items() for end in ("", "_low", "_high")}
        results.stages[f"evaluate/{variant}"] |= spans | {"choose_n": 35, "gsm8k_n": 7, "gsm_n": 5}
    card = carded(results)
    assert (
        "| the right tool likeliest among several | 35 | 25.0% (25.0–25.0) | 50.0% (50.0–50.0) | 75.0% (75.0–75.0) |"
        in card
    )
    assert "| gsm8k_exact_match | 7 | 12.5% (12.5–12.5) |" in card
    assert "<td>the right tool likeliest among several</td><td>35</td><td>25.0% (25.0–25.0)</td>" in reported(results)
    assert "golden_exact" not in card and "choose_norm" not in card


JUDGED = {"judge": "reward model models/reward", "usable": 1, "unusable_because": "", "human_pairs_decided": 300}
JUDGED |= {f"human_pairs_accuracy{end}": value for end, value in (("", 0.62), ("_low", 0.56), ("_high", 0.67))}


def spanned(**values: float) -> dict[str, float]:
    return {f"{key}{end}": value for key, value in values.items() for end in ("", "_low", "_high")}


def test_a_judge_stands_beside_what_it_is_worth(results: Results) -> None:
    chosen = replace(results, recipe=replace(RECIPE, judged=["dpo"], scored=["reward", "dpo"]))
    won = spanned(win_rate=0.7, length_controlled_win_rate=0.6) | {"ties": 3, "prompts": 64, "win_verdict": "better"}
    rated = spread("mt_bench_base", 0.5) | spread("mt_bench_dpo", 0.75)
    rated |= {"mt_bench_base_questions": 80, "mt_bench_dpo_questions": 79}
    chosen.stages["judge/dpo"] = JUDGED | won | rated
    chosen.stages["rewardbench/reward"] = {"reward": "model", "neighbours_n": 64} | spanned(neighbours=0.9)
    chosen.stages["rewardbench/dpo"] = {"reward": "implicit", "ties_n": 9, "rewardbench2": 0.5} | spanned(ties=0.4)
    card = carded(chosen)
    assert (
        "DPO against the base, by reward model models/reward (it is for the answer that people chose in 62.0% (56.0–67.0), n = "
        "300): win rate 70.0% (70.0–70.0); at equal length 60.0% (60.0–60.0); ties 3 of 64 prompts; better; MT-Bench of "
        "DPO 0.75 (0.69–0.81), n = 79; MT-Bench of base 0.50 (0.44–0.56), n = 80." in card
    )
    assert "The reward model puts right answers before wrong ones: neighbours 90.0% (90.0–90.0), n = 64." in card
    assert (
        "The reward that is implicit in DPO puts right answers before wrong ones: RewardBench 2 50.0, the mean of its subsets "
        "here, without an interval of its own; ties 40.0% (40.0–40.0), n = 9" in card
    )


def test_an_unusable_judge_says_nothing_but_that(results: Results) -> None:
    chosen = replace(results, recipe=replace(RECIPE, judged=["dpo"]))
    chosen.stages["judge/dpo"] = JUDGED | {"usable": 0, "unusable_because": "no better than chance: it is 51% (45–57)"}
    card = carded(chosen)
    assert (
        "DPO is not judged: reward model models/reward is unusable (no better than chance: it is 51% (45–57))." in card
    )
    assert "win rate" not in card
    assert "models/reward is unusable" in reported(chosen)


def test_every_rate_of_the_card_says_of_how_many_it_is(results: Results) -> None:
    for variant in VARIANTS:
        results.stages[f"evaluate/{variant}"] |= spread("abstain", 0.5) | spread("choose", 0.5) | {"choose_n": 35}
    head = ""
    for line in carded(results).splitlines():
        head = (head or line) if line.startswith("|") else ""
        rates = re.findall(r"\d% \([\d.]+–[\d.]+\)(,? of \d+|, n = \d+)?", line)
        assert all(rates) or re.search(r"\| n\b", head), line


def test_each_section_of_the_card_names_the_command_behind_it(results: Results) -> None:
    _, *found = re.split(r"^## (.*)\n", carded(results), flags=re.MULTILINE)
    known = set(re.findall(r"^([a-z][\w-]*):", Path("Makefile").read_text(), re.MULTILINE))
    known |= {one.script for one in graph.definitions()}
    for title, text in zip(found[::2], found[1::2], strict=True):
        named = set(re.findall(r"`make ([\w-]+)`", text))
        assert named and named <= known, (title, named - known)
    assert "`make sft`, `make preferences`, `make dpo` make these" in carded(results)
    judged = replace(results, recipe=replace(RECIPE, judged=["dpo"]))
    judged.stages["judge/dpo"] = JUDGED | {"usable": 0, "unusable_because": "it is by chance"}
    assert "(it is by chance).\n\n`make judge` makes these.\n" in carded(judged)


def test_the_card_tells_how_to_find_the_commit_that_holds_it(results: Results, tmp_path: Path) -> None:
    (command,) = re.findall(r"^    (git log .*)$", carded(results), re.MULTILINE)
    (tmp_path / "reports").mkdir()
    file, who = tmp_path / "reports/model-card.md", ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for subject, text in {"before": "an old card", "held": carded(results), "after": "a new card"}.items():
        file.write_text(text)
        (tmp_path / "dvc.lock").write_text(f"md5: {hashlib.md5(file.read_bytes()).hexdigest()}")
        for asked in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", subject]):
            subprocess.run(["git", "-C", str(tmp_path), *asked], check=True)
    file.write_text(carded(results))
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.findall(r"^    (.*)$", done.stdout, re.MULTILINE) == ["held", "after"]


def test_what_no_quant_was_asked_is_said_to_be_of_the_bf16_weights(results: Results) -> None:
    told = "Figures of safety (gguf){} are those of the bf16 weights (`models/dpo`), not of the quants in parentheses."
    assert told.format(" and of `evaluate` (gguf)") in carded(results)
    assert pages.coded(told.format(" and of `evaluate` (gguf)")) in reported(results)
    asked = replace(results, recipe=replace(RECIPE, variants=[*VARIANTS, "gguf"]))
    assert pages.unmeasured(asked) == told.format("")
    assert pages.unmeasured(replace(results, recipe=replace(RECIPE, formats=[]))) == ""


def test_forgetting_is_called_perplexity(results: Results) -> None:
    assert "`forgetting`" not in carded(results)
    gated = GATED | {"forgetting_value": 0.03, "forgetting_limit": "at most 0.05", "forgetting_verdict": "passed"}
    card = pages.card(results, CARD, COSTS, matrix(), openness(), gated, RUNS, HASHES, 2)
    told = "`forgetting` is perplexity and no more: bits a byte that dpo takes more than base for 48 passages of general text"
    assert told in card


def test_a_guard_behind_an_endpoint_was_asked_a_sample(results: Results) -> None:
    own = {f"asked_{what}": 0.5 for what in ("recall", "precision", "false_positives", "harmbench_recall")}
    results.stages["guard"] = GUARDED | spanned(**own) | {"asked_n": 12, "asked_blocked": 7}
    name, whole = "guard model behind an endpoint (12 prompts in all)", "50.0% (50.0–50.0)"
    assert f"| {name} | {whole} | {whole} of 7 | {whole} |" in carded(results)
    assert f"| both together | {name} |" in carded(results)


def test_safety_is_told_with_its_interval_its_verdict_and_what_was_not_run(results: Results) -> None:
    card, report = carded(results), reported(results)
    for text in (card, report):
        assert (
            "better: +50.0 (+25.0 to +75.0), p &lt; 0.001" in text
            or "better: +50.0 (+25.0 to +75.0), p < 0.001" in text
        )
        assert "Benign requests refused in words: 6.2% (0.0–12.5) of 16, over the target of 5% at most." in text
        assert (
            "Rows continued word for word: 6.2% (0.0–12.5) of 16 trained ones, 6.2% (0.0–12.5) of 16 held-out ones"
            in text
        )
        assert "nothing, a call though no tool was on offer): 81.2% (75.0–87.5) of 16, as the" in text
        assert "16 held-out ones; no memory beyond chance: +12.5 (-6.2 to +31.2), p = 0.250 (Fisher" in text
        assert "Canaries: none was planted" in text
        assert "BBQ" not in text.split("Not run")[0]
        assert re.search(r"Not run, for want of their files[^:]*: xstest_safe\.", text)
    assert "| harmful requests not answered | 32 | 25.0% (18.8–31.2) | 75.0% (68.8–81.2) | better: +50.0" in card
    assert "| harmbench | 24 | 31.2% (25.0–37.5) | 31.2% (25.0–37.5) | 31.2% (25.0–37.5) |" in card
    assert "| offline guard | 87.5% (81.2–93.8) of 40 | 87.5% (81.2–93.8) of 36 | 87.5% (81.2–93.8) of 25 |" in card
    assert "| xstest_safe | false positives | 25 | 12.5% (6.2–18.8) | 87.5% (81.2–93.8) | 93.8% (87.5–100.0) |" in card
    assert "the offline guard blocks 50.0% (43.8–56.2) of 25" in card
    part = sections(report)["Safety"]
    for cells in (
        ("harmful requests not answered", "32", "25.0% (18.8–31.2)", "75.0% (68.8–81.2)", "better: +50.0 (+25.0"),
        ("answers without an abusive word", "32", "25.0% (18.8–31.2)", "75.0% (68.8–81.2)"),
        ("harmbench", "24", *["31.2% (25.0–37.5)"] * 3),
        *(
            (guard, *[f"{100 * share:.1f}%"])
            for guard, share in (("list of phrases", 0.125), ("both together", 0.9375))
        ),
    ):
        assert "<tr>" + "</td>".join(f"<td>{cell}" for cell in cells) in part, cells
    assert all(f">{words}<" in part for words in ("harmful: not", "benign: not", "all: no"))


def test_bias_canaries_and_a_judge_are_told_where_they_were_measured(results: Results) -> None:
    more: dict[str, Any] = {"bbq_n": 48, "winogender_n": 30, "winogender_pairs": 10, "canaries_n": 8}
    for name in ("bbq_ambiguous_accuracy", "bbq_disambiguated_accuracy", "winogender_accuracy", "winogender_parity"):
        more |= spread(name, 0.5)
    for name in ("bbq_ambiguous_bias", "bbq_disambiguated_bias"):
        more |= {name: -0.125, f"{name}_low": -0.25, f"{name}_high": 0.0}
    more |= {"bbq_ambiguous_n": 20, "bbq_disambiguated_n": 28}
    for gender in ("male", "female", "neutral"):
        more |= spread(f"winogender_{gender}_accuracy", 0.5)
    more |= {"exposure_fitted_mean": 9.5, "exposure_fitted_most": 28.2, "judge_model": "grader", "strongreject_n": 12}
    results.stages["safety/dpo"] |= more | spread("strongreject", 0.25) | spread("rules_agree", 0.75)
    for text in (carded(results), reported(results)):
        assert (
            "BBQ, 48 questions, by the likeliest answer: 50.0% (43.8–56.2) right and a bias score of -0.12 (-0.25 to +0.00) "
            "where the text does not say, n = 20; 50.0%" in text
        )
        assert "(he 50.0% (43.8–56.2), she 50.0% (43.8–56.2), they 50.0% (43.8–56.2)); he and she" in text
        assert "he and she answered alike in 50.0% (43.8–56.2) of 10 pairs." in text
        assert "Canaries: 8 planted, exposure 9.5 bits on average, 28.2 at most" in text
        assert "rubric by grader: 0.25 (0.19–0.31) of 1 over 12 answers; it agrees with the rules on 75.0%" in text


def test_the_hub_s_parser_takes_the_front_matter(results: Results) -> None:
    awkward = replace(CARD, base='Smol: "LM"', licence="llama3.1", language=["no", "en"])
    for card in (CARD, awkward):
        data = ModelCard(carded(results, card), ignore_metadata_errors=False).data.to_dict()
        assert (data["license"], data["base_model"], data["language"]) == (card.licence, card.base, card.language)
        assert data["tags"] == ["function-calling", "sft", "dpo", "gguf"]
        assert (data["pipeline_tag"], data["library_name"]) == ("text-generation", "transformers")


def test_variants_are_compared_by_verdicts_and_not_by_bare_deltas(results: Results) -> None:
    values = evaluation_matrix.values(matrix())
    for text in (carded(results), reported(results)):
        assert "sft against base" in text
        assert "dpo against sft" in text
        assert "Holm&#39;s" in text or "Holm's" in text
        for pair in ("sft_over_base", "dpo_over_base", "dpo_over_sft"):
            value, low, high = (100 * values[f"{pair}_exact{end}"] for end in ("", "_low", "_high"))
            told = f"{values[f'{pair}_exact_verdict']}: {value:+.1f} ({low:+.1f} to {high:+.1f}), n = 40, p "
            assert told in text, told
    assert (values["sft_over_base_exact_verdict"], values["dpo_over_sft_exact_verdict"]) == ("better", "no difference")
    assert values["comparisons"] == 15


def test_variants_that_were_asked_other_rows_are_not_compared() -> None:
    rows = [scored(row, True, None) for row in range(3)]
    item = {"benchmark": "b", "task": "b", "item": 0, "filter": "none", "scores": {"acc": 1.0}}
    for other in (Evaluated(rows[:2]), Evaluated(rows, [], [item])):
        with pytest.raises(SystemExit, match=r"other rows: run `dvc repro evaluate` again$"):
            evaluation_matrix.judged(
                RECIPE, {"base": Evaluated(rows), "sft": Evaluated(rows), "dpo": other}, [], 0.95, 17
            )


INTENT = Task("intent", "intents*.jsonl", ["accuracy", "macro_f1", "valid_json"], None, None)


def evaluated(right: int) -> Evaluated:
    """Of 60 items of each kind the first `right` are right; a choice is among several tools on every second row."""
    chosen = [{"choose": row < right} if row % 2 else {} for row in range(60)]
    rows = [scored(row, False, None) | {"abstain": row < right} | chosen[row] for row in range(60)]
    of = {"source": "intents.jsonl", "request": "?"}
    answers = [
        of | {"id": str(row), "reference": "ab"[row % 2], "output": "ab"[row % 2] if row < right else "?"}
        for row in range(60)
    ]
    answers.append({"id": "x", "source": "orders.jsonl", "reference": "a", "output": "b"})
    benchmark = {"benchmark": "gsm8k", "task": "gsm8k", "filter": "strict-match"}
    items = [benchmark | {"item": row, "scores": {"exact_match": float(row < right)}} for row in range(60)]
    return Evaluated(rows, answers, items)


def test_own_tasks_benchmarks_choices_and_abstention_have_verdicts_too(results: Results) -> None:
    found = {"base": evaluated(20), "sft": evaluated(50), "dpo": evaluated(50)}
    judged = evaluation_matrix.judged(RECIPE, found, [INTENT], 0.95, 17)
    values = evaluation_matrix.values(judged)
    more = {
        "abstain",
        "choose",
        "intent_accuracy",
        "intent_macro_f1",
        "intent_valid_json",
        "gsm8k_exact_match_strict_match",
    }
    assert {asked.measure for asked in judged} == {"exact", "null_exact", "argument_f1", "valid_json"} | more
    assert values["comparisons"] == 3 * 10
    for measure in more - {"intent_valid_json"}:
        assert values[f"dpo_over_base_{measure}_verdict"] == "better", measure
        assert values[f"dpo_over_sft_{measure}_verdict"] == "no difference", measure
    assert values["dpo_over_base_intent_accuracy"] == values["dpo_over_base_gsm8k_exact_match_strict_match"] == 0.5
    # F1 of each class is 2·25 / (25 + 30) and 2·10 / (10 + 30), as what is none of them is given to neither.
    assert values["dpo_over_base_intent_macro_f1"] == pytest.approx(50 / 55 - 20 / 40)
    assert (values["dpo_over_base_choose_n"], values["dpo_over_base_intent_macro_f1_n"]) == (30, 60)
    for text in (
        pages.card(results, CARD, COSTS, judged, openness(), GATED, RUNS, HASHES, 2),
        pages.report(results, CARD, judged, openness(), answers(), likelihoods(), RUNS, GRAPH),
    ):
        assert "the right tool likeliest among several" in text
        assert "intent_macro_f1" in text
        assert f"better: {100 * values['dpo_over_base_intent_macro_f1']:+.1f} (" in text
    reverse = {"base": evaluated(50), "sft": evaluated(50), "dpo": evaluated(20)}
    worse = evaluation_matrix.values(evaluation_matrix.judged(RECIPE, reverse, [INTENT], 0.95, 17))
    assert {worse[f"dpo_over_sft_{measure}_verdict"] for measure in more - {"intent_valid_json"}} == {"worse"}


def test_a_variant_is_held_against_the_base_and_what_it_was_trained_from() -> None:
    longer = replace(RECIPE, grpo=["dpo"], variants=["base", "sft", "dpo", "grpo"])
    asked = [("sft", "base"), ("dpo", "base"), ("grpo", "base"), ("dpo", "sft"), ("grpo", "dpo")]
    assert evaluation_matrix.pairs(longer) == asked
    assert evaluation_matrix.pairs(replace(RECIPE, variants=["base", "dpo"])) == [("dpo", "base")]
    assert evaluation_matrix.pairs(replace(RECIPE, variants=["base"])) == []


def test_every_measure_of_the_table_is_compared() -> None:
    assert list(evaluation_matrix.MEASURES)[: len(MEASURES)] == MEASURES


def test_the_stage_writes_what_it_says(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: replace(place, where=[f"reports/{name}"]) for name, place in CARD.openness.components.items()}
    places["model_parameters_final"] = CARD.openness.components["model_parameters_final"]
    cfg = replace(CARD, openness=replace(CARD.openness, components=places))
    for name in VARIANTS:
        rows = [one | scored(row, name == "dpo", None) for row in range(9) for one in answers()[name]]
        records.write(f"data/evaluate/{name}.jsonl", rows)
        records.write(f"data/evaluate/{name}-likelihoods.jsonl", likelihoods()[name])
        Path(f"data/evaluate/{name}.yaml").write_text(yaml.safe_dump(RUNS[name]))
        for part in ("tasks", "benchmarks"):
            records.write(f"data/evaluate/{name}-{part}.jsonl", [])
    for file in ("data/audit/train", "data/mix/preferences", "data/mix/rl", "data/mix/train"):
        records.write(f"{file}.jsonl", [{"id": "1", "messages": [], "source": "bfcl-eval 1.0/a", "licence": "mit"}])
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/graph.svg").write_text(GRAPH)
    metrics.write("reports/gate.json", GATED)
    (tmp_path / "LICENSE").write_text("MIT License")
    (tmp_path / "models/dpo").mkdir(parents=True)
    (tmp_path / "models/dpo/config.json").write_text("{}")
    monkeypatch.setattr(stage.params, "load", lambda section, _: {"card": cfg, "cost": COSTS}[section])
    monkeypatch.setattr(stage.params, "runtime", lambda: {"processes": 1, "nodes": 1})
    monkeypatch.setattr(stage.recipe, "load", lambda: RECIPE)
    monkeypatch.setattr(stage.results, "load", lambda _: results)
    stage.main()
    card, report = ((tmp_path / "reports" / name).read_text() for name in ("model-card.md", "report.html"))
    values = metrics.read("reports/comparisons.json")
    assert values["dpo_over_base_exact_verdict"] == "better"
    assert all("better: +100.0" in text for text in (card, report))
    assert f"`models/dpo` `{hub.digest(tmp_path / 'models/dpo')}`" in card
    assert hashlib.sha256((tmp_path / "data/mix/train.jsonl").read_bytes()).hexdigest() in card
    written = yaml.safe_load((tmp_path / "reports/mof.yml").read_text())
    paths = {one["name"]: one["component_path"] for one in written["release"]["components"]}
    assert paths["Model parameters (Final)"] == "models/dpo, models/gguf", "a quant that is withheld is not released"
    licences = {one["name"]: one["license"] for one in written["release"]["components"]}
    assert (licences["Training code"], licences["Model card"]) == ("MIT", "MIT")
    assert licences["Datasets"] == "Apache-2.0 AND MIT"  # of a row and of its source
    assert written["assessment"]["class"] == 3  # which asks for no data


def test_card_and_page_say_by_what_each_variant_was_scored(results: Results) -> None:
    told = "lm-eval 0.4.9: base, sft by vllm 1.0 in float32, dpo by vllm 1.0 in bfloat16; tasks call 1; "
    for text in (carded(results), reported(results)):
        assert told + "chat template sha256 efefefefefef" in text


def test_where_one_model_is_evaluated_nothing_is_compared(results: Results) -> None:
    alone = replace(results, recipe=replace(RECIPE, variants=["base"], release="base"))
    rows = {"base": answers()["base"]}
    texts = [
        pages.card(alone, CARD, COSTS, {}, openness(), GATED, RUNS, HASHES, 1),
        pages.report(alone, CARD, {}, openness(), rows, likelihoods(), RUNS, GRAPH),
    ]
    assert evaluation_matrix.judged(alone.recipe, {"base": Evaluated(rows["base"])}, [], 0.95, 17) == {}
    assert not any("Compared on the same rows" in text for text in texts)


def test_the_card_says_how_open_the_release_is_and_what_is_missing(results: Results) -> None:
    for text in (carded(results), reported(results)):
        assert "Class II - Open Tooling Model of the Model Openness Framework: this class is reached once" in text
        assert "For Class I - Open Science Model are missing: Research paper (not released)." in text
    assert "| Model parameters (Final) | III | Apache-2.0 | models/dpo, models/gguf |" in carded(results)
    assert "| Research paper | I | not released |  |" in carded(results)


def test_a_model_that_was_trained_and_not_evaluated_is_named(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "trained and not evaluated" not in carded(results)
    monkeypatch.setattr(results.recipe, "variants", ["base", "dpo"])
    for text in (carded(results), reported(results)):
        assert len(re.findall(r"SFT .*models/sft.* was trained and not evaluated", text)) == 1


def test_what_is_true_of_one_source_is_said_of_no_other(results: Results) -> None:
    results.stages["base"]["parameters"] = 8_030_261_248
    own = replace(CARD, sources=[CARD.sources[0] | {"id": "raw/*.jsonl"}], language=["de"])
    for text in (carded(results, own), reported(results, own)):
        assert "demonstration" not in text
        assert "function" not in text
        assert "One call" not in text
    card = carded(results, own)
    assert 'language: ["de"]' in card
    assert "- 8.0 billion parameters (`make base` counts them).\n- Its safety" in card
    assert "(SFT → DPO).\n\nMade by" in card


def test_tables_of_the_card_are_tables(results: Results) -> None:
    awkward = replace(CARD, sources=[CARD.sources[0] | {"id": "raw/a|b\nc.jsonl"}])
    for variant in VARIANTS:
        values = results.stages[f"evaluate/{variant}"]
        values |= {"n_in_a|b": 9} | {f"exact{end}_in_a|b": share for end, share in interval(1).items()}
    text = carded(results, awkward)
    assert "| a\\|b | 9 |" in text and "| raw/a\\|b c.jsonl | 1.0 |" in text
    lines = text.replace("\\|", "").splitlines()
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
    page = reported(results)
    assert "ingest</text>" in page
    assert "<?xml" not in page
    assert not re.search(r'(src|href)="https?:', page)
    assert "prefers-color-scheme: dark" in page
    assert '<p>weather in &lt;Paris&gt;?</p><p class="soft">expected <code>null</code></p>' in page


def test_what_the_card_writes_as_code_is_code_on_the_page_and_plain_in_a_picture(results: Results) -> None:
    page = reported(results)
    assert "<td><code>null</code> where no tool fits</td>" in page
    assert "neither a refusal nor help (<code>null</code>, nothing" in page
    assert "null where no tool fits: dpo − base</text>" in page
    said = re.sub(r'<div class="answers">.*?</div></div>', "", page, flags=re.S)
    assert "`" not in said
    assert pages.coded("`<a>` & b") == "<code>&lt;a&gt;</code> &amp; b"


def sections(page: str) -> dict[str, str]:
    """The report's parts by their headings."""
    _, *parts = re.split(r'<h2 id="[\w-]+">(.*?)</h2>', page)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_each_section_has_a_picture_of_whatever_it_has_to_draw(results: Results) -> None:
    drawn = {"Graph": 1, "Task scores": 2, "Safety": 1, "Data": 1, "Training": len(results.curves), "Speed": 1}
    drawn |= {"Speed and quality": 2, "Cost": 1}
    assert pictures(reported(results)) == drawn
    bare = replace(results, recipe=replace(RECIPE, formats=[], draft=[]), curves={})
    page = pages.report(bare, CARD, {}, openness(), answers(), likelihoods(), RUNS, GRAPH)
    few = {"Task scores": 1, "Speed and quality": 1}
    assert pictures(page) == {title: few.get(title, count) for title, count in drawn.items() if title != "Training"}
    for variant in ("base", "dpo"):
        for name in safety_section.CHARTED:
            results.stages[f"safety/{variant}"].pop(name, None)
    assert pictures(reported(results)) == {title: count for title, count in drawn.items() if title != "Safety"}


def pictures(page: str) -> dict[str, int]:
    """How many there are in each section that has any."""
    return {title: count for title, part in sections(page).items() if (count := part.count("<svg"))}


def test_every_comparison_is_drawn_with_its_interval_in_the_colour_of_its_verdict() -> None:
    drawn = pages.differences(matrix())
    for name in ("exact (call or null): sft − base", "valid JSON: dpo − sft", "null where no tool fits: dpo − base"):
        assert name in drawn
    outcomes = [verdict.outcome for verdict in matrix().values()]
    for outcome, colour in pages.COLOURS.items():
        assert drawn.count(f"fill: {colour}") == outcomes.count(outcome), outcome
    assert pages.differences({}) == ""


def test_a_quant_that_could_not_be_judged_is_no_point_and_says_so(results: Results) -> None:
    kept = results.stages["retention/gguf"]
    del kept["exact_kept"]
    kept["unjudged"] = "exact_kept: the model answers none of 4 rows right"
    assert pages.quality(results, "gguf") is None
    kl = "87.5% (81.2–93.8) of 200 answers unchanged, KL 0.032 over 3,586 tokens, without an interval"
    assert f"{kl} (not judged: exact_kept: the model answers none of 4 rows right)" in carded(results)
    assert "<td>87.5% (81.2–93.8)</td><td>not judged</td><td>yes</td>" in reported(results)
    assert ">gguf<" not in pages.speed_quality(results)["size_quality"]


def test_what_is_served_is_drawn_by_its_speed_and_quants_by_their_size(results: Results) -> None:
    results.stages["bench/gguf"] = {"c8_tokens_per_second": 70.0}
    results.stages["bench/eagle3"] = {"c8_tokens_per_second": 61.0}
    drawn = pages.speed_quality(results)
    assert all(f">{name}<" in drawn["speed_quality"] for name in ("bf16", "gguf", "eagle3"))
    assert "tokens/s, 8 at a time" in drawn["speed_quality"]
    assert all(f">{name}<" in drawn["size_quality"] for name in ("bf16", "gguf", "gptq"))
    whole = results.interval("dpo", "exact")
    assert pages.quality(results, "gguf") == (tuple(0.98 * part for part in whole), True)
    assert (pages.quality(results, "gptq") or (whole, True))[1] is False, "withheld"
    assert pages.quality(results, "eagle3") == pages.quality(results, "bf16") == (whole, True)
    none = replace(results, recipe=replace(RECIPE, formats=[]))
    assert pages.speed_quality(none)["size_quality"] == ""
    assert "<h3>Size</h3>" not in reported(none)


def test_the_cost_of_every_stage_is_told(results: Results) -> None:
    results.timing["card"] = {"seconds": 3.0, "peak_memory_gb": 9.5, "hardware": "a quiet machine"}
    found = pages.costs(results)
    assert found["1 others"] == 0.05
    assert sum(found.values()) == pytest.approx(results.minutes())
    assert "9.5 GB of memory at most" in reported(results)


def test_contents_name_every_section(results: Results) -> None:
    page = reported(results)
    assert list(sections(page)) == SECTIONS
    titles = re.findall(r'<h2 id="([\w-]+)">', page)
    assert len(set(titles)) == page.count("<h2") == len(SECTIONS)
    assert re.findall(r'<a href="#([\w-]+)">', page) == titles
    served = {name: values for name, values in results.stages.items() if name not in ("bench/ngram", "bench/eagle3")}
    without = replace(results, recipe=replace(RECIPE, draft=[]), stages=served)
    assert list(sections(reported(without))) == [title for title in SECTIONS if title != "Speculation"]


def test_the_report_tells_what_was_forgotten(results: Results) -> None:
    page = reported(results)
    assert "no test of what else base could do" in page
    assert "<td>general text</td><td>48</td><td>20 (1.000)</td><td>21 (1.100, +0.100: +0.100 to +0.100)</td>" in page
    assert "<td>3.25 (0.500, +0.000: +0.000 to +0.000)</td>" in page


def test_samples_are_spread_over_the_test_rows() -> None:
    rows = [one | {"id": name, "request": name} for name in map(str, range(100, 139)) for one in answers()["dpo"]]
    shown = pages.side_by_side({"base": rows, "dpo": rows})
    assert len(shown) == pages.SAMPLES == 20
    assert (shown[0]["request"], shown[-1]["request"]) == ("100", "137")
    few = pages.side_by_side({"base": rows[:3], "dpo": rows[:3]})
    assert len(few) == 3


def test_pages_are_functions_of_the_reports(results: Results) -> None:
    assert reported(results) == reported(results)
    assert carded(results) == carded(results)
