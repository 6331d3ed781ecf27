"""What `make bench-…` measured of data, training, serving and evaluation, from reports/benchmarks/, as tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import metrics

FOLDER = Path("reports/benchmarks")
Values = dict[str, Any]
DATA, TRAINING = ("dedup", "pii", "contamination", "quality", "scale", "drill"), ("train",)
SERVING = ("serve", "serve_faults")
EVALUATION = ("evaluation",)
PUBLIC = ("public",)
PATTERNS = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN", "URL")
# Stages that move rows were measured on a million, those that look into the text on fewer.
WHOLE, COSTLY = ("ingest", "dedup", "split", "mix"), ("quality", "pii", "contamination")
STAGES = (*WHOLE, *COSTLY)
SIZES = (1_000_000_000, 10_000_000_000)
MICROSECONDS_AN_HOUR = 3.6e9
# What benchmarks.train changes of fp32 as PyTorch starts: by its key what it is, and which preset of `hardware` trains so.
LEVERS = {
    "bf16": ("bf16", "as a part"),
    "bf16_labelled_documents": ("bf16, logits of labelled tokens alone, attention within documents", "`cpu-bf16`"),
    "labelled_documents": ("logits of labelled tokens alone, attention within documents", "`cpu`"),
    "labelled_logits": ("logits of labelled tokens alone", "as a part"),
    "documents": ("attention within documents", "as a part"),
    "bf16_matmul": ("fp32 multiplied as bf16", "no"),
    "kept_memory": ("memory that glibc never gives back", "no"),
    "one_sequence": ("one sequence a pass", "no"),
    "no_denormals": ("denormals taken for 0", "no"),
    "fused_adamw": ("fused AdamW", "no"),
    "iomp5": ("Intel's OpenMP", "no"),
    "jemalloc": ("jemalloc", "no"),
    "tcmalloc": ("tcmalloc", "no"),
    "glibc_huge_pages": ("huge pages, by glibc", "no"),
    "huge_pages": ("huge pages, by PyTorch", "no"),
    "eager": ("eager attention", "no"),
    "one_thread": ("one thread", "no"),
}


@dataclass(frozen=True)
class Line:
    what: str
    on: str
    found: str
    target: str


def load(name: str) -> Values | None:
    path = FOLDER / f"{name}.json"
    return metrics.read(path) if path.is_file() else None


def table(names: Sequence[str]) -> str:
    """Markdown: what benchmarks measured, on what, what came out and what was wanted; a line for the machines, then DETAILS."""
    found = {name: values for name in names if (values := load(name))}
    if not found:
        return "Not measured yet."
    lines = [line for name, values in found.items() for line in LINES[name](values)]
    rows = [f"| {one.what} | {one.on} | {one.found} | {one.target} |" for one in lines]
    machines = "; ".join(sorted({str(values["machine"]) for values in found.values()}))
    notes = [NOTES[name] for name in found if name in NOTES]
    return "\n".join(
        [
            "| what | on | found | target |",
            "|---|---|---|---|",
            *rows,
            "",
            " ".join([f"Measured on {machines}; all figures in `reports/benchmarks/`.", *notes]),
            *(line for name, values in found.items() if name in DETAILS for line in DETAILS[name](values)),
        ]
    )


def scale_table() -> str:
    """Markdown: CPU-hours, disk, shuffle and the largest task's memory for SIZES rows, from the measured cost of one."""
    values, dedup = load("scale"), load("dedup")
    if values is None or dedup is None:
        return "Not measured yet."
    micros = {stage: float(values[f"{stage}_cpu_us_per_row"]) for stage in STAGES}
    disk = sum(float(values[f"{stage}_bytes_per_row"]) for stage in STAGES)
    shuffle, memory = (at_largest(dedup, f"{what}_bytes_per_row") for what in ("disk", "join"))
    head = "| rows | CPU-hours | of which | disk, all stages | dedup's shuffle | memory of its largest task |"
    rows = [
        f"| {size:.0e} | {hours(micros.values(), size):,.0f} | {shares(micros)} | {size * disk / 1e12:,.1f} TB | "
        f"{size * shuffle / 1e12:,.1f} TB | {size * memory / 1e9:,.0f} GB |"
        for size in SIZES
    ]
    notes = (
        f"{', '.join(WHOLE)} measured on {values['rows']:,} rows, {', '.join(COSTLY)} as what {values['costly_rows']:,} more rows "
        "add, with conf/'s defaults (tokens counted, three scorers, MinHash and paraphrases) but for "
        f"`{values['overrides']}`. Not in it: the start of a task, `audit`, which renders every row with the trainer's tokenizer, "
        "embeddings in dedup, and contamination's memory, which grows with the held-out rows."
    )
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, "", notes])


