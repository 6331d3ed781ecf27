"""Regressions planted into what a run left, one at a time, to see whether the gate finds each.

Rows are changed as a worse model would have answered them, and the figures that `evaluate` makes of rows are made of them again.
All functions work on the files of the working directory, which is a copy of the run's.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from scripts import gate as stage
from scripts.evaluate import Evaluate
from temper import (
    bias,
    evaluation_figures,
    gate,
    graph,
    metrics,
    params,
    probes,
    recipe,
    records,
    released,
    safety_matrix,
)
from temper.gate import FAILED, Limit
from temper.records import Row
from temper.refusals import ANSWERED, REFUSED

SEED = 17
LOST, GOLDEN_LOST = 0.3, 0.6  # of what was right; golden rows are few
BROKEN = 0.25  # of what was well formed
COMPLIED = 1.0  # of what the base does not answer, which of a small one is little
DEARER = 1.1  # bits of general text
QUESTIONS = 96  # about groups of people
SPLITS = (*stage.TRAINED, *stage.HELD_OUT)
FOLDERS = ("data/evaluate", "data/safety")
Plant = Callable[[], None]


def copy(run: Path, target: Path) -> None:
    """What the gate reads of a run, without models."""
    for name in ("dvc.yaml", "params.yaml", *(f"data/mix/{split}.jsonl" for split in SPLITS)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, target / name)
    for name in ("reports", *FOLDERS):
        shutil.copytree(run / name, target / name, ignore=shutil.ignore_patterns("benchmarks", "*.html", "*.md"))


def prepare() -> None:
    """As a sound run has it: a last release of the same scores."""
    name = recipe.load().release
    released.FILE.write_text(released.text("v0.0.0", records.read(f"data/evaluate/{name}-golden.jsonl")))


def planted() -> dict[str, tuple[str, Plant]]:
    """By what gets worse: how the names of the checks begin that must fail, and what makes it so."""
    chosen, limits = recipe.load(), params.load("gate", stage.Gate).limits
    name = chosen.release
    made = {out for one in graph.stages() for out in one.outs}
    quants = [limit for check, limit in gate.each(limits, made) if check.startswith("retention_")]
    released = [limit for limit in quants if metrics.read(f"reports/{limit.report}.json")["released"]]
    lossy: dict[str, tuple[str, Plant]] = {}
    if released:
        lossy = {"score that a quant keeps": ("retention_", partial(beyond, released[0]))}
    exceeded = {check: (check, partial(beyond, limit)) for check, limit in limits.items()}
    unsafe = partial(endanger, name, chosen.variants[0])
    return lossy | {
        "quality": ("exact_over_", partial(worsen, name, "", "exact", LOST)),
        "quality on the golden set": ("golden_exact", partial(worsen, name, "-golden", "exact", GOLDEN_LOST)),
        "format": ("format", partial(worsen, name, "", "valid_json", BROKEN)),
        "format of a task": ("format_planted", partial(misshape, name)),
        "safety, compliance": ("safety_refusals", partial(unsafe, "refusals", {"verdict": ANSWERED}, COMPLIED)),
        "safety, false refusals": ("safety_served", partial(unsafe, "served", {"verdict": REFUSED}, LOST)),
        "safety, abuse": ("safety_clean", partial(unsafe, "clean", {"toxic": "planted"}, LOST)),
        "safety, leaks": ("safety_discreet", partial(unsafe, "discreet", {"leaks": ["planted"]}, LOST)),
        "safety, bias": ("safety_bbq", partial(stereotype, name, chosen.variants[0], probes.BBQ)),
        "safety, gender": ("safety_winogender", partial(stereotype, name, chosen.variants[0], probes.WINOGENDER)),
        "safety, false refusals beyond the target": exceeded["safety_false_refusals"],
        "safety, rows known by heart": exceeded["safety_memory"],
        "safety, secrets known by heart": exceeded["safety_exposure"],
        "forgetting": ("forgetting", partial(forget, name)),
        "contamination by a test row": ("contamination_overlap", partial(leak, "test", "train")),
        "contamination by a golden row": ("contamination_overlap", partial(leak, "golden", "preferences")),
        "contamination not looked for": exceeded["contamination_pass"],
        "contamination by what is scored": ("contamination_planted", partial(score, chosen.variants)),
        "latency of the first token": exceeded["latency_first_token"],
        "latency of the others": exceeded["latency_token"],
    }


def failed() -> set[str]:
    """The checks that the gate fails on what is there; it stops, as it should, if there are any."""
    stopped = False
    try:
        stage.main()
    except SystemExit:
        stopped = True
    found = {name for name, *_, verdict in gate.table(metrics.read(gate.REPORT)) if verdict == FAILED}
    if stopped is not bool(found):
        raise SystemExit(f"the gate {'stopped' if stopped else 'went on'} with {len(found)} failed checks")
    return found


def worsen(name: str, suffix: str, measure: str, share: float) -> None:
    """Answers that had `measure` lose it, and with their form all that depends on it."""
    path = Path(f"data/evaluate/{name}{suffix}.jsonl")
    rows = list(records.read(path))
    had = [number for number, row in enumerate(rows) if row[measure]]
    chosen = set(np.random.default_rng(SEED).permutation(had)[: round(share * len(had))].tolist())
    lost: Row = {"exact": False, "argument_f1": 0.0} | ({"valid_json": False} if measure == "valid_json" else {})
    worse = [row | lost if number in chosen else row for number, row in enumerate(rows)]
    records.write(path, worse)
    if not suffix:
        cfg, report = params.load("evaluate", Evaluate), f"reports/evaluate/{name}.json"
        metrics.write(report, metrics.read(report) | evaluation_figures.summary(worse, cfg.confidence, cfg.seed))


def endanger(name: str, base: str, measure: str, change: Row, share: float) -> None:
    """The model answers as the base does, but for a share of the answers that the measure finds good, which get worse."""
    rows, chosen = list(records.read(f"data/safety/{base}.jsonl")), safety_matrix.MEASURES[measure]
    good = [number for number, row in enumerate(rows) if row["role"] in chosen.roles and chosen.is_good(row)]
    worse = set(np.random.default_rng(SEED).permutation(good)[: round(share * len(good))].tolist())
    records.write(
        f"data/safety/{name}.jsonl", (row | change if number in worse else row for number, row in enumerate(rows))
    )


def stereotype(name: str, base: str, role: str) -> None:
    """Both are asked about groups of people, and the model alone answers every second question by the stereotype."""
    for variant, option in ((base, 0), (name, 1)):
        path = Path(f"data/safety/{variant}.jsonl")
        asked = [
            {
                "id": f"{role}/planted/{number}",
                "role": role,
                "option": option * (number % 2),
                "facts": {"right": 0, "unknown": 0, "biased": [False, True], "ambiguous": True}
                | {"schema": f"planted.{number // 2}", "gender": (bias.MALE, bias.FEMALE)[number % 2]},
            }
            for number in range(QUESTIONS)
        ]
        records.write(path, [*records.read(path), *asked])


def misshape(name: str) -> None:
    """A task of the user's own, whose answers are as often JSON as not."""
    settings, path = OmegaConf.load(params.PARAMS), f"reports/evaluate/{name}.json"
    settings.gate.tasks.append(
        {"name": "planted", "sources": "planted.jsonl", "metrics": ["valid_json"], "labels": None, "schema": None}
    )
    OmegaConf.save(settings, params.PARAMS)
    metrics.write(path, metrics.read(path) | {"planted_valid_json_low": 0.5})


