"""Production logs into the next round of training data: what failed, what is uncertain, what drifted, and a queue for people.

    python -m commands.mine logs FOLDER [mine.days=7 …]              a log of `make serve` → the queue and a report
    python -m commands.mine labels QUEUE.jsonl [mine.source.…=…]     the queue with its labels → files under raw/

Reads   the log, data/mix/train.jsonl, data/evaluate (the model's own answers), and where mine.endpoint has an address more answers
        from it; then the queue
Writes  mined/queue.jsonl (labels that it has stay), mined/liked.jsonl, reports/mine.json, reports/mine.md, reports/mine/*.svg;
        then raw/mined/{failures,others,positives}.jsonl and manifest.json

A failure is an answer with a thumb down, a low score of a judge (POST /v1/feedback), or of a form that the request's tools or
schema do not take. A prompt is uncertain when answers to it differ: in the log, where it came more than once, or asked of the
endpoint. Drift is tested (temper/drift.py); where requests drifted, those unlike training join the queue.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts import pii
from temper import (
    consistency,
    drift,
    embeddings,
    labelling,
    likeness,
    mine_report,
    mining,
    params,
    records,
    traffic,
)
from temper.drift import Asked, Verdict
from temper.likeness import Said
from temper.masking import Allowed
from temper.mining import FAILURE, UNCERTAIN, UNLIKE, Prompt
from temper.records import Row
from temper.teacher import Client, Request, Teacher
from temper.traffic import Exchange, Log

SCRATCH = Path("tmp/mine")
SECTION = "mine.endpoint"
USAGE = "usage: make mine LOGS=logs, then make mine LABELS=mined/queue.jsonl (SET=… overrides conf/mine)"
ALL = "all"


@dataclass
class Endpoint:
    base_url: str | None
    """Of an OpenAI-compatible API, up to and including /v1; null asks nobody."""
    model: str
    api_key_env: str | None
    samples: int
    """Answers to a prompt."""
    prompts: int
    """That are asked at most."""
    temperature: float
    max_tokens: int
    concurrency: int
    timeout: float


@dataclass
class Drift:
    window_days: int
    least: int
    """Distinct prompts that a window, and a feature in it, needs to be tested."""
    rows: int
    """Of a window and of the training rows, at random, at most."""
    rules: drift.Rules
    unlike: float
    """Quantile of the training rows' distances."""


@dataclass
class Queue:
    """Rows of each reason, at most."""

    failure: int
    uncertain: int
    unlike: int


@dataclass
class Mine:
    training: str
    answers: list[str]
    """Files of the model's own answers to held-out prompts, as `evaluate` writes them; those that are not there are left out."""
    folder: str
    days: int | None
    """Back from the newest record; null for all."""
    seed: int
    failures: mining.Failures
    uncertain: mining.Uncertain
    endpoint: Endpoint
    drift: Drift
    queue: Queue
    high_score: float
    source: labelling.Settings
    pii: dict[str, Any]
    """A section like `pii`: kinds that a log must not hold. Without entities, the log's own mark is trusted."""


@dataclass(frozen=True)
class Drifted:
    verdicts: dict[Asked, Verdict]
    training: drift.Samples
    windows: dict[str, drift.Samples]
    skipped: list[str]
    """Windows with too few prompts."""
    own: int
    """Answers of the model's own that those of the log were held against; 0 where it was reference answers."""

    def alarms(self) -> list[Asked]:
        return [asked for asked, verdict in self.verdicts.items() if verdict.outcome != drift.NONE]


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in ("logs", "labels"):
        raise SystemExit(USAGE)
    what, place, *overrides = arguments
    cfg = settings(overrides)
    if what == "logs":
        mine(cfg, place, embeddings.embed)
    else:
        label(cfg, Path(place))


def settings(overrides: Sequence[str]) -> Mine:
    """The section of params.yaml, or of what conf/ composes to with overrides; exits naming what does not fit."""
    file = params.PARAMS
    if overrides:
        from commands.compose import composed

        SCRATCH.mkdir(parents=True, exist_ok=True)
        file = SCRATCH / "params.yaml"
        file.write_text(composed(list(overrides)))
    cfg = params.load("mine", Mine, file)
    labelling.checked(cfg.source)
    return cfg


