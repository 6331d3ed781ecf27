"""How well and how fast the dedup stage finds near duplicates, beside Datatrove's own MinHash pipeline on the same rows.

    TEMPER_TEST_DATA=… python -m benchmarks.dedup [--rows 100000] [--sizes 10000 100000 1000000]

Writes reports/benchmarks/dedup.json. The truth is every pair of rows whose sets of word 5-grams have a Jaccard similarity of at
least 0.8: found by an exact join (prefix filter: Chaudhuri et al. 2006) that knows nothing of signatures. Rows are put together
from sentences of real data sets; every fifth is a copy of another with a stated number of word edits.
"""

import argparse
import csv
import dataclasses
import gzip
import itertools
import json
import math
import os
import random
import re
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from numpy.typing import NDArray

from temper import duplicates, executors, hardware, metrics, minhash, record, records
from temper.records import Row

THRESHOLD = 0.8
NGRAM = 5
SEED = 17
EDITS = (1, 2, 4, 8, 16)
SHARDS = 8
WORKERS = 2
FOUND = "found.json"  # what a child leaves in its folder: a pipe that nobody reads meanwhile takes 64 KiB and no more
ACCURATE = duplicates.Settings(NGRAM, 20, 6, THRESHOLD, SEED, min_answer_words=30)  # the stage's default
COMPARED = dataclasses.replace(ACCURATE, bands=14, rows=8)  # Datatrove's default
Pairs = NDArray[np.int64]
Labels = NDArray[np.int64]


