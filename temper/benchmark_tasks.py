"""Public benchmarks as lm-evaluation-harness defines them (prompts, answers to choose from, filters, metrics), over rows of ours.

The definition is the harness's own file, with its version; the rows come out of a file or from the Hub at a pinned commit (temper/
published.py), so that a run needs no network once they are there and reads the same items tomorrow.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from temper import ifeval, published, records, spread
from temper.published import Published
from temper.records import Row

TEST, SHOTS = "test", "shots"
IFEVAL = "ifeval/ifeval.yaml"
# What a definition says of its data, which is ours instead.
OF_DATA = ("dataset_name", "training_split", "validation_split", "test_split", "fewshot_split", "dataset_kwargs")


@dataclass
class BenchmarkTask:
    name: str
    """In metrics: gsm8k."""
    definition: str
    """A file of lm_eval/tasks/, or a glob of the parts of one benchmark."""
    fewshot: int
    """Examples before each item."""
    chat: bool
    """Whether the model's chat template is put around what is asked."""
    limit: int | None
    """Items, spread over the benchmark; null for all."""
    max_tokens: int | None
    """Of an answer, where one is written; null for what the definition says."""
    items: Published
    shots: Published | None
    """Where the examples come from; null where there are none."""


@dataclass(frozen=True)
class Loaded:
    """A benchmark with its rows."""

    task: BenchmarkTask
    items: list[Row]
    shots: list[Row]


def loaded(tasks: Sequence[BenchmarkTask]) -> list[Loaded]:
    """Every benchmark's rows, before anything runs; exits where they are not to be had, or the settings make no sense."""
    found = []
    for one in tasks:
        if one.fewshot < 0 or (one.fewshot and one.shots is None):
            raise SystemExit(
                f"evaluate.benchmarks: '{one.name}': {one.fewshot} examples, and nothing to take them from: name their rows in "
                "`shots`, or set fewshot to 0 (conf/evaluate)"
            )
        items = spread.evenly(list(published.rows(one.items)), one.limit)
        found.append(Loaded(one, items, list(published.rows(one.shots)) if one.shots and one.fewshot else []))
    if len({one.name for one in tasks}) < len(tasks):
        raise SystemExit("evaluate.benchmarks: two of one name: rename one in conf/evaluate")
    return found


def definitions(benchmark: Loaded, folder: Path, start: str, scorer: "ifeval.Scorer | None") -> list[Row]:
    """What the harness runs: each part of its definition over rows that are written to `folder`.

    `start` is the token that a text without a template begins with, where the tokenizer puts one. `scorer` scores IFEval.
    """
    files = {TEST: folder / f"{benchmark.task.name}.jsonl", SHOTS: folder / f"{benchmark.task.name}-shots.jsonl"}
    records.write(files[TEST], benchmark.items)
    if benchmark.shots:
        records.write(files[SHOTS], benchmark.shots)
    return [_local(benchmark, file, files, start, scorer) for file in parts(benchmark.task.definition)]


def parts(definition: str) -> list[Path]:
    """The files of a definition; exits where the harness has none."""
    found = sorted(_tasks().glob(definition))
    if not found:
        raise SystemExit(
            f"evaluate.benchmarks: lm-evaluation-harness has no {definition}: name a file below its tasks/ (conf/evaluate)"
        )
    return found


def samples(benchmark: Loaded, found: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """One row for each item and filter: what was asked, expected and said, and each metric."""
    for part in sorted(found):
        for one in found[part]:
            yield {
                "benchmark": benchmark.task.name,
                "task": part,
                "item": one["doc_id"],
                "filter": one["filter"],
                "asked": _text(one["arguments"][0][0]),
                "expected": str(one["target"]),
                "said": [str(said) for said in one["filtered_resps"]],
                "scores": {name: one[name] for name in one["metrics"]},
            }


def record(benchmark: Loaded, parts: Sequence[Row]) -> Row:
    """What was run: settings, the harness's version of each part, and a hash of the rows; nothing that tells a machine."""
    rows = b"".join(records.line(row) for row in [*benchmark.items, *benchmark.shots])
    return {
        **asdict(benchmark.task),
        "rows": len(benchmark.items),
        "rows_sha256": hashlib.sha256(rows).hexdigest(),
        "versions": {str(part["task"]): str((part.get("metadata") or {}).get("version")) for part in parts},
        "output_type": sorted({str(part["output_type"]) for part in parts}),
        "generation": json.loads(json.dumps(parts[0].get("generation_kwargs"))),
    }


def check_metrics(name: str, listed: Sequence[Row]) -> None:
    """Exit where a lower figure is a better one: a verdict would call it worse."""
    if lower := [one["metric"] for one in listed if one.get("higher_is_better") is False]:
        raise SystemExit(
            f"evaluate.benchmarks: '{name}': {lower[0]} is better the lower it is: name a definition all of whose metrics are "
            "better the higher they are (conf/evaluate)"
        )


def _local(benchmark: Loaded, file: Path, files: Mapping[str, Path], start: str, scorer: "ifeval.Scorer | None") -> Row:
    """The harness's definition in `file`, over our rows."""
    from lm_eval.tasks._yaml_loader import load_yaml

    is_ifeval = benchmark.task.definition == IFEVAL
    # IFEval's own functions need packages that this environment has not: they run in another.
    config = {key: value for key, value in load_yaml(file, resolve_func=not is_ifeval).items() if key not in OF_DATA}
    check_metrics(benchmark.task.name, config.get("metric_list") or [])
    splits = {TEST: str(files[TEST])} | ({SHOTS: str(files[SHOTS])} if benchmark.shots else {})
    config |= {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": splits},
        "test_split": TEST,
        "num_fewshot": benchmark.task.fewshot,
    }
    if benchmark.shots:
        config["fewshot_split"] = SHOTS
    else:
        config.pop("fewshot_config", None)
    if benchmark.task.max_tokens is not None and config["output_type"] == "generate_until":
        config["generation_kwargs"] = (config.get("generation_kwargs") or {}) | {
            "max_gen_toks": benchmark.task.max_tokens
        }
    if not benchmark.task.chat:
        config["description"] = start + config.get("description", "")
    if is_ifeval and scorer:
        config |= {"process_results": scorer.score, "metric_list": ifeval.METRICS}
    return config


def _text(asked: Any) -> str:
    return asked if isinstance(asked, str) else json.dumps(asked)


def _tasks() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__path__[0])
