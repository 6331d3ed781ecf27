"""Grow seed examples with a teacher, for when there is no data yet: Self-Instruct, Evol-Instruct, rewording, distilling.

    python -m commands.synthesize                                                     as params.yaml says
    python -m commands.synthesize synthesize=distil synthesize.teacher.model=… …      as conf/ says, with overrides

Reads   the seed examples (raw/seeds/seeds.jsonl), the teacher's answers, and tmp/synthesize/<method>.journal.jsonl
Writes  raw/synthetic-<method>.jsonl, raw/synthetic-<method>.manifest.json, raw/rejected/synthetic-<method>.jsonl

Seeds and rejected rows are in folders of their own, so that a preset of conf/data that reads raw/*.jsonl takes in neither.

It is a command and no stage of the graph, because a teacher does not reproduce: an endpoint changes its model behind the
same name, samples differently under load, or goes away. What it answered is therefore raw data, like any that a user brings:
a file in raw/ that is hashed (the manifest has the hash, and the entry of conf/data that reads it), kept and versioned, from
which everything after `ingest` reproduces. The manifest says how it was made, what left and why, and what it cost.

Every answer goes into a journal under a hash of its request as soon as it arrives, so that a killed run goes on without
paying twice, and other filters on the same answers cost nothing. Requests that got none are asked again by the next run. Delete the
journal to ask everything anew.

Rows carry the teacher, its licence, its host (`local` for this machine and private networks), the method and the ids of
what they grew from. Mind the teacher's terms: a model's licence covers the model, and some also its answers; the terms of
several commercial APIs, and some open models' licences, forbid to train other (or competing) models on what they answer. A
row's licence is the teacher's AND those that its seeds state, which the data card holds against the licence of the release.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from temper import distil, envs, evol_instruct, licences, metrics, params, records, rephrase, self_instruct, wheels
from temper.records import Row
from temper.seeds import Seed, read
from temper.server import Server
from temper.synthesis import Sampling, Work
from temper.teacher import Client, Teacher, checked

JOURNALS = Path("tmp/synthesize")
METHODS: dict[str, tuple[type, Callable[[Work, Any, list[Seed]], Iterator[Row]]]] = {
    "self-instruct": (self_instruct.SelfInstruct, self_instruct.self_instruct),
    "evol-instruct": (evol_instruct.EvolInstruct, evol_instruct.evol_instruct),
    "rephrase": (rephrase.Rephrase, rephrase.rephrase),
    "distil": (distil.Distil, distil.distil),
}


@dataclass
class Synthesize:
    method: str
    seeds: str
    """A file of JSON lines."""
    limit: int | None
    """Seeds, for small runs; null for all."""
    seed: int
    sampling: Sampling
    teacher: Teacher
    options: dict[str, Any]
    """Of the method: see its dataclass, temper/<method>.py."""


def main(arguments: list[str]) -> None:
    file = settings_file(arguments)
    cfg, options = settings(file)
    if cfg.teacher.start_server and Path(sys.prefix) != envs.path("serve"):
        # vLLM is there only; the same process goes on, with settings that no longer need Hydra.
        envs.run("serve", ["-m", "commands.synthesize", "--params", str(file)])
    try:
        synthesize(cfg, options, file)
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the answers so far are kept, so the same command goes on from here") from None


def synthesize(cfg: Synthesize, options: Any, file: Path) -> None:
    seeds = read(Path(cfg.seeds), cfg.limit)
    if not cfg.teacher.start_server:
        grow(cfg, options, seeds, cfg.teacher, "")
        return
    model = Path(cfg.teacher.model)
    with Server(model, cfg.teacher.dtype, cfg.seed, params.runtime(file)) as server:
        teacher = replace(cfg.teacher, base_url=f"{server.url}/v1", model=server.name)
        grow(cfg, options, seeds, teacher, digest(model))


def grow(cfg: Synthesize, options: Any, seeds: list[Seed], teacher: Teacher, revision: str) -> None:
    """Write the three files; the rows appear whole or not at all."""
    rejected: list[Row] = []
    with Client(teacher, JOURNALS / f"{cfg.method}.journal.jsonl", revision) as client:
        work = Work(client, cfg.sampling, cfg.method, cfg.seed)
        rows = list(kept(METHODS[cfg.method][1](work, options, seeds), rejected))
        spent = bill(client)
    records.write(rejects(cfg.method), rejected)
    reasons = Counter(row["reason"] for row in rejected)
    if not rows:
        raise SystemExit(nothing(cfg, reasons, rejected))
    target = Path(f"raw/synthetic-{cfg.method}.jsonl")
    records.write(target, rows)
    counts = {"seen": len(rows) + len(rejected), "kept": len(rows)}
    counts |= {f"rejected_{reason}": number for reason, number in reasons.items()}
    licence = licences.together(row["licence"] for row in rows)
    whence = origin(cfg, teacher, revision, target) | {"licence": licence}
    metrics.write(target.with_suffix(".manifest.json"), counts | spent | whence)
    print(report(target, counts, spent, licence))


def kept(rows: Iterator[Row], rejected: list[Row]) -> Iterator[Row]:
    for row in rows:
        if "reason" in row:
            rejected.append(row)
        else:
            yield row


def bill(client: Client) -> dict[str, float]:
    """Requests and tokens behind the rows, whichever run paid for them, by the `usage` of each reply."""
    usage = client.usage
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    requests = {"requests": len(usage.keys), "requests_unanswered": usage.unanswered}
    return {**requests, **tokens, "usd": usage.usd(client.teacher)}


def origin(cfg: Synthesize, teacher: Teacher, revision: str, target: Path) -> dict[str, Any]:
    """Where the file comes from; nothing in it tells a machine, a port or a key."""
    return {
        "file": str(target),
        "sha256": wheels.digest(target),
        "method": cfg.method,
        "options": cfg.options,
        "sampling": asdict(cfg.sampling),
        "seed": cfg.seed,
        "seeds": cfg.seeds,
        "seeds_limit": cfg.limit,
        "seeds_sha256": wheels.digest(Path(cfg.seeds)),
        "teacher": teacher.model,
        "teacher_endpoint": teacher.place,
        "teacher_licence": teacher.licence,
        "teacher_sha256": revision or None,
        "teacher_extra": teacher.extra,
    }


def report(target: Path, counts: dict[str, int], spent: dict[str, float], licence: str) -> str:
    """What came out, and the entry of conf/data that reads it."""
    rejected = {name: number for name, number in sorted(counts.items()) if name.startswith("rejected_")}
    left = ", ".join(f"{number} {name.removeprefix('rejected_')}" for name, number in rejected.items())
    tokens = f"{spent['prompt_tokens']:,} prompt and {spent['completion_tokens']:,} answer tokens"
    return (
        f"{target}: {counts['kept']} rows of {counts['seen']}{left and f' (left: {left})'}; "
        f"{spent['requests']:,} requests, {tokens}, {spent['usd']:.2f} USD\n"
        f"to train on it, add to a preset of conf/data:\n"
        f"  - {{kind: file, id: {target}, revision: null, sha256: {wheels.digest(target)}, "
        f"format: messages, files: [], columns: {{}}, licence: {licence}}}"
    )


def nothing(cfg: Synthesize, reasons: Counter[str], rejected: list[Row]) -> str:
    found = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    detail = next((f": {row['detail']}" for row in rejected if row.get("detail")), "")
    return f"{cfg.method}: no row stays of {len(rejected)} ({found}{detail}): see {rejects(cfg.method)}"


def rejects(method: str) -> Path:
    return Path(f"raw/rejected/synthetic-{method}.jsonl")


def settings_file(arguments: list[str]) -> Path:
    """params.yaml, the file after `--params`, or what conf/ composes to with the overrides given."""
    if arguments[:1] == ["--params"] and len(arguments) == 2:
        return Path(arguments[1])
    if not arguments:
        return params.PARAMS
    from commands.compose import composed

    JOURNALS.mkdir(parents=True, exist_ok=True)
    file = JOURNALS / "params.yaml"
    file.write_text(composed(arguments))
    return file


def settings(file: Path) -> tuple[Synthesize, Any]:
    """The section and the method's own options, each against its dataclass; exits naming what does not fit."""
    cfg = params.load("synthesize", Synthesize, file)
    if cfg.method not in METHODS:
        raise SystemExit(f"synthesize.method is '{cfg.method}': choose one of {', '.join(METHODS)}")
    checked(cfg.teacher)
    return cfg, params.load("synthesize.options", METHODS[cfg.method][0], file)


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files in a model's folder."""
    import hashlib

    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("".join(f"{path.name} {wheels.digest(path)}\n" for path in files).encode()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