def main() -> None:
    arguments = parse()
    if arguments.child:
        (Path(arguments.folder) / FOUND).write_text(json.dumps(CHILDREN[arguments.child](Path(arguments.folder))))
        return
    data = Path(os.environ.get("TEMPER_TEST_DATA") or sys.exit("TEMPER_TEST_DATA: set it to the folder of data sets"))
    with tempfile.TemporaryDirectory(prefix="bench-dedup-") as name:
        folder = Path(name)
        found = {
            **articles(data, folder / "articles"),
            **planted(data, arguments.rows, folder / "planted"),
            **speed(data, arguments.rows, arguments.repeats, folder / "speed"),
            **scale(data, arguments.sizes, folder / "scale"),
            **(reworded(data, folder / "reworded") if arguments.semantic else {}),
        }
    found |= {"machine": str(hardware.found()), "command": command(arguments)}
    metrics.write("reports/benchmarks/dedup.json", found)
    for key in sorted(found):
        print(f"{key:36} {found[key]:.6g}" if isinstance(found[key], float) else f"{key:36} {found[key]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000, help="of the planted set and of the timed runs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of cost per row")
    parser.add_argument("--repeats", type=int, default=3, help="of the timed runs")
    parser.add_argument("--semantic", action="store_true", help="also by embeddings, in the environment `train`")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(arguments: argparse.Namespace) -> str:
    sizes = " ".join(map(str, arguments.sizes))
    given = f"--rows {arguments.rows} --repeats {arguments.repeats} --sizes {sizes}{' --semantic' * arguments.semantic}"
    return f"python -m benchmarks.dedup {given}"


# Quality


def articles(data: Path, folder: Path) -> dict[str, Any]:
    """Recall and precision on the ten plagiarised pairs among 1,000 newspaper articles (McCormick)."""
    with gzip.open(data / "minhash_articles/articles_1000.train.gz", "rt") as lines:
        texts = dict(line.rstrip("\n").split(" ", 1) for line in lines)
    place = {name: position for position, name in enumerate(texts)}
    truth = (data / "minhash_articles/articles_1000.truth").read_text().split()
    pairs = np.array([place[name] for name in truth]).reshape(-1, 2)
    labels = ours(list(as_rows(texts.values())), ACCURATE, folder)
    return {f"articles_{key}": value for key, value in quality(labels, pairs, len(texts)).items()}


def planted(data: Path, count: int, folder: Path) -> dict[str, Any]:
    """Recall and precision on grown rows: of all pairs, and of the planted ones by how many words were edited."""
    grown = list(grow(data, count, long_share=0.15))
    rows = [row for row, _, _ in grown]
    sets, counts = shingle_ids([duplicates.content(row) for row in rows])
    pairs = exact_join(sets, counts)
    labels = ours(rows, ACCURATE, folder)
    found: dict[str, Any] = {f"planted_{key}": value for key, value in quality(labels, pairs, count).items()}
    barely = pairs[likeness(sets, counts, pairs) < THRESHOLD + 0.05]
    found |= {"planted_barely_alike": len(barely)}
    found |= {"planted_barely_alike_recall": share(labels[barely[:, 0]] == labels[barely[:, 1]])}
    for edits in EDITS:
        copies = np.array([(source, copy) for copy, (_, source, made) in enumerate(grown) if made == edits])
        similar = likeness(sets, counts, copies) >= THRESHOLD
        joined = labels[copies[:, 0]] == labels[copies[:, 1]]
        found[f"planted_edits_{edits:02d}_alike"] = int(similar.sum())
        found[f"planted_edits_{edits:02d}_recall"] = share(joined[similar])
        found[f"planted_edits_{edits:02d}_unlike"] = int((~similar).sum())
        found[f"planted_edits_{edits:02d}_unlike_joined"] = int(joined[~similar].sum())
    return found


def reworded(data: Path, folder: Path, count: int = 400) -> dict[str, Any]:
    """How many GSM8K questions find their reworded selves, and how many find another: conf/dedup/semantic.yaml."""
    originals = [row["question"] for row in itertools.islice(records.read(data / "gsm8k/test.jsonl"), count)]
    lines = itertools.islice(records.read(data / "llm_decontaminator/rephrase_gsm8k.jsonl"), count)
    others = [row["text"].split("Answer:")[0].removeprefix("Question:") for row in lines]
    settings = dataclasses.replace(ACCURATE, semantic=duplicates.Semantic(similarity=0.9, max_words=100))
    labels = ours(list(as_rows([*originals, *others])), settings, folder)
    found = labels[:count] == labels[count:]
    return {
        "semantic_recall": share(found),
        "semantic_rows_lost_to_others": int(len(labels) - len(set(labels.tolist())) - found.sum()),
    }


def quality(labels: Labels, pairs: Pairs, count: int) -> dict[str, Any]:
    """Of the true pairs, how many share a label; and of the pairs that share one, how many truth connects.

    Clusters are chains of alike rows, in the truth as in what is found; `direct` asks the two rows of a pair themselves.
    """
    together = np.array([pair for group in groups(labels) for pair in itertools.combinations(group, 2)], dtype=np.int64)
    together = together.reshape(-1, 2)
    truth = duplicates.components(count, [pairs])
    keys = set(map(tuple, np.sort(pairs, axis=1).tolist()))
    return {
        "pairs": len(pairs),
        "recall": share(labels[pairs[:, 0]] == labels[pairs[:, 1]]),
        "recall_target": 0.99,
        "precision": share(truth[together[:, 0]] == truth[together[:, 1]]),
        "precision_target": 0.99,
        "precision_direct": share(np.array([tuple(pair) in keys for pair in together.tolist()])),
    }


def groups(labels: Labels) -> Iterator[list[int]]:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.append(True, labels[order][1:] != labels[order][:-1]))
    return (group.tolist() for group in np.split(order, starts[1:]))


def ours(rows: Sequence[Row], settings: duplicates.Settings, folder: Path) -> Labels:
    """For each row the position of the row that stays in its place."""
    source = write_shards(rows, folder)
    verdicts = duplicates.find(source, settings, folder / "work", executors.Local("local", WORKERS))
    kept: dict[str, str] = {}
    for shard, verdict in zip(source, verdicts, strict=True):
        marked = duplicates.marked(records.read(shard), verdict)
        kept |= {row["id"]: row.get("kept", row["id"]) for row in marked}
    place = {row["id"]: position for position, row in enumerate(rows)}
    return np.array([place[kept[row["id"]]] for row in rows])


# Truth