def at_largest(values: Values, figure: str) -> float:
    """`scale_<rows>_<figure>` of benchmarks.dedup at the largest of its sizes."""
    sizes = {int(key.split("_")[1]): key for key in values if key.startswith("scale_") and key.endswith(figure)}
    return float(values[sizes[max(sizes)]])


def hours(micros: Any, rows: int) -> float:
    return sum(micros) * rows / MICROSECONDS_AN_HOUR


def shares(micros: dict[str, float]) -> str:
    """The three dearest stages with their share."""
    total = sum(micros.values())
    dearest = sorted(micros, key=lambda stage: -micros[stage])[:3]
    return ", ".join(f"{stage} {micros[stage] / total:.0%}" for stage in dearest)


def _dedup(values: Values) -> Iterator[Line]:
    for key, on in (("articles", "1,000 newspaper articles"), ("planted", "rows grown from real text, copies planted")):
        found = f"{values[f'{key}_recall']:.3f} / {values[f'{key}_precision']:.3f} ({values[f'{key}_precision_direct']:.3f})"
        yield Line("near duplicates: recall / precision (of the pair itself)", on, found, "0.99 / 0.99")
    rate = values["speed_rows_per_second"]
    speed = f"{values['speed_ratio']:.1f}× ({rate:,.0f} rows/s); the whole stage {values['speed_ratio_stage']:.1f}×"
    yield Line(
        "near duplicates: speed against Datatrove's MinHash",
        f"the same comparison of the same {values['speed_rows']:,} rows, 14 × 8, 2 cores",
        speed,
        "20×",
    )
    recalls = f"{values['speed_recall']:.3f} / {values['stock_recall']:.3f}"
    yield Line("near duplicates: recall there, ours / Datatrove's", "the same rows", recalls, "")
    yield Line("near duplicates: memory", "the largest size", f"{values['scale_peak_gb']:.1f} GB", "under 4 GB")


def _pii(values: Values) -> Iterator[Line]:
    on = f"presidio_research, held-out {values['held_out_texts']} texts"
    # Of kinds that are equal, the one that is known least well.
    least = min(PATTERNS, key=lambda name: (float(values[f"ours_{name}_f2"]), float(values[f"ours_{name}_recall_low"])))
    theirs = min(float(values[f"presidio_{name}_f2"]) for name in PATTERNS)
    recall = f"recall {values[f'ours_{least}_recall']:.2f}, 95% interval {interval(values, f'ours_{least}_recall')}"
    which = f"{least}, n = {values[f'ours_{least}_spans']}: {recall}"
    found = f"{values[f'ours_{least}_f2']:.2f} ({which}; Presidio's defaults {theirs:.2f})"
    yield Line("identifiers by pattern: least F2 of seven kinds", on, found, "0.95")
    for name in ("PERSON", "LOCATION"):
        ours, default = (
            f"{values[f'{by}_{name}_recall']:.2f} / {values[f'{by}_{name}_precision']:.2f}"
            for by in ("ours", "presidio")
        )
        yield Line(f"{name.lower()}: recall / precision", on, f"{ours} (defaults {default})", "0.85 / 0.70")
    secrets = "; ".join(
        f"{values[f'secrets_{one}']:.2f} ({interval(values, f'secrets_{one}')})" for one in ("recall", "precision")
    )
    on = f"{values['secrets']} random keys of 20 issuers, {values['secrets_texts'] - values['secrets']} look-alikes"
    yield Line("secrets: recall; precision, with 95% intervals", on, secrets, "")
    for key, what in (("people_and_places", "people and places too"), ("patterns", "patterns alone")):
        one, two = (values[f"{key}_{count}_times_loop_same_kinds"] for count in ("1_process", "2_processes"))
        batch = values[f"{key}_2_processes_times_batch"]
        found = f"1 process {one:.1f}× its loop, 2 processes {two:.1f}×; 2 processes {batch:.1f}× its batch engine on 2, all kinds"
        yield Line(
            f"identifiers: speed against Presidio, the same kinds: {what}", "the same texts, 2 cores", found, "5×"
        )