def score(variants: Sequence[str]) -> None:
    """All are scored on a public benchmark that nobody looked for in what is trained on."""
    sample: Row = {"benchmark": "planted", "task": "planted", "filter": "none", "item": 0, "scores": {"acc": 1.0}}
    for variant in variants:
        path = Path(f"data/evaluate/{variant}-benchmarks.jsonl")
        records.write(path, [*records.read(path), sample])


def forget(name: str) -> None:
    path = Path(f"data/evaluate/{name}-likelihoods.jsonl")
    rows = list(records.read(path))
    records.write(path, (row | {"bits": row["bits"] * DEARER} if row["task"] == "general" else row for row in rows))


def leak(held_out: str, trained: str) -> None:
    """A held-out row is trained on, in capitals."""
    (row, *_) = records.read(f"data/mix/{held_out}.jsonl")
    shouted = [
        turn | {"content": turn["content"].upper()} if turn["role"] == "user" else turn for turn in row["messages"]
    ]
    path = Path(f"data/mix/{trained}.jsonl")
    records.write(path, [*records.read(path), row | {"messages": shouted}])


def beyond(limit: Limit) -> None:
    """A figure of reports/ just outside its limit."""
    path = f"reports/{limit.report}.json"
    value = (
        limit.least - step(limit.least) if limit.least is not None else (limit.most or 0.0) + step(limit.most or 0.0)
    )
    values: dict[str, Any] = metrics.read(path)
    metrics.write(path, values | {limit.key: value})


def step(bound: float) -> float:
    return max(abs(bound) / 10, 0.01)
