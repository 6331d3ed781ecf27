"""The draft that a server speculates with: one that `bench` measured, of this release and on this preset, and that pays.

It is off at batch sizes where `bench` saw it serve slower, or that it did not see (vLLM's num_speculative_tokens_per_batch_size).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from temper import gate, metrics, params, speculation
from temper.speculation import EAGLE3, NGRAM, PLAIN, STEPS, Speculation, Verdict

OFF = "set it to null"
AGAIN = f"run `make bench`, or {OFF}"
OPTION = "--speculative-config.num_speculative_tokens_per_batch_size"
# What of a section of `bench` a server that speculates is told too.
TOLD = ("tokens", "lookup_min", "lookup_max")


def arguments(method: str, settings: DictConfig, head: Path) -> list[str]:
    """vLLM's for a draft by `method`, of an EAGLE-3 head in the folder `head`; exits in one line where it should not be served.

    `settings` is all of conf/: what is served, and what `bench` is to measure.
    """
    known = ", ".join(speculation.METHODS)
    if method not in speculation.METHODS or method not in settings.bench:
        refuse(f"'{method}': choose null or one of {known}, which conf/bench measures")
    draft = params.fitted(settings, f"bench.{method}.speculation", Speculation, "conf/bench")
    then = as_measured(method, settings)
    found = speculation.measured(method)
    require_gain(method, found)
    served = int(settings.serve.limits.concurrent)
    ranges = schedule(found, draft.tokens, int(then["sequences"]), served)
    if not any(drafted for *_, drafted in ranges):
        told = speculation.told(found)
        refuse(f"'{method}': pays at no batch measured up to serve.limits.concurrent={served} ({told}): {OFF}")
    if ranges == [[1, served, draft.tokens]]:
        return draft.arguments(head)
    return [*draft.arguments(head), OPTION, json.dumps(ranges, separators=(",", ":"))]


def schedule(found: Sequence[Verdict], tokens: int, sequences: int, served: int) -> list[list[int]]:
    """speculation.schedule for batches of up to `served`, off beyond the largest that was measured.

    That is `sequences`, of the server that `bench` measured: of more callers than it took, the others waited.
    """
    largest = min(found[-1].concurrency, sequences)
    ranges = speculation.schedule(found, tokens, min(largest, served))
    if served > largest and ranges[-1][2]:
        ranges.append([largest + 1, served, 0])
    ranges[-1][1] = served
    return ranges


def as_measured(method: str, settings: DictConfig) -> Mapping[str, Any]:
    """The section of `bench` as dvc.lock has it run with this draft, of this release, on this preset; exits unless it was."""
    stages, preset = gate.locked(), str(settings.hardware.name)
    if (measured_on := params.value("hardware.name")) != preset:
        refuse(f"'{method}': `bench` measured on hardware={measured_on}, not on {preset}: measure it there, or {OFF}")
    made = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    for variant in dict.fromkeys((PLAIN, NGRAM, method)):
        require_current(f"bench@{variant}", variant, stages, made)
    if method == EAGLE3:
        require_current(f"draft@{EAGLE3}", None, stages, made)
    then: Mapping[str, Any] = stages[f"bench@{method}"]["params"]["params.yaml"][f"bench.{method}"]
    now: Any = OmegaConf.to_container(settings.bench[method])
    require_same(method, then, now)
    if then["dtype"] != settings.serve.dtype:
        refuse(f"'{method}': `bench` measured it in {then['dtype']}, serve.dtype is {settings.serve.dtype}: {AGAIN}")
    return then


def require_current(name: str, variant: str | None, stages: Mapping[str, Any], made: Mapping[str, str]) -> None:
    """Exit unless dvc.lock has the stage `name`, run on the models that it has, and the report of `variant` is that run's."""
    if name not in stages:
        refuse(f"{gate.LOCK} has no {name}: {AGAIN}")
    for dep in stages[name].get("deps", []):
        path = str(dep["path"])
        if path.startswith("models/") and made.get(path) != dep["md5"]:
            refuse(f"{name} read another {path} than {gate.LOCK} has now: {AGAIN}")
    report = speculation.REPORTS / f"{variant}.json"
    if variant and (not report.is_file() or digest(report) != made.get(str(report))):
        refuse(f"{report}: not what {gate.LOCK} has of {name}: {AGAIN}")


def require_same(method: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Exit where the draft is to be another than the one that was measured: more tokens at a time, say."""
    measured, wanted = then["speculation"], now["speculation"]
    for key in TOLD:
        if measured[key] != wanted[key]:
            place = f"bench.{method}.speculation.{key}"
            refuse(
                f"'{method}': `bench` measured {place}={measured[key]}, now it is {wanted[key]}: put it back, or {AGAIN}"
            )


def require_gain(method: str, found: Sequence[Verdict]) -> None:
    """Exit unless the draft serves faster than none at some concurrency, and a head faster than n-gram lookup, which is free."""
    if not any(verdict.pays for verdict in found):
        told = speculation.told(found)
        refuse(f"'{method}': slower than no draft at every concurrency measured ({told}): {OFF}")
    if method == NGRAM:
        return
    head, lookup = (metrics.read(speculation.REPORTS / f"{name}.json") for name in (method, NGRAM))
    steps = f"{speculation.DOMAIN}_{STEPS}"
    if not speculation.beats(head, lookup):
        refuse(
            f"'{method}': {head[steps]:.3g} tokens a step, n-gram lookup yields {lookup[steps]:.3g}: set it to {NGRAM}"
        )
    beside = speculation.verdicts(speculation.speeds(lookup), speculation.speeds(head))
    if not any(verdict.pays for verdict in beside):
        told = speculation.told(beside)
        refuse(f"'{method}': slower than n-gram lookup at every concurrency measured ({told}): set it to {NGRAM}")


def digest(file: Path) -> str:
    """DVC's, of a file."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def refuse(why: str) -> NoReturn:
    raise SystemExit(f"serve.draft: {why}")