def shingle_ids(texts: Iterable[str]) -> tuple[NDArray[np.uint32], Pairs]:
    """(ids, counts): each text's set of word n-grams as ascending ids, the rarest first. Python's own tuples and hash."""
    hashed: list[int] = []
    counts = []
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        grams = {hash(tuple(words[start : start + NGRAM])) for start in range(max(1, len(words) - NGRAM + 1))}
        hashed.extend(grams)
        counts.append(len(grams))
    _, inverse, frequency = np.unique(np.array(hashed, np.int64), return_inverse=True, return_counts=True)
    rank = np.empty(len(frequency), np.uint64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
    owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    keys = np.sort((owners << np.uint64(32)) | rank[inverse])
    return keys.astype(np.uint32), np.array(counts)


def exact_join(sets: NDArray[np.uint32], counts: Pairs) -> Pairs:
    """Every pair of texts with a Jaccard similarity of at least THRESHOLD: they share one of their rarest n − ⌈t·n⌉ + 1 ids."""
    starts = np.cumsum(counts) - counts
    prefix = counts - np.ceil(THRESHOLD * counts - 1e-9).astype(np.int64) + 1
    ids = sets[minhash.ragged(starts, prefix)]
    owners = np.repeat(np.arange(len(counts)), prefix)
    order = np.argsort(ids, kind="stable")
    ids, owners = ids[order], owners[order]
    candidates: set[int] = set()
    for distance in range(1, len(ids)):
        near = np.flatnonzero(ids[distance:] == ids[:-distance])
        if not len(near):
            break
        left, right = owners[near], owners[near + distance]
        possible = np.minimum(counts[left], counts[right]) >= THRESHOLD * np.maximum(counts[left], counts[right])
        candidates.update((left[possible] * len(counts) + right[possible]).tolist())
    pairs = np.stack(np.divmod(np.array(sorted(candidates), np.int64), len(counts)), axis=1)
    return pairs[likeness(sets, counts, pairs) >= THRESHOLD]


def likeness(sets: NDArray[np.uint32], counts: Pairs, pairs: Pairs) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair of texts."""
    starts = np.cumsum(counts) - counts
    parts = []
    for some in np.array_split(pairs, max(1, len(pairs) // 20_000)):
        sides = [(sets[minhash.ragged(starts[side], counts[side])], counts[side]) for side in some.T]
        parts.append(minhash.jaccard(*sides[0], *sides[1]))
    return np.concatenate(parts)


# Rows


def grow(data: Path, count: int, long_share: float) -> Iterator[tuple[Row, int, int]]:
    """(row, position of its source, words edited): of five rows, the last is an edited copy of the first."""
    pool = sentences(data)
    for position in range(count):
        is_copy = position % 5 == 4
        source = position - 4 if is_copy else position
        chance = random.Random(f"{SEED}/{source}")
        length = chance.randint(15, 45) if chance.random() < long_share else chance.randint(2, 6)
        words = " ".join(chance.choice(pool) for _ in range(length)).split()
        edits = EDITS[position // 5 % len(EDITS)] if is_copy else 0
        yield as_row(edited(words, edits, random.Random(f"{SEED}/{position}/edits"), pool)), source, edits


def edited(words: list[str], edits: int, chance: random.Random, pool: list[str]) -> list[str]:
    """`words` after so many insertions, deletions and replacements of one word."""
    words = list(words)
    for _ in range(edits):
        place = chance.randrange(len(words))
        new = [chance.choice(chance.choice(pool).split())] if chance.random() < 2 / 3 else []
        words[place : place + (chance.random() < 1 / 2 or not new)] = new
    return words


def sentences(data: Path) -> list[str]:
    """Sentences of five words or more: school mathematics, shell commands, bank customers' questions, newspaper articles."""
    texts: list[str] = []
    for row in records.read(data / "gsm8k/train.jsonl"):
        texts += [row["question"], row["answer"]]
    for name in ("all.nl", "all.cm"):
        texts += (data / "nl2bash" / name).read_text().splitlines()
    with (data / "banking77/train.csv").open(newline="") as lines:
        texts += [row["text"] for row in csv.DictReader(lines)]
    with gzip.open(data / "minhash_articles/articles_1000.train.gz", "rt") as lines:
        texts += [line.split(" ", 1)[1] for line in lines]
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.?!])\s+|\n", text))
    return sorted({part for part in parts if len(part.split()) >= NGRAM})


def as_row(words: Sequence[str]) -> Row:
    half = len(words) // 2
    contents = (("user", words[:half]), ("assistant", words[half:]))
    messages = [{"role": role, "content": " ".join(said)} for role, said in contents]
    return record.identified({"messages": messages, "tools": [], "gold": None, "category": "grown"})


def as_rows(texts: Iterable[str]) -> Iterator[Row]:
    return (as_row(text.split()) for text in texts)


