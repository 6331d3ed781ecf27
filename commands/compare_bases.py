"""Candidate base models on the same items before any training: prompted without and with examples, one table, one recommendation.

    python -m commands.compare_bases [override …]

Candidates are presets of conf/model, made and served here one after another, and models behind OpenAI-compatible endpoints (section
`compare`). Items are rows of splits that are not the test's. An answer is right by the task's verifier, or by the metrics of
evaluate.tasks; sampling is greedy and in one process, so that a preset's answers depend on nothing else.

Writes reports/compare-bases.{json,md}; what candidates answered stays in tmp/compare/, so that a run that was ended goes on.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from temper import candidates, conversations, envs, load, metrics, params, records, spread, vllm
from temper.candidates import FEW, ZERO, Enough, Result
from temper.conversations import Conversation
from temper.human_labels import Chat
from temper.records import Row
from temper.server import Server
from temper.task_metrics import Task
from temper.teacher import Client, Request, Teacher, api_key

SCRATCH, REPORTS, MIX = Path("tmp/compare"), Path("reports"), Path("data/mix")
SETTINGS = SCRATCH / "params.yaml"
SECTION = "compare.endpoints"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Hosted:
    name: str
    base_url: str
    model: str
    api_key_env: str | None
    usd_per_million_prompt_tokens: float
    usd_per_million_completion_tokens: float

    def teacher(self) -> Teacher:
        """As the client of endpoints takes it; the licence, which decides what answers may train, is none of a comparison's."""
        patient: dict[str, Any] = {"concurrency": 8, "timeout": 120.0, "retries": 6, "backoff": 1.0, "patience": 300.0}
        own = {key: value for key, value in asdict(self).items() if key != "name"}
        rest: dict[str, Any] = {
            "start_server": False,
            "dtype": "",
            "licence": "not trained on",
            "max_usd": None,
            "extra": {},
        }
        return Teacher(**own, **patient, **rest)


@dataclass
class Load:
    requests: int
    concurrency: int


@dataclass
class Compare:
    candidates: list[str]
    endpoints: list[Hosted]
    splits: list[str]
    rows: int | None
    shots: int
    max_tokens: int
    dtype: str
    timed: int
    load: Load
    usd_per_hour: float | None
    enough: Enough
    confidence: float
    seed: int


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] != ["--prepared"]:
        prepare(arguments)
        # vLLM is there only; the same process goes on, with settings that no longer need Hydra.
        envs.run("serve", ["-m", "commands.compare_bases", "--prepared"])
    cfg = params.load("compare", Compare, SETTINGS)
    tasks = own_tasks()
    items, shown = asked(cfg, tasks)
    ways: dict[str, list[Row]] = {ZERO: []} | ({FEW: shown} if shown else {})
    prompts = {way: [candidates.prompt(row, of) for row in items] for way, of in ways.items()}
    results = [one for name in cfg.candidates for one in served(name, items, prompts, tasks, cfg)]
    results += [one for hosted in cfg.endpoints for one in remote(hosted, items, prompts, tasks, cfg)]
    report(results, cfg)


def prepare(overrides: Sequence[str]) -> None:
    """params.yaml with the overrides, and one for each candidate; exits naming what conf/ has not."""
    from commands.compose import composed

    SCRATCH.mkdir(parents=True, exist_ok=True)
    SETTINGS.write_text(composed(list(overrides)))
    cfg = params.load("compare", Compare, SETTINGS)
    if not cfg.candidates and not cfg.endpoints:
        raise SystemExit("compare: no candidates and no endpoints: name one in conf/compare")
    for name in cfg.candidates:
        if not Path(f"conf/model/{name}.yaml").is_file():
            known = ", ".join(sorted(file.stem for file in Path("conf/model").glob("*.yaml")))
            raise SystemExit(f"compare.candidates: no preset '{name}' in conf/model: choose of {known}")
        settle(SCRATCH / name, composed([*overrides, f"model={name}"]))


def settle(folder: Path, settings: str) -> None:
    """Write a candidate's params.yaml, and take away what another base model left under its name."""
    file = folder / "params.yaml"
    if file.is_file() and yaml.safe_load(file.read_text())["base"] != yaml.safe_load(settings)["base"]:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(settings)


def own_tasks() -> list[Task]:
    from scripts.evaluate import Evaluate

    return params.load("evaluate", Evaluate, SETTINGS).tasks


def asked(cfg: Compare, tasks: Sequence[Task]) -> tuple[list[Row], list[Row]]:
    """The items, and the examples of the few-shot prompt."""
    found = [row for split in cfg.splits for row in records.read(MIX / f"{split}.jsonl")]
    items = spread.evenly(candidates.scorable(found, tasks), cfg.rows)
    if not items:
        raise SystemExit(
            f"compare: no row of {', '.join(cfg.splits)} can be told right from wrong: name other splits (compare.splits), or a "
            "task with its metrics (evaluate.tasks)"
        )
    train = candidates.scorable(list(records.read(MIX / "train.jsonl")), tasks)
    return items, candidates.examples(train, cfg.shots, cfg.seed)