def interval(values: Values, name: str) -> str:
    return f"{values[f'{name}_low']:.2f}–{values[f'{name}_high']:.2f}"


def _contamination(values: Values) -> Iterator[Line]:
    on = "GSM8K, MMLU-Pro, MT-Bench, IFEval, HumanEval in longer rows"
    yield Line("contamination, verbatim: recall", on, f"{values['verbatim_recall']:.3f}", "1.0")
    wrong = f"{values['false_positives_worst']:.3%} ({values['false_positives_worst_source']})"
    on = f"the worst of {len(sources(values, 'clean_rows_'))} sources, {values['clean_rows']:,} clean rows"
    yield Line("contamination: false positives", on, wrong, "at most 0.1%")
    if "paraphrase_recall_reworded" in values:
        recall = f"{values['paraphrase_recall_reworded']:.2f} ({interval(values, 'paraphrase_recall_reworded')})"
        wrong = (
            f"{values['paraphrase_false_positives_worst']:.2%} ({values['paraphrase_false_positives_worst_source']})"
        )
        yield Line(
            "contamination, reworded: recall; false positives of the worst source",
            "reworded GSM8K, whole clean rows; held-out half",
            f"{recall}; {wrong}",
            "0.8; at most 1%",
        )
    yield Line(
        "contamination: n-gram pass",
        "all benchmarks, one core",
        f"{values['ngram_us_a_row']:.0f} µs a row",
        "at most 100 µs",
    )


def sources(values: Values, prefix: str) -> list[str]:
    return [key for key in values if key.startswith(prefix)]


def _quality(values: Values) -> Iterator[Line]:
    on = "defects planted in real text"
    rules = {key.removeprefix("recall_"): float(values[key]) for key in values if key in RULES}
    worst = min(rules, key=lambda name: rules[name])
    yield Line(
        "quality rules: least recall",
        on,
        f"{rules[worst]:.2f} ({worst}); the others {sorted(rules.values())[1]:.2f} or more",
        "",
    )
    found = f"{values['read_refusals_recall']:.2f} ({interval(values, 'read_refusals_recall')})"
    yield Line(
        "refusals in real answers: recall; others taken for one",
        f"{values['read_refusals']} among {values['read_answers']} answers of hh-rlhf, labelled by reading",
        f"{found}; {values['read_refusals_false_rejects']:.3f}",
        "",
    )
    yield Line(
        "quality ensemble: AUC of the maximum", "sound against corrupted rows", f"{values['auc_maximum']:.2f}", ""
    )


def _scale(values: Values) -> Iterator[Line]:
    found = f"{values['lost']} lost, {values['repeated']} repeated"
    yield Line("killed midway and resumed", f"{values['rows']:,} rows through ingest and dedup", found, "none")
    if "kills" in values:
        found = f"{values['killed_lost']} lost, {values['killed_repeated']} repeated"
        on = f"{values['costly_rows']:,} rows from ingest to mix, beside a run that was left alone"
        yield Line(f"killed {values['kills']} times, in every stage, and resumed", on, found, "none")


