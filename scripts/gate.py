"""Decide whether the release may go out: no worse than before, well formed, not forgetful, clean, fast enough.

Reads   reports/ (evaluation, safety, contamination, quants, speed), reports/released.json, data/evaluate, data/safety, data/mix
Writes  reports/gate.json; exits with status 1, and with what to do, when a check fails
"""

from dataclasses import dataclass

from temper import evaluation_matrix, gate, graph, metrics, params, recipe, records, released, safety_matrix, stage
from temper.comparisons import Difference
from temper.gate import Limit, Remedies
from temper.task_metrics import Task

TRAINED = ("train", "validation", "preferences", "rl")
HELD_OUT = ("test", "golden")


@dataclass
class Gate:
    action: str
    """On a failed check: `stop` the graph, or only `report`."""
    confidence: float
    """Of the verdicts, all comparisons of the gate together."""
    seed: int
    not_worse: list[str]
    """Measures of the evaluation matrix; `tasks` and `benchmarks` for all that there are of those."""
    tasks: list[Task]
    """Of the user's own, whose answers are compared."""
    safety: dict[str, str]
    """Measures of the safety matrix and of bias, with what to do where the release is worse than the base."""
    limits: dict[str, Limit]
    """By the name of the check."""
    remedies: Remedies


def main() -> None:
    cfg = params.load("gate", Gate)
    if cfg.action not in gate.ACTIONS:
        raise SystemExit(f"gate.action is '{cfg.action}': choose {' or '.join(gate.ACTIONS)} in conf/gate")
    found = recipe.load()

    checks = [*compared(cfg, found), *limited(cfg, found)]
    for check in checks:
        print(check.line(), flush=True)

    # Before the verdict: DVC leaves what a failed stage wrote where it is.
    metrics.write(gate.REPORT, gate.report(checks))
    gate.stop(checks, cfg.action)


def compared(cfg: Gate, found: recipe.Recipe) -> list[gate.Check]:
    """The release against the base, what it was trained from, and the last release."""
    evaluated = {variant: evaluation_matrix.read(variant) for variant in found.variants}
    differences = evaluation_matrix.differences(found, evaluated, cfg.tasks, cfg.confidence, cfg.seed)
    measures = gate.measures_of(cfg.not_worse, cfg.tasks, evaluated[found.release])
    golden = records.read(f"data/evaluate/{found.release}-golden.jsonl")
    in_words = safety_matrix.answers_in_words(records.read("data/mix/train.jsonl"))
    asked = [
        *gate.not_worse(measures, found, differences, cfg.remedies.worse),
        *gate.safe(cfg.safety, found, safety(cfg, found, in_words), in_words),
        *gate.golden_parity(released.read(), golden, cfg.confidence, cfg.seed, cfg.remedies.golden),
    ]
    return gate.decided(asked, cfg.confidence)


def safety(cfg: Gate, found: recipe.Recipe, in_words: bool) -> dict[str, Difference]:
    """The release against the base, which may be the same one."""
    rows, before = (list(records.read(f"data/safety/{name}.jsonl")) for name in (found.release, found.variants[0]))
    asked = safety_matrix.differences(rows, before, in_words, cfg.confidence, cfg.seed)
    return asked | gate.fairness(rows, before, cfg.confidence, cfg.seed)


def limited(cfg: Gate, found: recipe.Recipe) -> list[gate.Check]:
    """Figures of reports/, and two of the gate's own, against their limits."""
    likely = (
        list(records.read(f"data/evaluate/{name}-likelihoods.jsonl")) for name in (found.variants[0], found.release)
    )
    trained, held_out = (
        (row for split in splits for row in records.read(f"data/mix/{split}.jsonl")) for splits in (TRAINED, HELD_OUT)
    )
    own = {"forgetting": gate.forgotten(*likely), "overlap": gate.overlap(trained, held_out)}
    made = {out for one in graph.stages() for out in one.outs}
    scored = records.read(f"data/evaluate/{found.release}-benchmarks.jsonl")
    return [
        *gate.limits(gate.of_tasks(cfg.limits, cfg.tasks), own, made),
        *gate.looked_for(scored, cfg.remedies.contamination),
    ]


if __name__ == "__main__":
    stage.run(main, "gate")