def served(
    name: str, items: Sequence[Row], prompts: dict[str, list[Chat]], tasks: Sequence[Task], cfg: Compare
) -> Iterator[Result]:
    """A preset, made here and prompted both ways, then served for its times."""
    folder = SCRATCH / name
    model = made(folder)
    named = [(f"{way}/{row['id']}", chat) for way, of in prompts.items() for row, chat in zip(items, of, strict=True)]
    conversing = [Conversation(place, chat, [], 0.0) for place, chat in named]
    print(f"{name}: {len(conversing)} prompts", flush=True)
    kept, runtime = folder / f"answers-{key(conversing, cfg)}.jsonl", params.runtime(SETTINGS)
    said = [one[0] for one in conversations.answered(model, conversing, cfg.max_tokens, cfg.dtype, cfg.seed, kept)]
    vllm.prepare(runtime)
    tokenizer = vllm.Tokenizer(model)
    with Server(model, cfg.dtype, cfg.seed, runtime) as server:
        for number, (way, of) in enumerate(prompts.items()):
            answers = said[number * len(items) : (number + 1) * len(items)]
            seconds = timed(f"{server.url}/v1", server.name, "", of[: cfg.timed], cfg.max_tokens)
            sizes = [len(tokenizer.encode(tokenizer.render(chat))) for chat in of]
            rate = throughput(server, of, sizes, cfg)
            tokens = sum(sizes) + sum(len(tokenizer.encode(answer)) for answer in answers)
            yield judged(name, way, items, answers, tasks, seconds, tokens, candidates.local_price(hourly(cfg), rate))


def throughput(server: Server, chats: Sequence[Chat], sizes: Sequence[int], cfg: Compare) -> float:
    """Tokens a second, of prompts and answers, of a server with `compare.load`."""
    places = [place % len(chats) for place in range(cfg.load.requests)]
    load.run(server.url, server.name, [chats[0]], max_tokens=cfg.max_tokens)  # warms up
    asked, concurrency = [chats[place] for place in places], cfg.load.concurrency
    result = load.run(server.url, server.name, asked, max_tokens=cfg.max_tokens, concurrency=concurrency)
    return float((sum(sizes[place] for place in places) + sum(result["output_lens"])) / result["duration"])


def made(folder: Path) -> Path:
    """The preset's model as the stage `base` makes it, in `folder`."""
    model = folder / "models/base"
    if (model / "config.json").is_file():
        return model
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(envs.python("train")), "-m", "scripts.base"], cwd=folder, env=here, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name}: the model could not be made (above): mend conf/model, or leave it out")
    return model


def remote(
    hosted: Hosted, items: Sequence[Row], prompts: dict[str, list[Chat]], tasks: Sequence[Task], cfg: Compare
) -> Iterator[Result]:
    """A model behind an endpoint, prompted both ways; what it said is in a journal, so that nothing is paid for twice.

    What fails is asked again `retries` times, and counts as no answer where that does not help; exits where nothing was answered.
    """
    teacher = hosted.teacher()
    for way, chats in prompts.items():
        with Client(teacher, SCRATCH / f"{hosted.name}-{way}.journal.jsonl", section=SECTION) as client:
            requests = (client.ask(Request(chat, 0.0, 1.0, cfg.max_tokens, cfg.seed)) for chat in chats)
            replies = list(client.in_order(requests))
            usage = client.usage
        answers = [None if reply.failure else reply.text for reply in replies]
        answered = [chat for chat, answer in zip(chats, answers, strict=True) if answer is not None]
        if not answered:
            raise SystemExit(
                f"{hosted.name}: no reply to any of {len(chats)} {way} prompts ({replies[0].detail}): mend it, or leave it out of "
                f"{SECTION}"
            )
        tokens = usage.prompt_tokens + usage.completion_tokens
        seconds = timed(
            teacher.base_url, teacher.model, api_key(teacher, SECTION), answered[: cfg.timed], cfg.max_tokens
        )
        price = usage.usd(teacher) / max(1, tokens) * 1e6
        yield judged(hosted.name, way, items, answers, tasks, seconds, tokens, price)


def judged(
    name: str,
    way: str,
    items: Sequence[Row],
    answers: Sequence[str | None],
    tasks: Sequence[Task],
    seconds: Sequence[float],
    tokens: int,
    price: float,
) -> Result:
    outcomes = (
        None if answer is None else candidates.scored(row, answer, tasks)
        for row, answer in zip(items, answers, strict=True)
    )
    return Result(name, way, tuple(outcomes), candidates.typical(seconds), tokens, price)


def timed(base_url: str, model: str, secret: str, chats: Sequence[Chat], max_tokens: int) -> list[float]:
    """Seconds of each whole answer, asked one after another."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    found = []
    with httpx.Client(base_url=base_url, headers=headers, timeout=300, trust_env=False) as client:
        for chat in chats:
            started = time.monotonic()
            body = {"model": model, "messages": chat, "max_tokens": max_tokens, "temperature": 0.0}
            response = client.post("chat/completions", json=body)
            if not response.is_success:
                raise SystemExit(
                    f"{base_url}: {response.status_code} {response.reason_phrase}: see what it is busy with"
                )
            found.append(time.monotonic() - started)
    return found


def hourly(cfg: Compare) -> float:
    """USD an hour of the machine."""
    if cfg.usd_per_hour is not None:
        return cfg.usd_per_hour
    return float(params.value("hardware.price.hour", SETTINGS)) * int(params.runtime(SETTINGS)["processes"])


def key(chats: Sequence[Conversation], cfg: Compare) -> str:
    """A short name for what was asked, and how."""
    settings = [cfg.max_tokens, cfg.dtype, cfg.seed]
    whole = json.dumps([settings, [asdict(one) for one in chats]], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def report(results: Sequence[Result], cfg: Compare) -> None:
    """Write and print the table and the recommendation."""
    found = candidates.recommended(results, cfg.enough, cfg.confidence, cfg.seed)
    lines = candidates.table(results, found, cfg.confidence)
    metrics.write(REPORTS / "compare-bases.json", candidates.values(results, found, cfg.confidence))
    text = "\n".join(["# Base models before training", "", *lines, "", f"{found.reason}.", ""])
    (REPORTS / "compare-bases.md").write_text(text, encoding="utf-8")
    print("\n".join([*lines, "", f"recommended: {found.reason}."]))


if __name__ == "__main__":
    main(sys.argv[1:])