def _drill(values: Values) -> Iterator[Line]:
    scores = [float(values[f"leaked_exact_{name}"]) for name in ("clean", "contaminated")]
    caught = "all caught" if values["gate_caught_all"] else "not all caught"
    found = (
        f"{caught}; let pass, exact answers on them {scores[0]:.0%} → {scores[1]:.0%} (p = {values['leaked_p']:.3f})"
    )
    yield Line("leaked into training on purpose", f"{values['leaked_n']} of {values['all_n']} test rows", found, "all")


def _train(values: Values) -> Iterator[Line]:
    if "sft_times_peer" in values:
        found = f"{values['sft_times_peer']:.2f}× its faster order, {values['sft_times_random']:.2f}× random order"
        rate = f"{values['sft_ours_tokens_per_second']:.0f} tokens/s"
        yield Line("SFT beside TRL's trainer with padding", "short chats, LoRA", f"{found} ({rate})", "2×")
    if "hand_times" in values:
        yield Line("SFT beside Axolotl by hand", "the same YAML and rows", f"{values['hand_times']:.3f}×", "0.98×")
    if "cpu_times_default" in values:
        exact = f"{values['cpu_fp32_times_default']:.2f}× in fp32"
        found = f"{values['cpu_times_default']:.2f}× with bf16, {exact}"
        yield Line("SFT on this CPU beside fp32 as PyTorch starts", "the default job's rows", found, "1.3×")
    if "grpo_times_peer" in values:
        found = f"{values['grpo_times_peer']:.2f}× ({values['grpo_ours_seconds_per_step']:.1f} s a step)"
        yield Line("GRPO beside TRL's example, which generates itself", "32 answers a step", found, "1.5×")
    if "sweep_times_stages" in values:
        smoke, default = (f"+{values[f'sweep_{name}times_stages'] - 1:.1%}" for name in ("smoke_", ""))
        found = f"{default} ({values['sweep_extra_seconds_a_run']:.1f} s a run; of the smoke preset's stages {smoke})"
        on = "seconds that DVC adds, measured on the smoke preset, over the default job's by `reports/timing`"
        yield Line("five betas beside SFT once and 5 × (DPO, evaluation)", on, found, "within 5%")


def _levers(values: Values) -> Iterator[str]:
    """Each of LEVERS that was measured, the best first."""
    times = {name: values[f"cpu_{name}_times_default"] for name in LEVERS if f"cpu_{name}_times_default" in values}
    if not times:
        return
    yield from (
        "",
        "| on this CPU, beside fp32 as PyTorch starts | found | tokens/s | trained so |",
        "|---|---|---|---|",
    )
    for name in sorted(times, key=lambda name: -times[name]):
        what, kept = LEVERS[name]
        yield f"| {what} | {times[name]:.2f}× | {spread(values, f'cpu_{name}')} | {kept} |"
    default = spread(values, "cpu_default")
    yield ""
    yield f"Medians, with the least and the most, by `{values['cpu_command']}`; fp32 as PyTorch starts: {default}."


def spread(values: Values, name: str) -> str:
    """A median of tokens/s, and the least and the most of its runs."""
    median, least, most = (values[f"{name}_tokens_per_second{which}"] for which in ("", "_least", "_most"))
    return f"{median:.0f} ({least:.0f}–{most:.0f})"


