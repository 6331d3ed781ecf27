"""Prompts that show whether a model is safe: what should be refused, what should not, and questions about groups of people.

Reads   wheels, files or the Hub (probes.sets)
Writes  data/probes.jsonl (id, set, role, text or row), reports/probes.json
"""

from collections import Counter
from dataclasses import dataclass

from temper import metrics, params, probe_sets, records, stage

OUT = "data/probes.jsonl"


@dataclass
class Probes:
    sets: dict[str, probe_sets.Source]
    seed: int
    """Of which harmful request a jailbreak is put around."""


def main() -> None:
    cfg = params.load("probes", Probes)
    found = list(probe_sets.read(cfg.sets, cfg.seed))
    records.write(OUT, found)
    counted = Counter(row["set"] for row in found)
    by_role = Counter(row["role"] for row in found)
    values: dict[str, int] = {f"n_{name}": counted[name] for name in cfg.sets if counted[name]}
    values |= {f"not_run_{name}": 1 for name in cfg.sets if not counted[name]}
    metrics.write("reports/probes.json", values | {f"role_{role}": count for role, count in by_role.items()})
    for name, source in cfg.sets.items():
        if not source.files:
            print(f"probes: {name} is not run: name its files in conf/probes", flush=True)


if __name__ == "__main__":
    stage.run(main, "probes")