def write_shards(rows: Iterable[Row], folder: Path) -> list[Path]:
    """The rows dealt to SHARDS files in turn."""
    paths = [folder / f"in/{shard:05d}.jsonl" for shard in range(SHARDS)]
    (folder / "in").mkdir(parents=True)
    files = [path.open("wb") for path in paths]
    for row, out in zip(rows, itertools.cycle(files), strict=False):
        out.write(records.line(row))
    for out in files:
        out.close()
    return paths


# Speed


def speed(data: Path, count: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Rows a second at the same parameters on the same rows, in processes of their own, by turns; and what each finds.

    `speed_ratio` compares the same work: request and answer as one text. In `speed_ratio_stage` ours does all that the stage
    does, which also compares requests and long answers by themselves.
    """
    rows = [row for row, _, _ in grow(data, count, long_share=0.0)]
    write_shards(rows, folder)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "stage": [], "stock": []}
    for _, (name, of) in itertools.product(range(repeats), runs.items()):
        of.append(measured(name, folder))
    seconds = {name: statistics.median(run["seconds"] for run in of) for name, of in runs.items()}
    cpu = {name: statistics.median(run["cpu_seconds"] for run in of) for name, of in runs.items()}
    sets, counts = shingle_ids([duplicates.content(row) for row in rows])
    pairs = exact_join(sets, counts)
    stock = quality(np.array(runs["stock"][0]["labels"]), pairs, count)
    found = quality(ours(rows, COMPARED, folder / "quality"), pairs, count)
    return {
        "speed_rows": count,
        "speed_rows_per_second": count / seconds["ours"],
        "speed_stock_rows_per_second": count / seconds["stock"],
        "speed_ratio": seconds["stock"] / seconds["ours"],
        "speed_ratio_target": 20,
        "speed_ratio_cpu": cpu["stock"] / cpu["ours"],
        "speed_ratio_stage": seconds["stock"] / seconds["stage"],
        **{f"speed_{key}": found[key] for key in ("recall", "precision", "precision_direct")},
        **{f"stock_{key}": stock[key] for key in ("recall", "precision", "precision_direct")},
    }


def scale(data: Path, sizes: Sequence[int], folder: Path) -> dict[str, Any]:
    """Cost per row and peak memory at growing sizes, with the stage's defaults: one process tree each, all on disk."""
    found: dict[str, Any] = {}
    for count in sizes:
        write_shards((row for row, _, _ in grow(data, count, long_share=0.0)), folder / str(count))
        run = measured("default", folder / str(count))
        found[f"scale_{count:07d}_wall_us_per_row"] = run["seconds"] / count * 1e6
        found[f"scale_{count:07d}_cpu_us_per_row"] = run["cpu_seconds"] / count * 1e6
        found[f"scale_{count:07d}_peak_gb"] = run["peak_gb"]
        found[f"scale_{count:07d}_disk_bytes_per_row"] = run["disk_bytes"] / count
        found[f"scale_{count:07d}_join_bytes_per_row"] = run["join_bytes"] / count
    least, most = (f"scale_{size:07d}_cpu_us_per_row" for size in (min(sizes), max(sizes)))
    peak = found[f"scale_{max(sizes):07d}_peak_gb"]
    return found | {
        "scale_growth": found[most] / found[least],
        "scale_growth_target": 1.2,
        "scale_peak_gb": peak,
        "scale_peak_gb_target": 4,
    }


def measured(child: str, folder: Path) -> dict[str, Any]:
    """What a child reports of itself, and the peak of its tree's memory (each shared page once), sampled while it runs."""
    started = [sys.executable, "-m", "benchmarks.dedup", "--child", child, "--folder", str(folder)]
    peak = 0
    with (
        (folder / "run.log").open("w+") as log,
        subprocess.Popen(started, stdout=log, stderr=log) as running,
    ):
        tree = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, sum(map(proportional, [tree, *descendants(tree)])))
            time.sleep(0.2)
        log.seek(0)
        if running.returncode:
            raise SystemExit(f"benchmarks.dedup: the run of {child} failed: {log.read()[-2000:]}")
    found: dict[str, Any] = json.loads((folder / FOUND).read_text())
    return found | {"peak_gb": peak / 1e9}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def proportional(process: psutil.Process) -> int:
    """Bytes of memory, a page that n processes share counting 1/n in each."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def run_ours(folder: Path) -> dict[str, Any]:
    """What Datatrove's four stages do: request and answer as one text, 14 × 8, rows in to rows out."""
    with mock.patch.object(duplicates, "VIEWS", ("text",)):
        return run_stage(folder)


