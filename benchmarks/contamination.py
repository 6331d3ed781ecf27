"""What the contamination passes find, how often they are wrong, and what they cost: `python -m benchmarks.contamination`.

Verbatim: every test item of GSM8K, MMLU-Pro, MT-Bench, IFEval and HumanEval between two foreign texts. Clean rows: GSM8K train,
nl2bash, banking77 and self-instruct, and longer ones of hh-rlhf, Arena-Hard and newspaper articles. Reworded: GSM8K test items as
llm-decontaminator rewords them, with whole clean rows as the negatives, GSM8K train's the hardest of them. Every other row of
each set is for tuning: `paraphrase_chosen_…` is at the overlap, numbers and cosine with the most recall there at no more than
half the allowed false positives, `paraphrase_…` at the shipped ones, and both are measured on the rows that are left.
"""

import argparse
import csv
import dataclasses
import gzip
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from commands.compose import composed
from scripts.contamination import Contamination
from temper import (
    benchmarks,
    embeddings,
    hardware,
    intervals,
    metrics,
    nearcopies,
    ngrams,
    params,
    paraphrase,
    wheels,
)
from temper.ngrams import Item

OUT = Path("reports/benchmarks/contamination.json")
SEED = 17
REPEATS = 3
CONFIDENCE = 0.95
EDITS = (10, 15, 20)  # percent of words
SETS = {
    "gsm8k": ("gsm8k/test.jsonl", ["question"]),
    "mmlu-pro": ("mmlu_pro/mmlu_pro_test.jsonl.gz", ["question", "options"]),
    "mt-bench": ("mt_bench/question.jsonl", ["turns"]),
    "ifeval": ("ifeval/input_data.jsonl", ["prompt"]),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", ["prompt"]),
}
OVERLAPS = (0.15, 0.2, 0.3)
AGREEMENTS = (0.5, 0.6, 0.8)
COSINES = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
ALLOWED = 0.01  # false positives of the paraphrase pass
TRIED = 64  # texts that are embedded to tell how long all will take
Values = dict[str, float | str]


class Thresholds(NamedTuple):
    """Of items with numbers; an item without has its own in conf/, which were not tuned on this data."""

    min_overlap: float
    min_numbers: float
    min_cosine: float


class Match(NamedTuple):
    """A passage of a row beside an item."""

    overlap: float
    numbers: float | None
    cosine: float