def mine(cfg: Mine, place: str, embed: consistency.Embed) -> None:
    log = recent(read(cfg, place), cfg.days)
    if not log.exchanges:
        raise SystemExit(
            f"{place}: no chat in it ({told(log.counts)}): name the log of a server in use, or raise mine.days"
        )
    found = mining.prompts(log.exchanges)
    for prompt in found:
        mining.find_failures(prompt, cfg.failures)
    if cfg.endpoint.base_url:
        ask(cfg, cfg.endpoint.base_url, found)
    mining.find_uncertain(found, cfg.uncertain, embed)

    drifted = compare(cfg, log.exchanges, found, embed)
    rows = mining.queue(found, cfg.uncertain, partial(is_unlike, limit=limit(cfg, drifted)), most(cfg.queue))
    liked = list(positives(cfg, found))

    folder = Path(cfg.folder)
    queue = folder / "queue.jsonl"
    kept = relabelled(rows, queue)
    records.write(queue, kept)
    records.write(folder / "liked.jsonl", liked)
    values = summary(log, found, kept, liked, drifted)
    mine_report.write(
        values, log.exchanges, found, drifted.verdicts, drifted.training, drifted.windows, cfg.drift.rules
    )
    print(closing(values, queue, drifted))


def read(cfg: Mine, place: str) -> Log:
    section = params.fitted(_wrapped(cfg.pii), "pii", pii.Pii, "conf/mine")
    allowed = Allowed(tuple(section.allow), tuple(section.allow_patterns))
    allowed.check()
    return traffic.read(traffic.files(place), pii.search(section) if section.entities else None, allowed)


def recent(log: Log, days: int | None) -> Log:
    """Exchanges of the last `days` before the newest one."""
    if days is None or not log.exchanges:
        return log
    first = log.exchanges[-1].time - timedelta(days=days)
    kept = [one for one in log.exchanges if one.time > first]
    return Log(kept, log.counts + Counter(left_out_older=len(log.exchanges) - len(kept)))


def ask(cfg: Mine, address: str, found: Sequence[Prompt]) -> None:
    """Have the prompts with fewest answers answered again, `samples` times each."""
    few = [prompt for prompt in found if len(prompt.answers) < cfg.uncertain.samples]
    ranked = sorted(few, key=lambda prompt: (not prompt.faults, _key(cfg.seed, prompt.first.id)))[
        : cfg.endpoint.prompts
    ]
    with Client(teacher(cfg.endpoint, address), SCRATCH / "answers.jsonl", section=SECTION) as client:

        async def answers(prompt: Prompt) -> list[str]:
            turns = mining.row(prompt.first.turns, prompt.first.tools, "")["messages"][:-1]
            replies = [await client.ask(request(cfg, turns, number)) for number in range(cfg.endpoint.samples)]
            return [one.text for one in replies if one.failure is None and not one.truncated and one.text]

        for prompt, texts in zip(ranked, client.in_order(map(answers, ranked)), strict=True):
            prompt.sampled = texts


def request(cfg: Mine, turns: list[dict[str, str]], number: int) -> Request:
    return Request(turns, cfg.endpoint.temperature, 1.0, cfg.endpoint.max_tokens, cfg.seed + number)


def teacher(endpoint: Endpoint, address: str) -> Teacher:
    """The endpoint as the client knows one: what it answers is only looked at, so no licence and no price matter."""
    own: dict[str, Any] = {"base_url": address, "model": endpoint.model, "api_key_env": endpoint.api_key_env}
    own |= {"concurrency": endpoint.concurrency, "timeout": endpoint.timeout}
    unpriced: dict[str, Any] = {
        "usd_per_million_prompt_tokens": 0.0,
        "usd_per_million_completion_tokens": 0.0,
        "max_usd": None,
    }
    patient: dict[str, Any] = {"retries": 6, "backoff": 1.0, "patience": 300.0}
    return Teacher(start_server=False, dtype="", licence="not trained on", extra={}, **own, **unpriced, **patient)


