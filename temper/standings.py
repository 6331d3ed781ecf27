"""What came out of an ablation, kept and compared: a table, a picture and a verdict for each comparison, and every figure flat."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from temper import comparisons, crossed, figures, records
from temper.comparisons import NO_DIFFERENCE, Verdict
from temper.crossed import Interval, Scores
from temper.study import Comparison, Study

UNTRAINED = ("preferences", "evaluate")  # stages whose memory is vLLM's, which takes what it is given


@dataclass(frozen=True)
class Outcome:
    """What a model of an experiment scored and took."""

    rows: str
    """Digest of the test rows' ids."""
    scores: list[float]
    """Of the test rows, in the order of their ids."""
    seconds: dict[str, float]
    """By stage: all trainings of the chain, sampling of pairs included, and `evaluate`."""
    peak_gb: dict[str, float]
    """Of the machine's memory, by stage."""
    gpu_gb: dict[str, float]
    """Of a GPU's, by stage that trained on one."""
    machine: str

    @property
    def training_seconds(self) -> float:
        return sum(taken for stage, taken in self.seconds.items() if stage != "evaluate")

    @property
    def training_peak_gb(self) -> float:
        """Of the training that takes most, of a GPU where it has one."""
        trained = {stage: taken for stage, taken in self.peak_gb.items() if stage not in UNTRAINED}
        return max((self.gpu_gb or trained).values(), default=0.0)


@dataclass(frozen=True)
class Record:
    """What an experiment came to, as its file in reports/ablation has it."""

    identity: str
    """Of what it follows from: study.identity."""
    overrides: list[str]
    outcomes: dict[str, Outcome]
    """By model: the base and the release."""


@dataclass(frozen=True)
class Arm:
    """An outcome a seed, in the order of the study's seeds; one of the base model, which has none."""

    outcomes: tuple[Outcome, ...]

    @property
    def scores(self) -> Scores:
        return np.array([one.scores for one in self.outcomes])

    @property
    def seconds(self) -> float:
        """Of the quickest seed: all do nearly the same work, and what else the machine does only adds to it."""
        return min(one.training_seconds for one in self.outcomes)

    @property
    def peak_gb(self) -> float:
        return max(one.training_peak_gb for one in self.outcomes)

    @property
    def memory(self) -> str:
        """Whose memory `peak_gb` is of."""
        return "GPU" if any(one.gpu_gb for one in self.outcomes) else "RAM"

    @property
    def cost(self) -> str:
        return f"{self.seconds / 60:.1f} min, {self.peak_gb:.1f} GB of {self.memory}" if self.seconds else "no training"


Arms = Mapping[str, Arm]


def outcome(scores: Mapping[str, float], timing: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """Of scores by row id, and by stage what reports/timing has, `evaluate` included."""
    rows = sorted(scores)
    return Outcome(
        rows=hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16],
        scores=[scores[row] for row in rows],
        seconds={stage: took["seconds"] for stage, took in timing.items()},
        peak_gb={stage: took["peak_memory_gb"] for stage, took in timing.items()},
        gpu_gb={stage: took["peak_gpu_memory_gb"] for stage, took in timing.items() if "peak_gpu_memory_gb" in took},
        machine=timing["evaluate"]["hardware"],
    )


def write(file: Path, record: Record) -> None:
    """Write `record` as one line; the file appears whole or not at all."""
    records.write(file, [asdict(record)])


def read(file: Path) -> Record:
    """What `write` wrote; exits naming a file that is cut or has other keys."""
    try:
        found = json.loads(file.read_bytes())
        outcomes = {model: Outcome(**found["outcomes"][model]) for model in found["outcomes"]}
        return Record(**found | {"outcomes": outcomes})
    except (ValueError, TypeError, LookupError) as error:
        raise SystemExit(
            f"{file}: cut or edited ({error}): restore it with git, or delete it and its experiment runs again"
        ) from None


def require_same_rows(arms: Arms) -> None:
    if len({one.rows for arm in arms.values() for one in arm.outcomes}) > 1:
        raise SystemExit("ablation: the arms were not scored on the same test rows: an override changes the data")


def rate(arm: Arm, confidence: float) -> Interval:
    return crossed.rate(arm.scores, confidence)


def present(comparison: Comparison, arms: Arms) -> list[str]:
    """The arms of a comparison that have results; none without its baseline."""
    return [name for name in comparison.arms if name in arms] if comparison.baseline in arms else []


def judged(comparison: Comparison, arms: Arms, study: Study) -> Mapping[tuple[str, str], Verdict]:
    """(arm, what it is compared with) → verdict: every arm against the baseline, the first against the second."""
    names = present(comparison, arms)
    asked = [(name, comparison.baseline) for name in names if name != comparison.baseline]
    first, second = ranked(names, arms)
    leaders = [(first, second)] if first != comparison.baseline else []  # else asked already, the other way round
    family = {
        (arm, other): comparisons.difference(arms[arm].scores, arms[other].scores, study.confidence, study.seeds[0])
        for arm, other in dict.fromkeys([*asked, *leaders])
    }
    return comparisons.judged(family, study.confidence)