Matches = dict[str, list[list[Match]]]
"""Of each source, for each row, what any of its passages is like."""


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    folder = data()
    settings = defaults()
    items = [item for name in SETS for item in loaded(folder, name)]
    rules = ngrams.Rules(settings.ngram, settings.coverage_ngram, settings.max_coverage, settings.max_items)
    started = time.process_time()
    index = ngrams.Index(items, rules)
    assert settings.minhash and settings.paraphrase
    copies = nearcopies.Copies(items, settings.minhash)
    values: Values = {
        "index_seconds": time.process_time() - started,
        "items": len({(i.benchmark, i.id) for i in items}),
    }
    clean = clean_rows(folder)
    values |= verbatim(index, items, clean, options.limit)
    values |= false_positives(index, copies, clean)
    values |= edited(index, copies, items)
    values |= speed(index, copies, clean, options.rows)
    # What of all this a process holds; the embedding model has a process of its own.
    values["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if not options.skip_paraphrase:
        values |= reworded(folder, items, clean, settings.paraphrase, options.negatives)
    command = " ".join(["python -m benchmarks.contamination", *arguments])
    metrics.write(OUT, values | {"machine": str(hardware.found()), "command": command})
    show(values)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contamination", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="for the speed of the n-gram pass")
    parser.add_argument(
        "--limit", type=int, default=None, help="items of each benchmark that are leaked verbatim (all)"
    )
    parser.add_argument(
        "--negatives", type=int, default=1000, help="clean rows of each source in the paraphrase pass, at most"
    )
    parser.add_argument("--skip-paraphrase", action="store_true", help="leave out what needs embeddings")
    return parser.parse_args(arguments)


def data() -> Path:
    if "TEMPER_TEST_DATA" not in os.environ:
        raise SystemExit("TEMPER_TEST_DATA is not set: name the folder of test data sets in it")
    return Path(os.environ["TEMPER_TEST_DATA"])


def defaults() -> Contamination:
    """The settings of conf/contamination/default.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(composed(["contamination=default"]))
        return params.load("contamination", Contamination, file)


def loaded(folder: Path, name: str) -> list[Item]:
    file, fields = SETS[name]
    path = folder / file
    return benchmarks.items(
        benchmarks.Benchmark(name, "file", None, None, wheels.digest(path), str(path), fields, licence="")
    )


def clean_rows(folder: Path) -> dict[str, list[str]]:
    """Rows of other data, as a training set has them: request and answer."""

    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    seeds = [
        row for name in ("seed_tasks", "user_oriented_instructions") for row in lines(f"self_instruct/{name}.jsonl")
    ]
    with (folder / "banking77/train.csv").open(newline="") as file:
        banking = [row["text"] for row in csv.DictReader(file)]
    with gzip.open(folder / "hh_rlhf/harmless-base.test.jsonl.gz", "rt") as file:
        talks = [json.loads(line)["chosen"].strip() for line in file]
    with gzip.open(folder / "minhash_articles/articles_1000.train.gz", "rt") as file:
        articles = [line.split(" ", 1)[1].strip() for line in file]
    return {
        "gsm8k_train": [f"{row['question']}\n{row['answer']}" for row in lines("gsm8k/train.jsonl")],
        "nl2bash": (folder / "nl2bash/all.nl").read_text().splitlines(),
        "banking77": banking,
        "self_instruct": [f"{row['instruction']}\n{row['instances'][0]['input']}" for row in seeds],  # type: ignore[index]
        "hh_rlhf": talks,
        "arena_hard": [row["turns"][0]["content"] for row in lines("arena_hard/question.jsonl")],  # type: ignore[index]
        "articles": articles,
    }


def verbatim(index: ngrams.Index, items: list[Item], clean: dict[str, list[str]], limit: int | None) -> Values:
    """Share of items found, each by its own name, with a foreign text before and after it: by the n-gram pass alone."""
    draw = random.Random(SEED)
    foreign = clean["gsm8k_train"] + clean["nl2bash"]
    values: Values = {}
    found_all = leaked_all = 0
    for name in SETS:
        leaked = [item for item in items if item.benchmark == name][:limit]
        texts = [f"{draw.choice(foreign)}\n{item.text}\n{draw.choice(foreign)}" for item in leaked]
        hits = batched(index.batch, texts)
        found = sum(
            any((h.item.benchmark, h.item.id) == (i.benchmark, i.id) for h in of)
            for of, i in zip(hits, leaked, strict=True)
        )
        values |= {f"verbatim_recall_{name}": found / len(leaked), f"verbatim_rows_{name}": len(leaked)}
        found_all, leaked_all = found_all + found, leaked_all + len(leaked)
    return values | {"verbatim_recall": found_all / leaked_all, "verbatim_recall_target": 1.0}


def name_of(item: Item) -> tuple[str, str]:
    return item.benchmark, item.id


def false_positives(index: ngrams.Index, copies: nearcopies.Copies, clean: dict[str, list[str]]) -> Values:
    """Share of clean rows in which the n-gram passes or MinHash find anything, and what they find."""
    values: Values = {}
    wrong = 0
    for name, texts in clean.items():
        hits = [a + b for a, b in zip(batched(index.batch, texts), batched(copies.batch, texts), strict=True)]
        bad = [of[0] for of in hits if of]
        for hit in bad[:10]:
            print(f"clean row of {name}: {hit.item.benchmark} {hit.item.id} by {hit.rule}: {hit.matched[:110]!r}")
        values |= {f"false_positives_{name}": len(bad) / len(texts), f"clean_rows_{name}": len(texts)}
        wrong += len(bad)
    rows = sum(map(len, clean.values()))
    worst = max(clean, key=lambda name: float(values[f"false_positives_{name}"]))
    values |= {"false_positives_worst": values[f"false_positives_{worst}"], "false_positives_worst_source": worst}
    return values | {"clean_rows": rows, "false_positives": wrong / rows, "false_positives_worst_target": 0.001}


def edited(index: ngrams.Index, copies: nearcopies.Copies, items: list[Item]) -> Values:
    """Share of GSM8K items found when each word is another with a stated probability: by n-grams, and with MinHash too."""
    values: Values = {}
    wanted = [item for item in items if item.benchmark == "gsm8k"]
    for percent in EDITS:
        draw = random.Random(SEED)
        texts = [
            " ".join("edited" if draw.random() < percent / 100 else w for w in item.text.split()) for item in wanted
        ]
        runs, near = batched(index.batch, texts), batched(copies.batch, texts)
        values[f"edited_{percent}_percent_recall_ngram"] = float(np.mean([bool(of) for of in runs]))
        values[f"edited_{percent}_percent_recall"] = float(
            np.mean([bool(a or b) for a, b in zip(runs, near, strict=True)])
        )
    return values


def speed(index: ngrams.Index, copies: nearcopies.Copies, clean: dict[str, list[str]], rows: int) -> Values:
    """Microseconds of one core a row, over so many rows: the medians of interleaved repeats."""
    texts = [text for of in clean.values() for text in of]
    random.Random(SEED).shuffle(texts)
    texts = list(islice(cycle(texts), rows))
    taken: dict[str, list[float]] = {"ngram": [], "minhash": []}
    for _ in range(REPEATS):
        for name, work in (("ngram", index.batch), ("minhash", copies.batch)):
            started = time.process_time()
            batched(work, texts)
            taken[name].append((time.process_time() - started) / len(texts) * 1e6)
    return {
        "speed_rows": len(texts),
        "speed_words_a_row": sum(len(ngrams.words(text)) for text in texts) / len(texts),
        "ngram_us_a_row": median(taken["ngram"]),
        "ngram_us_a_row_target": 100,
        "minhash_us_a_row": median(taken["minhash"]),
    }


def reworded(
    folder: Path, items: list[Item], clean: dict[str, list[str]], rules: paraphrase.Rules, negatives: int | None
) -> Values:
    """Recall on reworded GSM8K test items and false positives on clean rows, on the half that no threshold is chosen on."""
    plain = list({name_of(item): item for item in reversed(items)}.values())
    lines = (folder / "llm_decontaminator/rephrase_gsm8k.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"].split("Question: ", 1)[1].split("\nAnswer:")[0] for line in lines]
    # A rewording is named after the line of its item.
    names = [("gsm8k", str(number)) for number in range(1, len(texts) + 1)]
    wanted = {"reworded": names, "reworded_in_longer": names[::5]}
    draw = random.Random(SEED)
    sources = {"reworded": texts}
    sources |= {name: draw.sample(of, min(len(of), negatives or len(of))) for name, of in clean.items()}
    words = " ".join(draw.sample(clean["nl2bash"], 12))
    sources["reworded_in_longer"] = [f"{words}. {text} {words}." for text in texts[::5]]
    loosest = dataclasses.replace(rules, min_overlap=min(OVERLAPS), min_numbers=min(AGREEMENTS))
    found, cost = matches(paraphrase.Search(plain, loosest, embeddings.embed), sources, wanted)
    tuning = {name: of[0::2] for name, of in found.items()}
    held = {name: of[1::2] for name, of in found.items()}
    shipped, best = Thresholds(rules.min_overlap, rules.min_numbers, rules.min_cosine), chosen(tuning, rules)
    values: Values = {f"paraphrase_{name}": value for name, value in shipped._asdict().items()}
    values |= {f"paraphrase_chosen_{name}": value for name, value in best._asdict().items()}
    for cosine in COSINES:
        at = shipped._replace(min_cosine=cosine)
        values |= {f"roc_{cosine:.2f}_{name}": share(of, at, rules) for name, of in held.items()}
    values |= {f"paraphrase_rows_{name}": len(of) for name, of in held.items()}
    values |= rates("paraphrase", held, shipped, rules) | rates("paraphrase_chosen", held, best, rules)
    targets = {"paraphrase_recall_reworded_target": 0.8, "paraphrase_false_positives_worst_target": ALLOWED}
    return values | cost | targets


def rates(prefix: str, found: Matches, at: Thresholds, rules: paraphrase.Rules) -> Values:
    """Recall on the reworded sets and false positives on the others at some thresholds, with intervals; and the worst of these."""
    values: Values = {}
    worst = max((name for name in found if not is_reworded(name)), key=lambda name: share(found[name], at, rules))
    for name, of in found.items():
        kind = "recall" if is_reworded(name) else "false_positives"
        values |= intervals.rate(f"{prefix}_{kind}_{name}", [is_found(row, at, rules) for row in of], CONFIDENCE)
    values[f"{prefix}_false_positives_worst"] = share(found[worst], at, rules)
    values[f"{prefix}_false_positives_worst_source"] = worst
    return values


def is_reworded(name: str) -> bool:
    return name.startswith("reworded")


def is_found(row: list[Match], at: Thresholds, rules: paraphrase.Rules) -> bool:
    return any(
        (one.overlap >= rules.min_overlap_alone and one.cosine >= rules.min_cosine_alone)
        if one.numbers is None
        else (one.overlap >= at.min_overlap and one.numbers >= at.min_numbers and one.cosine >= at.min_cosine)
        for one in row
    )


def share(rows: list[list[Match]], at: Thresholds, rules: paraphrase.Rules) -> float:
    return sum(is_found(row, at, rules) for row in rows) / len(rows) if rows else 0.0


def chosen(tuning: Matches, rules: paraphrase.Rules) -> Thresholds:
    """The thresholds of most recall with at most half the allowed false positives on each clean source; of equals the strictest."""
    clean = [of for name, of in tuning.items() if not is_reworded(name)]
    grid = [Thresholds(*values) for values in product(OVERLAPS, AGREEMENTS, COSINES)]
    fine = [at for at in grid if all(share(of, at, rules) <= ALLOWED / 2 for of in clean)]
    return max(fine or grid[-1:], key=lambda at: (share(tuning["reworded"], at, rules), at))


def matches(
    search: paraphrase.Search, sources: dict[str, list[str]], wanted: dict[str, list[tuple[str, str]]]
) -> tuple[Matches, Values]:
    """For each row what its passages are like, by the rules of `search`. Of a rewording, only its own item counts."""
    started = time.process_time()
    pairs = {name: list(search.pairs(texts)) for name, texts in sources.items()}
    rows = sum(map(len, sources.values()))
    searched = (time.process_time() - started) / rows * 1e6
    pairs = {name: [one for one in of if is_own(search, one, wanted.get(name))] for name, of in pairs.items()}
    flat = [pair for of in pairs.values() for pair in of]
    embedded = len({text for pair in flat for text in (pair.passage, search.items[pair.item].text)})
    print(f"paraphrases: {embedded} texts to embed, about {embedded * seconds_a_text(search, flat) / 60:.1f} minutes")
    began = time.monotonic()
    cosines = iter(search.cosines(flat))
    found: Matches = {name: [[] for _ in texts] for name, texts in sources.items()}
    for name, of in pairs.items():
        for pair in of:
            found[name][pair.row].append(Match(pair.overlap, pair.numbers, next(cosines)))
    return found, {
        "paraphrase_search_us_a_row": searched,
        "paraphrase_texts_embedded_a_row": embedded / rows,
        "paraphrase_ms_a_text_embedded": (time.monotonic() - began) / max(1, embedded) * 1e3,
    }


def is_own(search: paraphrase.Search, pair: paraphrase.Pair, wanted: list[tuple[str, str]] | None) -> bool:
    return wanted is None or name_of(search.items[pair.item]) == wanted[pair.row]


def seconds_a_text(search: paraphrase.Search, pairs: list[paraphrase.Pair]) -> float:
    """Of some texts, the process that embeds having been started before."""
    search.embed([pair.passage for pair in pairs[:1]])
    some = [pair.passage for pair in random.Random(SEED).sample(pairs, min(TRIED, len(pairs)))]
    began = time.monotonic()
    search.embed(some)
    return (time.monotonic() - began) / max(1, len(some))


def batched(work: Callable[[Sequence[str]], list[list[ngrams.Hit]]], texts: Sequence[str]) -> list[list[ngrams.Hit]]:
    return [hits for start in range(0, len(texts), 4_000) for hits in work(texts[start : start + 4_000])]


def show(values: Values) -> None:
    table = Table("figure", "value", "target", box=None)
    for name, value in values.items():
        if not name.endswith("_target"):
            shown = f"{value:.5g}" if isinstance(value, float) else str(value)
            table.add_row(name, shown, str(values.get(f"{name}_target", "")))
    Console(highlight=False).print(table, f"{OUT}")


if __name__ == "__main__":
    main(sys.argv[1:])