def compare(cfg: Mine, exchanges: Sequence[Exchange], found: Sequence[Prompt], embed: consistency.Embed) -> Drifted:
    """Each window of the log, and all of it, against what the model was trained on; notes how far each prompt is from that."""
    index, training = likeness.halves(sampled(cfg, likeness.of_training(records.read(cfg.training))), cfg.seed)
    if len(training) < cfg.drift.least:
        raise SystemExit(
            f"{cfg.training}: {2 * len(training)} rows with an answer, where drift needs {2 * cfg.drift.least}: "
            "run `make mix`, or lower mine.drift.least"
        )
    parts = {name: sampled(cfg, likeness.of_traffic(part)) for name, part in windows(exchanges, cfg.drift.window_days)}
    skipped = [name for name, part in parts.items() if len(part) < cfg.drift.least]
    tested = {name: part for name, part in parts.items() if name not in skipped}
    texts = sorted(set().union(*(likeness.texts(part) for part in (index, training, *tested.values()))))
    vectors = dict(zip(texts, embed(texts), strict=True))
    measured = [likeness.samples(part, index, vectors, cfg.drift.least) for part in (training, *tested.values())]
    own = likeness.of_answers(own_answers(cfg.answers), cfg.drift.least)
    measured[0] |= own
    known = {feature: sample for feature, sample in measured[0].items() if any(feature in one for one in measured[1:])}
    of_windows: dict[str, drift.Samples] = {
        name: {feature: sample for feature, sample in one.items() if feature in known}
        for name, one in zip(tested, measured[1:], strict=True)
    }
    distance(found, likeness.stacked([one.request for one in [*index, *training]], vectors), vectors)
    check_permutations(cfg.drift.rules, sum(map(len, of_windows.values())))
    verdicts = drift.judged(known, of_windows, cfg.drift.rules, cfg.seed)
    return Drifted(verdicts, known, of_windows, skipped, next(map(likeness.size, own.values()), 0))


def own_answers(files: Sequence[str]) -> list[str]:
    """What the model said to held-out prompts, of the files that there are."""
    return [str(row["output"]) for file in files if Path(file).is_file() for row in records.read(file)]