def _serve(values: Values) -> Iterator[Line]:
    def each(key: str, levels: Sequence[int]) -> str:
        return " / ".join(f"{values[f'{key}_{level}']:.2f}" for level in levels)

    if "gateway_times_bare" in values:
        found = f"{each('gateway_times_bare', (1, 8, 32))}×; without its log {each('gateway_unlogged_times_bare', (1, 8, 32))}×"
        yield Line(
            "tokens/s through `make serve` beside the bare engine", "1 / 8 / 32 at once, same flags", found, "0.97×"
        )
    if "settings_times_default" in values:
        chosen = "flags of `make serve`" if values["settings_best"] == "ours" else values["settings_together"]
        found = f"{each('settings_times_default', (8, 32))}× ({chosen})"
        yield Line("tokens/s by the best settings beside vLLM's defaults", "8 / 32 at once", found, "1.5×")
    if "speculation_times_plain" in values:
        best = values["speculation_best"]
        word = "lossless" if values["speculation_lossless"] else "NOT lossless"
        ties = f"{values[f'speculation_{best}_lossless_ties']} ties in {values[f'speculation_{best}_lossless_tokens']:,} tokens"
        found = f"{values['speculation_times_plain']:.2f}× ({best}; {word}, {ties})"
        yield Line("tokens/s with a draft beside without", "test prompts, one at a time", found, "1.3×, lossless")
    if "quants_exact_kept" in values:
        keys = (key for key in values if key.endswith("_exact_kept") and key != "quants_exact_kept")
        named = ", ".join(f"{key.split('_')[1]} {values[key]:.3f}" for key in sorted(keys))
        yield Line("exact answers that released quants keep", "of bf16's", named, "0.97")
    if "llama_times_own" in values:
        rate = f"{values['llama_ours_tokens_per_second']:.0f} tokens/s"
        on = f"the same file, behind {values['llama_depth']} tokens"
        found = f"{values['llama_times_own']:.2f}× ({rate})"
        yield Line("GGUF through `make serve` beside llama-bench's loop, in Python", on, found, "0.97×")
    if "start_times_bare" in values:
        found = f"{values['start_times_bare']:.2f}× ({values['start_ours_seconds']:.0f} s)"
        yield Line("`make serve` to the first token beside the bare engine", "the release", found, "at most 1.1×")


def _faults(values: Values) -> Iterator[Line]:
    wrong = f"{values['load_wrong']} wrong of {values['load_answers']:,} answers"
    memory = f"memory {values['load_memory_growth']:+.1%}"
    yield Line(
        f"{values['load_minutes']:g} minutes of load",
        f"{values['load_callers']} callers",
        f"{wrong}, {memory}",
        "none, flat",
    )
    failed = values["failed"] or "all held"
    on = "a full queue, bad and oversized requests, slow readers and senders, connections"
    yield Line("faults", f"{on} ({values['connections']:,})", failed, "all held")
    found = f"back after {values['kill_recovery_seconds']:.0f} s, {values['kill_taken_for_whole']} cut answers that looked whole"
    yield Line("the worker killed mid-stream, started again", f"{values['kill_streams']} streams", found, "none")


def _evaluation(values: Values) -> Iterator[Line]:
    if "equality_differing" in values:
        found = f"{values['equality_differing']} of {values['equality_compared']:,} differ"
        found += f", by {values['equality_most']:.2g} at most" if values["equality_differing"] else ""
        yield Line("scores, answers and likelihoods beside `lm_eval` by hand", "the release, vLLM", found, "identical")
    if "time_times" in values:
        found = f"{values['time_times']:.1f}× ({values['time_ours_seconds']:.0f} s, {values['time_hf_seconds']:.0f} s)"
        on = f"all tasks, {values['time_rows'] or 'all'} rows of each at most, 2 cores"
        yield Line("the matrix beside an `lm_eval` over transformers for each variant", on, found, "3×")
    if "itself_better" in values:
        found = f"{values['itself_better']:.1%} ({interval(values, 'itself_better')}) of matrices"
        of = f"the release to {values['itself_rows']} rows under {values['itself_seeds']} seeds"
        yield Line('false "better"', f"answers of {of}, {values['itself_draws']} draws", found, "at most 5%")
    if "verdicts_better_most" in values:
        matrix, most = (f"{values[f'verdicts_{name}']:.1%}" for name in ("matrix_better", "better_most"))
        found = f"{matrix} of matrices, {most} in the worst of four ways"
        on = f"simulated answers, {values['verdicts_draws']} draws"
        yield Line('false "better"', on, found, "at most 5%")
    if "gate_missed" in values:
        planted, failed = values["gate_planted"], values["gate_clean_failed"]
        found = f"{planted - values['gate_missed']} of {planted}; {failed} on the clean run"
        yield Line("regressions planted, found by the gate", "the default's run", found, "all; none")
    if "openness_differing" in values:
        found = f"{values['openness_files'] - values['openness_differing']:,} of {values['openness_files']:,}"
        yield Line("class of the Model Openness Framework as by the tool's rules", "files of every class", found, "all")