def run_stage(folder: Path, settings: duplicates.Settings = COMPARED) -> dict[str, Any]:
    """The whole stage, rows in to rows out: all views, 14 × 8 unless `settings` say otherwise."""
    source = sorted((folder / "in").glob("*.jsonl"))
    with tempfile.TemporaryDirectory(prefix="bench-work-", dir=folder) as name:
        work = Path(name)
        started, before = time.monotonic(), cpu_seconds()
        executor = executors.Local("local", WORKERS)
        verdicts = duplicates.find(source, settings, work, executor)
        executors.run(Filter(source, verdicts, work), len(source), work / "steps/filter", executor)
        seconds, cpu = time.monotonic() - started, cpu_seconds() - before
        disk = sum(path.stat().st_size for path in work.rglob("*") if path.is_file() and "kept" not in path.parts)
        join = join_bytes(len(source), work)
    return {"seconds": seconds, "cpu_seconds": cpu, "disk_bytes": disk, "join_bytes": join}


def run_default(folder: Path) -> dict[str, Any]:
    return run_stage(folder, ACCURATE)


def join_bytes(shards: int, work: Path) -> int:
    """Memory that the stage's one task over all rows takes, above what a process has before it."""
    duplicates.components(1, [np.zeros((1, 2), np.int64)])  # loads SciPy, of which a process has one
    tracemalloc.start()
    duplicates.judge(shards, work, 0, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


class Filter:
    """The last step: a shard's rows that stay."""

    def __init__(self, source: list[Path], verdicts: list[Path], work: Path) -> None:
        self.source, self.verdicts, self.work = source, verdicts, work

    def __call__(self, rank: int, world_size: int) -> None:
        rows = duplicates.marked(records.read(self.source[rank]), self.verdicts[rank])
        kept = (row for row in rows if "reason" not in row)
        records.write(self.work / "kept" / self.source[rank].name, kept)


def run_stock(folder: Path) -> dict[str, Any]:
    """Datatrove's four stages as its examples have them, on request and answer: 5-grams, 14 × 8, 2 processes."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    source = sorted((folder / "in").glob("*.jsonl"))

    def read(data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for row in records.read(source[rank]):
            yield Document(text=duplicates.content(row), id=row["id"])

    config = MinhashConfig(n_grams=NGRAM, num_buckets=COMPARED.bands, hashes_per_bucket=COMPARED.rows, seed=SEED)
    with tempfile.TemporaryDirectory(prefix="bench-stock-", dir=folder) as name:
        signatures, buckets, clusters, kept = (
            f"{name}/{part}" for part in ("signatures", "buckets", "clusters", "kept")
        )
        steps: list[tuple[list[Any], int]] = [
            ([read, MinhashDedupSignature(output_folder=signatures, config=config)], len(source)),
            ([MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)], COMPARED.bands),
            (
                [
                    MinhashDedupCluster(
                        input_folder=buckets, output_folder=clusters, config=config, save_cluster_id=True
                    )
                ],
                1,
            ),
            ([read, MinhashDedupFilter(input_folder=clusters), JsonlWriter(kept, compression=None)], len(source)),
        ]
        started, before = time.monotonic(), cpu_seconds()
        for number, (pipeline, tasks) in enumerate(steps):
            logs = f"{name}/logs{number}"
            LocalPipelineExecutor(
                pipeline, tasks=tasks, workers=min(WORKERS, tasks), logging_dir=logs, start_method="fork"
            ).run()
        seconds, cpu = time.monotonic() - started, cpu_seconds() - before
        labels = stock_labels(source, Path(clusters))
    return {"seconds": seconds, "cpu_seconds": cpu, "labels": labels}


def stock_labels(source: Sequence[Path], clusters: Path) -> list[int]:
    """A label for each row, in the order in which the rows were dealt to the shards; the same within a cluster."""
    sizes = [sum(1 for _ in records.read(path)) for path in source]
    labels = list(range(sum(sizes)))
    first: dict[int, int] = {}
    for path in sorted(clusters.glob("*.clusters")):
        for document, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            place = int(path.stem) + document * len(source)
            labels[place] = first.setdefault(cluster, place)
    return labels


def cpu_seconds() -> float:
    """Of this process and those of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else math.nan


CHILDREN = {"ours": run_ours, "stage": run_stage, "default": run_default, "stock": run_stock}

if __name__ == "__main__":
    main()