def ranked(names: Sequence[str], arms: Arms) -> tuple[str, str]:
    """The first two arms by their mean scores."""
    first, second, *_ = sorted(names, key=lambda name: -float(arms[name].scores.mean()))
    return first, second


def verdict(names: Sequence[str], arms: Arms, found: Mapping[tuple[str, str], Verdict]) -> str:
    """Which arm is first, by how much over the second, and at what cost."""
    first, second = ranked(names, arms)
    ahead = found.get((first, second)) or found[second, first]
    interval = ahead.difference.interval
    over = interval if (first, second) in found else interval.reversed
    clear = "not clear" if ahead.outcome == NO_DIFFERENCE else "clear"
    costs = " against ".join(arms[name].cost for name in (first, second))
    return f"**{first}** is first, {points(over)} points over {second}: {clear} ({costs})."


def markdown(study: Study, arms: Arms, command: str) -> str:
    """reports/ablation.md, its pictures beside it."""
    parts = [f"# Ablation\n\n`{command}`\n", *(section(name, study, arms) for name in study.comparisons)]
    seeds, rows = max(arm.scores.shape for arm in arms.values())
    about = (
        f"{study.measure} on {rows} test rows, {seeds} seeds of every training; {study.confidence:.0%} intervals over seeds "
        "and rows (two-way random effects, Searle, Casella and McCulloch 1992; Satterthwaite's degrees of freedom), differences "
        "paired by seed and row (of one seed McNemar's exact test), verdicts after Holm's correction for a table's comparisons, "
        "that of its first arm with its second among them. Time is of all trainings of a chain, of the quickest seed; memory is of "
        "the largest: what tensors took of a GPU, or, without one, what the process took of the machine (RAM). "
        f"Measured on {machines(arms)}.\n"
    )
    return "\n".join([*filter(None, parts), about])


def section(title: str, study: Study, arms: Arms) -> str:
    """Table, verdict and picture of a comparison; empty with fewer than two arms to compare."""
    comparison = study.comparisons[title]
    if len(names := present(comparison, arms)) < 2:
        return ""
    found = judged(comparison, arms, study)
    lines = [row(name, arms[name], found.get((name, comparison.baseline)), study.confidence) for name in names]
    head = f"| arm | {study.measure} | points over {comparison.baseline} | verdict | training | runs |\n|---|---|---|---|---|---|"
    text = verdict(names, arms, found)
    return "\n".join([f"## {title}\n", head, *lines, "", text, "", f"![{title}]({picture_name(title)})", ""])


def row(name: str, arm: Arm, against: Verdict | None, confidence: float) -> str:
    """A line of the table; without a verdict, that of the baseline."""
    over = f"{points(against.difference.interval)} | {against.outcome}" if against else " | "
    return f"| {name} | {percent(rate(arm, confidence))} | {over} | {arm.cost} | {len(arm.outcomes)} |"


def picture(names: Sequence[str], study: Study, arms: Arms) -> str:
    """An SVG: a bar an arm, with its interval."""
    found = {name: rate(arms[name], study.confidence) for name in names}
    bars = {name: (one.value, one.low, one.high) for name, one in found.items()}
    return figures.scores({f"{study.measure}, {study.confidence:.0%} interval": bars}, figures.WIDE)


def picture_name(title: str) -> str:
    return f"ablation-{re.sub(r'[^a-z0-9]+', '-', title.lower())}.svg"


def values(study: Study, arms: Arms) -> dict[str, Any]:
    """`<arm>_<measure>` and `<arm>_over_<baseline>` with `_low`, `_high`, `_p` and `_verdict`, cost and number of runs."""
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        found |= spread(f"{name}_{study.measure}", rate(arm, study.confidence))
        found |= {f"{name}_runs": len(arm.outcomes), f"{name}_seconds": arm.seconds}
        found |= {f"{name}_peak_gb": arm.peak_gb, f"{name}_memory": arm.memory}
    for comparison in study.comparisons.values():
        if len(present(comparison, arms)) > 1:
            for (name, other), verdict in judged(comparison, arms, study).items():
                if other == comparison.baseline:
                    key = f"{name}_over_{other}"
                    found |= spread(key, verdict.difference.interval)
                    found |= {f"{key}_p": verdict.p, f"{key}_verdict": verdict.outcome}
    return found | {"rows": next(iter(arms.values())).scores.shape[1], "machine": machines(arms)}


def machines(arms: Arms) -> str:
    return "; ".join(sorted({one.machine for arm in arms.values() for one in arm.outcomes}))


def spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def percent(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