def _public(values: Values) -> Iterator[Line]:
    if "judge_dpo_usable" in values:
        right = f"{values['judge_dpo_human_pairs_accuracy']:.1%} ({interval(values, 'judge_dpo_human_pairs_accuracy')})"
        because = values["judge_dpo_unusable_because"]
        finds = "judges nothing" if because else f"preferred to the base's: {values['judge_dpo_win_rate']:.0%}"
        on = f"hh-rlhf, {values['judge_dpo_human_pairs_decided']} pairs"
        yield Line("reward model decides as people did", on, f"{right}; {finds}", "above chance")
        for name in ("reward", "dpo"):
            key = f"judge_rewards_of_{name}_neighbours"
            found = f"{values[key]:.1%} ({interval(values, key)})"
            yield Line(f"rewards of {name} put the right answer first", f"{values[f'{key}_n']} test rows", found, "")
    for variant in ("base", "dpo"):
        if f"safety_{variant}_bbq_n" in values:
            yield from _safety(variant, values)
    for variant in ("base", "sft", "dpo"):
        for key in sorted(key for key in values if key.startswith(f"scores_{variant}_") and key.endswith("_low")):
            name = key.removesuffix("_low")
            what = name.removeprefix(f"scores_{variant}_")
            items = values.get(f"{name.rpartition('_')[0]}_n", values.get(f"{name}_n"))
            yield Line(
                f"{what}, {variant}",
                f"{items} items" if items else "",
                f"{values[name]:.1%} ({interval(values, name)})",
                "",
            )


def _safety(variant: str, values: Values) -> Iterator[Line]:
    def cell(key: str) -> str:
        name = f"safety_{variant}_{key}"
        return f"{values[name]:.1%} ({interval(values, name)})"

    for name in ("xstest_safe", "xstest_unsafe", "strongreject", "advbench"):
        parts = ", ".join(
            f"{verdict} {cell(f'set_{name}_{verdict}')}" for verdict in ("refused", "abstained", "answered")
        )
        yield Line(f"{name}, {variant}", f"{values[f'safety_{variant}_set_{name}_n']} requests", parts, "")
    for where in ("ambiguous", "disambiguated"):
        bias = values[f"safety_{variant}_bbq_{where}_bias"]
        found = f"{cell(f'bbq_{where}_accuracy')} right, bias score {bias:+.2f}"
        yield Line(f"BBQ, {where}, {variant}", f"{values[f'safety_{variant}_bbq_{where}_n']} questions", found, "")
    found = f"{cell('winogender_accuracy')} right; he and she alike {cell('winogender_parity')}"
    yield Line(f"Winogender, {variant}", f"{values[f'safety_{variant}_winogender_n']} sentences", found, "")


RULES = tuple(
    f"recall_{name}"
    for name in ("encoding", "artefact", "length", "language", "repetition", "refusal", "truncation", "leak")
)
NOTES = {
    "pii": "The list of templates behind presidio_research was read while the patterns were written: expect less of other texts.",
    "quality": "Planted defects are those that the rules' authors thought of.",
}
DETAILS = {"train": _levers}
LINES = {
    "dedup": _dedup,
    "pii": _pii,
    "contamination": _contamination,
    "quality": _quality,
    "scale": _scale,
    "drill": _drill,
    "train": _train,
    "serve": _serve,
    "serve_faults": _faults,
    "evaluation": _evaluation,
    "public": _public,
}