def windows(exchanges: Sequence[Exchange], days: int) -> Iterator[tuple[str, list[Exchange]]]:
    """All exchanges, then those of each `days` days, by the date that they begin on; of several windows alone."""
    first = exchanges[0].time
    parts: dict[int, list[Exchange]] = {}
    for one in exchanges:
        parts.setdefault((one.time - first).days // days, []).append(one)
    yield ALL, list(exchanges)
    if len(parts) > 1:
        yield from (
            ((first + timedelta(days=days * number)).date().isoformat(), part) for number, part in parts.items()
        )


def sampled(cfg: Mine, said: Iterable[Said]) -> list[Said]:
    rows = list(said)
    if len(rows) <= cfg.drift.rows:
        return rows
    chosen = np.random.default_rng(cfg.seed).choice(len(rows), cfg.drift.rows, replace=False)
    return [rows[place] for place in sorted(chosen)]


def check_permutations(rules: drift.Rules, tests: int) -> None:
    if tests and rules.permutations + 1 < tests / rules.alpha:
        raise SystemExit(
            f"mine.drift.rules.permutations is {rules.permutations}: with {tests} tests at alpha {rules.alpha:g} no shift could "
            f"be found with fewer than {int(tests / rules.alpha)}: raise it, or mine.drift.window_days"
        )


def distance(found: Sequence[Prompt], training: drift.Vectors, vectors: likeness.Embedded) -> None:
    """Note how far each prompt that was sampled is from the nearest training row."""
    asked = [prompt for prompt in found if prompt.first.asked in vectors]
    rows = likeness.stacked([prompt.first.asked for prompt in asked], vectors)
    if len(rows) and len(training):
        for prompt, far in zip(asked, drift.nearest(rows, training), strict=True):
            prompt.distance = float(far)


def limit(cfg: Mine, drifted: Drifted) -> float | None:
    """The distance beyond which a request is unlike training; None where requests did not drift."""
    sample = drifted.training.get(likeness.REQUESTS)
    is_drift = any(asked.feature in likeness.EMBEDDED for asked in drifted.alarms())
    if sample is None or sample.distances is None or not is_drift:
        return None
    return float(np.quantile(sample.distances, cfg.drift.unlike))


def is_unlike(prompt: Prompt, limit: float | None) -> bool:
    return limit is not None and prompt.distance is not None and prompt.distance > limit


def most(queue: Queue) -> dict[str, int]:
    return {FAILURE: queue.failure, UNCERTAIN: queue.uncertain, UNLIKE: queue.unlike}


def positives(cfg: Mine, found: Sequence[Prompt]) -> Iterator[Row]:
    """Answers that may be trained on as they are."""
    for prompt in found:
        if (answer := mining.praised(prompt, cfg.high_score, cfg.failures)) is not None:
            origin = {
                "method": labelling.METHOD,
                "request": prompt.first.id,
                "reasons": ["liked"],
                "model": prompt.first.model,
            }
            made = mining.row(prompt.first.turns, prompt.first.tools, answer)
            yield made | {"category": "mined_positive", "provenance": origin}


def relabelled(rows: Sequence[Row], queue: Path) -> list[Row]:
    """The rows with labels that the queue has already; what was labelled and is no longer found stays at its end."""
    before = records.read(queue) if queue.is_file() else ()
    labelled = [row for row in before if row.get("label") is not None]
    # Queues of older versions have no `prompt`.
    known = {row.get("prompt") or mining.key(row["messages"], row["tools"]): row for row in labelled}
    again = [known.pop(row["prompt"], row) for row in rows]
    return [*again, *known.values()]


def summary(
    log: Log, found: Sequence[Prompt], rows: Sequence[Row], liked: Sequence[Row], drifted: Drifted
) -> dict[str, Any]:
    """reports/mine.json."""
    told_of = [prompt.entropy for prompt in found if prompt.entropy is not None]
    values: dict[str, Any] = {**log.counts, "chats": len(log.exchanges), "prompts": len(found)}
    values |= {"first": log.exchanges[0].time.isoformat(), "last": log.exchanges[-1].time.isoformat()}
    values |= {f"fault_{reason}": count for reason, count in Counter(r for one in found for r in one.faults).items()}
    values |= {"prompts_failed": sum(bool(one.faults) for one in found), "prompts_of_known_entropy": len(told_of)}
    values |= {"entropy_mean": float(np.mean(told_of)) if told_of else None, "liked": len(liked)}
    values |= {f"queue_{name}": sum(row["reason"] == name for row in rows) for name in (FAILURE, UNCERTAIN, UNLIKE)}
    values |= {"queue": len(rows), "queue_labelled": sum(row["label"] is not None for row in rows)}
    for (feature, window), one in drifted.verdicts.items():
        name = f"drift_{feature}_{window}"
        values |= {f"{name}_p": one.p, f"{name}_psi": one.shift.psi, f"{name}_psi_chance": one.shift.chance}
        values |= {f"{name}_rows": one.shift.rows, f"{name}_verdict": one.outcome}
    values |= {"drift_alarms": len(drifted.alarms()), "drift_windows_too_small": len(drifted.skipped)}
    return values | {"own_answers": drifted.own}


def closing(values: dict[str, Any], queue: Path, drifted: Drifted) -> str:
    reasons = ", ".join(f"{values[f'queue_{name}']} {name}" for name in (FAILURE, UNCERTAIN, UNLIKE))
    alarms = "; ".join(
        f"{asked.feature} in {asked.window}: {drifted.verdicts[asked].outcome}" for asked in drifted.alarms()
    )
    return (
        f"{values['chats']} chats, {values['prompts']} prompts; drift: {alarms or 'none'}; report: {mine_report.REPORT}\n"
        f"{queue}: {values['queue']} rows ({reasons}), {values['queue_labelled']} labelled. For each set `label` to the right "
        "answer as text (a call, or null as text), to true where `suggested` is right, or to false to leave it out; then\n"
        f"  make mine LABELS={queue}"
    )


def label(cfg: Mine, queue: Path) -> None:
    labelled = labelling.read(queue)
    if not any(labelled.rows.values()):
        raise SystemExit(
            f"{queue}: no label in {labelled.waiting + labelled.dropped} rows: fill in `label`, then repeat"
        )
    liked = list(records.read(Path(cfg.folder) / "liked.jsonl"))
    values = labelling.write(labelled, labelling.chosen(liked, labelled, cfg.source, cfg.seed), cfg.source)
    print(
        f"{cfg.source.folder}: {values['failures']} failures (×{cfg.source.copies}), {values['others']} others, "
        f"{values['positives']} positives ({values['positives_share']:.0%}); {labelled.waiting} rows wait for a label\n"
        f"to train on them (of your own data name both presets' entries in your own):\n"
        f"  dvc exp run -S data=mined -S mix=mined"
    )


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(counts.items()) if count)


def _wrapped(section: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create({"pii": section})


def _key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode()).digest()


if __name__ == "__main__":
    main(sys.argv[1:])
